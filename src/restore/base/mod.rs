//! A base backup into a data directory, so that a server started there recovers to the backup's
//! own end and reaches nobody.
//!
//! First a plan, for which every artefact is looked up and every index read; then the work. A
//! full backup is written straight into the directory. A chain is unpacked below it
//! (`.pgark-restore`), combined by the distribution's `pg_combinebackup`, and moved into place.
//!
//! Invariants: nothing is touched before the plan holds; a directory that is not empty is refused;
//! `pg_control` comes last, after everything else is durable, so that a restore that was broken
//! off never starts as a server. What it leaves is removed by hand (the message says so): nothing
//! deletes below a data directory by itself.

mod combine;
mod extract;
mod files;
mod neutral;
mod recovery;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use self::extract::{Extract, Owner, link_tablespaces};
use self::files::{append, make, write};
pub use self::recovery::Recovery;
use crate::archive::{Artefact, Identities, Index};
use crate::cancel::Token;
use crate::catalog::layout::base_key;
use crate::catalog::list::Entry;
use crate::catalog::manifest::{ArchiveRecord, BaseRecord, Manifest};
use crate::error::{Context, Error, Result};
use crate::postgres::tools::{Program, Tools};
use crate::progress::Progress;
use crate::store::{self, Store};

/// What is wanted.
pub struct Order<'a> {
    pub store: &'a dyn Store,
    /// The full backup, then the incremental ones on it.
    pub chain: Vec<&'a Entry>,
    pub data_dir: PathBuf,
    /// Old place → new place.
    pub mapping: Vec<(PathBuf, PathBuf)>,
    pub tools: &'a Tools,
    /// What opens those that are encrypted.
    pub identities: Option<&'a Identities>,
    /// None: the server recovers to the backup's own end.
    pub recovery: Option<Recovery<'a>>,
}

/// What will be done; everything in it was found to be there.
pub struct Plan<'a> {
    pub store: &'a dyn Store,
    pub data_dir: PathBuf,
    /// Oid and new place.
    pub tablespaces: Vec<(u32, PathBuf)>,
    /// Of all artefacts that are read, as stored.
    pub bytes: u64,
    pub raw_bytes: u64,
    steps: Vec<Step<'a>>,
    combine: Option<Program>,
    moved: bool,
    recovery: Option<Recovery<'a>>,
}

/// One backup of the chain.
struct Step<'a> {
    entry: &'a Entry,
    manifest: &'a Manifest,
    base: &'a BaseRecord,
    /// In the order of the archives.
    sources: Vec<(Artefact<'a>, Index)>,
}

/// How the restored server stands.
#[derive(Debug)]
pub struct Restored {
    /// Files that had to be made because the configuration lay elsewhere.
    pub made: Vec<&'static str>,
    /// Whether the files belong to root, as whom no server runs.
    pub owned_by_root: bool,
}

/// Plans a restore. Nothing is touched.
///
/// # Errors
/// `Damage` for an artefact that is missing or cut, `Usage` for a directory that is not empty, a
/// mapping that fits nothing, or when `pg_combinebackup` is missing.
pub fn plan(order: Order<'_>) -> Result<Plan<'_>> {
    let mut steps = Vec::new();
    for entry in &order.chain {
        steps.push(step(order.store, entry, order.identities)?);
    }
    let last = steps
        .last()
        .ok_or_else(|| Error::failed("there is nothing to restore"))?;
    let combine = match steps.len() {
        1 => None,
        _ => Some(combine::program(
            order.tools,
            last.manifest.server_version_num,
        )?),
    };
    is_free(&order.data_dir)?;
    let (tablespaces, moved) = tablespaces(last.base, &order.mapping)?;
    for (at, (_, place)) in tablespaces.iter().enumerate() {
        is_free(place)?;
        let twin = tablespaces[..at].iter().any(|(_, other)| other == place);
        if twin || *place == order.data_dir {
            return Err(Error::usage(format!("{} is wanted twice", place.display()))
                .hint("give every tablespace a directory of its own"));
        }
    }
    let files = steps.iter().flat_map(|step| step.manifest.files());
    Ok(Plan {
        store: order.store,
        data_dir: order.data_dir,
        tablespaces,
        bytes: files.map(|file| file.bytes).sum(),
        raw_bytes: steps.iter().map(|step| step.manifest.raw_bytes).sum(),
        steps,
        combine,
        moved,
        recovery: order.recovery,
    })
}

fn step<'a>(
    store: &'a dyn Store,
    entry: &'a Entry,
    identities: Option<&Identities>,
) -> Result<Step<'a>> {
    let identities = identities.filter(|_| entry.encrypted);
    let manifest = entry.manifest.as_ref();
    let parts = manifest.and_then(|manifest| Some((manifest, manifest.base.as_ref()?)));
    let Some((manifest, base)) = parts else {
        let reason = entry
            .reason
            .as_deref()
            .unwrap_or("its manifest cannot be read");
        return Err(Error::damage(format!("{} is not good: {reason}", entry.id))
            .hint("`pgark list` shows the others"));
    };
    for file in manifest.files() {
        let key = base_key(&entry.id, &file.name)?;
        let found = store
            .stat(&key)?
            .ok_or_else(|| store::missing(store, &key))?;
        if found.bytes != file.bytes {
            return Err(Error::damage(format!(
                "{key} holds {} bytes instead of {}; nothing was touched",
                found.bytes, file.bytes
            ))
            .hint("`pgark list` shows the others"));
        }
    }
    let source = |archive: &ArchiveRecord| {
        let key = base_key(&entry.id, &archive.index.name)?;
        let index = Index::read(store, &key, &archive.index.sha256, identities)?;
        let key = base_key(&entry.id, &archive.file.name)?;
        Ok((Artefact::open(store, key, entry.codec, identities)?, index))
    };
    Ok(Step {
        entry,
        manifest,
        base,
        sources: base.archives.iter().map(source).collect::<Result<_>>()?,
    })
}

/// Absent, or an empty directory.
fn is_free(dir: &Path) -> Result<()> {
    if !dir.is_absolute() {
        return Err(Error::usage(format!(
            "{} is not an absolute path",
            dir.display()
        )));
    }
    match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::from(error).context(dir.display())),
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(Error::usage(format!(
                "{} is not empty; nothing was touched",
                dir.display()
            ))
            .hint("give another directory, or move away what lies there")),
        },
    }
}

/// Where each tablespace goes, and whether any goes elsewhere than it was.
fn tablespaces(
    base: &BaseRecord,
    mapping: &[(PathBuf, PathBuf)],
) -> Result<(Vec<(u32, PathBuf)>, bool)> {
    let mut places = Vec::new();
    let mut unused: BTreeMap<&Path, &Path> = BTreeMap::new();
    unused.extend(
        mapping
            .iter()
            .map(|(old, new)| (old.as_path(), new.as_path())),
    );
    let mut moved = false;
    for archive in &base.archives {
        if let (Some(oid), Some(location)) = (archive.oid, &archive.location) {
            let old = PathBuf::from(location);
            let new = unused.remove(old.as_path()).map(Path::to_owned);
            moved |= new.as_ref().is_some_and(|new| *new != old);
            places.push((oid, new.unwrap_or(old)));
        }
    }
    if let Some(old) = unused.keys().next() {
        let all = base
            .archives
            .iter()
            .filter_map(|one| one.location.as_deref());
        let all: Vec<&str> = all.collect();
        return Err(
            Error::usage(format!("no tablespace lay in {}", old.display())).hint(format!(
                "the backup has {} of them: {}",
                all.len(),
                all.join(", ")
            )),
        );
    }
    Ok((places, moved))
}

impl Plan<'_> {
    /// The ids that are read, the full backup first.
    #[must_use]
    pub fn ids(&self) -> Vec<&str> {
        self.steps
            .iter()
            .map(|step| step.entry.id.as_str())
            .collect()
    }

    /// The version that a server on this directory must have.
    #[must_use]
    pub fn server_version(&self) -> &str {
        self.last().map_or("", |step| &step.manifest.server_version)
    }

    fn last(&self) -> Option<&Step<'_>> {
        self.steps.last()
    }

    /// Does it.
    ///
    /// # Errors
    /// `Damage` for an artefact that is not right, else as the file system. The directory then
    /// holds a part, and no `pg_control`.
    pub fn run(&self, threads: usize, progress: &Progress, cancel: &Token) -> Result<Restored> {
        progress.add_expected(self.raw_bytes);
        let owner = self.owner()?;
        if let Some(recovery) = &self.recovery {
            recovery.stage(&self.data_dir, (owner, threads), progress, cancel)?;
        }
        let work = || -> Result<Restored> {
            // Opened before anything is written: what the disk fails at from here on shows when they are synced.
            let mut folders = Vec::new();
            for place in std::iter::once(&self.data_dir)
                .chain(self.tablespaces.iter().map(|(_, place)| place))
            {
                make(place, owner)?;
                folders.push(File::open(place).context(|| place.display().to_string())?);
            }
            let control = match &self.combine {
                None => self.unpack(owner, threads, progress, cancel)?,
                Some(program) => combine::run(self, program, (owner, threads), progress, cancel)?,
            };
            self.complete(owner, (&control, &folders), threads, progress, cancel)
        };
        work().map_err(|error| {
            let place = self.data_dir.display();
            let hint = error.hint.clone().unwrap_or_default();
            error.hint(format!("{hint}{}{place} is incomplete and will not start: empty it before the next attempt", if hint.is_empty() { "" } else { "; " }))
        })
    }

    /// Root gives the files to whom the directory belongs, or what it is made in.
    fn owner(&self) -> Result<Option<Owner>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let mut place = self.data_dir.as_path();
        while !place.exists() {
            place = place.parent().unwrap_or(Path::new("/"));
        }
        let about = fs::metadata(place).context(|| place.display().to_string())?;
        Ok(Some(Owner {
            uid: about.uid(),
            gid: about.gid(),
        }))
    }

    /// A full backup, straight into the directory. Gives `pg_control`.
    fn unpack(
        &self,
        owner: Option<Owner>,
        threads: usize,
        progress: &Progress,
        cancel: &Token,
    ) -> Result<Vec<u8>> {
        let step = self
            .last()
            .ok_or_else(|| Error::failed("there is nothing to restore"))?;
        let mut control = Vec::new();
        for (archive, source) in step.base.archives.iter().zip(&step.sources) {
            let place = match archive.oid {
                None if is_wal(archive) => continue,
                None => &self.data_dir,
                Some(oid) => self.place(oid)?,
            };
            let mut extract = Extract::new(place, &self.tablespaces, owner, progress);
            extract.keep_map = !self.moved;
            extract.hold_control = true;
            extract.run(source, threads, cancel)?;
            control.extend(extract.control);
        }
        link_tablespaces(&self.data_dir, &self.tablespaces, owner)?;
        let key = base_key(&step.entry.id, &step.base.backup_manifest.name)?;
        let manifest = store::get(self.store, &key)?;
        let manifest = manifest.ok_or_else(|| store::missing(self.store, &key))?;
        if hex::encode(Sha256::digest(&manifest)) != step.base.backup_manifest.sha256 {
            return Err(Error::damage(format!("{key} is not what was written"))
                .hint("`pgark verify` tells more; `pgark list` shows other backups"));
        }
        write(&self.data_dir.join("backup_manifest"), &manifest, owner)?;
        Ok(control)
    }

    fn place(&self, oid: u32) -> Result<&PathBuf> {
        let found = self.tablespaces.iter().find(|(known, _)| *known == oid);
        let unknown = || {
            Error::damage(format!(
                "the backup does not say where tablespace {oid} lay"
            ))
        };
        found.map(|(_, place)| place).ok_or_else(unknown)
    }

    /// WAL, settings, and when all that is durable `pg_control`.
    fn complete(
        &self,
        owner: Option<Owner>,
        (control, folders): (&[u8], &[File]),
        threads: usize,
        progress: &Progress,
        cancel: &Token,
    ) -> Result<Restored> {
        let step = self
            .last()
            .ok_or_else(|| Error::failed("there is nothing to restore"))?;
        if control.is_empty() {
            return Err(Error::damage(format!(
                "{} holds no pg_control",
                step.entry.id
            )));
        }
        let wal = self.data_dir.join("pg_wal");
        make(&wal, owner)?;
        for (archive, source) in step.base.archives.iter().zip(&step.sources) {
            if is_wal(archive) {
                Extract::new(&wal, &[], owner, progress).run(source, threads, cancel)?;
            }
        }
        if let Some(recovery) = &self.recovery {
            recovery.place(&self.data_dir, owner)?;
        }
        let made = self.settle(step, owner, folders)?;
        cancel.check()?;
        let path = self.data_dir.join("global/pg_control");
        write(&path, control, owner)?;
        for folder in [&self.data_dir.join("global"), &self.data_dir] {
            let synced = File::open(folder).and_then(|folder| folder.sync_all());
            synced.context(|| format!("cannot make {} durable", folder.display()))?;
        }
        Ok(Restored {
            made,
            owned_by_root: owner.is_some_and(|owner| owner.uid == 0),
        })
    }

    /// Settings, and all of it durable. Gives the files that had to be made.
    fn settle(
        &self,
        step: &Step<'_>,
        owner: Option<Owner>,
        folders: &[File],
    ) -> Result<Vec<&'static str>> {
        let mut made = Vec::new();
        for (name, text) in neutral::configuration(&step.base.settings) {
            let path = self.data_dir.join(name);
            if !path.exists() {
                write(&path, text.as_bytes(), owner)?;
                made.push(name);
            }
        }
        let auto = self.data_dir.join("postgresql.auto.conf");
        append(
            &auto,
            &neutral::settings(step.manifest.server_version_num, self.recovery.as_ref()),
            owner,
        )?;
        write(&self.data_dir.join("recovery.signal"), b"", owner)?;
        for folder in folders {
            rustix::fs::syncfs(folder)
                .map_err(std::io::Error::from)
                .context(|| format!("cannot make {} durable", self.data_dir.display()))?;
        }
        Ok(made)
    }
}

fn is_wal(archive: &ArchiveRecord) -> bool {
    archive.file.name.starts_with("pg_wal.tar")
}
