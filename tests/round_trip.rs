//! PostgreSQL's regression database comes back as `pg_dump | psql` brings it back, and
//! nothing that pg_dump lists is missing from the backup.

use crate::support::{Server, TempDir, assert_same, run, toc};
use crate::trip::{Taken, assert_restores, backup, contents, plain_copy};

#[test]
fn regression_database_15_equals_pg_dumps_own_round_trip_in_every_way() {
    regression(15);
}

#[test]
fn regression_database_17_equals_pg_dumps_own_round_trip_in_every_way() {
    regression(17);
}

fn regression(major: u32) {
    let server = Server::regression(major);
    let store = TempDir::new();
    let taken = backup(&server, "regression", &store);
    assert_holds_all_entries(&server, "regression", &taken);
    assert_counts_all_rows(&server, "regression", &taken);
    plain_copy(&server, "regression", "plain");
    let expected = contents(&server, "plain");
    assert_restores(&server, store.path(), &expected, &|database| {
        contents(&server, database)
    });
}

/// The index against the table of contents of a full `pg_dump -Fc`, entry by entry.
#[track_caller]
pub(crate) fn assert_holds_all_entries(server: &Server, database: &str, taken: &Taken) {
    // pg_restore lists neither the session's settings nor what only `-C` brings.
    let unlisted = [
        "ENCODING",
        "STDSTRINGS",
        "SEARCHPATH",
        "DATABASE",
        "DATABASE PROPERTIES",
    ];
    let mut ours: Vec<String> = taken
        .entries()
        .into_iter()
        .filter(|(desc, name)| {
            let of_database = desc != "SCHEMA" && name.starts_with("DATABASE ");
            !of_database && !unlisted.contains(&desc.as_str())
        })
        .map(|(desc, name)| format!("{desc} {name}"))
        .collect();
    let total = taken.manifest["entries"].as_u64().unwrap();
    assert_eq!(total, taken.entries().len() as u64);
    // "TABLE public t owner" there, "TABLE public.t" here; "-" stands for no schema.
    let flat = |text: &str| text.replace(['.', ' ', '-'], "");
    let roles = server.psql(
        database,
        "SELECT rolname FROM pg_roles ORDER BY length(rolname) DESC",
    );
    let without_owner = |line: &str| {
        let owner = roles
            .lines()
            .find(|role| line.ends_with(&format!(" {role}")));
        flat(line.strip_suffix(owner.unwrap_or_default()).unwrap())
    };
    let mut theirs: Vec<String> = toc(server, database).lines().map(without_owner).collect();
    for entry in &mut ours {
        *entry = flat(entry);
    }
    ours.sort_unstable();
    theirs.sort_unstable();
    assert_same(
        "entries of pg_dump and of pgark",
        &theirs.join("\n"),
        &ours.join("\n"),
    );
}

/// The manifest's tables and their rows against the database's.
#[track_caller]
fn assert_counts_all_rows(server: &Server, database: &str, taken: &Taken) {
    let counts = server.psql(
        database,
        r"SET row_security = off;
        SELECT format('SELECT %L, count(*) FROM ONLY %I.%I', n.nspname || '.' || c.relname, n.nspname, c.relname)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname NOT IN ('pg_catalog', 'information_schema')
        \gexec",
    );
    let mut expected: Vec<(String, u64)> = counts
        .lines()
        .map(|line| {
            let (name, rows) = line.rsplit_once('|').unwrap();
            (name.to_owned(), rows.parse().unwrap())
        })
        .collect();
    expected.sort_unstable();
    assert_eq!(taken.tables(), expected);
}

#[test]
fn zstd_dump_restores_with_standard_tools() {
    let server = Server::start(17);
    server.createdb("app");
    server.psql(
        "app",
        "CREATE TABLE t AS SELECT i, md5(i::text) FROM generate_series(1, 50000) i",
    );
    let store = TempDir::new();
    crate::trip::backup_command(&server, "app", store.path())
        .env("BACKUP_COMPRESSION", "zstd:3")
        .run()
        .assert_code(0);
    let expected = contents(&server, "app");
    assert_restores(&server, store.path(), &expected, &|database| {
        contents(&server, database)
    });
    run(std::process::Command::new("sh")
        .current_dir(store.path())
        .args(["-c", "sha256sum --quiet -c *.sha256"]))
    .assert_code(0);
}

/// Roles and tablespaces that exist are no error; what is missing comes back.
#[test]
fn globals_restore_over_themselves_and_bring_back_what_is_missing() {
    let server = Server::start(17);
    let place = TempDir::new();
    place.give_to_postgres();
    let location = place.path().display();
    server.psql(
        "postgres",
        r#"CREATE ROLE "odd $pgark$ 'role"" ;" LOGIN PASSWORD 'x'; CREATE ROLE plain IN ROLE "odd $pgark$ 'role"" ;""#,
    );
    server.psql(
        "postgres",
        &format!("CREATE TABLESPACE \"odd \"\" space\" OWNER plain LOCATION '{location}'"),
    );
    server.createdb("app");
    let store = TempDir::new();
    backup(&server, "app", &store);
    let file = std::fs::read_dir(store.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.starts_with("globals_") && name.ends_with(".sql.gz")
        })
        .unwrap();
    let state = "SELECT rolname, rolcanlogin, (SELECT string_agg(m.roleid::regrole::text, ',') FROM pg_auth_members m WHERE m.member = r.oid), \
        (SELECT string_agg(spcname, ',') FROM pg_tablespace) FROM pg_roles r ORDER BY 1";
    let before = server.psql("postgres", state);
    // psql of PostgreSQL 17.
    server.psql_file("postgres", &file).assert_code(0);
    assert_same("over itself", &before, &server.psql("postgres", state));
    server.psql("postgres", r#"DROP TABLESPACE "odd "" space""#);
    server.psql("postgres", "DROP ROLE plain");
    server.psql_file("postgres", &file).assert_code(0);
    assert_same("what was missing", &before, &server.psql("postgres", state));
}
