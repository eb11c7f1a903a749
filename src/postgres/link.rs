//! One connection's messages: the stream and the codec put together.
//!
//! Invariants: notices, parameter changes and notifications never reach the caller as
//! messages; a connection whose stream failed is *broken* and says so at every later use;
//! sending never deadlocks against a server that is sending too. Used by the SQL client and
//! by replication.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::explain::Report;
use super::stream::{Got, Stream};
use super::wire::{Fields, Inbox, Span};
use crate::error::{Error, Result};

/// Notices kept until somebody takes them; a trigger may raise one for every row.
const NOTICES_MAX: usize = 1_000;

pub(crate) struct Link {
    pub(super) stream: Stream,
    pub(super) inbox: Inbox,
    pub(super) parameters: BTreeMap<String, String>,
    notices: Vec<String>,
    notices_lost: u64,
    /// Why the connection cannot be used any more.
    broken: Option<String>,
    /// Set when [`super::Canceller::close`] shut the socket on purpose.
    pub(super) closed: Arc<AtomicBool>,
    /// Whom we talk to, for messages.
    pub(super) whom: String,
}

impl Link {
    pub(super) fn new(stream: Stream, whom: String) -> Link {
        Link {
            stream,
            inbox: Inbox::default(),
            parameters: BTreeMap::new(),
            notices: Vec::new(),
            notices_lost: 0,
            broken: None,
            closed: Arc::default(),
            whom,
        }
    }

    /// The notices since the last call, oldest first.
    pub(super) fn take_notices(&mut self) -> Vec<String> {
        let mut notices = std::mem::take(&mut self.notices);
        if self.notices_lost > 0 {
            notices.push(format!("({} more notices)", self.notices_lost));
            self.notices_lost = 0;
        }
        notices
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    pub(super) fn set_broken(&mut self, why: &str) {
        if self.broken.is_none() {
            self.broken = Some(why.to_owned());
        }
    }

    fn usable(&self) -> Result<()> {
        match &self.broken {
            None => Ok(()),
            Some(why) => Err(Error::failed(format!(
                "the connection to {} is not usable any more: {why}",
                self.whom
            ))),
        }
    }

    /// The next message that is the caller's business; waits for it.
    #[inline]
    pub(super) fn receive(&mut self) -> Result<Span> {
        loop {
            match self.inbox.take() {
                Ok(Some(span)) if matches!(span.tag, b'd' | b'D') => return Ok(span),
                Ok(Some(span)) => {
                    if !self.absorb(span)? {
                        return Ok(span);
                    }
                }
                Ok(None) => {
                    self.fill(true)?;
                }
                Err(error) => {
                    self.set_broken(&error.fact);
                    return Err(error);
                }
            }
        }
    }

    /// The next message if it is here already.
    pub(super) fn receive_now(&mut self) -> Result<Option<Span>> {
        loop {
            match self.inbox.take()? {
                Some(span) if !self.absorb(span)? => return Ok(Some(span)),
                Some(_) => {}
                None => {
                    if !self.fill(false)? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// The next message if it comes until then.
    pub(super) fn receive_until(&mut self, until: Instant) -> Result<Option<Span>> {
        loop {
            if let Some(span) = self.receive_now()? {
                return Ok(Some(span));
            }
            match self.stream.wait_for_bytes(until) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(error) => return Err(self.lost(&error)),
            }
        }
    }

    /// Reads from the stream into the inbox; false when nothing came.
    fn fill(&mut self, wait: bool) -> Result<bool> {
        self.usable()?;
        match self.stream.read(self.inbox.space(), wait) {
            Ok(Got::Bytes(count)) => {
                self.inbox.filled(count);
                Ok(true)
            }
            Ok(Got::Nothing) => Ok(false),
            Ok(Got::End) => Err(self.lost(&io::ErrorKind::UnexpectedEof.into())),
            Err(error) => Err(self.lost(&error)),
        }
    }

    /// Takes note of what a server may send at any time; false when it is something else.
    fn absorb(&mut self, span: Span) -> Result<bool> {
        let body = self.inbox.body(span);
        match span.tag {
            b'N' => {
                if self.notices.len() < NOTICES_MAX {
                    self.notices.push(Report::parse(body).line());
                } else {
                    self.notices_lost += 1;
                }
            }
            b'S' => {
                let mut fields = Fields(body);
                let name = String::from_utf8_lossy(fields.text()?).into_owned();
                let value = String::from_utf8_lossy(fields.text()?).into_owned();
                self.parameters.insert(name, value);
            }
            b'A' => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Turns an `ErrorResponse` into an error; a fatal one breaks the connection.
    pub(super) fn server_error(&mut self, span: Span) -> Error {
        let report = Report::parse(self.inbox.body(span));
        if report.is_fatal() {
            self.set_broken(&report.line());
        }
        report.error()
    }

    /// Sends all of `bytes`. While the socket is full, what arrives is received, so that
    /// neither side waits for the other forever.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        match self.put(bytes)? {
            None => Ok(()),
            Some(error) => Err(self.write_failed(&error)),
        }
    }

    /// The same to one who may have hung up already: what he said before that is still received, and then how
    /// it ended.
    pub(super) fn send_unless_over(&mut self, bytes: &[u8]) -> Result<()> {
        self.put(bytes).map(drop)
    }

    /// Sends all of `bytes`, or gives the failure of the socket.
    fn put(&mut self, bytes: &[u8]) -> Result<Option<io::Error>> {
        self.usable()?;
        let mut bytes = bytes;
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(0) => self.make_room()?,
                Ok(count) => bytes = &bytes[count..],
                Err(error) => return Ok(Some(error)),
            }
        }
        loop {
            match self.stream.flush() {
                Ok(true) => return Ok(None),
                Ok(false) => self.make_room()?,
                Err(error) => return Ok(Some(error)),
            }
        }
    }

    fn make_room(&mut self) -> Result<()> {
        match self.stream.wait_for_room() {
            Ok(true) => self.fill(false).map(drop),
            Ok(false) => Ok(()),
            Err(error) => Err(self.lost(&error)),
        }
    }

    /// A write failed because the server hung up; what it said before explains it.
    fn write_failed(&mut self, error: &io::Error) -> Error {
        if error.kind() == io::ErrorKind::TimedOut {
            return self.lost(error);
        }
        self.stream.deadline = Some(Instant::now() + Duration::from_secs(1));
        loop {
            match self.receive() {
                Ok(span) if span.tag == b'E' => {
                    let error = self.server_error(span);
                    if self.is_broken() {
                        return error;
                    }
                }
                Ok(_) => {}
                // Its end, or the TLS alert that says why.
                Err(last) => return last,
            }
        }
    }

    /// Marks the connection broken and says how it ended.
    fn lost(&mut self, error: &io::Error) -> Error {
        let (what, hint) = match error.kind() {
            _ if self.closed.load(Ordering::Relaxed) => {
                ("pgark closed it".to_owned(), "the run was stopped")
            }
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe => (
                "the server closed the connection".to_owned(),
                "the server process ended (crash, kill, restart) or a proxy cut the connection; see the server's log",
            ),
            io::ErrorKind::TimedOut => (
                "the server does not answer any more".to_owned(),
                "check the host and the network between",
            ),
            _ => (error.to_string(), "check the network and the server's log"),
        };
        self.set_broken(&what);
        Error::failed(format!("the connection to {} was lost: {what}", self.whom)).hint(hint)
    }
}
