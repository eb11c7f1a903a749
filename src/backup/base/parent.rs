//! Which base backup an incremental one builds on.
//!
//! Invariant: the parent is good, of the same cluster and major version, and its end lies in the
//! history of the timeline that is being backed up. Where there is none, the reason is said, and a
//! full backup is taken.

use crate::catalog::base::chain;
use crate::catalog::list::Entry;
use crate::error::Result;
use crate::postgres::replication::{Replication, System};
use crate::units::{BackupKind, Timeline};

/// The newest backup that can be built on, or why there is none. At most `chain_max` build on one
/// full one: each makes a restore longer, and each is needed.
///
/// # Errors
/// A lost connection.
pub(super) fn choose<'a>(
    link: &mut Replication,
    entries: &'a [Entry],
    system: System,
    chain_max: usize,
) -> Result<std::result::Result<&'a Entry, String>> {
    let version = link.server_version_num();
    if version < 170_000 {
        let reason = "the server is older than PostgreSQL 17";
        return Ok(Err(reason.to_owned()));
    }
    if link.show("summarize_wal")? != "on" {
        let reason = "summarize_wal is off on the server";
        return Ok(Err(reason.to_owned()));
    }
    let id = system.id.to_string();
    let same = |entry: &&Entry| {
        let manifest = entry.manifest.as_ref();
        entry.kind == BackupKind::Base
            && entry.good
            && manifest.is_some_and(|manifest| {
                manifest.system_identifier.as_ref() == Some(&id)
                    && manifest.server_version_num / 10_000 == version / 10_000
            })
    };
    let Some(newest) = entries.iter().find(same) else {
        return Ok(Err("there is no good base backup to build on".to_owned()));
    };
    let length = match chain(entries, newest) {
        Ok(chain) => chain.len(),
        Err(error) => return Ok(Err(error.fact)),
    };
    if length > chain_max {
        return Ok(Err(format!(
            "{} is the last of {chain_max} that build on one full backup",
            newest.id
        )));
    }
    let record = newest.manifest.as_ref().and_then(|one| one.base.as_ref());
    let end = record.map(|base| (base.end_timeline, base.end_lsn));
    let Some((timeline, lsn)) = end else {
        return Ok(Err(format!(
            "the manifest of {} is none of a base backup",
            newest.id
        )));
    };
    if timeline != system.timeline {
        let known = system.timeline > Timeline::FIRST;
        let history = known
            .then(|| link.timeline_history(system.timeline))
            .transpose()?;
        if !history.is_some_and(|file| file.history.contains(timeline, lsn)) {
            return Ok(Err(format!(
                "{} ends on timeline {timeline}, which timeline {} left before",
                newest.id, system.timeline
            )));
        }
    }
    Ok(Ok(newest))
}
