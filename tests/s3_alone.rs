//! `BACKUP_DIR=none`: the bucket is the only store, and no disk holds a backup on its way.

use serde_json::Value;

use crate::bad_luck::Tmpfs;
use crate::second_store::with_bucket;
use crate::support::garage::Garage;
use crate::support::gate::Gate;
use crate::support::site::{files, first_id};
use crate::support::{Pgark, Site, TempDir, assert_same, table_digest, until};

/// pgark with a bucket behind this port and no directory of backups.
fn alone(site: &Site, port: u16, state: &std::path::Path, verb: &[&str]) -> Pgark {
    let pgark = with_bucket(site.pgark(verb), port);
    pgark
        .env("BACKUP_DIR", "none")
        .env("PGARK_STATE_DIR", state)
}

fn listed(pgark: Pgark) -> Vec<Value> {
    serde_json::from_str(&pgark.run().assert_code(0).stdout).unwrap()
}

#[test]
fn every_verb_works_with_a_bucket_alone() {
    let (site, garage, place) = (Site::new("alone"), Garage::start(), TempDir::new());
    let state = place.join("state");
    let pgark = |verb: &[&str]| alone(&site, garage.port, &state, verb);
    let _turn = site.turn();
    let id = first_id(&pgark(&["backup"]).run().assert_code(0).stdout);
    let all = listed(pgark(&["list", "--json"]));
    assert_eq!(all.len(), 2);
    assert!(
        all.iter()
            .all(|one| one["good"] == true && one["stores"] == serde_json::json!(["s3"]))
    );
    // Records and a lock, and nothing of a backup; no directory called none.
    let kept: Vec<String> = files(&state).into_keys().collect();
    assert_eq!(
        kept,
        [".pgark/dump.lock", ".pgark/journal.jsonl", "backup.log"]
    );
    assert!(files(site.dir.path()).is_empty() && !std::path::Path::new("none").exists());
    let page = pgark(&["show", &id]).run().assert_code(0).stdout;
    assert!(page.contains("s3://"), "{page}");
    pgark(&["verify", "latest", "-q"]).run().assert_code(0);
    let sql = pgark(&["cat", &id]).run().assert_code(0).stdout;
    assert!(sql.contains("COPY public.item") && sql.trim_end().ends_with("\\endif"));
    pgark(&[
        "restore",
        "latest",
        "--database",
        "alone",
        "--into",
        "alone_back",
        "-q",
    ])
    .run()
    .assert_code(0);
    assert_same(
        "rows",
        &table_digest(site.server, "alone"),
        &table_digest(site.server, "alone_back"),
    );
    let dry = pgark(&["prune", "--dry-run"]).run().assert_code(0).stdout;
    assert!(dry.lines().count() == 3 && dry.contains("s3"), "{dry}");
    pgark(&["prune"]).run().assert_code(0);
    let status = pgark(&["status", "--exit-code"])
        .run()
        .assert_code(0)
        .stdout;
    assert!(status.contains(&format!("pgark restore {id}")), "{status}");
    pgark(&["replicate"])
        .run()
        .assert_code(2)
        .assert_says("nothing to replicate");
    pgark(&["list", "--store", "local"])
        .run()
        .assert_code(2)
        .assert_says("stores: s3");
}

/// Of one machine, and of two.
#[test]
fn two_runs_with_a_bucket_alone_exclude_each_other() {
    let (site, garage, place) = (Site::new("alone_two"), Garage::start(), TempDir::new());
    let state = place.join("state");
    let pgark = |verb: &[&str]| alone(&site, garage.port, &state, verb);
    let _turn = site.turn();
    let _session = site.hold("item");
    let first = pgark(&["backup"]).env("PGARK_LOCK_TIMEOUT", "1h").spawn();
    let lock = state.join(".pgark/dump.lock");
    let holder = format!("\"pid\":{}", first.pid());
    until("the first run to hold the server's lock", || {
        let text = std::fs::read_to_string(&lock).unwrap_or_default();
        let sql = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted";
        text.contains(&holder) && site.server.psql("postgres", sql) == "1"
    });
    pgark(&["backup"]).run().assert_code(6);
    let elsewhere = place.join("elsewhere");
    let other = alone(&site, garage.port, &elsewhere, &["backup"]).run();
    other
        .assert_code(6)
        .assert_says(&format!("process {}", first.pid()));
    first.signal("TERM");
    first.wait().assert_code(143);
    let left = listed(pgark(&["list", "--json"]));
    assert!(left.is_empty(), "nothing half made: {left:?}");
}

/// A scratch disk far smaller than the dump: it is streamed.
#[test]
fn a_dump_needs_no_scratch_disk() {
    let (site, garage, disk) = (
        Site::new("no_scratch"),
        Garage::start(),
        Tmpfs::new("size=512k,mode=700"),
    );
    site.server.psql(
        "no_scratch",
        "CREATE TABLE noise AS SELECT md5(random()::text) || md5(random()::text) AS m FROM generate_series(1, 300000)",
    );
    let run =
        |verb: &[&str]| alone(&site, garage.port, disk.path(), verb).env("TMPDIR", disk.path());
    let _turn = site.turn();
    let id = first_id(&run(&["backup"]).run().assert_code(0).stdout);
    let all = listed(run(&["list", "--json"]));
    let dump = all.iter().find(|one| one["id"] == id.as_str()).unwrap();
    assert!(
        dump["bytes"].as_u64().unwrap() > 8 << 20,
        "several parts: {dump}"
    );
    run(&["verify", "--all", "-q"]).run().assert_code(0);
}

#[test]
fn where_locks_and_records_cannot_lie_a_temporary_place_serves_with_one_warning() {
    let (site, garage) = (Site::new("no_state"), Garage::start());
    let (disk, place) = (Tmpfs::new("size=64k,mode=755"), TempDir::new());
    disk.remount("ro");
    let _turn = site.turn();
    let run = |temporary: &std::path::Path, verb: &[&str]| {
        alone(&site, garage.port, &disk.path().join("state"), verb)
            .env("TMPDIR", temporary)
            .run()
    };
    let done = run(place.path(), &["backup"]).assert_code(0);
    assert_eq!(
        done.stderr.matches("PGARK_STATE_DIR").count(),
        1,
        "{}",
        done.stderr
    );
    assert!(
        files(place.path())
            .keys()
            .any(|name| name.ends_with("journal.jsonl"))
    );
    run(place.path(), &["status", "--exit-code"]).assert_code(0);
    // Nowhere at all: the way out is named, and nothing is done.
    let before = run(place.path(), &["list", "--json"]).stdout;
    run(disk.path(), &["backup"])
        .assert_code(1)
        .assert_says("PGARK_STATE_DIR")
        .assert_says("tmpfs");
    assert_eq!(run(place.path(), &["list", "--json"]).stdout, before);
    // Somebody else was first below /tmp.
    let own = place.join(&format!("pgark-{}", rustix::process::geteuid().as_raw()));
    std::fs::remove_dir_all(&own).unwrap();
    std::os::unix::fs::symlink("/var", &own).unwrap();
    run(place.path(), &["backup"])
        .assert_code(1)
        .assert_says("somebody else's");
}

#[test]
fn a_bucket_that_is_away_fails_the_run_and_the_service_lives_until_it_is_back() {
    let (site, garage, place) = (Site::new("alone_away"), Garage::start(), TempDir::new());
    let gate = Gate::to(garage.port);
    let _turn = site.turn();
    let pgark = |verb: &[&str]| alone(&site, gate.port, place.path(), verb);
    gate.close();
    let log = place.join("serve.log");
    let service = pgark(&["serve"])
        .env("HTTP_ADDR", "127.0.0.1:0")
        .env("BACKUP_SCHEDULE", "* * * * *")
        .spawn_logging_to(&log);
    let said = |text: &str| std::fs::read_to_string(&log).unwrap().contains(text);
    until("a run to fail", || said("run ended with exit code 1"));
    gate.open();
    until("a run to succeed", || said("run done"));
    let text = std::fs::read_to_string(&log).unwrap();
    let (_, address) = text.split_once("health: http://").unwrap();
    let address = address.split('/').next().unwrap();
    let probe = || {
        Pgark::new(["status", "--probe"])
            .env("HTTP_ADDR", address)
            .run()
    };
    until("health to notice", || probe().code == 0);
    service.signal("TERM");
    service.wait();
    let all = listed(pgark(&["list", "--json"]));
    assert!(
        !all.is_empty() && all.iter().all(|one| one["good"] == true),
        "{all:?}"
    );
}
