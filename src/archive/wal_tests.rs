//! WAL made up record by record: every record is found again, and nothing behind damage.
//! Real WAL is walked in `tests/wal_records.rs`, with `pg_waldump` as the judge.

use super::event::{EPOCH_MICROSECONDS, MANAGER_XACT, NAME_BYTES, XLOG_RESTORE_POINT};
use super::page::LONG;
use super::*;
use crate::error::{Error, Kind};
use crate::units::{SystemId, Timeline};
use jiff::Timestamp;
use proptest::prelude::*;

const SIZE: u64 = 1 << 20;
const SYSTEM: SystemId = SystemId(42);

fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

fn timeline(number: u32) -> Timeline {
    Timeline::new(number).unwrap()
}

/// A server's WAL from the beginning of segment 3 on.
struct Server {
    start: u64,
    wal: Vec<u8>,
    previous: u64,
}

impl Server {
    fn new() -> Server {
        Server {
            start: 3 * SIZE,
            wal: Vec::new(),
            previous: 0,
        }
    }

    fn at(&self) -> u64 {
        self.start + self.wal.len() as u64
    }

    fn page(&mut self, flags: u16, rest: usize) {
        let at = self.at();
        let long = at.is_multiple_of(SIZE);
        let mut header = vec![0x0D, 0xD1];
        header.extend((flags | if long { LONG } else { 0 }).to_le_bytes());
        header.extend(1_u32.to_le_bytes());
        header.extend(at.to_le_bytes());
        header.extend(u32::try_from(rest).unwrap().to_le_bytes());
        header.extend([0; 4]);
        if long {
            header.extend(SYSTEM.0.to_le_bytes());
            header.extend((1_u32 << 20).to_le_bytes());
            header.extend(8192_u32.to_le_bytes());
        }
        self.wal.extend(header);
    }

    fn record(&mut self, manager: u8, info: u8, xid: u32, data: &[u8]) -> (Lsn, Lsn) {
        let mut body = Vec::new();
        if let Ok(short) = u8::try_from(data.len()) {
            body.extend([255, short]);
        } else {
            body.push(254);
            body.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
        }
        body.extend(data);
        if self.at().is_multiple_of(8192) {
            self.page(0, 0);
        }
        let lsn = self.at();
        let total = u32::try_from(RECORD_HEADER + body.len()).unwrap();
        let mut head = total.to_le_bytes().to_vec();
        head.extend(xid.to_le_bytes());
        head.extend(self.previous.to_le_bytes());
        head.extend([info, manager, 0, 0]);
        let mut crc = Crc32c::default();
        crc.update(&body);
        crc.update(&head);
        head.extend(crc.value().to_le_bytes());
        head.extend(body);
        let mut left = head.as_slice();
        while !left.is_empty() {
            if self.at().is_multiple_of(8192) {
                self.page(CONTINUES, left.len());
            }
            let room = usize::try_from(8192 - self.at() % 8192).unwrap();
            let (now, later) = left.split_at(room.min(left.len()));
            self.wal.extend(now);
            left = later;
        }
        while !self.at().is_multiple_of(8) {
            self.wal.push(0);
        }
        self.previous = lsn;
        (Lsn(lsn), Lsn(self.at()))
    }

    fn commit(&mut self, xid: u32, second: i64) -> (Lsn, Lsn) {
        self.record(MANAGER_XACT, 0x80, xid, &clock(second))
    }
}

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn clock(second: i64) -> Vec<u8> {
    let clock = time(second).as_microsecond() - EPOCH_MICROSECONDS;
    clock.to_le_bytes().to_vec()
}

/// Feeds pieces of these sizes.
fn scan(wal: &[u8], sizes: &[usize]) -> (Scanner, Vec<Record>) {
    let mut scanner = Scanner::new(Lsn(3 * SIZE), size());
    let mut found = Vec::new();
    let (mut at, mut sizes) = (0, sizes.iter().cycle());
    while at < wal.len() {
        let end = wal.len().min(at + sizes.next().unwrap());
        scanner.feed(&wal[at..end], &mut |record| found.push(record));
        at = end;
    }
    scanner.finish(&mut |record| found.push(record));
    (scanner, found)
}

#[test]
fn commits_aborts_and_restore_points_are_found_with_their_times() {
    let mut server = Server::new();
    server.record(10, 0, 7, &[1; 30]);
    let commit = server.commit(7, 1);
    let mut point = clock(2);
    point.extend(b"before the release");
    point.resize(8 + NAME_BYTES, 0);
    let named = server.record(MANAGER_XLOG, XLOG_RESTORE_POINT, 0, &point);
    let abort = server.record(MANAGER_XACT, 0x20, 8, &clock(3));
    // A commit with many sub-transactions has long main data.
    let mut long = clock(4);
    long.resize(400, 9);
    let many = server.record(MANAGER_XACT, 0x80, 9, &long);
    server.record(MANAGER_XACT, 0x10, 10, &clock(5));
    let (scanner, found) = scan(&server.wal, &[usize::MAX >> 1]);
    let event = |(lsn, end): (Lsn, Lsn), event| Record { lsn, end, event };
    let expected = [
        event(
            commit,
            Event::Commit {
                xid: 7,
                time: time(1),
            },
        ),
        event(
            named,
            Event::RestorePoint {
                name: "before the release".to_owned(),
                time: time(2),
            },
        ),
        event(
            abort,
            Event::Abort {
                xid: 8,
                time: time(3),
            },
        ),
        event(
            many,
            Event::Commit {
                xid: 9,
                time: time(4),
            },
        ),
    ];
    assert_eq!(found, expected);
    assert_eq!(scanner.first(), Some(Lsn(3 * SIZE + 40)));
    assert_eq!(scanner.last().unwrap().0, Lsn(server.previous));
}

#[test]
fn a_switch_goes_on_in_the_next_segment_and_zeros_are_the_end() {
    let mut server = Server::new();
    server.commit(7, 1);
    server.record(MANAGER_XLOG, XLOG_SWITCH, 0, &[]);
    let rest = usize::try_from(SIZE).unwrap() - server.wal.len();
    server.wal.extend(vec![0; rest]);
    let (lsn, _) = server.commit(8, 2);
    server.wal.extend(vec![0; 20_000]);
    let (scanner, found) = scan(&server.wal, &[8192]);
    assert_eq!(found.len(), 2);
    assert_eq!(scanner.last().map(|(last, _)| last), Some(lsn));
    assert!(scanner.is_ended());
}

#[test]
fn a_record_that_a_crash_left_unfinished_is_passed_over() {
    let mut server = Server::new();
    server.commit(7, 1);
    let kept = server.previous;
    server.record(10, 0, 8, &[5; 9000]);
    server.wal.truncate(8192);
    server.previous = kept;
    server.page(OVERWRITES, 0);
    let (lsn, _) = server.commit(9, 2);
    let (scanner, found) = scan(&server.wal, &[8192]);
    assert_eq!(found.len(), 2);
    assert_eq!(scanner.last().map(|(last, _)| last), Some(lsn));
}

#[test]
fn pages_of_another_cluster_place_or_timeline_are_refused() {
    let mut server = Server::new();
    for xid in 0..400 {
        server.record(10, 0, xid, &[3; 100]);
    }
    let check = |system, on, lsn| {
        let mut check = PageCheck::new(system, size(), timeline(on));
        // In uneven pieces, so that headers are cut.
        let mut at = 0;
        for piece in server.wal.chunks(8191) {
            check.feed(Lsn(lsn + at), piece)?;
            at += piece.len() as u64;
        }
        Ok::<_, Error>(())
    };
    check(SYSTEM, 1, 3 * SIZE).unwrap();
    check(SYSTEM, 2, 3 * SIZE).unwrap();
    let error = check(SystemId(43), 1, 3 * SIZE).unwrap_err();
    assert_eq!(error.kind, Kind::Damage);
    assert!(
        error.fact.contains("of the cluster 42, not of 43"),
        "{error}"
    );
    assert!(check(SYSTEM, 1, 4 * SIZE).is_err());
    let mut later = Server::new();
    later.page(0, 0);
    later.wal[4] = 9;
    let mut check = PageCheck::new(SYSTEM, size(), timeline(8));
    assert!(check.feed(Lsn(3 * SIZE), &later.wal).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn every_record_is_found_in_any_pieces_and_none_behind_damage(
        lengths in prop::collection::vec(prop_oneof![4 => 0_usize..300, 1 => 8000_usize..20_000], 1..20),
        sizes in prop::collection::vec(1_usize..30_000, 1..5),
        harm in any::<prop::sample::Index>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut server = Server::new();
        let mut expected = Vec::new();
        for (xid, length) in (1..).zip(&lengths) {
            server.record(10, 0, xid, &vec![7; *length]);
            let (lsn, end) = server.commit(xid, i64::from(xid));
            expected.push((lsn, end, xid));
        }
        let shown = |found: &[Record]| -> Vec<(Lsn, Lsn, u32)> {
            found.iter().map(|one| match one.event {
                Event::Commit { xid, .. } => (one.lsn, one.end, xid),
                _ => panic!("{one:?}"),
            }).collect()
        };
        let (scanner, found) = scan(&server.wal, &sizes);
        prop_assert_eq!(shown(&found), expected.clone());
        prop_assert_eq!(scanner.last(), expected.last().map(|(lsn, end, _)| (*lsn, *end)));

        // Cut anywhere: those that are whole by then.
        let cut = cut.index(server.wal.len());
        let (_, found) = scan(&server.wal[..cut], &sizes);
        let padded = |end: &Lsn| end.0 - 3 * SIZE;
        let whole = expected.iter().filter(|(_, end, _)| padded(end) <= cut as u64 + 7).count();
        prop_assert!(found.len() <= whole && found.len() + 1 >= whole, "{} {}", found.len(), whole);
        prop_assert_eq!(&shown(&found)[..], &expected[..found.len()]);

        // A byte that changed: what comes before it is found, and nothing wrong behind it.
        let mut bad = server.wal.clone();
        let at = harm.index(bad.len());
        bad[at] ^= 0x41;
        let (_, found) = scan(&bad, &sizes);
        prop_assert_eq!(&shown(&found)[..], &expected[..found.len()]);
    }

    #[test]
    fn any_bytes_are_records_or_the_end(bytes in prop::collection::vec(any::<u8>(), 0..20_000), sizes in prop::collection::vec(1_usize..9000, 1..3)) {
        let (_, found) = scan(&bytes, &sizes);
        prop_assert!(found.is_empty());
        let _ = PageCheck::new(SYSTEM, size(), timeline(1)).feed(Lsn(3 * SIZE), &bytes);
    }
}
