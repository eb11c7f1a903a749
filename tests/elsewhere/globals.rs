//! `--globals`: what is missing is made, what exists is left alone.

use super::{restore, source};
use crate::support::{PASSWORD, Pgark, Server, TempDir, assert_same, table_digest};
use crate::trip::{backup, contents};

#[test]
fn from_15_to_18_the_roles_that_are_missing_are_told_first() {
    let (source, store) = source();
    let target = Server::start(18);
    target.psql("postgres", "CREATE ROLE grp");
    // All that is missing, at once, and nothing is touched.
    restore(&source, &store, &target, &["--into", "there"])
        .run()
        .assert_code(5)
        .assert_says("roles missing there: owner_of_app, reader; nothing was touched")
        .assert_says("--globals");
    let dry = ["--into", "there", "--globals", "--dry-run"];
    let plan = restore(&source, &store, &target, &dry).run().assert_code(0);
    for says in [
        "would create role owner_of_app, role reader",
        "left alone, for they exist: role grp, role postgres",
        "from PostgreSQL 15.",
        "public.t  300 rows",
    ] {
        assert!(plan.stdout.contains(says), "{says}: {}", plan.stdout);
    }
    let made = "SELECT (SELECT count(*) FROM pg_roles WHERE rolname IN ('reader', 'owner_of_app')), (SELECT count(*) FROM pg_database WHERE datname = 'there')";
    assert_eq!(target.psql("postgres", made), "0|0");
}

#[test]
fn from_15_to_18_with_the_roles() {
    let (source, store) = source();
    let target = Server::start(18);
    let ask = |sql: &str| target.psql("postgres", sql);
    ask("CREATE ROLE grp LOGIN CONNECTION LIMIT 3");
    let args = ["--into", "there", "--globals"];
    let done = restore(&source, &store, &target, &args)
        .run()
        .assert_code(0);
    let made = "created role owner_of_app, role reader";
    assert!(done.stdout.contains(made), "{}", done.stdout);
    let digests = [table_digest(&source, "app"), table_digest(&target, "there")];
    assert_same("rows", &digests[0], &digests[1]);
    let owner = "SELECT tableowner FROM pg_tables WHERE tablename = 't'";
    assert_eq!(target.psql("there", owner), "owner_of_app");
    // What existed is what it was; what is new is as in the backup.
    let group = "SELECT rolcanlogin, rolconnlimit FROM pg_roles WHERE rolname = 'grp'";
    assert_eq!(ask(group), "t|3");
    let password = "SELECT rolpassword FROM pg_authid WHERE rolname = 'reader'";
    assert_eq!(ask(password), source.psql("postgres", password));
    let settings = "SELECT rolconfig FROM pg_roles WHERE rolname = 'reader'";
    assert_eq!(ask(settings), "{work_mem=5MB}");
    assert_eq!(ask("SELECT pg_has_role('reader', 'grp', 'MEMBER')"), "t");
    // pgark's own server was not touched.
    let never = "SELECT count(*) FROM pg_database WHERE datname = 'there'";
    assert_eq!(source.psql("postgres", never), "0");
    // Again: everything exists, and nothing of it changes.
    ask("ALTER ROLE reader NOLOGIN");
    ask("DROP DATABASE there");
    restore(&source, &store, &target, &args)
        .run()
        .assert_code(0);
    let login = "SELECT rolcanlogin FROM pg_roles WHERE rolname = 'reader'";
    assert_eq!(ask(login), "f");
}

#[test]
fn globals_alone_and_their_failures() {
    let (source, store) = source();
    let globals = std::fs::read_dir(store.path())
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().into_string().unwrap());
    let globals = globals
        .into_iter()
        .find(|name| name.starts_with("globals_") && name.ends_with(".gz"))
        .unwrap();
    let id = globals.strip_suffix(".sql.gz").unwrap();
    let target = Server::start(17);
    let server = format!("host=127.0.0.1 port={}", target.port);
    let run = |args: &[&str], user: &str| {
        Pgark::new(["restore", id, "--server", &server].iter().chain(args))
            .server(&source)
            .store(store.path())
            .env("DB_USER", user)
            .run()
    };
    target.psql(
        "postgres",
        &format!("CREATE ROLE limited LOGIN CREATEROLE PASSWORD '{PASSWORD}'"),
    );
    let count = "SELECT count(*) FROM pg_roles WHERE rolname IN ('reader', 'owner_of_app', 'grp')";
    // Without the right to all of it: none of it, and no password in the message.
    source.psql("postgres", "ALTER ROLE owner_of_app SUPERUSER");
    let refused = run(&[], "nobody").assert_code(5);
    assert!(!refused.stderr.contains("SCRAM"), "{}", refused.stderr);
    let dry = run(&["--dry-run"], "postgres").assert_code(0);
    assert!(
        dry.stdout
            .contains("would create role grp, role owner_of_app, role reader"),
        "{}",
        dry.stdout
    );
    assert_eq!(target.psql("postgres", count), "0");
    run(&["--json"], "postgres").assert_code(0);
    assert_eq!(target.psql("postgres", count), "3");
    run(&["--into", "x"], "postgres").assert_code(2);
    let again = run(&[], "postgres").assert_code(0);
    assert!(
        again.stdout.contains("created none; left alone"),
        "{}",
        again.stdout
    );
    // The database alone fits now, and equals its source.
    restore(&source, &store, &target, &["--into", "there"])
        .run()
        .assert_code(0);
    assert_eq!(
        contents(&target, "there").matches("owner_of_app").count(),
        contents(&source, "app").matches("owner_of_app").count()
    );
}

/// All roles or none.
#[test]
fn a_role_that_cannot_be_made_leaves_none() {
    let source = Server::start(15);
    source.psql(
        "postgres",
        "CREATE ROLE a_plain; CREATE ROLE b_mighty SUPERUSER PASSWORD 'hush'",
    );
    source.createdb("app");
    let store = TempDir::new();
    backup(&source, "app", &store);
    let target = Server::start(17);
    target.psql(
        "postgres",
        &format!("CREATE ROLE limited LOGIN CREATEDB CREATEROLE PASSWORD '{PASSWORD}'"),
    );
    let server = format!("host=127.0.0.1 port={} user=limited", target.port);
    let done = Pgark::new(["restore", "latest", "--globals", "-q", "--server", &server])
        .server(&source)
        .store(store.path())
        .env("PGPASSWORD", PASSWORD)
        .run();
    let done = if done.code == 5 {
        done.assert_says("may not")
    } else {
        done.assert_code(1).assert_says("no role was created")
    };
    assert!(
        !done.stderr.contains("SCRAM") && !done.stderr.contains("hush"),
        "{}",
        done.stderr
    );
    assert_eq!(
        target.psql(
            "postgres",
            "SELECT count(*) FROM pg_roles WHERE rolname IN ('a_plain', 'b_mighty')"
        ),
        "0"
    );
    assert_eq!(
        target.psql(
            "postgres",
            "SELECT count(*) FROM pg_database WHERE datname LIKE 'app%'"
        ),
        "0"
    );
}
