//! What is known of manifests already: ten thousand backups far away cost their listing and one
//! read, and not a read for each.
//!
//! `.pgark/catalog.jsonl.zst` has a head, then a line for each manifest: its name, size, time and
//! ETag as the listing showed them, and the little of it that lists, retention and status need.
//!
//! Invariants: it is derived, and never the truth. A line counts only for a manifest that the
//! listing shows now with the same size, time and ETag; every other one is read. A file that is
//! absent, damaged, too large or of another format says nothing: that costs time and no backup.
//! Whoever uses a backup (verify, restore, a copy) reads its manifest. Base backups have no line:
//! a plan needs all of their manifest. Written under the lock of the work on the store; of two
//! machines the last one wins, and what it did not see is read. A crash leaves the old file.

use std::collections::HashMap;
use std::io::Read;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::layout::CATALOG;
use super::list::{Catalog, Entry};
use super::manifest::{FileRecord, Manifest};
use crate::anomaly::Fall;
use crate::error::{Error, Result};
use crate::store::{self, Key, Object, Put, Store};
use crate::units::{BackupId, BackupKind};

/// Fewer manifests than this are read: it takes no longer.
const MANY: usize = 32;
/// More is not read, and was not written by pgark.
const STORED_BYTES_MAX: u64 = 64 << 20;
const RAW_BYTES_MAX: u64 = 256 << 20;
const FORMAT: u32 = 2;

/// What a catalog needs of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// The manifest's own file, as listed.
    pub file: Object,
    pub cluster: String,
    pub system_identifier: Option<String>,
    pub database: Option<String>,
    pub started_at: Timestamp,
    pub finished_at: Timestamp,
    pub raw_bytes: u64,
    pub artefact: FileRecord,
    pub index: Option<FileRecord>,
    pub parent: Option<BackupId>,
    pub suspect: Vec<Fall>,
}

impl Summary {
    pub(crate) fn of(file: &Object, manifest: &Manifest) -> Summary {
        Summary {
            file: file.clone(),
            cluster: manifest.cluster.clone(),
            system_identifier: manifest.system_identifier.clone(),
            database: manifest.database.clone(),
            started_at: manifest.started_at,
            finished_at: manifest.finished_at,
            raw_bytes: manifest.raw_bytes,
            artefact: manifest.artefact.clone(),
            index: manifest.index.clone(),
            parent: manifest.parent.clone(),
            suspect: manifest.suspect.clone(),
        }
    }
}

/// The first line.
#[derive(Serialize, Deserialize)]
struct Head {
    pgark_catalog: u32,
    /// Of all bytes behind this line, hex.
    sha256: String,
}

/// Summaries by the name of their manifest.
#[derive(Debug, Default)]
pub(super) struct Known(HashMap<Key, Summary>);

impl Known {
    /// What the store's copy tells; nothing where reading so many manifests is as quick.
    pub(super) fn read(store: &dyn Store, manifests: usize) -> Known {
        if manifests < MANY || store.reads_at_once() == 1 {
            return Known::default();
        }
        read(store).unwrap_or_default()
    }

    /// What is known of exactly this file.
    pub(super) fn get(&self, file: &Object) -> Option<&Summary> {
        let summary = self.0.get(&file.key)?;
        (summary.file == *file).then_some(summary)
    }
}

fn read(store: &dyn Store) -> Option<Known> {
    let key = Key::new(CATALOG).ok()?;
    let file = store.stat(&key).ok()??;
    if file.bytes > STORED_BYTES_MAX {
        return None;
    }
    parse(&store.read(&key, 0..file.bytes).ok()?, RAW_BYTES_MAX)
}

fn parse(stored: &[u8], raw_bytes_max: u64) -> Option<Known> {
    let mut raw = Vec::new();
    let decoder = zstd::stream::read::Decoder::new(stored).ok()?;
    let mut decoder = decoder.take(raw_bytes_max);
    decoder.read_to_end(&mut raw).ok()?;
    let end = raw.iter().position(|byte| *byte == b'\n')?;
    let (head, body) = (&raw[..end], &raw[end + 1..]);
    let head: Head = serde_json::from_slice(head).ok()?;
    if head.pgark_catalog != FORMAT || head.sha256 != hex::encode(Sha256::digest(body)) {
        return None;
    }
    let lines = serde_json::Deserializer::from_slice(body).into_iter::<Summary>();
    let known = lines.map(|line| line.map(|line| (line.file.key.clone(), line)));
    known.collect::<std::result::Result<_, _>>().ok().map(Known)
}

/// Writes what a catalog knows, for those who read it next. Nothing on a store where reading
/// costs nothing. The caller holds the lock of the work on the store.
///
/// # Errors
/// As the store; nothing depends on it.
pub fn save(store: &dyn Store, catalog: &Catalog) -> Result<()> {
    let known: Vec<&Summary> = catalog.entries.iter().filter_map(line).collect();
    if known.len() < MANY || store.reads_at_once() == 1 {
        return Ok(());
    }
    let stored = to_bytes(&known).map_err(|error| Error::failed(format!("{CATALOG}: {error}")))?;
    store::put(store, &Key::new(CATALOG)?, &stored, Put::Replace).map(drop)
}

fn line(entry: &Entry) -> Option<&Summary> {
    let summary = entry.summary.as_ref()?;
    (entry.kind != BackupKind::Base && summary.file.etag.is_some()).then_some(summary)
}

fn to_bytes(known: &[&Summary]) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    for summary in known {
        serde_json::to_writer(&mut body, summary)?;
        body.push(b'\n');
    }
    let head = Head {
        pgark_catalog: FORMAT,
        sha256: hex::encode(Sha256::digest(&body)),
    };
    let mut raw = serde_json::to_vec(&head)?;
    raw.push(b'\n');
    raw.append(&mut body);
    zstd::stream::encode_all(raw.as_slice(), 3)
}

#[cfg(test)]
mod tests;
