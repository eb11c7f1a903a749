//! One consistent view of a database for many connections.
//!
//! A snapshot alone protects against nothing that rewrites a table: after TRUNCATE or
//! ALTER … TYPE by somebody else its reader gets *no rows and no error*. So the holder first
//! takes ACCESS SHARE on every table, and then compares each table's file as the snapshot
//! sees it with its file now. A difference means that somebody came between; everything is
//! let go and done again with a new snapshot.
//!
//! Invariants: while [`Snapshot`] lives, no table in `tables` can be dropped, truncated or
//! rewritten by others. Waiting for locks is bounded, and whoever blocks is named. Dropping it
//! ends the transaction; nothing is left on the server.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use crate::cancel::Token;
use crate::error::{Error, Result};
use crate::postgres::{Client, Row, Target, patience};

/// Times that a dump begins anew because tables changed under it.
const ATTEMPTS: u32 = 10;
/// Tables that one LOCK statement takes.
const LOCKS_PER_STATEMENT: usize = 200;

const TABLES: &str = include_str!("sql/tables.sql");

/// A table whose rows a dump may copy.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub oid: u32,
    /// `schema.name`, quoted for SQL, in the database's encoding.
    pub quoted: Vec<u8>,
    /// Names for people and for the manifest, in UTF-8.
    pub schema: String,
    pub name: String,
    /// `(a, b)` without generated columns, quoted; empty when the table has no such column.
    pub columns: Vec<u8>,
    pub bytes: u64,
    pub pages: u64,
    /// Stored as a heap, so that ranges of ctid split it.
    pub is_heap: bool,
    /// An extension's configuration table, and its `WHERE …` if it has one.
    pub is_configuration: bool,
    pub condition: Vec<u8>,
}

/// A held, exported snapshot.
pub(super) struct Snapshot {
    pub holder: Client,
    pub id: String,
    pub tables: HashMap<u32, Table>,
    /// Times that it had to begin anew.
    pub restarts: u32,
}

impl Snapshot {
    /// Why the holder's session was ended, if it was: by a standby that had to replay what the
    /// snapshot forbids, by an administrator, by a stop of the server.
    pub(super) fn why_lost(&mut self) -> Option<Error> {
        let lost = self.holder.execute("SELECT").err()?;
        self.holder
            .is_broken()
            .then(|| lost.context("the session that held the dump's snapshot was ended"))
    }
}

/// Makes a session read as pg_dump does, whatever the role's and the database's settings say:
/// row security would hide rows, `DateStyle` and `extra_float_digits` would change values.
///
/// # Errors
/// Those of the connection.
pub(super) fn prepare_session(client: &mut Client) -> Result<()> {
    let encoding = client
        .parameter("server_encoding")
        .unwrap_or("UTF8")
        .to_owned();
    client.execute(format!(
        "SET client_encoding = '{encoding}'; SET search_path = ''; SET row_security = off; SET DateStyle = ISO; \
         SET IntervalStyle = postgres; SET extra_float_digits = 3; SET synchronize_seqscans = off; \
         SET bytea_output = hex; SET lc_monetary = 'C'; SET quote_all_identifiers = off; \
         SET standard_conforming_strings = on; SET client_min_messages = warning; \
         SELECT pg_catalog.set_config(name, 'view, foreign-table', false) FROM pg_catalog.pg_settings \
         WHERE name = 'restrict_nonsystem_relation_kind'"
    ))
}

/// Opens one more connection that reads through the snapshot.
///
/// # Errors
/// Those of the connection.
pub(super) fn join(target: &Target, id: &str, cancel: &Token) -> Result<Client> {
    let mut client = patience::connect(target, cancel)?;
    enter(&mut client, id)?;
    Ok(client)
}

/// (Re-)enters the snapshot's transaction. Its settings are made inside, so that they hold
/// exactly as long.
///
/// # Errors
/// Those of the connection.
pub(super) fn enter(client: &mut Client, id: &str) -> Result<()> {
    client.execute(format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET TRANSACTION SNAPSHOT '{id}'"
    ))?;
    prepare_session(client)
}

/// Takes a snapshot with every table locked and unchanged.
///
/// # Errors
/// `Failed`: no right to read a table (named), a lock not granted within `lock_timeout`
/// (the blocker named), tables that keep changing, or the connection's own.
pub(super) fn take(target: &Target, lock_timeout: Duration, cancel: &Token) -> Result<Snapshot> {
    let mut changed = String::new();
    for restarts in 0..ATTEMPTS {
        cancel.check()?;
        match attempt(target, lock_timeout, cancel)? {
            Attempt::Held(mut snapshot) => {
                snapshot.restarts = restarts;
                return Ok(*snapshot);
            }
            Attempt::Changed(tables) => changed = tables,
        }
    }
    Err(Error::failed(format!(
        "tables kept changing while the dump began: {changed}"
    ))
    .hint(format!(
        "{ATTEMPTS} attempts met a TRUNCATE, ALTER or DROP; run the backup while no migration runs"
    )))
}

enum Attempt {
    Held(Box<Snapshot>),
    Changed(String),
}

fn attempt(target: &Target, lock_timeout: Duration, cancel: &Token) -> Result<Attempt> {
    let mut holder = patience::connect(target, cancel)?;
    // Waiting for somebody's lock may take as long as `lock_timeout`; a signal ends it.
    let canceller = holder.canceller();
    let _hook = cancel.on_cancel(move || canceller.close());
    holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")?;
    prepare_session(&mut holder)?;
    // Sizes are asked for with a lock too, so the bound is set before the first look.
    holder.execute(format!("SET lock_timeout = {}", lock_timeout.as_millis()))?;
    let tables = match read_tables(&mut holder) {
        Err(error) if error.is_sqlstate("55P03") => return Err(blocked(target, &[], lock_timeout)),
        // Dropped between the snapshot and the look at its size.
        Err(error) if error.is_sqlstate("42P01") => return Ok(Attempt::Changed(error.fact)),
        result => result?,
    };
    if let Some(changed) = lock(&mut holder, target, &tables, lock_timeout)? {
        return Ok(Attempt::Changed(changed));
    }
    let changed = changed_tables(&mut holder, &tables)?;
    if !changed.is_empty() {
        return Ok(Attempt::Changed(changed.join(", ")));
    }
    let id = holder.query("SELECT pg_catalog.pg_export_snapshot()")?;
    let id = id.first().map_or(Ok(""), |row| row.str(0))?.to_owned();
    let tables = tables.into_iter().map(|table| (table.oid, table)).collect();
    Ok(Attempt::Held(Box::new(Snapshot {
        holder,
        id,
        tables,
        restarts: 0,
    })))
}

/// Tables whose file is not the one that the snapshot sees (rewritten, truncated), or whose name
/// now means another table, which then got the lock (two renames that swap a table). Both
/// functions look at the present, not through the snapshot.
fn changed_tables(holder: &mut Client, tables: &[Table]) -> Result<Vec<String>> {
    // Of ours only: another's schema may be closed to this role.
    let oids: Vec<String> = tables.iter().map(|table| table.oid.to_string()).collect();
    let rows = holder.query(format!(
        "SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.oid = ANY ('{{{}}}'::oid[]) \
         AND ((c.relfilenode <> 0 AND c.relfilenode IS DISTINCT FROM pg_catalog.pg_relation_filenode(c.oid)) \
         OR c.oid IS DISTINCT FROM pg_catalog.to_regclass(\
           pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname)))",
        oids.join(",")
    ))?;
    let changed: HashSet<u32> = rows.iter().filter_map(|row| row.get(0).ok()).collect();
    let names = tables.iter().filter(|table| changed.contains(&table.oid));
    Ok(names
        .take(5)
        .map(|table| format!("{}.{}", table.schema, table.name))
        .collect())
}

/// Whether every table's name still means the table that the snapshot saw. Renaming a *schema*
/// takes no table's lock, so it can come between while rows are copied by name.
///
/// # Errors
/// With SQLSTATE 42P01, as for a table that is gone: the dump is to be taken anew.
pub(super) fn ensure_unchanged(snapshot: &mut Snapshot) -> Result<()> {
    let tables: Vec<Table> = snapshot.tables.values().cloned().collect();
    let changed = changed_tables(&mut snapshot.holder, &tables)?;
    if changed.is_empty() {
        return Ok(());
    }
    let mut error = Error::failed(format!(
        "renamed while they were dumped: {}",
        changed.join(", ")
    ))
    .hint("run the backup while no migration runs");
    error.sqlstate = Some("42P01".to_owned());
    Err(error)
}

/// What a dump of a standby cannot hold: rows of unlogged tables exist on the primary alone.
///
/// # Errors
/// Those of the connection.
pub(super) fn empty_on_standby(holder: &mut Client) -> Result<Option<String>> {
    if holder.parameter("in_hot_standby") != Some("on") {
        return Ok(None);
    }
    let rows = holder.query(
        "SELECT pg_catalog.count(*), pg_catalog.min(c.oid::pg_catalog.regclass::text) FROM pg_catalog.pg_class c \
         WHERE c.relkind = 'r' AND c.relpersistence = 'u' AND c.oid >= 16384",
    )?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let count: u64 = row.get(0)?;
    let name = String::from_utf8_lossy(row.bytes(1).unwrap_or_default()).into_owned();
    Ok((count > 0).then(|| {
        format!("this server is a standby, where unlogged tables have no rows: {count} of them, {name} for one, are in the dump without rows")
    }))
}

fn read_tables(holder: &mut Client) -> Result<Vec<Table>> {
    let rows = holder.query(TABLES)?;
    // People and the manifest read UTF-8. The same snapshot gives the same rows in the same order.
    let encoding = holder
        .parameter("server_encoding")
        .unwrap_or("UTF8")
        .to_owned();
    let readable = if matches!(encoding.as_str(), "UTF8" | "SQL_ASCII") {
        None
    } else {
        holder.execute("SET client_encoding = 'UTF8'")?;
        let rows = holder.query(TABLES);
        holder.execute(format!("SET client_encoding = '{encoding}'"))?;
        Some(rows?)
    };
    rows.iter()
        .enumerate()
        .map(|(i, row)| {
            table(
                row,
                readable
                    .as_ref()
                    .and_then(|rows| rows.get(i))
                    .unwrap_or(row),
            )
        })
        .collect()
}

fn table(row: &Row, readable: &Row) -> Result<Table> {
    let text =
        |row: &Row, i| String::from_utf8_lossy(row.bytes(i).unwrap_or_default()).into_owned();
    Ok(Table {
        oid: row.get(0)?,
        quoted: row.bytes(1).unwrap_or_default().to_vec(),
        schema: text(readable, 2),
        name: text(readable, 3),
        columns: row.bytes(4).unwrap_or_default().to_vec(),
        bytes: row.get(5)?,
        pages: row.get(6)?,
        is_heap: row.bool(7)?,
        condition: row.bytes(8).unwrap_or_default().to_vec(),
        is_configuration: row.bool(9)?,
    })
}

/// Locks all tables; gives the name of one that vanished or changed meanwhile.
fn lock(
    holder: &mut Client,
    target: &Target,
    tables: &[Table],
    timeout: Duration,
) -> Result<Option<String>> {
    for chunk in tables.chunks(LOCKS_PER_STATEMENT) {
        let Err(error) = holder.execute(lock_statement(chunk, "")) else {
            continue;
        };
        match error.sqlstate.as_deref() {
            // Dropped, renamed, or turned into something else since the snapshot.
            Some("42P01" | "42809" | "3F000") => return Ok(Some(error.fact)),
            Some("55P03") => return Err(blocked(target, chunk, timeout)),
            Some("42501") => {
                return Err(error.context(format!("{} cannot be dumped", target.database())).hint(format!(
                    "GRANT pg_read_all_data TO {}; or GRANT SELECT on the table; a dump without it would lose its rows",
                    crate::postgres::quote_ident(target.user())
                )));
            }
            _ => return Err(error),
        }
    }
    holder.execute("SET lock_timeout = 0")?;
    Ok(None)
}

/// `LOCK TABLE ONLY … IN ACCESS SHARE MODE`, with `suffix` (` NOWAIT`).
pub(super) fn lock_statement(tables: &[Table], suffix: &str) -> Vec<u8> {
    let names: Vec<Vec<u8>> = tables
        .iter()
        .map(|table| [b"ONLY ".as_slice(), &table.quoted].concat())
        .collect();
    [
        b"LOCK TABLE ".as_slice(),
        &names.join(&b", "[..]),
        b" IN ACCESS SHARE MODE",
        suffix.as_bytes(),
    ]
    .concat()
}

/// The error that names who holds up the dump: who has the lock or, behind a long reader, who
/// waits for it and so makes everybody else wait.
fn blocked(target: &Target, tables: &[Table], timeout: Duration) -> Error {
    let oids: Vec<String> = tables.iter().map(|table| table.oid.to_string()).collect();
    let relations = if oids.is_empty() {
        "l.relation >= 16384".to_owned()
    } else {
        format!("l.relation IN ({})", oids.join(","))
    };
    let who = Client::connect(target).and_then(|mut client| {
        client.query(format!(
            "SELECT l.relation::pg_catalog.regclass::text, a.pid, coalesce(a.usename, '?'), \
             coalesce(nullif(a.application_name, ''), '?'), coalesce(a.state, '?'), \
             coalesce(pg_catalog.date_trunc('second', pg_catalog.now() - a.xact_start)::text, '?') \
             FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a USING (pid) \
             WHERE {relations} AND l.mode = 'AccessExclusiveLock' AND l.database = \
             (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) \
             ORDER BY l.granted DESC LIMIT 3"
        ))
    });
    let who: Vec<String> = who
        .unwrap_or_default()
        .iter()
        .map(|row| {
            let text = |i| String::from_utf8_lossy(row.bytes(i).unwrap_or_default()).into_owned();
            format!(
                "{} by process {} (user {}, {}, {}, for {})",
                text(0),
                text(1),
                text(2),
                text(3),
                text(4),
                text(5)
            )
        })
        .collect();
    let who = if who.is_empty() {
        "a table".to_owned()
    } else {
        who.join("; ")
    };
    Error::failed(format!("a table stayed locked for {} s: {who}", timeout.as_secs()))
        .hint("wait for that transaction, or end it with SELECT pg_terminate_backend(<process>); nothing was written")
}
