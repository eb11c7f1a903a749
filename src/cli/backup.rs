//! `pgark backup`.

use serde_json::{Value, json};

use super::args::{self, Backup, Global};
use super::clusters::Out;
use super::{note, print, render};
use crate::app::App;
use crate::catalog::list::{self, Entry};
use crate::error::Result;
use crate::progress::Reporter;
use crate::service::base;
use crate::service::journal::Trigger;
use crate::service::run::{self, Done, Wanted};
use crate::store::Store;
use crate::units::ByteSize;

pub(super) fn backup(app: &App, verb: &Backup, global: &Global, out: &mut Out<'_>) -> Result<()> {
    let prefix = app.prefix();
    if let Some(line) = &app.config.no_effect_yet {
        note(&format!("warning: {line}"));
    }
    let store = app.store(None)?;
    let progress = app.progress();
    let reporter = Reporter::start("backup", std::sync::Arc::clone(&progress), global.quiet);
    let whose = app.whose();
    let wanted = Wanted {
        trigger: match verb.trigger {
            args::Trigger::Schedule => Trigger::Schedule,
            args::Trigger::Start => Trigger::Start,
            args::Trigger::Gap => Trigger::Gap,
            args::Trigger::Manual => Trigger::Manual,
        },
        no_prune: verb.no_prune,
        progress: &progress,
        say: &|text| {
            if let Some(warning) = text.strip_prefix("warning: ") {
                note(&format!("warning: {whose}{warning}"));
            } else if !global.quiet {
                note(&format!("{whose}{text}"));
            }
        },
    };
    let (done, verdict) = take(app, verb, store.as_ref(), &wanted);
    drop(reporter);
    for notice in &done.notices {
        note(&format!("{whose}{notice}"));
    }
    let expired = &done.pruned.removed;
    if !expired.is_empty() && !global.quiet {
        let bytes = ByteSize(done.pruned.bytes());
        note(&format!("expired {} backups, {bytes}", expired.len()));
    }
    // What was taken is taken, even where nobody can look at it now.
    let catalog = match list::load(store.as_ref()) {
        Ok(catalog) => catalog,
        Err(error) => {
            let ids: Vec<&str> = done.taken.iter().map(|one| one.id.as_str()).collect();
            note(&format!("{whose}taken: {}; {}", ids.join(", "), error.fact));
            return verdict.and(Err(error));
        }
    };
    let taken: Vec<&Entry> = done
        .taken
        .iter()
        .filter_map(|manifest| catalog.find(manifest.id.as_str()).ok())
        .collect();
    if !global.json {
        taken
            .into_iter()
            .try_for_each(|entry| line(entry, &prefix))?;
    } else if verdict.is_ok() || !done.taken.is_empty() || !done.failed.is_empty() {
        out.json(result(&done, &taken, store.name(), &prefix));
    }
    verdict
}

/// Dumps, or a base backup.
fn take(app: &App, verb: &Backup, store: &dyn Store, wanted: &Wanted<'_>) -> (Done, Result<()>) {
    if !verb.base {
        return run::run(app, store, wanted);
    }
    let how = base::How {
        incremental: verb.incremental,
        max_rate_kib: verb.max_rate,
    };
    base::run(app, store, wanted, how)
}

fn line(entry: &Entry, prefix: &str) -> Result<()> {
    let raw = entry
        .raw_bytes
        .map_or_else(String::new, |bytes| format!(" from {}", ByteSize(bytes)));
    let (id, bytes) = (&entry.id, ByteSize(entry.bytes));
    print(&format!("{prefix}{id}  {bytes}{raw}\n"))
}

fn result(done: &Done, taken: &[&Entry], first: &str, prefix: &str) -> Value {
    let failed: Vec<_> = done
        .failed
        .iter()
        .map(|(name, error)| json!({"database": name, "error": error.fact, "hint": error.hint}))
        .collect();
    let taken: Vec<_> = taken
        .iter()
        .map(|entry| {
            let copied = done.copied.iter();
            let copied = copied.filter(|(_, id)| id == entry.id.as_str());
            let others = copied.map(|(name, _)| name.as_str());
            let stores: Vec<&str> = std::iter::once(first).chain(others).collect();
            render::entry_json(entry, &stores, prefix)
        })
        .collect();
    let expired = done.pruned.removed.iter();
    let expired: Vec<String> = expired
        .map(|entry| format!("{prefix}{}", entry.id))
        .collect();
    json!({"taken": taken, "failed": failed, "expired": expired})
}
