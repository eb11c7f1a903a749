//! Any data: one table that is nearly all of it, thousands of tables, rows of half a gigabyte and
//! more, locales of every provider.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::{Pgark, Running, Server, Setup, TempDir, assert_same, table_digest};
use crate::trip::{backup, backup_command, contents, only_dump, psql_restore, restore_command};

/// Its rows are in TOAST, which splits by the pages of the table itself.
#[test]
fn a_table_that_is_nearly_the_whole_database_is_copied_by_all_connections() {
    let setup = Setup {
        settings: &["log_statement=all", "log_line_prefix=[%p] "],
        ..Setup::default()
    };
    let server = Server::start_with(17, &setup);
    server.createdb("app");
    server.psql(
        "app",
        "CREATE TABLE wide (id int, note text, body text); ALTER TABLE wide ALTER body SET STORAGE EXTERNAL;
         INSERT INTO wide SELECT i, repeat('n', 200), repeat(md5(i::text), 300) FROM generate_series(1, 9000) i;
         CREATE TABLE small AS SELECT generate_series(1, 1000) AS i",
    );
    let store = TempDir::new();
    backup_command(&server, "app", store.path())
        .env("BACKUP_COMPRESSION", "zstd:1")
        .run()
        .assert_code(0);
    let log = server.log();
    let pieces: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("FROM ONLY public.wide WHERE ctid >="))
        .collect();
    let processes: BTreeSet<&str> = pieces
        .iter()
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert!(pieces.len() >= 4 && processes.len() == 2, "{pieces:#?}");
    restore_command(&server, store.path(), "back")
        .run()
        .assert_code(0);
    assert_same(
        "rows",
        &table_digest(&server, "app"),
        &table_digest(&server, "back"),
    );
}

/// Statements that the server got from a backup of so many tables and partitions.
#[test]
fn a_table_costs_one_statement_and_a_partition_no_more() {
    const TABLES: usize = 600;
    let setup = Setup {
        settings: &[
            "log_statement=all",
            "log_line_prefix=%a|",
            "max_locks_per_transaction=256",
        ],
        ..Setup::default()
    };
    let server = Server::start_with(17, &setup);
    server.createdb("app");
    server.psql(
        "app",
        "CREATE TABLE p (a int PRIMARY KEY, t text) PARTITION BY LIST (a);
         DO $$ BEGIN FOR i IN 1..300 LOOP
           EXECUTE format('CREATE TABLE p%s PARTITION OF p FOR VALUES IN (%s)', i, i);
           EXECUTE format('CREATE TABLE t%s (a int PRIMARY KEY, b text); INSERT INTO t%s VALUES (%s, ''x'')', i, i, i);
         END LOOP; END $$; INSERT INTO p SELECT i, 'x' FROM generate_series(1, 300) i",
    );
    let store = TempDir::new();
    let taken = backup(&server, "app", &store);
    assert_eq!(taken.tables().len(), TABLES);
    let log = server.log();
    let ours: Vec<&str> = log
        .lines()
        .filter(|line| line.starts_with("pgark|LOG:  statement: "))
        .collect();
    let copies = ours
        .iter()
        .filter(|line| line.contains("LOCK TABLE ONLY public.") && line.contains(" NOWAIT;"))
        .count();
    // Each lock and COPY is one message; what is left does not grow with the tables.
    assert_eq!(copies, TABLES);
    assert!(
        ours.len() - copies < 60,
        "{} statements beside",
        ours.len() - copies
    );
}

/// The most memory that a process held, in bytes, seen until it ended.
fn peak_bytes(mut running: Running) -> (u64, crate::support::Run) {
    let status = format!("/proc/{}/status", running.pid());
    let mut peak = 0;
    while running.is_alive() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        peak = peak.max(kib.unwrap_or(0) << 10);
        std::thread::sleep(Duration::from_millis(5));
    }
    (peak, running.wait())
}

#[test]
fn a_row_of_500_mb_costs_memory_of_its_own_size_and_comes_back() {
    const ROW: u64 = 500_000_000;
    let server = Server::start(17);
    server.createdb("app");
    // Beyond the window of either codec, so that the frame stays large.
    server.psql(
        "app",
        "CREATE TABLE t (id int PRIMARY KEY, body text); ALTER TABLE t ALTER body SET STORAGE EXTERNAL;
         INSERT INTO t SELECT 1, repeat(string_agg(md5(i::text), ''), 500) FROM generate_series(1, 31250) i;
         INSERT INTO t SELECT i, 'small' FROM generate_series(2, 1000) i",
    );
    let store = TempDir::new();
    let (dump, done) = peak_bytes(
        backup_command(&server, "app", store.path())
            .env("BACKUP_COMPRESSION", "zstd:1")
            .spawn(),
    );
    done.assert_code(0);
    let (restore, done) = peak_bytes(restore_command(&server, store.path(), "back").spawn());
    done.assert_code(0);
    let (verify, done) = peak_bytes(Pgark::new(["verify"]).store(store.path()).spawn());
    done.assert_code(0);
    let look = "SELECT count(*), sum(length(body)), md5(max(body) FILTER (WHERE id = 1)) FROM t";
    assert_eq!(server.psql("app", look), server.psql("back", look));
    eprintln!("peaks for a row of {ROW}: dump {dump}, restore {restore}, verify {verify}");
    for (what, peak) in [("dump", dump), ("restore", restore), ("verify", verify)] {
        assert!(
            peak > ROW,
            "{what} cannot have held the row in {peak} bytes"
        );
        assert!(peak < 3 * ROW, "{what} held {peak} bytes");
    }
}

#[test]
fn a_row_of_more_than_1_gb_as_text_is_named_by_its_key() {
    let server = Server::start(17);
    server.createdb("app");
    server.psql(
        "app",
        "SET default_toast_compression = lz4; CREATE TABLE \"big; ones\" (part text, id int, body bytea, PRIMARY KEY (part, id));
         INSERT INTO \"big; ones\" SELECT 'a', i, 'small' FROM generate_series(1, 100) i;
         INSERT INTO \"big; ones\" VALUES ('b', 7, convert_to(repeat('x', 600000000), 'UTF8'))",
    );
    let store = TempDir::new();
    let done = backup_command(&server, "app", store.path())
        .run()
        .assert_code(1);
    done.assert_says("public.big; ones")
        .assert_says("the longest row has some 1200 MB as text")
        .assert_says("part=b, id=7")
        .assert_says("hint:");
    assert!(only_dump(store.path()).is_none());
}

#[test]
fn databases_of_every_locale_provider_come_back_with_it() {
    let server = Server::start(18);
    for (name, locale) in [
        (
            "icu",
            "LOCALE_PROVIDER icu ICU_LOCALE 'de-u-co-phonebk' ICU_RULES '&a < g' LOCALE 'C'",
        ),
        (
            "builtin",
            "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8' LOCALE 'C'",
        ),
        (
            "unicode",
            "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'PG_UNICODE_FAST' LOCALE 'C'",
        ),
    ] {
        server.psql(
            "postgres",
            &format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' {locale}"),
        );
        server.psql(name, "CREATE TABLE t (x text PRIMARY KEY); INSERT INTO t VALUES ('Göbel'), ('goethe'), ('ﬁ'), ('ß'), ('g')");
        let store = TempDir::new();
        let taken = backup(&server, name, &store);
        let into = format!("{name}_back");
        restore_command(&server, store.path(), &into)
            .run()
            .assert_code(0);
        let look = |database: &str| {
            [
                contents(&server, database),
                server.psql(database, "SELECT datlocprovider, datcollate, datctype, datlocale, daticurules FROM pg_database WHERE datname = current_database(); SELECT upper(x) FROM t ORDER BY x"),
            ]
            .join("\n")
        };
        assert_same(name, &look(name), &look(&into));
        psql_restore(&server, &taken.file, &into);
        assert_same("over itself", &look(name), &look(&into));
    }
}
