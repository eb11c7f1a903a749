//! Bad input and bad luck on the way to a backup or a restore: message, exit code, and that
//! nothing is committed, lost or left behind.

use crate::support::site::{files, first_id, list, names, password_file};
use crate::support::{PASSWORD, Pgark, Server, Site, TempDir, assert_same, run, table_digest};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

/// Nothing was committed: no dump, no globals, no temporary name.
#[track_caller]
fn assert_nothing_in(dir: &Path) {
    let names = names(dir);
    assert!(names.is_empty(), "{names:?}");
}

#[test]
fn a_wrong_password_a_dead_host_and_a_missing_database_commit_nothing() {
    let site = Site::new("refused");
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let closed = port.to_string();
    for (name, value, says) in [
        (
            "DB_PASSWORD",
            "wr0ng-pass",
            "password authentication failed",
        ),
        ("DB_PORT", closed.as_str(), closed.as_str()),
        ("DB_HOST", "no-such-host.invalid", "no-such-host.invalid"),
        ("DB_NAME", "no_such_database", "no_such_database"),
        ("DB_USER", "no_such_role", "no_such_role"),
    ] {
        let done = site
            .backup_with(|pgark| pgark.env(name, value))
            .assert_code(1);
        let done = done.assert_says(says).assert_says("hint:");
        assert!(
            !done.stderr.contains("wr0ng-pass") && done.stdout.is_empty(),
            "{done:?}"
        );
        assert_nothing_in(site.dir.path());
    }
}

#[test]
fn a_table_that_may_not_be_read_is_named_and_nothing_is_committed() {
    let site = Site::new("no_right");
    site.server.psql("no_right", "CREATE ROLE half_blind LOGIN PASSWORD 'x'; GRANT SELECT ON item TO half_blind; CREATE TABLE \"Secret Table\" ()");
    site.server
        .psql("no_right", "GRANT SELECT ON line TO half_blind");
    let done = site.backup_with(|pgark| pgark.env("DB_USER", "half_blind").env("DB_PASSWORD", "x"));
    done.assert_code(1)
        .assert_says("Secret Table")
        .assert_says("GRANT");
    assert_nothing_in(site.dir.path());
    site.server
        .psql("no_right", "DROP OWNED BY half_blind; DROP ROLE half_blind");
}

#[test]
fn a_malformed_variable_exits_2_and_names_itself_and_the_fix() {
    let dir = TempDir::new();
    let two_lines = dir.join("two");
    std::fs::write(&two_lines, "one\ntwo\n").unwrap();
    let two_lines = two_lines.to_str().unwrap();
    for (name, value) in [
        ("DB_PORT", "fünf"),
        ("DB_PORT", "70000"),
        ("DB_NAME", "a,,b"),
        ("DB_NAME", "\"open"),
        ("DB_SSLMODE", "verify"),
        ("BACKUP_JOBS", "0"),
        ("BACKUP_COMPRESSION", "gzip:99"),
        ("PGARK_LOCK_TIMEOUT", "soon"),
        ("BACKUP_DIR", "none"),
        ("DB_PASSWORD_FILE", "/no/such/file"),
        ("DB_PASSWORD_FILE", two_lines),
    ] {
        let store = dir.join("store");
        let done = Pgark::new(["backup"]).store(&store).env(name, value).run();
        let done = done.assert_code(2).assert_says(name);
        assert!(
            !done.stderr.contains("two\n"),
            "a secret's line: {}",
            done.stderr
        );
        assert!(!store.exists(), "{name}={value} made a directory");
    }
    let both = Pgark::new(["list"])
        .env("DB_USER", "a")
        .env("DB_USER_FILE", "/dev/null");
    both.run().assert_code(2).assert_says("DB_USER_FILE");
}

#[test]
fn a_password_file_may_end_with_a_newline() {
    let site = Site::new("newline");
    let secrets = TempDir::new();
    let file = password_file(&secrets);
    let done =
        site.backup_with(|pgark| pgark.env("DB_PASSWORD", "").env("DB_PASSWORD_FILE", &file));
    done.assert_code(0);
    std::fs::write(&file, format!("{PASSWORD}\n\n")).unwrap();
    let done =
        site.backup_with(|pgark| pgark.env("DB_PASSWORD", "").env("DB_PASSWORD_FILE", &file));
    assert!(
        matches!(done.code, 1 | 2),
        "two newlines are no password: {done:?}"
    );
    assert!(!done.stderr.contains(PASSWORD));
}

#[test]
fn a_database_with_a_slash_and_quotes_makes_the_whole_round() {
    let name = "a/b \"c\"";
    let site = Site::new(name);
    let id = site.backup();
    assert!(!id.contains('/'), "{id}");
    assert_eq!(site.entry(&id)["database"], name);
    site.pgark(["show", &id]).run().assert_code(0);
    site.pgark(["verify", &id, "-q"]).run().assert_code(0);
    assert!(
        site.pgark(["cat", &id])
            .run()
            .assert_code(0)
            .stdout
            .contains("COPY public.item")
    );
    let check = "sha256sum -c $(ls -t backup_*.sha256 | head -1)";
    run(Command::new("sh")
        .args(["-c", check])
        .current_dir(site.dir.path()))
    .assert_code(0);
    site.restore("latest", "slash \"back\"").assert_code(0);
    assert_same(
        "rows",
        &table_digest(site.server, name),
        &table_digest(site.server, "slash \"back\""),
    );
    site.pgark(["restore", "latest", "--database", name, "-q"])
        .run()
        .assert_code(0);
    assert_eq!(
        site.server.psql(
            "postgres",
            "SELECT count(*) FROM pg_database WHERE datname LIKE 'a/b \"c\"_restored_%'"
        ),
        "1"
    );
}

#[test]
fn a_list_and_a_star_take_every_database_and_a_missing_one_stops_no_other() {
    let server = Server::start(17);
    for name in ["one", "two, too"] {
        server.createdb(name);
        server.psql(name, "CREATE TABLE t AS SELECT 1 AS i");
    }
    let taken = |names: &str| {
        let dir = TempDir::new();
        let done = Pgark::new(["backup"])
            .server(&server)
            .store(dir.path())
            .env("DB_NAME", names)
            .run();
        let listed = list(dir.path());
        let mut databases: Vec<String> = listed
            .iter()
            .filter_map(|entry| Some(entry["database"].as_str()?.to_owned()))
            .collect();
        databases.sort();
        let globals = listed
            .iter()
            .filter(|entry| entry["kind"] == "globals")
            .count();
        assert!(
            listed.iter().all(|entry| entry["good"] == true),
            "{listed:?}"
        );
        (done, databases, globals)
    };
    let (done, databases, globals) = taken("one,\"two, too\"");
    done.assert_code(0);
    assert_eq!(
        (databases, globals),
        (vec!["one".to_owned(), "two, too".to_owned()], 1)
    );
    let (done, databases, globals) = taken("*");
    done.assert_code(0);
    assert_eq!(
        (databases.join("|"), globals),
        ("one|postgres|two, too".to_owned(), 1)
    );
    for names in ["one,absent,\"two, too\"", "absent,one,\"two, too\""] {
        let (done, databases, globals) = taken(names);
        done.assert_code(3).assert_says("absent");
        assert_eq!(
            (databases.join("|"), globals),
            ("one|two, too".to_owned(), 1)
        );
    }
    let (done, databases, globals) = taken("absent,absent_too");
    done.assert_code(1).assert_says("absent");
    assert_eq!((databases.len(), globals), (0, 0));
}

/// A small file system of its own; this needs root, and fails without.
pub(crate) struct Tmpfs(TempDir);

impl Tmpfs {
    pub(crate) fn path(&self) -> &std::path::Path {
        self.0.path()
    }

    pub(crate) fn new(options: &str) -> Tmpfs {
        let dir = TempDir::new();
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(dir.path());
        run(&mut mount).assert_code(0);
        Tmpfs(dir)
    }

    pub(crate) fn remount(&self, options: &str) {
        let mut mount = Command::new("mount");
        mount
            .args(["-o", &format!("remount,{options}")])
            .arg(self.0.path());
        run(&mut mount).assert_code(0);
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        run(Command::new("umount").arg("--lazy").arg(self.0.path()));
    }
}

#[test]
fn a_full_disk_fails_the_run_and_loses_nothing() {
    let site = Site::new("full_disk");
    let disk = Tmpfs::new("size=1m,mode=700");
    let (dir, name) = (disk.0.path(), disk.0.path().to_str().unwrap());
    let first = site.backup_with(|pgark| pgark.store(dir)).assert_code(0);
    let first = first_id(&first.stdout);
    site.server.psql("full_disk", "CREATE TABLE noise AS SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 200000) i GROUP BY i % 2000");
    let before = files(dir);
    let done = site.backup_with(|pgark| pgark.store(dir)).assert_code(1);
    done.assert_says(name).assert_says("hint:");
    let after = files(dir);
    for (name, content) in &before {
        assert!(
            [".lock", ".log", ".jsonl"]
                .iter()
                .any(|end| name.ends_with(end))
                || after.get(name) == Some(content),
            "{name} was touched"
        );
    }
    let new: Vec<_> = after
        .keys()
        .filter(|name| !before.contains_key(*name))
        .collect();
    assert!(new.is_empty(), "{new:?}");
    site.pgark(["verify", &first, "-q"])
        .store(dir)
        .run()
        .assert_code(0);
    disk.remount("size=64m");
    site.backup_with(|pgark| pgark.store(dir)).assert_code(0);
    assert!(list(dir).iter().all(|entry| entry["good"] == true));
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let site = Site::new("read_only");
    let disk = Tmpfs::new("size=4m,mode=755");
    disk.remount("ro");
    for dir in [disk.0.path().to_owned(), disk.0.join("below")] {
        let done = site.backup_with(|pgark| pgark.store(&dir)).assert_code(1);
        done.assert_says(dir.to_str().unwrap());
        assert!(files(disk.0.path()).is_empty());
    }
    // A mode binds whoever is not root.
    let dir = TempDir::new();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o555)).unwrap();
    let done = {
        let _turn = site.turn();
        Pgark::unprivileged(["backup"])
            .server(site.server)
            .store(dir.path())
            .env("DB_NAME", "read_only")
            .run()
    };
    done.assert_code(1)
        .assert_says(dir.path().to_str().unwrap());
    assert!(files(dir.path()).is_empty());
    // A file is no directory.
    let file = site.dir.join("file");
    std::fs::write(&file, "mine").unwrap();
    let done = site.backup_with(|pgark| pgark.store(&file));
    done.assert_code(1).assert_says(file.to_str().unwrap());
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
}

/// PostgreSQL cannot send it; nobody should look for memory that is missing.
#[test]
fn a_row_of_over_1_gb_as_text_is_explained() {
    let site = Site::new("giant");
    site.server.psql(
        "giant",
        "CREATE TABLE giant (a bytea, b bytea); ALTER TABLE giant ALTER a SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL;
         INSERT INTO giant SELECT decode(repeat('00', 280000000), 'hex'), decode(repeat('00', 280000000), 'hex')",
    );
    let done = site.backup_with(|pgark| pgark).assert_code(1);
    done.assert_says("table public.giant")
        .assert_says("longer than 1 GB as text")
        .assert_says("FROM public.giant t");
    assert!(site.list().is_empty());
}
