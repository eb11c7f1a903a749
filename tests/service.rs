//! The service: runs by schedule and at the start, their records, health, and how it ends.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

mod bases;

use crate::support::gate::Gate;
use crate::support::site::{Site, files, list};
use crate::support::{PASSWORD, Pgark, Running, TempDir, until};

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A service under test; its log goes to a file.
pub(crate) struct Service {
    running: Option<Running>,
    port: u16,
    log: std::path::PathBuf,
    _place: TempDir,
}

impl Service {
    pub(crate) fn start(pgark: Pgark) -> Service {
        let place = TempDir::new();
        let log = place.join("log");
        let port = free_port();
        let running = pgark
            .env("HTTP_ADDR", format!("127.0.0.1:{port}"))
            .spawn_logging_to(&log);
        Service {
            running: Some(running),
            port,
            log,
            _place: place,
        }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    #[track_caller]
    pub(crate) fn wait_for_log(&self, text: &str) {
        until(text, || self.log().contains(text));
    }

    /// Status code and body of a GET.
    pub(crate) fn get(&self, path: &str) -> (u16, Value) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let code = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let body = answer.split("\r\n\r\n").nth(1).unwrap();
        (code, serde_json::from_str(body).unwrap_or_default())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.running.as_ref().unwrap().pid()
    }

    /// Asks it to end; gives how long that took.
    #[track_caller]
    pub(crate) fn end(mut self, signal: &str, code: i32) -> Duration {
        let started = Instant::now();
        let running = self.running.take().unwrap();
        running.signal(signal);
        let done = running.wait();
        assert_eq!(done.code, code, "{}", self.log());
        started.elapsed()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.signal("KILL");
        }
    }
}

pub(crate) fn journal(dir: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(dir.join(".pgark/journal.jsonl")).unwrap_or_default();
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn outcomes(dir: &Path) -> Vec<String> {
    let outcome = |line: Value| {
        format!(
            "{} {}",
            line["trigger"].as_str().unwrap(),
            line["outcome"].as_str().unwrap()
        )
    };
    journal(dir).into_iter().map(outcome).collect()
}

#[test]
fn the_start_brings_a_backup_with_its_records_and_a_restart_no_second_one() {
    let site = Site::new("initial");
    let legacy = site.legacy("20240101_020000");
    let _turn = site.turn();
    let serve = || site.pgark(["serve"]).env("BACKUP_RETENTION_DAYS", "30");
    let service = Service::start(serve());
    service.wait_for_log("run done");
    let dir = site.dir.path();
    assert_eq!(outcomes(dir), ["start ok"]);
    // What the volume held, and what became of it: it waited for a verified backup, and went.
    assert!(
        service.log().contains("1 of the old service"),
        "{}",
        service.log()
    );
    let ids: Vec<String> = list(dir)
        .iter()
        .map(|entry| format!("{} {}", entry["kind"], entry["state"]))
        .collect();
    assert_eq!(
        ids,
        ["\"globals\" \"taken\"", "\"dump\" \"verified\""],
        "{legacy}"
    );
    let report = std::fs::read_to_string(site.dir.join("backup.log")).unwrap();
    for words in [
        "backup begins (start)",
        "database initial: backup_initial_",
        "sha256 ",
        &format!("expired {legacy}"),
        "backup done: 2 taken, 1 expired",
    ] {
        assert!(report.contains(words), "{words} in {report}");
    }
    let (code, health) = service.get("/healthz");
    assert_eq!(
        (code, &health["healthy"]),
        (200, &Value::Bool(true)),
        "{health}"
    );
    assert_eq!(health["databases"][0]["database"], "initial");
    assert_eq!(service.get("/livez").0, 200);
    let status = site.pgark(["status", "--exit-code"]).run().assert_code(0);
    assert!(
        status
            .stdout
            .trim_end()
            .lines()
            .last()
            .unwrap()
            .contains("pgark restore backup_initial_"),
        "{}",
        status.stdout
    );
    assert!(service.end("TERM", 143) < Duration::from_secs(5));
    let again = Service::start(site.pgark(["serve"]));
    again.wait_for_log("no initial backup");
    assert_eq!(outcomes(dir).len(), 1);
    again.end("INT", 130);
}

#[test]
fn a_backup_that_somebody_deleted_makes_the_service_unhealthy() {
    let site = Site::new("deleted");
    site.backup();
    let dir = site.dir.path();
    let service = Service::start(site.pgark(["serve"]).env("BACKUP_ON_START", "false"));
    until("the service to listen", || {
        service.log().contains("/healthz")
    });
    assert_eq!(service.get("/healthz").0, 200);
    for name in files(dir).keys().filter(|name| name.ends_with(".sql.gz")) {
        std::fs::remove_file(dir.join(name)).unwrap();
    }
    until("health to notice", || service.get("/healthz").0 == 503);
    site.pgark(["status", "--exit-code"]).run().assert_code(1);
    service.end("TERM", 143);
}

/// Every minute; the first run meets a wrong password, the next one the right one.
#[test]
fn the_schedule_brings_runs_and_a_changed_secret_takes_effect() {
    let site = Site::new("scheduled");
    let _turn = site.turn();
    let secrets = TempDir::new();
    let file = secrets.join("password");
    std::fs::write(&file, "wrong\n").unwrap();
    let pgark = site
        .pgark(["serve"])
        .env("DB_PASSWORD", "")
        .env("DB_PASSWORD_FILE", &file)
        .env("BACKUP_SCHEDULE", "* * * * *");
    let service = Service::start(pgark);
    service.wait_for_log("run ended with exit code 1");
    assert_eq!(outcomes(site.dir.path()), ["start failed"]);
    assert_eq!(service.get("/healthz").0, 503);
    let report = std::fs::read_to_string(site.dir.join("backup.log")).unwrap();
    assert!(
        report.contains("FAILED") && !report.contains("wrong"),
        "{report}"
    );
    std::fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    service.wait_for_log("run done");
    assert_eq!(outcomes(site.dir.path()), ["start failed", "schedule ok"]);
    until("health to notice", || service.get("/healthz").0 == 200);
    service.end("TERM", 143);
}

#[test]
fn the_initial_backup_waits_for_a_server_that_is_still_starting() {
    let site = Site::new("late");
    let _turn = site.turn();
    let gate = Gate::to(site.server.port);
    gate.close();
    let pgark = site.pgark(["serve"]).env("DB_PORT", gate.port.to_string());
    let service = Service::start(pgark);
    service.wait_for_log("the initial backup waits for the server");
    assert!(outcomes(site.dir.path()).is_empty());
    gate.open();
    service.wait_for_log("run done");
    service.end("TERM", 143);
}

/// A host that takes the connection and says nothing must not hold up a signal.
#[test]
fn a_silent_host_holds_up_neither_signal_nor_health() {
    let site = Site::new("silent");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let service = Service::start(site.pgark(["serve"]).env("DB_PORT", port.to_string()));
    service.wait_for_log("next run");
    let (_held, _) = silent.accept().unwrap();
    assert_eq!(
        (service.get("/livez").0, service.get("/healthz").0),
        (200, 503)
    );
    let took = service.end("TERM", 143);
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn a_hung_run_is_ended_and_its_place_is_free() {
    let site = Site::new("hung");
    let _turn = site.turn();
    let session = site.hold("item");
    let pgark = site
        .pgark(["serve"])
        .env("PGARK_RUN_TIMEOUT", "3s")
        .env("PGARK_LOCK_TIMEOUT", "1h");
    let service = Service::start(pgark);
    service.wait_for_log("takes longer than 3 s and is ended");
    service.wait_for_log("run ended with exit code 143");
    assert_eq!(
        outcomes(site.dir.path()),
        ["start interrupted", "start timeout"]
    );
    drop(session);
    site.pgark(["backup"]).run().assert_code(0);
    service.end("TERM", 143);
}

#[test]
fn a_signal_ends_the_service_and_its_run_in_time_and_nothing_half_made_stays() {
    let site = Site::new("stopped");
    let _turn = site.turn();
    let _session = site.hold("item");
    let pgark = site.pgark(["serve"]).env("PGARK_LOCK_TIMEOUT", "1h");
    let service = Service::start(pgark);
    service.wait_for_log("dump begins");
    // What others see of the service's run.
    let runs = children(service.pid());
    assert_eq!(runs.len(), 1, "{runs:?}");
    for file in ["cmdline", "environ"] {
        let bytes = std::fs::read(format!("/proc/{}/{file}", runs[0])).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.is_empty() && !text.contains(PASSWORD), "{text}");
    }
    let took = service.end("TERM", 143);
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(outcomes(site.dir.path()), ["start interrupted"]);
    assert!(list(site.dir.path()).is_empty());
    assert!(!Path::new(&format!("/proc/{}", runs[0])).exists());
}

/// Processes whose parent is this one.
fn children(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let tasks = std::fs::read_to_string(path).unwrap();
    tasks
        .split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

#[test]
fn nonsense_is_refused_at_the_start() {
    let dir = TempDir::new();
    for (name, value, words) in [
        ("BACKUP_SCHEDULE", "0 0 30 2 *", "BACKUP_SCHEDULE"),
        ("BACKUP_SCHEDULE", "61 * * * *", "BACKUP_SCHEDULE"),
        ("TZ", "Atlantis/Center", "TZ"),
        ("HTTP_ADDR", "203.0.113.7:1", "cannot listen"),
        ("BACKUP_ON_START", "perhaps", "BACKUP_ON_START"),
    ] {
        Pgark::new(["serve"])
            .store(dir.path())
            .env("DB_HOST", "127.0.0.1")
            .env(name, value)
            .run()
            .assert_code(2)
            .assert_says(words);
    }
}
