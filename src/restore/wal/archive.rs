//! What a store holds of a cluster's WAL, and the base backups that it goes on from. Reads only.

use std::collections::BTreeMap;

use crate::catalog::list::Entry;
use crate::catalog::manifest::BaseRecord;
use crate::catalog::wal::{Reached, WalArchive, reached};
use crate::error::Result;
use crate::store::Store;
use crate::units::{SystemId, Timeline, TimelineHistory};

/// The archived WAL of one cluster in one store, with everything that tells about it.
pub struct Archive {
    pub wal: WalArchive,
    pub reached: Option<Reached>,
    pub histories: BTreeMap<Timeline, TimelineHistory>,
}

impl Archive {
    /// Lists it and reads its history files.
    ///
    /// # Errors
    /// As the store; `Damage` for a history that is none.
    pub fn load(store: &dyn Store, system: SystemId) -> Result<Archive> {
        let wal = WalArchive::load(store, system)?;
        let mut histories = BTreeMap::from([(Timeline::FIRST, TimelineHistory::first())]);
        for timeline in wal.histories() {
            histories.insert(timeline, wal.history(store, timeline)?);
        }
        Ok(Archive {
            reached: reached(store, system)?,
            wal,
            histories,
        })
    }
}

/// A base backup that may serve.
#[derive(Clone, Copy)]
pub struct Candidate<'a> {
    pub entry: &'a Entry,
    pub base: &'a BaseRecord,
}

impl<'a> Candidate<'a> {
    /// None for what is no base backup, or has no manifest.
    #[must_use]
    pub fn of(entry: &'a Entry) -> Option<Candidate<'a>> {
        let base = entry.manifest.as_ref()?.base.as_ref()?;
        Some(Candidate { entry, base })
    }

    /// The cluster that it is of.
    #[must_use]
    pub fn system(&self) -> Option<SystemId> {
        let manifest = self.entry.manifest.as_ref()?;
        manifest.system_identifier.as_ref()?.parse().ok()
    }
}
