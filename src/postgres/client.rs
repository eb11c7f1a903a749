//! The SQL client: simple queries, COPY out and in, cancelling.
//!
//! Invariants: results are bytes in whatever encoding the session has (callers set it);
//! COPY OUT allocates nothing per row and never holds more than its buffer, however long a
//! row is; an unfinished COPY IN is aborted on the server; after an error of a sink or of the
//! server the session is idle again, or marked broken and unusable. Dropping a client ends
//! its session; a crash leaves the server to notice the closed socket and roll back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;

pub use super::cancel::Canceller;
use super::connect;
use super::link::Link;
pub use super::row::Row;
use super::stream::Stream;
pub use super::target::Target;
use super::wire::{self, Inbox, Span, put};
use crate::error::{Error, Result};

/// How long a cancelled query may take to end before the connection is given up.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(15);
/// COPY IN is sent in messages of this size; between them the server's answer is looked for.
const COPY_IN_BYTES: usize = 128 * 1024;

/// Timeouts of a role or a database are made for applications: a lock held for hours, a COPY
/// of hours and `CREATE DATABASE` are none. The last two exist on newer servers only.
const NO_TIMEOUTS: &str = "SET statement_timeout = 0; SET lock_timeout = 0; \
    SET idle_in_transaction_session_timeout = 0; \
    SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings \
    WHERE name IN ('transaction_timeout', 'idle_session_timeout')";

/// One session. Blocking; may move between threads.
pub struct Client {
    pub(super) link: Link,
    target: Target,
    tls: Option<Arc<ClientConfig>>,
    pid: i32,
    secret: i32,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Client({}, backend {})",
            self.target.describe(),
            self.pid
        )
    }
}

impl Client {
    /// Connects to the first host and address of `target` that serves. No timeout that is set
    /// for the role or the database ends the session or one of its statements.
    ///
    /// # Errors
    /// With a hint for a person: host down, wrong password, no such database, …
    pub fn connect(target: &Target) -> Result<Client> {
        let mut client = Self::open(target)?;
        client.execute(NO_TIMEOUTS)?;
        Ok(client)
    }

    /// The session as the server begins it: one for replication knows no `SET`.
    pub(super) fn open(target: &Target) -> Result<Client> {
        let session = connect::connect(target)?;
        let mut link = session.link;
        link.whom = session.target.describe();
        Ok(Client {
            link,
            target: session.target,
            tls: session.tls,
            pid: session.pid,
            secret: session.secret,
        })
    }

    /// The target with exactly the host, address and port that this session uses.
    #[must_use]
    pub fn pinned(&self) -> Target {
        self.target.clone()
    }

    /// Runs SQL by the simple protocol; gives the rows of the last statement that has a
    /// result set, in text form.
    ///
    /// # Errors
    /// The server's error, or a lost connection.
    pub fn query(&mut self, sql: impl AsRef<[u8]>) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        self.run(sql.as_ref(), &mut |span, inbox| {
            match span.tag {
                b'T' => rows.clear(),
                b'D' => rows.push(Row::parse(inbox.body(span))?),
                _ => {}
            }
            Ok(())
        })?;
        Ok(rows)
    }

    /// Runs one or more statements and ignores their results.
    ///
    /// # Errors
    /// The server's error, or a lost connection.
    pub fn execute(&mut self, sql: impl AsRef<[u8]>) -> Result<()> {
        self.run(sql.as_ref(), &mut |_, _| Ok(())).map(drop)
    }

    /// Runs `COPY … TO STDOUT`. `sink` gets each row (or a piece of it) as it lies in the
    /// receive buffer, and whether the row ends with it. Gives the number of rows.
    ///
    /// # Errors
    /// The server's error, or the sink's: then the query is cancelled and its rest discarded.
    pub fn copy_out(
        &mut self,
        sql: impl AsRef<[u8]>,
        sink: &mut dyn FnMut(&[u8], bool) -> Result<()>,
    ) -> Result<u64> {
        let mut copying = false;
        let rows = self.run(sql.as_ref(), &mut |span, inbox| match span.tag {
            b'd' => sink(inbox.body(span), span.last),
            b'H' => {
                copying = true;
                Ok(())
            }
            _ => Ok(()),
        })?;
        if copying {
            Ok(rows)
        } else {
            Err(Error::failed("the statement is no COPY … TO STDOUT"))
        }
    }

    /// Starts `COPY … FROM STDIN`.
    ///
    /// # Errors
    /// The server's error, or a statement that takes no data.
    pub fn copy_in(&mut self, sql: impl AsRef<[u8]>) -> Result<CopyIn<'_>> {
        self.send_query(sql.as_ref())?;
        let mut failure = None;
        loop {
            let span = self.link.receive()?;
            match span.tag {
                b'G' => break,
                b'E' => failure = Some(self.server_error(span)?),
                b'Z' => {
                    let wrong = || Error::failed("the statement is no COPY … FROM STDIN");
                    return Err(failure.unwrap_or_else(wrong));
                }
                _ => {}
            }
        }
        let mut out = Vec::with_capacity(COPY_IN_BYTES + 5);
        out.extend_from_slice(&[b'd', 0, 0, 0, 0]);
        Ok(CopyIn {
            client: self,
            out,
            open: true,
        })
    }

    /// The server's version as a number: 150013, 170006; a pre-release counts as its `.0`.
    #[must_use]
    pub fn server_version_num(&self) -> u32 {
        version_num(self.parameter("server_version").unwrap_or_default())
    }

    /// A parameter that the server reports by itself (`server_encoding`, `TimeZone`, …).
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.link.parameters.get(name).map(String::as_str)
    }

    /// The notices and warnings since the last call.
    pub fn take_notices(&mut self) -> Vec<String> {
        self.link.take_notices()
    }

    /// A handle to stop this session from another thread.
    #[must_use]
    pub fn canceller(&self) -> Canceller {
        Canceller {
            target: self.target.clone(),
            tls: self.tls.clone(),
            pid: self.pid,
            secret: self.secret,
            socket: self.link.stream.socket.clone(),
            closed: self.link.closed.clone(),
        }
    }

    /// The process that serves this session, as in `pg_stat_activity`.
    #[must_use]
    pub fn backend_pid(&self) -> i32 {
        self.pid
    }

    /// Whether the session was lost; every further call would fail.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.link.is_broken()
    }

    /// Whether the session is encrypted.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.tls.is_some()
    }

    pub(super) fn send_query(&mut self, sql: &[u8]) -> Result<()> {
        let mut packet = Vec::with_capacity(sql.len() + 6);
        wire::put_query(&mut packet, sql)?;
        self.link.send(&packet)
    }

    /// The server's error; as `Err` when it ended the session with it.
    pub(super) fn server_error(&mut self, span: Span) -> Result<Error> {
        let error = self.link.server_error(span);
        if self.link.is_broken() {
            Err(error)
        } else {
            Ok(error)
        }
    }

    /// Runs a simple query until the server is ready again; gives the last command's rows.
    /// When `on` fails, the query is cancelled and what still comes is discarded.
    fn run(&mut self, sql: &[u8], on: &mut dyn FnMut(Span, &Inbox) -> Result<()>) -> Result<u64> {
        self.send_query(sql)?;
        let mut rows = 0;
        let mut failure = None;
        loop {
            let span = self.link.receive()?;
            match span.tag {
                b'd' | b'D' | b'T' | b'H' => {
                    if let Err(error) = on(span, &self.link.inbox) {
                        self.stop(&error);
                        return Err(error);
                    }
                }
                b'C' => rows = wire::tag_rows(self.link.inbox.body(span)),
                b'E' => failure = Some(self.server_error(span)?),
                b'Z' => return failure.map_or(Ok(rows), Err),
                b'G' => {
                    let mut packet = Vec::new();
                    put(&mut packet, b'f', &[b"no data is sent to this statement\0"])?;
                    self.link.send(&packet)?;
                }
                b'W' => {
                    self.link
                        .set_broken("a replication stream began in a plain query");
                    return Err(Error::failed("the statement started a replication stream"));
                }
                _ => {}
            }
        }
    }

    /// Cancels what runs and discards its rest; a session that does not end in time is lost.
    pub(super) fn stop(&mut self, why: &Error) {
        self.canceller().cancel();
        self.drain(&why.fact);
    }

    fn drain(&mut self, why: &str) {
        self.link.stream.deadline = Some(Instant::now() + DRAIN_TIMEOUT);
        loop {
            match self.link.receive() {
                Ok(span) if span.tag == b'Z' => break,
                Ok(span) if span.tag == b'E' => {
                    self.link.server_error(span);
                }
                Ok(_) => {}
                Err(_) => {
                    self.link.set_broken(why);
                    Stream::close(&self.link.stream.socket);
                    return;
                }
            }
        }
        self.link.stream.deadline = None;
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if !self.link.is_broken() {
            // A server that does not take five bytes shall not hold us up.
            let _ = self.link.stream.write(&[b'X', 0, 0, 0, 4]);
            let _ = self.link.stream.flush();
        }
        Stream::close(&self.link.stream.socket);
    }
}

/// A running `COPY … FROM STDIN`. Dropped unfinished, it is aborted on the server.
pub struct CopyIn<'a> {
    client: &'a mut Client,
    /// The message being filled: its header, then data.
    out: Vec<u8>,
    open: bool,
}

impl CopyIn<'_> {
    /// Sends data; borders of rows do not matter.
    ///
    /// # Errors
    /// The server's error as soon as it is noticed; the COPY is over then.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let room = COPY_IN_BYTES + 5 - self.out.len();
            let (head, tail) = bytes.split_at(bytes.len().min(room));
            self.out.extend_from_slice(head);
            bytes = tail;
            if self.out.len() == COPY_IN_BYTES + 5 {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Ends the data and waits for the server's word. Gives the number of rows.
    ///
    /// # Errors
    /// The server's error; nothing was loaded then.
    pub fn finish(mut self) -> Result<u64> {
        self.flush()?;
        self.open = false;
        self.client.link.send(&[b'c', 0, 0, 0, 4])?;
        let mut rows = 0;
        let mut failure = None;
        loop {
            let span = self.client.link.receive()?;
            match span.tag {
                b'C' => rows = wire::tag_rows(self.client.link.inbox.body(span)),
                b'E' => failure = Some(self.client.server_error(span)?),
                b'Z' => return failure.map_or(Ok(rows), Err),
                _ => {}
            }
        }
    }

    fn flush(&mut self) -> Result<()> {
        if !self.open {
            return Err(Error::failed("this COPY has failed already"));
        }
        if self.out.len() > 5 {
            let length = u32::try_from(self.out.len() - 1).unwrap_or(u32::MAX);
            self.out[1..5].copy_from_slice(&length.to_be_bytes());
            let sent = self.client.link.send(&self.out);
            self.out.truncate(5);
            if let Err(error) = sent {
                self.open = false;
                return Err(error);
            }
        }
        // The server says nothing while all is well; what is there now is bad news.
        while let Some(span) = self.client.link.receive_now()? {
            if span.tag == b'E' {
                self.open = false;
                let error = self.client.server_error(span)?;
                // It drops what we still send and is ready by itself.
                self.client.drain(&error.fact);
                return Err(error);
            }
        }
        Ok(())
    }
}

impl Drop for CopyIn<'_> {
    fn drop(&mut self) {
        if !self.open || self.client.link.is_broken() {
            return;
        }
        let mut packet = Vec::new();
        self.client.link.stream.deadline = Some(Instant::now() + DRAIN_TIMEOUT);
        let told = put(&mut packet, b'f', &[b"pgark stopped\0"])
            .and_then(|()| self.client.link.send(&packet));
        if told.is_ok() {
            self.client.drain("a COPY was abandoned");
        }
    }
}

/// `15.13 (Debian …)` → 150013; `19beta1` → 190000; `9.6.24` → 90624; anything else → 0.
fn version_num(text: &str) -> u32 {
    let digits: String = text
        .chars()
        .take_while(|c| c.is_ascii_digit() || *c == '.')
        .collect();
    let mut parts = digits
        .split('.')
        .map(|part| part.parse::<u32>().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    match next() {
        major @ 10.. => major * 10_000 + next(),
        major => major * 10_000 + next() * 100 + next(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers_as_in_server_version_num() {
        assert_eq!(version_num("15.13 (Debian 15.13-0+deb12u1)"), 150_013);
        assert_eq!(version_num("17.6"), 170_006);
        assert_eq!(version_num("19devel"), 190_000);
        assert_eq!(version_num("19beta1"), 190_000);
        assert_eq!(version_num("9.6.24"), 90_624);
        assert_eq!(version_num(""), 0);
    }
}
