//! The windows of a store: what it has of base backups and WAL, judged. Reads only.

use crate::catalog::list::{Catalog, Entry};
use crate::error::Result;
use crate::restore::wal::moment::{Archive, Candidate};
use crate::status::windows::{Known, Window, windows};
use crate::store::Store;

/// The windows of the newest cluster of which a store has a base backup.
///
/// # Errors
/// As [`Archive::load`].
pub fn of_store(store: &dyn Store, catalog: &Catalog) -> Result<Vec<Window>> {
    let mut bases = catalog.entries.iter().filter_map(Candidate::of);
    let Some(system) = bases.find_map(|base| base.system()) else {
        return Ok(Vec::new());
    };
    Ok(of_archive(&Archive::load(store, system)?, &catalog.entries))
}

/// Which moments can be restored from that WAL and these base backups.
#[must_use]
pub fn of_archive(archive: &Archive, entries: &[Entry]) -> Vec<Window> {
    let known = Known {
        wal: &archive.wal,
        histories: &archive.histories,
        reached: archive.reached,
    };
    windows(entries, &known)
}
