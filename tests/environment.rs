//! The harness itself: a comparison that could not fail would prove nothing.

use crate::support::{
    Pgark, Server, Setup, TempDir, assert_same, database_properties, dump_data, dump_schema, run,
    table_digest, toc, until,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;

#[test]
fn every_major_starts_side_by_side() {
    for major in [15, 17, 18] {
        let server = Server::start(major);
        let version: u32 = server
            .psql("postgres", "SHOW server_version_num")
            .parse()
            .unwrap();
        assert_eq!(version / 10_000, major);
    }
}

#[test]
fn a_dropped_server_leaves_nothing() {
    let server = Server::start(15);
    let (directory, port) = (server.socket_dir().to_owned(), server.port);
    drop(server);
    assert!(!directory.exists());
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn tcp_asks_for_the_password_and_the_socket_does_not() {
    let server = Server::shared(15);
    let psql = |url: &str| {
        let mut psql = Command::new(server.bin().join("psql"));
        psql.args(["-XAtc", "SELECT 1", url]).env("PGPASSWORD", "");
        run(&mut psql).code
    };
    assert_eq!(psql(&server.url("postgres")), 0);
    assert_eq!(psql(&server.url("postgres").replace("sup3r", "wrong")), 2);
    assert_eq!(server.psql("postgres", "SELECT 'socket'"), "socket");
}

#[test]
fn settings_and_access_rules_reach_the_server() {
    let server = Server::start_with(
        17,
        &Setup {
            settings: &["work_mem=7MB"],
            hba: Some("local all postgres trust\n"),
            ..Setup::default()
        },
    );
    assert_eq!(server.psql("postgres", "SHOW work_mem"), "7MB");
    server.crash();
    until("the crash to be logged", || {
        server.log().contains("immediate shutdown request")
    });
}

#[test]
fn digest_sees_a_changed_row_sequence_and_large_object() {
    let server = Server::shared(15);
    server.createdb("odd \"name\"");
    let made = r#"
        CREATE TABLE "the row" ("the row" int, digests text);
        INSERT INTO "the row" VALUES (1, 'one'), (1, 'one'), (2, NULL);
        CREATE TABLE no_columns (); INSERT INTO no_columns DEFAULT VALUES;
        CREATE SEQUENCE counter;
        SELECT lo_from_bytea(4711, 'large');
    "#;
    server.psql("odd \"name\"", made);
    let state = || {
        [
            table_digest(server, "odd \"name\""),
            dump_schema(server, "odd \"name\""),
            database_properties(server, "odd \"name\""),
        ]
        .join("\n")
    };
    let mut before = state();
    assert_same("two reads", &before, &state());
    for change in [
        r#"UPDATE "the row" SET digests = 'two' WHERE "the row" = 2"#,
        r#"INSERT INTO "the row" VALUES (1, 'one')"#,
        "INSERT INTO no_columns DEFAULT VALUES",
        "SELECT nextval('counter')",
        "SELECT lo_put(4711, 0, 'L')",
        "COMMENT ON LARGE OBJECT 4711 IS 'x'",
        r#"GRANT SELECT ON "the row" TO PUBLIC"#,
        r#"ALTER DATABASE "odd ""name""" SET work_mem = '9MB'"#,
    ] {
        server.psql("odd \"name\"", change);
        let after = state();
        let compared = catch_unwind(AssertUnwindSafe(|| assert_same("x", &before, &after)));
        assert!(compared.is_err(), "not seen: {change}");
        before = after;
    }
}

#[test]
fn psql_stops_at_the_first_error_only_when_told() {
    let server = Server::shared(15);
    let failed = server.try_psql("postgres", "SELECT 1/0; SELECT 'after'");
    failed.assert_code(3).assert_says("division by zero");

    let directory = TempDir::new();
    let file = directory.join("dump.sql");
    std::fs::write(&file, "SELECT 1/0;\nSELECT 'after' AS shown;\n").unwrap();
    run(Command::new("gzip").arg(&file)).assert_code(0);
    let done = server.psql_file("postgres", &directory.join("dump.sql.gz"));
    assert!(done.assert_code(0).stdout.contains("after"));
}

#[test]
fn the_program_runs_in_an_empty_environment() {
    for call in [
        Pgark::new(["--version"]),
        Pgark::unprivileged(["--version"]),
    ] {
        let done = call.run();
        assert!(done.code < 126, "{done:?}");
    }
}

/// The measure of the dump: a database with everything in it.
fn regression_database_is_rich(major: u32) {
    let server = Server::regression(major);
    let tables = table_digest(&server, "regression");
    assert!(tables.lines().count() > 500);
    assert!(tables.contains("large object"));
    // Its functions resolve: the library is where the catalog says.
    assert!(toc(&server, "regression").lines().count() > 2000);
    assert!(dump_data(&server, "regression").lines().count() > 50_000);
    server.psql("regression", "CREATE FUNCTION pg_temp.f() RETURNS int AS $$ SELECT 1 $$ LANGUAGE sql; SELECT int44in('1,2,3,4')");
}

#[test]
fn regression_database_of_15_is_rich() {
    regression_database_is_rich(15);
}

#[test]
fn regression_database_of_17_is_rich() {
    regression_database_is_rich(17);
}
