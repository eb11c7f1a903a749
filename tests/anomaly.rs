//! The gate on real databases: what shrank is kept and said, and holds the rest until it is accepted.

use serde_json::{Value, json};

use crate::prune::backup_at;
use crate::second_store::with_bucket;
use crate::service::{Service, journal};
use crate::support::garage::Garage;
use crate::support::site::{Site, first_id};

fn prune(site: &Site) -> (String, String) {
    let done = site
        .pgark(["prune"])
        .env("BACKUP_RETENTION_DAYS", "30")
        .run()
        .assert_code(0);
    (done.stdout, done.stderr)
}

/// A backup that must be suspect; its id and what was said.
#[track_caller]
fn suspect(site: &Site) -> (String, String) {
    let done = site
        .backup_with(|pgark| pgark.env("BACKUP_RETENTION_DAYS", "30"))
        .assert_code(3)
        .assert_says("is suspect");
    (first_id(&done.stdout), done.stderr)
}

/// Two backups that are due, then a table is dropped and a backup taken: the ids of all three.
fn with_a_lost_table(name: &str) -> (Site, [String; 3]) {
    let site = Site::new(name);
    let [old, older] = ["-45d", "-50d"].map(|offset| backup_at(&site, offset));
    site.server.psql(name, "DROP TABLE line CASCADE");
    let (id, said) = suspect(&site);
    for text in [
        "the backup is kept, but",
        "table public.line is gone (2000 rows before)",
        &format!("pgark accept {id}"),
    ] {
        assert!(said.contains(text), "{said}");
    }
    (site, [id, old, older])
}

#[test]
fn a_table_that_is_gone_stops_all_expiry_until_somebody_accepts_it() {
    let (site, [first, old, older]) = with_a_lost_table("lost_table");
    let entry = site.entry(&first);
    assert_eq!(
        (&entry["state"], &entry["good"]),
        (&"suspect".into(), &false.into())
    );
    let fall = json!({"measure": "table_gone", "table": "public.line", "before": 2000, "after": 0});
    assert_eq!(entry["suspect"], json!([fall]));
    // Both are due, and both stay; so do their globals.
    let count = site.list().len();
    let (stdout, stderr) = prune(&site);
    assert_eq!(stdout, "");
    let why = format!("{first} is suspect, so nothing of its database expires");
    assert!(stderr.contains(&why), "{stderr}");
    assert_eq!(site.list().len(), count);
    let dry = site.pgark(["prune", "--dry-run"]);
    let dry = dry.env("BACKUP_RETENTION_DAYS", "30").run().assert_code(0);
    let of_old = |line: &&str| line.contains(&format!(" {old} "));
    let line = dry.stdout.lines().find(of_old).unwrap();
    let why = format!("while {first} is suspect");
    assert!(line.contains("keep") && line.contains(&why), "{line}");
    let done = site.pgark(["accept", &first]).run().assert_code(0);
    assert_eq!(done.stdout.trim(), first);
    let (stdout, stderr) = prune(&site);
    assert!(stdout.contains(&old) && stdout.contains(&older), "{stdout}");
    assert!(!stderr.contains("suspect"), "{stderr}");
    let log = std::fs::read_to_string(site.dir.join("backup.log")).unwrap();
    for text in [
        format!("{first} is SUSPECT: table public.line is gone"),
        format!("{first} was accepted"),
    ] {
        assert!(log.contains(&text), "{log}");
    }
}

#[test]
fn a_suspect_backup_is_given_to_nobody_unasked_and_to_whoever_names_it() {
    let (site, [id, ..]) = with_a_lost_table("passed_over");
    let restore = ["restore", "--into", "from_latest", "-q"];
    let latest = site.pgark(restore).run().assert_code(0);
    let over = format!("passed over {id}: suspect: table public.line is gone");
    latest.assert_says(&over);
    let rows = |database: &str, table: &str| {
        let sql = format!("SELECT count(*) FROM {table}");
        site.server.psql(database, &sql)
    };
    assert_eq!(rows("from_latest", "line"), "2000");
    let named = site.restore(&id, "from_suspect").assert_code(0);
    named.assert_says("is suspect");
    assert_eq!(rows("from_suspect", "item"), "3000");
    // Verified, it is as suspect as before; and that is known once it is accepted.
    site.pgark(["verify", &id, "-q"]).run().assert_code(0);
    assert_eq!(site.entry(&id)["state"], "suspect");
    site.pgark(["accept", &id]).run().assert_code(0);
    assert_eq!(site.entry(&id)["state"], "verified");
    let restore = ["restore", "--into", "from_accepted", "-q"];
    site.pgark(restore).run().assert_code(0);
    assert_eq!(rows("from_accepted", "item"), "3000");
    let none = "SELECT count(*) FROM pg_class WHERE relname = 'line'";
    assert_eq!(site.server.psql("from_accepted", none), "0");
}

#[test]
fn to_accept_one_is_to_accept_the_nights_after_and_to_teach() {
    let (site, [first, ..]) = with_a_lost_table("learns");
    // The same loss against the same good ones, also with another codec; and a deeper one.
    let second = site.backup_with(|pgark| pgark.env("BACKUP_COMPRESSION", "zstd"));
    let second = first_id(&second.assert_code(3).stdout);
    site.server.psql("learns", "DELETE FROM item WHERE id > 10");
    let (third, _) = suspect(&site);
    let done = site
        .pgark(["accept", &first, "--json"])
        .run()
        .assert_code(0);
    let done: Value = serde_json::from_str(&done.stdout).unwrap();
    let accepted = done["accepted"].as_array().unwrap();
    assert_eq!(accepted.len(), 2, "{done}");
    assert!(accepted.contains(&json!(first)) && accepted.contains(&json!(second)));
    assert_eq!(site.entry(&second)["good"], true);
    assert_eq!(site.entry(&third)["state"], "suspect", "it fell further");
    site.pgark(["accept", &third]).run().assert_code(0);
    let fourth = site.backup();
    assert_eq!(site.entry(&fourth)["state"], "taken");
    let refused = site.pgark(["accept", &fourth]).run().assert_code(2);
    refused.assert_says("is not suspect but taken");
    let again = site.pgark(["accept", &second]).run().assert_code(0);
    again.assert_says("was accepted before");
    let absent = "backup_learns_20200101_000000";
    site.pgark(["accept", absent]).run().assert_code(2);
}

#[test]
fn rows_that_are_deleted_are_seen_and_small_tables_are_left_alone() {
    let site = Site::new("lost_rows");
    site.server.psql(
        "lost_rows",
        "CREATE TABLE few AS SELECT generate_series(1, 900) AS i",
    );
    site.backup();
    // A small one emptied, a large one less than halved, another codec: no alarm.
    site.server.psql(
        "lost_rows",
        "TRUNCATE few; DELETE FROM line WHERE id > 1001",
    );
    site.backup_with(|pgark| pgark.env("BACKUP_COMPRESSION", "zstd:19"))
        .assert_code(0);
    site.server
        .psql("lost_rows", "DELETE FROM line WHERE id > 500");
    let (id, said) = suspect(&site);
    assert!(
        said.contains("table public.line: 1001 -> 500 rows (-50 %)"),
        "{said}"
    );
    assert!(!said.contains("few"), "{said}");
    // What comes back ends it by itself for the backups after, not for this one.
    site.server.psql(
        "lost_rows",
        "INSERT INTO line (item, note) SELECT i, 'x' FROM generate_series(1, 600) i",
    );
    let next = site.backup();
    assert_eq!(site.entry(&next)["state"], "taken");
    assert_eq!(site.entry(&id)["state"], "suspect");
    // Content that went without a row is seen by its size.
    site.server.psql(
        "lost_rows",
        "ALTER TABLE item ADD blob text; UPDATE item SET blob = repeat('x', 1000)",
    );
    site.backup();
    site.server.psql("lost_rows", "UPDATE item SET blob = NULL");
    let (_, said) = suspect(&site);
    assert!(
        said.contains("size: ") && said.contains("uncompressed"),
        "{said}"
    );
}

#[test]
fn the_service_marks_it_is_not_healthy_and_is_so_again_when_it_is_accepted() {
    let site = Site::new("served_loss");
    let old = backup_at(&site, "-50d");
    site.server.psql(
        "served_loss",
        "DELETE FROM item WHERE id > 100 AND id NOT IN (SELECT item FROM line); DELETE FROM line",
    );
    let _turn = site.turn();
    let service = Service::start(site.pgark(["serve"]).env("BACKUP_RETENTION_DAYS", "30"));
    service.wait_for_log("is suspect");
    crate::support::until("the run's record", || {
        !journal(site.dir.path())
            .iter()
            .all(|line| line["trigger"] != "start")
    });
    let line = journal(site.dir.path()).pop().unwrap();
    assert_eq!(line["outcome"], "partial", "{line}");
    assert_eq!(
        line["taken"][0]["suspect"][0]["table"], "public.line",
        "{line}"
    );
    let id = line["taken"][0]["id"].as_str().unwrap().to_owned();
    let (code, body) = service.get("/healthz");
    assert_eq!(code, 503, "{body}");
    let reason = body["databases"][0]["reason"].as_str().unwrap();
    assert!(reason.contains(&format!("pgark accept {id}")), "{reason}");
    assert_eq!(site.entry(&old)["good"], true, "held");
    site.pgark(["accept", &id]).run().assert_code(0);
    crate::support::until("the service to be healthy", || {
        service.get("/healthz").0 == 200
    });
    service.end("TERM", 143);
    let (stdout, _) = prune(&site);
    assert!(stdout.contains(&old), "{stdout}");
}

#[test]
fn the_second_store_gets_the_suspect_one_holds_its_own_and_is_told() {
    let (site, garage) = (Site::new("held_there"), Garage::start());
    let port = garage.port;
    let pgark = |verb: &[&str]| {
        let pgark = with_bucket(site.pgark(verb), port);
        let pgark = pgark.env("BACKUP_RETENTION_DAYS", "30");
        pgark.env("S3_RETENTION_DAYS", "22")
    };
    let older = backup_at(&site, "-25d");
    let old = backup_at(&site, "-20d");
    pgark(&["replicate"]).run().assert_code(0);
    site.server.psql("held_there", "DROP TABLE line CASCADE");
    // Only the local store knows of it yet.
    let done = site.backup_with(|pgark| pgark).assert_code(3);
    let id = first_id(&done.stdout);
    let prune = || {
        pgark(&["prune", "--store", "s3"])
            .env("S3_RETENTION_DAYS", "7")
            .run()
            .assert_code(0)
    };
    assert_eq!(prune().stdout, "");
    pgark(&["replicate"]).run().assert_code(0);
    let there = || -> Vec<Value> {
        let done = pgark(&["list", "--json", "--store", "s3"])
            .run()
            .assert_code(0);
        serde_json::from_str(&done.stdout).unwrap()
    };
    let state = |id: &str| {
        there()
            .into_iter()
            .find(|one| one["id"] == id)
            .map(|one| one["state"].clone())
    };
    assert_eq!(state(&id), Some("suspect".into()));
    assert_eq!(state(&older), None, "expired there, and not copied again");
    // Accepted while the second store is away: it is told later.
    let away = pgark(&["accept", &id])
        .env("S3_ENDPOINT", "http://127.0.0.1:9")
        .run();
    away.assert_code(3).assert_says("accepted here");
    assert_eq!(site.entry(&id)["good"], true);
    assert_eq!(prune().stdout, "");
    pgark(&["replicate"]).run().assert_code(0);
    assert_eq!(state(&id), Some("taken".into()));
    assert!(prune().stdout.contains(&old));
}

#[test]
fn the_files_thresholds_decide() {
    let site = Site::new("own_limits");
    site.backup();
    site.server.psql(
        "own_limits",
        "DROP TABLE line CASCADE; DELETE FROM item WHERE id > 1000",
    );
    let place = crate::support::TempDir::new();
    let with = |text: &str| {
        let file = place.join("pgark.toml");
        std::fs::write(&file, text).unwrap();
        site.backup_with(|pgark| pgark.env("PGARK_CONFIG", file))
    };
    let lax = "[anomaly]\nrows_fall_percent = 90\nsize_fall_percent = 95\ntable_gone = false\n";
    let strict = "[anomaly]\nrows_fall_percent = 1\nrows_min = 1\n";
    with("[anomaly]\nrows_fall = 90\n")
        .assert_code(2)
        .assert_says("unknown key");
    with("")
        .assert_code(3)
        .assert_says("table public.line is gone")
        .assert_says("public.item: 3000 -> 1000");
    with(lax).assert_code(0);
    site.server
        .psql("own_limits", "DELETE FROM item WHERE id > 985");
    with(strict)
        .assert_code(3)
        .assert_says("public.item: 1000 -> 985 rows (-1 %)");
    with("").assert_code(0);
}
