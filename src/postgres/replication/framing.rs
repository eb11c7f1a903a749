//! Takes apart what BASE_BACKUP sends, in the framing of 14 (a COPY for each archive) and of 15
//! and later (one COPY, each message with a letter in front). No I/O.
//!
//! Invariants: archives come whole, each once, and only those that the server announced; a
//! backup is complete only with its end position, all its archives and its manifest. An archive
//! is one complete tar stream: what 14 leaves out of its end is added.
//!
//! Source: `basebackup.c` and `basebackup_copy.c` of PostgreSQL.

use super::base::BaseEvent;
use super::command::PARENTHESISED;
use crate::error::{Error, Result};
use crate::postgres::client::Row;
use crate::postgres::wire::Fields;
use crate::units::{Lsn, Timeline};

/// Two empty blocks end a tar stream.
const TAR_END: [u8; 1024] = [0; 1024];
/// A name and a path: longer than any that PostgreSQL handles (`MAXPGPATH`, twice).
const HEADER_BYTES_MAX: usize = 4096;

/// One of the archives that a base backup consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Archive {
    /// The data directory.
    Base,
    /// The tablespace with this oid.
    Tablespace(u32),
}

/// What the server says about one of its tablespaces before it sends them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    pub archive: Archive,
    /// Where it lies on the server; none for the data directory itself.
    pub location: Option<String>,
    /// An estimate, when progress was asked for.
    pub size_kib: Option<u64>,
}

/// A place in WAL as the server tells it: position and timeline.
pub(super) type Place = (Lsn, Timeline);

/// What is being received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Current {
    Nothing,
    Archive,
    Manifest,
}

/// What a message of the shared COPY is about, by its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Letter {
    Unknown,
    Data,
    Other(u8),
}

/// Takes the answer to BASE_BACKUP apart.
#[derive(Debug)]
pub(super) struct Framing {
    /// One COPY for all archives.
    shared: bool,
    results: u32,
    start: Option<Place>,
    end: Option<Place>,
    tablespaces: Vec<Tablespace>,
    sent: Vec<Archive>,
    manifest: bool,
    current: Current,
    /// COPYs begun, and whether one is open.
    copies: usize,
    copying: bool,
    letter: Letter,
    header: Vec<u8>,
}

impl Framing {
    pub(super) fn new(version: u32) -> Framing {
        Framing {
            shared: version >= PARENTHESISED,
            results: 0,
            start: None,
            end: None,
            tablespaces: Vec::new(),
            sent: Vec::new(),
            manifest: false,
            current: Current::Nothing,
            copies: 0,
            copying: false,
            letter: Letter::Unknown,
            header: Vec::new(),
        }
    }

    /// Takes one message, or a piece of a `CopyData`.
    pub(super) fn message(
        &mut self,
        tag: u8,
        body: &[u8],
        last: bool,
        on: &mut dyn FnMut(BaseEvent) -> Result<()>,
    ) -> Result<()> {
        match tag {
            b'd' if !self.copying => Err(broken("data came where none was announced")),
            b'd' if self.shared => self.lettered(body, last, on),
            b'd' => self.data(body, on),
            b'H' => self.copy_begins(on),
            b'c' => self.copy_ends(on),
            b'T' if self.copying => Err(broken("a result came amid the data")),
            b'T' => {
                self.results += 1;
                Ok(())
            }
            b'D' => self.row(&Row::parse(body)?, on),
            b'C' => Ok(()),
            _ => Err(broken("a message came that belongs to no base backup")),
        }
    }

    fn row(&mut self, row: &Row, on: &mut dyn FnMut(BaseEvent) -> Result<()>) -> Result<()> {
        match self.results {
            1 if self.start.is_none() => {
                let (lsn, timeline) = place(row)?;
                self.start = Some((lsn, timeline));
                on(BaseEvent::Start { lsn, timeline })
            }
            2 => {
                let oid = row.bytes(0).map(|_| row.get::<u32>(0)).transpose()?;
                let archive = oid.map_or(Archive::Base, Archive::Tablespace);
                if self
                    .tablespaces
                    .iter()
                    .any(|known| known.archive == archive)
                {
                    return Err(broken("a tablespace was announced twice"));
                }
                let size_kib = row.bytes(2).map(|_| row.get(2)).transpose()?;
                let location = row.bytes(1).map(|_| row.str(1).map(str::to_owned));
                self.tablespaces.push(Tablespace {
                    archive,
                    location: location.transpose()?,
                    size_kib,
                });
                Ok(())
            }
            3 if self.end.is_none() => {
                self.end = Some(place(row)?);
                Ok(())
            }
            _ => Err(broken("a row came that belongs to no base backup")),
        }
    }

    fn copy_begins(&mut self, on: &mut dyn FnMut(BaseEvent) -> Result<()>) -> Result<()> {
        if self.copying || self.results != 2 || (self.shared && self.copies > 0) {
            return Err(broken("data was announced at the wrong moment"));
        }
        if self.copies == 0 {
            on(BaseEvent::Tablespaces(&self.tablespaces))?;
        }
        self.copies += 1;
        self.copying = true;
        if self.shared {
            return Ok(());
        }
        // One COPY for each tablespace in the order of their list, then the manifest.
        match self.tablespaces.get(self.copies - 1) {
            Some(tablespace) => self.archive_begins(tablespace.archive, on),
            None => self.manifest_begins(on),
        }
    }

    fn copy_ends(&mut self, on: &mut dyn FnMut(BaseEvent) -> Result<()>) -> Result<()> {
        if !self.copying || self.letter != Letter::Unknown {
            return Err(broken("its data ended in the middle"));
        }
        self.copying = false;
        let current = std::mem::replace(&mut self.current, Current::Nothing);
        if !self.shared && current == Current::Archive {
            on(BaseEvent::Data(&TAR_END))?;
        }
        Ok(())
    }

    /// A message of the shared COPY, or a piece of one.
    fn lettered(
        &mut self,
        body: &[u8],
        last: bool,
        on: &mut dyn FnMut(BaseEvent) -> Result<()>,
    ) -> Result<()> {
        let mut body = body;
        if let (Letter::Unknown, Some((first, rest))) = (self.letter, body.split_first()) {
            self.letter = match first {
                b'd' => Letter::Data,
                b'n' | b'm' | b'p' => Letter::Other(*first),
                _ => return Err(broken("a part of unknown kind came")),
            };
            body = rest;
        }
        match self.letter {
            Letter::Data if !body.is_empty() => self.data(body, on)?,
            Letter::Unknown if last => return Err(broken("an empty message came")),
            Letter::Data | Letter::Unknown => {}
            Letter::Other(_) => {
                if self.header.len() + body.len() > HEADER_BYTES_MAX {
                    return Err(broken("a name came that is too long"));
                }
                self.header.extend_from_slice(body);
            }
        }
        if last {
            if let Letter::Other(kind) = self.letter {
                self.header_ends(kind, on)?;
            }
            self.letter = Letter::Unknown;
            self.header.clear();
        }
        Ok(())
    }

    fn header_ends(&mut self, kind: u8, on: &mut dyn FnMut(BaseEvent) -> Result<()>) -> Result<()> {
        let mut fields = Fields(&self.header);
        match kind {
            b'n' => {
                let archive = archive_of(fields.text()?);
                let archive = archive.ok_or_else(|| broken("an archive has a foreign name"))?;
                self.archive_begins(archive, on)
            }
            b'm' => self.manifest_begins(on),
            _ => {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(fields.bytes(8)?);
                on(BaseEvent::Progress(u64::from_be_bytes(bytes)))
            }
        }
    }

    fn archive_begins(
        &mut self,
        archive: Archive,
        on: &mut dyn FnMut(BaseEvent) -> Result<()>,
    ) -> Result<()> {
        let announced = self.tablespaces.iter().any(|one| one.archive == archive);
        if self.manifest || !announced || self.sent.contains(&archive) {
            return Err(broken(
                "an archive came that was not announced, or came twice",
            ));
        }
        self.sent.push(archive);
        self.current = Current::Archive;
        on(BaseEvent::Archive(archive))
    }

    fn manifest_begins(&mut self, on: &mut dyn FnMut(BaseEvent) -> Result<()>) -> Result<()> {
        if self.manifest {
            return Err(broken("its manifest came twice"));
        }
        self.manifest = true;
        self.current = Current::Manifest;
        on(BaseEvent::Manifest)
    }

    fn data(&mut self, bytes: &[u8], on: &mut dyn FnMut(BaseEvent) -> Result<()>) -> Result<()> {
        match self.current {
            Current::Archive => on(BaseEvent::Data(bytes)),
            Current::Manifest => on(BaseEvent::ManifestData(bytes)),
            Current::Nothing => Err(broken("data came before its name")),
        }
    }

    /// Whether all came that was announced: where the backup begins and ends.
    pub(super) fn finish(&self) -> Result<(Place, Place)> {
        if self.copying || self.sent.len() != self.tablespaces.len() || !self.manifest {
            return Err(broken("it ended before all its archives had come"));
        }
        match (self.start, self.end) {
            (Some(start), Some(end)) if start.0 <= end.0 => Ok((start, end)),
            (Some(_), Some(_)) => Err(broken("it ends before its beginning")),
            _ => Err(broken("it has no end position")),
        }
    }

    /// Whether the end position came: nothing is missing but the server's last word.
    pub(super) fn is_complete(&self) -> bool {
        self.finish().is_ok()
    }
}

/// `base.tar`, `16384.tar`.
fn archive_of(name: &[u8]) -> Option<Archive> {
    let stem = std::str::from_utf8(name).ok()?.strip_suffix(".tar")?;
    if stem == "base" {
        return Some(Archive::Base);
    }
    let digits = stem.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| stem.parse().ok().map(Archive::Tablespace))?
}

fn place(row: &Row) -> Result<Place> {
    let wrong = |_| broken("a position came that is none");
    Ok((
        row.str(0)?.parse().map_err(wrong)?,
        row.str(1)?.parse().map_err(wrong)?,
    ))
}

fn broken(what: &str) -> Error {
    Error::failed(format!("the base backup cannot be understood: {what}"))
        .hint("nothing of it was kept; see the server's log, and whether a proxy lies between")
}

#[cfg(test)]
#[path = "framing_tests.rs"]
mod tests;
