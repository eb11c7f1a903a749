//! The manifest: the JSON record that makes a backup exist. Immutable once written.
//!
//! Unknown fields are ignored, so that a newer pgark may add some; a change that an older one would
//! misread raises `format`.
//!
//! Invariant: the manifest of an encrypted backup names no table and nothing else from within the
//! database, but its name. What does lies in it encrypted (`sealed`): see [`Manifest::conceal`].

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::layout::{self, Part};
use crate::anomaly::Fall;
use crate::error::{Error, Result};
use crate::store::Key;
use crate::units::{BackupId, BackupKind, Codec, Lsn, SegmentSize, Timeline};

/// The newest format that this pgark reads, and the one that it writes.
pub const FORMAT: u32 = 1;

/// One stored file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    pub name: String,
    pub bytes: u64,
    /// Of the file as stored, hex.
    pub sha256: String,
}

/// What a dump holds of one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableCount {
    /// Dump id of its `TABLE DATA` entry in pg_dump's table of contents.
    #[serde(default)]
    pub id: i32,
    pub schema: String,
    pub name: String,
    pub rows: u64,
    /// Uncompressed.
    pub bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectCount {
    pub count: u64,
    pub bytes: u64,
}

/// An extension and its version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedVersion {
    pub name: String,
    pub version: String,
}

/// One tar stream of a base backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveRecord {
    /// Of a tablespace; none for the data directory and for `pg_wal`.
    #[serde(default)]
    pub oid: Option<u32>,
    /// Where the tablespace lay on the server.
    #[serde(default)]
    pub location: Option<String>,
    pub file: FileRecord,
    pub index: FileRecord,
    /// Uncompressed.
    pub raw_bytes: u64,
    pub frames: u64,
}

/// What only base backups have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseRecord {
    /// The WAL from `start_lsn` to `end_lsn` makes the backup consistent; `pg_wal` holds it.
    pub start_lsn: Lsn,
    pub start_timeline: Timeline,
    pub end_lsn: Lsn,
    pub end_timeline: Timeline,
    pub wal_segment_bytes: SegmentSize,
    /// Whether it was taken from a standby.
    pub from_standby: bool,
    /// The data directory, the tablespaces, and `pg_wal`, in this order.
    pub archives: Vec<ArchiveRecord>,
    /// The server's own manifest, byte for byte.
    pub backup_manifest: FileRecord,
    /// Whether the server found pages whose checksums are wrong; `warnings` name the files.
    #[serde(default)]
    pub bad_checksums: bool,
    /// Why this is a full backup although an incremental one was wanted.
    #[serde(default)]
    pub full_because: Option<String>,
    /// Settings that a server on this directory needs at least as high, and some that help.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
}

/// What names anything within the database.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Details {
    pub tables: Vec<TableCount>,
    pub properties: Option<serde_json::Value>,
    pub extensions: Vec<NamedVersion>,
    pub warnings: Vec<String>,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    /// The version that wrote it.
    pub pgark: String,
    pub id: BackupId,
    pub kind: BackupKind,
    #[serde(default)]
    pub cluster: String,
    #[serde(default)]
    pub system_identifier: Option<String>,
    #[serde(default)]
    pub database: Option<String>,
    pub started_at: Timestamp,
    pub finished_at: Timestamp,
    #[serde(default)]
    pub server_version: String,
    #[serde(default)]
    pub server_version_num: u32,
    /// The program that wrote the schema, with its version.
    #[serde(default)]
    pub dump_program: String,
    /// As configured, for example `gzip:1`.
    pub codec: String,
    #[serde(default)]
    pub encrypted: bool,
    /// Whom it is encrypted for: public keys of age.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recipients: Vec<String>,
    /// What only they can read of this manifest: a file of age as base64; inside, [`Details`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<String>,
    /// How many tables, where their names are sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table_count: Option<u64>,
    pub artefact: FileRecord,
    #[serde(default)]
    pub index: Option<FileRecord>,
    /// Uncompressed.
    #[serde(default)]
    pub raw_bytes: u64,
    #[serde(default)]
    pub frames: u64,
    #[serde(default)]
    pub tables: Vec<TableCount>,
    #[serde(default)]
    pub rows: u64,
    #[serde(default)]
    pub large_objects: Option<ObjectCount>,
    /// Entries of the dump's table of contents.
    #[serde(default)]
    pub entries: u64,
    /// The database's own properties: owner, encoding, locale, settings, grants.
    #[serde(default)]
    pub properties: Option<serde_json::Value>,
    #[serde(default)]
    pub extensions: Vec<NamedVersion>,
    /// The globals taken in the same run.
    #[serde(default)]
    pub globals: Option<BackupId>,
    /// What an incremental base backup builds on.
    #[serde(default)]
    pub parent: Option<BackupId>,
    /// What only base backups have. Its first archive is `artefact`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<BaseRecord>,
    /// What pg_dump and pgark warned about.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// How it fell against the good backups before it: then it is suspect until it is accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suspect: Vec<Fall>,
}

impl Manifest {
    /// A manifest of this pgark with everything unknown left empty. The commit fills in
    /// `artefact`, `index`, `raw_bytes` and `frames`.
    #[must_use]
    pub fn new(
        id: BackupId,
        codec: Codec,
        started_at: Timestamp,
        finished_at: Timestamp,
    ) -> Manifest {
        Manifest {
            format: FORMAT,
            pgark: env!("CARGO_PKG_VERSION").to_owned(),
            kind: id.kind(),
            database: id.database(),
            id,
            cluster: String::new(),
            system_identifier: None,
            started_at,
            finished_at,
            server_version: String::new(),
            server_version_num: 0,
            dump_program: String::new(),
            codec: codec.to_string(),
            encrypted: false,
            recipients: Vec::new(),
            sealed: None,
            table_count: None,
            artefact: FileRecord::default(),
            index: None,
            raw_bytes: 0,
            frames: 0,
            tables: Vec::new(),
            rows: 0,
            large_objects: None,
            entries: 0,
            properties: None,
            extensions: Vec::new(),
            globals: None,
            parent: None,
            base: None,
            warnings: Vec::new(),
            suspect: Vec::new(),
        }
    }

    /// Every data file beside the manifest, by its name in the folder; what `.sha256` names first.
    #[must_use]
    pub fn files(&self) -> Vec<&FileRecord> {
        let Some(base) = &self.base else {
            return std::iter::once(&self.artefact).chain(&self.index).collect();
        };
        let archives = base.archives.iter();
        let mut files: Vec<&FileRecord> = archives.clone().map(|one| &one.file).collect();
        files.push(&base.backup_manifest);
        files.extend(archives.map(|one| &one.index));
        files
    }

    /// The name of one of the backup's files.
    ///
    /// # Errors
    /// `Usage` when its codec is none.
    pub fn key(&self, part: Part) -> Result<Key> {
        layout::part_key(&self.id, Codec::parse(&self.codec)?, self.encrypted, part)
    }

    /// Moves what names anything within the database into `sealed`, encrypted by `seal`, and
    /// gives it back for [`Self::with`].
    ///
    /// # Errors
    /// As `seal`.
    pub fn conceal(&mut self, seal: &dyn Fn(&[u8]) -> Result<Vec<u8>>) -> Result<Details> {
        let details = Details {
            tables: std::mem::take(&mut self.tables),
            properties: self.properties.take(),
            extensions: std::mem::take(&mut self.extensions),
            warnings: std::mem::take(&mut self.warnings),
        };
        self.table_count = Some(details.tables.len() as u64);
        let json = serde_json::to_vec(&details)
            .map_err(|error| Error::failed(format!("the manifest of {}: {error}", self.id)))?;
        self.sealed = Some(STANDARD.encode(seal(&json)?));
        Ok(details)
    }

    /// With everything in the clear.
    #[must_use]
    pub fn with(self, details: Details) -> Manifest {
        Manifest {
            sealed: None,
            table_count: None,
            tables: details.tables,
            properties: details.properties,
            extensions: details.extensions,
            warnings: details.warnings,
            ..self
        }
    }

    /// The manifest with what `open` decrypts; as it is, when nothing is sealed.
    ///
    /// # Errors
    /// `Damage` when that is not as it was written, else as `open`.
    pub fn reveal(self, open: &dyn Fn(&[u8]) -> Result<Vec<u8>>) -> Result<Manifest> {
        let Some(sealed) = &self.sealed else {
            return Ok(self);
        };
        let what = format!("the sealed part of the manifest of {}", self.id);
        let damage = || Error::damage(format!("{what} is damaged"));
        let sealed = STANDARD.decode(sealed).map_err(|_| damage())?;
        let json = open(&sealed).map_err(|error| error.context(&what))?;
        let details = serde_json::from_slice(&json).map_err(|_| damage())?;
        Ok(self.with(details))
    }

    /// The JSON that is stored. Its last field, `check`, is the SHA-256 of all bytes before it,
    /// so that a flipped bit in a name or a count shows too.
    ///
    /// # Errors
    /// `Failed`; nothing in a manifest causes it.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        let mut json = serde_json::to_vec_pretty(self)
            .map_err(|error| Error::failed(format!("the manifest of {}: {error}", self.id)))?;
        // The closing "\n}" gives way to one more field.
        json.truncate(json.len().saturating_sub(2));
        let check = hex::encode(Sha256::digest(&json));
        json.extend_from_slice(CHECK.as_bytes());
        json.extend_from_slice(format!("{check}\"\n}}\n").as_bytes());
        Ok(json)
    }

    /// Reads a manifest; `key` only names it in errors.
    ///
    /// # Errors
    /// `Failed` for a newer format, `Damage` when it is not a manifest or not as it was written.
    pub fn parse(key: &Key, json: &[u8]) -> Result<Manifest> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let hint = "copy it anew from another store; the artefact beside it may be whole";
        let damage = |what: &dyn std::fmt::Display| {
            Error::damage(format!("the manifest {key} is damaged: {what}")).hint(hint)
        };
        let checked = is_checked(json);
        if checked == Some(false) {
            return Err(damage(&"its check does not match"));
        }
        // First alone: a newer format may lack fields of this one.
        let Version { format } = serde_json::from_slice(json).map_err(|error| damage(&error))?;
        if format > FORMAT {
            return Err(Error::failed(format!(
                "the manifest {key} is of format {format}; this pgark reads up to {FORMAT}"
            ))
            .hint("upgrade pgark, or restore the artefact by hand with standard tools"));
        }
        if checked.is_none() {
            return Err(damage(&"it does not end with its check"));
        }
        serde_json::from_slice(json).map_err(|error| damage(&error))
    }
}

/// What begins the last field.
const CHECK: &str = ",\n  \"check\": \"";

/// Whether the check at the end holds; none when there is no check.
fn is_checked(json: &[u8]) -> Option<bool> {
    let at = json
        .windows(CHECK.len())
        .rposition(|window| window == CHECK.as_bytes())?;
    let expected = format!("{}\"\n}}\n", hex::encode(Sha256::digest(&json[..at])));
    Some(json[at + CHECK.len()..] == *expected.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn sample() -> (Key, Manifest) {
        let time = "2025-01-22T02:00:15Z".parse().unwrap();
        let id = BackupId::dump("app", time);
        let key = Key::new("backup_app_20250122_020015.sql.gz.json").unwrap();
        (key, Manifest::new(id, Codec::GZIP, time, time))
    }

    #[test]
    fn fields_of_a_newer_minor_version_are_ignored() {
        let (key, manifest) = sample();
        let json = String::from_utf8(manifest.to_json().unwrap()).unwrap();
        assert!(json.contains("\"2025-01-22T02:00:15Z\"") && json.contains("\"dump\""));
        let (body, _) = json.split_once(CHECK).unwrap();
        let newer = body.replacen('{', "{\"colour\": [1],", 1);
        let check = hex::encode(Sha256::digest(&newer));
        let newer = format!("{newer}{CHECK}{check}\"\n}}\n");
        assert_eq!(Manifest::parse(&key, newer.as_bytes()).unwrap(), manifest);
        let known: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(known["check"], json[json.len() - 68..json.len() - 4]);
    }

    #[test]
    fn newer_format_and_damage_are_told_apart() {
        let (key, _) = sample();
        let error = Manifest::parse(&key, b"{\"format\": 2}").unwrap_err();
        assert!(error.fact.contains("format 2; this pgark reads up to 1"));
        assert!(error.kind == Kind::Failed && error.hint.unwrap().contains("upgrade"));
        for bad in [&b""[..], b"{", b"{\"format\":1}", b"[]", b"\xff"] {
            let error = Manifest::parse(&key, bad).unwrap_err();
            assert_eq!(error.kind, Kind::Damage);
            assert!(error.fact.contains(key.as_str()));
        }
    }

    #[test]
    fn every_flipped_bit_is_damage() {
        let (key, manifest) = sample();
        let mut json = manifest.to_json().unwrap();
        Manifest::parse(&key, &json).unwrap();
        for bit in 0..json.len() * 8 {
            json[bit / 8] ^= 1 << (bit % 8);
            assert!(Manifest::parse(&key, &json).is_err(), "bit {bit}");
            json[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
