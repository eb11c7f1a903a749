//! The supervisor of one cluster: starts runs when their moment comes, keeps WAL streaming alive,
//! and ends what takes too long.
//!
//! Invariants: what shares a [`lane`] does not overlap; dumps and base backups have lanes of their
//! own, so that neither waits for the other. A signal ends all that is under way and then the
//! service, within [`END_LIMIT`]. A clock that jumps delays no run by more than [`TICK`]. A crash
//! leaves the runs under way to themselves (they hold their own locks) and nothing else.

mod copying;
mod initial;
mod lane;
mod owed;
mod question;
mod timetable;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use self::copying::Copying;
use self::lane::Lane;
pub use self::lane::Plan;
pub use self::question::Ask;
use super::child::Run;
use super::http::Pulse;
use super::log::Log;
use super::streamer::{News, Streamer};
use crate::cancel::Token;
use crate::clock;
use crate::config::Environment;
use crate::error::Result;

/// The loop turns at least so often.
const TICK: Duration = Duration::from_secs(20);
/// From a signal to the end of the service: what asks for it (docker, systemd) kills after 10 s.
const END_LIMIT: Duration = Duration::from_secs(8);

/// What the supervisor works with.
pub struct Supervisor {
    /// What is taken, and when.
    pub lanes: Vec<Plan>,
    /// Whether WAL is received all the time.
    pub streaming: bool,
    pub run_timeout: Duration,
    /// Where the journal lies.
    pub dir: PathBuf,
    pub environment: Environment,
    /// What its runs get beside their verb: which cluster, which file.
    pub arguments: Vec<String>,
    /// The stores to bring up to date with the first.
    pub others: Vec<String>,
    /// Its number among the clusters.
    pub number: usize,
    pub log: Log,
    pub cancel: Token,
    pub pulse: Arc<Pulse>,
}

/// All that it keeps going.
struct UnderWay<'a> {
    lanes: Vec<Lane<'a>>,
    copying: Copying<'a>,
    streamer: Option<Streamer>,
}

impl Supervisor {
    /// Runs until a signal.
    ///
    /// # Errors
    /// The signal's own, when all is ended.
    pub fn run(&self) -> Result<()> {
        let (wake, woken) = channel();
        let hook = {
            let wake = wake.clone();
            self.cancel.on_cancel(move || {
                let _ = wake.send(());
            })
        };
        let mut work = UnderWay {
            lanes: self
                .lanes
                .iter()
                .map(|plan| Lane::new(self, plan))
                .collect(),
            copying: Copying::new(self),
            streamer: self.streaming.then(|| Streamer::new(self.log)),
        };
        loop {
            self.pulse.beat();
            if self.cancel.check().is_err() {
                break;
            }
            work.turn(self, &wake);
            wait(&woken, work.pause().max(Duration::from_millis(50)));
        }
        drop(hook);
        work.end(self, &woken);
        self.cancel.check()
    }

    fn spawn(&self, verb: &[&str], wake: &Sender<()>) -> Result<Run> {
        let verb = verb.iter().map(|&word| word.to_owned());
        let arguments: Vec<String> = verb.chain(self.arguments.iter().cloned()).collect();
        Run::start(&self.environment, &arguments, self.log, wake.clone())
    }
}

impl UnderWay<'_> {
    /// One turn of the loop.
    fn turn(&mut self, of: &Supervisor, wake: &Sender<()>) {
        let spawn = |verb: &[&str], wake: &Sender<()>| of.spawn(verb, wake);
        let news = self
            .streamer
            .as_mut()
            .and_then(|streamer| streamer.turn(&spawn, wake));
        let active: Vec<bool> = self.lanes.iter().map(Lane::is_active).collect();
        for (at, lane) in self.lanes.iter_mut().enumerate() {
            let mut others = active.iter().enumerate();
            let beside = others.any(|(other, active)| other != at && *active);
            if news == Some(News::Gap) && lane.is_base() {
                lane.owe_for_gap();
            }
            if let Some(code) = lane.turn(beside, wake) {
                self.copying.heed(code);
            }
        }
        // Dumps bring the second store up to date themselves, soon; a base backup takes too long
        // to be waited for.
        let mut dumps = self.lanes.iter().filter(|lane| !lane.is_base());
        self.copying.turn(dumps.any(Lane::is_active), wake);
    }

    /// How long the loop may wait.
    fn pause(&self) -> Duration {
        let now = clock::now();
        let copying = self.copying.run.as_ref().is_some_and(Run::is_closing);
        let others = [
            TICK,
            if copying { Duration::ZERO } else { TICK },
            self.streamer.as_ref().map_or(TICK, Streamer::pause),
        ];
        let lanes = self.lanes.iter().map(|lane| lane.pause(now));
        lanes.chain(others).min().unwrap_or(TICK)
    }

    /// Ends what is under way: finished, or cleanly broken off, or killed.
    fn end(mut self, of: &Supervisor, woken: &Receiver<()>) {
        self.lanes.iter().for_each(Lane::terminate);
        if let Some(run) = &self.copying.run {
            run.terminate();
        }
        if let Some(streamer) = &self.streamer {
            streamer.terminate();
        }
        let limit = Instant::now() + END_LIMIT;
        loop {
            for lane in &mut self.lanes {
                lane.watch();
            }
            let copying = self.copying.run.as_mut();
            let copies = copying.is_some_and(|run| run.exit_code().is_none());
            let streams = self.streamer.as_mut().is_some_and(|one| !one.is_over());
            let active = self.lanes.iter().any(Lane::is_active);
            if !(copies || streams || active) {
                return;
            }
            if Instant::now() >= limit {
                // Dropped at the end of this, it is killed.
                if active {
                    of.log.error("the run did not end in time and was killed; its remains go with the next run");
                }
                if streams {
                    of.log
                        .error("WAL streaming did not end in time and was killed");
                }
                return;
            }
            wait(woken, Duration::from_millis(200));
        }
    }
}

fn wait(woken: &Receiver<()>, pause: Duration) {
    match woken.recv_timeout(pause) {
        // Several wakes at once are one.
        Ok(()) => while woken.try_recv().is_ok() {},
        Err(RecvTimeoutError::Timeout) => {}
        Err(RecvTimeoutError::Disconnected) => std::thread::sleep(pause),
    }
}
