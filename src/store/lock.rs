//! One run at a time per directory and kind: an flock(2) on `.pgark/<kind>.lock`.
//!
//! The file also tells who holds it, and the ids that its run is about to create, so that the
//! next run knows what a dead one may have left. The kernel drops the lock with its process,
//! however that ends; the file itself stays, and is never deleted: a deleted lock file would let
//! two runs each lock one of their own.
//!
//! A crash while the content is rewritten loses the notes, not the lock: the remains they would
//! have named are then cleared by age.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::local::{create_dir, explain};
use crate::clock;
use crate::error::{Error, Result};

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Content {
    pid: u32,
    host: String,
    since: Timestamp,
    intents: Vec<String>,
}

/// A held lock; dropping it releases.
#[derive(Debug)]
pub struct DirLock {
    file: File,
    path: PathBuf,
    content: Content,
    previous: Vec<String>,
    noted: bool,
}

impl DirLock {
    /// Takes the lock of this kind on a store's directory, without waiting.
    ///
    /// # Errors
    /// `Busy` naming the holder; `Failed` when the file cannot be made.
    pub fn acquire(dir: &Path, kind: &str) -> Result<DirLock> {
        let folder = dir.join(".pgark");
        let path = folder.join(format!("{kind}.lock"));
        create_dir(&folder).map_err(|error| explain(error, &folder, "create the directory"))?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| explain(error, &path, "open the lock"))?;
        let locked = file.try_lock();
        let mut text = String::new();
        // Unreadable content only costs the holder's name or the dead run's notes.
        let found: Option<Content> = match file.read_to_string(&mut text) {
            Ok(_) => serde_json::from_str(&text).ok(),
            Err(_) => None,
        };
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(busy(dir, kind, found.as_ref())),
            Err(TryLockError::Error(error)) => return Err(explain(error, &path, "lock it")),
        }
        let previous = found.map(|content| content.intents).unwrap_or_default();
        let content = Content {
            pid: std::process::id(),
            host: host(),
            since: clock::now(),
            // Kept until this run notes its own: it may die before it has cleared anything.
            intents: previous.clone(),
        };
        let lock = DirLock {
            file,
            path,
            content,
            previous,
            noted: false,
        };
        lock.save()?;
        Ok(lock)
    }

    /// The ids that a dead run was about to create.
    #[must_use]
    pub fn previous_intents(&self) -> &[String] {
        &self.previous
    }

    /// Notes, durably, ids that this run is about to create. Call it after the remains of
    /// [`Self::previous_intents`] are cleared: the first note forgets them.
    ///
    /// # Errors
    /// `Failed` when the note cannot be written; create nothing then.
    pub fn note(&mut self, intents: &[String]) -> Result<()> {
        if !self.noted {
            self.content.intents.clear();
            self.noted = true;
        }
        self.content.intents.extend_from_slice(intents);
        self.save()
    }

    /// Releases after a run that left nothing half made: the notes are wiped.
    ///
    /// # Errors
    /// `Failed` when they cannot be; the lock is released all the same.
    pub fn release(mut self) -> Result<()> {
        self.content.intents.clear();
        self.save()
    }

    fn save(&self) -> Result<()> {
        let write = || -> std::io::Result<()> {
            let text = serde_json::to_vec(&self.content)?;
            self.file.write_all_at(&text, 0)?;
            self.file.set_len(text.len() as u64)?;
            self.file.sync_data()
        };
        write().map_err(|error| explain(error, &self.path, "write the lock"))
    }
}

fn busy(dir: &Path, kind: &str, holder: Option<&Content>) -> Error {
    let who = holder.map_or_else(
        || "by another process".to_owned(),
        |c| format!("by process {} on {} since {}", c.pid, c.host, c.since),
    );
    Error::busy(format!("{} is locked for {kind} {who}", dir.display()))
        .hint("wait for that run to end; its lock ends with its process")
}

/// The machine's name, for people.
fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map_or_else(
        |_| "an unknown host".to_owned(),
        |name| name.trim().to_owned(),
    )
}

/// Tells a prune that somebody reads a backup: an flock(2) on a file of its own in
/// `.pgark/reading/`. Dropping it releases and removes the file; the next prune removes one that
/// a crash left.
#[derive(Debug)]
pub struct Reading {
    path: PathBuf,
    _file: File,
}

impl Reading {
    /// None where the store's directory cannot be written: a reader there is not protected.
    #[must_use]
    pub fn hold(dir: &Path, id: &str) -> Option<Reading> {
        let folder = dir.join(READING_FOLDER);
        create_dir(&folder).ok()?;
        (0..1000).find_map(|number| {
            let path = folder.join(format!("{id}.{}-{number}", std::process::id()));
            let file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .ok()?;
            file.try_lock().ok()?;
            Some(Reading { path, _file: file })
        })
    }

    /// Whether somebody reads this backup now.
    #[must_use]
    pub fn is_held(dir: &Path, id: &str) -> bool {
        let Ok(files) = std::fs::read_dir(dir.join(READING_FOLDER)) else {
            return false;
        };
        let prefix = format!("{id}.");
        let mut held = false;
        for entry in files.flatten() {
            if !entry.file_name().to_string_lossy().starts_with(&prefix) {
                continue;
            }
            let Ok(file) = File::open(entry.path()) else {
                continue;
            };
            if file.try_lock().is_ok() {
                // Its reader died.
                let _ = std::fs::remove_file(entry.path());
            } else {
                held = true;
            }
        }
        held
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

const READING_FOLDER: &str = ".pgark/reading";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::store::tests::Scratch;

    #[test]
    fn second_run_is_told_who_holds_the_lock() {
        let scratch = Scratch::new();
        let first = DirLock::acquire(scratch.path(), "dump").unwrap();
        let error = DirLock::acquire(scratch.path(), "dump").unwrap_err();
        assert_eq!(error.kind, Kind::Busy);
        let pid = format!("process {} on", std::process::id());
        assert!(
            error.fact.contains(&pid) && error.fact.contains(" since 2"),
            "{error}"
        );
        // Another kind is another lock.
        drop(DirLock::acquire(scratch.path(), "base").unwrap());
        drop(first);
        DirLock::acquire(scratch.path(), "dump").unwrap();
    }

    #[test]
    fn notes_of_a_dead_run_are_found_until_new_ones_are_made() {
        let scratch = Scratch::new();
        let acquire = || DirLock::acquire(scratch.path(), "dump").unwrap();
        let mut lock = acquire();
        lock.note(&["a".to_owned()]).unwrap();
        lock.note(&["b".to_owned()]).unwrap();
        drop(lock); // died
        drop(acquire()); // died before clearing
        let mut lock = acquire();
        assert_eq!(lock.previous_intents(), ["a", "b"]);
        lock.note(&["c".to_owned()]).unwrap();
        drop(lock);
        let lock = acquire();
        assert_eq!(lock.previous_intents(), ["c"]);
        lock.release().unwrap();
        assert!(acquire().previous_intents().is_empty());
    }

    #[test]
    fn torn_content_does_not_stop_a_run() {
        let scratch = Scratch::new();
        std::fs::create_dir(scratch.path().join(".pgark")).unwrap();
        std::fs::write(scratch.path().join(".pgark/dump.lock"), "{\"pid\":").unwrap();
        let lock = DirLock::acquire(scratch.path(), "dump").unwrap();
        assert!(lock.previous_intents().is_empty());
    }
}
