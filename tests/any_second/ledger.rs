//! Restores to random times, positions, names and transactions: exactly the rows committed by then.

use super::{Dice, Stage, To, Writers, committed, count, events, rows_by_xid};
use crate::support::until;
use pgark::archive::wal::{Event, Record};
use pgark::units::Lsn;

/// What a target means, by the rules of `recoveryStopsBefore` and `recoveryStopsAfter`.
fn expected<'a>(all: &'a [Record], target: &Target) -> impl Iterator<Item = &'a Record> {
    let end = match target {
        // Stops before the first end of a transaction that is later, in the order of the WAL.
        Target::Time(time) => all.iter().position(|record| ends(record) && when(record) > *time),
        Target::Lsn(lsn) => all.iter().position(|record| record.lsn > *lsn),
        Target::Xid(xid) => all.iter().position(|record| is_of(record, *xid)).map(|at| at + 1),
        Target::Name(name) => all.iter().position(
            |record| matches!(&record.event, Event::RestorePoint { name: found, .. } if found == name),
        ),
        Target::Latest => None,
    };
    all[..end.unwrap_or(all.len())].iter()
}

enum Target {
    Time(jiff::Timestamp),
    Lsn(Lsn),
    Xid(u32),
    Name(String),
    Latest,
}

impl Target {
    fn text(&self) -> String {
        match self {
            Target::Time(time) => time.to_string(),
            Target::Lsn(lsn) => lsn.to_string(),
            Target::Xid(xid) => format!("xid:{xid}"),
            Target::Name(name) => name.clone(),
            Target::Latest => "latest".to_owned(),
        }
    }
}

fn ends(record: &Record) -> bool {
    !matches!(record.event, Event::RestorePoint { .. })
}

fn when(record: &Record) -> jiff::Timestamp {
    match record.event {
        Event::Commit { time, .. }
        | Event::Abort { time, .. }
        | Event::RestorePoint { time, .. } => time,
    }
}

fn is_of(record: &Record, wanted: u32) -> bool {
    matches!(record.event, Event::Commit { xid, .. } | Event::Abort { xid, .. } if xid == wanted)
}

fn target(dice: &mut Dice, after: &[&Record], kind: usize) -> Target {
    let record = after[dice.below(after.len() - 1)];
    match (kind % 5, &record.event) {
        (0, _) => Target::Latest,
        (1, _) => Target::Lsn(record.lsn),
        (2, Event::Commit { xid, .. }) if *xid > 0 => Target::Xid(*xid),
        (3, _) => Target::Name(format!("point {}", 1 + dice.below(3))),
        // Between two ends of transactions, or on one.
        _ => {
            let next = when(after[dice.below(after.len() - 1)]);
            let shift =
                jiff::SignedDuration::from_micros(i64::try_from(dice.below(3)).unwrap() - 1);
            Target::Time(next + shift)
        }
    }
}

/// Writes under load, with restore points, forced switches and base backups; gives the first one.
fn play(stage: &Stage) -> String {
    let writers = Writers::start(&stage.server, 3);
    let first = stage.base(&[]);
    for point in 1..=3 {
        let sql =
            format!("SELECT pg_create_restore_point('point {point}'); SELECT pg_switch_wal()");
        stage.server.psql("postgres", &sql);
        if stage.server.major >= 17 && point < 3 {
            stage.base(&["--incremental"]);
        }
        let rows = "SELECT count(*) FROM ledger";
        let before: u64 = stage.server.psql("postgres", rows).parse().unwrap();
        until("some rows", || {
            let now: u64 = stage.server.psql("postgres", rows).parse().unwrap();
            now > before + 100
        });
    }
    drop(writers);
    Stage::caught_up(&stage.server);
    stage.open_to_readers();
    first
}

/// Where that base backup ended, and when it was finished.
fn end_of(stage: &Stage, id: &str) -> (Lsn, jiff::Timestamp) {
    let shown = stage.pgark(["show", id, "--json"]).run().assert_code(0);
    let shown: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
    let manifest = &shown["manifest"];
    let end = manifest["base"]["end_lsn"].as_str().unwrap();
    let finished = manifest["finished_at"].as_str().unwrap();
    (end.parse().unwrap(), finished.parse().unwrap())
}

fn ledger(major: u32, to: To, usual: u32) {
    let mut stage = Stage::new(major, to);
    let mut stream = stage.stream();
    let streaming = "SELECT count(*) FROM pg_stat_replication WHERE application_name LIKE 'pgark%' AND state = 'streaming'";
    until("the stream", || {
        assert!(stream.is_alive(), "{}", stream.log());
        stage.server.psql("postgres", streaming) != "0"
    });
    let start = stage
        .server
        .psql("postgres", "SELECT pg_current_wal_flush_lsn()");
    let first = play(&stage);
    let all = events(&stage.server, start.parse().unwrap());
    let by_xid = rows_by_xid(&stage.server);
    let (end, finished) = end_of(&stage, &first);
    let is_after = |record: &&Record| record.lsn > end && when(record) > finished;
    let after: Vec<&Record> = all.iter().filter(is_after).collect();
    assert!(after.len() > 100, "{}", after.len());
    let mut dice = Dice::new();
    for number in 0..count("PGARK_LEDGER", usual) {
        let target = target(&mut dice, &after, number as usize);
        let text = target.text();
        // The restored server runs as another user and without pgark's variables.
        let get = number % 2 == 1 && to == To::Local;
        let how: &[&str] = if get { &["--wal", "get"] } else { &[] };
        let expected = committed(expected(&all, &target), &by_xid);
        let found = stage.rows_at(&text, how);
        assert_eq!(
            (found.len(), &found),
            (expected.len(), &expected),
            "PostgreSQL {major}, {to:?}, --at {text} {how:?}"
        );
    }
    stream.stop();
}

#[test]
fn any_moment_of_a_local_store_comes_back_in_15() {
    ledger(15, To::Local, 5);
}

#[test]
fn any_moment_of_a_local_store_comes_back_over_a_chain_in_17() {
    ledger(17, To::Local, 6);
}

#[test]
fn any_moment_of_a_bucket_comes_back_in_18() {
    ledger(18, To::Bucket, 5);
}

#[test]
fn any_moment_of_an_encrypted_store_comes_back_in_17() {
    ledger(17, To::Sealed, 3);
}
