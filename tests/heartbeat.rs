//! A monitor hears of runs that ended well; one that is away costs a warning and no run.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::second_store::with_bucket;
use crate::support::{Pgark, Site, TempDir, until};

const TOKEN: &str = "T0kenOfTheMonitor";

/// Notes what is fetched, and answers what it is told to; `200` when nothing is left to say, and
/// nothing at all for an empty status.
struct Monitor {
    port: u16,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Monitor {
    fn answering(statuses: &[&str]) -> Monitor {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard: Arc<Mutex<Vec<String>>> = Arc::default();
        let noted = Arc::clone(&heard);
        let mut statuses: Vec<String> = statuses.iter().rev().map(ToString::to_string).collect();
        std::thread::spawn(move || {
            let mut silent = Vec::new();
            for mut stream in listener.incoming().flatten() {
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let first = lines
                    .next()
                    .unwrap_or_else(|| Ok(String::new()))
                    .unwrap_or_default();
                let agent = lines
                    .map_while(Result::ok)
                    .take_while(|line| !line.is_empty());
                let agent = agent
                    .filter(|line| line.starts_with("user-agent: pgark/"))
                    .count();
                if agent == 1 {
                    noted.lock().unwrap().push(first.replace(" HTTP/1.1", ""));
                }
                let status = statuses.pop().unwrap_or_else(|| "200 OK".to_owned());
                if status.is_empty() {
                    silent.push(stream);
                    continue;
                }
                let reply = format!(
                    "HTTP/1.1 {status}\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
                );
                let _ = stream.write_all(reply.as_bytes());
            }
        });
        Monitor { port, heard }
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }

    /// Of the Healthchecks kind.
    fn checks(&self) -> String {
        format!("http://127.0.0.1:{}/ping/{TOKEN}", self.port)
    }

    /// As Uptime Kuma shows it.
    fn kuma(&self) -> String {
        format!(
            "http://127.0.0.1:{}/api/push/{TOKEN}?status=up&msg=OK&ping=",
            self.port
        )
    }
}

fn checks(path: &str) -> String {
    format!("GET /ping/{TOKEN}{path}")
}

#[test]
fn a_monitor_hears_of_start_success_and_failure_as_far_as_it_knows_them() {
    let site = Site::new("heartbeat");
    let (healthchecks, kuma) = (Monitor::answering(&[]), Monitor::answering(&[]));
    let good = |url: String| site.backup_with(|pgark| pgark.env("HEARTBEAT_URL", url));
    let bad = |url: String| {
        site.backup_with(|pgark| pgark.env("HEARTBEAT_URL", url).env("DB_PASSWORD", "wr0ng"))
    };
    for url in [healthchecks.checks(), kuma.kuma()] {
        good(url.clone()).assert_code(0);
        bad(url).assert_code(1);
    }
    assert_eq!(
        healthchecks.heard(),
        [
            checks("/start"),
            checks(""),
            checks("/start"),
            checks("/fail")
        ]
    );
    // Kuma knows no such addresses: its silence is the alarm.
    assert_eq!(
        kuma.heard(),
        [format!("GET /api/push/{TOKEN}?status=up&msg=OK&ping=")]
    );
}

/// Good means every database, on every store.
#[test]
fn a_run_in_part_is_no_success() {
    let site = Site::new("heartbeat_part");
    let monitor = Monitor::answering(&[]);
    let dead = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    site.backup_with(|pgark| with_bucket(pgark, dead).env("HEARTBEAT_URL", monitor.checks()))
        .assert_code(3);
    site.backup_with(|pgark| {
        pgark
            .env("DB_NAME", "heartbeat_part,missing")
            .env("HEARTBEAT_URL", monitor.checks())
    })
    .assert_code(3);
    let failed = [checks("/start"), checks("/fail")];
    assert_eq!(monitor.heard(), [failed.clone(), failed].concat());
    // Another run holds the cluster: that one will tell.
    let _session = site.hold("item");
    let _turn = site.turn();
    let mut first = site
        .pgark(["backup"])
        .env("PGARK_LOCK_TIMEOUT", "1h")
        .spawn();
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted";
    until("the run to hold the lock", || {
        site.server.psql("postgres", locks) == "1"
    });
    site.pgark(["backup"])
        .env("HEARTBEAT_URL", monitor.kuma())
        .run()
        .assert_code(6);
    assert!(first.is_alive());
    first.signal("TERM");
    first.wait();
    assert!(
        !monitor.heard().iter().any(|line| line.contains("push")),
        "{:?}",
        monitor.heard()
    );
}

#[test]
fn a_monitor_that_is_away_fails_no_run_and_its_secret_stays_secret() {
    let site = Site::new("heartbeat_away");
    let backup = |url: String| {
        let done = site
            .backup_with(|pgark| pgark.env("HEARTBEAT_URL", url))
            .assert_code(0);
        let report = std::fs::read_to_string(site.dir.join("backup.log")).unwrap();
        for text in [&done.stdout, &done.stderr, &report] {
            assert!(!text.contains(TOKEN), "{text}");
        }
        done
    };
    // Away for a moment: asked again.
    let moody = Monitor::answering(&["503 Busy", "500 Oops"]);
    let done = backup(moody.kuma());
    assert!(!done.stderr.contains("HEARTBEAT_URL"), "{}", done.stderr);
    assert_eq!(moody.heard().len(), 3);
    // It does not know us: asking again is no use.
    let strict = Monitor::answering(&["404 Not Found"]);
    backup(strict.kuma())
        .assert_says("127.0.0.1 did not hear of this run")
        .assert_says("it answered 404");
    assert_eq!(strict.heard().len(), 1);
    let dead = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let url = format!("http://127.0.0.1:{dead}/ping/{TOKEN}");
    backup(url.clone())
        .assert_says("did not hear of this run")
        .assert_says("refused");
    // No TLS where TLS is asked for; a host that there is not.
    let plain = Monitor::answering(&[]);
    backup(plain.kuma().replace("http://", "https://")).assert_says("did not hear");
    assert!(plain.heard().is_empty());
    backup(format!("https://{TOKEN}.invalid/x").replace(TOKEN, "none"))
        .assert_says("none.invalid did not hear");
    for bad in [
        "ping.example.com/x",
        "ftp://example.com/x",
        "https://u:p@example.com/x",
    ] {
        let refused = site
            .pgark(["backup"])
            .env("HEARTBEAT_URL", bad)
            .run()
            .assert_code(2);
        let refused = refused.assert_says("HEARTBEAT_URL");
        assert!(!refused.stderr.contains(bad), "{}", refused.stderr);
    }
}

#[test]
fn a_monitor_that_says_nothing_does_not_hold_up_a_signal() {
    let site = Site::new("heartbeat_silent");
    let _turn = site.turn();
    let monitor = Monitor::answering(&["", ""]);
    let running = site
        .pgark(["backup"])
        .env("HEARTBEAT_URL", monitor.kuma())
        .spawn();
    until("the run to be told", || monitor.heard().len() == 1);
    let asked = Instant::now();
    running.signal("TERM");
    let done = running.wait();
    assert!(
        asked.elapsed() < Duration::from_secs(3),
        "{:?}",
        asked.elapsed()
    );
    // The backup itself was over.
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(site.list().iter().all(|entry| entry["good"] == true));
}

#[test]
fn the_service_tells_with_a_url_from_a_file() {
    let site = Site::new("heartbeat_served");
    let _turn = site.turn();
    let (monitor, place) = (Monitor::answering(&[]), TempDir::new());
    let (file, log) = (place.join("url"), place.join("log"));
    std::fs::write(&file, format!("{}\n", monitor.checks())).unwrap();
    let service = |pgark: Pgark| {
        pgark
            .env("HTTP_ADDR", "127.0.0.1:0")
            .env("HEARTBEAT_URL_FILE", &file)
    };
    let running = service(site.pgark(["serve"])).spawn_logging_to(&log);
    until("the monitor to hear", || monitor.heard().len() == 2);
    assert_eq!(monitor.heard(), [checks("/start"), checks("")]);
    running.signal("TERM");
    running.wait();
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(
        !said.contains(TOKEN) && !said.contains("without effect"),
        "{said}"
    );
}
