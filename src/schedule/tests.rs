//! The schedule's claims, and a slow oracle that looks at every minute.

use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn schedule(text: &str) -> Schedule {
    Schedule::parse(text, &TimeZone::UTC).unwrap()
}

/// The next `count` runs after a moment, in the schedule's own zone.
fn runs(text: &str, after: &str, count: usize) -> Vec<String> {
    let schedule = schedule(text);
    let mut time = at(after);
    let mut shown = Vec::new();
    for _ in 0..count {
        time = schedule.next_after(time);
        let local = time.to_zoned(schedule.zone().clone());
        shown.push(local.strftime("%m-%d %H:%M %z").to_string());
    }
    shown
}

#[test]
fn the_manuals_schedules_mean_what_the_manual_says() {
    let cases: &[(&str, &str, &[&str])] = &[
        ("0 2 * * *", "2025-01-22T02:00:00Z", &["01-23 02:00 +0000"]),
        (
            "0 */6 * * *",
            "2025-01-22T13:00:00Z",
            &["01-22 18:00 +0000", "01-23 00:00 +0000"],
        ),
        ("0 0 * * 0", "2025-01-22T00:00:00Z", &["01-26 00:00 +0000"]),
        (
            "0 3 */7 * *",
            "2025-01-29T02:00:00Z",
            &["01-29 03:00 +0000", "02-01 03:00 +0000"],
        ),
        (
            "0 */4 * * *",
            "2025-12-31T20:00:00Z",
            &["01-01 00:00 +0000"],
        ),
    ];
    for (text, after, expected) in cases {
        assert_eq!(runs(text, after, expected.len()), *expected, "{text}");
    }
}

#[test]
fn equal_schedules_are_written_in_many_ways() {
    let pairs = [
        ("@hourly", "0 * * * *"),
        ("@Daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
        ("0 0 * * 7", "0 0 * * sun"),
        ("0 0 * * 5-7", "0 0 * * Fri-Sun"),
        ("0 0 * * 6,7,1", "0 0 * * SAT,sun,mon"),
        ("0 0 * * 1-7/2", "0 0 * * 1,3,5,0"),
        ("0 0 1 JAN-mar/2 *", "0 0 1 1,3 *"),
        ("1-30/5 05 * * *", "1,6,11,16,21,26 5 * * *"),
        ("*/60 */24 * * *", "0 0 * * *"),
        ("\t0  2 *\t* * ", "0 2 * * *"),
        ("\"0 2 * * *\"", "0 2 * * *"),
        (" '@daily' ", "0 0 * * *"),
        ("TZ=UTC 0 2 * * *", "0 2 * * *"),
        ("\"CRON_TZ=Etc/UTC  0 2 * * *\"", "0 2 * * *"),
        ("TZ=\"\" 0 2 * * *", "0 2 * * *"),
    ];
    for (one, other) in pairs {
        assert_eq!(schedule(one).fields, schedule(other).fields, "{one}");
        let (mut a, mut b) = (at("2024-02-27T00:00:00Z"), at("2024-02-27T00:00:00Z"));
        for _ in 0..20 {
            a = schedule(one).next_after(a);
            b = schedule(other).next_after(b);
            assert_eq!(a, b, "{one}");
        }
    }
}

#[test]
fn the_text_is_given_back_in_its_normal_form() {
    let berlin = zone("Europe/Berlin").unwrap();
    for (text, normal) in [
        ("\" 0   2 * *  Mon\"", "0 2 * * Mon"),
        (
            "CRON_TZ=Europe/Berlin   @daily",
            "CRON_TZ=Europe/Berlin @daily",
        ),
    ] {
        let schedule = Schedule::parse(text, &berlin).unwrap();
        assert_eq!(schedule.to_string(), normal);
        assert_eq!(*schedule.zone(), berlin);
        assert_eq!(Schedule::parse(normal, &berlin).unwrap(), schedule);
    }
}

#[test]
fn nonsense_is_refused_with_the_field_and_the_way_out() {
    let cases = [
        ("", "it is empty"),
        ("\"\"", "it is empty"),
        ("2", "one field"),
        ("0 2 * *", "4 fields"),
        ("0 0 2 * * *", "six fields"),
        ("0 2 * * * /usr/local/bin/backup.sh", "six fields"),
        ("0 0 30 2 *", "never run"),
        ("0 0 31 4,6,9,nov *", "never run"),
        ("0 0 30 2 */2", "never run"),
        ("60 2 * * *", "minute \"60\" is not valid: it takes 0 to 59"),
        ("0 24 * * *", "hour \"24\""),
        ("0 2 0 * *", "day of month \"0\""),
        ("0 2 L * *", "day of month \"L\""),
        ("0 2 ? * *", "day of month \"?\""),
        ("0 2 * 13 *", "month \"13\""),
        ("0 2 * mon *", "month \"mon\""),
        ("0 2 * * 8", "day of week \"8\""),
        ("0 2 * * monday", "day of week \"monday\""),
        ("0 2 * * 5#2", "day of week \"5#2\""),
        ("5/15 * * * *", "a step needs"),
        ("*/0 * * * *", "the step is not a number"),
        ("*/ * * * *", "the step is not a number"),
        ("*/5/5 * * * *", "the step is not a number"),
        ("*/99999999999999999999 * * * *", "the step is not a number"),
        ("0 22-2 * * *", "runs backwards"),
        ("0 2 * * 6-0", "runs backwards"),
        ("0 2 * * fri-mon", "runs backwards"),
        ("0 2,, * * *", "hour \"\""),
        ("-1 2 * * *", "minute \"\""),
        ("+1 2 * * *", "minute \"+1\""),
        ("0 ２ * * *", "hour \"２\""),
        ("\"0 2 * * *", "a quote is opened"),
        ("@reboot", "\"@reboot\" is not a time"),
        ("@every 1h", "2 fields"),
        (
            "TZ=Mars/Olympus 0 2 * * *",
            "\"Mars/Olympus\" is not a time zone",
        ),
        ("CRON_TZ=UTC", "it is empty"),
    ];
    for (text, fact) in cases {
        let error = Schedule::parse(text, &TimeZone::UTC).unwrap_err();
        assert_eq!(error.kind, crate::error::Kind::Usage);
        assert!(error.fact.contains(fact), "{text}: {}", error.fact);
        assert!(error.hint.is_some(), "{text}");
    }
    let reboot = Schedule::parse("@reboot", &TimeZone::UTC).unwrap_err();
    assert!(reboot.hint.unwrap().contains("BACKUP_ON_START"));
    let long = Schedule::parse(&"0 ".repeat(1000), &TimeZone::UTC).unwrap_err();
    assert!(long.fact.len() < 100);
}

#[test]
fn two_restricted_day_fields_mean_either_and_a_star_with_step_restricts_nothing() {
    let next = |text| runs(text, "2025-06-01T12:00:00Z", 3);
    // The 13th, and every Friday.
    let either = [
        "06-06 00:00 +0000",
        "06-13 00:00 +0000",
        "06-20 00:00 +0000",
    ];
    assert_eq!(next("0 0 13 * 5"), either);
    assert_eq!(
        runs("0 0 14 * 5", "2025-06-13T00:00:00Z", 1),
        ["06-14 00:00 +0000"]
    );
    // The 30 February never comes, Mondays of February do.
    assert_eq!(next("0 0 30 2 1")[0], "02-02 00:00 +0000");
    // Fridays with an odd date.
    let both = [
        "06-13 00:00 +0000",
        "06-27 00:00 +0000",
        "07-11 00:00 +0000",
    ];
    assert_eq!(next("0 0 */2 * 5"), both);
}

#[test]
fn leap_days_come_when_they_come() {
    let leap = schedule("0 0 29 2 *");
    let next = |after: &str| leap.next_after(at(after)).to_string();
    assert_eq!(next("2025-01-01T00:00:00Z"), "2028-02-29T00:00:00Z");
    assert_eq!(next("2096-02-29T00:00:00Z"), "2104-02-29T00:00:00Z");
    let previous = leap.previous_at(at("2103-12-31T00:00:00Z"));
    assert_eq!(previous.to_string(), "2096-02-29T00:00:00Z");
    // On a Sunday: 40 years apart across 2100. The star does not make it "either".
    let sunday = schedule("0 0 29 2 */7");
    let next = sunday.next_after(at("2088-03-01T00:00:00Z"));
    assert_eq!(next.to_string(), "2128-02-29T00:00:00Z");
}

#[test]
fn a_time_that_the_spring_skips_is_due_once_right_after_the_gap() {
    let cases: &[(&str, &str, &[&str])] = &[
        (
            "CRON_TZ=Europe/Berlin */20 2 * * *",
            "2025-03-29T01:30:00Z",
            &[
                "03-29 02:40 +0100",
                "03-30 03:00 +0200",
                "03-31 02:00 +0200",
            ],
        ),
        (
            "CRON_TZ=Europe/Berlin 30 2,14 * * *",
            "2025-03-29T14:00:00Z",
            &["03-30 03:00 +0200", "03-30 14:30 +0200"],
        ),
        (
            "CRON_TZ=Europe/Berlin 0 2,3 * * *",
            "2025-03-29T14:00:00Z",
            &["03-30 03:00 +0200", "03-31 02:00 +0200"],
        ),
        (
            "CRON_TZ=America/New_York 30 2 * * *",
            "2025-03-08T20:00:00Z",
            &["03-09 03:00 -0400", "03-10 02:30 -0400"],
        ),
        (
            "CRON_TZ=Australia/Lord_Howe 15 2 * * *",
            "2025-10-04T00:00:00Z",
            &["10-05 02:30 +1100", "10-06 02:15 +1100"],
        ),
        // At midnight, and a whole day that never was.
        (
            "CRON_TZ=America/Havana 30 */24 * * *",
            "2025-03-08T12:00:00Z",
            &["03-09 01:00 -0400", "03-10 00:30 -0400"],
        ),
        (
            "CRON_TZ=Pacific/Apia 0 2 * * *",
            "2011-12-29T13:00:00Z",
            &["12-31 00:00 +1400", "12-31 02:00 +1400"],
        ),
    ];
    for (text, after, expected) in cases {
        assert_eq!(runs(text, after, expected.len()), *expected, "{text}");
    }
}

#[test]
fn a_time_that_the_autumn_repeats_is_due_at_its_first_showing_only() {
    let cases: &[(&str, &str, &[&str])] = &[
        (
            "CRON_TZ=Europe/Berlin 30 2 * * *",
            "2025-10-25T12:00:00Z",
            &["10-26 02:30 +0200", "10-27 02:30 +0100"],
        ),
        (
            "CRON_TZ=America/New_York 0 1,2 * * *",
            "2025-11-01T12:00:00Z",
            &["11-02 01:00 -0400", "11-02 02:00 -0500"],
        ),
        (
            "CRON_TZ=Australia/Lord_Howe 45 1 * * *",
            "2025-04-05T12:00:00Z",
            &["04-06 01:45 +1100", "04-07 01:45 +1030"],
        ),
    ];
    for (text, after, expected) in cases {
        assert_eq!(runs(text, after, expected.len()), *expected, "{text}");
    }
}

#[test]
fn every_hour_is_every_real_hour() {
    assert_eq!(
        runs("CRON_TZ=Europe/Berlin 0 * * * *", "2025-10-25T23:30:00Z", 4),
        [
            "10-26 02:00 +0200",
            "10-26 02:00 +0100",
            "10-26 03:00 +0100",
            "10-26 04:00 +0100"
        ]
    );
    assert_eq!(
        runs(
            "CRON_TZ=Europe/Berlin 30 0-23 * * *",
            "2025-03-30T00:00:00Z",
            3
        ),
        [
            "03-30 01:30 +0100",
            "03-30 03:30 +0200",
            "03-30 04:30 +0200"
        ]
    );
}

#[test]
fn the_promise_passes_to_a_run_when_its_grace_is_over() {
    let schedule = schedule("0 2 * * 1-5");
    let grace = SignedDuration::from_hours(3);
    let promise = |now: &str| schedule.promise(at(now), grace).to_string();
    // Friday's rules until Monday's has had its three hours.
    assert_eq!(promise("2025-01-20T04:59:59Z"), "2025-01-17T02:00:00Z");
    assert_eq!(promise("2025-01-20T05:00:00Z"), "2025-01-20T02:00:00Z");
    let none = SignedDuration::from_hours(-90);
    let now = at("2025-01-20T02:00:00Z");
    assert_eq!(schedule.promise(now, none), now);
    // The weekend's interval still rules on Monday, and no more on Tuesday.
    let bound = |now: &str| schedule.interval_bound(at(now)).as_hours();
    assert_eq!(bound("2025-01-18T00:00:00Z"), 72);
    assert_eq!(bound("2025-01-20T12:00:00Z"), 72);
    assert_eq!(bound("2025-01-21T12:00:00Z"), 24);
}

#[test]
fn runs_missed_while_down_are_one_run() {
    let schedule = schedule("@daily");
    let missed = |newest: &str| schedule.missed(at(newest), at("2025-01-22T12:00:00Z"));
    assert_eq!(missed("2025-01-22T00:00:00Z"), None);
    assert_eq!(
        missed("2025-01-19T00:00:03Z"),
        Some(at("2025-01-22T00:00:00Z"))
    );
}

#[test]
fn the_next_run_is_told_in_words() {
    let berlin = schedule("CRON_TZ=Europe/Berlin 30 2 * * *");
    assert_eq!(
        berlin.describe_next(at("2025-03-29T21:48:00Z")),
        "2025-03-30 03:00 CEST (2025-03-30 01:00 UTC), in 3 h 12 min"
    );
    let utc = schedule("0 0 1 * *");
    let now = at("2025-01-22T02:00:15Z");
    assert_eq!(utc.describe_next(now), "2025-02-01 00:00 UTC, in 9 d 21 h");
    let soon = schedule("* * * * *").describe_next(now);
    assert_eq!(soon, "2025-01-22 02:01 UTC, in less than a minute");
}

#[test]
fn posix_zones_of_the_old_container_are_known() {
    let text = "CET-1CEST,M3.5.0,M10.5.0/3";
    let schedule = Schedule::parse("30 2 * * *", &zone(text).unwrap()).unwrap();
    let next = schedule.next_after(at("2025-03-29T12:00:00Z"));
    assert_eq!(next.to_string(), "2025-03-30T01:00:00Z");
    assert_eq!(
        zone(":Europe/Berlin").unwrap(),
        zone("europe/berlin").unwrap()
    );
    assert!(zone("../../etc/passwd").is_err());
}

#[test]
fn the_ends_of_the_calendar_are_no_panic() {
    for text in ["CRON_TZ=Pacific/Apia 0 2 29 2 *", "* * * * *", "@yearly"] {
        let schedule = schedule(text);
        for time in [Timestamp::MIN, Timestamp::MAX] {
            assert!(schedule.next_after(time) >= time);
            assert!(schedule.previous_at(time) <= time);
            schedule.interval_bound(time);
            schedule.describe_next(time);
            schedule.promise(time, SignedDuration::MAX);
        }
        assert_eq!(schedule.next_after(Timestamp::MAX), Timestamp::MAX);
    }
}

mod oracle;
