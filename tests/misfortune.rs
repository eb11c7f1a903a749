//! What can befall a bucket, a directory and a service, met by the real program: message, outcome,
//! and nothing lost. `bad_luck` has the rest of a single run's, `src/store/object/tests` each
//! refusal of a server by itself.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::bad_luck::Tmpfs;
use crate::prune::{at, backup_at};
use crate::second_store::with_bucket;
use crate::support::garage::Garage;
use crate::support::gate::Gate;
use crate::support::site::{first_id, list};
use crate::support::{Pgark, Running, Site, TempDir, run, until};

// The same that the store's own tests use.
#[allow(dead_code)]
#[path = "../src/store/object/tests/proxy.rs"]
mod proxy;
use proxy::{Act, Proxy, answer, refuse};

fn ids(pgark: Pgark) -> Vec<String> {
    let listed: Vec<Value> = serde_json::from_str(&pgark.run().assert_code(0).stdout).unwrap();
    assert!(
        listed.iter().all(|entry| entry["good"] == true),
        "{listed:?}"
    );
    let id = |entry: &Value| entry["id"].as_str().unwrap().to_owned();
    listed.iter().map(id).collect()
}

/// What passes is weathered within the run; what stays leaves the local copy good, is exit 3 with
/// the way out, and is made up for as soon as it is over.
#[test]
fn whatever_befalls_the_bucket_no_backup_is_lost_and_none_is_good_that_is_not() {
    let (site, garage) = (Site::new("misfortune"), Garage::start());
    let proxy = Proxy::start(garage.port);
    let there = || {
        ids(with_bucket(
            site.pgark(["list", "--json", "--store", "s3"]),
            garage.port,
        ))
    };
    let backup = || site.backup_with(|pgark| with_bucket(pgark, proxy.port));
    let passing = [
        ("PUT", "/", 6, refuse(503, "SlowDown")),
        ("PUT", "/", 3, answer(429, "retry-after: 1\r\n", "")),
        ("PUT", "/", 2, Act::CutBody(100)),
        ("PUT", ".sql.gz HTTP", 1, Act::LoseReply),
        ("PUT", ".json HTTP", 1, Act::LoseReply),
        ("GET", "list-type", 1, Act::CutReply(200)),
    ];
    for (method, piece, times, act) in passing {
        proxy.when(method, piece, times, act);
        let id = first_id(&backup().assert_code(0).stdout);
        assert!(there().contains(&id), "{method} {piece}");
    }
    for (method, piece, act, words) in lasting() {
        proxy.when(method, piece, usize::MAX, act);
        let done = backup()
            .assert_code(3)
            .assert_says("the backup is kept")
            .assert_says(words);
        let id = first_id(&done.stdout);
        assert_eq!(site.entry(&id)["good"], true, "{words}");
        assert!(!there().contains(&id), "{words}");
        proxy.behave();
        with_bucket(site.pgark(["replicate", "-q"]), proxy.port)
            .run()
            .assert_code(0);
        assert!(there().contains(&id), "{words}");
    }
    with_bucket(
        site.pgark(["verify", "--all", "--store", "s3", "-q"]),
        proxy.port,
    )
    .run()
    .assert_code(0);
}

/// What does not pass by itself: the request, the refusal, and the words that lead out of it.
fn lasting() -> [(&'static str, &'static str, Act, &'static str); 5] {
    [
        ("PUT", "/", refuse(403, "RequestTimeTooSkewed"), "clock"),
        ("PUT", "/", refuse(400, "ExpiredToken"), "AWS_SESSION_TOKEN"),
        ("PUT", ".json HTTP", refuse(403, "QuotaExceeded"), "full"),
        (
            "PUT",
            ".idx HTTP",
            refuse(403, "AccessDenied"),
            "s3:PutObject",
        ),
        (
            "GET",
            "list-type",
            refuse(403, "InvalidAccessKeyId"),
            "AWS_ACCESS_KEY_ID",
        ),
    ]
}

#[test]
fn without_the_right_to_delete_nothing_expires_and_it_is_said() {
    let (site, garage) = (Site::new("undeletable"), Garage::start());
    let proxy = Proxy::start(garage.port);
    let old = backup_at(&site, "-20d");
    let short = |pgark: Pgark| with_bucket(pgark, proxy.port).env("S3_RETENTION_DAYS", "7");
    let there = || {
        ids(with_bucket(
            site.pgark(["list", "--json", "--store", "s3"]),
            garage.port,
        ))
    };
    with_bucket(site.pgark(["replicate", "-q"]), proxy.port)
        .run()
        .assert_code(0);
    proxy.when("DELETE", "/", usize::MAX, refuse(403, "AccessDenied"));
    let done = site.backup_with(short).assert_code(0);
    let new = first_id(&done.stdout);
    let report = std::fs::read_to_string(site.dir.join("backup.log")).unwrap();
    assert!(report.contains("s3:DeleteObject"), "{report}");
    assert!(there().contains(&old) && there().contains(&new));
    short(site.pgark(["prune", "--store", "s3"]))
        .run()
        .assert_code(3)
        .assert_says("s3:DeleteObject");
    assert!(there().contains(&old));
    proxy.behave();
    short(site.pgark(["prune", "--store", "s3"]))
        .run()
        .assert_code(0);
    assert!(!there().contains(&old) && there().contains(&new));
    assert_eq!(site.entry(&old)["good"], true);
}

/// The lock of the second store's work is held by another program when the service starts.
#[test]
fn a_copy_that_met_another_ones_lock_is_tried_again() {
    let (site, garage) = (Site::new("locked_copy"), Garage::start());
    let id = site.backup();
    let lock = site.dir.join(".pgark/replicate.lock");
    let mut holder = Command::new("flock");
    holder.arg(&lock).args(["sh", "-c", "echo held; read -r _"]);
    let mut holder = holder
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut held = [0; 4];
    std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut held).unwrap();
    let service = Service::start(
        with_bucket(site.pgark(["serve"]), garage.port).env("BACKUP_ON_START", "false"),
    );
    service.wait_for("is locked for replicate");
    drop(holder.stdin.take());
    holder.wait().unwrap();
    service.wait_for(&format!("{id} is in "));
}

#[test]
fn a_second_attempt_that_fails_too_keeps_what_the_first_one_took() {
    let site = Site::new("small_one");
    let noise = |rows: u32| {
        let sql = format!(
            "DROP TABLE IF EXISTS noise; CREATE TABLE noise AS SELECT md5(random()::text) AS m FROM generate_series(1, {rows})"
        );
        site.server.psql("big_one", &sql);
    };
    site.server.createdb("big_one");
    let disk = Tmpfs::new("size=2m,mode=700");
    let dir = disk.path();
    let backup = |offset: &str, names: &str| {
        let pgark = |pgark: Pgark| at(pgark.store(dir), offset).env("DB_NAME", names);
        site.backup_with(|run| pgark(run).env("BACKUP_RETENTION_DAYS", "30"))
    };
    noise(20_000);
    let oldest = first_id(&backup("-50d", "big_one").assert_code(0).stdout);
    let old = first_id(&backup("-45d", "big_one").assert_code(0).stdout);
    noise(200_000);
    let done = backup("+0", "small_one,big_one").assert_code(3);
    let small = first_id(&done.stdout);
    done.assert_says("to try once more")
        .assert_says("no space left");
    let kept = ids(Pgark::new(["list", "--json"]).store(dir));
    assert!(
        small.starts_with("backup_small_one") && kept.contains(&small),
        "{kept:?}"
    );
    // Room was made by what was due; the last good one of the other database stays.
    assert!(kept.contains(&old) && !kept.contains(&oldest), "{kept:?}");
    assert_eq!(
        kept.iter()
            .filter(|id| id.starts_with("backup_big_one"))
            .count(),
        1
    );
}

#[test]
fn records_on_a_full_disk_fail_no_run() {
    let site = Site::new("full_log");
    let disk = Tmpfs::new("size=16k,mode=700");
    std::fs::create_dir(site.dir.join(".pgark")).unwrap();
    for name in ["backup.log", "journal.jsonl", "service.log"] {
        std::fs::write(disk.path().join(name), "").unwrap();
    }
    std::fs::write(disk.path().join("all the rest"), vec![b'x'; 64 << 10]).unwrap_err();
    symlink(disk.path().join("backup.log"), site.dir.join("backup.log")).unwrap();
    let journal = site.dir.join(".pgark/journal.jsonl");
    symlink(disk.path().join("journal.jsonl"), journal).unwrap();
    let done = site.backup_with(|pgark| pgark).assert_code(0);
    done.assert_says("warning: cannot write to ")
        .assert_says("backup.log")
        .assert_says("journal.jsonl");
    let _turn = site.turn();
    let service = Service::start(
        site.pgark(["serve"])
            .env("PGARK_LOG_PATH", disk.path().join("service.log")),
    );
    service.wait_for("run done");
    service.probe().assert_code(0);
    assert_eq!(ids(site.pgark(["list", "--json"])).len(), 4);
}

#[test]
fn a_directory_that_is_gone_is_said_by_all_who_read_and_made_anew_by_a_run() {
    let site = Site::new("gone");
    site.backup();
    let service = Service::start(site.pgark(["serve"]).env("BACKUP_ON_START", "false"));
    service.probe().assert_code(0);
    std::fs::remove_dir_all(site.dir.path()).unwrap();
    until("health to notice", || service.probe().code == 1);
    for verb in [
        &["list"][..],
        &["verify"],
        &["status"],
        &["prune", "--dry-run"],
        &["cat", "latest"],
    ] {
        let said = site.pgark(verb).run().assert_code(2);
        said.assert_says("there is no directory")
            .assert_says("BACKUP_DIR");
    }
    assert!(!site.dir.path().exists(), "who reads makes nothing");
    let id = site.backup();
    assert_eq!(site.entry(&id)["good"], true);
    until("health to notice", || service.probe().code == 0);
}

/// Two machines with a service each for one cluster: the server keeps their runs apart.
#[test]
fn of_two_services_on_one_cluster_one_waits_for_its_next_turn() {
    let (site, elsewhere) = (Site::new("two_services"), TempDir::new());
    let _turn = site.turn();
    let session = site.hold("item");
    let serve = || site.pgark(["serve"]).env("PGARK_LOCK_TIMEOUT", "1h");
    let first = Service::start(serve());
    first.wait_for("dump begins");
    let second = Service::start(serve().store(elsewhere.path()));
    second.wait_for("is held by pgark backup");
    second.wait_for("run ended with exit code 6");
    assert_eq!(outcomes(elsewhere.path()), ["start busy"]);
    drop(session);
    first.wait_for("run done");
    assert_eq!(outcomes(site.dir.path()), ["start ok"]);
    // Both live on, and the other one's time comes.
    assert!(list(elsewhere.path()).is_empty());
    site.pgark(["backup"])
        .store(elsewhere.path())
        .run()
        .assert_code(0);
    first.probe().assert_code(0);
    until("health to notice", || second.probe().code == 0);
}

/// The server is away for some of the schedule's moments: each run fails and is recorded, the
/// service lives, and the first moment after that brings a backup.
#[test]
fn a_database_that_is_down_for_long_costs_the_runs_of_that_time_only() {
    let site = Site::new("down");
    let before = site.backup();
    let _turn = site.turn();
    let gate = Gate::to(site.server.port);
    gate.close();
    let pgark = site.pgark(["serve"]).env("DB_PORT", gate.port.to_string());
    let service = Service::start(
        pgark
            .env("BACKUP_ON_START", "false")
            .env("BACKUP_SCHEDULE", "* * * * *"),
    );
    service.wait_for("run ended with exit code 1");
    assert_eq!(outcomes(site.dir.path()).last().unwrap(), "schedule failed");
    service.probe().assert_code(1);
    assert_eq!(site.entry(&before)["good"], true, "it is what there is");
    gate.open();
    service.wait_for("run done");
    assert_eq!(outcomes(site.dir.path()).last().unwrap(), "schedule ok");
    until("health to notice", || service.probe().code == 0);
}

fn outcomes(dir: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(dir.join(".pgark/journal.jsonl")).unwrap_or_default();
    let outcome = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        [&line["trigger"], &line["outcome"]]
            .map(|word| word.as_str().unwrap().to_owned())
            .join(" ")
    };
    text.lines().map(outcome).collect()
}

/// A service; killed on drop.
struct Service {
    running: Running,
    place: TempDir,
}

impl Service {
    fn start(pgark: Pgark) -> Service {
        let place = TempDir::new();
        let pgark = pgark.env("HTTP_ADDR", "127.0.0.1:0");
        let running = pgark.spawn_logging_to(&place.join("log"));
        let service = Service { running, place };
        service.wait_for("/healthz");
        service
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.place.join("log")).unwrap()
    }

    #[track_caller]
    fn wait_for(&self, text: &str) {
        until(text, || self.log().contains(text));
    }

    /// As a container's health check asks.
    fn probe(&self) -> crate::support::Run {
        let log = self.log();
        let (_, address) = log.split_once("health: http://").unwrap();
        let address = address.split('/').next().unwrap();
        Pgark::new(["status", "--probe"])
            .env("HTTP_ADDR", address)
            .run()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let pid = self.running.pid().to_string();
        // It may be gone already.
        run(Command::new("kill").args(["-KILL", &pid]));
        until("its end", || !self.running.is_alive());
    }
}
