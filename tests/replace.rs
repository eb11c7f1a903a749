//! `pgark restore --replace`: the swap, what forbids it, and every way to be interrupted.

use crate::support::site::Session;
use crate::support::{Pgark, Server, Setup, TempDir, assert_same, table_digest, until};
use crate::trip::backup;

mod carried;
mod interrupted;

const SQL: &str = "
    CREATE TABLE item (id serial PRIMARY KEY, label text);
    INSERT INTO item (label) SELECT md5(i::text) FROM generate_series(1, 2000) i;
    CREATE TABLE bulk AS SELECT i, repeat(md5(i::text), 8) AS filler FROM generate_series(1, 60000) i;
    SELECT lo_from_bytea(0, 'large');
";

struct Stage {
    server: Server,
    store: TempDir,
    id: String,
    /// Of the database as it was backed up.
    digest: String,
}

impl Stage {
    fn new(major: u32, setup: &Setup) -> Stage {
        let server = Server::start_with(major, setup);
        server.createdb("app");
        server.psql("app", SQL);
        let store = TempDir::new();
        let taken = backup(&server, "app", &store);
        let id = taken.manifest["id"].as_str().unwrap().to_owned();
        let digest = table_digest(&server, "app");
        // The disaster, and something that only the database of today holds.
        server.psql(
            "app",
            "DELETE FROM item WHERE id > 5; CREATE TABLE later AS SELECT 1 AS a",
        );
        Stage {
            server,
            store,
            id,
            digest,
        }
    }

    fn plain(major: u32) -> Stage {
        Stage::new(major, &Setup::default())
    }

    fn replace(&self, args: &[&str]) -> Pgark {
        let args = ["restore", "latest", "--replace", "-q", "--jobs", "2"]
            .iter()
            .chain(args);
        Pgark::new(args)
            .server(&self.server)
            .store(self.store.path())
    }

    fn sql(&self, sql: &str) -> String {
        self.server.psql("postgres", sql)
    }

    /// Databases that are named so, with their marks.
    fn named(&self, like: &str) -> Vec<String> {
        let names = self.sql(&format!(
            "SELECT datname FROM pg_database WHERE datname LIKE '{like}' ORDER BY 1"
        ));
        names.lines().map(str::to_owned).collect()
    }

    /// A run that somebody's session stopped at the swap: its finished copy.
    fn ready_copy(&self) -> String {
        let running = self.replace(&[]).spawn();
        until("the new database", || {
            !self.named("app\\_restored\\_%").is_empty()
        });
        let session = Session::start(&self.server, "app", "SELECT pg_sleep(600)");
        running.wait().assert_code(6);
        drop(session);
        until("the session to end", || {
            self.sql("SELECT count(*) FROM pg_stat_activity WHERE datname = 'app'") == "0"
        });
        self.named("app\\_restored\\_%").remove(0)
    }

    /// The backup's rows are in place, today's database is kept, nothing else lies about.
    #[track_caller]
    fn assert_swapped(&self) {
        assert_same("rows", &self.digest, &table_digest(&self.server, "app"));
        let kept = self.named("app\\_replaced\\_%");
        assert_eq!(kept.len(), 1, "{kept:?}");
        assert_eq!(
            self.server.psql(
                &kept[0],
                "SELECT count(*) || ' ' || (SELECT a FROM later) FROM item"
            ),
            "5 1"
        );
        assert_eq!(self.named("app\\_restored\\_%"), Vec::<String>::new());
        assert_eq!(
            self.sql("SELECT count(*) FROM pg_shdescription WHERE description LIKE 'pgark%'"),
            "0"
        );
    }

    /// As if nothing had been asked for.
    #[track_caller]
    fn assert_untouched(&self) {
        assert_eq!(
            self.server.psql(
                "app",
                "SELECT count(*) || ' ' || (SELECT a FROM later) FROM item"
            ),
            "5 1"
        );
        assert_eq!(self.named("app%"), ["app"]);
    }
}

#[test]
fn sessions_are_named_before_the_work_and_ended_only_if_asked() {
    let stage = Stage::plain(17);
    let session = Session::start(
        &stage.server,
        "app",
        "SET application_name = 'shop'; SELECT pg_sleep(600)",
    );
    let count =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = 'app' AND application_name = 'shop'";
    until("the session", || stage.sql(count) == "1");
    let refused = stage.replace(&[]).run().assert_code(6);
    let refused =
        refused.assert_says("1 session is connected to database \"app\"; nothing was touched");
    let pid = stage.sql("SELECT pid FROM pg_stat_activity WHERE application_name = 'shop'");
    refused
        .assert_says(&format!(
            "pid {pid}, user postgres, shop, from local, since 20"
        ))
        .assert_says("--disconnect");
    stage.assert_untouched();
    assert_eq!(stage.sql(count), "1");
    // A dry run says the same, and ends nobody.
    stage
        .replace(&["--dry-run"])
        .run()
        .assert_code(6)
        .assert_says("shop");
    stage
        .replace(&["--dry-run", "--disconnect"])
        .run()
        .assert_code(0);
    assert_eq!(stage.sql(count), "1");
    stage.replace(&["--disconnect"]).run().assert_code(0);
    stage.assert_swapped();
    assert_eq!(
        stage.sql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'shop'"),
        "0"
    );
    drop(session);
}

/// Clients that connect again the moment that they are thrown out, as pools do.
#[test]
fn who_comes_back_at_once_does_not_prevent_the_swap() {
    let stage = Stage::plain(15);
    let until_gone = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !until_gone.load(std::sync::atomic::Ordering::SeqCst) {
                    let _ = stage.server.try_psql("app", "SELECT pg_sleep(30)");
                }
            });
        }
        until("the sessions", || {
            stage.sql("SELECT count(*) FROM pg_stat_activity WHERE datname = 'app'") == "3"
        });
        let done = stage.replace(&["--disconnect"]).run();
        until_gone.store(true, std::sync::atomic::Ordering::SeqCst);
        stage.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(30)%' AND pid <> pg_backend_pid()");
        done.assert_code(0);
    });
    stage.assert_swapped();
}

/// Somebody connects while the copy is being made: it is kept, and the next run only swaps.
#[test]
fn a_finished_copy_is_kept_and_a_second_run_only_swaps() {
    let stage = Stage::plain(17);
    let running = stage.replace(&[]).spawn();
    until("the new database", || {
        !stage.named("app\\_restored\\_%").is_empty()
    });
    let session = Session::start(&stage.server, "app", "SELECT pg_sleep(600)");
    let busy = running.wait().assert_code(6);
    let busy = busy
        .assert_says("the restored one is whole and kept as")
        .assert_says("it only swaps");
    let ready = stage.named("app\\_restored\\_%").remove(0);
    assert!(busy.stderr.contains(&ready), "{}", busy.stderr);
    assert_eq!(stage.server.psql("app", "SELECT count(*) FROM later"), "1");
    // Nobody may change it meanwhile.
    assert_ne!(stage.server.try_psql(&ready, "SELECT 1").code, 0);
    drop(session);
    until("the session to end", || {
        stage.sql("SELECT count(*) FROM pg_stat_activity WHERE datname = 'app'") == "0"
    });
    // A newer backup does not take the older copy.
    let oid = stage.sql(&format!(
        "SELECT oid FROM pg_database WHERE datname = '{ready}'"
    ));
    let again = stage
        .replace(&[])
        .run()
        .assert_code(0)
        .assert_says("only the swap is left");
    assert!(
        again.stdout.contains("2 tables, 62000 rows"),
        "{}",
        again.stdout
    );
    assert_eq!(
        stage.sql("SELECT oid FROM pg_database WHERE datname = 'app'"),
        oid
    );
    stage.assert_swapped();
}

/// The statements of the hint, word for word.
#[test]
fn the_swap_by_hand_that_the_message_shows_works() {
    let stage = Stage::plain(15);
    let running = stage.replace(&[]).spawn();
    until("the new database", || {
        !stage.named("app\\_restored\\_%").is_empty()
    });
    let session = Session::start(&stage.server, "app", "SELECT pg_sleep(600)");
    let busy = running.wait().assert_code(6);
    let hint = busy
        .stderr
        .split("to be set anew: ")
        .nth(1)
        .unwrap()
        .lines()
        .next()
        .unwrap()
        .to_owned();
    drop(session);
    until("the session to end", || {
        stage.sql("SELECT count(*) FROM pg_stat_activity WHERE datname = 'app'") == "0"
    });
    stage.sql(&hint);
    assert_same("rows", &stage.digest, &table_digest(&stage.server, "app"));
    // A renamed database is no remain: another replacement leaves it alone.
    stage.replace(&[]).run().assert_code(0);
    assert_eq!(stage.named("app\\_replaced\\_%").len(), 2);
}

#[test]
fn slots_subscriptions_and_prepared_transactions_are_named_before_the_start() {
    let stage = Stage::new(
        17,
        &Setup {
            settings: &["wal_level=logical", "max_prepared_transactions=2"],
            ..Setup::default()
        },
    );
    stage.server.psql(
        "app",
        "SELECT pg_create_logical_replication_slot('cdc', 'pgoutput')",
    );
    stage.server.psql(
        "app",
        "BEGIN; INSERT INTO later VALUES (2); PREPARE TRANSACTION 'it''s open'",
    );
    stage.server.psql(
        "app",
        "CREATE SUBSCRIPTION feed CONNECTION 'host=nowhere.invalid' PUBLICATION p WITH (connect = false, slot_name = 'feed')",
    );
    let refused = stage.replace(&[]).run().assert_code(5);
    let refused = refused
        .assert_says("for 3 reasons; nothing was touched")
        .assert_says("logical replication slot \"cdc\" (not in use)")
        .assert_says("SELECT pg_drop_replication_slot('cdc')")
        .assert_says("the subscription \"feed\"")
        .assert_says("the prepared transaction 'it''s open' of postgres")
        .assert_says("ROLLBACK PREPARED 'it''s open';");
    drop(refused);
    stage.assert_untouched();
    // The ways out that it names lead out.
    stage.server.psql("app", "SELECT pg_drop_replication_slot('cdc'); ALTER SUBSCRIPTION feed DISABLE; ALTER SUBSCRIPTION feed SET (slot_name = NONE); ROLLBACK PREPARED 'it''s open'");
    stage.replace(&[]).run().assert_code(0);
    stage.assert_swapped();
}

#[test]
fn what_cannot_be_replaced_is_refused() {
    let stage = Stage::plain(15);
    stage
        .replace(&["--into", "nothing"])
        .run()
        .assert_code(2)
        .assert_says("there is no database \"nothing\" to replace");
    stage
        .replace(&["--into", "postgres"])
        .run()
        .assert_code(2)
        .assert_says("cannot be replaced");
    let disconnect = ["restore", "latest", "--disconnect"];
    Pgark::new(disconnect)
        .server(&stage.server)
        .store(stage.store.path())
        .run()
        .assert_code(2);
    stage.sql("CREATE ROLE small LOGIN CREATEDB PASSWORD 'sup3r secret'");
    stage
        .replace(&[])
        .env("DB_USER", "small")
        .run()
        .assert_code(5)
        .assert_says("role small may not rename database \"app\"")
        .assert_says("role small may not give objects to postgres");
    stage.assert_untouched();
    // Another database by the same backup.
    stage.sql("CREATE DATABASE staging");
    stage.replace(&["--into", "staging"]).run().assert_code(0);
    assert_same(
        "rows",
        &stage.digest,
        &table_digest(&stage.server, "staging"),
    );
    assert_eq!(stage.named("staging\\_replaced\\_%").len(), 1);
}

#[test]
fn a_legacy_backup_replaces_too() {
    let stage = Stage::plain(15);
    let dump =
        crate::support::run(stage.server.client("pg_dump").args(["-d", "app"])).assert_code(0);
    let name = "backup_app_20240101_000000.sql";
    std::fs::write(stage.store.join(name), dump.stdout).unwrap();
    let sum = format!("gzip {name} && sha256sum {name}.gz > {name}.gz.sha256");
    crate::support::run(
        std::process::Command::new("sh")
            .args(["-c", &sum])
            .current_dir(stage.store.path()),
    )
    .assert_code(0);
    stage.sql("ALTER DATABASE app CONNECTION LIMIT 9");
    stage.server.psql("app", "DELETE FROM item");
    let args = ["restore", "backup_app_20240101_000000", "--replace", "-q"];
    Pgark::new(args)
        .server(&stage.server)
        .store(stage.store.path())
        .run()
        .assert_code(0);
    assert_eq!(stage.server.psql("app", "SELECT count(*) FROM item"), "5");
    assert_eq!(
        stage.sql("SELECT datconnlimit, datallowconn FROM pg_database WHERE datname = 'app'"),
        "9|t"
    );
}
