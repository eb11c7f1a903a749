//! The journal: one line of JSON for every run, failed and skipped ones too (design §3).
//!
//! Invariants: it is for people and pages; losing it loses no backup, and a disk that is too full
//! to write it fails no run. A line that cannot be read (a crash in mid-write) hides no other.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::anomaly::Fall;
use crate::error::{Context, Error, Result};
use crate::store::local;

/// A file that reached this size becomes `<name>.1`, which it replaces.
const ROTATE_BYTES: u64 = 4 << 20;

/// What a run takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Work {
    #[default]
    Dumps,
    /// A full base backup.
    Base,
    /// An incremental one, or a full one where that cannot be.
    Incremental,
}

impl Work {
    #[must_use]
    pub fn is_base(self) -> bool {
        self != Work::Dumps
    }

    /// What it is called in the log.
    #[must_use]
    pub fn noun(self) -> &'static str {
        match self {
            Work::Dumps => "run",
            Work::Base => "base backup",
            Work::Incremental => "incremental base backup",
        }
    }
}

/// What started a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trigger {
    Schedule,
    /// The service's start.
    Start,
    /// WAL streaming left a gap, behind which only a new base backup can be restored.
    Gap,
    /// A person or a script.
    Manual,
}

impl std::fmt::Display for Trigger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Trigger::Schedule => "schedule",
            Trigger::Start => "start",
            Trigger::Gap => "gap",
            Trigger::Manual => "manual",
        })
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Ok,
    /// Some of it failed.
    Partial,
    Failed,
    /// Another run held the cluster.
    Busy,
    /// A signal ended it.
    Interrupted,
    /// It took too long and was ended.
    Timeout,
    /// Its moment came while another run was under way.
    Skipped,
}

/// A backup that a run took.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Taken {
    pub id: String,
    /// None: globals.
    pub database: Option<String>,
    pub bytes: u64,
    pub raw_bytes: u64,
    pub sha256: String,
    /// How it fell against the good ones before it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suspect: Vec<Fall>,
}

/// A database (or `globals`) that a run failed to take.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    pub database: String,
    pub error: String,
}

/// One run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Line {
    pub started_at: Timestamp,
    pub finished_at: Timestamp,
    pub trigger: Trigger,
    #[serde(default)]
    pub work: Work,
    pub outcome: Outcome,
    /// What went wrong with the run as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(default)]
    pub taken: Vec<Taken>,
    #[serde(default)]
    pub failed: Vec<Failure>,
    /// Ids of backups that expired.
    #[serde(default)]
    pub expired: Vec<String>,
}

impl Line {
    /// Whether it is about a base backup. Lines of before there was [`Work`] know it by their ids.
    #[must_use]
    pub fn is_base(&self) -> bool {
        let base = |taken: &Taken| taken.id.starts_with("base_");
        self.work.is_base() || self.taken.iter().any(base)
    }
}

/// Where the journal of a local store lies.
#[must_use]
pub fn path(dir: &Path) -> PathBuf {
    dir.join(".pgark/journal.jsonl")
}

/// Adds a run.
///
/// # Errors
/// `Failed` when it cannot be written; nothing depends on it.
pub fn append(dir: &Path, line: &Line) -> Result<()> {
    let mut text = serde_json::to_string(line).map_err(|error| Error::failed(error.to_string()))?;
    text.push('\n');
    append_text(&path(dir), &text)
}

/// Appends text to a file of ours, rotating it when it is long.
///
/// # Errors
/// `Failed` with the path.
pub(super) fn append_text(path: &Path, text: &str) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    local::create_dir(folder).context(|| folder.display().to_string())?;
    let write = || -> std::io::Result<()> {
        if std::fs::symlink_metadata(path).is_ok_and(|file| file.len() >= ROTATE_BYTES) {
            let mut old = path.as_os_str().to_owned();
            old.push(".1");
            std::fs::rename(path, old)?;
        }
        open(path)?.write_all(text.as_bytes())
    };
    write().context(|| format!("cannot write to {}", path.display()))
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

/// The runs, oldest first, of this file and the one before it; empty when there is none.
#[must_use]
pub fn read(dir: &Path) -> Vec<Line> {
    let newest = path(dir);
    let mut old = newest.as_os_str().to_owned();
    old.push(".1");
    [PathBuf::from(old), newest]
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .flat_map(|text| {
            let lines = text
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok());
            lines.collect::<Vec<Line>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(second: i64) -> Line {
        Line {
            started_at: Timestamp::from_second(second).unwrap(),
            finished_at: Timestamp::from_second(second + 1).unwrap(),
            trigger: Trigger::Manual,
            work: Work::Dumps,
            outcome: Outcome::Ok,
            error: None,
            taken: vec![],
            failed: vec![],
            expired: vec!["x".repeat(1000)],
        }
    }

    #[test]
    fn lines_survive_a_torn_one_and_a_rotation() {
        let dir = std::env::temp_dir().join(format!("pgark-journal-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        assert!(read(&dir).is_empty());
        append(&dir, &line(0)).unwrap();
        append_text(&path(&dir), "{\"started_at\": \"torn").unwrap();
        append_text(&path(&dir), "\n").unwrap();
        for second in 1..5000 {
            append(&dir, &line(second)).unwrap();
        }
        let lines = read(&dir);
        assert_eq!(lines.last().unwrap().started_at.as_second(), 4999);
        assert!(lines.len() > 3000, "{}", lines.len());
        assert!(lines.is_sorted_by_key(|line| line.started_at));
        assert!(std::fs::metadata(path(&dir)).unwrap().len() <= ROTATE_BYTES + 2000);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
