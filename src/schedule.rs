//! When backups are due: a five-field schedule in a time zone. Pure: `now` is a parameter.
//!
//! The language is that of crontab(5) of vixie cron, with `@daily` and its kind and a
//! `CRON_TZ=Area/City ` or `TZ=` before the fields. The one thing from outside is the time zone
//! database, read by [`Schedule::parse`] and [`zone`].
//!
//! Daylight saving follows vixie cron's cron(8): "If the time has moved forwards, those jobs
//! which would have run in the time that was skipped will be run soon after the change.
//! Conversely, if the time has moved backwards […] those jobs that fall into the repeated time
//! will not be re-run. Only jobs that run at a particular time (not specified as @hourly, nor
//! with '*' in the hour or minute specifier) are affected." Here *at a particular time* means: the
//! hours do not name all 24. So `*/30 2 * * *` and `30 */24 * * *` run on the night of the change
//! too, where vixie cron would leave that day without a backup; every-hour jobs (`0 * * * *`) go
//! by the clock on the wall, in each of two equal hours and not in one that is missing.
//!
//! Invariants: `previous_at(t) <= t < next_after(t)`, and no run is due between the two; a
//! particular time is due exactly once, also when the clock shows it twice or not at all.
//!
//! Why not the crate croner (4.0.3): it takes only single values as particular times, so
//! `0 2,14 * * *` is skipped in spring and runs twice in autumn; `*/2` in a day field counts as
//! restricted; and `L`, `W`, `#`, seconds and years are accepted, which no cron of the old service's
//! users knows.

use std::fmt;

use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp};

use crate::error::{Error, Result};
use fields::Fields;

mod fields;

/// When runs are due.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    fields: Fields,
    zone: TimeZone,
    /// As written, with single blanks and without quotes.
    text: String,
}

/// Short forms, as in crontab(5).
const NAMED: &[(&str, [&str; 5])] = &[
    ("@hourly", ["0", "*", "*", "*", "*"]),
    ("@daily", ["0", "0", "*", "*", "*"]),
    ("@midnight", ["0", "0", "*", "*", "*"]),
    ("@weekly", ["0", "0", "*", "*", "0"]),
    ("@monthly", ["0", "0", "1", "*", "*"]),
    ("@yearly", ["0", "0", "1", "1", "*"]),
    ("@annually", ["0", "0", "1", "1", "*"]),
];
const FORM: &str =
    "give minute, hour, day of month, month and day of week, as in \"0 2 * * *\", or @daily";
/// Longest schedule taken, in bytes. A generous bound on what errors repeat.
const TEXT_LEN_MAX: usize = 500;
const INSTANT: SignedDuration = SignedDuration::from_nanos(1);
const MINUTE: SignedDuration = SignedDuration::from_mins(1);

impl Schedule {
    /// Parses a schedule; its times are of `default_zone` unless it names its own.
    ///
    /// One pair of quotes around the whole value is dropped: `- BACKUP_SCHEDULE="0 2 * * *"` in a
    /// list of compose passes them on, and they can mean nothing else.
    ///
    /// # Errors
    /// `Usage` naming the field and what it may hold.
    pub fn parse(text: &str, default_zone: &TimeZone) -> Result<Schedule> {
        if text.len() > TEXT_LEN_MAX {
            let fact = format!("the schedule has {} bytes", text.len());
            return Err(Error::usage(fact).hint(FORM));
        }
        parse(text, default_zone).map_err(|error| error.context(format!("schedule {text:?}")))
    }

    /// The zone of its times.
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// The first moment after `time` when a run is due; [`Timestamp::MAX`] when the calendar ends
    /// (year 9999) before one is.
    pub fn next_after(&self, time: Timestamp) -> Timestamp {
        let next = if self.fields.is_every_hour() {
            self.next_of_every_hour(time)
        } else {
            self.next_of_particular(time)
        };
        next.unwrap_or(Timestamp::MAX)
    }

    /// The last moment at or before `time` when a run was due; [`Timestamp::MIN`] when the
    /// calendar began after it.
    pub fn previous_at(&self, time: Timestamp) -> Timestamp {
        let previous = if self.fields.is_every_hour() {
            self.previous_of_every_hour(time)
        } else {
            self.previous_of_particular(time)
        };
        previous.unwrap_or(Timestamp::MIN)
    }

    /// The moment that the newest good backup must not have started before: the last one due whose
    /// grace has passed. `grace` is the time that a run may take; below zero counts as zero.
    ///
    /// Says nothing of a service younger than its first due run: that is for the caller.
    pub fn promise(&self, now: Timestamp, grace: SignedDuration) -> Timestamp {
        let settled = now.checked_sub(grace.max(SignedDuration::ZERO));
        self.previous_at(settled.unwrap_or(Timestamp::MIN))
    }

    /// The run that was due since `newest`, the start of the newest one, and has not begun by
    /// `now`: the latest of them, since one run makes up for all.
    pub fn missed(&self, newest: Timestamp, now: Timestamp) -> Option<Timestamp> {
        Some(self.previous_at(now)).filter(|due| *due > newest)
    }

    /// The longest time that lies between two runs around `now`: of the present interval and
    /// the one before, which still rules while the run that ended it is going on.
    pub fn interval_bound(&self, now: Timestamp) -> SignedDuration {
        let last = self.previous_at(now);
        let before = last.checked_sub(INSTANT).unwrap_or(Timestamp::MIN);
        let past = last.duration_since(self.previous_at(before));
        past.max(self.next_after(now).duration_since(last))
    }

    /// The next run in words, as in `2025-03-30 03:00 CEST (2025-03-30 01:00 UTC), in 5 h 12 min`.
    pub fn describe_next(&self, now: Timestamp) -> String {
        let next = self.next_after(now);
        let local = next.to_zoned(self.zone.clone());
        let mut text = local.strftime("%Y-%m-%d %H:%M %Z").to_string();
        if self.zone != TimeZone::UTC {
            text += &next.strftime(" (%Y-%m-%d %H:%M UTC)").to_string();
        }
        format!("{text}, in {}", in_words(next.duration_since(now)))
    }

    /// Times are monotonic in what the wall shows, each at its first showing.
    fn next_of_particular(&self, time: Timestamp) -> Option<Timestamp> {
        let mut wall = self.zone.to_datetime(time);
        loop {
            let due = self.fields.at_or_after(wall)?;
            let instant = self.first_showing(due)?;
            if instant > time {
                return Some(instant);
            }
            // Only in a repeated hour, which has been through this minute before.
            wall = due.checked_add(MINUTE).ok()?;
        }
    }

    fn previous_of_particular(&self, time: Timestamp) -> Option<Timestamp> {
        let shown = self.zone.to_datetime(time);
        // In the second of two equal hours all of the first has been.
        let mut wall = match self.zone.to_ambiguous_timestamp(shown).offset() {
            AmbiguousOffset::Fold { before, .. } => before.to_datetime(time),
            _ => shown,
        };
        loop {
            let due = self.fields.at_or_before(wall)?;
            let instant = self.first_showing(due)?;
            if instant <= time {
                return Some(instant);
            }
            wall = due.checked_sub(MINUTE).ok()?;
        }
    }

    /// When the wall first shows `wall`, or has passed it without showing it.
    fn first_showing(&self, wall: DateTime) -> Option<Timestamp> {
        let (before, after) = match self.zone.to_ambiguous_timestamp(wall).offset() {
            AmbiguousOffset::Unambiguous { offset } => return offset.to_timestamp(wall).ok(),
            AmbiguousOffset::Fold { before, .. } => return before.to_timestamp(wall).ok(),
            AmbiguousOffset::Gap { before, after } => (before, after),
        };
        // The change lies after what the new offset makes of it, and not after what the old does.
        let early = after.to_timestamp(wall).ok()?;
        let late = before.to_timestamp(wall).ok()?;
        let change = self.zone.following(early).next();
        Some(change.map_or(late, |change| change.timestamp().min(late)))
    }

    /// From one change of the offset to the next, wall and time run alike.
    fn next_of_every_hour(&self, time: Timestamp) -> Option<Timestamp> {
        let mut from = time.checked_add(INSTANT).ok()?;
        loop {
            let offset = self.zone.to_offset(from);
            let due = self.fields.at_or_after(offset.to_datetime(from))?;
            let change = self.zone.following(from).next();
            let instant = offset.to_timestamp(due).ok();
            match change.map(|change| change.timestamp()) {
                Some(change) if instant.is_none_or(|instant| instant >= change) => from = change,
                _ => return instant,
            }
        }
    }

    fn previous_of_every_hour(&self, time: Timestamp) -> Option<Timestamp> {
        let mut until = time;
        loop {
            let offset = self.zone.to_offset(until);
            let due = self.fields.at_or_before(offset.to_datetime(until))?;
            let beyond = until.checked_add(INSTANT).unwrap_or(until);
            let change = self.zone.preceding(beyond).next();
            let instant = offset.to_timestamp(due).ok();
            match change.map(|change| change.timestamp()) {
                Some(change) if instant.is_none_or(|instant| instant < change) => {
                    until = change.checked_sub(INSTANT).ok()?;
                }
                _ => return instant,
            }
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

/// The time zone of a name: of the database (`Europe/Berlin`), or spelt out as POSIX has it
/// (`CET-1CEST,M3.5.0,M10.5.0/3`, all that the old container knew). Empty is UTC, as in tzset(3).
///
/// # Errors
/// `Usage` when it is neither.
pub fn zone(name: &str) -> Result<TimeZone> {
    let known = name.strip_prefix(':').unwrap_or(name);
    if known.is_empty() || known.eq_ignore_ascii_case("utc") {
        return Ok(TimeZone::UTC);
    }
    TimeZone::get(known)
        .or_else(|_| TimeZone::posix(known))
        .map_err(|_| {
            Error::usage(format!("{name:?} is not a time zone that is known here"))
                .hint("give a name such as Europe/Berlin or UTC")
        })
}

fn parse(text: &str, default_zone: &TimeZone) -> Result<Schedule> {
    let inner = unquote(text.trim())?.trim();
    let (prefix, rest) = split_zone(inner);
    let zone = match prefix.and_then(|prefix| prefix.split_once('=')) {
        Some((_, name)) => zone(unquote(name)?)?,
        None => default_zone.clone(),
    };
    let words: Vec<&str> = rest.split_whitespace().collect();
    let fields = match words.as_slice() {
        [name] if name.starts_with('@') => named(name)?,
        &[minute, hour, day, month, weekday] => [minute, hour, day, month, weekday],
        words => return Err(miscounted(words)),
    };
    Ok(Schedule {
        fields: Fields::parse(fields)?,
        zone,
        text: prefix
            .into_iter()
            .chain(words)
            .collect::<Vec<_>>()
            .join(" "),
    })
}

/// `CRON_TZ=Area/City` or `TZ=` at the front, and what follows.
fn split_zone(text: &str) -> (Option<&str>, &str) {
    if text.starts_with("TZ=") || text.starts_with("CRON_TZ=") {
        let end = text.find(char::is_whitespace).unwrap_or(text.len());
        (Some(&text[..end]), &text[end..])
    } else {
        (None, text)
    }
}

/// Without the one pair of quotes around it.
fn unquote(text: &str) -> Result<&str> {
    for quote in ['"', '\''] {
        let inner = text
            .strip_prefix(quote)
            .map(|rest| rest.strip_suffix(quote));
        match inner {
            Some(Some(inner)) => return Ok(inner),
            Some(None) => {
                return Err(Error::usage("a quote is opened and not closed")
                    .hint("remove the quote; a schedule needs none"));
            }
            None => {}
        }
    }
    Ok(text)
}

fn named(name: &str) -> Result<[&'static str; 5]> {
    if let Some((_, fields)) = NAMED.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)) {
        return Ok(*fields);
    }
    let error = Error::usage(format!("{name:?} is not a time"));
    Err(if name.eq_ignore_ascii_case("@reboot") {
        error.hint("a backup at the start is BACKUP_ON_START=true; the schedule is for the rest")
    } else {
        error.hint(
            "give @hourly, @daily, @midnight, @weekly, @monthly, @yearly or @annually, or five fields",
        )
    })
}

fn miscounted(words: &[&str]) -> Error {
    let fact = match words.len() {
        0 => "it is empty".to_owned(),
        1 => "it has one field, a schedule has five".to_owned(),
        6 => "it has six fields, a schedule has five".to_owned(),
        count => format!("it has {count} fields, a schedule has five"),
    };
    let error = Error::usage(fact);
    if words.len() > 5 {
        error.hint(format!("leave out seconds, a year or a command; {FORM}"))
    } else {
        error.hint(FORM)
    }
}

/// A span of time in its two largest units, cut to minutes.
fn in_words(span: SignedDuration) -> String {
    let minutes = span.as_mins();
    let (days, hours) = (minutes / 1440, minutes / 60 % 24);
    match (days, hours, minutes % 60) {
        (0, 0, 0) => "less than a minute".to_owned(),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests;
