//! What `pgark restore` prints: the plan of a dry run, and what was done.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::restore::{Look, Order};
use super::{note, print, print_json};
use crate::error::{Error, Kind, Result};
use crate::postgres::quote_ident;
use crate::restore::dump::{Restored, Source};
use crate::restore::globals::Outcome;
use crate::restore::plan::Work;
use crate::units::ByteSize;

/// Tables that a plan names.
const TABLES_SHOWN: usize = 10;

/// Prints the plan, and then what is in its way: as the restore itself, with its exit code.
pub(super) fn dry_run(order: &Order<'_>, look: Result<Look>) -> Result<()> {
    if order.global.json {
        print_json(&plan_json(order, &look)?)?;
    } else {
        print(&plan_text(order, &look)?)?;
    }
    let look = look?;
    look.report.verdict()?;
    look.view.map_or(Ok(()), |view| {
        view.refuse_sessions(&order.name, order.verb.disconnect)
    })
}

fn plan_json(order: &Order<'_>, look: &Result<Look>) -> Result<Value> {
    let mut value = json!({"backup": order.entry.id.as_str(), "database": order.name, "replace": order.verb.replace});
    if let Some(source) = &order.source {
        put_plan(&mut value, source, order.app.config.jobs)?;
    } else {
        value["legacy"] = json!(true);
        value["bytes"] = json!(order.entry.bytes);
    }
    if let Ok(look) = look {
        value["server"] = json!(look.target.describe());
        value["existing"] = json!(look.place.inside || order.verb.replace);
        value["notes"] = json!(look.report.notes);
        let findings = look.report.findings.iter();
        value["findings"] = findings
            .map(|finding| json!({"what": finding.what, "hint": finding.hint}))
            .collect();
        value["sessions"] = json!(look.view.as_ref().map(|view| &view.sessions));
        if let (Some((id, _)), Some(outcome)) = (&order.globals, &look.globals) {
            value["globals"] = globals_json(id, outcome);
        }
    }
    Ok(value)
}

fn put_plan(value: &mut Value, source: &Source<'_>, jobs: usize) -> Result<()> {
    let plan = source.plan(jobs)?;
    let (loads, statements) = counts(&plan);
    let tables: Vec<Value> = source
        .tables()
        .map(|table| json!({"schema": table.schema, "name": table.name, "rows": table.rows, "bytes": table.bytes}))
        .collect();
    value["raw_bytes"] = json!(plan.raw_bytes);
    value["bytes_to_read"] = json!(source.bytes_to_read());
    value["tables"] = json!(tables.len());
    value["table_list"] = Value::Array(tables);
    value["rows"] = json!(plan.rows.values().sum::<u64>());
    value["loads"] = json!(loads);
    value["statements"] = json!(statements);
    value["jobs"] = json!(jobs);
    value["left_out"] = left_out_json(source);
    Ok(())
}

fn counts(plan: &crate::restore::plan::Plan) -> (usize, usize) {
    let loads = plan
        .tasks
        .iter()
        .filter(|task| matches!(task.work, Work::Load { .. }))
        .count();
    let run = plan
        .tasks
        .iter()
        .filter(|task| matches!(task.work, Work::Run(_)))
        .count();
    (loads, plan.first.len() + plan.last.len() + run)
}

fn plan_text(order: &Order<'_>, look: &Result<Look>) -> Result<String> {
    let mut text = String::new();
    let inside = look.as_ref().is_ok_and(|look| look.place.inside);
    let (id, name) = (&order.entry.id, &order.name);
    if let (
        Some((globals, _)),
        Ok(Look {
            globals: Some(outcome),
            ..
        }),
    ) = (&order.globals, look)
    {
        text.push_str(&globals_text(globals, outcome, true));
    }
    let into = match (order.verb.replace, inside) {
        (true, _) => format!("in place of database {name:?}"),
        (false, true) => format!("into existing database {name:?}"),
        (false, false) => format!("into new database {name:?}"),
    };
    if let Some(source) = &order.source {
        let jobs = if inside { 1 } else { order.app.config.jobs };
        let plural = if jobs == 1 { "" } else { "s" };
        let _ = writeln!(
            text,
            "would restore {id} {into} with {jobs} connection{plural}:"
        );
        put_source(&mut text, source, order)?;
    } else {
        let bytes = ByteSize(order.entry.bytes);
        let _ = writeln!(
            text,
            "{id}: legacy, one stream of {bytes} through psql {into}"
        );
    }
    if let Ok(look) = look {
        put_look(&mut text, order, look);
    }
    Ok(text)
}

fn put_source(text: &mut String, source: &Source<'_>, order: &Order<'_>) -> Result<()> {
    let plan = source.plan(order.app.config.jobs)?;
    let (loads, statements) = counts(&plan);
    let rows: u64 = plan.rows.values().sum();
    let (tables, raw) = (plan.rows.len(), ByteSize(plan.raw_bytes));
    let _ = writeln!(
        text,
        "  {statements} statements, {tables} tables, {rows} rows, {raw} of SQL in {loads} loads"
    );
    let (read, all) = (
        ByteSize(source.bytes_to_read()),
        ByteSize(order.entry.bytes),
    );
    let _ = writeln!(text, "  {read} of {all} are read");
    put_tables(text, source);
    for left in source
        .selection()
        .map_or(&[][..], |selection| &selection.left_out)
    {
        let _ = writeln!(text, "  left out: {}: {}", left.what, left.why);
    }
    Ok(())
}

fn put_look(text: &mut String, order: &Order<'_>, look: &Look) {
    if order.verb.replace {
        let ready = look.view.as_ref().and_then(|view| view.ready.as_ref());
        let first = ready.map_or_else(
            || "beside it, checked, then swapped by rename".to_owned(),
            |ready| format!("{ready:?} holds it already; only the swap is left"),
        );
        let _ = writeln!(
            text,
            "  {first}; the old database is kept as \"{}_replaced_…\"",
            order.name
        );
    }
    let selection = order.source.as_ref().and_then(Source::selection);
    let of_tables = selection.map_or(&[][..], |selection| &selection.notes);
    for said in look.report.notes.iter().chain(of_tables) {
        let _ = writeln!(text, "  note: {said}");
    }
}

fn put_tables(text: &mut String, source: &Source<'_>) {
    let mut tables: Vec<_> = source.tables().collect();
    tables.sort_by_key(|table| std::cmp::Reverse(table.bytes));
    for table in tables.iter().take(TABLES_SHOWN) {
        let _ = writeln!(
            text,
            "    {}.{}  {} rows, {}",
            table.schema,
            table.name,
            table.rows,
            ByteSize(table.bytes)
        );
    }
    if tables.len() > TABLES_SHOWN {
        let _ = writeln!(text, "    and {} smaller ones", tables.len() - TABLES_SHOWN);
    }
}

fn left_out_json(source: &Source<'_>) -> Value {
    let left = source
        .selection()
        .map_or(&[][..], |selection| &selection.left_out);
    left.iter()
        .map(|left| json!({"what": left.what, "why": left.why}))
        .collect()
}

/// Prints what was done; done in part when the target refused something.
pub(super) fn done(
    order: &Order<'_>,
    restored: &Restored,
    kept: Option<&str>,
    globals: Option<&Outcome>,
) -> Result<()> {
    for warning in &restored.warnings {
        note(&format!("warning: {warning}"));
    }
    if let Some(selection) = order.source.as_ref().and_then(Source::selection) {
        for left in &selection.left_out {
            note(&format!("left out: {}: {}", left.what, left.why));
        }
        selection.notes.iter().for_each(|said| note(said));
    }
    let globals = order
        .globals
        .as_ref()
        .map(|(id, _)| id.as_str())
        .zip(globals);
    if order.global.json {
        print_json(&done_json(order, restored, kept, globals))?;
    } else {
        print(&done_text(order, restored, kept, globals))?;
    }
    let of_globals = globals
        .iter()
        .flat_map(|(_, outcome)| outcome.warnings.clone());
    partly(
        &restored
            .refused
            .iter()
            .cloned()
            .chain(of_globals)
            .collect::<Vec<_>>(),
    )
}

fn done_json(
    order: &Order<'_>,
    restored: &Restored,
    kept: Option<&str>,
    globals: Option<(&str, &Outcome)>,
) -> Value {
    let mut value = json!({"backup": order.entry.id.as_str(), "database": restored.database,
        "warnings": restored.warnings, "kept": kept});
    if let Some(source) = &order.source {
        value["tables"] = json!(restored.tables);
        value["rows"] = json!(restored.rows);
        value["bytes_read"] = json!(restored.read_bytes);
        value["left_out"] = left_out_json(source);
        value["refused"] = json!(restored.refused);
    } else {
        value["legacy"] = json!(true);
    }
    if let Some((id, outcome)) = globals {
        value["globals"] = globals_json(id, outcome);
    }
    value
}

fn done_text(
    order: &Order<'_>,
    restored: &Restored,
    kept: Option<&str>,
    globals: Option<(&str, &Outcome)>,
) -> String {
    let (id, name) = (&order.entry.id, &restored.database);
    let mut text = globals.map_or_else(String::new, |(id, outcome)| {
        globals_text(id, outcome, false)
    });
    let what = match &order.source {
        Some(_) => format!(": {} tables, {} rows", restored.tables, restored.rows),
        None => String::new(),
    };
    let _ = match kept {
        None => writeln!(text, "restored {id} into {name:?}{what}"),
        Some(kept) => writeln!(
            text,
            "restored {id} in place of {name:?}{what}\nthe database of before is kept as {kept:?}; when nothing of it is missed:\n  DROP DATABASE {};",
            quote_ident(kept)
        ),
    };
    text
}

/// What could not be restored although the rest was.
pub(super) fn partly(left: &[String]) -> Result<()> {
    if left.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        Kind::Partial,
        format!("done, but for this:\n  - {}", left.join("\n  - ")),
    )
    .hint("the rest is there and checked; mend what the server refused, by hand"))
}

pub(super) fn globals_json(id: &str, outcome: &Outcome) -> Value {
    json!({"id": id, "created": outcome.created, "left_alone": outcome.left_alone, "warnings": outcome.warnings})
}

pub(super) fn globals_text(id: &str, outcome: &Outcome, dry_run: bool) -> String {
    let list = |names: &[String]| {
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        }
    };
    let verb = if dry_run { "would create" } else { "created" };
    format!(
        "{id}: {verb} {}; left alone, for they exist: {}\n",
        list(&outcome.created),
        list(&outcome.left_alone)
    )
}
