//! Reads frames back by range: one at a time, or all in order on several threads.
//!
//! Invariant: every byte handed out lies in a frame whose digest, checksum and length were
//! compared first; anything else is `Damage` that names artefact and offset. Reads only: a crash
//! leaves nothing.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::Alarm;
use super::codec::{Codec, decode_frame};
use super::index::{FrameRecord, Index, digest};
use crate::error::{Error, Result};
use crate::store::{Key, Store};

/// Bytes (stored and raw) held at once by [`stream`]; a larger frame goes through alone.
const BUDGET: u64 = 40 << 20;

/// Reads, checks and decodes one frame.
///
/// # Errors
/// `Damage` on any difference, `Failed` when the store cannot be read.
pub fn read_frame(
    store: &dyn Store,
    key: &Key,
    codec: Codec,
    frame: &FrameRecord,
) -> Result<Vec<u8>> {
    let damage = |what: &str| {
        Error::damage(format!("{key} is damaged at byte {}: {what}", frame.offset))
            .hint("restore another backup; `pgark verify --all` tells which are whole")
    };
    let end = frame
        .offset
        .checked_add(frame.bytes)
        .ok_or_else(|| damage("its index is absurd"))?;
    let bytes = store.read(key, frame.offset..end)?;
    if digest(&bytes) != frame.digest {
        return Err(damage("the frame is not the one that was written"));
    }
    let raw_bytes = usize::try_from(frame.raw_bytes).map_err(|_| damage("its index is absurd"))?;
    decode_frame(codec, &bytes, raw_bytes).map_err(|error| damage(&error.fact))
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

/// Decodes a whole artefact on `threads` threads and gives its frames to `sink` in order.
///
/// # Errors
/// As [`read_frame`], and `Damage` when the artefact is longer or shorter than its index; the
/// sink's own error ends the stream. What the sink got before was right.
pub fn stream(
    store: &dyn Store,
    key: &Key,
    codec: Codec,
    index: &Index,
    threads: usize,
    sink: &mut dyn FnMut(&[u8], &FrameRecord) -> Result<()>,
) -> Result<()> {
    if index.codec != codec.name() {
        return Err(Error::damage(format!(
            "the index of {key} is one of {}, not of {}",
            index.codec,
            codec.name()
        )));
    }
    let size = store
        .stat(key)?
        .ok_or_else(|| crate::store::missing(store, key))?;
    if size.bytes != index.bytes {
        return Err(Error::damage(format!(
            "{key} holds {} bytes, but its index describes {}",
            size.bytes, index.bytes
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
            scope.spawn(move || read_frames(store, key, codec, window, &results));
        }
        drop(results);
        // Stops the readers however the sink ends, panics included.
        let _stop = Stop(&window);
        in_order(&window, &arrived, sink)
    })
}

struct Stop<'a>(&'a Window<'a>);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

type Decoded = (usize, Result<Vec<u8>>);

fn read_frames(
    store: &dyn Store,
    key: &Key,
    codec: Codec,
    window: &Window,
    results: &Sender<Decoded>,
) {
    let _alarm = Alarm(|| window.stop());
    while let Some(number) = window.take() {
        let raw = read_frame(store, key, codec, &window.frames[number]);
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
