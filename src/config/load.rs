//! From flags, variables and the file to the configuration of each cluster.
//!
//! Invariant: the order is flag, variable, top of the file, default; what a `[[cluster]]` or a
//! `[[store]]` says goes before the variables, which cannot know which one is meant, and a
//! variable that loses is named in a warning. Reads files: a crash leaves nothing.

use std::path::PathBuf;
use std::time::Duration;

use super::environment::{Environment, Secret, Setting, lookup};
use super::file::{File, Key, Table};
use super::stores::{is_none, stores, within};
use super::table::{Since, VARIABLES, Variable};
use super::{
    Among, Anomaly, Config, ConnectionSettings, Databases, Flags, Place, Service, databases,
    encryption, form, nearest, wal,
};
use crate::error::{Error, Result};

/// Reads flags, variables, the files that they name, and `pgark.toml`: one value for each
/// cluster, or for the one that `--cluster` names.
///
/// # Errors
/// `Usage`, naming the place, the value (never a secret's) and the fix.
pub fn load(flags: &Flags, env: &Environment) -> Result<Vec<Config>> {
    let file = file(flags, env)?;
    let clusters = clusters(file.as_ref());
    let several = clusters.len() > 1;
    let mut configs = Vec::new();
    for cluster in &clusters {
        if flags
            .cluster
            .as_ref()
            .is_some_and(|wanted| *wanted != cluster.name)
        {
            continue;
        }
        let config = one(flags, env, file.as_ref(), cluster, several);
        configs.push(if several {
            config.map_err(|error| error.context(format!("cluster {}", cluster.name)))?
        } else {
            config?
        });
    }
    if let (Some(wanted), true) = (&flags.cluster, configs.is_empty()) {
        let names: Vec<&str> = clusters
            .iter()
            .map(|cluster| cluster.name.as_str())
            .collect();
        return Err(Error::usage(format!("there is no cluster {wanted:?}"))
            .hint(format!("clusters: {}", names.join(", "))));
    }
    same_place(&configs)?;
    Ok(configs)
}

fn file(flags: &Flags, env: &Environment) -> Result<Option<File>> {
    let named = config_path(flags, env)?;
    File::load(named.as_deref(), env)
}

/// The configuration file that somebody named.
///
/// # Errors
/// `Usage` when the variable and its file contradict each other.
pub fn config_path(flags: &Flags, env: &Environment) -> Result<Option<String>> {
    match &flags.config {
        Some(path) => Ok(Some(path.display().to_string())),
        None => Ok(setting("PGARK_CONFIG", env)?.map(|found| found.text)),
    }
}

/// Those of the file, or the one that needs none.
fn clusters(file: Option<&File>) -> Vec<Table> {
    match file {
        Some(file) if !file.clusters.is_empty() => file.clusters.clone(),
        _ => vec![Table {
            name: "main".to_owned(),
            folder: None,
            keys: Vec::new(),
        }],
    }
}

/// Two clusters in one place would expire each other's backups.
fn same_place(configs: &[Config]) -> Result<()> {
    for (at, one) in configs.iter().enumerate() {
        if let Some(other) = configs[..at].iter().find(|other| other.dir == one.dir) {
            return Err(Error::usage(format!(
                "the clusters {} and {} have the same folder {}",
                other.cluster,
                one.cluster,
                one.dir.display()
            ))
            .hint("give each a folder of its own"));
        }
    }
    Ok(())
}

fn among(several: bool, flags: &Flags) -> Among {
    match (several, &flags.cluster) {
        (false, _) => Among::Alone,
        (true, None) => Among::Several,
        (true, Some(_)) => Among::Chosen,
    }
}

fn one(
    flags: &Flags,
    process: &Environment,
    file: Option<&File>,
    cluster: &Table,
    several: bool,
) -> Result<Config> {
    let mut warnings = nearest::unknown_variables(process);
    let base = process
        .clone()
        .with_defaults(file.map_or(&[], |file| file.keys.as_slice()));
    let path = file.map_or("", |file| file.path.as_str());
    let env = &base.with_table(&cluster.keys, process, &mut |key| {
        warnings.push(goes_before(key, path, &cluster.name));
    });
    let no_effect_yet = check_later(env)?;
    let (databases, databases_given) = databases(flags, env)?;
    let folder = match &cluster.folder {
        Some(folder) => folder.as_str(),
        None if several => &cluster.name,
        None => "",
    };
    let stores = stores(flags, (env, process), file, folder, &mut warnings)?;
    let dir = stores.iter().find_map(|store| match &store.place {
        Place::Local(dir) => Some(dir.clone()),
        Place::S3(_) => None,
    });
    let compression = match &flags.compression {
        Some(text) => checked("BACKUP_COMPRESSION", Setting::flag("--compression", text))?,
        None => required("BACKUP_COMPRESSION", env)?,
    };
    Ok(Config {
        cluster: cluster.name.clone(),
        among: among(several, flags),
        environment: env.clone(),
        databases,
        databases_given,
        dir: match dir {
            Some(dir) => dir,
            None => within(state_dir(env)?, folder),
        },
        stores,
        max_runs: file.map_or(1, |file| file.max_runs),
        compression: compression.text,
        encryption: encryption::load(env)?,
        jobs: jobs(flags, env)?,
        connection: connection(env)?,
        program_dir: setting("PGARK_PG_BIN", env)?.map(|found| PathBuf::from(found.text)),
        lock_timeout: form::duration(&required("PGARK_LOCK_TIMEOUT", env)?.text)
            .unwrap_or(Duration::from_secs(60)),
        anomaly: file.map_or_else(Anomaly::default, |file| file.anomaly),
        service: service(env)?,
        wal: wal::load(env, file.map(|file| &file.wal))?,
        runs_as_owner: runs_as_owner(env)?,
        warnings,
        no_effect_yet,
    })
}

pub(super) fn goes_before(key: &Key, path: &str, whose: &str) -> String {
    format!(
        "{} is set, but line {} of {path} goes before it for {whose}",
        key.variable.name, key.line
    )
}

/// Where locks and records lie without a local store.
fn state_dir(env: &Environment) -> Result<PathBuf> {
    Ok(PathBuf::from(required("PGARK_STATE_DIR", env)?.text))
}

pub(super) fn backup_dir(flags: &Flags, env: &Environment) -> Result<PathBuf> {
    match &flags.dir {
        Some(dir) => Ok(dir.clone()),
        None => Ok(PathBuf::from(required("BACKUP_DIR", env)?.text)),
    }
}

/// The directory of the backups, above the clusters' folders; without a local store that of locks
/// and records, and false.
///
/// # Errors
/// `Usage` when settings contradict each other.
pub fn root_dir(flags: &Flags, env: &Environment) -> Result<(PathBuf, bool)> {
    let file = file(flags, env)?;
    let dirs = file
        .iter()
        .flat_map(|file| &file.stores)
        .flat_map(|table| &table.keys);
    let named = dirs
        .filter(|key| key.name == "BACKUP_DIR")
        .map(|key| key.text.clone())
        .next();
    if let Some(dir) = named.filter(|_| flags.dir.is_none()) {
        return Ok((PathBuf::from(dir), true));
    }
    let keys = file.as_ref().map_or(&[][..], |file| file.keys.as_slice());
    let env = env.clone().with_defaults(keys);
    let dir = backup_dir(flags, &env)?;
    let buckets = file.as_ref().map_or(&[][..], |file| file.stores.as_slice());
    let buckets_only = !buckets.is_empty() && buckets.iter().all(Table::is_bucket);
    if is_none(&dir) || buckets_only {
        return Ok((state_dir(&env)?, false));
    }
    Ok((dir, true))
}

/// Whether root shall hand its work to the owner of the backups.
///
/// # Errors
/// `Usage` for a malformed value.
pub fn runs_as_owner(env: &Environment) -> Result<bool> {
    Ok(setting("PGARK_RUN_AS", env)?.is_some())
}

/// The table's row of a name that this module knows to be there (a test walks them all).
pub(super) fn variable(name: &str) -> Result<&'static Variable> {
    VARIABLES
        .iter()
        .find(|variable| variable.name == name)
        .ok_or_else(|| Error::failed(format!("{name} is missing in the table of variables")))
}

/// A variable's checked value, if somebody set it.
pub(super) fn setting(name: &str, env: &Environment) -> Result<Option<Setting>> {
    lookup(variable(name)?, env)
}

/// A variable's checked value or its default.
pub(super) fn required(name: &str, env: &Environment) -> Result<Setting> {
    if let Some(found) = setting(name, env)? {
        return Ok(found);
    }
    let default = variable(name)?.default;
    let text =
        default.ok_or_else(|| Error::usage(format!("{name} is not set and has no default")))?;
    Ok(Setting::flag(name, text))
}

/// A flag's value under its variable's rules.
fn checked(name: &str, found: Setting) -> Result<Setting> {
    found.check(variable(name)?)?;
    Ok(found)
}

/// Checks the form of what later versions use, and names it in one line.
fn check_later(env: &Environment) -> Result<Option<String>> {
    let mut names = Vec::new();
    let mut features = Vec::new();
    for variable in VARIABLES {
        let Since::Later(feature) = variable.since else {
            continue;
        };
        if lookup(variable, env)?.is_some() {
            names.push(variable.name);
            if !features.contains(&feature) {
                features.push(feature);
            }
        }
    }
    Ok((!names.is_empty()).then(|| {
        format!(
            "set, but without effect in this version of pgark: {} (not built yet: {})",
            names.join(", "),
            features.join(", ")
        )
    }))
}

fn databases(flags: &Flags, env: &Environment) -> Result<(Databases, bool)> {
    if !flags.database.is_empty() {
        let names = databases::exact(&flags.database)
            .map_err(|fix| Error::usage(format!("--database: {fix}")))?;
        return Ok((names, true));
    }
    if let Some(found) = setting("DB_NAME", env)? {
        return Ok((found.parse_databases()?, true));
    }
    if let Some(name) = env.get("PGDATABASE") {
        return Ok((Databases::Named(vec![name.to_owned()]), true));
    }
    Ok((required("DB_NAME", env)?.parse_databases()?, false))
}

fn jobs(flags: &Flags, env: &Environment) -> Result<usize> {
    let found = match flags.jobs {
        Some(jobs) => Some(checked(
            "BACKUP_JOBS",
            Setting::flag("--jobs", &jobs.to_string()),
        )?),
        None => setting("BACKUP_JOBS", env)?,
    };
    match found.and_then(|found| found.text.parse().ok()) {
        Some(jobs) => Ok(jobs),
        None => Ok(std::thread::available_parallelism().map_or(1, |cores| cores.get().min(4))),
    }
}

fn service(env: &Environment) -> Result<Service> {
    let text = |name| setting(name, env).map(|found| found.map(|found| found.text));
    Ok(Service {
        schedule: required("BACKUP_SCHEDULE", env)?.text,
        base_schedule: text("BASE_SCHEDULE")?,
        base_incremental_schedule: text("BASE_INCREMENTAL_SCHEDULE")?,
        zone: env.get("TZ").map(str::to_owned),
        on_start: form::switch(&required("BACKUP_ON_START", env)?.text),
        http_addr: required("HTTP_ADDR", env)?.text,
        run_timeout: form::duration(&required("PGARK_RUN_TIMEOUT", env)?.text)
            .unwrap_or(Duration::from_secs(24 * 3600)),
        log_format: required("LOG_FORMAT", env)?.text,
        heartbeat: setting("HEARTBEAT_URL", env)?.map(|found| Secret::new(found.text)),
        log_file: setting("PGARK_LOG_PATH", env)?.map(|found| PathBuf::from(found.text)),
        crontab_file: setting("PGARK_CRONTAB_PATH", env)?.map(|found| PathBuf::from(found.text)),
    })
}

fn connection(env: &Environment) -> Result<ConnectionSettings> {
    let mut explicit = Vec::new();
    let mut defaults = Vec::new();
    for variable in VARIABLES {
        let Some(keyword) = variable.keyword else {
            continue;
        };
        if let Some(found) = lookup(variable, env)? {
            explicit.push((keyword.to_owned(), found.text));
        }
        if let Some(default) = variable.default {
            defaults.push((keyword.to_owned(), default.to_owned()));
        }
    }
    let (password, password_source) = match setting("DB_PASSWORD", env)? {
        Some(found) => (Some(Secret::new(found.text)), Some(found.source)),
        None => (None, None),
    };
    let secret = |name| {
        let found = setting(name, env)?;
        Ok::<_, Error>(found.map(|found| Secret::new(found.text)))
    };
    Ok(ConnectionSettings {
        conninfo: secret("DB_CONNINFO")?,
        key_password: secret("DB_SSLPASSWORD")?,
        explicit,
        defaults,
        password,
        password_source,
    })
}
