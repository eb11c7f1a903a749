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

use jiff::Timestamp;

use super::crc32c::Crc32c;
use crate::error::{Error, Result};
use crate::units::{Lsn, SegmentSize, SystemId, Timeline};

/// `XLOG_BLCKSZ` of nearly every server; the first page of each segment tells the real one.
const BLOCK_BYTES: usize = 8192;
/// `SizeOfXLogShortPHD`.
const SHORT_HEADER: usize = 24;
/// `SizeOfXLogLongPHD`.
const LONG_HEADER: usize = 40;
/// The first half of every `XLOG_PAGE_MAGIC` so far (`0xD10D` is PostgreSQL 14's).
const MAGIC_FAMILY: u8 = 0xD1;
/// Page flags: it begins within a record; its header is long; what the page before began stays unfinished.
const CONTINUES: u16 = 1;
const LONG: u16 = 2;
const OVERWRITES: u16 = 8;
/// `SizeOfXLogRecord`.
const RECORD_HEADER: usize = 24;
/// No record is larger (`XLogRecordMaxSize`).
const RECORD_MAX: usize = 1020 << 20;
/// What is kept of a record: enough for the beginning of its main data.
const HEAD_BYTES: usize = 256;
/// From 1970 to 2000, where PostgreSQL's clock begins.
const EPOCH_MICROSECONDS: i64 = 946_684_800_000_000;

fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut number = [0; N];
    if let Some(found) = bytes.get(at..at + N) {
        number.copy_from_slice(found);
    }
    number
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(number(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(number(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(number(bytes, at))
}

/// The header of a page.
#[derive(Debug, Clone, Copy)]
struct Page {
    flags: u16,
    timeline: u32,
    /// Bytes of the record before that come first.
    rest: usize,
    /// System identifier, segment size, block size.
    long: Option<(u64, u64, usize)>,
}

impl Page {
    /// None: this is no page of WAL that belongs at `lsn`.
    fn parse(bytes: &[u8], lsn: Lsn) -> Option<Page> {
        let flags = u16_at(bytes, 2);
        let long = flags & LONG != 0;
        let known = bytes.get(1) == Some(&MAGIC_FAMILY) && u64_at(bytes, 8) == lsn.0;
        let whole = bytes.len() >= if long { LONG_HEADER } else { SHORT_HEADER };
        (known && whole).then(|| Page {
            flags,
            timeline: u32_at(bytes, 4),
            rest: u32_at(bytes, 16) as usize,
            long: long.then(|| {
                let sizes = (u32_at(bytes, 32), u32_at(bytes, 36));
                (u64_at(bytes, 24), u64::from(sizes.0), sizes.1 as usize)
            }),
        })
    }

    fn header_bytes(self) -> usize {
        if self.long.is_some() {
            LONG_HEADER
        } else {
            SHORT_HEADER
        }
    }
}

/// Proves of a stream of WAL that its pages are of this cluster and at their place.
#[derive(Debug)]
pub struct PageCheck {
    system: SystemId,
    size: SegmentSize,
    timeline: Timeline,
    block: usize,
    head: [u8; LONG_HEADER],
}

impl PageCheck {
    /// For a stream that begins at the beginning of a segment.
    #[must_use]
    pub fn new(system: SystemId, size: SegmentSize, timeline: Timeline) -> PageCheck {
        PageCheck {
            system,
            size,
            timeline,
            block: BLOCK_BYTES,
            head: [0; LONG_HEADER],
        }
    }

    /// Looks at the bytes that begin at `lsn`; they follow those before without a gap.
    ///
    /// # Errors
    /// `Damage` for a page of another cluster, place or timeline. Nothing of the bytes may be kept.
    pub fn feed(&mut self, lsn: Lsn, bytes: &[u8]) -> Result<()> {
        let (mut lsn, mut bytes) = (lsn, bytes);
        while !bytes.is_empty() {
            let first = lsn.segment_offset(self.size) == 0;
            // Bounded by the block's size.
            let within = usize::try_from(lsn.segment_offset(self.size) % self.block as u64)
                .unwrap_or_default();
            let begins_segment = first || lsn.segment_offset(self.size) < LONG_HEADER as u64;
            let wanted = if begins_segment {
                LONG_HEADER
            } else {
                SHORT_HEADER
            };
            let count = if within < wanted {
                let count = (wanted - within).min(bytes.len());
                self.head[within..within + count].copy_from_slice(&bytes[..count]);
                if within + count == wanted {
                    let page = Lsn(lsn.0 - within as u64);
                    self.judge(page, wanted)?;
                }
                count
            } else {
                (self.block - within).min(bytes.len())
            };
            bytes = &bytes[count..];
            lsn = lsn.plus(count as u64);
        }
        Ok(())
    }

    fn judge(&mut self, lsn: Lsn, bytes: usize) -> Result<()> {
        let head = &self.head[..bytes];
        // Behind a forced switch a server may leave pages empty.
        if bytes == SHORT_HEADER && head.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        let foreign = |what: String| {
            Error::damage(format!(
                "the WAL that came for {lsn} is not to be kept: {what}"
            ))
            .hint("is this still the same cluster? `pgark check` tells; nothing of it was stored")
        };
        let Some(page) = Page::parse(head, lsn) else {
            return Err(foreign("it is no page of that place".to_owned()));
        };
        if page.timeline > self.timeline.number() {
            return Err(foreign(format!(
                "its page is of timeline {}, the stream of {}",
                page.timeline, self.timeline
            )));
        }
        if bytes == LONG_HEADER {
            let Some((system, size, block)) = page.long else {
                return Err(foreign("a segment begins without its header".to_owned()));
            };
            if system != self.system.0 {
                return Err(foreign(format!(
                    "it is of the cluster {system}, not of {}",
                    self.system
                )));
            }
            if size != self.size.bytes() || !is_block(block) {
                return Err(foreign(format!("it tells of segments of {size} bytes")));
            }
            self.block = block;
        }
        Ok(())
    }
}

fn is_block(bytes: usize) -> bool {
    bytes.is_power_of_two() && (1024..=65536).contains(&bytes)
}

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

const MANAGER_XLOG: u8 = 0;
const MANAGER_XACT: u8 = 1;
const XLOG_SWITCH: u8 = 0x40;
const XLOG_RESTORE_POINT: u8 = 0x70;
/// `MAXFNAMELEN`.
const NAME_BYTES: usize = 64;

fn event(head: &[u8], info: u8, manager: u8) -> Option<Event> {
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

#[cfg(test)]
#[path = "wal_tests.rs"]
mod tests;
