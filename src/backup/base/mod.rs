//! One base backup: BASE_BACKUP → frames → compress → store, with its own WAL beside it.
//!
//! Invariants: one at a time for a cluster (a lock file and an advisory lock of their own, so that
//! dumps go on meanwhile); the backup exists only when all its archives, its WAL from start to
//! end and the server's manifest are stored whole; an incremental one that cannot be made becomes
//! a full one, with the reason in its manifest. Pages that the server finds damaged do not end
//! it: there may be no other copy.
//!
//! Dropped or failed, it takes back what it stored. A crash leaves a folder without a manifest,
//! which the next run clears; the server gives the backup and the slot up by itself.

mod intake;
mod parent;
mod wal;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;

use self::intake::Intake;
use self::wal::Collector;
use super::run::{LOCK_BASE, lock_cluster};
use crate::archive::crypt::{self, Crypt};
use crate::cancel::Token;
use crate::catalog::base as stored;
use crate::catalog::commit::same_size;
use crate::catalog::layout::{BASE_LOCK, base_key};
use crate::catalog::list::{self, Entry};
use crate::catalog::manifest::{BaseRecord, Manifest};
use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::postgres::Target;
use crate::postgres::replication::{BaseBackup, BaseEnd, Checkpoint, Replication, System};
use crate::postgres::tools::version_text;
use crate::progress::Progress;
use crate::store::lock::{DirLock, Reading};
use crate::store::{self, Store, StoreReader};
use crate::units::{BackupId, Codec, SegmentSize};

/// How a base backup is taken.
#[derive(Debug, Clone)]
pub struct Options {
    pub cluster: String,
    pub codec: Codec,
    /// For archives and indexes; `backup_manifest` stays readable, which the next incremental backup needs.
    pub crypt: Crypt,
    /// Compressors.
    pub jobs: usize,
    /// Only what changed since the newest one, where that can be.
    pub incremental: bool,
    /// Incremental ones on one full one, at most.
    pub chain_max: usize,
    pub checkpoint: Checkpoint,
    pub max_rate_kib: Option<u32>,
    pub started_at: Timestamp,
}

impl Options {
    /// The codec for tar streams: never gzip members, at the first of which PostgreSQL's own tar
    /// readers stop.
    #[must_use]
    pub fn archive_codec(configured: Codec) -> Codec {
        match configured {
            Codec::Gzip { .. } => Codec::ZSTD,
            other => other,
        }
    }
}

/// What a run works with.
pub struct Run<'a> {
    pub target: &'a Target,
    pub options: Options,
    pub store: &'a dyn Store,
    /// Directory of the lock file.
    pub dir: &'a Path,
    pub progress: &'a Arc<Progress>,
    pub cancel: &'a Token,
    /// Told of each step for people: a sentence.
    pub say: &'a dyn Fn(&str),
}

/// Takes a base backup.
///
/// # Errors
/// `Busy` when another run holds the cluster, the server's and the store's errors, `Partial` when
/// only its `SHA256SUMS` could not be written.
pub fn take(run: &Run<'_>) -> Result<Manifest> {
    let mut lock = DirLock::acquire(run.dir, BASE_LOCK)?;
    for name in stored::clear_remains(run.store, clock::now(), lock.previous_intents())? {
        (run.say)(&format!(
            "cleared {name}, which an interrupted run left behind"
        ));
    }
    lock.note(&[])?;
    let catalog = list::load(run.store)?;
    stored::ensure_sums(run.store, &catalog.entries)?;
    let holder = lock_cluster(run.target, LOCK_BASE, run.cancel)?;
    // The server that granted the lock, whatever else stands behind its name.
    let target = holder.pinned();
    let mut link = Replication::connect(&target)?;
    let canceller = link.canceller();
    let _hook = run.cancel.on_cancel(move || canceller.close());
    let session = Session {
        run,
        system: link.identify()?,
        segment: link.segment_size()?,
        target: &target,
    };
    let parent = session.parent(&mut link, &catalog.entries)?;
    let (id, started_at) = stored::free_id(run.store, run.options.started_at)?;
    lock.note(&[id.to_string()])?;
    let manifest = session
        .take(&mut link, &id, started_at, parent)
        .map_err(|error| {
            // A name that somebody else took in the same second is his.
            if !error.is_exists() {
                stored::abandon(run.store, &id);
            }
            // After a signal the failure is only that a connection was closed.
            run.cancel.check().err().unwrap_or(error)
        })?;
    let committed = commit(run, manifest).inspect_err(|error| {
        if error.kind != Kind::Partial && !error.is_exists() {
            stored::abandon(run.store, &id);
        }
    });
    drop(holder);
    lock.release()?;
    committed
}

/// Makes the backup exist; the manifest comes back in the clear.
fn commit(run: &Run<'_>, mut manifest: Manifest) -> Result<Manifest> {
    let Crypt::Age(recipients) = &run.options.crypt else {
        return stored::commit(run.store, &manifest).map(|()| manifest);
    };
    manifest.encrypted = true;
    manifest.recipients = recipients.names();
    let details = manifest.conceal(&|json| crypt::seal(recipients, json))?;
    stored::commit(run.store, &manifest)?;
    Ok(manifest.with(details))
}

/// What every step of one backup needs.
struct Session<'a> {
    run: &'a Run<'a>,
    target: &'a Target,
    system: System,
    segment: SegmentSize,
}

/// What an incremental backup builds on, kept from being deleted; or why there is none.
enum Parent {
    NotWanted,
    Chosen(Box<Entry>, Option<Reading>),
    None(String),
}

impl Session<'_> {
    fn parent(&self, link: &mut Replication, entries: &[Entry]) -> Result<Parent> {
        if !self.run.options.incremental {
            return Ok(Parent::NotWanted);
        }
        let chain_max = self.run.options.chain_max;
        Ok(
            match parent::choose(link, entries, self.system, chain_max)? {
                Ok(entry) => {
                    let reading = Reading::hold(self.run.dir, entry.id.as_str());
                    Parent::Chosen(Box::new(entry.clone()), reading)
                }
                Err(reason) => Parent::None(reason),
            },
        )
    }

    fn take(
        &self,
        link: &mut Replication,
        id: &BackupId,
        started_at: Timestamp,
        parent: Parent,
    ) -> Result<Manifest> {
        let run = self.run;
        let settings = settings(link);
        let from_standby = link.parameter("in_hot_standby") == Some("on");
        let collector = Collector::start(self, id, link.canceller())?;
        let mut intake = Intake::new(run, id, &collector);
        let (end, parent, full_because) = match self.receive(link, id, parent, &mut intake) {
            Ok(received) => received,
            // Its failure closed the connection: it knows why.
            Err(error) => return Err(collector.failure().unwrap_or(error)),
        };
        let (mut archives, backup_manifest) = intake.finish()?;
        archives.push(collector.finish(end.end, end.end_timeline)?);
        let mut manifest = Manifest::new(id.clone(), run.options.codec, started_at, clock::now());
        manifest.cluster.clone_from(&run.options.cluster);
        manifest.system_identifier = Some(self.system.id.to_string());
        manifest.server_version_num = link.server_version_num();
        manifest.server_version = link
            .parameter("server_version")
            .map_or_else(|| version_text(manifest.server_version_num), str::to_owned);
        manifest.artefact = archives[0].file.clone();
        manifest.index = Some(archives[0].index.clone());
        manifest.raw_bytes = archives.iter().map(|archive| archive.raw_bytes).sum();
        manifest.frames = archives.iter().map(|archive| archive.frames).sum();
        manifest.parent = parent;
        manifest.warnings = end.warnings;
        manifest.base = Some(BaseRecord {
            start_lsn: end.start,
            start_timeline: end.start_timeline,
            end_lsn: end.end,
            end_timeline: end.end_timeline,
            wal_segment_bytes: self.segment,
            from_standby,
            archives,
            backup_manifest,
            bad_checksums: end.bad_checksums,
            full_because,
            settings,
        });
        Ok(manifest)
    }

    /// Runs BASE_BACKUP, as incremental if that can be, else full.
    fn receive(
        &self,
        link: &mut Replication,
        id: &BackupId,
        parent: Parent,
        intake: &mut Intake<'_>,
    ) -> Result<(BaseEnd, Option<BackupId>, Option<String>)> {
        let options = &self.run.options;
        let full = BaseBackup {
            label: id.to_string(),
            checkpoint: options.checkpoint,
            progress: true,
            max_rate_kib: options.max_rate_kib,
            ..BaseBackup::default()
        };
        let reason = match parent {
            Parent::NotWanted => None,
            Parent::None(reason) => Some(reason),
            Parent::Chosen(entry, _reading) => {
                (self.run.say)(&format!("{id}: begins, on {}", entry.id));
                match self.receive_changes(link, &entry, &full, intake) {
                    Ok(end) => return Ok((end, Some(entry.id), None)),
                    Err(error) if intake.is_untouched() && !link.is_broken() => Some(error.fact),
                    Err(error) => return Err(error),
                }
            }
        };
        match &reason {
            Some(reason) => (self.run.say)(&format!("{id}: begins, a full one: {reason}")),
            None => (self.run.say)(&format!("{id}: begins")),
        }
        let end = link.base_backup(&full, &mut |event| intake.take(event))?;
        Ok((end, None, reason))
    }

    fn receive_changes(
        &self,
        link: &mut Replication,
        parent: &Entry,
        full: &BaseBackup,
        intake: &mut Intake<'_>,
    ) -> Result<BaseEnd> {
        let store = self.run.store;
        let record = parent.manifest.as_ref().and_then(|one| one.base.as_ref());
        let record = record.ok_or_else(|| Error::failed("its manifest is not readable"))?;
        let key = base_key(&parent.id, &record.backup_manifest.name)?;
        let (_, sha256) = store::hash(store, &key)?;
        if sha256 != record.backup_manifest.sha256 {
            return Err(Error::damage(format!("{key} is not what was written")));
        }
        link.upload_manifest(StoreReader::open(store, &key)?)?;
        let wanted = BaseBackup {
            incremental: true,
            ..full.clone()
        };
        link.base_backup(&wanted, &mut |event| intake.take(event))
    }
}

/// Settings that a server on the restored directory must have at least as high as here (or
/// recovery stops), and some that help when the configuration lies outside the directory.
/// Those that this role may not see are left out.
const SETTINGS: [&str; 13] = [
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
    "wal_level",
    "data_checksums",
    "data_directory_mode",
    "shared_preload_libraries",
    "config_file",
    "hba_file",
    "lc_messages",
    "archive_mode",
];

fn settings(link: &mut Replication) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for name in SETTINGS {
        if let Ok(value) = link.show(name) {
            found.insert(name.to_owned(), value);
        }
    }
    found
}

/// Finishes the uploads of an archive: they appear under their names.
fn store_archive(
    written: store::Written,
    names: [String; 2],
) -> Result<crate::catalog::manifest::ArchiveRecord> {
    use crate::catalog::manifest::{ArchiveRecord, FileRecord};
    let [name, index_name] = names;
    same_size(&written.artefact.finish()?, written.bytes)?;
    same_size(&written.index.finish()?, written.index_bytes)?;
    Ok(ArchiveRecord {
        oid: None,
        location: None,
        file: FileRecord {
            name,
            bytes: written.bytes,
            sha256: written.sha256,
        },
        index: FileRecord {
            name: index_name,
            bytes: written.index_bytes,
            sha256: written.index_sha256,
        },
        raw_bytes: written.raw_bytes,
        frames: written.frames,
    })
}
