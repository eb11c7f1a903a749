//! The WAL of a restore, decoded in parallel into a directory: what `--wal fetch` puts into `pg_wal`.
//!
//! Invariants: every segment is read and checked whole; the last one, which may not have come to its
//! end, has zeros behind what is there, which a server takes for the end of WAL. A crash leaves files
//! in that directory.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::get::write;
use super::line::Line;
use crate::cancel::Token;
use crate::catalog::wal::WalArchive;
use crate::error::{Context, Error, Result, caught};
use crate::progress::Progress;
use crate::store::{self, Store};

/// What is in memory at once, decoded and not.
const MEMORY_BYTES: u64 = 160 << 20;

/// What is fetched.
pub struct Fetch<'a> {
    pub line: Line<'a>,
    pub range: Range<usize>,
    pub archive: &'a WalArchive,
}

impl Fetch<'_> {
    /// Bytes of WAL in the end.
    #[must_use]
    pub fn raw_bytes(&self) -> u64 {
        self.range.len() as u64 * self.line.source.size.bytes()
    }

    /// Writes segments and history files into an existing directory.
    ///
    /// # Errors
    /// `Damage` for a segment that is not right; as the store and the file system.
    pub fn run(
        &self,
        dir: &Path,
        threads: usize,
        progress: &Progress,
        cancel: &Token,
    ) -> Result<()> {
        self.histories(dir)?;
        let most = MEMORY_BYTES / (2 * self.line.source.size.bytes());
        let most = usize::try_from(most).unwrap_or(1).max(1);
        let threads = threads.min(self.range.len()).clamp(1, most);
        let next = AtomicUsize::new(self.range.start);
        let failed = std::sync::atomic::AtomicBool::new(false);
        let work = || -> Result<()> {
            while !failed.load(Ordering::Relaxed) {
                let at = next.fetch_add(1, Ordering::Relaxed);
                if at >= self.range.end {
                    break;
                }
                cancel.check()?;
                self.segment(dir, at)?;
                progress.add(self.line.source.size.bytes(), 0);
            }
            Ok(())
        };
        let work = || {
            let result = caught("the restore of WAL", work);
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            result
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            let results = workers.into_iter().map(std::thread::ScopedJoinHandle::join);
            let results =
                results.map(|one| one.unwrap_or_else(|_| Err(Error::failed("a worker panicked"))));
            results.collect::<Vec<_>>().into_iter().collect()
        })
    }

    fn segment(&self, dir: &Path, at: usize) -> Result<()> {
        let content = self.line.read(at)?;
        if at + 1 < self.line.segments.len() && !content.whole {
            let (name, _) = self.line.segments[at];
            return Err(Error::damage(format!("{name} is not complete any more")));
        }
        // Under the name of the timeline that it is read on.
        let path = dir.join(self.line.segments[at].0.to_string());
        write(&path, &content.bytes).context(|| format!("cannot write {}", path.display()))
    }

    /// All of them: a server that finds a timeline's number free takes it.
    fn histories(&self, dir: &Path) -> Result<()> {
        for (timeline, object) in self.archive.history_files() {
            let store: &dyn Store = self.line.source.store;
            let content = store::get(store, &object.key)?
                .ok_or_else(|| store::missing(store, &object.key))?;
            let path = dir.join(timeline.history_name());
            write(&path, &content).context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}
