//! WAL as it is written: a slot holds it on the server until it is stored here.
//!
//! `session` receives over one connection into the `spool`; `pack` stores it in the first store, `ship` in
//! the others; `guard` watches what the slot costs the server, `standbys` keeps one on the other hosts; `position` decides, without effects,
//! where a stream begins.
//!
//! Invariants: a position is confirmed to the server only when everything before it is durable in the
//! first store; nothing stored is ever overwritten; the bytes of another cluster, timeline or place are
//! refused before they are stored; receiving waits for no compression and no upload until the backlog is
//! as long as it may be, and then the slot holds. A gap is never passed over in silence: it ends the
//! stream with `Partial`, so that a base backup follows.
//!
//! A crash leaves open files and pieces, with which the next stream goes on.

mod flow;
mod guard;
mod moments;
mod pack;
mod position;
mod session;
mod shelf;
mod ship;
mod spool;
mod standbys;
mod stream;
mod tail;

use std::path::Path;
use std::time::Duration;

use crate::archive::{Codec, Crypt};
use crate::cancel::Token;
use crate::config::SlotPolicy;
use crate::error::{Error, Result};
use crate::postgres::Target;
use crate::postgres::replication::SlotName;
use crate::store::Store;

pub use guard::{SlotReport, drop_slot, report};
pub use stream::run;

/// What is told to people: a sentence, `warning: ` before it if it is one.
type Say<'a> = &'a (dyn Fn(&str) + Sync);

/// How a stream is wanted.
#[derive(Debug, Clone)]
pub struct Options {
    pub slot: SlotName,
    /// How old WAL may become before a store that is no directory has it.
    pub flush_interval: Duration,
    pub slot_policy: SlotPolicy,
    /// What the slot may hold on the server.
    pub slot_limit_bytes: u64,
    /// What may wait in memory where WAL is durable only in a store far away, or encrypted.
    pub backlog_max_bytes: u64,
    pub codec: Codec,
    pub crypt: Crypt,
}

/// A stream to be run.
pub struct Stream<'a> {
    pub options: Options,
    /// Where its lock lies.
    pub dir: &'a Path,
    /// The store that confirms.
    pub first: &'a dyn Store,
    /// Its directory, if it is one.
    pub first_dir: Option<&'a Path>,
    /// The stores that are filled from it.
    pub others: &'a [Box<dyn Store>],
    /// Which of them are directories.
    pub others_local: Vec<bool>,
    /// Where the server is; asked anew for each connection.
    pub target: &'a (dyn Fn() -> Result<Target> + Sync),
    /// The same for SQL.
    pub sql_target: &'a (dyn Fn() -> Result<Target> + Sync),
    /// Every host that is listed, one by one.
    pub hosts: &'a (dyn Fn() -> Result<Vec<Target>> + Sync),
    /// Ends the stream in peace.
    pub cancel: &'a Token,
    /// Ends the stores' work that is left after that.
    pub stores_cancel: &'a Token,
    pub say: Say<'a>,
}

impl Stream<'_> {
    /// Whether received WAL is durable at once, in the first store's own directory.
    fn on_disk(&self) -> bool {
        self.first_dir.is_some() && !self.options.crypt.is_encrypted()
    }
}

/// The pauses between attempts, and what is said of them: once when it begins, once when it is over.
struct Backoff {
    what: String,
    attempts: u32,
}

impl Backoff {
    const LONGEST: Duration = Duration::from_secs(30);

    fn new(what: &str) -> Backoff {
        Backoff {
            what: what.to_owned(),
            attempts: 0,
        }
    }

    /// One more failure; how long to wait.
    fn failed(&mut self, say: Say<'_>, error: &Error) -> Duration {
        if self.attempts == 0 {
            let what = &self.what;
            say(&format!("warning: {what}, and is tried again: {error}"));
        }
        self.attempts += 1;
        Duration::from_secs(1 << (self.attempts - 1).min(5)).min(Self::LONGEST)
    }

    fn good(&mut self, say: Say<'_>, text: &str) {
        if self.attempts > 0 {
            say(text);
        }
        self.attempts = 0;
    }
}
