//! How WAL is received and what the slot may cost. Values only: variables, and keys of the file
//! with their defaults.

use std::time::Duration;

use super::environment::Environment;
use super::form;
use super::load::{required, setting};
use crate::error::Result;

/// What happens when the slot holds back more WAL on the server than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotPolicy {
    /// The slot is dropped before the server's disk fills; the archive gets a gap.
    ProtectPrimary,
    /// The slot stays; the server may run out of disk.
    ProtectArchive,
}

/// WAL streaming and base backups of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wal {
    pub streaming: bool,
    /// The longest that received WAL stays out of an object store.
    pub flush_interval: Duration,
    /// Days that can be restored to any moment.
    pub retention_days: u32,
    /// A valid name: 1 to 63 of `a-z0-9_`.
    pub slot_name: String,
    pub slot_policy: SlotPolicy,
    /// WAL that the slot may hold back on the server.
    pub slot_limit_bytes: u64,
    /// Received WAL that may wait in memory: the first store is a bucket, or encrypted.
    pub backlog_max_bytes: u64,
    /// Incremental base backups on one full one.
    pub chain_max: usize,
}

/// The file's `[wal]`: for every cluster alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Keys {
    pub slot_name: String,
    pub slot_policy: SlotPolicy,
    pub slot_limit_bytes: u64,
    pub backlog_max_bytes: u64,
    pub chain_max: usize,
}

impl Default for Keys {
    fn default() -> Keys {
        Keys {
            slot_name: "pgark".to_owned(),
            slot_policy: SlotPolicy::ProtectPrimary,
            slot_limit_bytes: 16 << 30,
            backlog_max_bytes: 64 << 20,
            chain_max: 7,
        }
    }
}

/// The variables, with the file's keys.
pub(super) fn load(env: &Environment, keys: Option<&Keys>) -> Result<Wal> {
    let keys = keys.cloned().unwrap_or_default();
    let days = match setting("WAL_RETENTION_DAYS", env)? {
        Some(found) => found,
        None => required("BACKUP_RETENTION_DAYS", env)?,
    };
    Ok(Wal {
        streaming: form::switch(&required("WAL_STREAMING", env)?.text),
        flush_interval: form::duration(&required("WAL_FLUSH_INTERVAL", env)?.text)
            .unwrap_or(Duration::from_secs(10)),
        // The form of days is checked.
        retention_days: days.text.parse().unwrap_or(30),
        slot_name: keys.slot_name,
        slot_policy: keys.slot_policy,
        slot_limit_bytes: keys.slot_limit_bytes,
        backlog_max_bytes: keys.backlog_max_bytes,
        chain_max: keys.chain_max,
    })
}
