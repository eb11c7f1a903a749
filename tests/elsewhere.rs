//! `pgark restore --server` and `--globals`: another cluster, what it lacks, and what it gets.

use crate::support::{
    PASSWORD, Pgark, Server, Setup, TempDir, assert_same, database_properties, table_digest,
};
use crate::trip::backup;
use serde_json::Value;

mod globals;

/// pgark's own server is `source`; the store holds its backups.
fn restore(source: &Server, store: &TempDir, target: &Server, args: &[&str]) -> Pgark {
    let server = format!("host=127.0.0.1 port={}", target.port);
    let all = [
        "restore", "latest", "-q", "--jobs", "2", "--server", &server,
    ];
    Pgark::new(all.iter().chain(args))
        .server(source)
        .store(store.path())
}

const SQL: &str = "
    CREATE ROLE owner_of_app; CREATE ROLE reader LOGIN PASSWORD 'r'; CREATE ROLE grp; GRANT grp TO reader; ALTER ROLE reader SET work_mem = '5MB';
    CREATE EXTENSION hstore; CREATE TABLE t (id serial PRIMARY KEY, h hstore); INSERT INTO t (h) SELECT 'a=>1' FROM generate_series(1, 300);
    ALTER TABLE t OWNER TO owner_of_app; GRANT SELECT ON t TO reader; ALTER DATABASE app OWNER TO owner_of_app;
    ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON t TO grp USING (true);
";

fn source() -> (Server, TempDir) {
    let server = Server::start(15);
    server.createdb("app");
    server.psql("app", SQL);
    let store = TempDir::new();
    backup(&server, "app", &store);
    (server, store)
}

/// A database that wants two roles, a tablespace, a locale and an extension.
fn demanding() -> (Server, TempDir) {
    let source = Server::start_with(
        17,
        &Setup {
            settings: &["allow_in_place_tablespaces=on"],
            ..Setup::default()
        },
    );
    source.psql("postgres", "CREATE ROLE gone; CREATE ROLE kept");
    source.psql("postgres", "CREATE TABLESPACE fast LOCATION ''");
    source.psql(
        "postgres",
        "CREATE DATABASE app TEMPLATE template0 LOCALE 'de_DE.UTF-8' OWNER gone",
    );
    source.psql(
        "app",
        "CREATE EXTENSION hstore; CREATE TABLE t (a int) TABLESPACE fast; ALTER TABLE t OWNER TO kept; CREATE TABLE u (h hstore)",
    );
    let store = TempDir::new();
    backup(&source, "app", &store);
    (source, store)
}

#[test]
fn every_kind_of_lack_is_told_at_once_before_anything_is_touched() {
    let (source, store) = demanding();
    // No extension, no locale, no role, no tablespace.
    let bare = Server::start_with(
        15,
        &Setup {
            environment: &[("LOCPATH", "/nonexistent")],
            ..Setup::default()
        },
    );
    let refused = restore(&source, &store, &bare, &["--into", "there"])
        .run()
        .assert_code(5);
    for says in [
        "the backup is of PostgreSQL 17, that server is 15",
        "roles missing there: gone, kept",
        "tablespace missing there: fast",
        "no locale \"de_DE.UTF-8\"",
        "pgark cat backup_app_",
        "locale-gen",
    ] {
        assert!(refused.stderr.contains(says), "{says}: {}", refused.stderr);
    }
    assert_eq!(
        bare.psql(
            "postgres",
            "SELECT count(*) FROM pg_database WHERE NOT datistemplate"
        ),
        "1"
    );
    let json = restore(
        &source,
        &store,
        &bare,
        &["--into", "there", "--dry-run", "--json"],
    )
    .run()
    .assert_code(5);
    let plan: Value = serde_json::from_str(&json.stdout).unwrap();
    assert!(plan["findings"].as_array().unwrap().len() >= 4, "{plan}");
    // One table alone needs less.
    let only = restore(&source, &store, &bare, &["--table", "u", "--into", "there"])
        .run()
        .assert_code(5);
    assert!(
        !only.stderr.contains("fast") && !only.stderr.contains("kept"),
        "{}",
        only.stderr
    );
}

/// A control directory without it: as a server whose packages lack an extension.
#[test]
fn a_missing_extension_is_named_with_its_version() {
    let files = TempDir::new();
    let extension = files.join("extension");
    std::fs::create_dir(&extension).unwrap();
    std::fs::write(
        extension.join("rare.control"),
        "default_version = '1.7'\nschema = public\n",
    )
    .unwrap();
    std::fs::write(
        extension.join("rare--1.7.sql"),
        "CREATE TABLE rare_thing (a int);",
    )
    .unwrap();
    let path = format!("extension_control_path={}:$system", files.path().display());
    let source = Server::start_with(
        18,
        &Setup {
            settings: &[&path],
            ..Setup::default()
        },
    );
    source.createdb("app");
    source.psql("app", "CREATE EXTENSION rare");
    let store = TempDir::new();
    backup(&source, "app", &store);
    let target = Server::start(18);
    let refused = restore(&source, &store, &target, &["--into", "there"])
        .run()
        .assert_code(5);
    refused.assert_says(
        "the extension rare 1.7 is not installed on that server's machine; nothing was touched",
    );
    restore(&source, &store, &source, &["--into", "there"])
        .run()
        .assert_code(0);
}

#[test]
fn a_role_that_may_not_do_it_is_told_what_it_lacks() {
    let (source, store) = source();
    source.psql(
        "postgres",
        &format!("CREATE ROLE small LOGIN PASSWORD '{PASSWORD}'"),
    );
    let server = format!("postgresql://small@127.0.0.1:{}/postgres", source.port);
    let small = |server: &str, password: &str| {
        Pgark::new([
            "restore", "latest", "-q", "--into", "there", "--server", server,
        ])
        .server(&source)
        .store(store.path())
        .env("PGPASSWORD", password)
        .run()
    };
    // Another user's password is not pgark's own, which is the right one here by chance.
    let refused = small(&server, "wrong").assert_code(5);
    assert!(
        refused.stderr.contains("password") && !refused.stderr.contains(PASSWORD),
        "{}",
        refused.stderr
    );
    let refused = small(&server, PASSWORD).assert_code(5);
    refused
        .assert_says("role small may not create databases there")
        .assert_says("ALTER ROLE \"small\" CREATEDB;")
        .assert_says("role small may not give objects to owner_of_app");
    // With what the hints say it works.
    source.psql(
        "postgres",
        "ALTER ROLE small CREATEDB; GRANT owner_of_app TO small",
    );
    small(&server, PASSWORD).assert_code(0);
    assert_eq!(source.psql("there", "SELECT count(*) FROM t"), "300");
}

#[test]
fn what_is_no_server_is_refused_and_nothing_was_touched() {
    let (source, store) = source();
    let with = |server: &str| {
        Pgark::new(["restore", "latest", "-q", "--server", server])
            .server(&source)
            .store(store.path())
            .run()
    };
    with("dbname=app")
        .assert_code(2)
        .assert_says("--server names no host");
    with("hots=x")
        .assert_code(2)
        .assert_says("did you mean host");
    with("host=127.0.0.1 port=1")
        .assert_code(5)
        .assert_says("cannot connect");
    let secret = format!("host=127.0.0.1 port={} password='{PASSWORD}'", source.port);
    with(&secret)
        .assert_code(0)
        .assert_says("a password in --server can be seen");
    // A dry run without a server still shows the plan, and says why that is all.
    let plan = Pgark::new([
        "restore",
        "latest",
        "--dry-run",
        "--server",
        "host=127.0.0.1 port=1",
    ])
    .server(&source)
    .store(store.path())
    .run();
    let plan = plan.assert_code(5).assert_says("cannot connect");
    assert!(plan.stdout.contains("300 rows"), "{}", plan.stdout);
    // A service file, whose user and password are its own.
    let file = store.join("services");
    std::fs::write(
        &file,
        format!(
            "[other]\nhost=127.0.0.1\nport={}\nuser=postgres\npassword={PASSWORD}\n",
            source.port
        ),
    )
    .unwrap();
    Pgark::new([
        "restore",
        "latest",
        "-q",
        "--into",
        "by_service",
        "--server",
        "service=other",
    ])
    .store(store.path())
    .env("PGSERVICEFILE", &file)
    .env("PATH", format!("{}:/usr/bin:/bin", source.bin().display()))
    .run()
    .assert_code(0);
    assert_eq!(source.psql("by_service", "SELECT count(*) FROM t"), "300");
}

#[test]
fn replacing_on_another_server_keeps_that_ones_properties() {
    let (source, store) = source();
    let target = Server::start(17);
    target.psql("postgres", "CREATE ROLE owner_of_app; CREATE ROLE reader; CREATE ROLE grp; CREATE ROLE staff; CREATE DATABASE app OWNER staff");
    target.psql(
        "postgres",
        "ALTER DATABASE app SET work_mem = '9MB'; ALTER DATABASE app CONNECTION LIMIT 5",
    );
    let properties = database_properties(&target, "app");
    restore(&source, &store, &target, &["--replace"])
        .run()
        .assert_code(0);
    assert_same(
        "properties",
        &properties,
        &database_properties(&target, "app"),
    );
    assert_same(
        "rows",
        &table_digest(&source, "app"),
        &table_digest(&target, "app"),
    );
}
