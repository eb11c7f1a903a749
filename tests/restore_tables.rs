//! `pgark restore --table`: only what was named, with what belongs to it, and nothing half.

use crate::support::{Pgark, Server, TempDir, assert_same, table_digest};
use crate::trip::{Taken, backup, only_dump};
use serde_json::Value;

const SQL: &str = "
    CREATE SCHEMA shop; CREATE TYPE shop.kind AS ENUM ('a', 'b');
    CREATE FUNCTION shop.stamp() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.note := upper(NEW.note); RETURN NEW; END';
    CREATE TABLE shop.item (id serial PRIMARY KEY, kind shop.kind DEFAULT 'a', label text UNIQUE CHECK (label <> ''));
    INSERT INTO shop.item (label) SELECT md5(i::text) FROM generate_series(1, 500) i;
    CREATE TABLE shop.line (id bigint GENERATED ALWAYS AS IDENTITY, item int REFERENCES shop.item, note text);
    INSERT INTO shop.line (item, note) SELECT i, repeat('x', i % 50) FROM generate_series(1, 500) i;
    CREATE TRIGGER stamp BEFORE INSERT ON shop.line FOR EACH ROW EXECUTE FUNCTION shop.stamp();
    CREATE INDEX line_item ON shop.line (item); COMMENT ON COLUMN shop.line.note IS 'said'; GRANT SELECT ON shop.line TO PUBLIC;
    ALTER TABLE shop.line ENABLE ROW LEVEL SECURITY; CREATE POLICY seen ON shop.line USING (note <> 'secret');
    CREATE TABLE day (at date, n int) PARTITION BY RANGE (at);
    CREATE TABLE day_1 PARTITION OF day FOR VALUES FROM ('2025-01-01') TO ('2025-01-02');
    CREATE TABLE day_2 PARTITION OF day FOR VALUES FROM ('2025-01-02') TO ('2025-01-03');
    CREATE INDEX ON day (n); ALTER TABLE day ADD PRIMARY KEY (at, n);
    INSERT INTO day SELECT '2025-01-01'::date + i % 2, i FROM generate_series(1, 100) i;
    CREATE TABLE bulk AS SELECT i, repeat(md5(i::text), 8) AS filler FROM generate_series(1, 60000) i;
    CREATE TABLE \"Odd name\" (\"A b\" int); INSERT INTO \"Odd name\" VALUES (7);
    CREATE VIEW shop.seen AS SELECT * FROM shop.item;
    SELECT lo_from_bytea(0, 'large');
";

struct Stage {
    server: Server,
    store: TempDir,
    taken: Taken,
}

impl Stage {
    fn new(major: u32) -> Stage {
        let server = Server::start(major);
        server.createdb("app");
        server.psql("app", SQL);
        let store = TempDir::new();
        let taken = backup(&server, "app", &store);
        Stage {
            server,
            store,
            taken,
        }
    }

    fn restore(&self, args: &[&str]) -> Pgark {
        let args = ["restore", "latest", "-q", "--jobs", "2"]
            .iter()
            .chain(args);
        Pgark::new(args)
            .server(&self.server)
            .store(self.store.path())
    }

    fn sql(&self, database: &str, sql: &str) -> String {
        self.server.psql(database, sql)
    }

    /// The lines of a digest of one database that are about these tables and sequences.
    fn digest_of(&self, database: &str, names: &[&str]) -> String {
        let all = table_digest(&self.server, database);
        let is_it = |line: &&str| names.iter().any(|name| line.contains(name));
        all.lines().filter(is_it).collect::<Vec<_>>().join("\n")
    }
}

/// `\d`, as text: columns, defaults, indexes, constraints, triggers, policies.
fn described(server: &Server, database: &str, table: &str) -> String {
    let mut psql = server.client("psql");
    psql.args([
        "-Xq",
        "-d",
        database,
        "-c",
        &format!("\\d+ {table}"),
        "-c",
        &format!("\\dp {table}"),
    ]);
    crate::support::run(&mut psql).assert_code(0).stdout
}

#[test]
fn one_table_comes_with_all_that_is_its_own_into_a_new_database() {
    let stage = Stage::new(17);
    let done = stage
        .restore(&["--table", "line", "--table", "shop.item", "--into", "two"])
        .run()
        .assert_code(0);
    assert!(
        done.stdout.contains("2 tables, 1000 rows"),
        "{}",
        done.stdout
    );
    for table in ["shop.line", "shop.item"] {
        assert_same(
            table,
            &described(&stage.server, "app", table),
            &described(&stage.server, "two", table),
        );
    }
    let names = ["shop.line", "shop.item"];
    assert_same(
        "rows and sequences",
        &stage.digest_of("app", &names),
        &stage.digest_of("two", &names),
    );
    // Not a thing more: no other table, no view, no large object.
    let relations = "SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class WHERE relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace) AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND oid >= 16384";
    assert_eq!(
        stage.sql("two", relations),
        "item item_id_seq line line_id_seq"
    );
    assert_eq!(
        stage.sql("two", "SELECT count(*) FROM pg_largeobject_metadata"),
        "0"
    );
    // Both go on where they were.
    assert_eq!(
        stage.sql(
            "two",
            "INSERT INTO shop.item (label) VALUES ('new') RETURNING id"
        ),
        "501"
    );
    assert_eq!(
        stage.sql(
            "two",
            "INSERT INTO shop.line (item, note) VALUES (501, 'up') RETURNING id, note"
        ),
        "501|UP"
    );
}

#[test]
fn a_foreign_key_to_what_does_not_come_is_left_out_and_named() {
    let stage = Stage::new(15);
    let done = stage
        .restore(&["--table", "line", "--into", "one", "--json"])
        .run()
        .assert_code(0);
    let done =
        done.assert_says("left out: FK CONSTRAINT shop.line line_item_fkey: it needs shop.item");
    let json: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!((&json["tables"], &json["rows"]), (&1.into(), &500.into()));
    assert_eq!(
        json["left_out"][0]["what"],
        "FK CONSTRAINT shop.line line_item_fkey"
    );
    assert_eq!(
        stage.sql(
            "one",
            "SELECT count(*) FROM pg_constraint WHERE contype = 'f'"
        ),
        "0"
    );
    stage
        .restore(&["--table", "shop.item", "--into", "other"])
        .run()
        .assert_code(0)
        .assert_says("foreign keys of other tables do not come along: shop.line line_item_fkey");
}

#[test]
fn partitions_come_with_their_table_and_one_comes_alone() {
    let stage = Stage::new(17);
    stage
        .restore(&["--table", "day", "--into", "days"])
        .run()
        .assert_code(0);
    assert_same(
        "the tree",
        &described(&stage.server, "app", "day"),
        &described(&stage.server, "days", "day"),
    );
    let names = ["public.day"];
    assert_same(
        "its rows",
        &stage.digest_of("app", &names),
        &stage.digest_of("days", &names),
    );
    stage
        .restore(&["--table", "day_2", "--into", "one"])
        .run()
        .assert_code(0)
        .assert_says("left out: TABLE ATTACH public.day_2");
    assert_eq!(stage.sql("one", "SELECT count(*) FROM day_2"), "50");
    assert_eq!(
        stage.sql(
            "one",
            "SELECT count(*) FROM pg_index WHERE indrelid = 'day_2'::regclass AND indisvalid"
        ),
        "2"
    );
}

/// Every other frame is overwritten with rubbish: whoever read one would find it.
#[test]
fn only_the_frames_of_the_table_are_read() {
    use std::io::{Seek, SeekFrom, Write};
    let stage = Stage::new(15);
    let plan = stage
        .restore(&["--table", "line", "--dry-run", "--json"])
        .run()
        .assert_code(0);
    let plan: Value = serde_json::from_str(&plan.stdout).unwrap();
    let tables = stage.taken.manifest["tables"].as_array().unwrap();
    let line = tables.iter().find(|table| table["name"] == "line").unwrap();
    let mut file = std::fs::File::options()
        .write(true)
        .open(&stage.taken.file)
        .unwrap();
    let (mut spoilt, mut whole, mut needed) = (0, 0, 0);
    for frame in stage.taken.frames() {
        let (offset, bytes) = (frame["o"].as_u64().unwrap(), frame["n"].as_u64().unwrap());
        whole += bytes;
        if frame["m"]["k"] == "sql" || frame["m"]["id"] == line["id"] {
            needed += bytes;
            continue;
        }
        spoilt += bytes;
        file.seek(SeekFrom::Start(offset)).unwrap();
        file.write_all(&vec![0x5a; usize::try_from(bytes).unwrap()])
            .unwrap();
    }
    assert!(
        spoilt > 9 * needed,
        "{spoilt} of {whole} bytes are of others"
    );
    assert_eq!(plan["bytes_to_read"], needed);
    let done = stage
        .restore(&["--table", "line", "--into", "one", "--json"])
        .run()
        .assert_code(0);
    let json: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(json["bytes_read"], needed);
    assert_eq!(stage.sql("one", "SELECT count(*) FROM shop.line"), "500");
    // The rubbish is real.
    stage
        .restore(&["--into", "all"])
        .run()
        .assert_code(4)
        .assert_says("damaged at byte");
}

#[test]
fn a_lost_table_comes_back_beside_the_others() {
    let stage = Stage::new(17);
    let before = described(&stage.server, "app", "shop.line");
    let digest = table_digest(&stage.server, "app");
    // What exists is not given the backup's rights and comments again.
    stage.sql("app", "DROP TABLE shop.line; COMMENT ON SCHEMA shop IS 'mine'; COMMENT ON FUNCTION shop.stamp() IS 'mine'");
    let done = stage
        .restore(&["--table", "line", "--into", "app"])
        .run()
        .assert_code(0);
    let done = done.assert_says("SCHEMA shop exists already and was left as it is");
    assert!(
        done.stdout.contains("1 tables, 500 rows"),
        "{}",
        done.stdout
    );
    assert_same(
        "the table",
        &before,
        &described(&stage.server, "app", "shop.line"),
    );
    assert_same("everything", &digest, &table_digest(&stage.server, "app"));
    assert_eq!(stage.sql("app", "SELECT obj_description('shop'::regnamespace) || obj_description('shop.stamp()'::regprocedure)"), "minemine");
    assert_eq!(
        stage.sql(
            "app",
            "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND convalidated"
        ),
        "1"
    );
    assert_ne!(
        stage.sql(
            "app",
            "SELECT reltuples FROM pg_class WHERE relname = 'line'"
        ),
        "-1"
    );
    // Again it is there: refused, untouched.
    stage.sql(
        "app",
        "INSERT INTO shop.line (item, note) VALUES (1, 'newer')",
    );
    stage
        .restore(&["--table", "line", "--into", "app"])
        .run()
        .assert_code(2)
        .assert_says("shop.line exists already in database \"app\"; nothing was touched");
    assert_eq!(
        stage.sql("app", "SELECT count(*) FROM shop.line WHERE note = 'NEWER'"),
        "1"
    );
}

#[test]
fn a_foreign_key_that_the_rows_refuse_is_left_out_and_the_rest_is_there() {
    let stage = Stage::new(15);
    stage.sql(
        "app",
        "DROP TABLE shop.line; DELETE FROM shop.item WHERE id = 17",
    );
    let done = stage
        .restore(&["--table", "line", "--into", "app"])
        .run()
        .assert_code(3);
    let done = done.assert_says("the foreign key shop.line line_item_fkey was left out");
    let done = done
        .assert_says("Key (item)=(17) is not present")
        .assert_says("ALTER TABLE ONLY shop.line ADD CONSTRAINT");
    assert!(
        done.stdout.contains("1 tables, 500 rows"),
        "{}",
        done.stdout
    );
    assert_eq!(stage.sql("app", "SELECT count(*) FROM shop.line"), "500");
    assert_eq!(
        stage.sql(
            "app",
            "SELECT count(*) FROM pg_index WHERE indrelid = 'shop.line'::regclass"
        ),
        "1"
    );
    // The other end is not there at all: told, and no failure.
    stage.sql("app", "DROP TABLE shop.line; DROP TABLE shop.item CASCADE");
    let done = stage
        .restore(&["--table", "line", "--into", "app"])
        .run()
        .assert_code(0);
    done.assert_says("the foreign key shop.line line_item_fkey was left out")
        .assert_says("does not exist");
}

/// Whatever ends it: a conflict in the middle, a kill.
#[test]
fn what_fails_in_an_existing_database_leaves_nothing_of_itself() {
    let stage = Stage::new(17);
    stage.sql(
        "app",
        "DROP TABLE shop.line; CREATE SEQUENCE shop.line_id_seq",
    );
    let before = crate::trip::contents(&stage.server, "app");
    stage
        .restore(&["--table", "line", "--into", "app"])
        .run()
        .assert_code(1)
        .assert_says("cannot restore SEQUENCE shop.line_id_seq");
    assert_same(
        "after a conflict",
        &before,
        &crate::trip::contents(&stage.server, "app"),
    );
    stage.sql("app", "DROP SEQUENCE shop.line_id_seq; DROP TABLE bulk");
    let before = crate::trip::contents(&stage.server, "app");
    for signal in ["KILL", "TERM"] {
        let loading = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'app' AND query LIKE 'COPY %' AND state = 'active'";
        let code = loop {
            let mut running = stage.restore(&["--table", "bulk", "--into", "app"]).spawn();
            crate::support::until("the rows to be loaded", || {
                !running.is_alive() || stage.sql("postgres", loading) != "0"
            });
            if running.is_alive() {
                running.signal(signal);
            }
            let code = running.wait().code;
            if code != 0 {
                break code;
            }
            // It was quicker than our look: once more.
            stage.sql("app", "DROP TABLE bulk");
        };
        assert_eq!(code, if signal == "KILL" { 137 } else { 143 });
        crate::support::until("its session to end", || {
            stage.sql(
                "postgres",
                "SELECT count(*) FROM pg_stat_activity WHERE datname = 'app'",
            ) == "0"
        });
        assert_same(
            signal,
            &before,
            &crate::trip::contents(&stage.server, "app"),
        );
    }
    stage
        .restore(&["--table", "bulk", "--into", "app"])
        .run()
        .assert_code(0);
    assert_eq!(stage.sql("app", "SELECT count(*) FROM bulk"), "60000");
}

#[test]
fn a_name_that_means_no_table_or_several_is_refused_with_the_candidates() {
    let stage = Stage::new(15);
    stage.sql("app", "CREATE TABLE public.item (i int)");
    std::fs::remove_dir_all(stage.store.path()).unwrap();
    std::fs::create_dir(stage.store.path()).unwrap();
    backup(&stage.server, "app", &stage.store);
    assert!(only_dump(stage.store.path()).is_some());
    for (name, says) in [
        ("item", "could be any of public.item, shop.item"),
        ("lines", "the backup holds no table lines"),
        ("lin", "it holds shop.line"),
        ("shop.seen", "shop.seen is a view and no table"),
    ] {
        stage
            .restore(&["--table", name, "--into", "never"])
            .run()
            .assert_code(2)
            .assert_says(says);
    }
    assert_eq!(
        stage.sql(
            "postgres",
            "SELECT count(*) FROM pg_database WHERE datname = 'never'"
        ),
        "0"
    );
    for (name, into) in [
        ("\"Odd name\"", "quoted"),
        ("Odd name", "plain"),
        ("public.Odd name", "both"),
    ] {
        stage
            .restore(&["--table", name, "--into", into])
            .run()
            .assert_code(0);
        assert_eq!(stage.sql(into, "SELECT \"A b\" FROM \"Odd name\""), "7");
    }
    stage
        .restore(&["--table", "day", "--replace"])
        .run()
        .assert_code(2);
}
