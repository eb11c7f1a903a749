//! The archived WAL of a cluster in a store: what is there, and how far it reaches without a gap.
//!
//! A whole segment is one object. Of the segment that is being written a store holds pieces, or
//! (a local one) the open file; a whole one goes before both. `reached` tells up to which moment of
//! the server's clock nothing is missing: WAL alone cannot tell that nothing happened since.
//!
//! Invariants: what is said of a store is what its listing shows; a reach never passes a hole; a
//! deletion goes from the oldest on, so that an interrupted one leaves no hole.
//!
//! A crash leaves temporary names, which [`clear_remains`] clears under the lock of the stream,
//! and pieces beside their whole segment, which change nothing.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::layout::{WAL_FOLDER, WalFile, in_wal_folder, wal_folder, wal_key, wal_reach_key};
use crate::error::{Error, Result};
use crate::store::{self, Object, Put, Store};
use crate::units::{Lsn, SegmentName, SegmentSize, SystemId, Timeline, TimelineHistory};

/// A file and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub file: WalFile,
    pub object: Object,
}

/// What a store has of one segment; at least one of the three.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    pub whole: Option<Stored>,
    /// By offset.
    pub pieces: Vec<Stored>,
    pub open: Option<Stored>,
}

impl Held {
    /// Whether all of the segment is there.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.whole.is_some()
    }

    /// Every file of it.
    pub fn files(&self) -> impl Iterator<Item = &Stored> {
        self.whole.iter().chain(&self.pieces).chain(&self.open)
    }
}

/// The WAL of one cluster in one store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalArchive {
    pub system: SystemId,
    segments: BTreeMap<SegmentName, Held>,
    histories: BTreeMap<Timeline, Object>,
}

/// How far WAL goes on without a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// The last segment of it; none when not even the first is there.
    pub last: Option<SegmentName>,
    /// Everything before this position is in whole segments.
    pub whole_until: Lsn,
    /// The segment that is missing while later ones of the same history are there.
    pub hole: Option<SegmentName>,
}

/// What the stream left about its store: `.pgark/wal_<system id>.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    pub timeline: Timeline,
    /// WAL before this position is durable in this store.
    pub lsn: Lsn,
    /// By the server's clock: what was committed up to then lies before `lsn`.
    pub time: Timestamp,
}

/// The clusters of which a store holds WAL.
///
/// # Errors
/// As the store.
pub fn systems(store: &dyn Store) -> Result<Vec<SystemId>> {
    let names = store.folders(WAL_FOLDER)?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}

impl WalArchive {
    /// Lists what there is.
    ///
    /// # Errors
    /// As the store; a listing that is not whole is an error, never less.
    pub fn load(store: &dyn Store, system: SystemId) -> Result<WalArchive> {
        Ok(WalArchive::of(system, store.list(&wal_folder(system))?))
    }

    /// What a listing of the folder shows. Names that are none of ours are passed over.
    #[must_use]
    pub fn of(system: SystemId, objects: Vec<Object>) -> WalArchive {
        let mut archive = WalArchive {
            system,
            segments: BTreeMap::new(),
            histories: BTreeMap::new(),
        };
        for object in objects {
            let Some(file) = WalFile::parse(object.key.file_name()) else {
                continue;
            };
            let Some(segment) = file.segment() else {
                if let WalFile::History(timeline) = file {
                    archive.histories.insert(timeline, object);
                }
                continue;
            };
            let held = archive.segments.entry(segment).or_default();
            let stored = Stored { file, object };
            match file {
                // A copy that is not encrypted is as good as one that is.
                WalFile::Segment { .. } => held.whole = Some(stored),
                WalFile::Piece { .. } => held.pieces.push(stored),
                WalFile::Open(_) | WalFile::History(_) => held.open = Some(stored),
            }
        }
        for held in archive.segments.values_mut() {
            held.pieces.sort_by_key(|piece| piece.file);
        }
        archive
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Every segment of which there is something, by timeline and place.
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = (SegmentName, &Held)> {
        self.segments.iter().map(|(name, held)| (*name, held))
    }

    #[must_use]
    pub fn segment(&self, name: SegmentName) -> Option<&Held> {
        self.segments.get(&name)
    }

    /// Timelines with a history file, oldest first. The first one has none.
    pub fn histories(&self) -> impl DoubleEndedIterator<Item = Timeline> {
        self.histories.keys().copied()
    }

    /// Their files.
    pub fn history_files(&self) -> impl Iterator<Item = (Timeline, &Object)> {
        self.histories
            .iter()
            .map(|(timeline, object)| (*timeline, object))
    }

    /// The newest timeline of which there is anything.
    #[must_use]
    pub fn newest_timeline(&self) -> Option<Timeline> {
        let segment = self.segments.keys().next_back().map(|name| name.timeline());
        segment.max(self.histories.keys().next_back().copied())
    }

    /// A timeline's ancestors, read from its file.
    ///
    /// # Errors
    /// `Damage` when the file is missing or none of PostgreSQL's; as the store.
    pub fn history(&self, store: &dyn Store, timeline: Timeline) -> Result<TimelineHistory> {
        if timeline == Timeline::FIRST {
            return Ok(TimelineHistory::first());
        }
        let key = wal_key(self.system, &WalFile::History(timeline))?;
        let content = store::get(store, &key)?.ok_or_else(|| {
            Error::damage(format!("{key} is not in {}", store.describe()))
                .hint("without it nobody knows where that timeline began; copy it from the server's pg_wal")
        })?;
        TimelineHistory::parse(timeline, &content)
    }

    /// The segment that covers this place on that history, on the newest timeline that has it: a
    /// segment in which a timeline was left lies on both.
    #[must_use]
    pub fn covering(
        &self,
        history: &TimelineHistory,
        at: Lsn,
        size: SegmentSize,
    ) -> Option<(SegmentName, &Held)> {
        let begin = at.segment_start(size);
        let end = begin.plus(size.bytes() - 1);
        let mut timeline = history.at(end);
        loop {
            let name = SegmentName::holding(timeline, begin, size);
            if let Some(held) = self.segment(name) {
                return Some((name, held));
            }
            // An older one that was left within this segment.
            let older = history.ancestors().iter().rev();
            let mut older = older.filter(|(one, left)| *one < timeline && *left > begin);
            timeline = older.next()?.0;
        }
    }

    /// How far WAL goes on from `from` along that history.
    #[must_use]
    pub fn reach(&self, history: &TimelineHistory, from: Lsn, size: SegmentSize) -> Reach {
        let mut at = from.segment_start(size);
        let mut last = None;
        while let Some((name, held)) = self.covering(history, at, size) {
            last = Some(name);
            // The old timeline's copy ends where it was left; nothing follows it here.
            let end = at.plus(size.bytes());
            let left = history.left(name.timeline());
            if !held.is_whole() || left.is_some_and(|left| left < end) {
                break;
            }
            at = end;
        }
        let hole = self.is_beyond(history, at.plus(size.bytes()), size);
        Reach {
            last,
            whole_until: at,
            hole: hole.then(|| SegmentName::holding(history.at(at), at, size)),
        }
    }

    /// Whether there is anything of that history from `from` on.
    fn is_beyond(&self, history: &TimelineHistory, from: Lsn, size: SegmentSize) -> bool {
        self.segments.keys().any(|name| {
            let begin = name.start(size).unwrap_or_default();
            begin >= from && history.contains(name.timeline(), begin)
        })
    }

    /// Bytes and number of the segments that lie before `floor` as a whole, on every timeline.
    ///
    /// # Errors
    /// `Damage` for names that are of another segment size.
    pub fn below(&self, floor: Lsn, size: SegmentSize) -> Result<(u64, usize)> {
        let old = self.old(floor, size)?;
        let files = old.iter().flat_map(|held| held.files());
        Ok((files.map(|one| one.object.bytes).sum(), old.len()))
    }

    /// Deletes them, oldest first. Gives bytes and segments.
    ///
    /// # Errors
    /// As the store; what was deleted before stays deleted.
    pub fn expire(&self, store: &dyn Store, floor: Lsn, size: SegmentSize) -> Result<(u64, usize)> {
        let old = self.old(floor, size)?;
        let mut bytes = 0;
        for stored in old.iter().flat_map(|held| held.files()) {
            store.delete(&stored.object.key)?;
            bytes += stored.object.bytes;
        }
        Ok((bytes, old.len()))
    }

    fn old(&self, floor: Lsn, size: SegmentSize) -> Result<Vec<&Held>> {
        let mut old: Vec<(Lsn, &Held)> = Vec::new();
        for (name, held) in &self.segments {
            let begin = name.start(size)?;
            if begin.plus(size.bytes()) <= floor {
                old.push((begin, held));
            }
        }
        old.sort_by_key(|(begin, _)| *begin);
        Ok(old.into_iter().map(|(_, held)| held).collect())
    }
}

/// What the stream last noted; none where none has.
///
/// # Errors
/// `Damage` for a file that is none of pgark's; as the store.
pub fn reached(store: &dyn Store, system: SystemId) -> Result<Option<Reached>> {
    let key = wal_reach_key(system)?;
    let Some(json) = store::get(store, &key)? else {
        return Ok(None);
    };
    let reached = serde_json::from_slice(&json)
        .map_err(|error| Error::damage(format!("{key} is not what was written: {error}")))?;
    Ok(Some(reached))
}

/// Notes how far the stream has come.
///
/// # Errors
/// As the store.
pub fn note_reached(store: &dyn Store, system: SystemId, reached: &Reached) -> Result<()> {
    let json = serde_json::to_vec(reached).map_err(|error| Error::failed(error.to_string()))?;
    store::put(store, &wal_reach_key(system)?, &json, Put::Replace).map(drop)
}

/// Clears the temporary names that a dead stream left. The caller holds the lock of the stream.
///
/// # Errors
/// As the store.
pub fn clear_remains(store: &dyn Store) -> Result<()> {
    for object in store.unfinished()? {
        if in_wal_folder(&object.key) {
            store.delete(&object.key)?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "wal_tests.rs"]
mod tests;
