//! What shows that a database is one of pgark's in the making: a comment on it, and a lock.
//!
//! A restore marks its database before the first row and takes the mark away at the end. So
//! what a killed restore left is known as such, by whoever looks; and the lock, which lives as
//! long as the session, tells whether that restore is still at work.
//!
//! Invariant: only a database whose mark names that very database, and whose lock is free, counts
//! as a remain. A comment that was copied, or a database that somebody renamed, does not.

use std::io::Read as _;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Context, Error, Result};
use crate::postgres::{Client, quote_ident, quote_literal};

/// First key of the advisory locks of restores, "pgrs"; the second is the name's hash.
const LOCK_CLASS: i32 = 0x7067_7273;

const BEGINS: &str = "pgark restore ";

/// How far a restore is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    Loading,
    /// Whole and checked; only the names are still to be swapped.
    Ready,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    pub database: String,
    pub backup: String,
    pub state: State,
    /// The database whose place it is to take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<String>,
}

impl Mark {
    pub(super) fn put(&self, admin: &mut Client) -> Result<()> {
        let json = serde_json::to_string(self).map_err(|error| Error::failed(error.to_string()))?;
        admin.execute(format!(
            "COMMENT ON DATABASE {} IS {}",
            quote_ident(&self.database),
            quote_literal(&format!("{BEGINS}{json}"))
        ))
    }

    fn parse(database: &str, comment: &str) -> Option<Mark> {
        let mark: Mark = serde_json::from_str(comment.strip_prefix(BEGINS)?).ok()?;
        (mark.database == database).then_some(mark)
    }
}

/// All marked databases of the cluster.
pub(super) fn all(admin: &mut Client) -> Result<Vec<Mark>> {
    let rows = admin.query(
        "SELECT datname, pg_catalog.shobj_description(oid, 'pg_database') FROM pg_catalog.pg_database ORDER BY datname",
    )?;
    Ok(rows
        .iter()
        .filter_map(|row| Mark::parse(row.opt_str(0)?, row.opt_str(1)?))
        .collect())
}

/// Takes the mark away where there is still one; what the source said stays.
pub(super) fn clear(admin: &mut Client, database: &str) -> Result<()> {
    if all(admin)?.iter().any(|mark| mark.database == database) {
        admin.execute(format!(
            "COMMENT ON DATABASE {} IS NULL",
            quote_ident(database)
        ))?;
    }
    Ok(())
}

/// Takes the lock of a database's name for as long as the session lives.
///
/// # Errors
/// `Busy` when somebody has it.
pub(super) fn lock(admin: &mut Client, name: &str) -> Result<()> {
    if try_lock(admin, name)? {
        return Ok(());
    }
    Err(
        Error::busy(format!("another restore works on database {name:?}"))
            .hint("wait until it ends; nothing was touched"),
    )
}

pub(super) fn try_lock(admin: &mut Client, name: &str) -> Result<bool> {
    let rows = admin.query(format!(
        "SELECT pg_catalog.pg_try_advisory_lock({LOCK_CLASS}, {})",
        key(name)
    ))?;
    rows.first().map_or(Ok(false), |row| row.bool(0))
}

pub(super) fn unlock(admin: &mut Client, name: &str) -> Result<()> {
    admin.execute(format!(
        "SELECT pg_catalog.pg_advisory_unlock({LOCK_CLASS}, {})",
        key(name)
    ))
}

fn key(name: &str) -> i32 {
    let digest = Sha256::digest(name.as_bytes());
    i32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
}

/// What a database is called before it has its mark.
const TEMPORARY: &str = "pgark_making_";

/// A temporary name that nobody else thinks of.
pub(super) fn temporary_name() -> Result<String> {
    let mut bytes = [0_u8; 8];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context(|| "cannot read random numbers".to_owned())?;
    Ok(format!("{TEMPORARY}{}", hex::encode(bytes)))
}

/// Removes what restores left that were killed before they could mark their database. The server
/// may still be making one: its session holds the lock until it has noticed.
pub(super) fn clear_temporary(admin: &mut Client) -> Result<Vec<String>> {
    let rows = admin.query(format!(
        "SELECT datname FROM pg_catalog.pg_database WHERE datname ~ '^{TEMPORARY}[0-9a-f]{{16}}$'"
    ))?;
    let mut notes = Vec::new();
    for name in rows.iter().filter_map(|row| row.opt_str(0)) {
        if try_lock(admin, name)? {
            notes.push(remove_remain(admin, name)?);
            unlock(admin, name)?;
        }
    }
    Ok(notes)
}

/// Removes what a dead restore left, whose lock the caller holds; gives the words for it.
///
/// # Errors
/// `Busy` when somebody works with it: then it is worth something to them.
pub(super) fn remove_remain(admin: &mut Client, name: &str) -> Result<String> {
    let rows = admin.query(format!(
        "SELECT pid FROM pg_catalog.pg_stat_activity WHERE datname = {} AND backend_type = 'client backend' \
         AND coalesce(application_name, '') NOT LIKE 'pgark%'",
        quote_literal(name)
    ))?;
    if let Some(row) = rows.first() {
        let pid = row.opt_str(0).unwrap_or("?");
        return Err(Error::busy(format!(
            "database {name:?} is what an interrupted restore left half-made, but somebody is connected to it (pid {pid}); nothing was touched"
        ))
        .hint(format!(
            "end that session and run this again; or, to keep the database: COMMENT ON DATABASE {} IS NULL;",
            quote_ident(name)
        )));
    }
    remove(admin, name)?;
    Ok(format!(
        "database {name:?}, which an interrupted restore had left half-made, was removed first"
    ))
}

/// Removes a database that is provably ours: the caller made it, or holds its lock.
pub(super) fn remove(admin: &mut Client, name: &str) -> Result<()> {
    let quoted = quote_ident(name);
    // Half-made or of a template, it may refuse connections or its own drop.
    let _ = admin.execute(format!(
        "ALTER DATABASE {quoted} IS_TEMPLATE false ALLOW_CONNECTIONS true"
    ));
    super::target::forget_subscriptions(&admin.pinned().with_database(name));
    let drop = format!("DROP DATABASE {quoted} WITH (FORCE)");
    admin.execute(&drop).map_err(|error| {
        error
            .context(format!(
                "the half-made database {name:?} could not be removed"
            ))
            .hint(format!("{drop};"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_counts_only_on_the_database_that_it_names() {
        let mark = Mark {
            database: "a\"b".into(),
            backup: "backup_x_20250101_000000".into(),
            state: State::Loading,
            replaces: None,
        };
        let comment = format!("{BEGINS}{}", serde_json::to_string(&mark).unwrap());
        assert_eq!(Mark::parse("a\"b", &comment), Some(mark));
        assert_eq!(Mark::parse("ab", &comment), None);
        for other in ["", "pgark restore", "pgark restore {}", "mine"] {
            assert_eq!(Mark::parse("a\"b", other), None);
        }
    }
}
