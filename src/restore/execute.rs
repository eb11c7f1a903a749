//! Runs a restore's plan over several connections.
//!
//! Invariants: the first failure closes every connection, so that nobody waits for a server
//! that still works; a frame is checked before a byte of it is sent; rows are counted by the
//! server. Nothing is kept outside the new database.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::dump::{Job, Source, Texts};
use super::plan::{Plan, Statement, Task, Work};
use super::schedule::Schedule;
use crate::archive::script::Meaning;
use crate::cancel::{Hook, Token};
use crate::error::{Error, Result, caught};
use crate::postgres::{Canceller, Client, Target, quote_ident_bytes};
use crate::progress::Progress;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One restore under way.
pub(super) struct Run<'a> {
    pub(super) source: &'a Source<'a>,
    pub(super) texts: Arc<Texts>,
    target: Target,
    jobs: usize,
    progress: &'a Progress,
    pub(super) cancel: &'a Token,
    failed: AtomicBool,
    first_error: Mutex<Option<Error>>,
    connections: Mutex<Vec<Canceller>>,
    /// Rows that the server counted, by `TABLE DATA` id.
    loaded: Mutex<BTreeMap<i32, u64>>,
}

impl<'a> Run<'a> {
    pub(super) fn new(source: &'a Source<'a>, texts: Arc<Texts>, job: &Job<'a>) -> Self {
        Run {
            source,
            texts,
            target: job.target.with_database(job.name),
            jobs: job.jobs,
            progress: job.progress,
            cancel: job.cancel,
            failed: AtomicBool::new(false),
            first_error: Mutex::new(None),
            connections: Mutex::new(Vec::new()),
            loaded: Mutex::new(BTreeMap::new()),
        }
    }

    pub(super) fn name_of_target(&self) -> &str {
        self.target.database()
    }

    /// Runs the whole plan; gives what the server warned about at the end.
    pub(super) fn all(&self, plan: &Plan) -> Result<Vec<String>> {
        let (mut main, _hook) = self.connect()?;
        for statement in &plan.first {
            self.run_statement(&mut main, statement)?;
        }
        self.run_tasks(plan)?;
        // Commits until here did not wait for the disk; this one waits, and with it all before.
        // Event triggers come after it: they would see the table.
        main.execute("SET synchronous_commit = on; CREATE TEMPORARY TABLE pgark_durable (); DROP TABLE pg_temp.pgark_durable")?;
        for statement in &plan.last {
            self.run_statement(&mut main, statement)?;
        }
        self.check_rows(plan)?;
        analyze_rest(&mut main)?;
        self.cancel.check()?;
        Ok(main.take_notices())
    }

    pub(super) fn connect(&self) -> Result<(Client, Hook)> {
        let mut client = Client::connect(&self.target)?;
        let encoding = client
            .parameter("server_encoding")
            .unwrap_or("UTF8")
            .to_owned();
        client.execute(format!(
            "SET client_encoding = '{encoding}'; SET search_path = ''; SET default_transaction_read_only = off; \
             SET check_function_bodies = off; SET xmloption = content; SET row_security = off; \
             SET client_min_messages = warning; SET standard_conforming_strings = on; SET default_tablespace = ''; \
             SET default_table_access_method = heap; SET synchronous_commit = off; SET DateStyle = ISO; \
             SET IntervalStyle = postgres; SET lc_monetary = 'C'"
        ))?;
        let canceller = client.canceller();
        locked(&self.connections).push(canceller.clone());
        let hook = self.cancel.on_cancel(move || canceller.close());
        Ok((client, hook))
    }

    pub(super) fn run_statement(&self, client: &mut Client, statement: &Statement) -> Result<()> {
        self.cancel.check()?;
        let sql = self.texts.text(statement);
        let mut attempt = 1;
        loop {
            match client.execute(&sql) {
                // Partitioned tables lock each other's partitions in the background.
                Err(error) if error.is_sqlstate("40P01") && attempt < 5 => attempt += 1,
                Err(error) => {
                    let part = &statement.part;
                    return Err(error.context(
                        format!("cannot restore {} {}", part.desc, part.name).trim_end(),
                    ));
                }
                Ok(()) => return Ok(()),
            }
        }
    }

    fn run_tasks(&self, plan: &Plan) -> Result<()> {
        if plan.tasks.is_empty() {
            return Ok(());
        }
        let schedule = (Mutex::new(Schedule::new(&plan.tasks)), Condvar::new());
        std::thread::scope(|scope| {
            for _ in 0..self.jobs.min(plan.tasks.len()) {
                scope.spawn(|| {
                    if let Err(error) = caught("the restore", || self.worker(plan, &schedule)) {
                        self.fail(error);
                    }
                    schedule.1.notify_all();
                });
            }
        });
        self.cancel.check()?;
        locked(&self.first_error).take().map_or(Ok(()), Err)?;
        if locked(&schedule.0).is_done() {
            Ok(())
        } else {
            Err(Error::failed("a worker of the restore panicked"))
        }
    }

    fn fail(&self, error: Error) {
        if !self.failed.swap(true, Ordering::SeqCst) {
            *locked(&self.first_error) = Some(error);
        }
        for connection in locked(&self.connections).iter() {
            connection.close();
        }
    }

    fn worker(&self, plan: &Plan, schedule: &(Mutex<Schedule>, Condvar)) -> Result<()> {
        let (mut client, _hook) = self.connect()?;
        loop {
            let task = {
                let mut state = locked(&schedule.0);
                loop {
                    if self.failed.load(Ordering::SeqCst) || state.is_done() {
                        return Ok(());
                    }
                    self.cancel.check()?;
                    if let Some(task) = state.take(&plan.tasks) {
                        break task;
                    }
                    // Woken by every finished task; the time limit lets a signal through.
                    let wait = schedule
                        .1
                        .wait_timeout(state, std::time::Duration::from_millis(200));
                    state = wait.unwrap_or_else(PoisonError::into_inner).0;
                }
            };
            self.run_task(&mut client, &plan.tasks[task])?;
            locked(&schedule.0).finish(&plan.tasks, task);
            schedule.1.notify_all();
        }
    }

    fn run_task(&self, client: &mut Client, task: &Task) -> Result<()> {
        self.run_work(client, &task.work)
    }

    pub(super) fn run_work(&self, client: &mut Client, work: &Work) -> Result<()> {
        match work {
            Work::Load {
                table,
                frames,
                whole,
            } => {
                let rows = self.load(client, frames, *whole).map_err(|error| {
                    error.context(format!("cannot load table {}", self.name(*table)))
                })?;
                *locked(&self.loaded).entry(*table).or_default() += rows;
                Ok(())
            }
            Work::Objects { frame } => {
                let raw = self.source.read(*frame)?;
                if !raw.is_empty() {
                    client
                        .execute(&raw)
                        .map_err(|error| error.context("cannot restore large objects"))?;
                }
                self.progress.add(raw.len() as u64, 0);
                Ok(())
            }
            Work::Run(statement) => self.run_statement(client, statement),
            Work::Analyze { table } => {
                let Some(counted) = self
                    .source
                    .manifest
                    .tables
                    .iter()
                    .find(|counted| counted.id == *table)
                else {
                    return Ok(());
                };
                let name = [
                    quote_ident_bytes(counted.schema.as_bytes()),
                    quote_ident_bytes(counted.name.as_bytes()),
                ]
                .join(&b'.');
                analyze(client, &name)
            }
        }
    }

    fn name(&self, table: i32) -> String {
        let found = self
            .source
            .manifest
            .tables
            .iter()
            .find(|counted| counted.id == table);
        found.map_or_else(
            || format!("with dump id {table}"),
            |counted| format!("{}.{}", counted.schema, counted.name),
        )
    }

    /// Loads frames as one COPY. A table that is loaded whole is emptied in the same transaction,
    /// so that its rows can be written frozen: no second write of each page when they are
    /// first read.
    fn load(&self, client: &mut Client, frames: &[usize], whole: bool) -> Result<u64> {
        let source = self.source;
        let Meaning::Rows { head, .. } = source.meanings[frames[0]] else {
            return Err(Error::damage("a frame of rows is something else"));
        };
        std::thread::scope(|scope| {
            // One frame ahead: the server parses while the next is read and unpacked.
            let (sender, receiver) = sync_channel::<Result<(usize, Vec<u8>)>>(1);
            scope.spawn(move || {
                for &frame in frames {
                    let raw = source.read(frame).map(|raw| (frame, raw));
                    let stop = raw.is_err();
                    if sender.send(raw).is_err() || stop {
                        break;
                    }
                }
            });
            let (first, raw) = receiver
                .recv()
                .map_err(|_| Error::failed("the reader of frames ended early"))??;
            let mut statement = raw
                .get(..head)
                .unwrap_or_default()
                .trim_ascii_end()
                .to_vec();
            let frozen = whole && begin_frozen(client, &mut statement)?;
            let mut copy = client.copy_in(&statement)?;
            let mut next = Some((first, raw));
            while let Some((frame, raw)) = next {
                self.cancel.check()?;
                copy.send(self.rows_of(frame, &raw)?)?;
                self.progress.add(raw.len() as u64, 0);
                next = receiver.recv().ok().transpose()?;
            }
            let rows = copy.finish()?;
            if frozen {
                client.execute("COMMIT")?;
            }
            Ok(rows)
        })
    }

    fn rows_of<'r>(&self, frame: usize, raw: &'r [u8]) -> Result<&'r [u8]> {
        let Meaning::Rows { head, tail, .. } = self.source.meanings[frame] else {
            return Err(Error::damage("a frame of rows is something else"));
        };
        raw.len()
            .checked_sub(tail)
            .and_then(|end| raw.get(head..end))
            .ok_or_else(|| Error::damage("a frame of rows is too short"))
    }

    pub(super) fn check_rows(&self, plan: &Plan) -> Result<()> {
        let loaded = locked(&self.loaded);
        for (table, rows) in &plan.rows {
            let counted = loaded.get(table).copied().unwrap_or(0);
            if counted != *rows {
                return Err(Error::damage(format!(
                    "table {} has {counted} rows, the backup {rows}",
                    self.name(*table)
                )));
            }
        }
        Ok(())
    }
}

/// Statistics are a convenience: a name that the manifest could not carry exactly (a
/// database without an encoding) must not fail the restore.
fn analyze(client: &mut Client, name: &[u8]) -> Result<()> {
    client.execute("SET client_encoding = 'UTF8'").ok();
    let result = client.execute([b"ANALYZE ".as_slice(), name].concat());
    let encoding = client
        .parameter("server_encoding")
        .unwrap_or("UTF8")
        .to_owned();
    client.execute(format!("SET client_encoding = '{encoding}'"))?;
    forgive(client, result)
}

/// Data that is loaded and counted is not thrown away because a function of an extended
/// statistic failed; a lost connection still ends the restore.
pub(super) fn forgive(client: &Client, result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.sqlstate.is_none() || client.is_broken() => Err(error),
        _ => Ok(()),
    }
}

/// `BEGIN; TRUNCATE ONLY t` and `WITH (FREEZE)` on the COPY, where the statement has the form that
/// pg_dump writes.
fn begin_frozen(client: &mut Client, statement: &mut Vec<u8>) -> Result<bool> {
    let Some(body) = statement.strip_suffix(b" FROM stdin;") else {
        return Ok(false);
    };
    let Some(table) = body.strip_prefix(b"COPY ").and_then(copied_table) else {
        return Ok(false);
    };
    client.execute([b"BEGIN; TRUNCATE ONLY ".as_slice(), table].concat())?;
    *statement = [body, b" FROM stdin WITH (FREEZE)"].concat();
    Ok(true)
}

/// The table's quoted name at the start of `name (columns)`.
pub(super) fn copied_table(text: &[u8]) -> Option<&[u8]> {
    let mut quoted = false;
    let end = text.iter().position(|&byte| {
        quoted ^= byte == b'"';
        !quoted && byte == b' '
    });
    let name = &text[..end.unwrap_or(text.len())];
    (!name.is_empty()).then_some(name)
}

/// Statistics of what has no rows of its own: partitioned tables and materialised views.
/// Not over a foreign partition: its server may be out of reach from here.
fn analyze_rest(client: &mut Client) -> Result<()> {
    let rows = client.query(
        "SELECT pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname) FROM pg_catalog.pg_class c \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('p', 'm') AND c.relispopulated \
         AND NOT EXISTS (SELECT FROM pg_catalog.pg_partition_tree(c.oid) t JOIN pg_catalog.pg_class f ON f.oid = t.relid \
           WHERE f.relkind = 'f') AND n.nspname NOT IN ('pg_catalog', 'information_schema') ORDER BY c.oid",
    )?;
    for row in rows {
        let result =
            client.execute([b"ANALYZE ".as_slice(), row.bytes(0).unwrap_or_default()].concat());
        forgive(client, result)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_name_of_the_copied_table_ends_outside_quotes() {
        assert_eq!(
            super::copied_table(b"public.t (a, b)"),
            Some(b"public.t".as_slice())
        );
        assert_eq!(
            super::copied_table(b"\"a b\".\"c \"\"d (\" (a)"),
            Some(b"\"a b\".\"c \"\"d (\"".as_slice())
        );
        assert_eq!(super::copied_table(b""), None);
    }
}
