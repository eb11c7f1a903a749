//! Runs that meet another run, a signal or an eavesdropper, and what they cost in memory:
//! nothing is committed or left behind by a run that was broken off, and no password shows.

use crate::support::site::{files, first_id, list, names};
use crate::support::{Pgark, Running, Server, Session, Site, TempDir, until};
use std::path::Path;
use std::sync::OnceLock;

/// Nothing was committed: no dump, no globals, no temporary name.
#[track_caller]
fn assert_nothing_in(dir: &Path) {
    let names = names(dir);
    assert!(names.is_empty(), "{names:?}");
}

/// Starts a backup that waits for a lock which somebody else holds.
fn blocked_backup(site: &Site, table: &str) -> (Session, Running) {
    let session = site.hold(table);
    let running = site.pgark(["backup", "-q"]).spawn();
    until("the backup to wait for the lock", || {
        let sql = format!(
            "SELECT count(*) FROM pg_locks WHERE relation = '{table}'::regclass AND NOT granted"
        );
        site.server.psql(&site.database, &sql) != "0"
    });
    (session, running)
}

#[test]
fn a_second_run_exits_6_and_says_who_holds_it_and_a_dead_run_blocks_nobody() {
    let site = Site::new("two_runs");
    let _turn = site.turn();
    let (session, running) = blocked_backup(&site, "item");
    let holder = format!("process {}", running.pid());
    site.pgark(["backup"])
        .run()
        .assert_code(6)
        .assert_says(&holder);
    // Another directory, as from another host: the server's lock decides.
    let elsewhere = TempDir::new();
    let done = site.pgark(["backup"]).store(elsewhere.path()).run();
    done.assert_code(6).assert_says(&holder);
    assert_nothing_in(elsewhere.path());
    running.signal("KILL");
    assert_eq!(running.wait().code, 137);
    // What it had asked the server for is not ended by its death alone.
    drop(session);
    let done = site.pgark(["backup"]).run();
    done.assert_code(0);
    assert!(site.list().iter().all(|entry| entry["good"] == true));
}

/// Processes whose parent is this one.
fn children(pid: u32) -> Vec<u32> {
    let stat = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    let parent = |text: &str| {
        text.rsplit(')')
            .next()?
            .split_whitespace()
            .nth(1)?
            .parse::<u32>()
            .ok()
    };
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|&child| stat(child).and_then(|text| parent(&text)) == Some(pid))
        .collect()
}

/// Signals a run, which must end soon with 128 + n and without a child.
#[track_caller]
fn interrupt(running: Running, signal: &str, code: i32) {
    let started = std::time::Instant::now();
    let left = children(running.pid());
    running.signal(signal);
    let done = running.wait().assert_code(code);
    done.assert_says("interrupted");
    assert!(
        started.elapsed().as_secs() < 20,
        "it took {:?}",
        started.elapsed()
    );
    for child in left {
        assert!(
            !Path::new(&format!("/proc/{child}")).exists(),
            "child {child} is left"
        );
    }
}

#[test]
fn a_signal_ends_a_backup_that_waits_for_a_lock() {
    let site = Site::new("signal_lock");
    let _turn = site.turn();
    let (_session, running) = blocked_backup(&site, "item");
    interrupt(running, "TERM", 143);
    assert_nothing_in(site.dir.path());
}

/// A server with one table of some 300 MB as text.
fn big() -> &'static Server {
    static BIG: OnceLock<Server> = OnceLock::new();
    BIG.get_or_init(|| {
        let server = Server::start(15);
        server.createdb("big");
        server.psql("big", "CREATE TABLE wide AS SELECT i, repeat(md5(i::text), 3) || md5((-i)::text) AS t FROM generate_series(1, 2200000) i; ALTER TABLE wide ADD PRIMARY KEY (i)");
        server
    })
}

fn on_big(verb: &[&str], dir: &Path) -> Pgark {
    Pgark::new(verb)
        .server(big())
        .store(dir)
        .env("DB_NAME", "big")
}

static BIG_TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// Runs to the end; its output and the most memory it ever had, in KiB.
#[track_caller]
fn with_peak(mut running: Running) -> (crate::support::Run, u64) {
    let mut peak = 0;
    while running.is_alive() {
        peak = peak.max(peak_kib(running.pid()).unwrap_or(0));
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    (running.wait().assert_code(0), peak)
}

#[test]
fn memory_stays_bounded_and_signals_leave_nothing_in_mid_backup_and_mid_restore() {
    let _turn = BIG_TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let (server, dir) = (big(), TempDir::new());
    let busy = |what: &str| {
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE query ~ '^(LOCK .*; )?COPY .*{what}' AND state = 'active'"
        );
        server.psql("postgres", &sql) != "0"
    };
    for (signal, code) in [("TERM", 143), ("INT", 130)] {
        // Slow to compress, so that the copy is caught in the act.
        let pgark = on_big(
            &["backup", "-q", "--compression", "zstd:19", "--jobs", "1"],
            dir.path(),
        );
        let running = pgark.spawn();
        until("rows to be copied", || busy("TO STDOUT"));
        interrupt(running, signal, code);
        assert_nothing_in(dir.path());
        // Nor on the server: a session that waits to send holds its locks for minutes.
        until("pgark's sessions to end", || {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'big' AND backend_type = 'client backend'";
            server.psql("postgres", sql) == "0"
        });
    }
    let (done, peak) = with_peak(on_big(&["backup", "-q", "--jobs", "4"], dir.path()).spawn());
    let id = first_id(&done.stdout);
    let raw = list(dir.path())
        .iter()
        .find(|entry| entry["id"] == id.as_str())
        .unwrap()["raw_bytes"]
        .as_u64();
    assert!(raw > Some(290_000_000), "{raw:?}");
    assert!(peak > 5_000 && peak < 128 << 10, "backup: {peak} KiB");
    for (signal, code) in [("TERM", 143), ("INT", 130)] {
        let running = on_big(&["restore", &id, "--into", "big_back", "-q"], dir.path()).spawn();
        until("rows to be loaded", || busy("FROM stdin"));
        interrupt(running, signal, code);
        assert_eq!(
            server.psql(
                "postgres",
                "SELECT count(*) FROM pg_database WHERE datname = 'big_back'"
            ),
            "0"
        );
    }
    let (_, peak) = with_peak(
        on_big(
            &["restore", &id, "--into", "big_back", "--jobs", "4", "-q"],
            dir.path(),
        )
        .spawn(),
    );
    assert!(peak > 5_000 && peak < 128 << 10, "restore: {peak} KiB");
}

/// The most memory that a process ever had, in KiB.
fn peak_kib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[test]
fn a_signal_ends_a_legacy_restore_with_its_psql_and_its_database() {
    let site = Site::new("legacy_signal");
    let sql = "CREATE TABLE made ();\nSELECT pg_sleep(600);\n--\n-- PostgreSQL database dump complete\n--\n";
    let id = site.legacy_of("20240101_000000", sql);
    let running = site
        .pgark(["restore", &id, "--into", "legacy_half", "-q"])
        .spawn();
    until("psql to sleep", || {
        site.server.psql("postgres", "SELECT count(*) FROM pg_stat_activity WHERE datname = 'legacy_half' AND query LIKE '%pg_sleep%'") != "0"
    });
    assert_eq!(children(running.pid()).len(), 1);
    interrupt(running, "INT", 130);
    assert!(!site.has_database("legacy_half"));
}

const SECRET: &str = "Zq7#unlikely pässwörd";

/// Scans what other users of the machine, or a crash report, could see of a run and its
/// children; gives the names of the children seen.
fn watch_for_secret(running: &mut Running) -> std::collections::BTreeSet<String> {
    let mut seen = std::collections::BTreeSet::new();
    while running.is_alive() {
        let mut pids = children(running.pid());
        pids.push(running.pid());
        for pid in pids {
            for file in ["cmdline", "environ"] {
                let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
                assert!(
                    !holds_secret(&bytes),
                    "{file} of {pid}: {}",
                    String::from_utf8_lossy(&bytes)
                );
            }
            if pid != running.pid() {
                let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                seen.insert(name.trim().to_owned());
            }
        }
    }
    seen
}

fn holds_secret(bytes: &[u8]) -> bool {
    let percent = "Zq7%23unlikely";
    [SECRET, "Zq7#unlikely", percent].iter().any(|secret| {
        bytes
            .windows(secret.len())
            .any(|window| window == secret.as_bytes())
    })
}

#[test]
fn a_password_is_in_no_argv_environment_output_or_file() {
    assert!(holds_secret(format!("x{SECRET}").as_bytes()));
    let site = Site::new("secrets");
    site.server.psql(
        "secrets",
        &format!("CREATE ROLE keeper SUPERUSER LOGIN PASSWORD '{SECRET}'"),
    );
    let secrets = TempDir::new();
    let file = secrets.join("password");
    std::fs::write(&file, format!("{SECRET}\n")).unwrap();
    let pgark = |args: &[&str]| {
        site.pgark(args)
            .env("DB_USER", "keeper")
            .env("DB_PASSWORD", "")
            .env("DB_PASSWORD_FILE", &file)
    };
    let _turn = site.turn();
    let legacy = site.legacy("20240101_000000");
    let mut running = pgark(&["backup"]).spawn();
    let seen = watch_for_secret(&mut running);
    assert!(
        seen.contains("pg_dump") && seen.contains("pg_dumpall"),
        "{seen:?}"
    );
    let done = running.wait().assert_code(0);
    let id = first_id(&done.stdout);
    let mut said = vec![done.stdout, done.stderr];
    for (id, program) in [(&id, None), (&legacy, Some("psql"))] {
        let into = format!("secrets_{}", program.unwrap_or("own"));
        let mut running = pgark(&["restore", id, "--into", &into]).spawn();
        let seen = watch_for_secret(&mut running);
        assert!(
            program.is_none_or(|program| seen.contains(program)),
            "{seen:?}"
        );
        let done = running.wait().assert_code(0);
        said.extend([done.stdout, done.stderr]);
    }
    // Errors talk the most.
    let failed = pgark(&["backup"]).env("DB_PORT", "1").run().assert_code(1);
    said.extend([failed.stdout, failed.stderr]);
    let entries = site.list();
    for entry in entries {
        let cat = pgark(&["cat", entry["id"].as_str().unwrap()])
            .run()
            .assert_code(0);
        said.push(cat.stdout);
    }
    for text in &said {
        assert!(!holds_secret(text.as_bytes()), "{text}");
    }
    for place in [site.dir.path(), Path::new("/dev/shm")] {
        for (name, content) in files(place) {
            assert!(!holds_secret(&content), "{name} in {}", place.display());
        }
    }
}
