//! What a run does to each store beside the dumps: copies to the second one, and retention.
//!
//! Invariants: the work on a store is done under that store's lock, so that two processes never
//! meet there; whether the second store is up to date lies in a small file, which the service asks
//! in order to try again. A crash leaves that file saying "not up to date", which it then is.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::app::{App, LOCAL, S3};
use crate::catalog::list::{self, Catalog, Entry};
use crate::catalog::{base, remains};
use crate::clock;
use crate::error::{Context, Error, Kind, Result};
use crate::prune::{self, Pruned};
use crate::replicate;
use crate::store::lock::{DirLock, Reading};

/// The second store's name, for people.
pub const SECOND: &str = S3;

/// Whether the second store is up to date.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Behind {
    /// Of the last attempt.
    pub at: Timestamp,
    /// Of the first attempt that did not bring it up to date, and every one since neither.
    pub since: Option<Timestamp>,
    /// None: it is up to date.
    pub error: Option<String>,
}

fn path(dir: &Path) -> PathBuf {
    dir.join(".pgark/replicate.json")
}

impl Behind {
    /// What the last attempt left; none before the first.
    #[must_use]
    pub fn read(dir: &Path) -> Option<Behind> {
        serde_json::from_slice(&std::fs::read(path(dir)).ok()?).ok()
    }

    fn write(dir: &Path, error: Option<&Error>) -> Result<()> {
        let now = clock::now();
        let before = Behind::read(dir).and_then(|behind| behind.since);
        let behind = Behind {
            at: now,
            since: error.map(|_| before.unwrap_or(now)),
            error: error.map(|error| error.fact.clone()),
        };
        let text = serde_json::to_vec(&behind).map_err(|error| Error::failed(error.to_string()))?;
        let path = path(dir);
        let temporary = path.with_extension("json.new");
        let write = || -> std::io::Result<()> {
            use std::io::Write as _;
            use std::os::unix::fs::OpenOptionsExt as _;
            let mut options = std::fs::OpenOptions::new();
            let options = options.write(true).create(true).truncate(true);
            options.mode(0o600).open(&temporary)?.write_all(&text)?;
            std::fs::rename(&temporary, &path)
        };
        write().context(|| format!("cannot write {}", path.display()))
    }
}

/// The lock of the work on a store.
fn lock(app: &App, store: &str) -> Result<DirLock> {
    let kind = if store == LOCAL { "dump" } else { "replicate" };
    DirLock::acquire(&app.config.dir, kind)
}

/// Copies what the second store lacks; gives the ids. Nothing to do without a second store.
///
/// # Errors
/// `Busy` when another process does it; what keeps the store from being up to date.
pub fn replicate(app: &App, say: &dyn Fn(&str)) -> Result<Vec<String>> {
    let Some(second) = app.second()? else {
        return Ok(Vec::new());
    };
    let _lock = lock(app, S3)?;
    // Until it is known to be otherwise.
    let unfinished = Error::failed("not finished");
    Behind::write(&app.config.dir, Some(&unfinished))?;
    let work = || -> Result<Vec<String>> {
        let first = app.store(Some(LOCAL))?;
        remains::clear_remains(second.as_ref(), clock::now(), &[])?;
        base::clear_remains(second.as_ref(), clock::now(), &[])?;
        let there = list::load(second.as_ref())?;
        let here = list::load(first.as_ref())?;
        let keeps = |catalog: &Catalog| {
            let plan = prune::plan(catalog, &app.policy(S3), clock::now());
            let kept = plan.verdicts.into_iter().filter(|verdict| verdict.keep);
            kept.map(|verdict| verdict.entry.id).collect()
        };
        let pending = replicate::pending(&here, &there, &keeps);
        let hold = |entry: &Entry| app.reading(entry);
        let copied = replicate::copy(
            first.as_ref(),
            second.as_ref(),
            &pending,
            &hold,
            &app.cancel,
            say,
        )?;
        copied.verdict(&second.describe())?;
        Ok(copied.done)
    };
    let result = work();
    Behind::write(&app.config.dir, result.as_ref().err())?;
    result
}

/// What a run says when the local copy is good and the second store lacks it.
#[must_use]
pub fn behind(error: Error) -> Error {
    if matches!(error.kind, Kind::Signal(_)) {
        return error;
    }
    let mut partial = Error::new(
        Kind::Partial,
        format!(
            "the backup is kept, but {SECOND} is not up to date: {}",
            error.fact
        ),
    );
    partial.hint = error
        .hint
        .or_else(|| Some("the service tries again by itself; by hand: pgark replicate".to_owned()));
    partial
}

/// Plans and applies a store's retention under its lock.
///
/// # Errors
/// `Busy` when a run holds the store; the store's own. What befell single backups is a note.
pub fn expire(app: &App, name: &str, pruned: &mut Pruned, notes: &mut Vec<String>) -> Result<()> {
    let store = app.store(Some(name))?;
    let _lock = lock(app, name)?;
    let catalog = list::load(store.as_ref())?;
    let plan = prune::plan(&catalog, &app.policy(name), clock::now());
    let in_use = |entry: &Entry| Reading::is_held(&app.config.dir, entry.id.as_str());
    let applied = prune::apply(store.as_ref(), &plan, &in_use, &app.cancel)?;
    notes.extend(plan.warnings);
    notes.extend(applied.stayed.iter().map(|(_, error)| error.to_string()));
    pruned.removed.extend(applied.removed);
    pruned.stayed.extend(applied.stayed);
    Ok(())
}
