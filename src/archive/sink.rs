//! The way into a store: encrypts where it is asked to, hashes and counts what is stored.
//!
//! Invariant: hash and count are those of the bytes that the upload got. A crash leaves the
//! upload's temporary name.

use std::io;

use sha2::{Digest, Sha256};

use super::crypt::{Crypt, Sealer};
use crate::error::Result;
use crate::store::Upload;

pub(super) struct Sink {
    upload: Box<dyn Upload>,
    sealer: Option<Sealer>,
    hasher: Sha256,
    bytes: u64,
}

/// What was written to its end; the upload is not finished.
pub(super) struct Stored {
    pub upload: Box<dyn Upload>,
    pub bytes: u64,
    /// Hex.
    pub sha256: String,
}

impl Sink {
    pub(super) fn start(upload: Box<dyn Upload>, crypt: &Crypt) -> Result<Sink> {
        Ok(Sink {
            upload,
            sealer: crypt.sealer()?,
            hasher: Sha256::new(),
            bytes: 0,
        })
    }

    /// Appends.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.sealer {
            None => self.store(bytes),
            Some(sealer) => {
                sealer.write(bytes)?;
                self.store_sealed()
            }
        }
    }

    fn store(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        self.upload.write(bytes)
    }

    fn store_sealed(&mut self) -> Result<()> {
        let Some(mut sealer) = self.sealer.take() else {
            return Ok(());
        };
        if !sealer.sealed().is_empty() {
            self.store(sealer.sealed())?;
            sealer.clear();
        }
        self.sealer = Some(sealer);
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<Stored> {
        if let Some(sealer) = &mut self.sealer {
            sealer.end()?;
            self.store_sealed()?;
        }
        Ok(Stored {
            upload: self.upload,
            bytes: self.bytes,
            sha256: hex::encode(self.hasher.finalize()),
        })
    }
}

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.append(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
