//! Where received WAL goes first: into the open file of a local store, or into memory.
//!
//! On disk, `<segment>.partial` lies in the first store itself, at its full length with zeros behind
//! what has come; a synced byte is durable. In memory (an object store first, or encrypted backups),
//! a byte is durable only when a piece or its segment is stored.
//!
//! Invariants: nothing that differs is ever written over what is there; a filled file counts only
//! when the next one is there, so that a crash cannot make it doubtful; memory ends at the backlog
//! that was allowed.
//!
//! A crash leaves open files; `position::settle` knows what becomes of them.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::tail::{Body, Full, Open, OpenBody, Tail};
use crate::catalog::layout::{WalFile, wal_folder};
use crate::error::{Error, Result};
use crate::store::local::{create_dir, explain, sync_dir};
use crate::units::{Lsn, SegmentName, SegmentSize, SystemId, Timeline};

/// Where the bytes lie that are received.
pub(super) enum Spool {
    Disk(Disk),
    Memory { bytes_max: u64 },
}

/// A local store's folder of WAL.
pub(super) struct Disk {
    folder: PathBuf,
    open: Option<OpenFile>,
}

struct OpenFile {
    file: File,
    path: PathBuf,
    name: SegmentName,
    start: Lsn,
    /// What lay there before: what comes again must be equal.
    old_end: u64,
    /// How far it is written, and synced.
    written: u64,
    synced: u64,
}

/// Whether bytes were taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    Yes,
    /// The backlog is as long as it may be.
    NoRoom,
}

impl Spool {
    /// In the folder of that store.
    pub(super) fn disk(store: &Path, system: SystemId) -> Spool {
        Spool::Disk(Disk {
            folder: store.join(wal_folder(system)),
            open: None,
        })
    }

    /// Makes ready for what comes at `at`, the beginning of a segment.
    ///
    /// # Errors
    /// With `is_no_space()` when there is no room for a segment.
    pub(super) fn begin(
        &mut self,
        tail: &Tail,
        timeline: Timeline,
        at: Lsn,
        size: SegmentSize,
    ) -> Result<()> {
        let name = SegmentName::holding(timeline, at, size);
        let same = tail
            .lock()
            .open
            .as_ref()
            .is_some_and(|open| open.name == name);
        if !same {
            self.close(tail)?;
        }
        let (body, have) = match self {
            Spool::Disk(disk) => {
                // Opened anew even if it is the same: what was not synced is not sure.
                let file = OpenFile::open(&disk.folder, name, at, size)?;
                let body = OpenBody::File(file.path.clone());
                disk.open = Some(file);
                (body, 0)
            }
            Spool::Memory { .. } => (OpenBody::Memory(Vec::new()), 0),
        };
        let mut state = tail.lock();
        // What an earlier connection brought, and no store has yet, is durable no sooner for a new one.
        let stored = state.unstored().map_or(at, |start| start.min(at));
        if state.timeline.replace(timeline) != Some(timeline) {
            // A branch may have been received further than where the next one begins.
            state.durable = stored;
        }
        if !same {
            state.open = Some(Open {
                name,
                start: at,
                have,
                body,
            });
        }
        state.durable = state.durable.max(stored);
        Ok(())
    }

    /// Takes bytes that follow those before.
    ///
    /// # Errors
    /// `Damage` when what is there already differs; with `is_no_space()` when the disk is full.
    pub(super) fn append(
        &mut self,
        tail: &Tail,
        lsn: Lsn,
        bytes: &[u8],
        size: SegmentSize,
    ) -> Result<Taken> {
        let (mut lsn, mut bytes) = (lsn, bytes);
        while !bytes.is_empty() {
            let room = size.bytes() - lsn.segment_offset(size);
            let count = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
            let (now, rest) = bytes.split_at(count);
            match self {
                Spool::Disk(disk) => disk.append(tail, lsn, now, size)?,
                Spool::Memory { bytes_max } => {
                    if remember(tail, lsn, now, *bytes_max, size)? == Taken::NoRoom {
                        return Ok(Taken::NoRoom);
                    }
                }
            }
            bytes = rest;
            lsn = lsn.plus(count as u64);
        }
        Ok(Taken::Yes)
    }

    /// Makes durable what can be now; everything before the position that it gives is.
    ///
    /// # Errors
    /// As the disk: nothing more than before is durable then.
    pub(super) fn sync(&mut self, tail: &Tail) -> Result<Lsn> {
        if let Spool::Disk(disk) = self
            && let Some(open) = &mut disk.open
        {
            open.sync()?;
            open.publish(tail);
        }
        Ok(tail.lock().durable)
    }

    /// The open segment gets nothing more: it becomes a piece.
    ///
    /// # Errors
    /// As the disk.
    pub(super) fn close(&mut self, tail: &Tail) -> Result<()> {
        self.sync(tail)?;
        let mut left = None;
        if let Spool::Disk(disk) = self {
            left = disk.open.take().map(OpenFile::cut).transpose()?;
        }
        let mut state = tail.lock();
        let Some(mut open) = state.open.take() else {
            return Ok(());
        };
        // An earlier stream may have brought more than this one.
        open.have = open.have.max(left.unwrap_or(0));
        let body = match open.body {
            OpenBody::File(path) => Body::File(path),
            OpenBody::Memory(bytes) => Body::Memory(Arc::new(bytes)),
        };
        state.full.push_back(Arc::new(Full {
            name: open.name,
            start: open.start,
            bytes: open.have,
            whole: false,
            body,
        }));
        drop(state);
        tail.ring();
        Ok(())
    }
}

impl Disk {
    fn append(&mut self, tail: &Tail, lsn: Lsn, bytes: &[u8], size: SegmentSize) -> Result<()> {
        let Some(open) = &mut self.open else {
            return Err(Error::failed("WAL came before its segment was begun"));
        };
        open.write(lsn, bytes)?;
        if open.written < size.bytes() {
            return Ok(());
        }
        open.sync()?;
        let full = Full {
            name: open.name,
            start: open.start,
            bytes: size.bytes(),
            whole: true,
            body: Body::File(open.path.clone()),
        };
        // Before its end is confirmed: a crash must find it followed, not doubtful.
        let start = open.start.plus(size.bytes());
        let next = OpenFile::open(&self.folder, open.name.next(size), start, size)?;
        let mut state = tail.lock();
        state.open = Some(Open {
            name: next.name,
            start,
            have: 0,
            body: OpenBody::File(next.path.clone()),
        });
        state.full.push_back(Arc::new(full));
        state.durable = state.durable.max(start);
        drop(state);
        self.open = Some(next);
        tail.ring();
        Ok(())
    }
}

impl OpenFile {
    fn open(folder: &Path, name: SegmentName, start: Lsn, size: SegmentSize) -> Result<OpenFile> {
        create_dir(folder).map_err(|error| explain(error, folder, "create the directory"))?;
        let path = folder.join(WalFile::Open(name).file_name());
        let context = |error| explain(error, &path, "receive WAL");
        let made = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        let (file, fresh) = match made {
            Ok(file) => (file, true),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let mut options = OpenOptions::new();
                (
                    options
                        .read(true)
                        .write(true)
                        .open(&path)
                        .map_err(context)?,
                    false,
                )
            }
            Err(error) => return Err(context(error)),
        };
        if let Err(error) = reserve(&file, size) {
            if fresh {
                let _ = fs::remove_file(&path);
            }
            return Err(context(error));
        }
        let old_end = if fresh { 0 } else { end_of_data(&file)? };
        if fresh {
            file.sync_all().map_err(context)?;
            sync_dir(folder).map_err(context)?;
        }
        Ok(OpenFile {
            file,
            path,
            name,
            start,
            old_end,
            written: 0,
            synced: 0,
        })
    }

    fn write(&mut self, lsn: Lsn, bytes: &[u8]) -> Result<()> {
        let offset = lsn.bytes_since(self.start);
        if lsn < self.start || offset != self.written {
            return Err(Error::failed(format!(
                "WAL came for {lsn} where {} was next",
                self.start.plus(self.written)
            )));
        }
        if offset < self.old_end {
            self.compare(offset, bytes)?;
        }
        let context = |error| explain(error, &self.path, "receive WAL");
        self.file.write_all_at(bytes, offset).map_err(context)?;
        self.written = offset + bytes.len() as u64;
        Ok(())
    }

    /// A byte that was there and is another one now is WAL of another server under our name. Zeros
    /// may be what a crash of this machine left.
    fn compare(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut old = vec![0; bytes.len()];
        self.file.read_exact_at(&mut old, offset)?;
        let mut pairs = old.iter().zip(bytes);
        match pairs.position(|(old, new)| old != new && *old != 0) {
            None => Ok(()),
            Some(at) => Err(differs(self.name, self.start.plus(offset + at as u64))),
        }
    }

    fn sync(&mut self) -> Result<()> {
        if self.synced < self.written {
            let context = |error| explain(error, &self.path, "make WAL durable");
            self.file.sync_data().map_err(context)?;
            self.synced = self.written;
        }
        Ok(())
    }

    /// Ends it behind its last byte, which is where that lies then: no successor makes a file that is
    /// shorter than its segment a whole one.
    fn cut(self) -> Result<u64> {
        let end = self.written.max(self.old_end);
        let context = |error| explain(error, &self.path, "make WAL durable");
        self.file.set_len(end).map_err(context)?;
        self.file.sync_all().map_err(context)?;
        Ok(end)
    }

    fn publish(&self, tail: &Tail) {
        let mut state = tail.lock();
        let synced = self.synced;
        if let Some(open) = state.open.as_mut().filter(|open| open.name == self.name) {
            open.have = open.have.max(synced);
        }
        state.durable = state.durable.max(self.start.plus(synced));
    }
}

/// WAL that is another than what is stored under the same name.
pub(super) fn differs(name: SegmentName, at: Lsn) -> Error {
    Error::damage(format!(
        "the server sends other WAL at {at} than what is stored of {name}"
    ))
    .hint("nothing was overwritten. The server lost WAL (fsync off, a disk that lied), or a copy of it runs under the same identity: look which one is the true one, then move the folder of its WAL away")
}

/// The file at its full length: zeros, and room for them all where the file system can promise it.
fn reserve(file: &File, size: SegmentSize) -> std::io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, size.bytes()) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => file.set_len(size.bytes()),
        other => other.map_err(Into::into),
    }
}

/// Behind the last byte that is not zero.
pub(super) fn end_of_data(file: &File) -> Result<u64> {
    let mut end = file.metadata()?.len();
    let mut buffer = vec![0; 64 << 10];
    while end > 0 {
        let count = end.min(buffer.len() as u64);
        let part = &mut buffer[..usize::try_from(count).unwrap_or(0)];
        file.read_exact_at(part, end - count)?;
        if let Some(last) = part.iter().rposition(|byte| *byte != 0) {
            return Ok(end - count + last as u64 + 1);
        }
        end -= count;
    }
    Ok(0)
}

/// Keeps bytes in memory.
fn remember(
    tail: &Tail,
    lsn: Lsn,
    bytes: &[u8],
    bytes_max: u64,
    size: SegmentSize,
) -> Result<Taken> {
    let mut state = tail.lock();
    // One segment at least can always wait beside the open one.
    let most = bytes_max.max(2 * size.bytes());
    let full = state.backlog_bytes() + bytes.len() as u64 > most;
    let Some(open) = &mut state.open else {
        return Err(Error::failed("WAL came before its segment was begun"));
    };
    let OpenBody::Memory(held) = &mut open.body else {
        return Err(Error::failed(
            "WAL came for memory and its segment is a file",
        ));
    };
    let offset = usize::try_from(lsn.bytes_since(open.start)).unwrap_or(usize::MAX);
    if lsn < open.start || offset > held.len() {
        return Err(Error::failed(format!("WAL came for {lsn} too early")));
    }
    let known = (held.len() - offset).min(bytes.len());
    let (again, new) = bytes.split_at(known);
    if held[offset..offset + known] != *again {
        return Err(differs(open.name, lsn));
    }
    if new.is_empty() {
        return Ok(Taken::Yes);
    }
    if full {
        return Ok(Taken::NoRoom);
    }
    held.extend_from_slice(new);
    open.have = held.len() as u64;
    if open.have < size.bytes() {
        return Ok(Taken::Yes);
    }
    let full = Full {
        name: open.name,
        start: open.start,
        bytes: open.have,
        whole: true,
        body: Body::Memory(Arc::new(std::mem::take(held))),
    };
    open.name = open.name.next(size);
    open.start = open.start.plus(size.bytes());
    open.have = 0;
    state.full.push_back(Arc::new(full));
    drop(state);
    tail.ring();
    Ok(Taken::Yes)
}
