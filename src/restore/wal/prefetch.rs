//! Segments fetched before the server asks for them, beside the file that it asks for:
//! `pg_wal/.pgark-wal`, which no base backup holds and no server looks into.
//!
//! Whoever delivers a segment starts a process that fetches those behind it, so that this goes on
//! while the server replays. It ends by itself; a lock sees to it that there is one.
//!
//! Invariants: a name there is whole (it was renamed), never the last of the archive, and looked at
//! again before it is used; at most `ahead` of them lie there. Whatever fails here costs time only.
//! A crash leaves files that the next one removes; the end of recovery removes them all.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::FlockOperation;

use super::get::{Answer, Ask, temporary, write};
use crate::archive::wal::PageCheck;
use crate::error::{Result, caught};
use crate::units::{SegmentName, SegmentSize};

/// Beside the wanted file.
pub const FOLDER: &str = ".pgark-wal";
const LOCK: &str = "lock";
/// What is in memory at once, decoded and not.
const MEMORY_BYTES: u64 = 128 << 20;

/// Where they lie for a server that wants its file there.
fn folder(path: &Path) -> PathBuf {
    path.with_file_name(FOLDER)
}

impl Ask<'_> {
    /// As [`Ask::get`], from what was fetched before where that is possible; starts `fill` when
    /// there is not much left ahead.
    ///
    /// # Errors
    /// As [`Ask::get`].
    pub fn get_ahead(
        &self,
        name: &str,
        path: &Path,
        (ahead, fill): (usize, &mut Command),
    ) -> Result<Answer> {
        let Ok(segment) = name.parse::<SegmentName>() else {
            return self.get(name, path);
        };
        let folder = folder(path);
        if !self.take(&folder, segment, path) {
            let answer = self.get(name, path)?;
            if answer == Answer::Absent {
                return Ok(answer);
            }
        }
        let next = names(segment, self.size).take(ahead.div_ceil(2));
        if next
            .into_iter()
            .any(|name| !folder.join(name.to_string()).exists())
        {
            // Nobody waits for it: it is the server's init that buries it.
            let _ = fill
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn();
        }
        Ok(Answer::Delivered)
    }

    /// Moves a segment that was fetched before to its place.
    fn take(&self, folder: &Path, name: SegmentName, path: &Path) -> bool {
        let found = folder.join(name.to_string());
        let right = || -> Option<()> {
            let file = File::open(&found).ok()?;
            let whole = file.metadata().ok()?.len() == self.size.bytes();
            let mut head = [0; 40];
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut head, 0).ok()?;
            let mut check = PageCheck::new(self.system, self.size, name.timeline());
            check.feed(name.start(self.size).ok()?, &head).ok()?;
            whole.then_some(())
        };
        right().is_some() && fs::rename(&found, path).is_ok()
    }

    /// Fetches up to `ahead` segments behind `name`, on `threads` threads, and removes all others.
    ///
    /// # Errors
    /// As the file system. That a segment cannot be fetched is no error: the server asks for it.
    pub fn fill(&self, name: SegmentName, path: &Path, ahead: usize, threads: usize) -> Result<()> {
        let folder = folder(path);
        if !folder.is_dir() {
            DirBuilder::new().mode(0o700).create(&folder)?;
        }
        let lock = File::create(folder.join(LOCK))?;
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(());
        }
        let wanted: Vec<SegmentName> = names(name, self.size).take(ahead).collect();
        clear(&folder, &wanted)?;
        let threads = usize::try_from(MEMORY_BYTES / (2 * self.size.bytes()))
            .unwrap_or(1)
            .clamp(1, threads.max(1));
        let queue = Mutex::new(wanted.into_iter());
        let ended = AtomicBool::new(false);
        let work = || {
            let next = || queue.lock().ok()?.next();
            while let Some(name) = next().filter(|_| !ended.load(Ordering::Relaxed)) {
                let place = folder.join(name.to_string());
                if place.exists() {
                    continue;
                }
                // The last one, or a failure: the server will ask and be told.
                let Some(content) = self.find_whole(name, &mut None) else {
                    ended.store(true, Ordering::Relaxed);
                    break;
                };
                let temporary = temporary(&place);
                write(&temporary, &content.bytes).and_then(|()| fs::rename(&temporary, &place))?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|_| scope.spawn(|| caught("wal-get", work)))
                .collect();
            for worker in workers {
                worker.join().unwrap_or(Ok(()))?;
            }
            Ok(())
        })
    }
}

/// The segments behind this one.
fn names(name: SegmentName, size: SegmentSize) -> impl Iterator<Item = SegmentName> {
    std::iter::successors(Some(name.next(size)), move |name| Some(name.next(size)))
}

/// Removes what is not wanted any more, and what was not finished.
fn clear(folder: &Path, wanted: &[SegmentName]) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        let name = entry.file_name();
        let name = name.to_str().unwrap_or_default();
        let keep = name.parse().is_ok_and(|name| wanted.contains(&name));
        if !keep && name != LOCK {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
