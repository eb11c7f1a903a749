//! `--table` into a database that exists: the lost table back beside the application.
//!
//! One connection, one transaction: either all of it is there or nothing has changed, whatever ends
//! the restore. Nothing that exists is changed. An object that the tables only need (a schema, a
//! type, a function) and that exists already is left as it is, with its rights and comments.
//!
//! Invariants: no table of the backup exists in the target when rows are loaded; other sessions see
//! nothing before the commit. Foreign keys come last, each under a savepoint: one that the
//! target's rows refuse is left out and named, and everything else stays.

use std::collections::BTreeSet;

use super::execute::{Run, copied_table, forgive};
use super::plan::{Plan, Statement, Work};
use super::schedule::Schedule;
use crate::archive::script::{Meaning, Part};
use crate::error::{Error, Result};
use crate::postgres::{Client, quote_literal, quote_literal_bytes, refuse_transaction_pooler};

/// What was done besides.
#[derive(Debug, Default)]
pub(super) struct Inside {
    pub notes: Vec<String>,
    /// Foreign keys that were left out because of what the target holds.
    pub refused: Vec<String>,
}

/// That something of this name is there already.
const EXISTS: [&str; 5] = ["42710", "42P06", "42P07", "42723", "42P03"];

impl Run<'_> {
    pub(super) fn inside(&self, plan: &Plan) -> Result<Inside> {
        let (mut main, _hook) = self.connect()?;
        refuse_transaction_pooler(&mut main)?;
        self.speak_its_encoding(&mut main)?;
        main.execute("BEGIN")?;
        let tables = self.own_tables();
        refuse_existing(&mut main, &tables, self.name_of_target())?;
        let mut done = Inside::default();
        let mut skipped = BTreeSet::new();
        for statement in &plan.first {
            self.one(&mut main, statement, &mut skipped, &mut done)?;
        }
        let keys = self.tasks(&mut main, plan, &mut skipped, &mut done)?;
        let mut left_out = BTreeSet::new();
        for statement in keys {
            if statement.part.desc == "FK CONSTRAINT" {
                self.foreign_key(&mut main, statement, &mut left_out, &mut done)?;
            } else if !hangs_on(&statement.part, &left_out) {
                self.one(&mut main, statement, &mut skipped, &mut done)?;
            }
        }
        for statement in &plan.last {
            self.one(&mut main, statement, &mut skipped, &mut done)?;
        }
        self.check_rows(plan)?;
        self.cancel.check()?;
        // Statements until here did not wait for the disk.
        main.execute("SET LOCAL synchronous_commit = on; COMMIT")?;
        for table in &tables {
            let result = main.execute([b"ANALYZE ".as_slice(), table].concat());
            forgive(&main, result)?;
        }
        done.notes.extend(main.take_notices());
        Ok(done)
    }

    /// The parallel part, one after the other; gives the foreign keys, which come last, and what
    /// hangs on them.
    fn tasks<'p>(
        &self,
        main: &mut Client,
        plan: &'p Plan,
        skipped: &mut BTreeSet<i32>,
        done: &mut Inside,
    ) -> Result<Vec<&'p Statement>> {
        let (mut keys, mut key_ids) = (Vec::new(), BTreeSet::new());
        let mut schedule = Schedule::new(&plan.tasks);
        while let Some(task) = schedule.take(&plan.tasks) {
            self.cancel.check()?;
            match &plan.tasks[task].work {
                Work::Run(statement)
                    if statement.part.desc == "FK CONSTRAINT"
                        || hangs_on(&statement.part, &key_ids) =>
                {
                    key_ids.insert(statement.part.id);
                    keys.push(statement);
                }
                Work::Run(statement) => self.one(main, statement, skipped, done)?,
                Work::Load { table, frames, .. } => {
                    let work = Work::Load {
                        table: *table,
                        frames: frames.clone(),
                        whole: false,
                    };
                    self.run_work(main, &work)?;
                }
                // Statistics come after the commit; large objects do not come along.
                Work::Analyze { .. } | Work::Objects { .. } => {}
            }
            schedule.finish(&plan.tasks, task);
        }
        Ok(keys)
    }

    /// The dump's bytes are in the source's encoding; the server converts them.
    fn speak_its_encoding(&self, main: &mut Client) -> Result<()> {
        let (source, there) = (
            self.source.encoding(),
            main.parameter("server_encoding")
                .unwrap_or("UTF8")
                .to_owned(),
        );
        if source == there || there == "SQL_ASCII" {
            return Ok(());
        }
        let refuse = || {
            Error::usage(format!(
                "the backup is in {source} and database {:?} in {there}; nothing was touched",
                self.name_of_target()
            ))
            .hint("restore the tables into a new database: leave --into out")
        };
        if source == "SQL_ASCII" {
            return Err(refuse());
        }
        main.execute(format!("SET client_encoding = {}", quote_literal(source)))
            .map_err(|_| refuse())
    }

    /// The own tables' names as their own statements write them.
    fn own_tables(&self) -> Vec<Vec<u8>> {
        let Some(selection) = self.source.selection() else {
            return Vec::new();
        };
        let mut names = Vec::new();
        for (frame, meaning) in self.source.meanings.iter().enumerate() {
            let Meaning::Sql { parts } = meaning else {
                continue;
            };
            for part in parts
                .iter()
                .filter(|part| selection.tables.contains_key(&part.id))
            {
                let text = self.texts.text(&Statement {
                    frame,
                    part: part.clone(),
                });
                names.extend(created_table(&text));
            }
        }
        names
    }

    /// One statement. A need that exists is left as it is, and so is what hangs on it.
    fn one(
        &self,
        main: &mut Client,
        statement: &Statement,
        skipped: &mut BTreeSet<i32>,
        done: &mut Inside,
    ) -> Result<()> {
        let part = &statement.part;
        let own = self
            .source
            .selection()
            .is_none_or(|selection| selection.own.contains(&part.id));
        let context = |error: Error| {
            error.context(format!("cannot restore {} {}", part.desc, part.name).trim_end())
        };
        if own {
            self.cancel.check()?;
            return main.execute(self.texts.text(statement)).map_err(context);
        }
        let of_need =
            ["COMMENT", "SECURITY LABEL", "ACL", "SEQUENCE SET"].contains(&part.desc.as_str());
        if of_need && hangs_on(part, skipped) {
            skipped.insert(part.id);
            return Ok(());
        }
        let text = self.texts.text(statement);
        let Some(sql) = without_if_not_exists(part, &text) else {
            skipped.insert(part.id);
            return Ok(());
        };
        self.cancel.check()?;
        main.execute("SAVEPOINT pgark_need")?;
        match main.execute(&sql) {
            Ok(()) => main.execute("RELEASE pgark_need"),
            Err(error)
                if error
                    .sqlstate
                    .as_deref()
                    .is_some_and(|code| EXISTS.contains(&code)) =>
            {
                skipped.insert(part.id);
                done.notes.push(format!(
                    "{} {} exists already and was left as it is",
                    part.desc, part.name
                ));
                main.execute("ROLLBACK TO pgark_need; RELEASE pgark_need")
            }
            Err(error) => Err(context(error)),
        }
    }

    fn foreign_key(
        &self,
        main: &mut Client,
        statement: &Statement,
        left_out: &mut BTreeSet<i32>,
        done: &mut Inside,
    ) -> Result<()> {
        let sql = self.texts.text(statement);
        main.execute("SAVEPOINT pgark_key")?;
        match main.execute(&sql) {
            Ok(()) => main.execute("RELEASE pgark_key"),
            // Rows without their other end; or no such table or key there.
            Err(error)
                if error.sqlstate.as_deref().is_some_and(|code| {
                    code.starts_with("23") || code.starts_with("42") || code == "3F000"
                }) =>
            {
                left_out.insert(statement.part.id);
                let why = error.fact.lines().take(2).collect::<Vec<_>>().join("; ");
                let by_hand = String::from_utf8_lossy(&sql)
                    .split_whitespace()
                    .collect::<Vec<_>>()
                    .join(" ");
                let list = if error
                    .sqlstate
                    .as_deref()
                    .is_some_and(|code| code.starts_with("23"))
                {
                    &mut done.refused
                } else {
                    &mut done.notes
                };
                list.push(format!(
                    "the foreign key {} was left out: {why}; later, by hand: {by_hand}",
                    statement.part.name
                ));
                main.execute("ROLLBACK TO pgark_key; RELEASE pgark_key")
            }
            Err(error) => Err(error.context(format!(
                "cannot restore FK CONSTRAINT {}",
                statement.part.name
            ))),
        }
    }
}

fn hangs_on(part: &Part, ids: &BTreeSet<i32>) -> bool {
    part.deps.iter().any(|dep| ids.contains(dep))
}

/// The statement so that it fails on what exists, before it changes its owner; none for a schema
/// that is there in every database.
fn without_if_not_exists(part: &Part, sql: &[u8]) -> Option<Vec<u8>> {
    let plain: &[u8] = match part.desc.as_str() {
        "SCHEMA" => b"CREATE SCHEMA ",
        "EXTENSION" => b"CREATE EXTENSION ",
        _ => return Some(sql.to_vec()),
    };
    let rest = sql.strip_prefix(plain)?;
    Some([plain, rest.strip_prefix(b"IF NOT EXISTS ").unwrap_or(rest)].concat())
}

/// The quoted name in `CREATE [UNLOGGED] TABLE name …`.
fn created_table(sql: &[u8]) -> Option<Vec<u8>> {
    let words = [
        &b"CREATE TABLE "[..],
        b"CREATE UNLOGGED TABLE ",
        b"CREATE FOREIGN TABLE ",
    ];
    let at_line_start = |at: &usize| *at == 0 || sql[at - 1] == b'\n';
    let starts = words.iter().filter_map(|word| {
        let at = memchr::memmem::find_iter(sql, word).find(at_line_start)?;
        Some((at, at + word.len()))
    });
    copied_table(&sql[starts.min()?.1..]).map(<[u8]>::to_vec)
}

fn refuse_existing(main: &mut Client, tables: &[Vec<u8>], database: &str) -> Result<()> {
    let mut there = Vec::new();
    for table in tables {
        let sql = [
            b"SELECT pg_catalog.to_regclass(".as_slice(),
            &quote_literal_bytes(table),
            b") IS NOT NULL",
        ];
        let rows = main.query(sql.concat())?;
        if rows.first().map_or(Ok(false), |row| row.bool(0))? {
            there.push(String::from_utf8_lossy(table).into_owned());
        }
    }
    if there.is_empty() {
        return Ok(());
    }
    let exist = if there.len() == 1 { "exists" } else { "exist" };
    Err(Error::usage(format!(
        "{} {exist} already in database {database:?}; nothing was touched",
        there.join(", ")
    ))
    .hint("rename what is there, or restore beside it: leave --into out for a new database"))
}

#[cfg(test)]
mod tests {
    use super::created_table;

    #[test]
    fn the_name_of_a_new_table_is_the_statements_own() {
        let name =
            |sql: &str| created_table(sql.as_bytes()).map(|name| String::from_utf8(name).unwrap());
        assert_eq!(
            name("CREATE TABLE public.t (\n    a int\n);\n").unwrap(),
            "public.t"
        );
        let spaced = "SET default_tablespace = \"CREATE TABLE x\";\nCREATE UNLOGGED TABLE \"a b\".\"c \"\" (\" (\n);\n";
        assert_eq!(name(spaced).unwrap(), "\"a b\".\"c \"\" (\"");
        assert_eq!(name("COMMENT ON TABLE t IS 'CREATE TABLE x';"), None);
    }
}
