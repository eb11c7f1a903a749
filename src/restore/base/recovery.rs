//! What makes a restored server go on to a moment: its WAL and its target.
//!
//! The WAL is fetched first, into `.pgark-wal` of the new data directory, so that damage in it shows
//! before anything else is written; then that folder, and the directory if it was made, are removed
//! again. At the end the files are moved into `pg_wal`, over what the backup itself brought there.
//!
//! A crash leaves a directory without `pg_control`.

use std::fs;
use std::path::{Path, PathBuf};

use super::combine;
use super::extract::Owner;
use super::files::make;
use crate::cancel::Token;
use crate::error::{Context, Result};
use crate::progress::Progress;
use crate::restore::wal::fetch::Fetch;

/// Where fetched WAL waits.
const STAGE: &str = ".pgark-wal";

/// See the module.
pub struct Recovery<'a> {
    /// Names and values of `recovery_target…`.
    pub settings: Vec<(&'static str, String)>,
    /// How the server comes by WAL.
    pub restore_command: String,
    /// What it runs when recovery has ended.
    pub recovery_end_command: String,
    /// What is put into its `pg_wal`.
    pub fetch: Option<Fetch<'a>>,
}

impl Recovery<'_> {
    /// Fetches the WAL; on failure the directory is as it was.
    pub(super) fn stage(
        &self,
        data_dir: &Path,
        with: (Option<Owner>, usize),
        progress: &Progress,
        cancel: &Token,
    ) -> Result<()> {
        let Some(fetch) = &self.fetch else {
            return Ok(());
        };
        let (owner, threads) = with;
        let was_there = data_dir.is_dir();
        let stage = data_dir.join(STAGE);
        let fetched = make(data_dir, owner)
            .and_then(|()| make(&stage, owner))
            .and_then(|()| fetch.run(&stage, threads, progress, cancel));
        if fetched.is_err() {
            // Both are of a moment ago, and hold nothing else.
            let _ = fs::remove_dir_all(&stage);
            if !was_there {
                let _ = fs::remove_dir(data_dir);
            }
        }
        fetched
    }

    /// Moves what was fetched to its place.
    pub(super) fn place(&self, data_dir: &Path, owner: Option<Owner>) -> Result<()> {
        if self.fetch.is_none() {
            return Ok(());
        }
        let stage = data_dir.join(STAGE);
        if let Some(owner) = owner {
            combine::give_all(&stage, owner)?;
        }
        let wal: PathBuf = data_dir.join("pg_wal");
        for entry in fs::read_dir(&stage).context(|| stage.display().to_string())? {
            let entry = entry.context(|| stage.display().to_string())?;
            let to = wal.join(entry.file_name());
            fs::rename(entry.path(), &to).context(|| format!("cannot move {}", to.display()))?;
        }
        fs::remove_dir(&stage).context(|| format!("cannot remove {}", stage.display()))
    }
}
