//! Base backups in a store: folders of files, committed by the manifest in them.
//!
//! Order of a commit: archives, indexes and `backup_manifest` (each whole under its name as soon
//! as it is complete), then the manifest, then `SHA256SUMS`. Order of a deletion: `SHA256SUMS`,
//! manifest, then the rest. Copies keep the order of a commit.
//!
//! Invariants: a folder without a manifest is no backup; an incremental backup whose chain is not
//! good is not good; nothing in a folder is touched but names that pgark writes there.
//!
//! A crash leaves temporary names, or a folder without a manifest: [`clear_remains`] clears them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use jiff::{SignedDuration, Timestamp};

use super::commit::{copy_file, same_size};
use super::known::Summary;
use super::layout::{
    BASE_MANIFEST, BASE_SUMS, Outcome, Part, base_key, is_base_file, parse_base_folder,
};
use super::list::{Entry, State, differs, fail};
use super::manifest::Manifest;
use super::remains::is_ours;
use super::state::{self, Standing};
use crate::cancel::Token;
use crate::error::{Error, Kind, Result};
use crate::store::{self, Key, Object, Put, Store};
use crate::units::{BackupId, BackupKind, Codec, Lsn, SystemId};

/// A folder without manifest that is younger than this may still get one.
const AGE_MIN: SignedDuration = SignedDuration::from_hours(24);
/// Names tried before one is given up.
const SECONDS_MAX: i64 = 600;

pub(super) type Outcomes = BTreeMap<BackupId, Standing>;

/// The base backups of a store, in no order.
pub(super) fn entries(store: &dyn Store, outcomes: &mut Outcomes) -> Result<Vec<Entry>> {
    let mut found = Vec::new();
    for id in folders(store)? {
        let objects = store.list(&format!("{id}/"))?;
        let named = |name: &str| objects.iter().find(|one| one.key.file_name() == name);
        let Some(file) = named(BASE_MANIFEST) else {
            continue;
        };
        let plain = named("base.tar").or(named("base.tar.age")).is_some();
        let mut entry = Entry {
            kind: BackupKind::Base,
            cluster: String::new(),
            database: None,
            state: State::Taken,
            good: true,
            manifest: None,
            summary: None,
            artefact: None,
            codec: if plain { Codec::None } else { Codec::ZSTD },
            encrypted: false,
            reason: None,
            unread: false,
            started_at: id.time().unwrap_or(Timestamp::UNIX_EPOCH),
            finished_at: None,
            bytes: objects.iter().map(|one| one.bytes).sum(),
            raw_bytes: None,
            sha256: None,
            id,
        };
        let standing = outcomes.remove(&entry.id).unwrap_or_default();
        let outcome = standing.outcome.map(|(outcome, file)| {
            let failed = outcome == Outcome::Failed;
            let reason = failed.then(|| state::reason(store, &file));
            (outcome, reason.flatten())
        });
        judge(store, &mut entry, (file, &objects), outcome);
        found.push(entry);
    }
    Ok(found)
}

/// Where the oldest base backup of that cluster begins in WAL; one that cannot be read counts as none.
///
/// # Errors
/// When the store cannot be listed.
pub fn oldest_start(store: &dyn Store, system: SystemId) -> Result<Option<Lsn>> {
    let mut oldest = None;
    for id in folders(store)? {
        let key = base_key(&id, BASE_MANIFEST)?;
        let json = store::get(store, &key).ok().flatten();
        let Some(manifest) = json.and_then(|json| Manifest::parse(&key, &json).ok()) else {
            continue;
        };
        let ours = manifest.system_identifier.as_deref() == Some(system.to_string().as_str());
        let start = manifest.base.map(|base| base.start_lsn).filter(|_| ours);
        oldest = start.into_iter().chain(oldest).min();
    }
    Ok(oldest)
}

/// The ids of all folders that are named as base backups.
fn folders(store: &dyn Store) -> Result<Vec<BackupId>> {
    let names = store.folders("")?;
    Ok(names
        .iter()
        .filter_map(|name| parse_base_folder(name))
        .collect())
}

fn judge(
    store: &dyn Store,
    entry: &mut Entry,
    (file, objects): (&Object, &[Object]),
    outcome: Option<(Outcome, Option<String>)>,
) {
    let manifest = match read_manifest(store, entry) {
        Ok(manifest) => manifest,
        Err(error) => {
            entry.unread = error.kind != Kind::Damage;
            return fail(entry, error.fact);
        }
    };
    entry.codec = Codec::parse(&manifest.codec).unwrap_or(entry.codec);
    entry.encrypted = manifest.encrypted;
    entry.cluster.clone_from(&manifest.cluster);
    entry.started_at = manifest.started_at;
    entry.finished_at = Some(manifest.finished_at);
    entry.raw_bytes = Some(manifest.raw_bytes);
    entry.sha256 = Some(manifest.artefact.sha256.clone());
    let named = |name: &str| objects.iter().find(|one| one.key.file_name() == name);
    entry.artefact = named(&manifest.artefact.name).cloned();
    let wrong = manifest
        .files()
        .into_iter()
        .find_map(|file| differs(named(&file.name), file));
    let bad_checksums = manifest
        .base
        .as_ref()
        .is_some_and(|base| base.bad_checksums);
    match (wrong, outcome) {
        (Some(what), _) => {
            fail(entry, what);
            if entry.artefact.is_none() {
                entry.state = State::Missing;
            }
        }
        (None, Some((Outcome::Failed, reason))) => {
            fail(
                entry,
                reason.unwrap_or_else(|| "its verify or drill failed".to_owned()),
            );
        }
        _ if bad_checksums => fail(entry, BAD_CHECKSUMS.to_owned()),
        (None, Some((Outcome::Verified, _))) => entry.state = State::Verified,
        (None, Some((Outcome::Proven, _))) => entry.state = State::Proven,
        // `Accepted` is no outcome of this kind.
        (None, Some((Outcome::Accepted, _)) | None) => {}
    }
    entry.summary = Some(Summary::of(file, &manifest));
    entry.manifest = Some(manifest);
}

/// Why a backup of a damaged cluster is not good.
pub const BAD_CHECKSUMS: &str = "the server found pages with wrong checksums while it was taken";

fn read_manifest(store: &dyn Store, entry: &Entry) -> Result<Manifest> {
    let key = entry.key(Part::Manifest)?;
    let json = store::get(store, &key)?.ok_or_else(|| store::missing(store, &key))?;
    let manifest = Manifest::parse(&key, &json)?;
    let names_are_plain = manifest.files().iter().all(|file| is_base_file(&file.name));
    if manifest.id != entry.id || manifest.base.is_none() || !names_are_plain {
        return Err(Error::damage(format!(
            "the manifest {key} belongs to another backup, {}",
            manifest.id
        )));
    }
    Ok(manifest)
}

/// An incremental backup needs each backup that it builds on. Oldest last, as in a catalog.
pub(super) fn judge_chains(entries: &mut [Entry]) {
    let mut good: BTreeSet<BackupId> = BTreeSet::new();
    for entry in entries
        .iter_mut()
        .rev()
        .filter(|entry| entry.kind == BackupKind::Base)
    {
        let parent = entry
            .manifest
            .as_ref()
            .and_then(|manifest| manifest.parent.clone());
        if let Some(parent) = parent.filter(|parent| !good.contains(parent))
            && entry.good
        {
            fail(
                entry,
                format!("it builds on {parent}, which is not good here"),
            );
        }
        if entry.good {
            good.insert(entry.id.clone());
        }
    }
}

/// An incremental backup behind the backups that it builds on, the full one first.
///
/// # Errors
/// `Damage` naming the one that is missing or not good.
pub fn chain<'a>(entries: &'a [Entry], last: &'a Entry) -> Result<Vec<&'a Entry>> {
    let mut chain = vec![last];
    loop {
        let entry = chain[chain.len() - 1];
        let Some(parent) = entry.manifest.as_ref().and_then(|one| one.parent.as_ref()) else {
            chain.reverse();
            return Ok(chain);
        };
        let found = entries.iter().find(|one| one.id == *parent);
        // A manifest that names itself or a later one would never end.
        match found.filter(|one| one.good && one.id < entry.id) {
            Some(found) => chain.push(found),
            None => {
                return Err(Error::damage(format!(
                    "{} builds on {parent}, which is not good or not there",
                    entry.id
                ))
                .hint("restore a backup before it; `pgark list` shows them"));
            }
        }
    }
}

/// The first id at or after `now` whose folder is free.
///
/// # Errors
/// As the store; `Failed` when ten minutes of names are taken.
pub fn free_id(store: &dyn Store, now: Timestamp) -> Result<(BackupId, Timestamp)> {
    let taken = folders(store)?;
    let times = (0..SECONDS_MAX).map(|second| now + SignedDuration::from_secs(second));
    let mut free = times.map(|time| (BackupId::base(time), time));
    free.find(|(id, _)| !taken.contains(id)).ok_or_else(|| {
        Error::failed(format!(
            "every name from {} on is taken",
            BackupId::base(now)
        ))
        .hint("compare this machine's clock with the names in the store")
    })
}

/// Makes the backup exist: its files are stored whole already.
///
/// # Errors
/// `Partial` when the backup exists but its `SHA256SUMS` does not; any other error means that the
/// backup does not exist.
pub fn commit(store: &dyn Store, manifest: &Manifest) -> Result<()> {
    for file in manifest.files() {
        let key = base_key(&manifest.id, &file.name)?;
        let object = store
            .stat(&key)?
            .ok_or_else(|| store::missing(store, &key))?;
        same_size(&object, file.bytes)?;
    }
    let key = base_key(&manifest.id, BASE_MANIFEST)?;
    let json = manifest.to_json()?;
    let stored = store::put(store, &key, &json, Put::New)
        .and_then(|object| same_size(&object, json.len() as u64));
    if let Err(error) = stored {
        // It may be there in spite of the error.
        if !error.is_exists() {
            let _ = store.delete(&key);
        }
        return Err(error.context(format!("{} was not committed", manifest.id)));
    }
    write_sums(store, manifest).map_err(|mut error| {
        error.kind = Kind::Partial;
        error.context(format!(
            "{} is committed, but not its {BASE_SUMS}",
            manifest.id
        ))
    })
}

fn write_sums(store: &dyn Store, manifest: &Manifest) -> Result<()> {
    let mut text = String::new();
    for file in manifest.files() {
        let _ = writeln!(text, "{}  {}", file.sha256, file.name);
    }
    let key = base_key(&manifest.id, BASE_SUMS)?;
    match store::put(store, &key, text.as_bytes(), Put::New) {
        Err(error) if !error.is_exists() => Err(error),
        _ => Ok(()),
    }
}

/// Re-creates every missing `SHA256SUMS`. The caller holds the lock.
///
/// # Errors
/// As the store.
pub fn ensure_sums(store: &dyn Store, entries: &[Entry]) -> Result<()> {
    for entry in entries
        .iter()
        .filter(|entry| entry.kind == BackupKind::Base)
    {
        if let Some(manifest) = &entry.manifest
            && store.stat(&entry.key(Part::Sums)?)?.is_none()
        {
            write_sums(store, manifest)?;
        }
    }
    Ok(())
}

/// Copies a good backup to another store. The caller holds the lock of the work on `to`.
pub(super) fn copy(from: &dyn Store, to: &dyn Store, entry: &Entry, cancel: &Token) -> Result<()> {
    let manifest = read_manifest(from, entry)?;
    // What lies there without being good goes first, in a deletion's order.
    remove_files(to, &entry.id)?;
    state::forget_outcomes(to, &entry.id)?;
    for file in manifest.files() {
        let key = base_key(&entry.id, &file.name)?;
        let upload = copy_file(from, to, &key, file, cancel)?;
        same_size(&upload.finish()?, file.bytes)?;
    }
    commit(to, &manifest)
}

/// Deletes a backup and what is known about it.
pub(super) fn remove(store: &dyn Store, id: &BackupId) -> Result<()> {
    remove_files(store, id)?;
    state::forget(store, id)
}

/// Takes back the files of a backup that was never committed, as far as the store lets it.
pub fn abandon(store: &dyn Store, id: &BackupId) {
    // What stays is cleared by the next run.
    let _ = remove_files(store, id);
}

fn remove_files(store: &dyn Store, id: &BackupId) -> Result<()> {
    for name in [BASE_SUMS, BASE_MANIFEST] {
        store.delete(&base_key(id, name)?)?;
    }
    for object in store.list(&format!("{id}/"))? {
        if is_base_file(object.key.file_name()) {
            store.delete(&object.key)?;
        }
    }
    Ok(())
}

/// Clears what dead runs left; returns the deleted names. The caller holds the lock of runs that
/// take base backups (or that copy them, on that store). `dead_run_ids` are the ids that earlier
/// holders had noted: their folders go at once, others after a day and with pgark's mark only.
///
/// # Errors
/// As the store; what was cleared before stays cleared.
pub fn clear_remains(
    store: &dyn Store,
    now: Timestamp,
    dead_run_ids: &[String],
) -> Result<Vec<String>> {
    let mut cleared = Vec::new();
    for object in store.unfinished()? {
        if in_base_folder(&object.key) && store.delete(&object.key)? {
            cleared.push(object.key.to_string());
        }
    }
    for id in folders(store)? {
        let objects = store.list(&format!("{id}/"))?;
        if objects
            .iter()
            .any(|one| one.key.file_name() == BASE_MANIFEST)
        {
            continue;
        }
        if objects.is_empty() {
            // A directory that a crash left before its first file goes with this.
            store.delete(&base_key(&id, BASE_MANIFEST)?)?;
            continue;
        }
        let dead = dead_run_ids.iter().any(|dead| dead == id.as_str());
        let old = objects
            .iter()
            .all(|one| now.duration_since(one.modified) > AGE_MIN);
        let known = objects
            .iter()
            .filter(|one| is_base_file(one.key.file_name()));
        // What shows the mark goes last: it proves that the rest is pgark's.
        let (marked, others): (Vec<&Object>, Vec<&Object>) =
            known.partition(|one| is_ours(store, &one.key).unwrap_or(false));
        if dead || (old && !marked.is_empty()) {
            for object in others.into_iter().chain(marked) {
                if store.delete(&object.key)? {
                    cleared.push(object.key.to_string());
                }
            }
        }
    }
    Ok(cleared)
}

/// Whether a file lies in the folder of a base backup.
pub(super) fn in_base_folder(key: &Key) -> bool {
    let folder = key.as_str().split_once('/').map(|(folder, _)| folder);
    folder.and_then(parse_base_folder).is_some()
}

#[cfg(test)]
#[path = "base_tests.rs"]
mod tests;
