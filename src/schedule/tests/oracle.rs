//! A crond in slow motion: it looks at the wall once a minute, as vixie cron does.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use crate::schedule::Schedule;

/// One field as text, and what it means without any parser.
#[derive(Debug, Clone)]
struct Field {
    text: String,
    values: Vec<i8>,
}

impl Field {
    fn has(&self, value: i8) -> bool {
        self.values.contains(&value)
    }

    fn is_star(&self) -> bool {
        self.text.starts_with('*')
    }
}

#[derive(Debug, Clone)]
struct Crontab {
    minute: Field,
    hour: Field,
    day: Field,
    month: Field,
    weekday: Field,
}

impl Crontab {
    fn text(&self) -> String {
        let Crontab {
            minute,
            hour,
            day,
            month,
            weekday,
        } = self;
        [minute, hour, day, month, weekday]
            .map(|field| field.text.as_str())
            .join(" ")
    }

    fn matches(&self, wall: DateTime) -> bool {
        let weekday = wall.weekday().to_sunday_zero_offset();
        let of_month = self.day.has(wall.day());
        let of_week = self.weekday.has(weekday) || weekday == 0 && self.weekday.has(7);
        let of_day = if self.day.is_star() || self.weekday.is_star() {
            of_month && of_week
        } else {
            of_month || of_week
        };
        of_day
            && self.month.has(wall.month())
            && self.hour.has(wall.hour())
            && self.minute.has(wall.minute())
    }

    /// Every minute of `[from, until)` at which it starts the job. Particular times go by a
    /// clock that never runs back and catches up where the wall leaps.
    fn starts(&self, zone: &TimeZone, from: Timestamp, until: Timestamp) -> Vec<Timestamp> {
        let minute = SignedDuration::from_mins(1);
        let every_hour = (0..24).all(|hour| self.hour.has(hour));
        // A day ahead, to know what the wall has shown before.
        let mut now = from - SignedDuration::from_hours(24);
        let mut shown = zone.to_datetime(now);
        let mut starts = Vec::new();
        while now < until {
            let wall = zone.to_datetime(now);
            let mut due = every_hour && self.matches(wall);
            while shown < wall {
                shown = shown.checked_add(minute).unwrap();
                due |= !every_hour && self.matches(shown);
            }
            if due && now >= from {
                starts.push(now);
            }
            now += minute;
        }
        starts
    }
}

/// Items of a field in `min..=max`; lists of values, ranges and steps.
fn field(min: i8, max: i8) -> impl Strategy<Value = Field> {
    let item = prop_oneof![
        3 => (min..=max).prop_map(|v| (v.to_string(), vec![v])),
        2 => (min..=max, min..=max, 1..20_i8, any::<bool>()).prop_map(|(a, b, step, plain)| {
            let (a, b) = (a.min(b), a.max(b));
            if plain {
                (format!("{a}-{b}"), (a..=b).collect())
            } else {
                let values = (a..=b).filter(|v| (v - a) % step == 0).collect();
                (format!("{a}-{b}/{step}"), values)
            }
        }),
    ];
    let list = proptest::collection::vec(item, 1..4).prop_map(|items| {
        let (texts, values): (Vec<String>, Vec<Vec<i8>>) = items.into_iter().unzip();
        Field {
            text: texts.join(","),
            values: values.concat(),
        }
    });
    let star = move |step: i8| {
        let values = (min..=max).filter(|v| (v - min) % step == 0).collect();
        let text = if step == 1 {
            "*".to_owned()
        } else {
            format!("*/{step}")
        };
        Field { text, values }
    };
    prop_oneof![3 => list, 2 => Just(star(1)), 1 => (2..31_i8).prop_map(star)]
}

fn crontab() -> impl Strategy<Value = Crontab> {
    let month = prop_oneof![4 => Just(Field { text: "*".into(), values: (1..=12).collect() }), 1 => field(1, 12)];
    (field(0, 59), field(0, 23), field(1, 31), month, field(0, 7)).prop_map(
        |(minute, hour, day, month, weekday)| Crontab {
            minute,
            hour,
            day,
            month,
            weekday,
        },
    )
}

/// Days around a change of the offset, or around a leap day.
const PLACES: &[(&str, &str)] = &[
    ("Europe/Berlin", "2025-03-30T01:00:00Z"),
    ("Europe/Berlin", "2025-10-26T01:00:00Z"),
    ("America/New_York", "2024-03-10T07:00:00Z"),
    ("America/New_York", "2024-11-03T06:00:00Z"),
    ("Australia/Lord_Howe", "2025-04-05T15:00:00Z"),
    ("Australia/Lord_Howe", "2025-10-04T15:30:00Z"),
    ("America/Havana", "2025-03-09T05:00:00Z"),
    ("America/Havana", "2025-11-02T05:00:00Z"),
    // Falls back from one minute past midnight into the day before.
    ("America/St_Johns", "2006-10-29T02:31:00Z"),
    ("America/St_Johns", "2006-04-02T03:31:00Z"),
    ("Pacific/Apia", "2011-12-30T10:00:00Z"),
    ("Africa/Casablanca", "2025-02-23T02:00:00Z"),
    ("Asia/Kathmandu", "2024-02-29T12:00:00Z"),
    ("UTC", "2024-02-29T12:00:00Z"),
    ("UTC", "2025-12-31T23:59:00Z"),
];

proptest! {
    #[test]
    fn runs_are_those_of_a_crond_in_slow_motion(
        crontab in crontab(),
        place in proptest::sample::select(PLACES),
        offset_hours in 0..48_i64,
        seconds in 0..60_i64,
    ) {
        let zone = TimeZone::get(place.0).unwrap();
        let middle: Timestamp = place.1.parse().unwrap();
        let from = middle - SignedDuration::from_hours(offset_hours);
        let until = middle + SignedDuration::from_hours(36);
        let schedule = match Schedule::parse(&crontab.text(), &zone) {
            Ok(schedule) => schedule,
            Err(error) => {
                prop_assert!(error.fact.contains("never run"), "{}", error);
                return Ok(());
            }
        };
        let expected = crontab.starts(&zone, from, until);
        let instant = SignedDuration::from_nanos(1);

        let mut found = Vec::new();
        let mut next = schedule.next_after(from - instant);
        while next < until {
            found.push(next);
            next = schedule.next_after(next);
        }
        prop_assert_eq!(&found, &expected, "forwards: {}", schedule);

        found.clear();
        let mut previous = schedule.previous_at(until - instant);
        while previous >= from {
            found.push(previous);
            previous = schedule.previous_at(previous - instant);
        }
        found.reverse();
        prop_assert_eq!(&found, &expected, "backwards: {}", schedule);

        // From anywhere, also between two minutes.
        let now = middle + SignedDuration::from_secs(seconds * 61);
        let next = expected.iter().find(|due| **due > now);
        let previous = expected.iter().rev().find(|due| **due <= now);
        prop_assert!(next.is_none_or(|due| schedule.next_after(now) == *due));
        prop_assert!(previous.is_none_or(|due| schedule.previous_at(now) == *due));
    }

    #[test]
    fn next_and_previous_are_inverse(
        crontab in crontab(),
        place in proptest::sample::select(PLACES),
        second in -2_000_000_000..4_000_000_000_i64,
        nanosecond in 0..1_000_000_000_i32,
    ) {
        let zone = TimeZone::get(place.0).unwrap();
        let time = Timestamp::new(second, nanosecond).unwrap();
        if let Ok(schedule) = Schedule::parse(&crontab.text(), &zone) {
            let next = schedule.next_after(time);
            let previous = schedule.previous_at(time);
            prop_assert!(previous <= time && time < next, "{}", schedule);
            prop_assert_eq!(schedule.next_after(previous), next, "{}", schedule);
            prop_assert_eq!(schedule.previous_at(next), next, "{}", schedule);
            prop_assert_eq!(schedule.previous_at(next - SignedDuration::from_nanos(1)), previous);
            let again = Schedule::parse(&schedule.to_string(), &zone).unwrap();
            prop_assert_eq!(again, schedule);
        }
    }

    #[test]
    fn any_text_is_parsed_or_refused_with_a_hint(
        text in "\\PC{0,40}|[-0-9*/,@a-zL#?\"' =]{0,30}|(CRON_)?TZ=[A-Z/:a-z0-9,.-]{0,12}( [-0-9*/,]{1,4}){5}"
    ) {
        match Schedule::parse(&text, &TimeZone::UTC) {
            Ok(schedule) => {
                schedule.next_after(Timestamp::UNIX_EPOCH);
                schedule.previous_at(Timestamp::UNIX_EPOCH);
            }
            Err(error) => prop_assert!(error.hint.is_some()),
        }
    }
}
