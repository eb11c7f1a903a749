//! The built program under test, in an environment that holds nothing but what the
//! test gave it.

use super::{Run, Server, TempDir, as_server_user};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

/// A call of pgark in the making.
pub(crate) struct Pgark {
    command: Command,
}

impl Pgark {
    /// As the user that runs the tests.
    pub(crate) fn new<A: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = A>) -> Self {
        Self::from(Command::new(env!("CARGO_BIN_EXE_pgark")), args)
    }

    /// As a user whom file permissions bind: root passes them all.
    pub(crate) fn unprivileged<A: AsRef<std::ffi::OsStr>>(
        args: impl IntoIterator<Item = A>,
    ) -> Self {
        Self::from(as_server_user(reachable_program()), args)
    }

    fn from<A: AsRef<std::ffi::OsStr>>(
        mut command: Command,
        args: impl IntoIterator<Item = A>,
    ) -> Self {
        command.args(args).env_clear();
        for (name, value) in [
            ("PATH", "/usr/bin:/bin"),
            ("HOME", "/nonexistent"),
            ("LC_ALL", "C.UTF-8"),
            ("TZ", "UTC"),
        ] {
            command.env(name, value);
        }
        Pgark { command }
    }

    /// The same by a copy of the program, which may be removed while it runs.
    pub(crate) fn by_copy(self, copy: &Path) -> Self {
        std::fs::copy(self.command.get_program(), copy).unwrap();
        self.through(Command::new(copy))
    }

    /// The same in another network namespace.
    pub(crate) fn within(self, namespace: &str) -> Self {
        let mut ip = Command::new("ip");
        ip.args(["netns", "exec", namespace]);
        ip.arg(self.command.get_program());
        self.through(ip)
    }

    fn through(self, mut command: Command) -> Self {
        command.env_clear().args(self.command.get_args());
        for (name, value) in self.command.get_envs() {
            command.env(name, value.unwrap());
        }
        Pgark { command }
    }

    /// Sets one variable.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Connects it to the server, as superuser.
    pub(crate) fn server(mut self, server: &Server) -> Self {
        self.command.envs(server.env());
        self
    }

    /// The local store.
    pub(crate) fn store(self, directory: &Path) -> Self {
        self.env("BACKUP_DIR", directory)
    }

    /// Runs to the end.
    pub(crate) fn run(mut self) -> Run {
        self.command.stdin(Stdio::null());
        super::run(&mut self.command)
    }

    /// Starts and returns, for tests that interfere.
    pub(crate) fn spawn(mut self) -> Running {
        self.command.stdin(Stdio::null());
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Running {
            what: format!("{:?}", self.command),
            child: Some(self.command.spawn().unwrap()),
        }
    }
}

impl Pgark {
    /// Starts it with stdout and stderr in a file, for those that run long.
    pub(crate) fn spawn_logging_to(mut self, path: &Path) -> Running {
        let log = std::fs::File::create(path).unwrap();
        self.command.stdin(Stdio::null());
        self.command.stdout(log.try_clone().unwrap()).stderr(log);
        Running {
            what: format!("{:?}", self.command),
            child: Some(self.command.spawn().unwrap()),
        }
    }
}

impl Pgark {
    /// Starts it with its stdout in a file or pipe.
    pub(crate) fn spawn_writing_to(mut self, path: &Path) -> Running {
        let out = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        self.command.stdin(Stdio::null()).stdout(out);
        self.command.stderr(Stdio::null());
        Running {
            what: format!("{:?}", self.command),
            child: Some(self.command.spawn().unwrap()),
        }
    }
}

/// A pgark that runs; a test that fails takes it with it.
pub(crate) struct Running {
    child: Option<Child>,
    what: String,
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Whether it has not ended yet.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.as_mut().unwrap().try_wait().unwrap().is_none()
    }

    /// Sends a signal by name, as `kill -INT`.
    pub(crate) fn signal(&self, name: &str) {
        super::run(
            Command::new("kill")
                .arg(format!("-{name}"))
                .arg(self.pid().to_string()),
        )
        .assert_code(0);
    }

    /// Waits for its end.
    pub(crate) fn wait(mut self) -> Run {
        let child = self.child.take().unwrap();
        let what = std::mem::take(&mut self.what);
        Run::new(what, &child.wait_with_output().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The program where any user can execute it: a build directory may lie under /root.
fn reachable_program() -> &'static Path {
    static COPY: OnceLock<(PathBuf, Option<TempDir>)> = OnceLock::new();
    let (program, _) = COPY.get_or_init(|| {
        let built = Path::new(env!("CARGO_BIN_EXE_pgark"));
        let reachable = super::run(as_server_user("test").arg("-x").arg(built)).code == 0;
        if reachable {
            return (built.to_owned(), None);
        }
        let directory = TempDir::new();
        let copy = directory.join("pgark");
        std::fs::copy(built, &copy).unwrap();
        (copy, Some(directory))
    });
    program
}
