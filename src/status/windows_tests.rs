//! Windows of archives with and without gaps.

use super::*;
use crate::catalog::layout::{WalFile, wal_key};
use crate::catalog::list::State;
use crate::catalog::manifest::{BaseRecord, FileRecord, Manifest};
use crate::store::Object;
use crate::units::{Codec, SegmentSize};

const SYSTEM: SystemId = SystemId(7);
const MIB16: u64 = 16 << 20;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn base(hour: i8, end_lsn: u64) -> Entry {
    let started_at = at(&format!("2025-01-22T{hour:02}:00:00Z"));
    let id = BackupId::base(started_at);
    let mut manifest = Manifest::new(id.clone(), Codec::ZSTD, started_at, started_at);
    manifest.system_identifier = Some(SYSTEM.to_string());
    manifest.base = Some(BaseRecord {
        start_lsn: Lsn(end_lsn - 100),
        start_timeline: Timeline::FIRST,
        end_lsn: Lsn(end_lsn),
        end_timeline: Timeline::FIRST,
        wal_segment_bytes: SegmentSize::DEFAULT,
        from_standby: false,
        archives: Vec::new(),
        backup_manifest: FileRecord::default(),
        bad_checksums: false,
        full_because: None,
        settings: BTreeMap::new(),
    });
    Entry {
        id,
        kind: BackupKind::Base,
        cluster: String::new(),
        database: None,
        state: State::Taken,
        good: true,
        manifest: Some(manifest),
        summary: None,
        artefact: None,
        codec: Codec::ZSTD,
        encrypted: false,
        reason: None,
        unread: false,
        started_at,
        finished_at: Some(started_at),
        bytes: 1,
        raw_bytes: None,
        sha256: None,
    }
}

fn found(entries: &[Entry], segments: &[u64], reached: Option<(u64, &str)>) -> Vec<Window> {
    let object = |number: &u64| Object {
        key: wal_key(
            SYSTEM,
            &WalFile::Segment {
                name: SegmentName::holding(
                    Timeline::FIRST,
                    Lsn(number * MIB16),
                    SegmentSize::DEFAULT,
                ),
                encrypted: false,
            },
        )
        .unwrap(),
        bytes: 1,
        modified: at("2025-01-22T20:00:00Z"),
        etag: None,
    };
    let wal = WalArchive::of(SYSTEM, segments.iter().map(object).collect());
    let histories = BTreeMap::from([(Timeline::FIRST, TimelineHistory::first())]);
    let reached = reached.map(|(lsn, time)| Reached {
        timeline: Timeline::FIRST,
        lsn: Lsn(lsn),
        time: at(time),
    });
    let known = Known {
        wal: &wal,
        histories: &histories,
        reached,
    };
    windows(entries, &known)
}

#[test]
fn a_window_goes_from_a_backup_to_the_first_gap() {
    let first = base(3, 2 * MIB16 + 500);
    let second = base(9, 6 * MIB16 + 500);
    let both = [second.clone(), first.clone()];
    let whole: Vec<u64> = (2..9).collect();
    let one = found(&both, &whole, None);
    assert_eq!(one.len(), 1);
    assert_eq!((one[0].bases, one[0].to_lsn), (2, Lsn(9 * MIB16)));
    assert_eq!((one[0].from, one[0].missing), (first.started_at, None));
    // A gap between them makes two.
    let two = found(
        &both,
        &[2, 3, 6, 7],
        Some((8 * MIB16, "2025-01-22T21:00:00Z")),
    );
    assert_eq!(two.len(), 2);
    assert_eq!(two[0].to_lsn, Lsn(4 * MIB16));
    assert_eq!(
        two[0].missing.unwrap().to_string(),
        "000000010000000000000004"
    );
    assert_eq!(
        (two[1].from_lsn, two[1].missing),
        (Lsn(6 * MIB16 + 500), None)
    );
    // The stream's own word goes for the last one only.
    assert_eq!(two[0].to, None, "when it was archived says nothing");
    assert_eq!(two[1].to, Some(at("2025-01-22T21:00:00Z")));
    let lost = rpo(&two, at("2025-01-22T21:00:05Z")).unwrap();
    assert_eq!(lost.as_secs(), 5);
}

#[test]
fn a_window_that_ends_before_now_is_trouble() {
    let late = |windows: &[Window], now| trouble(windows, at(now), SignedDuration::from_mins(5));
    assert_eq!(
        late(&[], "2025-01-22T21:00:00Z"),
        None,
        "the lack of a base is told elsewhere"
    );
    let bases = [base(3, 2 * MIB16 + 500)];
    let reached = Some((4 * MIB16, "2025-01-22T21:00:00Z"));
    let whole = found(&bases, &[2, 3], reached);
    assert_eq!(late(&whole, "2025-01-22T21:04:00Z"), None);
    let text = late(&whole, "2025-01-22T21:06:00Z").unwrap();
    assert_eq!(text, "no WAL was received since 2025-01-22T21:00:00Z");
    let hole = found(&bases, &[2, 4], Some((5 * MIB16, "2025-01-22T21:00:00Z")));
    let text = late(&hole, "2025-01-22T21:00:00Z").unwrap();
    assert!(
        text.contains("000000010000000000000003 is missing"),
        "{text}"
    );
    // Streaming that never began is as late as one that ended.
    let alone = found(&bases, &[], None);
    assert!(late(&alone, "2025-01-22T21:00:00Z").is_some());
    // A standby's WAL bears no moment: nothing is said of it.
    assert_eq!(
        late(&found(&bases, &[2, 3], None), "2025-01-22T21:06:00Z"),
        None
    );
}

#[test]
fn a_backup_without_wal_is_a_window_of_one_moment() {
    let mut backup = base(3, 2 * MIB16 + 500);
    let one = found(std::slice::from_ref(&backup), &[], None);
    assert_eq!(
        (one[0].from_lsn, one[0].to_lsn),
        (Lsn(2 * MIB16 + 500), Lsn(2 * MIB16 + 500))
    );
    assert_eq!(one[0].to, Some(backup.started_at));
    backup.good = false;
    assert!(found(&[backup], &[2], None).is_empty());
}
