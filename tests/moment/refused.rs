//! What cannot be reached: refused with the reason and the nearest moment, nothing touched.

use super::World;
use crate::base::{Copy, place};
use crate::support::{Run, run};
use std::path::PathBuf;
use std::process::Command;

/// Refused with this code and these words; the directory is as it was.
#[track_caller]
pub(super) fn refused(world: &World, at: &str, more: &[&str], code: i32, words: &[&str]) -> Run {
    let (keep, data) = place();
    let mut done = world.restore(at, &data, more).assert_code(code);
    for word in words {
        done = done.assert_says(word);
    }
    assert!(!data.exists(), "{at}: the directory was made");
    assert_eq!(std::fs::read_dir(keep.path()).unwrap().count(), 0);
    done
}

/// The whole segments of the store, in order.
pub(super) fn segments(world: &World) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(&world.wal).unwrap().flatten();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    found.retain(|path| {
        path.to_str().unwrap().ends_with(".zst") && !path.to_str().unwrap().contains("partial")
    });
    found.sort();
    found
}

pub(super) fn now(world: &World) -> String {
    world.psql(
        "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
    )
}

#[test]
fn what_is_missing_or_damaged_is_told_before_anything_is_touched() {
    let world = World::start(17);
    refused(&world, "latest", &[], 5, &["no good base backup"]);
    let before = now(&world);
    world.psql("INSERT INTO ledger VALUES (0, 0)");
    let early = world.psql("SELECT pg_current_wal_insert_lsn()");
    world.base(&[]);
    for n in 1..=5 {
        world.psql(&format!("INSERT INTO ledger VALUES ({n}, 0)"));
        world.switch();
    }
    let after = now(&world);
    refused(
        &world,
        &before,
        &[],
        5,
        &[
            "lies before the end of every base backup",
            "the first moment",
        ],
    );
    refused(
        &world,
        &early,
        &[],
        5,
        &["lies before the end of every base backup"],
    );
    refused(
        &world,
        &after,
        &[],
        5,
        &["cannot be reached", "--at latest", "after the commit of"],
    );
    refused(&world, "FF/0", &[], 5, &["--at latest"]);
    refused(
        &world,
        "xid:4000000",
        &[],
        5,
        &["transaction 4000000 cannot be reached"],
    );
    refused(&world, "nobody gave it", &[], 5, &["restore point"]);
    refused(&world, "latest", &["--timeline", "3"], 5, &["timeline 3"]);
    refused(&world, "2025-01-99", &[], 2, &["is no time"]);
    refused(
        &world,
        "latest",
        &["--exclusive"],
        2,
        &["--exclusive means nothing"],
    );
    not_empty(&world);
    missing_and_damaged(&world);
}

fn not_empty(world: &World) {
    let (keep, data) = place();
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("mine"), "").unwrap();
    world
        .restore("latest", &data, &[])
        .assert_code(2)
        .assert_says("is not empty");
    assert_eq!(std::fs::read_dir(&data).unwrap().count(), 1);
    drop(keep);
}

/// One in the middle, away and then damaged.
fn missing_and_damaged(world: &World) {
    let all = segments(world);
    let victim = &all[all.len() - 3];
    let name = &victim.file_name().unwrap().to_str().unwrap()[..24];
    let whole = std::fs::read(victim).unwrap();
    std::fs::remove_file(victim).unwrap();
    let told = refused(world, "latest", &[], 5, &[name, "is missing", "timeline 1"]);
    // The nearest moment that it names can be reached.
    let nearest = told.stderr.split("--at ").last().unwrap().trim().to_owned();
    assert_eq!(world.ledger_at(&nearest, &[]).last(), Some(&2));
    let mut bad = whole.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    for content in [&bad[..], &whole[..whole.len() - 9], &b"nothing"[..]] {
        std::fs::write(victim, content).unwrap();
        refused(world, "latest", &[], 4, &[name]);
    }
    std::fs::write(victim, b"").unwrap();
    refused(world, "latest", &[], 4, &[name, "is empty"]);
    std::fs::write(victim, &whole).unwrap();
    // The last one, which the plan itself reads.
    std::fs::write(all.last().unwrap(), &bad[..bad.len() / 3]).unwrap();
    refused(world, "latest", &[], 4, &[]);
}

/// What the stream notes of its store; gives the file.
pub(super) fn note_reached(world: &World, lsn: &str, time: &str) -> PathBuf {
    let note = format!(r#"{{"timeline":1,"lsn":"{lsn}","time":"{time}"}}"#);
    let system = world.wal.file_name().unwrap().to_str().unwrap().to_owned();
    let folder = world.backups.join(".pgark");
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(format!("wal_{system}.json"));
    std::fs::write(&path, note).unwrap();
    path
}

#[test]
fn time_after_the_last_commit_is_reached_where_the_stream_proves_that_nothing_came() {
    let world = World::start(17);
    world.base(&[]);
    world.psql("INSERT INTO ledger VALUES (1, 0)");
    world.store_piece();
    let lsn = world.psql("SELECT pg_current_wal_flush_lsn()");
    let time = now(&world);
    refused(&world, &time, &[], 5, &["cannot be reached"]);
    note_reached(&world, &lsn, &time);
    assert_eq!(world.ledger_at(&time, &[]), [1]);
    // The last record is the commit itself, and it came before.
    assert_eq!(world.ledger_at(&time, &["--exclusive"]), [1]);
    // Nothing is proven for a moment later.
    let later = now(&world);
    refused(&world, &later, &[], 5, &["cannot be reached"]);
}

#[test]
fn a_moment_on_a_branch_that_was_left_is_refused_with_the_reason() {
    let world = World::start(17);
    world.base(&[]);
    world.psql("INSERT INTO ledger VALUES (1, 0)");
    world.psql("SELECT pg_create_restore_point('fork')");
    world.psql("INSERT INTO ledger VALUES (2, 0)");
    let mut lsn = String::new();
    for n in 3..6 {
        world.psql(&format!("INSERT INTO ledger VALUES ({n}, 0)"));
        lsn = world.psql("SELECT pg_current_wal_insert_lsn()");
        world.switch();
    }
    world.psql("SELECT pg_create_restore_point('left behind')");
    world.switch();
    // A copy of an earlier moment takes over: timeline 2.
    let (_keep, data) = place();
    world.restore("fork", &data, &[]).assert_code(0);
    let copy = Copy::start(17, &data);
    copy.psql("INSERT INTO ledger VALUES (20, 0)");
    copy.psql("SELECT pg_switch_wal()");
    copy.psql("INSERT INTO ledger VALUES (21, 0)");
    archive(&world, &copy);
    drop(copy);
    assert_eq!(world.ledger_at("latest", &[]), [1, 20, 21]);
    assert_eq!(world.ledger_at("fork", &[]), [1]);
    // Its copy of the segment in which it began: the old timeline's goes another way.
    let all = segments(&world);
    let begins = |path: &&PathBuf| {
        path.file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with("00000002")
    };
    let first = all.iter().find(begins).unwrap();
    let away = world.backups.join("away");
    std::fs::rename(first, &away).unwrap();
    let name = &first.file_name().unwrap().to_str().unwrap()[..24];
    refused(&world, "latest", &[], 5, &[name, "is missing"]);
    std::fs::rename(&away, first).unwrap();
    let reason = ["timeline 1", "which was left at", "--timeline 1"];
    refused(&world, "left behind", &[], 5, &reason);
    refused(&world, &lsn, &[], 5, &reason);
    let old = ["--timeline", "1"];
    assert_eq!(world.ledger_at("left behind", &old), [1, 2, 3, 4, 5]);
    assert_eq!(world.ledger_at("latest", &old), [1, 2, 3, 4, 5]);
    older_branch(&world);
}

/// A base backup that was taken on the old timeline after the new one had begun.
fn older_branch(world: &World) {
    let late = world.base(&[]);
    world.psql("INSERT INTO ledger VALUES (6, 0)");
    world.psql("SELECT pg_create_restore_point('late')");
    world.psql("INSERT INTO ledger VALUES (7, 0)");
    world.switch();
    let reason = ["timeline 2, the newest", "--timeline 1"];
    refused(world, "latest", &[&late], 5, &reason);
    let chosen = [late.as_str(), "--timeline", "1"];
    assert_eq!(world.ledger_at("latest", &chosen).last(), Some(&7));
    // A moment that only this branch has is reached, and the other one is named.
    let (_keep, data) = place();
    world
        .restore("late", &data, &[&late])
        .assert_code(0)
        .assert_says("warning: no base backup that could serve lies on the history of timeline 2")
        .assert_says("timeline 1 is followed");
    let copy = Copy::start(17, &data);
    assert_eq!(super::rows(&copy), (1..=6).collect::<Vec<u32>>());
}

/// Puts what a copy has written into the store, its open segment with it.
fn archive(world: &World, copy: &Copy) {
    let last = copy.psql("SELECT pg_walfile_name(pg_current_wal_flush_lsn())");
    let script = "cd \"$0\"/pg_wal && cp 00000002.history \"$1\" && \
        for f in 00000002????????????????; do \
        [ $f \\> $2 ] || zstd -q1c $f > \"$1\"/$f.zst; done";
    run(Command::new("sh")
        .args(["-c", script])
        .arg(&copy.data)
        .arg(&world.wal)
        .arg(last))
    .assert_code(0);
}
