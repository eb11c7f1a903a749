//! `pgark restore`: a backup into a new database, in place of an old one, or some tables of it
//! into one that exists.
//!
//! The order is the same for all: choose the backup, look at the server, say what is in the way, and
//! only then begin. A dry run ends after the look.

use super::args::{Global, Restore};
use super::read::{locate, pour};
use super::restore_page as page;
use super::{note, print, print_json};
use crate::app::App;
use crate::archive::Identities;
use crate::catalog::layout::Part;
use crate::catalog::legacy::check_legacy;
use crate::catalog::list::{self, Entry, State};
use crate::error::{Error, Kind, Result};
use crate::postgres::{Client, ConnInfo, Target, refuse_transaction_pooler};
use crate::progress::Reporter;
use crate::restore::compat::Report;
use crate::restore::dump::{Job, Restored, Source};
use crate::restore::globals::{Globals, Outcome};
use crate::restore::replace::{Replacement, View, view};
use crate::restore::{
    Place, admin_connection, exists, free_name, fresh_name, legacy, refuse_existing, space,
};
use crate::store::Store;
use crate::units::BackupKind;

/// What was asked for, and the backup that it means.
pub(super) struct Order<'a> {
    pub app: &'a App,
    pub verb: &'a Restore,
    pub global: &'a Global,
    pub store: &'a dyn Store,
    pub entry: &'a Entry,
    /// The database to make, to replace, or to bring tables into.
    pub name: String,
    /// None for a legacy backup.
    pub source: Option<Source<'a>>,
    pub globals: Option<(String, Globals)>,
}

/// What the look at the server brought.
pub(super) struct Look {
    pub target: Target,
    pub place: Place,
    pub report: Report,
    pub view: Option<View>,
    /// What the globals would do.
    pub globals: Option<Outcome>,
}

pub(super) fn restore(app: &App, verb: &Restore, global: &Global) -> Result<()> {
    let (store, mut entry) = locate(app, global, &verb.backup, verb.database.as_deref())?;
    let _reading = app.reading(&entry);
    let store = store.as_ref();
    match entry.kind {
        BackupKind::Globals => return only_globals(app, verb, global, store, &entry),
        BackupKind::Dump => {}
        BackupKind::Base => {
            return Err(Error::usage(format!(
                "{} holds {}, which is not a database",
                entry.id, entry.kind
            )));
        }
    }
    let identities = app.unseal(&mut entry)?;
    let mut order = order(app, verb, global, (store, identities), &entry)?;
    let look = look(&mut order);
    if verb.dry_run {
        return page::dry_run(&order, look);
    }
    let look = look?;
    for text in &look.report.notes {
        note(text);
    }
    look.report.verdict()?;
    if let Some(view) = &look.view {
        view.refuse_sessions(&order.name, verb.disconnect)?;
    }
    let made = match &order.globals {
        Some((_, globals)) => Some(globals.restore(&mut admin_connection(&look.target)?)?),
        None => None,
    };
    let (restored, kept) = run(&order, &look)?;
    page::done(&order, &restored, kept.as_deref(), made.as_ref())
}

/// The order, with everything read and checked that needs no server.
fn order<'a>(
    app: &'a App,
    verb: &'a Restore,
    global: &'a Global,
    (store, identities): (&'a dyn Store, Option<&Identities>),
    entry: &'a Entry,
) -> Result<Order<'a>> {
    let of = entry.database.as_deref().unwrap_or("database");
    let name = match (&verb.into, verb.replace) {
        (Some(name), _) => name.clone(),
        (None, true) => of.to_owned(),
        (None, false) => fresh_name(of, "restored"),
    };
    let source = if entry.state == State::Legacy {
        if !verb.table.is_empty() {
            return Err(Error::usage(format!("{} is a legacy backup: one stream, of which no table can be taken alone", entry.id))
                .hint("restore it whole into a new database, and copy the table from there: pg_dump -t TABLE NEW | psql OLD"));
        }
        check_legacy(store, entry)?;
        None
    } else {
        Some(open(store, entry, identities)?)
    };
    let globals = if verb.globals {
        Some(belonging(app, store, entry)?)
    } else {
        None
    };
    Ok(Order {
        app,
        verb,
        global,
        store,
        entry,
        name,
        source,
        globals,
    })
}

/// The dump's index and manifest, for reading its frames.
fn open<'a>(
    store: &'a dyn Store,
    entry: &'a Entry,
    identities: Option<&Identities>,
) -> Result<Source<'a>> {
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
    Source::open(
        store,
        entry.key(Part::Artefact)?,
        &entry.key(Part::Index)?,
        entry.codec,
        manifest,
        identities,
    )
}

/// The globals of the same run, which come right after its dumps; else the newest before.
fn belonging(app: &App, store: &dyn Store, dump: &Entry) -> Result<(String, Globals)> {
    let catalog = list::load(store)?;
    let cluster = |entry: &Entry| {
        entry
            .summary
            .as_ref()
            .and_then(|summary| summary.system_identifier.clone())
    };
    let of_cluster = |entry: &&Entry| match (cluster(entry), cluster(dump)) {
        (Some(one), Some(other)) => one == other,
        _ => true,
    };
    let found: Vec<&Entry> = catalog
        .entries
        .iter()
        .filter(|entry| entry.kind == BackupKind::Globals && entry.good)
        .filter(of_cluster)
        .collect();
    // Newest first: the last that is not older than the dump, else the first that is.
    let entry = found
        .iter()
        .rfind(|entry| entry.started_at >= dump.started_at)
        .or(found.first())
        .ok_or_else(|| {
            Error::failed(format!("there are no good globals beside {}", dump.id))
                .hint("without --globals the database is restored alone; its roles must exist then")
        })?;
    Ok((entry.id.to_string(), parse(app, store, entry)?))
}

fn parse(app: &App, store: &dyn Store, entry: &Entry) -> Result<Globals> {
    let (mut script, mut entry) = (Vec::new(), entry.clone());
    entry.complete(store);
    pour(app, store, &mut entry, &mut |bytes| {
        script.extend_from_slice(bytes);
        Ok(())
    })?;
    Globals::parse(&script)
}

/// The server to restore into; not reached, nothing was touched.
fn server(app: &App, verb: &Restore) -> Result<Target> {
    let target = match &verb.server {
        None => app.pin(&[]),
        Some(text) => {
            if ConnInfo::parse(text).is_ok_and(|info| info.get("password").is_some()) {
                note(
                    "warning: a password in --server can be seen by everybody on this machine; ~/.pgpass or a service file keeps it",
                );
            }
            let target = app.elsewhere(text)?;
            app.pin_to(&target, &[target.database().to_owned()])
        }
    };
    target.map_err(|error| match error.kind {
        Kind::Failed => Error {
            kind: Kind::Unreachable,
            ..error
        },
        _ => error,
    })
}

/// Looks at the server and at what is there already. Reads only.
fn look(order: &mut Order<'_>) -> Result<Look> {
    let verb = order.verb;
    let target = server(order.app, verb)?;
    let mut admin = admin_connection(&target)?;
    refuse_transaction_pooler(&mut admin)?;
    let mut report = Report::default();
    let globals = match &order.globals {
        Some((_, globals)) => Some(globals.plan(&mut admin)?),
        None => None,
    };
    let coming = order
        .globals
        .as_ref()
        .map(|(_, globals)| globals.names())
        .unwrap_or_default();
    let view = if verb.replace {
        Some(view(
            &mut admin,
            &order.name,
            order.entry.id.as_str(),
            &mut report,
        )?)
    } else {
        if verb.into.is_none() {
            let of = order.entry.database.as_deref().unwrap_or("database");
            order.name = free_name(&mut admin, of, "restored")?;
        }
        if verb.table.is_empty() {
            refuse_existing(&mut admin, &order.name)?;
        }
        None
    };
    let place = Place {
        name: order.name.clone(),
        inside: !verb.table.is_empty() && exists(&mut admin, &order.name)?,
    };
    let stead = view.as_ref().map(View::properties);
    if let Some(source) = &mut order.source {
        if !verb.table.is_empty() {
            source.select(&verb.table, !place.inside)?;
        }
        source.look(&mut admin, &place, stead, &coming, &mut report)?;
    }
    if view.as_ref().is_none_or(|view| view.ready.is_none()) {
        room(order, &mut admin, view.as_ref(), &mut report)?;
    }
    Ok(Look {
        target,
        place,
        report,
        view,
        globals,
    })
}

fn room(
    order: &Order<'_>,
    admin: &mut Client,
    view: Option<&View>,
    report: &mut Report,
) -> Result<()> {
    let raw_bytes = match &order.source {
        Some(source) => source.tables().map(|table| table.bytes).sum(),
        None => order.entry.bytes,
    };
    let tablespace = view.and_then(|view| view.properties().get("tablespace")?.as_str());
    space::look(
        admin,
        tablespace,
        raw_bytes,
        view.map_or(0, |view| view.bytes),
        report,
    )
}

/// Restores; with `--replace` also the old database's name now.
fn run(order: &Order<'_>, look: &Look) -> Result<(Restored, Option<String>)> {
    let (verb, id) = (order.verb, order.entry.id.as_str());
    if !verb.replace {
        let inside = look.place.inside;
        return Ok((fill(order, look, &order.name, None, inside)?, None));
    }
    let mut replacement = Replacement::begin(&look.target, &order.name, id, verb.disconnect)?;
    for text in &replacement.notes {
        note(text);
    }
    let (new, restored) = if let Some(ready) = replacement.ready.clone() {
        note(&format!(
            "{ready:?} is a finished restore of {id}: only the swap is left"
        ));
        (ready, order.expected())
    } else {
        let new = replacement.new_name()?;
        let restored = fill(order, look, &new, Some(&replacement), false)?;
        (new, restored)
    };
    let restored = Restored {
        database: order.name.clone(),
        ..restored
    };
    let swapped = replacement.swap(&new, &order.app.cancel)?;
    Ok((restored, Some(swapped.kept)))
}

impl Order<'_> {
    /// What a restore that is already done has restored.
    fn expected(&self) -> Restored {
        let Some(source) = &self.source else {
            return Restored::default();
        };
        Restored {
            tables: source.tables().count(),
            rows: source.tables().map(|table| table.rows).sum(),
            ..Restored::default()
        }
    }
}

fn fill(
    order: &Order<'_>,
    look: &Look,
    name: &str,
    replacement: Option<&Replacement>,
    inside: bool,
) -> Result<Restored> {
    let (app, global, id) = (order.app, order.global, &order.entry.id);
    if !global.quiet {
        let into = if inside {
            "existing database"
        } else {
            "database"
        };
        note(&format!(
            "restoring {id} into {into} {name:?} on {}",
            look.target.describe()
        ));
    }
    let progress = app.progress();
    let job = Job {
        target: &look.target,
        name,
        jobs: app.config.jobs,
        keep: order.verb.keep,
        stead: replacement.map(|replacement| &replacement.stead),
        progress: &progress,
        cancel: &app.cancel,
    };
    let _reporter = Reporter::start("restore", std::sync::Arc::clone(&progress), global.quiet);
    match &order.source {
        Some(source) if inside => source.restore_inside(&job),
        Some(source) => source.restore(&job),
        None => {
            let psql = app.tools().newest("psql")?;
            let source = legacy::Source {
                id: id.as_str(),
                store: order.store,
                key: &order.entry.key(Part::Artefact)?,
                codec: order.entry.codec,
                psql: &psql,
            };
            let warnings = legacy::restore(&source, &job)?;
            Ok(Restored {
                database: name.to_owned(),
                warnings,
                ..Restored::default()
            })
        }
    }
}

/// A backup of roles and tablespaces alone.
fn only_globals(
    app: &App,
    verb: &Restore,
    global: &Global,
    store: &dyn Store,
    entry: &Entry,
) -> Result<()> {
    if verb.replace || verb.into.is_some() || !verb.table.is_empty() {
        return Err(Error::usage(format!("{} holds roles and tablespaces, and no database", entry.id))
            .hint("--into, --replace and --table are for a database's backup; --globals beside one restores both"));
    }
    let globals = parse(app, store, entry)?;
    let mut admin = admin_connection(&server(app, verb)?)?;
    let there = admin.server_version_num() / 10_000;
    let source = entry
        .manifest
        .as_ref()
        .map_or(0, |manifest| manifest.server_version_num / 10_000);
    if source > there {
        return Err(Error::new(
            Kind::Unreachable,
            format!(
                "{} is of PostgreSQL {source}, that server is {there}; nothing was touched",
                entry.id
            ),
        )
        .hint(format!("restore it into PostgreSQL {source} or later")));
    }
    let outcome = if verb.dry_run {
        globals.plan(&mut admin)?
    } else {
        globals.restore(&mut admin)?
    };
    if global.json {
        print_json(&page::globals_json(entry.id.as_str(), &outcome))?;
    } else {
        print(&page::globals_text(
            entry.id.as_str(),
            &outcome,
            verb.dry_run,
        ))?;
    }
    page::partly(&outcome.warnings)
}
