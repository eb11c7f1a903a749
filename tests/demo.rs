//! `pgark demo`: it tells its story, can fail, and leaves nothing behind.
//!
//! Each test has a temporary directory of its own (`TMPDIR`), so that what is left shows.

use crate::support::{Pgark, Run, Running, TempDir, cache, until};
use std::path::{Path, PathBuf};

/// A small sample: what is tested does not depend on its size.
fn demo(directory: &TempDir, args: &[&str]) -> Pgark {
    // Servers of the demo run as an unprivileged user, who must pass through here.
    Pgark::new(["demo", "--scale", "1"].iter().chain(args)).env("TMPDIR", directory.path())
}

fn left_in(directory: &TempDir) -> Vec<String> {
    let entries = std::fs::read_dir(directory.path()).unwrap().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Processes that name the directory in their arguments or work in it: the server, its programs.
fn processes_of(directory: &Path) -> Vec<String> {
    let name = directory.to_str().unwrap();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        // The server's own processes rename themselves, but stay in its directory.
        let at = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        if line.contains(name) || at.starts_with(directory) {
            found.push(line);
        }
    }
    found
}

#[track_caller]
fn assert_nothing_left(directory: &TempDir) {
    assert_eq!(left_in(directory), Vec::<String>::new());
    assert_eq!(processes_of(directory.path()), Vec::<String>::new());
}

#[test]
fn demo_tells_its_story_and_leaves_nothing() {
    let directory = TempDir::new();
    let done = demo(&directory, &[]).run().assert_code(0);
    let mut rest = done.stdout.as_str();
    for step in [
        "throwaway server",
        "0  A shop's database",
        "1  Backup",
        "$ pgark backup --database shop",
        "2  Verify",
        "3  Base backup",
        "$ pgark backup --base",
        "4  An afternoon",
        "5  Disaster",
        "DROP TABLE sales.orders CASCADE;",
        "differences",
        "6  Restore",
        "$ pgark restore latest",
        "7  Comparison",
        "Equal: ",
        "8  The same without pgark",
        "$ gunzip -c backup_shop_",
        "Equal: ",
        "9  The second before",
        "$ pgark restore --data-dir",
        "Equal: ",
        "Nothing is left behind",
    ] {
        let at = rest.find(step);
        let at = at.unwrap_or_else(|| panic!("no {step:?} in its place:\n{}", done.stdout));
        rest = &rest[at + step.len()..];
    }
    assert_nothing_left(&directory);
}

#[test]
fn kept_backups_are_where_it_says_and_are_good() {
    let directory = TempDir::new();
    let done = demo(&directory, &["--keep", "--json", "--quiet"])
        .run()
        .assert_code(0);
    assert_eq!(done.stderr, "");
    let figures: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    let kept = PathBuf::from(figures["kept"].as_str().unwrap());
    assert_eq!(left_in(&directory).len(), 1);
    assert!(figures["compared"]["rows"].as_u64().unwrap() > 1000);
    assert_eq!(figures["compared"]["large_objects"].as_u64(), Some(1));
    assert!(figures["disaster_differences"].as_u64().unwrap() >= 4);
    let verified = Pgark::new(["verify", "--all"])
        .store(&kept)
        .run()
        .assert_code(0);
    assert_eq!(verified.stdout.matches("  good  ").count(), 3);
    std::fs::remove_dir_all(&kept).unwrap();
    assert_nothing_left(&directory);
}

fn tampered(what: &str) -> Run {
    let directory = TempDir::new();
    let done = demo(&directory, &["--quiet"])
        .env("PGARK_DEMO_TAMPER", what)
        .run();
    assert_nothing_left(&directory);
    done.assert_code(4)
}

#[test]
fn one_changed_row_is_a_failed_demo() {
    let change = "restored UPDATE catalog.products SET price = price + 0.01 WHERE id = 7";
    let done = tampered(change).assert_says("table catalog.products was 40 rows");
    assert!(done.stdout.contains("DIFFERENT") && !done.stdout.contains("Equal"));
}

#[test]
fn lost_rights_settings_sequence_and_large_object_are_a_failed_demo() {
    tampered(
        "by_hand REVOKE UPDATE (price) ON catalog.products FROM shop_app; SELECT nextval('sales.invoice_number'); \
         SELECT lo_put(content, 0, 'x') FROM files.documents; ALTER DATABASE shop_by_hand SET work_mem = '9MB'",
    )
    .assert_says("database was ")
    .assert_says("; large object ")
    .assert_says("; sequence sales.invoice_number was ")
    .assert_says("; schema lost: GRANT UPDATE(price)");
}

#[test]
fn one_row_that_the_plain_file_lost_is_a_failed_demo() {
    let done = tampered("by_hand DELETE FROM crm.notes WHERE id = 3");
    let done = done.assert_says("table crm.notes was 300 rows");
    assert_eq!(done.stdout.matches("Equal").count(), 1);
}

/// The recovery is compared with the afternoon, not with the dump: what the dump never had is missed too.
#[test]
fn one_order_of_the_afternoon_that_the_recovery_lost_is_a_failed_demo() {
    let done = tampered("recovered DELETE FROM sales.orders WHERE id = 1000011");
    let done = done.assert_says("table sales.orders_2025_12 was ");
    assert_eq!(done.stdout.matches("Equal").count(), 2);
}

#[test]
fn missing_server_programs_are_named_with_their_package() {
    let directory = TempDir::new();
    let empty = TempDir::new();
    demo(&directory, &[])
        .env("PGARK_PG_BIN", empty.path())
        .run()
        .assert_code(1)
        .assert_says("postgres was not found")
        .assert_says("apt-get install postgresql");
    assert_nothing_left(&directory);
}

/// A demo that has come so far that `path` is there, below what begins with `pgark-`.
fn demo_until(directory: &TempDir, path: &str) -> Running {
    let running = Pgark::new(["demo", "--keep", "--scale", "20"])
        .env("TMPDIR", directory.path())
        .spawn();
    let reached = |name: String| {
        let below = std::fs::read_dir(directory.join(&name))
            .into_iter()
            .flatten()
            .flatten();
        let mut names = below.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.any(|found| {
            found.starts_with("backup_shop_") && found.ends_with(path) || found == path
        })
    };
    until("the demo to come so far", || {
        left_in(directory).into_iter().any(reached)
    });
    running
}

#[test]
fn signal_at_any_step_leaves_nothing() {
    // While initdb works; while the sample is made; at the end of the backup.
    for (path, signal, code) in [
        ("data", "INT", 130),
        (".s.PGSQL.5432", "TERM", 143),
        (".sql.gz", "TERM", 143),
    ] {
        let directory = TempDir::new();
        let running = demo_until(&directory, path);
        running.signal(signal);
        let done = running
            .wait()
            .assert_code(code)
            .assert_says("pgark: interrupted");
        assert!(!done.stdout.contains("came back"), "{}", done.stdout);
        // A backup that was finished is kept when asked for.
        let kept = left_in(&directory);
        assert!(
            kept.iter()
                .all(|name| name.starts_with("pgark-demo-") && path == ".sql.gz"),
            "{path}: {kept:?}"
        );
        assert_eq!(processes_of(directory.path()), Vec::<String>::new());
    }
}

#[test]
fn a_newer_server_plays_the_same_story() {
    let directory = TempDir::new();
    let bin = cache().join("pg/17/usr/lib/postgresql/17/bin");
    let done = demo(&directory, &["--quiet"])
        .env("PGARK_PG_BIN", bin)
        .run()
        .assert_code(0);
    assert!(done.stdout.starts_with("PostgreSQL 17."));
    assert_nothing_left(&directory);
}
