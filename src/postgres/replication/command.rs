//! What the server is asked, in the grammar of its version (`repl_gram.y`). Pure.
//!
//! Invariant: no text of a caller reaches a command unquoted.

use std::fmt::{self, Write as _};

use crate::error::{Error, Result};
use crate::units::{Lsn, Timeline};

/// The first version whose options stand in parentheses and whose archives share one COPY.
pub(super) const PARENTHESISED: u32 = 150_000;
/// The first version that knows incremental backups.
pub(super) const INCREMENTAL: u32 = 170_000;

/// The name of a replication slot: 1 to 63 of `a-z`, `0-9` and `_`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotName(String);

impl SlotName {
    /// # Errors
    /// `Usage` for a name that PostgreSQL refuses.
    pub fn new(text: &str) -> Result<SlotName> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if (1..=63).contains(&text.len()) && text.bytes().all(plain) {
            Ok(SlotName(text.to_owned()))
        } else {
            Err(
                Error::usage(format!("{text:?} cannot name a replication slot"))
                    .hint("use 1 to 63 lower-case letters, digits and underscores"),
            )
        }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The checkpoint that a base backup begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checkpoint {
    /// Over `checkpoint_timeout`, gently.
    #[default]
    Spread,
    /// At full speed.
    Fast,
}

/// What BASE_BACKUP is asked for. Always: no waiting for the archiver (a stuck one would hold
/// the backup up for ever), a `tablespace_map`, and a manifest with CRC-32C, as
/// pg_basebackup's.
#[derive(Debug, Clone, Default)]
pub struct BaseBackup {
    /// Stands in `backup_label`.
    pub label: String,
    pub checkpoint: Checkpoint,
    /// The server adds up the sizes first, which costs it a walk over all files.
    pub progress: bool,
    /// At most so much is sent, 32 KiB/s to 1 GiB/s.
    pub max_rate_kib: Option<u32>,
    /// The segments that the backup needs come in its `pg_wal`.
    pub wal: bool,
    /// Only what changed since the manifest that was uploaded before (17+).
    pub incremental: bool,
}

impl BaseBackup {
    /// # Errors
    /// `Usage` for what this server cannot do.
    pub(super) fn command(&self, version: u32) -> Result<String> {
        if let Some(rate) = self
            .max_rate_kib
            .filter(|rate| !(32..=1 << 20).contains(rate))
        {
            return Err(
                Error::usage(format!("a rate of {rate} KiB/s is out of range"))
                    .hint("give 32 KiB/s to 1 GiB/s"),
            );
        }
        if self.incremental && version < INCREMENTAL {
            return Err(Error::usage("the server cannot make incremental backups")
                .hint("PostgreSQL 17 is the first that can; take a full one"));
        }
        let label = quoted(&self.label)?;
        let fast = self.checkpoint == Checkpoint::Fast;
        let mut options = Vec::new();
        if version >= PARENTHESISED {
            options.push(format!("LABEL {label}"));
            let pace = if fast { "fast" } else { "spread" };
            options.push(format!("CHECKPOINT '{pace}'"));
            options.extend(["WAIT false", "TABLESPACE_MAP true"].map(str::to_owned));
            options.extend(["MANIFEST 'yes'", "MANIFEST_CHECKSUMS 'CRC32C'"].map(str::to_owned));
            options.extend(self.progress.then(|| "PROGRESS true".to_owned()));
            options.extend(self.wal.then(|| "WAL true".to_owned()));
            options.extend(self.incremental.then(|| "INCREMENTAL".to_owned()));
            options.extend(self.max_rate_kib.map(|rate| format!("MAX_RATE {rate}")));
            return Ok(format!("BASE_BACKUP ({})", options.join(", ")));
        }
        options.push(format!("LABEL {label}"));
        options.extend(self.progress.then(|| "PROGRESS".to_owned()));
        options.extend(fast.then(|| "FAST".to_owned()));
        options.extend(self.wal.then(|| "WAL".to_owned()));
        options.push("NOWAIT".to_owned());
        options.extend(self.max_rate_kib.map(|rate| format!("MAX_RATE {rate}")));
        options.extend(["TABLESPACE_MAP", "MANIFEST 'yes'"].map(str::to_owned));
        options.push("MANIFEST_CHECKSUMS 'CRC32C'".to_owned());
        Ok(format!("BASE_BACKUP {}", options.join(" ")))
    }
}

/// A physical slot that holds WAL from this moment on.
pub(super) fn create_slot(name: &SlotName, temporary: bool, version: u32) -> String {
    let temporary = if temporary { " TEMPORARY" } else { "" };
    let reserve = if version >= PARENTHESISED {
        "(RESERVE_WAL)"
    } else {
        "RESERVE_WAL"
    };
    format!("CREATE_REPLICATION_SLOT \"{name}\"{temporary} PHYSICAL {reserve}")
}

/// Streams WAL from a position on.
pub(super) fn start(slot: Option<&SlotName>, from: Lsn, timeline: Timeline) -> String {
    let mut text = "START_REPLICATION".to_owned();
    if let Some(slot) = slot {
        let _ = write!(text, " SLOT \"{slot}\"");
    }
    let _ = write!(text, " PHYSICAL {from} TIMELINE {timeline}");
    text
}

/// A text constant. The replication grammar knows no backslash escapes.
fn quoted(text: &str) -> Result<String> {
    if text.contains(['\0', '\n', '\r']) {
        return Err(Error::usage(format!("{text:?} cannot be a backup's label"))
            .hint("a label is one line"));
    }
    Ok(format!("'{}'", text.replace('\'', "''")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_gets_its_own_grammar() {
        let full = BaseBackup {
            label: "it's".to_owned(),
            checkpoint: Checkpoint::Fast,
            progress: true,
            max_rate_kib: Some(32),
            ..BaseBackup::default()
        };
        assert_eq!(
            full.command(140_013).unwrap(),
            "BASE_BACKUP LABEL 'it''s' PROGRESS FAST NOWAIT MAX_RATE 32 TABLESPACE_MAP \
             MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'"
        );
        assert_eq!(
            full.command(150_000).unwrap(),
            "BASE_BACKUP (LABEL 'it''s', CHECKPOINT 'fast', WAIT false, TABLESPACE_MAP true, \
             MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C', PROGRESS true, MAX_RATE 32)"
        );
        let next = BaseBackup {
            incremental: true,
            wal: true,
            ..BaseBackup::default()
        };
        assert!(next.command(160_010).is_err());
        let text = next.command(170_000).unwrap();
        assert!(text.contains("CHECKPOINT 'spread'") && text.ends_with("WAL true, INCREMENTAL)"));
        let slot = SlotName::new("pgark").unwrap();
        assert_eq!(
            create_slot(&slot, true, 140_000),
            "CREATE_REPLICATION_SLOT \"pgark\" TEMPORARY PHYSICAL RESERVE_WAL"
        );
        assert_eq!(
            create_slot(&slot, false, 170_000),
            "CREATE_REPLICATION_SLOT \"pgark\" PHYSICAL (RESERVE_WAL)"
        );
        assert_eq!(
            start(Some(&slot), Lsn(0x0100_0000), Timeline::FIRST),
            "START_REPLICATION SLOT \"pgark\" PHYSICAL 0/1000000 TIMELINE 1"
        );
    }

    #[test]
    fn what_would_leave_its_quotes_is_refused() {
        for name in ["", "Slot", "a b", "a\"", "ä", &"a".repeat(64)] {
            assert!(SlotName::new(name).is_err(), "{name}");
        }
        for label in ["a\nb", "a\0b"] {
            let backup = BaseBackup {
                label: label.to_owned(),
                ..BaseBackup::default()
            };
            assert!(backup.command(170_000).is_err());
        }
        for rate in [0, 31, (1 << 20) + 1] {
            let backup = BaseBackup {
                max_rate_kib: Some(rate),
                ..BaseBackup::default()
            };
            assert!(backup.command(170_000).is_err());
        }
    }
}
