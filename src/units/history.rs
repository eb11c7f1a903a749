//! The content of a `.history` file: which timelines a timeline descends from, and where it
//! left each of them. No I/O.
//!
//! Invariant: the switch points of a parsed history never go back, and its ancestors' numbers
//! rise, as PostgreSQL itself demands (`readTimeLineHistory` in `timeline.c`).

use super::{Lsn, Timeline};
use crate::error::{Error, Result};

/// A timeline with its ancestors, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory {
    timeline: Timeline,
    /// Each ancestor and the position at which it was left.
    ancestors: Vec<(Timeline, Lsn)>,
}

impl TimelineHistory {
    /// The first timeline's: it has no ancestor and no file.
    #[must_use]
    pub fn first() -> TimelineHistory {
        TimelineHistory {
            timeline: Timeline::FIRST,
            ancestors: Vec::new(),
        }
    }

    /// Reads the file of `timeline`. Reasons and comments need not be text.
    ///
    /// # Errors
    /// `Damage` for what PostgreSQL would refuse as well.
    pub fn parse(timeline: Timeline, content: &[u8]) -> Result<TimelineHistory> {
        let mut ancestors: Vec<(Timeline, Lsn)> = Vec::new();
        for line in content.split(|&byte| byte == b'\n') {
            let line = String::from_utf8_lossy(line);
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let damage = || {
                Error::damage(format!(
                    "{} holds a line that is none of a timeline's history: {line:?}",
                    timeline.history_name()
                ))
                .hint("fetch the file anew from the server's pg_wal or its archive")
            };
            let mut words = line.split_whitespace();
            let mut word = || words.next().ok_or_else(damage);
            let ancestor: Timeline = word()?.parse().map_err(|_| damage())?;
            let left_at: Lsn = word()?.parse().map_err(|_| damage())?;
            let follows = ancestors
                .last()
                .is_none_or(|(before, at)| *before < ancestor && *at <= left_at);
            if !follows || ancestor >= timeline {
                return Err(damage());
            }
            ancestors.push((ancestor, left_at));
        }
        Ok(TimelineHistory {
            timeline,
            ancestors,
        })
    }

    #[must_use]
    pub fn timeline(&self) -> Timeline {
        self.timeline
    }

    /// The ancestors, oldest first, each with the position at which it was left.
    #[must_use]
    pub fn ancestors(&self) -> &[(Timeline, Lsn)] {
        &self.ancestors
    }

    /// Where this history left `timeline`; none for its own, and for those it never was on.
    #[must_use]
    pub fn left(&self, timeline: Timeline) -> Option<Lsn> {
        let found = self.ancestors.iter().find(|(one, _)| *one == timeline);
        found.map(|(_, lsn)| *lsn)
    }

    /// The timeline on which this history has the byte at `lsn`.
    #[must_use]
    pub fn at(&self, lsn: Lsn) -> Timeline {
        let found = self.ancestors.iter().find(|(_, left_at)| lsn < *left_at);
        found.map_or(self.timeline, |(timeline, _)| *timeline)
    }

    /// Whether WAL up to `lsn` of `timeline` is part of this history.
    #[must_use]
    pub fn contains(&self, timeline: Timeline, lsn: Lsn) -> bool {
        timeline == self.timeline || self.left(timeline).is_some_and(|left_at| lsn <= left_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use proptest::prelude::*;
    use std::fmt::Write as _;

    fn timeline(number: u32) -> Timeline {
        Timeline::new(number).unwrap()
    }

    const FILE: &[u8] = b"1\t0/3000148\tno recovery target specified\n\n# by hand\n\
        2\t0/5000000\tbefore 2025-01-22 \xe9t\xe9\n";

    #[test]
    fn a_history_tells_which_timeline_holds_a_byte() {
        let history = TimelineHistory::parse(timeline(5), FILE).unwrap();
        assert_eq!(history.ancestors().len(), 2);
        for (lsn, on) in [
            (0x0300_0147, 1),
            (0x0300_0148, 2),
            (0x04FF_FFFF, 2),
            (0x0500_0000, 5),
            (u64::MAX, 5),
        ] {
            assert_eq!(history.at(Lsn(lsn)), timeline(on), "{lsn:X}");
        }
        assert!(history.contains(timeline(1), Lsn(0x0300_0148)));
        assert!(!history.contains(timeline(1), Lsn(0x0300_0149)));
        assert!(!history.contains(timeline(3), Lsn(1)));
        assert!(history.contains(timeline(5), Lsn(u64::MAX)));
        assert_eq!(TimelineHistory::first().at(Lsn(7)), Timeline::FIRST);
    }

    #[test]
    fn a_history_that_postgres_would_refuse_is_damage() {
        for file in [
            &b"1"[..],
            b"one\t0/1\tx",
            b"1\t0-1\tx",
            b"0\t0/1\tx",
            // A timeline never is its own ancestor, and its switches never go back.
            b"3\t0/1\tx",
            b"2\t0/1\tx\n1\t0/2\tx",
            b"1\t0/2\tx\n2\t0/1\tx",
        ] {
            let error = TimelineHistory::parse(timeline(3), file).unwrap_err();
            assert_eq!(error.kind, Kind::Damage, "{file:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_history_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = TimelineHistory::parse(timeline(9), &bytes);
        }

        #[test]
        fn every_byte_lies_on_a_timeline_of_the_history(
            steps in prop::collection::vec(0_u64..1000, 0..6), lsn in 0_u64..6000,
        ) {
            let mut at = 0;
            let mut file = String::new();
            for (n, step) in steps.iter().enumerate() {
                at += step;
                let _ = writeln!(file, "{}\t{}\treason", n + 1, Lsn(at));
            }
            let own = timeline(u32::try_from(steps.len()).unwrap() + 1);
            let history = TimelineHistory::parse(own, file.as_bytes()).unwrap();
            let on = history.at(Lsn(lsn));
            // A byte at `lsn` is in the WAL that ends after it.
            prop_assert!(history.contains(on, Lsn(lsn + 1)));
        }
    }
}
