//! A primary and a standby, promoted under load, twice: the window is unbroken, both timelines
//! restore, and a target on an abandoned branch is refused with the reason.

use super::{Stage, To, Writers, rows};
use crate::support::{Server, Setup, as_server_user, run, until};
use std::path::Path;

/// A standby of that server, by `pg_basebackup`.
fn standby(primary: &Server) -> Server {
    let source = format!(
        "host={} port={} user=postgres",
        primary.socket_dir().display(),
        primary.port
    );
    let clone = |data: &Path| {
        std::fs::remove_dir_all(data).unwrap();
        let mut command = as_server_user(primary.bin().join("pg_basebackup"));
        command.args(["-d", &source, "-X", "stream", "-c", "fast", "-R", "-D"]);
        run(command.arg(data)).assert_code(0);
    };
    Server::start_with(
        primary.major,
        &Setup {
            settings: &["wal_keep_size=2GB", "autovacuum=off", "hot_standby=on"],
            prepare: Some(&clone),
            ..Setup::default()
        },
    )
}

fn promote(server: &Server) {
    server.psql("postgres", "SELECT pg_promote()");
    until("the promotion", || {
        server.psql("postgres", "SELECT pg_is_in_recovery()") == "f"
    });
}

/// What the ledger holds, on whichever server.
fn ledger(server: &Server) -> Vec<u64> {
    rows(&server.psql("postgres", "SELECT n FROM ledger ORDER BY n"))
}

fn failover(major: u32) {
    let stage = Stage::new(major, To::Local);
    let log = stage.dir.join("log");
    let first = &stage.server;
    let second = standby(first);
    let third = standby(first);
    // pgark knows all three, and wants the one that takes writes.
    let ports = [first, &second, &third].map(|server| server.port.to_string());
    let conninfo = format!(
        "host=127.0.0.1,127.0.0.1,127.0.0.1 port={} user=postgres dbname=postgres target_session_attrs=read-write",
        ports.join(",")
    );
    let pgark = |args: &[&str]| {
        let mut pgark = stage.pgark(args);
        for name in ["DB_HOST", "DB_PORT", "DB_USER"] {
            pgark = pgark.env(name, "");
        }
        pgark.env("DB_CONNINFO", &conninfo)
    };
    let stream = pgark(&["wal-stream"]).spawn_logging_to(&log);
    let base = crate::support::site::first_id(
        &pgark(&["backup", "--base", "-q"])
            .run()
            .assert_code(0)
            .stdout,
    );
    let writers = Writers::start(first, 2);
    until("some rows", || ledger(first).len() > 200);
    // The first one dies; the second has what it had been sent.
    drop(writers);
    Stage::caught_up(first);
    let before = ledger(first);
    let abandoned = first.psql("postgres", "SELECT pg_current_wal_flush_lsn()");
    until("the standbys", || {
        [&second, &third]
            .iter()
            .all(|server| ledger(server).len() == before.len())
    });
    promote(&second);
    // The third one follows it, and never hears of what the first one still does.
    let follow = format!(
        "ALTER SYSTEM SET primary_conninfo = 'host={} port={} user=postgres'",
        second.socket_dir().display(),
        second.port
    );
    third.psql("postgres", &follow);
    third.psql("postgres", "SELECT pg_reload_conf()");
    let sql = format!(
        "SELECT count(*) FROM pg_stat_wal_receiver WHERE sender_port = {}",
        second.port
    );
    until("the third to follow the second", || {
        third.psql("postgres", &sql) == "1"
    });
    // On the abandoned branch life goes on for a while.
    first.psql(
        "postgres",
        "INSERT INTO ledger (writer) SELECT 99 FROM generate_series(1, 50)",
    );
    let branch = first.psql("postgres", "SELECT pg_current_wal_flush_lsn()");
    first.crash();
    let writers = Writers::start(&second, 2);
    until("rows on the second timeline", || {
        ledger(&second).len() > before.len() + 200
    });
    drop(writers);
    Stage::caught_up(&second);
    let middle = ledger(&second);
    let middle_lsn = second.psql("postgres", "SELECT pg_current_wal_flush_lsn()");
    // The third one is promoted in its turn.
    until("the third to follow", || {
        ledger(&third).len() == middle.len()
    });
    second.crash();
    promote(&third);
    let writers = Writers::start(&third, 2);
    until("rows on the third timeline", || {
        ledger(&third).len() > middle.len() + 200
    });
    drop(writers);
    Stage::caught_up(&third);
    let last = ledger(&third);
    let said = || std::fs::read_to_string(&log).unwrap();
    let restore = |at: &str, more: &[&str]| {
        let place = crate::support::TempDir::new();
        place.give_to_postgres();
        let data = place.join("data");
        let path = data.display().to_string();
        let args = [
            &[
                "restore",
                base.as_str(),
                "--data-dir",
                &path,
                "--at",
                at,
                "-q",
            ],
            more,
        ]
        .concat();
        (pgark(&args).run(), data, place)
    };
    let restored = |at: &str, more: &[&str]| {
        let (done, data, _place) = restore(at, more);
        assert_eq!(done.code, 0, "{at}: {}\n{}", done.stderr, said());
        let copy = crate::base::Copy::start(major, &data);
        rows(&copy.psql("SELECT n FROM ledger ORDER BY n"))
    };
    assert_eq!(restored("latest", &[]), last);
    assert_eq!(restored(&middle_lsn_before(&middle_lsn), &[]), middle);
    assert_eq!(restored("latest", &["--timeline", "2"]), middle);
    // The first timeline restores to where the others left it, and its own end.
    let old = restored("latest", &["--timeline", "1"]);
    assert!(
        old.len() >= before.len() && old.starts_with(&before),
        "{} {}",
        old.len(),
        before.len()
    );
    // A place that only the abandoned branch ever had.
    if branch > abandoned {
        let (refused, data, _place) = restore(&branch, &["--timeline", "1"]);
        if old.len() == before.len() {
            refused.assert_code(5).assert_says("timeline");
            assert!(!data.exists());
        }
    }
    stream.signal("TERM");
    stream.wait().assert_code(0);
}

/// The record that made the last row durable begins before what is flushed.
fn middle_lsn_before(flushed: &str) -> String {
    let lsn: pgark::units::Lsn = flushed.parse().unwrap();
    pgark::units::Lsn(lsn.0 - 1).to_string()
}

#[test]
fn two_failovers_leave_the_window_unbroken_in_17() {
    failover(17);
}

#[test]
fn two_failovers_leave_the_window_unbroken_in_15() {
    failover(15);
}
