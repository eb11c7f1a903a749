//! Where a stream begins, and what becomes of the files that a dead one left. Pure.
//!
//! Invariants: a stream begins at the beginning of a segment, at or before the first byte that is not
//! stored for good; what it goes on with lies in the server's own history; a segment counts as whole
//! only where something of the next one proves that it was filled.

use std::collections::BTreeMap;

use crate::catalog::layout::WalFile;
use crate::catalog::wal::WalArchive;
use crate::error::Result;
use crate::units::{Lsn, SegmentName, SegmentSize, Timeline, TimelineHistory};

/// A place in WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub timeline: Timeline,
    pub at: Lsn,
}

/// How far each timeline is known to be stored: the end of its last segment if that is whole, else
/// the beginning of it.
pub(super) type Known = BTreeMap<Timeline, Lsn>;

/// What an archive says of that.
///
/// # Errors
/// `Damage` for a name that no segment of this size has.
pub(super) fn known(archive: &WalArchive, size: SegmentSize) -> Result<Known> {
    let mut known = Known::new();
    for (name, held) in archive.segments() {
        let begin = name.start(size)?;
        let whole = held.is_whole() || is_complete(archive, name, size);
        let at = if whole {
            begin.plus(size.bytes())
        } else {
            begin
        };
        known.insert(name.timeline(), at);
    }
    Ok(known)
}

/// Where to begin on a server with that history whose slot keeps WAL from `restart` on.
pub(super) fn begin(
    known: &Known,
    history: &TimelineHistory,
    restart: Lsn,
    size: SegmentSize,
) -> Place {
    let ancestors = history.ancestors().iter().rev();
    let line = std::iter::once(history.timeline()).chain(ancestors.map(|(one, _)| *one));
    for timeline in line {
        let Some(at) = known.get(&timeline).copied() else {
            continue;
        };
        return match history.left(timeline) {
            // Stored up to where it was left, or beyond, on a branch that the server does not know.
            Some(left) if at >= left => Place {
                timeline: history.at(left),
                at: left.segment_start(size),
            },
            _ => Place { timeline, at },
        };
    }
    Place {
        timeline: history.at(restart),
        at: restart.segment_start(size),
    }
}

/// Whether the open file of a segment was filled: the next one is begun only after that, unless WAL in
/// between is lost, and then the file ends with what came.
fn is_complete(archive: &WalArchive, name: SegmentName, size: SegmentSize) -> bool {
    let open = archive.segment(name).and_then(|held| held.open.as_ref());
    let long = open.is_some_and(|open| open.object.bytes == size.bytes());
    long && archive.segment(name.next(size)).is_some()
}

/// A position before which every timeline is surely stored, its pieces looked at: a primary whose WAL
/// ends before it was set back.
///
/// # Errors
/// `Damage` for a name that no segment of this size has.
pub(super) fn seen(archive: &WalArchive, size: SegmentSize) -> Result<Known> {
    let mut seen = Known::new();
    for (name, held) in archive.segments() {
        let begin = name.start(size)?;
        let last = held.pieces.iter().filter_map(|piece| match piece.file {
            WalFile::Piece { offset, .. } if offset >= FIRST_PIECE_MIN => Some(offset + 1),
            _ => None,
        });
        let at = match &held.whole {
            Some(_) => size.bytes(),
            None => last.max().unwrap_or(0),
        };
        seen.insert(name.timeline(), begin.plus(at));
    }
    Ok(seen)
}

/// What becomes of an open file that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// The whole segment is there beside it.
    Drop,
    /// It is whole, and becomes one.
    Pack,
    /// Nothing comes behind it on its timeline: it becomes a piece.
    Close,
    /// The stream goes on with it.
    Keep,
}

/// The fate of each open file, oldest first.
pub(super) fn settle(archive: &WalArchive, size: SegmentSize) -> Vec<(SegmentName, Fate)> {
    let newest = archive.segments().next_back().map(|(name, _)| name);
    let opens = archive
        .segments()
        .filter(|(_, held)| held.open.is_some())
        .map(|(name, held)| {
            let fate = if held.is_whole() {
                Fate::Drop
            } else if is_complete(archive, name, size) {
                Fate::Pack
            } else if Some(name) == newest {
                Fate::Keep
            } else {
                Fate::Close
            };
            (name, fate)
        });
    opens.collect()
}

/// The first piece of a segment holds at least so much, and the offsets below it are free for
/// pieces that take the place of many.
pub(super) const FIRST_PIECE_MIN: u64 = 64;
/// So many pieces of one segment, and the next one takes the place of most of them.
const PIECES_MAX: usize = 32;

/// The next piece of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NextPiece {
    pub offset: u64,
    /// Pieces that nobody needs once this one is stored.
    pub redundant: Vec<u64>,
}

/// Which one it is, where those `offsets` are taken, rising, and everything before `covered` is known to
/// be in them; none: a stream died, and only the byte behind the last offset is sure. Then none is
/// redundant either: it may reach further than what has come since.
pub(super) fn next_piece(offsets: &[u64], covered: Option<u64>) -> NextPiece {
    let Some(last) = offsets.last().copied() else {
        return NextPiece {
            offset: 0,
            redundant: Vec::new(),
        };
    };
    let free = (1..FIRST_PIECE_MIN).find(|offset| !offsets.contains(offset));
    match free {
        Some(offset) if offsets.len() >= PIECES_MAX && covered.is_some() => NextPiece {
            offset,
            redundant: offsets.iter().copied().filter(|one| *one > 0).collect(),
        },
        _ => NextPiece {
            offset: covered.filter(|at| *at > last).unwrap_or(last + 1),
            redundant: Vec::new(),
        },
    }
}

#[cfg(test)]
#[path = "position_tests.rs"]
mod tests;
