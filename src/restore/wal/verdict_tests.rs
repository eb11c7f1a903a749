//! What is answered to a server, by example and against a model of what a server does.

use super::*;
use crate::catalog::layout::{WalFile, wal_key};
use crate::error::Error;
use crate::store::Object;
use crate::units::SystemId;
use jiff::Timestamp;
use proptest::prelude::*;
use std::fmt::Write as _;

const SYSTEM: SystemId = SystemId(7);
const SIZE: SegmentSize = SegmentSize::DEFAULT;
const MIB16: u64 = 16 << 20;

fn timeline(number: u32) -> Timeline {
    Timeline::new(number).unwrap()
}

fn name(tli: u32, number: u64) -> SegmentName {
    SegmentName::holding(timeline(tli), Lsn(number * MIB16), SIZE)
}

fn whole(name: SegmentName) -> WalFile {
    WalFile::Segment {
        name,
        encrypted: false,
    }
}

fn piece(segment: SegmentName) -> WalFile {
    WalFile::Piece {
        segment,
        offset: 0,
        encrypted: false,
    }
}

fn archive(files: &[WalFile]) -> WalArchive {
    let object = |file: &WalFile| Object {
        key: wal_key(SYSTEM, file).unwrap(),
        bytes: 1,
        modified: Timestamp::UNIX_EPOCH,
        etag: None,
    };
    WalArchive::of(SYSTEM, files.iter().map(object).collect())
}

/// A timeline's history from its ancestors.
fn history(tli: u32, ancestors: &[(u32, u64)]) -> TimelineHistory {
    let mut file = String::new();
    for (tli, left) in ancestors {
        let _ = writeln!(file, "{tli}\t{}\tx", Lsn(*left));
    }
    TimelineHistory::parse(timeline(tli), file.as_bytes()).unwrap()
}

fn histories(all: &[TimelineHistory]) -> BTreeMap<Timeline, TimelineHistory> {
    let first = TimelineHistory::first();
    let all = std::iter::once(&first).chain(all);
    all.map(|one| (one.timeline(), one.clone())).collect()
}

fn ask(
    archives: &[(String, Result<WalArchive>)],
    known: &[TimelineHistory],
    wanted: SegmentName,
) -> Verdict {
    let histories = histories(known);
    let listings = Listings {
        archives,
        histories: &histories,
        size: SIZE,
    };
    segment(&listings, wanted)
}

fn one(files: &[WalFile]) -> Vec<(String, Result<WalArchive>)> {
    vec![("local".to_owned(), Ok(archive(files)))]
}

#[test]
fn only_what_is_proven_is_absent() {
    let files: Vec<WalFile> = [1, 2, 4].map(|number| whole(name(1, number))).into();
    let store = one(&files);
    assert_eq!(ask(&store, &[], name(1, 2)), Verdict::Whole(0));
    assert_eq!(ask(&store, &[], name(1, 5)), Verdict::Absent);
    // A gap, and what lies before the archive.
    assert!(matches!(ask(&store, &[], name(1, 3)), Verdict::Unknown(_)));
    assert!(matches!(ask(&store, &[], name(1, 0)), Verdict::Unknown(_)));
    // A store that cannot be listed may hold it.
    let mut two = store.clone();
    two.push(("s3".to_owned(), Err(Error::failed("it is away"))));
    assert!(matches!(ask(&two, &[], name(1, 5)), Verdict::Unknown(_)));
    assert_eq!(ask(&two, &[], name(1, 2)), Verdict::Whole(0));
    // A store that shows nothing of the cluster is perhaps not mounted.
    assert!(matches!(
        ask(&one(&[]), &[], name(1, 5)),
        Verdict::Unknown(_)
    ));
    // What one store lacks the other one has.
    let mut two = one(&files[..2]);
    two.push(("s3".to_owned(), Ok(archive(&[whole(name(1, 3))]))));
    assert_eq!(ask(&two, &[], name(1, 3)), Verdict::Whole(1));
    assert_eq!(ask(&two, &[], name(1, 4)), Verdict::Absent);
}

#[test]
fn what_was_not_received_to_its_end_serves_at_the_end_only() {
    let mut files = vec![whole(name(1, 1)), piece(name(1, 2))];
    assert_eq!(ask(&one(&files), &[], name(1, 2)), Verdict::AtEnd);
    files.push(WalFile::Open(name(1, 3)));
    let behind = ask(&one(&files), &[], name(1, 2));
    assert!(matches!(behind, Verdict::IfComplete(_)), "{behind:?}");
    assert_eq!(ask(&one(&files), &[], name(1, 3)), Verdict::AtEnd);
    // A store that is away may hold it whole.
    let mut two = one(&files);
    two.push(("s3".to_owned(), Err(Error::failed("it is away"))));
    assert!(matches!(ask(&two, &[], name(1, 3)), Verdict::IfComplete(_)));
}

#[test]
fn a_newer_timeline_is_probed_for_what_lies_on_its_ancestor() {
    // Timeline 2 left timeline 1 in the middle of segment 3.
    let left = 3 * MIB16 + 5000;
    let second = [history(2, &[(1, left)])];
    let files = [
        whole(name(1, 1)),
        whole(name(1, 2)),
        piece(name(1, 3)),
        WalFile::History(timeline(2)),
        whole(name(2, 3)),
        whole(name(2, 4)),
    ];
    let store = one(&files);
    assert_eq!(ask(&store, &second, name(2, 2)), Verdict::Absent);
    assert_eq!(ask(&store, &second, name(2, 3)), Verdict::Whole(0));
    assert_eq!(ask(&store, &second, name(2, 5)), Verdict::Absent);
    // The end of the old one, where nobody else goes on.
    assert_eq!(ask(&store, &second, name(1, 3)), Verdict::AtEnd);
    assert_eq!(ask(&store, &second, name(1, 4)), Verdict::Absent);
    // Segment 2 of timeline 1 is needed by both.
    let holed = one(&[files[0], files[2], files[4], files[5]]);
    assert!(matches!(
        ask(&holed, &second, name(1, 2)),
        Verdict::Unknown(_)
    ));
    // So is the one in which timeline 2 began, by what follows there.
    let holed = one(&[files[0], files[1], files[2], files[5]]);
    assert!(matches!(
        ask(&holed, &second, name(2, 3)),
        Verdict::Unknown(_)
    ));
    // Where nothing of the new timeline came yet, the old one serves.
    let young = one(&files[..4]);
    assert_eq!(ask(&young, &second, name(2, 3)), Verdict::Absent);
    assert_eq!(ask(&young, &second, name(1, 3)), Verdict::AtEnd);
    // A history proves that more was written.
    let later = [history(2, &[(1, left + MIB16)])];
    assert!(matches!(
        ask(&young, &later, name(1, 3)),
        Verdict::IfComplete(_)
    ));
    // A timeline of which nothing is known.
    assert_eq!(ask(&store, &second, name(9, 3)), Verdict::Absent);
}

/// A cluster's past: each timeline leaves one before it somewhere.
#[derive(Debug, Clone)]
struct Past {
    histories: Vec<TimelineHistory>,
    /// Up to where each goes, in bytes.
    ends: Vec<u64>,
}

fn past() -> impl Strategy<Value = Past> {
    let forks = prop::collection::vec((any::<prop::sample::Index>(), 0_u64..100, 1_u64..5), 0..4);
    (1_u64..6, forks).prop_map(|(first, forks)| {
        let mut past = Past {
            histories: vec![TimelineHistory::first()],
            ends: vec![first * MIB16 + 100],
        };
        for (parent, percent, length) in forks {
            let parent = parent.index(past.histories.len());
            let parent_history = past.histories[parent].clone();
            let begin = parent_history
                .ancestors()
                .last()
                .map_or(MIB16, |(_, left)| left.0);
            let left = begin + (past.ends[parent] - begin) * percent / 100;
            let mut ancestors: Vec<(u32, u64)> = parent_history
                .ancestors()
                .iter()
                .map(|(tli, lsn)| (tli.number(), lsn.0))
                .collect();
            ancestors.push((parent_history.timeline().number(), left));
            let number = u32::try_from(past.histories.len() + 1).unwrap();
            past.histories.push(history(number, &ancestors));
            past.ends.push(left + length * MIB16 / 2);
        }
        past
    })
}

impl Past {
    /// What a complete archive holds: the last segment of each timeline as a piece.
    fn files(&self) -> Vec<WalFile> {
        let mut files = Vec::new();
        for (history, end) in self.histories.iter().zip(&self.ends) {
            let begin = history.ancestors().last().map_or(MIB16, |(_, left)| left.0);
            for number in begin / MIB16..=end / MIB16 {
                let name = name(history.timeline().number(), number);
                files.push(if number == end / MIB16 {
                    piece(name)
                } else {
                    whole(name)
                });
            }
        }
        files
    }
}

/// What a server does that follows a history: it asks for each segment on the newest timeline first
/// that has begun by then, and never on an older one than before. Gives where it found an end; none
/// when it was stopped.
fn replay(past: &Past, target: usize, store: &[(String, Result<WalArchive>)]) -> Option<u64> {
    let history = &past.histories[target];
    let mut on = 0;
    for number in 1.. {
        let mut served = false;
        let own = [(history.timeline(), Lsn(u64::MAX))];
        let line: Vec<_> = history.ancestors().iter().chain(&own).collect();
        for at in (0..line.len()).rev() {
            let begin = at.checked_sub(1).map_or(0, |before| line[before].1.0);
            let tli = line[at].0;
            if tli.number() < on || number < begin / MIB16 {
                continue;
            }
            match ask(store, &past.histories[1..], name(tli.number(), number)) {
                Verdict::Whole(_) => served = true,
                // It finds the end in it.
                Verdict::AtEnd => return Some(number),
                Verdict::Absent => continue,
                Verdict::Unknown(_) | Verdict::IfComplete(_) => return None,
            }
            on = tli.number();
            break;
        }
        if !served {
            return Some(number);
        }
    }
    None
}

proptest! {
    /// The property for which all of this is there.
    #[test]
    fn a_server_never_ends_before_wal_of_its_history_that_is_there(
        past in past(), gone in prop::collection::vec(any::<bool>(), 60), target in any::<prop::sample::Index>(),
    ) {
        let target = target.index(past.histories.len());
        let left: Vec<WalFile> = past.files().into_iter().zip(&gone).filter(|(_, gone)| !**gone).map(|(file, _)| file).collect();
        let store = one(&left);
        if let Some(end) = replay(&past, target, &store) {
            let history = &past.histories[target];
            for segment in left.iter().filter_map(WalFile::segment) {
                let begin = segment.start(SIZE).unwrap();
                let on = segment.timeline() == history.timeline() || history.left(segment.timeline()).is_some_and(|left| begin < left);
                prop_assert!(!on || begin.0 <= end * MIB16, "ended at {end}, {segment} is there");
            }
        }
    }

    #[test]
    fn a_complete_archive_is_replayed_to_its_end(past in past(), target in any::<prop::sample::Index>()) {
        let target = target.index(past.histories.len());
        let end = replay(&past, target, &one(&past.files()));
        let expected = past.ends[target] / MIB16;
        // A timeline that was left at once may have its end within the segment of its parent.
        prop_assert!(end == Some(expected), "{end:?} {expected}");
    }
}
