//! Expires backups of one store: the plan of `retention`, then the deletions, oldest first
//! (of base backups: what builds on others first).
//!
//! Invariants: nothing is deleted but whole backups that the catalog lists, and what is left of
//! those whose artefact somebody deleted by hand; a backup that somebody reads stays until the
//! next time; a backup that cannot be deleted stops nobody else's deletion. The caller holds the
//! lock of the store. A crash leaves a backup half deleted in the order of `catalog::commit`,
//! which the next run completes.

mod wal;

use jiff::Timestamp;

use crate::cancel::Token;
use crate::catalog::commit;
use crate::catalog::list::{Catalog, Entry, State};
use crate::error::{Error, Result};
use crate::retention::{self, Backup, Clock, Condition, Policy, Reason, Span};
use crate::store::Store;
use crate::units::{BackupId, BackupKind};

pub use wal::{OldWal, old_wal};

/// The verdict on one backup.
#[derive(Debug, Clone)]
pub struct Verdict {
    pub entry: Entry,
    pub keep: bool,
    /// Why, for people.
    pub reason: String,
    /// A legacy backup that waits for a verified backup of its database.
    pub waits: bool,
}

/// What would be done: nothing is touched by making it.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Newest first, as the catalog.
    pub verdicts: Vec<Verdict>,
    /// What a person should know, with what to do about it.
    pub warnings: Vec<String>,
}

/// What was done.
#[derive(Debug, Default)]
pub struct Pruned {
    pub removed: Vec<Entry>,
    /// Backups that stayed although nothing keeps them, and why.
    pub stayed: Vec<(Entry, Error)>,
}

impl Pruned {
    /// Bytes that the deletions freed.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.removed.iter().map(|entry| entry.bytes).sum()
    }
}

/// Decides on every backup of a store.
#[must_use]
pub fn plan(catalog: &Catalog, policy: &Policy, now: Timestamp) -> Plan {
    let backups: Vec<Backup> = catalog.entries.iter().map(backup).collect();
    let clock = Clock {
        now,
        confirmed: false,
    };
    let decided = retention::plan(&backups, policy, clock);
    let verdicts = catalog.entries.iter().zip(decided.decisions);
    Plan {
        verdicts: verdicts
            .map(|(entry, decision)| {
                // What is left of it may be all that tells of what is gone.
                let held = |reason: &Reason| matches!(reason, Reason::BesideSuspect(_));
                let held = decision.reasons.iter().any(held);
                let unread = beside_unread(catalog, entry);
                let gone = entry.state == State::Missing && !held && !unread;
                let reason = if entry.unread {
                    "its manifest cannot be read now, which proves nothing against it".to_owned()
                } else if unread && !decision.keep {
                    "a manifest beside it cannot be read now, which may need it".to_owned()
                } else if gone {
                    "its artefact is gone; only its manifest is left".to_owned()
                } else {
                    decision.to_string()
                };
                Verdict {
                    entry: entry.clone(),
                    keep: entry.unread || unread || (decision.keep && !gone),
                    reason,
                    waits: decision
                        .reasons
                        .iter()
                        .any(|reason| matches!(reason, Reason::LegacyWaits(_))),
                }
            })
            .collect(),
        warnings: decided
            .warnings
            .iter()
            .map(|warning| format!("{warning}; {}", warning.hint()))
            .collect(),
    }
}

/// Whether a manifest cannot be read now that may say something of this one: an incremental base
/// backup's that builds on it, a suspect dump's that holds it.
fn beside_unread(catalog: &Catalog, entry: &Entry) -> bool {
    let mut unread = catalog.entries.iter().filter(|other| other.unread);
    unread.any(|other| {
        let database = other.database.is_none() || other.database == entry.database;
        other.kind == entry.kind && (entry.kind == BackupKind::Base || database)
    })
}

fn backup(entry: &Entry) -> Backup {
    let reason = || {
        entry
            .reason
            .clone()
            .unwrap_or_else(|| entry.state.to_string())
    };
    Backup {
        id: entry.id.clone(),
        kind: entry.kind,
        database: entry.database.clone(),
        cluster: entry
            .summary
            .as_ref()
            .and_then(|summary| summary.system_identifier.clone())
            .unwrap_or_default(),
        time: entry.started_at,
        condition: match entry.state {
            State::Taken => Condition::Good,
            State::Verified | State::Proven => Condition::Verified,
            State::Legacy if entry.good => Condition::Good,
            State::Legacy => Condition::Unchecked,
            State::Suspect => Condition::Suspect(reason()),
            State::Failed | State::Missing => Condition::Bad(reason()),
        },
        legacy: entry.summary.is_none() && entry.state == State::Legacy,
        bytes: entry.bytes,
        parent: parent(entry).cloned(),
        span: span(entry),
    }
}

fn parent(entry: &Entry) -> Option<&BackupId> {
    entry.summary.as_ref()?.parent.as_ref()
}

fn span(entry: &Entry) -> Option<Span> {
    let manifest = entry.manifest.as_ref()?;
    let base = manifest.base.as_ref()?;
    Some(Span {
        ended: manifest.finished_at,
        start: base.start_lsn,
        segment: base.wal_segment_bytes,
    })
}

/// Oldest first, but incremental backups before what they build on, which is older: an
/// interrupted prune must not leave one without its parent.
fn deletions(plan: &Plan) -> Vec<&Entry> {
    let expired = plan.verdicts.iter().filter(|verdict| !verdict.keep);
    let (mut bases, others): (Vec<&Entry>, Vec<&Entry>) = expired
        .map(|verdict| &verdict.entry)
        .partition(|entry| entry.kind == BackupKind::Base);
    bases.extend(others.into_iter().rev());
    bases
}

/// Deletes what the plan does not keep, oldest first. `in_use` tells that somebody reads a backup.
///
/// # Errors
/// Only the signal's; what befell single backups is in the result.
pub fn apply(
    store: &dyn Store,
    plan: &Plan,
    in_use: &dyn Fn(&Entry) -> bool,
    cancel: &Token,
) -> Result<Pruned> {
    let mut pruned = Pruned::default();
    for entry in deletions(plan) {
        cancel.check()?;
        let entry = entry.clone();
        let mut left = pruned.stayed.iter();
        if let Some((child, _)) = left.find(|(stayed, _)| parent(stayed) == Some(&entry.id)) {
            let error = Error::busy(format!("{} builds on {}", child.id, entry.id))
                .hint("it goes with the next prune");
            pruned.stayed.push((entry, error));
            continue;
        }
        if in_use(&entry) {
            let error = Error::busy(format!("{} is being read", entry.id))
                .hint("it goes with the next prune");
            pruned.stayed.push((entry, error));
            continue;
        }
        match commit::remove(store, &entry) {
            Ok(()) => pruned.removed.push(entry),
            Err(error) => {
                let error = error.context(format!("cannot delete {}", entry.id));
                pruned.stayed.push((entry, error));
            }
        }
    }
    Ok(pruned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::known::Summary;
    use crate::catalog::manifest::Manifest;
    use crate::store::local::LocalStore;
    use crate::store::{Key, Put, put};
    use crate::units::Codec;

    const POLICY: Policy = Policy {
        days: 1,
        keep_daily: 0,
        keep_weekly: 0,
        keep_monthly: 0,
        keep_yearly: 0,
        keep_min: 1,
        wal_days: None,
    };

    /// A store that fails for a moment must not cost a backup, however old.
    #[test]
    fn a_backup_whose_manifest_cannot_be_read_now_never_expires() {
        let dir = std::env::temp_dir().join(format!("pgark-prune-{}", std::process::id()));
        let store = LocalStore::open(&dir).unwrap();
        let name = "backup_app_20200101_000000.sql.gz";
        put(&store, &Key::new(name).unwrap(), b"x", Put::New).unwrap();
        std::fs::write(dir.join(format!("{name}.json")), "{\"pgark_manifest\":999}").unwrap();
        let mut catalog = crate::catalog::list::load(&store).unwrap();
        let now = "2025-01-22T00:00:00Z".parse().unwrap();
        let young = Entry {
            id: crate::units::BackupId::dump("app", now),
            started_at: now,
            state: State::Taken,
            good: true,
            unread: false,
            ..catalog.entries[0].clone()
        };
        for (unread, keep) in [(true, true), (false, false)] {
            catalog.entries.truncate(1);
            catalog.entries[0].unread = unread;
            catalog.entries.insert(0, young.clone());
            let plan = plan(&catalog, &POLICY, now);
            assert_eq!(plan.verdicts[1].keep, keep, "{}", plan.verdicts[1].reason);
            catalog.entries.remove(0);
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    fn time(day: u32) -> Timestamp {
        format!("2025-01-{day:02}T03:00:00Z").parse().unwrap()
    }

    /// A base backup of that day, on that of another.
    fn entry(day: u32, parent: Option<u32>) -> Entry {
        let id = BackupId::base(time(day));
        let mut manifest = Manifest::new(id.clone(), Codec::ZSTD, time(day), time(day));
        manifest.parent = parent.map(|day| BackupId::base(time(day)));
        let file = crate::store::Object {
            key: Key::new(&format!("{id}/manifest.json")).unwrap(),
            bytes: 1,
            modified: time(day),
            etag: None,
        };
        Entry {
            kind: BackupKind::Base,
            cluster: String::new(),
            database: None,
            state: State::Taken,
            good: true,
            summary: Some(Summary::of(&file, &manifest)),
            manifest: Some(manifest),
            artefact: None,
            codec: Codec::ZSTD,
            encrypted: false,
            reason: None,
            unread: false,
            started_at: time(day),
            finished_at: None,
            bytes: 1,
            raw_bytes: None,
            sha256: None,
            id,
        }
    }

    /// A chain whose middle cannot be read now: what it builds on is not known, and stays.
    #[test]
    fn nothing_goes_beside_a_manifest_that_cannot_be_read_now() {
        let mut middle = entry(2, None);
        (middle.summary, middle.manifest) = (None, None);
        (middle.state, middle.good, middle.unread) = (State::Failed, false, true);
        let mut catalog = Catalog {
            entries: vec![entry(4, None), middle, entry(1, None)],
        };
        let kept = |catalog: &Catalog| plan(catalog, &POLICY, time(9)).verdicts[2].keep;
        assert!(kept(&catalog));
        catalog.entries[1].unread = false;
        assert!(!kept(&catalog));
    }

    /// The chain 1 ← 2 ← 3, and 4 on its own: what is kept keeps what it builds on, and what goes
    /// goes from the newest on.
    #[test]
    fn chains_stay_whole_and_go_from_their_end() {
        let chain = [entry(3, Some(2)), entry(2, Some(1)), entry(1, None)];
        let mut catalog = Catalog {
            entries: chain.to_vec(),
        };
        let kept = plan(&catalog, &POLICY, time(9));
        assert!(kept.verdicts.iter().all(|verdict| verdict.keep));
        assert!(
            kept.verdicts[2]
                .reason
                .contains("base_20250102_030000 builds on it")
        );
        catalog.entries.insert(0, entry(4, None));
        let plan = plan(&catalog, &POLICY, time(9));
        let order: Vec<&str> = deletions(&plan).iter().map(|one| one.id.as_str()).collect();
        assert_eq!(
            order,
            [
                "base_20250103_030000",
                "base_20250102_030000",
                "base_20250101_030000"
            ]
        );
        // Somebody reads the second: what it builds on stays with it.
        let dir = std::env::temp_dir().join(format!("pgark-chain-{}", std::process::id()));
        let store = LocalStore::open(&dir).unwrap();
        let in_use = |entry: &Entry| entry.id.as_str() == "base_20250102_030000";
        let pruned = apply(&store, &plan, &in_use, &Token::new()).unwrap();
        assert_eq!((pruned.removed.len(), pruned.stayed.len()), (1, 2));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
