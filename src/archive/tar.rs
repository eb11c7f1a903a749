//! Tar streams in frames: a base backup's archives, taken apart and put together. No I/O.
//!
//! A frame is [`FRAME_BYTES`] of the stream wherever the files begin and end; its meaning names
//! the files whose headers begin in it, so that one file is found without reading the rest.
//!
//! Invariants: what the parser accepts is a whole stream of ustar headers with right checksums,
//! ended by two empty blocks; anything else is an error, never a panic. What PostgreSQL writes
//! needs no extension of the format (`tarCreateHeader` in `port/tar.c`).

use serde::{Deserialize, Serialize};

use super::FrameSender;
use crate::error::{Error, Result};

/// Raw bytes of a frame. As with dumps: some dozen of them in memory stay far below the budget.
pub const FRAME_BYTES: usize = 2 << 20;
const BLOCK: usize = 512;

/// What a frame of a tar stream means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "k", rename = "tar")]
pub struct TarMeaning {
    /// The files whose headers begin in this frame.
    pub files: Vec<TarFile>,
}

/// Name, offset of the header in the uncompressed stream, length. The content is 512 bytes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TarFile(pub String, pub u64, pub u64);

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberKind {
    File,
    Folder,
    /// A symbolic link.
    Link,
}

/// One member of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// As it stands there, relative; not checked.
    pub path: Vec<u8>,
    pub kind: MemberKind,
    pub mode: u32,
    pub bytes: u64,
    /// Where a link leads.
    pub target: Vec<u8>,
    /// Of its header, in the stream.
    pub offset: u64,
}

/// What the parser tells, in the stream's order.
#[derive(Debug, Clone, Copy)]
pub enum Piece<'a> {
    Begin(&'a Member),
    Data(&'a [u8]),
    /// The member is whole.
    End,
}

/// Takes a stream apart.
#[derive(Debug, Default)]
pub struct TarParser {
    header: Vec<u8>,
    /// Bytes of content, then of padding, that still come.
    content: u64,
    padding: u64,
    offset: u64,
    /// Empty blocks seen; two end the stream.
    empty: u32,
}

impl TarParser {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// `Damage` for what is no tar stream, and what `on` says.
    pub fn feed(&mut self, bytes: &[u8], on: &mut dyn FnMut(Piece) -> Result<()>) -> Result<()> {
        let mut bytes = bytes;
        while !bytes.is_empty() {
            if self.content > 0 {
                let (data, rest) = split(bytes, self.content);
                on(Piece::Data(data))?;
                self.content -= data.len() as u64;
                self.offset += data.len() as u64;
                bytes = rest;
                if self.content == 0 {
                    on(Piece::End)?;
                }
                continue;
            }
            if self.padding > 0 {
                let (skipped, rest) = split(bytes, self.padding);
                self.padding -= skipped.len() as u64;
                self.offset += skipped.len() as u64;
                bytes = rest;
                continue;
            }
            let (head, rest) = split(bytes, (BLOCK - self.header.len()) as u64);
            self.header.extend_from_slice(head);
            bytes = rest;
            if self.header.len() == BLOCK {
                self.block(on)?;
                self.header.clear();
                self.offset += BLOCK as u64;
            }
        }
        Ok(())
    }

    /// A whole block where a header is expected.
    fn block(&mut self, on: &mut dyn FnMut(Piece) -> Result<()>) -> Result<()> {
        if self.header.iter().all(|&byte| byte == 0) {
            self.empty += 1;
            return Ok(());
        }
        if self.empty > 0 {
            return Err(damage("something follows its end", self.offset));
        }
        let member = parse(&self.header, self.offset)
            .ok_or_else(|| damage("a header is none", self.offset))?;
        self.content = member.bytes;
        self.padding = member.bytes.wrapping_neg() % BLOCK as u64;
        on(Piece::Begin(&member))?;
        if self.content == 0 {
            on(Piece::End)?;
        }
        Ok(())
    }

    /// Whether the stream is whole.
    ///
    /// # Errors
    /// `Damage` when it ended before its two empty blocks.
    pub fn finish(&self) -> Result<()> {
        let open = self.content > 0 || self.padding > 0 || !self.header.is_empty();
        if open || self.empty < 2 {
            return Err(damage("it ends too early", self.offset));
        }
        Ok(())
    }
}

fn split(bytes: &[u8], count: u64) -> (&[u8], &[u8]) {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    bytes.split_at(count.min(bytes.len()))
}

fn damage(what: &str, offset: u64) -> Error {
    Error::damage(format!("the tar stream is broken at byte {offset}: {what}"))
        .hint("take or choose another backup")
}

/// Where the fields of a header lie (POSIX ustar).
const NAME: std::ops::Range<usize> = 0..100;
const MODE: std::ops::Range<usize> = 100..108;
const SIZE: std::ops::Range<usize> = 124..136;
const TIME: std::ops::Range<usize> = 136..148;
const CHECK: std::ops::Range<usize> = 148..156;
const KIND: usize = 156;
const TARGET: std::ops::Range<usize> = 157..257;
const MAGIC: std::ops::Range<usize> = 257..263;
const PREFIX: std::ops::Range<usize> = 345..500;

fn parse(header: &[u8], offset: u64) -> Option<Member> {
    if number(&header[CHECK])? != checksum(header) {
        return None;
    }
    let kind = match header[KIND] {
        b'0' | 0 => MemberKind::File,
        b'2' => MemberKind::Link,
        b'5' => MemberKind::Folder,
        _ => return None,
    };
    let mut path = text(&header[NAME]).to_vec();
    let prefix = text(&header[PREFIX]);
    if header[MAGIC].starts_with(b"ustar") && !prefix.is_empty() {
        path = [prefix, b"/", &path].concat();
    }
    let bytes = number(&header[SIZE])?;
    // So that no sum of it overflows.
    let sane = !path.is_empty() && bytes <= 1 << 60;
    sane.then(|| Member {
        path,
        kind,
        mode: u32::try_from(number(&header[MODE]).unwrap_or(0o600)).unwrap_or(0o600) & 0o7777,
        bytes: if kind == MemberKind::File { bytes } else { 0 },
        target: text(&header[TARGET]).to_vec(),
        offset,
    })
}

fn text(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// Octal digits, or base 256 behind a first byte with its high bit (files of 8 GiB and more).
fn number(field: &[u8]) -> Option<u64> {
    if field.first()? & 0x80 != 0 {
        let (high, low) = field.split_at(field.len().checked_sub(8)?);
        let only_mark = high
            .iter()
            .enumerate()
            .all(|(at, byte)| *byte == if at == 0 { 0x80 } else { 0 });
        let low: [u8; 8] = low.try_into().ok()?;
        return only_mark.then(|| u64::from_be_bytes(low));
    }
    let digits = std::str::from_utf8(field).ok()?;
    let digits = digits.trim_matches(|c| c == ' ' || c == '\0');
    if digits.is_empty() {
        return Some(0);
    }
    let octal = digits.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    octal.then(|| u64::from_str_radix(digits, 8).ok()).flatten()
}

/// The sum of all bytes, with blanks where it stands itself.
fn checksum(header: &[u8]) -> u64 {
    let sum = |bytes: &[u8]| bytes.iter().map(|&byte| u64::from(byte)).sum::<u64>();
    sum(&header[..CHECK.start]) + sum(&header[CHECK.end..]) + 8 * u64::from(b' ')
}

/// The header of a file (0600) as PostgreSQL writes it.
///
/// # Errors
/// `Failed` for a name or a length that the format cannot hold.
pub fn file_header(name: &str, bytes: u64, time_s: u64) -> Result<[u8; BLOCK]> {
    if name.is_empty() || name.len() >= NAME.len() || bytes >= 1 << 33 || time_s >= 1 << 33 {
        return Err(Error::failed(format!(
            "{name:?} does not fit into a tar header"
        )));
    }
    let mut header = [0; BLOCK];
    let mut put = |at: usize, text: &str| {
        header[at..at + text.len()].copy_from_slice(text.as_bytes());
    };
    put(NAME.start, name);
    put(MODE.start, "0000600");
    put(108, "0000000");
    put(116, "0000000");
    put(SIZE.start, &format!("{bytes:011o}"));
    put(TIME.start, &format!("{time_s:011o}"));
    put(KIND, "0");
    put(MAGIC.start, "ustar\x0000");
    put(265, "postgres");
    put(297, "postgres");
    let check = format!("{:06o}\0 ", checksum(&header));
    header[CHECK].copy_from_slice(check.as_bytes());
    Ok(header)
}

/// Cuts a tar stream into frames and hands them over.
pub struct TarFrames {
    sender: FrameSender,
    parser: TarParser,
    buffer: Vec<u8>,
    files: Vec<TarFile>,
}

impl TarFrames {
    #[must_use]
    pub fn new(sender: FrameSender) -> TarFrames {
        let mut this = TarFrames {
            sender,
            parser: TarParser::default(),
            buffer: Vec::new(),
            files: Vec::new(),
        };
        this.take_buffer();
        this
    }

    fn take_buffer(&mut self) -> Vec<u8> {
        let mut next = self.sender.buffer();
        next.reserve_exact(FRAME_BYTES);
        std::mem::replace(&mut self.buffer, next)
    }

    /// Appends to the stream.
    ///
    /// # Errors
    /// `Damage` for what is no tar stream; what ended the artefact.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let (head, rest) = split(bytes, (FRAME_BYTES - self.buffer.len()) as u64);
            let files = &mut self.files;
            self.parser.feed(head, &mut |piece| {
                if let Piece::Begin(member) = piece
                    && member.kind == MemberKind::File
                {
                    let name = String::from_utf8_lossy(&member.path).into_owned();
                    files.push(TarFile(name, member.offset, member.bytes));
                }
                Ok(())
            })?;
            self.buffer.extend_from_slice(head);
            bytes = rest;
            if self.buffer.len() == FRAME_BYTES {
                self.send()?;
            }
        }
        Ok(())
    }

    fn send(&mut self) -> Result<()> {
        let meaning = TarMeaning {
            files: std::mem::take(&mut self.files),
        };
        let json =
            serde_json::to_string(&meaning).map_err(|error| Error::failed(error.to_string()))?;
        let frame = self.take_buffer();
        self.sender.send(frame, json)
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// `Damage` when it is not whole; what ended the artefact.
    pub fn finish(mut self) -> Result<()> {
        self.parser.finish()?;
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.send()
    }
}

#[cfg(test)]
#[path = "tar_tests.rs"]
mod tests;
