//! Takes a dump: one database as one SQL script in compressed frames, in parallel.
//!
//! The order of the file: head, drop block, everything before the data, rows and large objects,
//! everything after the data, rights, event triggers and materialised views, the database's
//! properties, tail. pg_dump gives the statements (`schema`, `toc`, `render`), pgark's own
//! connections copy the rows (`rows`) under one snapshot (`snapshot`).
//!
//! Invariants: nothing exists on the store before the manifest is written; every failure
//! before that leaves at most temporary names, which the next run clears. The holder's
//! transaction, and with it every lock, lives until the last row is copied. Dropping the
//! future work: cancelling closes all connections, and nothing is committed.

mod begin;
mod commit;
mod drops;
mod globals;
mod objects;
mod oversize;
mod properties;
mod render;
mod rows;
mod schema;
mod script;
mod snapshot;
mod toc;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use self::rows::Copied;
use self::script::{Envelope, Statements};
use self::snapshot::Snapshot;
use self::toc::Toc;
use crate::archive::script::{Meaning, Part, Role, Stage};
use crate::archive::{Crypt, FrameSender, Written};
use crate::backup::gate::Gate;
use crate::cancel::Token;
use crate::catalog::commit::free_id;
use crate::catalog::manifest::{Manifest, NamedVersion, ObjectCount, TableCount};
use crate::error::{Error, Kind, Result};
use crate::postgres::tools::Tools;
use crate::postgres::{Client, Target, patience};
use crate::progress::Progress;
use crate::store::Store;
use crate::units::{BackupId, BackupKind, Codec};

/// Times that a dump is taken anew when tables changed under it after it had begun.
const ATTEMPTS: u32 = 5;

/// How to take a dump.
#[derive(Clone)]
pub struct Options {
    /// Name of the cluster in the configuration.
    pub cluster: String,
    pub codec: Codec,
    pub crypt: Crypt,
    /// Connections that copy, and threads that compress.
    pub jobs: usize,
    pub lock_timeout: Duration,
    pub started_at: Timestamp,
}

/// What a dump needs around it.
pub struct Run<'a> {
    pub store: &'a dyn Store,
    pub tools: &'a Tools,
    pub progress: Arc<Progress>,
    pub cancel: &'a Token,
    /// Told of what is no failure: a sentence for people.
    pub say: &'a dyn Fn(&str),
    /// Told the id before anything is written under it.
    pub announce: &'a mut dyn FnMut(&BackupId) -> Result<()>,
    pub gate: &'a Gate<'a>,
}

/// Dumps the database that `target` names and commits the backup.
///
/// # Errors
/// `Failed` with the table, object or program at fault; `Signal` when cancelled. Nothing is
/// committed then.
pub fn take(target: &Target, options: &Options, run: &mut Run<'_>) -> Result<Manifest> {
    let mut attempt = 1;
    loop {
        match take_once(target, options, run) {
            // A table changed between the snapshot and its lock in a way that only its reader saw.
            Err(error) if attempt < ATTEMPTS && is_changed_table(&error) => attempt += 1,
            // What a signal broke off fails in many ways; the signal is the reason. A backup that is
            // committed, but for its `.sha256`, stays one.
            Err(error) if error.kind != Kind::Partial && run.cancel.check().is_err() => {
                return run.cancel.check().and(Err(error));
            }
            result => {
                return result
                    .map_err(|error| error.context(format!("database {}", target.database())));
            }
        }
    }
}

fn is_changed_table(error: &Error) -> bool {
    matches!(error.sqlstate.as_deref(), Some("42703" | "42P01" | "3F000"))
}

/// The backup's moment is asked for when its snapshot stands: nothing in it is younger.
fn take_once(target: &Target, options: &Options, run: &mut Run<'_>) -> Result<Manifest> {
    let (mut snapshot, schema, hook) = begin::begin(target, options, run)?;
    let version_num = snapshot.holder.server_version_num();
    let properties = properties::read(&mut snapshot.holder)?;
    let names = table_names(&snapshot);
    run.progress
        .add_expected(snapshot.tables.values().map(|table| table.bytes).sum());

    let database = target.database().to_owned();
    let make = |time| BackupId::dump(&database, time);
    let (id, started_at) = free_id(run.store, &make, crate::clock::now())?;
    (run.announce)(&id)?;
    let writer = commit::begin(run.store, &id, options, options.jobs, &run.progress)?;
    let sender = writer.sender();
    let envelope = Envelope::new(version_num)?;
    let about = about(&database, &schema.toc, started_at);
    let stages = render::stages(&schema.toc.entries);
    let mut statements = Statements::new(&sender);
    statements.block(
        Role::Head,
        &[envelope.head(&about), session_settings(&schema.toc)].concat(),
    )?;
    statements.block(
        Role::Drop,
        &drops::block(&mut snapshot.holder, &schema.toc)?,
    )?;
    write_entries(
        &mut statements,
        &schema.toc,
        &stages,
        &[Stage::Pre, Stage::Data],
    )?;
    statements.flush()?;
    let copied = rows::copy_all(&mut snapshot, &schema.toc, options.jobs, &sender, run)?;
    snapshot::ensure_unchanged(&mut snapshot)?;
    let extensions = extensions(&mut snapshot.holder)?;
    let system_identifier = system_identifier(&mut snapshot.holder);
    drop((snapshot, hook));
    for stage in [Stage::Post, Stage::Rights, Stage::Last] {
        write_entries(&mut statements, &schema.toc, &stages, &[stage])?;
    }
    statements.block(Role::Properties, &properties.block)?;
    let row_total: u64 = copied.tables.values().map(|count| count.rows).sum();
    let tables = table_counts(&schema.toc, &names, &copied);
    let complete = format!("{} tables, {row_total} rows", tables.len());
    statements.block(Role::Tail, &envelope.tail(&complete))?;
    statements.flush()?;
    drop(statements);
    drop(sender);
    let written = writer.finish()?;
    run.cancel.check()?;
    let manifest = Manifest {
        system_identifier,
        database: Some(database),
        server_version: schema.toc.server_version,
        server_version_num: version_num,
        dump_program: format!("pg_dump {}", schema.toc.program_version),
        rows: row_total,
        tables,
        large_objects: Some(ObjectCount {
            count: copied.objects,
            bytes: copied.object_bytes,
        }),
        entries: schema.toc.entries.len() as u64,
        properties: Some(properties.manifest),
        extensions,
        warnings: schema.warnings,
        ..blank(id, &written, options, started_at)
    };
    commit::commit(run.store, written, manifest, &options.crypt, run.gate)
}

/// The script's first words.
fn about(database: &str, toc: &Toc, started_at: Timestamp) -> String {
    format!(
        "dump of database {database:?}, PostgreSQL {}, {started_at}, pgark {}",
        toc.server_version,
        env!("CARGO_PKG_VERSION")
    )
}

/// A manifest with what is the same for every kind.
fn blank(id: BackupId, written: &Written, options: &Options, started_at: Timestamp) -> Manifest {
    let mut manifest = Manifest::new(id, options.codec, started_at, crate::clock::now());
    manifest.cluster.clone_from(&options.cluster);
    manifest.raw_bytes = written.raw_bytes;
    manifest.frames = written.frames;
    manifest
}

/// What pg_dump sets at the head of its scripts (`_doSetFixedOutputState`), with additions:
/// the target's own defaults must not make it read-only or read money otherwise, and settings that older servers do not
/// know are set only where they exist.
fn session_settings(toc: &Toc) -> Vec<u8> {
    let mut sql = b"SET statement_timeout = 0;\nSET lock_timeout = 0;\nSET idle_in_transaction_session_timeout = 0;\n\
        SET default_transaction_read_only = off;\nSET lc_monetary = 'C';\n"
        .to_vec();
    for desc in ["ENCODING", "STDSTRINGS"] {
        for entry in toc.entries.iter().filter(|entry| entry.desc == desc) {
            sql.extend_from_slice(&entry.definition);
        }
    }
    sql.extend_from_slice(
        b"SELECT pg_catalog.set_config('search_path', '', false);\n\
        SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings\n  \
        WHERE name IN ('transaction_timeout', 'idle_session_timeout');\n\
        -- An event trigger of the target could refuse the drops half-way.\n\
        SELECT pg_catalog.set_config(name, 'off', false) FROM pg_catalog.pg_settings\n  \
        WHERE name = 'event_triggers' AND (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user);\n\
        SET check_function_bodies = false;\nSET xmloption = content;\nSET client_min_messages = warning;\n\
        SET row_security = off;\nSET default_tablespace = '';\nSET default_table_access_method = heap;\n",
    );
    sql
}

fn write_entries(
    statements: &mut Statements<'_>,
    toc: &Toc,
    stages: &[Stage],
    wanted: &[Stage],
) -> Result<()> {
    for (entry, &stage) in toc.entries.iter().zip(stages) {
        if !wanted.contains(&stage) {
            continue;
        }
        let sql = if render::is_statement(entry) {
            render::render(toc, entry)?
        } else {
            Vec::new()
        };
        let part = Part {
            at: 0,
            len: 0,
            role: Role::Entry,
            stage,
            id: entry.dump_id,
            desc: entry.desc.clone(),
            name: entry.display_name(),
            deps: entry.dependencies.clone(),
        };
        statements.add(part, &sql)?;
    }
    Ok(())
}

type Names = std::collections::HashMap<u32, (String, String)>;

fn table_names(snapshot: &Snapshot) -> Names {
    snapshot
        .tables
        .values()
        .map(|table| (table.oid, (table.schema.clone(), table.name.clone())))
        .collect()
}

fn table_counts(toc: &Toc, names: &Names, copied: &Copied) -> Vec<TableCount> {
    toc.entries
        .iter()
        .filter(|entry| entry.desc == "TABLE DATA")
        .map(|entry| {
            let (schema, name) = names.get(&entry.oid).cloned().unwrap_or_default();
            let count = copied
                .tables
                .get(&entry.dump_id)
                .copied()
                .unwrap_or_default();
            TableCount {
                id: entry.dump_id,
                schema,
                name,
                rows: count.rows,
                bytes: count.bytes,
            }
        })
        .collect()
}

fn extensions(holder: &mut Client) -> Result<Vec<NamedVersion>> {
    let rows =
        holder.query("SELECT extname, extversion FROM pg_catalog.pg_extension ORDER BY 1")?;
    rows.iter()
        .map(|row| {
            Ok(NamedVersion {
                name: row.str(0)?.to_owned(),
                version: row.str(1)?.to_owned(),
            })
        })
        .collect()
}

/// Managed servers may forbid the question; the backup is as good without the answer.
fn system_identifier(holder: &mut Client) -> Option<String> {
    let rows = holder
        .query("SELECT system_identifier FROM pg_catalog.pg_control_system()")
        .ok()?;
    rows.first()?.opt_str(0).map(str::to_owned)
}

/// Takes the cluster's globals. Returns the manifest and what there is to say once.
///
/// # Errors
/// `Failed` with what pg_dumpall said; nothing is committed then.
pub fn take_globals(
    target: &Target,
    options: &Options,
    run: &mut Run<'_>,
) -> Result<(Manifest, Option<String>)> {
    let mut client = patience::connect(target, run.cancel)?;
    let version_num = client.server_version_num();
    let program = run.tools.pick("pg_dumpall", version_num)?;
    let can_read =
        client.query("SELECT pg_catalog.has_table_privilege('pg_catalog.pg_authid', 'SELECT')")?;
    let can_read = can_read.first().map_or(Ok(false), |row| row.bool(0))?;
    let envelope = Envelope::new(version_num)?;
    let globals = globals::read(&program, &client.pinned(), can_read, &envelope, run.cancel)?;

    let (id, started_at) = free_id(run.store, &BackupId::globals, crate::clock::now())?;
    (run.announce)(&id)?;
    let writer = commit::begin(run.store, &id, options, 1, &run.progress)?;
    let sender = writer.sender();
    let server_version = client
        .parameter("server_version")
        .unwrap_or_default()
        .to_owned();
    let about = format!("roles and tablespaces, PostgreSQL {server_version}, {started_at}");
    send_text(
        &sender,
        &[
            envelope.head(&about),
            globals.sql,
            envelope.tail("roles and tablespaces"),
        ]
        .concat(),
    )?;
    drop(sender);
    let written = writer.finish()?;
    let manifest = Manifest {
        system_identifier: system_identifier(&mut client),
        server_version,
        server_version_num: version_num,
        dump_program: format!("pg_dumpall {}", program.version_text),
        warnings: globals
            .warnings
            .into_iter()
            .chain(globals.notice.clone())
            .collect(),
        ..blank(id, &written, options, started_at)
    };
    debug_assert_eq!(manifest.kind, BackupKind::Globals);
    Ok((
        commit::commit(run.store, written, manifest, &options.crypt, run.gate)?,
        globals.notice,
    ))
}

fn send_text(sender: &FrameSender, text: &[u8]) -> Result<()> {
    for chunk in text.chunks(crate::archive::script::FRAME_RAW_BYTES) {
        sender.send(chunk.to_vec(), Meaning::Text.to_json()?)?;
    }
    Ok(())
}
