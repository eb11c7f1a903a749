//! The first store gets its WAL: filled segments become `.zst`, and what is in memory becomes pieces.
//!
//! Invariants: a segment leaves the queue, and its open file the disk, only when it is stored whole; a
//! position is durable only after that, or after its piece; a store that fails is tried again for as
//! long as the stream lives, and nothing is given up meanwhile.
//!
//! A crash leaves what was not stored in the open files, or (memory) on the server, whose slot
//! was not moved on.

use std::fs::File;
use std::io::Read;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::shelf::{Pieces, Shelf, end_of};
use super::tail::{Body, Full, State, Tail};
use super::{Backoff, Say};
use crate::catalog::layout::WalFile;
use crate::catalog::wal::{Reached, note_reached};
use crate::error::{Error, Kind, Result};
use crate::units::SegmentName;

/// Between the attempts to store what is left when the stream ends.
const LAST_TRIES: Duration = Duration::from_millis(200);

/// How often a position that moved is noted, and how often a moment that did.
pub(super) struct Pace {
    pub moved: Duration,
    pub idle: Duration,
}

impl Pace {
    pub(super) const LOCAL: Pace = Pace {
        moved: Duration::from_secs(2),
        idle: Duration::from_secs(10),
    };
    /// With each piece.
    pub(super) const FAR: Pace = Pace {
        moved: Duration::ZERO,
        idle: Duration::from_secs(60),
    };
}

/// When the note of how far a store has come was last written, and what it says.
pub(super) struct Note {
    pub pace: Pace,
    pub last: Option<Reached>,
    pub at: Instant,
}

impl Note {
    /// When the next one is due; none: it would say nothing new.
    fn due(&self, now: Option<Reached>) -> Option<Instant> {
        let now = now?;
        match self.last {
            Some(last) if now.timeline == last.timeline && now.lsn < last.lsn => None,
            Some(last) if now == last => None,
            Some(last) if now.lsn == last.lsn => Some(self.at + self.pace.idle),
            _ => Some(self.at + self.pace.moved),
        }
    }

    /// Writes it if it is due, or in any case `now`.
    pub(super) fn write(&mut self, place: &Shelf<'_>, reached: Option<Reached>, now: bool) {
        let due = self
            .due(reached)
            .is_some_and(|due| now || due <= Instant::now());
        if let (true, Some(reached)) = (due, reached) {
            self.at = Instant::now();
            // A note that fails is written with the next one: it only tells less than is there.
            if note_reached(place.store, place.system, &reached).is_ok() {
                self.last = Some(reached);
            }
        }
    }

    /// How long it may be left, at most so long.
    pub(super) fn wait(&self, reached: Option<Reached>, most: Instant) -> Instant {
        self.due(reached).map_or(most, |due| due.min(most))
    }
}

/// The thread of the first store.
pub(super) struct Packer<'a> {
    pub shelf: Shelf<'a>,
    pub tail: &'a Tail,
    /// Whether what is received lies in memory until it is stored.
    pub memory: bool,
    /// How old bytes in memory may become.
    pub flush_interval: Duration,
    pub pieces: Pieces,
    pub note: Note,
    /// Told of each file that is stored.
    pub others: Vec<Sender<WalFile>>,
    pub say: Say<'a>,
}

enum Job {
    Full(std::sync::Arc<Full>),
    Piece(SegmentName, u64),
    Note,
    End,
}

impl Packer<'_> {
    /// Works until the stream has ended.
    pub(super) fn run(mut self) {
        let mut backoff = Backoff::new("the first store takes no WAL now");
        let mut piece_at = Instant::now();
        loop {
            let ended = self.tail.lock().ended;
            let (done, last) = match self.next(piece_at) {
                Job::End => break,
                Job::Full(full) => (self.store(&full), false),
                Job::Piece(name, have) => {
                    piece_at = Instant::now();
                    (self.piece(name, have), ended)
                }
                Job::Note => (Ok(()), false),
            };
            match done {
                Ok(()) => {
                    backoff.good(self.say, "the first store takes WAL again");
                    self.note.write(&self.shelf, self.reached(), false);
                    if last {
                        break;
                    }
                }
                Err(error) if matches!(error.kind, Kind::Damage | Kind::Usage) => {
                    self.tail.fail(error);
                    break;
                }
                Err(error) => {
                    let pause = backoff.failed(self.say, &error);
                    let ended = self.tail.pause(pause);
                    if ended && (!self.memory || matches!(error.kind, Kind::Signal(_))) {
                        break;
                    }
                    if ended {
                        std::thread::sleep(LAST_TRIES);
                    }
                }
            }
        }
        self.note.write(&self.shelf, self.reached(), true);
    }

    fn reached(&self) -> Option<Reached> {
        let state = self.tail.lock();
        state.reached(state.durable)
    }

    fn next(&self, piece_at: Instant) -> Job {
        let mut state = self.tail.lock();
        loop {
            if state.failure.is_some() || state.ended && !self.memory {
                // Filled files wait for the next stream.
                return Job::End;
            }
            if let Some(full) = state.full.front() {
                return Job::Full(full.clone());
            }
            let now = Instant::now();
            let mut until = now + Duration::from_secs(60);
            if let Some((name, have)) = self.waiting(&state) {
                let due = piece_at + self.flush_interval;
                if state.flush || state.ended || due <= now {
                    state.flush = false;
                    return Job::Piece(name, have);
                }
                until = until.min(due);
            } else {
                state.flush = false;
                if state.ended {
                    return Job::End;
                }
            }
            let reached = state.reached(state.durable);
            until = self.note.wait(reached, until);
            if until <= now {
                return Job::Note;
            }
            // A sync on disk rings no bell: it would wake this thread some twenty times a second.
            state = self
                .tail
                .wait(state, until.min(now + Duration::from_secs(2)));
        }
    }

    /// What waits in memory to become a piece.
    fn waiting(&self, state: &State) -> Option<(SegmentName, u64)> {
        let open = state.open.as_ref().filter(|_| self.memory)?;
        let covered = self.pieces.covered(open.name).unwrap_or(0);
        let new = open.have > covered && open.end() >= state.catch_up;
        (new && open.end() > state.durable).then_some((open.name, open.have))
    }

    fn piece(&mut self, name: SegmentName, have: u64) -> Result<()> {
        let bytes = |from| self.tail.open_bytes(name, from);
        let stored = self
            .pieces
            .extend(&self.shelf, name, (have, false), &bytes)?;
        self.announce(stored);
        self.is_durable(name)
    }

    fn is_durable(&self, name: SegmentName) -> Result<()> {
        let start = name.start(self.shelf.size)?;
        let end = end_of(start, self.pieces.covered(name));
        let mut state = self.tail.lock();
        if state.timeline == Some(name.timeline()) {
            state.durable = state.durable.max(end);
        }
        drop(state);
        self.tail.ring();
        Ok(())
    }

    fn announce(&self, file: Option<WalFile>) {
        let Some(file) = file else { return };
        for other in &self.others {
            // One that lags behind so far lists anew.
            let _ = other.try_send(file);
        }
        self.tail.ring();
    }

    fn store(&mut self, full: &Full) -> Result<()> {
        if full.whole {
            self.whole(full)?;
        } else {
            self.last_piece(full)?;
        }
        if let Body::File(_) = full.body {
            self.shelf.remove([WalFile::Open(full.name)])?;
        }
        let mut state = self.tail.lock();
        state.full.pop_front();
        if full.whole && state.timeline == Some(full.name.timeline()) {
            state.durable = state.durable.max(full.start.plus(full.bytes));
        }
        // Of an older timeline, it held the newer one's position back.
        let next = state.unstored();
        if let Some(next) = next.or_else(|| state.open.as_ref().map(|open| open.start)) {
            state.durable = state.durable.max(next);
        }
        drop(state);
        self.tail.ring();
        Ok(())
    }

    fn whole(&mut self, full: &Full) -> Result<()> {
        let body = full.body.clone();
        let size = self.shelf.size.bytes();
        let open = move || -> Result<Box<dyn Read>> {
            Ok(match &body {
                Body::File(path) => Box::new(File::open(path)?.take(size)),
                Body::Memory(bytes) => Box::new(Shared(bytes.clone(), 0)),
            })
        };
        self.shelf.put_segment(full.name, &open)?;
        self.announce(Some(self.shelf.segment_file(full.name)));
        self.pieces.clear(&self.shelf, full.name)
    }

    /// The end of a timeline, or of what is known of it.
    fn last_piece(&mut self, full: &Full) -> Result<()> {
        let bytes = |from| {
            let mut bytes = Vec::new();
            full.read_from(from)?.read_to_end(&mut bytes)?;
            Ok(Some(bytes))
        };
        let end = (full.bytes, true);
        let stored = self.pieces.extend(&self.shelf, full.name, end, &bytes)?;
        self.announce(stored);
        Ok(())
    }
}

/// Reads memory that others read too.
struct Shared(std::sync::Arc<Vec<u8>>, usize);

impl Read for Shared {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let count = (&self.0[self.1..]).read(out)?;
        self.1 += count;
        Ok(count)
    }
}

/// A failure of the first store before the stream has begun: it is tried again as well.
pub(super) fn is_lasting(error: &Error) -> bool {
    matches!(
        error.kind,
        Kind::Damage | Kind::Usage | Kind::Partial | Kind::Busy | Kind::Signal(_)
    )
}
