//! WAL of real servers, walked by pgark and by `pg_waldump`: both see the same records.

use crate::support::{Server, run};
use pgark::archive::wal::{Event, PageCheck, Record, Scanner};
use pgark::units::{Lsn, SegmentName, SegmentSize, SystemId, Timeline};
use std::collections::BTreeMap;
use std::process::Command;

const WORK: &str = "
    CREATE TABLE t (i int PRIMARY KEY, m text);
    INSERT INTO t SELECT i, repeat(md5(i::text), 40) FROM generate_series(1, 9000) i;
    SELECT pg_create_restore_point('before the harm');
    DELETE FROM t WHERE i % 3 = 0;
    SELECT pg_switch_wal();
    BEGIN; UPDATE t SET m = 'x'; ROLLBACK;
    VACUUM FULL t;
    DO $$ BEGIN FOR n IN 1..200 LOOP INSERT INTO t VALUES (100000 + n, n::text); COMMIT; END LOOP; END $$;
    -- A long record: many sub-transactions in one commit.
    DO $$ BEGIN FOR n IN 1..150 LOOP BEGIN INSERT INTO t VALUES (200000 + n, ''); EXCEPTION WHEN OTHERS THEN NULL; END; END LOOP; END $$;
    SELECT pg_logical_emit_message(true, 'pgark', repeat('a long one ', 200000));
";

/// The segments from that position on, of a server that keeps them.
fn segments(server: &Server, from: Lsn) -> Vec<(SegmentName, Vec<u8>)> {
    let mut name = SegmentName::holding(Timeline::FIRST, from, SegmentSize::DEFAULT);
    let end: Lsn = server
        .psql("postgres", "SELECT pg_current_wal_flush_lsn()")
        .parse()
        .unwrap();
    let mut found = Vec::new();
    while name.start(SegmentSize::DEFAULT).unwrap() < end {
        let path = server.data_dir().join("pg_wal").join(name.to_string());
        found.push((name, std::fs::read(path).unwrap()));
        name = name.next(SegmentSize::DEFAULT);
    }
    found
}

/// What `pg_waldump` shows: the beginnings of all records, and the lines of those that matter.
fn judge(server: &Server, from: Lsn, until: Lsn) -> (Vec<Lsn>, BTreeMap<Lsn, String>) {
    let mut dump = Command::new(server.bin().join("pg_waldump"));
    dump.arg("-p").arg(server.data_dir().join("pg_wal"));
    let dump = run(dump.args(["-s", &from.to_string(), "-e", &until.to_string()])).assert_code(0);
    let mut all = Vec::new();
    let mut lines = BTreeMap::new();
    for line in dump.stdout.lines() {
        let lsn = line
            .split("lsn: ")
            .nth(1)
            .unwrap()
            .split(',')
            .next()
            .unwrap();
        let lsn: Lsn = lsn.parse().unwrap();
        all.push(lsn);
        if line.contains("desc: COMMIT ")
            || line.contains("desc: ABORT ")
            || line.contains("desc: RESTORE_POINT")
        {
            lines.insert(lsn, line.to_owned());
        }
    }
    (all, lines)
}

fn agrees(major: u32) {
    let server = Server::start_with(
        major,
        &crate::support::Setup {
            settings: &["wal_keep_size=512MB", "timezone=UTC", "log_timezone=UTC"],
            ..Default::default()
        },
    );
    let from: Lsn = server
        .psql("postgres", "SELECT pg_switch_wal()")
        .parse()
        .unwrap();
    let from = from
        .plus(SegmentSize::DEFAULT.bytes())
        .segment_start(SegmentSize::DEFAULT);
    let _ = server.psql("postgres", WORK);
    server.psql("postgres", "SELECT txid_current()");
    let segments = segments(&server, from);
    let id = server.psql(
        "postgres",
        "SELECT system_identifier FROM pg_control_system()",
    );
    let system: SystemId = id.parse().unwrap();
    let mut check = PageCheck::new(system, SegmentSize::DEFAULT, Timeline::FIRST);
    let mut scanner = Scanner::new(from, SegmentSize::DEFAULT);
    let mut found: Vec<Record> = Vec::new();
    let mut at = from;
    for (_, bytes) in &segments {
        for piece in bytes.chunks(100_003) {
            scanner.feed(piece, &mut |record| found.push(record));
            if !scanner.is_ended() {
                check.feed(at, piece).unwrap();
            }
            at = at.plus(piece.len() as u64);
        }
    }
    scanner.finish(&mut |record| found.push(record));
    let (last, end) = scanner.last().unwrap();
    let (all, lines) = judge(&server, from, end);
    assert_eq!(
        (all.first(), all.last()),
        (scanner.first().as_ref(), Some(&last)),
        "PostgreSQL {major}"
    );
    assert!(
        end <= server
            .psql("postgres", "SELECT pg_current_wal_flush_lsn()")
            .parse()
            .unwrap()
    );
    assert_eq!(found.len(), lines.len(), "PostgreSQL {major}");
    assert!(found.len() > 200);
    for record in &found {
        is_told(record, &lines[&record.lsn]);
    }
}

/// The line says what the record says.
fn is_told(record: &Record, line: &str) {
    let shown = |time: jiff::Timestamp| time.strftime("%Y-%m-%d %H:%M:%S%.6f").to_string();
    let (word, xid, time) = match &record.event {
        Event::Commit { xid, time } => ("COMMIT", xid, time),
        Event::Abort { xid, time } => ("ABORT", xid, time),
        Event::RestorePoint { name, .. } => {
            assert_eq!(name, "before the harm");
            assert!(
                line.contains("desc: RESTORE_POINT before the harm"),
                "{line}"
            );
            return;
        }
    };
    let said = line.contains(&format!("desc: {word} {}", shown(*time)));
    assert!(said, "{record:?} {line}");
    assert!(
        line.contains(&format!("tx: {xid:>10},")),
        "{record:?} {line}"
    );
}

#[test]
fn pg_waldump_sees_the_same_records_in_15() {
    agrees(15);
}

#[test]
fn pg_waldump_sees_the_same_records_in_17() {
    agrees(17);
}

#[test]
fn pg_waldump_sees_the_same_records_in_18() {
    agrees(18);
}

#[test]
fn pg_waldump_sees_the_same_records_on_16() {
    agrees(16);
}

#[test]
fn pg_waldump_sees_the_same_records_on_19() {
    agrees(19);
}
