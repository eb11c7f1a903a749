//! Is there room for a second copy? As far as that can be known from outside.
//!
//! A server tells what its databases take, but no query tells how much of its disk is free. Where the
//! server runs on this very machine, its data directory's file system does; everywhere else the
//! estimate is said, and nothing is claimed. Reads only.

use std::path::PathBuf;

use super::compat::Report;
use crate::error::Result;
use crate::postgres::{Client, quote_literal};
use crate::units::ByteSize;

/// Compares what the new copy may take with what is free. `raw_bytes` is the backup's text,
/// `old_bytes` what the database takes today, 0 when there is none.
///
/// # Errors
/// Those of the connection.
pub fn look(
    admin: &mut Client,
    tablespace: Option<&str>,
    raw_bytes: u64,
    old_bytes: u64,
    report: &mut Report,
) -> Result<()> {
    let estimates = [raw_bytes, old_bytes];
    let most = estimates.into_iter().max().unwrap_or(0);
    let least = estimates
        .into_iter()
        .filter(|bytes| *bytes > 0)
        .min()
        .unwrap_or(0);
    let Some(free) = free_bytes(admin, tablespace)? else {
        if old_bytes > 0 {
            report.notes.push(format!(
                "both copies need room: the database takes {} today, the backup holds {} of rows; the free space of the server's disk cannot be read over the network",
                ByteSize(old_bytes),
                ByteSize(raw_bytes)
            ));
        }
        return Ok(());
    };
    judge(free, least, most, report);
    Ok(())
}

fn judge(free: u64, least: u64, most: u64, report: &mut Report) {
    if free < least {
        report.add(
            format!("the server's disk has {} free; the new copy takes {} or more", ByteSize(free), ByteSize(least)),
            "make room there; the old database is kept until the new one is whole, so both must fit",
        );
    } else if free < most {
        report.notes.push(format!(
            "the server's disk has {} free; the new copy takes between {} and {}: it may not fit",
            ByteSize(free),
            ByteSize(least),
            ByteSize(most)
        ));
    }
}

/// Free bytes where the new database will lie, when the server runs on this machine.
fn free_bytes(admin: &mut Client, tablespace: Option<&str>) -> Result<Option<u64>> {
    let rows = admin.query(format!(
        "SELECT pg_catalog.pg_backend_pid(), coalesce((SELECT nullif(pg_catalog.pg_tablespace_location(oid), '') \
         FROM pg_catalog.pg_tablespace WHERE spcname = {}), \
         CASE WHEN pg_catalog.pg_has_role(current_user, 'pg_read_all_settings', 'USAGE') THEN pg_catalog.current_setting('data_directory') END)",
        quote_literal(tablespace.unwrap_or("pg_default"))
    ))?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let Some(directory) = row.opt_str(1).map(PathBuf::from) else {
        return Ok(None);
    };
    // The process that serves us is one of this machine, and a postgres: so its paths are ours.
    let pid: u32 = row.get(0)?;
    let command = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if command.trim() != "postgres" {
        return Ok(None);
    }
    Ok(rustix::fs::statvfs(&directory)
        .ok()
        .map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_surely_does_not_fit_is_refused() {
        let verdict = |free| {
            let mut report = Report::default();
            judge(free, 100, 200, &mut report);
            (report.findings.len(), report.notes.len())
        };
        assert_eq!(
            [verdict(99), verdict(100), verdict(199), verdict(200)],
            [(1, 0), (0, 1), (0, 1), (0, 0)]
        );
    }
}
