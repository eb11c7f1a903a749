//! What `--at` says. Pure.

use std::fmt;

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;

use crate::error::{Error, Result};
use crate::units::Lsn;

/// `MAXFNAMELEN` less one: a restore point's name is no longer.
const NAME_BYTES_MAX: usize = 63;

/// Where recovery shall stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Aim {
    /// As far as the archive goes.
    Latest,
    Time {
        time: Timestamp,
        /// No offset was given: it was taken for UTC.
        assumed_utc: bool,
    },
    Lsn(Lsn),
    /// The end of this transaction.
    Xid(u64),
    /// A restore point.
    Name(String),
}

/// An aim, and on which side of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub aim: Aim,
    /// Stop just before it.
    pub exclusive: bool,
}

impl Target {
    /// Reads `--at` and `--exclusive`.
    ///
    /// # Errors
    /// `Usage` for what is none of its forms.
    pub fn parse(text: &str, exclusive: bool) -> Result<Target> {
        let aim = aim(text)?;
        if exclusive && matches!(aim, Aim::Latest | Aim::Name(_)) {
            return Err(
                Error::usage(format!("--exclusive means nothing with --at {text}"))
                    .hint("it goes with a time, an LSN or xid:N"),
            );
        }
        Ok(Target { aim, exclusive })
    }
}

fn aim(text: &str) -> Result<Aim> {
    if text == "latest" {
        return Ok(Aim::Latest);
    }
    if let Some(number) = text.strip_prefix("xid:") {
        let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        let xid = number.parse().ok().filter(|xid| digits && *xid >= 3);
        return xid.map(Aim::Xid).ok_or_else(|| {
            Error::usage(format!("{text:?} is no transaction"))
                .hint("xid:N with a number from 3 on, as pg_current_xact_id() shows it")
        });
    }
    if let Some(name) = text.strip_prefix("name:") {
        return name_of(name);
    }
    if looks_like_time(text) {
        return time(text);
    }
    match text.parse() {
        Ok(lsn) => Ok(Aim::Lsn(lsn)),
        Err(_) => name_of(text),
    }
}

fn name_of(text: &str) -> Result<Aim> {
    if text.is_empty() || text.len() > NAME_BYTES_MAX || text.contains(['\'', '\n']) {
        return Err(Error::usage(format!("--at {text:?} is no moment")).hint(
            "a time (2025-01-22T14:05:07+01:00), an LSN (16/B374D848), xid:N, latest, or a restore point's name of at most 63 bytes",
        ));
    }
    Ok(Aim::Name(text.to_owned()))
}

/// `2025-…`: a mistyped time must not become a name that nobody gave.
fn looks_like_time(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() > 4 && bytes[..4].iter().all(u8::is_ascii_digit) && bytes[4] == b'-'
}

fn time(text: &str) -> Result<Aim> {
    let given = text.parse::<Timestamp>().ok();
    let given = given.or_else(|| Some(text.parse::<jiff::Zoned>().ok()?.timestamp()));
    if let Some(time) = given {
        return Ok(Aim::Time {
            time,
            assumed_utc: false,
        });
    }
    let civil = match text.parse::<Date>() {
        Ok(date) if text.len() <= 10 => Ok(date.to_datetime(jiff::civil::Time::midnight())),
        _ => text.parse::<DateTime>(),
    };
    let time = civil.and_then(|civil| civil.to_zoned(TimeZone::UTC));
    let time = time.map_err(|error| {
        Error::usage(format!("{text:?} is no time: {error}"))
            .hint("2025-01-22T14:05:07+01:00, or \"2025-01-22 14:05:07\" for UTC")
    })?;
    Ok(Aim::Time {
        time: time.timestamp(),
        assumed_utc: true,
    })
}

impl fmt::Display for Aim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Aim::Latest => f.write_str("the newest moment"),
            Aim::Time { time, .. } => write!(f, "{time}"),
            Aim::Lsn(lsn) => write!(f, "LSN {lsn}"),
            Aim::Xid(xid) => write!(f, "transaction {xid}"),
            Aim::Name(name) => write!(f, "restore point {name:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use proptest::prelude::*;

    fn of(text: &str) -> Aim {
        Target::parse(text, false).unwrap().aim
    }

    #[test]
    fn every_form_is_told_from_the_others() {
        let at = |text: &str, assumed_utc| Aim::Time {
            time: text.parse().unwrap(),
            assumed_utc,
        };
        let five = "2025-01-22T13:05:07Z";
        assert_eq!(of("2025-01-22T14:05:07+01:00"), at(five, false));
        assert_eq!(of("2025-01-22 13:05:07Z"), at(five, false));
        assert_eq!(of("2025-01-22 14:05:07+01"), at(five, false));
        assert_eq!(
            of("2025-01-22T14:05:07+01:00[Europe/Berlin]"),
            at(five, false)
        );
        assert_eq!(of("2025-01-22 13:05:07"), at(five, true));
        assert_eq!(of("2025-01-22"), at("2025-01-22T00:00:00Z", true));
        assert_eq!(of("16/B374D848"), Aim::Lsn(Lsn(0x16_B374_D848)));
        assert_eq!(of("xid:4711"), Aim::Xid(4711));
        assert_eq!(of("latest"), Aim::Latest);
        assert_eq!(of("before release/7"), Aim::Name("before release/7".into()));
        assert_eq!(of("name:latest"), Aim::Name("latest".into()));
        for bad in [
            "",
            "2025-13-01",
            "2025-01-22 25:00",
            "xid:",
            "xid:+5",
            "xid:1",
            "xid:x",
            "a'b",
        ] {
            let error = Target::parse(bad, false).unwrap_err();
            assert_eq!(error.kind, Kind::Usage, "{bad}");
        }
        assert!(Target::parse("latest", true).is_err() && Target::parse("a", true).is_err());
        assert!(Target::parse("0/1", true).unwrap().exclusive);
    }

    proptest! {
        #[test]
        fn any_text_is_a_moment_or_an_error(text in "\\PC{0,80}") {
            let _ = Target::parse(&text, false);
        }
    }
}
