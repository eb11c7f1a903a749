//! Copies the rows of all tables, and the contents of large objects, in parallel.
//!
//! Each worker has its own connection on the shared snapshot and takes the biggest piece that
//! is left. A table is split by ranges of ctid only when it alone would keep one worker busy
//! after the others are done: splitting costs the server 8 to 40 % more CPU.
//!
//! Invariants: a frame of rows is a complete COPY statement, cut at a row's border. A worker
//! locks its table NOWAIT before it reads, in the same round trip: if that is refused, somebody queues for the table
//! behind the holder's lock, a plain wait could hang, and the holder itself copies the table.
//! A worker for which the server has no connection left leaves its work to the others, the last of
//! them the holder.
//! The rows of a piece equal the count in the server's own command tag. After a failure all
//! connections are closed, so that nobody waits for a server that still works on a COPY.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Run;
use super::objects;
use super::oversize;
use super::snapshot::{self, Snapshot, Table};
use super::toc::{Entry, Toc};
use crate::archive::FrameSender;
use crate::archive::script::{Meaning, frame_raw_bytes};
use crate::cancel::Token;
use crate::error::{Error, Result, caught};
use crate::postgres::{Canceller, Client, Target, patience};
use crate::progress::Progress;

/// Below this size a table is never split.
const SPLIT_BYTES_MIN: u64 = 64 << 20;
/// Large objects that one task reads.
const OBJECTS_PER_TASK: usize = 256;

/// `row_security = off` turns a policy that would hide rows into an error.
const ROW_SECURITY_HINT: &str = "row security would hide rows from the dump: \
    ALTER ROLE … BYPASSRLS for the backup's role, or dump as the table's owner";

/// Rows and raw bytes of one table.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Count {
    pub rows: u64,
    pub bytes: u64,
}

/// What was copied.
#[derive(Debug, Default)]
pub(super) struct Copied {
    /// By dump id of the `TABLE DATA` entry.
    pub tables: HashMap<i32, Count>,
    pub objects: u64,
    pub object_bytes: u64,
    /// Why fewer connections copied than were asked for.
    pub fewer: Option<String>,
    first_error: Option<Error>,
}

enum Task<'a> {
    /// A table, or the pages from `.0` on and before `.1` of it.
    Rows(&'a Entry, &'a Table, Option<(u64, Option<u64>)>),
    Objects(Vec<u32>),
}

struct Work<'a> {
    target: Target,
    snapshot: String,
    queue: Mutex<VecDeque<Task<'a>>>,
    /// Pieces whose lock was refused to a worker.
    refused: Mutex<Vec<Task<'a>>>,
    copied: Mutex<Copied>,
    sender: &'a FrameSender,
    progress: &'a Progress,
    cancel: &'a Token,
    jobs: usize,
    /// Raw bytes in frames that are closed.
    sent: AtomicU64,
    failed: AtomicBool,
    connections: Mutex<Vec<Canceller>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Copies everything that `toc` says holds data.
///
/// # Errors
/// The first failure of any connection; a table that the table of contents names and the
/// snapshot does not.
pub(super) fn copy_all(
    snapshot: &mut Snapshot,
    toc: &Toc,
    jobs: usize,
    sender: &FrameSender,
    run: &Run<'_>,
) -> Result<Copied> {
    let tables = snapshot.tables.clone();
    let (first, rest) = plan(toc, &tables, jobs)?;
    let target = snapshot.holder.pinned();
    let work = Work {
        target: target.with_database(target.database()),
        snapshot: snapshot.id.clone(),
        queue: Mutex::new(rest),
        refused: Mutex::new(Vec::new()),
        copied: Mutex::new(Copied::default()),
        sender,
        progress: &run.progress,
        cancel: run.cancel,
        jobs,
        sent: AtomicU64::new(0),
        failed: AtomicBool::new(false),
        connections: Mutex::new(Vec::new()),
    };
    // Configuration tables of extensions have their constraints while they are loaded: they
    // come first, in pg_dump's own order.
    for task in first {
        work.run(&mut snapshot.holder, &task, "")?;
    }
    work.run_workers(jobs)
        .map_err(|error| snapshot.why_lost().unwrap_or(error))?;
    if let Some(fewer) = &locked(&work.copied).fewer {
        (run.say)(&format!("warning: {fewer}"));
    }
    // Every worker may have been refused a connection.
    while let Some(task) = work.next() {
        work.run(&mut snapshot.holder, &task, "")?;
    }
    for task in std::mem::take(&mut *locked(&work.refused)) {
        work.run(&mut snapshot.holder, &task, "")?;
    }
    Ok(work
        .copied
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner))
}

/// The tasks that must keep their order, and the others, biggest first.
fn plan<'a>(
    toc: &'a Toc,
    tables: &'a HashMap<u32, Table>,
    jobs: usize,
) -> Result<(Vec<Task<'a>>, VecDeque<Task<'a>>)> {
    let mut pairs = Vec::new();
    for entry in toc
        .entries
        .iter()
        .filter(|entry| entry.desc == "TABLE DATA")
    {
        let table = tables.get(&entry.oid).ok_or_else(|| {
            Error::failed(format!(
                "{} holds data that cannot be copied",
                entry.display_name()
            ))
            .hint("pg_dump lists its data, but it is no table of the snapshot; please report this")
        })?;
        pairs.push((entry, table));
    }
    let (fixed, mut free): (Vec<_>, Vec<_>) = pairs
        .into_iter()
        .partition(|(_, table)| table.is_configuration);
    free.sort_by_key(|(_, table)| std::cmp::Reverse(table.bytes));
    let total: u64 = free.iter().map(|(_, table)| table.bytes).sum();
    let share = total / jobs.max(1) as u64;
    let mut tasks: Vec<(u64, Task<'a>)> = Vec::new();
    for (entry, table) in free {
        // Splitting pays when the table is more than a worker's fair share.
        let split =
            jobs > 1 && table.is_heap && table.bytes > SPLIT_BYTES_MIN && table.bytes > share;
        let pieces = if split {
            (2 * table.bytes)
                .div_ceil(share.max(1))
                .clamp(2, 8 * jobs as u64)
        } else {
            1
        };
        let pages = table.pages.div_ceil(pieces);
        for piece in 0..pieces {
            // The last range has no end: pages may have been added since.
            let range = split.then(|| {
                (
                    piece * pages,
                    (piece + 1 < pieces).then(|| (piece + 1) * pages),
                )
            });
            tasks.push((table.bytes / pieces, Task::Rows(entry, table, range)));
        }
    }
    let objects: Vec<u32> = toc
        .entries
        .iter()
        .flat_map(super::render::large_objects)
        .collect();
    for chunk in objects.chunks(OBJECTS_PER_TASK) {
        tasks.push((0, Task::Objects(chunk.to_vec())));
    }
    tasks.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
    let first = fixed
        .into_iter()
        .map(|(entry, table)| Task::Rows(entry, table, None))
        .collect();
    Ok((first, tasks.into_iter().map(|(_, task)| task).collect()))
}

impl<'a> Work<'a> {
    fn run_workers(&self, jobs: usize) -> Result<()> {
        let workers = jobs.min(locked(&self.queue).len());
        let results: Vec<Result<()>> = std::thread::scope(|scope| {
            let handles: Vec<_> = (0..workers)
                .map(|_| scope.spawn(|| self.worker()))
                .collect();
            handles
                .into_iter()
                .map(|handle| handle.join().unwrap_or(Ok(())))
                .collect()
        });
        self.cancel.check()?;
        // After the first failure the others only tell that their connection was closed.
        let first = locked(&self.copied).first_error.take();
        first.map_or(Ok(()), Err)?;
        results.into_iter().collect()
    }

    fn next(&self) -> Option<Task<'a>> {
        locked(&self.queue).pop_front()
    }

    fn worker(&self) -> Result<()> {
        let result = caught("the dump", || self.work_through());
        if let Err(error) = &result {
            if !self.failed.swap(true, Ordering::SeqCst) {
                locked(&self.copied).first_error = Some(error.clone());
            }
            for connection in locked(&self.connections).iter() {
                connection.close();
            }
        }
        result
    }

    fn work_through(&self) -> Result<()> {
        let mut client = match snapshot::join(&self.target, &self.snapshot, self.cancel) {
            Err(error) if patience::is_full(&error) => {
                let text = format!(
                    "the dump goes on with fewer connections than asked for: {}",
                    error.fact
                );
                locked(&self.copied).fewer.get_or_insert(text);
                return Ok(());
            }
            joined => joined?,
        };
        let canceller = client.canceller();
        locked(&self.connections).push(canceller.clone());
        let _hook = self.cancel.on_cancel(move || canceller.close());
        while !self.failed.load(Ordering::SeqCst) {
            let Some(task) = self.next() else { break };
            self.cancel.check()?;
            match self.run(&mut client, &task, " NOWAIT") {
                Err(error) if error.is_sqlstate("55P03") => {
                    locked(&self.refused).push(task);
                    client.execute("ROLLBACK")?;
                    snapshot::enter(&mut client, &self.snapshot)?;
                }
                result => result?,
            }
        }
        Ok(())
    }

    fn run(&self, client: &mut Client, task: &Task<'a>, lock_suffix: &str) -> Result<()> {
        match task {
            Task::Rows(entry, table, range) => {
                let lock = snapshot::lock_statement(std::slice::from_ref(*table), lock_suffix);
                self.copy_rows(client, &lock, entry, table, *range)
                    .map_err(|error| {
                        let name = format!("table {}.{}", table.schema, table.name);
                        if oversize::is_too_long(&error) {
                            let seen = client.execute("ROLLBACK");
                            let seen = seen.and_then(|()| snapshot::enter(client, &self.snapshot));
                            let reader = seen.is_ok().then_some(client);
                            return oversize::name_row(error.context(name), reader, table);
                        }
                        let forbidden = error.is_sqlstate("42501");
                        let error = error.context(name);
                        if forbidden {
                            error.hint(ROW_SECURITY_HINT)
                        } else {
                            error
                        }
                    })
            }
            Task::Objects(oids) => {
                let (count, bytes) = objects::copy(client, oids, self.sender, self.cancel)?;
                let mut copied = locked(&self.copied);
                copied.objects += count;
                copied.object_bytes += bytes;
                Ok(())
            }
        }
    }

    fn copy_rows(
        &self,
        client: &mut Client,
        lock: &[u8],
        entry: &Entry,
        table: &Table,
        range: Option<(u64, Option<u64>)>,
    ) -> Result<()> {
        let mut frame = RowFrame {
            head: entry.copy_statement.clone(),
            raw: self.sender.buffer(),
            rows: 0,
            id: entry.dump_id,
            root: entry.definition.starts_with(b"-- load via partition root "),
            sender: self.sender,
        };
        let limit = || frame_raw_bytes(self.sent.load(Ordering::Relaxed), self.jobs);
        let mut frame_bytes = limit();
        let (mut total_rows, mut total_bytes) = (0_u64, 0_u64);
        let (mut unreported_rows, mut unreported_bytes) = (0_u64, 0_u64);
        let sql = [lock, b"; ", &copy_statement(table, range)].concat();
        let tag_rows = client.copy_out(sql, &mut |bytes, ends_row| {
            frame.begin();
            frame.raw.extend_from_slice(bytes);
            unreported_bytes += bytes.len() as u64;
            if ends_row {
                frame.rows += 1;
                unreported_rows += 1;
                if frame.raw.len() >= frame_bytes {
                    self.cancel.check()?;
                    self.sent
                        .fetch_add(frame.raw.len() as u64, Ordering::Relaxed);
                    frame_bytes = limit();
                    frame.send()?;
                    self.progress.add(0, unreported_rows);
                    total_rows += unreported_rows;
                    total_bytes += unreported_bytes;
                    (unreported_rows, unreported_bytes) = (0, 0);
                }
            }
            Ok(())
        })?;
        frame.send()?;
        self.progress.add(0, unreported_rows);
        total_rows += unreported_rows;
        total_bytes += unreported_bytes;
        if tag_rows != total_rows {
            return Err(Error::failed(format!(
                "the server sent {total_rows} rows and counted {tag_rows}"
            )));
        }
        let mut copied = locked(&self.copied);
        let count = copied.tables.entry(entry.dump_id).or_default();
        count.rows += total_rows;
        count.bytes += total_bytes;
        Ok(())
    }
}

/// `COPY … TO STDOUT` for a table, an extension's filtered table, or a range of pages.
fn copy_statement(table: &Table, range: Option<(u64, Option<u64>)>) -> Vec<u8> {
    let columns = table
        .columns
        .strip_prefix(b"(")
        .and_then(|text| text.strip_suffix(b")"))
        .unwrap_or_default();
    let select = |condition: &[u8]| {
        [
            b"COPY (SELECT ".as_slice(),
            columns,
            b" FROM ONLY ",
            &table.quoted,
            b" ",
            condition,
            b") TO STDOUT",
        ]
        .concat()
    };
    match range {
        Some((first, Some(end))) => select(
            format!(
                "WHERE ctid >= '({first},0)'::pg_catalog.tid AND ctid < '({end},0)'::pg_catalog.tid"
            )
            .as_bytes(),
        ),
        Some((first, None)) => {
            select(format!("WHERE ctid >= '({first},0)'::pg_catalog.tid").as_bytes())
        }
        None if !table.condition.is_empty() => select(&table.condition),
        None => [
            b"COPY ".as_slice(),
            &table.quoted,
            b" ",
            &table.columns,
            b" TO STDOUT",
        ]
        .concat(),
    }
}

/// A frame of rows in the making.
struct RowFrame<'a> {
    head: Vec<u8>,
    raw: Vec<u8>,
    rows: u64,
    id: i32,
    /// The rows are loaded through the root of their partitioned table.
    root: bool,
    sender: &'a FrameSender,
}

const ROWS_END: &[u8] = b"\\.\n\n";

impl RowFrame<'_> {
    fn begin(&mut self) {
        if self.raw.is_empty() {
            self.raw.extend_from_slice(&self.head);
        }
    }

    fn send(&mut self) -> Result<()> {
        if self.raw.is_empty() {
            return Ok(());
        }
        self.raw.extend_from_slice(ROWS_END);
        let (head, tail) = (self.head.len(), ROWS_END.len());
        let meaning = Meaning::Rows {
            id: self.id,
            rows: self.rows,
            head,
            tail,
            root: self.root,
        };
        let raw = std::mem::replace(&mut self.raw, self.sender.buffer());
        self.rows = 0;
        self.sender.send(raw, meaning.to_json()?)
    }
}
