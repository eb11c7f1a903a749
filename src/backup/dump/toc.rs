//! Reads the table of contents of a `pg_dump -Fc` archive from a stream.
//!
//! pg_dump writes the whole table of contents before any data (`_CloseArchive` in
//! `pg_backup_custom.c`), with the full text of every statement. So pgark reads it, ends
//! pg_dump, and copies the data itself. Nothing here is guessed from SQL text: every name,
//! dependency and statement comes from the archive's fields.
//!
//! Format: `WriteHead` and `WriteToc` in PostgreSQL's `src/bin/pg_dump/pg_backup_archiver.c`;
//! archive versions 1.14 (PostgreSQL 12) to 1.16 (17 and later).
//!
//! Invariant: texts are bytes in the database's own encoding; nothing assumes UTF-8.

use std::io::Read;

use crate::error::{Error, Result};

/// Which part of the archive an entry belongs to (`teSection` in `pg_backup.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    None,
    PreData,
    Data,
    PostData,
}

/// One object of the archive, or one part of an object (its data, its comment, its rights).
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub dump_id: i32,
    /// Catalog that holds the object, and the object's OID there; 0 when there is none.
    pub class_oid: u32,
    pub oid: u32,
    pub tag: Vec<u8>,
    pub desc: String,
    pub section: Section,
    pub definition: Vec<u8>,
    pub drop_statement: Vec<u8>,
    pub copy_statement: Vec<u8>,
    pub namespace: Option<Vec<u8>>,
    pub tablespace: Option<Vec<u8>>,
    pub table_access_method: Option<Vec<u8>>,
    /// `pg_class.relkind`, known from archive version 1.16 on, else 0.
    pub relkind: u8,
    pub owner: Vec<u8>,
    pub dependencies: Vec<i32>,
}

impl Entry {
    /// The name for people: `public.orders`, one line, never with control bytes.
    #[must_use]
    pub(super) fn display_name(&self) -> String {
        let mut name = String::new();
        if let Some(namespace) = &self.namespace {
            name.push_str(&String::from_utf8_lossy(namespace));
            name.push('.');
        }
        name.push_str(&String::from_utf8_lossy(&self.tag));
        name.replace(char::is_control, " ")
    }
}

/// The archive's header and entries, in the archive's order.
#[derive(Debug)]
pub(super) struct Toc {
    pub server_version: String,
    pub program_version: String,
    pub entries: Vec<Entry>,
}

/// The newest archive version whose layout is known here, as in `K_VERS_MAX`: 1.16.
const NEWEST: (u8, u8) = (1, 16);
const OLDEST: (u8, u8) = (1, 14);
/// No statement or name comes near this; a larger length means a damaged stream.
const STRING_MAX_BYTES: i64 = 1 << 30;
const FORMAT_CUSTOM: u8 = 1;

impl Toc {
    /// Reads the header and the table of contents, and not a byte of data.
    ///
    /// # Errors
    /// `Failed` when the stream ends early (pg_dump's own message tells why) or is not an
    /// archive of a known version.
    pub(super) fn read(stream: &mut impl Read) -> Result<Toc> {
        let mut input = Input {
            stream,
            int_bytes: 0,
            offset_bytes: 0,
        };
        let mut magic = [0; 5];
        input.exact(&mut magic)?;
        if &magic != b"PGDMP" {
            return Err(Error::failed("pg_dump did not write an archive"));
        }
        let version = (input.byte()?, input.byte()?);
        let _revision = input.byte()?;
        if version < OLDEST || version > NEWEST {
            return Err(Error::failed(format!(
                "pg_dump wrote an archive of version {}.{}, which this pgark does not know",
                version.0, version.1
            ))
            .hint(
                "use a newer pgark, or point PGARK_PG_BIN at the programs of PostgreSQL 14 to 19",
            ));
        }
        input.int_bytes = input.byte()?;
        input.offset_bytes = input.byte()?;
        if input.byte()? != FORMAT_CUSTOM || input.int_bytes != 4 {
            return Err(Error::failed(
                "pg_dump wrote an archive of an unexpected format",
            ));
        }
        if version >= (1, 15) {
            input.byte()?; // compression algorithm: concerns only the data
        } else {
            input.int()?; // compression level, likewise
        }
        for _ in 0..7 {
            input.int()?; // creation time
        }
        input.string()?; // database
        let server_version = input.text()?;
        let program_version = input.text()?;
        let count = input.int()?;
        let mut entries = Vec::new();
        for _ in 0..count {
            entries.push(input.entry(version)?);
        }
        Ok(Toc {
            server_version,
            program_version,
            entries,
        })
    }
}

struct Input<'a, R> {
    stream: &'a mut R,
    int_bytes: u8,
    offset_bytes: u8,
}

impl<R: Read> Input<'_, R> {
    fn exact(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.stream.read_exact(buffer).map_err(|error| {
            Error::failed(format!("pg_dump's table of contents ended early: {error}"))
        })
    }

    fn byte(&mut self) -> Result<u8> {
        let mut byte = [0];
        self.exact(&mut byte)?;
        Ok(byte[0])
    }

    /// A sign byte and `int_bytes` bytes, least significant first (`ReadInt`).
    fn int(&mut self) -> Result<i64> {
        let mut bytes = [0; 5];
        let len = usize::from(self.int_bytes) + 1;
        self.exact(&mut bytes[..len])?;
        let value = bytes[1..len]
            .iter()
            .rev()
            .fold(0_i64, |value, &byte| value << 8 | i64::from(byte));
        Ok(if bytes[0] == 0 { value } else { -value })
    }

    fn string(&mut self) -> Result<Option<Vec<u8>>> {
        let len = self.int()?;
        if len < 0 {
            return Ok(None);
        }
        if len > STRING_MAX_BYTES {
            return Err(Error::failed(
                "pg_dump's table of contents is damaged: a text of over 1 GiB",
            ));
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
        self.exact(&mut bytes)?;
        Ok(Some(bytes))
    }

    fn bytes(&mut self) -> Result<Vec<u8>> {
        Ok(self.string()?.unwrap_or_default())
    }

    fn text(&mut self) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.bytes()?).into_owned())
    }

    fn number<N: std::str::FromStr>(&mut self) -> Result<N> {
        self.text()?
            .parse()
            .map_err(|_| Error::failed("pg_dump's table of contents is damaged: a number is none"))
    }

    fn small(&mut self) -> Result<i32> {
        i32::try_from(self.int()?)
            .map_err(|_| Error::failed("pg_dump's table of contents is damaged"))
    }

    fn entry(&mut self, version: (u8, u8)) -> Result<Entry> {
        let dump_id = self.small()?;
        self.int()?; // whether data belongs to it: told by its type as well
        let class_oid = self.number()?;
        let oid = self.number()?;
        let tag = self.bytes()?;
        let desc = self.text()?;
        let section = match self.int()? {
            2 => Section::PreData,
            3 => Section::Data,
            4 => Section::PostData,
            _ => Section::None,
        };
        let definition = self.bytes()?;
        let drop_statement = self.bytes()?;
        let copy_statement = self.bytes()?;
        let namespace = self.string()?.filter(|text| !text.is_empty());
        let tablespace = self.string()?.filter(|text| !text.is_empty());
        let table_access_method = self.string()?.filter(|text| !text.is_empty());
        let relkind = if version >= (1, 16) {
            u8::try_from(self.int()?).unwrap_or(0)
        } else {
            0
        };
        let owner = self.bytes()?;
        self.string()?; // "false": WITH OIDS is gone since PostgreSQL 12
        let mut dependencies = Vec::new();
        while let Some(text) = self.string()? {
            let id = String::from_utf8_lossy(&text).parse();
            dependencies
                .push(id.map_err(|_| Error::failed("pg_dump's table of contents is damaged"))?);
        }
        let mut data_offset = [0; 17]; // a flag and an offset: not set in a stream
        let len = usize::from(self.offset_bytes) + 1;
        self.exact(
            data_offset
                .get_mut(..len)
                .ok_or_else(|| Error::failed("pg_dump's archive is damaged"))?,
        )?;
        Ok(Entry {
            dump_id,
            class_oid,
            oid,
            tag,
            desc,
            section,
            definition,
            drop_statement,
            copy_statement,
            namespace,
            tablespace,
            table_access_method,
            relkind,
            owner,
            dependencies,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn hostile_archives_are_errors_and_never_panics(tail in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut bytes = b"PGDMP\x01\x0e\x00\x04\x08\x01".to_vec();
            bytes.extend(tail);
            let _ = Toc::read(&mut bytes.as_slice());
        }
    }

    #[test]
    fn archive_of_the_future_is_refused_by_name() {
        let error = Toc::read(&mut b"PGDMP\x01\x11\x00\x04\x08\x01".as_slice()).unwrap_err();
        assert!(error.fact.contains("1.17"), "{error}");
    }
}
