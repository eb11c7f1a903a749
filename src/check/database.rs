//! One database: what the role may not read of it, and what a dump of it lacks.

use super::server::{Facts, limited, refused, room};
use super::{Finding, Level, plural};
use crate::cancel::Token;
use crate::error::Result;
use crate::postgres::{Client, Target, patience, quote_ident, quote_literal};

const RELATIONS: &str = include_str!("sql/relations.sql");
const OBJECTS: &str = include_str!("sql/objects.sql");
const OBJECTS_18: &str = include_str!("sql/objects_18.sql");
const MAPPINGS: &str = include_str!("sql/mappings.sql");
/// The snapshot's and pg_dump's.
const CONNECTIONS_MIN: i64 = 2;
/// `pg_subscription` shows everybody all but the connections.
const SUBSCRIPTIONS: &str = "SELECT pg_catalog.count(*), pg_catalog.string_agg(subname::text, ', ' ORDER BY subname) \
    FROM pg_catalog.pg_subscription \
    WHERE subdbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())";
const LIMIT: &str = "SELECT datconnlimit, pg_catalog.pg_database_size(oid), \
    (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity a WHERE a.datid = d.oid) \
    FROM pg_catalog.pg_database d WHERE datname = pg_catalog.current_database()";
/// Nothing is changed, and nobody is waited for.
const LOOK: &str = "SET client_encoding = 'UTF8'; SET row_security = on; SET lock_timeout = '5s'; \
    SET statement_timeout = '60s'; BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY";

/// What was seen of a database.
#[derive(Debug, Default)]
pub struct Seen {
    pub findings: Vec<Finding>,
    /// Its size on the server; none when it could not be asked.
    pub bytes: Option<u64>,
}

/// Looks at the database that `target` names.
#[must_use]
pub fn look(target: &Target, facts: &Facts, cancel: &Token) -> Seen {
    let subject = format!("database {}", target.database());
    let mut client = match patience::connect(target, cancel) {
        Ok(client) => client,
        Err(error) => {
            return Seen {
                findings: vec![refused(&subject, &error, target)],
                bytes: None,
            };
        }
    };
    let mut look = Look {
        database: target.database(),
        subject,
        name: quote_ident(&facts.user),
        facts,
        seen: Seen::default(),
    };
    if let Err(error) = look.all(&mut client) {
        let fact = format!("it cannot be looked at: {}", error.fact);
        look.add(Level::Fail, "connection", fact, |finding| {
            match error.hint {
                Some(hint) => finding.advice(hint),
                None => finding,
            }
        });
    }
    look.seen
}

struct Look<'a> {
    database: &'a str,
    subject: String,
    /// The role, quoted.
    name: String,
    facts: &'a Facts,
    seen: Seen,
}

impl Look<'_> {
    fn add(
        &mut self,
        level: Level,
        topic: &'static str,
        fact: String,
        mend: impl FnOnce(Finding) -> Finding,
    ) {
        let finding = Finding::new(level, topic, self.subject.clone(), fact);
        self.seen.findings.push(mend(finding));
    }

    fn all(&mut self, client: &mut Client) -> Result<()> {
        client.execute(LOOK)?;
        self.relations(client)?;
        self.objects(client)?;
        self.subscriptions(client)?;
        self.mappings(client)?;
        self.itself(client)
    }

    fn relations(&mut self, client: &mut Client) -> Result<()> {
        let all = format!("GRANT pg_read_all_data TO {};", self.name);
        let bypass = format!("ALTER ROLE {} BYPASSRLS;", self.name);
        let (mut tables, mut unreadable) = (0, false);
        for row in client.query(RELATIONS)? {
            let count: u64 = row.get(1)?;
            let mut names = String::from_utf8_lossy(row.bytes(2).unwrap_or_default()).into_owned();
            names = names.replace(char::is_control, "?");
            if count > 5 {
                names.push_str(", …");
            }
            match row.str(0)? {
                "table" => tables = count,
                "unreadable table" => {
                    unreadable = true;
                    let fact = format!("{} cannot be read: {names}", plural(count, "table"));
                    self.add(Level::Fail, "tables", fact, |one| {
                        one.sql("postgres", &*all)
                    });
                }
                "unreadable sequence" => {
                    unreadable = true;
                    let fact = format!("{} cannot be read: {names}", plural(count, "sequence"));
                    self.add(Level::Fail, "sequences", fact, |one| {
                        one.sql("postgres", &*all)
                    });
                }
                "filtered" => {
                    let fact = format!(
                        "row security would hide rows of {}: {names}",
                        plural(count, "table")
                    );
                    self.add(Level::Fail, "row_security", fact, |one| {
                        one.sql("postgres", &*bypass)
                    });
                }
                "unlogged" if self.facts.standby => {
                    let fact = format!(
                        "{} without rows on a standby: {names}",
                        plural(count, "unlogged table")
                    );
                    self.add(Level::Warning, "unlogged", fact, |one| {
                        one.advice("take the backup from the primary, or ALTER TABLE … SET LOGGED")
                    });
                }
                _ => {}
            }
        }
        if !unreadable {
            let fact = format!("{} can be read", plural(tables, "table"));
            self.add(Level::Ok, "tables", fact, |finding| finding);
        }
        self.locks(tables);
        Ok(())
    }

    /// A dump holds a lock on each table.
    fn locks(&mut self, tables: u64) {
        let tables = i64::try_from(tables).unwrap_or(i64::MAX);
        if tables <= self.facts.locks {
            return;
        }
        let slots = (self.facts.locks / self.facts.locks_per_transaction.max(1)).max(1);
        let enough = tables.saturating_add(tables / 4) / slots + 1;
        let fact = format!(
            "a dump locks {tables} tables, and the server has room for some {} locks of all sessions",
            self.facts.locks
        );
        let lines = [
            format!("ALTER SYSTEM SET max_locks_per_transaction = {enough};"),
            "-- and restart the server".to_owned(),
        ];
        self.add(Level::Warning, "locks", fact, |finding| {
            finding.statements("postgres", &lines)
        });
    }

    fn objects(&mut self, client: &mut Client) -> Result<()> {
        let sql = if self.facts.version_num >= 180_000 {
            OBJECTS_18
        } else {
            OBJECTS
        };
        let rows = client.query(sql)?;
        let Some(row) = rows.first() else {
            return Ok(());
        };
        let (all, closed): (u64, u64) = (row.get(0)?, row.get(1)?);
        if closed == 0 {
            return Ok(());
        }
        let more = if closed > 5 { ", …" } else { "" };
        let fact = format!(
            "{closed} of {} cannot be read (SELECT on tables does not cover them, and new ones need it again): {}{more}",
            plural(all, "large object"),
            row.opt_str(2).unwrap_or_default()
        );
        let sql = format!(
            "DO $pgark$ DECLARE o oid; BEGIN FOR o IN SELECT oid FROM pg_catalog.pg_largeobject_metadata LOOP \
             EXECUTE pg_catalog.format('GRANT SELECT ON LARGE OBJECT %s TO %I', o, {}); END LOOP; END $pgark$;",
            quote_literal(&self.facts.user)
        );
        let database = self.database.to_owned();
        self.add(Level::Fail, "large_objects", fact, |one| {
            one.sql(&database, sql)
        });
        Ok(())
    }

    fn subscriptions(&mut self, client: &mut Client) -> Result<()> {
        if self.facts.superuser {
            return Ok(());
        }
        let rows = client.query(SUBSCRIPTIONS)?;
        let Some(row) = rows.first() else {
            return Ok(());
        };
        let count: u64 = row.get(0)?;
        if count > 0 {
            let fact = format!(
                "{} would be left out, because pg_dump takes them as a superuser only: {}",
                plural(count, "subscription"),
                row.opt_str(1).unwrap_or_default()
            );
            let sql = format!("ALTER ROLE {} SUPERUSER;", self.name);
            self.add(Level::Fail, "subscriptions", fact, |one| {
                one.sql("postgres", sql)
            });
        }
        Ok(())
    }

    fn mappings(&mut self, client: &mut Client) -> Result<()> {
        let rows = client.query(MAPPINGS)?;
        let Some(row) = rows.first() else {
            return Ok(());
        };
        let count: u64 = row.get(0)?;
        if count > 0 {
            let fact = format!(
                "the options (passwords) of {} are hidden from this role, and pg_dump leaves them out without a word: {}",
                plural(count, "user mapping"),
                row.opt_str(1).unwrap_or_default()
            );
            let sql = format!("ALTER ROLE {} SUPERUSER;", self.name);
            self.add(Level::Warning, "user_mappings", fact, |one| {
                one.sql("postgres", sql)
            });
        }
        Ok(())
    }

    /// Encoding, size, limit of connections.
    fn itself(&mut self, client: &mut Client) -> Result<()> {
        if client.parameter("server_encoding") == Some("SQL_ASCII") {
            let fact =
                "its encoding is SQL_ASCII: the bytes are kept as they are, whatever they mean";
            self.add(Level::Note, "encoding", fact.to_owned(), |finding| finding);
        }
        let rows = client.query(LIMIT)?;
        let Some(row) = rows.first() else {
            return Ok(());
        };
        self.seen.bytes = Some(row.get(1)?);
        let (limit, used): (i64, i64) = (row.get(0)?, row.get(2)?);
        // The run's lock is held in `postgres`, if there is such a database.
        let room = room(limit, used - 1, CONNECTIONS_MIN, self.facts.connections - 1);
        if let Some(level) = room.filter(|_| !self.facts.superuser) {
            let fact = format!("it allows {}", limited(limit, used - 1, level));
            let sql = format!(
                "ALTER DATABASE {} CONNECTION LIMIT -1;",
                quote_ident(self.database)
            );
            self.add(level, "database_connections", fact, |one| {
                one.sql("postgres", sql)
            });
        }
        Ok(())
    }
}
