//! Small value types that every room shares. No I/O.

mod history;
mod wal;

pub use history::TimelineHistory;
pub use wal::{Lsn, SegmentName, SegmentSize, SystemId, Timeline};

use std::fmt::{self, Write as _};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What a backup is a backup of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupKind {
    /// One database as plain SQL.
    Dump,
    /// Roles and tablespaces of a cluster.
    Globals,
    /// Physical copy of a cluster.
    Base,
}

impl fmt::Display for BackupKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BackupKind::Dump => "dump",
            BackupKind::Globals => "globals",
            BackupKind::Base => "base",
        })
    }
}

/// A backup's id: its file name without suffixes (design §6), for example
/// `backup_app_20250122_020015` or `globals_20250122_020015`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackupId(String);

impl BackupId {
    /// The id of a dump of `database` taken at `time` (cut to seconds, UTC).
    #[must_use]
    pub fn dump(database: &str, time: Timestamp) -> Self {
        BackupId(format!("backup_{}_{}", encode_name(database), stamp(time)))
    }

    /// The id of the globals taken at `time`.
    #[must_use]
    pub fn globals(time: Timestamp) -> Self {
        BackupId(format!("globals_{}", stamp(time)))
    }

    /// The id of the base backup taken at `time`.
    #[must_use]
    pub fn base(time: Timestamp) -> Self {
        BackupId(format!("base_{}", stamp(time)))
    }

    /// Parses an id.
    ///
    /// # Errors
    /// `Usage` when the text is not an id.
    pub fn parse(text: &str) -> Result<Self> {
        let id = BackupId(text.to_owned());
        let known = text.starts_with("backup_")
            || text.starts_with("globals_")
            || text.starts_with("base_");
        if known
            && id.time().is_some()
            && (id.kind() != BackupKind::Dump || id.database().is_some())
        {
            Ok(id)
        } else {
            Err(Error::usage(format!("{text:?} is not a backup's id"))
                .hint("ids look like backup_app_20250122_020015; `pgark list` shows them"))
        }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    #[must_use]
    pub fn kind(&self) -> BackupKind {
        if self.0.starts_with("backup_") {
            BackupKind::Dump
        } else if self.0.starts_with("globals_") {
            BackupKind::Globals
        } else {
            BackupKind::Base
        }
    }

    /// The database's name, decoded; none for globals and base backups.
    #[must_use]
    pub fn database(&self) -> Option<String> {
        let rest = self.0.strip_prefix("backup_")?;
        let name = rest.get(..rest.len().checked_sub(16)?)?;
        (!name.is_empty()).then(|| decode_name(name))
    }

    /// The moment in the name.
    #[must_use]
    pub fn time(&self) -> Option<Timestamp> {
        let at = self.0.len().checked_sub(16)?;
        let text = self.0.get(at..)?.strip_prefix('_')?;
        let (day, time) = text.split_once('_')?;
        let digits =
            |text: &str, len: usize| text.len() == len && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(day, 8) || !digits(time, 6) {
            return None;
        }
        let text = format!(
            "{}-{}-{}T{}:{}:{}Z",
            &day[..4],
            &day[4..6],
            &day[6..],
            &time[..2],
            &time[2..4],
            &time[4..]
        );
        text.parse().ok()
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for BackupId {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        BackupId::parse(&text)
    }
}

impl From<BackupId> for String {
    fn from(id: BackupId) -> String {
        id.0
    }
}

/// `YYYYMMDD_HHMMSS` in UTC, as in every name on a store.
#[must_use]
pub fn stamp(time: Timestamp) -> String {
    time.strftime("%Y%m%d_%H%M%S").to_string()
}

/// Percent-encodes what a file name cannot carry or what `sha256sum -c $(ls …)` would trip
/// over: `%`, `/`, blanks, backslash, control bytes, a leading dash.
#[must_use]
pub fn encode_name(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for (i, c) in name.chars().enumerate() {
        let plain = !(c == '%'
            || c == '/'
            || c == '\\'
            || c.is_whitespace()
            || c.is_control()
            || (i == 0 && c == '-'));
        if plain {
            out.push(c);
        } else {
            let mut buffer = [0; 4];
            for byte in c.encode_utf8(&mut buffer).bytes() {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

/// The inverse of [`encode_name`]; text that it never wrote is taken literally.
#[must_use]
pub fn decode_name(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let pair = (bytes[i] == b'%').then(|| text.get(i + 1..i + 3)).flatten();
        if let Some(byte) = pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            out.push(byte);
            i += 3;
        } else {
            out.push(bytes[i]);
            i += 1;
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| text.to_owned())
}

/// How artefacts are compressed. A value only; `archive::codec` does the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// One gzip member a frame, libdeflate's levels 1 to 12. None: 1 or 2 for each frame, 2 where
    /// that makes it clearly smaller.
    Gzip { level: Option<u8> },
    /// One zstd frame a frame, levels 1 to 19. None: 1 or 3 for each frame, 3 where that makes it
    /// clearly smaller.
    Zstd { level: Option<u8> },
    /// As it is.
    None,
}

impl Default for Codec {
    fn default() -> Self {
        Codec::GZIP
    }
}

impl Codec {
    /// gzip without a level (measured: docs/decisions/0002-compression-defaults.md).
    pub const GZIP: Codec = Codec::Gzip { level: None };
    /// zstd without a level, likewise.
    pub const ZSTD: Codec = Codec::Zstd { level: None };

    /// Parses `gzip[:1-12]`, `zstd[:1-19]` or `none`.
    ///
    /// # Errors
    /// `Usage` naming the allowed values.
    pub fn parse(text: &str) -> Result<Self> {
        let (name, level) = match text.split_once(':') {
            Some((name, level)) => (name, Some(level.parse::<u8>().ok())),
            None => (text, None),
        };
        match (name, level) {
            ("gzip", None) => Ok(Codec::GZIP),
            ("gzip", Some(Some(level @ 1..=12))) => Ok(Codec::Gzip { level: Some(level) }),
            ("zstd", None) => Ok(Codec::ZSTD),
            ("zstd", Some(Some(level @ 1..=19))) => Ok(Codec::Zstd { level: Some(level) }),
            ("none", None) => Ok(Codec::None),
            _ => Err(
                Error::usage(format!("{text:?} is not a compression pgark knows"))
                    .hint("give gzip, gzip:1 to gzip:12, zstd, zstd:1 to zstd:19, or none"),
            ),
        }
    }

    /// The end of an artefact's name: `.gz`, `.zst` or nothing.
    #[must_use]
    pub fn suffix(self) -> &'static str {
        match self {
            Codec::Gzip { .. } => ".gz",
            Codec::Zstd { .. } => ".zst",
            Codec::None => "",
        }
    }

    /// The method without its level: `gzip`, `zstd` or `none`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Codec::Gzip { .. } => "gzip",
            Codec::Zstd { .. } => "zstd",
            Codec::None => "none",
        }
    }

    /// Whether both are the same method, whatever their levels: decoding needs no more.
    #[must_use]
    pub fn same_method(self, other: Codec) -> bool {
        self.name() == other.name()
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Codec::Gzip { level: Some(level) } | Codec::Zstd { level: Some(level) } => {
                write!(f, "{}:{level}", self.name())
            }
            _ => f.write_str(self.name()),
        }
    }
}

impl std::str::FromStr for Codec {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Codec::parse(text)
    }
}

/// A number of bytes, shown for people in binary units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl fmt::Display for ByteSize {
    #[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0 as f64;
        let mut unit = "B";
        for next in ["KiB", "MiB", "GiB", "TiB", "PiB"] {
            if value < 1024.0 {
                break;
            }
            value /= 1024.0;
            unit = next;
        }
        if unit == "B" || value >= 100.0 {
            write!(f, "{value:.0} {unit}")
        } else {
            write!(f, "{value:.1} {unit}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn odd_database_name_is_a_safe_file_name() {
        let time = "2025-01-22T02:00:15Z".parse().unwrap();
        let id = BackupId::dump("a/b \"c\"", time);
        assert_eq!(id.as_str(), "backup_a%2Fb%20\"c\"_20250122_020015");
        assert_eq!(id.database().as_deref(), Some("a/b \"c\""));
        assert_eq!(id.time(), Some(time));
        assert_eq!(
            BackupId::dump("-rf", time).as_str(),
            "backup_%2Drf_20250122_020015"
        );
    }

    #[test]
    fn ids_that_are_none_are_refused() {
        for text in [
            "",
            "backup_",
            "backup_20250122_020015",
            "backup_app_20251322_020015",
            "notes.txt",
            "é_20250122_020015",
            "backup_app_2025012é_02001",
        ] {
            assert!(BackupId::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn compression_is_parsed_with_its_bounds() {
        for text in ["gzip:1", "gzip:12", "zstd:1", "zstd:19", "none"] {
            assert_eq!(Codec::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Codec::parse("gzip").unwrap(), Codec::default());
        for text in [
            "", "gzip:", "gzip:0", "gzip:13", "zstd:20", "none:1", "lz4", "GZIP",
        ] {
            let error = Codec::parse(text).unwrap_err();
            assert!(error.hint.unwrap().contains("zstd:19"), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_name_survives_its_id(name in "\\PC{1,20}|[-%/\\\\ \\t\\n\"a-z_]{1,63}") {
            let time = "2025-01-22T02:00:15Z".parse().unwrap();
            let id = BackupId::dump(&name, time);
            prop_assert!(!id.as_str().contains(['/', '\\', ' ', '\n', '\t']));
            prop_assert_eq!(BackupId::parse(id.as_str()).unwrap().database(), Some(name));
        }
    }
}
