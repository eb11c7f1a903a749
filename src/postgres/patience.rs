//! Connects with patience, where a moment's wait is all it takes.
//!
//! A server that is still starting says so (57P03) and takes nobody yet. One whose places are all
//! taken (53300) often counts sessions that were closed a moment ago; for a role with a
//! CONNECTION LIMIT those are our own. Both are waited for, for a bounded time; everything else is
//! an error at once. A signal ends the wait.

use std::time::{Duration, Instant};

use super::client::{Client, Target};
use crate::cancel::Token;
use crate::error::{Error, Result};

/// How long places may still be counted whose sessions have been closed.
const PLACE_WAIT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(100);

/// Whether there was no place left: for the role, the database or the whole server.
#[must_use]
pub fn is_full(error: &Error) -> bool {
    error.is_sqlstate("53300")
}

/// Connects, waiting a moment for a place.
///
/// # Errors
/// As [`Client::connect`]; of the signal.
pub fn connect(target: &Target, cancel: &Token) -> Result<Client> {
    connect_when_ready(target, Duration::ZERO, cancel, &|_| ())
}

/// The same with at most `start_wait` for a server that is starting; tells `say` once that it waits.
///
/// # Errors
/// As [`Client::connect`]; of the signal.
pub fn connect_when_ready(
    target: &Target,
    start_wait: Duration,
    cancel: &Token,
    say: &dyn Fn(&str),
) -> Result<Client> {
    let began = Instant::now();
    let mut told = false;
    loop {
        cancel.check()?;
        let error = match Client::connect(target) {
            Err(error) => error,
            connected => return connected,
        };
        let starting = error.is_sqlstate("57P03");
        let wait = match starting {
            true => start_wait,
            false if is_full(&error) => PLACE_WAIT,
            false => Duration::ZERO,
        };
        if began.elapsed() >= wait {
            let waited = starting && !start_wait.is_zero();
            let context = format!("waited {} s", start_wait.as_secs());
            return Err(if waited {
                error.context(context)
            } else {
                error
            });
        }
        if starting && !told {
            told = true;
            let text = &error.fact;
            say(&format!(
                "{text}; waiting up to {} s for it",
                start_wait.as_secs()
            ));
        }
        std::thread::sleep(PAUSE);
    }
}
