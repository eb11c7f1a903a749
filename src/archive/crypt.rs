//! Encryption with age (age-encryption.org/v1): what is written for recipients, and any range of
//! it read back. No I/O.
//!
//! Files are those of the `age` program in both directions. pgark has its own reader and writer
//! (docs/decisions/0010-own-age.md): it reads ranges, and marks its files. Ciphers come from
//! aws-lc, as those of TLS do.
//!
//! Invariants: each file has a key of its own; with the recipients alone nothing can be read back;
//! no byte comes out whose chunk was changed, moved or cut off. Who has the recipients can write a file
//! that opens: age proves secrecy and integrity, not who wrote it.

mod header;
mod keys;
mod payload;
mod wrap;

use std::ops::Range;
use std::sync::Arc;

use aws_lc_rs::rand;

pub use self::keys::{Identities, IdentityFile, Recipient, Recipients, generate};

use self::header::{FileKey, HEADER_BYTES_MAX, Header, refused};
use self::payload::SALT;
use crate::error::{Error, Result};

/// Bytes that hold most headers: some thirty recipients.
const HEAD_BYTES: u64 = 4 << 10;

/// How what is written is encrypted.
#[derive(Debug, Clone, Default)]
pub enum Crypt {
    /// As it is.
    #[default]
    None,
    /// For age recipients.
    Age(Arc<Recipients>),
}

impl Crypt {
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        matches!(self, Crypt::Age(_))
    }

    /// Begins a file; none where nothing is encrypted.
    ///
    /// # Errors
    /// `Usage` for a recipient that cannot be encrypted for.
    pub fn sealer(&self) -> Result<Option<Sealer>> {
        match self {
            Crypt::None => Ok(None),
            Crypt::Age(recipients) => Sealer::new(recipients).map(Some),
        }
    }
}

/// Encrypts one file from beginning to end.
pub struct Sealer(payload::Sealer);

impl Sealer {
    /// # Errors
    /// `Usage` for a recipient that cannot be encrypted for, `Failed` without random bytes.
    pub fn new(recipients: &Recipients) -> Result<Sealer> {
        let file = FileKey::generate()?;
        let head = header::write(&recipients.wrap(&file)?, &file)?;
        let mut salt = [0; SALT];
        rand::fill(&mut salt).map_err(refused)?;
        payload::Sealer::new(&file, &salt, head).map(Sealer)
    }

    /// Takes more of the content.
    ///
    /// # Errors
    /// `Failed`, which no content causes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.write(bytes)
    }

    /// What is encrypted and was not taken yet; [`Self::clear`] says that it is.
    #[must_use]
    pub fn sealed(&self) -> &[u8] {
        self.0.sealed()
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Ends the file; [`Self::sealed`] has the rest.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn end(&mut self) -> Result<()> {
        self.0.end()
    }
}

/// A file as a whole.
///
/// # Errors
/// As [`Sealer::new`].
pub fn seal(recipients: &Recipients, content: &[u8]) -> Result<Vec<u8>> {
    let mut sealer = Sealer::new(recipients)?;
    sealer.write(content)?;
    sealer.end()?;
    Ok(sealer.sealed().to_vec())
}

/// Opens ranges of one file.
pub struct Opener(payload::Opener);

impl Opener {
    /// Reads the header through `read`, which gives ranges of a file of `file_bytes`.
    ///
    /// # Errors
    /// `Usage` when none of the identities opens it, `Damage` when it is no whole file of age,
    /// and as `read`.
    pub fn new(
        identities: &Identities,
        file_bytes: u64,
        read: &dyn Fn(Range<u64>) -> Result<Vec<u8>>,
    ) -> Result<Opener> {
        Opener::with(file_bytes, read, &|header| identities.unwrap(header)).map(Opener)
    }

    fn with(
        file_bytes: u64,
        read: &dyn Fn(Range<u64>) -> Result<Vec<u8>>,
        unwrap: &dyn Fn(&Header) -> Result<FileKey>,
    ) -> Result<payload::Opener> {
        let mut want = HEAD_BYTES;
        let (head, header) = loop {
            let head = read(0..want.min(file_bytes))?;
            if let Some(header) = Header::parse(&head)? {
                break (head, header);
            }
            if want >= file_bytes || want > HEADER_BYTES_MAX as u64 {
                return Err(Error::damage("it was cut off within its header"));
            }
            want *= 4;
        };
        let file = unwrap(&header)?;
        let start = (header.bytes + SALT) as u64;
        let salt = match head.get(header.bytes..header.bytes + SALT) {
            Some(salt) => salt.to_vec(),
            None if start <= file_bytes => read(header.bytes as u64..start)?,
            None => return Err(Error::damage("it was cut off behind its header")),
        };
        payload::Opener::new(&file, &salt, start, file_bytes)
    }

    /// The content's length.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.bytes()
    }

    /// Which part of the file is needed for this range of the content.
    #[must_use]
    pub fn covering(&self, range: &Range<u64>) -> Range<u64> {
        self.0.covering(range)
    }

    /// The range of the content, from the bytes of [`Self::covering`].
    ///
    /// # Errors
    /// `Damage` when they are not as they were written.
    pub fn open(&self, range: &Range<u64>, stored: Vec<u8>) -> Result<Vec<u8>> {
        self.0.open(range, stored)
    }
}

/// The content of a file that is at hand as a whole.
///
/// # Errors
/// As [`Opener::new`] and [`Opener::open`].
pub fn open(identities: &Identities, file: &[u8]) -> Result<Vec<u8>> {
    open_with(file, &|header| identities.unwrap(header))
}

fn open_with(file: &[u8], unwrap: &dyn Fn(&Header) -> Result<FileKey>) -> Result<Vec<u8>> {
    let at = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
    let read = |range: Range<u64>| {
        let part = file.get(at(range.start)..at(range.end));
        part.map(<[u8]>::to_vec)
            .ok_or_else(|| Error::damage("it was cut off"))
    };
    let opener = Opener::with(file.len() as u64, &read, unwrap)?;
    let whole = 0..opener.bytes();
    opener.open(&whole, read(opener.covering(&whole))?)
}

#[cfg(test)]
mod tests;
