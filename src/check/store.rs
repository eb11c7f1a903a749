//! A store: the directory, its rights, its space; the rights in a bucket.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{Finding, Level};
use crate::catalog::list::{Catalog, Entry, State};
use crate::error::Error;
use crate::store::Store;
use crate::store::rights::{Tried, trial_key};
use crate::units::{BackupKind, ByteSize};

/// Room for so many backups of today's size is enough not to speak of.
const ROOM_FOR: u64 = 3;

fn subject(store: &str) -> String {
    format!("store {store}")
}

/// The directory of a local store, before anything is tried. None: it is not there, and the first
/// backup makes it.
#[must_use]
pub fn directory(dir: &Path, store: &str) -> (Vec<Finding>, bool) {
    let subject = subject(store);
    let shown = dir.display();
    let finding = |level, fact: String| Finding::new(level, "directory", subject.clone(), fact);
    let about = match std::fs::metadata(dir) {
        Ok(about) if about.is_dir() => about,
        Ok(_) => {
            let found = finding(Level::Fail, format!("{shown} is not a directory"));
            return (vec![found.advice("set BACKUP_DIR to a directory")], false);
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return (vec![absent(dir, &finding)], false);
        }
        Err(error) => {
            let found = finding(Level::Fail, format!("{shown} cannot be looked at: {error}"));
            let user = rustix::process::geteuid();
            return (
                vec![found.command(format!("chown -R {user} {}", quoted(dir)))],
                false,
            );
        }
    };
    let mode = about.mode();
    let mut findings = Vec::new();
    if mode & 0o002 != 0 {
        let fact = format!(
            "{shown} may be written by everybody (mode {:04o}): so may the backups go",
            mode & 0o7777
        );
        findings.push(finding(Level::Warning, fact).command(format!("chmod 0700 {}", quoted(dir))));
    } else if mode & 0o077 != 0 {
        let fact = format!(
            "{shown} is open to others (mode {:04o}); the files in it are not (0600)",
            mode & 0o7777
        );
        findings.push(finding(Level::Note, fact).command(format!("chmod 0700 {}", quoted(dir))));
    }
    (findings, true)
}

fn absent(dir: &Path, finding: &dyn Fn(Level, String) -> Finding) -> Finding {
    let mut above = dir.ancestors().skip(1);
    let existing = above.find(|path| path.is_dir() || path.as_os_str().is_empty());
    let existing = existing.filter(|path| !path.as_os_str().is_empty());
    let existing = existing.unwrap_or(Path::new("."));
    let may = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    if rustix::fs::access(existing, may).is_ok() {
        let fact = format!(
            "{} is not there yet; the first backup makes it",
            dir.display()
        );
        return finding(Level::Note, fact);
    }
    let fact = format!(
        "{} is not there, and pgark (user {}) may not make it in {}",
        dir.display(),
        rustix::process::geteuid(),
        existing.display()
    );
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    finding(Level::Fail, fact).command(format!(
        "install -d -m 0700 -o {user} -g {group} {}",
        quoted(dir)
    ))
}

/// For a shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
}

/// Writes, reads back, lists and deletes; in a bucket each right.
#[must_use]
pub fn trial(store: &dyn Store) -> Vec<Finding> {
    let subject = subject(store.name());
    let key = match trial_key() {
        Ok(key) => key,
        Err(error) => return vec![Finding::new(Level::Fail, "rights", subject, error.fact)],
    };
    let tried = store.try_rights(&key);
    let failed: Vec<&Tried> = tried.iter().filter(|one| one.result.is_err()).collect();
    if failed.is_empty() {
        let rights: Vec<&str> = tried.iter().map(|one| one.right).collect();
        let fact = format!("{}: {} work", store.describe(), rights.join(", "));
        return vec![Finding::new(Level::Ok, "rights", subject, fact)];
    }
    let finding = |one: &&Tried| {
        let error = one.result.as_ref().err()?;
        let level = if one.needed {
            Level::Fail
        } else {
            Level::Warning
        };
        let fact = format!("{}: {}", one.right, error.fact);
        let finding = Finding::new(level, "rights", subject.clone(), fact);
        Some(match (&one.policy, &error.hint) {
            (Some(policy), _) => finding.policy(policy.clone()),
            (None, Some(hint)) => finding.advice(hint.clone()),
            (None, None) => finding,
        })
    };
    failed.iter().filter_map(finding).collect()
}

/// What the catalog says: unaccepted suspects, and what the last backups weigh.
#[must_use]
pub fn suspects(catalog: &Catalog, store: &str) -> Vec<Finding> {
    let suspect = catalog
        .entries
        .iter()
        .filter(|entry| entry.state == State::Suspect);
    suspect
        .map(|entry| {
            let how = entry.reason.as_deref().unwrap_or_default();
            let fact = format!(
                "{} is suspect, so nothing of its database expires: {how}",
                entry.id
            );
            Finding::new(Level::Warning, "suspect", subject(store), fact)
                .command(format!("pgark accept '{}'", entry.id))
        })
        .collect()
}

/// Bytes of the newest good dump of each of these databases that has one, and how many have.
#[must_use]
pub fn last_bytes(catalog: &Catalog, databases: &[String]) -> (u64, usize) {
    let newest = |name: &String| -> Option<&Entry> {
        let mut entries = catalog.entries.iter();
        entries.find(|entry| {
            entry.good && entry.kind == BackupKind::Dump && entry.database.as_ref() == Some(name)
        })
    };
    let found: Vec<u64> = databases
        .iter()
        .filter_map(newest)
        .map(|entry| entry.bytes)
        .collect();
    (found.iter().sum(), found.len())
}

/// Free space against what the next backups take. `exact`: `needed` is the size of the last ones
/// and not only that of the databases.
#[must_use]
pub fn space(dir: &Path, store: &str, needed: u64, exact: bool) -> Finding {
    let finding = |level, fact: String| Finding::new(level, "space", subject(store), fact);
    let existing = dir
        .ancestors()
        .find(|path| path.is_dir())
        .unwrap_or(Path::new("."));
    let free = match rustix::fs::statvfs(existing) {
        Ok(about) => about.f_bavail.saturating_mul(about.f_frsize),
        Err(error) => {
            let error = Error::from(std::io::Error::from(error));
            return finding(
                Level::Warning,
                format!("the free space is not known: {}", error.fact),
            );
        }
    };
    judge_space(free, needed, exact, &finding)
}

fn judge_space(
    free: u64,
    needed: u64,
    exact: bool,
    finding: &dyn Fn(Level, String) -> Finding,
) -> Finding {
    let what = if exact {
        "the last backups took"
    } else {
        "the databases hold"
    };
    let fact = format!("{} free; {what} {}", ByteSize(free), ByteSize(needed));
    // The size of a database says little: what compresses tenfold fits.
    let level = match (free < needed, free < needed.saturating_mul(ROOM_FOR)) {
        (true, _) if exact => Level::Fail,
        (true, _) => Level::Warning,
        (false, true) if exact => Level::Warning,
        _ => Level::Ok,
    };
    if level == Level::Ok {
        return finding(level, fact);
    }
    finding(level, fact).advice(
        "a larger disk, BACKUP_COMPRESSION=zstd, or fewer days (`pgark prune --dry-run` shows what would go)",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_judged_by_the_last_backups_or_carefully_by_the_databases() {
        let level = |free, needed, exact| {
            let finding = |level, fact: String| Finding::new(level, "space", "x", fact);
            judge_space(free, needed, exact, &finding).level
        };
        assert_eq!(level(99, 100, true), Level::Fail);
        assert_eq!(level(100, 100, true), Level::Warning);
        assert_eq!(level(299, 100, true), Level::Warning);
        assert_eq!(level(300, 100, true), Level::Ok);
        assert_eq!(level(99, 100, false), Level::Warning);
        assert_eq!(level(100, 100, false), Level::Ok);
    }
}
