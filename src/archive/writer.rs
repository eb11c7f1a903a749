//! Writes an artefact and its index: senders → N compressors → one writer, which encrypts where it
//! is asked to: faster than any store writes (docs/decisions/0010-own-age.md has the figures).
//!
//! Invariants:
//! - Frames lie in the artefact in the order in which `send` accepted them.
//! - What is held (raw bytes waiting or being compressed, compressed bytes waiting for their
//!   turn) stays within [`BUDGET`]; a single frame above it goes through alone. `send`
//!   blocks until there is room. The peak is the budget, plus what buffers hold beyond their
//!   length (a `Vec` may own twice that), plus the idle ones (at most [`IDLE_BUFFERS`], each of
//!   at most [`IDLE_BUFFER_BYTES`]), plus one output buffer for each compressor.
//! - The first failure of any thread ends all: every later `send`, and `finish`, returns it.
//! - No deadlock: a frame gets its place only once there is room for it, so the frame that
//!   the writer waits for is always already with a compressor.
//!
//! Dropped without `finish`, the threads are joined and both uploads dropped, which leaves
//! nothing. A crash leaves the uploads' temporary names.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, unbounded};
use serde_json::value::RawValue;

use super::Alarm;
use super::codec::{Codec, Compressor};
use super::crypt::Crypt;
use super::index::{self, IndexWriter};
use super::sink::Sink;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::store::{Upload, Written};

/// Bytes held at once.
pub const BUDGET: usize = 40 << 20;
/// Empty buffers kept for the next frames.
pub const IDLE_BUFFERS: usize = 16;
/// A larger one is given back to the system.
pub const IDLE_BUFFER_BYTES: usize = 2 << 20;
/// What a frame costs beside its bytes, so that empty ones are bounded too.
const FRAME_COST: usize = 1 << 10;

struct Job {
    number: u64,
    raw: Vec<u8>,
    meaning: String,
}

struct Done {
    number: u64,
    frame: Vec<u8>,
    raw_bytes: u64,
    digest: [u8; 16],
    meaning: Box<RawValue>,
}

struct State {
    /// None: closed. Unbounded, because the budget bounds it.
    jobs: Option<Sender<Job>>,
    accepted: u64,
    held: usize,
    failure: Option<Error>,
    idle: Vec<Vec<u8>>,
}

struct Shared {
    state: Mutex<State>,
    room: Condvar,
    progress: Arc<Progress>,
    budget: usize,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock panics; a poisoned lock is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the first failure and wakes everybody.
    fn fail(&self, error: Error) {
        let mut state = self.state();
        state.failure.get_or_insert(error);
        state.jobs = None;
        self.room.notify_all();
    }

    fn failed(&self) -> bool {
        self.state().failure.is_some()
    }

    fn release(&self, bytes: usize) {
        self.state().held -= bytes;
        self.room.notify_all();
    }

    fn alarm(&self, who: &'static str) -> Alarm<impl Fn()> {
        Alarm(move || self.fail(Error::failed(format!("the {who} thread panicked"))))
    }
}

/// An artefact in the making.
pub struct ArtefactWriter {
    shared: Arc<Shared>,
    compressors: Vec<JoinHandle<()>>,
    writer: Option<JoinHandle<Option<Written>>>,
}

/// Gives frames to an [`ArtefactWriter`]; clone it for every thread that reads.
#[derive(Clone)]
pub struct FrameSender(Arc<Shared>);

impl ArtefactWriter {
    /// Starts `threads` compressors and the writer.
    #[must_use]
    pub fn start(
        artefact: Box<dyn Upload>,
        index: Box<dyn Upload>,
        (codec, crypt): (Codec, &Crypt),
        threads: usize,
        progress: Arc<Progress>,
    ) -> ArtefactWriter {
        Self::with_budget(artefact, index, (codec, crypt), threads, progress, BUDGET)
    }

    fn with_budget(
        artefact: Box<dyn Upload>,
        index: Box<dyn Upload>,
        (codec, crypt): (Codec, &Crypt),
        threads: usize,
        progress: Arc<Progress>,
        budget: usize,
    ) -> ArtefactWriter {
        let (jobs, waiting) = unbounded();
        let (results, done) = unbounded();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                jobs: Some(jobs),
                accepted: 0,
                held: 0,
                failure: None,
                idle: Vec::new(),
            }),
            room: Condvar::new(),
            progress,
            budget,
        });
        let mut this = ArtefactWriter {
            shared: Arc::clone(&shared),
            compressors: Vec::new(),
            writer: None,
        };
        for n in 0..threads.max(1) {
            let (own, waiting, results) = (Arc::clone(&shared), waiting.clone(), results.clone());
            let work = move || compress(&own, codec, &waiting, &results);
            match spawn(format!("compress-{n}"), work) {
                Ok(thread) => this.compressors.push(thread),
                Err(error) => shared.fail(error),
            }
        }
        drop(results);
        let work = {
            let (shared, crypt) = (Arc::clone(&shared), crypt.clone());
            move || {
                let how = (codec, &crypt);
                write(&shared, artefact, index, how, &done)
            }
        };
        match spawn("store".to_owned(), work) {
            Ok(thread) => this.writer = Some(thread),
            Err(error) => shared.fail(error),
        }
        this
    }

    /// A way in for frames.
    #[must_use]
    pub fn sender(&self) -> FrameSender {
        FrameSender(Arc::clone(&self.shared))
    }

    /// Ends the artefact with the frames accepted so far. The uploads come back unfinished:
    /// the commit protocol decides when they appear.
    ///
    /// # Errors
    /// The first failure of any thread.
    pub fn finish(mut self) -> Result<Written> {
        let written = self.join();
        let failure = self.shared.state().failure.clone();
        match (failure, written) {
            (None, Some(written)) => Ok(written),
            (Some(error), _) => Err(error),
            (None, None) => Err(Error::failed("the artefact's writer ended without a word")),
        }
    }

    fn join(&mut self) -> Option<Written> {
        self.shared.state().jobs = None;
        for thread in self.compressors.drain(..) {
            // A panic has been noted by the thread's alarm.
            let _ = thread.join();
        }
        self.writer.take()?.join().ok().flatten()
    }
}

impl Drop for ArtefactWriter {
    fn drop(&mut self) {
        self.shared.fail(Error::failed("the artefact was given up"));
        self.join();
    }
}

impl FrameSender {
    /// Hands over one frame with its meaning (JSON); blocks while the budget is used up.
    ///
    /// # Errors
    /// The failure that ended the artefact, or `Failed` after its end.
    pub fn send(&self, raw: Vec<u8>, meaning: String) -> Result<()> {
        let cost = cost(raw.len()) + meaning.len();
        let bytes = raw.len() as u64;
        let mut state = self.0.state();
        while state.failure.is_none() && state.held > 0 && state.held + cost > self.0.budget {
            state = self
                .0
                .room
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(error) = &state.failure {
            return Err(error.clone());
        }
        let number = state.accepted;
        let job = Job {
            number,
            raw,
            meaning,
        };
        // Sent under the lock: numbers enter the queue in order.
        let sent = state
            .jobs
            .as_ref()
            .is_some_and(|jobs| jobs.send(job).is_ok());
        if !sent {
            return Err(Error::failed("a frame came after the artefact's end"));
        }
        state.accepted += 1;
        state.held += cost;
        drop(state);
        self.0.progress.raw_bytes.fetch_add(bytes, Relaxed);
        Ok(())
    }

    /// An empty buffer, one that served before if there is any.
    #[must_use]
    pub fn buffer(&self) -> Vec<u8> {
        self.0.state().idle.pop().unwrap_or_default()
    }
}

fn cost(bytes: usize) -> usize {
    bytes + FRAME_COST
}

fn spawn<T: Send + 'static>(
    name: String,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    let thread = std::thread::Builder::new().name(name).spawn(work);
    thread.map_err(|error| Error::from(error).context("could not start a thread"))
}

fn compress(shared: &Shared, codec: Codec, jobs: &Receiver<Job>, results: &Sender<Done>) {
    let _alarm = shared.alarm("compressor");
    let work = || -> Result<()> {
        let mut compressor = Compressor::new(codec)?;
        for job in jobs {
            if shared.failed() {
                break;
            }
            let before = cost(job.raw.len()) + job.meaning.len();
            let raw_bytes = job.raw.len() as u64;
            let mut frame = Vec::new();
            if codec == Codec::None {
                frame = job.raw;
            } else {
                compressor.compress(&job.raw, job.number == 0, &mut frame)?;
                recycle(shared, job.raw);
            }
            let meaning = index::meaning(job.meaning)?;
            let after = cost(frame.len()) + meaning.get().len();
            {
                // From here on the frame holds its compressed size only.
                let mut state = shared.state();
                state.held = state.held - before + after;
                shared.room.notify_all();
            }
            let digest = index::digest(&frame);
            let done = Done {
                number: job.number,
                frame,
                raw_bytes,
                digest,
                meaning,
            };
            if results.send(done).is_err() {
                break; // The writer failed and has said so.
            }
        }
        Ok(())
    };
    if let Err(error) = work() {
        shared.fail(error);
    }
}

fn recycle(shared: &Shared, mut buffer: Vec<u8>) {
    if buffer.capacity() <= IDLE_BUFFER_BYTES {
        buffer.clear();
        let mut state = shared.state();
        if state.idle.len() < IDLE_BUFFERS {
            state.idle.push(buffer);
        }
    }
}

fn write(
    shared: &Shared,
    artefact: Box<dyn Upload>,
    index: Box<dyn Upload>,
    how: (Codec, &Crypt),
    done: &Receiver<Done>,
) -> Option<Written> {
    let _alarm = shared.alarm("store");
    match write_frames(shared, artefact, index, how, done) {
        Ok(written) => Some(written),
        Err(error) => {
            shared.fail(error);
            None
        }
    }
}

fn write_frames(
    shared: &Shared,
    artefact: Box<dyn Upload>,
    index: Box<dyn Upload>,
    (codec, crypt): (Codec, &Crypt),
    done: &Receiver<Done>,
) -> Result<Written> {
    let mut index = IndexWriter::start(index, codec, crypt)?;
    let mut artefact = Sink::start(artefact, crypt)?;
    let (mut raw_bytes, mut next) = (0, 0);
    let mut early: BTreeMap<u64, Done> = BTreeMap::new();
    for arrived in done {
        early.insert(arrived.number, arrived);
        while let Some(frame) = early.remove(&next) {
            if shared.failed() {
                return Err(Error::failed("the artefact was given up"));
            }
            let held = cost(frame.frame.len()) + frame.meaning.get().len();
            let count = frame.frame.len() as u64;
            artefact.append(&frame.frame)?;
            index.add(count, frame.raw_bytes, frame.digest, frame.meaning)?;
            shared.progress.stored_bytes.fetch_add(count, Relaxed);
            raw_bytes += frame.raw_bytes;
            next += 1;
            if codec == Codec::None {
                recycle(shared, frame.frame);
            }
            shared.release(held);
        }
    }
    if shared.failed() || shared.state().accepted != next {
        return Err(Error::failed("the artefact lost a frame"));
    }
    let (artefact, index) = (artefact.finish()?, index.finish()?);
    Ok(Written {
        artefact: artefact.upload,
        index: index.upload,
        bytes: artefact.bytes,
        raw_bytes,
        sha256: artefact.sha256,
        frames: next,
        index_bytes: index.bytes,
        index_sha256: index.sha256,
    })
}

#[cfg(test)]
mod tests;
