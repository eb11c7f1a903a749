//! `pgark accept`: a person says that a suspect backup is as it should be.
//!
//! Invariant: the word is written beside the backup in every store that holds it; a store that is
//! away gets it with the next `replicate`. Nothing else changes: no manifest, no artefact.

use serde_json::json;

use super::args::{Accept, Global};
use super::{note, print, print_json};
use crate::app::App;
use crate::backup::gate;
use crate::catalog::layout::Outcome;
use crate::catalog::list::{Entry, State};
use crate::catalog::state;
use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::service::report::Report;

/// What was found and done in the stores.
#[derive(Default)]
struct Done {
    /// Ids, each once.
    accepted: Vec<String>,
    /// The backup that was named, as the first store that has it knows it.
    known: Option<Entry>,
    unknown: Option<Error>,
    /// Why another store was not told.
    away: Option<Error>,
}

pub(super) fn accept(app: &App, verb: &Accept, global: &Global) -> Result<()> {
    let names = match global.store.as_deref() {
        Some(name) => vec![name],
        None => app.store_names(),
    };
    let id = app.own_id(&verb.backup);
    let mut done = Done::default();
    for name in names {
        match accept_in(app, name, id, &mut done) {
            Err(error) if name != app.first() && global.store.is_none() => done.away = Some(error),
            result => result?,
        }
    }
    let Some(entry) = done.known else {
        let why = done.unknown.or(done.away);
        return Err(why.unwrap_or_else(|| Error::usage("there is no store")));
    };
    let accepted = done.accepted;
    if accepted.is_empty() {
        refuse(&entry)?;
    }
    record(app, &accepted);
    if global.json {
        print_json(&json!({"accepted": accepted}))?;
    } else {
        accepted
            .iter()
            .try_for_each(|id| print(&format!("{id}\n")))?;
    }
    let Some(error) = done.away else {
        return Ok(());
    };
    let fact = format!(
        "accepted here, but another store was not told: {}",
        error.fact
    );
    Err(Error::new(Kind::Partial, fact).hint("the next run, or pgark replicate, tells it there"))
}

fn accept_in(app: &App, name: &str, id: &str, done: &mut Done) -> Result<()> {
    let (store, mut catalog) = app.catalog(Some(name))?;
    // Where only their summaries are known: what they hold is to be compared.
    for entry in &mut catalog.entries {
        if entry.state == State::Suspect {
            entry.complete(store.as_ref());
        }
    }
    let entry = match catalog.find(id) {
        Ok(entry) => entry,
        Err(error) => {
            done.unknown.get_or_insert(error);
            return Ok(());
        }
    };
    done.known.get_or_insert_with(|| entry.clone());
    if entry.state != State::Suspect {
        return Ok(());
    }
    for entry in gate::accepted_with(&catalog, entry, &app.thresholds()) {
        let now = clock::now();
        state::record(store.as_ref(), &entry.id, Outcome::Accepted, now, None)?;
        let id = entry.id.to_string();
        if !done.accepted.contains(&id) {
            done.accepted.push(id);
        }
    }
    Ok(())
}

/// What is not suspect needs no acceptance; what was accepted before is done.
fn refuse(entry: &Entry) -> Result<()> {
    let summary = entry.summary.as_ref();
    let was = summary.is_some_and(|summary| !summary.suspect.is_empty());
    if was && entry.good {
        note(&format!("{} was accepted before", entry.id));
        return Ok(());
    }
    Err(
        Error::usage(format!("{} is not suspect but {}", entry.id, entry.state))
            .hint("only suspect backups are accepted; `pgark list` shows them"),
    )
}

/// A line in `backup.log`; its loss loses nothing.
fn record(app: &App, accepted: &[String]) {
    if accepted.is_empty() || !app.config.dir.is_dir() {
        return;
    }
    let mut report = Report::default();
    for id in accepted {
        report.line(clock::now(), &format!("{id} was accepted"));
    }
    if let Err(error) = report.save(&app.config.dir) {
        note(&format!("warning: {}", error.fact));
    }
}
