//! What base backups and WAL streaming need beside what dumps do. Looked at where either is asked
//! for; where neither is, only for the slot that streaming left behind.
//!
//! Invariant: nothing is changed on the server; no slot is made to see whether one could be.

use super::server::hba_line;
use super::{Finding, Level};
use crate::cancel::Token;
use crate::config::SlotPolicy;
use crate::error::{Error, Result};
use crate::postgres::replication::Replication;
use crate::postgres::tools::version_text;
use crate::postgres::{Client, Row, Target, quote_ident};
use crate::units::{ByteSize, SegmentSize};

const SQL: &str = include_str!("sql/wal.sql");
const SUBJECT: &str = "server";
/// Of a base backup: one for the files, one for the WAL beside them.
const SENDERS_OF_BASE: i64 = 2;
/// Of a base backup: the temporary one that holds that WAL.
const SLOTS_OF_BASE: i64 = 1;
/// PostgreSQL's own default of both limits.
const LIMIT_USUAL: i64 = 10;
/// The first that makes incremental base backups.
const INCREMENTAL: u32 = 170_000;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Whether base backups are, scheduled or with WAL.
    pub base: bool,
    /// Whether WAL is received all the time.
    pub streaming: bool,
    /// Whether incremental base backups are scheduled.
    pub incremental: bool,
    pub slot_name: String,
    pub slot_policy: SlotPolicy,
    pub slot_limit_bytes: u64,
}

/// Our slot, if it is there.
struct Slot {
    physical: bool,
    active: bool,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    wal_status: String,
}

/// Looks at the server behind `client`.
///
/// # Errors
/// Those of the connection.
pub fn look(client: &mut Client, wanted: &Wanted, cancel: &Token) -> Result<Vec<Finding>> {
    let rows = client.query(SQL)?;
    let row = rows
        .first()
        .ok_or_else(|| Error::failed("the server does not know the role that is connected"))?;
    let slot = slot(client, wanted)?;
    if !wanted.base {
        return Ok(slot
            .and_then(|slot| left_behind(&slot, wanted))
            .into_iter()
            .collect());
    }
    let mut findings = Vec::new();
    let minimal = row.str(0)? == "minimal";
    if minimal {
        findings.push(wal_level());
    }
    findings.extend(senders(row, wanted, slot.as_ref())?);
    findings.extend(slots(row, wanted, slot.as_ref())?);
    let target = client.pinned();
    let may = row.bool(5)?;
    if !may {
        findings.push(right(&target));
    }
    // Else the reason is known already.
    if may && !minimal && row.get::<i64>(1)? > 0 {
        cancel.check()?;
        findings.extend(connection(&target));
    }
    if wanted.incremental {
        let version = client.server_version_num();
        findings.extend(summaries(version, row.str(6)?));
    }
    if wanted.streaming {
        findings.extend(keep_size(row.get(7)?, wanted));
        findings.extend(slot.as_ref().and_then(|slot| state(slot, wanted)));
    } else {
        findings.extend(slot.as_ref().and_then(|slot| left_behind(slot, wanted)));
    }
    let size = SegmentSize::parse(row.str(8)?)?;
    let fact = format!("WAL segments of {}", ByteSize(size.bytes()));
    findings.push(Finding::new(Level::Ok, "wal_segment_size", SUBJECT, fact));
    Ok(findings)
}

fn slot(client: &mut Client, wanted: &Wanted) -> Result<Option<Slot>> {
    // A valid name of a slot has nothing to quote.
    let rows = client.query(format!(
        "SELECT s.slot_type = 'physical', s.active, coalesce(s.wal_status, '') \
         FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = '{}'",
        wanted.slot_name
    ))?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    Ok(Some(Slot {
        physical: row.bool(0)?,
        active: row.bool(1)?,
        wal_status: row.str(2)?.to_owned(),
    }))
}

/// A setting that only a restart changes.
fn restart(finding: Finding, statement: String) -> Finding {
    let lines = [statement, "-- and restart the server".to_owned()];
    finding.statements("postgres", &lines)
}

fn reload(finding: Finding, statement: String) -> Finding {
    let lines = [statement, "SELECT pg_reload_conf();".to_owned()];
    finding.statements("postgres", &lines)
}

fn wal_level() -> Finding {
    let fact = "wal_level is minimal: the server's WAL restores nothing, and it sends none";
    let finding = Finding::new(Level::Fail, "wal_level", SUBJECT, fact);
    restart(
        finding,
        "ALTER SYSTEM SET wal_level = 'replica';".to_owned(),
    )
}

/// What `need` asks for against what is free, and the limit that would do.
fn limit(
    topic: &'static str,
    setting: &str,
    what: &str,
    (most, used, need): (i64, i64, i64),
) -> Option<Finding> {
    let free = (most - used).max(0);
    if free >= need {
        return None;
    }
    let fact = format!("{free} of {most} {what} are free ({setting}), and {need} are needed");
    let finding = Finding::new(Level::Fail, topic, SUBJECT, fact);
    let enough = (used + need).max(LIMIT_USUAL);
    let statement = format!("ALTER SYSTEM SET {setting} = {enough};");
    Some(restart(finding, statement))
}

fn senders(row: &Row, wanted: &Wanted, slot: Option<&Slot>) -> Result<Option<Finding>> {
    // One that streams already is counted among those in use.
    let streams = wanted.streaming && !slot.is_some_and(|slot| slot.active);
    let need = SENDERS_OF_BASE + i64::from(streams);
    let numbers = (row.get(1)?, row.get(2)?, need);
    Ok(limit(
        "wal_senders",
        "max_wal_senders",
        "WAL senders",
        numbers,
    ))
}

fn slots(row: &Row, wanted: &Wanted, slot: Option<&Slot>) -> Result<Option<Finding>> {
    let need = SLOTS_OF_BASE + i64::from(wanted.streaming && slot.is_none());
    let numbers = (row.get(3)?, row.get(4)?, need);
    let what = "replication slots";
    Ok(limit(
        "replication_slots",
        "max_replication_slots",
        what,
        numbers,
    ))
}

fn right(target: &Target) -> Finding {
    let user = quote_ident(target.user());
    let fact = format!("{user} may not replicate: no base backup, no WAL");
    Finding::new(Level::Fail, "replication_right", "role", fact)
        .sql("postgres", format!("ALTER ROLE {user} REPLICATION;"))
}

/// Tries the connection that base backups and WAL come over.
fn connection(target: &Target) -> Option<Finding> {
    let error = Replication::connect(target)
        .and_then(|mut link| link.identify())
        .err()?;
    let finding = |level| {
        let fact = format!("no connection for replication: {}", error.fact);
        Finding::new(level, "replication_connection", SUBJECT, fact)
    };
    let state = error.sqlstate.as_deref();
    if state == Some("28000") && error.fact.contains("pg_hba.conf") {
        let user = quote_ident(target.user());
        if let Some(line) = hba_line(&error.fact, &user, "replication") {
            return Some(finding(Level::Fail).hba(line));
        }
    }
    let hint = error.hint.clone().unwrap_or_default();
    Some(finding(Level::Fail).advice(hint))
}

fn summaries(version: u32, summarize: &str) -> Option<Finding> {
    let topic = "summarize_wal";
    if version < INCREMENTAL {
        let fact = format!(
            "PostgreSQL {} makes no incremental base backups: full ones are taken by BASE_INCREMENTAL_SCHEDULE",
            version_text(version)
        );
        let finding = Finding::new(Level::Warning, topic, SUBJECT, fact);
        return Some(finding.advice("leave BASE_INCREMENTAL_SCHEDULE out until PostgreSQL 17"));
    }
    if summarize == "on" {
        return None;
    }
    let fact = "summarize_wal is off: instead of incremental base backups full ones are taken";
    let finding = Finding::new(Level::Warning, topic, SUBJECT, fact);
    Some(reload(
        finding,
        "ALTER SYSTEM SET summarize_wal = on;".to_owned(),
    ))
}

/// The server's own bound on what a slot holds back. pgark's guard works only while pgark lives.
fn keep_size(megabytes: i64, wanted: &Wanted) -> Option<Finding> {
    let topic = "slot_limit";
    let limit = wanted.slot_limit_bytes;
    // Above the guard's, so that the guard acts first, and says what it did.
    let enough = limit.div_ceil(1 << 20).saturating_mul(2);
    let statement = format!("ALTER SYSTEM SET max_slot_wal_keep_size = '{enough}MB';");
    if megabytes < 0 {
        let fact = "max_slot_wal_keep_size is -1: while pgark is away its slot holds WAL back until the server's disk is full";
        if wanted.slot_policy == SlotPolicy::ProtectArchive {
            let fact = format!("{fact}; slot_policy protect-archive wants it so");
            return Some(Finding::new(Level::Note, topic, SUBJECT, fact));
        }
        return Some(reload(
            Finding::new(Level::Fail, topic, SUBJECT, fact),
            statement,
        ));
    }
    let bytes = u64::try_from(megabytes)
        .unwrap_or(0)
        .saturating_mul(1 << 20);
    if bytes >= limit {
        return None;
    }
    let fact = format!(
        "max_slot_wal_keep_size is {}, less than slot_limit ({}): the server drops WAL before pgark's guard acts",
        ByteSize(bytes),
        ByteSize(limit)
    );
    let finding = Finding::new(Level::Warning, topic, SUBJECT, fact);
    Some(reload(finding, statement))
}

/// Nobody streams any more, and the slot holds WAL for ever.
fn left_behind(slot: &Slot, wanted: &Wanted) -> Option<Finding> {
    if slot.active || !slot.physical {
        return None;
    }
    let name = &wanted.slot_name;
    let fact = format!(
        "WAL_STREAMING is off, and the slot {name} holds WAL back until the server's disk is full"
    );
    let sql = format!("SELECT pg_catalog.pg_drop_replication_slot('{name}');");
    Some(Finding::new(Level::Fail, "slot", SUBJECT, fact).sql("postgres", sql))
}

fn state(slot: &Slot, wanted: &Wanted) -> Option<Finding> {
    let name = &wanted.slot_name;
    let finding = |level, fact: String| Finding::new(level, "slot", SUBJECT, fact);
    if !slot.physical {
        let fact = format!("{name} is a slot of logical replication, and somebody else's");
        return Some(finding(Level::Fail, fact).advice("another slot_name in [wal] of pgark.toml"));
    }
    match slot.wal_status.as_str() {
        "lost" => {
            let fact = format!(
                "the slot {name} has lost WAL that was not received yet: no streaming until it is dropped, and a gap until the next base backup"
            );
            let sql = format!("SELECT pg_catalog.pg_drop_replication_slot('{name}');");
            Some(finding(Level::Fail, fact).sql("postgres", sql))
        }
        "unreserved" => {
            let fact = format!(
                "the slot {name} is about to lose WAL: it lies beyond max_slot_wal_keep_size, and goes with the next checkpoint"
            );
            let advice =
                "see that `pgark serve` runs and receives; or raise max_slot_wal_keep_size";
            Some(finding(Level::Fail, fact).advice(advice))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(slot_policy: SlotPolicy, slot_limit_bytes: u64) -> Wanted {
        Wanted {
            base: true,
            streaming: true,
            incremental: false,
            slot_name: "pgark".to_owned(),
            slot_policy,
            slot_limit_bytes,
        }
    }

    #[test]
    fn the_servers_own_bound_lies_above_the_guards() {
        let primary = wanted(SlotPolicy::ProtectPrimary, 16 << 30);
        let endless = keep_size(-1, &primary).unwrap();
        assert_eq!(endless.level, Level::Fail);
        let line = &endless.mend.unwrap().lines[0];
        assert_eq!(line, "ALTER SYSTEM SET max_slot_wal_keep_size = '32768MB';");
        assert_eq!(keep_size(32_768, &primary), None);
        assert_eq!(keep_size(16_384, &primary), None);
        let low = keep_size(1024, &primary).unwrap();
        assert_eq!(low.level, Level::Warning);
        assert!(low.fact.contains("1.0 GiB"), "{}", low.fact);
        let archive = wanted(SlotPolicy::ProtectArchive, 16 << 30);
        assert_eq!(keep_size(-1, &archive).unwrap().level, Level::Note);
    }

    #[test]
    fn a_limit_that_would_do_counts_what_others_use() {
        let found = |numbers| limit("x", "max_x", "things", numbers);
        assert_eq!(found((10, 7, 3)), None);
        let few = found((10, 9, 3)).unwrap();
        assert!(
            few.fact.starts_with("1 of 10 things are free"),
            "{}",
            few.fact
        );
        assert_eq!(few.mend.unwrap().lines[0], "ALTER SYSTEM SET max_x = 12;");
        let none = found((0, 0, 3)).unwrap();
        assert_eq!(none.mend.unwrap().lines[0], "ALTER SYSTEM SET max_x = 10;");
    }
}
