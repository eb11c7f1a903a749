//! `pgark restore --data-dir`: a base backup into a directory.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::json;

use super::args::{Global, Restore};
use super::restore_moment::{self as moment, Summary};
use super::restore_warnings as warnings;
use super::{note, print, print_json};
use crate::app::App;
use crate::catalog::base::{BAD_CHECKSUMS, chain};
use crate::catalog::list::{Catalog, Entry};
use crate::error::{Cause, Error, Kind, Result};
use crate::postgres::started;
use crate::progress::Reporter;
use crate::restore::base::{self, Order, Plan};
use crate::store::Store;
use crate::units::{BackupKind, ByteSize};

pub(super) fn restore(app: &App, verb: &Restore, dir: &Path, global: &Global) -> Result<()> {
    find(app, verb, global, |work| work.run(app, verb, dir, global))
}

/// The same as a step of something greater: nothing is said, nothing is started.
pub(super) fn restore_silently(
    app: &App,
    verb: &Restore,
    dir: &Path,
    global: &Global,
) -> Result<()> {
    find(app, verb, global, |work| {
        work.planned(app, verb, dir, |plan, _| {
            let progress = app.progress();
            plan.run(app.config.jobs, &progress, &app.cancel).map(drop)
        })
    })
}

/// Finds what is to be restored, and where it lies.
fn find<T>(
    app: &App,
    verb: &Restore,
    global: &Global,
    then: impl FnOnce(Work<'_>) -> Result<T>,
) -> Result<T> {
    let Some(target) = moment::target(verb)? else {
        let (store, catalog, entry) = locate(app, verb, global)?;
        let work = Work {
            store: store.as_ref(),
            catalog: &catalog,
            entry: &entry,
            recovery: None,
            summary: None,
        };
        return then(work);
    };
    let mut refused: Vec<(&str, Error)> = Vec::new();
    for (name, world) in moment::worlds(app, global) {
        let found = match &world {
            Ok(world) => world.find(app, verb, &target).map(|found| (world, found)),
            Err(error) => Err(error.clone()),
        };
        let (world, found) = match found {
            Ok(found) => found,
            Err(error) if matches!(error.kind, Kind::Signal(_)) => return Err(error),
            // A store with less WAL would only not know of it.
            Err(error) if error.cause == Some(Cause::Ambiguous) => return Err(error),
            Err(error) => {
                refused.push((name, error));
                continue;
            }
        };
        warnings::older_timeline(&found);
        warnings::other_store(app, &refused, world, (&found, &target))?;
        let entry = found.base.entry;
        let work = Work {
            store: world.store.as_ref(),
            catalog: &world.catalog,
            entry,
            summary: Some(moment::summary(&found, verb)),
            recovery: Some(moment::recovery(app, world, found, (verb, global))?),
        };
        return then(work);
    }
    let first = refused.into_iter().next();
    Err(first.map_or_else(|| Error::usage("there is no store"), |(_, error)| error))
}

/// A restore whose parts were found.
struct Work<'a> {
    store: &'a dyn Store,
    catalog: &'a Catalog,
    entry: &'a Entry,
    recovery: Option<base::Recovery<'a>>,
    summary: Option<Summary>,
}

impl Work<'_> {
    /// Plans, and holds what is read against a prune meanwhile.
    fn planned<T>(
        self,
        app: &App,
        verb: &Restore,
        dir: &Path,
        then: impl FnOnce(&Plan<'_>, Option<&Summary>) -> Result<T>,
    ) -> Result<T> {
        let data_dir = std::path::absolute(dir)?;
        let entry = self.entry;
        let chain = chain(&self.catalog.entries, entry)?;
        let _readings: Vec<_> = chain.iter().map(|one| app.reading(one)).collect();
        let mut identities = None;
        for one in &chain {
            identities = app.unseal(&mut (*one).clone())?.or(identities);
        }
        let tools = app.tools();
        let plan = base::plan(Order {
            store: self.store,
            chain,
            data_dir,
            mapping: verb.tablespace_mapping.clone(),
            tools: &tools,
            identities,
            recovery: self.recovery,
        })?;
        then(&plan, self.summary.as_ref())
    }

    fn run(self, app: &App, verb: &Restore, dir: &Path, global: &Global) -> Result<()> {
        let entry = self.entry;
        self.planned(app, verb, dir, |plan, summary| {
            if verb.dry_run {
                return dry_run(plan, entry, summary, global);
            }
            if !global.quiet {
                note(&format!(
                    "restoring {} into {}",
                    entry.id,
                    plan.data_dir.display()
                ));
            }
            let progress = app.progress();
            let reporter =
                Reporter::start("restore", std::sync::Arc::clone(&progress), global.quiet);
            let result = plan.run(app.config.jobs, &progress, &app.cancel);
            drop(reporter);
            let restored = result.map_err(|error| app.cancel.check().err().unwrap_or(error))?;
            say(plan, &restored);
            report(plan, entry, summary, &restored, global)?;
            if verb.start {
                start(app, entry, plan)?;
            }
            Ok(())
        })
    }
}

fn start(app: &App, entry: &Entry, plan: &Plan<'_>) -> Result<()> {
    let manifest = entry.manifest.as_ref();
    let version = manifest.map_or(0, |one| one.server_version_num);
    let started = started::start(&app.tools(), version, &plan.data_dir, &app.cancel)?;
    note(&format!(
        "the server has recovered and runs: port {}, socket in {}, log {}",
        started.port,
        started.socket_dir,
        started.log.display()
    ));
    Ok(())
}

/// What somebody who starts the copy has to know.
fn say(plan: &Plan<'_>, restored: &base::Restored) {
    if !restored.made.is_empty() {
        note(&format!(
            "warning: the backup holds no {}: they lay outside the data directory; minimal ones were made, look at them",
            restored.made.join(", ")
        ));
    }
    if restored.owned_by_root {
        note(&format!(
            "warning: the files belong to root, as whom no server starts: chown -R postgres: {}",
            plan.data_dir.display()
        ));
    }
    note("the copy archives nothing and follows nobody: see the end of postgresql.auto.conf");
}

fn report(
    plan: &Plan<'_>,
    entry: &Entry,
    summary: Option<&Summary>,
    restored: &base::Restored,
    global: &Global,
) -> Result<()> {
    if global.json {
        let mut value = plan_json(plan, entry, summary);
        value["made"] = json!(restored.made);
        return print_json(&value);
    }
    print(&format!(
        "restored {} into {}; start PostgreSQL {} there: pg_ctl -D {} start\n{}",
        entry.id,
        plan.data_dir.display(),
        plan.server_version(),
        plan.data_dir.display(),
        summary.map_or("", |summary| &summary.text),
    ))
}

fn plan_json(plan: &Plan<'_>, entry: &Entry, summary: Option<&Summary>) -> serde_json::Value {
    let places = plan.tablespaces.iter();
    let places: Vec<_> = places
        .map(|(oid, place)| json!({"oid": oid, "directory": place}))
        .collect();
    json!({
        "backup": entry.id.as_str(),
        "chain": plan.ids(),
        "data_dir": plan.data_dir,
        "tablespaces": places,
        "bytes": plan.bytes,
        "raw_bytes": plan.raw_bytes,
        "server_version": plan.server_version(),
        "wal": summary.map(|summary| &summary.json),
    })
}

fn dry_run(
    plan: &Plan<'_>,
    entry: &Entry,
    summary: Option<&Summary>,
    global: &Global,
) -> Result<()> {
    if global.json {
        return print_json(&plan_json(plan, entry, summary));
    }
    let mut text = format!(
        "would restore {} into {}: {} from {} stored, PostgreSQL {}\n  reads {}\n",
        entry.id,
        plan.data_dir.display(),
        ByteSize(plan.raw_bytes),
        ByteSize(plan.bytes),
        plan.server_version(),
        plan.ids().join(", ")
    );
    for (oid, place) in &plan.tablespaces {
        let _ = writeln!(text, "  tablespace {oid} into {}", place.display());
    }
    text.push_str(summary.map_or("", |summary| &summary.text));
    print(&text)
}

type Located = (Box<dyn Store>, Catalog, Entry);

/// The backup and its store: the wanted one, else the local one; the second one where the local
/// one has it not, or not whole.
fn locate(app: &App, verb: &Restore, global: &Global) -> Result<Located> {
    let find = |name: Option<&str>| -> Result<Located> {
        let (store, catalog) = app.catalog(name)?;
        let entry = choose(&catalog, app.own_id(&verb.backup))?;
        Ok((store, catalog, entry))
    };
    let found = find(global.store.as_deref());
    let (Err(error), None) = (&found, &global.store) else {
        return found;
    };
    for name in app.others() {
        if let Ok(other) = find(Some(name)) {
            warnings::not_served(app.first(), error);
            note(&format!(
                "{} is read from {}",
                other.2.id,
                other.0.describe()
            ));
            return Ok(other);
        }
    }
    found
}

fn choose(catalog: &Catalog, backup: &str) -> Result<Entry> {
    if backup == "latest" {
        let (entry, skipped) = catalog.latest(BackupKind::Base, None)?;
        for newer in skipped {
            let state = newer.state.to_string();
            let reason = newer.reason.as_deref().unwrap_or(&state);
            note(&format!("passed over {}: {reason}", newer.id));
        }
        return Ok(entry.clone());
    }
    named(catalog, backup).cloned()
}

/// The base backup that was asked for by name: it may be the only copy there is.
pub(super) fn named<'a>(catalog: &'a Catalog, id: &str) -> Result<&'a Entry> {
    let entry = catalog.find(id)?;
    if entry.kind != BackupKind::Base {
        return Err(Error::usage(format!("{} is no base backup", entry.id))
            .hint("--data-dir takes a base backup; without it, a dump goes into a new database"));
    }
    let reason = entry.reason.as_deref().unwrap_or("its state is unknown");
    if !entry.good && reason != BAD_CHECKSUMS {
        return Err(Error::damage(format!("{} is not good: {reason}", entry.id))
            .hint("`pgark list` shows the others"));
    }
    if !entry.good {
        note(&format!("warning: {}: {reason}", entry.id));
    }
    Ok(entry)
}
