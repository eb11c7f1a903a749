//! Does the server answer? An initial backup waits for that.
//!
//! Invariant: the asking is on a thread of its own, and never more than one; a signal does not
//! wait for it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

use super::Supervisor;
use crate::error::{Kind, Result};

/// Does the server answer?
#[derive(Default)]
pub(super) struct Question {
    answer: Option<Receiver<Result<()>>>,
    complained: Option<Instant>,
    not_before: Option<Instant>,
}

impl Question {
    /// Whether the server answers, asked on a thread of its own: a host that swallows packets must
    /// not hold up a signal. What no waiting mends (a wrong password) counts as an answer: the run
    /// will say it.
    pub(super) fn is_answered(&mut self, supervisor: &Supervisor, wake: &Sender<()>) -> bool {
        let Some(answer) = &self.answer else {
            if self.not_before.is_some_and(|at| Instant::now() < at) {
                return false;
            }
            let (tell, answer) = channel();
            let (ask, wake) = (Arc::clone(&supervisor.server_answers), wake.clone());
            std::thread::spawn(move || {
                let _ = tell.send(ask());
                let _ = wake.send(());
            });
            self.answer = Some(answer);
            return false;
        };
        let result = match answer.try_recv() {
            Ok(result) => result,
            Err(TryRecvError::Empty) => return false,
            Err(TryRecvError::Disconnected) => return true,
        };
        self.answer = None;
        match result {
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
                let pause = Duration::from_secs(60);
                if self.complained.is_none_or(|at| at.elapsed() > pause) {
                    self.complained = Some(Instant::now());
                    supervisor.log.warn(&format!(
                        "the initial backup waits for the server: {}",
                        error.fact
                    ));
                }
                self.not_before = Some(Instant::now() + Duration::from_secs(2));
                false
            }
        }
    }
}
