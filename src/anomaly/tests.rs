//! The rule by examples, and what holds for every history.

use proptest::prelude::*;

use super::*;

const LIMITS: Thresholds = Thresholds {
    rows_fall_percent: 50,
    rows_min: 1000,
    size_fall_percent: 50,
    size_min_bytes: 1 << 20,
    table_gone: true,
    table_gone_rows_min: 1,
    history: 14,
};

fn contents(tables: &[(&str, u64)]) -> Contents {
    let rows = tables.iter().map(|(_, rows)| rows).sum();
    Contents {
        tables: Some(
            tables
                .iter()
                .map(|(name, rows)| Table {
                    name: (*name).to_owned(),
                    rows: *rows,
                })
                .collect(),
        ),
        rows,
        large_objects: 0,
        // Above the minimum, and never falling by itself.
        raw_bytes: 10 << 20,
    }
}

fn words(now: &[(&str, u64)], history: &[&[(&str, u64)]]) -> String {
    let history: Vec<Contents> = history.iter().map(|tables| contents(tables)).collect();
    sentence(&falls(&contents(now), &history, &LIMITS))
}

#[test]
fn a_table_that_is_gone_or_halved_is_named_and_small_ones_are_not() {
    let before: &[(&str, u64)] = &[("s.big", 5000), ("s.small", 999), ("s.empty", 0)];
    assert_eq!(words(before, &[before]), "");
    assert_eq!(words(before, &[]), "", "nothing to compare with");
    let gone = [("s.small", 999), ("s.empty", 0)];
    assert_eq!(
        words(&gone, &[before]),
        "table s.big is gone (5000 rows before)"
    );
    let halved = [("s.big", 2500), ("s.small", 999), ("s.empty", 0)];
    assert_eq!(
        words(&halved, &[before]),
        "table s.big: 5000 -> 2500 rows (-50 %)"
    );
    let nearly = [("s.big", 4000), ("s.small", 0)];
    assert_eq!(
        words(&nearly, &[before]),
        "",
        "a small one emptied, an empty one gone"
    );
    let gone = [("s.big", 5000), ("s.empty", 0)];
    assert_eq!(
        words(&gone, &[before]),
        "table s.small is gone (999 rows before)"
    );
}

#[test]
fn many_small_tables_that_are_emptied_are_seen_in_their_sum() {
    let names = ["s.a", "s.b", "s.c", "s.d"];
    let of = |rows| names.map(|name| (name, rows));
    assert_eq!(
        words(&of(0), &[&of(400)]),
        "rows in all: 1600 -> 0 (-100 %)"
    );
}

#[test]
fn a_table_that_is_emptied_again_and_again_is_no_news_but_a_deeper_fall_is() {
    let of = |rows| [("s.stage", rows), ("s.rest", 1_000_000)];
    assert_eq!(words(&of(0), &[&of(7000), &of(0), &of(7000)]), "");
    let deeper = words(&of(1000), &[&of(9000), &of(4000), &of(4100)]);
    assert_eq!(deeper, "table s.stage: 4100 -> 1000 rows (-75 %)");
    // A young table that grew fast is judged by what it is now.
    let young = words(&of(600), &[&of(1000), &of(50_000), &of(100_000)]);
    assert!(young.starts_with("table s.stage: 100000 -> 600"), "{young}");
    // Gone and back, and gone again.
    let rest = [("s.rest", 1_000_000)];
    assert_eq!(words(&rest, &[&of(5), &rest, &of(5)]), "");
}

#[test]
fn partitions_by_date_come_and_go_and_are_judged_by_their_sum() {
    let monday: &[(&str, u64)] = &[
        ("s.ev_2025_01", 9000),
        ("s.ev_2025_02", 9000),
        ("s.ev_2025_03", 9000),
    ];
    let tuesday: &[(&str, u64)] = &[
        ("s.ev_2025_02", 9000),
        ("s.ev_2025_03", 9000),
        ("s.ev_2025_04", 0),
    ];
    assert_eq!(words(tuesday, &[monday]), "");
    let emptied: &[(&str, u64)] = &[("s.ev_2025_03", 10), ("s.ev_2025_04", 10)];
    assert_eq!(
        words(emptied, &[monday, tuesday]),
        "table s.ev_#_#: 18000 -> 20 rows (-99 %)"
    );
    // Of numbered tables without new ones, each stands for itself.
    let shards: &[(&str, u64)] = &[("s.t1", 1_000_000), ("s.t2", 5000)];
    let one_less: &[(&str, u64)] = &[("s.t1", 1_000_000)];
    assert_eq!(
        words(one_less, &[shards]),
        "table s.t2 is gone (5000 rows before)"
    );
    assert!(words(&[("s.t1", 1_000_000), ("s.t2", 3)], &[shards]).contains("s.t2"));
}

#[test]
fn contents_without_rows_fall_too() {
    let before = contents(&[("s.a", 5)]);
    let emptied = Contents {
        raw_bytes: 1 << 20,
        ..before.clone()
    };
    let said = sentence(&falls(&emptied, std::slice::from_ref(&before), &LIMITS));
    assert_eq!(said, "size: 10.0 MiB -> 1.0 MiB uncompressed (-90 %)");
    let with = |large_objects| Contents {
        large_objects,
        ..before.clone()
    };
    let said = sentence(&falls(&with(10), &[with(4000)], &LIMITS));
    assert_eq!(said, "large objects: 4000 -> 10 (-99 %)");
    let small = Contents {
        raw_bytes: (1 << 20) - 1,
        ..before.clone()
    };
    let none = Contents {
        raw_bytes: 0,
        ..before
    };
    assert_eq!(falls(&none, &[small], &LIMITS), []);
}

#[test]
fn a_thousand_falls_are_told_in_a_few_lines() {
    let names: Vec<String> = (0..1000).map(|i| format!("s{i}x.t")).collect();
    let before: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 7)).collect();
    let falls = falls(&contents(&[]), &[contents(&before)], &LIMITS);
    assert_eq!(falls.len(), FALLS_MAX + 1);
    assert_eq!(falls[FALLS_MAX].to_string(), "and more: 1000 -> 0 tables");
}

#[test]
fn each_rule_can_be_switched_off() {
    let off = Thresholds {
        rows_fall_percent: 0,
        size_fall_percent: 0,
        table_gone: false,
        ..LIMITS
    };
    let before = contents(&[("s.a", 100_000), ("s.b", 100_000)]);
    let after = Contents {
        raw_bytes: 0,
        ..contents(&[("s.a", 0)])
    };
    assert_eq!(falls(&after, std::slice::from_ref(&before), &off), []);
    assert_eq!(falls(&after, &[before], &LIMITS).len(), 3);
}

/// Few names, so that histories share them.
fn any_contents() -> impl Strategy<Value = Contents> {
    let rows = prop_oneof![Just(0_u64), 1..2000_u64, 1000..10_000_000_u64];
    let name = proptest::sample::select(&["s.a", "s.b", "s.p1", "s.p2", "s.p3", "t.a"][..]);
    let tables = proptest::collection::btree_map(name, rows, 0..6);
    let size = prop_oneof![Just(0_u64), 0..5_000_000_u64];
    (tables, size, 0..5000_u64, any::<bool>()).prop_map(|(tables, raw_bytes, objects, named)| {
        let tables: Vec<(&str, u64)> = tables.into_iter().collect();
        let contents = contents(&tables);
        Contents {
            raw_bytes,
            large_objects: objects,
            tables: contents.tables.clone().filter(|_| named),
            ..contents
        }
    })
}

fn any_history() -> impl Strategy<Value = Vec<Contents>> {
    proptest::collection::vec(any_contents(), 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_did_not_shrink_is_never_suspect(
        history in any_history(), last in any_contents(), more in 0..1000_u64, new in any::<bool>()
    ) {
        let mut now = last.clone();
        for table in now.tables.iter_mut().flatten() {
            table.rows += more;
        }
        now.rows += more;
        now.raw_bytes += more;
        now.large_objects += more;
        if let Some(tables) = now.tables.as_mut().filter(|_| new) {
            tables.push(Table { name: "s.p9".to_owned(), rows: more });
        }
        let history = [history, vec![last]].concat();
        prop_assert_eq!(falls(&now, &history, &LIMITS), []);
    }

    #[test]
    fn to_accept_is_to_teach(history in any_history(), now in any_contents()) {
        let history = [history, vec![now.clone()]].concat();
        prop_assert_eq!(falls(&now, &history, &LIMITS), []);
    }

    #[test]
    fn a_large_table_that_falls_after_steady_nights_is_always_named(
        before in any_contents(), nights in 1..5_usize, rows in 1000..10_000_000_u64, left in 0..=50_u64, gone in any::<bool>()
    ) {
        let mut before = before;
        before.tables.get_or_insert_default().push(Table { name: "s.it".to_owned(), rows });
        let mut now = before.clone();
        let tables = now.tables.as_mut().unwrap();
        if gone {
            tables.pop();
        } else {
            tables.last_mut().unwrap().rows = rows * left / 100;
        }
        let found = falls(&now, &vec![before; nights], &LIMITS);
        let expected = if gone { Measure::TableGone } else { Measure::Rows };
        let it = found.iter().find(|fall| fall.table.as_deref() == Some("s.it"));
        prop_assert_eq!(it.map(|fall| (fall.measure, fall.before)), Some((expected, rows)));
    }

    #[test]
    fn small_databases_whose_tables_stay_raise_nothing(
        rows in proptest::collection::vec((0..190_u64, 0..190_u64), 1..5), nights in 1..5_usize
    ) {
        let names = ["s.a", "s.b", "s.c", "s.d"];
        let of = |pick: fn(&(u64, u64)) -> u64| {
            let tables: Vec<_> = names.iter().copied().zip(rows.iter().map(pick)).collect();
            contents(&tables)
        };
        prop_assert_eq!(falls(&of(|pair| pair.1), &vec![of(|pair| pair.0); nights], &LIMITS), []);
    }

    #[test]
    fn the_order_of_tables_means_nothing_and_unknown_ones_are_not_named(
        history in any_history(), now in any_contents()
    ) {
        let found = falls(&now, &history, &LIMITS);
        let turned = |contents: &Contents| {
            let mut contents = contents.clone();
            contents.tables.iter_mut().for_each(|tables| tables.reverse());
            contents
        };
        let others: Vec<Contents> = history.iter().map(turned).collect();
        prop_assert_eq!(&falls(&turned(&now), &others, &LIMITS), &found);
        if now.tables.is_none() {
            prop_assert!(found.iter().all(|fall| fall.table.is_none()));
        }
        for fall in &found {
            prop_assert!(fall.after < fall.before || fall.measure == Measure::Tables);
        }
    }

    #[test]
    fn a_higher_threshold_never_finds_more(
        before in any_contents(), now in any_contents(), low in 1..=100_u32, high in 1..=100_u32
    ) {
        let of = |percent| {
            let limits = Thresholds { rows_fall_percent: percent, ..LIMITS };
            let found = falls(&now, std::slice::from_ref(&before), &limits);
            let rows = found.into_iter().filter(|fall| fall.table.is_some());
            rows.map(|fall| fall.to_string()).collect::<BTreeSet<_>>()
        };
        prop_assert!(of(low.max(high)).is_subset(&of(low.min(high))));
    }
}
