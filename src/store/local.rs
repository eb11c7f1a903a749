//! The store in a local directory.
//!
//! An upload writes `.<name>.<8 hex digits>.pgark-tmp` beside its final name, then: fsync,
//! rename, fsync of the directory, size read back. `Put::New` renames with `RENAME_NOREPLACE`
//! (renameat2(2)), or links and unlinks where the file system lacks it.
//!
//! Invariant: a final name always holds a whole, fsynced object. A crash leaves temporary names
//! only. Files are 0600 and directories 0700 when pgark creates them.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::flush::Flusher;
use super::{Key, Object, Put, Store, Upload, missing};
use crate::error::{Cause, Error, Result};
use crate::units::BackupId;

/// The end of every temporary name.
const TEMPORARY: &str = ".pgark-tmp";

/// A directory that holds backups.
#[derive(Debug, Clone)]
pub struct LocalStore {
    name: String,
    dir: PathBuf,
}

impl LocalStore {
    /// Opens the directory, and creates it (0700) when it is absent.
    ///
    /// # Errors
    /// `Failed` when it cannot be created or is not a directory.
    pub fn open(dir: &Path) -> Result<LocalStore> {
        if dir.exists() && !dir.is_dir() {
            return Err(
                Error::failed(format!("{} is not a directory", dir.display()))
                    .hint("set BACKUP_DIR to a directory"),
            );
        }
        create_dir(dir).map_err(|error| explain(error, dir, "create the directory"))?;
        Ok(LocalStore {
            name: "local".to_owned(),
            dir: dir.to_owned(),
        })
    }

    /// The same under the name that the configuration gives it.
    #[must_use]
    pub fn named(mut self, name: &str) -> LocalStore {
        name.clone_into(&mut self.name);
        self
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.dir.join(key.as_str())
    }

    /// The files of one level that `keep` wants, by their key.
    fn scan(&self, prefix: &str, keep: impl Fn(&str) -> bool) -> Result<Vec<Object>> {
        let doing = "list it";
        let dir = self.dir.join(prefix);
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !prefix.is_empty() => {
                return Ok(Vec::new());
            }
            other => other.map_err(|error| explain(error, &dir, doing))?,
        };
        let mut objects = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| explain(error, &dir, doing))?;
            // Names that are not UTF-8 were never written by pgark or its predecessor.
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if !keep(&name) {
                continue;
            }
            match fs::metadata(entry.path()) {
                Ok(about) if about.is_file() => {
                    objects.push(object(Key::new(&format!("{prefix}{name}"))?, &about));
                }
                Ok(_) => {}
                // Deleted since the listing began, or a dangling link.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(explain(error, &entry.path(), doing)),
            }
        }
        objects.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(objects)
    }
}

impl Store for LocalStore {
    fn name(&self) -> &str {
        &self.name
    }

    fn describe(&self) -> String {
        self.dir.display().to_string()
    }

    fn create(&self, key: &Key, mode: Put) -> Result<Box<dyn Upload>> {
        let path = self.path(key);
        // Early, so that nobody dumps for hours towards a name that is taken; finish decides.
        if mode == Put::New && path.symlink_metadata().is_ok() {
            return Err(exists(&path));
        }
        let parent = path.parent().unwrap_or(&self.dir).to_owned();
        create_dir(&parent).map_err(|error| explain(error, &parent, "create the directory"))?;
        let (temporary, file) = open_temporary(&parent, key.file_name())
            .map_err(|error| explain(error, &parent, &format!("create {key}")))?;
        Ok(Box::new(LocalUpload {
            key: key.clone(),
            file,
            temporary,
            path,
            parent,
            mode,
            bytes: 0,
            flusher: Flusher::default(),
            renamed: false,
        }))
    }

    fn read(&self, key: &Key, range: Range<u64>) -> Result<Vec<u8>> {
        let path = self.path(key);
        let file = File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => missing(self, key),
            _ => explain(error, &path, "read it"),
        })?;
        let count = usize::try_from(range.end.saturating_sub(range.start))
            .map_err(|_| Error::failed(format!("a range of {key} is too large to read")))?;
        // Checked before the allocation: a damaged length must not cost memory.
        let size = file.metadata().map_err(|e| explain(e, &path, "read it"))?;
        if size.len() < range.end {
            return Err(Error::damage(format!(
                "{} ends at byte {}, but should reach byte {}",
                path.display(),
                size.len(),
                range.end
            ))
            .hint("the file was cut; restore another backup or copy it anew"));
        }
        let mut bytes = vec![0; count];
        file.read_exact_at(&mut bytes, range.start)
            .map_err(|error| explain(error, &path, "read it"))?;
        Ok(bytes)
    }

    fn stat(&self, key: &Key) -> Result<Option<Object>> {
        let path = self.path(key);
        match fs::metadata(&path) {
            Ok(about) if about.is_file() => Ok(Some(object(key.clone(), &about))),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(explain(error, &path, "look at it")),
        }
    }

    fn list(&self, prefix: &str) -> Result<Vec<Object>> {
        self.scan(prefix, |name| final_name(name).is_none())
    }

    fn folders(&self, prefix: &str) -> Result<Vec<String>> {
        let dir = self.dir.join(prefix);
        let context = |error| explain(error, &dir, "list it");
        let mut names = Vec::new();
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !prefix.is_empty() => {
                return Ok(names);
            }
            other => other.map_err(context)?,
        };
        for entry in entries {
            let entry = entry.map_err(context)?;
            // Not through links: what lies elsewhere is nobody's backup here.
            if entry.file_type().map_err(context)?.is_dir() {
                names.extend(entry.file_name().into_string());
            }
        }
        names.sort();
        Ok(names)
    }

    fn unfinished(&self) -> Result<Vec<Object>> {
        let mut found = Vec::new();
        let fixed = ["", ".pgark/", ".pgark/state/"].map(str::to_owned);
        let bases = self.folders("")?.into_iter();
        let bases = bases.filter(|name| BackupId::parse(name).is_ok());
        let wal = self.folders("wal/")?.into_iter();
        for level in fixed
            .into_iter()
            .chain(bases.map(|name| format!("{name}/")))
            .chain(wal.map(|name| format!("wal/{name}/")))
        {
            found.extend(self.scan(&level, |name| final_name(name).is_some())?);
        }
        Ok(found)
    }

    fn delete(&self, key: &Key) -> Result<bool> {
        let path = self.path(key);
        let parent = path.parent().unwrap_or(&self.dir);
        let removed = fs::remove_file(&path);
        drop_if_empty(parent);
        match removed {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(explain(error, &path, "delete it")),
        }
        // The folder may be gone with its last file.
        let parent = if parent.is_dir() { parent } else { &self.dir };
        sync_dir(parent).map_err(|error| explain(error, parent, "make the deletion durable"))?;
        Ok(true)
    }
}

/// A base backup's folder goes with its last file; one that is not empty refuses.
fn drop_if_empty(folder: &Path) {
    let name = folder.file_name().and_then(|name| name.to_str());
    if name.is_some_and(|name| BackupId::parse(name).is_ok()) {
        let _ = fs::remove_dir(folder);
    }
}

struct LocalUpload {
    key: Key,
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    parent: PathBuf,
    mode: Put,
    bytes: u64,
    flusher: Flusher,
    renamed: bool,
}

impl Upload for LocalUpload {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let count = bytes.len() as u64;
        self.file
            .write_all(bytes)
            .and_then(|()| self.flusher.wrote(&self.file, count))
            .map_err(|error| explain(error, &self.parent, &format!("write {}", self.key)))?;
        self.bytes += count;
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<Object> {
        let flushed = self.flusher.finish();
        let context = |error| explain(error, &self.parent, &format!("finish {}", self.key));
        flushed
            .and_then(|()| self.file.sync_all())
            .map_err(context)?;
        match self.mode {
            Put::Replace => fs::rename(&self.temporary, &self.path),
            Put::New => rename_new(&self.temporary, &self.path),
        }
        .map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => exists(&self.path),
            _ => context(error),
        })?;
        self.renamed = true;
        let context = |error| explain(error, &self.parent, &format!("finish {}", self.key));
        sync_dir(&self.parent).map_err(context)?;
        let about = fs::metadata(&self.path).map_err(context)?;
        if about.len() != self.bytes {
            return Err(Error::failed(format!(
                "{} holds {} bytes after {} were written",
                self.path.display(),
                about.len(),
                self.bytes
            ))
            .hint("the file system lost data; check it before the next backup"));
        }
        Ok(object(self.key.clone(), &about))
    }
}

impl Drop for LocalUpload {
    fn drop(&mut self) {
        if !self.renamed {
            // What stays here is cleared by the next run, as after a crash.
            let _ = fs::remove_file(&self.temporary);
            drop_if_empty(&self.parent);
        }
    }
}

/// The final name inside a temporary one, if it is one of pgark's.
pub(crate) fn final_name(name: &str) -> Option<&str> {
    let rest = name.strip_prefix('.')?.strip_suffix(TEMPORARY)?;
    let (name, random) = rest.rsplit_once('.')?;
    let ours = random.len() == 8
        && random
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    (ours && !name.is_empty()).then_some(name)
}

fn open_temporary(parent: &Path, name: &str) -> io::Result<(PathBuf, File)> {
    loop {
        // The standard library's hash seeds are random: enough to avoid a clash, and O_EXCL decides.
        let random = std::hash::RandomState::new().build_hasher().finish() >> 32;
        let path = parent.join(format!(".{name}.{random:08x}{TEMPORARY}"));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        match file {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => return other.map(|file| (path, file)),
        }
    }
}

/// Renames without ever replacing.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => link_new(from, to),
        Err(error) => Err(error.into()),
    }
}

/// For file systems without `RENAME_NOREPLACE` (some network and user-space ones): a hard link
/// never replaces either; where links are missing too, a check before the rename must do, and
/// the run's lock keeps other pgarks out of the gap.
fn link_new(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        // The object is there under its name; a temporary name left over is cleared later.
        Ok(()) => {
            let _ = fs::remove_file(from);
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
        Err(_) if to.symlink_metadata().is_ok() => Err(io::ErrorKind::AlreadyExists.into()),
        Err(_) => fs::rename(from, to),
    }
}

/// Creates a directory and its parents, 0700, durably.
pub(crate) fn create_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
        create_dir(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => match dir.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
            _ => Ok(()),
        },
    }
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn object(key: Key, about: &fs::Metadata) -> Object {
    let modified = about.modified().ok();
    let modified = modified.and_then(|time| Timestamp::try_from(time).ok());
    Object {
        key,
        bytes: about.len(),
        // Unknown is too young to be cleared: the careful side.
        modified: modified.unwrap_or(Timestamp::MAX),
        etag: None,
    }
}

fn exists(path: &Path) -> Error {
    Error::failed(format!("{} exists already", path.display()))
        .hint("nothing was overwritten; move it away if it should be taken anew")
        .cause(Cause::Exists)
}

/// The fact and the way out for an operating system's error on `path`.
pub(crate) fn explain(error: io::Error, path: &Path, doing: &str) -> Error {
    let place = path.display();
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    match errno {
        Some(Errno::NOSPC) => Error::failed(format!("no space left on {place}: could not {doing}"))
            .hint("free some space: `pgark list` shows what lies there; nothing false was left behind")
            .cause(Cause::NoSpace),
        Some(Errno::DQUOT) => Error::failed(format!(
            "the disk quota is used up on {place}: could not {doing}"
        ))
        .hint("raise the quota, or remove old backups; nothing false was left behind")
        .cause(Cause::NoSpace),
        Some(Errno::ROFS) => Error::failed(format!("{place} is read-only: could not {doing}"))
            .hint("mount it writable, or set BACKUP_DIR to another directory"),
        Some(Errno::ACCESS | Errno::PERM) => {
            Error::failed(format!("no permission on {place}: could not {doing}"))
                .hint("give pgark's user the right to read and write there")
        }
        Some(Errno::NAMETOOLONG) => Error::failed(format!(
            "the name is too long for {place}: could not {doing}"
        ))
        .hint("the file system allows 255 bytes a name as a rule; use another one"),
        _ => Error::from(error).context(format!("could not {doing} ({place})")),
    }
}

#[cfg(test)]
mod tests;
