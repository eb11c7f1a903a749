//! What belongs to the database itself stays as it is today.

use super::Stage;
use crate::support::{Pgark, Server, TempDir, assert_same, database_properties};
use crate::trip::backup;

/// How the database is set up today, unlike when the backup was taken.
const TODAY: &str = r#"
    CREATE ROLE keeper; CREATE ROLE guest; GRANT keeper TO postgres;
    ALTER DATABASE app OWNER TO keeper; ALTER DATABASE app CONNECTION LIMIT 42;
    REVOKE ALL ON DATABASE app FROM PUBLIC; GRANT CONNECT ON DATABASE app TO guest WITH GRANT OPTION;
    ALTER DATABASE app SET search_path = "$user", public, "odd ""name";
    ALTER DATABASE app SET default_transaction_read_only = on;
    ALTER ROLE guest IN DATABASE app SET work_mem = '7MB';
    COMMENT ON DATABASE app IS 'it''s "ours"';
"#;

fn todays_properties(major: u32) {
    let stage = Stage::plain(major);
    stage.sql(TODAY);
    let properties = database_properties(&stage.server, "app");
    let done = stage.replace(&[]).run().assert_code(0);
    assert!(
        done.stdout
            .contains("in place of \"app\": 2 tables, 62000 rows"),
        "{}",
        done.stdout
    );
    let kept = stage.named("app\\_replaced\\_%").remove(0);
    assert!(
        done.stdout.contains(&format!("DROP DATABASE \"{kept}\";")),
        "{}",
        done.stdout
    );
    assert_same(
        "properties",
        &properties,
        &database_properties(&stage.server, "app"),
    );
    stage.assert_swapped();
    // The statement that it prints is right.
    stage.sql(&format!("DROP DATABASE \"{kept}\""));
}

#[test]
fn the_backup_takes_the_place_and_todays_properties_stay_on_15() {
    todays_properties(15);
}

#[test]
fn the_backup_takes_the_place_and_todays_properties_stay_on_18() {
    todays_properties(18);
}

/// What the swap will not be allowed to do shows before the long work.
#[test]
fn a_setting_that_the_role_may_not_carry_over_is_told_before_the_work() {
    let server = Server::start(17);
    let ask = |sql: &str| server.psql("postgres", sql);
    ask("CREATE ROLE small LOGIN CREATEDB PASSWORD 'sup3r secret'");
    ask("CREATE DATABASE app OWNER small");
    server.psql("app", "SET ROLE small; CREATE TABLE t AS SELECT 1 AS a");
    let store = TempDir::new();
    backup(&server, "app", &store);
    server.psql("app", "UPDATE t SET a = 2");
    ask("ALTER DATABASE app SET log_min_duration_statement = 0");
    let replace = || {
        let args = ["restore", "latest", "--replace", "-q"];
        let pgark = Pgark::new(args).server(&server).store(store.path());
        pgark.env("DB_USER", "small").run()
    };
    replace()
        .assert_code(1)
        .assert_says("cannot carry over: ALTER DATABASE")
        .assert_says("permission denied to set parameter \"log_min_duration_statement\"");
    let databases = "SELECT string_agg(datname, ' ') FROM pg_database WHERE datname LIKE 'app%'";
    assert_eq!(ask(databases), "app");
    ask("ALTER DATABASE app RESET ALL; ALTER DATABASE app SET work_mem = '7MB'");
    replace().assert_code(0);
    assert_eq!(server.psql("app", "SELECT a FROM t"), "1");
    let properties = "SELECT setconfig, datdba::regrole FROM pg_db_role_setting, pg_database d WHERE setdatabase = d.oid AND datname = 'app'";
    assert_eq!(ask(properties), "{work_mem=7MB}|small");
}

#[test]
fn another_encoding_today_is_said() {
    let stage = Stage::plain(15);
    stage.sql("DROP DATABASE app");
    stage.sql("CREATE DATABASE app TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'");
    let done = stage.replace(&[]).run().assert_code(0);
    done.assert_says("encoding: LATIN1 today, UTF8 in the backup")
        .assert_says("collate: C today, C.UTF-8 in the backup");
    let encoding = "SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = 'app'";
    assert_eq!(stage.sql(encoding), "UTF8");
}
