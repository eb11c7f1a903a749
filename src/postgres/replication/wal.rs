//! The messages inside a stream of WAL: WAL and keepalives from the server, our status. No I/O.
//!
//! Invariants: WAL comes without a gap from the position that was asked for, or the stream ends
//! with an error; a message may arrive in any pieces and means the same.

use jiff::Timestamp;

use crate::error::{Error, Result};
use crate::postgres::wire::Fields;
use crate::units::Lsn;

/// Microseconds from 1970 to 2000, where PostgreSQL's clock begins.
const EPOCH_MICROSECONDS: i64 = 946_684_800_000_000;
/// Type, start, end, time.
const WAL_HEADER_BYTES: usize = 25;
/// Type, end, time, whether to reply.
const KEEPALIVE_BYTES: usize = 18;

/// What a piece of the stream says. Bytes are given as the tail of the piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Message {
    /// The last `count` bytes of the piece are WAL from `start` on; `sent` is how far the
    /// server's WAL went before `time`, when it sent them.
    Wal {
        start: Lsn,
        count: usize,
        sent: Lsn,
        time: Timestamp,
    },
    /// How far the server has sent, when, and whether it wants an answer now.
    Keepalive {
        sent: Lsn,
        time: Timestamp,
        reply: bool,
    },
}

/// Takes a stream apart.
#[derive(Debug)]
pub(super) struct Decoder {
    /// Where the next byte of WAL belongs.
    next: Lsn,
    /// The server's end of WAL, by its last message.
    sent: Lsn,
    /// By the server's clock, when it sent that.
    time: Timestamp,
    header: [u8; WAL_HEADER_BYTES],
    /// Bytes of the header that came; all of them: WAL follows.
    have: usize,
}

impl Decoder {
    /// For a stream that begins at `start`.
    pub(super) fn new(start: Lsn) -> Decoder {
        Decoder {
            next: start,
            sent: start,
            time: Timestamp::UNIX_EPOCH,
            header: [0; WAL_HEADER_BYTES],
            have: 0,
        }
    }

    /// Where the next byte of WAL belongs.
    pub(super) fn next(&self) -> Lsn {
        self.next
    }

    /// Takes a `CopyData` message, or a piece of one; none when the piece alone says nothing.
    pub(super) fn piece(&mut self, body: &[u8], last: bool) -> Result<Option<Message>> {
        let started = self.have > 0;
        let kind = if started {
            self.header.first()
        } else {
            body.first()
        };
        let wanted = match kind {
            None => 1,
            Some(b'w') => WAL_HEADER_BYTES,
            Some(b'k') => KEEPALIVE_BYTES,
            Some(_) => return Err(broken("it holds a message of unknown kind")),
        };
        let lacks = wanted - self.have;
        let (head, rest) = body.split_at(lacks.min(body.len()));
        self.header[self.have..self.have + head.len()].copy_from_slice(head);
        self.have += head.len();
        let message = match (self.have == wanted, wanted) {
            (false, _) if last => return Err(broken("one of its messages ends too early")),
            (false, _) => None,
            (true, WAL_HEADER_BYTES) => self.wal(rest, lacks > 0)?,
            (true, _) if !rest.is_empty() => return Err(broken("a keepalive is too long")),
            (true, _) if lacks == 0 => None,
            (true, _) => Some(self.keepalive()?),
        };
        if last {
            self.have = 0;
        }
        Ok(message)
    }

    fn wal(&mut self, bytes: &[u8], begins: bool) -> Result<Option<Message>> {
        if begins {
            let mut fields = Fields(&self.header[1..]);
            let start = lsn(&mut fields)?;
            self.sent = lsn(&mut fields)?;
            self.time = time(&mut fields)?;
            if start != self.next {
                return Err(Error::damage(format!(
                    "the server sent WAL from {start} on where {} was next",
                    self.next
                ))
                .hint("nothing of it was kept; start the stream again"));
            }
        }
        let start = self.next;
        self.next = start.plus(bytes.len() as u64);
        Ok((!bytes.is_empty()).then_some(Message::Wal {
            start,
            count: bytes.len(),
            sent: self.sent,
            time: self.time,
        }))
    }

    fn keepalive(&mut self) -> Result<Message> {
        let mut fields = Fields(&self.header[1..KEEPALIVE_BYTES]);
        self.sent = lsn(&mut fields)?;
        self.time = time(&mut fields)?;
        Ok(Message::Keepalive {
            sent: self.sent,
            time: self.time,
            reply: fields.u8()? != 0,
        })
    }
}

fn broken(what: &str) -> Error {
    Error::failed(format!("the stream of WAL is broken: {what}"))
        .hint("start it again; see the server's log")
}

fn lsn(fields: &mut Fields) -> Result<Lsn> {
    let mut number = [0; 8];
    number.copy_from_slice(fields.bytes(8)?);
    Ok(Lsn(u64::from_be_bytes(number)))
}

/// A moment of the server's clock; one that no calendar has is the epoch.
fn time(fields: &mut Fields) -> Result<Timestamp> {
    let mut number = [0; 8];
    number.copy_from_slice(fields.bytes(8)?);
    let since_epoch = i64::from_be_bytes(number).saturating_add(EPOCH_MICROSECONDS);
    Ok(Timestamp::from_microsecond(since_epoch).unwrap_or(Timestamp::UNIX_EPOCH))
}

/// Our standby status update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Status {
    pub write: Lsn,
    pub flush: Lsn,
    /// Whether the server shall answer at once.
    pub reply: bool,
}

impl Status {
    /// The body of its `CopyData`. Nothing is ever applied here, as with pg_receivewal.
    pub(super) fn encode(self, now: Timestamp) -> [u8; 34] {
        let mut body = [0; 34];
        body[0] = b'r';
        let clock = now.as_microsecond().saturating_sub(EPOCH_MICROSECONDS);
        for (at, number) in [
            (1, self.write.0.to_be_bytes()),
            (9, self.flush.0.to_be_bytes()),
            (17, Lsn::INVALID.0.to_be_bytes()),
            (25, clock.to_be_bytes()),
        ] {
            body[at..at + 8].copy_from_slice(&number);
        }
        body[33] = u8::from(self.reply);
        body
    }
}

#[cfg(test)]
#[path = "wal_tests.rs"]
mod tests;
