//! Reaches, holes and deletions over listings made up.

use super::*;
use crate::store::Key;
use crate::store::local::LocalStore;
use crate::store::put;
use crate::store::tests::Scratch;
use proptest::prelude::*;

const SIZE: SegmentSize = SegmentSize::DEFAULT;
const SYSTEM: SystemId = SystemId(77);

fn timeline(number: u32) -> Timeline {
    Timeline::new(number).unwrap()
}

fn segment(on: u32, number: u64) -> SegmentName {
    SegmentName::holding(timeline(on), Lsn(number * SIZE.bytes()), SIZE)
}

fn lsn(number: u64) -> Lsn {
    Lsn(number * SIZE.bytes())
}

fn archive(names: &[String]) -> WalArchive {
    let objects = names.iter().map(|name| Object {
        key: Key::new(&format!("wal/77/{name}")).unwrap(),
        bytes: 1,
        modified: Timestamp::UNIX_EPOCH,
        etag: None,
    });
    WalArchive::of(SYSTEM, objects.collect())
}

fn whole(on: u32, numbers: impl IntoIterator<Item = u64>) -> Vec<String> {
    let name = |number| format!("{}.zst", segment(on, number));
    numbers.into_iter().map(name).collect()
}

#[test]
fn a_reach_ends_before_a_hole_and_at_the_open_segment() {
    let first = TimelineHistory::first();
    let mut names = whole(1, 3..6);
    names.push(format!("{}.partial.0000000000.zst", segment(1, 6)));
    names.push("README.txt".to_owned());
    let reach = archive(&names).reach(&first, lsn(3).plus(77), SIZE);
    assert_eq!(reach.last, Some(segment(1, 6)));
    assert_eq!((reach.whole_until, reach.hole), (lsn(6), None));
    names.extend(whole(1, 8..10));
    let reach = archive(&names).reach(&first, lsn(3), SIZE);
    assert_eq!(
        reach.hole,
        Some(segment(1, 6)),
        "an open one is a hole when more follows"
    );
    let reach = archive(&names).reach(&first, lsn(2), SIZE);
    assert_eq!((reach.last, reach.hole), (None, Some(segment(1, 2))));
    let reach = archive(&names).reach(&first, lsn(9), SIZE);
    assert_eq!((reach.whole_until, reach.hole), (lsn(10), None));
}

#[test]
fn a_reach_follows_the_history_and_not_what_went_on_beside_it() {
    // Timeline 1 was left in segment 5 and went on alone; 2 begins with its copy of 5.
    let text = format!("1\t{}\tx\n", lsn(5).plus(4096));
    let second = TimelineHistory::parse(timeline(2), text.as_bytes()).unwrap();
    let mut names = whole(1, 3..9);
    names.extend(whole(2, 5..7));
    names.push(timeline(2).history_name());
    let archive = archive(&names);
    let reach = archive.reach(&second, lsn(3), SIZE);
    assert_eq!(reach.last, Some(segment(2, 6)));
    assert_eq!((reach.whole_until, reach.hole), (lsn(7), None));
    let reach = archive.reach(&TimelineHistory::first(), lsn(3), SIZE);
    assert_eq!(reach.last, Some(segment(1, 8)));
    assert_eq!(archive.newest_timeline(), Some(timeline(2)));
    // The old timeline's copy serves up to the switch while the new one's has not come.
    let covering = |names: &[String]| {
        let archive = super::tests::archive(names);
        archive
            .covering(&second, lsn(5), SIZE)
            .map(|(name, _)| name)
    };
    assert_eq!(covering(&names), Some(segment(2, 5)));
    assert_eq!(covering(&whole(1, 3..9)), Some(segment(1, 5)));
    assert_eq!(covering(&whole(1, 3..5)), None);
}

#[test]
fn old_wal_goes_from_the_oldest_on_and_the_reach_is_remembered() {
    let scratch = Scratch::new();
    let store = LocalStore::open(scratch.path()).unwrap();
    let mut names = whole(1, 3..7);
    names.push(format!("{}.partial.0000000000.zst", segment(1, 3)));
    names.extend(whole(2, 5..6));
    for name in &names {
        let key = Key::new(&format!("wal/77/{name}")).unwrap();
        put(&store, &key, b"x", Put::New).unwrap();
    }
    let archive = WalArchive::load(&store, SYSTEM).unwrap();
    // Segment 5 holds the floor.
    let gone = archive.expire(&store, lsn(5).plus(1), SIZE).unwrap();
    assert_eq!(gone, (3, 2));
    let left = WalArchive::load(&store, SYSTEM).unwrap();
    let left: Vec<SegmentName> = left.segments().map(|(name, _)| name).collect();
    assert_eq!(left, [segment(1, 5), segment(1, 6), segment(2, 5)]);
    assert_eq!(systems(&store).unwrap(), [SYSTEM]);
    assert_eq!(reached(&store, SYSTEM).unwrap(), None);
    let note = Reached {
        timeline: timeline(2),
        lsn: lsn(6),
        time: "2025-01-22T03:00:00Z".parse().unwrap(),
    };
    note_reached(&store, SYSTEM, &note).unwrap();
    assert_eq!(reached(&store, SYSTEM).unwrap(), Some(note));
    let unfinished = store.create(&Key::new("wal/77/x.zst").unwrap(), Put::New);
    std::mem::forget(unfinished.unwrap());
    assert_eq!(store.unfinished().unwrap().len(), 1);
    clear_remains(&store).unwrap();
    assert!(store.unfinished().unwrap().is_empty());
}

proptest! {
    #[test]
    fn everything_within_a_reach_is_there(there in prop::collection::btree_set(0_u64..30, 0..30), from in 0_u64..30) {
        let names = whole(1, there.iter().copied());
        let reach = archive(&names).reach(&TimelineHistory::first(), lsn(from), SIZE);
        let until = reach.whole_until.0 / SIZE.bytes();
        prop_assert!((from..until).all(|number| there.contains(&number)));
        prop_assert!(!there.contains(&until));
        prop_assert_eq!(reach.hole.is_some(), there.iter().any(|number| *number > until));
    }
}
