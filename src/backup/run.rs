//! One run of dumps: every wanted database, then the cluster's globals.
//!
//! Invariants: one run at a time for a cluster and kind, held by a lock file in the store's
//! directory and by an advisory lock in one fixed database of the server, so that two hosts exclude
//! each other too. One database that fails does not stop the others. What a dead run left is
//! cleared first, under the lock. Globals are committed only beside a dump that succeeded.

use std::path::Path;
use std::sync::Arc;

use super::dump::{self, Options};
use super::gate::Gate;
use crate::anomaly;
use crate::cancel::Token;
use crate::catalog::manifest::Manifest;
use crate::catalog::{commit, remains};
use crate::config::Databases;
use crate::error::{Error, Kind, Result};
use crate::postgres::tools::Tools;
use crate::postgres::{Client, Target, patience, quote_literal, refuse_transaction_pooler};
use crate::progress::Progress;
use crate::store::Store;
use crate::store::lock::DirLock;
use crate::units::BackupId;

/// First key of pgark's advisory locks, "pgrk"; the second is the kind of run.
const LOCK_CLASS: i32 = 0x7067_726b;
/// Second key: dumps. (Base backups and WAL have their own: a long base backup must not block dumps.)
const LOCK_DUMP: i32 = 1;
/// Second key: base backups.
pub(super) const LOCK_BASE: i32 = 2;

/// What a run works with.
pub struct Run<'a> {
    pub target: &'a Target,
    pub databases: &'a Databases,
    pub options: Options,
    pub store: &'a dyn Store,
    /// Directory of the lock file.
    pub dir: &'a Path,
    pub tools: &'a Tools,
    pub progress: &'a Arc<Progress>,
    pub cancel: &'a Token,
    /// What the new backups are compared with.
    pub gate: &'a Gate<'a>,
    /// Told of each step for people: a sentence.
    pub say: &'a dyn Fn(&str),
}

/// How it went.
#[derive(Debug, Default)]
pub struct Outcome {
    pub taken: Vec<Manifest>,
    /// Database (or `globals`) and why.
    pub failed: Vec<(String, Error)>,
    /// Said once, no failure.
    pub notices: Vec<String>,
}

impl Outcome {
    /// The run as a whole: nothing, or the error that decides the exit code.
    ///
    /// # Errors
    /// The only failure when nothing succeeded; `Failed` when nothing of several did; `Partial`
    /// when something did, or when pg_dump left something out.
    pub fn verdict(&self) -> Result<()> {
        let dumped = self
            .taken
            .iter()
            .any(|manifest| manifest.database.is_some());
        if let Some((_, error)) = self
            .failed
            .iter()
            .find(|(_, error)| matches!(error.kind, Kind::Signal(_)))
        {
            return Err(error.clone());
        }
        match (self.failed.as_slice(), dumped) {
            ([], false) => Err(Error::failed("there is no database to back up").hint(
                "`*` means every database that accepts connections and is no template; DB_NAME names others",
            )),
            ([], true) => self.doubts(),
            ([(_, only)], false) => Err(only.clone()),
            (failed, _) => {
                let facts: Vec<&str> = failed
                    .iter()
                    .map(|(_, error)| error.fact.as_str())
                    .collect();
                let kind = if dumped { Kind::Partial } else { Kind::Failed };
                let all = failed.len() + self.taken.len();
                let mut error = Error::new(
                    kind,
                    format!(
                        "{} of {all} backups failed: {}",
                        failed.len(),
                        facts.join("; ")
                    ),
                );
                error.hint = failed.iter().find_map(|(_, error)| error.hint.clone());
                Err(error)
            }
        }
    }

    /// Puts the second attempt at these databases in the place of the first.
    pub fn replace(&mut self, names: &[String], second: Outcome) {
        self.failed.retain(|(name, _)| !names.contains(name));
        self.taken.extend(second.taken);
        self.failed.extend(second.failed);
        self.notices.extend(second.notices);
    }

    /// What keeps a run without a failure from being well done.
    fn doubts(&self) -> Result<()> {
        let mut dumps = self.taken.iter().filter(|one| one.database.is_some());
        let left_out: Vec<&str> = dumps
            .clone()
            .flat_map(|manifest| manifest.warnings.iter().map(String::as_str))
            .collect();
        let suspect: Vec<&Manifest> = dumps
            .clone()
            .filter(|one| !one.suspect.is_empty())
            .collect();
        let mut facts = Vec::new();
        let mut hints = Vec::new();
        // What is said of an encrypted backup is written down beside it.
        let sealed = dumps.any(|manifest| manifest.encrypted);
        if !left_out.is_empty() {
            facts.push(if sealed {
                format!(
                    "pg_dump warned {} times (`pgark show`, with the identity)",
                    left_out.len()
                )
            } else {
                format!("pg_dump warned: {}", left_out.join("; "))
            });
            hints.push("what it left out is not in the backup; a superuser's dump leaves nothing out, and `pgark check` names the right that is missing".to_owned());
        }
        for manifest in &suspect {
            let falls = anomaly::sentence(&manifest.suspect);
            facts.push(format!("{} is suspect: {falls}", manifest.id));
        }
        if let Some(newest) = suspect.last() {
            hints.push(format!(
                "look at the database. If it is as it should be: pgark accept {}. Until then nothing of it expires, and `latest` is the backup before",
                newest.id
            ));
        }
        if facts.is_empty() {
            return Ok(());
        }
        let fact = format!("the backup is kept, but {}", facts.join("; "));
        Err(Error::new(Kind::Partial, fact).hint(hints.join("; ")))
    }
}

/// Takes the dumps.
///
/// # Errors
/// `Busy` when another run holds the cluster; what kept the run from starting at all. What
/// befell single databases is in the outcome.
pub fn run(run: &Run<'_>) -> Result<Outcome> {
    let mut lock = DirLock::acquire(run.dir, "dump")?;
    for name in remains::clear_remains(run.store, crate::clock::now(), lock.previous_intents())? {
        (run.say)(&format!(
            "cleared {name}, which an interrupted run left behind"
        ));
    }
    lock.note(&[])?;
    commit::ensure_sums(run.store)?;
    let mut holder = lock_cluster(run.target, LOCK_DUMP, run.cancel)?;
    let names = match run.databases {
        Databases::Named(names) => names.clone(),
        Databases::All => all_databases(&mut holder)?,
    };
    let mut outcome = Outcome::default();
    let mut ids: Vec<String> = Vec::new();
    let mut announce = |id: &BackupId| {
        ids.push(id.to_string());
        lock.note(&ids)
    };
    for name in &names {
        (run.say)(&format!("database {name}: dump begins"));
        let mut dump_run = context(run, &mut announce);
        match dump::take(&run.target.with_database(name), &run.options, &mut dump_run) {
            Ok(manifest) => outcome.taken.push(told(run, manifest)),
            // After a signal the failure is only that a connection was closed.
            Err(error) => outcome
                .failed
                .push((name.clone(), run.cancel.check().err().unwrap_or(error))),
        }
        if run.cancel.check().is_err() {
            break;
        }
    }
    if !outcome.taken.is_empty() && run.cancel.check().is_ok() {
        let database = outcome.taken[0].database.clone().unwrap_or_default();
        match dump::take_globals(
            &run.target.with_database(&database),
            &run.options,
            &mut context(run, &mut announce),
        ) {
            Ok((manifest, notice)) => {
                outcome.notices.extend(notice);
                outcome.taken.push(manifest);
            }
            Err(error) => outcome.failed.push((
                "globals".to_owned(),
                run.cancel
                    .check()
                    .err()
                    .unwrap_or_else(|| error.context("globals")),
            )),
        }
    }
    drop(holder);
    lock.release()?;
    Ok(outcome)
}

/// Says at once that a new backup is suspect.
fn told(run: &Run<'_>, manifest: Manifest) -> Manifest {
    if !manifest.suspect.is_empty() {
        let falls = anomaly::sentence(&manifest.suspect);
        (run.say)(&format!("warning: {} is suspect: {falls}", manifest.id));
    }
    manifest
}

fn context<'a>(
    run: &Run<'a>,
    announce: &'a mut dyn FnMut(&BackupId) -> Result<()>,
) -> dump::Run<'a> {
    dump::Run {
        store: run.store,
        tools: run.tools,
        progress: Arc::clone(run.progress),
        cancel: run.cancel,
        say: run.say,
        announce,
        gate: run.gate,
    }
}

/// Holds the cluster's lock as long as the connection lives.
pub(super) fn lock_cluster(target: &Target, kind: i32, cancel: &Token) -> Result<Client> {
    let fixed = target.with_database("postgres");
    let mut client = match patience::connect(&fixed, cancel) {
        // Some managed servers have no such database or allow nobody in.
        Err(error)
            if matches!(
                error.sqlstate.as_deref(),
                Some("3D000" | "42501" | "28000" | "28P01")
            ) =>
        {
            patience::connect(target, cancel)?
        }
        result => result?,
    };
    refuse_transaction_pooler(&mut client)?;
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let who = format!("pgark backup, process {} on {host}", std::process::id());
    client.execute(format!("SET application_name = {}", quote_literal(&who)))?;
    let rows = client.query(format!(
        "SELECT pg_catalog.pg_try_advisory_lock({LOCK_CLASS}, {kind})"
    ))?;
    if rows.first().map_or(Ok(false), |row| row.bool(0))? {
        return Ok(client);
    }
    let rows = client.query(format!(
        "SELECT a.application_name, coalesce(a.client_addr::text, 'local'), pg_catalog.date_trunc('second', a.backend_start)::text \
         FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a USING (pid) \
         WHERE l.locktype = 'advisory' AND l.classid = {LOCK_CLASS} AND l.objid = {kind} AND l.granted"
    ))?;
    let who = rows.first().map_or_else(
        || "another run".to_owned(),
        |row| {
            let text = |i| row.opt_str(i).unwrap_or("?").to_owned();
            format!("{} (from {}, since {})", text(0), text(1), text(2))
        },
    );
    Err(
        Error::busy(format!("{} is held by {who}", target.describe()))
            .hint("wait until that run ends; nothing was written"),
    )
}

/// What `*` means: every database that accepts connections and is no template.
///
/// # Errors
/// Those of the connection.
pub fn all_databases(client: &mut Client) -> Result<Vec<String>> {
    // datconnlimit -2 marks a database whose DROP was interrupted.
    let rows = client.query(
        "SELECT datname FROM pg_catalog.pg_database WHERE datallowconn AND NOT datistemplate AND datconnlimit <> -2 ORDER BY 1",
    )?;
    rows.iter()
        .map(|row| row.str(0).map(str::to_owned))
        .collect()
}
