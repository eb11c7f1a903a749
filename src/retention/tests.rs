//! The rules of retention, each by an example. Histories by the thousand are in `random`.

use super::*;
mod random;
mod suspect;
mod window;

const DAYS_30: Policy = Policy {
    days: 30,
    keep_daily: 0,
    keep_weekly: 0,
    keep_monthly: 0,
    keep_yearly: 0,
    keep_min: 1,
    wal_days: None,
};
const NONE: Policy = Policy { days: 0, ..DAYS_30 };

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// Two in the morning, so many days after (or before) the first of January 2026.
fn night(day: i64) -> Timestamp {
    at("2026-01-01T02:00:00Z") + SignedDuration::from_hours(24 * day)
}

fn clock(now: Timestamp) -> Clock {
    Clock {
        now,
        confirmed: false,
    }
}

fn dump(database: &str, time: Timestamp) -> Backup {
    Backup {
        id: BackupId::dump(database, time),
        kind: BackupKind::Dump,
        database: Some(database.to_owned()),
        cluster: "7301".to_owned(),
        time,
        condition: Condition::Good,
        legacy: false,
        bytes: 100,
        parent: None,
        span: None,
    }
}

fn globals(time: Timestamp) -> Backup {
    Backup {
        id: BackupId::globals(time),
        kind: BackupKind::Globals,
        database: None,
        ..dump("x", time)
    }
}

fn base(cluster: &str, time: Timestamp) -> Backup {
    Backup {
        id: BackupId::parse(&format!("base_{}", crate::units::stamp(time))).unwrap(),
        kind: BackupKind::Base,
        database: None,
        cluster: cluster.to_owned(),
        ..dump("x", time)
    }
}

fn legacy(database: &str, time: Timestamp) -> Backup {
    Backup {
        cluster: String::new(),
        condition: Condition::Unchecked,
        legacy: true,
        ..dump(database, time)
    }
}

impl Backup {
    fn is(self, condition: Condition) -> Backup {
        Backup { condition, ..self }
    }

    fn bad(self) -> Backup {
        self.is(Condition::Bad("checksum mismatch".into()))
    }
}

/// The decisions in words, `-` before those that expire.
fn words(backups: &[Backup], policy: Policy, now: Timestamp) -> Vec<String> {
    let plan = plan(backups, &policy, clock(now));
    assert_eq!(plan.warnings, [], "no warning expected");
    let word = |decision: &Decision| {
        let sign = if decision.keep { "+" } else { "-" };
        format!("{sign} {decision}")
    };
    plan.decisions.iter().map(word).collect()
}

#[test]
fn days_are_times_24_hours_and_the_newest_stays_for_ever() {
    let backups = [dump("app", night(0)), dump("app", night(1))];
    let old = "- older than 30 days";
    let young = "+ younger than 30 days";
    let newest = "the newest good backup of app";
    let words = |now| words(&backups, DAYS_30, now);
    let before = night(30) - SignedDuration::from_secs(1);
    assert_eq!(words(before), [young, &format!("{young}, {newest}")]);
    assert_eq!(words(night(30)), [old, &format!("{young}, {newest}")]);
    assert_eq!(words(night(31)), [old, &format!("+ {newest}")]);
    let only = super::plan(&backups[..1], &DAYS_30, clock(night(9000)));
    assert_eq!(only.decisions[0].to_string(), "the only good backup of app");
}

#[test]
fn days_of_zero_leave_all_to_the_other_rules() {
    let backups: Vec<Backup> = (0..4).map(|day| dump("app", night(day))).collect();
    let policy = Policy {
        keep_min: 2,
        ..NONE
    };
    let expected = [
        "- no rule keeps it",
        "- no rule keeps it",
        "+ one of the 2 newest good ones",
        "+ the newest good backup of app",
    ];
    assert_eq!(words(&backups, policy, night(3)), expected);
    let policy = Policy {
        keep_min: 0,
        ..NONE
    };
    let plan = plan(&backups, &policy, clock(night(3)));
    assert_eq!(plan.expired_bytes, 300);
    assert!(plan.decisions[3].keep);
}

#[test]
fn the_newest_of_each_utc_period_is_kept() {
    let policy = Policy {
        keep_daily: 2,
        keep_weekly: 2,
        keep_monthly: 2,
        keep_yearly: 2,
        ..NONE
    };
    let times = [
        "2024-12-30T12:00:00Z",
        "2025-11-30T12:00:00Z",
        "2025-12-28T23:59:59Z",
        "2025-12-29T00:00:00Z",
        "2026-01-03T12:00:00Z",
        "2026-01-04T00:30:00Z",
        "2026-01-04T23:30:00Z",
    ];
    let backups: Vec<Backup> = times.iter().map(|time| dump("app", at(time))).collect();
    assert_eq!(
        words(&backups, policy, at("2026-01-05T00:00:00Z")),
        [
            "- no rule keeps it",
            "- no rule keeps it",
            "+ weekly of 2025-W52",
            "+ monthly of 2025-12, yearly of 2025",
            "+ daily of 2026-01-03",
            "- no rule keeps it",
            "+ the newest good backup of app, daily of 2026-01-04, weekly of 2026-W01, \
             monthly of 2026-01, yearly of 2026"
        ]
    );
}

#[test]
fn what_is_not_good_expires_by_age_and_counts_for_nothing() {
    let backups = [
        dump("app", night(0)),
        dump("app", night(1)).bad(),
        dump("app", night(39)).bad(),
        dump("app", night(40)).is(Condition::Bad("x.sql.gz is missing".into())),
    ];
    assert_eq!(
        words(&backups, DAYS_30, night(40)),
        [
            "+ the only good backup of app",
            "- not good (checksum mismatch), older than 30 days",
            "+ not good (checksum mismatch), younger than 30 days",
            "+ not good (x.sql.gz is missing), younger than 30 days",
        ]
    );
}

#[test]
fn what_is_not_good_stays_while_nothing_is() {
    let unreadable = Backup {
        cluster: String::new(),
        ..dump("app", night(1)).bad()
    };
    let mut backups = vec![
        dump("app", night(0)).bad(),
        unreadable,
        dump("app-x", night(40)),
    ];
    let all = [
        "+ not good (checksum mismatch), there is no good backup of app",
        "+ not good (checksum mismatch), there is no good backup of app",
    ];
    assert_eq!(words(&backups, DAYS_30, night(40))[..2], all);
    // A good one of another cluster lets go of what may be its own only.
    backups[2] = Backup {
        cluster: "9".into(),
        ..dump("app", night(40))
    };
    let old = "- not good (checksum mismatch), older than 30 days";
    assert_eq!(words(&backups, DAYS_30, night(40))[..2], [all[0], old]);
}

#[test]
fn app_never_touches_app_x_nor_another_cluster_nor_a_base_backup() {
    let other = Backup {
        cluster: "9".into(),
        ..dump("app", night(2))
    };
    let backups = [
        dump("app", night(0)),
        dump("app-x", night(1)),
        other,
        base("7301", night(3)),
        base("9", night(4)),
    ];
    assert_eq!(
        words(&backups, NONE, night(5)),
        [
            "+ the only good backup of app",
            "+ the only good backup of app-x",
            "+ the only good backup of app",
            "+ the only good backup of cluster 7301",
            "+ the only good backup of cluster 9",
        ]
    );
}

#[test]
fn legacy_waits_for_a_verified_backup_of_its_own_database_on_any_cluster() {
    let mut backups = vec![
        legacy("app", night(0)),
        legacy("app", night(1)).bad(),
        dump("app", night(40)),
        dump("app-x", night(40)).is(Condition::Verified),
    ];
    let waits = "legacy, and no verified pgark backup of app exists yet";
    let before = words(&backups, DAYS_30, night(40));
    assert_eq!(before[0], format!("+ not checked yet, {waits}"));
    assert_eq!(
        before[1],
        format!("+ not good (checksum mismatch), {waits}")
    );
    // A legacy one that passed its check is good, and no proof of pgark's.
    backups.push(legacy("app", night(2)).is(Condition::Verified));
    let checked = format!("+ {waits}");
    assert_eq!(words(&backups, DAYS_30, night(40))[4], checked);
    backups.push(Backup {
        cluster: "9".into(),
        ..dump("app", night(40)).is(Condition::Verified)
    });
    let after = words(&backups, DAYS_30, night(40));
    assert_eq!(after[0], "- not checked yet, older than 30 days");
    assert_eq!(
        after[1],
        "- not good (checksum mismatch), older than 30 days"
    );
    assert_eq!(after[4], "- older than 30 days");
}

#[test]
fn good_legacy_backups_are_displaced_by_newer_ones_of_pgark_and_never_displace_them() {
    let policy = Policy {
        keep_monthly: 2,
        keep_min: 2,
        ..NONE
    };
    // Even if somebody knew their cluster.
    let good = |day| Backup {
        cluster: "7301".into(),
        ..legacy("app", night(day)).is(Condition::Good)
    };
    // November, December, January; then February by pgark.
    let backups = [
        good(-40),
        good(-10),
        good(5),
        dump("app", night(35)).is(Condition::Verified),
    ];
    let newest = "+ the newest good backup of app, monthly of 2026-01";
    let first = words(&backups[..3], policy, night(5));
    assert!(first[2].starts_with(newest), "{}", first[2]);
    assert_eq!(
        words(&backups, policy, night(35)),
        [
            "- no rule keeps it",
            "- no rule keeps it",
            "+ one of the 2 newest good ones, monthly of 2026-01",
            "+ the only good backup of app, monthly of 2026-02",
        ]
    );
    // A newer legacy one takes no place from pgark's.
    let mut backups = backups.to_vec();
    backups.push(good(70));
    let kept = &words(&backups, policy, night(70))[3];
    assert_eq!(kept, "+ the only good backup of app, monthly of 2026-02");
}

#[test]
fn globals_stay_with_the_dumps_of_their_run() {
    let minute = SignedDuration::from_mins(1);
    let policy = Policy {
        keep_min: 2,
        ..NONE
    };
    let elsewhere = Backup {
        cluster: "9".into(),
        ..globals(night(1))
    };
    let backups = [
        globals(night(0) + minute),
        dump("app", night(1)),
        dump("app-x", night(1)),
        globals(night(1) + minute),
        globals(night(1) + minute * 2),
        // Its run took no globals.
        dump("app", night(2)),
        globals(night(2) + minute).bad(),
        elsewhere,
    ];
    let words = words(&backups, policy, night(3));
    assert_eq!(words[0], "- no rule keeps it");
    assert_eq!(words[3], "+ goes with backup_app_20260102_020000");
    let newest = "+ the newest good backup of cluster 7301";
    assert_eq!(
        words[4],
        format!("{newest}, goes with backup_app_20260103_020000")
    );
    assert_eq!(words[6], "- not good (checksum mismatch), no rule keeps it");
    assert_eq!(words[7], "+ the only good backup of cluster 9");
}

/// Thirty nights, then one more after a silence of so many days.
fn silence(days: i64) -> Vec<Backup> {
    let mut backups: Vec<Backup> = (0..30).map(|day| dump("app", night(day))).collect();
    backups.push(dump("app", night(29 + days)));
    backups
}

#[test]
fn a_clock_that_jumped_expires_nothing_and_is_noticed() {
    let jumped = night(29 + 3650);
    for backups in [&silence(3650)[..], &silence(3650)[..30]] {
        let noticed = plan(backups, &DAYS_30, clock(jumped));
        assert!(noticed.decisions.iter().all(|decision| decision.keep));
        assert_eq!(
            noticed.decisions[0].to_string(),
            "the clock may have jumped"
        );
        let [warning] = &noticed.warnings[..] else {
            panic!("{:?}", noticed.warnings)
        };
        let held = backups.len() - 1;
        let text = warning.to_string();
        assert!(
            text.contains("between 2026-01-30 and 2036-01-28"),
            "{warning}"
        );
        assert!(
            text.ends_with(&format!("nothing expires, {held} would have")),
            "{warning}"
        );
        assert!(warning.hint().contains("three days"));
        let confirmed = Clock {
            now: jumped,
            confirmed: true,
        };
        let sure = plan(backups, &DAYS_30, confirmed);
        let kept = sure.decisions.iter().filter(|d| d.keep).count();
        assert_eq!((kept, sure.warnings.len()), (1, 0));
    }
}

#[test]
fn an_outage_is_believed_after_three_days_with_good_backups() {
    let mut backups = silence(40);
    backups.push(dump("app", night(70)));
    // Several of one day are one day; what is not good is none.
    backups.push(dump("app-x", night(70)));
    backups.push(dump("app", night(71)).bad());
    let kept = |backups: &[Backup], day| {
        let plan = plan(backups, &DAYS_30, clock(night(day)));
        plan.decisions.iter().filter(|d| d.keep).count()
    };
    assert_eq!(kept(&backups, 71), backups.len());
    backups.push(dump("app", night(71)));
    assert_eq!(kept(&backups, 71), 5);
}

#[test]
fn what_is_usual_or_changes_nothing_raises_no_doubt() {
    // Ten days are not far more than one; a young store knows no usual.
    let ten = plan(&silence(10), &DAYS_30, clock(night(39)));
    let eleven = plan(&silence(11), &DAYS_30, clock(night(40)));
    assert_eq!((ten.warnings.len(), eleven.warnings.len()), (0, 1));
    let young = [
        dump("app", night(0)),
        dump("app", night(1)),
        dump("app", night(90)),
    ];
    words(&young, DAYS_30, night(90));
    // Monthly backups are sixty days late.
    let monthly: Vec<Backup> = (0..9).map(|month| dump("app", night(30 * month))).collect();
    words(&monthly, DAYS_30, night(30 * 10));
    // Nothing would have expired.
    let long = Policy {
        days: 9999,
        ..DAYS_30
    };
    words(&silence(100), long, night(129));
    // One database is gone, the others are not.
    let dropped = (0..90).map(|day| dump(if day < 30 { "old" } else { "app" }, night(day)));
    let dropped: Vec<Backup> = dropped.collect();
    assert_eq!(
        words(&dropped, DAYS_30, night(89))[0],
        "- older than 30 days"
    );
}

#[test]
fn backups_of_the_future_are_kept_counted_for_nothing_and_named() {
    let backups = [
        dump("app", night(0)),
        dump("app", night(1)),
        dump("app", night(3700)),
    ];
    let noticed = plan(&backups, &NONE, clock(night(2)));
    let keep: Vec<bool> = noticed.decisions.iter().map(|d| d.keep).collect();
    assert_eq!(keep, [false, true, true]);
    assert_eq!(noticed.decisions[2].to_string(), "dated in the future");
    let text = noticed.warnings[0].to_string();
    assert!(
        text.starts_with("backup_app_20360218_020000 is dated 2036-02-18T02:00:00Z, ahead"),
        "{text}"
    );
    // Half a day ahead is a local time of the old container.
    words(&[dump("app", night(2))], NONE, at("2026-01-02T12:00:00Z"));
}
