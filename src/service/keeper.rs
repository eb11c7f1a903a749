//! Root's part in a container: it reads the secrets, and pgark works as the owner of the backups.
//!
//! Invariants: no secret is in a child's arguments or environment, or in a file: one socket, or
//! one anonymous file in memory, carries them. The keeper of a service reads them anew whenever
//! the service asks, which is before every run. As process 1 it also buries every orphan. It
//! holds no state: when it dies, the kernel ends the container, and a run leaves what any crash
//! leaves. A verb that is no service leaves no keeper behind.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::MemfdFlags;
use rustix::process::{Pid, Signal, WaitOptions};

use crate::config::{self, Environment, Flags, SECRETS_ON_STDIN};
use crate::error::{Context, Error, Result};
use crate::store::local;

/// What [`SECRETS_ON_STDIN`] says when a keeper answers there.
const ASK: &str = "ask";
/// The user and group who get an empty directory of root's. The image names them `pgark`.
const FALLBACK: Owner = Owner {
    uid: 10_001,
    gid: 10_001,
};
/// How long a file of secrets may take to be read; then what was known serves.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// What a verb does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// It stays, and takes backups.
    Serve,
    /// It takes a backup.
    Write,
    /// It needs backups to be there.
    Read,
}

/// As whom to work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Owner {
    uid: u32,
    gid: u32,
}

/// Hands the work to the owner of the backups where that is asked for (`PGARK_RUN_AS`), and looks
/// after the service as process 1. None: this process does the work itself. Else the exit code
/// of who did it; a verb that is no service goes on as that user and never returns.
///
/// # Errors
/// What keeps root from handing over; `Usage` for a malformed setting.
pub fn enter(flags: &Flags, environment: &Environment, work: Work) -> Result<Option<u8>> {
    if environment.get(SECRETS_ON_STDIN).is_some() {
        return Ok(None);
    }
    let owner = if rustix::process::geteuid().is_root() && config::runs_as_owner(environment)? {
        match config::root_dir(flags, environment)? {
            (dir, true) => owner(&dir, work)?,
            // What cannot be made is made do without.
            (dir, false) => owner(&dir, work).unwrap_or(Some(FALLBACK)),
        }
    } else {
        None
    };
    match owner {
        _ if work == Work::Serve && (owner.is_some() || rustix::process::getpid().is_init()) => {
            let config = config::config_path(flags, environment)?;
            keep(environment, config, owner).map(Some)
        }
        Some(owner) => {
            let config = config::config_path(flags, environment)?;
            Err(hand_over(environment, config.as_deref(), owner)?)
        }
        None => Ok(None),
    }
}

/// The owner of the backups; None is root.
fn owner(dir: &Path, work: Work) -> Result<Option<Owner>> {
    let missing = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    let found = match std::fs::metadata(dir) {
        Err(error) if missing(&error) => {
            if work == Work::Read {
                return Ok(Some(FALLBACK));
            }
            local::create_dir(dir).context(|| format!("cannot create {}", dir.display()))?;
            std::fs::metadata(dir)
        }
        found => found,
    };
    let found = found.context(|| dir.display().to_string())?;
    if found.uid() != 0 {
        return Ok(Some(Owner {
            uid: found.uid(),
            gid: found.gid(),
        }));
    }
    if work == Work::Read || !is_empty(dir) {
        return Ok(None);
    }
    let (uid, gid) = (Some(FALLBACK.uid), Some(FALLBACK.gid));
    // A read-only or network file system may refuse; the work itself says what it cannot do.
    let given = std::os::unix::fs::chown(dir, uid, gid);
    Ok(given.ok().map(|()| FALLBACK))
}

/// Whether nothing lies there but what a fresh file system has.
fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| {
        entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == "lost+found"))
    })
}

/// This program again, with the same arguments and no secret in its environment.
fn again(environment: &Environment, owner: Option<Owner>) -> Command {
    let (plain, _) = environment.split();
    let mut command = Command::new("/proc/self/exe");
    command.arg0("pgark").args(std::env::args_os().skip(1));
    command.env_clear().envs(plain);
    if let Some(Owner { uid, gid }) = owner {
        // Root's other groups go with it.
        command.gid(gid).uid(uid);
    }
    command
}

fn secrets(environment: &Environment, config: Option<&str>) -> BTreeMap<String, String> {
    environment.clone().with_files(config).split().1
}

fn refused(error: &std::io::Error) -> Error {
    Error::failed(format!("cannot work as the owner of the backups: {error}")).hint(
        "give the container the capabilities SETUID and SETGID, or start it as that user (user:)",
    )
}

/// Becomes the owner and goes on; the error is what kept it from that.
fn hand_over(environment: &Environment, config: Option<&str>, owner: Owner) -> Result<Error> {
    let memory =
        rustix::fs::memfd_create("secrets", MemfdFlags::CLOEXEC).map_err(std::io::Error::from)?;
    let mut memory = std::fs::File::from(memory);
    memory.write_all(to_json(&secrets(environment, config))?.as_bytes())?;
    memory.rewind()?;
    let error = again(environment, Some(owner))
        .env(SECRETS_ON_STDIN, "1")
        .stdin(Stdio::from(memory))
        .exec();
    Ok(refused(&error))
}

/// Runs the service as a child until it ends.
fn keep(environment: &Environment, config: Option<String>, owner: Option<Owner>) -> Result<u8> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
    // Before the child is there: a signal that comes early waits.
    let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM])?;
    let (ours, theirs) = UnixStream::pair()?;
    let child = again(environment, owner)
        .env(SECRETS_ON_STDIN, ASK)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        // A terminal's Ctrl-C shall not reach it twice.
        .process_group(0)
        .spawn()
        .map_err(|error| refused(&error))?;
    let child = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let child = child.ok_or_else(|| Error::failed("the service has no process".to_owned()))?;
    let environment = environment.clone();
    std::thread::spawn(move || answer(ours, &environment, config.as_deref()));
    std::thread::spawn(move || {
        for number in &mut signals {
            if let Some(signal) = Signal::from_named_raw(number) {
                let _ = rustix::process::kill_process(child, signal);
            }
        }
    });
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == child => {
                let signal = status.terminating_signal().unwrap_or(0);
                let code = status.exit_status().unwrap_or(128 + signal);
                return Ok(u8::try_from(code).unwrap_or(1));
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(std::io::Error::from(error).into()),
        }
    }
}

/// Each line is a question; the answer begins with it.
fn answer(socket: UnixStream, environment: &Environment, config: Option<&str>) {
    let Ok(mut to) = socket.try_clone() else {
        return;
    };
    for question in BufReader::new(socket)
        .lines()
        .map_while(std::result::Result::ok)
    {
        let Ok(json) = to_json(&secrets(environment, config)) else {
            return;
        };
        if to
            .write_all(format!("{question} {json}\n").as_bytes())
            .is_err()
        {
            return;
        }
    }
}

fn to_json(secrets: &BTreeMap<String, String>) -> Result<String> {
    serde_json::to_string(secrets).map_err(|error| Error::failed(error.to_string()))
}

/// The way to the keeper, and the number of the last question.
struct Link {
    socket: BufReader<UnixStream>,
    number: u64,
}

static LINK: Mutex<Option<Link>> = Mutex::new(None);

/// The variables of this process, with those that were handed to it in secret.
///
/// # Errors
/// `Usage` for variables that are not UTF-8; `Failed` when the keeper does not answer.
pub fn environment() -> Result<Environment> {
    let plain = Environment::from_process()?;
    if plain.get(SECRETS_ON_STDIN) != Some(ASK) {
        return plain.add_secrets(std::io::stdin());
    }
    let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    socket.set_read_timeout(Some(ANSWER_LIMIT))?;
    let socket = BufReader::new(socket);
    *LINK.lock().unwrap_or_else(PoisonError::into_inner) = Some(Link { socket, number: 0 });
    let answer = ask().context(|| "the secrets cannot be had from process 1".to_owned())?;
    plain.add_secrets(answer.unwrap_or_default().as_bytes())
}

/// The same variables with the secrets as they are now; as they were, if nobody answers.
pub fn refreshed(environment: &Environment) -> Environment {
    let (plain, _) = environment.split();
    let plain = plain
        .into_iter()
        .chain([(SECRETS_ON_STDIN.to_owned(), ASK.to_owned())]);
    match ask() {
        Ok(Some(answer)) => Environment::from_pairs(plain)
            .add_secrets(answer.as_bytes())
            .unwrap_or_else(|_| environment.clone()),
        _ => environment.clone(),
    }
}

/// The keeper's answer; None without a keeper.
fn ask() -> std::io::Result<Option<String>> {
    let mut held = LINK.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(Link { socket, number }) = held.as_mut() else {
        return Ok(None);
    };
    *number += 1;
    let question = number.to_string();
    socket
        .get_mut()
        .write_all(format!("{question}\n").as_bytes())?;
    loop {
        let mut reply = String::new();
        if socket.read_line(&mut reply)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        // One that came too late for its own question is of no use.
        if let Some((_, json)) = reply
            .split_once(' ')
            .filter(|(asked, _)| *asked == question)
        {
            return Ok(Some(json.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_directory_is_one_of_a_fresh_file_system() {
        let dir = std::env::temp_dir().join(format!("pgark-keeper-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("lost+found")).unwrap();
        assert!(is_empty(&dir));
        std::fs::write(dir.join("backup_app_20250122_020015.sql.gz"), "").unwrap();
        assert!(!is_empty(&dir));
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(!is_empty(&dir));
    }

    #[test]
    fn a_file_of_secrets_is_read_anew_for_every_question() {
        let path = std::env::temp_dir().join(format!("pgark-secret-{}", std::process::id()));
        let name = path.display().to_string();
        let environment = Environment::from_pairs([("DB_PASSWORD_FILE", name.as_str())]);
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || answer(ours, &environment, None));
        let mut lines = BufReader::new(theirs);
        for password in ["first", "second"] {
            std::fs::write(&path, password).unwrap();
            lines
                .get_mut()
                .write_all(format!("{password}\n").as_bytes())
                .unwrap();
            let mut line = String::new();
            lines.read_line(&mut line).unwrap();
            let expected = format!("\"file:{name}\":\"{password}\"");
            assert!(line.starts_with(&format!("{password} {{")), "{line}");
            assert!(line.contains(&expected), "{line}");
        }
        std::fs::remove_file(&path).unwrap();
    }
}
