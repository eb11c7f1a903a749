//! The token that ends work early: a signal, or a failure beside it.
//!
//! Invariant: cancelling only asks. Whoever holds the token checks it between steps that may
//! be left out; a commit step never checks it, so it is never dropped midway. A hook runs only
//! while its guard lives, so it never closes or kills what has already ended.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Kind, Result};

type Action = Box<dyn Fn() + Send>;

/// Cloned freely; all clones are one token.
#[derive(Clone, Default)]
pub struct Token(Arc<Inner>);

#[derive(Default)]
struct Inner {
    signal: AtomicU8,
    next: AtomicU64,
    hooks: Mutex<BTreeMap<u64, Action>>,
}

/// Keeps a hook in place.
#[must_use = "the hook is gone when its guard is dropped"]
pub struct Hook {
    token: Token,
    number: u64,
}

impl Drop for Hook {
    fn drop(&mut self) {
        self.token.hooks().remove(&self.number);
    }
}

impl Token {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn hooks(&self) -> MutexGuard<'_, BTreeMap<u64, Action>> {
        self.0.hooks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for the end because of signal `signal`; runs the hooks, which wake blocked calls.
    pub fn cancel(&self, signal: u8) {
        let hooks = self.hooks();
        self.0.signal.store(signal, Ordering::SeqCst);
        hooks.values().for_each(|action| action());
    }

    /// Runs `action` when the token is cancelled (at once, when it already is), as long as the
    /// guard lives. The action must not touch the token.
    pub fn on_cancel(&self, action: impl Fn() + Send + 'static) -> Hook {
        let mut hooks = self.hooks();
        if self.0.signal.load(Ordering::SeqCst) != 0 {
            action();
        }
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        hooks.insert(number, Box::new(action));
        Hook {
            token: self.clone(),
            number,
        }
    }

    /// Whether the end was asked for.
    ///
    /// # Errors
    /// The signal's own kind when it was.
    pub fn check(&self) -> Result<()> {
        match self.0.signal.load(Ordering::SeqCst) {
            0 => Ok(()),
            signal => Err(Error::new(Kind::Signal(signal), "interrupted")
                .hint("nothing half-made was kept; run it again")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_run_while_they_are_held_and_never_after() {
        let (token, count) = (Token::new(), Arc::new(AtomicU64::new(0)));
        let counter = || {
            let count = Arc::clone(&count);
            move || {
                count.fetch_add(1, Ordering::SeqCst);
            }
        };
        let held = token.on_cancel(counter());
        drop(token.on_cancel(counter()));
        assert!(token.check().is_ok());
        token.cancel(15);
        assert_eq!(count.load(Ordering::SeqCst), 1);
        let late = token.on_cancel(counter());
        assert_eq!(count.load(Ordering::SeqCst), 2);
        drop((held, late));
        assert_eq!(token.check().unwrap_err().kind.exit_code(), 143);
    }
}
