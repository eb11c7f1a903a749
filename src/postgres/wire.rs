//! The codec of PostgreSQL's frontend/backend protocol 3.0: framing only, no I/O.
//!
//! Invariants: the buffer stays at its capacity while data rows of any size stream
//! through it; a message that must be seen whole (an error, a row of a query) may grow it
//! and it shrinks back once empty. A length that no server would send is an error, so that
//! a wrong peer (a web server, a desynchronised stream) never makes pgark allocate.
//!
//! Source: PostgreSQL manual, "Message Formats"; the limits are those of libpq's
//! `fe-protocol3.c`.

use crate::error::{Error, Result};

/// Bytes that one read may bring; large enough to make system calls cheap.
pub const CAPACITY_BYTES: usize = 256 * 1024;

/// Messages that may be long; every other kind above this length is a lost stream.
const LONG_KINDS: &[u8] = b"TDdVENAvW";
const SHORT_BYTES_MAX: usize = 30_000;

/// A message, or a piece of a streamed one, that lies in an [`Inbox`]. Valid until the
/// next call of [`Inbox::space`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The message's type byte.
    pub tag: u8,
    start: usize,
    end: usize,
    /// Whether the message ends with this piece.
    pub last: bool,
}

/// Received bytes and where the messages in them begin.
#[derive(Debug)]
pub struct Inbox {
    buffer: Vec<u8>,
    capacity: usize,
    start: usize,
    end: usize,
    /// Bytes of a streamed message that were not handed out yet.
    rest: usize,
    /// Total bytes of the message at `start`, when it is known to be incomplete.
    wanted: usize,
}

impl Default for Inbox {
    fn default() -> Self {
        Self::with_capacity(CAPACITY_BYTES)
    }
}

impl Inbox {
    /// An inbox that streams `CopyData` messages longer than a quarter of `capacity` bytes.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Inbox {
            buffer: vec![0; capacity],
            capacity,
            start: 0,
            end: 0,
            rest: 0,
            wanted: 0,
        }
    }

    /// Where the next received bytes go. Never empty.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            if self.buffer.len() > self.capacity && self.wanted == 0 {
                self.buffer.truncate(self.capacity);
                self.buffer.shrink_to_fit();
            }
        }
        // Moving the tail of one message to the front costs less than a short read.
        let missing = self.wanted.saturating_sub(self.end - self.start).max(1);
        let room = self.buffer.len() - self.end;
        if self.start > 0 && (room < missing || room < self.capacity / 2) {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.buffer.len() - self.end < missing {
            let size = (self.end + missing).max(self.buffer.len() + self.capacity);
            self.buffer.resize(size, 0);
        }
        &mut self.buffer[self.end..]
    }

    /// Notes that `count` bytes were written to [`Self::space`].
    pub fn filled(&mut self, count: usize) {
        self.end = (self.end + count).min(self.buffer.len());
    }

    /// Whether received bytes wait to be taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Takes the next message, or the next piece of a long `CopyData`; none when more bytes
    /// must be received first.
    ///
    /// # Errors
    /// `Failed` when the bytes are no PostgreSQL message.
    #[inline]
    pub fn take(&mut self) -> Result<Option<Span>> {
        let have = self.end - self.start;
        if self.rest > 0 {
            return Ok(self.take_rest(have));
        }
        let Some(header) = self.buffer.get(self.start..self.start + 5) else {
            return Ok(None);
        };
        if have < 5 {
            return Ok(None);
        }
        let tag = header[0];
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if !(4..=0x7fff_ffff).contains(&length)
            || (length > SHORT_BYTES_MAX && !LONG_KINDS.contains(&tag))
        {
            return Err(lost(tag, length));
        }
        let total = length + 1;
        let body = self.start + 5;
        if have >= total {
            self.start += total;
            self.wanted = 0;
            return Ok(Some(Span {
                tag,
                start: body,
                end: self.start,
                last: true,
            }));
        }
        if tag == b'd' && total > self.capacity / 4 {
            let span = Span {
                tag,
                start: body,
                end: self.end,
                last: false,
            };
            self.start = self.end;
            self.rest = total - have;
            self.wanted = 0;
            return Ok(Some(span));
        }
        self.wanted = total;
        Ok(None)
    }

    fn take_rest(&mut self, have: usize) -> Option<Span> {
        let count = have.min(self.rest);
        if count == 0 {
            return None;
        }
        let start = self.start;
        self.start += count;
        self.rest -= count;
        Some(Span {
            tag: b'd',
            start,
            end: self.start,
            last: self.rest == 0,
        })
    }

    /// The bytes of a span just taken.
    #[inline]
    #[must_use]
    pub fn body(&self, span: Span) -> &[u8] {
        &self.buffer[span.start..span.end]
    }
}

#[cold]
fn lost(tag: u8, length: usize) -> Error {
    Error::failed(format!(
        "what answered does not speak PostgreSQL's protocol (message {:?}, {length} bytes)",
        char::from(tag)
    ))
    .hint("check the port: is that a PostgreSQL server, and not its pooler's or a web port?")
}

/// Appends one message of type `tag` with the given body parts. A tag of 0 writes none
/// (startup packets have none).
///
/// # Errors
/// `Failed` when the message would be longer than the protocol allows (2 GiB).
pub fn put(out: &mut Vec<u8>, tag: u8, parts: &[&[u8]]) -> Result<()> {
    let body: usize = parts.iter().map(|part| part.len()).sum();
    let length = i32::try_from(body + 4).map_err(|_| {
        Error::failed(format!("a message of {body} bytes is too long to send"))
            .hint("the protocol's limit is 2 GiB")
    })?;
    if tag != 0 {
        out.push(tag);
    }
    out.extend_from_slice(&length.to_be_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
    Ok(())
}

/// Appends a simple query.
///
/// # Errors
/// `Failed` when the text holds a NUL byte or is too long.
pub fn put_query(out: &mut Vec<u8>, sql: &[u8]) -> Result<()> {
    if sql.contains(&0) {
        return Err(Error::failed("an SQL text holds a NUL byte"));
    }
    put(out, b'Q', &[sql, &[0]])
}

/// Appends the startup packet of protocol 3.0.
///
/// # Errors
/// `Usage` when a value holds a NUL byte.
pub fn put_startup(out: &mut Vec<u8>, parameters: &[(&str, &str)]) -> Result<()> {
    let mut body = 196_608_i32.to_be_bytes().to_vec();
    for (name, value) in parameters {
        for text in [name, value] {
            if text.contains('\0') {
                return Err(Error::usage(format!(
                    "the value of {name} holds a NUL byte"
                )));
            }
            body.extend_from_slice(text.as_bytes());
            body.push(0);
        }
    }
    body.push(0);
    put(out, 0, &[&body])
}

/// The packet that asks for TLS before anything else.
pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// The packet that asks the server to cancel what the given backend is doing.
#[must_use]
pub fn cancel_request(process: i32, secret: i32) -> [u8; 16] {
    let mut packet = [0; 16];
    packet[..4].copy_from_slice(&16_i32.to_be_bytes());
    packet[4..8].copy_from_slice(&80_877_102_i32.to_be_bytes());
    packet[8..12].copy_from_slice(&process.to_be_bytes());
    packet[12..].copy_from_slice(&secret.to_be_bytes());
    packet
}

/// Reads a message's body from front to back. Every read is bounds-checked; a short
/// message is an error, not a panic.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    /// The next `count` bytes.
    ///
    /// # Errors
    /// `Failed` when the message ends before.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8]> {
        let (head, tail) = self
            .0
            .split_at_checked(count)
            .ok_or_else(|| Error::failed("the server sent a message that ends too early"))?;
        self.0 = tail;
        Ok(head)
    }

    /// The next byte.
    ///
    /// # Errors
    /// `Failed` when the message ends before.
    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.bytes(1)?[0])
    }

    /// The next two bytes as a number.
    ///
    /// # Errors
    /// `Failed` when the message ends before.
    pub fn i16(&mut self) -> Result<i16> {
        let bytes = self.bytes(2)?;
        Ok(i16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// The next four bytes as a number.
    ///
    /// # Errors
    /// `Failed` when the message ends before.
    pub fn i32(&mut self) -> Result<i32> {
        let bytes = self.bytes(4)?;
        Ok(i32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// The text up to the next NUL byte, which is skipped.
    ///
    /// # Errors
    /// `Failed` when there is no NUL byte.
    pub fn text(&mut self) -> Result<&'a [u8]> {
        let length = self.0.iter().position(|&byte| byte == 0);
        let length =
            length.ok_or_else(|| Error::failed("the server sent a text without an end"))?;
        let text = self.bytes(length)?;
        self.bytes(1)?;
        Ok(text)
    }
}

/// The number of rows that a command tag ends with (`COPY 42`, `INSERT 0 3`); 0 without one.
#[must_use]
pub fn tag_rows(tag: &[u8]) -> u64 {
    std::str::from_utf8(tag)
        .ok()
        .and_then(|tag| tag.trim_end_matches('\0').rsplit(' ').next())
        .and_then(|count| count.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds `stream` in reads of the given sizes; gives back the messages put together.
    fn read_all(inbox: &mut Inbox, stream: &[u8], sizes: &[usize]) -> Vec<(u8, Vec<u8>)> {
        let mut messages: Vec<(u8, Vec<u8>)> = Vec::new();
        let mut open = false;
        let mut at = 0;
        let mut sizes = sizes.iter().cycle();
        while at < stream.len() {
            let space = inbox.space();
            let count = (*sizes.next().unwrap())
                .min(space.len())
                .min(stream.len() - at);
            space[..count].copy_from_slice(&stream[at..at + count]);
            inbox.filled(count);
            at += count;
            while let Some(span) = inbox.take().unwrap() {
                if !open {
                    messages.push((span.tag, Vec::new()));
                }
                messages
                    .last_mut()
                    .unwrap()
                    .1
                    .extend_from_slice(inbox.body(span));
                open = !span.last;
            }
        }
        assert!(!open && inbox.is_empty());
        messages
    }

    proptest! {
        #[test]
        fn messages_survive_any_cut(
            messages in prop::collection::vec((prop::sample::select(vec![b'd', b'D', b'N']), prop::collection::vec(any::<u8>(), 0..3000)), 1..20),
            sizes in prop::collection::vec(1_usize..2000, 1..10),
        ) {
            let mut stream = Vec::new();
            for (tag, body) in &messages {
                put(&mut stream, *tag, &[body]).unwrap();
            }
            let mut inbox = Inbox::with_capacity(1024);
            prop_assert_eq!(read_all(&mut inbox, &stream, &sizes), messages);
        }
    }

    #[test]
    fn long_copy_data_never_grows_the_buffer() {
        let mut stream = Vec::new();
        put(&mut stream, b'd', &[&vec![7; 100_000]]).unwrap();
        put(&mut stream, b'd', &[b"next"]).unwrap();
        let mut inbox = Inbox::with_capacity(1024);
        let messages = read_all(&mut inbox, &stream, &[777]);
        assert_eq!(messages[0].1.len(), 100_000);
        assert_eq!(messages[1].1, b"next");
        assert_eq!(inbox.buffer.len(), 1024);
    }

    #[test]
    fn a_web_server_is_refused_without_allocating() {
        let mut inbox = Inbox::with_capacity(1024);
        let answer = b"HTTP/1.1 400 Bad Request";
        inbox.space()[..answer.len()].copy_from_slice(answer);
        inbox.filled(answer.len());
        let error = inbox.take().unwrap_err();
        assert!(error.fact.contains("does not speak"), "{error}");
    }

    #[test]
    fn row_counts_come_from_the_command_tag() {
        assert_eq!(tag_rows(b"COPY 42\0"), 42);
        assert_eq!(tag_rows(b"INSERT 0 3\0"), 3);
        assert_eq!(tag_rows(b"SET\0"), 0);
    }
}
