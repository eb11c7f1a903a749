//! The preflight: what a backup needs and does not have, each with what mends it.
//!
//! Levels follow one rule: *fail* is what would make `pgark backup` fail or leave something out
//! (exit code 1 or 3); *warning* is what will hurt later or is left out by design; *note* is worth
//! knowing. A mend is exact: a statement, a line or a command that can be pasted as it is.
//!
//! Invariants: nothing is changed on the server or left in a store; what cannot be looked at is a
//! finding and ends nothing else. A crash between the write and the deletion of the trial object
//! leaves that one, `pgark-check-…`, which no backup is named like.
//!
//! What base backups and WAL need is looked at where they are asked for.

pub mod database;
pub mod server;
pub mod store;
pub mod wal;

use std::fmt;

use serde::Serialize;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    Note,
    Warning,
    Fail,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Warning => "warning",
            Level::Fail => "FAIL",
        })
    }
}

/// What a mend is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// Statements; `place` is the database.
    Sql,
    /// Lines of `pg_hba.conf`.
    Hba,
    /// Commands of a shell, on pgark's machine.
    Command,
    /// Statements of a bucket's or a role's policy, JSON.
    Policy,
    /// A sentence: nothing that can be pasted.
    Advice,
}

/// What mends a finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mend {
    pub how: How,
    /// Where it is to be done; empty when that goes without saying.
    pub place: String,
    pub lines: Vec<String>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub level: Level,
    /// A word that stays, for scripts.
    pub topic: &'static str,
    /// `server`, `role`, `database app`, `store local`, …
    pub subject: String,
    pub fact: String,
    pub mend: Option<Mend>,
}

impl Finding {
    #[must_use]
    pub fn new(
        level: Level,
        topic: &'static str,
        subject: impl Into<String>,
        fact: impl Into<String>,
    ) -> Finding {
        Finding {
            level,
            topic,
            subject: subject.into(),
            fact: fact.into(),
            mend: None,
        }
    }

    fn mend(mut self, how: How, place: &str, lines: &[String]) -> Finding {
        self.mend = Some(Mend {
            how,
            place: place.to_owned(),
            lines: lines.to_vec(),
        });
        self
    }

    /// A statement that mends it, in this database.
    #[must_use]
    pub fn sql(self, database: &str, statement: impl Into<String>) -> Finding {
        self.mend(How::Sql, database, &[statement.into()])
    }

    /// Statements that mend it, one after the other.
    #[must_use]
    pub fn statements(self, database: &str, lines: &[String]) -> Finding {
        self.mend(How::Sql, database, lines)
    }

    #[must_use]
    pub fn hba(self, line: impl Into<String>) -> Finding {
        let place = "above every line that rejects; then SELECT pg_reload_conf()";
        self.mend(How::Hba, place, &[line.into()])
    }

    #[must_use]
    pub fn command(self, line: impl Into<String>) -> Finding {
        self.mend(How::Command, "", &[line.into()])
    }

    #[must_use]
    pub fn policy(self, statement: impl Into<String>) -> Finding {
        self.mend(How::Policy, "", &[statement.into()])
    }

    #[must_use]
    pub fn advice(self, text: impl Into<String>) -> Finding {
        self.mend(How::Advice, "", &[text.into()])
    }
}

/// The worst of all levels.
#[must_use]
pub fn worst(findings: &[Finding]) -> Level {
    findings
        .iter()
        .map(|one| one.level)
        .max()
        .unwrap_or(Level::Ok)
}

/// `1 table`, `2 tables`.
fn plural(count: u64, unit: &str) -> String {
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}
