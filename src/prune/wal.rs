//! Expires archived WAL: what lies before the oldest base backup that the window needs.
//!
//! Invariants: only whole segments below the floor of `retention::wal_floor` go, oldest first; where
//! there is no floor (no good base backup, a manifest that cannot be read, a doubtful clock, no window)
//! nothing goes. The caller holds the lock of the store. A crash leaves less of what expired.

use jiff::Timestamp;

use super::backup;
use crate::catalog::list::Catalog;
use crate::catalog::wal::{self, WalArchive};
use crate::error::Result;
use crate::retention::{self, Backup, Clock, Policy};
use crate::store::Store;
use crate::units::{ByteSize, Lsn, SegmentSize, SystemId};

/// The WAL of one cluster that nothing needs.
#[derive(Debug)]
pub struct OldWal {
    archive: WalArchive,
    floor: Lsn,
    size: SegmentSize,
    pub segments: usize,
    pub bytes: u64,
}

impl OldWal {
    #[must_use]
    pub fn system(&self) -> SystemId {
        self.archive.system
    }

    /// Deletes it.
    ///
    /// # Errors
    /// As the store; what was deleted before stays deleted.
    pub fn remove(&self, store: &dyn Store) -> Result<()> {
        self.archive.expire(store, self.floor, self.size).map(drop)
    }

    /// For people; `done` or what would be.
    #[must_use]
    pub fn describe(&self, done: bool) -> String {
        format!(
            "{} WAL before {}: {} segments, {}; no base backup of the window needs it",
            if done { "expired" } else { "would expire" },
            self.floor,
            self.segments,
            ByteSize(self.bytes)
        )
    }
}

/// What of a store's WAL nothing needs, judged by the backups that stay. Nothing is touched.
///
/// # Errors
/// As the store.
pub fn old_wal(
    store: &dyn Store,
    catalog: &Catalog,
    policy: &Policy,
    now: Timestamp,
) -> Result<Vec<OldWal>> {
    let mut found = Vec::new();
    if policy.wal_days.is_none() {
        return Ok(found);
    }
    let backups: Vec<Backup> = catalog.entries.iter().map(backup).collect();
    let clock = Clock {
        now,
        confirmed: false,
    };
    for system in wal::systems(store)? {
        let cluster = system.to_string();
        let Some(floor) = retention::wal_floor(&backups, &cluster, policy, clock) else {
            continue;
        };
        let spans = backups.iter().filter(|backup| backup.cluster == cluster);
        let Some(size) = spans
            .filter_map(|one| one.span)
            .map(|span| span.segment)
            .next()
        else {
            continue;
        };
        let archive = WalArchive::load(store, system)?;
        let (bytes, segments) = archive.below(floor, size)?;
        if segments > 0 {
            found.push(OldWal {
                archive,
                floor,
                size,
                segments,
                bytes,
            });
        }
    }
    Ok(found)
}
