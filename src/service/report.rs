//! `backup.log`: what a run did, in words, as the old service's users look for it.
//!
//! Invariants: one block of lines for a run, each with its moment (UTC); a disk that is too full
//! to write it fails no run.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::journal;
use crate::catalog::list::Entry;
use crate::catalog::manifest::Manifest;
use crate::error::{Error, Result};
use crate::units::ByteSize;

/// Where the report log of a local store lies.
#[must_use]
pub fn path(dir: &Path) -> PathBuf {
    dir.join("backup.log")
}

/// The lines of one run.
#[derive(Debug, Default)]
pub struct Report(String);

impl Report {
    /// Adds a line.
    pub fn line(&mut self, at: Timestamp, text: &str) {
        // One event is one line, whatever a server's message holds.
        let text = text.replace('\n', "; ");
        let _ = writeln!(self.0, "{at} {text}");
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Appends the lines to the report log.
    ///
    /// # Errors
    /// `Failed` when it cannot be written; nothing depends on it.
    pub fn save(&self, dir: &Path) -> Result<()> {
        journal::append_text(&path(dir), &self.0)
    }
}

/// One backup that a run took; `before` is the newest good one before it.
#[must_use]
pub fn taken(manifest: &Manifest, before: Option<&Entry>, store: &str) -> String {
    let change = match before {
        Some(entry) if entry.bytes > 0 => {
            let (new, old) = (i128::from(manifest.artefact.bytes), i128::from(entry.bytes));
            let percent = (new - old) * 100 / old;
            format!(" ({percent:+} % against {})", entry.id)
        }
        _ => String::new(),
    };
    let seconds = manifest
        .finished_at
        .duration_since(manifest.started_at)
        .as_secs();
    let what = match (&manifest.database, &manifest.parent) {
        (Some(name), _) => format!("database {name}"),
        (None, Some(parent)) => format!("base backup on {parent}"),
        (None, None) if manifest.base.is_some() => "base backup".to_owned(),
        (None, None) => "globals".to_owned(),
    };
    let contents = match &manifest.database {
        Some(_) => format!(", {} tables, {} rows", manifest.tables.len(), manifest.rows),
        None => String::new(),
    };
    format!(
        "{what}: {}, {}{change}{contents}, {seconds} s, sha256 {}, in {store}",
        manifest.artefact.name,
        ByteSize(manifest.artefact.bytes),
        manifest.artefact.sha256
    )
}

/// A failure, with its way out.
#[must_use]
pub fn failed(what: &str, error: &Error) -> String {
    let hint = error
        .hint
        .as_ref()
        .map_or_else(String::new, |hint| format!(" (hint: {hint})"));
    format!("{what}: FAILED: {}{hint}", error.fact)
}
