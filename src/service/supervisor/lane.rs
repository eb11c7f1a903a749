//! A lane: work that does not overlap itself. Dumps have one, base backups another.
//!
//! Invariants: one run at a time in a lane; a run that does not end in its time is asked to, then
//! killed, and its place is free; every moment that brings no run is in the journal. A crash leaves
//! the run under way to itself.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::Supervisor;
use super::initial;
use super::owed::Owed;
use super::question::{Ask, Question};
use super::timetable::{Meeting, Timetable, meet};
use crate::clock;
use crate::error::Kind;
use crate::schedule::Schedule;
use crate::service::child::Run;
use crate::service::journal::{self, Line, Outcome, Trigger, Work};
use crate::service::slots::{Slot, Slots};

/// From the request to end to the kill, for a run that took too long.
const KILL_AFTER: Duration = Duration::from_secs(30);
/// A run that met the other lane's lock is tried again after so long …
const BUSY_PAUSE: Duration = Duration::from_secs(30);
/// … and so often: each lane expires what is old, under one lock.
const BUSY_TRIES: u32 = 10;

/// What a lane does.
pub struct Plan {
    /// What is taken when, the one first that wins when two come due at once. The first, or what
    /// is named in `first`, is what the start and a gap bring.
    pub rows: Vec<(Work, Schedule)>,
    pub first: Work,
    /// Whether the start brings one, if there is none yet.
    pub on_start: bool,
    /// Turns among the clusters.
    pub slots: Arc<Slots>,
    /// Whether the server answers, and one is wanted at the start. It may take long.
    pub ask: Ask,
}

/// A run whose moment has come.
#[derive(Clone, Copy)]
struct Due {
    work: Work,
    trigger: Trigger,
    moment: Timestamp,
    /// Whether it was said that others go first.
    told: bool,
    not_before: Instant,
    /// Times that it met another's lock.
    tries: u32,
}

/// A run and its limits.
struct Active {
    run: Run,
    /// Held for as long as the run goes on.
    _slot: Slot,
    work: Work,
    trigger: Trigger,
    started_at: Timestamp,
    began: Instant,
    tries: u32,
    asked_to_end: Option<Instant>,
}

/// A lane at work.
pub(super) struct Lane<'a> {
    of: &'a Supervisor,
    plan: &'a Plan,
    timetable: Timetable,
    active: Option<Active>,
    due: Option<Due>,
    owed: Option<Owed>,
    question: Question,
    /// When the other lane was seen at work last.
    beside: Option<Instant>,
}

impl<'a> Lane<'a> {
    pub(super) fn new(of: &'a Supervisor, plan: &'a Plan) -> Lane<'a> {
        let mut lane = Lane {
            of,
            plan,
            timetable: Timetable::new(&plan.rows, clock::now()),
            active: None,
            due: None,
            owed: None,
            question: Question::default(),
            beside: None,
        };
        if plan.on_start {
            lane.owed = initial::owed(&of.dir, lane.is_base(), of.log);
        }
        lane.say_next();
        lane
    }

    /// Whether this lane takes base backups.
    pub(super) fn is_base(&self) -> bool {
        self.plan.first.is_base()
    }

    pub(super) fn is_active(&self) -> bool {
        self.active.is_some()
    }

    /// A base backup is wanted at once: WAL has a gap.
    pub(super) fn owe_for_gap(&mut self) {
        self.owed = Some(Owed::new(Trigger::Gap, Instant::now()));
    }

    /// One turn of the loop; `beside`: the other lane is at work. Gives the exit code of a run that
    /// ended.
    pub(super) fn turn(&mut self, beside: bool, wake: &Sender<()>) -> Option<i32> {
        if beside {
            self.beside = Some(Instant::now());
        }
        let code = self.watch();
        let now = clock::now();
        if let Some((work, moment)) = self.timetable.come(now) {
            self.meet(work, moment);
        } else if self.owes_now(wake) {
            let trigger = self
                .owed
                .as_ref()
                .map_or(Trigger::Start, |owed| owed.trigger);
            self.due = Some(Due::new(self.plan.first, trigger, now));
        }
        self.start_in_turn(wake);
        code
    }

    fn meet(&mut self, work: Work, moment: Timestamp) {
        let active = self.active.as_ref();
        let due = self.due.as_ref();
        let met = meet(work, active.map(|one| one.work), due.map(|one| one.work));
        match (met, active, due) {
            (Meeting::UnderWay, Some(one), _) => {
                let why = format!(
                    "the one of {} is still under way (process {})",
                    one.started_at,
                    one.run.id()
                );
                self.skip(work, moment, &why);
            }
            (Meeting::Waits, _, Some(one)) => {
                let why = format!("the one of {} still waits for its turn", one.moment);
                self.skip(work, moment, &why);
            }
            _ => self.due = Some(Due::new(work, Trigger::Schedule, moment)),
        }
        // The dumps of the start are as good a moment later.
        if !work.is_base() {
            self.owed = None;
        }
    }

    /// Whether what is owed shall begin now.
    fn owes_now(&mut self, wake: &Sender<()>) -> bool {
        let Some(owed) = &self.owed else {
            return false;
        };
        if self.active.is_some() || self.due.is_some() || !owed.is_due(Instant::now()) {
            return false;
        }
        let noun = match self.plan.first {
            Work::Dumps => "backup",
            work => work.noun(),
        };
        let Some(wanted) = self
            .question
            .answer(&self.plan.ask, noun, self.of.log, wake)
        else {
            return false;
        };
        if !wanted && owed.trigger != Trigger::Gap {
            let text = format!("no initial {noun}: there is a good one");
            self.of.log.info(&text);
            self.owed = None;
            return false;
        }
        true
    }

    /// How long the loop may wait for this lane's sake.
    pub(super) fn pause(&self, now: Timestamp) -> Duration {
        // Its pipe closes a moment before the process is gone.
        if self.active.as_ref().is_some_and(|one| one.run.is_closing()) {
            return Duration::ZERO;
        }
        let free = self.active.is_none() && self.due.is_none();
        let asks = self.owed.as_ref().filter(|_| free);
        if asks.is_some_and(|owed| owed.is_due(Instant::now())) {
            return Duration::from_secs(2);
        }
        let next = self.timetable.next().map(|next| next.duration_since(now));
        next.map_or(Duration::MAX, |next| {
            next.try_into().unwrap_or(Duration::ZERO)
        })
    }

    /// Starts what is due when its turn has come.
    fn start_in_turn(&mut self, wake: &Sender<()>) {
        let free = self.active.is_none();
        let ready = |one: &&mut Due| free && Instant::now() >= one.not_before;
        let Some(one) = self.due.as_mut().filter(ready) else {
            return;
        };
        if let Some(slot) = self.plan.slots.take(self.of.number, wake) {
            let one = *one;
            self.due = None;
            self.start(one, slot, wake);
        } else if !one.told {
            one.told = true;
            self.of
                .log
                .info("waits for its turn: as many runs as max_runs allows are under way");
        }
    }

    fn start(&mut self, due: Due, slot: Slot, wake: &Sender<()>) {
        let (trigger, started_at) = (due.trigger.to_string(), clock::now());
        let verb: &[&str] = match due.work {
            Work::Dumps => &["backup"],
            Work::Base => &["backup", "--base"],
            Work::Incremental => &["backup", "--base", "--incremental"],
        };
        let verb = [verb, &["--trigger", &trigger]].concat();
        let began = Instant::now();
        match self.of.spawn(&verb, wake) {
            Ok(run) => {
                self.active = Some(Active {
                    run,
                    _slot: slot,
                    work: due.work,
                    trigger: due.trigger,
                    started_at,
                    began,
                    tries: due.tries,
                    asked_to_end: None,
                });
            }
            Err(error) => {
                self.of.log.error(&error.to_string());
                self.record(
                    due.work,
                    due.trigger,
                    started_at,
                    Outcome::Failed,
                    &error.fact,
                );
                self.pay(due.work, began, 1);
            }
        }
    }

    /// What a run that ended leaves to be done.
    fn pay(&mut self, work: Work, began: Instant, code: i32) {
        let owed = self.owed.take();
        self.owed = owed.and_then(|owed| owed.after(work, began, code, Instant::now()));
    }

    /// Takes leave of a run that is over; asks one to end that takes too long, and then kills it.
    /// Gives the exit code of one that is over.
    pub(super) fn watch(&mut self) -> Option<i32> {
        let one = self.active.as_mut()?;
        if let Some(code) = one.run.exit_code() {
            let one = self.active.take()?;
            self.say_end(&one, code);
            self.again_if_busy(&one, code);
            self.pay(one.work, one.began, code);
            return Some(code);
        }
        match one.asked_to_end {
            None if one.began.elapsed() > self.of.run_timeout => {
                self.of.log.error(&format!(
                    "the {} of {} takes longer than {} s and is ended (PGARK_RUN_TIMEOUT)",
                    one.work.noun(),
                    one.started_at,
                    self.of.run_timeout.as_secs()
                ));
                one.run.terminate();
                one.asked_to_end = Some(Instant::now());
            }
            Some(asked) if asked.elapsed() > KILL_AFTER => one.run.kill(),
            _ => {}
        }
        None
    }

    /// A lock that our other lane held is no reason to lack the backup until the next moment. That
    /// of a stranger is: he takes the same backup.
    fn again_if_busy(&mut self, one: &Active, code: i32) {
        let ours = self.beside.is_some_and(|at| at >= one.began);
        let busy = ours && code == i32::from(Kind::Busy.exit_code());
        if !busy || one.tries >= BUSY_TRIES || self.due.is_some() {
            return;
        }
        self.of.log.warn(&format!(
            "the {} met the other work on the store; it is tried again in {} s",
            one.work.noun(),
            BUSY_PAUSE.as_secs()
        ));
        self.due = Some(Due {
            not_before: Instant::now() + BUSY_PAUSE,
            tries: one.tries + 1,
            ..Due::new(one.work, one.trigger, one.started_at)
        });
    }

    fn say_end(&self, one: &Active, code: i32) {
        let (log, noun) = (self.of.log, one.work.noun());
        let seconds = one.began.elapsed().as_secs();
        if one.asked_to_end.is_some() {
            let text = format!("ended after {seconds} s, longer than PGARK_RUN_TIMEOUT");
            self.record(
                one.work,
                one.trigger,
                one.started_at,
                Outcome::Timeout,
                &text,
            );
        } else if code > 128 && code != 130 && code != 143 {
            // It could not write its own line.
            let text = format!("the {noun} died of signal {}", code - 128);
            log.error(&text);
            self.record(
                one.work,
                one.trigger,
                one.started_at,
                Outcome::Failed,
                &text,
            );
        }
        match code {
            0 => log.info(&format!("{noun} done after {seconds} s")),
            code => log.error(&format!(
                "{noun} ended with exit code {code} after {seconds} s"
            )),
        }
        self.say_next();
    }

    fn say_next(&self) {
        if let Some(next) = self.timetable.describe_next(clock::now()) {
            self.of.log.info(&next);
        }
    }

    fn skip(&self, work: Work, moment: Timestamp, why: &str) {
        let text = format!("the {} of {moment} is skipped: {why}", work.noun());
        self.of.log.warn(&text);
        self.record(work, Trigger::Schedule, moment, Outcome::Skipped, &text);
    }

    fn record(
        &self,
        work: Work,
        trigger: Trigger,
        started_at: Timestamp,
        outcome: Outcome,
        error: &str,
    ) {
        let line = Line {
            started_at,
            finished_at: clock::now(),
            trigger,
            work,
            outcome,
            error: Some(error.to_owned()),
            taken: vec![],
            failed: vec![],
            expired: vec![],
        };
        if let Err(error) = journal::append(&self.of.dir, &line) {
            self.of.log.warn(&error.fact);
        }
    }

    /// Asks the run under way to end, and gives its turn back.
    pub(super) fn terminate(&self) {
        self.plan.slots.leave(self.of.number);
        if let Some(one) = &self.active {
            self.of
                .log
                .info(&format!("ending the {} under way", one.work.noun()));
            one.run.terminate();
        }
    }
}

impl Due {
    fn new(work: Work, trigger: Trigger, moment: Timestamp) -> Due {
        Due {
            work,
            trigger,
            moment,
            told: false,
            not_before: Instant::now(),
            tries: 0,
        }
    }
}
