//! The thread that a throwaway server lives by: started, waited for, ended.
//!
//! Invariants: the server is reported as up only once it lets a session in; it is ended before the thread is.
//! A kill of pgark ends the thread, and the server by the signal of its wrapper, where there is one.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child as ServerChild, Command};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use rustix::process::{Pid, Signal, kill_process};

use super::{KILL_LIMIT, STOP_LIMIT, SUPERUSER};
use crate::error::{Error, Result};

/// Runs the server for as long as `stop` has a sender. One thread does it all, because the
/// parent-death signal fires when the *thread* that forked ends.
pub(super) fn keep(
    mut command: Command,
    (socket, limit): (&Path, Duration),
    report: &Sender<Result<()>>,
    stop: &Receiver<()>,
) {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let error = Error::failed(format!("the throwaway server cannot be started: {error}"));
            let _ = report.send(Err(error));
            return;
        }
    };
    let outcome = await_ready(&mut child, socket, limit);
    let ready = outcome.is_ok();
    if !ready {
        end_server(&mut child);
    }
    let _ = report.send(outcome);
    if ready {
        let _ = stop.recv();
        end_server(&mut child);
    }
}

fn await_ready(child: &mut ServerChild, socket: &Path, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Err(Error::failed(format!(
                "the throwaway server ended at its start ({status})"
            )));
        }
        if accepts(socket).unwrap_or(false) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(Error::failed(format!(
        "the throwaway server did not accept connections within {} s",
        limit.as_secs()
    )))
}

/// Whether the server lets the superuser in: protocol 3.0, StartupMessage answered by an
/// authentication request rather than an error ("the database system is starting up").
pub(super) fn accepts(socket: &Path) -> std::io::Result<bool> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut body = 196_608_u32.to_be_bytes().to_vec();
    for text in ["user", SUPERUSER, "database", "postgres", ""] {
        body.extend_from_slice(text.as_bytes());
        body.push(0);
    }
    let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(&body)?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    // Terminate, so that the log does not speak of a lost connection.
    let _ = stream.write_all(&[b'X', 0, 0, 0, 4]);
    Ok(answer == [b'R'])
}

/// Fast shutdown, then immediate, then the kill.
fn end_server(child: &mut ServerChild) {
    for (signal, limit) in [
        (Signal::INT, STOP_LIMIT),
        (Signal::QUIT, KILL_LIMIT),
        (Signal::KILL, KILL_LIMIT),
    ] {
        // Not reaped yet, so the number is still this server's.
        match i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            Some(pid) if matches!(child.try_wait(), Ok(None)) => {
                let _ = kill_process(pid, signal);
            }
            _ => return,
        }
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
