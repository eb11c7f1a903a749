//! `pgark serve`, `prune` and `status`.

use std::sync::Arc;

use serde_json::json;

use super::args::{Global, Prune, Serve, Status};
use super::{note, print, print_json, render};
use crate::app::App;
use crate::catalog::legacy::check_legacy;
use crate::catalog::list::{self, State};
use crate::config::Databases;
use crate::error::{Error, Result};
use crate::prune::Pruned;
use crate::service::crontab;
use crate::service::health::{self, Health};
use crate::service::http::{self, Pulse};
use crate::service::log::Log;
use crate::service::stores::{self, Behind};
use crate::service::supervisor::Supervisor;
use crate::store::Store;
use crate::units::ByteSize;

pub(super) fn serve(app: App, _verb: &Serve) -> Result<()> {
    let service = &app.config.service;
    let log = Log::new(&service.log_format).with_file(service.log_file.as_deref());
    let schedule = app.schedule()?;
    let databases = app.databases()?;
    let store = app.store(None)?;
    if let Some(line) = &app.config.no_effect_yet {
        log.warn(line);
    }
    log.info(&format!(
        "pgark {} serves: {} into {}",
        env!("CARGO_PKG_VERSION"),
        describe(&databases),
        store.describe()
    ));
    show_place(log, &app);
    greet(log, store)?;
    let dir = app.config.dir.clone();
    let health = Health::new(
        app.store(None)?,
        dir.clone(),
        databases.clone(),
        schedule.clone(),
        app.config.s3.is_some(),
    );
    let pulse = Arc::new(Pulse::default());
    pulse.beat();
    let address = http::serve(
        &app.config.service.http_addr,
        Arc::new(health),
        Arc::clone(&pulse),
    )?;
    log.info(&format!("health: http://{address}/healthz"));
    let supervisor = Supervisor {
        schedule,
        on_start: app.config.service.on_start,
        run_timeout: app.config.service.run_timeout,
        has_second: app.config.s3.is_some(),
        dir,
        environment: app.environment().clone(),
        log,
        cancel: app.cancel.clone(),
        pulse,
        server_answers: Arc::new(move || {
            let names = match &databases {
                Databases::Named(names) => names.as_slice(),
                Databases::All => &[],
            };
            app.pin(names).map(drop)
        }),
    };
    supervisor.run()
}

fn describe(databases: &Databases) -> String {
    match databases {
        Databases::All => "every database".to_owned(),
        Databases::Named(names) if names.len() == 1 => format!("database {}", names[0]),
        Databases::Named(names) => format!("databases {}", names.join(", ")),
    }
}

/// Shows the schedule as a crontab where that is asked for, and says as whom the work is done.
fn show_place(log: Log, app: &App) {
    let service = &app.config.service;
    if let Some(path) = &service.crontab_file
        && let Err(error) = crontab::write(path, &service.schedule, service.zone.as_deref())
    {
        log.warn(&error.fact);
    }
    if !app.config.runs_as_owner {
        return;
    }
    let dir = app.config.dir.display();
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    if uid.is_root() {
        log.warn(&format!(
            "works as root: {dir} is root's and not empty; `chown -R 10001:10001` of it, or of the directory that is mounted there, ends that"
        ));
    } else {
        log.info(&format!("works as user {uid}, group {gid}"));
    }
}

/// Says what lies in the store, and how many of the old service's backups are good: those are
/// read whole, beside everything else.
fn greet(log: Log, store: Box<dyn Store>) -> Result<()> {
    let catalog = list::load(store.as_ref())?;
    let legacy: Vec<_> = catalog
        .entries
        .iter()
        .filter(|entry| entry.state == State::Legacy)
        .cloned()
        .collect();
    let own = catalog.entries.len() - legacy.len();
    log.info(&format!(
        "{} holds {own} backups of pgark and {} of the old service",
        store.describe(),
        legacy.len()
    ));
    let Some(newest) = legacy.first().map(|entry| entry.id.clone()) else {
        return Ok(());
    };
    std::thread::spawn(move || {
        let good = legacy
            .iter()
            .filter(|entry| match check_legacy(store.as_ref(), entry) {
                Ok(()) => true,
                Err(error) => {
                    log.warn(&error.fact);
                    false
                }
            })
            .count();
        log.info(&format!(
            "of the old service's {} backups {good} are good; the newest is {newest}",
            legacy.len()
        ));
    });
    Ok(())
}

pub(super) fn replicate(app: &App, global: &Global) -> Result<()> {
    if app.config.s3.is_none() {
        return Err(
            Error::usage("there is no second store").hint("S3_BUCKET names the bucket of one")
        );
    }
    let say = |text: &str| {
        if !global.quiet {
            note(text);
        }
    };
    let copied = stores::replicate(app, &say)?;
    if global.json {
        return print_json(&json!({"copied": copied}));
    }
    copied.iter().try_for_each(|id| print(&format!("{id}\n")))
}

pub(super) fn prune(app: &App, verb: &Prune, global: &Global) -> Result<()> {
    let names = match global.store.as_deref() {
        Some(name) => vec![name],
        None => app.store_names(),
    };
    let (mut pruned, mut verdicts) = (Pruned::default(), Vec::new());
    let mut warnings = Vec::new();
    for name in names {
        let (_, catalog) = app.catalog(Some(name))?;
        let plan = stores::plan(app, name, &catalog);
        if verb.dry_run {
            warnings.extend(plan.warnings);
        } else {
            stores::expire(app, name, &mut pruned, &mut warnings)?;
        }
        verdicts.extend(plan.verdicts.into_iter().map(|verdict| (name, verdict)));
    }
    if !global.json {
        for text in &warnings {
            note(text);
        }
    }
    if global.json {
        let verdicts: Vec<_> = verdicts
            .iter()
            .map(|(store, verdict)| {
                json!({
                    "store": store,
                    "id": verdict.entry.id.as_str(),
                    "keep": verdict.keep,
                    "reason": verdict.reason,
                    "bytes": verdict.entry.bytes,
                })
            })
            .collect();
        let expired: Vec<&str> = pruned.removed.iter().map(|one| one.id.as_str()).collect();
        print_json(&json!({
            "dry_run": verb.dry_run, "verdicts": verdicts, "expired": expired, "warnings": warnings,
        }))?;
    } else if verb.dry_run {
        print(&render::verdicts(&verdicts))?;
    } else {
        for entry in &pruned.removed {
            print(&format!("{}  {}\n", entry.id, ByteSize(entry.bytes)))?;
        }
    }
    match pruned.stayed.into_iter().next() {
        None => Ok(()),
        Some((_, error)) => Err(Error::new(
            crate::error::Kind::Partial,
            format!(
                "not everything that expired could be deleted: {}",
                error.fact
            ),
        )),
    }
}

pub(super) fn status(app: &App, verb: &Status, global: &Global) -> Result<()> {
    if verb.probe {
        let answer = http::probe(&app.config.service.http_addr)?;
        return print(&format!("{answer}\n"));
    }
    let (store, catalog) = app.catalog(global.store.as_deref())?;
    let status = health::judge(
        &app.databases()?,
        &app.config.dir,
        &catalog,
        &app.schedule()?,
    );
    let behind = Behind::read(&app.config.dir).filter(|_| app.config.s3.is_some());
    let (healthy, mut value) = health::to_json(&status, behind.as_ref());
    if global.json {
        value["store"] = json!(store.name());
        print_json(&value)?;
    } else {
        print(&render::status(
            &status,
            &store.describe(),
            crate::clock::now(),
        ))?;
        if let Some(error) = behind.and_then(|behind| behind.error) {
            note(&format!(
                "warning: {} is not up to date: {error}",
                stores::SECOND
            ));
        }
    }
    if verb.exit_code && !healthy {
        return Err(Error::failed("not every database is backed up as promised")
            .hint("`pgark list` shows what there is; backup.log in the store says what failed"));
    }
    Ok(())
}
