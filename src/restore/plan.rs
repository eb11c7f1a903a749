//! What to run, after what, and what first: the restore of a dump as a value. Pure.
//!
//! A dump's index names every frame and every object. From it come tasks: loads of table rows,
//! statements after the data, ANALYZE. Each task knows the tasks before it, which tables it
//! locks, and its rank: the estimated work from its start to the very end of everything that
//! waits for it. Workers always take the ready task of the highest rank, so that a table whose
//! GIN index is the whole critical path is loaded first, over all connections, and its index
//! built at once.
//!
//! Invariants: dependencies point backwards only (a cycle in the input is an error, not a
//! hang); every part and every frame of rows of the input is in the plan exactly once.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::archive::script::{Meaning, Part, Role, Stage};
use crate::error::{Error, Result};

/// A part and the frame that holds it.
#[derive(Debug, Clone)]
pub struct Statement {
    pub frame: usize,
    pub part: Part,
}

/// What a task does.
#[derive(Debug, Clone)]
pub enum Work {
    /// Loads these frames of the table with this `TABLE DATA` id as one COPY.
    Load {
        table: i32,
        frames: Vec<usize>,
        whole: bool,
    },
    /// Puts contents of large objects.
    Objects {
        frame: usize,
    },
    Run(Statement),
    /// Gathers the planner's statistics of the table with this `TABLE DATA` id.
    Analyze {
        table: i32,
    },
}

/// One step of the parallel part.
#[derive(Debug, Clone)]
pub struct Task {
    pub work: Work,
    /// Indexes of tasks that come first.
    pub after: Vec<usize>,
    /// Tables (`TABLE DATA` ids) that it needs for itself, and such that it shares.
    pub locks: Vec<i32>,
    pub shares: Vec<i32>,
    /// Estimated work until everything that waits for it is done, in bytes loaded.
    pub rank: f64,
}

/// The restore of one dump.
#[derive(Debug, Default)]
pub struct Plan {
    /// Run one after the other before everything else.
    pub first: Vec<Statement>,
    /// Run in parallel.
    pub tasks: Vec<Task>,
    /// Run one after the other at the end: rights, then event triggers and materialised views,
    /// then the database's properties.
    pub last: Vec<Statement>,
    pub raw_bytes: u64,
    /// Rows that the index promises, by `TABLE DATA` id.
    pub rows: BTreeMap<i32, u64>,
}

/// A table is loaded by several connections only above this size: below, one COPY with FREEZE
/// in the transaction that empties the table saves a second write of every page.
const SPLIT_BYTES_MIN: u64 = 32 << 20;

/// Held by every `INDEX ATTACH`, which takes milliseconds. Side by side in one tree of partitions
/// they can leave the topmost index invalid for good, each having missed what the other had not
/// committed yet (seen on PostgreSQL 15, some once in 200 trees); a foreign key to it then fails.
const ATTACH_TURN: i32 = i32::MIN;

/// Makes the plan. `frames` are the index's frames with their raw sizes; `sql` gives a part's
/// text, which only refines estimates.
///
/// # Errors
/// `Damage` when dependencies form a cycle.
pub fn plan(
    frames: &[(Meaning, u64)],
    sql: &dyn Fn(&Statement) -> Vec<u8>,
    jobs: usize,
) -> Result<Plan> {
    let mut builder = Builder::read(frames);
    builder.add_loads(frames, jobs);
    builder.add_statements(sql);
    builder.add_analyze();
    let mut plan = builder.plan;
    rank(&mut plan.tasks, &builder.costs)?;
    Ok(plan)
}

struct Table {
    frames: Vec<usize>,
    bytes: u64,
    /// Created by this dump, not by an extension.
    own: bool,
    /// Loaded through the root of its partitioned table.
    root: bool,
    loads: Vec<usize>,
}

#[derive(Default)]
struct Builder {
    plan: Plan,
    costs: Vec<f64>,
    tables: BTreeMap<i32, Table>,
    /// `TABLE DATA` id by the id of its `TABLE`.
    data_of: HashMap<i32, i32>,
    post: Vec<Statement>,
    objects: Vec<usize>,
    /// Task by the dump id of its statement, and the tables that it concerns.
    task_of: HashMap<i32, usize>,
    tables_of: HashMap<i32, Vec<i32>>,
}

impl Builder {
    fn read(frames: &[(Meaning, u64)]) -> Builder {
        let mut builder = Builder::default();
        let mut parts = Vec::new();
        let mut table_ids = HashSet::new();
        for (frame, (meaning, bytes)) in frames.iter().enumerate() {
            builder.plan.raw_bytes += bytes;
            match meaning {
                Meaning::Sql { parts: list } => {
                    for part in list {
                        if part.desc == "TABLE" {
                            table_ids.insert(part.id);
                        }
                        parts.push(Statement {
                            frame,
                            part: part.clone(),
                        });
                    }
                }
                Meaning::Rows { id, rows, root, .. } => {
                    let table = builder.tables.entry(*id).or_insert_with(Table::empty);
                    table.root |= root;
                    table.frames.push(frame);
                    table.bytes += bytes;
                    *builder.plan.rows.entry(*id).or_default() += rows;
                }
                Meaning::Objects { .. } => builder.objects.push(frame),
                Meaning::Text => {}
            }
        }
        let mut properties = Vec::new();
        for statement in parts {
            let part = &statement.part;
            match (part.role, part.stage) {
                (Role::Head | Role::Drop | Role::Tail, _) => {}
                (Role::Entry, _) if part.desc == "TABLE DATA" => {
                    builder.plan.rows.entry(part.id).or_default();
                    let table = builder.tables.entry(part.id).or_insert_with(Table::empty);
                    for id in part.deps.iter().filter(|id| table_ids.contains(id)) {
                        table.own = true;
                        builder.data_of.insert(*id, part.id);
                    }
                }
                (Role::Entry, _) if part.len == 0 => {}
                (Role::Entry, Stage::Pre | Stage::Data) => builder.plan.first.push(statement),
                (Role::Entry, Stage::Post) => builder.post.push(statement),
                (Role::Entry, Stage::Rights) => builder.plan.last.push(statement),
                (Role::Entry, Stage::Last) | (Role::Properties, _) => properties.push(statement),
            }
        }
        // Rights came first above; now event triggers and views, and properties at the very end.
        properties.sort_by_key(|statement| statement.part.role == Role::Properties);
        builder.plan.last.extend(properties);
        builder
    }

    fn push(&mut self, task: Task, cost: f64) -> usize {
        self.plan.tasks.push(task);
        self.costs.push(cost);
        self.plan.tasks.len() - 1
    }

    #[allow(clippy::cast_precision_loss, reason = "estimates")]
    fn add_loads(&mut self, frames: &[(Meaning, u64)], jobs: usize) {
        let total: u64 = self.tables.values().map(|table| table.bytes).sum();
        let jobs = jobs.max(1) as u64;
        // In the order of the file. Configuration tables of extensions have their foreign keys
        // while they are loaded, and the archive does not tell which refers to which; but the file
        // has them in pg_dump's order, so each waits for the one before.
        let mut configuration: Vec<usize> = Vec::new();
        let mut ids: Vec<i32> = self.tables.keys().copied().collect();
        ids.sort_by_key(|id| self.tables[id].frames.first().copied());
        for id in ids {
            let table = &self.tables[&id];
            let split = jobs > 1 && table.bytes > SPLIT_BYTES_MIN && table.bytes > total / jobs;
            let segment_bytes = if split {
                (table.bytes / (8 * jobs)).max(SPLIT_BYTES_MIN / 2)
            } else {
                u64::MAX
            };
            let mut segments: Vec<(Vec<usize>, u64)> = Vec::new();
            for &frame in &table.frames {
                match segments.last_mut() {
                    Some((list, bytes)) if *bytes < segment_bytes => {
                        list.push(frame);
                        *bytes += frames[frame].1;
                    }
                    _ => segments.push((vec![frame], frames[frame].1)),
                }
            }
            let whole = segments.len() == 1 && table.own && !table.root;
            let own = table.own;
            let after = if own {
                Vec::new()
            } else {
                configuration.clone()
            };
            for (list, bytes) in segments {
                let work = Work::Load {
                    table: id,
                    frames: list,
                    whole,
                };
                let task = Task {
                    work,
                    after: after.clone(),
                    locks: Vec::new(),
                    shares: vec![id],
                    rank: 0.0,
                };
                let task = self.push(task, bytes as f64);
                if let Some(table) = self.tables.get_mut(&id) {
                    table.loads.push(task);
                }
            }
            let loads = &self.tables[&id].loads;
            if !own && !loads.is_empty() {
                configuration.clone_from(loads);
            }
        }
        for frame in std::mem::take(&mut self.objects) {
            let task = Task {
                work: Work::Objects { frame },
                after: Vec::new(),
                locks: vec![],
                shares: vec![],
                rank: 0.0,
            };
            self.push(task, frames[frame].1 as f64);
        }
    }

    fn add_statements(&mut self, sql: &dyn Fn(&Statement) -> Vec<u8>) {
        for statement in std::mem::take(&mut self.post) {
            let part = &statement.part;
            let (mut after, mut tables) = (Vec::new(), Vec::new());
            for dep in &part.deps {
                let data = self.data_of.get(dep).copied().unwrap_or(*dep);
                if let Some(table) = self.tables.get(&data) {
                    after.extend(&table.loads);
                    tables.push(data);
                }
                after.extend(self.task_of.get(dep));
                tables.extend(self.tables_of.get(dep).into_iter().flatten());
            }
            // On a partitioned table these reach its partitions, which the archive does not say:
            // a trigger would fire for rows that are still to be loaded.
            if matches!(part.desc.as_str(), "TRIGGER" | "RULE" | "FK CONSTRAINT") {
                after.extend(self.tables.values().flat_map(|table| &table.loads));
            }
            tables.sort_unstable();
            tables.dedup();
            after.sort_unstable();
            after.dedup();
            let id = part.id;
            let bytes: u64 = tables
                .iter()
                .filter_map(|table| self.tables.get(table))
                .map(|table| table.bytes)
                .sum();
            let cost = estimate(&part.desc, &sql(&statement), bytes);
            // CREATE INDEX lets others build indexes beside it; everything else wants the table alone.
            let beside = part.desc == "INDEX";
            let (mut locks, shares) = if beside {
                (Vec::new(), tables.clone())
            } else {
                (tables.clone(), Vec::new())
            };
            if part.desc == "INDEX ATTACH" {
                locks.push(ATTACH_TURN);
            }
            let task = self.push(
                Task {
                    work: Work::Run(statement),
                    after,
                    locks,
                    shares,
                    rank: 0.0,
                },
                cost,
            );
            self.task_of.insert(id, task);
            self.tables_of.insert(id, tables);
        }
    }

    /// After the table's own indexes, because statistics of expressions come from them.
    #[allow(clippy::cast_precision_loss, reason = "estimates")]
    fn add_analyze(&mut self) {
        let mut waits: BTreeMap<i32, Vec<usize>> = BTreeMap::new();
        for (task, step) in self.plan.tasks.iter().enumerate() {
            let is_foreign_key = matches!(&step.work, Work::Run(statement) if statement.part.desc == "FK CONSTRAINT");
            if !is_foreign_key {
                for &table in step.shares.iter().chain(&step.locks) {
                    waits.entry(table).or_default().push(task);
                }
            }
        }
        for (table, after) in waits {
            let bytes = self.tables.get(&table).map_or(0, |table| table.bytes);
            if bytes > 0 {
                let task = Task {
                    work: Work::Analyze { table },
                    after,
                    locks: vec![table],
                    shares: vec![],
                    rank: 0.0,
                };
                self.push(task, (bytes as f64 * 0.02).min(3e7));
            }
        }
    }
}

impl Table {
    fn empty() -> Table {
        Table {
            frames: Vec::new(),
            bytes: 0,
            own: false,
            root: false,
            loads: Vec::new(),
        }
    }
}

/// Work of a statement in bytes loaded, from what builds of each kind took beside loads of the
/// same table. Only the order depends on it.
#[allow(clippy::cast_precision_loss, reason = "estimates")]
fn estimate(desc: &str, sql: &[u8], table_bytes: u64) -> f64 {
    let sql = String::from_utf8_lossy(&sql[..sql.len().min(4096)]).to_ascii_lowercase();
    let factor = match desc {
        "INDEX" if sql.contains("using gin") => 4.0,
        "INDEX" if sql.contains("using gist") || sql.contains("using spgist") => 2.0,
        "INDEX" if sql.contains("using brin") => 0.05,
        "INDEX" | "CONSTRAINT" => 0.4,
        "FK CONSTRAINT" | "CHECK CONSTRAINT" => 0.15,
        _ => 0.0,
    };
    table_bytes as f64 * factor + 1000.0
}

/// Longest path to the end, over the reversed edges.
pub(super) fn rank(tasks: &mut [Task], costs: &[f64]) -> Result<()> {
    let mut followers = vec![0_usize; tasks.len()];
    for task in tasks.iter() {
        for &before in &task.after {
            followers[before] += 1;
        }
    }
    let mut done: Vec<usize> = (0..tasks.len())
        .filter(|&task| followers[task] == 0)
        .collect();
    let mut longest = vec![0.0_f64; tasks.len()];
    let mut count = 0;
    while let Some(task) = done.pop() {
        count += 1;
        tasks[task].rank = longest[task] + costs[task];
        for before in tasks[task].after.clone() {
            longest[before] = longest[before].max(tasks[task].rank);
            followers[before] -= 1;
            if followers[before] == 0 {
                done.push(before);
            }
        }
    }
    if count == tasks.len() {
        Ok(())
    } else {
        Err(
            Error::damage("the dump's index holds objects that wait for each other")
                .hint("restore by hand: gunzip -c FILE | psql -X -d DATABASE"),
        )
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
