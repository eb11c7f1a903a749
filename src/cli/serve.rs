//! `pgark serve`: a supervisor for each cluster, and one answer to "is all well?".
//!
//! Invariants: what is wrong with the configuration ends it at once; what is wrong with one
//! cluster's store or server ends nothing where there are others: its runs say it, and so does
//! its health.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::app::App;
use crate::catalog::legacy::check_legacy;
use crate::catalog::list::{self, Entry, State};
use crate::config::{Among, Databases, Environment, Flags};
use crate::error::{Error, Result};
use crate::postgres::replication::Replication;
use crate::restore::wal::moment::{Archive, Candidate};
use crate::schedule::Schedule;
use crate::service::crontab;
use crate::service::health::{Health, Kept};
use crate::service::http::{self, Pulse};
use crate::service::journal::Work;
use crate::service::log::Log;
use crate::service::notify::notify;
use crate::service::slots::Slots;
use crate::service::supervisor::{Plan, Supervisor};
use crate::service::windows::of_archive;
use crate::status::Promised;
use crate::store::Store;
use crate::store::local::LocalStore;

pub(super) fn serve(apps: Vec<App>, environment: &Environment, flags: &Flags) -> Result<()> {
    let Some(first) = apps.first() else {
        return Err(Error::usage("there is no cluster to serve"));
    };
    let service = &first.config.service;
    let log = Log::new(&service.log_format).with_file(service.log_file.as_deref());
    let (address, cancel) = (service.http_addr.clone(), first.cancel.clone());
    let turns = Turns {
        dumps: Slots::new(first.config.max_runs),
        bases: Slots::new(first.config.max_runs),
    };
    if let Some(line) = &first.config.no_effect_yet {
        log.warn(line);
    }
    let several = apps.len() > 1;
    warn_of_orphans(log, &apps);
    let (mut healths, mut supervisors) = (Vec::new(), Vec::new());
    for (number, app) in apps.into_iter().enumerate() {
        let log = match app.config.among {
            Among::Alone => log,
            _ => log.of_cluster(&app.config.cluster),
        };
        let schedule = app.schedule()?;
        if let Err(error) = begin(log, &app, number) {
            // A bucket that is away now is no reason to take no backup ever.
            if !several && app.config.has_local() {
                return Err(error);
            }
            log.error(&error.to_string());
        }
        let app = Arc::new(app);
        let promised = app.base_schedules()?;
        healths.push(health(&app, schedule.clone(), promised.clone())?);
        let lanes = lanes(&app, schedule, promised, &turns)?;
        let arguments = arguments(&app, flags);
        supervisors.push(supervisor(&app, lanes, log, environment, number, arguments));
    }
    let pulses: Vec<_> = supervisors
        .iter()
        .map(|one| Arc::clone(&one.pulse))
        .collect();
    let address = http::serve(&address, Arc::new(healths), Arc::new(pulses))?;
    log.info(&format!("health: http://{address}/healthz"));
    notify("READY=1");
    let stopping = cancel.on_cancel(|| notify("STOPPING=1"));
    let result = run(supervisors);
    drop(stopping);
    result
}

/// Runs every supervisor until the signal; with one cluster, on this thread.
fn run(mut supervisors: Vec<Supervisor>) -> Result<()> {
    let last = supervisors.pop();
    let others: Vec<_> = supervisors
        .into_iter()
        .map(|one| std::thread::spawn(move || one.run()))
        .collect();
    let mut result = last.map_or(Ok(()), |one| one.run());
    for other in others {
        let ended = other
            .join()
            .unwrap_or_else(|_| Err(Error::failed("a supervisor died")));
        result = result.and(ended);
    }
    result
}

/// Backups above the clusters' folders were taken when there was one cluster. Nobody sees them.
fn warn_of_orphans(log: Log, apps: &[App]) {
    let dirs: BTreeSet<&Path> = apps.iter().map(|app| app.config.dir.as_path()).collect();
    let above: BTreeSet<&Path> = apps
        .iter()
        .filter(|app| app.config.among != Among::Alone)
        .filter_map(|app| app.config.dir.parent())
        .filter(|dir| dir.is_dir() && !dirs.contains(dir))
        .collect();
    for dir in above {
        let catalog = LocalStore::open(dir).and_then(|store| list::load(&store));
        let count = catalog.map_or(0, |catalog| catalog.entries.len());
        if count > 0 {
            log.warn(&format!(
                "{count} backups lie in {}, which is no cluster's folder: move them into one, or give that cluster folder = \".\"",
                dir.display()
            ));
        }
    }
}

/// Says what is served, and what lies in the store.
fn begin(log: Log, app: &App, number: usize) -> Result<()> {
    let store = app.store(None)?;
    log.info(&format!(
        "pgark {} serves: {} into {}",
        env!("CARGO_PKG_VERSION"),
        describe(&app.databases()?),
        store.describe()
    ));
    if number == 0 {
        show_place(log, app);
    }
    greet(log, store)
}

fn health(app: &Arc<App>, schedule: Schedule, bases: Promised) -> Result<Health> {
    let opener = Arc::clone(app);
    Ok(Health {
        cluster: app.config.cluster.clone(),
        open: Box::new(move || opener.store(None)),
        dir: app.config.dir.clone(),
        databases: app.databases()?,
        schedule,
        bases,
        others: app.others().into_iter().map(str::to_owned).collect(),
        kept: Mutex::new(Kept::default()),
    })
}

/// What this cluster's runs get beside their verb.
fn arguments(app: &App, flags: &Flags) -> Vec<String> {
    let dir = flags.dir.as_ref().map(|dir| dir.display().to_string());
    let config = flags.config.as_ref().map(|path| path.display().to_string());
    let cluster = app.config.among != Among::Alone;
    let cluster = cluster.then(|| app.config.cluster.clone());
    [("--dir", dir), ("--config", config), ("--cluster", cluster)]
        .into_iter()
        .filter_map(|(flag, value)| Some([flag.to_owned(), value?]))
        .flatten()
        .collect()
}

/// Turns among the clusters. Dumps and base backups have their own: neither waits for the other.
struct Turns {
    dumps: Arc<Slots>,
    bases: Arc<Slots>,
}

/// What this cluster's supervisor takes, and when.
fn lanes(app: &Arc<App>, schedule: Schedule, bases: Promised, turns: &Turns) -> Result<Vec<Plan>> {
    let (databases, on_start) = (app.databases()?, app.config.service.on_start);
    let asked = Arc::clone(app);
    let mut lanes = vec![Plan {
        rows: vec![(Work::Dumps, schedule)],
        first: Work::Dumps,
        on_start,
        slots: Arc::clone(&turns.dumps),
        ask: Arc::new(move || asked.pin(databases.names()).map(|_| true)),
    }];
    let needs_one = bases.needs_one();
    // WAL restores nothing without one, whatever is said of the start.
    let on_start = bases.streaming || (needs_one && on_start);
    let full = bases.full.map(|schedule| (Work::Base, schedule));
    let incremental = bases.incremental;
    let incremental = incremental.map(|schedule| (Work::Incremental, schedule));
    let rows: Vec<_> = full.into_iter().chain(incremental).collect();
    if needs_one || !rows.is_empty() {
        let asked = Arc::clone(app);
        lanes.push(Plan {
            rows,
            first: Work::Base,
            on_start,
            slots: Arc::clone(&turns.bases),
            ask: Arc::new(move || lacks_base(&asked)),
        });
    }
    Ok(lanes)
}

/// Whether the store has no good base backup of the cluster that answers now (one of before a
/// `pg_upgrade` is none), or none from which its WAL goes on: after a gap one is owed, whoever has
/// been restarted since, and before the first WAL too.
fn lacks_base(app: &App) -> Result<bool> {
    let target = app.pin(&[])?;
    let system = Replication::connect(&target)?.identify()?.id;
    let store = app.store(None)?;
    let catalog = list::load(store.as_ref())?;
    let ours = |entry: &Entry| {
        let base = Candidate::of(entry).filter(|_| entry.good);
        base.is_some_and(|base| base.system() == Some(system))
    };
    if !catalog.entries.iter().any(ours) {
        return Ok(true);
    }
    if !app.config.wal.streaming {
        return Ok(false);
    }
    let archive = Archive::load(store.as_ref(), system)?;
    let windows = of_archive(&archive, &catalog.entries);
    let gap = windows.last().is_none_or(|last| last.missing.is_some());
    Ok(gap || archive.wal.is_empty())
}

fn supervisor(
    app: &App,
    lanes: Vec<Plan>,
    log: Log,
    environment: &Environment,
    number: usize,
    arguments: Vec<String>,
) -> Supervisor {
    let pulse = Arc::new(Pulse::default());
    pulse.beat();
    Supervisor {
        lanes,
        streaming: app.config.wal.streaming,
        run_timeout: app.config.service.run_timeout,
        others: app.others().into_iter().map(str::to_owned).collect(),
        dir: app.config.dir.clone(),
        environment: environment.clone(),
        arguments,
        number,
        log,
        cancel: app.cancel.clone(),
        pulse,
    }
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
