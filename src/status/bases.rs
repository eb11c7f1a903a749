//! Is the cluster as a whole backed up as promised? Pure.
//!
//! Invariant: healthy means a good base backup no older than each schedule promises; where WAL is
//! received or full ones are scheduled, one at all. A full one keeps the promise of an incremental
//! one, never the other way round.

use jiff::{SignedDuration, Timestamp};

use super::{Attempt, promise};
use crate::catalog::list::{Catalog, Entry};
use crate::schedule::Schedule;
use crate::units::{BackupId, BackupKind};

/// A base backup may be under way for longer than dumps.
const GRACE_MAX: SignedDuration = SignedDuration::from_hours(24);

/// What is promised of base backups.
#[derive(Debug, Clone, Default)]
pub struct Promised {
    pub full: Option<Schedule>,
    pub incremental: Option<Schedule>,
    /// WAL is received, which restores nothing without a base backup.
    pub streaming: bool,
}

impl Promised {
    /// Whether there is to be a base backup at all, and soon.
    #[must_use]
    pub fn needs_one(&self) -> bool {
        self.full.is_some() || self.streaming
    }
}

/// The base backups of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bases {
    pub newest: Option<BackupId>,
    /// When the newest good one was begun.
    pub newest_at: Option<Timestamp>,
    pub bytes: u64,
    /// Good ones in all.
    pub good: usize,
    /// No good one may be older than this.
    pub promised: Option<Timestamp>,
    pub next_run: Option<Timestamp>,
    /// Why they are not healthy.
    pub trouble: Option<String>,
}

/// Judges the base backups; `last` are the newest attempts, of a full one and of any. None where
/// nothing is promised.
#[must_use]
pub fn bases(
    catalog: &Catalog,
    promised: &Promised,
    last: (Option<Attempt>, Option<Attempt>),
    now: Timestamp,
) -> Option<Bases> {
    let schedules = [&promised.full, &promised.incremental];
    if !promised.needs_one() && promised.incremental.is_none() {
        return None;
    }
    let good = || {
        let entries = catalog.entries.iter();
        entries.filter(|entry| entry.kind == BackupKind::Base && entry.good)
    };
    let by_start = |entry: &&Entry| entry.started_at;
    let full = good().filter(|entry| is_full(entry)).max_by_key(by_start);
    let newest = good().max_by_key(by_start);
    let since = |schedule: &Option<Schedule>, last| {
        let schedule = schedule.as_ref()?;
        Some(promise(schedule, last, now, GRACE_MAX))
    };
    let since = [
        since(&promised.full, last.0),
        since(&promised.incremental, last.1),
    ];
    let late = |what: &str, name: &str, newest: Option<&Entry>, since: Option<Timestamp>| {
        let (entry, since) = (newest?, since?);
        (entry.started_at < since).then(|| {
            format!(
                "the newest good {what} is of {}, and {name} promises one since {since}",
                entry.started_at
            )
        })
    };
    let trouble = match (newest, full) {
        (None, _) => Some("there is no good base backup".to_owned()),
        (Some(_), None) => Some("there is no good full base backup".to_owned()),
        (Some(_), Some(_)) => late("full base backup", "BASE_SCHEDULE", full, since[0])
            .or_else(|| late("base backup", "BASE_INCREMENTAL_SCHEDULE", newest, since[1])),
    };
    let next = schedules.into_iter().flatten();
    Some(Bases {
        newest: newest.map(|entry| entry.id.clone()),
        newest_at: newest.map(|entry| entry.started_at),
        bytes: newest.map_or(0, |entry| entry.bytes),
        good: good().count(),
        promised: since.into_iter().flatten().max(),
        next_run: next.map(|schedule| schedule.next_after(now)).min(),
        trouble,
    })
}

fn is_full(entry: &Entry) -> bool {
    let manifest = entry.manifest.as_ref();
    manifest.is_none_or(|manifest| manifest.parent.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::list::State;
    use crate::catalog::manifest::Manifest;
    use crate::units::{Codec, stamp};
    use jiff::tz::TimeZone;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn entry(time: &str, is_full: bool, good: bool) -> Entry {
        let started_at = at(time);
        let id = BackupId::parse(&format!("base_{}", stamp(started_at))).unwrap();
        let mut manifest = Manifest::new(id.clone(), Codec::ZSTD, started_at, started_at);
        manifest.parent = (!is_full).then(|| id.clone());
        Entry {
            id,
            kind: BackupKind::Base,
            cluster: String::new(),
            database: None,
            state: if good { State::Taken } else { State::Failed },
            good,
            manifest: Some(manifest),
            summary: None,
            artefact: None,
            codec: Codec::ZSTD,
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

    fn promised(full: Option<&str>, incremental: Option<&str>, streaming: bool) -> Promised {
        let parse = |text: Option<&str>| {
            let text = text?;
            Some(Schedule::parse(text, &TimeZone::UTC).unwrap())
        };
        Promised {
            full: parse(full),
            incremental: parse(incremental),
            streaming,
        }
    }

    fn judged(entries: &[Entry], promised: &Promised, now: &str) -> Option<Bases> {
        let catalog = Catalog {
            entries: entries.to_vec(),
        };
        bases(&catalog, promised, (None, None), at(now))
    }

    #[test]
    fn nothing_is_judged_where_nothing_is_promised() {
        let none = promised(None, None, false);
        assert_eq!(judged(&[], &none, "2025-01-20T12:00:00Z"), None);
    }

    #[test]
    fn wal_alone_restores_nothing_and_any_good_one_serves_it() {
        let wal = promised(None, None, true);
        let trouble = |entries: &[Entry]| {
            let judged = judged(entries, &wal, "2025-06-20T12:00:00Z");
            judged.unwrap().trouble
        };
        let good = entry("2025-01-20T01:00:00Z", true, true);
        let bad = entry("2025-01-20T01:00:00Z", true, false);
        assert!(trouble(&[]).unwrap().contains("no good base backup"));
        assert!(trouble(&[bad]).is_some());
        assert_eq!(trouble(&[good]), None);
    }

    #[test]
    fn a_full_one_keeps_both_promises_and_an_incremental_one_its_own() {
        // Sundays, and every night.
        let both = promised(Some("0 1 * * 0"), Some("0 1 * * *"), false);
        let sunday = entry("2025-01-19T01:00:05Z", true, true);
        let monday = entry("2025-01-20T01:00:05Z", false, true);
        let trouble = |entries: &[Entry], now: &str| judged(entries, &both, now).unwrap().trouble;
        let noon = "2025-01-19T14:00:00Z";
        assert_eq!(trouble(std::slice::from_ref(&sunday), noon), None);
        let both_there = [sunday.clone(), monday.clone()];
        assert_eq!(trouble(&both_there, "2025-01-20T14:00:00Z"), None);
        // Monday's is missing: said once it had time enough.
        let alone = std::slice::from_ref(&sunday);
        assert_eq!(trouble(alone, "2025-01-20T12:00:00Z"), None);
        let late = trouble(alone, "2025-01-20T14:00:00Z").unwrap();
        assert!(late.contains("BASE_INCREMENTAL_SCHEDULE"), "{late}");
        // Next week's full one is missing, whatever the incremental ones say.
        let nightly = entry("2025-01-27T01:00:05Z", false, true);
        let late = trouble(&[sunday, monday, nightly], "2025-01-27T02:00:00Z").unwrap();
        assert!(late.contains("BASE_SCHEDULE promises"), "{late}");
    }

    #[test]
    fn a_run_that_is_known_to_have_failed_is_not_waited_for() {
        let weekly = promised(Some("0 1 * * 0"), None, false);
        let catalog = Catalog {
            entries: vec![entry("2025-01-12T01:00:05Z", true, true)],
        };
        let now = at("2025-01-19T02:00:00Z");
        let failed = Some(Attempt {
            started_at: at("2025-01-19T01:00:00Z"),
            ok: false,
        });
        let trouble = |last| bases(&catalog, &weekly, last, now).unwrap().trouble;
        assert_eq!(trouble((None, None)), None);
        assert!(trouble((failed, failed)).is_some());
    }
}
