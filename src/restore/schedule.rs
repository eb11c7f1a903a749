//! Which of a plan's tasks are ready, running and done. Pure.
//!
//! Invariants: a task is given out once, after all that come before it, and never beside one
//! whose locks forbid it.

use std::collections::HashMap;

use super::plan::Task;

/// The progress of a plan's tasks: which are ready, running, done.
pub(super) struct Schedule {
    waiting: Vec<usize>,
    followers: Vec<Vec<usize>>,
    ready: Vec<usize>,
    locked: HashMap<i32, usize>,
    shared: HashMap<i32, usize>,
    left: usize,
}

impl Schedule {
    #[must_use]
    pub(super) fn new(tasks: &[Task]) -> Schedule {
        let mut followers = vec![Vec::new(); tasks.len()];
        for (task, step) in tasks.iter().enumerate() {
            for &before in &step.after {
                followers[before].push(task);
            }
        }
        let waiting: Vec<usize> = tasks.iter().map(|task| task.after.len()).collect();
        let ready = (0..tasks.len())
            .filter(|&task| waiting[task] == 0)
            .collect();
        Schedule {
            waiting,
            followers,
            ready,
            locked: HashMap::new(),
            shared: HashMap::new(),
            left: tasks.len(),
        }
    }

    #[must_use]
    pub(super) fn is_done(&self) -> bool {
        self.left == 0
    }

    /// The ready task of the highest rank that nobody's locks forbid now.
    pub(super) fn take(&mut self, tasks: &[Task]) -> Option<usize> {
        let free = |task: &Task| {
            task.locks
                .iter()
                .all(|table| !self.locked.contains_key(table) && !self.shared.contains_key(table))
                && task
                    .shares
                    .iter()
                    .all(|table| !self.locked.contains_key(table))
        };
        let candidates = self
            .ready
            .iter()
            .enumerate()
            .filter(|(_, task)| free(&tasks[**task]));
        let (at, _) = candidates.max_by(|a, b| {
            tasks[*a.1]
                .rank
                .total_cmp(&tasks[*b.1].rank)
                .then(b.1.cmp(a.1))
        })?;
        let task = self.ready.swap_remove(at);
        for &table in &tasks[task].locks {
            *self.locked.entry(table).or_default() += 1;
        }
        for &table in &tasks[task].shares {
            *self.shared.entry(table).or_default() += 1;
        }
        Some(task)
    }

    /// Marks a taken task as done.
    pub(super) fn finish(&mut self, tasks: &[Task], task: usize) {
        for (map, tables) in [
            (&mut self.locked, &tasks[task].locks),
            (&mut self.shared, &tasks[task].shares),
        ] {
            for table in tables {
                if let Some(count) = map.get_mut(table) {
                    *count -= 1;
                    if *count == 0 {
                        map.remove(table);
                    }
                }
            }
        }
        self.left -= 1;
        for &follower in &self.followers[task] {
            self.waiting[follower] -= 1;
            if self.waiting[follower] == 0 {
                self.ready.push(follower);
            }
        }
    }
}
