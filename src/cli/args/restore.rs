//! The arguments of `restore` and `wal-get`. No effects.

use std::path::PathBuf;

use super::values::{Along, database, mapping, timeline};
use super::{Place, Width};
use crate::units::SystemId;

/// How a server that recovers comes by its WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum WalMode {
    /// All of it is put into the directory: the server starts where pgark is not
    Fetch,
    /// The server asks `pgark wal-get` for each segment
    Get,
}

#[derive(Debug, Clone, clap::Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag")]
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
    #[arg(long, value_name = "DIR", conflicts_with_all = ["into", "database", "keep", "replace", "table", "globals", "server"])]
    pub data_dir: Option<PathBuf>,

    /// With --data-dir: recover to this moment: a time (2025-01-22T14:05:07+01:00), an LSN
    /// (16/B374D848), the name of a restore point, xid:N, or `latest` [the backup's own end]
    #[arg(long, value_name = "MOMENT", requires = "data_dir")]
    pub at: Option<String>,

    /// Stop just before that moment instead of just after it
    #[arg(long, requires = "at")]
    pub exclusive: bool,

    /// Along this timeline: its number, or `latest`
    #[arg(long, value_name = "N", requires = "at", value_parser = timeline)]
    pub timeline: Option<Along>,

    /// Put the WAL into the directory, or let the server fetch it by `pgark wal-get`
    #[arg(
        long,
        value_name = "HOW",
        requires = "at",
        value_enum,
        default_value = "fetch"
    )]
    pub wal: WalMode,

    /// Start the server there, and wait until it has recovered
    #[arg(long, requires = "data_dir", conflicts_with = "dry_run")]
    pub start: bool,

    /// Put a tablespace that lay in OLD into NEW; may be repeated
    #[arg(long, value_name = "OLD=NEW", requires = "data_dir", value_parser = mapping)]
    pub tablespace_mapping: Vec<(PathBuf, PathBuf)>,

    /// Take the place of the database (of --into, else of the backup's own); the old one is kept
    #[arg(long, conflicts_with = "table")]
    pub replace: bool,

    /// End the sessions that are connected when the swap comes
    #[arg(long, requires = "replace")]
    pub disconnect: bool,

    /// Only this table, `table` or `schema.table`, with what belongs to it; may be repeated
    #[arg(long, value_name = "TABLE")]
    pub table: Vec<String>,

    /// Restore roles and tablespaces first; those that exist are left alone
    #[arg(long)]
    pub globals: bool,

    /// Into another server: a connection string or URI [the server of DB_HOST]
    #[arg(long, value_name = "CONNINFO")]
    pub server: Option<String>,

    /// Show the plan, look whether the server can take it, and stop
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
pub struct WalGet {
    /// What the server wants: its %f
    #[arg(value_name = "SEGMENT")]
    pub segment: String,

    /// Where it wants it: its %p
    #[arg(value_name = "PATH")]
    pub path: PathBuf,

    /// Of this cluster [of ./global/pg_control]
    #[arg(long, value_name = "ID")]
    pub system_id: Option<SystemId>,

    /// Fetch so many segments ahead
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=256))]
    pub prefetch: u16,

    // It says so to itself: fetch what comes behind, and end.
    #[arg(long, hide = true)]
    pub fill: bool,

    #[command(flatten)]
    pub place: Place,
}
