//! The catalog: all backups of a store, read from its names, manifests and outcomes.
//!
//! Invariants: one backup that cannot be read never hides another; an artefact without a manifest is
//! either legacy (it has a `.sha256`) or not listed at all. Reads only.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;

use super::base;
use super::known::{Known, Summary};
use super::layout::{Outcome, Part, parse_key, part_key};
use super::legacy::check_legacy;
use super::manifest::{FileRecord, Manifest};
pub use super::state::State;
use super::state::{self, Standing};
use crate::anomaly;
use crate::config::distance;
use crate::error::{Error, Kind, Result};
use crate::store::{Key, Object, Store};
use crate::units::{BackupId, BackupKind, Codec};

/// One backup.
#[derive(Debug, Clone)]
pub struct Entry {
    pub id: BackupId,
    pub kind: BackupKind,
    /// Empty when not known.
    pub cluster: String,
    pub database: Option<String>,
    pub state: State,
    /// False for legacy ones until `check_legacy` passed: that is for the caller to do.
    pub good: bool,
    /// None for legacy backups, when it cannot be read, and until [`Entry::complete`] where the
    /// catalog knows only its summary.
    pub manifest: Option<Manifest>,
    /// None for legacy backups and when the manifest cannot be read.
    pub summary: Option<Summary>,
    pub artefact: Option<Object>,
    /// From the file's name, at the codec's default level.
    pub codec: Codec,
    pub encrypted: bool,
    /// Why it is not good.
    pub reason: Option<String>,
    /// Its manifest could not be read, which proves no damage: the store may be back tomorrow, or
    /// the format be newer. Such a backup is neither used nor deleted nor written over.
    pub unread: bool,
    pub started_at: Timestamp,
    pub finished_at: Option<Timestamp>,
    /// Of the artefact as stored, or as the manifest says when it is missing.
    pub bytes: u64,
    pub raw_bytes: Option<u64>,
    pub sha256: Option<String>,
}

impl Entry {
    /// Nothing is known against its bytes: good, or only suspect. (Not a legacy one's question.)
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.good || self.state == State::Suspect
    }

    /// The name of one of its files.
    ///
    /// # Errors
    /// None that a listed entry can cause.
    pub fn key(&self, part: Part) -> Result<Key> {
        part_key(&self.id, self.codec, self.encrypted, part)
    }

    /// Reads the manifest where only its summary is known. One that cannot be read makes the
    /// entry what the catalog would have made of it.
    pub fn complete(&mut self, store: &dyn Store) {
        let Some(summary) = self.summary.as_ref().filter(|_| self.manifest.is_none()) else {
            return;
        };
        match read_manifest(store, self, &summary.file) {
            Ok(manifest) => self.manifest = Some(manifest),
            Err(error) => self.cannot_read(error),
        }
    }

    fn cannot_read(&mut self, error: Error) {
        self.unread = error.kind != Kind::Damage;
        self.summary = None;
        fail(self, error.fact);
    }
}

/// All backups of a store, newest first.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    pub entries: Vec<Entry>,
}

type Family<'a> = BTreeMap<Part, &'a Object>;

/// Reads the catalog; where that costs time, no manifest that is `known` already.
///
/// # Errors
/// Only when the store cannot be listed; a manifest that cannot be read is an entry that failed.
pub fn load(store: &dyn Store) -> Result<Catalog> {
    let objects = store.list("")?;
    let mut outcomes = state::all(store)?;
    let mut families: BTreeMap<(BackupId, &str, bool), (Codec, Family)> = BTreeMap::new();
    for object in &objects {
        if let Some((id, codec, encrypted, part)) = parse_key(object.key.as_str()) {
            let (_, family) = families
                .entry((id, codec.name(), encrypted))
                .or_insert_with(|| (codec, Family::new()));
            family.insert(part, object);
        }
    }
    let mut found = Vec::new();
    for ((id, _, encrypted), (codec, family)) in families {
        let entry = Entry {
            kind: id.kind(),
            cluster: String::new(),
            database: id.database(),
            state: State::Taken,
            good: true,
            manifest: None,
            summary: None,
            artefact: family.get(&Part::Artefact).map(|object| (*object).clone()),
            codec,
            encrypted,
            reason: None,
            unread: false,
            started_at: id.time().unwrap_or(Timestamp::UNIX_EPOCH),
            finished_at: None,
            bytes: family.get(&Part::Artefact).map_or(0, |object| object.bytes),
            raw_bytes: None,
            sha256: None,
            id,
        };
        let standing = outcomes.remove(&entry.id).unwrap_or_default();
        found.push((entry, family, standing));
    }
    let manifests = found
        .iter()
        .filter(|(_, family, _)| family.contains_key(&Part::Manifest));
    let known = Known::read(store, manifests.count());
    let mut entries = in_parallel(store, &known, found);
    entries.extend(base::entries(store, &mut outcomes)?);
    entries.sort_by(|a, b| (b.started_at, &b.id).cmp(&(a.started_at, &a.id)));
    base::judge_chains(&mut entries);
    Ok(Catalog { entries })
}

/// The entry with its state; none for what is no backup.
fn examine(
    store: &dyn Store,
    known: &Known,
    mut entry: Entry,
    family: &Family<'_>,
    standing: Standing,
) -> Option<Entry> {
    let accepted = standing.accepted;
    let outcome = standing.outcome.map(|(outcome, file)| {
        let failed = outcome == Outcome::Failed;
        (
            outcome,
            failed.then(|| state::reason(store, &file)).flatten(),
        )
    });
    if let Some(file) = family.get(&Part::Manifest) {
        match summary(store, known, &mut entry, file) {
            Ok(summary) => judge(&mut entry, summary, family, outcome, accepted),
            Err(error) => entry.cannot_read(error),
        }
    } else if family.contains_key(&Part::Artefact)
        && family.contains_key(&Part::Sums)
        && entry.kind == BackupKind::Dump
    {
        entry.state = State::Legacy;
        entry.good = false;
        if let Some((Outcome::Failed, reason)) = outcome {
            fail(
                &mut entry,
                reason.unwrap_or_else(|| "its check failed".to_owned()),
            );
        }
    } else {
        return None;
    }
    Some(entry)
}

type Found<'a> = (Entry, Family<'a>, Standing);

/// Examines all of them, so many at once: far away, each costs a round trip.
fn in_parallel(store: &dyn Store, known: &Known, found: Vec<Found<'_>>) -> Vec<Entry> {
    let threads = store.reads_at_once().min(found.len());
    let queue = Mutex::new(found);
    let work = || {
        let mut entries = Vec::new();
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some((entry, family, standing)) = next else {
                return entries;
            };
            entries.extend(examine(store, known, entry, &family, standing));
        }
    };
    if threads <= 1 {
        return work();
    }
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let done = workers.into_iter().map(std::thread::ScopedJoinHandle::join);
        // A panic of one is a panic of all: fewer backups than there are would be a lie.
        done.flat_map(|entries| entries.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

pub(super) fn fail(entry: &mut Entry, reason: String) {
    entry.state = State::Failed;
    entry.good = false;
    entry.reason = Some(reason);
}

/// What a catalog needs of the manifest: known already, or read.
fn summary(store: &dyn Store, known: &Known, entry: &mut Entry, file: &Object) -> Result<Summary> {
    let own = |known: &&Summary| belongs(entry, &known.artefact, known.index.as_ref());
    if let Some(known) = known.get(file).filter(own) {
        return Ok(known.clone());
    }
    let manifest = read_manifest(store, entry, file)?;
    let summary = Summary::of(file, &manifest);
    entry.manifest = Some(manifest);
    Ok(summary)
}

/// Decides the state of a backup that has a manifest.
fn judge(
    entry: &mut Entry,
    summary: Summary,
    family: &Family,
    outcome: Option<(Outcome, Option<String>)>,
    accepted: bool,
) {
    entry.cluster.clone_from(&summary.cluster);
    entry.database.clone_from(&summary.database);
    entry.started_at = summary.started_at;
    entry.finished_at = Some(summary.finished_at);
    entry.raw_bytes = Some(summary.raw_bytes);
    entry.sha256 = Some(summary.artefact.sha256.clone());
    let index = summary.index.as_ref().map(|index| (Part::Index, index));
    let files = [Some((Part::Artefact, &summary.artefact)), index];
    let wrong = files
        .into_iter()
        .flatten()
        .find_map(|(part, file)| Some((part, differs(family.get(&part).copied(), file)?)));
    match (wrong, outcome) {
        (Some((part, what)), _) => {
            fail(entry, what);
            if part == Part::Artefact && entry.artefact.is_none() {
                entry.state = State::Missing;
                entry.bytes = summary.artefact.bytes;
            }
        }
        (None, Some((Outcome::Failed, reason))) => {
            fail(
                entry,
                reason.unwrap_or_else(|| "its verify or drill failed".to_owned()),
            );
        }
        (None, Some((Outcome::Verified, _))) => entry.state = State::Verified,
        (None, Some((Outcome::Proven, _))) => entry.state = State::Proven,
        // `Accepted` is no outcome of this kind.
        (None, Some((Outcome::Accepted, _)) | None) => {}
    }
    if entry.good && !summary.suspect.is_empty() && !accepted {
        entry.state = State::Suspect;
        entry.good = false;
        entry.reason = Some(anomaly::sentence(&summary.suspect));
    }
    entry.summary = Some(summary);
}

pub(super) fn differs(object: Option<&Object>, file: &FileRecord) -> Option<String> {
    match object {
        None => Some(format!("{} is missing", file.name)),
        Some(object) if object.bytes != file.bytes => Some(format!(
            "{} holds {} bytes instead of {}",
            file.name, object.bytes, file.bytes
        )),
        Some(_) => None,
    }
}

/// Whether a manifest that names these files is that of this backup.
fn belongs(entry: &Entry, artefact: &FileRecord, index: Option<&FileRecord>) -> bool {
    let is = |file: &FileRecord, part| entry.key(part).is_ok_and(|key| key.as_str() == file.name);
    is(artefact, Part::Artefact) && index.is_none_or(|index| is(index, Part::Index))
}

fn read_manifest(store: &dyn Store, entry: &Entry, file: &Object) -> Result<Manifest> {
    let key = &file.key;
    let manifest = Manifest::parse(key, &store.read(key, 0..file.bytes)?)?;
    if manifest.id != entry.id || !belongs(entry, &manifest.artefact, manifest.index.as_ref()) {
        return Err(Error::damage(format!(
            "the manifest {key} belongs to another backup, {}",
            manifest.artefact.name
        )));
    }
    Ok(manifest)
}

impl Catalog {
    /// The backup with this id.
    ///
    /// # Errors
    /// `Usage` naming ids that are near.
    pub fn find(&self, id: &str) -> Result<&Entry> {
        if let Some(entry) = self.entries.iter().find(|entry| entry.id.as_str() == id) {
            return Ok(entry);
        }
        let mut near: Vec<(usize, &str)> = self
            .entries
            .iter()
            .map(|entry| (distance(id, entry.id.as_str()), entry.id.as_str()))
            .collect();
        near.sort_by_key(|(distance, _)| *distance);
        let names: Vec<&str> = near.iter().take(3).map(|(_, id)| *id).collect();
        let hint = if names.is_empty() {
            "the store holds no backup yet".to_owned()
        } else {
            format!(
                "the nearest are {}; `pgark list` shows all",
                names.join(", ")
            )
        };
        Err(Error::usage(format!("there is no backup {id:?}")).hint(hint))
    }

    /// The newest backup of a kind that may be restored, and the newer ones that were passed over.
    /// A legacy one counts as if it were good: call [`check_legacy`] on it, or use
    /// [`Self::latest_good`], which does.
    ///
    /// # Errors
    /// `Usage` when several databases could be meant; `Failed` when there is none.
    pub fn latest(
        &self,
        kind: BackupKind,
        database: Option<&str>,
    ) -> Result<(&Entry, Vec<&Entry>)> {
        let matching: Vec<&Entry> = self
            .entries
            .iter()
            .filter(|entry| entry.kind == kind)
            .filter(|entry| database.is_none() || entry.database.as_deref() == database)
            .collect();
        let mut names: Vec<&str> = matching
            .iter()
            .filter_map(|e| e.database.as_deref())
            .collect();
        names.sort_unstable();
        names.dedup();
        if names.len() > 1 {
            let newest: Vec<&str> = names
                .iter()
                .filter_map(|name| {
                    let mut of_name = matching
                        .iter()
                        .filter(|e| e.database.as_deref() == Some(name));
                    Some(of_name.next()?.id.as_str())
                })
                .collect();
            return Err(Error::usage(format!(
                "\"latest\" is ambiguous: there are backups of {}",
                names.join(", ")
            ))
            .hint(format!("give --database, or an id: {}", newest.join(", "))));
        }
        let may = |entry: &&Entry| entry.good || entry.state == State::Legacy;
        if let Some(at) = matching.iter().position(may) {
            Ok((matching[at], matching[..at].to_vec()))
        } else {
            let of = database
                .map(|name| format!(" of {name}"))
                .unwrap_or_default();
            let bad = matching.len();
            Err(Error::failed(format!(
                "there is no good {kind}{of} ({bad} that are not good)"
            ))
            .hint("`pgark list` shows what there is, and why it is not good"))
        }
    }

    /// As [`Self::latest`], checking legacy backups on the way. One that is not good is marked
    /// as failed in this catalog (not in the store) and passed over.
    ///
    /// # Errors
    /// As [`Self::latest`], and as the store.
    pub fn latest_good(
        &mut self,
        store: &dyn Store,
        kind: BackupKind,
        database: Option<&str>,
    ) -> Result<(Entry, Vec<Entry>)> {
        loop {
            let (entry, skipped) = self.latest(kind, database)?;
            let skipped = skipped.into_iter().cloned().collect();
            let mut entry = entry.clone();
            if entry.state != State::Legacy {
                entry.complete(store);
                if entry.good {
                    return Ok((entry, skipped));
                }
                // Only now seen to be damaged: the next one, then.
                if let Some(known) = self.entries.iter_mut().find(|known| known.id == entry.id) {
                    *known = entry;
                }
                continue;
            }
            match check_legacy(store, &entry) {
                Ok(()) => {
                    entry.good = true;
                    return Ok((entry, skipped));
                }
                Err(error) if error.kind == Kind::Damage => {
                    let same = |e: &&mut Entry| e.id == entry.id && e.state == State::Legacy;
                    if let Some(bad) = self.entries.iter_mut().find(same) {
                        fail(bad, error.fact);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}
