//! What a run does to each store beside the dumps: copies to the others, and retention.
//!
//! Invariants: the work on a store is done under that store's lock, so that two processes never
//! meet there; whether another store is up to date lies in a small file of its own, which the
//! service asks in order to try again. One store that fails stops no other. A crash leaves that
//! file saying "not up to date", which it then is.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::report;
use crate::app::App;
use crate::catalog::list::{self, Catalog, Entry, State};
use crate::catalog::{base, known, remains};
use crate::clock;
use crate::config::Place;
use crate::error::{Context, Error, Kind, Result};
use crate::prune::{self, Plan, Pruned};
use crate::replicate;
use crate::store::Store;
use crate::store::lock::{DirLock, Reading};
use crate::units::BackupId;

/// Whether another store is up to date with the first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Behind {
    #[serde(skip)]
    pub store: String,
    /// Of the last attempt.
    pub at: Timestamp,
    /// Of the first attempt that did not bring it up to date, and every one since neither.
    pub since: Option<Timestamp>,
    /// None: it is up to date.
    pub error: Option<String>,
}

fn path(dir: &Path, store: &str) -> PathBuf {
    dir.join(format!(".pgark/replicate-{store}.json"))
}

impl Behind {
    /// What the last attempt left; none before the first.
    #[must_use]
    pub fn read(dir: &Path, store: &str) -> Option<Behind> {
        let text = std::fs::read(path(dir, store)).ok()?;
        let mut behind: Behind = serde_json::from_slice(&text).ok()?;
        store.clone_into(&mut behind.store);
        Some(behind)
    }

    /// That of every store which has been tried.
    #[must_use]
    pub fn all<S: AsRef<str>>(dir: &Path, stores: &[S]) -> Vec<Behind> {
        let stores = stores.iter();
        stores
            .filter_map(|store| Behind::read(dir, store.as_ref()))
            .collect()
    }

    fn write(dir: &Path, store: &str, error: Option<&Error>) -> Result<()> {
        let now = clock::now();
        let before = Behind::read(dir, store).and_then(|behind| behind.since);
        let behind = Behind {
            store: store.to_owned(),
            at: now,
            since: error.map(|_| before.unwrap_or(now)),
            error: error.map(|error| error.fact.clone()),
        };
        let text = serde_json::to_vec(&behind).map_err(|error| Error::failed(error.to_string()))?;
        let path = path(dir, store);
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
    let kind = if store == app.first() {
        "dump"
    } else {
        "replicate"
    };
    DirLock::acquire(&app.config.dir, kind)
}

/// The lock of another local store's own directory: on another machine it may be the first.
fn lock_there(app: &App, store: &str) -> Result<Option<DirLock>> {
    let config = app.config.stores.iter().skip(1);
    let mut local = config.filter(|config| config.name == store);
    let dir = local.find_map(|config| match &config.place {
        Place::Local(dir) => Some(dir),
        Place::S3(_) => None,
    });
    dir.map(|dir| DirLock::acquire(dir, "dump")).transpose()
}

/// What was copied, and which stores are not up to date.
#[derive(Debug, Default)]
pub struct Replicated {
    /// Store and id.
    pub copied: Vec<(String, String)>,
    /// Store and why.
    pub failed: Vec<(String, Error)>,
}

impl Replicated {
    /// Whether this store can be worked on.
    #[must_use]
    pub fn reached(&self, store: &str) -> bool {
        !self.failed.iter().any(|(failed, _)| failed == store)
    }

    /// Nothing, or that the first store's copy is good and another lacks it.
    ///
    /// # Errors
    /// `Partial`, or the signal's own.
    pub fn verdict(&self) -> Result<()> {
        let Some((_, first)) = self.failed.first() else {
            return Ok(());
        };
        if matches!(first.kind, Kind::Signal(_)) {
            return Err(first.clone());
        }
        let facts: Vec<String> = self
            .failed
            .iter()
            .map(|(store, error)| format!("{store} is not up to date: {}", error.fact))
            .collect();
        let fact = format!("the backup is kept, but {}", facts.join("; "));
        let hint = first.hint.clone().unwrap_or_else(|| {
            "the service tries again by itself; by hand: pgark replicate".to_owned()
        });
        Err(Error::new(Kind::Partial, fact).hint(hint))
    }
}

/// Copies to each other store what it lacks. Nothing to do with one store.
///
/// # Errors
/// `Busy` when another process does it. What befell single stores is in the result.
pub fn replicate(app: &App, say: &dyn Fn(&str)) -> Result<Replicated> {
    let mut done = Replicated::default();
    let others = app.others();
    let Some(any) = others.first() else {
        return Ok(done);
    };
    let _lock = lock(app, any)?;
    for name in others {
        let result = fill(app, name, say);
        let written = Behind::write(&app.config.dir, name, result.as_ref().err());
        match result.and_then(|ids| written.map(|()| ids)) {
            Ok(ids) => {
                let ids = ids.into_iter().map(|id| (name.to_owned(), id));
                done.copied.extend(ids);
            }
            Err(error) => done.failed.push((name.to_owned(), error)),
        }
    }
    Ok(done)
}

/// Brings one store up to date; gives the ids.
fn fill(app: &App, name: &str, say: &dyn Fn(&str)) -> Result<Vec<String>> {
    // Until it is known to be otherwise.
    let unfinished = Error::failed("not finished");
    Behind::write(&app.config.dir, name, Some(&unfinished))?;
    let first = app.store(None)?;
    let second = app.store(Some(name))?;
    let _there = lock_there(app, name)?;
    remains::clear_remains(second.as_ref(), clock::now(), &[])?;
    base::clear_remains(second.as_ref(), clock::now(), &[])?;
    let there = list::load(second.as_ref())?;
    let here = list::load(first.as_ref())?;
    let policy = app.policy(name)?;
    let keeps = |catalog: &Catalog| {
        // A suspect one is copied, but what it holds back here was expired there long ago.
        let suspect = |entry: &Entry| entry.state == State::Suspect;
        let (suspect, entries) = catalog.entries.iter().cloned().partition(suspect);
        let plan = prune::plan(&Catalog { entries }, &policy, clock::now());
        let kept = plan.verdicts.into_iter().filter(|verdict| verdict.keep);
        let suspect: Vec<Entry> = suspect;
        let kept = kept.map(|verdict| verdict.entry).chain(suspect);
        kept.map(|entry| entry.id).collect()
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
    let there = if copied.done.is_empty() {
        there
    } else {
        let there = list::load(second.as_ref())?;
        if let Some(note) = save(second.as_ref(), &there) {
            say(&note);
        }
        there
    };
    replicate::pass_on_acceptance(&here, &there, second.as_ref(), clock::now())?;
    copied.verdict(&second.describe())?;
    Ok(copied.done)
}

/// A store's retention, decided. A suspect backup that only the first store has as yet keeps the
/// others of its database in every store.
///
/// # Errors
/// `Usage` when there is no such store.
pub fn plan(app: &App, name: &str, catalog: &Catalog) -> Result<Plan> {
    let mut all = catalog.clone();
    if name != app.first()
        && let Ok((_, first)) = app.catalog(None)
    {
        let there: BTreeSet<&BackupId> = catalog.entries.iter().map(|entry| &entry.id).collect();
        let only_here = first.entries.into_iter();
        let suspect = |entry: &Entry| entry.state == State::Suspect && !there.contains(&entry.id);
        all.entries.extend(only_here.filter(suspect));
    }
    let mut plan = prune::plan(&all, &app.policy(name)?, clock::now());
    plan.verdicts.truncate(catalog.entries.len());
    Ok(plan)
}

/// Leaves what was read of the manifests to those who read next; a note when that fails.
fn save(store: &dyn Store, catalog: &Catalog) -> Option<String> {
    let error = known::save(store, catalog).err()?;
    Some(report::failed("copy of the catalog", &error))
}

/// Plans and applies a store's retention under its lock.
///
/// # Errors
/// `Busy` when a run holds the store; the store's own. What befell single backups is a note.
pub fn expire(app: &App, name: &str, pruned: &mut Pruned, notes: &mut Vec<String>) -> Result<()> {
    let store = app.store(Some(name))?;
    let _lock = lock(app, name)?;
    let _there = lock_there(app, name)?;
    let mut catalog = list::load(store.as_ref())?;
    let plan = plan(app, name, &catalog)?;
    let in_use = |entry: &Entry| Reading::is_held(&app.config.dir, entry.id.as_str());
    let applied = prune::apply(store.as_ref(), &plan, &in_use, &app.cancel)?;
    notes.extend(plan.warnings);
    let gone: BTreeSet<&BackupId> = applied.removed.iter().map(|entry| &entry.id).collect();
    catalog.entries.retain(|entry| !gone.contains(&entry.id));
    notes.extend(save(store.as_ref(), &catalog));
    notes.extend(expire_wal(app, name, store.as_ref(), &catalog));
    notes.extend(applied.stayed.iter().map(|(_, error)| error.to_string()));
    pruned.removed.extend(applied.removed);
    pruned.stayed.extend(applied.stayed);
    Ok(())
}

/// Deletes the WAL that no base backup of the window needs; a note on each cluster's, or on what kept
/// it from being deleted.
fn expire_wal(app: &App, name: &str, store: &dyn Store, catalog: &Catalog) -> Vec<String> {
    let old = app
        .policy(name)
        .and_then(|policy| prune::old_wal(store, catalog, &policy, clock::now()));
    let done = old.and_then(|old| {
        let mut notes = Vec::new();
        for one in old {
            app.cancel.check()?;
            one.remove(store)?;
            notes.push(one.describe(true));
        }
        Ok(notes)
    });
    done.unwrap_or_else(|error| vec![report::failed("prune of WAL", &error)])
}
