//! The names of archived WAL: `wal/<system id>/`, flat, so that a one-line `restore_command` serves
//! by hand (design §3). Pure.
//!
//! Invariants: a name says what is in the file, and every name of a segment sorts by timeline and
//! place; the system identifier stands above, because `pg_upgrade` and a new `initdb` begin
//! timeline 1 anew with the same names.

use crate::error::Result;
use crate::store::Key;
use crate::units::{SegmentName, SystemId, Timeline};

/// The folder of all WAL.
pub const WAL_FOLDER: &str = "wal/";

/// One file of archived WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WalFile {
    /// A whole segment, compressed: `<segment>.zst`.
    Segment { name: SegmentName, encrypted: bool },
    /// Bytes of a segment from `offset` on, compressed and immutable: `<segment>.partial.<offset>.zst`.
    /// Pieces of one segment may overlap; where they do, they are equal.
    Piece {
        segment: SegmentName,
        /// From the segment's beginning, in bytes; ten digits in the name.
        offset: u64,
        encrypted: bool,
    },
    /// The segment that is being received, as it is, at its full length with zeros behind what
    /// has come: `<segment>.partial`. In local stores only, and never when backups are encrypted.
    Open(SegmentName),
    /// `<timeline>.history`, as the server has it.
    History(Timeline),
}

impl WalFile {
    /// The segment that it belongs to; none for a history.
    #[must_use]
    pub fn segment(&self) -> Option<SegmentName> {
        match self {
            WalFile::Segment { name, .. } | WalFile::Open(name) => Some(*name),
            WalFile::Piece { segment, .. } => Some(*segment),
            WalFile::History(_) => None,
        }
    }

    /// Its name without the folder.
    #[must_use]
    pub fn file_name(&self) -> String {
        let age = |encrypted: &bool| if *encrypted { ".age" } else { "" };
        match self {
            WalFile::Segment { name, encrypted } => format!("{name}.zst{}", age(encrypted)),
            WalFile::Piece {
                segment,
                offset,
                encrypted,
            } => format!("{segment}.partial.{offset:010}.zst{}", age(encrypted)),
            WalFile::Open(name) => format!("{name}.partial"),
            WalFile::History(timeline) => timeline.history_name(),
        }
    }

    /// The inverse of [`Self::file_name`].
    #[must_use]
    pub fn parse(name: &str) -> Option<WalFile> {
        if let Some(timeline) = Timeline::parse_history_name(name) {
            return Some(WalFile::History(timeline));
        }
        if let Some(segment) = name.strip_suffix(".partial") {
            return segment.parse().ok().map(WalFile::Open);
        }
        let (name, encrypted) = match name.strip_suffix(".age") {
            Some(name) => (name, true),
            None => (name, false),
        };
        let name = name.strip_suffix(".zst")?;
        if let Ok(name) = name.parse() {
            return Some(WalFile::Segment { name, encrypted });
        }
        let (segment, offset) = name.split_once(".partial.")?;
        let digits = offset.len() == 10 && offset.bytes().all(|byte| byte.is_ascii_digit());
        Some(WalFile::Piece {
            segment: segment.parse().ok()?,
            offset: offset.parse().ok().filter(|_| digits)?,
            encrypted,
        })
    }
}

/// The folder of a cluster's WAL, with its slash.
#[must_use]
pub fn wal_folder(system: SystemId) -> String {
    format!("{WAL_FOLDER}{system}/")
}

/// A file of a cluster's WAL.
///
/// # Errors
/// None that these values can cause.
pub fn wal_key(system: SystemId, file: &WalFile) -> Result<Key> {
    Key::new(&format!("{}{}", wal_folder(system), file.file_name()))
}

/// How far a cluster's WAL is known to be in this store, and up to which moment.
///
/// # Errors
/// As [`wal_key`].
pub fn wal_reach_key(system: SystemId) -> Result<Key> {
    Key::new(&format!(".pgark/wal_{system}.json"))
}

/// Whether a key lies in the folder of archived WAL.
#[must_use]
pub fn in_wal_folder(key: &Key) -> bool {
    key.as_str().starts_with(WAL_FOLDER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_those_of_the_contract() {
        let system = SystemId(7_412_345_678_901_234_567);
        let name: SegmentName = "000000010000002A000000FE".parse().unwrap();
        for (file, expected) in [
            (
                WalFile::Segment {
                    name,
                    encrypted: false,
                },
                "000000010000002A000000FE.zst",
            ),
            (
                WalFile::Piece {
                    segment: name,
                    offset: 8192,
                    encrypted: true,
                },
                "000000010000002A000000FE.partial.0000008192.zst.age",
            ),
            (WalFile::Open(name), "000000010000002A000000FE.partial"),
            (
                WalFile::History(Timeline::new(10).unwrap()),
                "0000000A.history",
            ),
        ] {
            let key = wal_key(system, &file).unwrap();
            assert_eq!(key.as_str(), format!("wal/7412345678901234567/{expected}"));
            assert!(in_wal_folder(&key));
            assert_eq!(WalFile::parse(expected), Some(file));
        }
        for other in [
            "000000010000002A000000FE",
            "000000010000002A000000FE.gz",
            "000000010000002A000000FE.partial.8192.zst",
            "000000010000002A000000FE.partial.+000008192.zst",
            "000000010000002A000000FE.partial.zst",
            "00000001000000.zst",
            ".000000010000002A000000FE.zst.01234567.pgark-tmp",
            "0000000a.history",
        ] {
            assert_eq!(WalFile::parse(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_name_of_ours_only_if_we_would_write_it(text in "[0-9A-F]{24}(\\.partial)?(\\.[0-9]{10})?(\\.zst)?(\\.age)?|\\PC{0,40}") {
            if let Some(file) = WalFile::parse(&text) {
                prop_assert_eq!(file.file_name(), text);
            }
        }
    }
}
