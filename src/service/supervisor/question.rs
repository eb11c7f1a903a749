//! Does the server answer, and is a backup wanted? An initial backup waits for that.
//!
//! Invariant: the asking is on a thread of its own, and never more than one; a signal does not
//! wait for it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

use crate::error::{Kind, Result};
use crate::service::log::Log;

/// Fails when the server does not answer; else says whether a backup is wanted. It may take long.
pub type Ask = Arc<dyn Fn() -> Result<bool> + Send + Sync>;

/// The asking.
#[derive(Default)]
pub(super) struct Question {
    answer: Option<Receiver<Result<bool>>>,
    complained: Option<Instant>,
    not_before: Option<Instant>,
}

impl Question {
    /// The answer, asked for on a thread of its own: a host that swallows packets must not hold up
    /// a signal. What no waiting mends (a wrong password) counts as yes: the run will say it.
    pub(super) fn answer(
        &mut self,
        ask: &Ask,
        noun: &str,
        log: Log,
        wake: &Sender<()>,
    ) -> Option<bool> {
        let Some(answer) = &self.answer else {
            if self.not_before.is_some_and(|at| Instant::now() < at) {
                return None;
            }
            let (tell, answer) = channel();
            let (ask, wake) = (Arc::clone(ask), wake.clone());
            std::thread::spawn(move || {
                let _ = tell.send(ask());
                let _ = wake.send(());
            });
            self.answer = Some(answer);
            return None;
        };
        let result = match answer.try_recv() {
            Ok(result) => result,
            Err(TryRecvError::Empty) => return None,
            Err(TryRecvError::Disconnected) => Ok(true),
        };
        self.answer = None;
        match result {
            Ok(wanted) => Some(wanted),
            Err(error) if error.kind == Kind::Usage => Some(true),
            // 57P03: the server is starting up, shutting down or in recovery.
            Err(error)
                if error
                    .sqlstate
                    .as_deref()
                    .is_some_and(|state| state != "57P03") =>
            {
                Some(true)
            }
            Err(error) => {
                let pause = Duration::from_secs(60);
                if self.complained.is_none_or(|at| at.elapsed() > pause) {
                    self.complained = Some(Instant::now());
                    log.warn(&format!(
                        "the initial {noun} waits for the server: {}",
                        error.fact
                    ));
                }
                self.not_before = Some(Instant::now() + Duration::from_secs(2));
                None
            }
        }
    }
}
