//! The work on the second store: where a run did not bring it up to date, and when that is tried
//! again.
//!
//! Invariant: one process at a time, with growing pauses. Beside runs, because the first store must
//! not wait for it.

use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use super::Supervisor;
use crate::service::child::Run;
use crate::service::stores::Behind;

/// Between two attempts, growing.
const PAUSE_MIN: Duration = Duration::from_secs(15);
const PAUSE_MAX: Duration = Duration::from_secs(30 * 60);

/// The copying.
pub(super) struct Copying<'a> {
    of: &'a Supervisor,
    /// Whether the next turn shall try, whatever is known of the store.
    first: bool,
    pub(super) run: Option<Run>,
    not_before: Instant,
    pause: Duration,
}

impl<'a> Copying<'a> {
    pub(super) fn new(of: &'a Supervisor) -> Copying<'a> {
        Copying {
            of,
            first: true,
            run: None,
            not_before: Instant::now(),
            pause: PAUSE_MIN,
        }
    }

    /// A run ended so. One that met another's lock on the second store says so by its exit code alone.
    pub(super) fn heed(&mut self, code: i32) {
        self.first |= code != 0;
    }

    fn again(&mut self, done: bool) {
        self.not_before = Instant::now() + self.pause;
        self.pause = if done {
            PAUSE_MIN
        } else {
            (self.pause * 2).min(PAUSE_MAX)
        };
    }

    /// Brings the second store up to date where a run did not: at the start, and then again and
    /// again.
    pub(super) fn turn(&mut self, run_under_way: bool, wake: &Sender<()>) {
        if let Some(run) = &mut self.run {
            let Some(code) = run.exit_code() else { return };
            self.run = None;
            self.heed(code);
            self.again(code == 0);
        }
        if run_under_way || Instant::now() < self.not_before {
            return;
        }
        // After a run that brought it up to date there is nothing to do.
        let behind = Behind::all(&self.of.dir, &self.of.others);
        let behind = behind.iter().any(|behind| behind.error.is_some());
        if !(self.first || behind) || self.of.others.is_empty() {
            return;
        }
        self.first = false;
        match self.of.spawn(&["replicate"], wake) {
            Ok(run) => self.run = Some(run),
            Err(error) => {
                self.of.log.error(&error.to_string());
                self.again(false);
            }
        }
    }
}
