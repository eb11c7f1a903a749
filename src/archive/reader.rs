//! Reads frames back by range: one at a time, or all in order on several threads. Of an encrypted
//! artefact, only the chunks are read that cover the range.
//!
//! Invariant: every byte handed out lies in a frame whose digest, checksum and length were
//! compared first; anything else is `Damage` that names artefact and offset. Reads only: a crash
//! leaves nothing.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::Alarm;
use super::codec::{Codec, decode_frame};
use super::crypt::{Identities, Opener};
use super::index::{FrameRecord, Index, digest};
use crate::error::{Error, Kind, Result};
use crate::store::{Key, Store};

/// Bytes (stored and raw) held at once by [`Artefact::stream`]; a larger frame goes through alone.
const BUDGET: u64 = 40 << 20;

/// An artefact in a store. Its ranges, its frames and its length are those before encryption.
pub struct Artefact<'a> {
    store: &'a dyn Store,
    key: Key,
    codec: Codec,
    stored_bytes: u64,
    opener: Option<Opener>,
}

impl<'a> Artefact<'a> {
    /// Finds it; `identities` open one that is encrypted.
    ///
    /// # Errors
    /// `Damage` when it is not there or no whole file of age, `Usage` when none of the identities
    /// opens it, else as the store.
    pub fn open(
        store: &'a dyn Store,
        key: Key,
        codec: Codec,
        identities: Option<&Identities>,
    ) -> Result<Artefact<'a>> {
        let object = store.stat(&key)?;
        let stored_bytes = object
            .ok_or_else(|| crate::store::missing(store, &key))?
            .bytes;
        let opener = match identities {
            None => None,
            Some(identities) => {
                let read = |range| store.read(&key, range);
                let opener = Opener::new(identities, stored_bytes, &read);
                Some(opener.map_err(|error| whole_ones(error).context(&key))?)
            }
        };
        Ok(Artefact {
            store,
            key,
            codec,
            stored_bytes,
            opener,
        })
    }

    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Its length as it lies in the store.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }

    /// Its length before encryption, where its last frame ends.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match &self.opener {
            Some(opener) => opener.bytes(),
            None => self.stored_bytes,
        }
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let Some(opener) = &self.opener else {
            return self.store.read(&self.key, range);
        };
        let stored = self.store.read(&self.key, opener.covering(&range))?;
        opener
            .open(&range, stored)
            .map_err(|error| whole_ones(error).context(format!("{} is damaged", self.key)))
    }

    /// Reads, checks and decodes one frame.
    ///
    /// # Errors
    /// `Damage` on any difference, `Failed` when the store cannot be read.
    pub fn frame(&self, frame: &FrameRecord) -> Result<Vec<u8>> {
        let damage = |what: &str| {
            whole_ones(Error::damage(format!(
                "{} is damaged at byte {}: {what}",
                self.key, frame.offset
            )))
        };
        let end = frame
            .offset
            .checked_add(frame.bytes)
            .ok_or_else(|| damage("its index is absurd"))?;
        let bytes = self.read(frame.offset..end)?;
        if digest(&bytes) != frame.digest {
            return Err(damage("the frame is not the one that was written"));
        }
        let raw_bytes =
            usize::try_from(frame.raw_bytes).map_err(|_| damage("its index is absurd"))?;
        decode_frame(self.codec, &bytes, raw_bytes).map_err(|error| damage(&error.fact))
    }

    /// Decodes the whole on `threads` threads and gives its frames to `sink` in order.
    ///
    /// # Errors
    /// As [`Self::frame`], and `Damage` when the artefact is longer or shorter than its index; the
    /// sink's own error ends the stream. What the sink got before was right.
    pub fn stream(
        &self,
        index: &Index,
        threads: usize,
        sink: &mut dyn FnMut(&[u8], &FrameRecord) -> Result<()>,
    ) -> Result<()> {
        let key = &self.key;
        if index.codec != self.codec.name() {
            return Err(Error::damage(format!(
                "the index of {key} is one of {}, not of {}",
                index.codec,
                self.codec.name()
            )));
        }
        if self.bytes() != index.bytes {
            return Err(Error::damage(format!(
                "{key} holds {} bytes, but its index describes {}",
                self.bytes(),
                index.bytes
            ))
            .hint("the file was cut or replaced; restore another backup"));
        }
        let window = Window {
            frames: &index.frames,
            state: Mutex::new(State {
                next: 0,
                held: 0,
                stopped: false,
            }),
            room: Condvar::new(),
        };
        let (results, arrived) = unbounded();
        std::thread::scope(|scope| {
            for _ in 0..threads.clamp(1, index.frames.len().max(1)) {
                let (results, window) = (results.clone(), &window);
                scope.spawn(move || read_frames(self, window, &results));
            }
            drop(results);
            // Stops the readers however the sink ends, panics included.
            let _stop = Stop(&window);
            in_order(&window, &arrived, sink)
        })
    }
}

/// The way out of damage.
fn whole_ones(error: Error) -> Error {
    if error.kind == Kind::Damage {
        return error.hint("restore another backup; `pgark verify --all` tells which are whole");
    }
    error
}

struct State {
    next: usize,
    held: u64,
    stopped: bool,
}

struct Window<'a> {
    frames: &'a [FrameRecord],
    state: Mutex<State>,
    room: Condvar,
}

fn cost(frame: &FrameRecord) -> u64 {
    frame.bytes.saturating_add(frame.raw_bytes)
}

impl Window<'_> {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock panics; a poisoned lock is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next frame to read, once there is room for it. Frames are taken in order, so
    /// the one that the sink waits for is always taken first.
    fn take(&self) -> Option<usize> {
        let mut state = self.state();
        loop {
            let frame = self.frames.get(state.next)?;
            if state.stopped {
                return None;
            }
            if state.held == 0 || state.held.saturating_add(cost(frame)) <= BUDGET {
                state.held = state.held.saturating_add(cost(frame));
                state.next += 1;
                return Some(state.next - 1);
            }
            state = self
                .room
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn release(&self, frame: &FrameRecord) {
        self.state().held -= cost(frame);
        self.room.notify_all();
    }

    fn stop(&self) {
        self.state().stopped = true;
        self.room.notify_all();
    }
}

struct Stop<'a>(&'a Window<'a>);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

type Decoded = (usize, Result<Vec<u8>>);

fn read_frames(artefact: &Artefact<'_>, window: &Window, results: &Sender<Decoded>) {
    let _alarm = Alarm(|| window.stop());
    while let Some(number) = window.take() {
        let raw = artefact.frame(&window.frames[number]);
        if results.send((number, raw)).is_err() {
            return;
        }
    }
}

fn in_order(
    window: &Window,
    arrived: &Receiver<Decoded>,
    sink: &mut dyn FnMut(&[u8], &FrameRecord) -> Result<()>,
) -> Result<()> {
    let mut early = BTreeMap::new();
    let mut next = 0;
    for (number, raw) in arrived {
        early.insert(number, raw);
        while let Some(raw) = early.remove(&next) {
            let frame = &window.frames[next];
            sink(&raw?, frame)?;
            window.release(frame);
            next += 1;
        }
    }
    if next == window.frames.len() {
        Ok(())
    } else {
        Err(Error::failed("a thread that reads frames panicked"))
    }
}
