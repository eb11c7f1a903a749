//! `pgark wal-get`: one file of WAL for a server that recovers.
//!
//! The exact object is looked for first: listings cost time, and are needed only where something
//! is not there. What is answered then, `verdict` decides.
//!
//! Invariants: the file appears under its name whole or not at all; `Absent` is an answer only where
//! it is proven; a store that fails, or holds damage, makes an error unless another one delivers.
//! A crash leaves one temporary name beside the wanted one, which the next call overwrites.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::read::{Content, Source};
use super::verdict::{self, Listings, Verdict};
use crate::archive::Identities;
use crate::catalog::layout::{WalFile, wal_key};
use crate::catalog::wal::{Held, Stored, WalArchive};
use crate::error::{Context, Error, Result};
use crate::store::{self, Store};
use crate::units::{SegmentName, SegmentSize, SystemId, Timeline, TimelineHistory};

/// The end of the temporary name.
const TEMPORARY: &str = ".pgark-tmp";

/// Where to look, and for which cluster.
pub struct Ask<'a> {
    /// By name, in this order. One that cannot be opened stays here as its error.
    pub stores: Vec<(String, Result<Box<dyn Store>>)>,
    pub system: SystemId,
    pub size: SegmentSize,
    pub identities: Option<&'a Identities>,
    /// Whether backups are encrypted now: which name is tried first.
    pub encrypted: bool,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Delivered,
    /// Proven.
    Absent,
}

impl Ask<'_> {
    /// Delivers the file of this name to `path`.
    ///
    /// # Errors
    /// Whatever keeps it from being delivered and from being proven absent.
    pub fn get(&self, name: &str, path: &Path) -> Result<Answer> {
        if let Ok(segment) = name.parse::<SegmentName>() {
            return self.segment(segment, path);
        }
        if let Some(timeline) = Timeline::parse_history_name(name) {
            return self.history(timeline, path);
        }
        if name.is_empty() || name.contains('/') {
            return Err(Error::usage(format!("{name:?} is no file of WAL"))
                .hint("restore_command = 'pgark wal-get %f %p'"));
        }
        // Backup labels and the like: never in the archive, and no server needs them.
        Ok(Answer::Absent)
    }

    fn segment(&self, name: SegmentName, path: &Path) -> Result<Answer> {
        let mut failed = None;
        match self.find_whole(name, &mut failed) {
            Some(content) => return deliver(path, &content.bytes),
            // It lies there and cannot be read: listings change nothing.
            None if failed.is_some() => {}
            None => return self.by_listings(name, path),
        }
        Err(failed.unwrap_or_else(|| Error::failed("no store was asked")))
    }

    /// The whole segment from the first store that has it; the first failure of a store that may.
    pub(super) fn find_whole(
        &self,
        name: SegmentName,
        failed: &mut Option<Error>,
    ) -> Option<Content> {
        for (_, store) in &self.stores {
            let found = match store {
                Ok(store) => self.whole_in(store.as_ref(), name),
                Err(error) => Err(error.clone()),
            };
            match found {
                Ok(Some(content)) => return Some(content),
                Ok(None) => {}
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        None
    }

    fn whole_in(&self, store: &dyn Store, name: SegmentName) -> Result<Option<Content>> {
        for encrypted in [self.encrypted, !self.encrypted] {
            let file = WalFile::Segment { name, encrypted };
            if let Some(object) = store.stat(&wal_key(self.system, &file)?)? {
                let held = Held {
                    whole: Some(Stored { file, object }),
                    ..Held::default()
                };
                return self.source(store).read(name, &held).map(Some);
            }
        }
        Ok(None)
    }

    fn source<'a>(&'a self, store: &'a dyn Store) -> Source<'a> {
        Source {
            store,
            system: self.system,
            size: self.size,
            identities: self.identities,
        }
    }

    fn list(&self) -> Vec<(String, Result<WalArchive>)> {
        let list = |(name, store): &(String, Result<Box<dyn Store>>)| {
            let listed = match store {
                Ok(store) => WalArchive::load(store.as_ref(), self.system),
                Err(error) => Err(error.clone()),
            };
            (name.clone(), listed)
        };
        self.stores.iter().map(list).collect()
    }

    /// Each history file that any store has.
    fn histories(
        &self,
        archives: &[(String, Result<WalArchive>)],
    ) -> Result<BTreeMap<Timeline, TimelineHistory>> {
        let mut found = BTreeMap::from([(Timeline::FIRST, TimelineHistory::first())]);
        for ((_, store), (_, archive)) in self.stores.iter().zip(archives) {
            let (Ok(store), Ok(archive)) = (store, archive) else {
                continue;
            };
            for timeline in archive.histories() {
                if let Entry::Vacant(place) = found.entry(timeline) {
                    place.insert(archive.history(store.as_ref(), timeline)?);
                }
            }
        }
        Ok(found)
    }

    fn by_listings(&self, name: SegmentName, path: &Path) -> Result<Answer> {
        let archives = self.list();
        let histories = self.histories(&archives)?;
        let listings = Listings {
            archives: &archives,
            histories: &histories,
            size: self.size,
        };
        match verdict::segment(&listings, name) {
            Verdict::Absent => Ok(Answer::Absent),
            Verdict::Unknown(why) => Err(gap(name, &why)),
            // It came between the look for it and the listing.
            Verdict::Whole(_) => {
                let mut failed = None;
                match self.find_whole(name, &mut failed) {
                    Some(content) => deliver(path, &content.bytes),
                    None => Err(failed.unwrap_or_else(|| gap(name, "it went while it was read"))),
                }
            }
            Verdict::AtEnd => {
                let content = self.longest(name, &archives)?;
                if content.hole {
                    return Err(gap(name, "a piece of it is missing before others"));
                }
                deliver(path, &content.bytes)
            }
            Verdict::IfComplete(why) => {
                let content = self.longest(name, &archives)?;
                if !content.whole {
                    let what = format!("only its first {} bytes are there, {why}", content.filled);
                    return Err(gap(name, &what));
                }
                deliver(path, &content.bytes)
            }
        }
    }

    /// What reaches furthest of what the stores have of a segment that none has whole.
    fn longest(
        &self,
        name: SegmentName,
        archives: &[(String, Result<WalArchive>)],
    ) -> Result<Content> {
        let mut best: Option<Content> = None;
        for ((_, store), (_, archive)) in self.stores.iter().zip(archives) {
            let (Ok(store), Ok(archive)) = (store, archive) else {
                continue;
            };
            let Some(held) = archive.segment(name) else {
                continue;
            };
            let content = self.source(store.as_ref()).read(name, held)?;
            let further =
                |best: &Content| (content.whole, content.filled) > (best.whole, best.filled);
            if best.as_ref().is_none_or(further) {
                best = Some(content);
            }
        }
        best.ok_or_else(|| gap(name, "it went while it was read"))
    }

    fn history(&self, timeline: Timeline, path: &Path) -> Result<Answer> {
        let mut failed = None;
        let key = wal_key(self.system, &WalFile::History(timeline))?;
        for (_, store) in &self.stores {
            let found = match store {
                Ok(store) => store::get(store.as_ref(), &key),
                Err(error) => Err(error.clone()),
            };
            match found {
                Ok(Some(content)) => {
                    TimelineHistory::parse(timeline, &content)?;
                    return deliver(path, &content);
                }
                Ok(None) => {}
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let archives = self.list();
        let listings = Listings {
            archives: &archives,
            histories: &BTreeMap::new(),
            size: self.size,
        };
        match verdict::history(&listings, timeline) {
            Verdict::Absent => Ok(Answer::Absent),
            Verdict::Unknown(why) => Err(Error::failed(format!("{key}: {why}"))),
            _ => Err(Error::failed(format!("{key} came while it was looked for"))
                .hint("start the server again")),
        }
    }
}

fn gap(name: SegmentName, why: &str) -> Error {
    Error::failed(format!("{name} cannot be delivered: {why}")).hint(
        "the server stops here rather than lose what follows; `pgark status` shows what can be restored",
    )
}

/// Makes the file appear. PostgreSQL itself sees to it that what it has replayed is durable.
fn deliver(path: &Path, bytes: &[u8]) -> Result<Answer> {
    let temporary = temporary(path);
    let written = write(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written.context(|| format!("cannot write {}", path.display()))?;
    Ok(Answer::Delivered)
}

/// Its name until it is whole.
pub(super) fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(TEMPORARY);
    PathBuf::from(name)
}

/// Writes a file whole, over what a crash left there.
pub(super) fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    let length = file.metadata()?.len();
    if length == bytes.len() as u64 {
        return Ok(());
    }
    Err(std::io::Error::other(format!(
        "it holds {length} bytes after {} were written",
        bytes.len()
    )))
}

#[cfg(test)]
#[path = "get_tests.rs"]
mod tests;
