//! What one connection keeps in mind of its stream: what waits to be synced, what was confirmed, who waits for
//! whom. No I/O.
//!
//! Invariant: what was confirmed only rises.

use std::time::{Duration, Instant};

use crate::archive::wal::PageCheck;
use crate::units::Lsn;

/// So long bytes may lie unsynced while more come.
const SYNC_INTERVAL: Duration = Duration::from_millis(100);
/// So long they wait for more to come, where no transaction waits for them.
const SYNC_DELAY: Duration = Duration::from_millis(50);
/// So many are synced at once at most.
const SYNC_BYTES: u64 = 1 << 20;
/// A silent server is asked so often how far its WAL goes: the answer says until when nothing is missing.
const ASK_INTERVAL: Duration = Duration::from_secs(2);
/// While WAL waits to be stored, the socket is left that often to look whether it was.
const STORE_WAIT: Duration = Duration::from_millis(200);
/// A server that stops asks again and again until everything is confirmed. After so long it is left
/// alone: the slot keeps what is missing.
const SHUTDOWN_MAX: Duration = Duration::from_secs(10);
const SHUTDOWN_ASKS: u32 = 10;
/// So long the socket is waited on.
const WAIT: Duration = Duration::from_secs(1);

/// What one stream keeps in mind.
pub(super) struct Flow {
    pub check: PageCheck,
    /// Whether the server's clock tells until when nothing is missing.
    pub clock: bool,
    /// The slot moves with it, and never back: behind a gap it begins after what still waits to be stored.
    pub confirmed: Lsn,
    pub heard: Instant,
    asked: Instant,
    /// Since when bytes lie unsynced, and how many.
    unsynced: Option<(Instant, u64)>,
    /// Since when the server waits for a confirmation, and how often it asked.
    left_waiting: Option<(Instant, u32)>,
}

impl Flow {
    pub(super) fn new(check: PageCheck, confirmed: Lsn, clock: bool) -> Flow {
        let now = Instant::now();
        Flow {
            check,
            clock,
            confirmed,
            heard: now,
            asked: now,
            unsynced: None,
            left_waiting: None,
        }
    }

    pub(super) fn came(&mut self, bytes: u64) {
        self.heard = Instant::now();
        self.left_waiting = None;
        let (since, before) = self.unsynced.unwrap_or((self.heard, 0));
        self.unsynced = Some((since, before + bytes));
    }

    /// How long the socket may be waited on.
    pub(super) fn wait(&self, prompt: bool, unconfirmed: bool) -> Duration {
        match self.unsynced {
            Some(_) if prompt => Duration::ZERO,
            Some((since, _)) => SYNC_DELAY.saturating_sub(since.elapsed()),
            None if unconfirmed => STORE_WAIT,
            None => WAIT,
        }
    }

    /// Nothing more is at hand, or enough has come.
    pub(super) fn is_sync_due(&self, quiet: bool) -> bool {
        self.unsynced.is_some_and(|(since, bytes)| {
            quiet || bytes >= SYNC_BYTES || since.elapsed() >= SYNC_INTERVAL
        })
    }

    pub(super) fn synced(&mut self) {
        self.unsynced = None;
    }

    /// Whether the server shall be asked.
    pub(super) fn is_silent(&mut self) -> bool {
        let silent = self.heard.elapsed().min(self.asked.elapsed()) >= ASK_INTERVAL;
        if silent {
            self.asked = Instant::now();
        }
        silent
    }

    /// Notes that the server waits; true: it has waited long enough.
    pub(super) fn is_left_waiting(&mut self, waits: bool) -> bool {
        if !waits {
            self.left_waiting = None;
            return false;
        }
        let (since, count) = self.left_waiting.unwrap_or((Instant::now(), 0));
        self.left_waiting = Some((since, count + 1));
        count >= SHUTDOWN_ASKS && since.elapsed() >= SHUTDOWN_MAX
    }
}
