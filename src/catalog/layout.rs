//! Every name on a store is built and taken apart here (design §3). Pure.
//!
//! Invariant: `parse_key` knows exactly the names that the builders make, and those of the old
//! service; any other file in the directory is none of pgark's business.

mod wal;

use crate::error::Result;
use crate::store::Key;
use crate::units::{BackupId, BackupKind, Codec};

pub use wal::{WAL_FOLDER, WalFile, in_wal_folder, wal_folder, wal_key, wal_reach_key};

/// The folder of outcomes.
pub const STATE_FOLDER: &str = ".pgark/state/";
/// What is known of all manifests: see `known`.
pub const CATALOG: &str = ".pgark/catalog.jsonl.zst";
/// The lock of runs that take dumps.
pub const DUMP_LOCK: &str = "dump";
/// The lock of runs that take base backups.
pub const BASE_LOCK: &str = "base";
/// The lock of the stream of WAL.
pub const WAL_LOCK: &str = "wal";

/// What makes a base backup exist, in its folder.
pub const BASE_MANIFEST: &str = "manifest.json";
/// Its `.sha256`: a line for each file.
pub const BASE_SUMS: &str = "SHA256SUMS";
/// The server's own list of files and checksums, as it sent it.
pub const BACKUP_MANIFEST: &str = "backup_manifest";

/// The files of one backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    Artefact,
    Manifest,
    Index,
    Sums,
}

impl Part {
    /// What follows the artefact's name.
    #[must_use]
    pub fn suffix(self) -> &'static str {
        match self {
            Part::Artefact => "",
            Part::Manifest => ".json",
            Part::Index => ".idx",
            Part::Sums => ".sha256",
        }
    }
}

/// Outcomes that a listing shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// A person said that a suspect backup is as it should be.
    Accepted,
    Verified,
    Proven,
    Failed,
}

impl Outcome {
    pub const ALL: [Outcome; 4] = [
        Outcome::Accepted,
        Outcome::Verified,
        Outcome::Proven,
        Outcome::Failed,
    ];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Accepted => "accepted",
            Outcome::Verified => "verified",
            Outcome::Proven => "proven",
            Outcome::Failed => "failed",
        }
    }
}

/// A file of a backup. Encrypted ones carry `.age` behind the codec's suffix.
///
/// # Errors
/// None that an id can cause: it holds no `/`.
pub fn part_key(id: &BackupId, codec: Codec, encrypted: bool, part: Part) -> Result<Key> {
    let age = if encrypted { ".age" } else { "" };
    if id.kind() == BackupKind::Base {
        let archive = format!("base.tar{}{age}", codec.suffix());
        return base_key(
            id,
            &match part {
                Part::Artefact => archive,
                Part::Index => format!("{archive}{}", part.suffix()),
                Part::Manifest => BASE_MANIFEST.to_owned(),
                Part::Sums => BASE_SUMS.to_owned(),
            },
        );
    }
    Key::new(&format!("{id}.sql{}{age}{}", codec.suffix(), part.suffix()))
}

/// A file in the folder of a base backup.
///
/// # Errors
/// For a name that holds a slash at its ends; none that pgark makes.
pub fn base_key(id: &BackupId, name: &str) -> Result<Key> {
    Key::new(&format!("{id}/{name}"))
}

/// The base backup whose folder this is.
#[must_use]
pub fn parse_base_folder(folder: &str) -> Option<BackupId> {
    let id = BackupId::parse(folder).ok()?;
    (id.kind() == BackupKind::Base).then_some(id)
}

/// Whether a name in such a folder is one that pgark writes: an archive, an index, or one of three.
#[must_use]
pub fn is_base_file(name: &str) -> bool {
    if [BASE_MANIFEST, BASE_SUMS, BACKUP_MANIFEST].contains(&name) {
        return true;
    }
    let name = name.strip_suffix(Part::Index.suffix()).unwrap_or(name);
    let name = name.strip_suffix(".age").unwrap_or(name);
    let stem = name.strip_suffix(".zst").unwrap_or(name);
    let Some(stem) = stem.strip_suffix(".tar") else {
        return false;
    };
    stem == "base" || stem == "pg_wal" || stem.parse::<u32>().is_ok()
}

/// `.pgark/state/<id>.verified.json` and its like.
///
/// # Errors
/// As [`part_key`].
pub fn state_key(id: &BackupId, outcome: Outcome) -> Result<Key> {
    Key::new(&format!("{STATE_FOLDER}{id}.{}.json", outcome.name()))
}

/// The inverse of [`state_key`].
#[must_use]
pub fn parse_state_key(key: &str) -> Option<(BackupId, Outcome)> {
    let name = key.strip_prefix(STATE_FOLDER)?.strip_suffix(".json")?;
    let (id, outcome) = name.rsplit_once('.')?;
    let outcome = Outcome::ALL.into_iter().find(|o| o.name() == outcome)?;
    Some((BackupId::parse(id).ok()?, outcome))
}

/// What a name says: id, codec (at its default level), whether encrypted, and which part.
#[must_use]
pub fn parse_key(key: &str) -> Option<(BackupId, Codec, bool, Part)> {
    let parts = [Part::Manifest, Part::Index, Part::Sums];
    let (name, part) = parts
        .into_iter()
        .find_map(|part| Some((key.strip_suffix(part.suffix())?, part)))
        .unwrap_or((key, Part::Artefact));
    let (name, encrypted) = match name.strip_suffix(".age") {
        Some(name) => (name, true),
        None => (name, false),
    };
    let (name, codec) = [Codec::GZIP, Codec::ZSTD]
        .into_iter()
        .find_map(|codec| Some((name.strip_suffix(codec.suffix())?, codec)))
        .unwrap_or((name, Codec::None));
    let id = BackupId::parse(name.strip_suffix(".sql")?).ok()?;
    // Base backups are folders; a file of that name is not ours.
    (id.kind() != BackupKind::Base).then_some((id, codec, encrypted, part))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_base_backup_is_a_folder_of_known_names() {
        let id = BackupId::parse("base_20250122_030000").unwrap();
        let key = |part| part_key(&id, Codec::ZSTD, false, part).unwrap().to_string();
        assert_eq!(key(Part::Artefact), "base_20250122_030000/base.tar.zst");
        assert_eq!(key(Part::Index), "base_20250122_030000/base.tar.zst.idx");
        assert_eq!(key(Part::Manifest), "base_20250122_030000/manifest.json");
        for name in [
            "base.tar",
            "16384.tar.zst",
            "pg_wal.tar.zst.idx",
            "backup_manifest",
        ] {
            assert!(is_base_file(name), "{name}");
        }
        for name in [
            "x.tar",
            "base.tar.gz",
            "base",
            "notes",
            "base.tar.zst.old",
            "-1.tar",
        ] {
            assert!(!is_base_file(name), "{name}");
        }
        assert_eq!(parse_base_folder("base_20250122_030000"), Some(id));
        assert_eq!(parse_base_folder("backup_app_20250122_030000"), None);
    }

    #[test]
    fn foreign_names_are_not_parsed() {
        for name in [
            "notes.txt",
            "backup.log",
            "app-x.sql.gz",
            "backup_app.sql.gz",
            "backup_app_20250122_020015.sql.bz2",
            "backup_app_20250122_020015.tar.gz",
            "backup_app_20250122_020015.sql.gz.sha256.old",
            "base_20250122_030000.sql.gz",
            ".backup_app_20250122_020015.sql.gz",
        ] {
            assert_eq!(parse_key(name), None, "{name}");
        }
        assert_eq!(parse_state_key(".pgark/state/x.verified.json"), None);
    }

    proptest! {
        #[test]
        fn every_built_name_is_parsed_back(database in "\\PC{1,20}|[./a-z_%]{1,20}|.{0,5}\\.sql\\.gz", globals: bool, seconds in 0..4_000_000_000_i64, encrypted: bool) {
            let time = jiff::Timestamp::from_second(seconds).unwrap();
            prop_assume!(!database.is_empty());
            let id = if globals { BackupId::globals(time) } else { BackupId::dump(&database, time) };
            for codec in [Codec::GZIP, Codec::ZSTD, Codec::None] {
                for part in [Part::Artefact, Part::Manifest, Part::Index, Part::Sums] {
                    let key = part_key(&id, codec, encrypted, part).unwrap();
                    prop_assert_eq!(parse_key(key.as_str()), Some((id.clone(), codec, encrypted, part)));
                }
            }
            for outcome in Outcome::ALL {
                let key = state_key(&id, outcome).unwrap();
                prop_assert_eq!(parse_state_key(key.as_str()), Some((id.clone(), outcome)));
            }
        }
    }
}
