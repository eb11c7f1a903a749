//! The harness: real servers, the built program, and comparisons that can fail.
//!
//! Invariant: whatever a test started is gone when its process is gone, however it ended.

// Every helper serves some tests, not each of them.
#![allow(dead_code, unused_imports)]

mod compare;
pub(crate) mod garage;
pub(crate) mod gate;
mod pgark;
mod server;
pub(crate) mod site;
pub(crate) mod wire;

pub(crate) use compare::{
    assert_same, database_properties, dump_data, dump_schema, table_digest, toc,
};
pub(crate) use pgark::{Pgark, Running};
pub(crate) use server::{PASSWORD, Server, Setup, bin};
pub(crate) use site::{Session, Site};

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Once, OnceLock};
use std::time::{Duration, Instant};

/// A directory under /tmp that anyone may enter, removed on drop.
pub(crate) struct TempDir {
    path: PathBuf,
}

impl TempDir {
    pub(crate) fn new() -> Self {
        static SWEEP: Once = Once::new();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        SWEEP.call_once(sweep_remains_of_dead_processes);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(format!("/tmp/{PREFIX}{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        TempDir { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A path inside.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Gives the directory to the user that servers run as.
    pub(crate) fn give_to_postgres(&self) {
        if let Some((uid, gid)) = server_user() {
            std::os::unix::fs::chown(&self.path, Some(uid), Some(gid)).unwrap();
        }
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

const PREFIX: &str = "pgark-test-";

/// A killed test cannot clean up after itself; the next one does.
fn sweep_remains_of_dead_processes() {
    for entry in std::fs::read_dir("/tmp").unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix(PREFIX) else {
            continue;
        };
        let process = rest.split('-').next().unwrap_or_default();
        if !Path::new("/proc").join(process).exists() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// What a finished program left: exit code (128 + n after signal n) and its output.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    what: String,
}

impl Run {
    pub(crate) fn new(what: impl Into<String>, output: &Output) -> Self {
        use std::os::unix::process::ExitStatusExt as _;
        Run {
            code: output
                .status
                .code()
                .or(output.status.signal().map(|signal| 128 + signal))
                .unwrap(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            what: what.into(),
        }
    }

    /// Fails with everything the program said unless it ended with this code.
    #[track_caller]
    pub(crate) fn assert_code(self, code: i32) -> Self {
        assert_eq!(
            self.code, code,
            "exit code of {}\n--- stdout\n{}\n--- stderr\n{}",
            self.what, self.stdout, self.stderr
        );
        self
    }

    /// Fails unless stderr holds this text.
    #[track_caller]
    pub(crate) fn assert_says(self, text: &str) -> Self {
        assert!(
            self.stderr.contains(text),
            "{} does not say {text:?}\n--- stderr\n{}",
            self.what,
            self.stderr
        );
        self
    }
}

/// Runs a program to its end.
pub(crate) fn run(command: &mut Command) -> Run {
    let what = format!("{command:?}");
    let output = command.output().unwrap_or_else(|e| panic!("{what}: {e}"));
    Run::new(what, &output)
}

/// Waits until the condition holds; fails after two minutes.
#[track_caller]
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(
            started.elapsed() < Duration::from_secs(120),
            "waited two minutes for: {what}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Where `scripts/setup.sh test` put servers, templates and regression databases.
pub(crate) fn cache() -> &'static Path {
    static CACHE: OnceLock<PathBuf> = OnceLock::new();
    CACHE.get_or_init(|| {
        let script = project().join("scripts/setup.sh");
        let asked = run(Command::new(script).arg("cache")).assert_code(0);
        PathBuf::from(asked.stdout.trim())
    })
}

/// The root of the checkout.
pub(crate) fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The user and group that servers run as when the tests run as root, which
/// PostgreSQL refuses.
pub(crate) fn server_user() -> Option<(u32, u32)> {
    static USER: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    *USER.get_or_init(|| {
        use std::os::unix::fs::MetadataExt as _;
        if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
            return None;
        }
        let accounts = std::fs::read_to_string("/etc/passwd").unwrap();
        let line = accounts
            .lines()
            .find(|line| line.starts_with("postgres:"))
            .expect("user postgres is missing: run scripts/setup.sh test");
        let mut fields = line.split(':').skip(2).map(|id| id.parse().unwrap());
        Some((fields.next().unwrap(), fields.next().unwrap()))
    })
}

/// A command that runs as the servers' user; `as_server_user(program)` then arguments.
pub(crate) fn as_server_user(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command;
    if let Some((uid, gid)) = server_user() {
        command = Command::new("setpriv");
        command
            .arg(format!("--reuid={uid}"))
            .arg(format!("--regid={gid}"));
        command.arg("--clear-groups").arg("--").arg(program);
    } else {
        command = Command::new(program);
    }
    command.current_dir("/");
    command
}
