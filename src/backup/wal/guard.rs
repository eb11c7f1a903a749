//! What the slot costs the server, and when that is too much.
//!
//! A slot holds all WAL that is not confirmed: a stream that stands still fills the server's disk. So
//! somebody looks at it while pgark lives; for the time when it does not, `max_slot_wal_keep_size` is
//! the server's own guard.
//!
//! Invariants: a slot is dropped only above the limit, under the policy that says so, and only when it
//! holds no less than a while before: a stream that catches up is left to it. What is in memory is
//! stored first. A crash drops nothing.

use std::time::{Duration, Instant};

use super::tail::Tail;
use super::{Options, Stream};
use crate::config::SlotPolicy;
use crate::error::{Error, Kind, Result};
use crate::postgres::replication::SlotName;
use crate::postgres::{Client, Target};
use crate::units::{ByteSize, Lsn};

const INTERVAL: Duration = Duration::from_secs(10);

/// A slot as the server tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotReport {
    pub active: bool,
    /// `reserved`, `extended`, `unreserved`, `lost`.
    pub wal_status: Option<String>,
    /// WAL from here on is kept.
    pub restart: Option<Lsn>,
    /// What is kept, in bytes.
    pub retained_bytes: u64,
    /// How much may still be written before WAL is removed all the same; none: no bound.
    pub safe_bytes: Option<u64>,
    /// Whether transactions wait for its stream (synchronous replication).
    pub synchronous: bool,
    /// A slot of our name that decodes WAL for somebody else.
    pub logical: bool,
}

/// What the server says of the slot; none: there is no such slot.
///
/// # Errors
/// The server's error, or a lost connection.
pub fn report(client: &mut Client, slot: &SlotName) -> Result<Option<SlotReport>> {
    let sql = format!(
        "SELECT s.active, s.wal_status, s.restart_lsn, \
         pg_catalog.pg_wal_lsn_diff(CASE WHEN pg_catalog.pg_is_in_recovery() \
           THEN pg_catalog.pg_last_wal_receive_lsn() ELSE pg_catalog.pg_current_wal_lsn() END, \
           s.restart_lsn)::bigint, s.safe_wal_size, \
         coalesce(r.sync_state IN ('sync', 'quorum'), false), s.slot_type = 'logical' \
         FROM pg_catalog.pg_replication_slots s \
         LEFT JOIN pg_catalog.pg_stat_replication r ON r.pid = s.active_pid \
         WHERE s.slot_name = '{slot}'"
    );
    let rows = client.query(sql)?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let bytes = |column: usize| -> Option<u64> {
        let number: i64 = row.opt_str(column)?.parse().ok()?;
        Some(number.max(0).unsigned_abs())
    };
    Ok(Some(SlotReport {
        active: row.opt_str(0) == Some("t"),
        wal_status: row.opt_str(1).map(str::to_owned),
        restart: row.opt_str(2).map(str::parse).transpose()?,
        retained_bytes: bytes(3).unwrap_or(0),
        safe_bytes: bytes(4),
        synchronous: row.opt_str(5) == Some("t"),
        logical: row.opt_str(6) == Some("t"),
    }))
}

/// Drops the slot. False: there was none. By SQL, so that it works where `pg_hba.conf` keeps replication out.
///
/// # Errors
/// `Busy` while somebody streams from it; `Usage` when it is another's; the server's error.
pub fn drop_slot(target: &Target, slot: &SlotName) -> Result<bool> {
    let mut client = Client::connect(target)?;
    match report(&mut client, slot)? {
        None => return Ok(false),
        Some(seen) if seen.logical => return Err(is_logical(slot)),
        Some(_) => {}
    }
    match client.execute(format!(
        "SELECT pg_catalog.pg_drop_replication_slot('{slot}')"
    )) {
        Ok(()) => Ok(true),
        Err(error) if error.is_sqlstate("42704") => Ok(false),
        Err(error) if error.is_sqlstate("55006") => Err(Error {
            kind: Kind::Busy,
            ..error
        }
        .hint("a stream uses it: stop `pgark serve` first, or set WAL_STREAMING=off")),
        Err(error) => Err(error),
    }
}

/// Nothing of it is touched.
pub(super) fn is_logical(slot: &SlotName) -> Error {
    Error::usage(format!(
        "the slot {slot} is a logical one, of somebody else's"
    ))
    .hint("give pgark another name for its own: slot_name in the section [wal] of pgark.toml")
}

/// The guard's thread.
pub(super) struct Guard<'a> {
    pub stream: &'a Stream<'a>,
    pub tail: &'a Tail,
}

impl Guard<'_> {
    /// Watches until the stream has ended.
    pub(super) fn run(self) {
        let mut client = None;
        let (mut before, mut blind) = (None, false);
        loop {
            match self.look(&mut client) {
                Ok(Some(seen)) => {
                    blind = false;
                    self.judge(&seen, &mut before);
                }
                Ok(None) => {}
                Err(error) => {
                    client = None;
                    // While the server is away the session says so; it is not said twice.
                    if !blind && error.sqlstate.is_some() {
                        let why = &error.fact;
                        (self.stream.say)(&format!("warning: the slot cannot be watched: {why}"));
                    }
                    blind = true;
                }
            }
            if self.tail.pause(INTERVAL) {
                return;
            }
        }
    }

    /// A judgement of its own, of a stream that has ended by itself: two looks, the second one only where the
    /// first is over the limit.
    pub(super) fn last_word(&self) -> Option<Error> {
        let (mut client, mut before) = (None, None);
        for look in 0..2 {
            if let Ok(Some(seen)) = self.look(&mut client) {
                self.judge(&seen, &mut before);
            }
            let over = before.is_some() && look == 0;
            if !over || self.is_asked_to_end(INTERVAL) {
                break;
            }
        }
        self.tail.lock().verdict.take()
    }

    /// Waits so long; true: a signal came.
    fn is_asked_to_end(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        while self.stream.cancel.check().is_ok() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(100));
        }
        self.stream.cancel.check().is_err()
    }

    fn look(&self, client: &mut Option<Client>) -> Result<Option<SlotReport>> {
        let client = match client {
            Some(client) => client,
            None => client.insert(Client::connect(&(self.stream.sql_target)()?)?),
        };
        report(client, &self.stream.options.slot)
    }

    /// `before`: what the slot held when it was over the limit at the look before.
    fn judge(&self, seen: &SlotReport, before: &mut Option<u64>) {
        let options = &self.stream.options;
        self.tail.lock().prompt = seen.synchronous;
        if seen.retained_bytes <= options.slot_limit_bytes {
            *before = None;
            return;
        }
        let last = before.replace(seen.retained_bytes);
        match (options.slot_policy, last) {
            // A stream that catches up is the best protection.
            (SlotPolicy::ProtectPrimary, Some(last)) if seen.retained_bytes >= last => {
                self.tail.lock().verdict.get_or_insert(over(options, seen));
                self.tail.ring();
            }
            (SlotPolicy::ProtectArchive, None) => {
                let error = over(options, seen).fact;
                (self.stream.say)(&format!(
                    "warning: {error}; the policy protect-archive keeps it"
                ));
            }
            _ => {}
        }
    }
}

fn over(options: &Options, seen: &SlotReport) -> Error {
    let (held, limit) = (
        ByteSize(seen.retained_bytes),
        ByteSize(options.slot_limit_bytes),
    );
    let slot = &options.slot;
    Error::new(
        Kind::Partial,
        format!("the slot {slot} holds {held} of WAL on the server, more than {limit}"),
    )
}
