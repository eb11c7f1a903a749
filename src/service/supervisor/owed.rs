//! A backup that is wanted apart from any schedule: at the start, or because WAL has a gap. Pure.
//!
//! Invariant: a base backup stays owed until one was taken; attempts that fail are further and
//! further apart.

use std::time::{Duration, Instant};

use crate::service::journal::{Trigger, Work};

/// Between a base backup that failed and the next attempt, growing.
const PAUSE_MIN: Duration = Duration::from_secs(10 * 60);
const PAUSE_MAX: Duration = Duration::from_secs(6 * 3600);

/// What is owed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owed {
    pub(super) trigger: Trigger,
    since: Instant,
    not_before: Instant,
    pause: Duration,
}

impl Owed {
    /// From now on.
    pub(super) fn new(trigger: Trigger, now: Instant) -> Owed {
        Owed {
            trigger,
            since: now,
            not_before: now,
            pause: PAUSE_MIN,
        }
    }

    /// The same, so much later.
    pub(super) fn put_off(self, pause: Duration) -> Owed {
        Owed {
            not_before: self.not_before + pause,
            ..self
        }
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.not_before
    }

    /// What is still owed after a run that `began` then and ended with this exit code: dumps are
    /// tried once (their schedule brings the next), a base backup until it is there.
    pub(super) fn after(self, work: Work, began: Instant, code: i32, now: Instant) -> Option<Owed> {
        // One that was under way already lies before the gap.
        if began < self.since {
            return Some(self);
        }
        // 3: another store lacks it; 4: it is kept, of a cluster with damaged pages. An incremental
        // one does as well.
        let there = matches!(code, 0 | 3 | 4);
        if !work.is_base() || there {
            return None;
        }
        Some(Owed {
            not_before: now + self.pause,
            pause: (self.pause * 2).min(PAUSE_MAX),
            ..self
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_backup_stays_owed_until_it_is_there_and_is_tried_less_and_less_often() {
        let start = Instant::now();
        let mut owed = Owed::new(Trigger::Gap, start);
        let mut now = start;
        let mut pauses = Vec::new();
        for _ in 0..8 {
            assert!(owed.is_due(now));
            owed = owed.after(Work::Base, now, 1, now).unwrap();
            assert!(!owed.is_due(now + PAUSE_MIN / 2));
            let before = now;
            now = owed.not_before;
            pauses.push(now.duration_since(before).as_secs() / 60);
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 360, 360]);
        for code in [0, 3, 4] {
            assert_eq!(owed.clone().after(Work::Base, now, code, now), None);
        }
        assert_eq!(owed.after(Work::Incremental, now, 0, now), None);
    }

    #[test]
    fn one_that_began_before_the_gap_does_not_pay_for_it() {
        let before = Instant::now();
        let now = before + Duration::from_secs(60);
        let owed = Owed::new(Trigger::Gap, now);
        let after = owed.clone().after(Work::Base, before, 0, now);
        assert_eq!(after, Some(owed.clone()));
        assert!(owed.is_due(now), "and the next one begins at once");
    }

    #[test]
    fn dumps_of_the_start_are_tried_once() {
        let now = Instant::now();
        let owed = Owed::new(Trigger::Start, now);
        assert_eq!(owed.after(Work::Dumps, now, 1, now), None);
    }
}
