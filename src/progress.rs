//! What a run has done so far, counted by many threads and shown by one.
//!
//! Invariant: counting never blocks and never fails; a broken terminal costs the picture,
//! not the backup. Nothing here survives a crash, and nothing needs to.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::units::ByteSize;

/// Counters of one run.
#[derive(Debug, Default)]
pub struct Progress {
    /// Uncompressed bytes taken in.
    pub raw_bytes: AtomicU64,
    /// Bytes handed to the store.
    pub stored_bytes: AtomicU64,
    /// Rows read.
    pub rows: AtomicU64,
    /// Tables finished.
    pub tables_done: AtomicU64,
    /// Tables in all; 0: not known.
    pub tables_total: AtomicU64,
    /// Expected `raw_bytes` at the end; 0: not known.
    pub estimate_bytes: AtomicU64,
}

impl Progress {
    /// Counts raw bytes and rows that are done.
    pub fn add(&self, raw_bytes: u64, rows: u64) {
        self.raw_bytes.fetch_add(raw_bytes, Relaxed);
        self.rows.fetch_add(rows, Relaxed);
    }

    /// Adds to what is expected in all, in raw bytes.
    pub fn add_expected(&self, raw_bytes: u64) {
        self.estimate_bytes.fetch_add(raw_bytes, Relaxed);
    }

    /// The state in one line for people.
    #[must_use]
    pub fn line(&self) -> String {
        let raw = self.raw_bytes.load(Relaxed);
        let estimate = self.estimate_bytes.load(Relaxed);
        let mut line = ByteSize(raw).to_string();
        if estimate > 0 {
            // The estimate comes from table sizes and may be passed; 100 % is said only at the end.
            let percent = (u128::from(raw) * 100 / u128::from(estimate)).min(99);
            let _ = write!(line, " ({percent} %)");
        }
        let stored = self.stored_bytes.load(Relaxed);
        if stored > 0 {
            let _ = write!(line, ", {} stored", ByteSize(stored));
        }
        let rows = self.rows.load(Relaxed);
        if rows > 0 {
            let _ = write!(line, ", {rows} rows");
        }
        let total = self.tables_total.load(Relaxed);
        if total > 0 {
            let _ = write!(
                line,
                ", {} of {total} tables",
                self.tables_done.load(Relaxed)
            );
        }
        line
    }
}

/// How fast it goes and how long it takes: by the last quarter of a minute, so that a stop shows.
#[derive(Debug, Default)]
struct Pace(VecDeque<(Duration, u64)>);

/// What a pace is measured over.
const PACE_SPAN: Duration = Duration::from_secs(15);

impl Pace {
    /// `, 98.0 MiB/s, 2 min left`; nothing before there is something to say.
    fn line(&mut self, elapsed: Duration, progress: &Progress) -> String {
        let raw = progress.raw_bytes.load(Relaxed);
        self.0.push_back((elapsed, raw));
        // The first one is the last that is old enough.
        while self
            .0
            .get(1)
            .is_some_and(|(at, _)| elapsed.saturating_sub(*at) >= PACE_SPAN)
        {
            self.0.pop_front();
        }
        let Some((at, before)) = self.0.front() else {
            return String::new();
        };
        let (span, bytes) = (
            elapsed.saturating_sub(*at).as_millis(),
            raw.saturating_sub(*before),
        );
        if span < 1000 || raw == 0 {
            return String::new();
        }
        let rate = u64::try_from(u128::from(bytes) * 1000 / span).unwrap_or(u64::MAX);
        let mut line = format!(", {}/s", ByteSize(rate));
        let rest = progress.estimate_bytes.load(Relaxed).saturating_sub(raw);
        if let Some(seconds) = rest.checked_div(rate).filter(|_| rest > 0) {
            let _ = write!(line, ", {} left", about(seconds));
        }
        line
    }
}

/// A time that nobody takes for exact.
fn about(seconds: u64) -> String {
    match seconds {
        0..=99 => format!("{} s", seconds.max(1)),
        100..=5999 => format!("{} min", (seconds + 30) / 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// How often a line appears where no terminal is.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// How often a bar is drawn.
const DRAW_INTERVAL: Duration = Duration::from_millis(200);

/// Shows a [`Progress`] on stderr until it is dropped.
pub struct Reporter {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Reporter {
    /// Starts to show `progress` under the title `what`: a bar on a terminal, a line every ten
    /// seconds elsewhere, nothing when `quiet`.
    #[must_use]
    pub fn start(what: &str, progress: Arc<Progress>, quiet: bool) -> Reporter {
        if quiet {
            return Reporter {
                stop: None,
                thread: None,
            };
        }
        let (stop, stopped) = bounded(0);
        let what = what.to_owned();
        let thread = std::thread::Builder::new()
            .name("progress".to_owned())
            .spawn(move || {
                if std::io::stderr().is_terminal() {
                    draw(&what, &progress, &stopped);
                } else {
                    print_lines(&what, &progress, &stopped);
                }
            })
            .ok();
        Reporter {
            stop: Some(stop),
            thread,
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic in there has been printed; the run goes on without its picture.
            let _ = thread.join();
        }
    }
}

fn draw(what: &str, progress: &Progress, stopped: &Receiver<()>) {
    let bar = indicatif::ProgressBar::no_length();
    let plain = indicatif::ProgressStyle::with_template("{spinner} {prefix}  {msg}  {elapsed}");
    let filled = indicatif::ProgressStyle::with_template("{prefix}  [{bar:24}] {msg}  {elapsed}");
    if let Ok(style) = plain {
        bar.set_style(style);
    }
    bar.set_prefix(what.to_owned());
    let mut filled = filled.ok();
    let (start, mut pace) = (Instant::now(), Pace::default());
    loop {
        let estimate = progress.estimate_bytes.load(Relaxed);
        if estimate > 0 {
            if let Some(style) = filled.take() {
                bar.set_style(style);
            }
            bar.set_length(estimate);
            bar.set_position(progress.raw_bytes.load(Relaxed).min(estimate));
        }
        let pace = pace.line(start.elapsed(), progress);
        bar.set_message(progress.line() + &pace);
        bar.tick();
        match stopped.recv_timeout(DRAW_INTERVAL) {
            Err(RecvTimeoutError::Timeout) => {}
            _ => break,
        }
    }
    bar.finish_and_clear();
}

fn print_lines(what: &str, progress: &Progress, stopped: &Receiver<()>) {
    let (start, mut pace) = (Instant::now(), Pace::default());
    while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(LINE_INTERVAL) {
        let seconds = start.elapsed().as_secs();
        let pace = pace.line(start.elapsed(), progress);
        // A closed stderr costs the line, not the backup.
        let _ = writeln!(
            std::io::stderr(),
            "{what}: {}{pace} after {seconds} s",
            progress.line()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_tells_only_what_is_known() {
        let progress = Progress::default();
        assert_eq!(progress.line(), "0 B");
        progress.raw_bytes.store(1 << 20, Relaxed);
        progress.estimate_bytes.store(1 << 19, Relaxed);
        progress.tables_total.store(3, Relaxed);
        assert_eq!(progress.line(), "1.0 MiB (99 %), 0 of 3 tables");
    }

    #[test]
    fn pace_is_that_of_the_last_seconds_and_tells_what_is_left() {
        let (progress, mut pace) = (Progress::default(), Pace::default());
        progress.estimate_bytes.store(1000 << 20, Relaxed);
        let mut at = |seconds: u64, mib: u64| {
            progress.raw_bytes.store(mib << 20, Relaxed);
            pace.line(Duration::from_secs(seconds), &progress)
        };
        assert_eq!(at(0, 0), "");
        assert_eq!(at(10, 100), ", 10.0 MiB/s, 90 s left");
        // It stands still: what came long ago counts no more.
        assert_eq!(at(20, 100), ", 5.0 MiB/s, 3 min left");
        assert_eq!(at(30, 100), ", 0 B/s");
        assert_eq!(at(40, 1200), ", 55.0 MiB/s");
        assert_eq!(about(3 * 3600 + 125), "3 h 2 min");
    }

    #[test]
    fn reporter_stops_at_once_when_dropped() {
        let start = Instant::now();
        drop(Reporter::start("dump", Arc::default(), false));
        drop(Reporter::start("dump", Arc::default(), true));
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}
