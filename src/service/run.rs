//! One run, as the schedule and a person take it: dumps, then what has expired goes, then the
//! records.
//!
//! Invariants: a run that lacks space prunes what has expired and tries once more what failed;
//! nothing expires after a run that was broken off; records that cannot be written are a warning.
//! Legacy backups that only wait for a verified backup of their database get one: the new backup
//! is verified. A crash leaves what `backup::run` and `prune` leave; the records lack the run.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;

use super::heartbeat::Heartbeat;
use super::journal::{self, Failure, Line, Taken, Trigger, Work};
use super::report::{self, Report};
use super::stores::{self, Replicated};
use crate::anomaly;
use crate::app::App;
use crate::backup::run::{self as dumps, Outcome};
use crate::catalog::list::{self, Catalog, Entry, State};
use crate::catalog::manifest::Manifest;
use crate::config::Databases;
use crate::error::{Error, Kind, Result};
use crate::prune::{self, Pruned};
use crate::store::Store;
use crate::units::{BackupKind, ByteSize};
use crate::{clock, verify};

/// How a run is wanted.
pub struct Wanted<'a> {
    pub trigger: Trigger,
    /// Expire nothing afterwards.
    pub no_prune: bool,
    /// Told of each step for people: a sentence.
    pub say: &'a dyn Fn(&str),
    pub progress: &'a Arc<crate::progress::Progress>,
}

/// What a run did.
#[derive(Debug, Default)]
pub struct Done {
    pub taken: Vec<Manifest>,
    /// Database (or `globals`) and why.
    pub failed: Vec<(String, Error)>,
    /// Said once, no failure.
    pub notices: Vec<String>,
    pub pruned: Pruned,
    /// Store and id that it has now.
    pub copied: Vec<(String, String)>,
}

/// Takes the backups, expires what is old, writes journal and report.
///
/// # Errors
/// `Busy`, or what kept the run from starting at all (both are in the journal, too); else what
/// [`Outcome::verdict`] says, beside what was done.
pub fn run(app: &App, store: &dyn Store, wanted: &Wanted<'_>) -> (Done, Result<()>) {
    let started_at = clock::now();
    let heartbeat = Heartbeat::begin(app.config.service.heartbeat.as_ref());
    let before = history(app, store, wanted.say);
    let mut done = Done::default();
    let verdict = take(app, store, wanted, started_at, &before, &mut done);
    let broken_off =
        matches!(&verdict, Err(error) if matches!(error.kind, Kind::Signal(_) | Kind::Busy));
    let mut notes = Vec::new();
    let mut verdict = verdict;
    let mut stores = Replicated::default();
    if !broken_off && !done.taken.is_empty() {
        match stores::replicate(app, wanted.say) {
            Ok(replicated) => stores = replicated,
            // Another process is at it: none of them is known to be up to date.
            Err(error) => {
                let others = app.others().into_iter();
                stores.failed = others
                    .map(|name| (name.to_owned(), error.clone()))
                    .collect();
            }
        }
        for (name, error) in &stores.failed {
            notes.push(report::failed(&format!("store {name}"), error));
        }
        verdict = verdict.and_then(|()| stores.verdict());
        done.copied = std::mem::take(&mut stores.copied);
    }
    if !wanted.no_prune && !broken_off && !done.taken.is_empty() {
        verify_for_legacy(app, store, wanted, &done.taken, &mut notes);
        let names = app.store_names().into_iter();
        for name in names.filter(|name| stores.reached(name)) {
            if let Err(error) = stores::expire(app, name, &mut done.pruned, &mut notes) {
                notes.push(report::failed(&format!("prune of {name}"), &error));
            }
        }
    }
    let records = Records {
        dir: &app.config.dir,
        store: store.describe(),
        started_at,
        work: Work::Dumps,
        wanted,
    };
    records.write(&before, &done, &notes, verdict.as_ref().err());
    let unheard = match heartbeat {
        Ok(heartbeat) => heartbeat.and_then(|heartbeat| heartbeat.end(&verdict, &app.cancel)),
        Err(error) => Some(error.fact),
    };
    if let Some(unheard) = unheard {
        (wanted.say)(&format!("warning: {unheard}"));
    }
    done.notices.extend(notes);
    (done, verdict)
}

/// What was there before, with the manifests that new backups are compared with: a catalog of far
/// away knows most of them by their summaries only.
fn history(app: &App, store: &dyn Store, say: &dyn Fn(&str)) -> Catalog {
    let mut catalog = list::load(store).unwrap_or_else(|error| {
        say(&format!(
            "warning: new backups cannot be compared with those before: {}",
            error.fact
        ));
        Catalog::default()
    });
    let mut known: BTreeMap<Option<String>, usize> = BTreeMap::new();
    for entry in &mut catalog.entries {
        let looked_at = known.entry(entry.database.clone()).or_default();
        if entry.good && entry.kind == BackupKind::Dump && *looked_at < app.thresholds().history {
            *looked_at += 1;
            entry.complete(store);
        }
    }
    catalog
}

/// Takes the dumps; short of space, once more after a prune.
fn take(
    app: &App,
    store: &dyn Store,
    wanted: &Wanted<'_>,
    started_at: Timestamp,
    before: &Catalog,
    done: &mut Done,
) -> Result<()> {
    let databases = app.databases()?;
    let target = app.pin_when_ready(databases.names(), wanted.say)?;
    let warnings = target.warnings().iter();
    warnings.for_each(|warning| (wanted.say)(&format!("warning: {warning}")));
    let tools = app.tools();
    let gate = app.gate(before);
    let attempt = |databases: &Databases, started_at| {
        dumps::run(&dumps::Run {
            target: &target,
            databases,
            options: app.dump_options(started_at),
            store,
            dir: &app.config.dir,
            tools: &tools,
            progress: wanted.progress,
            cancel: &app.cancel,
            gate: &gate,
            say: wanted.say,
        })
    };
    let mut outcome = attempt(&databases, started_at)?;
    let again = lacking_space(&outcome);
    if !wanted.no_prune && !again.is_empty() && app.cancel.check().is_ok() {
        (wanted.say)("the store is full: expiring what is old, to try once more");
        let mut notes = Vec::new();
        // What the first attempt committed stands, whatever befalls the second.
        let second =
            stores::expire(app, app.first(), &mut done.pruned, &mut notes).and_then(|()| {
                if done.pruned.removed.is_empty() {
                    return Ok(None);
                }
                attempt(&Databases::Named(again.clone()), clock::now()).map(Some)
            });
        match second {
            Ok(Some(second)) => outcome.replace(&again, second),
            Ok(None) => {}
            Err(error) => outcome
                .notices
                .push(report::failed("the second attempt", &error)),
        }
    }
    let verdict = outcome.verdict();
    done.taken = outcome.taken;
    done.failed = outcome.failed;
    done.notices = outcome.notices;
    verdict
}

fn lacking_space(outcome: &Outcome) -> Vec<String> {
    let failed = outcome.failed.iter();
    failed
        .filter(|(name, error)| error.is_no_space() && name != "globals")
        .map(|(name, _)| name.clone())
        .collect()
}

/// Verifies the new backups of databases whose legacy backups wait for one.
fn verify_for_legacy(
    app: &App,
    store: &dyn Store,
    wanted: &Wanted<'_>,
    taken: &[Manifest],
    notes: &mut Vec<String>,
) {
    let Ok(catalog) = list::load(store) else {
        return;
    };
    let Ok(policy) = app.policy(app.first()) else {
        return;
    };
    let plan = prune::plan(&catalog, &policy, clock::now());
    for manifest in taken {
        let mut waiting = plan.verdicts.iter().filter(|verdict| verdict.waits);
        let waited_for = waiting.any(|verdict| verdict.entry.database == manifest.database);
        let Some(entry) = catalog
            .find(manifest.id.as_str())
            .ok()
            .filter(|_| waited_for)
        else {
            continue;
        };
        let identities = match app.identities_at_hand() {
            Ok(identities) => identities.filter(|_| entry.encrypted),
            Err(error) => return notes.push(report::failed("verify", &error)),
        };
        if verify::is_shallow(entry, identities) {
            let id = &entry.id;
            notes.push(format!("legacy backups wait for a verified one; {id} is encrypted: `pgark verify {id}` where the identity is"));
            continue;
        }
        (wanted.say)(&format!(
            "verifying {}: legacy backups wait for a verified one",
            entry.id
        ));
        let progress = app.progress();
        match verify::entry(
            store,
            entry,
            identities,
            app.config.jobs,
            &progress,
            &app.cancel,
        ) {
            Ok(text) if text.contains("warning: ") => notes.push(text),
            Ok(_) => {}
            Err(error) => notes.push(report::failed(&format!("verify {}", entry.id), &error)),
        }
    }
}

/// Where a run is recorded.
pub(super) struct Records<'a> {
    pub(super) dir: &'a Path,
    pub(super) store: String,
    pub(super) started_at: Timestamp,
    pub(super) work: Work,
    pub(super) wanted: &'a Wanted<'a>,
}

impl Records<'_> {
    /// What the run is called in the report.
    fn noun(&self) -> &'static str {
        match self.work {
            Work::Dumps => "backup",
            work => work.noun(),
        }
    }

    pub(super) fn write(
        &self,
        before: &Catalog,
        done: &Done,
        notes: &[String],
        error: Option<&Error>,
    ) {
        let finished_at = clock::now();
        let report = self.report(before, done, notes, error, finished_at);
        let line = self.line(done, error, finished_at);
        // A directory that a dead configuration names is not made for the records' sake.
        if !self.dir.is_dir() {
            return;
        }
        for written in [report.save(self.dir), journal::append(self.dir, &line)] {
            if let Err(error) = written {
                (self.wanted.say)(&format!("warning: {}", error.fact));
            }
        }
    }

    fn report(
        &self,
        before: &Catalog,
        done: &Done,
        notes: &[String],
        error: Option<&Error>,
        now: Timestamp,
    ) -> Report {
        let mut report = Report::default();
        report.line(
            self.started_at,
            &format!("{} begins ({})", self.noun(), self.wanted.trigger),
        );
        for manifest in &done.taken {
            self.report_taken(&mut report, before, manifest);
        }
        for (name, error) in &done.failed {
            report.line(now, &report::failed(name, error));
        }
        for (store, id) in &done.copied {
            report.line(now, &format!("{id} is in {store} now"));
        }
        for entry in &done.pruned.removed {
            report.line(
                now,
                &format!("expired {}, {}", entry.id, ByteSize(entry.bytes)),
            );
        }
        for note in notes {
            report.line(now, note);
        }
        let seconds = now.duration_since(self.started_at).as_secs();
        let last = match error {
            None => format!(
                "{} done: {} taken, {} expired, {seconds} s",
                self.noun(),
                done.taken.len(),
                done.pruned.removed.len()
            ),
            // Said above already, where single backups failed.
            Some(error) if done.failed.is_empty() => report::failed(self.noun(), error),
            Some(_) => format!(
                "backup FAILED: {} taken, {} failed, {seconds} s",
                done.taken.len(),
                done.failed.len()
            ),
        };
        report.line(now, &last);
        report
    }

    fn report_taken(&self, report: &mut Report, before: &Catalog, manifest: &Manifest) {
        let same = |entry: &&Entry| {
            entry.good
                && entry.database == manifest.database
                && entry.kind == manifest.kind
                && entry.state != State::Legacy
        };
        let previous = before.entries.iter().find(same);
        let line = report::taken(manifest, previous, &self.store);
        report.line(manifest.finished_at, &line);
        // Those of an encrypted backup may name what its manifest seals.
        let (many, open) = (manifest.warnings.len(), !manifest.encrypted);
        for warning in manifest.warnings.iter().filter(|_| open) {
            report.line(manifest.finished_at, &format!("warning: {warning}"));
        }
        if many > 0 && !open {
            let text = format!("{many} warnings: `pgark show`, with the identity");
            report.line(manifest.finished_at, &text);
        }
        if !manifest.suspect.is_empty() {
            let falls = anomaly::sentence(&manifest.suspect);
            let line = format!("{} is SUSPECT: {falls}", manifest.id);
            report.line(manifest.finished_at, &line);
        }
    }

    fn line(&self, done: &Done, error: Option<&Error>, finished_at: Timestamp) -> Line {
        let outcome = match error.map(|error| error.kind) {
            None => journal::Outcome::Ok,
            Some(Kind::Partial) => journal::Outcome::Partial,
            Some(Kind::Busy) => journal::Outcome::Busy,
            Some(Kind::Signal(_)) => journal::Outcome::Interrupted,
            Some(_) => journal::Outcome::Failed,
        };
        Line {
            started_at: self.started_at,
            finished_at,
            trigger: self.wanted.trigger,
            work: self.work,
            outcome,
            error: error.map(|error| error.fact.clone()),
            taken: done.taken.iter().map(taken).collect(),
            failed: done
                .failed
                .iter()
                .map(|(database, error)| Failure {
                    database: database.clone(),
                    error: error.fact.clone(),
                })
                .collect(),
            expired: done
                .pruned
                .removed
                .iter()
                .map(|entry| entry.id.to_string())
                .collect(),
        }
    }
}

fn taken(manifest: &Manifest) -> Taken {
    Taken {
        id: manifest.id.to_string(),
        database: manifest.database.clone(),
        bytes: manifest.artefact.bytes,
        raw_bytes: manifest.raw_bytes,
        sha256: manifest.artefact.sha256.clone(),
        suspect: manifest.suspect.clone(),
    }
}

/// The databases that a status is asked for: those that are named, or with `*` those of the
/// newest run that took any.
#[must_use]
pub fn wanted_databases(databases: &Databases, dir: &Path, catalog: &Catalog) -> Vec<String> {
    if let Databases::Named(names) = databases {
        return names.clone();
    }
    let lines = journal::read(dir);
    // One that a person asked for may have been about some of them only, a base backup about none.
    let of_dumps = |line: &&Line| line.taken.iter().any(|taken| taken.database.is_some());
    let dumps = || lines.iter().rev().filter(of_dumps);
    let newest = dumps()
        .find(|line| line.trigger != Trigger::Manual)
        .or_else(|| dumps().next());
    let mut names: Vec<String> = match newest {
        Some(line) => {
            let taken = line.taken.iter().filter_map(|taken| taken.database.clone());
            let failed = line.failed.iter().map(|failure| failure.database.clone());
            taken
                .chain(failed.filter(|name| name != "globals"))
                .collect()
        }
        None => catalog
            .entries
            .iter()
            .filter(|entry| entry.kind == BackupKind::Dump)
            .filter_map(|entry| entry.database.clone())
            .collect(),
    };
    names.sort_unstable();
    names.dedup();
    names
}
