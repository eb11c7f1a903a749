//! Where the demo plays: a directory for the backups, a server of its own, the programs.
//!
//! Invariants: nothing of the machine's own PostgreSQL or of pgark's configuration is read or
//! touched, but for `PGARK_PG_BIN` and `TMPDIR`. Dropped, whole or half built, the server is
//! gone with its directory, and the backups too unless they are to be kept. A kill of pgark
//! leaves two directories under the temporary one; the server stops with pgark where `setpriv` is.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::app::App;
use crate::cancel::Token;
use crate::config::{Environment, Flags};
use crate::error::{Error, Result};
use crate::postgres::server::Throwaway;
use crate::postgres::tools::{Program, Tools};
use crate::postgres::{Client, Target};
use crate::units::{ByteSize, stamp};

/// Free space at scale 100: two databases, their WAL, the backups, and a second server.
const SPACE_BYTES: u64 = 1500 << 20;
/// How long a restored server may take to recover.
const RECOVERY_LIMIT: Duration = Duration::from_secs(600);
/// A server that is thrown away need not survive a power cut.
const SETTINGS: [(&str, &str); 6] = [
    ("fsync", "off"),
    ("synchronous_commit", "off"),
    ("full_page_writes", "off"),
    ("max_wal_size", "512MB"),
    ("maintenance_work_mem", "64MB"),
    ("autovacuum", "off"),
];

/// Everything that the steps work with. The fields are dropped from the first to the last.
pub(super) struct Stage {
    pub app: App,
    /// The database `postgres` of the throwaway server.
    pub admin: Target,
    pub pg_dump: Program,
    pub psql: Program,
    pub server_version: String,
    postgres: Program,
    programs: Option<PathBuf>,
    server: Throwaway,
    pub folder: Folder,
}

impl Stage {
    /// # Errors
    /// `Failed` when there is no server program, no space, or the server does not start.
    pub(super) fn open(jobs: Option<usize>, percent: u32, cancel: &Token) -> Result<Stage> {
        let process = Environment::from_process()?;
        let setting = process.get("PGARK_PG_BIN").map(PathBuf::from);
        let tools = Tools::find(setting.as_deref());
        let postgres = server_program(&tools)?;
        let bin = postgres.path.parent().unwrap_or(Path::new("/"));
        let (pg_dump, psql) = (
            tools.pick("pg_dump", postgres.version_num)?,
            tools.pick("psql", postgres.version_num)?,
        );
        let temporary = std::env::temp_dir();
        check_space(&temporary, percent)?;
        let folder = Folder::create(&temporary)?;
        cancel.check()?;
        let server = Throwaway::start_with(bin, &temporary, &SETTINGS)?;
        cancel.check()?;
        let app = App::new(
            &Flags {
                dir: Some(folder.path.clone()),
                database: vec![super::sample::DATABASE.to_owned()],
                jobs,
                ..Flags::default()
            },
            &environment(&server, setting.as_deref()),
            cancel,
        )?;
        let admin = app.pin(&[])?;
        let client = Client::connect(&admin)?;
        let server_version = client.parameter("server_version").unwrap_or_default();
        let number = server_version.split(' ').next().unwrap_or_default();
        Ok(Stage {
            server_version: number.to_owned(),
            app,
            admin,
            pg_dump,
            psql,
            postgres,
            programs: setting,
            server,
            folder,
        })
    }

    /// The directory of the server's socket.
    pub(super) fn socket_dir(&self) -> &Path {
        self.server.socket_dir()
    }

    /// A second server, on the data directory that `restore` makes.
    ///
    /// # Errors
    /// Those of `restore`, and `Failed` when the server does not start.
    pub(super) fn second_server(
        &self,
        restore: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<(Throwaway, Target)> {
        let bin = self.postgres.path.parent().unwrap_or(Path::new("/"));
        let place = std::env::temp_dir();
        let server = Throwaway::start_on(bin, &place, &SETTINGS, RECOVERY_LIMIT, restore)?;
        let environment = environment(&server, self.programs.as_deref());
        let flags = Flags {
            dir: Some(self.folder.path.clone()),
            ..Flags::default()
        };
        let target = App::new(&flags, &environment, &self.app.cancel)?.pin(&[])?;
        Ok((server, target))
    }

    /// One statement in the database `postgres`.
    pub(super) fn admin(&self, sql: &str) -> Result<()> {
        Client::connect(&self.admin)?.execute(sql)
    }

    /// Stops the server and removes what is not to be kept.
    ///
    /// # Errors
    /// `Failed` with the directory that could not be removed.
    pub(super) fn close(self) -> Result<()> {
        let Stage { server, folder, .. } = self;
        let stopped = server.stop();
        folder.remove().and(stopped)
    }
}

fn server_program(tools: &Tools) -> Result<Program> {
    tools.newest("postgres").map_err(|error| {
        let named = std::env::var_os("PGARK_PG_BIN").filter(|value| !value.is_empty());
        let hint = match named {
            Some(named) => format!(
                "PGARK_PG_BIN names {}; add the directory of PostgreSQL's server programs there, or unset it and install \
                 the package postgresql (Debian: apt-get install postgresql)",
                named.display()
            ),
            None => "install the package postgresql (Debian: apt-get install postgresql) or set PGARK_PG_BIN to the \
                     directory of the programs"
                .to_owned(),
        };
        error
            .context("the demo needs PostgreSQL's server programs")
            .hint(hint)
    })
}

/// What pgark would be told by variables. A password is set so that the machine's own is not read;
/// the server asks for none.
fn environment(server: &Throwaway, programs: Option<&Path>) -> Environment {
    let mut pairs = vec![
        ("DB_HOST", server.socket_dir().display().to_string()),
        ("DB_PORT", server.port().to_string()),
        ("DB_USER", server.user().to_owned()),
        ("DB_PASSWORD", "not asked for".to_owned()),
        ("PGARK_CONFIG", "/dev/null".to_owned()),
    ];
    pairs.extend(programs.map(|path| ("PGARK_PG_BIN", path.display().to_string())));
    Environment::from_pairs(pairs)
}

fn check_space(dir: &Path, percent: u32) -> Result<()> {
    let needed = SPACE_BYTES / 100 * u64::from(percent.max(20));
    let free = rustix::fs::statvfs(dir)
        .map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    if free >= needed {
        return Ok(());
    }
    Err(Error::failed(format!(
        "the demo needs {} in {}, where {} are free",
        ByteSize(needed),
        dir.display(),
        ByteSize(free)
    ))
    .hint("set TMPDIR to a directory with more space, or make it smaller: --scale 25"))
}

/// The directory of the backups.
pub(super) struct Folder {
    pub path: PathBuf,
    /// Whether it stays.
    pub keep: bool,
}

impl Folder {
    fn create(parent: &Path) -> Result<Folder> {
        let name = format!(
            "pgark-demo-{}-{}",
            stamp(crate::clock::now()),
            std::process::id()
        );
        let path = parent.join(name);
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|error| {
                Error::failed(format!("{} cannot be made: {error}", path.display()))
                    .hint("set TMPDIR to a directory that you may write")
            })?;
        Ok(Folder { path, keep: false })
    }

    fn remove(&self) -> Result<()> {
        if self.keep {
            return Ok(());
        }
        match std::fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::failed(
                format!("{} cannot be removed: {error}", self.path.display()),
            )
            .hint("remove it by hand")),
            _ => Ok(()),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = self.remove();
    }
}
