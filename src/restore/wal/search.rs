//! The search for a moment in a line of WAL: where it ends, and where something happened.
//!
//! Segments are read in parallel, each chunk of them by a scanner of its own. A record that goes on
//! behind its chunk is read to its end there.
//!
//! Invariant: what is found is the first in the order of WAL. Reads only.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use jiff::Timestamp;

use super::line::Line;
use crate::archive::wal::{Event, Record, Scanner};
use crate::error::{Error, Result, caught};
use crate::units::Lsn;

/// Segments that one scanner reads.
const CHUNK: usize = 4;
/// How far back the end is searched for a commit that is later than the last one.
const LOOK_BACK: usize = 64;
/// WAL that goes to a scanner at once, where it may have to stop in between.
const STEP_BYTES: usize = 8192;

/// What was looked for.
pub type Found = Option<Record>;

/// How a search is done.
#[derive(Clone, Copy)]
pub struct Searched<'a> {
    pub line: &'a Line<'a>,
    pub threads: usize,
    pub cancel: &'a crate::cancel::Token,
}

impl Event {
    /// When; none for what is no end of a transaction, since only those stop a recovery by time.
    fn ended_at(&self) -> Option<Timestamp> {
        match self {
            Event::Commit { time, .. } | Event::Abort { time, .. } => Some(*time),
            Event::RestorePoint { .. } => None,
        }
    }
}

impl Searched<'_> {
    /// The last whole record: where it begins, and the first byte behind it.
    ///
    /// # Errors
    /// As [`Line::read`].
    pub fn end(&self) -> Result<Option<(Lsn, Lsn)>> {
        for first in (0..self.line.segments.len()).rev() {
            let mut scanner = Scanner::new(self.line.start(first), self.line.source.size);
            for at in first..self.line.segments.len() {
                self.cancel.check()?;
                let content = self.line.read(at)?;
                scanner.feed(&content.bytes, &mut |_| ());
            }
            if let Some(last) = scanner.last() {
                return Ok(Some(last));
            }
        }
        Ok(None)
    }

    /// The end of the first whole record that begins at or behind `lsn`.
    ///
    /// # Errors
    /// As [`Line::read`].
    pub fn record_from(&self, lsn: Lsn) -> Result<Option<Lsn>> {
        let first = self.line.place(lsn);
        let mut scanner = Scanner::new(self.line.start(first), self.line.source.size);
        for at in first..self.line.segments.len() {
            self.cancel.check()?;
            for page in self.line.read(at)?.bytes.chunks(STEP_BYTES) {
                scanner.feed(page, &mut |_| ());
                if let Some((begin, end)) = scanner.last()
                    && begin >= lsn
                {
                    return Ok(Some(end));
                }
            }
        }
        Ok(None)
    }

    /// The first record of these segments that is wanted.
    ///
    /// # Errors
    /// As [`Line::read`].
    pub fn first(
        &self,
        range: Range<usize>,
        wanted: &(dyn Fn(&Record) -> bool + Sync),
    ) -> Result<Found> {
        let chunks = range.len().div_ceil(CHUNK);
        let (next, best) = (AtomicUsize::new(0), AtomicUsize::new(chunks));
        let found: Mutex<Vec<(usize, Record)>> = Mutex::new(Vec::new());
        let work = || -> Result<()> {
            loop {
                let chunk = next.fetch_add(1, Ordering::Relaxed);
                if chunk >= chunks || chunk > best.load(Ordering::Relaxed) {
                    return Ok(());
                }
                let begin = range.start + chunk * CHUNK;
                let end = (begin + CHUNK).min(range.end);
                let mut first = None;
                self.scan(begin..end, &mut |record| {
                    if first.is_none() && wanted(&record) {
                        first = Some(record);
                    }
                    first.is_none()
                })?;
                if let Some(record) = first {
                    best.fetch_min(chunk, Ordering::Relaxed);
                    if let Ok(mut found) = found.lock() {
                        found.push((chunk, record));
                    }
                }
            }
        };
        let threads = self.threads.min(chunks).max(1);
        std::thread::scope(|scope| -> Result<()> {
            let workers: Vec<_> = (0..threads)
                .map(|_| scope.spawn(|| caught("the search in WAL", work)))
                .collect();
            for worker in workers {
                worker
                    .join()
                    .unwrap_or_else(|_| Err(Error::failed("a worker panicked")))?;
            }
            Ok(())
        })?;
        let found = found.into_inner().unwrap_or_default();
        Ok(found
            .into_iter()
            .min_by_key(|(chunk, _)| *chunk)
            .map(|(_, record)| record))
    }

    /// Every record of these segments that is wanted, in the order of WAL.
    ///
    /// # Errors
    /// As [`Line::read`].
    pub fn all(
        &self,
        range: Range<usize>,
        wanted: &(dyn Fn(&Record) -> bool + Sync),
    ) -> Result<Vec<Record>> {
        let found = Mutex::new(Vec::new());
        self.first(range, &|record| {
            if wanted(record)
                && let Ok(mut found) = found.lock()
            {
                found.push(record.clone());
            }
            false
        })?;
        let mut found = found.into_inner().unwrap_or_default();
        found.sort_by_key(|record| record.lsn);
        Ok(found)
    }

    /// Hands out what begins in these segments, until `go_on` says no.
    fn scan(&self, range: Range<usize>, go_on: &mut dyn FnMut(Record) -> bool) -> Result<()> {
        let border = self.line.start(range.end);
        let mut scanner = Scanner::new(self.line.start(range.start), self.line.source.size);
        let mut goes_on = true;
        for at in range {
            self.cancel.check()?;
            let content = self.line.read(at)?;
            for part in content.bytes.chunks(STEP_BYTES * 16) {
                scanner.feed(part, &mut |record| goes_on = goes_on && go_on(record));
                if !goes_on {
                    return Ok(());
                }
            }
        }
        // What has begun before the border may end behind it.
        let mut at = self.line.place(border);
        while at < self.line.segments.len() && !scanner.is_ended() {
            let content = self.line.read(at)?;
            for page in content.bytes.chunks(STEP_BYTES) {
                let mut record_before = None;
                scanner.feed(page, &mut |record| {
                    if record.lsn < border {
                        record_before = Some(record);
                    }
                });
                let over = scanner
                    .last()
                    .is_none_or(|(begin, end)| begin >= border || end >= border);
                if let Some(record) = record_before {
                    go_on(record);
                }
                if over || scanner.is_ended() {
                    return Ok(());
                }
            }
            at += 1;
        }
        Ok(())
    }

    /// The newest end of a transaction in one segment, among those that begin before `limit`.
    fn newest(&self, at: usize, limit: Lsn) -> Result<Option<Timestamp>> {
        let mut newest = None;
        self.scan(at..at + 1, &mut |record| {
            if record.lsn < limit {
                newest = newest.max(record.event.ended_at());
            }
            true
        })?;
        Ok(newest)
    }

    /// The newest end of a transaction before `limit`, in the last segment from `first` on that has one.
    ///
    /// # Errors
    /// As [`Line::read`].
    pub fn newest_before(&self, first: usize, limit: Lsn) -> Result<Option<Timestamp>> {
        for at in self.line.until(limit).rev() {
            if at < first {
                break;
            }
            if let Some(time) = self.newest(at, limit)? {
                return Ok(Some(time));
            }
        }
        Ok(None)
    }

    /// An end of a transaction that comes after a moment, in or behind the segment `from`: the first
    /// of a segment, with none in those before it as long as the server's clock went forward. (A
    /// recovery stops at the first one of all; this one proves that there is one.)
    ///
    /// # Errors
    /// As [`Line::read`].
    pub fn ended_after(
        &self,
        from: usize,
        is_after: &(dyn Fn(Timestamp) -> bool + Sync),
    ) -> Result<Found> {
        let all = self.line.segments.len();
        let wanted = |record: &Record| record.event.ended_at().is_some_and(is_after);
        // Whether the newest of the segments from there on that has any comes after it.
        let later = |from: usize, to: usize| -> Result<Option<bool>> {
            for at in from..to {
                if let Some(time) = self.newest(at, Lsn(u64::MAX))? {
                    return Ok(Some(is_after(time)));
                }
            }
            Ok(None)
        };
        let mut last = None;
        for at in (from..all).rev() {
            last = self
                .newest(at, Lsn(u64::MAX))?
                .map(|time| (at, is_after(time)));
            if last.is_some() {
                break;
            }
        }
        match last {
            Some((at, true)) => {
                let (mut low, mut high) = (from, at);
                while low < high {
                    let middle = usize::midpoint(low, high);
                    match later(middle, high)? {
                        Some(false) => low = middle + 1,
                        Some(true) | None => high = middle,
                    }
                }
                self.first(low..all, &wanted)
            }
            // The clock may have gone back just before the end.
            Some((at, false)) => self.first(from.max(at.saturating_sub(LOOK_BACK))..all, &wanted),
            None => Ok(None),
        }
    }
}
