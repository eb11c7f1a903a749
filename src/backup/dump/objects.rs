//! Copies the contents of large objects into statements.
//!
//! pg_dump would write `lo_open`, `lowrite`, `lo_close` within a transaction. Here each frame is one
//! statement that puts many chunks (`lo_put`), so that frames are independent and a restore by
//! hand commits once a frame and not once an object.
//!
//! Invariant: the contents are read through the dump's snapshot; an object that may not be
//! read is an error, never an empty object.

use crate::archive::FrameSender;
use crate::archive::script::{FRAME_RAW_BYTES, Meaning};
use crate::cancel::Token;
use crate::error::{Error, Result};
use crate::postgres::Client;

/// Bytes of one large object that one query reads.
const CHUNK_BYTES: usize = 256 << 10;

/// Copies these objects; gives their number and the sum of their bytes.
///
/// # Errors
/// Those of the connection; with a hint when a right is missing.
pub(super) fn copy(
    client: &mut Client,
    oids: &[u32],
    sender: &FrameSender,
    cancel: &Token,
) -> Result<(u64, u64)> {
    let mut frame = ObjectFrame {
        raw: sender.buffer(),
        values: 0,
        count: 0,
        bytes: 0,
        sender,
    };
    let (long, mut bytes) = first_chunks(client, oids, &mut frame)?;
    for oid in long {
        let mut offset = CHUNK_BYTES;
        loop {
            cancel.check()?;
            let rows = client.query(format!(
                "SELECT pg_catalog.encode(pg_catalog.lo_get({oid}, {offset}, {CHUNK_BYTES}), 'hex')"
            ))?;
            let hex = rows
                .first()
                .and_then(|row| row.bytes(0))
                .unwrap_or_default();
            bytes += hex.len() as u64 / 2;
            frame.add(&oid, offset, hex)?;
            offset += CHUNK_BYTES;
            if hex.len() < 2 * CHUNK_BYTES {
                break;
            }
        }
    }
    frame.send()?;
    Ok((oids.len() as u64, bytes))
}

/// Reads all objects' beginnings in one query; gives those that go on, and the bytes read.
fn first_chunks(
    client: &mut Client,
    oids: &[u32],
    frame: &mut ObjectFrame<'_>,
) -> Result<(Vec<String>, u64)> {
    let list: Vec<String> = oids.iter().map(u32::to_string).collect();
    let sql = format!(
        "COPY (SELECT o, pg_catalog.encode(pg_catalog.lo_get(o, 0, {CHUNK_BYTES}), 'hex') \
         FROM pg_catalog.unnest('{{{}}}'::oid[]) o) TO STDOUT",
        list.join(",")
    );
    let (mut long, mut total, mut row) = (Vec::new(), 0, Vec::new());
    let result = client.copy_out(sql, &mut |piece, ends_row| {
        row.extend_from_slice(piece);
        if !ends_row {
            return Ok(());
        }
        let text = row.strip_suffix(b"\n").unwrap_or(&row);
        let tab = text
            .iter()
            .position(|&byte| byte == b'\t')
            .unwrap_or(text.len());
        let (oid, hex) = (
            String::from_utf8_lossy(&text[..tab]),
            text.get(tab + 1..).unwrap_or_default(),
        );
        total += hex.len() as u64 / 2;
        frame.count += 1;
        frame.add(&oid, 0, hex)?;
        if hex.len() == 2 * CHUNK_BYTES {
            long.push(oid.into_owned());
        }
        row.clear();
        Ok(())
    });
    result.map_err(|error: Error| {
        if error.is_sqlstate("42501") {
            error.hint("pg_read_all_data does not cover large objects: GRANT SELECT ON LARGE OBJECT …, or dump as their owner")
        } else {
            error
        }
    })?;
    Ok((long, total))
}

/// A frame of large objects' contents: one statement that puts many chunks. `decode` needs no
/// backslash, so the text means the same whatever `standard_conforming_strings` says.
struct ObjectFrame<'a> {
    raw: Vec<u8>,
    values: usize,
    count: u64,
    bytes: u64,
    sender: &'a FrameSender,
}

impl ObjectFrame<'_> {
    fn add(&mut self, oid: &str, offset: usize, hex: &[u8]) -> Result<()> {
        if hex.is_empty() {
            return Ok(());
        }
        self.raw.extend_from_slice(if self.values == 0 {
            b"SELECT pg_catalog.count(*) FROM (SELECT pg_catalog.lo_put(o, p, pg_catalog.decode(d, 'hex')) FROM (VALUES\n"
        } else {
            b",\n"
        });
        self.raw
            .extend_from_slice(format!("({oid}::oid,{offset}::bigint,'").as_bytes());
        self.raw.extend_from_slice(hex);
        self.raw.extend_from_slice(b"')");
        self.values += 1;
        self.bytes += hex.len() as u64 / 2;
        if self.raw.len() >= FRAME_RAW_BYTES {
            self.send()
        } else {
            Ok(())
        }
    }

    fn send(&mut self) -> Result<()> {
        if self.values > 0 {
            // OFFSET 0 keeps the planner from dropping the inner call as unused.
            self.raw
                .extend_from_slice(b") AS v(o, p, d) OFFSET 0) AS put;\n\n");
        } else if self.count == 0 {
            return Ok(());
        }
        let meaning = Meaning::Objects {
            count: self.count,
            bytes: self.bytes,
        };
        let raw = std::mem::replace(&mut self.raw, self.sender.buffer());
        (self.values, self.count, self.bytes) = (0, 0, 0);
        self.sender.send(raw, meaning.to_json()?)
    }
}
