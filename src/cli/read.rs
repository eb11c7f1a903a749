//! `pgark list`, `show`, `verify`, `cat`: what reads the store and no database.

use std::cell::Cell;
use std::collections::HashMap;
use std::io::{Read, Write};

use serde_json::json;

use super::args::{Cat, Global, List, Show, Verify};
use super::clusters::Out;
use super::render::Listed;
use super::{note, print, print_json, render};
use crate::app::App;
use crate::archive::{Artefact, Identities, Index, StoreReader, codec};
use crate::catalog::layout::Part;
use crate::catalog::legacy::check_legacy;
use crate::catalog::list::{Catalog, Entry, State};
use crate::error::{Error, Kind, Result};
use crate::progress::Reporter;
use crate::store::Store;
use crate::units::{BackupId, BackupKind};
use crate::verify::{self as check};

pub(super) fn list(apps: &[App], verb: &List, global: &Global) -> Result<()> {
    let (mut listed, mut refused) = (Vec::new(), None);
    for app in apps {
        match self::listed(app, global) {
            Ok(more) => listed.extend(more),
            Err(error) if apps.len() == 1 => return Err(error),
            // The other clusters are listed all the same.
            Err(error) => {
                note(&format!("{}{error}", app.whose()));
                refused.get_or_insert_with(|| app.config.cluster.clone());
            }
        }
    }
    listed.sort_by(|a: &Listed, b| {
        (b.entry.started_at, &b.entry.id).cmp(&(a.entry.started_at, &a.entry.id))
    });
    if let Some(before) = verb.before {
        listed.retain(|one| one.entry.started_at < before);
    }
    if global.json {
        let array = listed
            .iter()
            .map(|one| render::entry_json(&one.entry, &one.stores, &one.prefix))
            .collect();
        print_json(&serde_json::Value::Array(array))?;
    } else if listed.is_empty() {
        say_empty(apps, global);
    } else {
        print(&render::list(&listed))?;
    }
    refused.map_or(Ok(()), |cluster| {
        let text = format!("not every cluster could be listed: {cluster}");
        Err(Error::new(Kind::Partial, text).hint("why is said above"))
    })
}

fn say_empty(apps: &[App], global: &Global) {
    for app in apps {
        let names = match &global.store {
            Some(name) => name.clone(),
            None => app.store_names().join(" and "),
        };
        let whose = app.whose();
        let dir = app
            .config
            .has_local()
            .then(|| format!(" ({})", app.config.dir.display()));
        note(&format!(
            "{whose}no backups in {names}{}",
            dir.unwrap_or_default()
        ));
    }
}

/// The backups of the wanted store, or of all, with the names of the stores that hold each. The
/// better copy tells the state. A store beside the first that is away costs its column.
fn listed(app: &App, global: &Global) -> Result<Vec<Listed>> {
    let mut listed: Vec<Listed> = Vec::new();
    let mut places: HashMap<BackupId, usize> = HashMap::new();
    // `--store` may name one that there is not.
    let wanted = global.store.as_deref();
    app.check_store(wanted)?;
    for name in app.store_names() {
        if wanted.is_some_and(|wanted| wanted != name) {
            continue;
        }
        let catalog = match app.catalog(Some(name)) {
            Ok((_, catalog)) => catalog,
            Err(error) if name != app.first() && wanted.is_none() => {
                let whose = app.whose();
                note(&format!(
                    "warning: {whose}{name} cannot be listed: {}",
                    error.fact
                ));
                continue;
            }
            Err(error) => return Err(error),
        };
        for entry in catalog.entries {
            let holds = entry.artefact.is_some().then(|| name.to_owned());
            if let Some(known) = places.get(&entry.id).map(|&at| &mut listed[at]) {
                known.stores.extend(holds);
                if entry.good && !known.entry.good {
                    known.entry = entry;
                }
                continue;
            }
            places.insert(entry.id.clone(), listed.len());
            listed.push(Listed {
                prefix: app.prefix(),
                entry,
                stores: holds.into_iter().collect(),
            });
        }
    }
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
        let mut entry = catalog.find(backup)?.clone();
        entry.complete(store);
        if entry.state == State::Suspect {
            let how = entry.reason.as_deref().unwrap_or_default();
            note(&format!("warning: {} is suspect: {how}", entry.id));
        }
        return Ok(entry);
    }
    let (entry, skipped) = catalog.latest_good(store, BackupKind::Dump, database)?;
    for newer in skipped {
        let state = newer.state.to_string();
        let reason = newer.reason.as_deref().unwrap_or(&state);
        let suspect = if newer.state == State::Suspect {
            "suspect: "
        } else {
            ""
        };
        note(&format!("passed over {}: {suspect}{reason}", newer.id));
    }
    Ok(entry)
}

/// The backup and the store that it is read from: the wanted one, else the first; another where
/// the first has it not, or not whole.
pub(super) fn locate(
    app: &App,
    global: &Global,
    backup: &str,
    database: Option<&str>,
) -> Result<(Box<dyn Store>, Entry)> {
    let backup = app.own_id(backup);
    let ambiguous = Cell::new(false);
    let find = |store: Option<&str>| {
        let (store, mut catalog) = app.catalog(store)?;
        let entry = choose(store.as_ref(), &mut catalog, backup, database);
        let usage = entry.as_ref().is_err_and(|error| error.kind == Kind::Usage);
        ambiguous.set(usage && backup == "latest");
        Ok((store, entry?))
    };
    let wanted = global.store.as_deref();
    let found = find(wanted);
    // Another store, which lacks some databases as yet, must not decide which one is meant.
    if ambiguous.get() {
        return found;
    }
    let whole = |entry: &Entry| entry.is_whole() || entry.state == State::Legacy;
    let good = matches!(&found, Ok((_, entry)) if whole(entry));
    if good || wanted.is_some() {
        return found;
    }
    for name in app.others() {
        match find(Some(name)) {
            Ok((store, entry)) if whole(&entry) => {
                note(&format!("{} is read from {}", entry.id, store.describe()));
                return Ok((store, entry));
            }
            _ => {}
        }
    }
    found
}

pub(super) fn show(app: &App, verb: &Show, global: &Global) -> Result<()> {
    let (store, mut entry) = locate(app, global, &verb.backup, None)?;
    // What it is needs no key; what is in it does.
    if app.config.encryption.identity.is_some() {
        app.unseal(&mut entry)?;
    }
    if global.json {
        let mut value = render::entry_json(&entry, &[store.name()], &app.prefix());
        value["manifest"] = serde_json::to_value(&entry.manifest).unwrap_or_default();
        return print_json(&value);
    }
    print(&render::page(&entry, &store.describe()))
}

pub(super) fn verify(app: &App, verb: &Verify, global: &Global, out: &mut Out<'_>) -> Result<()> {
    let prefix = app.prefix();
    let (store, mut catalog) = app.catalog(global.store.as_deref())?;
    let entries = if verb.all {
        catalog.entries.clone()
    } else {
        // Damage is what verify looks for: `latest` is the newest, good or not.
        match app.own_id(&verb.backup) {
            "latest" => vec![newest(&catalog)?],
            id => vec![choose(store.as_ref(), &mut catalog, id, None)?],
        }
    };
    if entries.is_empty() {
        note(&format!("no backups in {}", store.describe()));
    }
    let identities = if entries.iter().any(|entry| entry.encrypted) {
        app.identities()?
    } else {
        None
    };
    let (mut results, mut damaged, mut unread) = (vec![], vec![], None);
    for entry in &entries {
        let result = read_back(app, store.as_ref(), entry, identities, global.quiet);
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
            let content = result.is_ok() && !check::is_shallow(entry, identities);
            results.push(json!({"id": format!("{prefix}{}", entry.id), "ok": result.is_ok(), "content": content, "detail": text}));
        } else {
            print(&format!("{prefix}{}  {word}  {text}\n", entry.id))?;
        }
    }
    if global.json {
        out.json(serde_json::Value::Array(results));
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

fn read_back(
    app: &App,
    store: &dyn Store,
    entry: &Entry,
    identities: Option<&Identities>,
    quiet: bool,
) -> Result<String> {
    let progress = app.progress();
    let _reading = app.reading(entry);
    let _reporter = Reporter::start("verify", std::sync::Arc::clone(&progress), quiet);
    let jobs = app.config.jobs;
    check::entry(store, entry, identities, jobs, &progress, &app.cancel)
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
    let (store, mut entry) = locate(app, global, &verb.backup, None)?;
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
    let result = pour(app, store.as_ref(), &mut entry, &mut out).and_then(|()| out(&[]));
    if closed { Ok(()) } else { result }
}

/// Hands the whole text of a backup to `out`.
pub(super) fn pour(
    app: &App,
    store: &dyn Store,
    entry: &mut Entry,
    out: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let key = entry.key(Part::Artefact)?;
    let identities = match &entry.manifest {
        Some(_) => app.unseal(entry)?,
        None => None,
    };
    let index = entry.manifest.as_ref();
    if let Some(record) = index.and_then(|manifest| manifest.index.as_ref()) {
        let index_key = entry.key(Part::Index)?;
        let index = Index::read(store, &index_key, &record.sha256, identities)?;
        let artefact = Artefact::open(store, key, entry.codec, identities)?;
        return artefact.stream(&index, app.config.jobs, &mut |raw, _| out(raw));
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
