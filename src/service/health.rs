//! The answer to "is all well?", kept fresh at little cost.
//!
//! Invariants: an answer is never older than [`FRESH`], or [`FRESH_FAR`] of a bucket; the catalog is read anew only when the
//! names, sizes or times in the store changed; an answer that cannot be had is not healthy.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::journal::{self, Line, Outcome, Work};
use super::run::wanted_databases;
use super::stores::Behind;
use crate::catalog::list::{self, Catalog};
use crate::clock;
use crate::config::Databases;
use crate::error::Result;
use crate::schedule::Schedule;
use crate::status::windows::{self, Window};
use crate::status::{self, Attempt, Bases, Promised, Status};
use crate::store::{Object, Store};

/// How long an answer serves.
const FRESH: Duration = Duration::from_secs(10);
/// The same of a store where a look costs requests, unless a run has ended since.
const FRESH_FAR: Duration = Duration::from_secs(300);

/// A stream is behind when nothing was received for so long: a bucket's note is renewed every minute.
const WAL_LATE: SignedDuration = SignedDuration::from_mins(5);

/// Opens a store.
pub type Open = Box<dyn Fn() -> Result<Box<dyn Store>> + Send + Sync>;

/// What is asked about: one cluster.
pub struct Health {
    pub cluster: String,
    pub open: Open,
    pub dir: PathBuf,
    pub databases: Databases,
    pub schedule: Schedule,
    pub bases: Promised,
    /// The names of the stores that are filled from the first.
    pub others: Vec<String>,
    pub kept: Mutex<Kept>,
}

/// What an answer is made of, until it is stale.
#[derive(Default)]
pub struct Kept {
    store: Option<Box<dyn Store>>,
    at: Option<Instant>,
    seen: Vec<Object>,
    /// Length of the journal.
    runs: u64,
    catalog: Catalog,
    /// What is wrong with the WAL.
    wal: Option<String>,
}

impl Health {
    /// The status now.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub fn status(&self) -> Result<Status> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let runs = std::fs::metadata(journal::path(&self.dir)).map_or(0, |file| file.len());
        let far = kept
            .store
            .as_ref()
            .is_some_and(|store| store.reads_at_once() > 1);
        let limit = if far && kept.runs == runs {
            FRESH_FAR
        } else {
            FRESH
        };
        let fresh = kept.at.is_some_and(|at| at.elapsed() < limit);
        if !fresh {
            let store = match kept.store.take() {
                Some(store) => store,
                None => (self.open)()?,
            };
            let mut seen = store.list("")?;
            seen.extend(store.list(".pgark/state/")?);
            // It grows with every run and says nothing of a backup.
            seen.retain(|object| object.key.as_str() != "backup.log");
            if kept.at.is_none() || kept.seen != seen {
                kept.catalog = list::load(store.as_ref())?;
            }
            // As of the look: the answer that is kept must not make it late.
            let windows = if self.bases.streaming {
                super::windows::of_store(store.as_ref(), &kept.catalog)?
            } else {
                Vec::new()
            };
            kept.wal = wal_trouble(&self.bases, &windows, clock::now());
            kept.seen = seen;
            kept.runs = runs;
            kept.store = Some(store);
            kept.at = Some(Instant::now());
        }
        let catalog = &kept.catalog;
        Ok(judge(
            &self.databases,
            &self.dir,
            catalog,
            (&self.schedule, &self.bases),
            kept.wal.clone(),
        ))
    }

    /// Whether all is well, and the answer as JSON.
    pub fn answer(&self) -> (bool, Value) {
        match self.status() {
            Ok(status) => to_json(&status, &Behind::all(&self.dir, &self.others)),
            Err(error) => (false, json!({"healthy": false, "error": error.fact})),
        }
    }
}

/// The answers of several clusters as one: well when every one is.
#[must_use]
pub fn together(answers: Vec<(String, bool, Value)>) -> (bool, Value) {
    let healthy = answers.iter().all(|(_, healthy, _)| *healthy);
    let clusters: Vec<Value> = answers
        .into_iter()
        .map(|(cluster, _, mut value)| {
            value["cluster"] = json!(cluster);
            value
        })
        .collect();
    (healthy, json!({"healthy": healthy, "clusters": clusters}))
}

/// What is wrong with WAL that is promised to be received all the time.
#[must_use]
pub fn wal_trouble(promised: &Promised, windows: &[Window], now: Timestamp) -> Option<String> {
    let wanted = promised.streaming.then_some(windows)?;
    windows::trouble(wanted, now, WAL_LATE)
}

/// The status of a catalog and the journal beside it; `wal`: what is wrong with the WAL.
#[must_use]
pub fn judge(
    databases: &Databases,
    dir: &std::path::Path,
    catalog: &Catalog,
    (schedule, promised): (&Schedule, &Promised),
    wal: Option<String>,
) -> Status {
    let wanted = wanted_databases(databases, dir, catalog);
    let (now, lines) = (clock::now(), journal::read(dir));
    let last = |of: &dyn Fn(&Line) -> bool| {
        let mut lines = lines.iter().rev().filter(|line| of(line));
        lines.find_map(attempt)
    };
    let dumps = last(&|line| !line.is_base());
    let full = last(&|line| line.work == Work::Base);
    let any = last(&Line::is_base);
    Status {
        bases: status::bases(catalog, promised, (full, any), now).map(|bases| Bases {
            trouble: bases.trouble.or(wal),
            ..bases
        }),
        ..status::status(catalog, &wanted, schedule, dumps, now)
    }
}

/// Runs that did not come to work say nothing of the backups.
fn attempt(line: &Line) -> Option<Attempt> {
    let ok = match line.outcome {
        Outcome::Ok => true,
        Outcome::Partial | Outcome::Failed | Outcome::Interrupted | Outcome::Timeout => false,
        Outcome::Busy | Outcome::Skipped => return None,
    };
    Some(Attempt {
        started_at: line.started_at,
        ok,
    })
}

/// Whether all is well, and the fields of `status --json` and `/healthz`. Another store may be
/// behind for as long as a run may be under way.
#[must_use]
pub fn to_json(status: &Status, others: &[Behind]) -> (bool, Value) {
    let now = clock::now();
    let databases: Vec<Value> = status
        .databases
        .iter()
        .map(|one| {
            json!({
                "database": one.name,
                "healthy": one.trouble.is_none(),
                "newest_good": one.newest.as_ref().map(ToString::to_string),
                "newest_good_at": one.newest_at,
                "age_seconds": one.newest_at.map(|at| now.duration_since(at).as_secs()),
                "bytes": one.bytes,
                "good_backups": one.good,
                "reason": one.trouble,
            })
        })
        .collect();
    let late = |one: &Behind| one.since.is_some_and(|since| since < status.promised);
    let late = others.iter().any(late);
    let healthy = status.is_healthy() && !late;
    let mut value = json!({
        "healthy": healthy,
        "databases": databases,
        "promised_since": status.promised,
        "next_run": status.next_run,
    });
    if let Some(bases) = &status.bases {
        value["base_backups"] = bases_json(bases, now);
    }
    let others: Vec<Value> = others
        .iter()
        .map(|behind| {
            json!({
                "store": behind.store,
                "up_to_date": behind.error.is_none(),
                "since": behind.since,
                "at": behind.at,
                "error": behind.error,
            })
        })
        .collect();
    if let Some(first) = others.first() {
        value["second_store"] = first.clone();
        value["other_stores"] = json!(others);
    }
    (healthy, value)
}

fn bases_json(bases: &Bases, now: Timestamp) -> Value {
    json!({
        "healthy": bases.trouble.is_none(),
        "newest_good": bases.newest.as_ref().map(ToString::to_string),
        "newest_good_at": bases.newest_at,
        "age_seconds": bases.newest_at.map(|at| now.duration_since(at).as_secs()),
        "bytes": bases.bytes,
        "good_backups": bases.good,
        "promised_since": bases.promised,
        "next_run": bases.next_run,
        "reason": bases.trouble,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_store_that_is_behind_for_longer_than_a_run_takes_is_not_healthy() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let database = status::Database {
            name: "app".to_owned(),
            newest: None,
            newest_at: None,
            bytes: 0,
            good: 1,
            trouble: None,
        };
        let status = Status {
            databases: vec![database],
            bases: None,
            promised: at("2025-01-22T02:00:00Z"),
            next_run: at("2025-01-23T02:00:00Z"),
        };
        let behind = |since: Option<&str>| Behind {
            store: "s3".to_owned(),
            at: at("2025-01-22T09:00:00Z"),
            since: since.map(at),
            error: since.map(|_| "down".to_owned()),
        };
        assert!(to_json(&status, &[]).0);
        assert!(to_json(&status, &[behind(None)]).0);
        assert!(to_json(&status, &[behind(Some("2025-01-22T08:00:00Z"))]).0);
        let (healthy, json) = to_json(
            &status,
            &[behind(None), behind(Some("2025-01-21T08:00:00Z"))],
        );
        assert!(
            !healthy && json["other_stores"][1]["error"] == "down",
            "{json}"
        );
    }
}
