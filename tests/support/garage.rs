//! Garage, a real object store, as one node on loopback.
//!
//! Invariants as those of the PostgreSQL servers: it listens on loopback only; a shell supervises
//! it and holds the reading end of a pipe from this process, so that server and directory are
//! gone when this process is, however it ended. Needs nothing but the standard library: the
//! store's unit tests include this file too.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The key that may do everything in the bucket.
pub(crate) const ACCESS_KEY: &str = "GK0123456789abcdef01234567";
pub(crate) const SECRET_KEY: &str =
    "b892c0665f0ada8a4755dae98baa3b133590e11dae3bcc1f9d769d67f16c3835";
pub(crate) const REGION: &str = "garage";
pub(crate) const BUCKET: &str = "pgark";

/// A running server with an empty bucket.
pub(crate) struct Garage {
    pub(crate) port: u16,
    supervisor: Child,
    directory: PathBuf,
}

impl Garage {
    pub(crate) fn start() -> Garage {
        Self::start_in(REGION)
    }

    /// In another region than ours.
    pub(crate) fn start_in(region: &str) -> Garage {
        // Somebody else may take a free port before the server does.
        (0..5)
            .find_map(|_| Self::try_start(region))
            .expect("no free port in five attempts")
    }

    fn try_start(region: &str) -> Option<Garage> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        let directory = PathBuf::from(format!("/tmp/pgark-test-{process}-garage-{number}"));
        std::fs::create_dir(&directory).unwrap();
        let [port, rpc] = free_ports();
        let config = config(&directory, region, port, rpc);
        std::fs::write(directory.join("garage.toml"), config).unwrap();
        let garage = Garage {
            port,
            supervisor: supervise(&directory),
            directory,
        };
        garage.wait_until_ready().then_some(garage)
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What the server logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Garage's own commands, as `["bucket", "create", "other"]`.
    #[track_caller]
    pub(crate) fn admin(&self, arguments: &[&str]) -> String {
        let output = Command::new(program())
            .arg("-c")
            .arg(self.directory.join("garage.toml"))
            .args(arguments)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "garage {arguments:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Whether it answers; `false` if a port was taken.
    fn wait_until_ready(&self) -> bool {
        let started = Instant::now();
        while !self.answers() {
            let log = self.log();
            if log.contains("Address already in use") {
                return false;
            }
            let waited = started.elapsed();
            assert!(waited < Duration::from_secs(60), "garage's log:\n{log}");
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }

    /// Whether the bucket is there: an anonymous look at it is then denied, not unknown.
    fn answers(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else {
            return false;
        };
        let mut reply = String::new();
        let asked = write!(stream, "GET /{BUCKET} HTTP/1.0\r\nhost: x\r\n\r\n")
            .and_then(|()| stream.read_to_string(&mut reply));
        asked.is_ok() && reply.contains(" 403 ") && self.log().contains("default bucket")
    }
}

impl Drop for Garage {
    fn drop(&mut self) {
        drop(self.supervisor.stdin.take());
        let _ = self.supervisor.wait();
    }
}

/// The program that `scripts/setup.sh test` built.
fn program() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/setup.sh");
    let asked = Command::new(script).arg("cache").output().unwrap();
    let cache = PathBuf::from(String::from_utf8_lossy(&asked.stdout).trim());
    assert!(
        cache.join("garage/complete").exists(),
        "Garage is missing: run scripts/setup.sh test"
    );
    cache.join("garage/bin/garage")
}

/// Two that were free a moment ago.
fn free_ports() -> [u16; 2] {
    let sockets = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    sockets.map(|socket| socket.local_addr().unwrap().port())
}

fn config(directory: &Path, region: &str, port: u16, rpc: u16) -> String {
    let directory = directory.display();
    format!(
        r#"
            metadata_dir = "{directory}/meta"
            data_dir = "{directory}/data"
            db_engine = "sqlite"
            # Nothing here outlives a crash of the machine.
            metadata_fsync = false
            data_fsync = false
            compression_level = "none"
            replication_factor = 1
            rpc_bind_addr = "127.0.0.1:{rpc}"
            rpc_public_addr = "127.0.0.1:{rpc}"
            rpc_secret = "1799bccfd7411eddcf9ebd316bc1f5287ad12a68094e1c6ac6abde7e6feae1ec"
            [s3_api]
            s3_region = "{region}"
            api_bind_addr = "127.0.0.1:{port}"
        "#
    )
}

/// Starts the server under a shell that outlives this process by a moment. One node, its key and
/// its bucket need no further step: `--single-node --default-bucket`.
fn supervise(directory: &Path) -> Child {
    use std::os::unix::process::CommandExt as _;
    const SCRIPT: &str = r#"
        directory=$1; shift
        "$@" </dev/null >"$directory/log" 2>&1 & server=$!
        read -r _
        kill -KILL "$server" 2>/dev/null
        wait "$server"
        rm -rf "$directory"
    "#;
    Command::new("sh")
        .args(["-c", SCRIPT, "supervisor"])
        .arg(directory)
        .arg(program())
        .arg("-c")
        .arg(directory.join("garage.toml"))
        .args(["server", "--single-node", "--default-bucket"])
        .current_dir("/")
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("GARAGE_DEFAULT_ACCESS_KEY", ACCESS_KEY)
        .env("GARAGE_DEFAULT_SECRET_KEY", SECRET_KEY)
        .env("GARAGE_DEFAULT_BUCKET", BUCKET)
        // Ctrl-C in the terminal must end the tests, not the clean-up after them.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}
