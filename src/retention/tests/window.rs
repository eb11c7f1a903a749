//! The window of archived WAL: what it needs is never thinned away, and its WAL neither.

use proptest::prelude::*;

use super::*;
use crate::units::{Lsn, SegmentSize};

/// Taken in an hour, at a place in WAL that grows with time.
fn base_at(time: Timestamp) -> Backup {
    Backup {
        span: Some(Span {
            ended: time + SignedDuration::from_hours(1),
            start: lsn_at(time),
            segment: SegmentSize::DEFAULT,
        }),
        ..base("7301", time)
    }
}

/// A byte a millisecond: some five segments a day.
fn lsn_at(time: Timestamp) -> Lsn {
    let millis = time.duration_since(night(-4000)).as_millis();
    Lsn(u64::try_from(millis).unwrap())
}

fn segment_of(backup: &Backup) -> Lsn {
    backup
        .span
        .unwrap()
        .start
        .segment_start(SegmentSize::DEFAULT)
}

fn window(days: u32) -> Policy {
    Policy {
        wal_days: Some(days),
        ..NONE
    }
}

fn confirmed(now: Timestamp) -> Clock {
    Clock {
        now,
        confirmed: true,
    }
}

fn prune(backups: &[Backup], policy: &Policy, now: Timestamp) -> Vec<Backup> {
    let plan = plan(backups, policy, confirmed(now));
    let kept = backups.iter().zip(&plan.decisions);
    kept.filter(|(_, decision)| decision.keep)
        .map(|(backup, _)| backup.clone())
        .collect()
}

fn floor(backups: &[Backup], policy: &Policy, now: Timestamp) -> Option<Lsn> {
    wal_floor(backups, "7301", policy, confirmed(now))
}

#[test]
fn the_newest_one_of_before_the_window_stays_and_says_why() {
    let weekly: Vec<Backup> = [0, 7, 14, 21, 28].map(|day| base_at(night(day))).into();
    let plan = plan(&weekly, &window(10), confirmed(night(29)));
    let kept: Vec<bool> = plan.decisions.iter().map(|one| one.keep).collect();
    assert_eq!(kept, [false, false, true, true, true]);
    let reasons = |at: usize| plan.decisions[at].to_string();
    assert_eq!(reasons(2), "the window of 10 days begins with it");
    assert_eq!(reasons(3), "within the window of 10 days");
    assert_eq!(
        floor(&weekly, &window(10), night(29)),
        Some(segment_of(&weekly[2]))
    );
    // Without archived WAL there is no window.
    assert_eq!(prune(&weekly, &NONE, night(29)), weekly[4..]);
    assert_eq!(floor(&weekly, &NONE, night(29)), None);
}

#[test]
fn one_that_ended_within_the_window_does_not_open_it() {
    let early = base_at(night(0));
    let late = base_at(night(10));
    let all = [early.clone(), late.clone()];
    // At its end, and a second later.
    let end = night(20) + SignedDuration::from_hours(1);
    assert_eq!(floor(&all, &window(10), end), Some(segment_of(&early)));
    assert_eq!(prune(&all, &window(10), end), all);
    let end = end + SignedDuration::from_secs(1);
    assert_eq!(floor(&all, &window(10), end), Some(segment_of(&late)));
    assert_eq!(prune(&all, &window(10), end), [late]);
}

#[test]
fn a_young_archive_keeps_its_first_one_and_all_wal_from_there() {
    let all: Vec<Backup> = [0, 1, 2].map(|day| base_at(night(day))).into();
    assert_eq!(prune(&all, &window(30), night(3)), all);
    assert_eq!(
        floor(&all, &window(30), night(3)),
        Some(segment_of(&all[0]))
    );
}

#[test]
fn no_wal_goes_without_a_good_base_backup_or_when_not_all_is_known() {
    let good = base_at(night(0));
    let policy = window(5);
    assert_eq!(floor(&[], &policy, night(9)), None);
    assert_eq!(floor(&[good.clone().bad()], &policy, night(9)), None);
    assert_eq!(
        wal_floor(
            std::slice::from_ref(&good),
            "9",
            &policy,
            confirmed(night(9))
        ),
        None
    );
    // Its manifest cannot be read now: it may be the one that the window needs.
    let unread = Backup {
        cluster: String::new(),
        span: None,
        ..base_at(night(2)).bad()
    };
    assert_eq!(floor(&[good.clone(), unread], &policy, night(9)), None);
    // A clock that jumped makes all of it old.
    let mut nightly: Vec<Backup> = (0..20).map(|day| base_at(night(day))).collect();
    let jumped = clock(night(800));
    assert_eq!(wal_floor(&nightly, "7301", &policy, jumped), None);
    nightly.push(base_at(night(800)));
    assert_eq!(wal_floor(&nightly, "7301", &policy, jumped), None);
}

#[test]
fn what_the_anchor_builds_on_stays_and_its_wal_does_not() {
    let full = base_at(night(0));
    let incremental = Backup {
        parent: Some(full.id.clone()),
        ..base_at(night(5))
    };
    let next = base_at(night(12));
    let all = [full, incremental, next];
    let plan = plan(&all, &window(5), confirmed(night(13)));
    assert_eq!(
        plan.decisions[0].to_string(),
        format!("{} builds on it", all[1].id)
    );
    assert!(plan.decisions.iter().all(|one| one.keep));
    assert_eq!(
        floor(&all, &window(5), night(13)),
        Some(segment_of(&all[1]))
    );
}

#[test]
fn wal_that_a_later_one_needs_stays_although_it_lies_lower() {
    let mut late = base_at(night(3));
    // After a failover that lost some: the new timeline begins lower.
    late.span.as_mut().unwrap().start = lsn_at(night(-1));
    let all = [base_at(night(0)), late.clone()];
    assert_eq!(floor(&all, &window(2), night(4)), Some(segment_of(&late)));
}

/// Hours since the last step, whether a base backup is taken, is good, is incremental, and whether
/// it is pruned afterwards.
type Step = (i64, bool, bool, bool, bool);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let often = prop::bool::weighted(0.8);
    let step = (1..100_i64, often, often, any::<bool>(), any::<bool>());
    proptest::collection::vec(step, 1..60)
}

fn policies() -> impl Strategy<Value = Policy> {
    (0..20_u32, 0..3_u32, 0..3_u32, 1..40_u32).prop_map(|(days, weekly, monthly, wal)| Policy {
        days,
        keep_weekly: weekly,
        keep_monthly: monthly,
        wal_days: Some(wal),
        ..NONE
    })
}

fn take(step: &Step, store: &[Backup], now: Timestamp) -> Option<Backup> {
    let (_, taken, good, incremental, _) = *step;
    if !taken {
        return None;
    }
    let newest = store.iter().rev().find(|one| one.is_good());
    let parent = newest.filter(|_| incremental).map(|one| one.id.clone());
    let base = Backup {
        parent,
        ..base_at(now)
    };
    Some(if good { base } else { base.bad() })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_moment_of_the_window_has_a_base_backup_before_it_and_all_its_wal(
        steps in steps(), policy in policies()
    ) {
        let (mut store, mut all) = (Vec::new(), Vec::new());
        let mut now = night(0);
        let mut deleted = Lsn(0);
        for step in &steps {
            now += SignedDuration::from_hours(step.0);
            if let Some(base) = take(step, &store, now) {
                now = base.span.unwrap().ended;
                store.push(base.clone());
                all.push(base);
            }
            if step.4 {
                let before = floor(&store, &policy, now);
                store = prune(&store, &policy, now);
                let again = prune(&store, &policy, now);
                prop_assert_eq!(&again, &store, "applying it twice changes nothing");
                let after = floor(&store, &policy, now);
                prop_assert_eq!(before, after, "what expires is not what the window needs");
                deleted = deleted.max(after.unwrap_or(Lsn(0)));
            }
            let days = SignedDuration::from_hours(24 * i64::from(policy.wal_days.unwrap()));
            let Some(first) = all.iter().find(|one| one.is_good()) else { continue };
            let begin = first.ended_at().max(now - days);
            // The first moment is the hardest, and each end of one is where the next takes over.
            let serves = store.iter().filter(|one| one.is_good() && one.ended_at() <= begin);
            let serves = serves.max_by_key(|one| one.ended_at());
            prop_assert!(serves.is_some(), "{} has nothing before it", begin);
            let from = segment_of(serves.unwrap());
            prop_assert!(deleted <= from, "{} is deleted below {}", from, deleted);
            for one in store.iter().filter(|one| one.is_good()) {
                let parent = one.parent.as_ref();
                let there = |id| store.iter().any(|other| &other.id == id);
                prop_assert!(parent.is_none_or(there), "{:?} lost its parent", one.id);
            }
        }
    }

    /// The archive does not grow for ever: with regular base backups the floor follows the window.
    #[test]
    fn the_floor_moves_on(every in 1..10_i64, days in 1..40_u32) {
        let mut store = Vec::new();
        for n in 0..100 {
            let now = night(n * every);
            store.push(base_at(now));
            store = prune(&store, &window(days), now + SignedDuration::from_hours(1));
        }
        let now = night(99 * every) + SignedDuration::from_hours(1);
        let behind = i64::from(days) + every + 1;
        let least = lsn_at(now - SignedDuration::from_hours(24 * behind));
        prop_assert!(floor(&store, &window(days), now).unwrap() >= least.segment_start(SegmentSize::DEFAULT));
        prop_assert!(i64::try_from(store.len()).unwrap() <= i64::from(days) / every + 3);
    }
}

impl Backup {
    fn ended_at(&self) -> Timestamp {
        self.span.unwrap().ended
    }
}
