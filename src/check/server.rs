//! The server and the role: versions, rights that belong to the cluster, connections, clock.

use jiff::Timestamp;

use super::{Finding, Level, plural};
use crate::cancel::Token;
use crate::clock;
use crate::error::{Error, Result};
use crate::postgres::tools::{Tools, version_text};
use crate::postgres::{Client, Row, Target, patience, quote_ident, refuse_transaction_pooler};

/// Connections of a dump beside its workers: the run's lock, the snapshot.
const CONNECTIONS_BESIDE: i64 = 2;
/// Without so many it fails: those two, and pg_dump.
const CONNECTIONS_MIN: i64 = 3;
/// A password that is valid for less is said to end.
const VALID_DAYS_MIN: i64 = 14;
/// Clocks that differ by less are the network's doing.
const SKEW_MAX_SECONDS: f64 = 10.0;
/// Majors that pgark's tests or its archive reader know.
const MAJORS: std::ops::RangeInclusive<u32> = 14..=19;

const ROLE: &str = include_str!("sql/role.sql");

/// What the checks of databases build on.
#[derive(Debug, Clone)]
pub struct Facts {
    pub version_num: u32,
    pub user: String,
    pub superuser: bool,
    pub standby: bool,
    /// Connections that a dump uses where it may.
    pub connections: i64,
    /// Locks that the server's table has room for, and the setting that made it so.
    pub locks: i64,
    pub locks_per_transaction: i64,
}

/// Looks at the server behind `client`. `globals_database` is the one that the globals are read
/// through.
///
/// # Errors
/// Those of the connection.
pub fn look(
    client: &mut Client,
    target: &Target,
    jobs: usize,
    globals_database: &str,
    cancel: &Token,
) -> Result<(Facts, Vec<Finding>)> {
    let mut findings = vec![version(client)];
    findings.extend(encryption(target, client.is_encrypted()));
    let warnings = target.warnings().iter();
    findings
        .extend(warnings.map(|text| Finding::new(Level::Warning, "connection", "server", text)));
    let rows = client.query(ROLE)?;
    let row = rows
        .first()
        .ok_or_else(|| Error::failed("the server does not know the role that is connected"))?;
    let connections = i64::try_from(jobs).unwrap_or(64) + CONNECTIONS_BESIDE;
    let facts = Facts {
        version_num: client.server_version_num(),
        user: target.user().to_owned(),
        superuser: row.bool(0)?,
        standby: row.bool(6)?,
        connections,
        locks: row.get(12)?,
        locks_per_transaction: row.get(13)?,
    };
    let through = client.pinned().with_database(globals_database);
    let reads_passwords = reads_passwords(&through, cancel).or_else(|_| row.bool(5))?;
    findings.extend(role(row, &facts, globals_database, reads_passwords)?);
    findings.extend(slots(row, &facts)?);
    findings.extend(standby(row, &facts)?);
    findings.extend(skew(client)?);
    findings.extend(pooler(client));
    Ok((facts, findings))
}

/// Each database has its own copy of the right, so it is asked where the globals are read.
fn reads_passwords(target: &Target, cancel: &Token) -> Result<bool> {
    let mut client = patience::connect(target, cancel)?;
    let rows =
        client.query("SELECT pg_catalog.has_table_privilege('pg_catalog.pg_authid', 'SELECT')")?;
    rows.first().map_or(Ok(false), |row| row.bool(0))
}

fn version(client: &Client) -> Finding {
    let number = client.server_version_num();
    let text = client.parameter("server_version").unwrap_or_default();
    if MAJORS.contains(&(number / 10_000)) {
        return Finding::new(Level::Ok, "version", "server", format!("PostgreSQL {text}"));
    }
    let fact = format!("PostgreSQL {text} is none of those that pgark knows (14 to 19)");
    Finding::new(Level::Warning, "version", "server", fact)
        .advice("take a backup, and restore it once to see that it holds")
}

/// Who is between may read or be the server.
fn encryption(target: &Target, encrypted: bool) -> Option<Finding> {
    if !target.is_remote() || (encrypted && target.verifies_server()) {
        return None;
    }
    let advice = "DB_SSLMODE=verify-full, and DB_SSLROOTCERT where no public authority signed the server's certificate";
    Some(if encrypted {
        let fact = "the connection is encrypted, but nobody checks whose server it is";
        Finding::new(Level::Note, "tls", "server", fact).advice(advice)
    } else {
        let fact = "the connection is not encrypted: every row goes over the network as it is";
        Finding::new(Level::Warning, "tls", "server", fact).advice(advice)
    })
}

fn role(
    row: &Row,
    facts: &Facts,
    globals_database: &str,
    reads_passwords: bool,
) -> Result<Vec<Finding>> {
    let name = quote_ident(&facts.user);
    let finding = |level, topic, fact: String| Finding::new(level, topic, "role", fact);
    let mut findings = Vec::new();
    let what = if facts.superuser {
        "a superuser: its dumps leave nothing out"
    } else {
        "no superuser: what it may not read is looked for below"
    };
    findings.push(finding(Level::Ok, "role", format!("{name} is {what}")));
    let (limit, used): (i64, i64) = (row.get(1)?, row.get(2)?);
    // This very session is one of those in use.
    let room = room(limit, used - 1, CONNECTIONS_MIN, facts.connections);
    if let Some(level) = room.filter(|_| !facts.superuser) {
        let fact = format!("{name} may have {}", limited(limit, used - 1, level));
        let sql = format!("ALTER ROLE {name} CONNECTION LIMIT -1;");
        findings.push(finding(level, "role_connections", fact).sql("postgres", sql));
    }
    if let Some(seconds) = row.opt_str(3).and_then(|text| text.parse::<i64>().ok())
        && seconds < VALID_DAYS_MIN * 86_400
    {
        let until = row.opt_str(4).unwrap_or_default();
        let ends = if seconds < 0 { "ended" } else { "ends" };
        let fact = format!("the password of {name} {ends} on {until}; backups fail from then on");
        let sql = format!("ALTER ROLE {name} VALID UNTIL 'infinity';");
        findings.push(finding(Level::Warning, "role_validity", fact).sql("postgres", sql));
    }
    if !reads_passwords {
        let fact = format!(
            "{name} may not read the passwords of roles: the globals come without them, to be set anew after a restore"
        );
        // The right belongs to the database's copy of the catalog's ACL.
        let sql = format!("GRANT SELECT ON pg_catalog.pg_authid TO {name};");
        findings.push(finding(Level::Warning, "role_passwords", fact).sql(globals_database, sql));
    }
    Ok(findings)
}

/// Whether the server has room for a dump's connections now.
fn slots(row: &Row, facts: &Facts) -> Result<Option<Finding>> {
    let (most, reserved, used): (i64, i64, i64) = (row.get(7)?, row.get(8)?, row.get(9)?);
    let reserved = if facts.superuser { 0 } else { reserved };
    let free = most - reserved - (used - 1);
    let level = match free {
        few if few < CONNECTIONS_MIN => Level::Warning,
        few if few < facts.connections => Level::Note,
        _ => return Ok(None),
    };
    let fact = format!(
        "{} of {most} connections are free for this role now; a dump would use {}",
        free.max(0),
        facts.connections
    );
    let finding = Finding::new(level, "connections", "server", fact);
    Ok(Some(finding.advice(
        "a lower BACKUP_JOBS, a higher max_connections, or a quieter hour",
    )))
}

/// How bad a limit is with so many in use; none when there is room. -1: no limit.
pub(super) fn room(limit: i64, used: i64, least: i64, wanted: i64) -> Option<Level> {
    match limit - used {
        _ if limit < 0 => None,
        few if few < least => Some(Level::Fail),
        few if few < wanted => Some(Level::Note),
        _ => None,
    }
}

/// The words for it.
pub(super) fn limited(limit: i64, used: i64, level: Level) -> String {
    let what = if level == Level::Fail {
        "a dump needs more"
    } else {
        "a dump goes on with fewer than BACKUP_JOBS, and takes longer"
    };
    let count = plural(limit.unsigned_abs(), "connection");
    format!("{count} at once, {used} in use now: {what}")
}

fn standby(row: &Row, facts: &Facts) -> Result<Vec<Finding>> {
    if !facts.standby {
        return Ok(Vec::new());
    }
    let fact = "a standby: a dump of it is one of the primary, some moments ago";
    let mut findings = vec![Finding::new(Level::Note, "standby", "server", fact)];
    let delay = row.opt_str(11).unwrap_or_default();
    if !row.bool(10)? && delay != "-1" {
        let fact = format!(
            "replay cancels a dump that is in its way for more than {delay} (max_standby_streaming_delay)"
        );
        let lines = [
            "ALTER SYSTEM SET hot_standby_feedback = on;".to_owned(),
            "SELECT pg_reload_conf();".to_owned(),
        ];
        let finding = Finding::new(Level::Warning, "standby_conflicts", "server", fact);
        findings.push(finding.statements("postgres", &lines));
    }
    Ok(findings)
}

/// How far the server's clock is from ours.
fn skew(client: &mut Client) -> Result<Option<Finding>> {
    let before = clock::now();
    let rows = client.query("SELECT extract(epoch FROM pg_catalog.clock_timestamp())")?;
    let after = clock::now();
    let there: f64 = rows.first().map_or(Ok(0.0), |row| row.get(0))?;
    Ok(skew_finding(before, after, there))
}

/// The server read its clock some time between ours.
fn skew_finding(before: Timestamp, after: Timestamp, there: f64) -> Option<Finding> {
    let seconds = |time: Timestamp| time.as_duration().as_secs_f64();
    let ahead = if there > seconds(after) {
        there - seconds(after)
    } else if there < seconds(before) {
        there - seconds(before)
    } else {
        0.0
    };
    if ahead.abs() < SKEW_MAX_SECONDS {
        return None;
    }
    let side = if ahead > 0.0 { "behind" } else { "ahead of" };
    let fact = format!(
        "this machine's clock is {:.0} seconds {side} the server's",
        ahead.abs()
    );
    Some(
        Finding::new(Level::Warning, "clock", "server", fact)
            .advice("set the clocks by NTP: names of backups and their age follow this machine's"),
    )
}

fn pooler(client: &mut Client) -> Option<Finding> {
    let error = refuse_transaction_pooler(client).err()?;
    let finding = Finding::new(Level::Fail, "pooler", "server", error.fact);
    Some(finding.advice(error.hint.unwrap_or_default()))
}

/// The programs on this machine, for a server of this version. `fixed`: `PGARK_PG_BIN` names them.
#[must_use]
pub fn programs(tools: &Tools, version_num: u32, fixed: bool) -> Vec<Finding> {
    let subject = "programs";
    let major = version_num / 10_000;
    let mut findings = Vec::new();
    for name in ["pg_dump", "pg_dumpall"] {
        findings.push(match tools.pick(name, version_num) {
            Ok(found) if found.major() == major => {
                let fact = format!("{name} {} fits the server", found.version_text);
                Finding::new(Level::Ok, "programs", subject, fact)
            }
            Ok(found) => {
                let fact = format!(
                    "{name} {} is newer than the server ({}): its scripts may hold what an older server does not know",
                    found.version_text,
                    version_text(version_num)
                );
                Finding::new(Level::Note, "programs", subject, fact)
                    .command(format!("apt-get install postgresql-client-{major}"))
            }
            Err(error) => {
                let finding = Finding::new(Level::Fail, "programs", subject, error.fact);
                if fixed {
                    finding.advice(error.hint.unwrap_or_default())
                } else {
                    finding.command(format!("apt-get install postgresql-client-{major}"))
                }
            }
        });
    }
    if let Err(error) = tools.newest("psql") {
        let fact = format!(
            "{}: backups of the old service cannot be restored",
            error.fact
        );
        let finding = Finding::new(Level::Note, "programs", subject, fact);
        findings.push(finding.command(format!("apt-get install postgresql-client-{major}")));
    }
    if tools.pick("postgres", version_num).is_err() {
        let fact = "no server programs of this major or a newer one: no `pgark demo`";
        let finding = Finding::new(Level::Note, "server_programs", subject, fact);
        findings.push(finding.command(format!("apt-get install postgresql-{major}")));
    }
    findings
}

/// Why there is no connection, and what mends that.
#[must_use]
pub fn refused(subject: &str, error: &Error, target: &Target) -> Finding {
    let (user, database) = (quote_ident(target.user()), quote_ident(target.database()));
    let finding = Finding::new(Level::Fail, "connection", subject, error.fact.clone());
    let says = |text: &str| error.fact.contains(text);
    match error.sqlstate.as_deref() {
        Some("42501") => finding.sql(
            "postgres",
            format!("GRANT CONNECT ON DATABASE {database} TO {user};"),
        ),
        Some("28000") if says("pg_hba.conf") => match hba_line(&error.fact, &user, &database) {
            Some(line) => finding.hba(line),
            None => finding.advice(error.hint.clone().unwrap_or_default()),
        },
        Some("28000") if says("not permitted to log in") => {
            finding.sql("postgres", format!("ALTER ROLE {user} LOGIN;"))
        }
        Some("53300") if says("for role") => finding.sql(
            "postgres",
            format!("ALTER ROLE {user} CONNECTION LIMIT -1;"),
        ),
        Some("53300") if says("for database") => finding.sql(
            "postgres",
            format!("ALTER DATABASE {database} CONNECTION LIMIT -1;"),
        ),
        _ => match &error.hint {
            Some(hint) => finding.advice(hint.clone()),
            None => finding,
        },
    }
}

/// The line that lets in who the server has just refused, by the address that it saw.
pub(super) fn hba_line(fact: &str, user: &str, database: &str) -> Option<String> {
    let (_, rest) = fact.split_once("host \"")?;
    let (address, rest) = rest.split_once('"')?;
    if address == "[local]" {
        return Some(format!("local {database} {user} scram-sha-256"));
    }
    let bits = match address.parse::<std::net::IpAddr>().ok()? {
        std::net::IpAddr::V4(_) => 32,
        std::net::IpAddr::V6(_) => 128,
    };
    let encrypted = rest.contains("SSL encryption") || rest.contains("SSL on");
    let kind = if encrypted { "hostssl" } else { "host" };
    Some(format!(
        "{kind} {database} {user} {address}/{bits} scram-sha-256"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_for_pg_hba_names_what_the_server_saw() {
        let line = |fact| hba_line(fact, "\"me\"", "\"app\"").unwrap();
        let fact = "FATAL: no pg_hba.conf entry for host \"10.0.0.7\", user \"me\", database \"app\", SSL encryption";
        assert_eq!(
            line(fact),
            "hostssl \"app\" \"me\" 10.0.0.7/32 scram-sha-256"
        );
        let fact = "FATAL: pg_hba.conf rejects connection for host \"::1\", user \"me\", database \"app\", no encryption";
        assert_eq!(line(fact), "host \"app\" \"me\" ::1/128 scram-sha-256");
        let fact = "FATAL: no pg_hba.conf entry for host \"[local]\", user \"me\", database \"app\", no encryption";
        assert_eq!(line(fact), "local \"app\" \"me\" scram-sha-256");
        assert_eq!(hba_line("something else", "", ""), None);
    }

    #[test]
    fn a_slow_answer_is_no_wrong_clock() {
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(skew_finding(at(100), at(160), 130.0), None);
        assert_eq!(skew_finding(at(100), at(101), 110.0), None);
        let ahead = skew_finding(at(100), at(101), 400.0).unwrap();
        assert!(ahead.fact.contains("299 seconds behind"), "{}", ahead.fact);
        let behind = skew_finding(at(1000), at(1001), 400.0).unwrap();
        assert!(
            behind.fact.contains("600 seconds ahead of"),
            "{}",
            behind.fact
        );
    }
}
