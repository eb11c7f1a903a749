//! PostgreSQL servers for tests, each on a private copy of a prepared cluster.
//!
//! Invariants: a server listens on loopback and on a socket in its own directory only.
//! A shell supervises it and holds the reading end of a pipe from this process: when
//! the pipe closes, because the server is dropped or the process died in whatever way,
//! the shell stops the server and removes its directory.

use super::{Run, TempDir, as_server_user, cache, run, until};
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

/// The password of user postgres over TCP. It has a blank, so that bad quoting shows.
pub(crate) const PASSWORD: &str = "sup3r secret";

/// What a test wants otherwise than usual.
#[derive(Default)]
pub(crate) struct Setup<'a> {
    /// Settings, as `name=value`.
    pub(crate) settings: &'a [&'a str],
    /// Replaces pg_hba.conf (default: socket trusted, TCP with SCRAM).
    pub(crate) hba: Option<&'a str>,
    /// Runs on the data directory before the start, to place certificates and the like.
    pub(crate) prepare: Option<&'a dyn Fn(&Path)>,
    /// Starts from the regression database instead of an empty cluster.
    pub(crate) regression: bool,
    /// The state that the server is to reach (default: `ready`), as postmaster.pid says it.
    pub(crate) state: Option<&'a str>,
    /// Variables of the server process.
    pub(crate) environment: &'a [(&'a str, &'a str)],
}

/// A running server.
pub(crate) struct Server {
    pub(crate) major: u32,
    pub(crate) port: u16,
    supervisor: Child,
    directory: TempDir,
}

impl Server {
    /// An empty cluster (UTF8, C.UTF-8) of this major: 15 to 19. A test of 16 or 19, which not every
    /// machine can have, has `on_16` or `on_19` in its name, by which `make test` leaves it out.
    pub(crate) fn start(major: u32) -> Self {
        Self::start_with(major, &Setup::default())
    }

    /// A private copy of PostgreSQL's regression database (15 or 17), named `regression`.
    pub(crate) fn regression(major: u32) -> Self {
        Self::start_with(
            major,
            &Setup {
                regression: true,
                ..Setup::default()
            },
        )
    }

    /// One server for the whole process; tests on it use databases of their own names.
    pub(crate) fn shared(major: u32) -> &'static Self {
        static SHARED: [OnceLock<Server>; 5] = [const { OnceLock::new() }; 5];
        let place = (15..20).position(|known| known == major);
        SHARED[place.unwrap()].get_or_init(|| Self::start(major))
    }

    pub(crate) fn start_with(major: u32, setup: &Setup) -> Self {
        // Somebody else may take the free port before the server does.
        (0..5)
            .find_map(|_| Self::try_start(major, setup))
            .expect("no free port in five attempts")
    }

    fn try_start(major: u32, setup: &Setup) -> Option<Self> {
        let directory = TempDir::new();
        directory.give_to_postgres();
        unpack_cluster(major, directory.path(), setup.regression);
        let data = directory.join("data");
        if let Some(prepare) = setup.prepare {
            prepare(&data);
        }
        if let Some(hba) = setup.hba {
            // Written over, not replaced: the file keeps its owner.
            std::fs::write(data.join("pg_hba.conf"), hba).unwrap();
        }
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let supervisor = supervise(&server_command(major, &directory, port, setup), &directory);
        let server = Server {
            major,
            port,
            supervisor,
            directory,
        };
        let state = setup.state.unwrap_or("ready");
        server.wait_until(state).then_some(server)
    }

    /// Whether it came up; `false` if its port was taken.
    fn wait_until(&self, wanted: &str) -> bool {
        let mut taken = false;
        until("the server to start", || {
            let log = self.log();
            taken = log.contains("could not create any TCP/IP sockets");
            assert!(taken || !log.contains("FATAL:  "), "server log:\n{log}");
            // The last line of this file is the postmaster's state.
            let state = std::fs::read_to_string(self.data_dir().join("postmaster.pid"));
            taken || state.is_ok_and(|text| text.trim_end().ends_with(wanted))
        });
        !taken
    }

    /// What the server logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// The directory of its socket, trusted for user postgres.
    pub(crate) fn socket_dir(&self) -> &Path {
        self.directory.path()
    }

    /// The programs of its major.
    pub(crate) fn bin(&self) -> PathBuf {
        bin(self.major)
    }

    /// The variables with which pgark reaches it as superuser over TCP with a password.
    pub(crate) fn env(&self) -> Vec<(&'static str, String)> {
        vec![
            ("DB_HOST", "127.0.0.1".to_owned()),
            ("DB_PORT", self.port.to_string()),
            ("DB_USER", "postgres".to_owned()),
            ("DB_PASSWORD", PASSWORD.to_owned()),
            ("PATH", format!("{}:/usr/bin:/bin", self.bin().display())),
        ]
    }

    /// A connection URL with the password in it.
    pub(crate) fn url(&self, database: &str) -> String {
        let password = PASSWORD.replace(' ', "%20");
        format!(
            "postgresql://postgres:{password}@127.0.0.1:{}/{database}",
            self.port
        )
    }

    /// One of its client programs, connected as superuser through the socket.
    pub(crate) fn client(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin().join(program));
        command.env_clear().env("PATH", "/usr/bin:/bin");
        command.env("PGHOST", self.socket_dir());
        command.env("PGPORT", self.port.to_string());
        command.env("PGUSER", "postgres").env("LC_ALL", "C.UTF-8");
        command
    }

    /// Runs SQL that must succeed; the rows, unaligned, without the last line's end.
    #[track_caller]
    pub(crate) fn psql(&self, database: &str, sql: &str) -> String {
        let done = self.try_psql(database, sql).assert_code(0);
        done.stdout.trim_end_matches('\n').to_owned()
    }

    /// Runs SQL, stopping at the first error (psql's exit code 3).
    pub(crate) fn try_psql(&self, database: &str, sql: &str) -> Run {
        let mut psql = self.client("psql");
        psql.args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-d", database]);
        feed(psql, sql.as_bytes())
    }

    /// Restores a plain dump the way a person would, `gunzip -c FILE | psql`: without
    /// ON_ERROR_STOP, which the dump has to set itself. `.gz`, `.zst` or plain.
    pub(crate) fn psql_file(&self, database: &str, path: &Path) -> Run {
        let unpack = match path.extension().and_then(|suffix| suffix.to_str()) {
            Some("gz") => "gunzip",
            Some("zst") => "unzstd",
            _ => "cat",
        };
        let mut unpacker = Command::new(unpack);
        if unpack != "cat" {
            unpacker.arg("-c");
        }
        let file = std::fs::File::open(path).unwrap();
        unpacker.stdin(file).stdout(Stdio::piped());
        unpacker.stderr(Stdio::null());
        let mut unpacker = unpacker.spawn().unwrap();
        let mut psql = self.client("psql");
        psql.args(["-Xq", "-d", database]);
        psql.stdin(unpacker.stdout.take().unwrap());
        let done = run(&mut psql);
        // With it goes our end of the pipe: a psql that stopped early must stop the unpacker.
        drop(psql);
        let _ = unpacker.wait();
        done
    }

    /// Creates an empty database from template0, of whatever name.
    #[track_caller]
    pub(crate) fn createdb(&self, name: &str) {
        run(self
            .client("createdb")
            .args(["--template=template0", "--", name]))
        .assert_code(0);
    }

    /// Ends the server as a crash would; its directory stays until the drop.
    pub(crate) fn crash(&self) {
        run(as_server_user(self.bin().join("pg_ctl"))
            .args(["stop", "-m", "immediate", "-w", "-D"])
            .arg(self.data_dir()))
        .assert_code(0);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.supervisor.stdin.take());
        let _ = self.supervisor.wait();
    }
}

/// The directory of the programs of a major.
pub(crate) fn bin(major: u32) -> PathBuf {
    let system = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
    if system.join("postgres").exists() {
        return system;
    }
    let root = cache().join(format!("pg/{major}"));
    assert!(
        root.join("complete").exists(),
        "PostgreSQL {major} is missing: run scripts/setup.sh test"
    );
    root.join(format!("usr/lib/postgresql/{major}/bin"))
}

/// Puts a copy of a prepared cluster at `into/data`.
fn unpack_cluster(major: u32, into: &Path, regression: bool) {
    let (source, mut command) = if regression {
        let archive = cache().join(format!("regress/{major}.tar.zst"));
        let mut tar = Command::new("tar");
        tar.arg("--zstd")
            .arg("-xf")
            .arg(&archive)
            .arg("-C")
            .arg(into);
        (archive, tar)
    } else {
        let template = cache().join(format!("template/{major}/data"));
        let mut copy = Command::new("cp");
        copy.args(["-a", "--reflink=auto"]).arg(&template).arg(into);
        (template, copy)
    };
    assert!(
        source.exists(),
        "{} is missing: run scripts/setup.sh test",
        source.display()
    );
    run(&mut command).assert_code(0);
}

fn server_command(major: u32, directory: &TempDir, port: u16, setup: &Setup) -> Command {
    let mut command = as_server_user(bin(major).join("postgres"));
    command.arg("-D").arg(directory.join("data"));
    let sockets = directory.path().display();
    let usual = [
        "listen_addresses=127.0.0.1".to_owned(),
        format!("port={port}"),
        format!("unix_socket_directories={sockets}"),
        // Nothing here outlives a crash of the machine.
        "fsync=off".to_owned(),
        "full_page_writes=off".to_owned(),
        "shared_buffers=32MB".to_owned(),
        "max_wal_size=1GB".to_owned(),
    ];
    let wanted = setup.settings.iter().map(|setting| (*setting).to_owned());
    for setting in usual.into_iter().chain(wanted) {
        command.arg("-c").arg(setting);
    }
    command.envs(setup.environment.iter().copied());
    command
}

/// Starts the server under a shell that outlives this process by a moment (see above).
fn supervise(server: &Command, directory: &TempDir) -> Child {
    use std::os::unix::process::CommandExt as _;
    const SCRIPT: &str = r#"
        directory=$1; shift
        "$@" </dev/null >"$directory/log" 2>&1 & server=$!
        read -r _
        kill -QUIT "$server" 2>/dev/null
        wait "$server"
        rm -rf "$directory"
    "#;
    Command::new("sh")
        .args(["-c", SCRIPT, "supervisor"])
        .arg(directory.path())
        .arg(server.get_program())
        .args(server.get_args())
        .current_dir("/")
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .envs(
            server
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        // Ctrl-C in the terminal must end the tests, not the clean-up after them.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Runs a program with this input.
fn feed(mut command: Command, input: &[u8]) -> Run {
    command.stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let what = format!("{command:?}");
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{what}: {e}"));
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        // A program that stops reading early says why on stderr.
        scope.spawn(move || stdin.write_all(input));
        Run::new(what, &child.wait_with_output().unwrap())
    })
}
