//! `pgark restore --data-dir … --at …`: which base backup and which WAL, in which store.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use super::args::{Global, Restore, WalMode};
use super::note;
use super::restore_base::named;
use crate::app::App;
use crate::catalog::layout::WalFile;
use crate::catalog::list::Catalog;
use crate::config::{Environment, Place};
use crate::error::{Error, Kind, Result};
use crate::restore::base::Recovery;
use crate::restore::wal::fetch::Fetch;
use crate::restore::wal::moment::{Archive, Candidate, Goal, Moment, Wanted};
use crate::restore::wal::prefetch::FOLDER;
use crate::restore::wal::target::{Aim, Target};
use crate::store::Store;
use crate::units::{BackupKind, ByteSize, SystemId};

/// Segments that `wal-get` fetches ahead of a server.
const PREFETCH: u16 = 16;
/// What the client of S3 heeds, in capitals or in small letters.
const PROXIES: [&str; 4] = ["ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"];

/// A store, and what was found in it.
pub(super) struct World {
    pub(super) store: Box<dyn Store>,
    pub(super) catalog: Catalog,
    archives: Vec<(SystemId, Archive)>,
}

/// Reads `--at`, and says what it assumed.
pub(super) fn target(verb: &Restore) -> Result<Option<Target>> {
    let Some(at) = &verb.at else {
        return Ok(None);
    };
    let target = Target::parse(at, verb.exclusive)?;
    if let Aim::Time {
        time,
        assumed_utc: true,
    } = target.aim
    {
        note(&format!("{at} has no offset: taken for UTC, {time}"));
    }
    Ok(Some(target))
}

/// The stores that may serve, by name: the one that is wanted, else all.
pub(super) fn worlds<'a>(
    app: &'a App,
    global: &'a Global,
) -> impl Iterator<Item = (&'a str, Result<World>)> + use<'a> {
    let wanted = global.store.as_deref();
    let names = app.store_names().into_iter();
    let names = names.filter(move |name| wanted.is_none_or(|wanted| wanted == *name));
    names.map(|name| (name, world(app, name)))
}

fn world(app: &App, name: &str) -> Result<World> {
    let (store, catalog) = app.catalog(Some(name))?;
    // Newest first: of a cluster that was upgraded, its new one.
    let mut seen = BTreeSet::new();
    let mut archives = Vec::new();
    for entry in &catalog.entries {
        let system = Candidate::of(entry).and_then(|one| one.system());
        if let Some(system) = system.filter(|system| seen.insert(*system)) {
            archives.push((system, Archive::load(store.as_ref(), system)?));
        }
    }
    Ok(World {
        store,
        catalog,
        archives,
    })
}

impl World {
    /// Finds base backup and WAL in this store.
    pub(super) fn find<'a>(
        &'a self,
        app: &'a App,
        verb: &Restore,
        target: &'a Target,
    ) -> Result<Moment<'a>> {
        let wanted = app.own_id(&verb.backup);
        let chosen = match wanted {
            "latest" => None,
            id => Some(named(&self.catalog, id)?),
        };
        let mut refused = None;
        for (system, archive) in &self.archives {
            let entries = self.catalog.entries.iter();
            let candidates = entries.filter(|entry| match &chosen {
                Some(id) => entry.id == id.id,
                None => entry.kind == BackupKind::Base && entry.good,
            });
            let candidates = candidates.filter_map(Candidate::of);
            let candidates: Vec<_> = candidates
                .filter(|one| one.system() == Some(*system))
                .collect();
            if candidates.is_empty() {
                continue;
            }
            let found = Wanted {
                store: self.store.as_ref(),
                archive,
                identities: if is_sealed(archive) {
                    app.identities()?
                } else {
                    None
                },
                target,
                timeline: verb.timeline.flatten(),
                threads: app.config.jobs,
                cancel: &app.cancel,
            }
            .find(&candidates);
            match found {
                // A time before a pg_upgrade lies in the cluster of before.
                Err(error)
                    if error.kind == Kind::Unreachable
                        && matches!(target.aim, Aim::Time { .. }) =>
                {
                    refused.get_or_insert(error);
                }
                found => return found,
            }
        }
        Err(refused.unwrap_or_else(|| {
            Error::new(
                Kind::Unreachable,
                format!("there is no good base backup in {}", self.store.describe()),
            )
            .hint("`pgark backup --base` takes one; `pgark list` shows what there is")
        }))
    }

    fn archive(&self, moment: &Moment<'_>) -> Option<&Archive> {
        let system = moment.line.source.system;
        let mut archives = self.archives.iter();
        archives
            .find(|(one, _)| *one == system)
            .map(|(_, archive)| archive)
    }
}

/// Whether any of it is encrypted.
fn is_sealed(archive: &Archive) -> bool {
    let mut files = archive.wal.segments().flat_map(|(_, held)| held.files());
    files.any(|one| match one.file {
        WalFile::Segment { encrypted, .. } | WalFile::Piece { encrypted, .. } => encrypted,
        WalFile::Open(_) | WalFile::History(_) => false,
    })
}

/// What the plan says of WAL, for people and as JSON.
pub(super) struct Summary {
    pub(super) json: Value,
    pub(super) text: String,
}

pub(super) fn summary(moment: &Moment<'_>, verb: &Restore) -> Summary {
    let range = moment.range.clone();
    let names = moment.line.segments.get(range.clone()).unwrap_or_default();
    let (first, last) = (names.first(), names.last());
    let (first, last) = (first.map(|(name, _)| *name), last.map(|(name, _)| *name));
    let stored = moment.line.stored_bytes(range.clone());
    let raw = range.len() as u64 * moment.size().bytes();
    let mut text = String::new();
    if let (Some(first), Some(last)) = (first, last) {
        let _ = writeln!(
            text,
            "  WAL {first} to {last}: {} segments, {} from {} stored, timeline {}",
            names.len(),
            ByteSize(raw),
            ByteSize(stored),
            moment.timeline
        );
    }
    for (name, value) in moment.settings() {
        let _ = writeln!(text, "  {name} = '{value}'");
    }
    if let Some(stop) = &moment.stop {
        let (lsn, time) = (stop.lsn, stop.event.time());
        let _ = writeln!(text, "  stops at the record of LSN {lsn} ({time})");
    }
    let settings: serde_json::Map<String, Value> = moment
        .settings()
        .into_iter()
        .map(|(name, value)| (name.to_owned(), json!(value)))
        .collect();
    Summary {
        json: json!({
            "timeline": moment.timeline.number(),
            "target": settings,
            "stop_lsn": moment.stop.as_ref().map(|stop| stop.lsn),
            "first_segment": first,
            "last_segment": last,
            "segments": names.len(),
            "bytes": stored,
            "raw_bytes": raw,
            "how": match verb.wal { WalMode::Fetch => "fetch", WalMode::Get => "get" },
        }),
        text,
    }
}

/// What the restored server is told and given.
pub(super) fn recovery<'a>(
    app: &App,
    world: &'a World,
    moment: Moment<'a>,
    (verb, global): (&Restore, &Global),
) -> Result<Recovery<'a>> {
    let settings = moment.settings();
    if verb.wal == WalMode::Get && moment.goal != Goal::BackupEnd {
        ensure_from_start(&moment, world)?;
        return Ok(Recovery {
            settings,
            restore_command: restore_command(app, world, (verb, global))?,
            recovery_end_command: format!("rm -rf pg_wal/{FOLDER}"),
            fetch: None,
        });
    }
    let archive = world
        .archive(&moment)
        .ok_or_else(|| Error::failed("the archive is gone"))?;
    Ok(Recovery {
        settings,
        restore_command: "false".to_owned(),
        recovery_end_command: String::new(),
        fetch: Some(Fetch {
            range: moment.range.clone(),
            line: moment.line,
            archive: &archive.wal,
        }),
    })
}

/// A server that asks for WAL begins where the backup began, not where it ended.
fn ensure_from_start(moment: &Moment<'_>, world: &World) -> Result<()> {
    let base = moment.base.base;
    let mut at = base.start_lsn.segment_start(moment.size());
    let archive = world.archive(moment).map(|archive| &archive.wal);
    while at < moment.line.from {
        let held = archive.and_then(|wal| wal.covering(moment.line.history, at, moment.size()));
        if held.is_none_or(|(_, held)| !held.is_whole()) {
            return Err(Error::new(
                Kind::Unreachable,
                format!(
                    "the archive does not hold the WAL at {at}, where {} begins",
                    moment.base.entry.id
                ),
            )
            .hint("--wal fetch takes it from the backup itself"));
        }
        at = at.plus(moment.size().bytes());
    }
    Ok(())
}

/// The command by which the server gets its WAL: where pgark is, and its configuration without any
/// secret.
fn restore_command(
    app: &App,
    world: &World,
    (verb, global): (&Restore, &Global),
) -> Result<String> {
    let name = world.store.name();
    let stores = &app.config.stores;
    let is_remote = stores
        .iter()
        .any(|one| one.name == name && matches!(one.place, Place::S3(_)));
    let (handed, kept) = handed(&app.config.environment, is_remote);
    let mut command = String::new();
    if !handed.is_empty() {
        command.push_str("env ");
        for pair in handed {
            let _ = write!(command, "{} ", quoted(&pair));
        }
    }
    if !kept.is_empty() {
        note(&format!(
            "warning: the server's own environment must hold {}: no secret is written into its settings, nor a proxy, whose URL may hold one",
            kept.join(", ")
        ));
    }
    let program = std::env::current_exe()?;
    command.push_str(&quoted(&program.display().to_string()));
    let _ = write!(
        command,
        " wal-get --prefetch {PREFETCH} --store {}",
        quoted(name)
    );
    if let Some(file) = &global.config {
        let _ = write!(command, " --config {}", quoted(&absolute(file)?));
    }
    if app.config.among != crate::config::Among::Alone {
        let _ = write!(command, " --cluster {}", quoted(&app.config.cluster));
    }
    if let Some(dir) = &verb.place.dir {
        let _ = write!(command, " --dir {}", quoted(&absolute(dir)?));
    }
    command.push_str(" %f %p");
    Ok(command)
}

/// The variables that `wal-get` needs: those that go into its command, as `NAME=value`, and the names
/// of those that it must find in the server's environment, since they are or may hold a secret.
fn handed(environment: &Environment, is_remote: bool) -> (Vec<String>, Vec<String>) {
    let (plain, secrets) = environment.split();
    let wanted = |name: &str| {
        [
            "S3_",
            "AWS_",
            "BACKUP_S3_",
            "BACKUP_IDENTITY",
            "BACKUP_DIR",
            "PGARK_CONFIG",
        ]
        .iter()
        .any(|prefix| name.starts_with(prefix))
    };
    let is_proxy = |name: &str| is_remote && PROXIES.contains(&name.to_uppercase().as_str());
    let pairs = plain.iter().filter(|(name, _)| wanted(name));
    let pairs = pairs.map(|(name, value)| format!("{name}={value}"));
    let secret = secrets.keys().filter(|name| wanted(name));
    let proxies = plain
        .iter()
        .filter(|(name, value)| is_proxy(name) && !value.is_empty());
    let kept = secret.chain(proxies.map(|(name, _)| name)).cloned();
    (pairs.collect(), kept.collect())
}

fn absolute(path: &Path) -> Result<String> {
    Ok(std::path::absolute(path)?.display().to_string())
}

/// For the shell, and for PostgreSQL, to which `%` means something.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''").replace('%', "%%"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_through_shell_and_server_as_they_are() {
        assert_eq!(quoted("/a b/it's 100%"), "'/a b/it'\\''s 100%%'");
    }

    #[test]
    fn secrets_and_proxies_are_named_and_not_handed_over() {
        let environment = Environment::from_pairs([
            ("S3_BUCKET", "b"),
            ("AWS_SECRET_ACCESS_KEY", "s3cret"),
            ("DB_PASSWORD", "s3cret"),
            ("HTTPS_PROXY", "http://me:s3cret@proxy:3128"),
            ("HTTP_PROXY", ""),
            ("no_proxy", "db"),
        ]);
        let (pairs, kept) = handed(&environment, true);
        assert_eq!(pairs, ["S3_BUCKET=b"]);
        assert_eq!(kept, ["AWS_SECRET_ACCESS_KEY", "HTTPS_PROXY", "no_proxy"]);
        // Nobody goes through a proxy to a directory.
        let (_, kept) = handed(&environment, false);
        assert_eq!(kept, ["AWS_SECRET_ACCESS_KEY"]);
    }
}
