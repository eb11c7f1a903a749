//! A bound on runs at once over all clusters: first come, first served.
//!
//! Invariants: no more than the limit hold a slot; who waits is served in the order of asking, and
//! hears when its turn may have come; a slot that is dropped is free. Lives in memory only.

use std::collections::VecDeque;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The slots of a service.
#[derive(Debug)]
pub struct Slots {
    limit: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held: usize,
    /// Who waits, by its own number, and how it is told.
    waiting: VecDeque<(usize, Sender<()>)>,
}

/// A slot that is held.
#[derive(Debug)]
pub struct Slot(Arc<Slots>);

impl Slots {
    /// Room for so many runs at once.
    #[must_use]
    pub fn new(limit: usize) -> Arc<Slots> {
        Arc::new(Slots {
            limit,
            state: Mutex::default(),
        })
    }

    /// A slot, if it is the turn of `who`; else it waits in line, and `wake` hears when to ask
    /// again. Asking again costs nothing.
    pub fn take(self: &Arc<Slots>, who: usize, wake: &Sender<()>) -> Option<Slot> {
        let mut state = self.lock();
        let free = self.limit.saturating_sub(state.held);
        let place = state.waiting.iter().position(|(one, _)| *one == who);
        let before = place.unwrap_or(state.waiting.len());
        if before < free {
            if let Some(place) = place {
                state.waiting.remove(place);
            }
            state.held += 1;
            return Some(Slot(Arc::clone(self)));
        }
        if place.is_none() {
            state.waiting.push_back((who, wake.clone()));
        }
        None
    }

    /// Leaves the line.
    pub fn leave(&self, who: usize) {
        let mut state = self.lock();
        state.waiting.retain(|(one, _)| *one != who);
        tell(&state);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tell(state: &State) {
    for (_, wake) in &state.waiting {
        // One that is gone waits no more.
        let _ = wake.send(());
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.held -= 1;
        tell(&state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn never_more_than_the_limit_and_in_the_order_of_asking() {
        let slots = Slots::new(2);
        let (wake, woken) = channel();
        let first = slots.take(1, &wake).unwrap();
        let second = slots.take(2, &wake).unwrap();
        assert!(slots.take(3, &wake).is_none());
        assert!(slots.take(4, &wake).is_none() && slots.take(3, &wake).is_none());
        assert!(woken.try_recv().is_err());
        drop(first);
        assert!(woken.try_recv().is_ok(), "who waits is told");
        assert!(slots.take(4, &wake).is_none(), "3 asked before");
        let third = slots.take(3, &wake).unwrap();
        drop((second, third));
        assert!(slots.take(5, &wake).is_some(), "one for 4, one for 5");
        slots.leave(4);
        let all = [slots.take(6, &wake), slots.take(7, &wake)];
        assert!(all.iter().all(Option::is_some));
        assert!(slots.take(8, &wake).is_none());
    }
}
