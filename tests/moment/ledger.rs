//! The ledger: writers that commit and roll back all the time, restores to moments taken by lot, and
//! `pg_waldump` as the judge of what must be there.
//!
//! `PGARK_LEDGER_COUNT` is how many moments of each server (default 5).

use super::World;
use crate::support::{TempDir, bin, run};
use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};

/// What the judge saw.
struct Record {
    lsn: u64,
    xid: u32,
    /// Of a commit, in microseconds.
    committed: Option<i64>,
    aborted: bool,
    name: Option<String>,
}

fn lsn(text: &str) -> u64 {
    let (high, low) = text.split_once('/').unwrap();
    u64::from_str_radix(high, 16).unwrap() << 32 | u64::from_str_radix(low, 16).unwrap()
}

fn micros(text: &str) -> i64 {
    let time = text.trim_end_matches(" UTC").replace(' ', "T");
    let time: jiff::Timestamp = format!("{time}Z").parse().unwrap();
    time.as_microsecond()
}

/// Every record in the store's segments, by `pg_waldump`.
fn waldump(world: &World) -> Vec<Record> {
    let dir = TempDir::new();
    let unpack = "for f in \"$0\"/????????????????????????.zst; do zstd -dqc $f > \"$1\"/$(basename $f .zst); done";
    run(Command::new("sh")
        .args(["-c", unpack])
        .arg(&world.wal)
        .arg(dir.path()))
    .assert_code(0);
    let mut names: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    names.sort();
    let dumped = run(Command::new(bin(world.server.major).join("pg_waldump"))
        .env("TZ", "UTC")
        .args([&names[0], names.last().unwrap()]));
    let mut records: Vec<Record> = dumped.stdout.lines().filter_map(record).collect();
    records.sort_by_key(|record| record.lsn);
    assert!(records.len() > 100, "{}", dumped.stderr);
    records
}

/// `rmgr: Transaction len … tx: 745, lsn: 0/0155F5A8, prev …, desc: COMMIT 2025-01-22 14:05:07.123456 UTC`.
fn record(line: &str) -> Option<Record> {
    let field = |name: &str| {
        let rest = line.split_once(name)?.1.trim_start();
        Some(rest.split(',').next()?.trim())
    };
    let desc = line.split_once("desc: ")?.1;
    let commit = desc.strip_prefix("COMMIT ");
    Some(Record {
        lsn: lsn(field("lsn:")?),
        xid: field("tx:")?.parse().ok()?,
        committed: commit.map(|text| micros(text.split(';').next().unwrap())),
        aborted: desc.starts_with("ABORT "),
        name: desc.strip_prefix("RESTORE_POINT ").map(str::to_owned),
    })
}

/// Commits, rollbacks and transactions of several rows, as fast as they go.
fn writer(world: &World, who: u32) -> Child {
    let sql = "DO $$ DECLARE i int := 0; BEGIN \
        WHILE i < 1000000 LOOP \
            INSERT INTO ledger SELECT nextval('numbers'), WHO; \
            IF i % 3 = 0 THEN INSERT INTO ledger SELECT nextval('numbers'), WHO; END IF; \
            IF i % 7 = 0 THEN ROLLBACK; ELSE COMMIT; END IF; \
            PERFORM pg_sleep(random() * 0.004); i := i + 1; \
        END LOOP; END $$";
    let mut psql = world.server.client("psql");
    psql.args([
        "-Xqc",
        &sql.replace("WHO", &who.to_string()),
        "-d",
        "postgres",
    ]);
    psql.stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    psql.spawn().unwrap()
}

/// Numbers by lot that differ from run to run, and can be had again: `PGARK_LEDGER_SEED`.
struct Lot(u64);

impl Lot {
    fn new() -> Lot {
        let seed = std::env::var("PGARK_LEDGER_SEED")
            .ok()
            .and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
        eprintln!("PGARK_LEDGER_SEED={seed}");
        Lot(seed)
    }

    fn below(&mut self, limit: usize) -> usize {
        // Knuth's MMIX.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}

/// A target, and the transactions that must be there. Nothing is expected before `from`.
fn target(
    kind: usize,
    records: &[Record],
    from: u64,
    lot: &mut Lot,
) -> (String, Vec<String>, BTreeSet<u32>) {
    let until = |end: u64| -> BTreeSet<u32> {
        let commits = records
            .iter()
            .filter(|one| one.committed.is_some() && one.lsn < end);
        commits.map(|one| one.xid).collect()
    };
    let beyond: Vec<&Record> = records.iter().filter(|one| one.lsn >= from).collect();
    let commits: Vec<&&Record> = beyond
        .iter()
        .filter(|one| one.committed.is_some())
        .collect();
    let ends: Vec<&&Record> = beyond
        .iter()
        .filter(|one| one.committed.is_some() || one.aborted)
        .collect();
    let one = commits[lot.below(commits.len() - 1)];
    let exclusive = lot.below(2) == 1;
    let more: Vec<String> = exclusive
        .then(|| "--exclusive".to_owned())
        .into_iter()
        .collect();
    match kind % 4 {
        0 => {
            // Just at a commit, or somewhere between two.
            let time =
                one.committed.unwrap() + i64::try_from(lot.below(2) * lot.below(2000)).unwrap();
            let stop = records.iter().filter(|one| one.lsn >= from).find(|one| {
                one.committed
                    .is_some_and(|at| at > time || (exclusive && at == time))
            });
            let text = jiff::Timestamp::from_microsecond(time).unwrap();
            (format!("{text:.6}"), more, until(stop.unwrap().lsn))
        }
        1 => {
            let at = beyond[lot.below(beyond.len() - 1)];
            let end = if exclusive { at.lsn } else { at.lsn + 1 };
            (
                format!("{:X}/{:X}", at.lsn >> 32, at.lsn & 0xFFFF_FFFF),
                more,
                until(end),
            )
        }
        2 => {
            let at = ends[lot.below(ends.len() - 1)];
            let end = if exclusive { at.lsn } else { at.lsn + 1 };
            (format!("xid:{}", at.xid), more, until(end))
        }
        _ => {
            let points: Vec<&&Record> = beyond.iter().filter(|one| one.name.is_some()).collect();
            let at = points[lot.below(points.len())];
            (at.name.clone().unwrap(), Vec::new(), until(at.lsn))
        }
    }
}

/// A base backup, another one on it, restore points, and segments full of what writers did.
fn written() -> (World, u64) {
    let world = World::start(17);
    world.psql("CREATE SEQUENCE numbers CACHE 1");
    let mut writers: Vec<Child> = (0..3).map(|who| writer(&world, who)).collect();
    let first = world.base(&[]);
    world.psql("SELECT pg_create_restore_point('one')");
    world.switch();
    world.base(&["--incremental"]);
    world.psql("SELECT pg_create_restore_point('two')");
    for _ in 0..4 {
        world.switch();
    }
    world.psql("SELECT pg_create_restore_point('three')");
    for writer in &mut writers {
        let _ = writer.kill();
        let _ = writer.wait();
    }
    world.psql(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE 'DO %'",
    );
    world.psql("INSERT INTO ledger VALUES (0, 9)");
    world.switch();
    let shown = crate::base::pgark(&world.server, &world.backups, ["show", &first, "--json"])
        .run()
        .assert_code(0);
    let shown: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
    let from = lsn(shown["manifest"]["base"]["end_lsn"].as_str().unwrap());
    (world, from)
}

#[test]
fn every_moment_comes_back_as_pg_waldump_says() {
    let (world, from) = written();
    let records = waldump(&world);
    let all = world.psql("SELECT xmin || ' ' || n FROM ledger");
    let row = |line: &str| {
        let (xid, n) = line.split_once(' ').unwrap();
        (xid.parse().unwrap(), n.parse().unwrap())
    };
    let all: Vec<(u32, u32)> = all.lines().map(row).collect();
    let mut lot = Lot::new();
    let count = std::env::var("PGARK_LEDGER_COUNT").ok();
    let count = count.and_then(|text| text.parse().ok()).unwrap_or(5);
    for number in 0..count {
        let (at, more, xids) = target(number, &records, from, &mut lot);
        let rows = all.iter().filter(|(xid, _)| xids.contains(xid));
        let mut expected: Vec<u32> = rows.map(|(_, n)| *n).collect();
        expected.sort_unstable();
        let args: Vec<&str> = more.iter().map(String::as_str).collect();
        let found = world.ledger_at(&at, &args);
        assert!(
            found == expected,
            "--at {at} {args:?}: {} rows instead of {}",
            found.len(),
            expected.len()
        );
    }
}
