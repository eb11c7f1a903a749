//! Outcomes of verify and drill, and what a person accepted: small files beside the manifests,
//! which are immutable.
//!
//! Invariant: when outcomes contradict each other (a crash between two steps), `failed` wins.
//! So a failure is written before the good outcomes go, and goes after a good one is written.
//! `accepted` contradicts none of them: it answers another question.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::layout::{Outcome, STATE_FOLDER, parse_state_key, state_key};
use crate::error::{Error, Result};
use crate::store::{self, Object, Put, Store};
use crate::units::BackupId;

/// What is known of a backup (design §2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Its manifest is committed, and its files have the manifest's sizes.
    Taken,
    /// Re-read and decoded.
    Verified,
    /// Passed a drill.
    Proven,
    /// Damaged, or failed a verify or a drill; `reason` says how.
    Failed,
    /// The manifest is there, the artefact is not.
    Missing,
    /// Of the old service.
    Legacy,
    /// Whole, but it holds far less than the good ones before it, and nobody accepted that.
    Suspect,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            State::Taken => "taken",
            State::Verified => "verified",
            State::Proven => "proven",
            State::Failed => "failed",
            State::Missing => "missing",
            State::Legacy => "legacy",
            State::Suspect => "suspect",
        })
    }
}

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
        Outcome::Accepted => &[],
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
pub fn forget_outcomes(store: &dyn Store, id: &BackupId) -> Result<()> {
    for outcome in [Outcome::Verified, Outcome::Proven, Outcome::Failed] {
        store.delete(&state_key(id, outcome)?)?;
    }
    Ok(())
}

/// Forgets all of it, for a backup that is deleted.
///
/// # Errors
/// As the store.
pub fn forget(store: &dyn Store, id: &BackupId) -> Result<()> {
    for outcome in Outcome::ALL {
        store.delete(&state_key(id, outcome)?)?;
    }
    Ok(())
}

/// What is known of a backup beside its manifest.
#[derive(Debug, Clone, Default)]
pub(super) struct Standing {
    /// The outcome that counts, and its file.
    pub outcome: Option<(Outcome, Object)>,
    pub accepted: bool,
}

/// What is known of each backup. One listing.
pub(super) fn all(store: &dyn Store) -> Result<BTreeMap<BackupId, Standing>> {
    let mut states: BTreeMap<BackupId, Standing> = BTreeMap::new();
    for object in store.list(STATE_FOLDER)? {
        let Some((id, outcome)) = parse_state_key(object.key.as_str()) else {
            continue;
        };
        let standing = states.entry(id).or_default();
        if outcome == Outcome::Accepted {
            standing.accepted = true;
            continue;
        }
        // Declared in this order: verified < proven < failed.
        let known = standing.outcome.as_ref();
        if known.is_none_or(|(known, _)| *known < outcome) {
            standing.outcome = Some((outcome, object));
        }
    }
    Ok(states)
}

/// Why it failed. The file's name is the verdict; its content only explains.
pub(super) fn reason(store: &dyn Store, file: &Object) -> Option<String> {
    let json = store.read(&file.key, 0..file.bytes).ok()?;
    serde_json::from_slice::<Record>(&json).ok()?.reason
}
