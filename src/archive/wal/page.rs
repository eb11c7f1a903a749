//! Pages of WAL: their headers, and the proof that received bytes are this cluster's at their place. No I/O.
//!
//! Invariant: a byte behind a page that is not right is never let through.

use crate::error::{Error, Result};
use crate::units::{Lsn, SegmentSize, SystemId, Timeline};

/// `XLOG_BLCKSZ` of nearly every server; the first page of each segment tells the real one.
pub(super) const BLOCK_BYTES: usize = 8192;
/// `SizeOfXLogShortPHD`.
pub(super) const SHORT_HEADER: usize = 24;
/// `SizeOfXLogLongPHD`.
pub(super) const LONG_HEADER: usize = 40;
/// The first half of every `XLOG_PAGE_MAGIC` so far (`0xD10D` is PostgreSQL 14's).
const MAGIC_FAMILY: u8 = 0xD1;
/// Page flags: it begins within a record; its header is long; what the page before began stays unfinished.
pub(super) const CONTINUES: u16 = 1;
pub(super) const LONG: u16 = 2;
pub(super) const OVERWRITES: u16 = 8;

pub(super) fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut number = [0; N];
    if let Some(found) = bytes.get(at..at + N) {
        number.copy_from_slice(found);
    }
    number
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(number(bytes, at))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(number(bytes, at))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(number(bytes, at))
}

/// The header of a page.
#[derive(Debug, Clone, Copy)]
pub(super) struct Page {
    pub(super) flags: u16,
    timeline: u32,
    /// Bytes of the record before that come first.
    pub(super) rest: usize,
    /// System identifier, segment size, block size.
    pub(super) long: Option<(u64, u64, usize)>,
}

impl Page {
    /// None: this is no page of WAL that belongs at `lsn`.
    pub(super) fn parse(bytes: &[u8], lsn: Lsn) -> Option<Page> {
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

    pub(super) fn header_bytes(self) -> usize {
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

pub(super) fn is_block(bytes: usize) -> bool {
    bytes.is_power_of_two() && (1024..=65536).contains(&bytes)
}
