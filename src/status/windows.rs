//! Which moments can be restored: from the end of a base backup as far as archived WAL goes on. Pure.
//!
//! Invariant: a window promises no more than what is listed shows: it ends before the first segment
//! that is missing, and its last moment is one up to which nothing is missing.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::catalog::list::Entry;
use crate::catalog::wal::{Reached, WalArchive};
use crate::units::{BackupId, BackupKind, Lsn, SegmentName, SystemId, Timeline, TimelineHistory};

/// A row of moments without a gap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Window {
    pub timeline: Timeline,
    /// The first base backup of it, at whose end it begins.
    pub base: BackupId,
    pub from_lsn: Lsn,
    /// When that backup ended, by pgark's clock.
    pub from: Timestamp,
    pub to_lsn: Lsn,
    /// Nothing up to then is missing. None: that is not known.
    pub to: Option<Timestamp>,
    /// Good base backups in it.
    pub bases: usize,
    /// What is missing behind it, while later WAL is there.
    pub missing: Option<SegmentName>,
}

/// What is known of the WAL of a cluster.
pub struct Known<'a> {
    pub wal: &'a WalArchive,
    pub histories: &'a BTreeMap<Timeline, TimelineHistory>,
    pub reached: Option<Reached>,
}

/// The windows of a cluster along its newest timeline, oldest first.
#[must_use]
pub fn windows(entries: &[Entry], known: &Known<'_>) -> Vec<Window> {
    let system = known.wal.system;
    let mut bases: Vec<Base<'_>> = entries
        .iter()
        .filter(|entry| entry.kind == BackupKind::Base && entry.good)
        .filter_map(|entry| Base::of(entry, system))
        .collect();
    bases.sort_by_key(|base| base.record.end_lsn);
    let on = |history: &TimelineHistory, base: &Base<'_>| {
        history.contains(base.record.end_timeline, base.record.end_lsn)
    };
    let mut histories = known.histories.values().rev();
    let Some(history) = histories.find(|one| bases.iter().any(|base| on(one, base))) else {
        return Vec::new();
    };
    let mut windows: Vec<Window> = Vec::new();
    for base in bases.iter().filter(|base| on(history, base)) {
        let inside = windows.last_mut();
        match inside.filter(|window| base.record.end_lsn <= window.to_lsn) {
            Some(window) => window.bases += 1,
            None => windows.push(window(base, history, known)),
        }
    }
    windows
}

/// The time since the last moment that can be restored.
#[must_use]
pub fn rpo(windows: &[Window], now: Timestamp) -> Option<SignedDuration> {
    let to = windows.last()?.to?;
    Some(now.duration_since(to).max(SignedDuration::ZERO))
}

/// What is wrong where WAL is received all the time: a window that ends before now.
#[must_use]
pub fn trouble(windows: &[Window], now: Timestamp, late: SignedDuration) -> Option<String> {
    let last = windows.last()?;
    if let Some(name) = last.missing {
        return Some(format!(
            "WAL has a gap: {name} is missing, and no base backup lies behind it"
        ));
    }
    let to = last.to.filter(|to| now.duration_since(*to) > late)?;
    Some(format!("no WAL was received since {to:.0}"))
}

struct Base<'a> {
    entry: &'a Entry,
    record: &'a crate::catalog::manifest::BaseRecord,
}

impl<'a> Base<'a> {
    fn of(entry: &'a Entry, system: SystemId) -> Option<Base<'a>> {
        let manifest = entry.manifest.as_ref()?;
        let own: SystemId = manifest.system_identifier.as_ref()?.parse().ok()?;
        let record = manifest.base.as_ref()?;
        (own == system).then_some(Base { entry, record })
    }
}

fn window(base: &Base<'_>, history: &TimelineHistory, known: &Known<'_>) -> Window {
    let record = base.record;
    let reach = known
        .wal
        .reach(history, record.end_lsn, record.wal_segment_bytes);
    let finished = base.entry.finished_at.unwrap_or(base.entry.started_at);
    let mut window = Window {
        timeline: history.timeline(),
        base: base.entry.id.clone(),
        from_lsn: record.end_lsn,
        from: finished,
        to_lsn: record.end_lsn.max(reach.whole_until),
        to: Some(finished),
        bases: 1,
        missing: reach.hole,
    };
    if reach.last.is_none() {
        window.to_lsn = record.end_lsn;
        return window;
    }
    let end = reach.whole_until.plus(record.wal_segment_bytes.bytes());
    let stream = known
        .reached
        .filter(|one| one.timeline == history.timeline());
    // The stream's note is about the row that it is still writing.
    let in_it =
        stream.filter(|one| reach.hole.is_none() && one.lsn >= record.end_lsn && one.lsn <= end);
    if let Some(reached) = in_it {
        window.to_lsn = window.to_lsn.max(reached.lsn);
        window.to = Some(reached.time.max(finished));
    } else {
        // When it was archived is later than what is in it, by nobody knows how much.
        window.to = None;
    }
    window
}

#[cfg(test)]
#[path = "windows_tests.rs"]
mod tests;
