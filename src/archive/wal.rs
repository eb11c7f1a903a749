//! Pages and records of WAL, as far as a backup needs to understand them. No I/O.
//!
//! [`PageCheck`] proves that received bytes are WAL of this cluster at this place. [`Scanner`] walks
//! the records: where the last whole one begins, when transactions ended, restore points by name. It
//! stops where PostgreSQL would stop: at the first record that is not whole.
//!
//! Invariants: what a scanner reports has the right CRC and follows the record before it; any bytes
//! are either records or the end, never a panic; memory is one page and the head of one record.
//!
//! Source: `xlog_internal.h`, `xlogrecord.h`, `xlogreader.c`, `xact.h` and `pg_control.h` of PostgreSQL.
//! Little-endian, as on every machine that pgark runs on.

mod event;
mod page;

use self::event::{MANAGER_XLOG, XLOG_SWITCH, event};
use self::page::{
    BLOCK_BYTES, CONTINUES, LONG_HEADER, OVERWRITES, Page, SHORT_HEADER, is_block, u32_at, u64_at,
};
use super::crc32c::Crc32c;
use crate::units::{Lsn, SegmentSize};

pub use self::event::Event;
pub use self::page::PageCheck;

/// `SizeOfXLogRecord`.
const RECORD_HEADER: usize = 24;
/// No record is larger (`XLogRecordMaxSize`).
const RECORD_MAX: usize = 1020 << 20;
/// What is kept of a record: enough for the beginning of its main data.
const HEAD_BYTES: usize = 256;

/// A record that was found whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Where it begins, as `pg_waldump` shows it.
    pub lsn: Lsn,
    /// The first byte behind it.
    pub end: Lsn,
    pub event: Event,
}

/// Walks records from the beginning of a segment on.
#[derive(Debug)]
pub struct Scanner {
    size: SegmentSize,
    /// Where the next page begins.
    at: Lsn,
    block: usize,
    page: Vec<u8>,
    open: Option<Open>,
    /// Bytes of a record that began before the scan did.
    pass_over: usize,
    /// A forced switch: nothing comes until the next segment.
    switched: bool,
    first: Option<Lsn>,
    last: Option<(Lsn, Lsn)>,
    ended: bool,
}

/// A record that goes on on the next page.
#[derive(Debug)]
struct Open {
    lsn: Lsn,
    total: usize,
    have: usize,
    head: Vec<u8>,
    crc: Crc32c,
}

impl Scanner {
    /// Begins at `start`, which is the beginning of a segment.
    #[must_use]
    pub fn new(start: Lsn, size: SegmentSize) -> Scanner {
        Scanner {
            size,
            at: start.segment_start(size),
            block: BLOCK_BYTES,
            page: Vec::new(),
            open: None,
            pass_over: 0,
            switched: false,
            first: None,
            last: None,
            ended: false,
        }
    }

    /// Takes the bytes that follow; `found` gets what a restore may aim at.
    pub fn feed(&mut self, bytes: &[u8], found: &mut dyn FnMut(Record)) {
        let mut bytes = bytes;
        while !bytes.is_empty() && !self.ended {
            if self.page.is_empty() && bytes.len() >= self.block {
                // Not copied: most pages lie whole in what is fed.
                let (page, rest) = bytes.split_at(self.block);
                self.take(page, found);
                bytes = rest;
                continue;
            }
            let count = (self.block - self.page.len()).min(bytes.len());
            self.page.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            if self.page.len() == self.block {
                let page = std::mem::take(&mut self.page);
                self.take(&page, found);
                self.page = page;
                self.page.clear();
            }
        }
    }

    /// Takes what is left: a page that did not come whole.
    pub fn finish(&mut self, found: &mut dyn FnMut(Record)) {
        let mut page = std::mem::take(&mut self.page);
        if !page.is_empty() && !self.ended {
            page.resize(self.block, 0);
            self.take(&page, found);
        }
    }

    /// Where the first record begins that was found whole.
    #[must_use]
    pub fn first(&self) -> Option<Lsn> {
        self.first
    }

    /// Where the last record begins that was found whole, and the first byte behind it.
    #[must_use]
    pub fn last(&self) -> Option<(Lsn, Lsn)> {
        self.last
    }

    /// Whether the end of what can be replayed was met: more bytes change nothing.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    fn take(&mut self, page: &[u8], found: &mut dyn FnMut(Record)) {
        let lsn = self.at;
        self.at = lsn.plus(page.len() as u64);
        if lsn.segment_offset(self.size) == 0 {
            self.switched = false;
        }
        if self.switched {
            return;
        }
        let Some(header) = Page::parse(page, lsn) else {
            self.ended = true;
            return;
        };
        if let Some((_, _, block)) = header.long
            && block != self.block
        {
            // A server that was built with another block size: its pages are cut anew.
            if is_block(block) && block < page.len() {
                self.at = lsn;
                self.block = block;
                for part in page.chunks(block) {
                    self.take(part, found);
                }
            } else {
                self.ended = true;
            }
            return;
        }
        let Some(at) = self.rest_of_record(page, header, found) else {
            return;
        };
        self.records(page, lsn, at, found);
    }

    /// The record that the page begins with the rest of. Where the next one begins, if it does.
    fn rest_of_record(
        &mut self,
        page: &[u8],
        header: Page,
        found: &mut dyn FnMut(Record),
    ) -> Option<usize> {
        let at = header.header_bytes();
        if header.flags & CONTINUES == 0 {
            let dropped = self.open.take().is_some() || self.pass_over > 0;
            self.pass_over = 0;
            if dropped && header.flags & OVERWRITES == 0 {
                self.ended = true;
                return None;
            }
            return Some(at);
        }
        let expected = match &self.open {
            Some(open) => open.total - open.have,
            None if self.last.is_none() && self.pass_over == 0 => header.rest,
            None => self.pass_over,
        };
        if expected != header.rest || expected == 0 || expected > RECORD_MAX {
            self.ended = true;
            return None;
        }
        let count = expected.min(page.len() - at);
        if self.open.is_none() {
            self.pass_over = expected - count;
        } else {
            self.absorb(&page[at..at + count], found);
        }
        (!self.ended && !self.switched && count == expected).then_some(at + count)
    }

    fn records(&mut self, page: &[u8], lsn: Lsn, at: usize, found: &mut dyn FnMut(Record)) {
        let mut at = at.next_multiple_of(8);
        while at < page.len() {
            let total = u32_at(page, at) as usize;
            if !(RECORD_HEADER..=RECORD_MAX).contains(&total) {
                self.ended = true;
                return;
            }
            let count = total.min(page.len() - at);
            self.open = Some(Open {
                lsn: lsn.plus(at as u64),
                total,
                have: 0,
                head: Vec::with_capacity(total.min(HEAD_BYTES)),
                crc: Crc32c::default(),
            });
            self.absorb(&page[at..at + count], found);
            if self.ended || self.switched {
                return;
            }
            at = (at + count).next_multiple_of(8);
        }
    }

    fn absorb(&mut self, bytes: &[u8], found: &mut dyn FnMut(Record)) {
        let Some(open) = &mut self.open else { return };
        // The checksum begins behind the header, which comes last (`ValidXLogRecord`).
        let header = RECORD_HEADER.saturating_sub(open.have).min(bytes.len());
        open.crc.update(&bytes[header..]);
        let keep = HEAD_BYTES.saturating_sub(open.head.len()).min(bytes.len());
        open.head.extend_from_slice(&bytes[..keep]);
        open.have += bytes.len();
        if open.have == open.total {
            self.complete(found);
        }
    }

    fn complete(&mut self, found: &mut dyn FnMut(Record)) {
        let Some(mut open) = self.open.take() else {
            return;
        };
        open.crc.update(&open.head[..20]);
        let previous = Lsn(u64_at(&open.head, 8));
        let follows = self.last.is_none_or(|(last, _)| last == previous);
        if open.crc.value() != u32_at(&open.head, 20) || !follows {
            self.ended = true;
            return;
        }
        let end = Lsn(self.end_of(&open));
        self.first.get_or_insert(open.lsn);
        self.last = Some((open.lsn, end));
        let (info, manager) = (open.head[16], open.head[17]);
        self.switched = manager == MANAGER_XLOG && info & 0xF0 == XLOG_SWITCH;
        if let Some(event) = event(&open.head, info, manager) {
            found(Record {
                lsn: open.lsn,
                end,
                event,
            });
        }
    }

    /// The first byte behind a record that began at `open`: headers of pages lie between.
    fn end_of(&self, open: &Open) -> u64 {
        let block = self.block as u64;
        let mut at = open.lsn.0;
        let mut left = open.total as u64;
        loop {
            let room = block - at % block;
            if left <= room {
                return (at + left).next_multiple_of(8);
            }
            left -= room;
            at += room;
            let first = Lsn(at).segment_offset(self.size) == 0;
            at += if first { LONG_HEADER } else { SHORT_HEADER } as u64;
        }
    }
}

#[cfg(test)]
#[path = "wal_tests.rs"]
mod tests;
