//! A chain of backups into one data directory, by the distribution's `pg_combinebackup`.
//!
//! Everything happens in `.pgark-restore` inside the target, on its file system: the backups are
//! unpacked there, combined there, and the result is moved up; `pg_control` is held back.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::extract::{Extract, Owner, link_tablespaces};
use super::files::{make, write};
use super::{Plan, is_wal};
use crate::cancel::Token;
use crate::catalog::layout::base_key;
use crate::error::{Context, Error, Result};
use crate::postgres::process::Child;
use crate::postgres::tools::{Program, Tools};
use crate::progress::Progress;
use crate::store;

/// Where the work is done.
const STAGE: &str = ".pgark-restore";

/// The program of exactly that major version.
pub(super) fn program(tools: &Tools, version: u32) -> Result<Program> {
    let program = tools.pick("pg_combinebackup", version)?;
    if program.major() == version / 10_000 {
        return Ok(program);
    }
    Err(Error::failed(format!(
        "pg_combinebackup is of PostgreSQL {}, and the backup of {}",
        program.major(),
        version / 10_000
    ))
    .hint("install the server package of that major version; nothing was touched"))
}

/// Unpacks, combines, moves into place. Gives `pg_control`.
pub(super) fn run(
    plan: &Plan<'_>,
    program: &Program,
    with: (Option<Owner>, usize),
    progress: &Progress,
    cancel: &Token,
) -> Result<Vec<u8>> {
    let (owner, _) = with;
    let stage = plan.data_dir.join(STAGE);
    make(&stage, None)?;
    let mut command = program.command();
    let result = stage.join("result");
    // All of it is made durable at the end, at once.
    command.arg("--no-sync").arg("--output").arg(&result);
    for number in 0..plan.steps.len() {
        let dir = stage.join(number.to_string());
        let places = unpack(plan, number, &dir, with, progress, cancel)?;
        command.arg(&dir);
        if number + 1 == plan.steps.len() {
            for (oid, staged) in places {
                let pair = mapping(&staged, plan.place(oid)?)?;
                command.arg(format!("--tablespace-mapping={pair}"));
            }
        }
        cancel.check()?;
    }
    combine(command.stdout(Stdio::piped()), cancel)?;
    let control_path = result.join("global/pg_control");
    let control = fs::read(&control_path).context(|| control_path.display().to_string())?;
    fs::remove_file(&control_path).context(|| control_path.display().to_string())?;
    for entry in fs::read_dir(&result).context(|| result.display().to_string())? {
        let entry = entry.context(|| result.display().to_string())?;
        let to = plan.data_dir.join(entry.file_name());
        fs::rename(entry.path(), &to).context(|| format!("cannot move {}", to.display()))?;
    }
    fs::remove_dir_all(&stage).context(|| format!("cannot remove {}", stage.display()))?;
    if let Some(owner) = owner {
        give_all(&plan.data_dir, owner)?;
        for (_, place) in &plan.tablespaces {
            give_all(place, owner)?;
        }
    }
    Ok(control)
}

fn combine(command: &mut Command, cancel: &Token) -> Result<()> {
    let mut child = Child::spawn("pg_combinebackup", command)?;
    let hook = cancel.on_cancel(child.killer());
    // Its stdout ends when it does; the hook must be gone before it is reaped.
    if let Some(mut stdout) = child.take_stdout() {
        std::io::copy(&mut stdout, &mut std::io::sink())?;
    }
    drop(hook);
    let finished = child.wait()?;
    cancel.check()?;
    if finished.status.success() {
        return Ok(());
    }
    Err(Error::failed(format!(
        "pg_combinebackup failed: {}",
        finished.stderr.trim()
    ))
    .hint("restore the full backup of the chain instead; `pgark verify` looks for damage"))
}

/// One backup of the chain as a directory. Gives where its tablespaces were put.
fn unpack(
    plan: &Plan<'_>,
    number: usize,
    dir: &Path,
    with: (Option<Owner>, usize),
    progress: &Progress,
    cancel: &Token,
) -> Result<Vec<(u32, PathBuf)>> {
    let (_, threads) = with;
    let step = &plan.steps[number];
    let archives = step.base.archives.iter();
    let places: Vec<(u32, PathBuf)> = archives
        .filter_map(|archive| Some((archive.oid?, dir.with_extension(archive.oid?.to_string()))))
        .collect();
    make(dir, None)?;
    for (archive, source) in step.base.archives.iter().zip(&step.sources) {
        if is_wal(archive) {
            continue;
        }
        let place = places.iter().find(|(oid, _)| Some(*oid) == archive.oid);
        let place = place.map_or(dir, |(_, place)| place);
        make(place, None)?;
        let mut extract = Extract::new(place, &places, None, progress);
        extract.run(source, threads, cancel)?;
    }
    link_tablespaces(dir, &places, None)?;
    let key = base_key(&step.entry.id, &step.base.backup_manifest.name)?;
    let manifest = store::get(plan.store, &key)?.ok_or_else(|| store::missing(plan.store, &key))?;
    write(&dir.join("backup_manifest"), &manifest, None)?;
    Ok(places)
}

/// `OLD=NEW`, as the program reads it.
fn mapping(old: &Path, new: &Path) -> Result<String> {
    let escape = |path: &Path| {
        let text = path.to_str().map(|text| text.replace('=', "\\="));
        text.ok_or_else(|| Error::usage(format!("{} is not UTF-8", path.display())))
    };
    Ok(format!("{}={}", escape(old)?, escape(new)?))
}

pub(super) fn give_all(dir: &Path, owner: Owner) -> Result<()> {
    owner.give(dir)?;
    for entry in fs::read_dir(dir).context(|| dir.display().to_string())? {
        let entry = entry.context(|| dir.display().to_string())?;
        let kind = entry
            .file_type()
            .context(|| entry.path().display().to_string())?;
        if kind.is_dir() {
            give_all(&entry.path(), owner)?;
        } else {
            owner.give(&entry.path())?;
        }
    }
    Ok(())
}
