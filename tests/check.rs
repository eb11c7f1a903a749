//! The preflight on real servers: each finding by a right that really lacks, and gone once what it
//! printed was done.

use std::process::Command;

use serde_json::Value;

mod stores;
mod wal;

use crate::pooler::Bouncer;
use crate::support::site::{files, names};
use crate::support::{PASSWORD, Pgark, Server, Setup, TempDir, run, until};

/// A server with database `app` and a role that may nothing but connect.
struct Place {
    server: Server,
    store: TempDir,
}

const APP: &str = "
    CREATE SCHEMA closed; CREATE TABLE closed.one (id serial, t text); CREATE TABLE two (id int);
    INSERT INTO closed.one (t) SELECT 'x' FROM generate_series(1, 10);
";

impl Place {
    fn new(major: u32, setup: &Setup) -> Place {
        let place = Place {
            server: Server::start_with(major, setup),
            store: TempDir::new(),
        };
        place.server.createdb("app");
        place.server.psql("app", APP);
        let role = format!("CREATE ROLE \"back up\" LOGIN PASSWORD '{PASSWORD}'");
        place.server.psql("postgres", &role);
        place
    }

    fn pgark(&self, verb: &[&str]) -> Pgark {
        Pgark::new(verb)
            .server(&self.server)
            .store(self.store.path())
            .env("DB_USER", "back up")
            .env("DB_NAME", "app")
            .env("BACKUP_JOBS", "2")
    }

    /// The findings, and the exit code.
    #[track_caller]
    fn check(&self) -> (Vec<Value>, i32) {
        self.check_with(|pgark| pgark)
    }

    #[track_caller]
    fn check_with(&self, change: impl FnOnce(Pgark) -> Pgark) -> (Vec<Value>, i32) {
        let before = names(self.store.path());
        let done = change(self.pgark(&["check", "--json"])).run();
        assert_eq!(names(self.store.path()), before, "left behind");
        let value: Value = serde_json::from_str(&done.stdout)
            .unwrap_or_else(|error| panic!("{error}\n{}\n{}", done.stdout, done.stderr));
        let expected = i32::from(value["level"] == "fail");
        assert_eq!(done.code, expected, "{value}");
        (value["findings"].as_array().unwrap().clone(), done.code)
    }

    /// Looks, finds this topic at this level, does what it printed, and finds it no more.
    #[track_caller]
    fn mend(&self, topic: &str, level: &str, words: &str) {
        let (findings, _) = self.check();
        let finding = one(&findings, topic);
        assert_eq!(finding["level"], level, "{finding}");
        assert!(
            finding["fact"].as_str().unwrap().contains(words),
            "{finding}"
        );
        self.do_as_told(finding);
        let (findings, _) = self.check();
        let left = findings
            .iter()
            .find(|one| one["topic"] == topic && one["level"] == level);
        assert!(
            left.is_none(),
            "still there after its mend: {}",
            left.unwrap()
        );
    }

    #[track_caller]
    fn do_as_told(&self, finding: &Value) {
        let mend = &finding["mend"];
        let place = mend["place"].as_str().unwrap();
        for line in mend["lines"].as_array().unwrap() {
            let line = line.as_str().unwrap();
            match mend["how"].as_str().unwrap() {
                "sql" => drop(self.server.psql(place, line)),
                "command" => drop(run(Command::new("sh").args(["-c", line])).assert_code(0)),
                "hba" => {
                    let path = self.server.data_dir().join("pg_hba.conf");
                    let old = std::fs::read_to_string(&path).unwrap();
                    std::fs::write(&path, format!("{line}\n{old}")).unwrap();
                    self.server.psql("postgres", "SELECT pg_reload_conf()");
                }
                how => panic!("{how} cannot be done: {finding}"),
            }
        }
    }
}

#[track_caller]
fn one<'a>(findings: &'a [Value], topic: &str) -> &'a Value {
    let found = findings
        .iter()
        .find(|one| one["topic"] == topic && one["level"] != "ok");
    found.unwrap_or_else(|| panic!("no finding about {topic} in {findings:#?}"))
}

/// What lacks, one after the other, each mended by what was printed, until a backup is whole.
fn a_role_without_rights_gets_them_all(major: u32) {
    let place = Place::new(major, &Setup::default());
    let server = &place.server;
    server.psql(
        "app",
        "ALTER TABLE two ENABLE ROW LEVEL SECURITY; INSERT INTO two VALUES (1);
         SELECT lo_from_bytea(4711, 'secret'); SELECT lo_from_bytea(4712, 'secret');
         REVOKE CONNECT ON DATABASE app FROM PUBLIC",
    );
    place.mend("connection", "fail", "permission denied for database");
    let (findings, code) = place.check();
    assert_eq!(code, 1);
    let of = |topic: &str| one(&findings, topic)["fact"].as_str().unwrap().to_owned();
    assert!(
        of("tables").contains("2 tables cannot be read: closed.one, public.two"),
        "{}",
        of("tables")
    );
    assert!(
        of("sequences").contains("closed.one_id_seq"),
        "{}",
        of("sequences")
    );
    assert!(
        of("large_objects").contains("4711, 4712"),
        "{}",
        of("large_objects")
    );
    // What it says is so: the backup fails.
    place.pgark(&["backup"]).run().assert_code(1);
    place.mend("role_passwords", "warning", "passwords of roles");
    place.mend("tables", "fail", "closed.one");
    let (findings, _) = place.check();
    assert!(
        findings.iter().all(|one| one["topic"] != "sequences"),
        "the same right"
    );
    place.mend("row_security", "fail", "public.two");
    place.pgark(&["backup"]).run().assert_code(1);
    place.mend("large_objects", "fail", "2 of 2 large objects");
    let (findings, code) = place.check();
    assert_eq!(code, 0, "{findings:#?}");
    place.pgark(&["backup"]).run().assert_code(0);
    let globals = files(place.store.path());
    let (name, _) = globals
        .iter()
        .find(|(name, _)| name.starts_with("globals_") && name.ends_with(".gz"))
        .unwrap();
    let text = run(Command::new("gunzip").arg("-c").arg(place.store.join(name)))
        .assert_code(0)
        .stdout;
    assert!(text.contains("SCRAM-SHA-256"), "the passwords came along");
}

#[test]
fn a_role_without_rights_gets_them_all_on_15() {
    a_role_without_rights_gets_them_all(15);
}

#[test]
fn a_role_without_rights_gets_them_all_on_18() {
    a_role_without_rights_gets_them_all(18);
}

#[test]
fn a_role_without_rights_gets_them_all_on_17() {
    a_role_without_rights_gets_them_all(17);
}

#[test]
fn what_only_a_superuser_dumps_is_named() {
    let place = Place::new(
        17,
        &Setup {
            settings: &["wal_level=logical"],
            ..Setup::default()
        },
    );
    place.server.psql(
        "app",
        "GRANT pg_read_all_data TO \"back up\"; GRANT SELECT ON pg_authid TO \"back up\";
         CREATE SUBSCRIPTION sub CONNECTION 'host=127.0.0.1 port=1' PUBLICATION p WITH (connect = false);
         CREATE FOREIGN DATA WRAPPER w; CREATE SERVER far FOREIGN DATA WRAPPER w;
         CREATE USER MAPPING FOR postgres SERVER far OPTIONS (password 'hidden')",
    );
    let (findings, code) = place.check();
    assert_eq!(code, 1);
    let mapping = one(&findings, "user_mappings");
    assert_eq!(mapping["level"], "warning", "{mapping}");
    assert!(
        mapping["fact"]
            .as_str()
            .unwrap()
            .contains("far for postgres"),
        "{mapping}"
    );
    // The same that the run says: done in part.
    place
        .pgark(&["backup"])
        .run()
        .assert_code(3)
        .assert_says("subscription");
    place.mend("subscriptions", "fail", "1 subscription would be left out");
    let (findings, _) = place.check();
    assert!(
        findings.iter().all(|one| one["topic"] != "user_mappings"),
        "{findings:#?}"
    );
    place.pgark(&["backup"]).run().assert_code(0);
}

#[test]
fn limits_of_connections_and_validity_are_lifted_by_what_is_printed() {
    let place = Place::new(
        15,
        &Setup {
            settings: &["max_connections=40"],
            ..Setup::default()
        },
    );
    place.server.psql(
        "app",
        "GRANT pg_read_all_data TO \"back up\"; ALTER ROLE \"back up\" CONNECTION LIMIT 2 VALID UNTIL '2999-01-01';
         ALTER DATABASE app CONNECTION LIMIT 1",
    );
    // What it says is so: the backup fails.
    place.pgark(&["backup"]).run().assert_code(1);
    place.mend("role_connections", "fail", "2 connections at once");
    place.mend("database_connections", "fail", "1 connection at once");
    // Enough, but slower than asked for.
    let role = "ALTER ROLE \"back up\" CONNECTION LIMIT 3";
    place.server.psql("postgres", role);
    place.pgark(&["backup"]).run().assert_code(0);
    place.mend("role_connections", "note", "takes longer");
    let until = "ALTER ROLE \"back up\" VALID UNTIL 'tomorrow'";
    place.server.psql("postgres", until);
    place.mend("role_validity", "warning", "backups fail from then on");
    place
        .server
        .psql("postgres", "ALTER ROLE \"back up\" NOLOGIN");
    place.mend("connection", "fail", "not permitted to log in");
    let (findings, _) = place.check_with(|pgark| pgark.env("BACKUP_JOBS", "64"));
    let room = one(&findings, "connections");
    assert_eq!(room["level"], "note", "{room}");
}

#[test]
fn the_line_of_pg_hba_that_is_printed_lets_it_in() {
    let hba = "local all postgres trust\nhost all postgres all scram-sha-256\n";
    let place = Place::new(
        17,
        &Setup {
            hba: Some(hba),
            ..Setup::default()
        },
    );
    place
        .server
        .psql("app", "GRANT pg_read_all_data TO \"back up\"");
    let (findings, _) = place.check();
    let finding = one(&findings, "connection");
    assert_eq!(finding["mend"]["how"], "hba", "{finding}");
    place.do_as_told(finding);
    until("the server to have read the line", || place.check().1 == 0);
    place.pgark(&["backup"]).run().assert_code(0);
}

#[test]
fn a_table_of_locks_that_is_too_small_is_foreseen() {
    let settings = &["max_locks_per_transaction=10", "max_connections=20"];
    let place = Place::new(
        15,
        &Setup {
            settings,
            ..Setup::default()
        },
    );
    place.server.psql(
        "app",
        "GRANT pg_read_all_data TO \"back up\";
         DO $$ BEGIN FOR i IN 1..230 LOOP EXECUTE format('CREATE TABLE many_%s ()', i); IF i % 50 = 0 THEN COMMIT; END IF; END LOOP; END $$",
    );
    let (findings, _) = place.check();
    let locks = one(&findings, "locks");
    assert!(
        locks["fact"].as_str().unwrap().contains("locks 232 tables"),
        "{locks}"
    );
    let line = locks["mend"]["lines"][0].as_str().unwrap();
    assert_eq!(line, "ALTER SYSTEM SET max_locks_per_transaction = 15;");
}

#[test]
fn a_standby_that_may_cancel_a_dump_is_told_so_and_mended() {
    let prepare = |data: &std::path::Path| std::fs::write(data.join("standby.signal"), "").unwrap();
    let server = Server::start_with(
        17,
        &Setup {
            prepare: Some(&prepare),
            ..Setup::default()
        },
    );
    let store = TempDir::new();
    let check = || {
        let check = Pgark::new(["check", "--json"])
            .server(&server)
            .store(store.path());
        let done = check.env("DB_NAME", "postgres").run().assert_code(0);
        let value: Value = serde_json::from_str(&done.stdout).unwrap();
        value["findings"].as_array().unwrap().clone()
    };
    let findings = check();
    assert_eq!(one(&findings, "standby")["level"], "note");
    let conflicts = one(&findings, "standby_conflicts");
    for line in conflicts["mend"]["lines"].as_array().unwrap() {
        server.psql("postgres", line.as_str().unwrap());
    }
    until("the setting to be read", || {
        check()
            .iter()
            .all(|one| one["topic"] != "standby_conflicts")
    });
}

#[test]
fn a_pooler_that_splits_sessions_is_found() {
    let place = Place::new(15, &Setup::default());
    let password = format!("ALTER ROLE postgres PASSWORD '{PASSWORD}'");
    place.server.psql("postgres", &password);
    let bouncer = Bouncer::start(&place.server, "transaction");
    let (findings, code) = place.check_with(|pgark| {
        pgark
            .env("DB_USER", "postgres")
            .env("DB_PORT", bouncer.port.to_string())
    });
    assert_eq!(code, 1);
    let pooler = one(&findings, "pooler");
    assert!(
        pooler["fact"]
            .as_str()
            .unwrap()
            .contains("transaction mode"),
        "{pooler}"
    );
}
