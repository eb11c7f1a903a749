//! The supervisor: starts runs when their moment comes, and ends those that take too long.
//!
//! Invariants: runs do not overlap; a moment that comes during a run is skipped, and the journal
//! says so. A run that does not end in its time is asked to, then killed, and its place is free.
//! A signal ends the run under way and then the service, within [`END_LIMIT`]. A clock that jumps
//! delays no run by more than [`TICK`]. A crash leaves the run under way to itself (it holds its
//! own lock) and nothing else.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

use super::child::Run;
use super::http::Pulse;
use super::journal::{self, Line, Outcome, Trigger};
use super::log::Log;
use super::notify::notify;
use crate::cancel::Token;
use crate::clock;
use crate::config::Environment;
use crate::error::{Kind, Result};
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

/// What the supervisor works with.
pub struct Supervisor {
    pub schedule: Schedule,
    pub on_start: bool,
    pub run_timeout: Duration,
    /// Where the journal lies.
    pub dir: PathBuf,
    pub environment: Environment,
    /// For every run, beside its trigger: `--dir` and the like.
    pub arguments: Vec<String>,
    pub log: Log,
    pub cancel: Token,
    pub pulse: Arc<Pulse>,
    /// Whether the server answers: an initial backup waits for that.
    pub server_answers: Box<dyn Fn() -> Result<()>>,
}

/// A run and its limits.
struct Active {
    run: Run,
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
        let mut initial = self.wants_initial();
        let mut next = self.schedule.next_after(clock::now());
        self.log.info(&self.schedule.describe_next(clock::now()));
        notify("READY=1");
        let mut complained = None;
        loop {
            self.pulse.beat();
            if self.cancel.check().is_err() {
                break;
            }
            self.watch(&mut active);
            let now = clock::now();
            // A clock that went back must not put the next run off by as much.
            next = next.min(self.schedule.next_after(now));
            if now >= next {
                match &active {
                    None => active = self.start(Trigger::Schedule, &wake),
                    Some(one) => self.skip(one, next),
                }
                initial = false;
                next = self.schedule.next_after(now);
            } else if initial && active.is_none() && self.is_ready(&mut complained) {
                active = self.start(Trigger::Start, &wake);
                initial = false;
            }
            let until_next = next.duration_since(clock::now());
            let pause = until_next.try_into().unwrap_or(Duration::ZERO).min(TICK);
            let pause = if initial {
                pause.min(Duration::from_secs(2))
            } else {
                pause
            };
            wait(&woken, pause.max(Duration::from_millis(50)));
        }
        drop(hook);
        notify("STOPPING=1");
        self.end(active, &woken);
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

    /// Whether the server answers. What no waiting mends (a wrong password) counts as an answer:
    /// the run will say it.
    fn is_ready(&self, complained: &mut Option<Instant>) -> bool {
        match (self.server_answers)() {
            Ok(()) => true,
            Err(error) if error.kind == Kind::Usage => true,
            // 57P03: the server is starting up, shutting down or in recovery.
            Err(error)
                if error
                    .sqlstate
                    .as_deref()
                    .is_some_and(|state| state != "57P03") =>
            {
                true
            }
            Err(error) => {
                if complained.is_none_or(|at| at.elapsed() > Duration::from_secs(60)) {
                    *complained = Some(Instant::now());
                    self.log.warn(&format!(
                        "the initial backup waits for the server: {}",
                        error.fact
                    ));
                }
                false
            }
        }
    }

    fn start(&self, trigger: Trigger, wake: &Sender<()>) -> Option<Active> {
        let run = Run::start(
            &self.environment,
            &self.arguments,
            trigger,
            self.log,
            wake.clone(),
        );
        let started_at = clock::now();
        match run {
            Ok(run) => Some(Active {
                run,
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

    /// Takes leave of a run that is over; asks one to end that takes too long, and then kills it.
    fn watch(&self, active: &mut Option<Active>) {
        let Some(one) = active else { return };
        if let Some(code) = one.run.exit_code() {
            self.say_end(one, code);
            *active = None;
            return;
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
        self.log.info(&self.schedule.describe_next(clock::now()));
    }

    fn skip(&self, one: &Active, moment: Timestamp) {
        let text = format!(
            "the run of {moment} is skipped: the one of {} is still under way (process {})",
            one.started_at,
            one.run.id()
        );
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
    fn end(&self, active: Option<Active>, woken: &Receiver<()>) {
        let Some(mut one) = active else { return };
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

fn wait(woken: &Receiver<()>, pause: Duration) {
    match woken.recv_timeout(pause) {
        // Several wakes at once are one.
        Ok(()) => while woken.try_recv().is_ok() {},
        Err(RecvTimeoutError::Timeout) => {}
        Err(RecvTimeoutError::Disconnected) => std::thread::sleep(pause),
    }
}
