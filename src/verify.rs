//! Re-reads, re-hashes and decodes backups.
//!
//! For a dump: the artefact's hash and length, every frame's hash, decoding and length, the index
//! against the manifest, and the rows of every frame, counted in its text, against both. Does
//! not prove that PostgreSQL accepts the script; a drill does. Of an encrypted backup without
//! an identity, length and hash of what is stored: that proves no content, and is not noted as `verified`.
//!
//! Invariant: nothing is written to the store but the outcome, and an outcome never turns a
//! failed backup into a good one unless everything was read again and holds.

mod base;

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::archive::codec;
use crate::archive::crypt;
use crate::archive::script::Meaning;
use crate::archive::{Artefact, Identities, Index};
use crate::cancel::Token;
use crate::catalog::layout::{Outcome, Part};
use crate::catalog::legacy::check_legacy;
use crate::catalog::list::{Entry, State};
use crate::catalog::manifest::{FileRecord, Manifest};
use crate::catalog::state;
use crate::error::{Error, Kind, Result};
use crate::progress::Progress;
use crate::store::{self, Key, Store, StoreReader};
use crate::units::{ByteSize, Codec};

/// What was read.
#[derive(Debug, Clone, Copy, Default)]
pub struct Verified {
    pub bytes: u64,
    pub raw_bytes: u64,
    pub frames: u64,
    /// Of a base backup: files.
    pub rows: u64,
}

/// Whether only what is stored can be looked at: length and hash, and nothing within.
#[must_use]
pub fn is_shallow(entry: &Entry, identities: Option<&Identities>) -> bool {
    entry.encrypted && identities.is_none()
}

/// Verifies and records the outcome beside the backup. `identities` open encrypted ones.
///
/// # Errors
/// `Damage` for a bad backup, with its place; `Failed` when it could not be read, `Usage` when
/// none of the identities opens it.
pub fn entry(
    store: &dyn Store,
    entry: &Entry,
    identities: Option<&Identities>,
    threads: usize,
    progress: &Progress,
    cancel: &Token,
) -> Result<String> {
    let mut entry = entry.clone();
    entry.complete(store);
    let entry = &entry;
    let result = content(store, entry, identities, threads, progress, cancel);
    let outcome = match &result {
        Ok(_) if is_shallow(entry, identities) => None,
        Ok(_) => Some((Outcome::Verified, None)),
        Err(error) if error.kind == Kind::Damage => {
            Some((Outcome::Failed, Some(error.fact.as_str())))
        }
        Err(_) => None,
    };
    // A legacy backup has no state of its own: its checksum and last line are its state. Nor is
    // one noted whose manifest cannot be read, which every listing sees anew: the format may only
    // be newer than this pgark.
    let notes = entry.state != State::Legacy && entry.manifest.is_some();
    if let Some((outcome, reason)) = outcome.filter(|_| notes)
        && let Err(error) = state::record(store, &entry.id, outcome, crate::clock::now(), reason)
    {
        return result.map(|text| {
            format!(
                "{text}; warning: the outcome could not be recorded: {}",
                error.fact
            )
        });
    }
    result
}

fn content(
    store: &dyn Store,
    entry: &Entry,
    identities: Option<&Identities>,
    threads: usize,
    progress: &Progress,
    cancel: &Token,
) -> Result<String> {
    let key = entry.key(Part::Artefact)?;
    let bad = |what: &str| {
        let reason = entry.reason.clone();
        Err(Error::damage(reason.unwrap_or_else(|| what.to_owned())))
    };
    if entry.state == State::Legacy {
        check_legacy(store, entry)?;
        let raw = decode_legacy(store, &key, entry.codec, progress, cancel)?;
        return Ok(format!(
            "legacy: checksum, stream of {} and its last line hold",
            ByteSize(raw)
        ));
    }
    let Some(manifest) = &entry.manifest else {
        // Read once more for its own error: a newer format is no damage.
        let manifest_key = entry.key(Part::Manifest)?;
        let json = store::get(store, &manifest_key)?.unwrap_or_default();
        Manifest::parse(&manifest_key, &json)?;
        return bad("it has no manifest");
    };
    if entry.state == State::Missing {
        return bad("its artefact is missing");
    }
    if manifest.base.is_some() {
        let with = (identities, threads, progress, cancel);
        return base::content(store, entry, manifest, with);
    }
    let index_key = entry.key(Part::Index)?;
    stored(store, &key, &manifest.artefact)?;
    let record = manifest
        .index
        .as_ref()
        .ok_or_else(|| Error::damage(format!("{key}: its manifest names no index")))?;
    if is_shallow(entry, identities) {
        stored(store, &index_key, record)?;
        return Ok(only_stored(entry));
    }
    let identities = identities.filter(|_| entry.encrypted);
    let mut manifest = manifest.clone();
    if let Some(identities) = identities {
        manifest = manifest.reveal(&|sealed| crypt::open(identities, sealed))?;
    }
    let index = Index::read(store, &index_key, &record.sha256, identities)?;
    let artefact = Artefact::open(store, key, entry.codec, identities)?;
    let done = verify(&artefact, &index, &manifest, threads, progress, cancel)?;
    Ok(format!(
        "{} in {} frames, {} rows",
        ByteSize(done.raw_bytes),
        done.frames,
        done.rows
    ))
}

/// What is said where nobody could look inside.
fn only_stored(entry: &Entry) -> String {
    format!(
        "only what is stored, {}: it is encrypted, and no identity is set",
        ByteSize(entry.bytes)
    )
}

/// Length and hash of a file against the manifest.
fn stored(store: &dyn Store, key: &Key, record: &FileRecord) -> Result<()> {
    let (bytes, sha256) = store::hash(store, key)?;
    if bytes != record.bytes {
        return Err(Error::damage(format!(
            "{key}: it has {bytes} bytes, the manifest says {}",
            record.bytes
        )));
    }
    if sha256 != record.sha256 {
        return Err(Error::damage(format!(
            "{key}: its SHA-256 is not the one in the manifest"
        )));
    }
    Ok(())
}

/// Verifies what is within an artefact that is as it was stored.
///
/// # Errors
/// `Damage` at the first difference, with its place.
fn verify(
    artefact: &Artefact<'_>,
    index: &Index,
    manifest: &Manifest,
    threads: usize,
    progress: &Progress,
    cancel: &Token,
) -> Result<Verified> {
    let damage = |what: String| Error::damage(format!("{}: {what}", artefact.key()));
    if artefact.bytes() != index.bytes {
        return Err(damage(
            "its frames end elsewhere than its index says".to_owned(),
        ));
    }
    let counts = decode_frames(artefact, index, threads, progress, cancel)?;
    let mut verified = Verified {
        bytes: artefact.stored_bytes(),
        frames: index.frames.len() as u64,
        ..Verified::default()
    };
    verified.raw_bytes = index.frames.iter().map(|frame| frame.raw_bytes).sum();
    for table in &manifest.tables {
        let rows = counts.get(&table.id).copied().unwrap_or(0);
        if rows != table.rows {
            // The outcome lies beside the backup: that of an encrypted one names no table.
            let table_name = if manifest.encrypted {
                format!("the table with dump id {}", table.id)
            } else {
                format!("{}.{}", table.schema, table.name)
            };
            return Err(damage(format!(
                "{rows} rows of {table_name}, the manifest says {}",
                table.rows
            )));
        }
        verified.rows += rows;
    }
    if verified.raw_bytes != manifest.raw_bytes || verified.frames != manifest.frames {
        return Err(damage(
            "the manifest counts other frames than the index".to_owned(),
        ));
    }
    Ok(verified)
}

/// Decodes every frame on `threads` threads; gives the rows by table.
fn decode_frames(
    artefact: &Artefact<'_>,
    index: &Index,
    threads: usize,
    progress: &Progress,
    cancel: &Token,
) -> Result<BTreeMap<i32, u64>> {
    let next = AtomicUsize::new(0);
    let counts = Mutex::new(BTreeMap::new());
    let work = || -> Result<()> {
        while let Some(frame) = index.frames.get(next.fetch_add(1, Ordering::Relaxed)) {
            cancel.check()?;
            let raw = artefact.frame(frame)?;
            if let Meaning::Rows {
                id,
                rows,
                head,
                tail,
                ..
            } = Meaning::from_json(&frame.meaning)?
            {
                let text = raw
                    .len()
                    .checked_sub(tail)
                    .and_then(|end| raw.get(head..end));
                let counted = text.map(|text| memchr::memchr_iter(b'\n', text).count() as u64);
                if counted != Some(rows) {
                    return Err(Error::damage(format!(
                        "{}: the frame at {} holds other rows than its index says",
                        artefact.key(),
                        frame.offset
                    )));
                }
                *counts
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .entry(id)
                    .or_insert(0) += rows;
            }
            progress.add(raw.len() as u64, 0);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        let results: Vec<Result<()>> = handles
            .into_iter()
            .map(|handle| {
                handle
                    .join()
                    .unwrap_or_else(|_| Err(Error::failed("a thread of verify panicked")))
            })
            .collect();
        results.into_iter().collect::<Result<()>>()
    })?;
    Ok(counts.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Decodes a legacy backup's whole stream; gives its raw length.
///
/// # Errors
/// `Damage` when the stream cannot be decoded.
fn decode_legacy(
    store: &dyn Store,
    key: &Key,
    codec: Codec,
    progress: &Progress,
    cancel: &Token,
) -> Result<u64> {
    let mut input = codec::decoder(codec, StoreReader::open(store, key)?)?;
    let mut chunk = vec![0; 256 << 10];
    let mut total = 0;
    loop {
        cancel.check()?;
        let count = input
            .read(&mut chunk)
            .map_err(|error| Error::damage(format!("{key}: {error}")))?;
        if count == 0 {
            return Ok(total);
        }
        total += count as u64;
        progress.add(count as u64, 0);
    }
}
