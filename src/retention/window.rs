//! The window: which base backups and which WAL it needs, so that any of its moments can be
//! restored. Pure.
//!
//! The window are the last `wal_days` times 24 hours, where WAL is archived. A moment is restored
//! from a base backup that ended at or before it, and the WAL from that backup's start on. So the
//! window needs its *anchor*, the newest good base backup that ended before it begins, and keeps
//! those that ended within it: each is the anchor one day. Were they thinned, the anchor could not
//! move on, and WAL would grow without end. Those older than the anchor are kept by other rules or
//! not at all, and restore to their own end: WAL of their own lies in them.
//!
//! Invariants: from the end of the first good base backup on, every moment of the window has one
//! that ended at or before it, however often and whenever it is pruned; WAL that any of them needs
//! is not below the floor. With a doubtful clock, or a base backup whose manifest cannot be read,
//! there is no floor: no WAL goes.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use super::{Backup, Clock, Policy, Reason, Verdicts, doubt, sort_key};
use crate::units::{BackupKind, Lsn, SegmentSize};

/// What a base backup's manifest says of its place in time and in WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// From then on it restores; not before the server's own end of the backup.
    pub ended: Timestamp,
    /// WAL is needed from here on.
    pub start: Lsn,
    pub segment: SegmentSize,
}

impl Backup {
    fn ended(&self) -> Timestamp {
        self.span.map_or(self.time, |span| span.ended)
    }
}

/// The base backups that the window of a cluster needs, by their positions.
struct Needed {
    anchor: Option<usize>,
    within: Vec<usize>,
}

/// What each cluster's window needs.
fn needed(backups: &[Backup], days: u32, now: Timestamp) -> BTreeMap<&str, Needed> {
    let days = SignedDuration::from_hours(24 * i64::from(days));
    let begin = now.checked_sub(days).unwrap_or(Timestamp::MIN);
    let mut clusters: BTreeMap<&str, Needed> = BTreeMap::new();
    for (at, backup) in backups.iter().enumerate() {
        if backup.kind != BackupKind::Base || !backup.counts(now) {
            continue;
        }
        let none = || Needed {
            anchor: None,
            within: Vec::new(),
        };
        let needed = clusters.entry(&backup.cluster).or_insert_with(none);
        if backup.ended() >= begin {
            needed.within.push(at);
            continue;
        }
        let place = |at: usize| (backups[at].ended(), sort_key(&backups[at]));
        let newer = needed.anchor.is_none_or(|anchor| place(at) > place(anchor));
        needed.anchor = if newer { Some(at) } else { needed.anchor };
    }
    clusters
}

impl Verdicts<'_> {
    /// What the window needs stays. What that builds on, chains keep.
    pub(super) fn keep_window(&mut self) {
        let Some(days) = self.policy.wal_days else {
            return;
        };
        for needed in needed(self.backups, days, self.clock.now).into_values() {
            for at in needed.within {
                self.reasons[at].push(Reason::InWindow(days));
            }
            if let Some(at) = needed.anchor {
                self.reasons[at].push(Reason::Anchor(days));
            }
        }
    }
}

/// Where the WAL begins that the window of this cluster (a system identifier) needs: the start of a
/// segment. Whole segments below it, on whatever timeline, are of no use to it. None: nothing may
/// go, since there is no good base backup, or not all is known.
///
/// Give it all backups of the store. It is the same before and after what expires is deleted.
#[must_use]
pub fn wal_floor(backups: &[Backup], cluster: &str, policy: &Policy, clock: Clock) -> Option<Lsn> {
    let days = policy.wal_days?;
    // One that does not tell its cluster may be of any, and the one that is needed.
    let ours = |backup: &&Backup| {
        let same = backup.cluster == cluster || backup.cluster.is_empty();
        backup.kind == BackupKind::Base && same
    };
    let untold = |backup: &Backup| backup.span.is_none();
    if backups.iter().filter(ours).any(untold) || doubt::find(backups, clock).is_some() {
        return None;
    }
    let needed = needed(backups, days, clock.now).remove(cluster)?;
    // The oldest need not begin first: a timeline may begin below where another one ended.
    let all = needed.within.into_iter().chain(needed.anchor);
    all.filter_map(|at| backups[at].span)
        .map(|span| span.start.segment_start(span.segment))
        .min()
}
