//! Brings a second store up to date with the first.
//!
//! Invariants: only whole backups are copied (good ones, and suspect ones: they hold their
//! database's others there too), each by the commit protocol, so that the second
//! store never shows one that is not whole there; every byte is hashed on its way, and a copy that
//! differs from its manifest is not committed. What the second store's own retention would expire
//! is not copied (again). One backup that fails stops no other. The caller holds the lock of this
//! work. A crash leaves what a dump's crash leaves; the next time clears and completes it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::cancel::Token;
use crate::catalog::layout::Outcome;
use crate::catalog::list::{Catalog, Entry, State};
use crate::catalog::{commit, state};
use crate::error::{Error, Kind, Result};
use crate::store::Store;
use crate::store::lock::Reading;
use crate::units::{BackupId, BackupKind};

/// What was done.
#[derive(Debug, Default)]
pub struct Copied {
    /// Ids, newest first.
    pub done: Vec<String>,
    pub bytes: u64,
    /// Id and why.
    pub failed: Vec<(String, Error)>,
}

impl Copied {
    /// Nothing, or what keeps the second store from being up to date.
    ///
    /// # Errors
    /// `Partial` naming the first failure.
    pub fn verdict(&self, store: &str) -> Result<()> {
        let Some((id, first)) = self.failed.first() else {
            return Ok(());
        };
        let others = match self.failed.len() {
            1 => String::new(),
            count => format!(" and {} more", count - 1),
        };
        let mut error = Error::new(
            Kind::Partial,
            format!(
                "{id}{others} could not be copied to {store}: {}",
                first.fact
            ),
        );
        error.hint.clone_from(&first.hint);
        Err(error)
    }
}

/// The backups that the second store lacks and would keep, newest first, base backups behind. `keeps` is its
/// retention: the ids that stay of a catalog.
#[must_use]
pub fn pending(
    first: &Catalog,
    second: &Catalog,
    keeps: &dyn Fn(&Catalog) -> BTreeSet<BackupId>,
) -> Vec<Entry> {
    let there: BTreeMap<&BackupId, &Entry> = second.entries.iter().map(|e| (&e.id, e)).collect();
    let lacks = |entry: &&Entry| {
        there
            .get(&entry.id)
            .is_none_or(|there| !there.is_whole() && !there.unread && there.state != State::Legacy)
    };
    let wanted: Vec<Entry> = first
        .entries
        .iter()
        .filter(|entry| entry.is_whole() && entry.summary.is_some())
        .filter(lacks)
        .cloned()
        .collect();
    // As if they were there already: would they stay?
    let mut entries = second.entries.clone();
    let ids: BTreeSet<&BackupId> = wanted.iter().map(|wanted| &wanted.id).collect();
    entries.retain(|entry| !ids.contains(&entry.id));
    entries.extend(wanted.iter().cloned());
    entries.sort_by(|a, b| (b.started_at, &b.id).cmp(&(a.started_at, &a.id)));
    let kept = keeps(&Catalog { entries });
    let wanted = wanted.into_iter().filter(|entry| kept.contains(&entry.id));
    // Base backups last, for they are large, and oldest first: an incremental one is good only
    // where its parent is.
    let (bases, mut wanted): (Vec<Entry>, Vec<Entry>) =
        wanted.partition(|entry| entry.kind == BackupKind::Base);
    wanted.extend(bases.into_iter().rev());
    wanted
}

/// Tells the second store what was accepted here; gives the ids.
///
/// # Errors
/// As the store.
pub fn pass_on_acceptance(
    first: &Catalog,
    second: &Catalog,
    store: &dyn Store,
    now: Timestamp,
) -> Result<Vec<String>> {
    let suspect = second
        .entries
        .iter()
        .filter(|there| there.state == State::Suspect);
    let accepted = suspect.filter(|there| {
        let mut here = first.entries.iter();
        here.any(|here| here.id == there.id && here.good)
    });
    accepted
        .map(|entry| {
            state::record(store, &entry.id, Outcome::Accepted, now, None)?;
            Ok(entry.id.to_string())
        })
        .collect()
}

/// Copies these backups; `hold` keeps one from being deleted meanwhile.
///
/// # Errors
/// Only the signal's; what befell single backups is in the result.
pub fn copy(
    first: &dyn Store,
    second: &dyn Store,
    entries: &[Entry],
    hold: &dyn Fn(&Entry) -> Option<Reading>,
    cancel: &Token,
    say: &dyn Fn(&str),
) -> Result<Copied> {
    let mut copied = Copied::default();
    for entry in entries {
        cancel.check()?;
        let _reading = hold(entry);
        match commit::copy(first, second, entry, cancel) {
            Ok(()) => {
                copied.bytes += entry.bytes;
                say(&format!("{} is in {} now", entry.id, second.describe()));
                copied.done.push(entry.id.to_string());
            }
            Err(error) => {
                cancel.check()?;
                copied.failed.push((entry.id.to_string(), error));
            }
        }
    }
    Ok(copied)
}
