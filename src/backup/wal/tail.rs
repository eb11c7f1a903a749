//! What the receiver, the packer and the shippers share: whole segments on their way into the first
//! store, the open one, and how far everything is durable.
//!
//! Invariants: `durable` never goes beyond what a store or a synced file holds; a segment leaves the
//! queue only when it is stored; memory is bounded by the backlog that was allowed.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::moments::Moments;
use crate::catalog::wal::Reached;
use crate::error::{Error, Result};
use crate::units::{Lsn, SegmentName, Timeline};

/// Where the bytes of a segment are until they are stored.
#[derive(Debug, Clone)]
pub(super) enum Body {
    File(PathBuf),
    Memory(Arc<Vec<u8>>),
}

/// A segment that receives nothing more.
#[derive(Debug)]
pub(super) struct Full {
    pub name: SegmentName,
    pub start: Lsn,
    /// Less than a whole segment: its timeline, or what is known of it, ended there.
    pub bytes: u64,
    pub whole: bool,
    pub body: Body,
}

impl Full {
    /// Its bytes from there on.
    ///
    /// # Errors
    /// As the file.
    pub(super) fn read_from(&self, offset: u64) -> Result<Box<dyn Read + '_>> {
        let count = self.bytes.saturating_sub(offset);
        match &self.body {
            Body::File(path) => {
                let mut file = File::open(path)?;
                io::Seek::seek(&mut file, io::SeekFrom::Start(offset))?;
                Ok(Box::new(file.take(count)))
            }
            Body::Memory(bytes) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX);
                Ok(Box::new(bytes.get(from..).unwrap_or_default().take(count)))
            }
        }
    }
}

/// The segment that is being received.
#[derive(Debug)]
pub(super) struct Open {
    pub name: SegmentName,
    pub start: Lsn,
    /// Bytes that are received (in memory) or synced (on disk).
    pub have: u64,
    pub body: OpenBody,
}

#[derive(Debug)]
pub(super) enum OpenBody {
    File(PathBuf),
    Memory(Vec<u8>),
}

impl Open {
    pub(super) fn end(&self) -> Lsn {
        self.start.plus(self.have)
    }
}

#[derive(Debug, Default)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is asked or told by another thread"
)]
pub(super) struct State {
    /// Oldest first.
    pub full: VecDeque<Arc<Full>>,
    pub open: Option<Open>,
    /// What the first store holds for good.
    pub durable: Lsn,
    pub timeline: Option<Timeline>,
    /// Before this position everything was stored by an earlier stream: no pieces of it anew.
    pub catch_up: Lsn,
    /// Somebody waits for what has come to be stored: once only.
    pub flush: bool,
    /// Whether transactions wait for what is confirmed.
    pub prompt: bool,
    /// The guard wants the slot gone.
    pub verdict: Option<Error>,
    /// A signal asked for the end.
    pub stop: bool,
    /// The receiver has ended: what is left is stored, and that is it.
    pub ended: bool,
    /// What a worker found that ends the stream.
    pub failure: Option<Error>,
    pub moments: Moments,
}

impl State {
    /// Whether nothing new shall begin.
    fn is_over(&self) -> bool {
        self.stop || self.ended || self.failure.is_some() || self.verdict.is_some()
    }

    /// Where the oldest segment begins that waits in memory.
    pub(super) fn unstored(&self) -> Option<Lsn> {
        let mut full = self.full.iter();
        full.find(|full| matches!(full.body, Body::Memory(_)))
            .map(|full| full.start)
    }

    /// Bytes that wait in memory.
    pub(super) fn backlog_bytes(&self) -> u64 {
        let full = self.full.iter().filter_map(|full| match &full.body {
            Body::Memory(bytes) => Some(bytes.len() as u64),
            Body::File(_) => None,
        });
        let open = match self.open.as_ref().map(|open| &open.body) {
            Some(OpenBody::Memory(bytes)) => bytes.len() as u64,
            _ => 0,
        };
        full.sum::<u64>() + open
    }

    /// What can be said of a store that holds everything before `lsn`.
    pub(super) fn reached(&self, lsn: Lsn) -> Option<Reached> {
        Some(Reached {
            timeline: self.timeline?,
            lsn,
            time: self.moments.at(lsn)?,
        })
    }
}

/// The state, and the bell that rings when it changes.
#[derive(Debug, Default)]
pub(super) struct Tail {
    state: Mutex<State>,
    changed: Condvar,
}

impl Tail {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the workers.
    pub(super) fn ring(&self) {
        self.changed.notify_all();
    }

    /// Waits for the bell, at most until then.
    pub(super) fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        until: Instant,
    ) -> MutexGuard<'a, State> {
        let wait = until.saturating_duration_since(Instant::now());
        let woken = self.changed.wait_timeout(state, wait);
        woken.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits so long, or until the stream ends. True: it has ended.
    pub(super) fn pause(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut state = self.lock();
        while !state.is_over() && Instant::now() < until {
            state = self.wait(state, until);
        }
        state.is_over()
    }

    /// Whether nothing new shall begin.
    pub(super) fn is_over(&self) -> bool {
        self.lock().is_over()
    }

    /// A signal asks for the end.
    pub(super) fn stop(&self) {
        self.lock().stop = true;
        self.ring();
    }

    /// Ends the stream because of that; the first one counts.
    pub(super) fn fail(&self, error: Error) {
        self.lock().failure.get_or_insert(error);
        self.ring();
    }

    /// No more comes.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.ring();
    }

    /// A message of the server: its WAL went that far.
    pub(super) fn hear(&self, sent: Lsn, time: Timestamp) {
        self.lock().moments.hear(sent, time);
    }

    /// Waits until everything before `lsn` is stored; how far it is then.
    pub(super) fn flush(&self, lsn: Lsn, wait: Duration) -> Lsn {
        let until = Instant::now() + wait;
        let mut state = self.lock();
        state.flush = true;
        self.ring();
        while state.durable < lsn && state.failure.is_none() && Instant::now() < until {
            state = self.wait(state, until);
        }
        state.durable
    }

    /// The bytes of the open segment from an offset on that `choose` gives; none when it has none to
    /// give, or the segment is not open any more.
    ///
    /// # Errors
    /// As the file.
    pub(super) fn open_bytes(&self, name: SegmentName, from: u64) -> Result<Option<Vec<u8>>> {
        let (path, count) = {
            let state = self.lock();
            let Some(open) = state.open.as_ref().filter(|open| open.name == name) else {
                return Ok(None);
            };
            let Some(count) = open.have.checked_sub(from) else {
                return Ok(None);
            };
            match &open.body {
                OpenBody::Memory(bytes) => {
                    let from = usize::try_from(from).unwrap_or(usize::MAX);
                    return Ok(bytes.get(from..).map(<[u8]>::to_vec));
                }
                OpenBody::File(path) => (path.clone(), count),
            }
        };
        let mut bytes = vec![0; usize::try_from(count).unwrap_or(0)];
        match File::open(path) {
            // Packed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
            Ok(file) => {
                file.read_exact_at(&mut bytes, from)?;
                Ok(Some(bytes))
            }
        }
    }
}
