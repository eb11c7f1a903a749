//! The five fields of a schedule: which minutes of a wall clock they name.
//!
//! Knows no time zone: days are of the calendar and last 24 hours. The language is that of
//! crontab(5) of vixie cron. Refused, because crons disagree or would silently mean something
//! else: a step after a single number (`5/15`: busybox reads 5, others 5-59/15), ranges that
//! run backwards (busybox wraps them, vixie cron does not), and fields that name no day at all.
//! One difference from busybox remains: there `*/2` in a day field restricts it, so that
//! `0 0 */2 * 1` means either; here and in vixie cron it means both.

use jiff::SignedDuration;
use jiff::civil::{Date, DateTime, Time};

use crate::error::{Error, Result};

/// A set of minutes of the wall clock. Bit n of a set stands for the value n.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fields {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    /// Sunday is 0 only.
    weekdays: u64,
    /// Both day fields are restricted: a day that one of them names is named.
    either_day: bool,
}

/// What one field may hold.
struct Rule {
    name: &'static str,
    min: u64,
    max: u64,
    /// Names of the values from `min` on.
    names: &'static [&'static str],
    allowed: &'static str,
}

const MINUTE: Rule = Rule {
    name: "minute",
    min: 0,
    max: 59,
    names: &[],
    allowed: "0 to 59",
};
const HOUR: Rule = Rule {
    name: "hour",
    min: 0,
    max: 23,
    names: &[],
    allowed: "0 to 23",
};
const DAY: Rule = Rule {
    name: "day of month",
    min: 1,
    max: 31,
    names: &[],
    allowed: "1 to 31",
};
const MONTH: Rule = Rule {
    name: "month",
    min: 1,
    max: 12,
    names: &[
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
    ],
    allowed: "1 to 12 or jan to dec",
};
const WEEKDAY: Rule = Rule {
    name: "day of week",
    min: 0,
    max: 7,
    names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
    allowed: "0 to 7 (0 and 7 are Sunday) or sun to sat",
};

/// Most days of each month, January first.
const MONTH_DAYS_MAX: [u32; 12] = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
const ALL_HOURS: u64 = (1 << 24) - 1;
const DAY_MINUTES: u64 = 24 * 60;

impl Fields {
    /// Parses the fields, in their order in a crontab.
    ///
    /// # Errors
    /// `Usage` naming the field and what it may hold; also when no day is named.
    pub(super) fn parse(texts: [&str; 5]) -> Result<Fields> {
        let [minute, hour, day, month, weekday] = texts;
        let weekdays = WEEKDAY.set(weekday)?;
        let fields = Fields {
            minutes: MINUTE.set(minute)?,
            hours: HOUR.set(hour)?,
            days: DAY.set(day)?,
            months: MONTH.set(month)?,
            weekdays: (weekdays | weekdays >> 7) & 0b111_1111,
            // crontab(5): a field that starts with `*` does not restrict, `*/2` included.
            either_day: !day.starts_with('*') && !weekday.starts_with('*'),
        };
        if fields.names_a_day() {
            return Ok(fields);
        }
        Err(Error::usage(format!(
            "no month of {month:?} has a day of {day:?}, so it would never run"
        ))
        .hint("for the last days of every month give 28, the day that all months have"))
    }

    /// Whether some year has a matching day. In 400 years every date falls on every weekday, the
    /// 29 February too, so the weekday never decides.
    fn names_a_day(&self) -> bool {
        self.either_day
            || (1..=12_u32).zip(MONTH_DAYS_MAX).any(|(month, last)| {
                self.months >> month & 1 == 1 && (1..=last).any(|day| self.days >> day & 1 == 1)
            })
    }

    /// Whether every hour is named.
    pub(super) fn is_every_hour(&self) -> bool {
        self.hours == ALL_HOURS
    }

    /// The first minute named at or after `wall`; none when the calendar (year 9999) ends first.
    pub(super) fn at_or_after(&self, wall: DateTime) -> Option<DateTime> {
        let cut = minute_of_day(wall.time());
        let is_whole = moment(wall.date(), cut)? == wall;
        let mut from = if is_whole { cut } else { cut + 1 };
        let mut date = wall.date();
        loop {
            if self.names_day(date) {
                let minute = (from..DAY_MINUTES).find(|minute| self.names_minute(*minute));
                if let Some(minute) = minute {
                    return moment(date, minute);
                }
            }
            date = if self.names_month(date) {
                date.tomorrow().ok()?
            } else {
                date.last_of_month().tomorrow().ok()?
            };
            from = 0;
        }
    }

    /// The last minute named at or before `wall`; none when the calendar ends first.
    pub(super) fn at_or_before(&self, wall: DateTime) -> Option<DateTime> {
        let mut until = minute_of_day(wall.time());
        let mut date = wall.date();
        loop {
            if self.names_day(date) {
                let minute = (0..=until).rfind(|minute| self.names_minute(*minute));
                if let Some(minute) = minute {
                    return moment(date, minute);
                }
            }
            date = if self.names_month(date) {
                date.yesterday().ok()?
            } else {
                date.first_of_month().yesterday().ok()?
            };
            until = DAY_MINUTES - 1;
        }
    }

    fn names_minute(&self, minute: u64) -> bool {
        self.hours >> (minute / 60) & 1 == 1 && self.minutes >> (minute % 60) & 1 == 1
    }

    fn names_month(&self, date: Date) -> bool {
        self.months >> date.month() & 1 == 1
    }

    fn names_day(&self, date: Date) -> bool {
        let weekday = date.weekday().to_sunday_zero_offset();
        let of_month = self.days >> date.day() & 1 == 1;
        let of_week = self.weekdays >> weekday & 1 == 1;
        let named = if self.either_day {
            of_month || of_week
        } else {
            of_month && of_week
        };
        named && self.names_month(date)
    }
}

fn minute_of_day(time: Time) -> u64 {
    u64::from(time.hour().unsigned_abs()) * 60 + u64::from(time.minute().unsigned_abs())
}

fn moment(date: Date, minute: u64) -> Option<DateTime> {
    let since_midnight = SignedDuration::from_secs(i64::try_from(minute * 60).ok()?);
    let midnight = date.to_datetime(Time::midnight());
    midnight.checked_add(since_midnight).ok()
}

impl Rule {
    /// The set that a field's text names.
    fn set(&self, text: &str) -> Result<u64> {
        let mut set = 0;
        for item in text.split(',') {
            set |= self.item(item)?;
        }
        Ok(set)
    }

    /// One item of a list: `*`, a value or a range, with a step if it is no single value.
    fn item(&self, item: &str) -> Result<u64> {
        let (values, step) = match item.split_once('/') {
            Some((values, step)) => (values, Some(step)),
            None => (item, None),
        };
        let (first, last) = if values == "*" {
            (self.min, self.max)
        } else if let Some((first, last)) = values.split_once('-') {
            (self.value(first)?, self.last_value(last)?)
        } else {
            let value = self.value(values)?;
            if let Some(step) = step {
                return Err(self
                    .refused(item, "a step needs `*` or a range before it")
                    .hint(format!(
                        "write {values}-{}/{step}, or {values} alone",
                        self.max
                    )));
            }
            (value, value)
        };
        if first > last {
            return Err(self
                .refused(item, "the range runs backwards")
                .hint("write it as two, as in 22-23,0-2 for the hours from 22 to 2"));
        }
        // Steps beyond the field's values are common (`*/60` for hourly) and clear enough.
        let step = step.map_or(Some(1), |step| number(step).filter(|step| *step > 0));
        let Some(step) = step else {
            return Err(self
                .refused(item, "the step is not a number above 0")
                .hint("a step is written as in */15 or 8-18/2"));
        };
        let mut set = 0;
        let mut value = first;
        while value <= last {
            set |= 1 << value;
            value += step;
        }
        Ok(set)
    }

    fn value(&self, text: &str) -> Result<u64> {
        let name = |name: &&str| name.eq_ignore_ascii_case(text);
        let named = self.names.iter().zip(self.min..).find(|(n, _)| name(n));
        named
            .map(|(_, value)| value)
            .or_else(|| number(text))
            .filter(|value| (self.min..=self.max).contains(value))
            .ok_or_else(|| {
                let fact = format!("it takes {}", self.allowed);
                self.refused(text, &fact).hint(
                    "a field holds `*`, a value, a range 1-5, a list 1,15 or a step */15; \
                     the order is minute, hour, day of month, month, day of week",
                )
            })
    }

    /// The end of a range. Sunday ends the week in `fri-sun`, as 7 does.
    fn last_value(&self, text: &str) -> Result<u64> {
        let is_sunday = self.max == WEEKDAY.max && text.eq_ignore_ascii_case("sun");
        if is_sunday {
            Ok(WEEKDAY.max)
        } else {
            self.value(text)
        }
    }

    fn refused(&self, text: &str, why: &str) -> Error {
        Error::usage(format!("the {} {text:?} is not valid: {why}", self.name))
    }
}

/// Digits only: no sign, no blanks. Four of them bound every sum.
fn number(text: &str) -> Option<u64> {
    let is_short = (1..=4).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    is_short.then(|| text.parse().ok()).flatten()
}
