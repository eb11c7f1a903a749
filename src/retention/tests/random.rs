//! What holds for every history: thousands of random ones, and three years of nights.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

/// Where random histories are looked back from.
const NOW_DAY: i64 = 2000;

fn backup() -> impl Strategy<Value = Backup> {
    // Seconds before now: of late, any time, or ahead of the clock.
    let age = prop_oneof![
        5 => 0..60 * 86_400_i64,
        4 => 0..1800 * 86_400_i64,
        2 => (0..90_i64).prop_map(|days| days * 86_400),
        1 => -100 * 86_400..0_i64,
    ];
    let condition = prop_oneof![
        4 => Just(Condition::Good),
        2 => Just(Condition::Verified),
        2 => Just(Condition::Bad("damaged".into())),
        1 => Just(Condition::Suspect("it fell".into())),
    ];
    let database = proptest::sample::select(&["app", "app-x", "shop"][..]);
    let cluster = proptest::sample::select(&["7301", "9"][..]);
    (0..10, age, condition, database, cluster, 0..100_u64).prop_map(
        |(kind, age, condition, database, cluster, bytes)| {
            let time = night(NOW_DAY) - SignedDuration::from_secs(age);
            let backup = match kind {
                0 => base(cluster, time),
                1 | 2 => globals(time),
                3 => legacy(database, time),
                4 => legacy(database, time).is(condition.clone()),
                _ => dump(database, time),
            };
            let unknown = backup.legacy || matches!(condition, Condition::Bad(_)) && bytes % 3 == 0;
            Backup {
                cluster: if unknown {
                    String::new()
                } else {
                    cluster.to_owned()
                },
                condition: if kind == 3 {
                    Condition::Unchecked
                } else {
                    condition
                },
                bytes,
                ..backup
            }
        },
    )
}

fn history() -> impl Strategy<Value = Vec<Backup>> {
    proptest::collection::vec(backup(), 0..60)
}

fn policy() -> impl Strategy<Value = Policy> {
    let count = || prop_oneof![2 => Just(0), 3 => 1..5_u32];
    let days = prop_oneof![1 => Just(0), 4 => 1..60_u32, 1 => 60..3000_u32];
    (days, count(), count(), count(), count(), count()).prop_map(
        |(days, keep_daily, keep_weekly, keep_monthly, keep_yearly, keep_min)| Policy {
            days,
            keep_daily,
            keep_weekly,
            keep_monthly,
            keep_yearly,
            keep_min,
            wal_days: None,
        },
    )
}

fn any_clock() -> impl Strategy<Value = Clock> {
    let day = prop_oneof![4 => Just(NOW_DAY), 1 => 0..4000_i64];
    (day, any::<bool>()).prop_map(|(day, confirmed)| Clock {
        now: night(day),
        confirmed,
    })
}

/// The survivors.
fn prune(backups: &[Backup], policy: &Policy, clock: Clock) -> Vec<Backup> {
    let plan = plan(backups, policy, clock);
    assert_eq!(plan.decisions.len(), backups.len());
    let kept = backups.iter().zip(&plan.decisions);
    kept.filter(|(_, decision)| decision.keep)
        .map(|(backup, _)| backup.clone())
        .collect()
}

/// In one order, to be compared as sets that may hold equal members.
fn sorted(mut backups: Vec<Backup>) -> Vec<Backup> {
    backups.sort_by(|a, b| (sort_key(a), a.legacy).cmp(&(sort_key(b), b.legacy)));
    backups
}

fn more_days(policy: Policy, more: u32) -> Policy {
    Policy {
        days: policy.days + more,
        ..policy
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_last_good_backup_of_a_database_never_expires(
        history in history(), policy in policy(), clock in any_clock()
    ) {
        let kept = prune(&history, &policy, clock);
        for good in history.iter().filter(|backup| backup.is_good()) {
            let has_good = kept.iter().any(|other| {
                let same = other.kind == good.kind && other.database == good.database;
                // A legacy one gives way to one of pgark's, of whatever cluster.
                same && other.is_good() && (good.legacy || other.cluster == good.cluster)
            });
            prop_assert!(has_good, "{:?}", good);
        }
    }

    #[test]
    fn beside_a_suspect_backup_its_database_stays_whole(
        history in history(), policy in policy(), clock in any_clock()
    ) {
        let kept = prune(&history, &policy, clock);
        for suspect in history.iter().filter(|backup| backup.is_suspect()) {
            let same = |other: &&Backup| other.kind == suspect.kind && other.database == suspect.database;
            prop_assert_eq!(kept.iter().filter(same).count(), history.iter().filter(same).count());
        }
    }

    #[test]
    fn nothing_more_expires_when_nothing_has_happened(
        history in history(), policy in policy(), clock in any_clock()
    ) {
        let once = prune(&history, &policy, clock);
        prop_assert_eq!(prune(&once, &policy, clock), once);
    }

    #[test]
    fn a_policy_that_asks_for_more_keeps_all_that_one_with_less_does(
        history in history(), less in policy(), more in policy(), clock in any_clock()
    ) {
        let more = Policy {
            days: less.days + more.days,
            keep_daily: less.keep_daily + more.keep_daily,
            keep_weekly: less.keep_weekly + more.keep_weekly,
            keep_monthly: less.keep_monthly + more.keep_monthly,
            keep_yearly: less.keep_yearly + more.keep_yearly,
            keep_min: less.keep_min + more.keep_min,
            wal_days: None,
        };
        for more in [more, more_days(less, more.days)] {
            let (few, many) = (plan(&history, &less, clock), plan(&history, &more, clock));
            for (few, many) in few.decisions.iter().zip(&many.decisions) {
                prop_assert!(many.keep || !few.keep, "{} became {}", few, many);
            }
        }
    }

    #[test]
    fn the_order_of_the_list_means_nothing(
        (history, shuffled) in history().prop_flat_map(|h| (Just(h.clone()), Just(h).prop_shuffle())),
        policy in policy(), clock in any_clock()
    ) {
        let kept = sorted(prune(&history, &policy, clock));
        prop_assert_eq!(sorted(prune(&shuffled, &policy, clock)), kept);
    }

    #[test]
    fn one_that_is_not_good_changes_nothing_for_the_others(
        history in history(), bad in backup(), policy in policy(), clock in any_clock()
    ) {
        let mut more = history.clone();
        more.push(bad.bad());
        let (before, after) = (plan(&history, &policy, clock), plan(&more, &policy, clock));
        prop_assert_eq!(&after.decisions[..history.len()], &before.decisions[..]);
    }

    #[test]
    fn databases_do_not_touch_each_other(history in history(), policy in policy()) {
        let clock = Clock { now: night(NOW_DAY), confirmed: true };
        let is_app = |backup: &&Backup| backup.database.as_deref() == Some("app");
        let alone: Vec<Backup> = history.iter().filter(is_app).cloned().collect();
        let together: Vec<Backup> =
            prune(&history, &policy, clock).iter().filter(is_app).cloned().collect();
        prop_assert_eq!(prune(&alone, &policy, clock), together);
    }

    #[test]
    fn every_decision_has_its_reason_in_words(
        history in history(), policy in policy(), clock in any_clock()
    ) {
        let plan = plan(&history, &policy, clock);
        for (backup, decision) in history.iter().zip(&plan.decisions) {
            let last = decision.reasons.last().unwrap();
            prop_assert_eq!(matches!(last, Reason::NoRule(_)), !decision.keep);
            let said = matches!(
                decision.reasons[0],
                Reason::NotGood(_) | Reason::Suspect(_) | Reason::Unchecked
            );
            prop_assert_eq!(said, !backup.is_good());
            prop_assert!(!decision.to_string().is_empty());
        }
        let freed = history.iter().zip(&plan.decisions).filter(|(_, d)| !d.keep);
        prop_assert_eq!(plan.expired_bytes, freed.map(|(b, _)| b.bytes).sum::<u64>());
    }
}

/// What a run leaves: hours since the last one, and its good and bad dumps.
type Step = (i64, bool, bool, bool);

fn take(step: &Step, now: Timestamp) -> Vec<Backup> {
    let (_, is_app_good, with_shop, with_globals) = *step;
    let app = dump("app", now);
    let mut taken = vec![if is_app_good { app } else { app.bad() }];
    if with_shop {
        taken.push(dump("shop", now + SignedDuration::from_mins(5)).is(Condition::Verified));
    }
    if with_globals {
        taken.push(globals(now + SignedDuration::from_mins(9)));
    }
    taken
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Nothing that a later evaluation wants was deleted by an earlier one.
    #[test]
    fn pruning_after_every_run_keeps_what_pruning_once_would(
        steps in proptest::collection::vec(
            (1..90_i64, prop::bool::weighted(0.8), any::<bool>(), any::<bool>()), 1..80),
        policy in policy(),
        legacies in proptest::collection::vec(0..900_i64, 0..20),
    ) {
        let old = |day: &i64| legacy("shop", night(-*day)).is(Condition::Good);
        let mut all: Vec<Backup> = legacies.iter().map(old).collect();
        let mut store = all.clone();
        let mut now = night(0);
        for step in steps {
            now += SignedDuration::from_hours(step.0);
            let taken = take(&step, now);
            now += SignedDuration::from_mins(10);
            all.extend(taken.clone());
            store.extend(taken);
            let clock = Clock { now, confirmed: true };
            store = prune(&store, &policy, clock);
            let at_once = prune(&all, &policy, clock);
            prop_assert_eq!(sorted(store.clone()), sorted(at_once));
        }
    }
}

/// Nights from 2023-01-01 to 2025-12-31, pruned after each; what is left, by day, and the most
/// that was ever left.
fn three_years(policy: Policy) -> (Vec<String>, usize) {
    let mut store: Vec<Backup> = Vec::new();
    let mut most = 0;
    for day in -1096..0 {
        store.push(dump("app", night(day)));
        let now = night(day) + SignedDuration::from_mins(3);
        assert_eq!(plan(&store, &policy, clock(now)).warnings, []);
        store = prune(&store, &policy, clock(now));
        most = most.max(store.len());
    }
    let days: HashSet<String> = store.iter().map(|b| b.day().to_string()).collect();
    assert_eq!(days.len(), store.len());
    let mut days: Vec<String> = days.into_iter().collect();
    days.sort();
    (days, most)
}

#[test]
fn three_years_of_nights_leave_what_the_policy_says() {
    assert_eq!(three_years(DAYS_30).0.len(), 30);
    assert_eq!(three_years(NONE).0, ["2025-12-31"]);
    let generations = Policy {
        keep_daily: 7,
        keep_weekly: 4,
        keep_monthly: 12,
        keep_yearly: 3,
        ..NONE
    };
    let (days, most) = three_years(generations);
    let expected = "2023-12-31 2024-12-31 2025-01-31 2025-02-28 2025-03-31 2025-04-30 \
        2025-05-31 2025-06-30 2025-07-31 2025-08-31 2025-09-30 2025-10-31 2025-11-30 \
        2025-12-14 2025-12-21 2025-12-25 2025-12-26 2025-12-27 2025-12-28 2025-12-29 \
        2025-12-30 2025-12-31";
    assert_eq!(days.join(" "), expected);
    assert!(most <= 7 + 4 + 12 + 3, "{most}");
    // Added to the days: 30 of them hold the dailies, the weeklies and two of the months.
    let added = Policy {
        days: 30,
        ..generations
    };
    assert_eq!(three_years(added).0.len(), 30 + 11 + 2);
    for single in [
        Policy {
            keep_weekly: 10,
            ..NONE
        },
        Policy {
            keep_monthly: 10,
            ..NONE
        },
        Policy {
            keep_daily: 10,
            ..NONE
        },
        Policy {
            keep_min: 10,
            ..NONE
        },
    ] {
        assert_eq!(three_years(single).0.len(), 10, "{single:?}");
    }
    let yearly = Policy {
        keep_yearly: 10,
        ..NONE
    };
    assert_eq!(three_years(yearly).0.len(), 3);
}

#[test]
fn ten_thousand_backups_are_judged_in_a_moment() {
    let backups: Vec<Backup> = (0..5000)
        .flat_map(|n| [dump("app", night(-n)), globals(night(-n))])
        .collect();
    let started = std::time::Instant::now();
    let plan = plan(&backups, &DAYS_30, clock(night(0)));
    assert_eq!(plan.decisions.iter().filter(|d| d.keep).count(), 60);
    assert!(started.elapsed().as_secs() < 5);
}
