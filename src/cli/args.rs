//! The command line as values. No effects: nothing is opened, read or connected here.
//!
//! Invariant: only what this version does is in the help; wrong usage ends with exit code 2
//! (clap's own, and design §6).

mod flags;
mod restore;
mod values;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use jiff::Timestamp;

pub use self::restore::{Restore, WalGet, WalMode};
use self::values::{database, jobs, rate_kib, time};

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
  pgark restore latest --replace                 restored beside, checked, then swapped in
  pgark restore latest --table orders --into app the lost table back beside the others
  pgark restore latest --data-dir /var/lib/postgresql/restored     a whole cluster
  pgark restore --data-dir DIR --at 2025-01-22T14:05:07Z           as it was then; `--at latest`: all there is

Without --replace and --table an existing database is never touched, a directory that is not empty never.")]
    Restore(Restore),

    /// Give a server that recovers a file of WAL: its restore_command
    #[command(after_help = "\
Example:
  restore_command = 'pgark wal-get --dir /backups %f %p'

Exit code 0: it is there. 1: it is proven that the archive ends before it. 255: anything else; the
server stops rather than end its recovery early.")]
    WalGet(WalGet),

    /// Look what backups need and do not have, and print what mends it
    #[command(after_help = "\
Examples:
  pgark check                   exit code 1 when a backup would fail or leave something out
  pgark check --json

Nothing is changed on the server, and nothing is left in a store.")]
    Check(Check),

    /// Say that a suspect backup is as it should be
    #[command(after_help = "\
Example:
  pgark accept backup_app_20250122_020015

A backup that holds far less than the good ones before it is suspect: it is kept, `latest` passes
over it, and nothing of its database expires until somebody accepts it.")]
    Accept(Accept),

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

    /// Show the replication slot and what it holds on the server, or drop it
    #[command(after_help = "\
Examples:
  pgark slot
  pgark slot drop        ends WAL streaming: what was not received is lost, the next stream begins anew")]
    Slot(Slot),

    // What the service runs beside itself.
    #[command(hide = true)]
    WalStream(WalStream),

    /// Write a backup as plain SQL to stdout
    #[command(after_help = "\
Example:
  pgark cat latest | psql -v ON_ERROR_STOP=1 -d app")]
    Cat(Cat),

    /// Make a key for encrypted backups
    #[command(after_help = "\
Example:
  pgark keygen --out pgark.key      then set BACKUP_ENCRYPT_RECIPIENTS to what it prints

The key opens the backups: keep it where they are not. docs/encryption.md")]
    Keygen(Keygen),

    /// See it work: backup, disaster and restore on a throwaway server
    #[command(after_help = "\
Example:
  pgark demo            needs PostgreSQL's server programs; leaves nothing behind")]
    Demo(Demo),

    /// Print what makes a shell complete pgark's words
    #[command(after_help = "\
Example:
  pgark completions bash > /etc/bash_completion.d/pgark")]
    Completions(Completions),

    /// Print the manual page
    #[command(after_help = "\
Example:
  pgark man | man -l -")]
    Man,
}

#[derive(Debug, Clone, clap::Args)]
pub struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

#[derive(Debug, Clone, clap::Args)]
pub struct Serve {
    #[command(flatten)]
    pub place: Place,
}

#[derive(Debug, Clone, clap::Args)]
pub struct Check {
    /// Look at this database, its name taken literally; may be repeated [DB_NAME]
    #[arg(long, value_name = "NAME", value_parser = database)]
    pub database: Vec<String>,

    #[command(flatten)]
    pub width: Width,

    #[command(flatten)]
    pub place: Place,
}

#[derive(Debug, Clone, clap::Args)]
pub struct Accept {
    /// A backup's id; those of its database that hold no less are accepted with it
    #[arg(value_name = "BACKUP")]
    pub backup: String,

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
    Gap,
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
pub struct Cat {
    /// A backup's id, or `latest`
    #[arg(value_name = "BACKUP")]
    pub backup: String,

    #[command(flatten)]
    pub place: Place,
}

#[derive(Debug, Clone, clap::Args)]
pub struct WalStream {
    #[command(flatten)]
    pub place: Place,
}

/// What becomes of the slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum SlotAct {
    /// Drop it: the server keeps no WAL for pgark any more
    Drop,
}

#[derive(Debug, Clone, clap::Args)]
pub struct Slot {
    /// Without it, the slot is shown
    #[arg(value_enum)]
    pub act: Option<SlotAct>,

    #[command(flatten)]
    pub place: Place,
}

#[derive(Debug, Clone, clap::Args)]
pub struct Keygen {
    /// Write the secret key into this new file; without it, to stdout
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
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

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
