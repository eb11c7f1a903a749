//! Up to which moment of the server's clock nothing is missing, for each position. Pure.
//!
//! A message of WAL tells how far the server's WAL went *after* the message before it was sent. So
//! what had been committed by the time of the one before lies before that position.
//!
//! Invariant: a moment is never later than the truth. Few are kept, so it may be a little earlier.

use jiff::{SignedDuration, Timestamp};

use crate::units::Lsn;

/// Moments closer than that to the one before are left out.
const STEP: SignedDuration = SignedDuration::from_millis(500);
/// More are thinned out.
const MANY: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Moments {
    /// When the server sent its last message.
    heard: Option<Timestamp>,
    /// Rising in both.
    list: Vec<(Lsn, Timestamp)>,
}

impl Moments {
    /// A new connection: its first message tells nothing of those before.
    pub(super) fn restart(&mut self) {
        self.heard = None;
    }

    /// A message: the server's WAL went to `sent` when it was about to send it, at `time`.
    pub(super) fn hear(&mut self, sent: Lsn, time: Timestamp) {
        // The rest of a message that came in parts tells nothing new.
        let before = self.heard.replace(time).filter(|before| *before != time);
        let Some(before) = before else { return };
        match self.list.last_mut() {
            Some((lsn, at)) if *lsn == sent => *at = before.max(*at),
            Some((lsn, at)) if sent < *lsn || before.duration_since(*at) < STEP => {}
            _ => self.list.push((sent, before)),
        }
        if self.list.len() > MANY {
            let mut number = 0;
            self.list.retain(|_| {
                number += 1;
                number % 2 == 1 || number > MANY / 2
            });
        }
    }

    /// Up to when nothing is missing in what holds everything before `durable`.
    pub(super) fn at(&self, durable: Lsn) -> Option<Timestamp> {
        let known = self.list.partition_point(|(lsn, _)| *lsn <= durable);
        Some(self.list.get(known.checked_sub(1)?)?.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_moment_is_that_of_the_message_before_once_all_it_knew_is_durable() {
        let mut moments = Moments::default();
        moments.hear(Lsn(10), second(1));
        assert_eq!(moments.at(Lsn(99)), None);
        moments.hear(Lsn(30), second(5));
        moments.hear(Lsn(30), second(5));
        assert_eq!(moments.at(Lsn(29)), None);
        assert_eq!(moments.at(Lsn(30)), Some(second(1)));
        // Idle: the position stays, the moment moves.
        moments.hear(Lsn(30), second(9));
        assert_eq!(moments.at(Lsn(30)), Some(second(5)));
        moments.restart();
        moments.hear(Lsn(30), second(90));
        assert_eq!(moments.at(Lsn(40)), Some(second(5)));
        moments.hear(Lsn(50), second(91));
        assert_eq!(moments.at(Lsn(49)), Some(second(5)));
        assert_eq!(moments.at(Lsn(50)), Some(second(90)));
    }

    #[test]
    fn a_dead_store_costs_no_memory() {
        let mut moments = Moments::default();
        for at in 0..100_000_i64 {
            moments.hear(Lsn(at.unsigned_abs()), second(at));
        }
        assert!(moments.list.len() <= MANY);
        assert_eq!(moments.at(Lsn(99_999)), Some(second(99_998)));
        let early = moments.at(Lsn(50_000)).unwrap();
        assert!(early < second(50_000));
    }
}
