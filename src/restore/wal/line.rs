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
            let goes_on = line.left_in(name).is_none() && held.is_whole() || {
                let behind = line.is_behind(archive, next);
                let own = name.on(history.at(Lsn(next.0 - 1)));
                let complete = behind && own == name && source.read(name, held)?.whole;
                line.hole = (behind && !complete).then_some(own);
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

    /// Where the history left the segment's timeline, if it did so within the segment: the new
    /// timeline's copy, which goes on from there, is not in the archive.
    fn left_in(&self, name: SegmentName) -> Option<Lsn> {
        let end = name
            .start(self.source.size)
            .ok()?
            .plus(self.source.size.bytes());
        self.history
            .left(name.timeline())
            .filter(|left| *left < end)
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

    /// Whether it holds the bytes up to this position, as far as lengths tell.
    ///
    /// # Errors
    /// As [`Line::read`].
    pub fn reaches(&self, lsn: Lsn) -> Result<bool> {
        let Some(last) = self.segments.len().checked_sub(1) else {
            return Ok(lsn <= self.from);
        };
        // Of an open file its length does not tell how much has come; that it had is noted.
        let (_, held) = self.segments[last];
        let filled = if held.is_whole() || held.open.is_some() {
            self.source.size.bytes()
        } else {
            self.read(last)?.filled
        };
        Ok(lsn <= self.start(last).plus(filled))
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
        let mut content = self.source.read(*name, held)?;
        if let Some(left) = self.left_in(*name) {
            // What follows on the old timeline is no part of this history.
            let offset = left.segment_offset(self.source.size);
            let at = usize::try_from(offset).unwrap_or(usize::MAX);
            if let Some(rest) = content.bytes.get_mut(at..) {
                rest.fill(0);
            }
            content.filled = content.filled.min(offset);
            content.whole = false;
        }
        Ok(content)
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
mod tests {
    use super::super::read::tests::{SYSTEM, name, segment, size, store_file, whole};
    use super::*;
    use crate::catalog::layout::WalFile;
    use crate::store::Store as _;
    use crate::store::local::LocalStore;
    use crate::store::tests::Scratch;
    use crate::units::Timeline;

    fn follow(store: &LocalStore, history: &TimelineHistory) -> (Vec<String>, Option<String>, u64) {
        let archive = WalArchive::load(store, SYSTEM).unwrap();
        let source = Source {
            store,
            system: SYSTEM,
            size: size(),
            identities: None,
        };
        let line = Line::along(source, &archive, history, Lsn(1 << 20)).unwrap();
        let filled = line.read(line.segments.len() - 1).unwrap().filled;
        let names = line.segments.iter().map(|(name, _)| name.to_string());
        (
            names.collect(),
            line.hole.map(|name| name.to_string()),
            filled,
        )
    }

    #[test]
    fn a_segment_in_which_a_timeline_was_left_serves_up_to_there_and_no_further() {
        let scratch = Scratch::new();
        let store = LocalStore::open(scratch.path()).unwrap();
        for number in 1..5 {
            store_file(&store, &whole(number), &segment(number, SYSTEM));
        }
        let second = Timeline::new(2).unwrap();
        let history = TimelineHistory::parse(second, b"1\t0/301000\tx").unwrap();
        let (names, hole, filled) = follow(&store, &history);
        assert_eq!((names.len(), hole, filled), (3, None, 0x1000));
        // With more behind it, the new timeline's own copy is what is missing.
        let on = |number: u64| WalFile::Segment {
            name: name(number).on(second),
            encrypted: false,
        };
        store_file(&store, &on(4), &segment(4, SYSTEM));
        let (names, hole, filled) = follow(&store, &history);
        assert_eq!((names.len(), filled), (3, 0x1000));
        assert_eq!(hole.unwrap(), name(3).on(second).to_string());
        store_file(&store, &on(3), &segment(3, SYSTEM));
        let (names, hole, filled) = follow(&store, &history);
        assert_eq!((names.len(), hole, filled), (4, None, 1 << 20));
        assert!(names[2].starts_with("00000002"), "{names:?}");
        // The old one goes on for itself.
        let (names, hole, _) = follow(&store, &TimelineHistory::first());
        assert_eq!((names.len(), hole), (4, None));
        store
            .delete(&crate::catalog::layout::wal_key(SYSTEM, &whole(2)).unwrap())
            .unwrap();
        let (names, hole, _) = follow(&store, &history);
        assert_eq!((names.len(), hole.unwrap()), (1, name(2).to_string()));
    }
}
