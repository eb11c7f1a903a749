//! Has pg_dump describe the database: its table of contents under our snapshot.
//!
//! One `pg_dump -Fc` process, never two: the archive's table of contents holds every statement
//! and precedes all data. When it is read, pg_dump is ended; pgark copies the data itself.
//!
//! Invariants: pg_dump reads through the exported snapshot, from the very address that the
//! snapshot's holder is connected to. Its wait for locks is bounded. What it warned about
//! is kept. The password reaches it in a private file, never in argv or environment. A
//! crash of pgark closes the pipe, and pg_dump ends at its next write.

use std::io::{BufReader, Read};
use std::process::Stdio;
use std::time::Duration;

use super::toc::Toc;
use super::watch::Watch;
use crate::cancel::Token;
use crate::error::{Error, Result};
use crate::postgres::Target;
use crate::postgres::process::{Child, Finished};
use crate::postgres::tools::{PassFile, Program};

/// How long pg_dump waits for a table's lock. The snapshot's holder has it already: pg_dump can
/// only wait behind somebody who asks for an exclusive lock and waits for our holder, and that
/// wait ends by letting go and not by patience.
const LOCK_WAIT_MS: u32 = 1000;

/// The table of contents and what pg_dump warned about.
pub(super) struct Schema {
    pub toc: Toc,
    pub warnings: Vec<String>,
}

/// Why pg_dump gave no table of contents.
pub(super) enum Refusal {
    /// Somebody queues for a lock behind ours; let go and begin anew.
    Blocked(Error),
    /// No connection was left for pg_dump.
    Full(Error),
    Failed(Error),
}

/// Runs pg_dump under `snapshot`.
///
/// # Errors
/// `Blocked` when somebody's request for an exclusive lock stands in its way, `Full` when it got no
/// connection; else what pg_dump said.
pub(super) fn read(
    program: &Program,
    target: &Target,
    encoding: &str,
    snapshot: &str,
    server_options: &str,
    lock_timeout: Duration,
    cancel: &Token,
) -> std::result::Result<Schema, Refusal> {
    // Names the session to the watch.
    let name = format!("pgark {snapshot}");
    let (mut child, passfile) = start(program, target, encoding, snapshot, server_options, &name)
        .map_err(Refusal::Failed)?;
    let hook = cancel.on_cancel(child.killer());
    let Some(stdout) = child.take_stdout() else {
        return Err(Refusal::Failed(Error::failed("pg_dump has no output")));
    };
    let watch = Watch::start(target.clone(), name, lock_timeout, child.killer());
    let mut stdout = BufReader::new(stdout);
    let toc = Toc::read(&mut stdout);
    let blocked = watch.end();
    let at_end = toc.is_ok() && stdout.read(&mut [0]).is_ok_and(|bytes| bytes == 0);
    drop((stdout, hook));
    // Ended on purpose: the rest of its output would be data. Unless it already came to its
    // own end, its exit status says nothing; the whole table of contents is the proof.
    if toc.is_ok() && !at_end {
        child.kill();
    }
    let Finished { status, stderr } = child.wait().map_err(Refusal::Failed)?;
    drop(passfile);
    match toc {
        Ok(toc) => Ok(Schema {
            toc,
            warnings: warnings(&stderr),
        }),
        Err(error) => {
            if let Err(interrupted) = cancel.check() {
                return Err(Refusal::Failed(interrupted));
            }
            if let Some(blocked) = blocked {
                return Err(Refusal::Failed(blocked));
            }
            let said = stderr.trim().replace('\n', "; ");
            let fact = if said.is_empty() { error.fact } else { said };
            let failure = Error::failed(format!("pg_dump ({status}): {fact}"));
            if BLOCKED.iter().any(|words| stderr.contains(words)) {
                Err(Refusal::Blocked(failure))
            } else if is_full(&stderr) {
                Err(Refusal::Full(failure))
            } else {
                Err(Refusal::Failed(failure))
            }
        }
    }
}

fn start(
    program: &Program,
    target: &Target,
    encoding: &str,
    snapshot: &str,
    server_options: &str,
    name: &str,
) -> Result<(Child, PassFile)> {
    let passfile = PassFile::of(target)?;
    let mut command = program.command();
    command.env("PGAPPNAME", name).envs(passfile.variables());
    command
        .args([
            "--format=custom",
            "--compress=0",
            "--no-password",
            "--snapshot",
            snapshot,
        ])
        .arg(format!("--lock-wait-timeout={LOCK_WAIT_MS}"))
        .arg(format!("--encoding={encoding}"))
        .arg(format!(
            "--dbname={}",
            target.conninfo_with(Some(passfile.path()), server_options)
        ))
        .stdout(Stdio::piped());
    Ok((Child::spawn("pg_dump", &mut command)?, passfile))
}

/// What pg_dump says when somebody came between our locks and its own: it waits for a lock under
/// `statement_timeout`, and looks at views and functions that may be gone.
const BLOCKED: [&str; 6] = [
    "lock timeout",
    "statement timeout",
    "could not obtain lock",
    "deadlock detected",
    "could not open relation with OID",
    "cache lookup failed",
];

/// What libpq's programs say when the role, the database or the server has no connection left
/// (SQLSTATE 53300, which they do not show).
pub(super) fn is_full(stderr: &str) -> bool {
    [
        "too many connections for",
        "too many clients",
        "remaining connection slots",
    ]
    .iter()
    .any(|words| stderr.contains(words))
}

/// The warnings among pg_dump's messages, without its name; details stay with their warning. What
/// the server warns about (a collation's version) leaves nothing out.
fn warnings(stderr: &str) -> Vec<String> {
    let mut warnings: Vec<String> = Vec::new();
    for line in stderr.lines().filter(|line| !line.trim().is_empty()) {
        let text = line
            .strip_prefix("pg_dump: ")
            .or_else(|| line.strip_prefix("pg_dumpall: "))
            .unwrap_or(line);
        let of_server = ["WARNING:", "NOTICE:", "DETAIL:", "HINT:"];
        if of_server.iter().any(|start| line.starts_with(start)) {
            continue;
        }
        match (text.strip_prefix("warning: "), warnings.last_mut()) {
            (Some(warning), _) => warnings.push(warning.to_owned()),
            (None, Some(last)) => {
                last.push(' ');
                last.push_str(text.trim());
            }
            (None, None) => {}
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    #[test]
    fn details_stay_with_their_warning() {
        let text = "pg_dump: warning: there are circular foreign-key constraints on this table:\n\
                    pg_dump: detail: employee\npg_dump: hint: use --disable-triggers\n\
                    WARNING:  database \"x\" has a collation version mismatch\nHINT:  Rebuild all objects\n\
                    pg_dump: warning: subscriptions not dumped because current user is not a superuser\n";
        assert_eq!(
            super::warnings(text),
            [
                "there are circular foreign-key constraints on this table: detail: employee hint: use --disable-triggers",
                "subscriptions not dumped because current user is not a superuser"
            ]
        );
    }
}
