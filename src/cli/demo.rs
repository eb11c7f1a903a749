//! `pgark demo`: backups, a disaster and restores on a throwaway server, as a story.
//!
//! The steps take the same code paths as `pgark backup`, `verify`, `restore` and the service's stream of WAL. What
//! came back is compared with fingerprints from before the disaster: the dump with one of when it was taken, the recovery
//! to the second before with one of that second; a difference ends the demo with exit
//! code 4. Invariant: however it ends (but by SIGKILL or a second signal), nothing is left behind
//! except the backups with `--keep`.

mod fingerprint;
mod sample;
mod second;
mod session;
mod stage;
mod story;

use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use self::fingerprint::Fingerprint;
use self::session::Session;
use self::stage::Stage;
use self::story::Figures;
use super::args::{Demo, Global};
use super::{print, print_json, read};
use crate::backup::run::{self, Run};
use crate::cancel::Token;
use crate::catalog::layout::Part;
use crate::catalog::list::{self, Catalog, Entry};
use crate::error::{Error, Result};
use crate::postgres::process::{Child, clean_command};
use crate::postgres::{Target, quote_ident};
use crate::progress::Reporter;
use crate::restore::{dump, fresh_name};
use crate::store::Store;

/// The database of the way without pgark.
const BY_HAND: &str = "shop_by_hand";

pub(super) fn demo(verb: &Demo, global: &Global, cancel: &Token) -> Result<()> {
    let started = Instant::now();
    let result = Stage::open(verb.width.jobs, verb.scale, cancel).and_then(|mut stage| {
        let mut play = Play {
            figures: Figures::default(),
            percent: verb.scale,
            keep: verb.keep,
            quiet: global.quiet,
            json: global.json,
        };
        let played = play.all(&mut stage);
        let kept = stage
            .folder
            .keep
            .then(|| stage.folder.path.display().to_string());
        let closed = stage.close();
        play.figures.kept.clone_from(&kept);
        let result = played.and_then(|()| closed.map(|()| play.figures));
        result.map_err(|error| match kept {
            Some(path) => Error {
                fact: format!("{} (the backups are in {path})", error.fact),
                ..error
            },
            None => error,
        })
    });
    // A signal closes connections and kills programs; how they then failed says nothing.
    cancel.check().map_err(|error| Error {
        hint: None,
        ..error
    })?;
    let mut figures = result?;
    figures.total_seconds = seconds(started);
    if global.json {
        let value = serde_json::to_value(&figures);
        return print_json(&value.map_err(|error| Error::failed(error.to_string()))?);
    }
    print(&story::ending(&figures))
}

fn seconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}

struct Play {
    figures: Figures,
    percent: u32,
    keep: bool,
    quiet: bool,
    json: bool,
}

impl Play {
    fn tell(&self, text: &str) -> Result<()> {
        if self.json { Ok(()) } else { print(text) }
    }

    fn all(&mut self, stage: &mut Stage) -> Result<()> {
        self.figures.jobs = stage.app.config.jobs;
        self.figures
            .server_version
            .clone_from(&stage.server_version);
        self.figures.pg_dump.clone_from(&stage.pg_dump.version_text);
        let socket_dir = stage.socket_dir().display().to_string();
        self.tell(&story::opening(&self.figures, &socket_dir))?;

        let (shop, before) = self.sample(stage)?;
        let store = stage.app.store(None)?;
        let entry = self.backup(stage, store.as_ref(), &shop)?;
        stage.folder.keep = self.keep;
        self.verify(stage, store.as_ref(), &entry)?;
        let last = self.stream_through(stage, store.as_ref(), &shop, &before)?;
        self.restore(stage, store.as_ref(), &entry, &before)?;
        self.by_hand(stage, &entry, &before)?;
        self.second_before(stage, last)
    }

    fn sample(&mut self, stage: &Stage) -> Result<(Target, Fingerprint)> {
        let started = Instant::now();
        let jobs = stage.app.config.jobs;
        let (shop, shape) = sample::build(&stage.admin, self.percent, jobs, &stage.app.cancel)?;
        let before = fingerprint(stage, &shop)?;
        self.figures.sample = shape;
        self.figures.compared = before.counts;
        self.figures.sample_seconds = seconds(started);
        self.tell(&story::sample(&self.figures))?;
        Ok((shop, before))
    }

    /// As `pgark backup`.
    fn backup(&mut self, stage: &Stage, store: &dyn Store, shop: &Target) -> Result<Entry> {
        let (app, started) = (&stage.app, Instant::now());
        let progress = app.progress();
        let reporter = Reporter::start("backup", std::sync::Arc::clone(&progress), self.quiet);
        let outcome = run::run(&Run {
            target: shop,
            databases: &app.databases()?,
            options: app.dump_options(crate::clock::now()),
            store,
            dir: &app.config.dir,
            tools: &app.tools(),
            progress: &progress,
            cancel: &app.cancel,
            gate: &app.gate(&Catalog::default()),
            say: &|_| {},
        });
        drop(reporter);
        let outcome = outcome?;
        outcome.verdict()?;
        let seconds = seconds(started);
        let mut catalog = list::load(store)?;
        let entry = read::choose(store, &mut catalog, "latest", Some(sample::DATABASE))?;
        let of_globals = outcome.taken.iter().find(|taken| taken.database.is_none());
        self.figures.backup = story::Backup {
            id: entry.id.to_string(),
            file: entry.key(Part::Artefact)?.as_str().to_owned(),
            bytes: entry.bytes,
            raw_bytes: entry.raw_bytes.unwrap_or_default(),
            frames: entry
                .manifest
                .as_ref()
                .map_or(0, |manifest| manifest.frames),
            globals: of_globals
                .map(|taken| taken.artefact.name.clone())
                .unwrap_or_default(),
            seconds,
        };
        self.tell(&story::backup(&self.figures))?;
        Ok(entry)
    }

    /// As `pgark verify latest`.
    fn verify(&mut self, stage: &Stage, store: &dyn Store, entry: &Entry) -> Result<()> {
        let started = Instant::now();
        let progress = stage.app.progress();
        self.figures.verified = crate::verify::entry(
            store,
            entry,
            None,
            stage.app.config.jobs,
            &progress,
            &stage.app.cancel,
        )?;
        self.figures.verify_seconds = seconds(started);
        self.tell(&story::verify(&self.figures))
    }

    /// As `pgark restore latest`, and the comparison.
    fn restore(
        &mut self,
        stage: &Stage,
        store: &dyn Store,
        entry: &Entry,
        before: &Fingerprint,
    ) -> Result<()> {
        let (app, started) = (&stage.app, Instant::now());
        let name = fresh_name(sample::DATABASE, "restored");
        let manifest = entry
            .manifest
            .as_ref()
            .ok_or_else(|| Error::damage(format!("{} has no manifest", entry.id)))?;
        let source = dump::Source::open(
            store,
            entry.key(Part::Artefact)?,
            &entry.key(Part::Index)?,
            entry.codec,
            manifest,
            None,
        )?;
        let progress = app.progress();
        let reporter = Reporter::start("restore", std::sync::Arc::clone(&progress), self.quiet);
        let result = source.restore(&dump::Job {
            target: &stage.admin,
            name: &name,
            jobs: app.config.jobs,
            keep: false,
            stead: None,
            progress: &progress,
            cancel: &app.cancel,
        });
        drop(reporter);
        result?;
        self.figures.restored.database.clone_from(&name);
        self.figures.restored.seconds = seconds(started);
        self.tell(&story::restore(&self.figures))?;
        let copy = stage.admin.with_database(&name);
        tamper(stage, &copy, "restored")?;
        compare(stage, before, &copy, &mut self.figures.restored)?;
        self.tell(&story::comparison(&self.figures))?;
        judge(&self.figures.restored)?;
        // Room for the next copy.
        stage.admin(&format!(
            "DROP DATABASE {} WITH (FORCE)",
            quote_ident(&name)
        ))
    }

    /// `gunzip -c FILE | psql` into an empty database, and the comparison.
    fn by_hand(&mut self, stage: &Stage, entry: &Entry, before: &Fingerprint) -> Result<()> {
        let started = Instant::now();
        stage.admin(&format!("CREATE DATABASE {BY_HAND} TEMPLATE template0"))?;
        let file = entry.key(Part::Artefact)?.as_str().to_owned();
        pipe(stage, &stage.folder.path.join(&file))?;
        BY_HAND.clone_into(&mut self.figures.by_hand.database);
        self.figures.by_hand.seconds = seconds(started);
        let copy = stage.admin.with_database(BY_HAND);
        tamper(stage, &copy, "by_hand")?;
        compare(stage, before, &copy, &mut self.figures.by_hand)?;
        self.tell(&story::by_hand(&self.figures, &file))?;
        judge(&self.figures.by_hand)
    }
}

fn fingerprint(stage: &Stage, database: &Target) -> Result<Fingerprint> {
    let app = &stage.app;
    Fingerprint::take(database, &stage.pg_dump, app.config.jobs, &app.cancel)
}

fn compare(
    stage: &Stage,
    before: &Fingerprint,
    found: &Target,
    restored: &mut story::Restored,
) -> Result<()> {
    let started = Instant::now();
    restored.differences = before.differences(&fingerprint(stage, found)?);
    restored.compare_seconds = seconds(started);
    Ok(())
}

fn judge(restored: &story::Restored) -> Result<()> {
    if restored.differences.is_empty() {
        return Ok(());
    }
    Err(Error::damage(story::failure(restored))
        .hint("this is a bug of pgark: run it again with --keep and report it with the backup"))
}

/// The pipe that the story shows, with the real programs.
fn pipe(stage: &Stage, file: &Path) -> Result<()> {
    let mut gunzip = clean_command(Path::new("gunzip"));
    gunzip.arg("-c").arg(file).stdout(Stdio::piped());
    let mut gunzip = Child::spawn("gunzip", &mut gunzip)?;
    let from = gunzip
        .take_stdout()
        .ok_or_else(|| Error::failed("gunzip has no output"))?;
    let mut command = stage.psql.command();
    command
        .args(["-X", "--no-password", "-d"])
        .arg(stage.admin.with_database(BY_HAND).conninfo(None))
        .stdin(Stdio::from(from))
        .stdout(Stdio::null());
    let psql = Child::spawn("psql", &mut command)?;
    // Closes this process's end of the pipe, so that gunzip sees it when psql ends.
    drop(command);
    let cancel = &stage.app.cancel;
    let hooks = [
        cancel.on_cancel(gunzip.killer()),
        cancel.on_cancel(psql.killer()),
    ];
    let (fed, done) = (gunzip.wait()?, psql.wait()?);
    drop(hooks);
    cancel.check()?;
    for (name, finished) in [("psql", done), ("gunzip", fed)] {
        if !finished.status.success() {
            return Err(Error::damage(format!(
                "the file does not restore by hand: {name} ended with {}: {}",
                finished.status,
                finished.stderr.trim()
            )));
        }
    }
    Ok(())
}

/// Tests change something between a restore and its comparison: `PGARK_DEMO_TAMPER` is
/// `restored`, `by_hand` or `recovered`, a blank, and SQL.
#[cfg(debug_assertions)]
fn tamper(stage: &Stage, database: &Target, step: &str) -> Result<()> {
    let wanted = std::env::var("PGARK_DEMO_TAMPER").unwrap_or_default();
    match wanted.split_once(' ') {
        Some((at, sql)) if at == step => Session::open(database, &stage.app.cancel)?
            .client
            .execute(sql),
        _ => Ok(()),
    }
}

#[cfg(not(debug_assertions))]
#[allow(clippy::unnecessary_wraps, reason = "as the other")]
fn tamper(_: &Stage, _: &Target, _: &str) -> Result<()> {
    Ok(())
}
