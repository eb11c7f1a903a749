//! Positions in WAL, timelines and the names of segments, as PostgreSQL writes them. No I/O.
//!
//! A [`SegmentName`] is a name and knows no size: what it covers follows from it together with
//! the cluster's [`SegmentSize`], which is chosen at initdb and is *not* always 16 MiB.
//!
//! Source: `xlog_internal.h`, `xlogdefs.h` and `timeline.c` of PostgreSQL.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A position in WAL (log sequence number): a byte offset, shown as `16/B374D848`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct Lsn(pub u64);

impl Lsn {
    /// No position (`InvalidXLogRecPtr`): no record ever begins at 0.
    pub const INVALID: Lsn = Lsn(0);

    /// The segment's beginning that this position lies in.
    #[must_use]
    pub fn segment_start(self, size: SegmentSize) -> Lsn {
        Lsn(self.0 & !(size.bytes() - 1))
    }

    /// How far it lies behind the segment's beginning, in bytes.
    #[must_use]
    pub fn segment_offset(self, size: SegmentSize) -> u64 {
        self.0 & (size.bytes() - 1)
    }

    /// Bytes from `earlier` to here; 0 when `earlier` is later.
    #[must_use]
    pub fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// So many bytes further; stays at the end of what can be counted.
    #[must_use]
    pub fn plus(self, bytes: u64) -> Lsn {
        Lsn(self.0.saturating_add(bytes))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = Error;

    /// As `pg_lsn` reads it: one to eight hexadecimal digits on each side of the slash.
    fn from_str(text: &str) -> Result<Self> {
        let part = |text: &str| {
            let digits =
                (1..=8).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            digits.then(|| u64::from_str_radix(text, 16).ok()).flatten()
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Lsn(part(high)? << 32 | part(low)?)))
            .ok_or_else(|| {
                Error::usage(format!("{text:?} is not an LSN"))
                    .hint("an LSN looks like 16/B374D848 (two hexadecimal numbers)")
            })
    }
}

/// One line of a cluster's history, counted from 1; shown as a plain number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timeline(NonZeroU32);

impl Timeline {
    /// That of every new cluster.
    pub const FIRST: Timeline = Timeline(NonZeroU32::MIN);

    /// None for 0, which PostgreSQL never uses.
    #[must_use]
    pub fn new(number: u32) -> Option<Timeline> {
        NonZeroU32::new(number).map(Timeline)
    }

    #[must_use]
    pub fn number(self) -> u32 {
        self.0.get()
    }

    /// The name of its history file: `00000003.history`. The first timeline has none.
    #[must_use]
    pub fn history_name(self) -> String {
        format!("{:08X}.history", self.number())
    }

    /// The inverse of [`Self::history_name`].
    #[must_use]
    pub fn parse_history_name(name: &str) -> Option<Timeline> {
        Timeline::new(upper_hex(name.strip_suffix(".history")?)?)
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number())
    }
}

impl FromStr for Timeline {
    type Err = Error;

    /// A decimal number, as the server sends it.
    fn from_str(text: &str) -> Result<Self> {
        let number = text.parse().ok().filter(|_| !text.starts_with('+'));
        let number = number.and_then(Timeline::new);
        number.ok_or_else(|| {
            Error::usage(format!("{text:?} is not a timeline"))
                .hint("a timeline is a number from 1 on")
        })
    }
}

/// The number that initdb gave a cluster, the same on its standbys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SystemId(pub u64);

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for SystemId {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let number = text.parse().ok().filter(|_| !text.starts_with('+'));
        number
            .map(SystemId)
            .ok_or_else(|| Error::usage(format!("{text:?} is not a cluster's system identifier")))
    }
}

/// `wal_segment_size`: a power of two from 1 MiB to 1 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct SegmentSize(u32);

impl SegmentSize {
    /// What initdb chooses unless told otherwise: 16 MiB.
    pub const DEFAULT: SegmentSize = SegmentSize(16 << 20);

    /// # Errors
    /// `Failed` for what PostgreSQL does not allow.
    pub fn new(bytes: u32) -> Result<SegmentSize> {
        if bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes) {
            Ok(SegmentSize(bytes))
        } else {
            Err(Error::failed(format!(
                "WAL segments of {bytes} bytes are not PostgreSQL's"
            ))
            .hint("they are a power of two from 1 MiB to 1 GiB"))
        }
    }

    /// Reads what `SHOW wal_segment_size` answers: `16MB`, `1GB`.
    ///
    /// # Errors
    /// `Failed` for anything else.
    pub fn parse(text: &str) -> Result<SegmentSize> {
        let units = [("MB", 20), ("GB", 30), ("kB", 10), ("B", 0)];
        let bytes = units.into_iter().find_map(|(unit, shift)| {
            let count: u32 = text.strip_suffix(unit)?.parse().ok()?;
            count.checked_mul(1 << shift)
        });
        let bytes = bytes.ok_or_else(|| {
            Error::failed(format!("wal_segment_size is {text:?}, which is no size"))
        })?;
        Self::new(bytes)
    }

    #[must_use]
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }
}

impl From<SegmentSize> for u32 {
    fn from(size: SegmentSize) -> u32 {
        size.0
    }
}

impl TryFrom<u32> for SegmentSize {
    type Error = Error;
    fn try_from(bytes: u32) -> Result<Self> {
        Self::new(bytes)
    }
}

/// The file name of a WAL segment: `000000010000002A000000FE`. Orders by timeline, then place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SegmentName {
    timeline: Timeline,
    /// The upper half of the LSN.
    high: u32,
    /// Which segment within that 4 GiB.
    low: u32,
}

impl SegmentName {
    /// The segment that holds this byte.
    #[must_use]
    pub fn holding(timeline: Timeline, lsn: Lsn, size: SegmentSize) -> SegmentName {
        // Both halves fit: the first is 32 bits of 64, the second at most 2^32 / 2^20.
        #[allow(clippy::cast_possible_truncation)]
        let (high, low) = (
            (lsn.0 >> 32) as u32,
            ((lsn.0 & 0xFFFF_FFFF) / size.bytes()) as u32,
        );
        SegmentName {
            timeline,
            high,
            low,
        }
    }

    #[must_use]
    pub fn timeline(self) -> Timeline {
        self.timeline
    }

    /// Where the segment begins.
    ///
    /// # Errors
    /// `Damage` when no segment of this size has this name.
    pub fn start(self, size: SegmentSize) -> Result<Lsn> {
        let offset = u64::from(self.low) * size.bytes();
        if offset > 0xFFFF_FFFF {
            return Err(Error::damage(format!(
                "{self} cannot be a segment of {} MiB",
                size.bytes() >> 20
            ))
            .hint("it belongs to a cluster with another wal_segment_size"));
        }
        Ok(Lsn(u64::from(self.high) << 32 | offset))
    }

    /// The one after it on the same timeline; itself at the end of what can be counted.
    #[must_use]
    pub fn next(self, size: SegmentSize) -> SegmentName {
        if u64::from(self.low) + 1 < (1 << 32) / size.bytes() {
            return SegmentName {
                low: self.low + 1,
                ..self
            };
        }
        match self.high.checked_add(1) {
            Some(high) => SegmentName {
                high,
                low: 0,
                ..self
            },
            None => self,
        }
    }

    /// The same place on another timeline.
    #[must_use]
    pub fn on(self, timeline: Timeline) -> SegmentName {
        SegmentName { timeline, ..self }
    }

    /// Whether the text is the name of a segment: 24 upper-case hexadecimal digits.
    #[must_use]
    pub fn is_name(text: &str) -> bool {
        SegmentName::from_str(text).is_ok()
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:08X}{:08X}{:08X}",
            self.timeline.number(),
            self.high,
            self.low
        )
    }
}

impl FromStr for SegmentName {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let parts = || {
            let [timeline, high, low] = [text.get(..8)?, text.get(8..16)?, text.get(16..)?];
            Some(SegmentName {
                timeline: Timeline::new(upper_hex(timeline)?)?,
                high: upper_hex(high)?,
                low: upper_hex(low)?,
            })
        };
        parts().ok_or_else(|| {
            Error::usage(format!("{text:?} is not the name of a WAL segment"))
                .hint("it has 24 hexadecimal digits, as 000000010000002A000000FE")
        })
    }
}

/// Exactly eight upper-case hexadecimal digits.
fn upper_hex(text: &str) -> Option<u32> {
    let digits = |byte: u8| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte);
    (text.len() == 8 && text.bytes().all(digits))
        .then(|| u32::from_str_radix(text, 16).ok())
        .flatten()
}

macro_rules! text_for_serde {
    ($type:ty) => {
        impl TryFrom<String> for $type {
            type Error = Error;
            fn try_from(text: String) -> Result<Self> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.to_string()
            }
        }
    };
}
text_for_serde!(Lsn);
text_for_serde!(SegmentName);
text_for_serde!(SystemId);

#[cfg(test)]
#[path = "wal_tests.rs"]
mod tests;
