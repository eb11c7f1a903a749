//! What the start of the service brings, by what the journal says of lately.
//!
//! Invariant: a service that restarts all the time does not take backups all the time. Whether
//! there is a base backup at all, the store is asked later.

use std::path::Path;
use std::time::{Duration, Instant};

use jiff::SignedDuration;

use super::owed::Owed;
use crate::clock;
use crate::service::journal::{self, Line, Outcome, Trigger};
use crate::service::log::Log;

/// The start brings no dumps when the newest are as young as that …
const START_AGE: SignedDuration = SignedDuration::from_hours(1);
/// … and nothing when a run, however it ended, began so lately: a service that restarts all the
/// time must not take backups all the time.
const START_PAUSE: SignedDuration = SignedDuration::from_mins(10);

/// What the start shall bring, by what the journal says of lately.
pub(super) fn owed(dir: &Path, base: bool, log: Log) -> Option<Owed> {
    let (now, lines) = (clock::now(), journal::read(dir));
    let age = |line: &Line| now.duration_since(line.started_at);
    let lines = || lines.iter().rev().filter(|one| one.is_base() == base);
    let lately = lines().find(|line| line.outcome != Outcome::Skipped && age(line) < START_PAUSE);
    let owed = Owed::new(Trigger::Start, Instant::now());
    if base {
        // Whether there is none is asked later; one that failed lately puts that off.
        let failed = lately.filter(|line| line.outcome != Outcome::Ok);
        let rest = failed.and_then(|line| (START_PAUSE - age(line)).try_into().ok());
        return Some(owed.put_off(rest.unwrap_or(Duration::ZERO)));
    }
    let young = lines()
        .filter(|line| line.taken.iter().any(|taken| taken.database.is_some()))
        .find(|line| line.outcome == Outcome::Ok && age(line) < START_AGE);
    if let Some(line) = young {
        log.info(&format!(
            "no initial backup: the one of {} is young enough",
            line.started_at
        ));
        return None;
    }
    if let Some(line) = lately {
        log.warn(&format!(
            "no initial backup: a run began at {} already, and a service that restarts again and again shall not dump again and again",
            line.started_at
        ));
        return None;
    }
    Some(owed)
}
