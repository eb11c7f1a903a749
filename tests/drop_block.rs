//! A dump restored over a database removes what it brings back and nothing else; a cut dump
//! is refused.

use crate::support::{Server, Setup, TempDir, assert_same};
use crate::trip::{backup, contents, psql_restore};
use std::path::Path;

const OURS: &str = "
    CREATE SCHEMA app;
    CREATE TYPE app.mood AS ENUM ('sad', 'glad');
    CREATE SEQUENCE app.counter;
    CREATE TABLE app.ours (id int PRIMARY KEY, n int); INSERT INTO app.ours VALUES (1, 2), (3, 4);
    CREATE TABLE app.parted (a int) PARTITION BY RANGE (a);
    CREATE TABLE app.part PARTITION OF app.parted FOR VALUES FROM (0) TO (10); INSERT INTO app.parted VALUES (5);
    CREATE VIEW app.our_view AS SELECT * FROM app.ours;
    CREATE FUNCTION app.our_function(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1';
    SELECT lo_from_bytea(4711, 'ours');
";

#[test]
fn what_was_made_later_and_depends_on_ours_is_named_before_anything_is_dropped() {
    let later = [
        (
            "VIEW public.later_view AS SELECT id FROM app.ours",
            "later_view",
        ),
        (
            "VIEW public.later_view AS SELECT id FROM app.our_view",
            "later_view",
        ),
        (
            "MATERIALIZED VIEW public.later_view AS SELECT id FROM app.ours",
            "later_view",
        ),
        (
            "TABLE app.later_part PARTITION OF app.parted FOR VALUES FROM (10) TO (20)",
            "later_part",
        ),
        (
            "TABLE public.later_child () INHERITS (app.ours)",
            "later_child",
        ),
        (
            "TABLE public.later_refers (id int REFERENCES app.ours)",
            "later_refers",
        ),
        ("TABLE public.later_typed (m app.mood)", "later_typed"),
        ("TABLE public.later_row (r app.ours)", "later_row"),
        (
            "TABLE public.later_default (id int DEFAULT nextval('app.counter'))",
            "later_default",
        ),
        (
            "TABLE public.later_check (id int CHECK (app.our_function(id) > 0))",
            "later_check",
        ),
        (
            "PUBLICATION later_publication FOR TABLE app.ours",
            "later_publication",
        ),
        ("PUBLICATION later_publication FOR TABLES IN SCHEMA app", ""),
        (
            "FUNCTION public.later_body() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT n FROM app.ours; END",
            "later_body",
        ),
        (
            "FUNCTION public.later_result() RETURNS SETOF app.ours LANGUAGE sql AS 'SELECT 1, 2'",
            "later_result",
        ),
    ];
    let server = Server::start(17);
    server.createdb("app");
    server.psql("app", OURS);
    let store = TempDir::new();
    let taken = backup(&server, "app", &store);
    for (later, name) in later {
        server.psql("app", &format!("CREATE {later}"));
        let before = contents(&server, "app");
        let done = server.psql_file("app", &taken.file);
        if name.is_empty() {
            // A publication of a whole schema does not stand in the way, and stays.
            done.assert_code(0);
        } else {
            done.assert_code(3)
                .assert_says("nothing was dropped")
                .assert_says(name);
        }
        assert_same(later, &before, &contents(&server, "app"));
        let kind = later.split(" public.").next().unwrap();
        let kind = kind.split(" app.").next().unwrap();
        let kind = kind.split(" later_").next().unwrap();
        let schema = if later.contains(" app.later_") {
            "app."
        } else {
            ""
        };
        let name = if name.is_empty() {
            "later_publication"
        } else {
            name
        };
        server.psql("app", &format!("DROP {kind} {schema}{name}"));
    }
    psql_restore(&server, &taken.file, "app");
}

/// Renamed since the dump, a table keeps the names of its indexes and sequences: those that
/// the dump wants back.
#[test]
fn what_belongs_to_a_table_renamed_since_is_named_before_anything_is_dropped() {
    let server = Server::start(17);
    let cases = [
        (
            "id int PRIMARY KEY",
            "index public.orders_pkey of constraint",
        ),
        ("id int UNIQUE", "index public.orders_id_key of constraint"),
        (
            "id int, EXCLUDE (id WITH =)",
            "index public.orders_id_excl of constraint",
        ),
        ("id serial", "sequence public.orders_id_seq of column id"),
        (
            "id int GENERATED ALWAYS AS IDENTITY",
            "sequence public.orders_id_seq of column id",
        ),
    ];
    for (i, (columns, name)) in cases.iter().enumerate() {
        let database = format!("app{i}");
        server.createdb(&database);
        server.psql(&database, &format!("CREATE TABLE orders ({columns})"));
        let store = TempDir::new();
        let taken = backup(&server, &database, &store);
        server.psql(
            &database,
            "ALTER TABLE orders RENAME TO orders_old; CREATE TABLE orders (id int)",
        );
        let before = contents(&server, &database);
        server
            .psql_file(&database, &taken.file)
            .assert_code(3)
            .assert_says("nothing was dropped")
            .assert_says(name)
            .assert_says("orders_old");
        assert_same(columns, &before, &contents(&server, &database));
        server.psql(&database, "DROP TABLE orders_old");
        psql_restore(&server, &taken.file, &database);
    }
}

#[test]
fn what_is_not_of_the_dump_survives_a_restore_over_the_database() {
    let server = Server::start(17);
    server.createdb("app");
    server.psql("app", OURS);
    let store = TempDir::new();
    let taken = backup(&server, "app", &store);
    let before = contents(&server, "app");
    server.psql(
        "app",
        "CREATE TABLE app.unrelated AS SELECT 7 AS a; CREATE SEQUENCE app.unrelated_sequence;
         CREATE FUNCTION app.unrelated() RETURNS int LANGUAGE sql AS 'SELECT 1'; SELECT lo_from_bytea(815, 'theirs');
         DROP TABLE app.ours CASCADE; UPDATE app.parted SET a = 6; SELECT lo_put(4711, 0, 'lost'); DROP FUNCTION app.our_function",
    );
    psql_restore(&server, &taken.file, "app");
    let unrelated = "SELECT a, app.unrelated(), (SELECT last_value FROM app.unrelated_sequence), lo_get(815) = 'theirs' FROM app.unrelated";
    assert_eq!(server.psql("app", unrelated), "7|1|1|t");
    server.psql(
        "app",
        "DROP TABLE app.unrelated; DROP SEQUENCE app.unrelated_sequence; DROP FUNCTION app.unrelated; SELECT lo_unlink(815)",
    );
    assert_same(
        "what the dump brought back",
        &before,
        &contents(&server, "app"),
    );
}

/// DROP SUBSCRIPTION drops the slot on the publisher, unless it is cut off from it first.
#[test]
fn a_restore_over_a_subscription_leaves_the_publishers_slot() {
    let setup = Setup {
        settings: &["wal_level=logical"],
        ..Setup::default()
    };
    let server = Server::start_with(17, &setup);
    server.createdb("publisher");
    server.psql(
        "publisher",
        "CREATE TABLE t (a int); CREATE PUBLICATION p FOR TABLE t",
    );
    server.psql(
        "publisher",
        "SELECT pg_create_logical_replication_slot('kept', 'pgoutput')",
    );
    server.createdb("app");
    let connection = format!(
        "host={} port={} user=postgres dbname=publisher",
        server.socket_dir().display(),
        server.port
    );
    server.psql(
        "app",
        &format!(
            "CREATE TABLE t (a int); CREATE SUBSCRIPTION s CONNECTION '{connection}' PUBLICATION p \
             WITH (create_slot = false, slot_name = 'kept', copy_data = false)"
        ),
    );
    let store = TempDir::new();
    let taken = backup(&server, "app", &store);
    psql_restore(&server, &taken.file, "app");
    let look = "SELECT subslotname, subenabled, (SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'kept') FROM pg_subscription";
    assert_eq!(server.psql("app", look), "kept|f|1");
    server.psql("app", "ALTER SUBSCRIPTION s SET (slot_name = NONE)");
}

/// It would refuse the drops half-way.
#[test]
fn an_event_trigger_of_the_target_that_refuses_ddl_does_not_stop_the_file() {
    let server = Server::start(17);
    server.createdb("app");
    server.psql("app", OURS);
    let store = TempDir::new();
    let taken = backup(&server, "app", &store);
    server.psql(
        "app",
        "CREATE FUNCTION public.refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'no DDL here'; END$$;
         CREATE EVENT TRIGGER guard ON ddl_command_start EXECUTE FUNCTION public.refuse()",
    );
    let before = contents(&server, "app");
    psql_restore(&server, &taken.file, "app");
    assert_same("the database", &before, &contents(&server, "app"));
}

#[test]
fn a_dump_cut_at_any_border_or_anywhere_else_is_refused_by_psql() {
    let server = Server::start(15);
    server.createdb("app");
    server.psql("app", OURS);
    server.psql(
        "app",
        "CREATE TABLE wide AS SELECT i, repeat(md5(i::text), 8) FROM generate_series(1, 30000) i;
         CREATE TABLE other AS SELECT i FROM generate_series(1, 300000) i; CREATE INDEX ON wide (i)",
    );
    let store = TempDir::new();
    let taken = backup(&server, "app", &store);
    let whole = std::fs::read(&taken.file).unwrap();
    let borders: Vec<usize> = taken
        .frames()
        .iter()
        .map(|frame| usize::try_from(frame["o"].as_u64().unwrap()).unwrap())
        .collect();
    assert!(borders.len() > 6, "{} frames", borders.len());
    let last = *borders.last().unwrap();
    let mut state = 88_172_645_463_325_252_u64;
    // Beyond the middle of the last member a cut may lose no text at all, only its checksum.
    let anywhere = (0..12).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state).unwrap() % (last + (whole.len() - last) / 2)
    });
    let cuts: Vec<usize> = borders[1..].iter().copied().chain(anywhere).collect();
    server.createdb("target");
    let directory = TempDir::new();
    for cut in cuts {
        let file = directory.join("cut.sql.gz");
        std::fs::write(&file, &whole[..cut]).unwrap();
        if cut > 30 {
            assert_refused(&server, &file, cut);
        }
    }
    psql_restore(&server, &taken.file, "target");
}

#[track_caller]
fn assert_refused(server: &Server, file: &Path, cut: usize) {
    let done = server.psql_file("target", file);
    assert_ne!(done.code, 0, "psql accepts a dump cut at byte {cut}");
}

/// More than the lock table holds at once.
#[test]
fn thousands_of_partitions_are_restored_over_themselves() {
    let server = Server::start(17);
    server.createdb("app");
    server.psql(
        "app",
        "CREATE TABLE p (a int PRIMARY KEY, t text) PARTITION BY LIST (a);
         DO $$ BEGIN FOR i IN 1..2500 LOOP EXECUTE format('CREATE TABLE p%s PARTITION OF p FOR VALUES IN (%s)', i, i);
           IF i % 100 = 0 THEN COMMIT; END IF; END LOOP; END $$; INSERT INTO p SELECT i, 'x' FROM generate_series(1, 2500) i",
    );
    let store = TempDir::new();
    let taken = backup(&server, "app", &store);
    psql_restore(&server, &taken.file, "app");
    assert_eq!(
        server.psql("app", "SELECT count(*), sum(a) FROM p"),
        "2500|3126250"
    );
}

#[test]
fn default_privileges_that_widen_rights_are_told() {
    let server = Server::start(17);
    server.createdb("app");
    server.psql(
        "app",
        "CREATE ROLE reader; CREATE TABLE secret (a int); ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO reader",
    );
    let store = TempDir::new();
    let taken = backup(&server, "app", &store);
    let done = server.psql_file("app", &taken.file).assert_code(0);
    done.assert_says("default privileges of postgres in this database apply");
}
