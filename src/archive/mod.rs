//! The pipeline: frames → compress → encrypt → hash → store, and back.
//!
//! An artefact is a sequence of frames that decode independently; standard tools read their
//! sequence as one stream. The index tells where each frame lies and what it means.
//! `codec` and `crypt` do no I/O; `writer` and `reader` run it on threads with bounded memory.
//!
//! A crash leaves what the store's uploads leave: temporary names only.

pub mod codec;
pub mod crc32c;
pub mod crypt;
pub mod index;
pub mod reader;
pub mod script;
pub mod segment;
mod sink;
#[cfg(test)]
mod sizes_tests;
pub mod tar;
pub mod wal;
pub mod writer;

pub use crate::store::{StoreReader, Written, hash};
pub use codec::Codec;
pub use crypt::{Crypt, Identities};
pub use index::{FrameRecord, Index};
pub use reader::Artefact;
pub use writer::{ArtefactWriter, FrameSender};

/// Notices when its thread panics, so that nobody waits for it for ever.
struct Alarm<F: Fn()>(F);

impl<F: Fn()> Drop for Alarm<F> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            (self.0)();
        }
    }
}
