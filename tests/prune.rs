//! Retention on a real store: what goes, what never goes, and that it is said why.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;

use crate::bad_luck::Tmpfs;
use crate::support::site::{files, first_id};
use crate::support::{Pgark, Site, TempDir, until};

/// pgark at another time of the wall clock (`-40d`).
pub(crate) fn at(pgark: Pgark, offset: &str) -> Pgark {
    let mut found = std::fs::read_dir("/usr/lib").unwrap().flatten();
    let library = found
        .find_map(|folder| {
            let path: PathBuf = folder.path().join("faketime/libfaketime.so.1");
            path.exists().then_some(path)
        })
        .expect("libfaketime, which scripts/setup.sh test installs");
    pgark
        .env("LD_PRELOAD", library)
        .env("FAKETIME", offset)
        .env("DONT_FAKE_MONOTONIC", "1")
}

pub(crate) fn backup_at(site: &Site, offset: &str) -> String {
    let done = site.backup_with(|pgark| at(pgark, offset));
    first_id(&done.assert_code(0).stdout)
}

fn verdicts(site: &Site, days: &str) -> Value {
    let done = site
        .pgark(["prune", "--dry-run", "--json"])
        .env("BACKUP_RETENTION_DAYS", days)
        .run();
    serde_json::from_str(&done.assert_code(0).stdout).unwrap()
}

fn verdict(of: &Value, id: &str) -> (bool, String) {
    let mut list = of["verdicts"].as_array().unwrap().iter();
    let found = list.find(|one| one["id"] == id);
    let found = found.unwrap_or_else(|| panic!("{id} in {of}"));
    (
        found["keep"].as_bool().unwrap(),
        found["reason"].as_str().unwrap().to_owned(),
    )
}

/// Everything is as it was, but for a backup, the globals, the locks and the records.
#[track_caller]
fn assert_kept(before: &BTreeMap<String, Vec<u8>>, after: &BTreeMap<String, Vec<u8>>, gone: &str) {
    let changes = [gone, "globals", ".lock", ".log", ".jsonl"];
    for (name, content) in before {
        let may_change = changes.iter().any(|part| name.contains(part));
        assert!(may_change || after.get(name) == Some(content), "{name}");
    }
}

#[test]
fn what_is_old_goes_with_the_next_run_and_nothing_else() {
    let site = Site::new("app");
    let other = Site::new("app-x");
    let old = backup_at(&site, "-40d");
    let middle = backup_at(&site, "-20d");
    // In the same directory: the only backup of another database, and what is nobody's.
    let alone = other.backup_with(|pgark| at(pgark.store(site.dir.path()), "-90d"));
    let alone = first_id(&alone.assert_code(0).stdout);
    for name in [
        "notes.txt",
        "backup_app_old.sql.gz",
        "backup_app_20200101_000000.txt",
    ] {
        std::fs::write(site.dir.join(name), "mine").unwrap();
    }
    let plan = verdicts(&site, "30");
    let (keep, reason) = verdict(&plan, &old);
    assert!(!keep && reason.contains("older than 30 days"), "{reason}");
    let (keep, reason) = verdict(&plan, &middle);
    assert!(keep && reason.contains("younger than 30 days"), "{reason}");
    let (keep, reason) = verdict(&plan, &alone);
    assert!(
        keep && reason.contains("the only good backup of app-x"),
        "{reason}"
    );
    let before = files(site.dir.path());
    assert!(before.keys().any(|name| name.starts_with(&old)));
    let done = site.backup_with(|pgark| pgark.env("BACKUP_RETENTION_DAYS", "30"));
    let new = first_id(&done.assert_code(0).stdout);
    let after = files(site.dir.path());
    assert!(
        !after.keys().any(|name| name.contains(&old)),
        "{:?}",
        after.keys()
    );
    for kept in [&middle, &alone, &new] {
        assert_eq!(
            after
                .keys()
                .filter(|name| name.starts_with(kept.as_str()))
                .count(),
            4,
            "{kept}"
        );
    }
    assert_kept(&before, &after, &old);
    let report = std::fs::read_to_string(site.dir.join("backup.log")).unwrap();
    assert!(report.contains(&format!("expired {old}")), "{report}");
    // What is expired by hand is the same; --no-prune lets a run expire nothing.
    site.backup_with(|pgark| pgark.env("BACKUP_RETENTION_DAYS", "1"))
        .assert_code(0);
    assert!(
        site.list()
            .iter()
            .all(|entry| entry["id"] != middle.as_str())
    );
}

#[test]
fn the_last_good_backup_stays_whatever_the_clock_says_and_bad_ones_count_for_nothing() {
    let site = Site::new("last");
    let good = backup_at(&site, "-400d");
    let bad = backup_at(&site, "-390d");
    let file = site.file(&bad, "");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    let done = site
        .pgark(["prune"])
        .env("BACKUP_RETENTION_DAYS", "1")
        .run()
        .assert_code(0);
    assert!(
        done.stdout.contains(&bad) && !done.stdout.contains(&good),
        "{}",
        done.stdout
    );
    let done = at(
        site.pgark(["prune"]).env("BACKUP_RETENTION_DAYS", "30"),
        "+9000d",
    )
    .run()
    .assert_code(0);
    assert!(!done.stdout.contains(&good), "{}", done.stdout);
    site.pgark(["verify", &good, "-q"]).run().assert_code(0);
}

#[test]
fn what_somebody_deleted_by_hand_is_missing_and_its_rest_is_cleared() {
    let site = Site::new("by_hand");
    let first = backup_at(&site, "-2d");
    let second = site.backup();
    std::fs::remove_file(site.file(&first, "")).unwrap();
    assert_eq!(site.entry(&first)["state"], "missing");
    site.pgark(["prune"])
        .env("BACKUP_RETENTION_DAYS", "30")
        .run()
        .assert_code(0);
    let names = files(site.dir.path());
    assert!(
        !names.keys().any(|name| name.contains(&first)),
        "{:?}",
        names.keys()
    );
    assert_eq!(site.entry(&second)["state"], "taken");
}

#[test]
fn a_backup_that_is_being_read_stays_until_the_next_time() {
    let site = Site::new("being_read");
    let old = backup_at(&site, "-50d");
    backup_at(&site, "+0");
    let cat = TempDir::new();
    let pipe = cat.join("pipe");
    crate::support::run(std::process::Command::new("mkfifo").arg(&pipe)).assert_code(0);
    site.server.psql(
        "being_read",
        "CREATE TABLE noise AS SELECT md5(random()::text) FROM generate_series(1, 200000)",
    );
    let big = backup_at(&site, "-45d");
    // Opened for reading and not read: the pipe fills, and cat waits.
    let reader = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&pipe)
        .unwrap();
    let running = site.pgark(["cat", &big]).spawn_writing_to(&pipe);
    until("cat to hold the backup", || {
        files(site.dir.path())
            .keys()
            .any(|name| name.contains(&format!("reading/{big}")))
    });
    let done = site
        .pgark(["prune"])
        .env("BACKUP_RETENTION_DAYS", "30")
        .run()
        .assert_code(3);
    assert!(
        done.stdout.contains(&old) && !done.stdout.contains(&big),
        "{}",
        done.stdout
    );
    done.assert_says("is being read");
    running.signal("KILL");
    running.wait();
    drop(reader);
    let done = site
        .pgark(["prune"])
        .env("BACKUP_RETENTION_DAYS", "30")
        .run()
        .assert_code(0);
    assert!(done.stdout.contains(&big), "{}", done.stdout);
    assert!(
        !files(site.dir.path())
            .keys()
            .any(|name| name.contains("reading/"))
    );
}

/// Legacy backups expire like the rest, but not before pgark has proved that it can replace them.
#[test]
fn legacy_backups_go_only_after_a_verified_backup_of_their_database() {
    let site = Site::new("legacy_expiry");
    let legacy = site.legacy("20240101_020000");
    let (keep, reason) = verdict(&verdicts(&site, "30"), &legacy);
    assert!(
        keep && reason.contains("no verified pgark backup"),
        "{reason}"
    );
    let done = site.backup_with(|pgark| pgark.env("BACKUP_RETENTION_DAYS", "30"));
    let new = first_id(&done.assert_code(0).stdout);
    assert_eq!(site.entry(&new)["state"], "verified");
    assert!(!site.file(&legacy, "").exists() && !site.file(&legacy, ".sha256").exists());
}

/// A run that meets a full disk expires what is due and tries once more.
#[test]
fn a_full_disk_makes_room_by_what_has_expired() {
    let site = Site::new("makes_room");
    site.server.psql(
        "makes_room",
        "CREATE TABLE noise AS SELECT md5(random()::text) AS m FROM generate_series(1, 40000)",
    );
    let disk = Tmpfs::new("size=2m,mode=700");
    let dir = disk.path();
    let backup = |offset: &str, days: &str| {
        site.backup_with(|pgark| at(pgark.store(dir), offset).env("BACKUP_RETENTION_DAYS", days))
    };
    let old = first_id(&backup("-50d", "36500").assert_code(0).stdout);
    let younger = first_id(&backup("-45d", "36500").assert_code(0).stdout);
    // Nothing is due: it fails, and loses nothing.
    backup("+0", "36500")
        .assert_code(1)
        .assert_says("no space left");
    let done = backup("+0", "30")
        .assert_code(0)
        .assert_says("to try once more");
    let new = first_id(&done.stdout);
    let names: Vec<String> = files(dir).into_keys().collect();
    let holds = |id: &str| names.iter().any(|name| name.starts_with(id));
    assert!(!holds(&old) && holds(&new), "{names:?}");
    assert!(
        !holds(&younger),
        "due as well, once there is a newer one: {names:?}"
    );
}
