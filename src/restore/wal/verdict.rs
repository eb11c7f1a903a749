//! What `wal-get` answers to a server that recovers, decided by what the stores' listings show. Pure.
//!
//! To PostgreSQL "not there" means "here ends the archive": it promotes. So `Absent` needs a proof:
//! every store was listed, and nothing that lies behind the segment in any history that needs it is
//! there. Whatever is not proven is `Unknown`, and the server stops.
//!
//! Source: `XLogFileReadAnyTLI` in `xlogrecovery.c` (which timelines are asked, newest first) and
//! `RestoreArchivedFile` in `xlogarchive.c` (what its exit codes mean).

use std::collections::BTreeMap;

use crate::catalog::wal::WalArchive;
use crate::error::Result;
use crate::units::{Lsn, SegmentName, SegmentSize, Timeline, TimelineHistory};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// This one of the stores holds it whole.
    Whole(usize),
    /// It is the last of its timeline: what there is of it serves, with zeros behind.
    AtEnd,
    /// There is more behind it: what there is of it serves only if that is all of it.
    IfComplete(String),
    /// Proven not to be there, and nothing behind it.
    Absent,
    /// Neither there nor proven absent: why.
    Unknown(String),
}

/// What the stores showed.
pub struct Listings<'a> {
    /// Each store that was asked, in order, by name.
    pub archives: &'a [(String, Result<WalArchive>)],
    /// Every timeline whose history file was found.
    pub histories: &'a BTreeMap<Timeline, TimelineHistory>,
    pub size: SegmentSize,
}

impl Listings<'_> {
    /// Why nothing can be proven absent, if so.
    fn doubt(&self) -> Option<String> {
        for (name, archive) in self.archives {
            if let Err(error) = archive {
                return Some(format!("the store {name} cannot be listed: {}", error.fact));
            }
        }
        let mut archives = self
            .archives
            .iter()
            .filter_map(|(_, one)| one.as_ref().ok());
        let shown = archives.any(|one| !one.is_empty() || one.histories().next().is_some());
        (!shown).then(|| "no store holds any WAL of this cluster".to_owned())
    }

    fn segments(&self) -> impl Iterator<Item = SegmentName> {
        let archives = self
            .archives
            .iter()
            .filter_map(|(_, one)| one.as_ref().ok());
        archives.flat_map(|one| one.segments().map(|(name, _)| name))
    }

    /// What of the archive comes after this segment in some history that has it on its timeline.
    fn behind(&self, name: SegmentName) -> Option<String> {
        let begin = match name.start(self.size) {
            Ok(begin) => begin,
            Err(error) => return Some(error.fact),
        };
        let end = begin.plus(self.size.bytes());
        // A timeline without a file is taken as one without ancestors.
        let own = TimelineHistory::parse(name.timeline(), b"").ok();
        let own = own.filter(|_| !self.histories.contains_key(&name.timeline()));
        for history in self.histories.values().chain(&own) {
            if history.at(Lsn(end.0 - 1)) != name.timeline() {
                continue;
            }
            let later = self.segments().find(|one| self.follows(history, *one, end));
            if let Some(later) = later {
                return Some(format!("{later} is there, and comes after it"));
            }
            // That timeline went on at least to there.
            if let Some(left) = history.left(name.timeline()).filter(|left| *left > end) {
                return Some(format!(
                    "timeline {} began at {left}, which comes after it",
                    history.timeline()
                ));
            }
        }
        None
    }

    fn follows(&self, history: &TimelineHistory, name: SegmentName, from: Lsn) -> bool {
        let Ok(begin) = name.start(self.size) else {
            return false;
        };
        let on = name.timeline() == history.timeline()
            || history
                .left(name.timeline())
                .is_some_and(|left| begin < left);
        begin >= from && on
    }
}

/// Decides about a segment.
#[must_use]
pub fn segment(listings: &Listings<'_>, name: SegmentName) -> Verdict {
    let mut partial = false;
    for (at, (_, archive)) in listings.archives.iter().enumerate() {
        let held = archive.as_ref().ok().and_then(|one| one.segment(name));
        if held.is_some_and(crate::catalog::wal::Held::is_whole) {
            return Verdict::Whole(at);
        }
        partial |= held.is_some();
    }
    match (partial, listings.doubt(), listings.behind(name)) {
        (false, Some(why), _) | (false, None, Some(why)) => Verdict::Unknown(why),
        (true, Some(why), _) | (true, None, Some(why)) => Verdict::IfComplete(why),
        (true, None, None) => Verdict::AtEnd,
        (false, None, None) => Verdict::Absent,
    }
}

/// Decides about a history file.
#[must_use]
pub fn history(listings: &Listings<'_>, timeline: Timeline) -> Verdict {
    for (at, (_, archive)) in listings.archives.iter().enumerate() {
        let found = archive.as_ref().ok();
        if found.is_some_and(|one| one.histories().any(|known| known == timeline)) {
            return Verdict::Whole(at);
        }
    }
    listings.doubt().map_or(Verdict::Absent, Verdict::Unknown)
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
