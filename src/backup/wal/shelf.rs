//! One cluster's WAL in one store: whole segments, pieces and history files put there.
//!
//! Invariants: nothing is overwritten; what is there already is equal, or the error says that it
//! differs; pieces go only after what they are part of is stored; a history lies there before any
//! segment of its timeline, which the caller sees to.
//!
//! A crash leaves temporary names and pieces beside their segment.

use std::collections::BTreeMap;
use std::io::Read;

use super::position::{FIRST_PIECE_MIN, next_piece};
use super::spool::differs;
use crate::archive::segment;
use crate::archive::{Codec, Crypt};
use crate::catalog::layout::{WalFile, wal_key};
use crate::catalog::wal::WalArchive;
use crate::error::{Error, Result};
use crate::store::{self, Key, Put, Store, StoreReader};
use crate::units::{Lsn, SegmentName, SegmentSize, SystemId};

/// A store, and how WAL is written there.
pub(super) struct Shelf<'a> {
    pub store: &'a dyn Store,
    pub system: SystemId,
    pub size: SegmentSize,
    pub codec: Codec,
    pub crypt: &'a Crypt,
}

impl Shelf<'_> {
    pub(super) fn key(&self, file: &WalFile) -> Result<Key> {
        wal_key(self.system, file)
    }

    pub(super) fn segment_file(&self, name: SegmentName) -> WalFile {
        WalFile::Segment {
            name,
            encrypted: self.crypt.is_encrypted(),
        }
    }

    pub(super) fn piece_file(&self, segment: SegmentName, offset: u64) -> WalFile {
        WalFile::Piece {
            segment,
            offset,
            encrypted: self.crypt.is_encrypted(),
        }
    }

    /// Stores a whole segment; one that is there already must be equal.
    ///
    /// # Errors
    /// `Damage` when it differs; as the store.
    pub(super) fn put_segment(
        &self,
        name: SegmentName,
        open: &dyn Fn() -> Result<Box<dyn Read>>,
    ) -> Result<()> {
        match self.put(
            &self.segment_file(name),
            open()?.as_mut(),
            self.size.bytes(),
        ) {
            Err(error) if error.is_exists() => self.compare(name, open()?.as_mut()),
            other => other,
        }
    }

    fn put(&self, file: &WalFile, raw: &mut dyn Read, bytes: u64) -> Result<()> {
        let key = self.key(file)?;
        let upload = self.store.create_sized(&key, Put::New, bytes)?;
        segment::write(upload, raw, self.codec, self.crypt).map(drop)
    }

    fn compare(&self, name: SegmentName, raw: &mut dyn Read) -> Result<()> {
        if self.crypt.is_encrypted() {
            // With the recipients alone nobody can tell; what is there stays.
            return Ok(());
        }
        let key = self.key(&self.segment_file(name))?;
        let stored = segment::read(self.store, &key, (false, None), self.size.bytes())?;
        let mut ours = Vec::new();
        raw.read_to_end(&mut ours)?;
        if stored == ours {
            return Ok(());
        }
        let at = stored.iter().zip(&ours).take_while(|(a, b)| a == b).count();
        Err(differs(name, name.start(self.size)?.plus(at as u64)))
    }

    /// Stores a history file.
    ///
    /// # Errors
    /// `Damage` when another one is there; as the store.
    pub(super) fn put_history(&self, file: &WalFile, content: &[u8]) -> Result<()> {
        let key = self.key(file)?;
        if let Some(old) = store::get(self.store, &key)? {
            return if old == content {
                Ok(())
            } else {
                Err(other_content(&key, self.store))
            };
        }
        match store::put(self.store, &key, content, Put::New) {
            Err(error) if error.is_exists() => Ok(()),
            other => other.map(drop),
        }
    }

    /// Copies a file as it is.
    ///
    /// # Errors
    /// `Damage` when another one is there; as the stores.
    pub(super) fn copy_from(&self, first: &dyn Store, file: &WalFile) -> Result<()> {
        let key = self.key(file)?;
        let copy = || -> Result<()> {
            let mut reader = StoreReader::open(first, &key)?;
            let mut upload = self.store.create_sized(&key, Put::New, reader.size())?;
            let mut buffer = vec![0; 256 << 10];
            loop {
                match reader.read(&mut buffer)? {
                    0 => break,
                    count => upload.write(&buffer[..count])?,
                }
            }
            let object = upload.finish()?;
            if object.bytes == reader.size() {
                return Ok(());
            }
            Err(Error::failed(format!(
                "{key} holds {} bytes after {} were written",
                object.bytes,
                reader.size()
            )))
        };
        match copy() {
            // It may be there by a request whose answer was lost.
            Err(error) if error.is_exists() => {
                let same = store::hash(first, &key)? == store::hash(self.store, &key)?;
                if same {
                    Ok(())
                } else {
                    Err(other_content(&key, self.store))
                }
            }
            other => other,
        }
    }

    /// Deletes files; those that are not there are no matter.
    ///
    /// # Errors
    /// As the store.
    pub(super) fn remove(&self, files: impl IntoIterator<Item = WalFile>) -> Result<()> {
        for file in files {
            self.store.delete(&self.key(&file)?)?;
        }
        Ok(())
    }
}

fn other_content(key: &Key, store: &dyn Store) -> Error {
    Error::damage(format!(
        "{key} in {} is another file than the one that belongs there",
        store.describe()
    ))
    .hint("nothing was overwritten; find out which one is the true one, and move the other away")
}

/// The pieces of segments that are not whole yet.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    /// Every file beside a whole segment, as the store's listing had it and as was stored since.
    files: BTreeMap<SegmentName, Vec<WalFile>>,
    /// The segment that was last worked on, and what is known to be covered of it.
    covered: Option<(SegmentName, u64)>,
}

impl Pieces {
    /// Those that a store has.
    pub(super) fn of(archive: &WalArchive) -> Pieces {
        let files = archive.segments().map(|(name, held)| {
            let files = held.pieces.iter().chain(&held.open);
            (name, files.map(|stored| stored.file).collect())
        });
        Pieces {
            files: files
                .filter(|(_, files): &(_, Vec<_>)| !files.is_empty())
                .collect(),
            covered: None,
        }
    }

    fn offsets(&self, name: SegmentName) -> Vec<u64> {
        let files = self.files.get(&name).into_iter().flatten();
        let mut offsets: Vec<u64> = files
            .filter_map(|file| match file {
                WalFile::Piece { offset, .. } => Some(*offset),
                _ => None,
            })
            .collect();
        offsets.sort_unstable();
        offsets
    }

    /// How much of the segment is known to be stored.
    pub(super) fn covered(&self, name: SegmentName) -> Option<u64> {
        let (of, covered) = self.covered?;
        (of == name).then_some(covered)
    }

    /// Stores what a segment has, `have` bytes, beyond its pieces. `last`: nothing more comes. Gives what
    /// was stored.
    ///
    /// # Errors
    /// As the store.
    pub(super) fn extend(
        &mut self,
        place: &Shelf<'_>,
        name: SegmentName,
        (have, last): (u64, bool),
        bytes: &dyn Fn(u64) -> Result<Option<Vec<u8>>>,
    ) -> Result<Option<WalFile>> {
        loop {
            let covered = self.covered(name);
            let offsets = self.offsets(name);
            let next = next_piece(&offsets, covered);
            let small = offsets.is_empty() && have < FIRST_PIECE_MIN && !last;
            if covered.is_some_and(|covered| covered >= have) || next.offset >= have || small {
                return Ok(None);
            }
            let Some(raw) = bytes(next.offset)?.filter(|raw| !raw.is_empty()) else {
                return Ok(None);
            };
            let file = place.piece_file(name, next.offset);
            let stored = place.put(&file, &mut raw.as_slice(), raw.len() as u64);
            let taken = stored.as_ref().is_err_and(Error::is_exists);
            if !taken {
                stored?;
            }
            self.files.entry(name).or_default().push(file);
            if taken {
                // By a request whose answer was lost: it holds less than we would say.
                self.covered = None;
                continue;
            }
            self.covered = Some((name, next.offset + raw.len() as u64));
            let redundant = |file: &WalFile| matches!(file, WalFile::Piece { offset, .. } if next.redundant.contains(offset));
            let files = self.files.entry(name).or_default();
            let old: Vec<WalFile> = files.iter().copied().filter(redundant).collect();
            files.retain(|file| !redundant(file));
            place.remove(old)?;
            return Ok(Some(file));
        }
    }

    /// A file that was copied beside others.
    pub(super) fn add(&mut self, file: WalFile) {
        if let Some(name) = file.segment() {
            self.files.entry(name).or_default().push(file);
        }
    }

    /// The segment is whole: its pieces go.
    ///
    /// # Errors
    /// As the store.
    pub(super) fn clear(&mut self, place: &Shelf<'_>, name: SegmentName) -> Result<()> {
        if let Some(files) = self.files.get(&name) {
            place.remove(files.iter().copied())?;
            self.files.remove(&name);
        }
        Ok(())
    }
}

/// How far such a store reaches by itself: behind its last piece.
pub(super) fn end_of(start: Lsn, covered: Option<u64>) -> Lsn {
    start.plus(covered.unwrap_or(0))
}
