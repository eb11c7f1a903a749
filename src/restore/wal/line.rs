//! The archived WAL from a place on along one history, as far as it goes without a gap.
//!
//! Invariant: the segments follow each other; each but the last is complete, the last as far as it
//! came. Nothing is read but what is not whole and has something behind it.

use std::ops::Range;

use super::read::{Content, Source};
use crate::catalog::wal::{Held, WalArchive};
use crate::error::{Error, Result};
use crate::units::{Lsn, SegmentName, TimelineHistory};

/// See the module.
pub struct Line<'a> {
    pub source: Source<'a>,
    pub history: &'a TimelineHistory,
    /// The beginning of the first segment.
    pub from: Lsn,
    pub segments: Vec<(SegmentName, &'a Held)>,
    /// The segment that is missing, or not complete, while there is WAL behind it.
    pub hole: Option<SegmentName>,
}

impl<'a> Line<'a> {
    /// Follows `history` through the archive.
    ///
    /// # Errors
    /// As the store, for a segment that has to be looked into.
    pub fn along(
        source: Source<'a>,
        archive: &'a WalArchive,
        history: &'a TimelineHistory,
        from: Lsn,
    ) -> Result<Line<'a>> {
        let size = source.size;
        let mut line = Line {
            source,
            history,
            from: from.segment_start(size),
            segments: Vec::new(),
            hole: None,
        };
        let mut at = line.from;
        while let Some((name, held)) = archive.covering(history, at, size) {
            let next = at.plus(size.bytes());
            let goes_on = held.is_whole() || {
                let behind = line.is_behind(archive, next);
                let complete = behind && source.read(name, held)?.whole;
                line.hole = (behind && !complete).then_some(name);
                complete
            };
            line.segments.push((name, held));
            at = next;
            if !goes_on {
                return Ok(line);
            }
        }
        if line.is_behind(archive, at) {
            let last = Lsn(at.0 + size.bytes() - 1);
            line.hole = Some(SegmentName::holding(history.at(last), at, size));
        }
        Ok(line)
    }

    fn is_behind(&self, archive: &WalArchive, from: Lsn) -> bool {
        archive.segments().any(|(name, _)| {
            let begin = name.start(self.source.size).unwrap_or_default();
            let left = self.history.left(name.timeline());
            let on =
                name.timeline() == self.history.timeline() || left.is_some_and(|left| begin < left);
            begin >= from && on
        })
    }

    /// Where a segment of it begins.
    #[must_use]
    pub fn start(&self, at: usize) -> Lsn {
        self.from.plus(at as u64 * self.source.size.bytes())
    }

    /// Which of its segments holds this byte; the one behind the last for any later one.
    #[must_use]
    pub fn place(&self, lsn: Lsn) -> usize {
        let place = lsn.bytes_since(self.from) / self.source.size.bytes();
        usize::try_from(place)
            .unwrap_or(usize::MAX)
            .min(self.segments.len())
    }

    /// The segments that hold the bytes from the beginning up to `end`, which is not among them.
    #[must_use]
    pub fn until(&self, end: Lsn) -> Range<usize> {
        0..self
            .place(Lsn(end.0.saturating_sub(1)))
            .saturating_add(1)
            .min(self.segments.len())
    }

    /// Reads one.
    ///
    /// # Errors
    /// As [`Source::read`].
    pub fn read(&self, at: usize) -> Result<Content> {
        let (name, held) = self
            .segments
            .get(at)
            .ok_or_else(|| Error::failed("there is no such segment in the line"))?;
        self.source.read(*name, held)
    }

    /// What its segments take in the store.
    #[must_use]
    pub fn stored_bytes(&self, range: Range<usize>) -> u64 {
        let segments = self.segments.get(range).unwrap_or_default().iter();
        segments
            .map(|(_, held)| match &held.whole {
                Some(whole) => whole.object.bytes,
                None => held.files().map(|one| one.object.bytes).sum(),
            })
            .sum()
    }

    /// A file of it that is empty, which no file of WAL is.
    #[must_use]
    pub fn empty_file(&self, range: Range<usize>) -> Option<String> {
        let segments = self.segments.get(range).unwrap_or_default().iter();
        let mut files = segments.flat_map(|(_, held)| held.files());
        let empty = files.find(|one| one.object.bytes == 0);
        empty.map(|one| one.object.key.to_string())
    }
}

#[cfg(test)]
#[path = "line_tests.rs"]
mod tests;
