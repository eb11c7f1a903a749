//! A server on a data directory that was restored: started by its own `pg_ctl`, followed until its
//! recovery has ended.
//!
//! Invariants: it runs as the owner of the directory, never as root; the program is of exactly the
//! directory's major version. The server outlives pgark. Its log is a file in the directory.
//!
//! A crash leaves the server running, or a directory that starts again.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use super::process::{Child, clean_command};
use super::server::tail;
use super::tools::Tools;
use crate::cancel::Token;
use crate::error::{Context, Error, Result};

/// The server's log until it logs where its configuration says.
const LOG: &str = "pgark-start.log";
/// How long `pg_ctl` may wait for connections to be let in: as long as recovery takes.
const WAIT_SECONDS: &str = "31536000";
const TICK: Duration = Duration::from_millis(100);
/// `DB_IN_PRODUCTION`, the fourth field of `pg_control`, behind 16 bytes.
const IN_PRODUCTION: [u8; 4] = 6_u32.to_le_bytes();

/// Where it listens, by its `postmaster.pid`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    pub port: String,
    /// Empty: no socket.
    pub socket_dir: String,
    pub log: PathBuf,
}

/// Starts a server of this version there, and waits until it has recovered.
///
/// # Errors
/// `Failed` with the last lines of the server's log when it ends before.
pub fn start(tools: &Tools, version: u32, data_dir: &Path, cancel: &Token) -> Result<Started> {
    let program = tools.pick("pg_ctl", version)?;
    if program.major() != version / 10_000 {
        return Err(Error::failed(format!(
            "pg_ctl is of PostgreSQL {}, and the backup of {}",
            program.major(),
            version / 10_000
        ))
        .hint("install the server package of that major version, then start the server by hand"));
    }
    let about = std::fs::metadata(data_dir).context(|| data_dir.display().to_string())?;
    let log = data_dir.join(LOG);
    let mut command = clean_command(&program.path);
    command
        .arg("start")
        .arg("-D")
        .arg(data_dir)
        .arg("-l")
        .arg(&log);
    command.args(["-w", "-s", "-t", WAIT_SECONDS]);
    command.current_dir(data_dir);
    if rustix::process::geteuid().is_root() {
        if about.uid() == 0 {
            return Err(Error::failed(format!(
                "{} belongs to root, as whom no server starts",
                data_dir.display()
            ))
            .hint("give it to the server's user (chown -R postgres:), and start it as that user"));
        }
        command.uid(about.uid()).gid(about.gid());
    }
    let failed = |what: &str| {
        Error::failed(format!(
            "the restored server {what}; its log ends with:\n{}",
            tail(&log)
        ))
        .hint("the directory is whole: mend what the log names, and start the server again")
    };
    let mut child = Child::spawn("pg_ctl", command.stdout(Stdio::piped()))?;
    let hook = cancel.on_cancel(child.killer());
    // Its stdout ends when it does; the hook must be gone before it is reaped.
    if let Some(mut stdout) = child.take_stdout() {
        std::io::copy(&mut stdout, &mut std::io::sink())?;
    }
    drop(hook);
    let finished = child.wait()?;
    cancel.check()?;
    if !finished.status.success() {
        return Err(failed("did not start"));
    }
    loop {
        cancel.check()?;
        match state(data_dir) {
            Some((started, true)) => return Ok(Started { log, ..started }),
            Some((_, false)) => std::thread::sleep(TICK),
            None => return Err(failed("ended before its recovery did")),
        }
    }
}

/// What `postmaster.pid` says, and whether recovery is over. None: no server runs.
fn state(data_dir: &Path) -> Option<(Started, bool)> {
    let text = std::fs::read_to_string(data_dir.join("postmaster.pid")).ok()?;
    let lines: Vec<&str> = text.lines().collect();
    let line = |at: usize| lines.get(at).map_or("", |line| line.trim()).to_owned();
    let started = Started {
        port: line(3),
        socket_dir: line(4),
        log: PathBuf::new(),
    };
    // `ready` also says a server that lets readers in while it recovers. Which of both, its control
    // file tells, which it has written anew by then: that of a backup says "in production" itself.
    let control = std::fs::read(data_dir.join("global/pg_control")).unwrap_or_default();
    let over = control.get(16..20) == Some(&IN_PRODUCTION[..]);
    Some((started, line(7) == "ready" && over))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::Scratch;

    #[test]
    fn a_server_that_lets_readers_in_has_not_recovered_yet() {
        let scratch = Scratch::new();
        assert_eq!(state(scratch.path()), None);
        let file = scratch.path().join("postmaster.pid");
        std::fs::create_dir(scratch.path().join("global")).unwrap();
        let control = scratch.path().join("global/pg_control");
        for (word, in_control, over) in [
            ("starting", 6, false),
            ("standby ", 6, false),
            ("ready   ", 5, false),
            ("ready   ", 6, true),
        ] {
            let mut bytes = [0; 8192];
            bytes[16] = in_control;
            std::fs::write(&control, bytes).unwrap();
            let text = format!("77\n/data\n1\n5433\n/run/x\nlocalhost\n 5 6\n{word}\n");
            std::fs::write(&file, text).unwrap();
            let (started, found) = state(scratch.path()).unwrap();
            assert_eq!(
                (started.port.as_str(), started.socket_dir.as_str()),
                ("5433", "/run/x")
            );
            assert_eq!(found, over, "{word}");
        }
    }
}
