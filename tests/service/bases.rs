//! Base backups and WAL streaming of the service: beside the dumps, and bounded.

use std::time::Duration;

use serde_json::Value;

use super::{Service, children, journal};
use crate::support::site::Site;
use crate::support::until;

/// Work, trigger and outcome of each run, oldest first, of base backups or of dumps.
fn runs(site: &Site, bases: bool) -> Vec<String> {
    let lines = journal(site.dir.path()).into_iter();
    let word = |line: &Value, name: &str| line[name].as_str().unwrap().to_owned();
    let wanted = lines.filter(|line| (word(line, "work") != "dumps") == bases);
    wanted
        .map(|line| {
            ["work", "trigger", "outcome"]
                .map(|name| word(&line, name))
                .join(" ")
        })
        .collect()
}

#[test]
fn the_start_brings_the_first_base_backup_while_dumps_hang_and_a_restart_no_second_one() {
    let site = Site::new("based");
    let _turn = site.turn();
    let session = site.hold("item");
    let serve = || {
        site.pgark(["serve"])
            .env("PGARK_LOCK_TIMEOUT", "1h")
            .env("BASE_SCHEDULE", "0 1 * * 0")
            .env("BASE_INCREMENTAL_SCHEDULE", "0 1 * * *")
    };
    let service = Service::start(serve());
    service.wait_for_log("dump begins");
    // One place for all runs (max_runs), and yet neither waits for the other.
    service.wait_for_log("base backup done");
    assert_eq!(runs(&site, true), ["base start ok"]);
    assert_eq!(runs(&site, false), [""; 0], "the dumps hang");
    let (_, health) = service.get("/healthz");
    assert_eq!(health["base_backups"]["healthy"], true, "{health}");
    assert_eq!(health["base_backups"]["good_backups"], 1, "{health}");
    assert_eq!(health["healthy"], false, "there is no dump: {health}");
    drop(session);
    service.wait_for_log("run done");
    until("health to notice", || service.get("/healthz").0 == 200);
    service.wait_for_log("next base backup: ");
    let status = site.pgark(["status"]).env("BASE_SCHEDULE", "@weekly");
    let status = status.run().assert_code(0).stdout;
    assert!(status.contains("base      base_"), "{status}");
    let report = std::fs::read_to_string(site.dir.join("backup.log")).unwrap();
    assert!(report.contains("base backup begins (start)"), "{report}");
    service.end("TERM", 143);
    let again = Service::start(serve());
    again.wait_for_log("no initial base backup: there is a good one");
    again.end("TERM", 143);
    assert_eq!(runs(&site, true), ["base start ok"]);
}

#[test]
fn a_first_base_backup_that_failed_is_owed_and_a_restart_does_not_hurry_it() {
    let site = Site::new("owed");
    let _turn = site.turn();
    let wrong = || {
        site.pgark(["serve"])
            .env("BASE_SCHEDULE", "0 1 1 1 *")
            .env("DB_PASSWORD", "wrong")
    };
    let service = Service::start(wrong());
    service.wait_for_log("base backup ended with exit code 1");
    until("health to notice", || {
        let (code, health) = service.get("/healthz");
        let reason = health["base_backups"]["reason"].as_str();
        code == 503 && reason.is_some_and(|text| text.contains("no good base backup"))
    });
    service.end("TERM", 143);
    let again = Service::start(wrong());
    again.wait_for_log("shall not dump again and again");
    again.end("TERM", 143);
    assert_eq!(runs(&site, true), ["base start failed"]);
}

#[test]
fn wal_streaming_is_kept_alive_and_ends_with_the_service() {
    let site = Site::new("streamed");
    let _turn = site.turn();
    let place = crate::support::TempDir::new();
    let program = place.join("pgark");
    let pgark = site
        .pgark(["serve"])
        .env("BACKUP_ON_START", "false")
        .env("WAL_STREAMING", "on")
        .by_copy(&program);
    let service = Service::start(pgark);
    // Without a base backup WAL restores nothing, whatever is said of the start.
    service.wait_for_log("base backup done");
    assert_eq!(runs(&site, true), ["base start ok"]);
    service.wait_for_log("WAL streaming begins (process ");
    let begins = || service.log().matches("WAL streaming begins").count();
    // An upgrade takes the program away from below it.
    std::fs::remove_file(&program).unwrap();
    for pid in children(service.pid()) {
        crate::support::run(std::process::Command::new("kill").args(["-9", &pid.to_string()]));
    }
    until("it to begin again", || begins() >= 2);
    assert!(service.log().contains("WAL streaming ended with exit code"));
    let took = service.end("TERM", 143);
    assert!(took < Duration::from_secs(10), "{took:?}");
}

/// The whole segments of the one cluster, oldest first.
fn packed(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut clusters = std::fs::read_dir(dir.join("wal")).unwrap();
    let names = std::fs::read_dir(clusters.next().unwrap().unwrap().path()).unwrap();
    let names = names.map(|name| name.unwrap().path());
    let mut names: Vec<_> = names
        .filter(|path| path.extension().is_some_and(|end| end == "zst"))
        .collect();
    names.sort();
    names
}

/// A base backup from which no WAL goes on restores no moment but its own: another one is owed, also by a
/// service that was started after the gap was made, and health says so until it is there.
#[test]
fn a_gap_behind_the_newest_base_backup_is_closed_by_another_one() {
    let site = Site::new("gap");
    let _turn = site.turn();
    let serve = || {
        let pgark = site.pgark(["serve"]).env("BACKUP_ON_START", "false");
        pgark.env("WAL_STREAMING", "on")
    };
    let switch = || {
        site.server
            .psql("postgres", "CHECKPOINT; SELECT pg_switch_wal()")
    };
    site.pgark(["backup", "--base"]).run().assert_code(0);
    switch();
    // One of before the first WAL.
    let service = Service::start(serve());
    service.wait_for_log("base backup done");
    assert_eq!(runs(&site, true), ["base manual ok", "base start ok"]);
    let packed = || packed(site.dir.path());
    let first = packed().len();
    for more in 1..=3 {
        site.server.psql(
            "postgres",
            "CREATE TABLE IF NOT EXISTS filler (n int); INSERT INTO filler VALUES (1)",
        );
        switch();
        until("a segment more", || packed().len() >= first + more);
    }
    service.end("TERM", 143);
    let again = Service::start(serve());
    again.wait_for_log("no initial base backup: there is a good one");
    again.end("TERM", 143);
    // The next to last one is lost.
    let names = packed();
    std::fs::remove_file(&names[names.len() - 2]).unwrap();
    let status = site
        .pgark(["status", "--exit-code"])
        .env("WAL_STREAMING", "on");
    let status = status
        .env("BACKUP_SCHEDULE", "@yearly")
        .run()
        .assert_code(1);
    assert!(status.stdout.contains("WAL has a gap"), "{}", status.stdout);
    let third = Service::start(serve());
    third.wait_for_log("base backup done");
    assert_eq!(runs(&site, true)[2..], ["base start ok"]);
    third.end("TERM", 143);
}

#[test]
fn a_schedule_of_base_backups_that_never_comes_is_refused() {
    let site = Site::new("never");
    for name in ["BASE_SCHEDULE", "BASE_INCREMENTAL_SCHEDULE"] {
        site.pgark(["serve"])
            .env(name, "0 0 30 2 *")
            .run()
            .assert_code(2)
            .assert_says(name);
    }
}
