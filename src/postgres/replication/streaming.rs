//! START_REPLICATION: WAL as the server writes it.
//!
//! Invariants: WAL is handed out without a gap from the position that was asked for; only what
//! the caller confirmed is ever reported as flushed, and a report never goes back; a server
//! that is silent for [`SILENCE_MAX`] although it was asked is given up. A request for an answer
//! is answered at once, with what was confirmed last: a server that shuts down waits for it.
//!
//! Dropped in the middle, the connection is of no more use; [`Streaming::stop`] ends in peace.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::client::Replication;
use super::command::{self, SlotName};
use super::wal::{Decoder, Message, Status};
use crate::clock;
use crate::error::{Error, Result};
use crate::postgres::client::{Client, Row};
use crate::postgres::wire::{Span, put};
use crate::units::{Lsn, Timeline};

/// A server that says nothing for so long is lost; it is asked at half that time.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long the end of a stream may take.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// Where a timeline ends and the next one goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch {
    pub timeline: Timeline,
    /// The first position on it.
    pub at: Lsn,
}

/// What [`Streaming::receive`] brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received<'a> {
    /// Bytes of WAL that begin at `start`. `sent` is how far the server's WAL went before `time`,
    /// the moment of its clock at which it sent them.
    Wal {
        start: Lsn,
        bytes: &'a [u8],
        sent: Lsn,
        time: Timestamp,
    },
    /// The server has sent its WAL up to `sent`. `asked`: it waits for an answer (which it got), as
    /// it does when it stops, until all of that is confirmed.
    Keepalive {
        sent: Lsn,
        time: Timestamp,
        asked: bool,
    },
    /// Nothing came in that time.
    Nothing,
    /// The stream is over: the timeline has ended (then where it goes on), or without a switch
    /// the server is shutting down and closes the connection.
    End(Option<Switch>),
}

/// A stream of WAL.
pub struct Streaming<'a> {
    client: &'a mut Client,
    decoder: Decoder,
    status: Status,
    heard: Instant,
    asked: bool,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    /// Over, with the switch that ended it.
    Over(Option<Switch>),
}

impl Replication {
    /// Starts to stream from `from` on. With a slot, the server keeps what is not yet confirmed.
    ///
    /// # Errors
    /// The server's error: 58P01 when that WAL is removed already, 55006 when the slot is in
    /// use; also when the position lies ahead of the server's WAL or not on that timeline.
    pub fn stream(
        &mut self,
        slot: Option<&SlotName>,
        from: Lsn,
        timeline: Timeline,
    ) -> Result<Streaming<'_>> {
        let client = self.client();
        client.send_query(command::start(slot, from, timeline).as_bytes())?;
        let mut streaming = Streaming {
            client,
            decoder: Decoder::new(from),
            status: Status {
                write: from,
                flush: Lsn::INVALID,
                reply: false,
            },
            heard: Instant::now(),
            asked: false,
            phase: Phase::Running,
        };
        let span = streaming.client.link.receive()?;
        match span.tag {
            b'W' => {}
            // Started exactly where the timeline ends: there is nothing to copy.
            b'T' => {
                let switch = streaming.last_words(None)?;
                streaming.phase = Phase::Over(switch);
            }
            b'E' => {
                let error = streaming.client.server_error(span)?;
                let _ = streaming.last_words(None);
                streaming.phase = Phase::Over(None);
                return Err(error);
            }
            tag => return Err(streaming.surprise(tag)),
        }
        Ok(streaming)
    }
}

impl Streaming<'_> {
    /// Where the next byte of WAL belongs.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.decoder.next()
    }

    /// What comes next; waits at most so long for it. After `End` nothing comes any more.
    ///
    /// # Errors
    /// A lost connection, the server's error, WAL that does not follow: the stream is over.
    pub fn receive(&mut self, wait: Duration) -> Result<Received<'_>> {
        let until = Instant::now() + wait;
        loop {
            if let Phase::Over(switch) = self.phase {
                return Ok(Received::End(switch));
            }
            let ask = self.heard
                + if self.asked {
                    SILENCE_MAX
                } else {
                    SILENCE_MAX / 2
                };
            let Some(span) = self.client.link.receive_until(until.min(ask))? else {
                self.mind_silence()?;
                if Instant::now() >= until {
                    return Ok(Received::Nothing);
                }
                continue;
            };
            self.heard = Instant::now();
            self.asked = false;
            match span.tag {
                b'd' => {
                    let body = self.client.link.inbox.body(span);
                    let message = match self.decoder.piece(body, span.last) {
                        Ok(message) => message,
                        Err(error) => return Err(self.give_up(error)),
                    };
                    let Some(message) = message else { continue };
                    if let Message::Keepalive { reply: true, .. } = message {
                        self.report(false)?;
                    }
                    return Ok(self.received(span, message));
                }
                b'c' => {
                    self.client.link.send(&[b'c', 0, 0, 0, 4])?;
                    let switch = self.last_words(None)?;
                    self.phase = Phase::Over(switch);
                }
                // The word of a server that shuts down.
                b'C' => self.phase = Phase::Over(None),
                b'E' => return Err(self.failed(span)),
                tag => return Err(self.surprise(tag)),
            }
        }
    }

    fn received(&self, span: Span, message: Message) -> Received<'_> {
        match message {
            Message::Wal {
                start,
                count,
                sent,
                time,
            } => {
                let body = self.client.link.inbox.body(span);
                Received::Wal {
                    start,
                    bytes: &body[body.len() - count..],
                    sent,
                    time,
                }
            }
            Message::Keepalive { sent, time, reply } => Received::Keepalive {
                sent,
                time,
                asked: reply,
            },
        }
    }

    /// Reports how far WAL was received (`write`) and is durable (`flush`).
    ///
    /// # Errors
    /// A lost connection.
    pub fn confirm(&mut self, write: Lsn, flush: Lsn) -> Result<()> {
        self.status.write = self.status.write.max(write);
        self.status.flush = self.status.flush.max(flush);
        self.report(false)
    }

    /// Asks the server how far its WAL goes now: a keepalive follows.
    ///
    /// # Errors
    /// A lost connection.
    pub fn ask(&mut self) -> Result<()> {
        self.report(true)
    }

    /// Ends the stream in peace; the connection can be used again.
    ///
    /// # Errors
    /// A server that does not end it in time, or a lost connection.
    pub fn stop(mut self) -> Result<()> {
        if self.phase == Phase::Running {
            self.client.link.send(&[b'c', 0, 0, 0, 4])?;
            let switch = self.last_words(Some(Instant::now() + STOP_TIMEOUT))?;
            self.phase = Phase::Over(switch);
        }
        Ok(())
    }

    fn report(&mut self, reply: bool) -> Result<()> {
        if self.phase != Phase::Running {
            return Ok(());
        }
        let body = Status {
            reply,
            ..self.status
        };
        let mut packet = Vec::with_capacity(40);
        put(&mut packet, b'd', &[&body.encode(clock::precise())])?;
        // A server that shuts down says so, and hears nothing more.
        self.client.link.send_unless_over(&packet)
    }

    /// Asks a silent server whether it is there; gives it up when it was asked before.
    fn mind_silence(&mut self) -> Result<()> {
        let silent = self.heard.elapsed();
        if !self.asked && silent >= SILENCE_MAX / 2 {
            self.asked = true;
            return self.report(true);
        }
        if silent < SILENCE_MAX {
            return Ok(());
        }
        let error = Error::failed(format!(
            "the server has said nothing for {} s",
            silent.as_secs()
        ))
        .hint("check the host and the network between");
        Err(self.give_up(error))
    }

    /// Reads to the end of the command. The next timeline, if that is why the stream ended.
    fn last_words(&mut self, deadline: Option<Instant>) -> Result<Option<Switch>> {
        let deadline = deadline.unwrap_or_else(|| Instant::now() + STOP_TIMEOUT);
        let mut switch = None;
        let mut failure = None;
        loop {
            let Some(span) = self.client.link.receive_until(deadline)? else {
                let error = Error::failed("the server does not end the stream of WAL");
                return Err(self.give_up(error));
            };
            match span.tag {
                b'D' => {
                    let row = Row::parse(self.client.link.inbox.body(span))?;
                    switch = Some(Switch {
                        timeline: row.get(0)?,
                        at: row.get(1)?,
                    });
                }
                b'E' => failure = Some(self.client.server_error(span)?),
                b'Z' => return failure.map_or(Ok(switch), Err),
                // WAL that was on its way, the ends of COPY and of the command.
                _ => {}
            }
        }
    }

    /// The server's error ends the stream; afterwards it is ready for the next command.
    fn failed(&mut self, span: Span) -> Error {
        match self.client.server_error(span) {
            Ok(error) => {
                // What still comes says nothing new; a connection that breaks now says so later.
                let _ = self.last_words(None);
                self.phase = Phase::Over(None);
                error
            }
            Err(error) => error,
        }
    }

    fn surprise(&mut self, tag: u8) -> Error {
        let error = Error::failed(format!(
            "the server's stream of WAL surprises: message {:?}",
            char::from(tag)
        ));
        self.give_up(error)
    }

    fn give_up(&mut self, error: Error) -> Error {
        self.client.link.set_broken(&error.fact);
        error
    }
}

impl Drop for Streaming<'_> {
    fn drop(&mut self) {
        if self.phase == Phase::Running {
            self.client
                .link
                .set_broken("its stream of WAL was abandoned");
        }
    }
}
