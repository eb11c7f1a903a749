//! When a lane's work comes due, and what becomes of a moment that meets other work. Pure.
//!
//! Invariants: of two that come due at once, one runs: a full base backup makes up for an
//! incremental one, never the other way round. A moment that comes while its lane is taken is
//! skipped, but for a full base backup, which an incremental one under way only puts off.

use jiff::Timestamp;

use crate::schedule::Schedule;
use crate::service::journal::Work;

/// The schedules of one lane.
#[derive(Debug)]
pub(super) struct Timetable {
    /// The one that wins first.
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    work: Work,
    schedule: Schedule,
    next: Timestamp,
}

/// What becomes of a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meeting {
    /// It is due now, or as soon as the lane is free.
    Due,
    /// The run under way makes it late.
    UnderWay,
    /// One that waits for its turn will do.
    Waits,
}

impl Timetable {
    /// From now on; `rows` with the one that wins first.
    pub(super) fn new(rows: &[(Work, Schedule)], now: Timestamp) -> Timetable {
        let row = |(work, schedule): &(Work, Schedule)| Row {
            work: *work,
            next: schedule.next_after(now),
            schedule: schedule.clone(),
        };
        Timetable {
            rows: rows.iter().map(row).collect(),
        }
    }

    /// What has come due, and of which moment.
    pub(super) fn come(&mut self, now: Timestamp) -> Option<(Work, Timestamp)> {
        let mut come = None;
        for row in &mut self.rows {
            let next = row.schedule.next_after(now);
            // A clock that went back must not put the next run off by as much.
            let moment = row.next.min(next);
            row.next = moment;
            if now >= moment {
                row.next = next;
                come = come.or(Some((row.work, moment)));
            }
        }
        come
    }

    /// The next moment, if there is a schedule at all.
    pub(super) fn next(&self) -> Option<Timestamp> {
        self.rows.iter().map(|row| row.next).min()
    }

    /// What comes next, and when, in words.
    pub(super) fn describe_next(&self, now: Timestamp) -> Option<String> {
        let row = self.rows.iter().min_by_key(|row| row.next)?;
        let (noun, when) = (row.work.noun(), row.schedule.describe_next(now));
        Some(format!("next {noun}: {when}"))
    }
}

/// What becomes of a moment of `new`, when `active` is under way and `due` waits.
pub(super) fn meet(new: Work, active: Option<Work>, due: Option<Work>) -> Meeting {
    let gives_way = |one: Work| new == Work::Base && one == Work::Incremental;
    match due.or(active) {
        None => Meeting::Due,
        Some(one) if gives_way(one) => Meeting::Due,
        Some(_) if due.is_some() => Meeting::Waits,
        Some(_) => Meeting::UnderWay,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::tz::TimeZone;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn table(rows: &[(Work, &str)], now: &str) -> Timetable {
        let parse = |text| Schedule::parse(text, &TimeZone::UTC).unwrap();
        let rows: Vec<_> = rows
            .iter()
            .map(|(work, text)| (*work, parse(text)))
            .collect();
        Timetable::new(&rows, at(now))
    }

    #[test]
    fn of_two_that_come_due_at_once_the_full_one_runs_and_the_other_is_not_made_up_for() {
        // The 5th of January 2025 is a Sunday.
        let rows = [(Work::Base, "0 1 * * 0"), (Work::Incremental, "0 1 * * *")];
        let mut table = table(&rows, "2025-01-03T12:00:00Z");
        assert_eq!(table.come(at("2025-01-04T00:59:59Z")), None);
        let saturday = at("2025-01-04T01:00:00Z");
        assert_eq!(table.come(saturday), Some((Work::Incremental, saturday)));
        let sunday = at("2025-01-05T01:00:00Z");
        assert_eq!(table.next(), Some(sunday));
        assert_eq!(
            table.come(at("2025-01-05T01:00:07Z")),
            Some((Work::Base, sunday))
        );
        assert_eq!(table.come(at("2025-01-05T01:00:08Z")), None);
        assert_eq!(table.next(), Some(at("2025-01-06T01:00:00Z")));
        let next = table.describe_next(sunday).unwrap();
        assert!(next.starts_with("next incremental base backup: 2025-01-06 01:00"));
    }

    #[test]
    fn a_clock_that_went_back_puts_nothing_off() {
        let mut table = table(&[(Work::Dumps, "0 2 * * *")], "2025-02-01T12:00:00Z");
        assert_eq!(table.next(), Some(at("2025-02-02T02:00:00Z")));
        assert_eq!(table.come(at("2025-01-20T12:00:00Z")), None);
        assert_eq!(table.next(), Some(at("2025-01-21T02:00:00Z")));
    }

    #[test]
    fn a_lane_without_a_schedule_has_no_moments() {
        let mut table = table(&[], "2025-02-01T12:00:00Z");
        assert_eq!(table.come(at("2025-02-02T12:00:00Z")), None);
        assert_eq!(table.next(), None);
        assert_eq!(table.describe_next(at("2025-02-02T12:00:00Z")), None);
    }

    #[test]
    fn a_moment_that_meets_its_own_lane_is_skipped_unless_it_is_the_full_one() {
        use Work::{Base, Dumps, Incremental};
        for work in [Dumps, Base, Incremental] {
            assert_eq!(meet(work, None, None), Meeting::Due);
            assert_eq!(meet(work, Some(work), None), Meeting::UnderWay);
            assert_eq!(meet(work, None, Some(work)), Meeting::Waits);
        }
        assert_eq!(meet(Incremental, Some(Base), None), Meeting::UnderWay);
        assert_eq!(meet(Incremental, None, Some(Base)), Meeting::Waits);
        // The week's full one is not lost to an hourly one that is slow.
        assert_eq!(meet(Base, Some(Incremental), None), Meeting::Due);
        assert_eq!(meet(Base, None, Some(Incremental)), Meeting::Due);
        assert_eq!(meet(Base, Some(Incremental), Some(Base)), Meeting::Waits);
    }
}
