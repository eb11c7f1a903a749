//! `pgark list`, `show`, `verify`, `cat`: what reads the store and no database.

use std::io::{Read, Write};

use serde_json::json;

use super::args::{Cat, Global, List, Show, Verify};
use super::{note, print, print_json, render};
use crate::app::{App, LOCAL, S3};
use crate::archive::{Index, StoreReader, codec, reader};
use crate::catalog::layout::Part;
use crate::catalog::legacy::check_legacy;
use crate::catalog::list::{Catalog, Entry, State};
use crate::error::{Error, Kind, Result};
use crate::progress::Reporter;
use crate::store::Store;
use crate::units::BackupKind;
use crate::verify::{self as check};

pub(super) fn list(app: &App, verb: &List, global: &Global) -> Result<()> {
    let mut listed = listed(app, global)?;
    if let Some(before) = verb.before {
        listed.retain(|(entry, _)| entry.started_at < before);
    }
    if global.json {
        let array = listed
            .iter()
            .map(|(entry, stores)| render::entry_json(entry, stores))
            .collect();
        return print_json(&serde_json::Value::Array(array));
    }
    if listed.is_empty() {
        let names = global
            .store
            .as_deref()
            .map_or_else(|| app.store_names().join(" and "), str::to_owned);
        note(&format!(
            "no backups in {names} ({})",
            app.config.dir.display()
        ));
        return Ok(());
    }
    print(&render::list(&listed))
}

/// The backups of the wanted store, or of all, newest first, with the names of the stores that
/// hold each. The better copy tells the state. A second store that is away costs its column.
fn listed(app: &App, global: &Global) -> Result<Vec<(Entry, Vec<&'static str>)>> {
    let names = app.store_names();
    let mut listed: Vec<(Entry, Vec<&'static str>)> = Vec::new();
    for name in names {
        let wanted = global.store.as_deref();
        if wanted.is_some_and(|wanted| wanted != name) {
            continue;
        }
        let catalog = match app.catalog(Some(name)) {
            Ok((_, catalog)) => catalog,
            Err(error) if name != LOCAL && wanted.is_none() => {
                note(&format!("warning: {name} cannot be listed: {}", error.fact));
                continue;
            }
            Err(error) => return Err(error),
        };
        for entry in catalog.entries {
            let holds: &[&'static str] = if entry.artefact.is_some() {
                &[name]
            } else {
                &[]
            };
            match listed.iter_mut().find(|(known, _)| known.id == entry.id) {
                Some((known, stores)) => {
                    stores.extend(holds);
                    if entry.good && !known.good {
                        *known = entry;
                    }
                }
                None => listed.push((entry, holds.to_vec())),
            }
        }
    }
    // `--store` may name one that there is not.
    app.store(global.store.as_deref().filter(|name| *name != LOCAL))?;
    listed.sort_by(|(a, _), (b, _)| (b.started_at, &b.id).cmp(&(a.started_at, &a.id)));
    Ok(listed)
}

/// The entry that `BACKUP` means; `latest` names the newer ones that it passed over.
pub(super) fn choose(
    store: &dyn Store,
    catalog: &mut Catalog,
    backup: &str,
    database: Option<&str>,
) -> Result<Entry> {
    if backup != "latest" {
        // With one cluster, its name before the id is no error.
        let id = backup.strip_prefix("main/").unwrap_or(backup);
        return catalog.find(id).cloned();
    }
    let (entry, skipped) = catalog.latest_good(store, BackupKind::Dump, database)?;
    for newer in skipped {
        let state = newer.state.to_string();
        let reason = newer.reason.as_deref().unwrap_or(&state);
        note(&format!("passed over {}: {reason}", newer.id));
    }
    Ok(entry)
}

/// The backup and the store that it is read from: the wanted one, else the local one; the second
/// one where the local one has it not, or not whole.
pub(super) fn locate(
    app: &App,
    global: &Global,
    backup: &str,
    database: Option<&str>,
) -> Result<(Box<dyn Store>, Entry)> {
    let find = |store: Option<&str>| {
        let (store, mut catalog) = app.catalog(store)?;
        let entry = choose(store.as_ref(), &mut catalog, backup, database)?;
        Ok((store, entry))
    };
    let wanted = global.store.as_deref();
    let found = find(wanted);
    let whole = |entry: &Entry| entry.good || entry.state == State::Legacy;
    let good = matches!(&found, Ok((_, entry)) if whole(entry));
    if good || wanted.is_some() || app.config.s3.is_none() {
        return found;
    }
    match find(Some(S3)) {
        Ok((store, entry)) if whole(&entry) => {
            note(&format!("{} is read from {}", entry.id, store.describe()));
            Ok((store, entry))
        }
        _ => found,
    }
}

pub(super) fn show(app: &App, verb: &Show, global: &Global) -> Result<()> {
    let (store, entry) = locate(app, global, &verb.backup, None)?;
    if global.json {
        let mut value = render::entry_json(&entry, &[store.name()]);
        value["manifest"] = serde_json::to_value(&entry.manifest).unwrap_or_default();
        return print_json(&value);
    }
    print(&render::page(&entry, &store.describe()))
}

pub(super) fn verify(app: &App, verb: &Verify, global: &Global) -> Result<()> {
    let (store, mut catalog) = app.catalog(global.store.as_deref())?;
    let entries = if verb.all {
        catalog.entries.clone()
    } else {
        // Damage is what verify looks for: `latest` is the newest, good or not.
        match verb.backup.as_str() {
            "latest" => vec![newest(&catalog)?],
            id => vec![choose(store.as_ref(), &mut catalog, id, None)?],
        }
    };
    if entries.is_empty() {
        note(&format!("no backups in {}", store.describe()));
    }
    let (mut results, mut damaged, mut unread) = (Vec::new(), Vec::new(), None);
    for entry in &entries {
        let progress = app.progress();
        let _reading = app.reading(entry);
        let reporter = Reporter::start("verify", std::sync::Arc::clone(&progress), global.quiet);
        let result = check::entry(
            store.as_ref(),
            entry,
            app.config.jobs,
            &progress,
            &app.cancel,
        );
        drop(reporter);
        let (word, text) = match &result {
            Ok(text) => ("good", text.clone()),
            Err(error) if matches!(error.kind, Kind::Damage) => {
                damaged.push(format!("{}: {}", entry.id, error.fact));
                ("DAMAGED", error.fact.clone())
            }
            Err(error) if matches!(error.kind, Kind::Signal(_)) => return Err(error.clone()),
            // Not damage (a newer format, a disk that does not read): the others go on.
            Err(error) => {
                unread.get_or_insert_with(|| error.clone());
                ("NOT VERIFIED", error.fact.clone())
            }
        };
        if global.json {
            results.push(json!({"id": entry.id.as_str(), "ok": result.is_ok(), "detail": text}));
        } else {
            print(&format!("{}  {word}  {text}\n", entry.id))?;
        }
    }
    if global.json {
        print_json(&serde_json::Value::Array(results))?;
    }
    if damaged.is_empty() {
        return unread.map_or(Ok(()), Err);
    }
    Err(Error::damage(format!(
        "{} of {} backups are damaged: {}",
        damaged.len(),
        entries.len(),
        damaged.join("; ")
    ))
    .hint("`pgark list` shows the others; take a new backup now"))
}

fn newest(catalog: &Catalog) -> Result<Entry> {
    let dumps = catalog
        .entries
        .iter()
        .filter(|entry| entry.kind == BackupKind::Dump);
    dumps
        .max_by_key(|entry| entry.started_at)
        .cloned()
        .ok_or_else(|| {
            Error::failed("there is no backup to verify")
                .hint("`pgark backup` takes one; --dir names another directory")
        })
}

pub(super) fn cat(app: &App, verb: &Cat, global: &Global) -> Result<()> {
    let (store, entry) = locate(app, global, &verb.backup, None)?;
    let _reading = app.reading(&entry);
    let mut closed = false;
    let mut stdout = std::io::stdout().lock();
    let mut out = |bytes: &[u8]| {
        let written = if bytes.is_empty() {
            stdout.flush()
        } else {
            stdout.write_all(bytes)
        };
        match written {
            Err(error) => {
                // `| head` has what it wants: the end, but no failure.
                closed = error.kind() == std::io::ErrorKind::BrokenPipe;
                Err(Error::failed(format!("cannot write to stdout: {error}")))
            }
            Ok(()) => app.cancel.check(),
        }
    };
    let result = pour(app, store.as_ref(), &entry, &mut out).and_then(|()| out(&[]));
    if closed { Ok(()) } else { result }
}

/// Hands the whole text of a backup to `out`.
pub(super) fn pour(
    app: &App,
    store: &dyn Store,
    entry: &Entry,
    out: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let key = entry.key(Part::Artefact)?;
    let index = entry.manifest.as_ref();
    if let Some(record) = index.and_then(|manifest| manifest.index.as_ref()) {
        let index = Index::read(store, &entry.key(Part::Index)?, &record.sha256)?;
        check_size(entry, &index)?;
        let (codec, jobs) = (entry.codec, app.config.jobs);
        return reader::stream(store, &key, codec, &index, jobs, &mut |raw, _| out(raw));
    }
    if entry.state != State::Legacy {
        let reason = entry.reason.as_deref().unwrap_or("it has no manifest");
        return Err(Error::damage(format!("{} is not good: {reason}", entry.id))
            .hint("by hand, at your own risk: gunzip -c FILE; `pgark list` shows other backups"));
    }
    check_legacy(store, entry)?;
    let mut input = codec::decoder(entry.codec, StoreReader::open(store, &key)?)?;
    let mut chunk = vec![0; 256 << 10];
    loop {
        let count = input
            .read(&mut chunk)
            .map_err(|error| Error::damage(format!("{key}: {error}")))?;
        if count == 0 {
            return Ok(());
        }
        out(&chunk[..count])?;
    }
}

fn check_size(entry: &Entry, index: &Index) -> Result<()> {
    let end = index
        .frames
        .last()
        .map_or(0, |frame| frame.offset + frame.bytes);
    if entry
        .artefact
        .as_ref()
        .is_some_and(|object| object.bytes == end)
    {
        return Ok(());
    }
    Err(Error::damage(format!(
        "{} is not as long as its index says",
        entry.id
    )))
}
