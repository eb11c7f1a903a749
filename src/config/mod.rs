//! Configuration: flags, variables and `pgark.toml` become one validated value for each cluster.
//!
//! Invariants: nothing that a user set is ignored silently (it is used, refused, or named
//! in a warning); no secret reaches an error or a warning; [`VARIABLES`] is the only list
//! of variables, from which parsing, `docs/configuration.md` and the "did you mean"
//! warnings all follow. Reads files (`NAME_FILE`), writes nothing: a crash leaves nothing.

mod anomaly;
mod databases;
mod docs;
mod encryption;
mod environment;
mod file;
mod form;
mod load;
mod nearest;
mod stores;
mod table;
mod wal;

use std::path::PathBuf;
use std::time::Duration;

pub use anomaly::Anomaly;
pub use databases::Databases;
pub use docs::markdown;
pub use encryption::Encryption;
pub use environment::{Environment, SECRETS_ON_STDIN, Secret};
pub use form::Form;
pub use load::{config_path, load, root_dir, runs_as_owner};
pub use nearest::distance;
pub use table::{Section, Since, VARIABLES, Variable};
pub use wal::{SlotPolicy, Wal};

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
    /// `--cluster NAME`.
    pub cluster: Option<String>,
}

/// Whether a cluster has to be told from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Among {
    /// There is no other.
    Alone,
    /// One of several: its name stands before its ids and lines.
    Several,
    /// One of several, which `--cluster` named: only its ids need the name.
    Chosen,
}

/// Everything that a run needs to know of one cluster.
#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools, reason = "four answers, not a state")]
pub struct Config {
    /// The cluster's name in logs and lists.
    pub cluster: String,
    pub among: Among,
    /// The variables as this cluster sees them: the file's settings are among them.
    pub environment: Environment,
    pub databases: Databases,
    /// Whether somebody named the databases (flag, `DB_NAME` or `PGDATABASE`). If not,
    /// `databases` is pgark's default, and a service file's `dbname` goes before it.
    pub databases_given: bool,
    /// Where locks and records lie: the directory of its first local store.
    pub dir: PathBuf,
    /// Runs write to the first; the others are filled from it. Never empty.
    pub stores: Vec<StoreConfig>,
    /// Runs of the service at once, over all clusters.
    pub max_runs: usize,
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
    /// When a backup is suspect.
    pub anomaly: Anomaly,
    pub service: Service,
    pub wal: Wal,
    /// `PGARK_RUN_AS`: whether root hands its work to the owner of `dir`.
    pub runs_as_owner: bool,
    /// For stderr, one line each, on every verb.
    pub warnings: Vec<String>,
    /// One line for `backup`: variables that are set and have no effect yet.
    pub no_effect_yet: Option<String>,
}

impl Config {
    /// Whether `dir` is a local store, and not only where locks and records lie.
    #[must_use]
    pub fn has_local(&self) -> bool {
        let mut stores = self.stores.iter();
        stores.any(|store| matches!(store.place, Place::Local(_)))
    }
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

/// A place for backups.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    pub name: String,
    pub place: Place,
    pub retention: Retention,
    /// The variables as this store sees them.
    pub environment: Environment,
}

/// Where a store is.
#[derive(Debug, Clone)]
pub enum Place {
    Local(PathBuf),
    S3(Box<S3>),
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
    pub storage_class: Option<String>,
    /// Certificates that may sign the server's.
    pub ca_file: Option<PathBuf>,
    /// None: the usual AWS chain.
    pub keys: Option<S3Keys>,
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
    /// When to take full base backups, and incremental ones, in the same form.
    pub base_schedule: Option<String>,
    pub base_incremental_schedule: Option<String>,
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
    /// `HEARTBEAT_URL`: who hears of runs that ended well.
    pub heartbeat: Option<Secret>,
}

/// Where the server is and who asks, in libpq's keywords.
///
/// The order of use: `explicit`, then `PG*`, the service file and `.pgpass`, then `defaults`.
#[derive(Debug, Clone)]
pub struct ConnectionSettings {
    /// Keyword and value, from `DB_*`.
    pub explicit: Vec<(String, String)>,
    /// `DB_CONNINFO`: what `explicit` leaves open. It may hold a password.
    pub conninfo: Option<Secret>,
    /// `DB_SSLPASSWORD`.
    pub key_password: Option<Secret>,
    /// Keyword and value, pgark's own.
    pub defaults: Vec<(String, String)>,
    /// From `DB_PASSWORD`, `DB_PASSWORD_FILE` or its default path.
    pub password: Option<Secret>,
    /// The variable, or variable and path, that gave the password; for messages.
    pub password_source: Option<String>,
}

#[cfg(test)]
mod tests;
