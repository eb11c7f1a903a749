//! The index of an artefact (`.idx`): one zstd stream of JSON lines.
//!
//! ```text
//! {"pgark_index":1,"codec":"gzip"}
//! {"o":0,"n":310,"r":1024,"h":"<first 16 bytes of the frame's SHA-256, hex>","m":{…}}
//! {"frames":1,"bytes":310,"raw":1024}
//! ```
//!
//! `o` offset and `n` length of the frame (before encryption, if there is any), `r` its length
//! uncompressed, `m` its meaning: JSON of whoever wrote the frame. The index of an encrypted
//! artefact is encrypted too. Invariants: frames lie end to end from 0; the last line
//! counts them; what the reader accepts has the hash that the manifest names. The writer streams, so
//! its memory does not grow with the dump. A crash leaves the store's temporary name only.

use std::io::{self, BufRead, BufReader, Read, Write};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::crypt::{self, Crypt, Identities};
use super::sink::{Sink, Stored};
use crate::error::{Error, Result};
use crate::store::{Key, Store, StoreReader, Upload};
use crate::units::Codec;

/// Fast, and an index is a few hundredths of its artefact.
const LEVEL: i32 = 3;

/// Where a frame lies and what it means.
#[derive(Debug, Clone)]
pub struct FrameRecord {
    /// Of the first byte in the artefact, before encryption.
    pub offset: u64,
    /// Compressed.
    pub bytes: u64,
    /// Uncompressed.
    pub raw_bytes: u64,
    /// The first half of the SHA-256 of the compressed frame.
    pub digest: [u8; 16],
    /// JSON of whoever wrote the frame.
    pub meaning: Box<RawValue>,
}

#[derive(Serialize, Deserialize)]
struct Head {
    pgark_index: u32,
    codec: String,
}

#[derive(Serialize, Deserialize)]
struct Line {
    o: u64,
    n: u64,
    r: u64,
    h: String,
    m: Box<RawValue>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tail {
    frames: u64,
    bytes: u64,
    raw: u64,
}

/// How the last line begins, and no other.
const TAIL_START: &str = "{\"frames\":";

/// A frame's short digest.
#[must_use]
pub fn digest(bytes: &[u8]) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&Sha256::digest(bytes)[..16]);
    short
}

/// Writes an index, frame by frame.
pub(super) struct IndexWriter {
    out: zstd::stream::write::Encoder<'static, Sink>,
    total: Tail,
}

impl IndexWriter {
    pub(super) fn start(
        upload: Box<dyn Upload>,
        codec: Codec,
        crypt: &Crypt,
    ) -> Result<IndexWriter> {
        let sink = Sink::start(upload, crypt)?;
        let mut out = zstd::stream::write::Encoder::new(sink, LEVEL)?;
        out.include_checksum(true)?;
        let mut index = IndexWriter {
            out,
            total: Tail::default(),
        };
        index.line(&Head {
            pgark_index: 1,
            codec: codec.name().to_owned(),
        })?;
        Ok(index)
    }

    /// Adds the next frame: `bytes` stored right behind the one before.
    pub(super) fn add(
        &mut self,
        bytes: u64,
        raw_bytes: u64,
        digest: [u8; 16],
        m: Box<RawValue>,
    ) -> Result<()> {
        self.line(&Line {
            o: self.total.bytes,
            n: bytes,
            r: raw_bytes,
            h: hex::encode(digest),
            m,
        })?;
        self.total.frames += 1;
        self.total.bytes += bytes;
        self.total.raw += raw_bytes;
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<Stored> {
        let tail = std::mem::take(&mut self.total);
        self.line(&tail)?;
        self.out.finish()?.finish()
    }

    fn line(&mut self, value: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(value).map_err(io::Error::from)?;
        line.push(b'\n');
        Ok(self.out.write_all(&line)?)
    }
}

/// Checks that a meaning is JSON and fits on one line.
pub(super) fn meaning(text: String) -> Result<Box<RawValue>> {
    let text = if text.contains(['\n', '\r']) {
        // Raw line breaks in JSON are blanks between its tokens.
        text.replace(['\n', '\r'], " ")
    } else {
        text
    };
    RawValue::from_string(text)
        .map_err(|error| Error::failed(format!("a frame's meaning is not JSON: {error}")))
}

/// An index, read and checked whole.
#[derive(Debug)]
pub struct Index {
    pub frames: Vec<FrameRecord>,
    /// `gzip`, `zstd` or `none`.
    pub codec: String,
    /// The artefact's length, before encryption.
    pub bytes: u64,
    /// Its length uncompressed.
    pub raw_bytes: u64,
}

impl Index {
    /// Reads the index and checks it against the hash (hex) that the manifest names.
    /// `identities` open one that is encrypted.
    ///
    /// # Errors
    /// `Damage` when hash, form, order or count is wrong; `Usage` when none of the identities
    /// opens it; as the store when it cannot be read.
    pub fn read(
        store: &dyn Store,
        key: &Key,
        expected_sha256: &str,
        identities: Option<&Identities>,
    ) -> Result<Index> {
        let damage = |what: &str| {
            Error::damage(format!("the index {key} is damaged: {what}")).hint(
                "the artefact itself may be whole: standard tools restore it without the index",
            )
        };
        // Read whole, then hashed, then decoded: nothing of a foreign file is decoded, and what is
        // decoded is what was hashed. An index is small beside the records made from it.
        let mut bytes = Vec::new();
        StoreReader::open(store, key)?.read_to_end(&mut bytes)?;
        if hex::encode(Sha256::digest(&bytes)) != expected_sha256 {
            return Err(damage("its SHA-256 is not the manifest's"));
        }
        if let Some(identities) = identities {
            bytes = crypt::open(identities, &bytes).map_err(|error| error.context(key))?;
        }
        let decoder = zstd::stream::read::Decoder::new(bytes.as_slice())?;
        parse(&mut BufReader::new(decoder)).map_err(|what| damage(&what))
    }
}

fn parse(source: &mut impl BufRead) -> std::result::Result<Index, String> {
    let mut lines = source.lines();
    let mut next = || match lines.next() {
        Some(line) => line.map_err(|error| error.to_string()),
        None => Err("it ends early".to_owned()),
    };
    let json = |error: serde_json::Error| error.to_string();
    let head: Head = serde_json::from_str(&next()?).map_err(json)?;
    if head.pgark_index != 1 {
        return Err(format!("it is of version {}", head.pgark_index));
    }
    let mut frames: Vec<FrameRecord> = Vec::new();
    let mut total = Tail::default();
    loop {
        let line = next()?;
        if line.starts_with(TAIL_START) {
            let tail: Tail = serde_json::from_str(&line).map_err(json)?;
            let same =
                (tail.frames, tail.bytes, tail.raw) == (total.frames, total.bytes, total.raw);
            if !same || next().is_ok() {
                return Err("its last line does not count its frames".to_owned());
            }
            return Ok(Index {
                frames,
                codec: head.codec,
                bytes: total.bytes,
                raw_bytes: total.raw,
            });
        }
        let line: Line = serde_json::from_str(&line).map_err(json)?;
        if line.o != total.bytes {
            return Err(format!(
                "frame {} does not follow the one before",
                total.frames
            ));
        }
        let mut digest = [0; 16];
        hex::decode_to_slice(&line.h, &mut digest).map_err(|error| error.to_string())?;
        let sums = (line.o.checked_add(line.n), total.raw.checked_add(line.r));
        let (Some(bytes), Some(raw)) = sums else {
            return Err("its lengths are absurd".to_owned());
        };
        (total.bytes, total.raw) = (bytes, raw);
        total.frames += 1;
        frames.push(FrameRecord {
            offset: line.o,
            bytes: line.n,
            raw_bytes: line.r,
            digest,
            meaning: line.m,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::store::local::LocalStore;
    use crate::store::tests::Scratch;
    use crate::store::{Put, get, put};
    use proptest::prelude::*;

    fn store(scratch: &Scratch) -> (LocalStore, Key) {
        let store = LocalStore::open(scratch.path()).unwrap();
        (store, Key::new("x.idx").unwrap())
    }

    fn write(store: &dyn Store, key: &Key, frames: &[(u64, u64, String)]) -> String {
        let upload = store.create(key, Put::Replace).unwrap();
        let mut index = IndexWriter::start(upload, Codec::GZIP, &Crypt::None).unwrap();
        for (bytes, raw, text) in frames {
            let json = serde_json::to_string(&serde_json::json!({ "t": text })).unwrap();
            index
                .add(
                    *bytes,
                    *raw,
                    digest(text.as_bytes()),
                    meaning(json).unwrap(),
                )
                .unwrap();
        }
        let written = index.finish().unwrap();
        assert_eq!(written.upload.finish().unwrap().bytes, written.bytes);
        written.sha256
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn every_index_comes_back(frames in proptest::collection::vec((0..1_u64 << 40, 0..1_u64 << 40, "\\PC{0,20}"), 0..50)) {
            let scratch = Scratch::new();
            let (store, key) = store(&scratch);
            let sha256 = write(&store, &key, &frames);
            let index = Index::read(&store, &key, &sha256, None).unwrap();
            prop_assert_eq!(index.frames.len(), frames.len());
            let mut offset = 0;
            for (record, (bytes, raw, text)) in index.frames.iter().zip(&frames) {
                prop_assert_eq!((record.offset, record.bytes, record.raw_bytes), (offset, *bytes, *raw));
                prop_assert_eq!(record.digest, digest(text.as_bytes()));
                let m: serde_json::Value = serde_json::from_str(record.meaning.get()).unwrap();
                prop_assert_eq!(m["t"].as_str(), Some(text.as_str()));
                offset += bytes;
            }
            prop_assert_eq!(index.bytes, offset);
        }
    }

    #[test]
    fn index_with_any_byte_changed_is_damage() {
        let scratch = Scratch::new();
        let (store, key) = store(&scratch);
        let sha256 = write(&store, &key, &[(3, 4, "a".into()), (5, 6, "b".into())]);
        let good = get(&store, &key).unwrap().unwrap();
        for i in 0..good.len() {
            let mut bad = good.clone();
            bad[i] ^= 0x10;
            std::fs::write(scratch.path().join("x.idx"), &bad).unwrap();
            assert_eq!(
                Index::read(&store, &key, &sha256, None).unwrap_err().kind,
                Kind::Damage
            );
        }
    }

    #[test]
    fn gaps_overlaps_and_missing_ends_are_damage_whatever_the_hash() {
        let scratch = Scratch::new();
        let (store, key) = store(&scratch);
        let head = r#"{"pgark_index":1,"codec":"gzip"}"#;
        let h = "0".repeat(32);
        let frame = |o: u64, n: u64| format!(r#"{{"o":{o},"n":{n},"r":1,"h":"{h}","m":{{}}}}"#);
        let tail = |f: u64, b: u64| format!(r#"{{"frames":{f},"bytes":{b},"raw":{f}}}"#);
        let check = |lines: &[String]| {
            let text = lines.join("\n");
            let bytes = zstd::encode_all(text.as_bytes(), 1).unwrap();
            put(&store, &key, &bytes, Put::Replace).unwrap();
            Index::read(&store, &key, &hex::encode(Sha256::digest(&bytes)), None)
        };
        let head = head.to_owned();
        check(&[head.clone(), frame(0, 5), frame(5, 1), tail(2, 6)]).unwrap();
        for bad in [
            vec![],
            vec![head.clone()],
            vec![head.replace(":1", ":2"), tail(0, 0)],
            vec![head.clone(), frame(0, 5)],
            vec![head.clone(), frame(0, 5), tail(2, 5)],
            vec![head.clone(), frame(0, 5), tail(1, 6)],
            vec![head.clone(), frame(1, 5), tail(1, 6)],
            vec![head.clone(), frame(0, 5), frame(6, 1), tail(2, 6)],
            vec![head.clone(), frame(0, 5), frame(4, 1), tail(2, 6)],
            vec![head.clone(), frame(0, 5), tail(1, 5), frame(5, 1)],
            vec![
                head.clone(),
                frame(0, u64::MAX),
                frame(u64::MAX, 1),
                tail(2, 0),
            ],
        ] {
            assert_eq!(check(&bad).unwrap_err().kind, Kind::Damage, "{bad:?}");
        }
    }

    #[test]
    fn meaning_must_be_json_on_one_line() {
        assert!(meaning("{".to_owned()).is_err());
        assert_eq!(
            meaning("{\n\"a\": 1}".to_owned()).unwrap().get(),
            "{ \"a\": 1}"
        );
    }
}
