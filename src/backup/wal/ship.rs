//! The other stores get their WAL: whole segments and histories as they lie in the first store, and
//! pieces of the open segment.
//!
//! Invariants: nothing here ever holds up the receiver or the first store; histories go before
//! segments, and those oldest first, so that what a store has lacks nothing in between; a store gets
//! nothing older than its own oldest WAL or base backup needs. One that fails is tried again, and catches
//! up by the listings.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::pack::Note;
use super::shelf::{Pieces, Shelf, end_of};
use super::tail::Tail;
use super::{Backoff, Say};
use crate::archive::segment;
use crate::catalog::base;
use crate::catalog::layout::WalFile;
use crate::catalog::wal::{Held, WalArchive, clear_remains};
use crate::error::{Error, Kind, Result};
use crate::store::Store;
use crate::units::{Lsn, SegmentName, Timeline};

/// So many files may be announced and not yet copied; beyond, the listings tell.
pub(super) const ANNOUNCED_MAX: usize = 4096;

/// The thread of one store.
pub(super) struct Shipper<'a> {
    pub shelf: Shelf<'a>,
    pub first: &'a dyn Store,
    pub tail: &'a Tail,
    /// Whether pieces come from the first store as they are: it makes them of what is in memory.
    pub memory: bool,
    pub flush_interval: Duration,
    pub announced: Receiver<WalFile>,
    /// When the last piece was made.
    pub piece_at: Instant,
    pub note: Note,
    pub say: Say<'a>,
}

/// How often a store is asked for base backups that came from elsewhere.
const LOOK_INTERVAL: Duration = Duration::from_secs(300);

/// What a store has, and lacks.
struct Work {
    pieces: Pieces,
    todo: BTreeMap<Order, WalFile>,
    /// Nothing before this is wanted.
    floor: Lsn,
    looked: Instant,
}

/// Histories first, then by place.
type Order = (bool, Timeline, Option<SegmentName>, u64);

fn order(file: &WalFile) -> Order {
    match file {
        WalFile::History(timeline) => (false, *timeline, None, 0),
        WalFile::Segment { name, .. } | WalFile::Open(name) => {
            (true, name.timeline(), Some(*name), 0)
        }
        WalFile::Piece {
            segment, offset, ..
        } => (true, segment.timeline(), Some(*segment), offset + 1),
    }
}

impl Shipper<'_> {
    /// Works until the stream has ended.
    pub(super) fn run(mut self) {
        let name = self.shelf.store.name().to_owned();
        let mut backoff = Backoff::new(&format!("store {name} takes no WAL now"));
        let mut work: Option<Work> = None;
        loop {
            let ended = self.tail.lock().ended;
            match self.round(&mut work) {
                Ok(()) => backoff.good(self.say, &format!("store {name} takes WAL again")),
                // Its alarm must not end what the first store gets.
                Err(error) => {
                    let pause = backoff.failed(self.say, &error);
                    if matches!(error.kind, Kind::Signal(_)) || self.tail.pause(pause) {
                        return;
                    }
                    work = None;
                    continue;
                }
            }
            if ended || self.tail.lock().failure.is_some() {
                return;
            }
            let wait = self.flush_interval.saturating_sub(self.piece_at.elapsed());
            let wait = if self.memory {
                self.flush_interval
            } else {
                wait
            };
            self.rest(Instant::now() + wait);
        }
    }

    /// Until the next pieces are due, or something whole was stored.
    fn rest(&self, until: Instant) {
        let mut state = self.tail.lock();
        while !state.ended
            && state.failure.is_none()
            && self.announced.is_empty()
            && Instant::now() < until
        {
            state = self.tail.wait(state, until);
        }
    }

    fn round(&mut self, work: &mut Option<Work>) -> Result<()> {
        // Before its end is reached some announcements may have been lost.
        if self.announced.is_full() || self.wants_older(work.as_mut())? {
            *work = None;
        }
        // What is durable in the first store by now was announced before.
        let durable = self.tail.lock().durable;
        let announced: Vec<WalFile> = self.announced.try_iter().collect();
        let work = match work {
            Some(work) => work,
            None => work.insert(self.look()?),
        };
        for file in announced {
            let old = file.segment().map(|name| name.start(self.shelf.size));
            if old.transpose()?.is_none_or(|start| start >= work.floor) {
                work.todo.insert(order(&file), file);
            }
        }
        while let Some((order, file)) = work.todo.first_key_value().map(|(o, f)| (*o, *f)) {
            self.ship(&mut work.pieces, file)?;
            work.todo.remove(&order);
        }
        self.open_piece(&mut work.pieces, durable)
    }

    /// Whether a base backup that was copied here meanwhile needs WAL of before.
    fn wants_older(&self, work: Option<&mut Work>) -> Result<bool> {
        let Some(work) = work.filter(|work| work.looked.elapsed() >= LOOK_INTERVAL) else {
            return Ok(false);
        };
        work.looked = Instant::now();
        let based = base::oldest_start(self.shelf.store, self.shelf.system)?;
        Ok(based.is_some_and(|start| start.segment_start(self.shelf.size) < work.floor))
    }

    /// Looks what is there and what is missing.
    fn look(&self) -> Result<Work> {
        clear_remains(self.shelf.store)?;
        let system = self.shelf.system;
        let ours = WalArchive::load(self.shelf.store, system)?;
        let theirs = WalArchive::load(self.first, system)?;
        let size = self.shelf.size;
        let open = self.tail.lock().open.as_ref().map(|open| open.start);
        let oldest = |archive: &WalArchive| -> Result<Option<Lsn>> {
            let starts: Result<Vec<Lsn>> = archive
                .segments()
                .map(|(name, _)| name.start(size))
                .collect();
            Ok(starts?.into_iter().min())
        };
        let based = base::oldest_start(self.shelf.store, system)?;
        let floor = oldest(&ours)?.into_iter().chain(based).min();
        let floor = floor.or(open).unwrap_or_default().segment_start(size);
        let mut todo = BTreeMap::new();
        for timeline in theirs.histories() {
            if !ours.histories().any(|one| one == timeline) {
                let file = WalFile::History(timeline);
                todo.insert(order(&file), file);
            }
        }
        let state = self.tail.lock();
        let open = state.open.as_ref().map(|open| open.name);
        drop(state);
        for (name, held) in theirs.segments() {
            let whole = ours.segment(name).is_some_and(Held::is_whole);
            if whole || name.start(size)? < floor {
                continue;
            }
            let pieces = held
                .pieces
                .iter()
                .filter(|_| Some(name) != open || self.memory);
            match &held.whole {
                Some(stored) => drop(todo.insert(order(&stored.file), stored.file)),
                None => todo.extend(pieces.map(|piece| (order(&piece.file), piece.file))),
            }
        }
        Ok(Work {
            pieces: Pieces::of(&ours),
            todo,
            floor,
            looked: Instant::now(),
        })
    }

    fn ship(&self, pieces: &mut Pieces, file: WalFile) -> Result<()> {
        let gone = |error: Error| -> Result<()> {
            // Expired, or part of a whole segment by now.
            match self.first.stat(&self.shelf.key(&file)?)? {
                None => Ok(()),
                Some(_) => Err(error),
            }
        };
        match file {
            WalFile::History(_) => self.shelf.copy_from(self.first, &file),
            WalFile::Segment { name, .. } => {
                self.shelf.copy_from(self.first, &file).or_else(gone)?;
                pieces.clear(&self.shelf, name)
            }
            WalFile::Piece { encrypted, .. } if self.memory || encrypted => {
                self.shelf.copy_from(self.first, &file).or_else(gone)?;
                pieces.add(file);
                Ok(())
            }
            WalFile::Piece {
                segment, offset, ..
            } => self.last_piece(pieces, segment, offset).or_else(gone),
            WalFile::Open(_) => Ok(()),
        }
    }

    /// What the first store keeps of the end of a timeline, beyond our own pieces of it.
    fn last_piece(&self, pieces: &mut Pieces, name: SegmentName, offset: u64) -> Result<()> {
        let key = self.shelf.key(&self.shelf.piece_file(name, offset))?;
        let raw = segment::read(self.first, &key, (false, None), self.shelf.size.bytes())?;
        let have = offset + raw.len() as u64;
        let bytes = |from: u64| {
            let skip = from
                .checked_sub(offset)
                .and_then(|skip| usize::try_from(skip).ok());
            Ok(skip.and_then(|skip| raw.get(skip..)).map(<[u8]>::to_vec))
        };
        let stored = pieces.extend(&self.shelf, name, (have, true), &bytes);
        stored.map(drop)
    }

    /// What has come of the open segment since the last round.
    fn open_piece(&mut self, pieces: &mut Pieces, durable: Lsn) -> Result<()> {
        let open = {
            let state = self.tail.lock();
            let open = state.open.as_ref();
            open.map(|open| {
                (
                    open.name,
                    open.start,
                    open.have,
                    open.end() >= state.catch_up,
                )
            })
        };
        let ended = self.tail.lock().ended;
        let Some((name, start, have, caught_up)) = open else {
            return Ok(());
        };
        let reach = if self.memory {
            durable
        } else {
            let due = self.piece_at.elapsed() >= self.flush_interval;
            if caught_up && (due || ended) {
                self.piece_at = Instant::now();
                let bytes = |from| self.tail.open_bytes(name, from);
                pieces.extend(&self.shelf, name, (have, false), &bytes)?;
            }
            end_of(start, pieces.covered(name))
        };
        // Filled segments that the first store has not packed are not here either.
        let state = self.tail.lock();
        let waits = state.full.front().map(|full| full.start);
        let reached = state.reached(waits.map_or(reach, |waits| waits.min(reach)));
        drop(state);
        if !self.announced.is_empty() {
            // A whole segment that is not here yet lies before what was looked at.
            return Ok(());
        }
        let moved = self
            .note
            .last
            .zip(reached)
            .is_none_or(|(a, b)| a.lsn != b.lsn);
        self.note.write(&self.shelf, reached, moved);
        Ok(())
    }
}
