//! Child processes that cannot leak: a clean environment in, bounded stderr out.
//!
//! Invariants: a child inherits no `PG*` variable and no secret; dropping a [`Child`] kills
//! its process group and reaps it; at most 1 MiB of stderr is held. A crash of pgark leaves
//! a client program running until its pipe breaks; it then ends by itself.

use std::collections::VecDeque;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::error::{Error, Result};

/// Half of the stderr that is held: the beginning and the end.
const STDERR_HALF_BYTES: usize = 512 * 1024;

/// A command with `PATH`, `HOME`, `TZ` and a fixed locale as its whole environment, so that
/// neither `PG*` nor secrets reach the child and its messages are in English. Stdin is null.
#[must_use]
pub fn clean_command(path: &Path) -> Command {
    let mut command = Command::new(path);
    command
        .env_clear()
        .env("LANG", "C.UTF-8")
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null());
    for name in ["PATH", "HOME", "TZ"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// How a child ended and what it said.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    /// Decoded lossily; the middle is left out beyond 1 MiB.
    pub stderr: String,
}

/// A running child. Dropped, it is killed with its process group and reaped.
pub struct Child {
    name: String,
    inner: std::process::Child,
    stderr: Option<JoinHandle<Vec<u8>>>,
    ended: bool,
}

impl Child {
    /// Starts the command in a process group of its own and collects its stderr. `name`
    /// stands in messages.
    ///
    /// # Errors
    /// `Failed` when the program cannot be started.
    pub fn spawn(name: &str, command: &mut Command) -> Result<Child> {
        let mut inner = command
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| Error::failed(format!("{name} cannot be started: {error}")))?;
        let stderr = inner
            .stderr
            .take()
            .map(|pipe| std::thread::spawn(move || collect(pipe)));
        Ok(Child {
            name: name.to_owned(),
            inner,
            stderr,
            ended: false,
        })
    }

    #[must_use]
    pub fn id(&self) -> u32 {
        self.inner.id()
    }

    /// Kills the child's process group. To be called only while the child is not reaped: hold
    /// it as a cancellation hook that is dropped before [`Child::wait`].
    pub fn killer(&self) -> impl Fn() + Send + 'static {
        let pid = i32::try_from(self.inner.id()).ok().and_then(Pid::from_raw);
        move || {
            if let Some(pid) = pid {
                let _ = kill_process_group(pid, Signal::KILL);
            }
        }
    }

    /// The child's stdin, if the command piped it; once.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.inner.stdin.take()
    }

    /// The child's stdout, if the command piped it; once.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.inner.stdout.take()
    }

    /// Waits for the end. Stdout must be drained by somebody, or this never returns.
    ///
    /// # Errors
    /// `Failed` when the system cannot wait; an exit code is no error here.
    pub fn wait(mut self) -> Result<Finished> {
        let status = self.inner.wait().map_err(|error| self.lost(&error))?;
        Ok(self.finish(status))
    }

    /// As [`Child::wait`], but kills a child that takes longer than `limit`.
    ///
    /// # Errors
    /// `Failed` when it was killed.
    pub fn wait_for(mut self, limit: Duration) -> Result<Finished> {
        let deadline = Instant::now() + limit;
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(status) = self.inner.try_wait().map_err(|error| self.lost(&error))? {
                return Ok(self.finish(status));
            }
            if Instant::now() >= deadline {
                return Err(Error::failed(format!(
                    "{} did not end within {} s and was killed",
                    self.name,
                    limit.as_secs_f32()
                )));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Kills the child's process group; [`Child::wait`] then returns soon.
    pub fn kill(&mut self) {
        if self.ended {
            return;
        }
        // Not reaped yet, so the number is still this child's.
        let pid = i32::try_from(self.inner.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = self.inner.kill();
    }

    fn finish(&mut self, status: ExitStatus) -> Finished {
        self.ended = true;
        let bytes = self.stderr.take().and_then(|thread| thread.join().ok());
        Finished {
            status,
            stderr: String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned(),
        }
    }

    fn lost(&self, error: &std::io::Error) -> Error {
        Error::failed(format!("cannot wait for {}: {error}", self.name))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.ended {
            self.kill();
            let _ = self.inner.wait();
        }
        if let Some(thread) = self.stderr.take() {
            let _ = thread.join();
        }
    }
}

/// Reads to the end; holds the beginning and the end only, and never stops draining, so that
/// a talkative child does not block.
fn collect(mut pipe: ChildStderr) -> Vec<u8> {
    let mut head = Vec::new();
    let mut tail: VecDeque<u8> = VecDeque::new();
    let mut left_out = 0_usize;
    let mut buffer = [0; 8192];
    loop {
        let n = match pipe.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        let to_head = n.min(STDERR_HALF_BYTES - head.len());
        head.extend_from_slice(&buffer[..to_head]);
        tail.extend(&buffer[to_head..n]);
        let excess = tail.len().saturating_sub(STDERR_HALF_BYTES);
        tail.drain(..excess);
        left_out += excess;
    }
    if left_out > 0 {
        head.extend_from_slice(format!("\n[{left_out} bytes left out]\n").as_bytes());
    }
    head.extend(tail);
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = clean_command(Path::new("/bin/sh"));
        command.args(["-c", script]);
        command
    }

    #[test]
    fn child_sees_no_pg_variable_and_no_secret() {
        let mut command = shell("env");
        let child = Child::spawn("env", command.stdout(Stdio::piped()));
        let mut child = child.unwrap();
        let mut text = String::new();
        child
            .take_stdout()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert!(child.wait().unwrap().status.success());
        for line in text.lines() {
            let name = line.split('=').next().unwrap();
            let known = [
                "PATH", "HOME", "TZ", "LANG", "LC_ALL", "PWD", "SHLVL", "_", "OLDPWD",
            ];
            assert!(known.contains(&name), "{line}");
        }
        assert!(text.contains("LC_ALL=C.UTF-8"));
    }

    #[test]
    fn dropped_child_is_dead_with_its_own_children() {
        let started = Instant::now();
        let mut child = Child::spawn(
            "sh",
            shell("sleep 300 & echo $!; wait").stdout(Stdio::piped()),
        )
        .unwrap();
        let mut line = String::new();
        let mut out = std::io::BufReader::new(child.take_stdout().unwrap());
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        drop(child);
        // The grandchild held the pipe; end of file means that it is gone.
        assert_eq!(
            std::io::Read::read_to_end(&mut out, &mut Vec::new()).unwrap(),
            0
        );
        assert!(line.trim().parse::<u32>().is_ok());
        assert!(started.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn child_that_overruns_its_time_is_killed() {
        let started = Instant::now();
        let child = Child::spawn("sleeper", &mut shell("sleep 300")).unwrap();
        let error = child.wait_for(Duration::from_millis(50)).unwrap_err();
        assert!(error.fact.contains("sleeper"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn stderr_is_bounded_and_keeps_both_ends() {
        let script = "echo first >&2; yes 0123456789abcdef | head -c 4000000 >&2; echo last >&2";
        let finished = Child::spawn("loud", &mut shell(script))
            .unwrap()
            .wait()
            .unwrap();
        assert!(finished.stderr.len() <= 2 * STDERR_HALF_BYTES + 64);
        assert!(finished.stderr.starts_with("first\n") && finished.stderr.ends_with("last\n"));
        assert!(finished.stderr.contains("bytes left out]"));
    }
}
