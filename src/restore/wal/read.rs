//! One segment out of a store: whole, joined from its pieces, or as far as it has come.
//!
//! Invariants: it is of the segment's full length, with zeros behind what is there; its first page
//! says that it is of this cluster and place, and of a whole one every page does. Reads only.

use crate::archive::wal::{PageCheck, Scanner};
use crate::archive::{Identities, segment};
use crate::catalog::layout::WalFile;
use crate::catalog::wal::{Held, Stored};
use crate::error::{Error, Result};
use crate::store::Store;
use crate::units::{SegmentName, SegmentSize, SystemId};

/// What a first page needs to be known by: `SizeOfXLogLongPHD`.
const HEADER_BYTES: usize = 40;

/// A store with the archived WAL of one cluster, and what opens it.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    pub store: &'a dyn Store,
    pub system: SystemId,
    pub size: SegmentSize,
    pub identities: Option<&'a Identities>,
}

/// A segment in memory.
pub struct Content {
    /// Of the segment's length.
    pub bytes: Vec<u8>,
    /// What is known to be there of it; zeros follow, or what is behind a hole.
    pub filled: u64,
    /// Nothing of it is missing.
    pub whole: bool,
    /// Pieces lie behind a place that none covers.
    pub hole: bool,
}

impl Source<'_> {
    /// Reads what there is of a segment.
    ///
    /// # Errors
    /// `Damage` for bytes that do not decode or are no WAL of this place; `Usage` when no identity
    /// opens them; as the store.
    pub fn read(&self, name: SegmentName, held: &Held) -> Result<Content> {
        if let Some(whole) = &held.whole {
            return self.whole(name, whole);
        }
        let pieces = self.joined(&held.pieces)?;
        let open = match &held.open {
            Some(open) => Some(self.open(open)?),
            None => None,
        };
        // Both lie there only while it changes which of them is written.
        let best = match (pieces, open) {
            (Some(pieces), Some(open)) if pieces.filled >= open.filled => pieces,
            (_, Some(open)) => open,
            (Some(pieces), None) => pieces,
            (None, None) => {
                return Err(Error::damage(format!(
                    "there is nothing of {name} in {}",
                    self.store.describe()
                )));
            }
        };
        if best.filled >= HEADER_BYTES as u64 {
            self.check(name, &best.bytes[..HEADER_BYTES])?;
        }
        Ok(best)
    }

    fn whole(&self, name: SegmentName, stored: &Stored) -> Result<Content> {
        let bytes = self.decode(stored, self.size.bytes())?;
        if bytes.len() as u64 != self.size.bytes() {
            return Err(Error::damage(format!(
                "{} in {} holds {} bytes of WAL, a segment of this cluster {}",
                stored.object.key,
                self.store.describe(),
                bytes.len(),
                self.size.bytes()
            ))
            .hint("another store may hold it whole: --store NAME"));
        }
        self.check(name, &bytes)?;
        Ok(Content {
            filled: self.size.bytes(),
            bytes,
            whole: true,
            hole: false,
        })
    }

    fn decode(&self, stored: &Stored, bytes_max: u64) -> Result<Vec<u8>> {
        let encrypted = match stored.file {
            WalFile::Segment { encrypted, .. } | WalFile::Piece { encrypted, .. } => encrypted,
            WalFile::Open(_) | WalFile::History(_) => false,
        };
        let opened_by = (encrypted, self.identities);
        segment::read_object(self.store, &stored.object, opened_by, bytes_max)
    }

    /// Lays each piece at its place, as far as they leave no hole.
    fn joined(&self, pieces: &[Stored]) -> Result<Option<Content>> {
        if pieces.is_empty() {
            return Ok(None);
        }
        let size = self.size.bytes();
        let mut content = Content {
            bytes: self.zeros()?,
            filled: 0,
            whole: false,
            hole: false,
        };
        for piece in pieces {
            let WalFile::Piece { offset, .. } = piece.file else {
                continue;
            };
            if offset > content.filled {
                content.hole = true;
                break;
            }
            let bytes = self.decode(piece, size.saturating_sub(offset))?;
            let end = offset + bytes.len() as u64;
            // Offset and end are at most a segment's size, at most 1 GiB.
            let at = usize::try_from(offset).unwrap_or(usize::MAX);
            if let Some(place) = content.bytes.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(&bytes);
            }
            content.filled = content.filled.max(end);
        }
        content.whole = content.filled == size;
        Ok(Some(content))
    }

    /// The open segment of a local store: whether it is complete, its records tell.
    fn open(&self, stored: &Stored) -> Result<Content> {
        let size = self.size.bytes();
        if stored.object.bytes > size {
            return Err(Error::damage(format!(
                "{} in {} holds more than a segment",
                stored.object.key,
                self.store.describe()
            )));
        }
        let mut bytes = self
            .store
            .read(&stored.object.key, 0..stored.object.bytes)?;
        let filled = bytes.iter().rposition(|byte| *byte != 0);
        let filled = filled.map_or(0, |last| last as u64 + 1);
        let full = bytes.len() as u64 == size;
        bytes.resize(usize::try_from(size).unwrap_or(bytes.len()), 0);
        let start = stored
            .file
            .segment()
            .map_or(Ok(crate::units::Lsn::INVALID), |name| name.start(self.size))?;
        let mut scanner = Scanner::new(start, self.size);
        scanner.feed(&bytes, &mut |_| ());
        Ok(Content {
            whole: full && !scanner.is_ended(),
            bytes,
            filled,
            hole: false,
        })
    }

    fn zeros(&self) -> Result<Vec<u8>> {
        let length = usize::try_from(self.size.bytes());
        let length = length.map_err(|error| Error::failed(error.to_string()))?;
        Ok(vec![0; length])
    }

    /// Proves that bytes from a segment's beginning on are of that segment.
    fn check(&self, name: SegmentName, bytes: &[u8]) -> Result<()> {
        let mut check = PageCheck::new(self.system, self.size, name.timeline());
        check.feed(name.start(self.size)?, bytes).map_err(|error| {
            Error::damage(format!(
                "{name} in {} is not that segment: {}",
                self.store.describe(),
                error.fact
            ))
            .hint("another store may hold it whole: --store NAME")
        })
    }
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
