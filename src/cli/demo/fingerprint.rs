//! What a database holds, in a form that two databases can be compared by.
//!
//! Independent of pgark's dump and restore: the schema is pg_dump's text, the rows are hashed by
//! the server. Invariant: two fingerprints are equal only if schema, rows (in any order),
//! sequences, large objects and the database's own properties are, but for collisions of
//! a 64-bit hash.
//!
//! What a physical backup cannot bring back, the rows of unlogged tables, is left out on request.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::process::Stdio;

use serde::Serialize;

use super::session::{Session, on_connections};
use crate::cancel::Token;
use crate::error::{Error, Result};
use crate::postgres::process::Child;
use crate::postgres::tools::Program;
use crate::postgres::{Client, Target};

/// Lines of pg_dump's text that differ from run to run, or say nothing.
const VOLATILE: [&str; 3] = ["--", "\\restrict ", "\\unrestrict "];
/// The text of a row must not depend on settings of role or database.
const SETTINGS: &str = "SET search_path = pg_catalog; SET row_security = off; SET extra_float_digits = 3; \
     SET DateStyle = ISO; SET IntervalStyle = postgres; SET TimeZone = 'UTC'";
/// Name and query of each relation with rows. The sum of hashes does not depend on the order; of
/// `ONLY` and an alias that no column bears, see the row type's text.
const RELATIONS: &str = r#"SELECT format('%s %I.%I', CASE WHEN relkind = 'm' THEN 'materialised view' WHEN relpersistence = 'u' THEN 'unlogged table' ELSE 'table' END, nspname, relname),
    format('SELECT count(*), coalesce(sum(hashtextextended(("the row".*)::text COLLATE "C", 0)), 0) FROM ONLY %I.%I AS "the row"', nspname, relname)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE relkind IN ('r', 'm') AND relispopulated AND nspname !~ '^pg_|^information_schema$' ORDER BY pg_relation_size(c.oid) DESC"#;
/// A sequence's WAL runs ahead of it: after a crash, and so after a recovery, it goes on behind what was logged.
const SEQUENCES: &str = "SELECT format('sequence %I.%I', nspname, relname), \
    format('SELECT format(''%%s, called: %%s'', last_value, is_called), last_value + log_cnt * %s FROM %I.%I', seqincrement, nspname, relname) \
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_sequence s ON s.seqrelid = c.oid WHERE nspname !~ '^pg_'";
/// Each with owner, content, comment and rights.
const LARGE_OBJECTS: &str = "SELECT 'large object ' || oid, lomowner::regrole, md5(lo_get(oid)), \
    coalesce(obj_description(oid, 'pg_largeobject'), ''), coalesce((SELECT string_agg(item::text, ' ' ORDER BY item::text) FROM unnest(lomacl) item), '') \
    FROM pg_largeobject_metadata";
const PROPERTIES: &str = "SELECT 'database', datdba::regrole, pg_encoding_to_char(encoding), datcollate, datctype, \
    coalesce(shobj_description(oid, 'pg_database'), ''), coalesce((SELECT string_agg(item::text, ' ' ORDER BY item::text) FROM unnest(datacl) item), ''), \
    coalesce((SELECT string_agg(setrole || ':' || item, ' ' ORDER BY setrole, item) FROM pg_db_role_setting, unnest(setconfig) item WHERE setdatabase = d.oid), '') \
    FROM pg_database d WHERE datname = current_database()";

/// How the name of a table begins whose rows are in no WAL.
const UNLOGGED: &str = "unlogged table ";

/// One database at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Fingerprint {
    /// pg_dump's text of the schema, without comments.
    schema: String,
    /// By name of the object: what it holds.
    facts: BTreeMap<String, String>,
    /// Of sequences: where they go on after a recovery.
    logged: BTreeMap<String, String>,
    pub counts: Counts,
}

/// What was compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Counts {
    pub schema_lines: usize,
    pub relations: usize,
    pub rows: u64,
    pub sequences: usize,
    pub large_objects: usize,
}

impl Fingerprint {
    /// Reads the whole database.
    pub(super) fn take(
        target: &Target,
        pg_dump: &Program,
        jobs: usize,
        cancel: &Token,
    ) -> Result<Fingerprint> {
        std::thread::scope(|scope| {
            let schema = scope.spawn(|| schema(target, pg_dump, cancel));
            let mut fingerprint = contents(target, jobs, cancel)?;
            fingerprint.schema = schema
                .join()
                .unwrap_or_else(|_| Err(Error::failed("the reader of the schema panicked")))?;
            fingerprint.counts.schema_lines = fingerprint.schema.lines().count();
            Ok(fingerprint)
        })
    }

    /// What WAL knows: without the rows of unlogged tables, and with sequences as they were logged.
    pub(super) fn of_what_is_logged(mut self) -> Fingerprint {
        self.facts.retain(|name, _| !name.starts_with(UNLOGGED));
        self.facts.extend(std::mem::take(&mut self.logged));
        self
    }

    /// What `found` has otherwise, each difference a line for people; none: equal.
    pub(super) fn differences(&self, found: &Fingerprint) -> Vec<String> {
        let names: BTreeSet<&String> = self.facts.keys().chain(found.facts.keys()).collect();
        let mut differences = Vec::new();
        for name in names {
            match (self.facts.get(name), found.facts.get(name)) {
                (Some(_), None) => differences.push(format!("{name} is missing")),
                (None, Some(_)) => differences.push(format!("{name} was not there")),
                (Some(was), Some(is)) if was != is => {
                    differences.push(format!("{name} was {was}; is {is}"));
                }
                _ => {}
            }
        }
        if self.schema != found.schema {
            differences.extend(changed_lines(&self.schema, &found.schema));
        }
        differences
    }
}

/// The lines that only one of two texts has; at least one line, for the texts do differ.
fn changed_lines(was: &str, is: &str) -> Vec<String> {
    let (old, new): (BTreeSet<&str>, BTreeSet<&str>) =
        (was.lines().collect(), is.lines().collect());
    let lost = old
        .difference(&new)
        .map(|line| format!("schema lost: {}", line.trim()));
    let gained = new
        .difference(&old)
        .map(|line| format!("schema gained: {}", line.trim()));
    let mut changed: Vec<String> = lost.chain(gained).collect();
    if changed.is_empty() {
        changed.push("the schema's lines come in another order or number".to_owned());
    }
    changed
}

fn contents(target: &Target, jobs: usize, cancel: &Token) -> Result<Fingerprint> {
    let mut session = Session::open(target, cancel)?;
    session.client.execute(SETTINGS)?;
    let mut names = pairs(&mut session.client, RELATIONS)?;
    let sequences = pairs(&mut session.client, SEQUENCES)?;
    let mut fingerprint = Fingerprint::default();
    fingerprint.counts.relations = names.len();
    fingerprint.counts.sequences = sequences.len();
    let relations = names.len();
    names.extend(sequences);
    let values = on_connections(target, jobs, cancel, &names, |client, (_, query)| {
        client.execute(SETTINGS)?;
        Ok(pairs(client, query)?.pop().unwrap_or_default())
    })?;
    for (at, ((name, _), (first, second))) in names.into_iter().zip(values).enumerate() {
        let fact = if at < relations {
            fingerprint.counts.rows += first.parse().unwrap_or(0);
            format!("{first} rows with hash {second}")
        } else {
            let logged = format!("at {second} in the WAL");
            fingerprint.logged.insert(name.clone(), logged);
            format!("at {first}")
        };
        fingerprint.facts.insert(name, fact);
    }
    for query in [LARGE_OBJECTS, PROPERTIES] {
        for row in session.client.query(query)? {
            let cells: Vec<&str> = (1..row.len())
                .map(|i| row.opt_str(i).unwrap_or(""))
                .collect();
            let name = row.str(0)?.to_owned();
            fingerprint.counts.large_objects += usize::from(name.starts_with("large object"));
            fingerprint.facts.insert(name, cells.join(" | "));
        }
    }
    Ok(fingerprint)
}

/// The first two columns as text.
fn pairs(client: &mut Client, query: &str) -> Result<Vec<(String, String)>> {
    let rows = client.query(query)?;
    rows.iter()
        .map(|row| Ok((row.str(0)?.to_owned(), row.str(1)?.to_owned())))
        .collect()
}

fn schema(target: &Target, pg_dump: &Program, cancel: &Token) -> Result<String> {
    let mut command = pg_dump.command();
    command
        .args(["--schema-only", "--no-password"])
        .arg(format!("--dbname={}", target.conninfo(None)))
        .stdout(Stdio::piped());
    let mut child = Child::spawn("pg_dump", &mut command)?;
    let hook = cancel.on_cancel(child.killer());
    let mut text = Vec::new();
    if let Some(mut out) = child.take_stdout() {
        out.read_to_end(&mut text)?;
    }
    let finished = child.wait()?;
    drop(hook);
    cancel.check()?;
    if !finished.status.success() {
        return Err(Error::failed(format!(
            "pg_dump --schema-only of {} failed: {}",
            target.database(),
            finished.stderr.trim()
        )));
    }
    let text = String::from_utf8_lossy(&text);
    let kept = text
        .lines()
        .filter(|line| !line.is_empty() && !VOLATILE.iter().any(|start| line.starts_with(start)));
    Ok(kept.fold(String::new(), |all, line| all + line + "\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Fingerprint {
        let fact = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        Fingerprint {
            schema: "CREATE TABLE t (\n    a integer\n);\n".to_owned(),
            facts: BTreeMap::from([
                fact("table t", "2 rows with hash 7"),
                fact("sequence s", "at 1"),
            ]),
            logged: BTreeMap::new(),
            counts: Counts::default(),
        }
    }

    #[test]
    fn every_kind_of_change_is_a_difference() {
        let before = sample();
        assert!(before.differences(&sample()).is_empty());
        let mut changed = sample();
        changed
            .facts
            .insert("table t".into(), "2 rows with hash 8".into());
        assert_eq!(
            before.differences(&changed),
            ["table t was 2 rows with hash 7; is 2 rows with hash 8"]
        );
        let mut lost = sample();
        lost.facts.remove("sequence s");
        assert_eq!(before.differences(&lost), ["sequence s is missing"]);
        assert_eq!(lost.differences(&before), ["sequence s was not there"]);
        let mut other = sample();
        other.schema = other.schema.replace("integer", "bigint");
        assert_eq!(
            before.differences(&other),
            ["schema lost: a integer", "schema gained: a bigint"]
        );
    }

    #[test]
    fn rows_of_unlogged_tables_are_left_out_on_request_alone() {
        let mut with = sample();
        let fact = ("unlogged table u".to_owned(), "9 rows".to_owned());
        with.facts.extend([fact]);
        assert_eq!(
            sample().differences(&with),
            ["unlogged table u was not there"]
        );
        assert!(sample().differences(&with.of_what_is_logged()).is_empty());
    }

    #[test]
    fn a_sequence_may_have_gone_on_to_where_its_wal_was_and_no_further() {
        let at = |at: u32, logged: u32| {
            let mut found = sample();
            let fact = |text| ("sequence s".to_owned(), text);
            found.facts.extend([fact(format!("at {at}"))]);
            found
                .logged
                .extend([fact(format!("at {logged} in the WAL"))]);
            found
        };
        assert!(!at(7, 33).differences(&at(33, 33)).is_empty());
        let logged = |at: Fingerprint| at.of_what_is_logged();
        assert!(
            logged(at(7, 33))
                .differences(&logged(at(33, 33)))
                .is_empty()
        );
        assert!(
            !logged(at(7, 33))
                .differences(&logged(at(34, 34)))
                .is_empty()
        );
    }

    #[test]
    fn schema_in_another_order_is_a_difference() {
        let mut swapped = sample();
        swapped.schema = sample().schema.lines().rev().collect::<Vec<_>>().join("\n");
        assert_eq!(sample().differences(&swapped).len(), 1);
    }
}
