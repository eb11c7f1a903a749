//! Where artefacts lie: the trait that each store implements, and what they share.
//!
//! Invariants every store keeps, proven by [`conformance`](tests) on each of them:
//! - An object appears under its name whole or not at all; only `Upload::finish` makes it appear.
//! - `Put::New` never overwrites, whatever happens meanwhile.
//! - `list` shows no unfinished upload.
//!
//! A crash leaves at most a temporary name, which `unfinished` shows and nothing else does.
//!
//! This is not a file system: there is no append, no rename and no directory, because an object
//! store has none.

pub mod failing;
pub mod flush;
pub mod local;
pub mod lock;
pub mod mark;
pub mod object;
pub mod rights;

use std::fmt;
use std::io::{self, Read};
use std::ops::Range;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// The name of an object: relative, `/`-separated, no empty part, no `.` or `..`, no NUL.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Key(String);

impl Key {
    /// # Errors
    /// `Failed` when the text could leave the store or name nothing.
    pub fn new(text: &str) -> Result<Key> {
        let bad = text.contains('\0')
            || text
                .split('/')
                .any(|part| part.is_empty() || part == "." || part == "..");
        if bad {
            return Err(Error::failed(format!(
                "{text:?} cannot be a name in a store"
            )));
        }
        Ok(Key(text.to_owned()))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last part: the name without its folders.
    #[must_use]
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Key {
    type Error = Error;
    fn try_from(text: String) -> Result<Key> {
        Key::new(&text)
    }
}

impl From<Key> for String {
    fn from(key: Key) -> String {
        key.0
    }
}

/// What a store tells of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    pub key: Key,
    pub bytes: u64,
    pub modified: Timestamp,
    /// What an object store shows of the contents: another one, other contents. None where there is
    /// no such thing (a directory).
    pub etag: Option<String>,
}

/// Whether a name may be taken already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// The name must be free: an error with `is_exists()` otherwise.
    New,
    /// What is there is replaced in one step.
    Replace,
}

/// A place for artefacts. Every call is safe from several threads.
pub trait Store: Send + Sync {
    /// The kind or configured name: `local`.
    fn name(&self) -> &str;

    /// Where it is, for people.
    fn describe(&self) -> String;

    /// How many small reads at once serve best: one where they cost nothing.
    fn reads_at_once(&self) -> usize {
        1
    }

    /// Begins an object; it appears when the upload is finished.
    ///
    /// # Errors
    /// With `is_exists()` when `Put::New` meets a taken name (here or at `finish`), with
    /// `is_no_space()` when the disk is full, else `Failed`.
    fn create(&self, key: &Key, mode: Put) -> Result<Box<dyn Upload>>;

    /// As `create`, for an object of about this size: an object store chooses its parts by it.
    /// A wrong expectation costs memory or requests, never the object.
    ///
    /// # Errors
    /// As `create`.
    fn create_sized(&self, key: &Key, mode: Put, expected_bytes: u64) -> Result<Box<dyn Upload>> {
        let _ = expected_bytes;
        self.create(key, mode)
    }

    /// Reads exactly this range of bytes.
    ///
    /// # Errors
    /// `Damage` when the object is absent or ends before the range does, else `Failed`.
    fn read(&self, key: &Key, range: Range<u64>) -> Result<Vec<u8>>;

    /// Size and age, or none when there is no such object.
    ///
    /// # Errors
    /// `Failed` when the store cannot tell.
    fn stat(&self, key: &Key) -> Result<Option<Object>>;

    /// The finished objects of one level: `""` is the root, `".pgark/state/"` that folder.
    /// Sorted by key; an absent folder is empty.
    ///
    /// # Errors
    /// `Failed` when the store cannot be listed whole.
    fn list(&self, prefix: &str) -> Result<Vec<Object>>;

    /// The names of the folders of one level, sorted, without a slash: `""` is the root, `"wal/"`
    /// that folder. An absent one has none.
    ///
    /// # Errors
    /// As `list`.
    fn folders(&self, prefix: &str) -> Result<Vec<String>>;

    /// What crashed uploads left, recognised by pgark's own pattern of names and nothing less.
    /// An upload in progress shows up too: only the holder of the lock may delete these.
    ///
    /// # Errors
    /// As `list`.
    fn unfinished(&self) -> Result<Vec<Object>>;

    /// Deletes, durably. False: it was not there.
    ///
    /// # Errors
    /// `Failed` when it may still be there.
    fn delete(&self, key: &Key) -> Result<bool>;

    /// Tries every right that backups need, and leaves nothing behind under this name.
    fn try_rights(&self, key: &Key) -> Vec<rights::Tried> {
        rights::write_read_delete(self, key)
    }
}

/// An object in the making. Dropped unfinished, it leaves nothing.
pub trait Upload: Send {
    /// Appends.
    ///
    /// # Errors
    /// With `is_no_space()` when the disk is full, else `Failed`. The upload is then lost.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;

    /// Makes the object appear, durably, and reads its size back from the store.
    ///
    /// # Errors
    /// As [`Store::create`]. After an error the object may or may not be there.
    fn finish(self: Box<Self>) -> Result<Object>;
}

/// An artefact and its index, streamed to the end with every hash known, but not finished: the
/// commit protocol decides when they appear.
pub struct Written {
    pub artefact: Box<dyn Upload>,
    pub index: Box<dyn Upload>,
    /// Bytes of the artefact as stored.
    pub bytes: u64,
    /// Bytes before compression.
    pub raw_bytes: u64,
    /// SHA-256 of the artefact as stored, hex.
    pub sha256: String,
    pub frames: u64,
    pub index_bytes: u64,
    /// SHA-256 of the index as stored, hex.
    pub index_sha256: String,
}

/// A whole small object, or none.
///
/// # Errors
/// As [`Store::stat`] and [`Store::read`].
pub fn get(store: &dyn Store, key: &Key) -> Result<Option<Vec<u8>>> {
    match store.stat(key)? {
        Some(object) => store.read(key, 0..object.bytes).map(Some),
        None => Ok(None),
    }
}

/// Stores a small object.
///
/// # Errors
/// As [`Store::create`].
pub fn put(store: &dyn Store, key: &Key, bytes: &[u8], mode: Put) -> Result<Object> {
    let mut upload = store.create(key, mode)?;
    upload.write(bytes)?;
    upload.finish()
}

/// Reads an object from beginning to end, 1 MiB at a time. Its errors are [`Error`]s inside.
pub struct StoreReader<'a> {
    store: &'a dyn Store,
    key: Key,
    next: u64,
    end: u64,
    buffer: Vec<u8>,
    taken: usize,
}

impl<'a> StoreReader<'a> {
    const STEP: u64 = 1 << 20;

    /// # Errors
    /// `Damage` when there is no such object.
    pub fn open(store: &'a dyn Store, key: &Key) -> Result<StoreReader<'a>> {
        let object = store.stat(key)?.ok_or_else(|| missing(store, key))?;
        Ok(StoreReader {
            store,
            key: key.clone(),
            next: 0,
            end: object.bytes,
            buffer: Vec::new(),
            taken: 0,
        })
    }

    /// The object's size.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.end
    }
}

impl Read for StoreReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.buffer.len() && self.next < self.end {
            let to = self.end.min(self.next + Self::STEP);
            self.buffer = self
                .store
                .read(&self.key, self.next..to)
                .map_err(io::Error::other)?;
            self.next = to;
            self.taken = 0;
        }
        let rest = &self.buffer[self.taken..];
        let count = rest.len().min(out.len());
        out[..count].copy_from_slice(&rest[..count]);
        self.taken += count;
        Ok(count)
    }
}

/// Size and SHA-256 (hex) of an object as it lies in the store.
///
/// # Errors
/// `Damage` when it is absent or ends early, `Failed` when it cannot be read.
pub fn hash(store: &dyn Store, key: &Key) -> Result<(u64, String)> {
    let mut reader = StoreReader::open(store, key)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok((reader.size(), hex::encode(hasher.finalize()))),
            count => hasher.update(&buffer[..count]),
        }
    }
}

/// The error for an object that must be there and is not.
pub(crate) fn missing(store: &dyn Store, key: &Key) -> Error {
    Error::damage(format!("{key} is not in {}", store.describe()))
        .hint("somebody deleted or moved it; `pgark list` shows what is left")
}

#[cfg(test)]
pub(crate) mod tests;
