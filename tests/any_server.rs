//! Any server: a standby, several hosts, one that is still starting, a role with few connections,
//! another major's client.

use std::path::Path;

use crate::support::gate::Gate;
use crate::support::{
    PASSWORD, Pgark, Server, Setup, TempDir, as_server_user, assert_same, bin, run, table_digest,
    until,
};
use crate::trip::{backup_command, contents, only_dump, restore_command};

/// A hot standby of `primary`, which streams from it.
fn standby_of(primary: &Server, settings: &[&str]) -> Server {
    let copy = |data: &Path| {
        std::fs::remove_dir_all(data).unwrap();
        run(as_server_user(primary.bin().join("pg_basebackup"))
            .args([
                "--write-recovery-conf",
                "--checkpoint=fast",
                "--no-sync",
                "--username=postgres",
            ])
            .arg("--host")
            .arg(primary.socket_dir())
            .arg(format!("--port={}", primary.port))
            .arg("--pgdata")
            .arg(data))
        .assert_code(0);
    };
    let setup = Setup {
        settings,
        prepare: Some(&copy),
        ..Setup::default()
    };
    Server::start_with(primary.major, &setup)
}

/// Waits until the standby has replayed what the primary has written.
fn catch_up(primary: &Server, standby: &Server) {
    let place = primary.psql("postgres", "SELECT pg_current_wal_flush_lsn()");
    until("the standby to catch up", || {
        let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{place}'");
        standby.psql("postgres", &sql) == "t"
    });
}

/// pgark with several servers in a service file, and the kind of server that is wanted.
fn by_service(one: &Server, ports: [u16; 2], rest: &str, verb: &[&str], store: &TempDir) -> Pgark {
    let file = store.join("service.conf");
    let ports = ports.map(|port| port.to_string()).join(",");
    let text = format!("[both]\nhost=127.0.0.1,127.0.0.1\nport={ports}\nuser=postgres\n{rest}\n");
    std::fs::write(&file, text).unwrap();
    Pgark::new(verb)
        .env("PATH", format!("{}:/usr/bin:/bin", one.bin().display()))
        .env("PGSERVICE", "both")
        .env("PGSERVICEFILE", file)
        .env("DB_PASSWORD", PASSWORD)
        .store(&store.join("store"))
}

#[test]
fn a_standby_is_dumped_and_chosen_by_its_kind() {
    let primary = Server::start(17);
    primary.createdb("app");
    primary.psql(
        "app",
        "CREATE TABLE t (id serial PRIMARY KEY, x text); INSERT INTO t (x) SELECT md5(i::text) FROM generate_series(1, 5000) i;
         CREATE UNLOGGED TABLE lost (a int); INSERT INTO lost VALUES (1); SELECT lo_from_bytea(77, 'large')",
    );
    let standby = standby_of(&primary, &["log_connections=on"]);
    catch_up(&primary, &standby);
    let store = TempDir::new();
    let both = [primary.port, standby.port];
    by_service(
        &primary,
        both,
        "target_session_attrs=standby",
        &["backup", "--database", "app"],
        &store,
    )
    .run()
    .assert_code(0)
    .assert_says("lost for one, are in the dump without rows");
    // pg_dump and every other connection went there.
    assert!(
        standby.log().contains("application_name=pgark"),
        "{}",
        standby.log()
    );
    let taken = only_dump(&store.join("store")).unwrap();
    assert_eq!(taken.tables(), [("public.t".to_owned(), 5000)]);
    restore_command(&primary, &store.join("store"), "back")
        .run()
        .assert_code(0);
    primary.psql("app", "TRUNCATE lost");
    assert_same(
        "restored from a standby",
        &contents(&primary, "app"),
        &contents(&primary, "back"),
    );
    // A second server of the wrong kind does not serve, and says so.
    by_service(
        &primary,
        [standby.port; 2],
        "target_session_attrs=primary",
        &["backup", "--database", "app"],
        &store,
    )
    .run()
    .assert_code(1)
    .assert_says("is not primary (target_session_attrs)");
}

#[test]
fn a_standby_that_must_replay_a_truncate_ends_the_dump_with_a_hint() {
    let primary = Server::start(17);
    primary.createdb("app");
    primary.psql(
        "app",
        "CREATE TABLE t AS SELECT i, repeat(md5(i::text), 4) FROM generate_series(1, 300000) i",
    );
    let standby = standby_of(&primary, &["max_standby_streaming_delay=100ms"]);
    catch_up(&primary, &standby);
    let store = TempDir::new();
    let pgark = backup_command(&standby, "app", store.path()).spawn();
    until("the dump to hold its locks", || {
        let sql = "SELECT count(*) FROM pg_locks WHERE relation = 't'::regclass AND mode = 'AccessShareLock' AND granted";
        standby.psql("app", sql) != "0"
    });
    pgark.signal("STOP");
    primary.psql("app", "TRUNCATE t");
    until("the standby to end the dump's session", || {
        standby.log().contains("conflict with recovery")
    });
    pgark.signal("CONT");
    pgark
        .wait()
        .assert_code(1)
        .assert_says("conflict with recovery")
        .assert_says("max_standby_streaming_delay");
    assert!(only_dump(store.path()).is_none());
}

/// Several hosts may be several servers: what a run begins on one it does not end on another.
#[test]
fn a_run_stays_with_the_server_that_holds_its_lock() {
    let (first, second) = (Server::start(17), Server::start(17));
    for server in [&first, &second] {
        for name in ["a", "b"] {
            server.createdb(name);
            server.psql(
                name,
                "CREATE TABLE t AS SELECT generate_series(1, 200000) AS i",
            );
        }
    }
    let gate = Gate::to(first.port);
    let store = TempDir::new();
    let ports = [gate.port, second.port];
    let pgark = by_service(&first, ports, "", &["backup", "--no-prune"], &store)
        .env("DB_NAME", "a,b")
        .spawn();
    until("the run to hold its lock", || {
        let sql = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted";
        first.psql("postgres", sql) == "1"
    });
    pgark.signal("STOP");
    gate.close();
    pgark.signal("CONT");
    pgark.wait().assert_code(1);
    assert!(crate::support::site::list(&store.join("store")).is_empty());
    // The next run takes whom it finds.
    by_service(&first, ports, "", &["backup", "--no-prune"], &store)
        .env("DB_NAME", "a,b")
        .run()
        .assert_code(0);
}

#[test]
fn a_role_with_three_connections_dumps_with_what_it_has() {
    let server = Server::start(17);
    for name in ["one", "two"] {
        server.createdb(name);
        server.psql(
            name,
            "DO $$BEGIN FOR i IN 1..20 LOOP EXECUTE format('CREATE TABLE small_%s AS SELECT generate_series(1, %s) AS i', i, i); END LOOP; END$$",
        );
    }
    server.psql(
        "postgres",
        &format!("CREATE ROLE few LOGIN PASSWORD '{PASSWORD}' CONNECTION LIMIT 3 IN ROLE pg_read_all_data BYPASSRLS"),
    );
    // Long enough that nobody's place is free again before the others give up.
    server.psql("one", "CREATE TABLE t AS SELECT i, repeat(md5(i::text), 2) AS x FROM generate_series(1, 700000) i");
    let store = TempDir::new();
    let with = |store: &Path| {
        Pgark::new(["backup", "--jobs", "4"])
            .server(&server)
            .store(store)
            .env("DB_USER", "few")
            .env("DB_NAME", "one,two")
    };
    let done = with(store.path()).run().assert_code(0);
    // Where the first worker was so quick that nobody missed the others, there is nothing to say.
    if done.stderr.contains("fewer connections") {
        done.assert_says("goes on with fewer connections than asked for")
            .assert_says("too many connections for role \"few\"");
    }
    for name in ["one", "two"] {
        let into = format!("{name}_back");
        Pgark::new(["restore", "latest", "--database", name, "--into", &into])
            .server(&server)
            .store(store.path())
            .run()
            .assert_code(0);
        assert_same(
            name,
            &table_digest(&server, name),
            &table_digest(&server, &into),
        );
    }
    // Below that nothing works, and it is said why.
    server.psql("postgres", "ALTER ROLE few CONNECTION LIMIT 2");
    let refused = TempDir::new();
    with(refused.path())
        .run()
        .assert_code(1)
        .assert_says("needs at least three connections");
    assert!(crate::support::site::names(refused.path()).is_empty());
}

#[test]
fn a_server_that_is_starting_is_waited_for_within_a_bound() {
    // It replays and takes nobody until somebody promotes it.
    let mark = |data: &Path| std::fs::write(data.join("standby.signal"), "").unwrap();
    let setup = Setup {
        settings: &["hot_standby=off"],
        prepare: Some(&mark),
        state: Some("standby"),
        ..Setup::default()
    };
    let server = Server::start_with(17, &setup);
    let store = TempDir::new();
    backup_command(&server, "postgres", store.path())
        .env("PGARK_LOCK_TIMEOUT", "1s")
        .run()
        .assert_code(1)
        .assert_says("waited 1 s")
        .assert_says("try again shortly");
    let log = store.join("log");
    let mut pgark =
        backup_command(&server, "postgres", &store.join("store")).spawn_logging_to(&log);
    until("pgark to wait", || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("waiting up to 60 s"))
    });
    assert!(pgark.is_alive());
    run(as_server_user(server.bin().join("pg_ctl"))
        .args(["promote", "--wait", "--silent", "--pgdata"])
        .arg(server.data_dir()))
    .assert_code(0);
    pgark.wait().assert_code(0);
    assert!(only_dump(&store.join("store")).is_some());
}

/// The newest pg_dump describes an older server: only its programs are there.
fn newer_client(client: u32, server: u32) {
    let (newer, server) = (bin(client), Server::start(server));
    server.createdb("app");
    server.psql(
        "app",
        "CREATE TABLE t (id int PRIMARY KEY, x text, g int GENERATED ALWAYS AS (id * 2) STORED);
         INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, 500) i; CREATE VIEW v AS SELECT id FROM t;
         CREATE PUBLICATION p FOR ALL TABLES; SELECT lo_from_bytea(7, 'x'); COMMENT ON TABLE t IS 'older'",
    );
    let store = TempDir::new();
    backup_command(&server, "app", store.path())
        .env("PGARK_PG_BIN", &newer)
        .run()
        .assert_code(0);
    let taken = only_dump(store.path()).unwrap();
    let program = taken.manifest["dump_program"].as_str().unwrap().to_owned();
    assert!(
        program.starts_with(&format!("pg_dump {client}")),
        "{program}"
    );
    let expected = contents(&server, "app");
    server.createdb("by_psql");
    for _ in 0..2 {
        crate::trip::psql_restore(&server, &taken.file, "by_psql");
        assert_same(
            "by the server's own psql",
            &expected,
            &contents(&server, "by_psql"),
        );
    }
    restore_command(&server, store.path(), "by_pgark")
        .env("PGARK_PG_BIN", &newer)
        .run()
        .assert_code(0);
    assert_same("by pgark", &expected, &contents(&server, "by_pgark"));
}

#[test]
fn a_newer_client_dumps_15() {
    newer_client(18, 15);
}

#[test]
fn the_newest_client_dumps_older_servers_on_19() {
    newer_client(19, 15);
    newer_client(19, 18);
}

#[test]
fn an_older_client_is_refused_and_named_on_19() {
    let server = Server::start(19);
    let store = TempDir::new();
    backup_command(&server, "postgres", store.path())
        .env("PGARK_PG_BIN", bin(18))
        .run()
        .assert_code(1)
        .assert_says("postgresql-client-19");
}
