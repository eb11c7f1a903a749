//! A run as a process: `pgark backup`, `replicate` or `wal-stream`, with its secrets on stdin.
//!
//! Invariants: no secret is in its arguments or environment; what it says comes out as events of
//! the service's log, line by line; dropped, it is killed. When the service dies, the kernel does
//! not end the run: it finishes and records itself, and its lock keeps others away.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

use super::keeper;
use super::log::Log;
use crate::config::{Environment, SECRETS_ON_STDIN};
use crate::error::{Context, Result};

/// A run under way.
#[derive(Debug)]
pub struct Run {
    child: Child,
    readers: Vec<JoinHandle<()>>,
    closing: Arc<AtomicBool>,
}

/// The program that runs here, by its path so that people find it among the processes; by what the kernel holds
/// of it where an upgrade has put another one in its place.
fn itself() -> Result<PathBuf> {
    let path = std::env::current_exe().context(|| "cannot find pgark itself".to_owned())?;
    let kept = PathBuf::from("/proc/self/exe");
    Ok(if path.exists() { path } else { kept })
}

impl Run {
    /// Starts it. `ended` hears when it is over.
    ///
    /// # Errors
    /// `Failed` when the process cannot be started.
    pub fn start(
        environment: &Environment,
        arguments: &[String],
        log: Log,
        ended: Sender<()>,
    ) -> Result<Run> {
        let program = itself()?;
        // Root may have met a changed file of secrets.
        let (plain, secret) = keeper::refreshed(environment).split();
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .envs(plain)
            .env(SECRETS_ON_STDIN, "1");
        let secrets = serde_json::to_vec(&secret)
            .map_err(|error| crate::error::Error::failed(error.to_string()))?;
        Run::launch(command, &secrets, log, ended)
    }

    /// Starts a program that gets `input` on its stdin.
    pub(super) fn launch(
        mut command: Command,
        input: &[u8],
        log: Log,
        ended: Sender<()>,
    ) -> Result<Run> {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .context(|| "cannot start the run".to_owned())?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that died already says so itself.
            let _ = stdin.write_all(input);
        }
        let (mut readers, closing) = (Vec::new(), Arc::new(AtomicBool::new(false)));
        if let Some(stdout) = child.stdout.take() {
            readers.push(relay(stdout, log, None));
        }
        if let Some(stderr) = child.stderr.take() {
            // The one that every end of the process closes.
            let closing = Arc::clone(&closing);
            let tell = move || {
                closing.store(true, Ordering::Relaxed);
                let _ = ended.send(());
            };
            readers.push(relay(stderr, log, Some(Box::new(tell))));
        }
        Ok(Run {
            child,
            readers,
            closing,
        })
    }

    /// Its exit code when it is over: 128 + n for signal n.
    pub fn exit_code(&mut self) -> Option<i32> {
        use std::os::unix::process::ExitStatusExt;
        let status = self.child.try_wait().ok().flatten()?;
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        Some(status.code().unwrap_or(128 + status.signal().unwrap_or(0)))
    }

    /// Whether it has closed its mouth: it is over any moment.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        let pid = i32::try_from(self.child.id()).ok();
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }

    /// Ends it.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
    }

    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Each line becomes an event. Lines of one message hang together: `hint:` follows its fact.
fn relay(
    from: impl Read + Send + 'static,
    log: Log,
    at_end: Option<Box<dyn FnOnce() + Send>>,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(from)
            .split(b'\n')
            .map_while(std::result::Result::ok)
        {
            let line = String::from_utf8_lossy(&line);
            let text = line.strip_prefix("pgark: ").unwrap_or(&line);
            match text.strip_prefix("warning: ") {
                Some(warning) => log.warn(warning),
                None => log.info(text),
            }
        }
        if let Some(at_end) = at_end {
            at_end();
        }
    })
}
