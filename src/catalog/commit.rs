//! The commit protocol (design §3): how a backup comes to exist, and how it goes.
//!
//! Order of a commit: artefact, index (both under temporary names until here), manifest with
//! every hash, `.sha256`. Order of a deletion: `.sha256`, manifest, index, artefact, outcomes.
//!
//! Invariants, whatever line a crash hits:
//! - A manifest's artefact and index are stored whole, and were so before it appeared.
//! - pgark never leaves an artefact with a `.sha256` and without a manifest: that is a legacy
//!   backup, always.
//! - No name that exists is overwritten.
//!
//! A crash leaves temporary names, or an artefact and index without a manifest: `remains` clears
//! them. A failure cleans up after itself as far as the store lets it.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};

use super::base;
use super::layout::{Part, parse_key, part_key};
use super::list::Entry;
use super::manifest::{FileRecord, Manifest};
use super::remains::is_ours;
use super::state;
use crate::cancel::Token;
use crate::error::{Cause, Error, Kind, Result};
use crate::store::{self, Key, Object, Put, Store, Upload, Written};
use crate::units::{BackupId, BackupKind, Codec};

/// Seconds tried before a name is given up.
const SECONDS_MAX: i64 = 600;

/// The first id at or after `now` of which the store holds no file, with its moment.
///
/// # Errors
/// As the store; `Failed` when ten minutes of names are taken.
pub fn free_id(
    store: &dyn Store,
    make: &dyn Fn(Timestamp) -> BackupId,
    now: Timestamp,
) -> Result<(BackupId, Timestamp)> {
    let taken: BTreeSet<BackupId> = store
        .list("")?
        .iter()
        .filter_map(|object| Some(parse_key(object.key.as_str())?.0))
        .collect();
    for second in 0..SECONDS_MAX {
        let time = now + SignedDuration::from_secs(second);
        let id = make(time);
        if !taken.contains(&id) {
            return Ok((id, time));
        }
    }
    Err(
        Error::failed(format!("every name from {} on is taken", make(now)))
            .hint("compare this machine's clock with the names in the store"),
    )
}

/// Begins the uploads of artefact and index.
///
/// # Errors
/// With `is_exists()` when the name is taken, else as the store.
pub fn begin(
    store: &dyn Store,
    id: &BackupId,
    codec: Codec,
    encrypted: bool,
) -> Result<(Box<dyn Upload>, Box<dyn Upload>)> {
    let artefact = store.create(&part_key(id, codec, encrypted, Part::Artefact)?, Put::New)?;
    let index = store.create(&part_key(id, codec, encrypted, Part::Index)?, Put::New)?;
    Ok((artefact, index))
}

/// Makes the backup exist. Fills in the manifest's `artefact`, `index`, `raw_bytes` and `frames`.
///
/// # Errors
/// `Partial` when the backup exists but its `.sha256` does not (the next run writes it); any
/// other error means that the backup does not exist.
pub fn commit(store: &dyn Store, written: Written, mut manifest: Manifest) -> Result<Manifest> {
    let id = manifest.id.clone();
    let keys = [manifest.key(Part::Artefact)?, manifest.key(Part::Index)?];
    let manifest_key = manifest.key(Part::Manifest)?;
    let file = |key: &Key, bytes, sha256| FileRecord {
        name: key.to_string(),
        bytes,
        sha256,
    };
    manifest.artefact = file(&keys[0], written.bytes, written.sha256);
    manifest.index = Some(file(&keys[1], written.index_bytes, written.index_sha256));
    manifest.raw_bytes = written.raw_bytes;
    manifest.frames = written.frames;

    let mut finished = 0;
    let data = (|| {
        same_size(&written.artefact.finish()?, written.bytes)?;
        finished = 1;
        same_size(&written.index.finish()?, written.index_bytes)
    })();
    if let Err(error) = data {
        // A name that somebody else took in the same second is his: what lies there stays.
        let ours = if error.is_exists() {
            finished
        } else {
            keys.len()
        };
        undo(store, &keys[..ours]);
        return Err(error.context(format!("{id} was not committed")));
    }
    let json = manifest.to_json()?;
    let stored = store::put(store, &manifest_key, &json, Put::New)
        .and_then(|object| same_size(&object, json.len() as u64));
    if let Err(error) = stored {
        // The manifest may be there in spite of the error. Data goes only after it is gone for
        // sure, or a backup that exists would lose its data.
        if error.is_exists() || store.delete(&manifest_key).is_ok() {
            undo(store, &keys);
        }
        return Err(error.context(format!("{id} was not committed")));
    }
    if let Err(mut error) = write_sums(store, &manifest) {
        error.kind = Kind::Partial;
        return Err(error.context(format!("{id} is committed, but its .sha256 is missing")));
    }
    Ok(manifest)
}

pub(crate) fn same_size(object: &Object, bytes: u64) -> Result<()> {
    if object.bytes == bytes {
        return Ok(());
    }
    Err(Error::failed(format!(
        "the store holds {} bytes of {}, not the {bytes} that were written",
        object.bytes, object.key
    ))
    .hint("the store lost data; check it before the next backup"))
}

fn not_ours(store: &dyn Store, key: &Key) -> Error {
    Error::failed(format!("{key} in {} is not pgark's", store.describe()))
        .hint("move it away; nothing was overwritten")
        .cause(Cause::Exists)
}

/// Takes back what a failed commit may have put under final names; index first, as in every deletion.
/// What cannot be deleted now, or is not provably ours, is left to `clear_remains`.
fn undo(store: &dyn Store, keys: &[Key]) {
    for key in keys.iter().rev() {
        if is_ours(store, key).unwrap_or(false) {
            let _ = store.delete(key);
        }
    }
}

fn write_sums(store: &dyn Store, manifest: &Manifest) -> Result<()> {
    let key = manifest.key(Part::Sums)?;
    let line = format!("{}  {}\n", manifest.artefact.sha256, manifest.artefact.name);
    match store::put(store, &key, line.as_bytes(), Put::New) {
        Err(error) if !error.is_exists() => Err(error),
        _ => Ok(()),
    }
}

/// Re-creates every missing `.sha256` from its manifest; returns the ids. The caller holds the lock.
///
/// # Errors
/// As the store. A manifest that cannot be read is passed over: the catalog reports it.
pub fn ensure_sums(store: &dyn Store) -> Result<Vec<String>> {
    let objects = store.list("")?;
    let names: BTreeSet<&str> = objects.iter().map(|o| o.key.as_str()).collect();
    let mut written = Vec::new();
    for object in &objects {
        let Some((id, codec, encrypted, Part::Manifest)) = parse_key(object.key.as_str()) else {
            continue;
        };
        let artefact = part_key(&id, codec, encrypted, Part::Artefact)?;
        let sums = part_key(&id, codec, encrypted, Part::Sums)?;
        if names.contains(sums.as_str()) || !names.contains(artefact.as_str()) {
            continue;
        }
        // One that cannot be read must not stop a backup; the catalog reports it.
        let Ok(Some(json)) = store::get(store, &object.key) else {
            continue;
        };
        let Ok(manifest) = Manifest::parse(&object.key, &json) else {
            continue;
        };
        if manifest.id == id && manifest.artefact.name == artefact.as_str() {
            write_sums(store, &manifest)?;
            written.push(id.to_string());
        }
    }
    Ok(written)
}

/// Bytes that one read of a copy takes.
const COPY_STEP: u64 = 8 << 20;

/// Copies a good backup to another store, in the order of a commit. The caller holds the lock of
/// the work on `to`: what lies there under these names without a manifest is a dead copy's.
///
/// # Errors
/// `Damage` when what was read is not what the manifest says; else as the stores. The backup does
/// not exist in `to` then.
pub fn copy(from: &dyn Store, to: &dyn Store, entry: &Entry, cancel: &Token) -> Result<()> {
    if entry.kind == BackupKind::Base {
        return base::copy(from, to, entry, cancel);
    }
    let manifest_key = entry.key(Part::Manifest)?;
    let json =
        store::get(from, &manifest_key)?.ok_or_else(|| store::missing(from, &manifest_key))?;
    let manifest = Manifest::parse(&manifest_key, &json)?;
    let artefact = entry.key(Part::Artefact)?;
    let index = entry.key(Part::Index)?;
    let mut files = vec![(artefact, &manifest.artefact)];
    files.extend(manifest.index.as_ref().map(|record| (index, record)));
    // Nothing there gives way to what is not whole here.
    for (key, record) in &files {
        if to.stat(key)?.is_some() {
            if !is_ours(to, key)? {
                return Err(not_ours(to, key));
            }
            let (bytes, sha256) = store::hash(from, key)?;
            if (bytes, sha256.as_str()) != (record.bytes, record.sha256.as_str()) {
                return Err(Error::damage(format!(
                    "{key} in {} is not what its manifest says; the copy in {} stays as it is",
                    from.describe(),
                    to.describe()
                )));
            }
        }
    }
    // A manifest there whose data is gone or wrong goes first, as in every deletion.
    for part in [Part::Sums, Part::Manifest] {
        to.delete(&entry.key(part)?)?;
    }
    // What was found out about it, too: it is about what lies there no more.
    state::forget_outcomes(to, &entry.id)?;
    let mut uploads = Vec::new();
    for (key, record) in &files {
        if to.stat(key)?.is_some() {
            to.delete(key)?;
        }
        uploads.push((copy_file(from, to, key, record, cancel)?, record.bytes));
    }
    let keys: Vec<Key> = files.iter().map(|(key, _)| key.clone()).collect();
    let data = uploads
        .into_iter()
        .try_for_each(|(upload, bytes)| same_size(&upload.finish()?, bytes));
    if let Err(error) = data {
        undo(to, &keys);
        return Err(error);
    }
    let stored = store::put(to, &manifest_key, &json, Put::New)
        .and_then(|object| same_size(&object, json.len() as u64));
    if let Err(error) = stored {
        if to.delete(&manifest_key).is_ok() {
            undo(to, &keys);
        }
        return Err(error);
    }
    write_sums(to, &manifest)
}

/// Streams a file, and checks it; it appears when the caller finishes it.
pub(super) fn copy_file(
    from: &dyn Store,
    to: &dyn Store,
    key: &Key,
    record: &FileRecord,
    cancel: &Token,
) -> Result<Box<dyn Upload>> {
    let mut upload = to.create_sized(key, Put::New, record.bytes)?;
    let mut hasher = Sha256::new();
    let mut at = 0;
    while at < record.bytes {
        cancel.check()?;
        let end = record.bytes.min(at + COPY_STEP);
        let bytes = from.read(key, at..end)?;
        hasher.update(&bytes);
        upload.write(&bytes)?;
        at = end;
    }
    if hex::encode(hasher.finalize()) != record.sha256 {
        return Err(Error::damage(format!(
            "{key} in {} is not what its manifest says",
            from.describe()
        ))
        .hint("`pgark verify` tells more; it is not copied"));
    }
    Ok(upload)
}

/// Deletes a backup, legacy ones included. Repeat it after a failure: each step may be done already.
///
/// # Errors
/// As the store.
pub fn remove(store: &dyn Store, entry: &Entry) -> Result<()> {
    if entry.kind == BackupKind::Base {
        return base::remove(store, &entry.id);
    }
    // Without the .sha256 first, a crash would leave what looks like a legacy backup; without
    // the manifest before the data, it would leave a backup that claims to exist.
    for part in [Part::Sums, Part::Manifest, Part::Index, Part::Artefact] {
        store.delete(&part_key(&entry.id, entry.codec, entry.encrypted, part)?)?;
    }
    state::forget(store, &entry.id)
}
