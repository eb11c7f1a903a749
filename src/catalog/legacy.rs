//! Backups of the old service: are they good?
//!
//! A legacy backup has no manifest to be compared with. It is good when its checksum holds and
//! its stream, decoded to the end, closes with pg_dump's completion line. An encrypted one shows
//! no end, and the old service wrote none: its manifest was lost, and it is not good. Reads only.

use std::io::{BufRead, BufReader, Read};

use super::layout::{Part, part_key};
use super::list::{Entry, State};
use crate::error::{Error, Result};
use crate::store::{self, Store, StoreReader};
use crate::units::Codec;

/// The line that pg_dump ends with (`pg_backup_archiver.c`, "dump complete").
const COMPLETE: &[u8] = b"-- PostgreSQL database dump complete";
/// A longer end is kept only in its last part: the lines that matter are short.
const LINE_BYTES_MAX: u64 = 4096;

/// Checks a legacy backup whole: it reads the file twice.
///
/// # Errors
/// `Damage` with the reason when it is not good; `Usage` when it is not a legacy backup.
pub fn check_legacy(store: &dyn Store, entry: &Entry) -> Result<()> {
    if entry.state != State::Legacy {
        return Err(Error::usage(format!("{} is not a legacy backup", entry.id)));
    }
    let damage = |what: String| {
        Error::damage(format!(
            "the legacy backup {} is not good: {what}",
            entry.id
        ))
        .hint("restore another backup; `pgark list` shows them")
    };
    let artefact = part_key(&entry.id, entry.codec, entry.encrypted, Part::Artefact)?;
    let sums = part_key(&entry.id, entry.codec, entry.encrypted, Part::Sums)?;
    let text = store::get(store, &sums)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    // As sha256sum writes it: the sum, a blank, a blank or `*`, the name.
    let expected = text.split_whitespace().next().unwrap_or_default();
    let (_, sha256) = store::hash(store, &artefact)?;
    if !expected.eq_ignore_ascii_case(&sha256) {
        return Err(damage(format!("its SHA-256 is not the one in {sums}")));
    }
    if entry.encrypted {
        return Err(Error::damage(format!(
            "{} is encrypted and has no manifest, so nothing tells whether it is whole",
            entry.id
        ))
        .hint(format!(
            "copy the manifest anew from another store, or try it by hand: `age -d -i KEY {artefact}`"
        )));
    }
    let source = StoreReader::open(store, &artefact)?;
    match ends_complete(entry.codec, source) {
        Ok(true) => Ok(()),
        Ok(false) => Err(damage(
            "pg_dump's completion line is not at its end".to_owned(),
        )),
        Err(error) => Err(damage(error.to_string())),
    }
}

/// Decodes to the end and looks at the last lines. Blank lines, comments' `--` and pg_dump's
/// `\unrestrict` (since August 2025) may follow the completion line.
fn ends_complete(codec: Codec, source: impl Read) -> std::io::Result<bool> {
    let source: Box<dyn Read + '_> = match codec {
        Codec::Gzip { .. } => Box::new(flate2::read::MultiGzDecoder::new(source)),
        Codec::Zstd { .. } => Box::new(zstd::stream::read::Decoder::new(source)?),
        Codec::None => Box::new(source),
    };
    let mut source = BufReader::with_capacity(256 << 10, source);
    let mut complete = false;
    let mut line = Vec::new();
    let mut line_starts = true;
    loop {
        line.clear();
        let count = source
            .by_ref()
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut line)?;
        if count == 0 {
            return Ok(complete);
        }
        let text = line.trim_ascii();
        let starts = line_starts;
        line_starts = line.ends_with(b"\n");
        // A dump of pgark that was copied without its manifest is as whole by its own last lines.
        if starts && (text == COMPLETE || text.starts_with(b"-- pgark: complete, ")) {
            complete = true;
        } else if !(text.is_empty()
            || text == b"--"
            || text == b"\\endif"
            || (starts && text.starts_with(b"\\unrestrict ")))
        {
            complete = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(text: &str) -> bool {
        ends_complete(Codec::None, text.as_bytes()).unwrap()
    }

    #[test]
    fn only_the_completion_line_at_the_end_counts() {
        let end = "--\n-- PostgreSQL database dump complete\n--\n\n";
        assert!(judge(&format!("SELECT 1;\n{end}")));
        assert!(judge(&format!(
            "SELECT 1;\n{end}\\unrestrict abcDEF123\n\n"
        )));
        assert!(judge("-- PostgreSQL database dump complete"));
        for bad in [
            "",
            "SELECT 1;\n",
            "-- PostgreSQL database dump comp",
            "-- PostgreSQL database dump complete\nSELECT 1;\n",
            "x -- PostgreSQL database dump complete\n",
        ] {
            assert!(!judge(bad), "{bad:?}");
        }
        let long = "x".repeat(4096) + "-- PostgreSQL database dump complete\n";
        assert!(!judge(&long));
    }
}
