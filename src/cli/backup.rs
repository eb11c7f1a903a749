//! `pgark backup`.

use serde_json::json;

use super::args::{self, Backup, Global};
use super::{note, print, print_json, render};
use crate::app::App;
use crate::catalog::list;
use crate::error::Result;
use crate::progress::Reporter;
use crate::service::base;
use crate::service::journal::Trigger;
use crate::service::run::{self, Wanted};
use crate::service::stores;
use crate::store::Store;
use crate::units::ByteSize;

pub(super) fn backup(app: &App, verb: &Backup, global: &Global) -> Result<()> {
    if let Some(line) = &app.config.no_effect_yet {
        note(&format!("warning: {line}"));
    }
    let store = app.store(None)?;
    let progress = app.progress();
    let reporter = Reporter::start("backup", std::sync::Arc::clone(&progress), global.quiet);
    let wanted = Wanted {
        trigger: match verb.trigger {
            args::Trigger::Schedule => Trigger::Schedule,
            args::Trigger::Start => Trigger::Start,
            args::Trigger::Manual => Trigger::Manual,
        },
        no_prune: verb.no_prune,
        progress: &progress,
        say: &|text| {
            if !global.quiet || text.starts_with("warning: ") {
                note(text);
            }
        },
    };
    let (done, verdict) = take(app, verb, store.as_ref(), &wanted);
    drop(reporter);
    done.notices.iter().for_each(|notice| note(notice));
    let expired = &done.pruned.removed;
    if !expired.is_empty() && !global.quiet {
        let bytes = ByteSize(done.pruned.bytes());
        note(&format!("expired {} backups, {bytes}", expired.len()));
    }
    let catalog = list::load(store.as_ref())?;
    let taken = || {
        let ids = done.taken.iter().map(|manifest| manifest.id.as_str());
        ids.filter_map(|id| catalog.find(id).ok())
    };
    if global.json && (verdict.is_ok() || !done.taken.is_empty() || !done.failed.is_empty()) {
        let failed: Vec<_> = done
            .failed
            .iter()
            .map(|(name, error)| json!({"database": name, "error": error.fact, "hint": error.hint}))
            .collect();
        let taken: Vec<_> = taken()
            .map(|entry| {
                let copied = done.copied.iter().any(|id| id == entry.id.as_str());
                let second = copied.then_some(stores::SECOND);
                let stores: Vec<&str> = std::iter::once(store.name()).chain(second).collect();
                render::entry_json(entry, &stores)
            })
            .collect();
        let expired: Vec<&str> = expired.iter().map(|entry| entry.id.as_str()).collect();
        print_json(&json!({"taken": taken, "failed": failed, "expired": expired}))?;
    } else if !global.json {
        for entry in taken() {
            let raw = entry
                .raw_bytes
                .map_or_else(String::new, |bytes| format!(" from {}", ByteSize(bytes)));
            print(&format!("{}  {}{raw}\n", entry.id, ByteSize(entry.bytes)))?;
        }
    }
    verdict
}

/// Dumps, or a base backup.
fn take(
    app: &App,
    verb: &Backup,
    store: &dyn Store,
    wanted: &Wanted<'_>,
) -> (run::Done, Result<()>) {
    if !verb.base {
        return run::run(app, store, wanted);
    }
    let how = base::How {
        incremental: verb.incremental,
        max_rate_kib: verb.max_rate,
    };
    base::run(app, store, wanted, how)
}
