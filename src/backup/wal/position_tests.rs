//! Beginnings on every kind of history, and what dead streams leave.

use super::*;
use crate::store::{Key, Object};
use crate::units::SystemId;
use jiff::Timestamp;
use proptest::prelude::*;

const SIZE: SegmentSize = SegmentSize::DEFAULT;

fn timeline(number: u32) -> Timeline {
    Timeline::new(number).unwrap()
}

fn at(segment: u64, bytes: u64) -> Lsn {
    Lsn(segment * SIZE.bytes() + bytes)
}

fn place(number: u32, segment: u64) -> Place {
    Place {
        timeline: timeline(number),
        at: at(segment, 0),
    }
}

fn archive(names: &[&str]) -> WalArchive {
    let object = |name: &&str| Object {
        key: Key::new(&format!("wal/7/{name}")).unwrap(),
        bytes: if name.ends_with(".partial") {
            SIZE.bytes()
        } else {
            1
        },
        modified: Timestamp::UNIX_EPOCH,
        etag: None,
    };
    WalArchive::of(SystemId(7), names.iter().map(object).collect())
}

/// 1 was left in segment 5, 2 at the beginning of segment 9.
fn history() -> TimelineHistory {
    let file = format!("1\t{}\tx\n2\t{}\tx\n", at(5, 4096), at(9, 0));
    TimelineHistory::parse(timeline(3), file.as_bytes()).unwrap()
}

#[test]
fn a_stream_goes_on_behind_what_is_stored_in_the_servers_own_history() {
    let begin = |known: &[(u32, u64)], history: &TimelineHistory| {
        let known = known
            .iter()
            .map(|(one, segment)| (timeline(*one), at(*segment, 0)));
        super::begin(&known.collect(), history, at(7, 99), SIZE)
    };
    let first = TimelineHistory::first();
    // Nothing stored: where the slot begins.
    assert_eq!(begin(&[], &first), place(1, 7));
    assert_eq!(begin(&[], &history()), place(2, 7));
    assert_eq!(begin(&[(1, 4)], &first), place(1, 4));
    // An ancestor is received to its end first, as long as that is not stored.
    assert_eq!(begin(&[(1, 4)], &history()), place(1, 4));
    assert_eq!(begin(&[(1, 5)], &history()), place(1, 5));
    // Stored beyond where it was left: the next one, from the segment of the switch on.
    assert_eq!(begin(&[(1, 6)], &history()), place(2, 5));
    assert_eq!(begin(&[(1, 6), (2, 6)], &history()), place(2, 6));
    assert_eq!(begin(&[(2, 9)], &history()), place(3, 9));
    assert_eq!(begin(&[(2, 12)], &history()), place(3, 9));
    assert_eq!(begin(&[(1, 6), (3, 20)], &history()), place(3, 20));
    // A timeline that is none of the server's is no help.
    assert_eq!(begin(&[(1, 3), (4, 30)], &first), place(1, 3));
}

#[test]
fn an_open_file_is_whole_only_before_the_next_one() {
    let names = [
        "000000010000000000000001.partial",
        "000000010000000000000001.zst",
        "000000010000000000000002.partial",
        "000000010000000000000003.partial",
        // A gap: 4 was never received.
        "000000010000000000000005.partial",
        "000000020000000000000005.partial",
    ];
    let archive = archive(&names);
    let fates: Vec<Fate> = settle(&archive, SIZE)
        .into_iter()
        .map(|(_, fate)| fate)
        .collect();
    assert_eq!(
        fates,
        [Fate::Drop, Fate::Pack, Fate::Close, Fate::Close, Fate::Keep]
    );
    let known = known(&archive, SIZE).unwrap();
    assert_eq!(known[&timeline(1)], at(5, 0));
    assert_eq!(known[&timeline(2)], at(5, 0));
}

#[test]
fn an_open_file_that_ends_early_is_never_whole() {
    let object = |name: &str, bytes| Object {
        key: Key::new(&format!("wal/7/{name}")).unwrap(),
        bytes,
        modified: Timestamp::UNIX_EPOCH,
        etag: None,
    };
    // WAL was lost behind it, and a slot began right with the next segment.
    let objects = vec![
        object("000000010000000000000002.partial", 4096),
        object("000000010000000000000003.partial", SIZE.bytes()),
    ];
    let archive = WalArchive::of(SystemId(7), objects);
    let fates: Vec<Fate> = settle(&archive, SIZE)
        .into_iter()
        .map(|(_, fate)| fate)
        .collect();
    assert_eq!(fates, [Fate::Close, Fate::Keep]);
}

#[test]
fn what_is_surely_stored_is_whole_or_begins_a_piece() {
    let found = |names: &[&str]| seen(&archive(names), SIZE).unwrap()[&timeline(1)];
    assert_eq!(found(&["000000010000000000000002.zst"]), at(3, 0));
    let pieces = [
        "000000010000000000000002.zst",
        "000000010000000000000003.partial.0000000007.zst",
        "000000010000000000000003.partial.0000004096.zst",
    ];
    assert_eq!(found(&pieces), at(3, 4097));
    assert_eq!(found(&pieces[..2]), at(3, 0), "it may hold anything");
    let open = ["000000010000000000000003.partial"];
    assert_eq!(
        found(&open),
        at(3, 0),
        "an open file is compared as it comes again"
    );
}

#[test]
fn known_is_the_end_of_a_whole_segment_and_the_beginning_of_another() {
    let whole = archive(&[
        "000000010000000000000001.zst",
        "000000010000000000000002.zst",
    ]);
    assert_eq!(known(&whole, SIZE).unwrap()[&timeline(1)], at(3, 0));
    let pieces = archive(&[
        "000000010000000000000002.zst",
        "000000010000000000000003.partial.0000000000.zst",
    ]);
    assert_eq!(known(&pieces, SIZE).unwrap()[&timeline(1)], at(3, 0));
}

proptest! {
    /// Pieces as a stream stores them, dying now and then: joined, they have no hole.
    #[test]
    fn pieces_never_leave_a_hole(steps in prop::collection::vec((1_u64..5000, any::<bool>()), 1..200)) {
        let mut stored: BTreeMap<u64, u64> = BTreeMap::new();
        let (mut have, mut covered, mut deaths) = (FIRST_PIECE_MIN, None, 0);
        for (more, dies) in steps {
            have += more;
            if dies {
                covered = None;
                deaths += 1;
            }
            let offsets: Vec<u64> = stored.keys().copied().collect();
            let next = next_piece(&offsets, covered);
            prop_assert!(stored.insert(next.offset, have).is_none(), "{next:?}");
            for offset in next.redundant {
                prop_assert!(offset != next.offset);
                stored.remove(&offset);
            }
            covered = Some(have);
            let mut end = 0;
            for (offset, until) in &stored {
                prop_assert!(*offset <= end, "a hole before {offset}");
                end = end.max(*until);
            }
            prop_assert_eq!(end, have);
            prop_assert!(stored.len() <= PIECES_MAX + deaths + 1);
        }
    }
}
