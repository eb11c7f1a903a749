//! `pgark wal-stream`, kept alive: a process that receives the WAL of one cluster.
//!
//! Invariants: never two at once; one that ended is started again, after a pause that grows while
//! it fails and is short again once it has worked for a while. Exit code 3 says that WAL has a gap,
//! and that a base backup has to follow. Dropped, it is killed: what it had confirmed is stored,
//! and the server keeps the rest.

use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use super::child::Run;
use super::log::Log;
use crate::error::Result;

/// Between an end and the next start, growing.
const PAUSE_MIN: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// One that worked so long has not failed at the start.
const STEADY: Duration = Duration::from_secs(60);

/// The exit code (`Kind::Partial`) that says: WAL has a gap.
const GAP: i32 = 3;

/// What the service has to do when WAL streaming ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// WAL has a gap: a base backup is wanted at once.
    Gap,
}

/// The pauses between starts. Pure.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Patience {
    next: Duration,
}

impl Patience {
    fn new() -> Patience {
        Patience { next: PAUSE_MIN }
    }

    /// The pause after one that ended with this code after this time.
    fn after(&mut self, code: i32, lasted: Duration) -> Duration {
        // A gap is an end in good order: the slot is gone, and the next start makes a new one.
        if lasted >= STEADY || code == 0 || code == GAP {
            self.next = PAUSE_MIN;
        }
        let pause = self.next;
        self.next = (pause * 2).min(PAUSE_MAX);
        pause
    }
}

/// Starts pgark with these arguments; the sender hears of its end.
pub type Spawn<'a> = dyn Fn(&[&str], &Sender<()>) -> Result<Run> + 'a;

/// The receiver of one cluster.
pub struct Streamer {
    log: Log,
    run: Option<Run>,
    began: Instant,
    not_before: Instant,
    patience: Patience,
}

impl Streamer {
    #[must_use]
    pub fn new(log: Log) -> Streamer {
        let now = Instant::now();
        Streamer {
            log,
            run: None,
            began: now,
            not_before: now,
            patience: Patience::new(),
        }
    }

    /// One turn of the loop: starts it where it is not, and hears of its end.
    pub fn turn(&mut self, spawn: &Spawn<'_>, wake: &Sender<()>) -> Option<News> {
        let ended = self.run.as_mut().and_then(Run::exit_code);
        let news = ended.and_then(|code| self.ended(code));
        if self.run.is_none() && Instant::now() >= self.not_before {
            self.began = Instant::now();
            match spawn(&["wal-stream"], wake) {
                Ok(run) => {
                    self.log
                        .info(&format!("WAL streaming begins (process {})", run.id()));
                    self.run = Some(run);
                }
                Err(error) => {
                    self.log.error(&error.to_string());
                    self.ended(1);
                }
            }
        }
        news
    }

    fn ended(&mut self, code: i32) -> Option<News> {
        self.run = None;
        let lasted = self.began.elapsed();
        let pause = self.patience.after(code, lasted);
        self.not_before = Instant::now() + pause;
        let gap = code == GAP;
        let what = match code {
            code if gap => format!(
                "WAL streaming ended with a gap (exit code {code}): a base backup is taken at once; streaming begins again in"
            ),
            code => format!(
                "WAL streaming ended with exit code {code} after {} s; it begins again in",
                lasted.as_secs()
            ),
        };
        self.log.error(&format!("{what} {} s", pause.as_secs()));
        gap.then_some(News::Gap)
    }

    /// How long the loop may wait for its sake.
    #[must_use]
    pub fn pause(&self) -> Duration {
        match &self.run {
            Some(run) if run.is_closing() => Duration::ZERO,
            Some(_) => Duration::MAX,
            None => self.not_before.saturating_duration_since(Instant::now()),
        }
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        if let Some(run) = &self.run {
            self.log.info("ending WAL streaming");
            run.terminate();
        }
    }

    /// Whether it is over, after [`Self::terminate`].
    pub fn is_over(&mut self) -> bool {
        let Some(run) = &mut self.run else {
            return true;
        };
        let Some(code) = run.exit_code() else {
            return false;
        };
        self.run = None;
        match code {
            // 143: it had not yet come to listen for the signal.
            0 | 143 => self.log.info("WAL streaming ended"),
            code => self
                .log
                .error(&format!("WAL streaming ended with exit code {code}")),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_while_it_fails_and_are_short_again_once_it_worked() {
        let mut patience = Patience::new();
        let mut after = |code, lasted| patience.after(code, Duration::from_secs(lasted)).as_secs();
        let failing: Vec<u64> = (0..7).map(|_| after(1, 1)).collect();
        assert_eq!(failing, [2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(after(1, 60), 2, "it worked for a minute");
        assert_eq!(after(137, 1), 4);
        assert_eq!(after(3, 1), 2, "a gap is told in good order");
        assert_eq!(after(1, 1), 4);
        assert_eq!(after(0, 1), 2);
    }

    /// A shell in the receiver's place; turns until it gave news, or ended for the nth time.
    fn turns(script: &'static str, ends: usize) -> (Option<News>, usize) {
        let log = Log::new("text");
        let started = std::cell::Cell::new(0);
        let spawn = |verb: &[&str], wake: &Sender<()>| {
            assert_eq!(verb, ["wal-stream"]);
            started.set(started.get() + 1);
            let mut shell = std::process::Command::new("sh");
            shell.args(["-c", script]);
            Run::launch(shell, b"", log, wake.clone())
        };
        let (wake, woken) = std::sync::mpsc::channel();
        let mut streamer = Streamer::new(log);
        loop {
            let news = streamer.turn(&spawn, &wake);
            if news.is_some() || (streamer.run.is_none() && started.get() >= ends) {
                return (news, started.get());
            }
            assert!(streamer.run.is_some(), "one that runs is not started again");
            let _ = woken.recv_timeout(Duration::from_millis(50));
        }
    }

    #[test]
    fn a_gap_is_news_and_any_other_end_is_none() {
        assert_eq!(turns("exit 3", 1), (Some(News::Gap), 1));
        assert_eq!(turns("exit 1", 1), (None, 1));
        assert_eq!(turns("kill -9 $$", 1), (None, 1));
    }

    #[test]
    fn one_that_is_asked_to_end_is_waited_for() {
        let log = Log::new("text");
        let spawn = |_: &[&str], wake: &Sender<()>| {
            let mut shell = std::process::Command::new("sh");
            shell.args([
                "-c",
                "trap 'exit 0' TERM; echo ready >&2; while :; do sleep 0.1; done",
            ]);
            Run::launch(shell, b"", log, wake.clone())
        };
        let (wake, woken) = std::sync::mpsc::channel();
        let mut streamer = Streamer::new(log);
        assert_eq!(streamer.turn(&spawn, &wake), None);
        assert!(!streamer.is_over());
        assert_eq!(streamer.pause(), Duration::MAX);
        streamer.terminate();
        while !streamer.is_over() {
            let _ = woken.recv_timeout(Duration::from_millis(50));
        }
        assert!(streamer.run.is_none());
    }
}
