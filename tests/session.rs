//! Settings of roles and databases change nothing in a dump, and encodings survive.

use crate::support::{PASSWORD, Pgark, Server, Setup, TempDir, assert_same, run};
use crate::trip::{backup, backup_command, contents, only_dump, psql_restore, restore_command};
use std::path::Path;
use std::process::Command;

/// The script without what differs from dump to dump, and without the database's properties.
fn script(file: &Path) -> String {
    let unpacked = run(Command::new("gunzip").arg("-c").arg(file)).assert_code(0);
    let volatile = ["-- pgark: ", "\\restrict ", "\\unrestrict "];
    let body = unpacked
        .stdout
        .split("-- The database's own properties")
        .next()
        .unwrap();
    let lines = body
        .lines()
        .filter(|line| !volatile.iter().any(|start| line.starts_with(start)));
    lines.collect::<Vec<_>>().join("\n")
}

const ROWS: &str = "
    CREATE SCHEMA app; CREATE TYPE app.mood AS ENUM ('fine');
    CREATE TABLE app.odd (f float8, g real, d date, ts timestamptz, i interval, b bytea, x xml, m app.mood, n numeric, a text[]);
    INSERT INTO app.odd VALUES (pi(), 0.1::real + 0.2::real, '2025-01-02', '2025-01-02 03:04:05.123456+00', '1 year 2 mons -3 days 04:05:06.7',
      '\\xde00ad', 'content only', 'fine', 1e-20, '{a,NULL,\"c d\"}'), ('infinity', 'NaN', 'infinity', '-infinity', '-1 day', '', '<a/>', NULL, 'NaN', '{}');
    CREATE VIEW app.shown AS SELECT f + 1.1 AS f, d + interval '1 day 2 hours' AS d FROM app.odd WHERE d > '2025-02-01'::date;
    CREATE TABLE app.defaults (d date DEFAULT '2025-01-02'::date, i interval DEFAULT '1 day 2 hours'::interval, f float8 DEFAULT 0.1::float8);
    CREATE INDEX ON app.odd (f) WHERE d > '2025-02-01'::date;
";

#[test]
fn settings_of_role_and_database_leave_the_dump_as_it_is() {
    let server = Server::start(17);
    server.createdb("app");
    server.psql("app", ROWS);
    server.psql(
        "app",
        &format!("CREATE ROLE odd SUPERUSER LOGIN PASSWORD '{PASSWORD}'"),
    );
    let [usual, odd] = [TempDir::new(), TempDir::new()];
    let expected = script(&backup(&server, "app", &usual).file);
    for subject in ["ROLE odd", "DATABASE app"] {
        let settings = [
            "extra_float_digits = -10",
            "DateStyle = 'German, DMY'",
            "IntervalStyle = sql_standard",
            "search_path = app, pg_catalog",
            "statement_timeout = '500ms'",
            "lock_timeout = '500ms'",
            "default_transaction_read_only = on",
            "default_transaction_deferrable = on",
            "default_transaction_isolation = serializable",
            "bytea_output = escape",
            "client_encoding = LATIN1",
            "xmloption = document",
            "row_security = off",
            "client_min_messages = error",
            "transaction_timeout = '500ms'",
            "idle_in_transaction_session_timeout = '500ms'",
            "synchronize_seqscans = on",
            "default_tablespace = 'nowhere'",
            "TimeZone = 'Asia/Kathmandu'",
        ];
        let alter = |setting: &&str| format!("ALTER {subject} SET {setting};");
        // A database in a hurry would refuse its own ALTERs.
        let sql: String = settings.iter().map(alter).collect();
        server.psql("postgres", &sql);
    }
    let command = backup_command(&server, "app", odd.path()).env("DB_USER", "odd");
    command.run().assert_code(0);
    let found = script(&only_dump(odd.path()).unwrap().file);
    // Only what an offset says of a moment may differ, and does not as long as it is the same.
    assert_same(
        "dumps under other settings",
        &moments(&expected),
        &moments(&found),
    );
    restore_command(&server, odd.path(), "again")
        .env("DB_USER", "odd")
        .run()
        .assert_code(0);
    assert_eq!(
        server.psql("again", "SET statement_timeout = 0; SELECT count(*) FROM app.odd WHERE f = pi() OR d = 'infinity'"),
        "2"
    );
}

/// pg_dump leaves the time zone alone, too: the same moment with another offset.
fn moments(script: &str) -> String {
    script
        .replace("2025-01-02 03:04:05.123456+00", "MOMENT")
        .replace("2025-01-02 08:49:05.123456+05:45", "MOMENT")
}

#[test]
fn row_security_is_an_error_that_names_the_table_and_never_fewer_rows() {
    let server = Server::start(17);
    server.createdb("app");
    server.psql(
        "app",
        &format!(
            "CREATE ROLE reader LOGIN PASSWORD '{PASSWORD}' IN ROLE pg_read_all_data; ALTER ROLE reader SET row_security = on;
             CREATE TABLE guarded (id int); INSERT INTO guarded VALUES (1), (2);
             ALTER TABLE guarded ENABLE ROW LEVEL SECURITY; CREATE POLICY one ON guarded USING (id = 1)"
        ),
    );
    let store = TempDir::new();
    backup_command(&server, "app", store.path())
        .env("DB_USER", "reader")
        .run()
        .assert_code(1)
        .assert_says("guarded")
        .assert_says("row-level security");
    assert!(only_dump(store.path()).is_none());
    server.psql("app", "ALTER ROLE reader BYPASSRLS");
    let _ = backup_command(&server, "app", store.path())
        .env("DB_USER", "reader")
        .run();
    assert_eq!(
        only_dump(store.path()).unwrap().tables(),
        [("public.guarded".to_owned(), 2)]
    );
}

fn encoded(encoding: &str, sql: &str, manifest_name: &str) {
    let server = Server::start(17);
    let create = |name: &str| {
        server.psql(
            "postgres",
            &format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'"),
        );
    };
    create("app");
    server.psql("app", sql);
    let store = TempDir::new();
    let taken = backup(&server, "app", &store);
    let names: Vec<String> = taken.tables().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, [manifest_name]);
    let look = |database: &str| {
        let bytes = "SELECT encode(convert_to(t::text, current_setting('server_encoding')), 'hex') FROM only_table t;";
        [
            contents(&server, database),
            server.psql(database, &format!("SHOW server_encoding; {bytes}")),
        ]
        .join("\n")
    };
    let expected = look("app");
    create("by_psql");
    psql_restore(&server, &taken.file, "by_psql");
    assert_same("psql into an empty database", &expected, &look("by_psql"));
    psql_restore(&server, &taken.file, "by_psql");
    assert_same("psql over the database itself", &expected, &look("by_psql"));
    restore_command(&server, store.path(), "by_pgark")
        .run()
        .assert_code(0);
    assert_same("pgark restore", &expected, &look("by_pgark"));
    Pgark::new(["verify"])
        .store(store.path())
        .run()
        .assert_code(0);
}

const NAMED: &str = "SET client_encoding = 'UTF8'; CREATE TYPE \"KIND\" AS ENUM ('VALUE'); CREATE SCHEMA \"NAME\";
    CREATE TABLE \"NAME\".\"NAME\" (\"NAME\" text DEFAULT 'VALUE', t \"KIND\");
    INSERT INTO \"NAME\".\"NAME\" VALUES (E'VALUE \\t\\\\ x', 'VALUE'); COMMENT ON TABLE \"NAME\".\"NAME\" IS 'VALUE';
    CREATE VIEW only_table AS SELECT * FROM \"NAME\".\"NAME\"; CREATE INDEX \"VALUE\" ON \"NAME\".\"NAME\" (\"NAME\")";

#[test]
fn latin1_database_comes_back() {
    let sql = NAMED
        .replace("NAME", "größe")
        .replace("'VALUE", "'ÿ£é")
        .replace("\"VALUE", "\"ÿ£é")
        .replace("KIND", "Ñ");
    encoded("LATIN1", &sql, "größe.größe");
}

#[test]
fn euc_jp_database_comes_back() {
    let sql = NAMED
        .replace("NAME", "表")
        .replace("'VALUE", "'日本語ソ")
        .replace("\"VALUE", "\"日本語ソ")
        .replace("KIND", "型");
    encoded("EUC_JP", &sql, "表.表");
}

#[test]
fn database_without_an_encoding_comes_back() {
    let sql = r"
        CREATE FUNCTION raw(bytea) RETURNS text LANGUAGE sql AS $$SELECT convert_from($1, 'SQL_ASCII')$$;
        DO $$BEGIN
          EXECUTE format('CREATE TABLE %I (%I text DEFAULT %L)', raw('\x74ff'), raw('\xe9'), raw('\xfffe80'));
          EXECUTE format('INSERT INTO %I VALUES (%L), (%L)', raw('\x74ff'), raw('\xe4f6fc'), raw('\xc3a4'));
          EXECUTE format('CREATE VIEW only_table AS SELECT * FROM %I', raw('\x74ff'));
          EXECUTE format('COMMENT ON TABLE %I IS %L', raw('\x74ff'), raw('\xa4'));
          EXECUTE format('CREATE INDEX %I ON %I (%I)', raw('\xfe'), raw('\x74ff'), raw('\xe9'));
        END$$";
    encoded("SQL_ASCII", sql, "public.t\u{fffd}");
}

/// "1.234,56 €" means 1.23456 elsewhere.
#[test]
fn amounts_of_money_survive_a_local_form() {
    let server = Server::start_with(
        15,
        &Setup {
            settings: &["lc_monetary=de_DE.UTF-8"],
            ..Setup::default()
        },
    );
    server.createdb("app");
    server.psql(
        "app",
        "CREATE TABLE price (id int, amount money DEFAULT 7::money)",
    );
    server.psql(
        "app",
        "ALTER TABLE price ADD asked money DEFAULT '1.234,56'; INSERT INTO price VALUES (1, '12.345.678,90')",
    );
    assert!(
        server
            .psql("app", "SELECT amount FROM price")
            .contains("12.345.678,90")
    );
    let amounts = "INSERT INTO price (id) VALUES (2) ON CONFLICT DO NOTHING; SELECT string_agg(amount::numeric || ' ' || asked::numeric, ' ' ORDER BY id) FROM price";
    let store = TempDir::new();
    let taken = backup(&server, "app", &store);
    restore_command(&server, store.path(), "by_pgark")
        .run()
        .assert_code(0);
    server.createdb("by_psql");
    psql_restore(&server, &taken.file, "by_psql");
    for database in ["by_pgark", "by_psql", "app"] {
        assert_eq!(
            server.psql(database, amounts),
            "12345678.90 1234.56 7.00 1234.56",
            "{database}"
        );
    }
}

/// What is set at the very end must not cost what was restored before.
#[test]
fn a_setting_that_the_target_refuses_is_a_warning() {
    let server = Server::start(15);
    server.createdb("app");
    server.psql(
        "app",
        "CREATE TABLE t AS SELECT generate_series(1, 10) AS i; CREATE ROLE drifted; ALTER DATABASE app SET lc_time = 'de_DE.UTF-8'",
    );
    let store = TempDir::new();
    let taken = backup(&server, "app", &store);
    // Another server, on which that locale is unknown.
    let other = Server::start_with(
        15,
        &Setup {
            environment: &[("LOCPATH", "/nonexistent")],
            ..Setup::default()
        },
    );
    restore_command(&other, store.path(), "back")
        .run()
        .assert_code(0)
        .assert_says("a property of the database was not restored");
    assert_eq!(other.psql("back", "SELECT count(*) FROM t"), "10");
    // Over itself, what a role has set there since goes.
    server.psql(
        "app",
        "ALTER ROLE drifted IN DATABASE app SET work_mem = '1MB'",
    );
    psql_restore(&server, &taken.file, "app");
    assert_eq!(
        server.psql(
            "app",
            "SELECT count(*) FROM pg_db_role_setting WHERE setrole <> 0"
        ),
        "0"
    );
}

/// Whatever a `.psqlrc` says.
#[test]
fn psql_without_autocommit_restores_all_the_same() {
    let server = Server::start(15);
    server.createdb("app");
    server.psql(
        "app",
        "CREATE TABLE t AS SELECT generate_series(1, 10) AS i",
    );
    let store = TempDir::new();
    let taken = backup(&server, "app", &store);
    server.createdb("back");
    let command = format!(
        "gunzip -c {} | psql -Xq -v AUTOCOMMIT=off -d back",
        taken.file.display()
    );
    let mut shell = server.client("psql");
    let path = format!("{}:/usr/bin:/bin", server.bin().display());
    let environment: Vec<_> = shell
        .get_envs()
        .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
        .collect();
    shell = Command::new("sh");
    shell.env_clear().envs(environment).env("PATH", path);
    run(shell.arg("-c").arg(command)).assert_code(0);
    assert_eq!(server.psql("back", "SELECT count(*) FROM t"), "10");
}

#[test]
fn a_schema_that_is_closed_to_the_role_and_not_dumped_is_no_obstacle() {
    let server = Server::start(15);
    server.psql(
        "postgres",
        &format!("CREATE ROLE owner LOGIN PASSWORD '{PASSWORD}'"),
    );
    server.createdb("app");
    server.psql(
        "app",
        "ALTER DATABASE app OWNER TO owner; CREATE SCHEMA priv; CREATE EXTENSION hstore SCHEMA priv; CREATE TABLE priv.x ();
         ALTER EXTENSION hstore ADD TABLE priv.x; SET ROLE owner; CREATE SCHEMA mine; CREATE TABLE mine.t AS SELECT 1 AS a",
    );
    let store = TempDir::new();
    backup_command(&server, "app", store.path())
        .env("DB_USER", "owner")
        .run()
        .assert_code(0);
    assert_eq!(
        only_dump(store.path()).unwrap().tables(),
        [("mine.t".to_owned(), 1)]
    );
}

/// The server's own warnings leave nothing out.
#[test]
fn a_collation_of_another_version_makes_no_run_partial() {
    let server = Server::start(17);
    server.psql(
        "postgres",
        "CREATE DATABASE app TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en' LOCALE 'C.UTF-8'",
    );
    server.psql(
        "postgres",
        "UPDATE pg_database SET datcollversion = '1.0' WHERE datname = 'app'",
    );
    let store = TempDir::new();
    backup_command(&server, "app", store.path())
        .run()
        .assert_code(0);
}

#[test]
fn no_database_at_all_is_a_failure() {
    let server = Server::start(15);
    server.psql("template1", "UPDATE pg_database SET datistemplate = true");
    let store = TempDir::new();
    Pgark::new(["backup"])
        .server(&server)
        .store(store.path())
        .env("DB_NAME", "*")
        .run()
        .assert_code(1)
        .assert_says("no database to back up");
}

/// The server converts the rows.
#[test]
fn a_table_of_another_encoding_comes_into_an_existing_database() {
    let server = Server::start(17);
    server.psql(
        "postgres",
        "CREATE DATABASE app TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'",
    );
    server.psql("app", "SET client_encoding = 'UTF8'; CREATE TABLE \"größe\" (t text); INSERT INTO \"größe\" VALUES ('ÿ£é')");
    let store = TempDir::new();
    backup(&server, "app", &store);
    server.createdb("utf");
    let args = [
        "restore", "latest", "-q", "--table", "größe", "--into", "utf",
    ];
    Pgark::new(args)
        .server(&server)
        .store(store.path())
        .run()
        .assert_code(0);
    assert_eq!(server.psql("utf", "SELECT t FROM \"größe\""), "ÿ£é");
}
