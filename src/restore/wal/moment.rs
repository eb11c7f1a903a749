//! From what `--at` says to a base backup, the WAL behind it and what the server is told: a plan for
//! which everything was found to be there.
//!
//! The server gets a target at which an end of WAL before it is fatal, so that it never promotes too
//! early. A transaction and a restore point become the position of their record: the one that was
//! found, whatever else goes by that number or name. So does what the server cannot find itself (a
//! time after the last commit): the position of the last whole record.
//!
//! Invariants: the base backup lies on the target's history and holds nothing from after the target;
//! the WAL goes on without a gap to where the server will stop; an older branch than the newest is
//! never followed in silence. Reads only.

use std::ops::Range;

use jiff::Timestamp;

pub use super::archive::{Archive, Candidate};
use super::line::Line;
use super::read::Source;
use super::refusal::{not_on_newest, too_early, unreachable};
use super::search::Searched;
use super::target::{Aim, Target};
use crate::archive::Identities;
use crate::archive::wal::{Event, Record};
use crate::cancel::Token;
use crate::catalog::manifest::BaseRecord;
use crate::error::{Error, Result};
use crate::store::Store;
use crate::units::{Lsn, SegmentSize, Timeline, TimelineHistory};

/// How far before a backup the newest commit is looked for, in segments.
const LOOK_BACK: u64 = 64;

/// What recovery stops at, as the server is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goal {
    Lsn(Lsn),
    Time(Timestamp),
    /// The end of the backup itself: nothing came after it.
    BackupEnd,
}

/// The plan's part about WAL.
pub struct Moment<'a> {
    pub base: Candidate<'a>,
    pub goal: Goal,
    pub exclusive: bool,
    pub timeline: Timeline,
    /// The newest timeline, where another one is followed because no base backup lies on its history.
    pub passed_over: Option<Timeline>,
    pub line: Line<'a>,
    /// The segments of the line that are needed.
    pub range: Range<usize>,
    /// The record that the server stops at, where one was looked for.
    pub stop: Option<Record>,
}

/// What is wanted, and of what.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    pub store: &'a dyn Store,
    pub archive: &'a Archive,
    pub identities: Option<&'a Identities>,
    pub target: &'a Target,
    /// None: the newest whose history has a base backup.
    pub timeline: Option<Timeline>,
    pub threads: usize,
    pub cancel: &'a Token,
}

impl<'a> Wanted<'a> {
    /// Finds the base backup and the WAL. `candidates` are good, of one cluster.
    ///
    /// # Errors
    /// `Unreachable`, with the nearest moment that can be reached; `Usage` for a restore point's name
    /// that was given twice; `Damage` for WAL that is not right; as the store.
    pub fn find(&self, candidates: &[Candidate<'a>]) -> Result<Moment<'a>> {
        let (history, mut bases) = self.line_of(candidates)?;
        let newest = self.archive.histories.keys().next_back().copied();
        let passed_over =
            newest.filter(|newest| self.timeline.is_none() && *newest > history.timeline());
        if let (Some(newest), Aim::Latest) = (passed_over, &self.target.aim) {
            return Err(not_on_newest(newest, history.timeline()));
        }
        bases.sort_by_key(|one| std::cmp::Reverse(one.base.end_lsn));
        let found = match &self.target.aim {
            Aim::Latest => self.latest(history, &bases),
            Aim::Lsn(lsn) => self.lsn(history, &bases, *lsn),
            Aim::Time { time, .. } => self.time(history, &bases, *time),
            Aim::Xid(xid) => {
                // PostgreSQL compares what a record holds: the lower half.
                let low = u32::try_from(xid & 0xFFFF_FFFF).unwrap_or_default();
                let wanted = |record: &Record| match record.event {
                    Event::Commit { xid, .. } | Event::Abort { xid, .. } => xid == low,
                    Event::RestorePoint { .. } => false,
                };
                self.event(history, &bases, &wanted)
            }
            Aim::Name(name) => {
                let wanted = |record: &Record| matches!(&record.event, Event::RestorePoint { name: found, .. } if found == name);
                self.event(history, &bases, &wanted)
            }
        }?;
        Ok(Moment {
            passed_over,
            ..found
        })
    }

    /// The history to follow, and the backups on it.
    fn line_of(
        &self,
        candidates: &[Candidate<'a>],
    ) -> Result<(&'a TimelineHistory, Vec<Candidate<'a>>)> {
        let histories = &self.archive.histories;
        let on = |history: &TimelineHistory| -> Vec<Candidate<'a>> {
            let bases = candidates.iter();
            let bases =
                bases.filter(|one| history.contains(one.base.end_timeline, one.base.end_lsn));
            bases.copied().collect()
        };
        let wanted = histories.values().rev();
        let mut wanted =
            wanted.filter(|one| self.timeline.is_none_or(|only| only == one.timeline()));
        let found = wanted.find_map(|history| {
            Some((history, on(history))).filter(|(_, bases)| !bases.is_empty())
        });
        found.ok_or_else(|| {
            let known = histories
                .keys()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(", ");
            match self.timeline {
                Some(only) => unreachable(format!(
                    "no good base backup lies on the history of timeline {only}"
                ))
                .hint(format!("timelines in {}: {known}", self.store.describe())),
                None => unreachable(
                    "no good base backup lies on a timeline that the archive knows".to_owned(),
                )
                .hint(format!(
                    "timelines in {}: {known}; `pgark backup --base` takes a backup",
                    self.store.describe()
                )),
            }
        })
    }

    fn source(&self, base: &BaseRecord) -> Source<'a> {
        Source {
            store: self.store,
            system: self.archive.wal.system,
            size: base.wal_segment_bytes,
            identities: self.identities,
        }
    }

    pub(super) fn line(
        &self,
        base: &BaseRecord,
        history: &'a TimelineHistory,
        from: Lsn,
    ) -> Result<Line<'a>> {
        Line::along(self.source(base), &self.archive.wal, history, from)
    }

    pub(super) fn searched<'b>(&self, line: &'b Line<'a>) -> Searched<'b>
    where
        'a: 'b,
    {
        Searched {
            line,
            threads: self.threads,
            cancel: self.cancel,
        }
    }

    fn moment(
        &self,
        base: Candidate<'a>,
        line: Line<'a>,
        goal: Goal,
        until: Lsn,
        stop: Option<Record>,
    ) -> Result<Moment<'a>> {
        let range = if goal == Goal::BackupEnd {
            0..0
        } else {
            line.until(until)
        };
        if let Some(file) = line.empty_file(range.clone()) {
            return Err(
                Error::damage(format!("{file} in {} is empty", self.store.describe()))
                    .hint("another store may hold it whole: --store NAME"),
            );
        }
        Ok(Moment {
            base,
            goal,
            exclusive: self.target.exclusive,
            timeline: line.history.timeline(),
            passed_over: None,
            line,
            range,
            stop,
        })
    }

    /// As far as a line goes: the last whole record, if one begins behind the backup.
    pub(super) fn end(&self, base: Candidate<'a>, line: &Line<'a>) -> Result<Option<(Lsn, Lsn)>> {
        let end = self.searched(line).end()?;
        Ok(end.filter(|(begin, _)| *begin >= base.base.end_lsn))
    }

    fn as_far_as_it_goes(&self, base: Candidate<'a>, line: Line<'a>) -> Result<Moment<'a>> {
        let (goal, until) = match self.end(base, &line)? {
            Some((begin, end)) => (Goal::Lsn(begin), end),
            None => (Goal::BackupEnd, base.base.end_lsn),
        };
        Ok(Moment {
            // Nothing in it is to be left out, and its last record may be a commit.
            exclusive: false,
            ..self.moment(base, line, goal, until, None)?
        })
    }

    fn latest(&self, history: &'a TimelineHistory, bases: &[Candidate<'a>]) -> Result<Moment<'a>> {
        let base = newest(bases)?;
        let line = self.line(base.base, history, base.base.end_lsn)?;
        if line.segments.is_empty() {
            return Err(unreachable(format!(
                "{} holds no WAL that follows {}",
                self.store.describe(),
                base.entry.id
            ))
            .hint(
                "without --at it comes back to its own end; WAL_STREAMING=on keeps what follows",
            ));
        }
        if line.hole.is_some() {
            return Err(self.too_late(base, &line, "the newest moment", &|_, _| Ok(false))?);
        }
        self.as_far_as_it_goes(base, line)
    }

    fn lsn(
        &self,
        history: &'a TimelineHistory,
        bases: &[Candidate<'a>],
        lsn: Lsn,
    ) -> Result<Moment<'a>> {
        let Some(base) = bases.iter().find(|one| one.base.end_lsn <= lsn).copied() else {
            return Err(too_early(bases, &format!("LSN {lsn}")));
        };
        let line = self.line(base.base, history, base.base.end_lsn)?;
        if lsn >= line.from
            && line.place(lsn) < line.segments.len()
            && let Some(end) = self.searched(&line).record_from(lsn)?
        {
            return self.moment(base, line, Goal::Lsn(lsn), end, None);
        }
        Err(
            self.too_late(base, &line, &format!("LSN {lsn}"), &|_, other| {
                Ok(self
                    .end(base, other)?
                    .is_some_and(|(begin, _)| lsn <= begin))
            })?,
        )
    }

    fn is_after(&self, time: Timestamp) -> impl Fn(Timestamp) -> bool + Sync + use<> {
        let exclusive = self.target.exclusive;
        move |ended: Timestamp| ended > time || (exclusive && ended == time)
    }

    fn time(
        &self,
        history: &'a TimelineHistory,
        bases: &[Candidate<'a>],
        time: Timestamp,
    ) -> Result<Moment<'a>> {
        let mut chosen = None;
        for base in bases {
            if self.is_before(history, base, time)? {
                chosen = Some(*base);
                break;
            }
        }
        let Some(base) = chosen else {
            return Err(too_early(bases, &time.to_string()));
        };
        let line = self.line(base.base, history, base.base.end_lsn)?;
        let found = self.searched(&line).ended_after(0, &self.is_after(time))?;
        if let Some(stop) = found.filter(|record| record.lsn >= base.base.end_lsn) {
            let until = stop.end;
            return self.moment(base, line, Goal::Time(time), until, Some(stop));
        }
        if self.is_covered(&line, time)? {
            return self.as_far_as_it_goes(base, line);
        }
        Err(
            self.too_late(base, &line, &time.to_string(), &|searched, _| {
                let found = searched.ended_after(0, &self.is_after(time))?;
                Ok(found.is_some())
            })?,
        )
    }

    /// Whether all that a backup holds was done by then. The server's own clock tells, by the newest
    /// commit before the backup's end; where there is none to be seen, pgark's.
    fn is_before(
        &self,
        history: &'a TimelineHistory,
        one: &Candidate<'a>,
        time: Timestamp,
    ) -> Result<bool> {
        let base = one.base;
        let size = base.wal_segment_bytes;
        let mut from = base.end_lsn.segment_start(size);
        let whole = |at: Lsn| {
            let found = self.archive.wal.covering(history, at, size);
            found.is_some_and(|(_, held)| held.is_whole())
        };
        for _ in 0..LOOK_BACK {
            match from.0.checked_sub(size.bytes()) {
                Some(before) if whole(Lsn(before)) => from = Lsn(before),
                _ => break,
            }
        }
        let line = self.line(base, history, from)?;
        let newest = self.searched(&line).newest_before(0, base.end_lsn)?;
        let finished_at = one.entry.finished_at.unwrap_or(one.entry.started_at);
        Ok(!self.is_after(time)(newest.unwrap_or(finished_at)))
    }

    /// Whether nothing was committed up to then that the line does not hold.
    fn is_covered(&self, line: &Line<'a>, time: Timestamp) -> Result<bool> {
        let Some(reached) = self.archive.reached else {
            return Ok(false);
        };
        if reached.time < time || reached.timeline != line.history.timeline() {
            return Ok(false);
        }
        line.reaches(reached.lsn)
    }

    fn event(
        &self,
        history: &'a TimelineHistory,
        bases: &[Candidate<'a>],
        wanted: &(dyn Fn(&Record) -> bool + Sync),
    ) -> Result<Moment<'a>> {
        let mut limit = Lsn(u64::MAX);
        for base in bases {
            let line = self.line(base.base, history, base.base.end_lsn)?;
            let found = self.searched(&line).first(line.until(limit), &|record| {
                record.lsn >= base.base.end_lsn && wanted(record)
            })?;
            if let Some(stop) = found {
                self.ensure_only(&line, &stop, limit, wanted)?;
                let (goal, until) = (Goal::Lsn(stop.lsn), stop.end);
                return self.moment(*base, line, goal, until, Some(stop));
            }
            limit = base.base.end_lsn;
        }
        let base = newest(bases)?;
        let line = self.line(base.base, history, base.base.end_lsn)?;
        Err(self.too_late(
            base,
            &line,
            &self.target.aim.to_string(),
            &|searched, other| Ok(searched.first(0..other.segments.len(), wanted)?.is_some()),
        )?)
    }
}

fn newest<'a>(bases: &[Candidate<'a>]) -> Result<Candidate<'a>> {
    let newest = bases.first().copied();
    newest.ok_or_else(|| Error::failed("there is no base backup"))
}

impl Moment<'_> {
    /// How long a segment is.
    #[must_use]
    pub fn size(&self) -> SegmentSize {
        self.line.source.size
    }

    /// The last place that it comes to, and the newest end of a transaction in its WAL.
    ///
    /// # Errors
    /// As [`Line::read`].
    pub fn end(&self, cancel: &Token) -> Result<(Lsn, Option<Timestamp>)> {
        let searched = Searched {
            line: &self.line,
            threads: 1,
            cancel,
        };
        let at = match self.goal {
            Goal::Lsn(lsn) => lsn,
            Goal::Time(_) | Goal::BackupEnd => self.base.base.end_lsn,
        };
        Ok((at, searched.newest_before(0, Lsn(u64::MAX))?))
    }

    /// The settings of the server that say where to stop.
    #[must_use]
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let (name, value) = match &self.goal {
            Goal::Lsn(lsn) => ("recovery_target_lsn", lsn.to_string()),
            Goal::Time(time) => ("recovery_target_time", format_time(*time)),
            Goal::BackupEnd => ("recovery_target", "immediate".to_owned()),
        };
        let inclusive = if self.exclusive { "off" } else { "on" };
        vec![
            (name, value),
            ("recovery_target_inclusive", inclusive.to_owned()),
            ("recovery_target_timeline", self.timeline.to_string()),
        ]
    }
}

/// With an offset in figures: while a server reads its settings it knows no names of zones, not even `Z`.
fn format_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S.%6f+00").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_given_to_the_server_in_figures() {
        let time = "2025-01-22T14:05:07.1234567+01:00".parse().unwrap();
        assert_eq!(format_time(time), "2025-01-22 13:05:07.123456+00");
        let time = "2025-01-22T13:05:07Z".parse().unwrap();
        assert_eq!(format_time(time), "2025-01-22 13:05:07.000000+00");
    }
}
