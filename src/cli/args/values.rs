//! The forms of values on the command line. Pure.

use std::path::PathBuf;

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;

use crate::units::Timeline;

/// PostgreSQL's `NAMEDATALEN` less one.
const NAME_LEN_MAX: usize = 63;

/// How much at once.
pub(super) fn jobs(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(jobs @ 1..=64) => Ok(jobs),
        _ => Err("expected a whole number from 1 to 64".to_owned()),
    }
}

/// A database's name.
pub(super) fn database(text: &str) -> Result<String, String> {
    if text.is_empty() {
        Err("a database's name is not empty".to_owned())
    } else if text.len() > NAME_LEN_MAX {
        Err(format!(
            "the name has {} bytes; PostgreSQL's names have at most {NAME_LEN_MAX}",
            text.len()
        ))
    } else {
        Ok(text.to_owned())
    }
}

/// Parses a moment. Without an offset it is UTC, as every time that pgark prints.
pub(super) fn time(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let civil = match text.parse::<Date>() {
        // A date alone is its midnight; one with a time parses below.
        Ok(date) if text.len() <= 10 => date.to_datetime(jiff::civil::Time::midnight()),
        _ => text.parse::<DateTime>().map_err(|_| {
            "expected a time such as 2025-01-22, \"2025-01-22 02:00\" or 2025-01-22T02:00:00Z"
                .to_owned()
        })?,
    };
    civil
        .to_zoned(TimeZone::UTC)
        .map(|zoned| zoned.timestamp())
        .map_err(|_| "the time is out of range".to_owned())
}

/// A timeline; none is the newest. A name of its own, because the parser takes an option of an
/// option for something else.
pub(super) type Along = Option<Timeline>;

/// A timeline's number, or `latest`.
pub(super) fn timeline(text: &str) -> Result<Along, String> {
    match text {
        "latest" => Ok(None),
        number => match number.parse() {
            Ok(timeline) => Ok(Some(timeline)),
            Err(_) => Err("expected `latest` or a timeline's number".to_owned()),
        },
    }
}

/// A tablespace that goes elsewhere.
pub(super) fn mapping(text: &str) -> Result<(PathBuf, PathBuf), String> {
    match text.split_once('=') {
        Some((old, new)) if old.starts_with('/') && new.starts_with('/') => {
            Ok((PathBuf::from(old), PathBuf::from(new)))
        }
        _ => Err("expected OLD=NEW, two absolute paths".to_owned()),
    }
}

/// `100m` → 102400 KiB; a number alone counts KiB, as pg_basebackup's.
pub(super) fn rate_kib(text: &str) -> Result<u32, String> {
    let lower = text.to_ascii_lowercase();
    let (digits, shift) = match lower.as_bytes().last() {
        Some(b'k') => (&lower[..lower.len() - 1], 0),
        Some(b'm') => (&lower[..lower.len() - 1], 10),
        Some(b'g') => (&lower[..lower.len() - 1], 20),
        _ => (&lower[..], 0),
    };
    let kib = digits
        .parse()
        .ok()
        .and_then(|count: u32| count.checked_mul(1 << shift));
    kib.filter(|kib| (32..=1 << 20).contains(kib))
        .ok_or_else(|| "expected 32k to 1g, for example 50m".to_owned())
}
