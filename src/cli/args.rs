//! The command line as values. No effects: nothing is opened, read or connected here.
//!
//! Invariant: only what this version does is in the help; wrong usage ends with exit code 2
//! (clap's own, and design §6).

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;

use crate::config::Flags;

/// PostgreSQL's `NAMEDATALEN` less one.
const NAME_LEN_MAX: usize = 63;

/// PostgreSQL backups that anyone can restore.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "pgark",
    version,
    disable_help_subcommand = true,
    after_help = "\
Set DB_HOST, DB_USER, DB_PASSWORD_FILE and DB_NAME, then: pgark backup
Settings: docs/configuration.md. Exit codes: docs/exit-codes.md."
)]
pub struct Args {
    #[command(subcommand)]
    pub verb: Verb,

    #[command(flatten)]
    pub global: Global,
}

/// Flags that every verb takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Global {
    /// Print the result as JSON
    #[arg(long, global = true)]
    pub json: bool,

    /// Print no progress; errors and warnings remain
    #[arg(long, short, global = true)]
    pub quiet: bool,

    /// Use this store only
    #[arg(long, global = true, value_name = "NAME")]
    pub store: Option<String>,

    /// The configuration file [PGARK_CONFIG, else /etc/pgark/pgark.toml if it exists]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Only this cluster of the configuration file
    #[arg(long, global = true, value_name = "NAME")]
    pub cluster: Option<String>,
}

/// Where the backups lie.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Place {
    /// Directory of the backups [BACKUP_DIR, else /backups]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// How much runs at once.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Width {
    /// Parallel connections [BACKUP_JOBS, else the cores, at most 4]
    #[arg(long, short, value_name = "N", value_parser = jobs)]
    pub jobs: Option<usize>,
}

#[derive(Debug, Clone, Subcommand)]
pub enum Verb {
    /// Run the service: backups by schedule, health over HTTP
    #[command(after_help = "\
Example:
  BACKUP_SCHEDULE='0 2 * * *' pgark serve        until SIGTERM; what a container runs")]
    Serve(Serve),

    /// Take a backup now
    #[command(after_help = "\
Examples:
  pgark backup                                   what DB_NAME says
  pgark backup --database app --dir /backups     one database, its name taken literally
  pgark backup --base                            the whole cluster, as files")]
    Backup(Backup),

    /// List backups, newest first
    #[command(after_help = "\
Examples:
  pgark list
  pgark list --before 2025-01-22 --json")]
    List(List),

    /// Show one backup: its tables, sizes and hashes
    #[command(after_help = "\
Example:
  pgark show backup_app_20250122_020015")]
    Show(Show),

    /// Read backups back and check every byte
    #[command(after_help = "\
Examples:
  pgark verify          the newest
  pgark verify --all    every one; exit code 4 if one is damaged

This proves that a backup is whole, not that it restores; a restore does.")]
    Verify(Verify),

    /// Restore a backup into a new database
    #[command(after_help = "\
Examples:
  pgark restore                                  the newest, into <database>_restored_<time>
  pgark restore latest --database app --into app_check
  pgark restore backup_app_20250122_020015 --dry-run
  pgark restore latest --data-dir /var/lib/postgresql/restored     a whole cluster

An existing database, and a directory that is not empty, is never touched.")]
    Restore(Restore),

    /// Delete the backups that nothing keeps, or show which and why
    #[command(after_help = "\
Examples:
  pgark prune --dry-run         the reason for every keep and expire
  pgark prune")]
    Prune(Prune),

    /// Bring the second store up to date now
    #[command(after_help = "\
Example:
  pgark replicate               what a run does after its dumps, and the service until it holds")]
    Replicate(Replicate),

    /// Show whether every database is backed up as promised
    #[command(after_help = "\
Examples:
  pgark status
  pgark status --exit-code      1 when a database is not")]
    Status(Status),

    /// Write a backup as plain SQL to stdout
    #[command(after_help = "\
Example:
  pgark cat latest | psql -v ON_ERROR_STOP=1 -d app")]
    Cat(Cat),

    /// See it work: backup, disaster and restore on a throwaway server
    #[command(after_help = "\
Example:
  pgark demo            needs PostgreSQL's server programs; leaves nothing behind")]
    Demo(Demo),
}

#[derive(Debug, Clone, clap::Args)]
pub struct Serve {
    #[command(flatten)]
    pub place: Place,
}

#[derive(Debug, Clone, clap::Args)]
pub struct Prune {
    /// Show what would be kept and deleted, and why; delete nothing
    #[arg(long)]
    pub dry_run: bool,

    #[command(flatten)]
    pub place: Place,
}

#[derive(Debug, Clone, clap::Args)]
pub struct Replicate {
    #[command(flatten)]
    pub place: Place,
}

#[derive(Debug, Clone, clap::Args)]
pub struct Status {
    /// Exit with 1 when a database has no backup as young as promised
    #[arg(long)]
    pub exit_code: bool,

    /// Ask the service that runs here (HTTP_ADDR) instead of the store: for a container's health check
    #[arg(long, conflicts_with = "exit_code")]
    pub probe: bool,

    #[command(flatten)]
    pub place: Place,
}

/// What started a run, for the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Trigger {
    Schedule,
    Start,
    Manual,
}

#[derive(Debug, Clone, clap::Args)]
pub struct Backup {
    /// Back up this database, its name taken literally; may be repeated [DB_NAME]
    #[arg(long, value_name = "NAME", value_parser = database)]
    pub database: Vec<String>,

    /// Take a base backup of the whole cluster instead of dumps
    #[arg(long, conflicts_with = "database")]
    pub base: bool,

    /// Only what changed since the newest base backup (PostgreSQL 17 and later)
    #[arg(long, requires = "base")]
    pub incremental: bool,

    /// Let the server send at most so much each second: 32k to 1g
    #[arg(long, requires = "base", value_name = "BYTES", value_parser = rate_kib)]
    pub max_rate: Option<u32>,

    /// Expire nothing afterwards
    #[arg(long)]
    pub no_prune: bool,

    // The service says it of its own runs.
    #[arg(long, hide = true, value_enum, default_value = "manual")]
    pub trigger: Trigger,

    /// gzip[:1-12], zstd[:1-19] or none [BACKUP_COMPRESSION, else gzip]
    #[arg(long, value_name = "CODEC")]
    pub compression: Option<String>,

    #[command(flatten)]
    pub width: Width,

    #[command(flatten)]
    pub place: Place,
}

#[derive(Debug, Clone, clap::Args)]
pub struct List {
    /// Only backups older than this: 2025-01-22, "2025-01-22 02:00" (UTC) or RFC 3339
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub before: Option<Timestamp>,

    #[command(flatten)]
    pub place: Place,
}

#[derive(Debug, Clone, clap::Args)]
pub struct Show {
    /// A backup's id, or `latest`
    #[arg(value_name = "BACKUP")]
    pub backup: String,

    #[command(flatten)]
    pub place: Place,
}

#[derive(Debug, Clone, clap::Args)]
pub struct Verify {
    /// A backup's id, or `latest`
    #[arg(
        value_name = "BACKUP",
        default_value = "latest",
        conflicts_with = "all"
    )]
    pub backup: String,

    /// Verify every backup
    #[arg(long)]
    pub all: bool,

    #[command(flatten)]
    pub width: Width,

    #[command(flatten)]
    pub place: Place,
}

#[derive(Debug, Clone, clap::Args)]
pub struct Restore {
    /// A backup's id, or `latest`
    #[arg(value_name = "BACKUP", default_value = "latest")]
    pub backup: String,

    /// The database whose newest backup `latest` means
    #[arg(long, value_name = "NAME", value_parser = database)]
    pub database: Option<String>,

    /// Name of the new database [<database>_restored_<time>]
    #[arg(long, value_name = "NEW", value_parser = database)]
    pub into: Option<String>,

    /// Restore a base backup into this empty or absent directory
    #[arg(long, value_name = "DIR", conflicts_with_all = ["into", "database", "keep"])]
    pub data_dir: Option<PathBuf>,

    /// Put a tablespace that lay in OLD into NEW; may be repeated
    #[arg(long, value_name = "OLD=NEW", requires = "data_dir", value_parser = mapping)]
    pub tablespace_mapping: Vec<(PathBuf, PathBuf)>,

    /// Show the plan and stop
    #[arg(long)]
    pub dry_run: bool,

    /// Keep the half-made database if the restore fails
    #[arg(long)]
    pub keep: bool,

    #[command(flatten)]
    pub width: Width,

    #[command(flatten)]
    pub place: Place,
}

#[derive(Debug, Clone, clap::Args)]
pub struct Cat {
    /// A backup's id, or `latest`
    #[arg(value_name = "BACKUP")]
    pub backup: String,

    #[command(flatten)]
    pub place: Place,
}

#[derive(Debug, Clone, clap::Args)]
pub struct Demo {
    /// Keep the backups that it made, and say where
    #[arg(long)]
    pub keep: bool,

    /// Rows of the sample database, in percent of the usual (some 150 MB)
    #[arg(long, value_name = "PERCENT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub scale: u32,

    #[command(flatten)]
    pub width: Width,
}

impl Args {
    /// What the configuration takes from the command line. `restore --database` is not among
    /// it: that chooses a backup, not what to back up.
    #[must_use]
    pub fn flags(&self) -> Flags {
        let mut flags = Flags {
            config: self.global.config.clone(),
            cluster: self.global.cluster.clone(),
            ..Flags::default()
        };
        let (place, width) = match &self.verb {
            Verb::Backup(verb) => {
                flags.database.clone_from(&verb.database);
                flags.compression.clone_from(&verb.compression);
                (Some(&verb.place), Some(&verb.width))
            }
            Verb::Serve(verb) => (Some(&verb.place), None),
            Verb::Prune(verb) => (Some(&verb.place), None),
            Verb::Status(verb) => (Some(&verb.place), None),
            Verb::Replicate(verb) => (Some(&verb.place), None),
            Verb::List(verb) => (Some(&verb.place), None),
            Verb::Show(verb) => (Some(&verb.place), None),
            Verb::Verify(verb) => (Some(&verb.place), Some(&verb.width)),
            Verb::Restore(verb) => (Some(&verb.place), Some(&verb.width)),
            Verb::Cat(verb) => (Some(&verb.place), None),
            Verb::Demo(verb) => (None, Some(&verb.width)),
        };
        flags.dir = place.and_then(|place| place.dir.clone());
        flags.jobs = width.and_then(|width| width.jobs);
        flags
    }
}

fn jobs(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(jobs @ 1..=64) => Ok(jobs),
        _ => Err("expected a whole number from 1 to 64".to_owned()),
    }
}

fn mapping(text: &str) -> Result<(PathBuf, PathBuf), String> {
    match text.split_once('=') {
        Some((old, new)) if old.starts_with('/') && new.starts_with('/') => {
            Ok((PathBuf::from(old), PathBuf::from(new)))
        }
        _ => Err("expected OLD=NEW, two absolute paths".to_owned()),
    }
}

/// `100m` → 102400 KiB; a number alone counts KiB, as pg_basebackup's.
fn rate_kib(text: &str) -> Result<u32, String> {
    let lower = text.to_ascii_lowercase();
    let (digits, shift) = match lower.as_bytes().last() {
        Some(b'k') => (&lower[..lower.len() - 1], 0),
        Some(b'm') => (&lower[..lower.len() - 1], 10),
        Some(b'g') => (&lower[..lower.len() - 1], 20),
        _ => (&lower[..], 0),
    };
    let kib = digits
        .parse()
        .ok()
        .and_then(|count: u32| count.checked_mul(1 << shift));
    kib.filter(|kib| (32..=1 << 20).contains(kib))
        .ok_or_else(|| "expected 32k to 1g, for example 50m".to_owned())
}

fn database(text: &str) -> Result<String, String> {
    if text.is_empty() {
        Err("a database's name is not empty".to_owned())
    } else if text.len() > NAME_LEN_MAX {
        Err(format!(
            "the name has {} bytes; PostgreSQL's names have at most {NAME_LEN_MAX}",
            text.len()
        ))
    } else {
        Ok(text.to_owned())
    }
}

/// Parses a moment. Without an offset it is UTC, as every time that pgark prints.
fn time(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let civil = match text.parse::<Date>() {
        // A date alone is its midnight; one with a time parses below.
        Ok(date) if text.len() <= 10 => date.to_datetime(jiff::civil::Time::midnight()),
        _ => text.parse::<DateTime>().map_err(|_| {
            "expected a time such as 2025-01-22, \"2025-01-22 02:00\" or 2025-01-22T02:00:00Z"
                .to_owned()
        })?,
    };
    civil
        .to_zoned(TimeZone::UTC)
        .map(|zoned| zoned.timestamp())
        .map_err(|_| "the time is out of range".to_owned())
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
