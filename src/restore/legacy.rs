//! Restores a backup of the old service: one compressed stream of plain SQL, through psql.
//!
//! Invariants: as for every restore, into a new database that is removed when anything fails.
//! psql stops at the first error, and an error is never a success.

use std::io::{Read, Write};

use super::dump::Job;
use super::replace::Replacement;
use super::target::{Birth, NewDatabase};
use crate::archive::codec;
use crate::cancel::Token;
use crate::error::{Error, Result};
use crate::postgres::Target;
use crate::postgres::process::{Child, Finished};
use crate::postgres::tools::{PassFile, Program};
use crate::progress::Progress;
use crate::store::{Key, Store, StoreReader};
use crate::units::Codec;

/// Bytes of SQL handed to psql at a time.
const CHUNK_BYTES: usize = 256 << 10;

/// What to restore, and with what.
pub struct Source<'a> {
    pub id: &'a str,
    pub store: &'a dyn Store,
    pub key: &'a Key,
    pub codec: Codec,
    pub psql: &'a Program,
}

/// Restores into the new database of this name.
///
/// # Errors
/// `Damage` when the stream cannot be decoded, `Failed` with psql's message at the first SQL
/// error, `Signal`. The half-made database is removed then, unless it is to be kept.
pub fn restore(source: &Source<'_>, job: &Job<'_>) -> Result<Vec<String>> {
    let birth = Birth {
        name: job.name,
        // A legacy backup says nothing of its database.
        properties: job.stead.map(|stead| &stead.properties),
        backup: source.id,
        replaces: job.stead.map(|stead| stead.old.as_str()),
    };
    let database = NewDatabase::create(job.target, &birth)?;
    let target = job.target.with_database(job.name);
    let result = job
        .stead
        .map_or(Ok(()), |stead| {
            Replacement::rehearse(stead, job.target, job.name)
        })
        .and_then(|()| feed(source, &target, job.progress, job.cancel))
        .map(|()| Vec::new())
        .map_err(|error| job.cancel.check().err().unwrap_or(error));
    database.settle(result, job.keep)
}

fn feed(source: &Source<'_>, target: &Target, progress: &Progress, cancel: &Token) -> Result<()> {
    let passfile = PassFile::of(target)?;
    let mut command = source.psql.command();
    command
        .envs(passfile.variables())
        .args([
            "--no-psqlrc",
            "--quiet",
            "--no-password",
            "--set=ON_ERROR_STOP=1",
            "--output=/dev/null",
        ])
        .arg(format!(
            "--dbname={}",
            target.conninfo(Some(passfile.path()))
        ))
        .stdin(std::process::Stdio::piped());
    let mut child = Child::spawn("psql", &mut command)?;
    let hook = cancel.on_cancel(child.killer());
    let mut stdin = child
        .take_stdin()
        .ok_or_else(|| Error::failed("psql has no input"))?;
    let mut input = codec::decoder(source.codec, StoreReader::open(source.store, source.key)?)?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let fed = loop {
        let count = match input.read(&mut chunk) {
            Ok(0) => break Ok(()),
            Ok(count) => count,
            Err(error) => break Err(Error::damage(format!("{}: {error}", source.key))),
        };
        // psql that stopped at an error closes the pipe; what it said is the better message.
        if stdin.write_all(&chunk[..count]).is_err() {
            break Ok(());
        }
        progress.add(count as u64, 0);
    };
    // Dropped, psql is killed: it must not commit what a broken stream left half said.
    fed?;
    drop(stdin);
    let Finished { status, stderr } = child.wait()?;
    drop(hook);
    cancel.check()?;
    if status.success() {
        return Ok(());
    }
    let said: Vec<&str> = stderr
        .lines()
        .filter(|line| !line.trim().is_empty())
        .take(3)
        .collect();
    Err(Error::failed(format!("psql stopped: {}", said.join("; ")))
        .hint("roles or extensions that the backup needs may be missing on this server"))
}
