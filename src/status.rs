//! Is every database, and the cluster as a whole, backed up as its schedules promise? A value from a catalog. Pure.
//!
//! Invariant: healthy means that each wanted database has a good backup no older than the
//! promise, and no younger one is suspect. A backup that is not good never counts, nor does a legacy one that nobody checked.

mod bases;
pub mod windows;

use jiff::{SignedDuration, Timestamp};

pub use self::bases::{Bases, Promised, bases};

use crate::catalog::list::{Catalog, Entry, State};
use crate::schedule::Schedule;
use crate::units::{BackupId, BackupKind};

/// The longest that a run which began in time may still be under way before its absence counts.
const GRACE_MAX: SignedDuration = SignedDuration::from_hours(6);
const GRACE_MIN: SignedDuration = SignedDuration::from_mins(10);

/// The newest attempt that is over, by the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    pub started_at: Timestamp,
    pub ok: bool,
}

/// One database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    pub name: String,
    pub newest: Option<BackupId>,
    /// When the newest good backup was begun: the moment that it brings back.
    pub newest_at: Option<Timestamp>,
    /// Of the newest good one, as stored.
    pub bytes: u64,
    /// Good backups in all.
    pub good: usize,
    /// Why it is not healthy.
    pub trouble: Option<String>,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub databases: Vec<Database>,
    /// Where any are promised.
    pub bases: Option<Bases>,
    /// No good backup may be older than this.
    pub promised: Timestamp,
    pub next_run: Timestamp,
}

impl Status {
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        let bases = self.bases.as_ref();
        !self.databases.is_empty()
            && self.databases.iter().all(|one| one.trouble.is_none())
            && bases.is_none_or(|bases| bases.trouble.is_none())
    }
}

/// Judges the `wanted` databases.
#[must_use]
pub fn status(
    catalog: &Catalog,
    wanted: &[String],
    schedule: &Schedule,
    last: Option<Attempt>,
    now: Timestamp,
) -> Status {
    let promised = promise(schedule, last, now, GRACE_MAX);
    let databases = wanted.iter().map(|name| {
        let good: Vec<&Entry> = catalog
            .entries
            .iter()
            .filter(|entry| entry.kind == BackupKind::Dump && entry.good)
            .filter(|entry| entry.database.as_deref() == Some(name))
            .collect();
        let newest = good.iter().max_by_key(|entry| entry.started_at);
        let suspect = catalog.entries.iter().find(|entry| {
            entry.state == State::Suspect
                && entry.database.as_deref() == Some(name)
                && newest.is_none_or(|newest| newest.started_at < entry.started_at)
        });
        let trouble = match (suspect, newest) {
            (Some(entry), _) => Some(format!(
                "{} is suspect: {}; if that is as it should be: pgark accept {}",
                entry.id,
                entry.reason.as_deref().unwrap_or("it fell"),
                entry.id
            )),
            (None, None) => Some("there is no good backup".to_owned()),
            (None, Some(entry)) if entry.started_at < promised => Some(format!(
                "the newest good backup is of {}, and the schedule promises one since {promised}",
                entry.started_at
            )),
            (None, Some(_)) => None,
        };
        Database {
            name: name.clone(),
            newest: newest.map(|entry| entry.id.clone()),
            newest_at: newest.map(|entry| entry.started_at),
            bytes: newest.map_or(0, |entry| entry.bytes),
            good: good.len(),
            trouble,
        }
    });
    Status {
        databases: databases.collect(),
        bases: None,
        promised,
        next_run: schedule.next_after(now),
    }
}

/// The newest scheduled moment whose run must be over: at once when it is known to have failed,
/// else when it had time enough.
fn promise(
    schedule: &Schedule,
    last: Option<Attempt>,
    now: Timestamp,
    grace_max: SignedDuration,
) -> Timestamp {
    let newest = schedule.previous_at(now);
    if last.is_some_and(|last| !last.ok && last.started_at >= newest) {
        return newest;
    }
    let interval = schedule.next_after(newest).duration_since(newest);
    let grace = (interval / 2).clamp(GRACE_MIN, grace_max);
    schedule.promise(now, grace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Codec;
    use jiff::tz::TimeZone;

    fn entry(database: &str, at: &str, good: bool) -> Entry {
        let started_at: Timestamp = at.parse().unwrap();
        Entry {
            id: BackupId::dump(database, started_at),
            kind: BackupKind::Dump,
            cluster: String::new(),
            database: Some(database.to_owned()),
            state: if good { State::Taken } else { State::Failed },
            good,
            manifest: None,
            summary: None,
            artefact: None,
            codec: Codec::parse("gzip").unwrap(),
            encrypted: false,
            reason: None,
            unread: false,
            started_at,
            finished_at: None,
            bytes: 7,
            raw_bytes: None,
            sha256: None,
        }
    }

    fn healthy(entries: &[Entry], now: &str, last: Option<(&str, bool)>) -> bool {
        let schedule = Schedule::parse("0 2 * * *", &TimeZone::UTC).unwrap();
        let catalog = Catalog {
            entries: entries.to_vec(),
        };
        let last = last.map(|(at, ok)| Attempt {
            started_at: at.parse().unwrap(),
            ok,
        });
        let wanted = ["app".to_owned()];
        status(&catalog, &wanted, &schedule, last, now.parse().unwrap()).is_healthy()
    }

    #[test]
    fn a_backup_is_as_young_as_the_schedule_promises() {
        let yesterday = entry("app", "2025-01-21T02:00:05Z", true);
        let today = entry("app", "2025-01-22T02:00:05Z", true);
        let now = "2025-01-22T03:00:00Z";
        // Tonight's run may still be under way …
        assert!(healthy(std::slice::from_ref(&yesterday), now, None));
        // … but not all day, and not when it is known to have failed.
        assert!(!healthy(
            std::slice::from_ref(&yesterday),
            "2025-01-22T12:00:00Z",
            None
        ));
        let failed = Some(("2025-01-22T02:00:00Z", false));
        assert!(!healthy(std::slice::from_ref(&yesterday), now, failed));
        assert!(healthy(
            &[yesterday, today.clone()],
            "2025-01-22T12:00:00Z",
            None
        ));
        // Another database's, or a bad one, is none.
        assert!(!healthy(
            &[entry("app-x", "2025-01-22T02:00:05Z", true)],
            now,
            None
        ));
        assert!(!healthy(
            &[entry("app", "2025-01-22T02:00:05Z", false)],
            now,
            None
        ));
        assert!(!healthy(&[], now, None));
        let ok = Some(("2025-01-22T02:00:00Z", true));
        assert!(healthy(&[today], "2025-01-23T03:00:00Z", ok));
    }
}
