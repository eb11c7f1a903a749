//! Outcomes of verify and drill: small files beside the manifests, which are immutable.
//!
//! Invariant: when outcomes contradict each other (a crash between two steps), `failed` wins.
//! So a failure is written before the good outcomes go, and goes after a good one is written.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::layout::{Outcome, STATE_FOLDER, parse_state_key, state_key};
use crate::error::{Error, Result};
use crate::store::{self, Object, Put, Store};
use crate::units::BackupId;

/// The content of a state file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub at: Timestamp,
    /// Why it failed, or what was done.
    #[serde(default)]
    pub reason: Option<String>,
}

/// Notes an outcome and takes back what it contradicts.
///
/// # Errors
/// As the store.
pub fn record(
    store: &dyn Store,
    id: &BackupId,
    outcome: Outcome,
    now: Timestamp,
    reason: Option<&str>,
) -> Result<()> {
    let record = Record {
        at: now,
        reason: reason.map(str::to_owned),
    };
    let json = serde_json::to_vec(&record)
        .map_err(|error| Error::failed(format!("the state of {id}: {error}")))?;
    store::put(store, &state_key(id, outcome)?, &json, Put::Replace)?;
    let contradicted: &[Outcome] = match outcome {
        Outcome::Failed => &[Outcome::Verified, Outcome::Proven],
        Outcome::Verified | Outcome::Proven => &[Outcome::Failed],
    };
    for other in contradicted {
        store.delete(&state_key(id, *other)?)?;
    }
    Ok(())
}

/// Deletes every outcome of a backup.
///
/// # Errors
/// As the store.
pub fn forget(store: &dyn Store, id: &BackupId) -> Result<()> {
    for outcome in Outcome::ALL {
        store.delete(&state_key(id, outcome)?)?;
    }
    Ok(())
}

/// The outcome that counts for each backup, and its file. One listing.
pub(super) fn all(store: &dyn Store) -> Result<BTreeMap<BackupId, (Outcome, Object)>> {
    let mut states: BTreeMap<BackupId, (Outcome, Object)> = BTreeMap::new();
    for object in store.list(STATE_FOLDER)? {
        let Some((id, outcome)) = parse_state_key(object.key.as_str()) else {
            continue;
        };
        // Declared in this order: verified < proven < failed.
        match states.entry(id) {
            Entry::Occupied(mut known) if known.get().0 < outcome => {
                known.insert((outcome, object));
            }
            Entry::Occupied(_) => {}
            Entry::Vacant(free) => {
                free.insert((outcome, object));
            }
        }
    }
    Ok(states)
}

/// Why it failed. The file's name is the verdict; its content only explains.
pub(super) fn reason(store: &dyn Store, file: &Object) -> Option<String> {
    let json = store.read(&file.key, 0..file.bytes).ok()?;
    serde_json::from_slice::<Record>(&json).ok()?.reason
}
