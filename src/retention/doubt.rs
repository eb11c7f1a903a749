//! Whether the clock may have jumped: a time without any good backup that is far longer than usual.
//!
//! A clock that jumps forward by years makes everything old at once. In the store that shows as a
//! silence: between the last backup and now, or, since a run prunes after its own backup, between
//! the last and the first by the new clock. An outage looks the same, so doubt is not for ever: it
//! ends when good backups of [`SETTLED_DAYS`] days have followed, or when another clock agrees.
//!
//! The whole store is looked at, not one database: a database that was dropped is silent too. And
//! the policy is not looked at: more days must never keep less. While in doubt nothing expires, so
//! the evidence stays as it is.

use std::collections::BTreeSet;

use jiff::civil::Date;

use super::{Backup, Clock, day};

/// Days between two days with good backups that raise a doubt. Below, little can expire by mistake.
const SILENCE_DAYS_MIN: i64 = 7;
/// As a multiple of what is usual.
const SILENCE_FACTOR: i64 = 10;
/// After so many days with good backups the new time is believed.
const SETTLED_DAYS: usize = 3;
/// What is usual is the median of up to so many intervals before, and of no fewer than two.
const USUAL_INTERVALS_MAX: usize = 10;
const USUAL_INTERVALS_MIN: usize = 2;

/// A silence that may be a jump.
pub(super) struct Doubt {
    /// The last day with a good backup before it.
    pub(super) from: Date,
    /// The first after it, or today.
    pub(super) until: Date,
}

/// The newest silence that nothing has settled yet.
pub(super) fn find(backups: &[Backup], clock: Clock) -> Option<Doubt> {
    if clock.confirmed {
        return None;
    }
    let counted = backups.iter().filter(|backup| backup.counts(clock.now));
    let mut days: BTreeSet<Date> = counted.map(Backup::day).collect();
    let today = day(clock.now);
    // Today ends a silence but settles none, unless it has a backup.
    let is_extra = days.last().is_some_and(|last| *last < today) && days.insert(today);
    let days: Vec<Date> = days.into_iter().collect();
    let intervals: Vec<i64> = days
        .windows(2)
        .map(|pair| between(pair[0], pair[1]))
        .collect();
    let newest = (0..intervals.len())
        .rev()
        .take_while(|at| days.len() - 1 - at - usize::from(is_extra) < SETTLED_DAYS);
    for at in newest {
        let before = &intervals[at.saturating_sub(USUAL_INTERVALS_MAX)..at];
        if before.len() < USUAL_INTERVALS_MIN {
            break;
        }
        let limit = SILENCE_DAYS_MIN.max(SILENCE_FACTOR * median(before));
        if intervals[at] > limit {
            return Some(Doubt {
                from: days[at],
                until: days[at + 1],
            });
        }
    }
    None
}

/// Whole days.
fn between(from: Date, until: Date) -> i64 {
    until.duration_since(from).as_hours() / 24
}

/// The upper one of two in the middle.
fn median(intervals: &[i64]) -> i64 {
    let mut sorted = intervals.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}
