//! Configuration: flags and variables become one validated value.
//!
//! Invariants: nothing that a user set is ignored silently (it is used, refused, or named
//! in a warning); no secret reaches an error or a warning; [`VARIABLES`] is the only list
//! of variables, from which parsing, `docs/configuration.md` and the "did you mean"
//! warnings all follow. Reads files (`NAME_FILE`), writes nothing: a crash leaves nothing.

mod databases;
mod docs;
mod encryption;
mod environment;
mod form;
mod nearest;
mod table;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use databases::Databases;
pub use docs::markdown;
pub use encryption::Encryption;
pub use environment::{Environment, SECRETS_ON_STDIN, Secret};
pub use form::Form;
pub use table::{Section, Since, VARIABLES, Variable};

use crate::error::{Error, Result};
use environment::{Setting, lookup};

/// The file that later versions read for several clusters and stores (design §7).
const CONFIG_FILE: &str = "/etc/pgark/pgark.toml";

/// What the command line gave; it wins over every variable.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    pub dir: Option<PathBuf>,
    /// Exact names: no splitting, no `*`.
    pub database: Vec<String>,
    pub jobs: Option<usize>,
    pub compression: Option<String>,
    /// `--config FILE`.
    pub config: Option<PathBuf>,
}

/// Everything that a run needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// The cluster's name in logs and lists.
    pub cluster: String,
    pub databases: Databases,
    /// Whether somebody named the databases (flag, `DB_NAME` or `PGDATABASE`). If not,
    /// `databases` is pgark's default, and a service file's `dbname` goes before it.
    pub databases_given: bool,
    /// The local store.
    pub dir: PathBuf,
    /// Checked: `gzip[:1-12]`, `zstd[:1-19]` or `none`.
    pub compression: String,
    pub encryption: Encryption,
    /// Parallel connections, 1 to 64.
    pub jobs: usize,
    pub connection: ConnectionSettings,
    /// `PGARK_PG_BIN`: one directory, or several with colons between.
    pub program_dir: Option<PathBuf>,
    /// How long a dump waits for the lock on a table.
    pub lock_timeout: Duration,
    pub retention: Retention,
    /// The second store.
    pub s3: Option<S3>,
    pub service: Service,
    /// `PGARK_RUN_AS`: whether root hands its work to the owner of `dir`.
    pub runs_as_owner: bool,
    /// For stderr, one line each, on every verb.
    pub warnings: Vec<String>,
    /// One line for `backup`: variables that are set and have no effect yet.
    pub no_effect_yet: Option<String>,
}

/// What stays when backups expire; each rule adds to the others. 0: the rule keeps nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    pub days: u32,
    pub keep_daily: u32,
    pub keep_weekly: u32,
    pub keep_monthly: u32,
    pub keep_yearly: u32,
    pub keep_min: u32,
}

/// A bucket and how to reach it.
#[derive(Debug, Clone)]
pub struct S3 {
    pub bucket: String,
    pub prefix: String,
    pub region: String,
    pub endpoint: Option<String>,
    pub force_path_style: Option<bool>,
    pub sse: Option<String>,
    pub kms_key_id: Option<String>,
    /// None: the usual AWS chain.
    pub keys: Option<S3Keys>,
    /// Days to keep backups there.
    pub days: u32,
}

/// Keys given outright.
#[derive(Debug, Clone)]
pub struct S3Keys {
    pub access_key_id: String,
    pub secret_access_key: Secret,
    pub session_token: Option<Secret>,
}

/// What only `serve` and those who ask about it use.
#[derive(Debug, Clone)]
pub struct Service {
    /// Five cron fields or `@daily`, …; parsed by `schedule`.
    pub schedule: String,
    /// `TZ`: the zone of a schedule that names none.
    pub zone: Option<String>,
    pub on_start: bool,
    /// `address:port`.
    pub http_addr: String,
    pub run_timeout: Duration,
    /// `text`, `json` or `logfmt`.
    pub log_format: String,
    /// Where the log goes as well.
    pub log_file: Option<PathBuf>,
    /// Where the schedule is shown as a crontab.
    pub crontab_file: Option<PathBuf>,
}

/// Where the server is and who asks, in libpq's keywords.
///
/// The order of use: `explicit`, then `PG*`, the service file and `.pgpass`, then `defaults`.
#[derive(Debug, Clone)]
pub struct ConnectionSettings {
    /// Keyword and value, from `DB_*`.
    pub explicit: Vec<(String, String)>,
    /// Keyword and value, pgark's own.
    pub defaults: Vec<(String, String)>,
    /// From `DB_PASSWORD`, `DB_PASSWORD_FILE` or its default path.
    pub password: Option<Secret>,
    /// The variable, or variable and path, that gave the password; for messages.
    pub password_source: Option<String>,
}

/// Reads flags, variables and the files that variables name.
///
/// # Errors
/// `Usage`, naming the variable, its value (never a secret's) and the fix.
pub fn load(flags: &Flags, env: &Environment) -> Result<Config> {
    refuse_config_file(flags, env, Path::new(CONFIG_FILE))?;
    let no_effect_yet = check_later(env)?;
    let (databases, databases_given) = databases(flags, env)?;
    let dir = backup_dir(flags, env)?;
    if dir.as_os_str() == "none" {
        let source = if flags.dir.is_some() {
            "--dir"
        } else {
            "BACKUP_DIR"
        };
        return Err(Error::usage(format!(
            "{source} none (no local store) is not supported by this version of pgark: \
             it writes to a local directory only"
        ))
        .hint("name a directory; one that is really called none is ./none"));
    }
    let compression = match &flags.compression {
        Some(text) => checked("BACKUP_COMPRESSION", Setting::flag("--compression", text))?,
        None => required("BACKUP_COMPRESSION", env)?,
    };
    Ok(Config {
        cluster: "main".to_owned(),
        databases,
        databases_given,
        dir,
        compression: compression.text,
        encryption: encryption::load(env)?,
        jobs: jobs(flags, env)?,
        connection: connection(env)?,
        program_dir: setting("PGARK_PG_BIN", env)?.map(|found| PathBuf::from(found.text)),
        lock_timeout: form::duration(&required("PGARK_LOCK_TIMEOUT", env)?.text)
            .unwrap_or(Duration::from_secs(60)),
        retention: retention(env)?,
        s3: s3(env)?,
        service: service(env)?,
        runs_as_owner: runs_as_owner(env)?,
        warnings: nearest::unknown_variables(env),
        no_effect_yet,
    })
}

/// The directory of the backups, `none` for none.
///
/// # Errors
/// `Usage` when the variable and its file contradict each other.
pub fn backup_dir(flags: &Flags, env: &Environment) -> Result<PathBuf> {
    match &flags.dir {
        Some(dir) => Ok(dir.clone()),
        None => Ok(PathBuf::from(required("BACKUP_DIR", env)?.text)),
    }
}

/// Whether root shall hand its work to the owner of the backups.
///
/// # Errors
/// `Usage` for a malformed value.
pub fn runs_as_owner(env: &Environment) -> Result<bool> {
    Ok(setting("PGARK_RUN_AS", env)?.is_some())
}

/// The table's row of a name that this module knows to be there (a test walks them all).
fn variable(name: &str) -> Result<&'static Variable> {
    VARIABLES
        .iter()
        .find(|variable| variable.name == name)
        .ok_or_else(|| Error::failed(format!("{name} is missing in the table of variables")))
}

/// A variable's checked value, if somebody set it.
fn setting(name: &str, env: &Environment) -> Result<Option<Setting>> {
    lookup(variable(name)?, env)
}

/// A variable's checked value or its default.
fn required(name: &str, env: &Environment) -> Result<Setting> {
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

/// A file of settings is part of the contract but not yet of the program; one that would be
/// ignored is refused instead.
fn refuse_config_file(flags: &Flags, env: &Environment, default: &Path) -> Result<()> {
    let named = if let Some(path) = &flags.config {
        format!("--config {}", path.display())
    } else if let Some(found) = setting("PGARK_CONFIG", env)? {
        format!("{} {}", found.source, found.text)
    } else if default.exists() {
        format!("the configuration file {}", default.display())
    } else {
        return Ok(());
    };
    Err(Error::usage(format!(
        "{named} is not supported by this version of pgark: it reads flags and variables only"
    ))
    .hint("leave the file out and set variables; docs/configuration.md lists them"))
}

/// Checks the form of what later versions use. Refuses what would hurt if it were ignored
/// and names the rest in one line.
fn check_later(env: &Environment) -> Result<Option<String>> {
    let mut names = Vec::new();
    let mut features = Vec::new();
    for variable in VARIABLES {
        if variable.name == "PGARK_CONFIG" || matches!(variable.since, Since::Now) {
            continue;
        }
        let Some(found) = lookup(variable, env)? else {
            continue;
        };
        match variable.since {
            Since::Refused { what, hint } => {
                return Err(Error::usage(format!(
                    "{} is not supported by this version of pgark: {what}",
                    found.source
                ))
                .hint(hint));
            }
            Since::Later(feature) => {
                names.push(variable.name);
                if !features.contains(&feature) {
                    features.push(feature);
                }
            }
            Since::Now => {}
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

fn retention(env: &Environment) -> Result<Retention> {
    let count = |name| -> Result<u32> {
        let found = match variable(name)?.default {
            Some(_) => Some(required(name, env)?),
            None => setting(name, env)?,
        };
        Ok(found.and_then(|found| found.text.parse().ok()).unwrap_or(0))
    };
    Ok(Retention {
        days: count("BACKUP_RETENTION_DAYS")?,
        keep_daily: count("BACKUP_KEEP_DAILY")?,
        keep_weekly: count("BACKUP_KEEP_WEEKLY")?,
        keep_monthly: count("BACKUP_KEEP_MONTHLY")?,
        keep_yearly: count("BACKUP_KEEP_YEARLY")?,
        keep_min: count("BACKUP_KEEP_MIN")?,
    })
}

fn s3(env: &Environment) -> Result<Option<S3>> {
    let text = |name| Ok::<_, Error>(setting(name, env)?.map(|found| found.text));
    let Some(bucket) = text("S3_BUCKET")? else {
        return Ok(None);
    };
    let pair = (text("AWS_ACCESS_KEY_ID")?, text("AWS_SECRET_ACCESS_KEY")?);
    let keys = match pair {
        (Some(access_key_id), Some(secret)) => Some(S3Keys {
            access_key_id,
            secret_access_key: Secret::new(secret),
            session_token: text("AWS_SESSION_TOKEN")?.map(Secret::new),
        }),
        (None, None) => None,
        (found, _) => {
            let [set, unset] = match found {
                Some(_) => ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"],
                None => ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"],
            };
            return Err(Error::usage(format!("{set} is set and {unset} is not"))
                .hint("set both, or neither for the usual AWS chain (roles, files)"));
        }
    };
    let days = match text("S3_RETENTION_DAYS")? {
        Some(days) => days.parse().unwrap_or(0),
        None => retention(env)?.days,
    };
    Ok(Some(S3 {
        bucket,
        prefix: required("S3_PREFIX", env)?.text,
        region: required("AWS_REGION", env)?.text,
        endpoint: text("S3_ENDPOINT")?,
        force_path_style: text("S3_FORCE_PATH_STYLE")?.map(|text| form::switch(&text)),
        sse: text("S3_SSE")?,
        kms_key_id: text("S3_KMS_KEY_ID")?,
        keys,
        days,
    }))
}

fn service(env: &Environment) -> Result<Service> {
    Ok(Service {
        schedule: required("BACKUP_SCHEDULE", env)?.text,
        zone: env.get("TZ").map(str::to_owned),
        on_start: form::switch(&required("BACKUP_ON_START", env)?.text),
        http_addr: required("HTTP_ADDR", env)?.text,
        run_timeout: form::duration(&required("PGARK_RUN_TIMEOUT", env)?.text)
            .unwrap_or(Duration::from_secs(24 * 3600)),
        log_format: required("LOG_FORMAT", env)?.text,
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
    Ok(ConnectionSettings {
        explicit,
        defaults,
        password,
        password_source,
    })
}

#[cfg(test)]
mod tests;
