//! The new database that a restore fills: created like the source, removed when it fails.
//!
//! Invariant: a restore only ever removes a database that it created itself.

use crate::error::{Error, Result};
use crate::postgres::{Client, Target, quote_ident, quote_literal, refuse_transaction_pooler};
use std::fmt::Write as _;

/// A database that this restore created.
pub(super) struct NewDatabase {
    /// Connection to the database from which others are created.
    admin: Client,
    target: Target,
    name: String,
}

impl NewDatabase {
    /// Creates `name` from template0 with the source's encoding, locale, owner and tablespace.
    ///
    /// # Errors
    /// `Usage` when it exists; `Failed` with what the server lacks (role, locale, tablespace).
    pub(super) fn create(
        target: &Target,
        name: &str,
        properties: Option<&serde_json::Value>,
    ) -> Result<NewDatabase> {
        let mut admin = admin_connection(target)?;
        refuse_transaction_pooler(&mut admin)?;
        let exists = admin.query(format!(
            "SELECT 1 FROM pg_catalog.pg_database WHERE datname = {}",
            quote_literal(name)
        ))?;
        if !exists.is_empty() {
            return Err(Error::usage(format!(
                "database {name:?} exists already; nothing was touched"
            ))
            .hint("choose another name with --into, or leave --into out for a fresh one"));
        }
        let sql = create_statement(name, properties, admin.server_version_num());
        admin.execute(sql).map_err(|error| match error.sqlstate.as_deref() {
            Some("42704") => error
                .context(format!("cannot create database {name:?}"))
                .hint("the owner, tablespace or locale of the source is missing here: restore the globals first"),
            _ => error.context(format!("cannot create database {name:?}")),
        })?;
        Ok(NewDatabase {
            admin,
            target: target.with_database(name),
            name: name.to_owned(),
        })
    }

    /// A database with a subscription cannot be dropped. Cut off from its slot first: DROP
    /// SUBSCRIPTION would drop the publisher's. What fails here shows in the DROP DATABASE.
    fn forget_subscriptions(&self) {
        let Ok(mut client) = Client::connect(&self.target.with_database(&self.name)) else {
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

    /// Keeps the database after success; after a failure removes it, unless it is to be kept.
    ///
    /// # Errors
    /// The restore's own; with the statement that removes the database by hand where that failed.
    pub(super) fn settle<T>(self, result: Result<T>, keep: bool) -> Result<T> {
        let name = self.name.clone();
        result.map_err(|error| {
            if keep {
                return error.context(format!("the half-made database {name:?} was kept"));
            }
            match self.remove() {
                Ok(()) => error,
                Err(second) => Error {
                    fact: format!("{}; {}", error.fact, second.fact),
                    hint: second.hint,
                    ..error
                },
            }
        })
    }

    fn remove(mut self) -> Result<()> {
        let drop = format!("DROP DATABASE {} WITH (FORCE)", quote_ident(&self.name));
        let reset = format!(
            "ALTER DATABASE {} IS_TEMPLATE false",
            quote_ident(&self.name)
        );
        // The source may have been a template, and a template cannot be dropped.
        let _ = self.admin.execute(reset);
        self.forget_subscriptions();
        self.admin.execute(&drop).map_err(|error| {
            error
                .context(format!(
                    "the half-made database {:?} could not be removed",
                    self.name
                ))
                .hint(format!("{drop};"))
        })
    }
}

/// A connection to `postgres`, or where that is missing to `template1`.
fn admin_connection(target: &Target) -> Result<Client> {
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
    add("OWNER", text("owner"), true);
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
    fn a_hostile_name_stays_a_name() {
        let properties = serde_json::json!({"encoding": "UTF8", "collate": "C", "ctype": "C", "locale_provider": "i",
            "locale": "de-u-co-phonebk", "owner": "o\"; DROP", "tablespace": "pg_default"});
        assert_eq!(
            super::create_statement("a\"b", Some(&properties), 170_000),
            "CREATE DATABASE \"a\"\"b\" TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C' \
             LOCALE_PROVIDER \"icu\" ICU_LOCALE 'de-u-co-phonebk' OWNER \"o\"\"; DROP\""
        );
    }
}
