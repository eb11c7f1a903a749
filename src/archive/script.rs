//! What the frames of a dump mean: the vocabulary that the dump writes into its index and
//! that restore, verify and show read back.
//!
//! A dump is one SQL script. Its frames hold either statements (many small parts, each one
//! object of pg_dump's table of contents or one of pgark's own blocks), the rows of one
//! table as a complete `COPY … FROM stdin; … \.`, or contents of large objects. Read one
//! after the other by psql they restore the database; read by their meaning they let pgark
//! run them in parallel, in the order of their dependencies.
//!
//! Invariant: every object of the table of contents appears as a part, also those that have
//! no statement of their own, so that the index alone tells what the dump holds.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::error::{Error, Result};

/// Raw bytes after which a frame of rows is closed at the next row's border, at the least.
/// Large enough that a member's header and its empty dictionary cost nothing (under 1 %),
/// small enough that some dozen of them in memory stay far below 128 MiB.
pub const FRAME_RAW_BYTES: usize = 2 << 20;

/// Raw bytes of the largest frame that is closed early enough; a longer row still goes in whole.
const FRAME_RAW_BYTES_MAX: u64 = 8 << 20;
/// What all frames of rows in the making may hold together, beyond the smallest size.
const FRAMES_RAW_BYTES: u64 = 32 << 20;
/// After as many raw bytes a frame is one byte longer.
const GROWTH: u64 = 1 << 17;

/// Raw bytes after which a frame of rows is closed, when `sent` bytes of the dump have gone before it
/// and `jobs` connections copy. Frames grow with the dump, so that the index of 5 TB, and the memory
/// of whoever reads it, is a quarter of what it would be: below 256 GiB they hardly differ.
#[must_use]
pub fn frame_raw_bytes(sent: u64, jobs: usize) -> usize {
    let least = FRAME_RAW_BYTES as u64;
    let most = (FRAMES_RAW_BYTES / jobs.max(1) as u64).clamp(least, FRAME_RAW_BYTES_MAX);
    let bytes = (least + sent / GROWTH).min(most);
    usize::try_from(bytes).unwrap_or(FRAME_RAW_BYTES)
}

/// When a part is restored. Rights come after everything that they could forbid; event
/// triggers and materialised views after the rights that they run with
/// (`_tocEntryRestorePass` in `pg_backup_archiver.c`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    Pre,
    Data,
    Post,
    Rights,
    Last,
}

/// What a part of a statement frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Session settings; a restore that is no psql makes its own.
    Head,
    /// Removes what the dump brings back; not for a new database.
    Drop,
    /// One object of pg_dump's table of contents.
    Entry,
    /// Settings, rights and comment of the database itself.
    Properties,
    /// The closing lines.
    Tail,
}

/// One piece of a statement frame.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Part {
    /// Offset in the frame's raw bytes, and length there.
    pub at: usize,
    pub len: usize,
    pub role: Role,
    pub stage: Stage,
    /// Dump id in pg_dump's table of contents; 0 for pgark's own blocks.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub id: i32,
    /// Object type, as pg_dump calls it: `TABLE`, `INDEX`, `FK CONSTRAINT`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub desc: String,
    /// Name for people; never used in SQL.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Dump ids that come first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deps: Vec<i32>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(id: &i32) -> bool {
    *id == 0
}

/// The meaning of one frame.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "k", rename_all = "lowercase")]
pub enum Meaning {
    /// Statements.
    Sql { parts: Vec<Part> },
    /// Rows of the table whose `TABLE DATA` entry has this dump id. The first `head` raw
    /// bytes are the COPY statement's line, the last `tail` bytes end the data. With `root` the
    /// rows go in through the root of a partitioned table.
    Rows {
        id: i32,
        rows: u64,
        head: usize,
        tail: usize,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        root: bool,
    },
    /// Contents of large objects, as statements: so many objects (counted where they
    /// begin) and so many of their bytes.
    Objects { count: u64, bytes: u64 },
    /// Text that is only read as a whole (globals).
    Text,
}

impl Meaning {
    /// As the index carries it.
    ///
    /// # Errors
    /// None that can happen for these types; passed on all the same.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|error| Error::failed(error.to_string()))
    }

    /// From the index.
    ///
    /// # Errors
    /// `Damage` when the index holds something else.
    pub fn from_json(json: &RawValue) -> Result<Self> {
        serde_json::from_str(json.get()).map_err(|error| {
            Error::damage(format!(
                "the index holds a frame of unknown meaning: {error}"
            ))
        })
    }
}
