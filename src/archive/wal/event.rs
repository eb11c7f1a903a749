//! What records say that a restore may aim at. No I/O.
//!
//! Invariant: any bytes are an event or none.

use jiff::Timestamp;

use super::RECORD_HEADER;
use super::page::{number, u32_at};

/// From 1970 to 2000, where PostgreSQL's clock begins.
pub(super) const EPOCH_MICROSECONDS: i64 = 946_684_800_000_000;

/// What a record tells that a restore may aim at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A transaction was committed; `xid` is 0 where it had been prepared.
    Commit { xid: u32, time: Timestamp },
    /// A transaction was rolled back; likewise.
    Abort { xid: u32, time: Timestamp },
    /// `pg_create_restore_point`.
    RestorePoint { name: String, time: Timestamp },
}

impl Event {
    /// When it happened, by the server's clock.
    #[must_use]
    pub fn time(&self) -> Timestamp {
        match self {
            Event::Commit { time, .. }
            | Event::Abort { time, .. }
            | Event::RestorePoint { time, .. } => *time,
        }
    }
}

pub(super) const MANAGER_XLOG: u8 = 0;
pub(super) const MANAGER_XACT: u8 = 1;
pub(super) const XLOG_SWITCH: u8 = 0x40;
pub(super) const XLOG_RESTORE_POINT: u8 = 0x70;
/// `MAXFNAMELEN`.
pub(super) const NAME_BYTES: usize = 64;

pub(super) fn event(head: &[u8], info: u8, manager: u8) -> Option<Event> {
    let kind = match manager {
        MANAGER_XACT => info & 0x70,
        MANAGER_XLOG if info & 0xF0 == XLOG_RESTORE_POINT => XLOG_RESTORE_POINT,
        _ => return None,
    };
    let data = main_data(head)?;
    let clock = i64::from_le_bytes(number(data.get(..8)?, 0));
    let clock = clock.checked_add(EPOCH_MICROSECONDS)?;
    let time = Timestamp::from_microsecond(clock).ok()?;
    let xid = u32_at(head, 4);
    if manager == MANAGER_XLOG {
        let name = data.get(8..8 + NAME_BYTES)?;
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let name = String::from_utf8_lossy(name).into_owned();
        return Some(Event::RestorePoint { name, time });
    }
    match kind {
        0x00 => Some(Event::Commit { xid, time }),
        0x20 => Some(Event::Abort { xid, time }),
        // What was prepared is named further behind, in a place that differs by version.
        0x30 => Some(Event::Commit { xid: 0, time }),
        0x40 => Some(Event::Abort { xid: 0, time }),
        _ => None,
    }
}

/// The beginning of the main data of a record that refers to no block.
fn main_data(head: &[u8]) -> Option<&[u8]> {
    let mut at = RECORD_HEADER;
    loop {
        match *head.get(at)? {
            255 => return head.get(at + 2..),
            254 => return head.get(at + 5..),
            // The origin, and the transaction above this one.
            253 => at += 3,
            252 => at += 5,
            _ => return None,
        }
    }
}
