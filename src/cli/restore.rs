//! `pgark restore`: a backup into a new database.

use serde_json::json;

use super::args::{Global, Restore};
use super::read::locate;
use super::{note, print, print_json};
use crate::app::App;
use crate::archive::Identities;
use crate::catalog::layout::Part;
use crate::catalog::legacy::check_legacy;
use crate::catalog::list::{Entry, State};
use crate::error::{Error, Result};
use crate::progress::Reporter;
use crate::restore::plan::Work;
use crate::restore::{dump, legacy};
use crate::store::Store;
use crate::units::{BackupKind, ByteSize, stamp};

/// PostgreSQL cuts longer names (NAMEDATALEN - 1).
const NAME_BYTES_MAX: usize = 63;

pub(super) fn restore(app: &App, verb: &Restore, global: &Global) -> Result<()> {
    let (store, mut entry) = locate(app, global, &verb.backup, verb.database.as_deref())?;
    let _reading = app.reading(&entry);
    if entry.kind != BackupKind::Dump {
        return Err(Error::usage(format!(
            "{} holds {}, which is not a database",
            entry.id, entry.kind
        ))
        .hint(format!(
            "run it by hand: pgark cat {} | psql -X -d postgres",
            entry.id
        )));
    }
    let name = verb
        .into
        .clone()
        .unwrap_or_else(|| default_name(entry.database.as_deref().unwrap_or("database")));
    if entry.state == State::Legacy {
        return restore_legacy(app, verb, global, store.as_ref(), &entry, &name);
    }
    let identities = app.unseal(&mut entry)?;
    let source = open(store.as_ref(), &entry, identities)?;
    if verb.dry_run {
        return dry_run(app, global, &entry, &source, &name);
    }
    let target = app.pin(&[])?;
    if !global.quiet {
        note(&format!(
            "restoring {} into database {name:?} on {}",
            entry.id,
            target.describe()
        ));
    }
    let progress = app.progress();
    let reporter = Reporter::start("restore", std::sync::Arc::clone(&progress), global.quiet);
    let result = source.restore(
        &target,
        &name,
        app.config.jobs,
        verb.keep,
        &progress,
        &app.cancel,
    );
    drop(reporter);
    let restored = result?;
    for warning in &restored.warnings {
        note(&format!("warning: {warning}"));
    }
    if global.json {
        return print_json(
            &json!({"backup": entry.id.as_str(), "database": restored.database, "tables": restored.tables,
            "rows": restored.rows, "warnings": restored.warnings}),
        );
    }
    print(&format!(
        "restored {} into {:?}: {} tables, {} rows\n",
        entry.id, name, restored.tables, restored.rows
    ))
}

/// `<database>_restored_<YYYYMMDD_HHMMSS>`, the database's part cut to what a name can hold.
pub(super) fn default_name(database: &str) -> String {
    let suffix = format!("_restored_{}", stamp(crate::clock::now()));
    let mut end = database.len().min(NAME_BYTES_MAX - suffix.len());
    while !database.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{suffix}", &database[..end])
}

/// The dump's index and manifest, for reading its frames.
fn open<'a>(
    store: &'a dyn Store,
    entry: &'a Entry,
    identities: Option<&Identities>,
) -> Result<dump::Source<'a>> {
    let refuse = |reason: &str| {
        Error::damage(format!("{} is not good: {reason}", entry.id))
            .hint("`pgark list` shows the others")
    };
    let manifest = entry
        .manifest
        .as_ref()
        .ok_or_else(|| refuse(entry.reason.as_deref().unwrap_or("it has no manifest")))?;
    if matches!(entry.state, State::Missing) || entry.artefact.is_none() {
        return Err(refuse(
            entry.reason.as_deref().unwrap_or("its artefact is missing"),
        ));
    }
    dump::Source::open(
        store,
        entry.key(Part::Artefact)?,
        &entry.key(Part::Index)?,
        entry.codec,
        manifest,
        identities,
    )
}

fn restore_legacy(
    app: &App,
    verb: &Restore,
    global: &Global,
    store: &dyn Store,
    entry: &Entry,
    name: &str,
) -> Result<()> {
    check_legacy(store, entry)?;
    if verb.dry_run {
        let text = format!(
            "{}: legacy, one stream of {} through psql into {name:?}\n",
            entry.id,
            ByteSize(entry.bytes)
        );
        return if global.json {
            print_json(
                &json!({"backup": entry.id.as_str(), "database": name, "legacy": true, "bytes": entry.bytes}),
            )
        } else {
            print(&text)
        };
    }
    let target = app.pin(&[])?;
    let key = entry.key(Part::Artefact)?;
    let psql = app.tools().newest("psql")?;
    let source = legacy::Source {
        store,
        key: &key,
        codec: entry.codec,
        psql: &psql,
    };
    let progress = app.progress();
    let reporter = Reporter::start("restore", std::sync::Arc::clone(&progress), global.quiet);
    let result = legacy::restore(&source, &target, name, verb.keep, &progress, &app.cancel);
    drop(reporter);
    result?;
    if global.json {
        return print_json(&json!({"backup": entry.id.as_str(), "database": name, "legacy": true}));
    }
    print(&format!("restored {} into {name:?}\n", entry.id))
}

fn dry_run(
    app: &App,
    global: &Global,
    entry: &Entry,
    source: &dump::Source<'_>,
    name: &str,
) -> Result<()> {
    let plan = source.plan(app.config.jobs)?;
    let loads = plan
        .tasks
        .iter()
        .filter(|task| matches!(task.work, Work::Load { .. }))
        .count();
    let statements = plan.first.len()
        + plan.last.len()
        + plan
            .tasks
            .iter()
            .filter(|task| matches!(task.work, Work::Run(_)))
            .count();
    let rows: u64 = plan.rows.values().sum();
    if global.json {
        return print_json(
            &json!({"backup": entry.id.as_str(), "database": name, "raw_bytes": plan.raw_bytes,
            "tables": plan.rows.len(), "rows": rows, "loads": loads, "statements": statements, "jobs": app.config.jobs}),
        );
    }
    print(&format!(
        "would restore {} into new database {name:?} with {} connections:\n  {} statements, {} tables, {rows} rows, {} of SQL in {loads} loads\n",
        entry.id,
        app.config.jobs,
        statements,
        plan.rows.len(),
        ByteSize(plan.raw_bytes)
    ))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_long_name_is_cut_between_characters() {
        let name = super::default_name(&"ü".repeat(31));
        assert!(
            name.len() <= 63 && name.starts_with("üüü") && name.contains("_restored_"),
            "{name}"
        );
    }
}
