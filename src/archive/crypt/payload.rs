//! The payload of an age file: STREAM, chunks of 64 KiB under ChaCha20-Poly1305. Pure.
//!
//! A chunk's nonce is its number (11 bytes, big endian) and a byte that is 1 for the last chunk:
//! none can be changed, moved, left out or cut off without notice. Each opens by itself, so that
//! a range needs only the chunks that cover it, and several threads open several at once. Only an empty
//! payload has an empty last chunk.
//!
//! Invariant: no byte comes out of a chunk whose tag does not hold.

use std::ops::Range;

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use super::header::{FileKey, refused};
use crate::error::{Error, Result};

/// Bytes of a full chunk before encryption.
pub(super) const CHUNK: usize = 64 << 10;
/// What a chunk grows by.
pub(super) const TAG: usize = 16;
/// Between header and chunks: the salt of the payload's key.
pub(super) const SALT: usize = 16;

const CHUNK_BYTES: u64 = CHUNK as u64;
const TAG_BYTES: u64 = TAG as u64;
const SEALED_BYTES: u64 = CHUNK_BYTES + TAG_BYTES;

/// The payload's key.
struct Cipher(LessSafeKey);

impl Cipher {
    fn new(file: &FileKey, salt: &[u8]) -> Result<Cipher> {
        let key = file.derive(salt, b"payload")?;
        let key = UnboundKey::new(&CHACHA20_POLY1305, &key).map_err(refused)?;
        Ok(Cipher(LessSafeKey::new(key)))
    }

    fn nonce(chunk: u64, last: bool) -> Nonce {
        let mut nonce = [0; NONCE_LEN];
        nonce[3..11].copy_from_slice(&chunk.to_be_bytes());
        nonce[11] = u8::from(last);
        Nonce::assume_unique_for_key(nonce)
    }

    /// Encrypts in place and appends the tag to what lies from `start` on.
    fn seal(&self, chunk: u64, last: bool, out: &mut Vec<u8>, start: usize) -> Result<()> {
        let nonce = Self::nonce(chunk, last);
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce, Aad::empty(), &mut out[start..])
            .map_err(refused)?;
        out.extend_from_slice(tag.as_ref());
        Ok(())
    }
}

/// Encrypts a payload from its beginning to its end.
pub(super) struct Sealer {
    cipher: Cipher,
    /// Of the chunk in the making.
    chunk: u64,
    /// Sealed chunks, then the bytes of the one in the making.
    out: Vec<u8>,
    /// Where the latter begin.
    open: usize,
}

impl Sealer {
    /// `head` comes out first, as it is.
    pub(super) fn new(file: &FileKey, salt: &[u8; SALT], mut head: Vec<u8>) -> Result<Sealer> {
        head.extend_from_slice(salt);
        Ok(Sealer {
            cipher: Cipher::new(file, salt)?,
            chunk: 0,
            open: head.len(),
            out: head,
        })
    }

    /// Takes more of the payload.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            // A full chunk waits for what follows: it may be the last.
            if self.out.len() - self.open == CHUNK {
                self.seal(false)?;
            }
            let room = CHUNK - (self.out.len() - self.open);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.out.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    fn seal(&mut self, last: bool) -> Result<()> {
        self.cipher
            .seal(self.chunk, last, &mut self.out, self.open)?;
        self.chunk += 1;
        self.open = self.out.len();
        Ok(())
    }

    /// What is encrypted so far.
    pub(super) fn sealed(&self) -> &[u8] {
        &self.out[..self.open]
    }

    /// Forgets what `sealed` gave.
    pub(super) fn clear(&mut self) {
        self.out.drain(..self.open);
        self.open = 0;
    }

    /// Ends the payload; `sealed` has the rest.
    pub(super) fn end(&mut self) -> Result<()> {
        self.seal(true)
    }
}

/// Opens any range of a payload.
pub(super) struct Opener {
    cipher: Cipher,
    /// Where the chunks begin in the file.
    start: u64,
    /// Their bytes, tags included.
    stored: u64,
    chunks: u64,
}

impl Opener {
    /// For a file of `file_bytes` whose chunks begin at `start`.
    ///
    /// # Errors
    /// `Damage` when no payload has this length.
    pub(super) fn new(file: &FileKey, salt: &[u8], start: u64, file_bytes: u64) -> Result<Opener> {
        let stored = file_bytes.saturating_sub(start);
        let chunks = stored.div_ceil(SEALED_BYTES);
        let last = stored.saturating_sub(chunks.saturating_sub(1) * SEALED_BYTES);
        // Empty is only the last chunk of an empty payload.
        if last < TAG_BYTES || (last == TAG_BYTES && chunks > 1) {
            return Err(Error::damage("it was cut off: its last chunk is not whole"));
        }
        Ok(Opener {
            cipher: Cipher::new(file, salt)?,
            start,
            stored,
            chunks,
        })
    }

    /// The payload's length, decrypted.
    pub(super) fn bytes(&self) -> u64 {
        self.stored - self.chunks * TAG_BYTES
    }

    /// Which of its chunks cover this range of the payload; one at least, so that an empty
    /// payload is proven too.
    fn covered(&self, range: &Range<u64>) -> Range<u64> {
        let first = (range.start / CHUNK_BYTES).min(self.chunks - 1);
        first..range.end.div_ceil(CHUNK_BYTES).max(first + 1)
    }

    /// Where in the file the chunks lie that cover this range of the payload.
    pub(super) fn covering(&self, range: &Range<u64>) -> Range<u64> {
        let chunks = self.covered(range);
        let at = |chunk: u64| self.start + (chunk * SEALED_BYTES).min(self.stored);
        at(chunks.start)..at(chunks.end)
    }

    /// Opens `stored`, the bytes of [`Self::covering`], and gives the range itself.
    ///
    /// # Errors
    /// `Damage` with the number of the chunk that does not open.
    pub(super) fn open(&self, range: &Range<u64>, mut stored: Vec<u8>) -> Result<Vec<u8>> {
        let short = || Error::damage("it ends before the bytes that were asked for");
        if range.end > self.bytes() {
            return Err(short());
        }
        let chunks = self.covered(range);
        let mut end = 0;
        for (number, at) in chunks.clone().zip((0..).step_by(CHUNK + TAG)) {
            let rest = stored.get_mut(at..).unwrap_or_default();
            let length = rest.len().min(CHUNK + TAG);
            let nonce = Cipher::nonce(number, number + 1 == self.chunks);
            let raw = self
                .cipher
                .0
                .open_in_place(nonce, Aad::empty(), &mut rest[..length])
                .map_err(|_| Error::damage(format!("its chunk {number} is not as it was written")))?
                .len();
            // Close up over the tags.
            stored.copy_within(at..at + raw, end);
            end += raw;
        }
        stored.truncate(end);
        let skip = usize::try_from(range.start - chunks.start * CHUNK_BYTES).unwrap_or(usize::MAX);
        let want = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        if skip.saturating_add(want) > stored.len() {
            return Err(short());
        }
        stored.drain(..skip);
        stored.truncate(want);
        Ok(stored)
    }
}
