//! A throwaway PostgreSQL server, empty or on a restored data directory: for `pgark demo`, and later for drills.
//!
//! Invariants: it listens on a Unix socket in a private directory and on no TCP port; it
//! never runs as root; dropping it stops the server and removes the directory. When pgark
//! itself is killed, the server stops too where util-linux's `setpriv` is installed, and the
//! directory stays.

mod keeper;

use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};

use super::process::{Child, clean_command};
use crate::error::{Error, Result};

const INITDB_LIMIT: Duration = Duration::from_secs(120);
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(30);
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// `sun_path` holds 107 bytes and a zero on Linux, 103 on others.
const SOCKET_PATH_LEN_MAX: usize = 100;
const PORT: u16 = 5432;
const SUPERUSER: &str = "postgres";
/// The data directory in the private one.
const DATA: &str = "data";
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A running server of its own. Dropped, it is stopped and its directory removed.
pub struct Throwaway {
    private: PathBuf,
    /// Dropping the sender asks the keeper to stop the server.
    stop: Option<Sender<()>>,
    keeper: Option<JoinHandle<()>>,
}

impl Throwaway {
    /// Makes a cluster with the programs of `bin_dir` in a new directory under `dir` and
    /// starts it. When pgark runs as root, the server runs as `postgres` or `nobody`, who
    /// must be able to pass through `dir`.
    ///
    /// # Errors
    /// `Failed` with the tail of the server's log; `Usage` when `dir` is too long a path.
    pub fn start(bin_dir: &Path, dir: &Path) -> Result<Throwaway> {
        Self::start_with(bin_dir, dir, &[])
    }

    /// As [`Throwaway::start`], with settings of the server (`wal_level`, `logical`).
    ///
    /// # Errors
    /// As [`Throwaway::start`].
    pub fn start_with(bin_dir: &Path, dir: &Path, settings: &[(&str, &str)]) -> Result<Throwaway> {
        Self::on(bin_dir, dir, settings, START_LIMIT, init_cluster)
    }

    /// A server on the data directory that `restore` makes at the path that it is given, whose parent belongs to
    /// the server's user. It is up when its recovery is over, for which it has `limit`.
    ///
    /// # Errors
    /// As [`Throwaway::start`], and those of `restore`.
    pub fn start_on(
        bin_dir: &Path,
        dir: &Path,
        settings: &[(&str, &str)],
        limit: Duration,
        restore: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Throwaway> {
        // It lets nobody in before, and needs no more connections and locks than it is given here.
        let settings: Vec<_> = settings
            .iter()
            .copied()
            .chain([("hot_standby", "off")])
            .collect();
        Self::on(bin_dir, dir, &settings, limit, |_, private, _| {
            restore(&private.join(DATA))
        })
    }

    fn on(
        bin_dir: &Path,
        dir: &Path,
        settings: &[(&str, &str)],
        limit: Duration,
        make: impl FnOnce(&Path, &Path, Option<Account>) -> Result<()>,
    ) -> Result<Throwaway> {
        let bin_dir = bin_dir.canonicalize().map_err(|error| {
            Error::failed(format!("{} cannot be used: {error}", bin_dir.display()))
                .hint("install the server (Debian: apt-get install postgresql) or set PGARK_PG_BIN")
        })?;
        let account = Account::unprivileged();
        let private = private_directory(dir, account)?;
        // From here on the drop removes what was made.
        let mut server = Throwaway {
            private,
            stop: None,
            keeper: None,
        };
        make(&bin_dir, &server.private, account)?;
        let command = server_command(&bin_dir, &server.private, account, settings)?;
        let (stop, stopped) = bounded(0);
        let (report, ready) = bounded(1);
        let socket = server.socket_path();
        server.stop = Some(stop);
        server.keeper = Some(std::thread::spawn(move || {
            keeper::keep(command, (&socket, limit), &report, &stopped);
        }));
        match ready.recv() {
            Ok(Ok(())) => Ok(server),
            Ok(Err(error)) => Err(server.with_log(&error)),
            Err(_) => Err(Error::failed("the throwaway server's keeper ended early")),
        }
    }

    /// The directory of the Unix socket: the `host` of a connection.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        &self.private
    }

    /// The number in the socket's name; no TCP port is open.
    #[must_use]
    pub fn port(&self) -> u16 {
        PORT
    }

    /// The superuser; no password is asked.
    #[must_use]
    pub fn user(&self) -> &'static str {
        SUPERUSER
    }

    /// The last lines of the server's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        tail(&self.private.join("log"))
    }

    /// Stops the server and removes its directory.
    ///
    /// # Errors
    /// `Failed` when the directory cannot be removed.
    pub fn stop(mut self) -> Result<()> {
        self.end().map_err(|error| {
            Error::failed(format!(
                "{} cannot be removed: {error}",
                self.private.display()
            ))
            .hint("remove it by hand")
        })
    }

    fn end(&mut self) -> std::io::Result<()> {
        drop(self.stop.take());
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
        match std::fs::remove_dir_all(&self.private) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn socket_path(&self) -> PathBuf {
        self.private.join(format!(".s.PGSQL.{PORT}"))
    }

    fn with_log(&self, error: &Error) -> Error {
        let log = self.log_tail();
        if log.is_empty() {
            error.clone()
        } else {
            Error::failed(format!(
                "{}; the server's log ends with:\n{log}",
                error.fact
            ))
        }
    }
}

impl Drop for Throwaway {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Whom the server runs as, when pgark is root. PostgreSQL refuses root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Account {
    uid: u32,
    gid: u32,
}

impl Account {
    fn unprivileged() -> Option<Account> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let nobody = Account {
            uid: 65_534,
            gid: 65_534,
        };
        Some(
            Account::named(&passwd, "postgres")
                .or_else(|| Account::named(&passwd, "nobody"))
                .unwrap_or(nobody),
        )
    }

    /// Reads a line of passwd(5).
    fn named(passwd: &str, name: &str) -> Option<Account> {
        let line = passwd
            .lines()
            .find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        let uid = fields.next()?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        (uid != 0).then_some(Account { uid, gid })
    }

    /// The standard library drops root's supplementary groups along with the user.
    fn apply(account: Option<Account>, command: &mut Command) {
        if let Some(account) = account {
            command.uid(account.uid).gid(account.gid);
        }
    }
}

fn private_directory(dir: &Path, account: Option<Account>) -> Result<PathBuf> {
    let failed =
        |error: std::io::Error| Error::failed(format!("{} cannot be used: {error}", dir.display()));
    let dir = dir.canonicalize().map_err(failed)?;
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    let private = dir.join(format!("pgark-server-{}-{n}", std::process::id()));
    let length = private.join(format!(".s.PGSQL.{PORT}")).as_os_str().len();
    if length > SOCKET_PATH_LEN_MAX {
        return Err(Error::usage(format!(
            "the path of the server's socket under {} has {length} bytes; at most \
             {SOCKET_PATH_LEN_MAX} are possible",
            dir.display()
        ))
        .hint("use a directory with a shorter path, such as /tmp (TMPDIR)"));
    }
    DirBuilder::new()
        .mode(0o700)
        .create(&private)
        .map_err(failed)?;
    if let Some(account) = account {
        let owned = std::os::unix::fs::chown(&private, Some(account.uid), Some(account.gid));
        if let Err(error) = owned {
            let _ = std::fs::remove_dir(&private);
            return Err(failed(error));
        }
    }
    Ok(private)
}

/// A program's command as the server's user, at home in the private directory.
fn command_in(program: &Path, private: &Path, account: Option<Account>) -> Command {
    let mut command = clean_command(program);
    command.current_dir(private).env("HOME", private);
    Account::apply(account, &mut command);
    command
}

fn init_cluster(bin_dir: &Path, private: &Path, account: Option<Account>) -> Result<()> {
    let mut command = command_in(&bin_dir.join("initdb"), private, account);
    command
        .arg("-D")
        .arg(private.join(DATA))
        .args([
            "-U",
            SUPERUSER,
            "--auth=trust",
            "--encoding=UTF8",
            "--no-locale",
        ])
        // The cluster is thrown away when the machine goes down.
        .args(["--data-checksums", "--no-sync"])
        .stdout(Stdio::null());
    let finished = Child::spawn("initdb", &mut command)
        .map_err(|error| {
            error.hint(format!(
                "the server's programs are expected in {}; and when pgark runs as root, the user \
                 postgres or nobody must be able to enter {}",
                bin_dir.display(),
                private.display()
            ))
        })?
        .wait_for(INITDB_LIMIT)?;
    if finished.status.success() {
        return Ok(());
    }
    Err(Error::failed(format!(
        "initdb failed ({}): {}",
        finished.status,
        finished.stderr.trim()
    )))
}

fn server_command(
    bin_dir: &Path,
    private: &Path,
    account: Option<Account>,
    settings: &[(&str, &str)],
) -> Result<Command> {
    let postgres = bin_dir.join("postgres");
    let mut command = match parent_death_wrapper(&postgres, private, account) {
        Some(setpriv) => {
            let mut command = command_in(&setpriv, private, account);
            command.args(["--pdeathsig", "INT", "--"]).arg(&postgres);
            command
        }
        None => command_in(&postgres, private, account),
    };
    command
        .arg("-D")
        .arg(private.join(DATA))
        .arg("-k")
        .arg(private);
    let own = [
        ("listen_addresses", ""),
        ("unix_socket_permissions", "0700"),
        ("logging_collector", "off"),
        // A restored cluster must not reach into production (replication, archiving).
        ("archive_mode", "off"),
        ("synchronous_standby_names", ""),
        ("max_logical_replication_workers", "0"),
    ];
    for (name, value) in own.iter().chain(settings) {
        command.arg("-c").arg(format!("{name}={value}"));
    }
    command.arg("-p").arg(PORT.to_string());
    let log = private.join("log");
    let file = File::create(&log)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    command.stdout(file.try_clone()?).stderr(file);
    // Its own group: Ctrl-C is for pgark, which then stops the server in order.
    command.process_group(0);
    Ok(command)
}

/// `setpriv` of util-linux, if it can tie a child's life to ours: the standard library has no
/// safe way to call prctl(2) between fork and exec. Busybox's setpriv lacks the option.
fn parent_death_wrapper(
    postgres: &Path,
    private: &Path,
    account: Option<Account>,
) -> Option<PathBuf> {
    ["/usr/bin/setpriv", "/bin/setpriv", "/usr/local/bin/setpriv"]
        .iter()
        .map(PathBuf::from)
        .filter(|path| path.is_file())
        .find(|path| {
            let mut probe = command_in(path, private, account);
            probe
                .args(["--pdeathsig", "INT", "--"])
                .arg(postgres)
                .arg("--version");
            Child::spawn("setpriv", probe.stdout(Stdio::null()))
                .and_then(|child| child.wait_for(KILL_LIMIT))
                .is_ok_and(|finished| finished.status.success())
        })
}

/// The last lines of a file, at most 4 KiB.
pub(super) fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(4096)))?;
        let mut bytes = Vec::new();
        file.take(4096).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    OsStr::from_bytes(&bytes)
        .to_string_lossy()
        .trim()
        .to_owned()
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
