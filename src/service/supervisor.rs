//! The supervisor of one cluster: starts runs when their moment comes, and ends those that take
//! too long.
//!
//! Invariants: runs do not overlap; a moment that comes during a run, or while one waits for its
//! turn among the clusters, is skipped, and the journal says so. A run that does not end in its time is asked to, then killed, and its place is free.
//! A signal ends the run under way and then the service, within [`END_LIMIT`]. A clock that jumps
//! delays no run by more than [`TICK`]. A crash leaves the run under way to itself (it holds its
//! own lock) and nothing else.

mod question;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

use self::question::Question;
use super::child::Run;
use super::http::Pulse;
use super::journal::{self, Line, Outcome, Trigger};
use super::log::Log;
use super::slots::{Slot, Slots};
use super::stores::Behind;
use crate::cancel::Token;
use crate::clock;
use crate::config::Environment;
use crate::error::Result;
use crate::schedule::Schedule;

/// The loop turns at least so often.
const TICK: Duration = Duration::from_secs(20);
/// From a signal to the end of the service: what asks for it (docker, systemd) kills after 10 s.
const END_LIMIT: Duration = Duration::from_secs(8);
/// From the request to end to the kill, for a run that took too long.
const KILL_AFTER: Duration = Duration::from_secs(30);
/// The start brings no backup when the newest is as young as that …
const START_AGE: SignedDuration = SignedDuration::from_hours(1);
/// … or when a run, however it ended, began so lately: a service that restarts all the time
/// must not dump all the time.
const START_PAUSE: SignedDuration = SignedDuration::from_mins(10);

/// Between two attempts to bring the second store up to date, growing.
const COPY_PAUSE_MIN: Duration = Duration::from_secs(15);
const COPY_PAUSE_MAX: Duration = Duration::from_secs(30 * 60);

/// What the supervisor works with.
pub struct Supervisor {
    pub schedule: Schedule,
    pub on_start: bool,
    pub run_timeout: Duration,
    /// Where the journal lies.
    pub dir: PathBuf,
    pub environment: Environment,
    /// What its runs get beside their verb: which cluster, which file.
    pub arguments: Vec<String>,
    /// The stores to bring up to date with the first.
    pub others: Vec<String>,
    /// Its number among the clusters, and their turns.
    pub number: usize,
    pub slots: Arc<Slots>,
    pub log: Log,
    pub cancel: Token,
    pub pulse: Arc<Pulse>,
    /// Whether the server answers: an initial backup waits for that. It may take long.
    pub server_answers: Arc<dyn Fn() -> Result<()> + Send + Sync>,
}

/// The work on the second store, and when it is tried again.
struct Copying {
    wanted: bool,
    first: bool,
    run: Option<Run>,
    not_before: Instant,
    pause: Duration,
}

impl Copying {
    fn new(wanted: bool) -> Copying {
        Copying {
            wanted,
            first: true,
            run: None,
            not_before: Instant::now(),
            pause: COPY_PAUSE_MIN,
        }
    }

    fn again(&mut self, done: bool) {
        self.not_before = Instant::now() + self.pause;
        self.pause = if done {
            COPY_PAUSE_MIN
        } else {
            (self.pause * 2).min(COPY_PAUSE_MAX)
        };
    }
}

/// A run whose moment has come.
#[derive(Clone, Copy)]
struct Due {
    trigger: Trigger,
    moment: Timestamp,
    /// Whether it was said that others go first.
    told: bool,
}

impl Due {
    fn new(trigger: Trigger, moment: Timestamp) -> Due {
        Due {
            trigger,
            moment,
            told: false,
        }
    }
}

/// A run and its limits.
struct Active {
    run: Run,
    /// Held for as long as the run goes on.
    _slot: Slot,
    trigger: Trigger,
    started_at: Timestamp,
    began: Instant,
    asked_to_end: Option<Instant>,
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
        let mut active: Option<Active> = None;
        let mut due: Option<Due> = None;
        let mut copying = Copying::new(!self.others.is_empty());
        let mut initial = self.wants_initial();
        let mut next = self.schedule.next_after(clock::now());
        self.say_next();
        let mut question = Question::default();
        loop {
            self.pulse.beat();
            if self.cancel.check().is_err() {
                break;
            }
            // One that met another's lock on the second store says so by its exit code alone.
            copying.first |= self.watch(&mut active).is_some_and(|code| code != 0);
            self.copy(&mut copying, active.is_some(), &wake);
            let now = clock::now();
            // A clock that went back must not put the next run off by as much.
            next = next.min(self.schedule.next_after(now));
            if now >= next {
                match (&active, &due) {
                    (Some(one), _) => self.skip(next, &under_way(one)),
                    (None, Some(one)) => self.skip(next, &waits(one)),
                    (None, None) => due = Some(Due::new(Trigger::Schedule, next)),
                }
                initial = false;
                next = self.schedule.next_after(now);
            } else if initial && active.is_none() && question.is_answered(self, &wake) {
                due = Some(Due::new(Trigger::Start, now));
                initial = false;
            }
            self.start_in_turn(&mut due, &mut active, &wake);
            let until_next = next.duration_since(clock::now());
            let pause = until_next.try_into().unwrap_or(Duration::ZERO).min(TICK);
            // Its pipe closes a moment before the process is gone.
            let closing = [active.as_ref().map(|one| &one.run), copying.run.as_ref()]
                .into_iter()
                .flatten()
                .any(Run::is_closing);
            let pause = if closing {
                Duration::ZERO
            } else if initial {
                pause.min(Duration::from_secs(2))
            } else {
                pause
            };
            wait(&woken, pause.max(Duration::from_millis(50)));
        }
        drop(hook);
        self.slots.leave(self.number);
        self.end(active, copying.run, &woken);
        self.cancel.check()
    }

    /// Whether the start shall bring a backup.
    fn wants_initial(&self) -> bool {
        if !self.on_start {
            return false;
        }
        let now = clock::now();
        let lines = journal::read(&self.dir);
        let age = |line: &Line| now.duration_since(line.started_at);
        if let Some(line) = lines
            .iter()
            .rev()
            .filter(|line| line.taken.iter().any(|taken| taken.database.is_some()))
            .find(|line| line.outcome == Outcome::Ok && age(line) < START_AGE)
        {
            self.log.info(&format!(
                "no initial backup: the one of {} is young enough",
                line.started_at
            ));
            return false;
        }
        if let Some(line) = lines
            .iter()
            .rev()
            .find(|line| line.outcome != Outcome::Skipped && age(line) < START_PAUSE)
        {
            self.log.warn(&format!(
                "no initial backup: a run began at {} already, and a service that restarts again and again shall not dump again and again",
                line.started_at
            ));
            return false;
        }
        true
    }

    /// Starts what is due when its turn has come.
    fn start_in_turn(&self, due: &mut Option<Due>, active: &mut Option<Active>, wake: &Sender<()>) {
        let Some(one) = due.as_mut().filter(|_| active.is_none()) else {
            return;
        };
        if let Some(slot) = self.slots.take(self.number, wake) {
            *active = self.start(one.trigger, slot, wake);
            *due = None;
        } else if !one.told {
            one.told = true;
            self.log
                .info("waits for its turn: as many runs as max_runs allows are under way");
        }
    }

    fn start(&self, trigger: Trigger, slot: Slot, wake: &Sender<()>) -> Option<Active> {
        let run = self.spawn(&["backup", "--trigger", &trigger.to_string()], wake);
        let started_at = clock::now();
        match run {
            Ok(run) => Some(Active {
                run,
                _slot: slot,
                trigger,
                started_at,
                began: Instant::now(),
                asked_to_end: None,
            }),
            Err(error) => {
                self.log.error(&error.to_string());
                self.record(trigger, started_at, Outcome::Failed, &error.fact);
                None
            }
        }
    }

    fn spawn(&self, verb: &[&str], wake: &Sender<()>) -> Result<Run> {
        let verb = verb.iter().map(|&word| word.to_owned());
        let arguments: Vec<String> = verb.chain(self.arguments.iter().cloned()).collect();
        Run::start(&self.environment, &arguments, self.log, wake.clone())
    }

    /// Brings the second store up to date where a run did not: at the start, and then again and
    /// again with growing pauses. Beside runs, because the first store must not wait for it.
    fn copy(&self, copying: &mut Copying, run_under_way: bool, wake: &Sender<()>) {
        if let Some(run) = &mut copying.run {
            let Some(code) = run.exit_code() else { return };
            copying.run = None;
            copying.first |= code != 0;
            copying.again(code == 0);
        }
        if run_under_way || Instant::now() < copying.not_before {
            return;
        }
        // After a run that brought it up to date there is nothing to do.
        let behind = Behind::all(&self.dir, &self.others);
        let behind = behind.iter().any(|behind| behind.error.is_some());
        if !(copying.first || behind) || !copying.wanted {
            return;
        }
        copying.first = false;
        match self.spawn(&["replicate"], wake) {
            Ok(run) => copying.run = Some(run),
            Err(error) => {
                self.log.error(&error.to_string());
                copying.again(false);
            }
        }
    }

    /// Takes leave of a run that is over; asks one to end that takes too long, and then kills it.
    /// Gives the exit code of one that is over.
    fn watch(&self, active: &mut Option<Active>) -> Option<i32> {
        let one = active.as_mut()?;
        if let Some(code) = one.run.exit_code() {
            self.say_end(one, code);
            *active = None;
            return Some(code);
        }
        match one.asked_to_end {
            None if one.began.elapsed() > self.run_timeout => {
                self.log.error(&format!(
                    "the run of {} takes longer than {} s and is ended (PGARK_RUN_TIMEOUT)",
                    one.started_at,
                    self.run_timeout.as_secs()
                ));
                one.run.terminate();
                one.asked_to_end = Some(Instant::now());
            }
            Some(asked) if asked.elapsed() > KILL_AFTER => one.run.kill(),
            _ => {}
        }
        None
    }

    fn say_end(&self, one: &Active, code: i32) {
        let seconds = one.began.elapsed().as_secs();
        if one.asked_to_end.is_some() {
            let text = format!("ended after {seconds} s, longer than PGARK_RUN_TIMEOUT");
            self.record(one.trigger, one.started_at, Outcome::Timeout, &text);
        } else if code > 128 && code != 130 && code != 143 {
            // It could not write its own line.
            let text = format!("the run died of signal {}", code - 128);
            self.log.error(&text);
            self.record(one.trigger, one.started_at, Outcome::Failed, &text);
        }
        match code {
            0 => self.log.info(&format!("run done after {seconds} s")),
            code => self.log.error(&format!(
                "run ended with exit code {code} after {seconds} s"
            )),
        }
        self.say_next();
    }

    fn say_next(&self) {
        let next = self.schedule.describe_next(clock::now());
        self.log.info(&format!("next run: {next}"));
    }

    fn skip(&self, moment: Timestamp, why: &str) {
        let text = format!("the run of {moment} is skipped: {why}");
        self.log.warn(&text);
        self.record(Trigger::Schedule, moment, Outcome::Skipped, &text);
    }

    fn record(&self, trigger: Trigger, started_at: Timestamp, outcome: Outcome, error: &str) {
        let line = Line {
            started_at,
            finished_at: clock::now(),
            trigger,
            outcome,
            error: Some(error.to_owned()),
            taken: vec![],
            failed: vec![],
            expired: vec![],
        };
        if let Err(error) = journal::append(&self.dir, &line) {
            self.log.warn(&error.fact);
        }
    }

    /// Ends the run under way: finished, or cleanly broken off, or killed.
    fn end(&self, active: Option<Active>, copying: Option<Run>, woken: &Receiver<()>) {
        // Dropped at the end of this, it is killed if it has not ended by then.
        let mut copying = copying;
        if let Some(run) = &copying {
            run.terminate();
        }
        let Some(mut one) = active else {
            let limit = Instant::now() + END_LIMIT;
            while copying
                .as_mut()
                .is_some_and(|run| run.exit_code().is_none())
                && Instant::now() < limit
            {
                wait(woken, Duration::from_millis(200));
            }
            return;
        };
        self.log.info("ending the run under way");
        one.run.terminate();
        let limit = Instant::now() + END_LIMIT;
        while Instant::now() < limit {
            if let Some(code) = one.run.exit_code() {
                self.say_end(&one, code);
                return;
            }
            wait(woken, Duration::from_millis(200));
        }
        self.log
            .error("the run did not end in time and was killed; its remains go with the next run");
    }
}

fn under_way(one: &Active) -> String {
    format!(
        "the one of {} is still under way (process {})",
        one.started_at,
        one.run.id()
    )
}

fn waits(one: &Due) -> String {
    format!("the one of {} still waits for its turn", one.moment)
}

fn wait(woken: &Receiver<()>, pause: Duration) {
    match woken.recv_timeout(pause) {
        // Several wakes at once are one.
        Ok(()) => while woken.try_recv().is_ok() {},
        Err(RecvTimeoutError::Timeout) => {}
        Err(RecvTimeoutError::Disconnected) => std::thread::sleep(pause),
    }
}
