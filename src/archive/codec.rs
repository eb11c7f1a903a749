//! Frames: one gzip member, one zstd frame, or the bytes as they are. No I/O.
//!
//! Invariant: a frame decodes to exactly what was given, or to an error: CRC (gzip) or content
//! checksum (zstd), length, and nothing before or after. The first frame of an artefact carries
//! pgark's mark (`store::mark`), which every standard tool skips.

use std::io::Read;

use libdeflater::{CompressionLvl, crc32};
use zstd::zstd_safe::{CParameter, compress_bound};

use crate::error::{Error, Result};
use crate::store::mark::{GZIP_HEADER, ZSTD_FRAME};

pub use crate::store::mark::has_mark;
pub use crate::units::Codec;

/// A gzip header without fields (RFC 1952): no time, no name, OS unknown.
const PLAIN_HEADER: &[u8; 10] = b"\x1f\x8b\x08\0\0\0\0\0\0\xff";
/// CRC-32 and length modulo 2^32.
const GZIP_TRAILER: usize = 8;

/// A sample of a frame of 1 MiB decides for all of it. libdeflate's levels show themselves sooner than zstd's.
const GZIP_SAMPLE_BYTES: usize = 16 << 10;
const ZSTD_SAMPLE_BYTES: usize = 32 << 10;
/// What the slower level must leave of the faster one's size to be worth 1.5 times its time (gzip) or
/// twice (zstd); docs/decisions/0002-compression-defaults.md.
const SMALLER_PERMILLE: usize = 970;

/// Makes frames. One a thread; its memory is used again.
pub struct Compressor {
    method: Method,
    scratch: Vec<u8>,
}

enum Method {
    Gzip(Levels<libdeflater::Compressor>),
    Zstd(Levels<zstd::bulk::Compressor<'static>>),
    None,
}

struct Levels<T> {
    usual: T,
    /// Used instead for frames that it makes clearly smaller.
    smaller: Option<T>,
}

impl<T> Levels<T> {
    /// The level asked for, or else both of the usual ones.
    fn new(level: Option<u8>, usual: [u8; 2], make: impl Fn(u8) -> Result<T>) -> Result<Levels<T>> {
        Ok(Levels {
            usual: make(level.unwrap_or(usual[0]))?,
            smaller: level.is_none().then(|| make(usual[1])).transpose()?,
        })
    }

    /// The level for this frame, by the `size` that each makes of a sample from its middle.
    fn choose(
        &mut self,
        raw: &[u8],
        sample_bytes: usize,
        mut size: impl FnMut(&mut T, &[u8]) -> Option<usize>,
    ) -> &mut T {
        let Some(smaller) = &mut self.smaller else {
            return &mut self.usual;
        };
        let from = raw.len().saturating_sub(sample_bytes) / 2;
        let sample = &raw[from..(from + sample_bytes).min(raw.len())];
        match (size(&mut self.usual, sample), size(smaller, sample)) {
            (Some(one), Some(other)) if other * 1000 < one * SMALLER_PERMILLE => smaller,
            _ => &mut self.usual,
        }
    }
}

impl Compressor {
    /// # Errors
    /// `Usage` for a level that the codec lacks, `Failed` when memory is short.
    pub fn new(codec: Codec) -> Result<Compressor> {
        let method = match codec {
            Codec::Gzip { level } => Method::Gzip(Levels::new(level, [1, 2], |level| {
                let level = CompressionLvl::new(i32::from(level))
                    .map_err(|_| Error::usage(format!("gzip has no level {level}")))?;
                Ok(libdeflater::Compressor::new(level))
            })?),
            Codec::Zstd { level } => Method::Zstd(Levels::new(level, [1, 3], |level| {
                let mut zstd = zstd::bulk::Compressor::new(i32::from(level))?;
                zstd.set_parameter(CParameter::ChecksumFlag(true))?;
                zstd.set_parameter(CParameter::ContentSizeFlag(true))?;
                Ok(zstd)
            })?),
            Codec::None => Method::None,
        };
        Ok(Compressor {
            method,
            scratch: Vec::new(),
        })
    }

    /// Appends one frame to `out`; `first` puts the mark into it.
    ///
    /// # Errors
    /// `Failed` when the library refuses, which it does only for lack of memory.
    pub fn compress(&mut self, raw: &[u8], first: bool, out: &mut Vec<u8>) -> Result<()> {
        match &mut self.method {
            Method::Gzip(levels) => {
                let bound = levels.usual.deflate_compress_bound(raw.len());
                if self.scratch.len() < bound {
                    self.scratch.resize(bound, 0);
                }
                let gzip = levels.choose(raw, GZIP_SAMPLE_BYTES, |gzip, sample| {
                    gzip.deflate_compress(sample, &mut self.scratch).ok()
                });
                let count = gzip
                    .deflate_compress(raw, &mut self.scratch)
                    .map_err(|error| Error::failed(format!("gzip: {error}")))?;
                let header = if first {
                    &GZIP_HEADER[..]
                } else {
                    PLAIN_HEADER
                };
                out.reserve_exact(header.len() + count + GZIP_TRAILER);
                out.extend_from_slice(header);
                out.extend_from_slice(&self.scratch[..count]);
                out.extend_from_slice(&trailer(raw));
            }
            Method::Zstd(levels) => {
                self.scratch.clear();
                self.scratch.reserve(compress_bound(raw.len()));
                let zstd = levels.choose(raw, ZSTD_SAMPLE_BYTES, |zstd, sample| {
                    zstd.compress_to_buffer(sample, &mut self.scratch).ok()
                });
                self.scratch.clear();
                zstd.compress_to_buffer(raw, &mut self.scratch)?;
                let mark = if first { &ZSTD_FRAME[..] } else { &[] };
                out.reserve_exact(mark.len() + self.scratch.len());
                out.extend_from_slice(mark);
                out.extend_from_slice(&self.scratch);
            }
            Method::None => out.extend_from_slice(raw),
        }
        Ok(())
    }
}

fn trailer(raw: &[u8]) -> [u8; GZIP_TRAILER] {
    let mut bytes = [0; GZIP_TRAILER];
    bytes[..4].copy_from_slice(&crc32(raw).to_le_bytes());
    // ISIZE is the length modulo 2^32 by definition.
    #[allow(clippy::cast_possible_truncation)]
    bytes[4..].copy_from_slice(&(raw.len() as u32).to_le_bytes());
    bytes
}

/// Decodes one frame that must hold exactly `raw_bytes` bytes.
///
/// # Errors
/// `Damage` when anything differs from what the compressor made.
pub fn decode_frame(codec: Codec, bytes: &[u8], raw_bytes: usize) -> Result<Vec<u8>> {
    let damage = |what: String| Error::damage(format!("the frame does not decode: {what}"));
    let raw = match codec {
        Codec::Gzip { .. } => {
            let mut raw = vec![0; raw_bytes];
            let count = libdeflater::Decompressor::new()
                .gzip_decompress(bytes, &mut raw)
                .map_err(|error| damage(error.to_string()))?;
            raw.truncate(count);
            // libdeflate stops at the member's end; what follows shows only here.
            if !bytes.ends_with(&trailer(&raw)) {
                return Err(damage("bytes follow the gzip member".to_owned()));
            }
            raw
        }
        Codec::Zstd { .. } => {
            zstd::bulk::decompress(bytes, raw_bytes).map_err(|error| damage(error.to_string()))?
        }
        Codec::None => bytes.to_vec(),
    };
    if raw.len() == raw_bytes {
        Ok(raw)
    } else {
        Err(damage(format!(
            "{} bytes instead of {raw_bytes}",
            raw.len()
        )))
    }
}

/// Decodes a whole stream of members or frames, legacy files included. A stream that is cut
/// within a member and garbage behind the last one are errors of `read`; a cut at a border is
/// not visible here: the index, the hash or the text's last line show it.
///
/// # Errors
/// `Failed` when memory is short.
pub fn decoder<'a>(codec: Codec, source: impl Read + 'a) -> Result<Box<dyn Read + 'a>> {
    Ok(match codec {
        Codec::Gzip { .. } => Box::new(flate2::read::MultiGzDecoder::new(source)),
        Codec::Zstd { .. } => Box::new(zstd::stream::read::Decoder::new(source)?),
        Codec::None => Box::new(source),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::store::tests::Scratch;
    use proptest::prelude::*;
    use std::process::Command;

    const CODECS: [Codec; 3] = [Codec::GZIP, Codec::ZSTD, Codec::None];

    fn frames(codec: Codec, pieces: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut compressor = Compressor::new(codec).unwrap();
        let frame = |(i, raw): (usize, &&[u8])| {
            let mut out = Vec::new();
            compressor.compress(raw, i == 0, &mut out).unwrap();
            out
        };
        pieces.iter().enumerate().map(frame).collect()
    }

    fn read_all(codec: Codec, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut raw = Vec::new();
        decoder(codec, bytes).unwrap().read_to_end(&mut raw)?;
        Ok(raw)
    }

    #[test]
    fn standard_tools_read_the_sequence_as_one_stream() {
        let scratch = Scratch::new();
        for (codec, tool) in [(Codec::GZIP, "gunzip"), (Codec::ZSTD, "zstd")] {
            let frames = frames(codec, &[b"one\n", b"", &b"two\n".repeat(9999)]);
            assert!(has_mark(&frames[0]) && !has_mark(&frames[1]));
            let path = scratch.path().join("x");
            std::fs::write(&path, frames.concat()).unwrap();
            let file = std::fs::File::open(&path).unwrap();
            let Ok(output) = Command::new(tool).arg("-dc").stdin(file).output() else {
                assert_ne!(tool, "gunzip", "gunzip is missing");
                continue;
            };
            assert!(output.status.success(), "{output:?}");
            assert!(output.stderr.is_empty(), "{output:?}");
            let raw = [b"one\n", &b"two\n".repeat(9999)[..]].concat();
            assert!(output.stdout == raw && read_all(codec, &frames.concat()).unwrap() == raw);
        }
    }

    #[test]
    fn cut_streams_and_trailing_garbage_are_errors() {
        for codec in [Codec::GZIP, Codec::ZSTD] {
            let whole = frames(codec, &[&b"text ".repeat(99), b"more"]).concat();
            let first = frames(codec, &[&b"text ".repeat(99)])[0].len();
            for cut in 1..whole.len() {
                // Skippable mark and first frame are borders, where a cut leaves a valid stream.
                let border = cut == first || (codec == Codec::ZSTD && cut == ZSTD_FRAME.len());
                assert_eq!(
                    read_all(codec, &whole[..cut]).is_ok(),
                    border,
                    "{codec} {cut}"
                );
            }
            let garbage = [&whole[..], b"garbage"].concat();
            assert!(read_all(codec, &garbage).is_err(), "{codec}");
        }
    }

    #[test]
    fn frame_with_any_bit_flipped_or_added_is_damage() {
        let raw = b"a row\tof text\n".repeat(7);
        for codec in [Codec::GZIP, Codec::ZSTD] {
            let frame = frames(codec, &[b"", &raw]).remove(1);
            for bit in 0..frame.len() * 8 {
                let mut bad = frame.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                // Some header bits mean nothing (time, OS): the text must then be right.
                match decode_frame(codec, &bad, raw.len()) {
                    Ok(decoded) => assert!(decoded == raw, "{codec} bit {bit}"),
                    Err(error) => assert_eq!(error.kind, Kind::Damage),
                }
            }
            for bad in [&frame[..frame.len() - 1], &[&frame[..], b"x"].concat()] {
                let error = decode_frame(codec, bad, raw.len()).unwrap_err();
                assert_eq!(error.kind, Kind::Damage);
            }
            assert!(decode_frame(codec, &frame, raw.len() - 1).is_err());
            assert!(decode_frame(codec, &frame, raw.len() + 1).is_err());
        }
    }

    #[test]
    fn a_frame_has_the_slower_level_only_where_that_pays() {
        let mut seed = 7_u64;
        let mut number = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            seed >> 40
        };
        let mut row = |i| format!("{i}\t{}\t{}.{}\n", number(), number() % 1000, number());
        let numbers = (0..9000).map(&mut row).collect::<Vec<_>>().concat();
        let text = include_str!("codec.rs");
        let one = |codec, raw: &str| frames(codec, &[b"", raw.as_bytes()]).remove(1);
        let gzip = |level| Codec::Gzip { level: Some(level) };
        let zstd = |level| Codec::Zstd { level: Some(level) };
        assert!(one(Codec::GZIP, &numbers) == one(gzip(2), &numbers));
        assert!(one(Codec::GZIP, &"a".repeat(99_999)) == one(gzip(1), &"a".repeat(99_999)));
        assert!(one(Codec::ZSTD, &numbers) == one(zstd(1), &numbers));
        assert!(one(Codec::ZSTD, text) == one(zstd(3), text));
        assert!(one(zstd(1), text) != one(zstd(3), text));
    }

    proptest! {
        #[test]
        fn every_frame_comes_back(raw in proptest::collection::vec(any::<u8>(), 0..5000), first: bool) {
            for codec in CODECS {
                let mut frame = b"before".to_vec();
                Compressor::new(codec).unwrap().compress(&raw, first, &mut frame).unwrap();
                prop_assert_eq!(&decode_frame(codec, &frame[6..], raw.len()).unwrap(), &raw);
                prop_assert_eq!(&read_all(codec, &frame[6..]).unwrap(), &raw);
            }
        }
    }
}
