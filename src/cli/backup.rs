//! `pgark backup`.

use serde_json::json;

use super::args::{Backup, Global};
use super::{note, print, print_json, render};
use crate::app::App;
use crate::backup::dump::Options;
use crate::backup::run::{self, Run};
use crate::catalog::list;
use crate::config::Databases;
use crate::error::Result;
use crate::progress::Reporter;
use crate::units::ByteSize;

pub(super) fn backup(app: &App, _verb: &Backup, global: &Global) -> Result<()> {
    if let Some(line) = &app.config.no_effect_yet {
        note(&format!("warning: {line}"));
    }
    let store = app.store(global.store.as_deref())?;
    let databases = app.databases()?;
    let names: &[String] = match &databases {
        Databases::Named(names) => names,
        Databases::All => &[],
    };
    let target = app.pin(names)?;
    for warning in target.warnings() {
        note(&format!("warning: {warning}"));
    }
    let options = Options {
        cluster: app.config.cluster.clone(),
        codec: app.codec,
        jobs: app.config.jobs,
        lock_timeout: app.config.lock_timeout,
        started_at: crate::clock::now(),
    };
    let (tools, progress) = (app.tools(), app.progress());
    let reporter = Reporter::start("backup", std::sync::Arc::clone(&progress), global.quiet);
    let outcome = run::run(&Run {
        target: &target,
        databases: &databases,
        options,
        store: store.as_ref(),
        dir: &app.config.dir,
        tools: &tools,
        progress: &progress,
        cancel: &app.cancel,
        say: &|text| {
            if !global.quiet {
                note(text);
            }
        },
    });
    drop(reporter);
    let outcome = outcome?;
    outcome.notices.iter().for_each(|notice| note(notice));
    let catalog = list::load(store.as_ref())?;
    let taken = || {
        outcome
            .taken
            .iter()
            .filter_map(|manifest| catalog.find(manifest.id.as_str()).ok())
    };
    if global.json {
        let failed: Vec<_> = outcome
            .failed
            .iter()
            .map(|(name, error)| json!({"database": name, "error": error.fact, "hint": error.hint}))
            .collect();
        let taken: Vec<_> = taken()
            .map(|entry| render::entry_json(entry, store.name()))
            .collect();
        print_json(&json!({"taken": taken, "failed": failed}))?;
    } else {
        for entry in taken() {
            let raw = entry
                .raw_bytes
                .map_or_else(String::new, |bytes| format!(" from {}", ByteSize(bytes)));
            print(&format!("{}  {}{raw}\n", entry.id, ByteSize(entry.bytes)))?;
        }
    }
    outcome.verdict()
}
