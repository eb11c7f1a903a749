//! A primary and a standby, promoted under load, twice: the window is unbroken, both timelines
//! restore, and a target on an abandoned branch is refused with the reason.

use super::{Stage, To, Writers, rows};
use crate::support::{Pgark, Run, Server, Setup, TempDir, as_server_user, run, until};
use std::path::{Path, PathBuf};

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

/// Three servers, of which pgark wants the one that takes writes.
struct Cast {
    stage: Stage,
    second: Server,
    third: Server,
    conninfo: String,
}

/// What the ledger held at the end of each timeline, and where the first two ended.
struct Ends {
    ledgers: [Vec<u64>; 3],
    abandoned: String,
    branch: String,
    middle: String,
}

impl Cast {
    fn new(major: u32) -> Cast {
        let stage = Stage::new(major, To::Local);
        let second = standby(&stage.server);
        let third = standby(&stage.server);
        let ports = [&stage.server, &second, &third].map(|server| server.port.to_string());
        let conninfo = format!(
            "host=127.0.0.1,127.0.0.1,127.0.0.1 port={} user=postgres dbname=postgres target_session_attrs=read-write",
            ports.join(",")
        );
        Cast {
            stage,
            second,
            third,
            conninfo,
        }
    }

    fn pgark(&self, args: &[&str]) -> Pgark {
        let mut pgark = self.stage.pgark(args);
        for name in ["DB_HOST", "DB_PORT", "DB_USER"] {
            pgark = pgark.env(name, "");
        }
        pgark.env("DB_CONNINFO", &self.conninfo)
    }

    /// The third one follows the second, and never hears of what the first one still does.
    fn follow(&self) {
        let (second, third) = (&self.second, &self.third);
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
    }

    /// Two failovers under load.
    fn play(&self) -> Ends {
        let (first, second, third) = (&self.stage.server, &self.second, &self.third);
        let flushed = "SELECT pg_current_wal_flush_lsn()";
        let one = write_on(first, 0);
        let abandoned = first.psql("postgres", flushed);
        until("the standbys", || {
            [second, third]
                .iter()
                .all(|server| ledger(server).len() == one.len())
        });
        promote(second);
        self.follow();
        // On the abandoned branch life goes on for a while.
        let more = "INSERT INTO ledger (writer) SELECT 99 FROM generate_series(1, 50)";
        first.psql("postgres", more);
        let branch = first.psql("postgres", flushed);
        first.crash();
        let two = write_on(second, one.len());
        let middle = second.psql("postgres", flushed);
        until("the third to follow", || ledger(third).len() == two.len());
        second.crash();
        promote(third);
        let three = write_on(third, two.len());
        Ends {
            ledgers: [one, two, three],
            abandoned,
            branch,
            middle,
        }
    }

    fn restore(&self, base: &str, at: &str, more: &[&str]) -> (Run, PathBuf, TempDir) {
        let place = TempDir::new();
        place.give_to_postgres();
        let data = place.join("data");
        let path = data.display().to_string();
        let args = ["restore", base, "--data-dir", &path, "--at", at, "-q"];
        (self.pgark(&[&args, more].concat()).run(), data, place)
    }

    #[track_caller]
    fn restored(&self, base: &str, at: &str, more: &[&str]) -> Vec<u64> {
        let (done, data, _place) = self.restore(base, at, more);
        done.assert_code(0);
        let copy = crate::base::Copy::start(self.stage.server.major, &data);
        rows(&copy.psql("SELECT n FROM ledger ORDER BY n"))
    }
}

/// Load on a server until there are two hundred rows more, all of them stored; what it holds then.
fn write_on(server: &Server, before: usize) -> Vec<u64> {
    let writers = Writers::start(server, 2);
    until("some rows", || ledger(server).len() > before + 200);
    drop(writers);
    // A session ends a while after its client, and commits until then.
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'DO %'";
    until("the writers to be gone", || {
        server.psql("postgres", sessions) == "0"
    });
    Stage::caught_up(server);
    ledger(server)
}

fn failover(major: u32) {
    let cast = Cast::new(major);
    let log = cast.stage.dir.join("log");
    let stream = cast.pgark(&["wal-stream"]).spawn_logging_to(&log);
    let taken = cast.pgark(&["backup", "--base", "-q"]).run().assert_code(0);
    let base = crate::support::site::first_id(&taken.stdout);
    let ends = cast.play();
    let [one, two, three] = &ends.ledgers;
    assert_eq!(&cast.restored(&base, "latest", &[]), three);
    let middle = middle_lsn_before(&ends.middle);
    assert_eq!(&cast.restored(&base, &middle, &[]), two);
    assert_eq!(&cast.restored(&base, "latest", &["--timeline", "2"]), two);
    // The first timeline restores to its own end.
    let old = cast.restored(&base, "latest", &["--timeline", "1"]);
    assert!(old.starts_with(one), "{} {}", old.len(), one.len());
    // A place that only the abandoned branch ever had.
    if ends.branch > ends.abandoned && old.len() == one.len() {
        let (refused, data, _place) = cast.restore(&base, &ends.branch, &["--timeline", "1"]);
        refused.assert_code(5).assert_says("timeline");
        assert!(!data.exists());
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
