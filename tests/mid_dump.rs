//! What others do while a dump or a restore runs: rewrites, drops, locks, a server that dies.

use crate::support::{Pgark, Run, Running, Server, TempDir, until};
use crate::trip::{Taken, backup, backup_command, only_dump, restore_command};
use std::io::Write as _;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// A psql that stays connected, for transactions that stay open.
struct Session {
    psql: Child,
    name: &'static str,
}

impl Session {
    fn open(server: &Server, name: &'static str) -> Self {
        let mut psql = server.client("psql");
        psql.args(["-Xq", "-d", "app"]).env("PGAPPNAME", name);
        psql.stdin(Stdio::piped()).stdout(Stdio::null());
        Session {
            psql: psql.stderr(Stdio::null()).spawn().unwrap(),
            name,
        }
    }

    /// Sends SQL and does not wait.
    fn send(&mut self, sql: &str) {
        let stdin = self.psql.stdin.as_mut().unwrap();
        stdin.write_all(format!("{sql};\n").as_bytes()).unwrap();
        stdin.flush().unwrap();
    }

    /// Waits until it waits for more in an open transaction; gives its backend's process.
    fn settled(&self, server: &Server) -> String {
        let look = format!(
            "SELECT pid FROM pg_stat_activity WHERE application_name = '{}' AND state = 'idle in transaction'",
            self.name
        );
        until("the session to settle", || {
            !server.psql("app", &look).is_empty()
        });
        server.psql("app", &look)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Not by closing its input: it may wait for another session's lock.
        let _ = self.psql.kill();
        let _ = self.psql.wait();
    }
}

fn started(sql: &str) -> (Server, TempDir) {
    let server = Server::start(17);
    server.createdb("app");
    server.psql("app", sql);
    (server, TempDir::new())
}

/// Waits for pgark's end, which must come within a minute.
fn ended(mut running: Running) -> Run {
    until("pgark to end", || !running.is_alive());
    running.wait()
}

fn wait_for(server: &Server, what: &str, condition: &str) {
    until(what, || {
        server.psql("app", &format!("SELECT 1 WHERE EXISTS ({condition})")) == "1"
    });
}

const QUEUED: &str =
    "SELECT FROM pg_locks WHERE relation = 'changing'::regclass AND NOT granted AND mode =";

/// Somebody changes a table, the dump takes its snapshot and waits for the table's lock, and
/// only then the change is committed: without a new snapshot its reader sees no rows at all.
fn dump_across(change: &str) -> Taken {
    let (server, store) = started(
        "CREATE TABLE changing AS SELECT i FROM generate_series(1, 1000) i; CREATE TABLE calm (a int)",
    );
    let mut session = Session::open(&server, "changer");
    session.send(&format!("BEGIN; {change}"));
    session.settled(&server);
    let dump = backup_command(&server, "app", store.path()).spawn();
    wait_for(
        &server,
        "the dump to wait for the lock",
        &format!("{QUEUED} 'AccessShareLock'"),
    );
    session.send("COMMIT");
    ended(dump).assert_code(0);
    only_dump(store.path()).unwrap()
}

#[test]
fn truncate_between_snapshot_and_lock_begins_the_dump_anew() {
    let taken =
        dump_across("TRUNCATE changing; INSERT INTO changing SELECT generate_series(1, 77)");
    assert_eq!(taken.tables()[1], ("public.changing".to_owned(), 77));
}

#[test]
fn rewrite_between_snapshot_and_lock_begins_the_dump_anew() {
    let taken = dump_across("ALTER TABLE changing ALTER i TYPE text");
    assert_eq!(taken.tables()[1], ("public.changing".to_owned(), 1000));
}

#[test]
fn drop_between_snapshot_and_lock_begins_the_dump_anew() {
    let taken = dump_across("DROP TABLE changing");
    assert_eq!(taken.tables(), [("public.calm".to_owned(), 0)]);
    let taken = dump_across("DROP TABLE changing; CREATE TABLE changing AS SELECT 'new' AS other");
    assert_eq!(taken.tables()[1], ("public.changing".to_owned(), 1));
}

/// Several sessions keep replacing rows, types and tables. The pauses leave room for a dump to
/// begin: a request for an exclusive lock that is always there keeps every pg_dump out.
#[test]
fn dumps_under_fire_hold_a_committed_state_or_fail() {
    let (server, _) = started(
        "CREATE TABLE rows (i int, pad text); INSERT INTO rows SELECT i, 'x' FROM generate_series(1, 3000) i;
         CREATE TABLE typed AS SELECT * FROM rows; CREATE TABLE dropped AS SELECT * FROM rows",
    );
    let fire = |name, change: &str| {
        let mut session = Session::open(&server, name);
        session.send(&format!(
            "DO $$BEGIN LOOP {change} COMMIT; PERFORM pg_sleep(3 * random()); END LOOP; END$$"
        ));
        session
    };
    let sessions = [
        fire(
            "truncater",
            "TRUNCATE rows; INSERT INTO rows SELECT i, 'y' FROM generate_series(1, 5000) i;",
        ),
        fire(
            "typer",
            "ALTER TABLE typed ALTER i TYPE bigint; COMMIT; ALTER TABLE typed ALTER i TYPE int;",
        ),
        fire(
            "dropper",
            "DROP TABLE dropped; CREATE TABLE dropped AS SELECT * FROM generate_series(1, 4000) i;",
        ),
    ];
    let mut good = 0;
    for _ in 0..6 {
        let store = TempDir::new();
        let done = backup_command(&server, "app", store.path()).spawn().wait();
        let Some(taken) = only_dump(store.path()) else {
            assert_eq!(done.code, 1, "{}", done.stderr);
            continue;
        };
        assert_eq!(done.code, 0, "{}", done.stderr);
        good += 1;
        for (table, rows) in taken.tables() {
            let legal: &[u64] = match table.as_str() {
                "public.rows" => &[3000, 5000],
                "public.typed" => &[3000],
                _ => &[3000, 4000],
            };
            assert!(legal.contains(&rows), "{table}: {rows} rows");
        }
    }
    drop(sessions);
    assert!(good > 0, "no dump of six came through");
}

#[test]
fn a_lock_that_is_held_ends_the_dump_in_time_and_names_its_holder() {
    let (server, store) = started("CREATE TABLE changing (a int)");
    let mut holder = Session::open(&server, "lock holder");
    holder.send("BEGIN; LOCK TABLE changing");
    let process = holder.settled(&server);
    let began = Instant::now();
    let dump = || {
        backup_command(&server, "app", store.path())
            .env("PGARK_LOCK_TIMEOUT", "700ms")
            .run()
            .assert_code(1)
            .assert_says("changing")
    };
    dump()
        .assert_says(&format!("process {process} "))
        .assert_says("lock holder");
    // Nobody holds the lock, but somebody who waits for a long reader stands before us.
    holder.send("COMMIT; BEGIN; SELECT count(*) FROM changing");
    wait_for(
        &server,
        "the reader",
        "SELECT FROM pg_locks WHERE relation = 'changing'::regclass AND mode = 'AccessShareLock' AND granted",
    );
    let mut queue = Session::open(&server, "in the queue");
    queue.send("ALTER TABLE changing ADD b int");
    wait_for(
        &server,
        "the queue",
        &format!("{QUEUED} 'AccessExclusiveLock'"),
    );
    dump().assert_says("in the queue");
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "{:?}",
        began.elapsed()
    );
    assert!(only_dump(store.path()).is_none());
}

const BIG: &str = "CREATE TABLE big AS SELECT i, repeat(md5(i::text), 20) AS pad FROM generate_series(1, 40000) i;
    CREATE TABLE changing AS SELECT generate_series(1, 300) AS i";

/// Stops pgark in the middle of its COPY of the big table: its server process then waits for it.
fn stopped_in_copy(server: &Server, running: &Running, direction: &str) {
    let copying = format!(
        "SELECT FROM pg_stat_activity WHERE state = 'active' AND query ~* '^(LOCK .*; )?COPY .*big.* {direction}'"
    );
    wait_for(server, "the COPY to begin", &copying);
    running.signal("STOP");
}

#[test]
fn a_queued_alter_neither_hangs_the_dump_nor_costs_rows() {
    let (server, store) = started(BIG);
    // The one worker comes to the small table when it is done with the big one.
    let dump = Pgark::new(["backup", "--database", "app", "--jobs", "1"])
        .server(&server)
        .store(store.path())
        .spawn();
    stopped_in_copy(&server, &dump, "TO STDOUT");
    let mut session = Session::open(&server, "alterer");
    session.send("ALTER TABLE changing ALTER i TYPE bigint");
    wait_for(
        &server,
        "the ALTER to queue",
        &format!("{QUEUED} 'AccessExclusiveLock'"),
    );
    dump.signal("CONT");
    ended(dump).assert_code(0);
    let tables = [
        ("public.big".to_owned(), 40_000),
        ("public.changing".to_owned(), 300),
    ];
    assert_eq!(only_dump(store.path()).unwrap().tables(), tables);
}

#[test]
fn a_server_that_dies_in_mid_dump_leaves_no_backup() {
    let (server, store) = started(BIG);
    let dump = backup_command(&server, "app", store.path()).spawn();
    stopped_in_copy(&server, &dump, "TO STDOUT");
    server.crash();
    dump.signal("CONT");
    ended(dump).assert_code(1).assert_says("database app");
    assert!(only_dump(store.path()).is_none());
    let list = Pgark::new(["list", "--json"]).store(store.path()).run();
    assert_eq!(list.assert_code(0).stdout.trim(), "[]");
}

#[test]
fn a_server_that_dies_in_mid_restore_is_a_failure_that_names_the_half_made_database() {
    let (server, store) = started(BIG);
    backup(&server, "app", &store);
    let restore = restore_command(&server, store.path(), "half made").spawn();
    stopped_in_copy(&server, &restore, "FROM STDIN");
    server.crash();
    restore.signal("CONT");
    ended(restore)
        .assert_code(1)
        .assert_says("half made")
        .assert_says("could not be removed")
        .assert_says("DROP DATABASE \"half made\"");
}

/// A backend that is killed alone takes the restore down, and the half-made database with it.
#[test]
fn a_restore_whose_connection_dies_removes_the_half_made_database() {
    let (server, store) = started(BIG);
    backup(&server, "app", &store);
    let restore = restore_command(&server, store.path(), "half made").spawn();
    stopped_in_copy(&server, &restore, "FROM STDIN");
    server.psql(
        "app",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'half made'",
    );
    restore.signal("CONT");
    ended(restore).assert_code(1);
    assert_eq!(
        server.psql(
            "app",
            "SELECT count(*) FROM pg_database WHERE datname = 'half made'"
        ),
        "0"
    );
}

/// pg_dump that begins late: what happens between our locks and its own.
fn slow_pg_dump(server: &Server, seconds: u32) -> TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let place = TempDir::new();
    for program in ["pg_dump", "pg_dumpall"] {
        let real = server.bin().join(program);
        let path = place.join(program);
        let once = place.join("once");
        // Late the first time only, and at once when asked for its version.
        let script = format!(
            "#!/bin/sh\ncase \"$1\" in --version) ;; *) [ {program} != pg_dump ] || [ -e {once} ] || {{ touch {once}; sleep {seconds}; }};; esac\nexec {real} \"$@\"\n",
            once = once.display(),
            real = real.display(),
        );
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    place
}

/// One DDL at the wrong second begins the dump anew; it does not cost the run.
#[test]
fn what_comes_between_our_locks_and_those_of_pg_dump_begins_the_dump_anew() {
    for change in ["ALTER TABLE changing ALTER i TYPE bigint", "DROP VIEW seen"] {
        let (server, store) = started(
            "CREATE TABLE changing AS SELECT generate_series(1, 300) AS i; CREATE VIEW seen AS SELECT 1 AS a",
        );
        let programs = slow_pg_dump(&server, 3);
        let dump = backup_command(&server, "app", store.path())
            .env("PGARK_PG_BIN", programs.path())
            .spawn();
        wait_for(
            &server,
            "the snapshot's holder to have its locks",
            "SELECT FROM pg_locks WHERE relation = 'changing'::regclass AND mode = 'AccessShareLock' AND granted",
        );
        let mut session = Session::open(&server, "changer");
        session.send(change);
        ended(dump).assert_code(0);
        let taken = only_dump(store.path()).unwrap();
        assert_eq!(
            taken.tables(),
            [("public.changing".to_owned(), 300)],
            "{change}"
        );
    }
}

#[test]
fn a_transaction_that_holds_a_view_ends_the_dump_in_time_and_is_named() {
    let (server, store) = started("CREATE TABLE t (a int); CREATE VIEW v AS SELECT a FROM t");
    let mut session = Session::open(&server, "viewer");
    session.send("BEGIN; CREATE OR REPLACE VIEW v AS SELECT a + 1 - 1 AS a FROM t");
    session.settled(&server);
    let dump = backup_command(&server, "app", store.path())
        .env("PGARK_LOCK_TIMEOUT", "3s")
        .spawn();
    ended(dump)
        .assert_code(1)
        .assert_says("waited 3 s for a lock")
        .assert_says("viewer");
    assert!(only_dump(store.path()).is_none());
    session.send("ROLLBACK");
    backup_command(&server, "app", store.path())
        .run()
        .assert_code(0);
}

/// The name tells what is in it: nothing younger.
#[test]
fn a_backups_moment_is_that_of_its_snapshot() {
    let (server, store) = started("CREATE TABLE first (a int)");
    server.createdb("second");
    server.psql("second", "CREATE TABLE t (at timestamptz)");
    let mut session = Session::open(&server, "holder");
    session.send("BEGIN; LOCK TABLE first");
    session.settled(&server);
    let dump = Pgark::new(["backup"])
        .server(&server)
        .store(store.path())
        .env("DB_NAME", "app,second")
        .spawn();
    wait_for(
        &server,
        "the dump to wait",
        "SELECT FROM pg_locks WHERE relation = 'first'::regclass AND NOT granted",
    );
    std::thread::sleep(std::time::Duration::from_millis(2100));
    server.psql("second", "INSERT INTO t VALUES (now())");
    session.send("COMMIT");
    ended(dump).assert_code(0);
    let entries = crate::support::site::list(store.path());
    let second = entries
        .iter()
        .find(|entry| entry["database"] == "second")
        .unwrap();
    let inserted = server.psql(
        "second",
        "SELECT to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') FROM t",
    );
    assert!(
        second["started_at"].as_str().unwrap() >= inserted.as_str(),
        "{inserted} {second}"
    );
}
