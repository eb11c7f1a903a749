//! The new database that a restore fills: created like the source, removed when it fails.
//!
//! Invariants: a restore only ever removes a database that it created itself, or one that is
//! marked as the remain of a restore that is dead (`mark`). A database is created under a temporary
//! name and gets its own name, its mark and its owner in one transaction. So a crash leaves a temporary
//! name or a marked database, which the next restore clears away: the one whoever comes next, the
//! other a restore into that name or, with `--replace`, in that place.

use super::mark::{self, Mark, State};
use crate::error::{Error, Result};
use crate::postgres::{Client, Target, quote_ident, quote_literal, refuse_transaction_pooler};
use crate::units::stamp;
use jiff::Timestamp;
use std::fmt::Write as _;

/// PostgreSQL cuts longer names (NAMEDATALEN - 1).
const NAME_BYTES_MAX: usize = 63;

/// `<database>_<word>_<YYYYMMDD_HHMMSS>`, the database's part cut to what a name can hold.
#[must_use]
pub fn fresh_name(database: &str, word: &str) -> String {
    name_at(database, word, crate::clock::now())
}

fn name_at(database: &str, word: &str, time: Timestamp) -> String {
    let suffix = format!("_{word}_{}", stamp(time));
    let mut end = database.len().min(NAME_BYTES_MAX - suffix.len());
    while !database.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{suffix}", &database[..end])
}

/// The same that no database has: a name that is taken is left alone, the next second is free.
///
/// # Errors
/// Those of the connection.
pub fn free_name(admin: &mut Client, database: &str, word: &str) -> Result<String> {
    let mut time = crate::clock::now();
    loop {
        let name = name_at(database, word, time);
        if !exists(admin, &name)? {
            return Ok(name);
        }
        time = time
            .saturating_add(jiff::SignedDuration::from_secs(1))
            .unwrap_or(time);
    }
}

/// Where a restore goes.
#[derive(Debug, Clone)]
pub struct Place {
    pub name: String,
    /// Tables into a database that exists; else the whole into a new one.
    pub inside: bool,
}

/// How a database is created.
pub(super) struct Birth<'a> {
    pub name: &'a str,
    /// Encoding, locale, owner and tablespace, as in the manifest.
    pub properties: Option<&'a serde_json::Value>,
    pub backup: &'a str,
    /// The database whose place it is to take.
    pub replaces: Option<&'a str>,
}

/// A database that this restore created.
pub(super) struct NewDatabase {
    /// Connection to the database from which others are created; it holds the name's lock.
    admin: Client,
    name: String,
    mark: Mark,
    /// What was cleared away first, and what else there is to say.
    notes: Vec<String>,
}

impl NewDatabase {
    /// Creates it from template0 and marks it as being made.
    ///
    /// # Errors
    /// `Usage` when it exists; `Busy` when another restore works on it; `Failed` with what the
    /// server lacks (role, locale, tablespace).
    pub(super) fn create(target: &Target, birth: &Birth<'_>) -> Result<NewDatabase> {
        let name = birth.name;
        let mut admin = admin_connection(target)?;
        refuse_transaction_pooler(&mut admin)?;
        mark::lock(&mut admin, name)?;
        let mut notes = Vec::new();
        refuse_existing(&mut admin, name)?;
        if exists(&mut admin, name)? {
            notes.push(mark::remove_remain(&mut admin, name)?);
        }
        notes.extend(mark::clear_temporary(&mut admin)?);
        let mark = Mark {
            database: name.to_owned(),
            backup: birth.backup.to_owned(),
            state: State::Loading,
            replaces: birth.replaces.map(str::to_owned),
        };
        create_marked(&mut admin, &mark, birth.properties)
            .map_err(|error| match error.sqlstate.as_deref() {
                Some("42704") => error
                    .context(format!("cannot create database {name:?}"))
                    .hint("the owner, tablespace or locale of the source is missing here: restore the globals first (--globals)"),
                _ => error.context(format!("cannot create database {name:?}")),
            })?;
        Ok(NewDatabase {
            admin,
            name: name.to_owned(),
            mark,
            notes,
        })
    }

    /// Keeps the database after success; after a failure removes it, unless it is to be kept. Gives the
    /// restore's warnings after its own.
    ///
    /// One that is to take another's place is closed to everybody, so that it stays what it is.
    ///
    /// # Errors
    /// The restore's own; with the statement that removes the database by hand where that failed.
    pub(super) fn settle(mut self, result: Result<Vec<String>>, keep: bool) -> Result<Vec<String>> {
        let name = self.name.clone();
        let result = result.and_then(|warnings| {
            self.keep()?;
            Ok([std::mem::take(&mut self.notes), warnings].concat())
        });
        result.map_err(|error| {
            if keep {
                let _ = mark::clear(&mut self.admin, &name);
                return error.context(format!("the half-made database {name:?} was kept"));
            }
            match mark::remove(&mut self.admin, &name) {
                Ok(()) => error,
                Err(second) => Error {
                    fact: format!("{}; {}", error.fact, second.fact),
                    hint: second.hint,
                    ..error
                },
            }
        })
    }

    fn keep(&mut self) -> Result<()> {
        if self.mark.replaces.is_none() {
            // A role that may act as the owner but has not its rights cannot; the rows are whole.
            if let Err(error) = mark::clear(&mut self.admin, &self.name) {
                self.notes.push(format!(
                    "its mark stays: {}; take it away, or the next restore into that name removes the database: COMMENT ON DATABASE {} IS NULL;",
                    error.fact.lines().next().unwrap_or_default(),
                    quote_ident(&self.name)
                ));
            }
            return Ok(());
        }
        self.mark.state = State::Ready;
        self.admin.execute("BEGIN")?;
        self.mark.put(&mut self.admin)?;
        self.admin.execute(format!(
            "ALTER DATABASE {} ALLOW_CONNECTIONS false; COMMIT",
            quote_ident(&self.name)
        ))?;
        // Who came in meanwhile (a monitor that goes through all databases) would keep it from
        // being renamed. Nobody has any business in a copy; one that we may not end is told later.
        let _ = self.admin.query(format!(
            "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE datname = {} AND pid <> pg_catalog.pg_backend_pid()",
            quote_literal(&self.name)
        ));
        Ok(())
    }
}

/// Creates it under a temporary name, which is its mark until it has one.
fn create_marked(
    admin: &mut Client,
    mark: &Mark,
    properties: Option<&serde_json::Value>,
) -> Result<()> {
    let temporary = mark::temporary_name()?;
    mark::lock(admin, &temporary)?;
    let version = admin.server_version_num();
    admin.execute(create_statement(&temporary, properties, version))?;
    let owner = properties
        .and_then(|properties| properties.get("owner"))
        .and_then(serde_json::Value::as_str);
    let named = admin
        .execute(format!(
            "BEGIN; ALTER DATABASE {} RENAME TO {}",
            quote_ident(&temporary),
            quote_ident(&mark.database)
        ))
        .and_then(|()| mark.put(admin))
        .and_then(|()| match owner {
            // From here on, because the owner may need its rights in the schema public.
            Some(owner) => admin.execute(format!(
                "ALTER DATABASE {} OWNER TO {}",
                quote_ident(&mark.database),
                quote_ident(owner)
            )),
            None => Ok(()),
        })
        .and_then(|()| admin.execute("COMMIT"));
    if named.is_err() && admin.execute("ROLLBACK").is_ok() {
        let _ = mark::remove(admin, &temporary);
    }
    named
}

/// Refuses the name of a database that exists, unless it is what a killed restore left half-made.
///
/// # Errors
/// `Usage` when it exists.
pub fn refuse_existing(admin: &mut Client, name: &str) -> Result<()> {
    let remain = |mark: &Mark| mark.database == name && mark.state == State::Loading;
    if !exists(admin, name)? || mark::all(admin)?.iter().any(remain) {
        return Ok(());
    }
    Err(Error::usage(format!("database {name:?} exists already; nothing was touched"))
        .hint("choose another name with --into, leave --into out for a fresh one, or take its place with --replace"))
}

/// Whether there is a database of this name.
///
/// # Errors
/// Those of the connection.
pub fn exists(admin: &mut Client, name: &str) -> Result<bool> {
    let rows = admin.query(format!(
        "SELECT 1 FROM pg_catalog.pg_database WHERE datname = {}",
        quote_literal(name)
    ))?;
    Ok(!rows.is_empty())
}

/// A database with a subscription cannot be dropped. Cut off from its slot first: DROP
/// SUBSCRIPTION would drop the publisher's. What fails here shows in the DROP DATABASE.
pub(super) fn forget_subscriptions(target: &Target) {
    let Ok(mut client) = Client::connect(target) else {
        return;
    };
    let _ = client.execute(
        "SET default_transaction_read_only = off; DO $pgark$ DECLARE s record; BEGIN \
         FOR s IN SELECT pg_catalog.quote_ident(subname) AS name FROM pg_catalog.pg_subscription \
         WHERE subdbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) LOOP \
         EXECUTE 'ALTER SUBSCRIPTION ' || s.name || ' DISABLE'; \
         EXECUTE 'ALTER SUBSCRIPTION ' || s.name || ' SET (slot_name = NONE)'; \
         EXECUTE 'DROP SUBSCRIPTION ' || s.name; END LOOP; END $pgark$",
    );
}

/// A connection to `postgres`, or where that is missing to `template1`.
///
/// # Errors
/// Those of the connection.
pub fn admin_connection(target: &Target) -> Result<Client> {
    let mut client = match Client::connect(&target.with_database("postgres")) {
        Err(error) if error.is_sqlstate("3D000") => {
            Client::connect(&target.with_database("template1"))?
        }
        result => result?,
    };
    client.execute("SET default_transaction_read_only = off")?;
    Ok(client)
}

fn create_statement(
    name: &str,
    properties: Option<&serde_json::Value>,
    server_version_num: u32,
) -> String {
    let text = |key: &str| {
        properties
            .and_then(|properties| properties.get(key))
            .and_then(serde_json::Value::as_str)
    };
    let mut sql = format!("CREATE DATABASE {} TEMPLATE template0", quote_ident(name));
    let mut add = |keyword: &str, value: Option<&str>, is_name: bool| {
        if let Some(value) = value {
            let value = if is_name {
                quote_ident(value)
            } else {
                quote_literal(value)
            };
            let _ = write!(sql, " {keyword} {value}");
        }
    };
    add("ENCODING", text("encoding"), false);
    add("LC_COLLATE", text("collate"), false);
    add("LC_CTYPE", text("ctype"), false);
    if server_version_num >= 150_000 {
        match text("locale_provider") {
            Some("i") => {
                add("LOCALE_PROVIDER", Some("icu"), true);
                add("ICU_LOCALE", text("locale"), false);
                add("ICU_RULES", text("icu_rules"), false);
            }
            Some("b") => {
                add("LOCALE_PROVIDER", Some("builtin"), true);
                add("BUILTIN_LOCALE", text("locale"), false);
            }
            Some(_) => add("LOCALE_PROVIDER", Some("libc"), true),
            None => {}
        }
    }
    add(
        "TABLESPACE",
        text("tablespace").filter(|name| *name != "pg_default"),
        true,
    );
    sql
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_long_name_is_cut_between_characters() {
        let name = super::fresh_name(&"ü".repeat(31), "restored");
        assert!(
            name.len() <= 63 && name.starts_with("üüü") && name.contains("_restored_"),
            "{name}"
        );
    }

    #[test]
    fn a_hostile_name_stays_a_name() {
        let properties = serde_json::json!({"encoding": "UTF8", "collate": "C", "ctype": "C", "locale_provider": "i",
            "locale": "de-u-co-phonebk", "owner": "o", "tablespace": "t\"; DROP"});
        assert_eq!(
            super::create_statement("a\"b", Some(&properties), 170_000),
            "CREATE DATABASE \"a\"\"b\" TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C' \
             LOCALE_PROVIDER \"icu\" ICU_LOCALE 'de-u-co-phonebk' TABLESPACE \"t\"\"; DROP\""
        );
    }
}
