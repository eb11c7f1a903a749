//! Every kind of object comes back, with owner, rights and comment, in every way of restoring.

use crate::round_trip::assert_holds_all_entries;
use crate::support::{Server, Setup, TempDir, assert_same, database_properties, toc};
use crate::trip::{assert_restores, backup, contents, plain_copy, psql_restore};

const SQL: &str = include_str!("kinds/kinds.sql");
/// What PostgreSQL 18 brought, and what 19 did.
const SQL_18: &str = include_str!("kinds/since_18.sql");
const SQL_19: &str = include_str!("kinds/since_19.sql");

/// The PostgreSQL 16 of the tests has no contrib, ICU and libxml: what stands for their objects.
const BARE: [(&str, &str); 10] = [
    (
        "CREATE EXTENSION hstore; CREATE EXTENSION citext;",
        "CREATE DOMAIN hstore AS text; CREATE DOMAIN citext AS text;",
    ),
    (
        "CREATE EXTENSION postgres_fdw; CREATE EXTENSION file_fdw;",
        "CREATE FOREIGN DATA WRAPPER postgres_fdw; CREATE FOREIGN DATA WRAPPER file_fdw;",
    ),
    (
        "CREATE EXTENSION pg_trgm SCHEMA trgm; CREATE EXTENSION unaccent;",
        "",
    ),
    ("COMMENT ON EXTENSION hstore", "COMMENT ON DOMAIN hstore"),
    (" x xml,", " x text,"),
    ("(body trgm.gin_trgm_ops)", "(to_tsvector('simple', body))"),
    (
        "(PROVIDER = icu, LOCALE = 'de-u-co-phonebk', DETERMINISTIC = false)",
        "FROM \"POSIX\"",
    ),
    ("CREATE TRANSFORM FOR hstore", "CREATE TRANSFORM FOR pair"),
    ("(column_name 'x')", "(a 'x')"),
    ("(host 'nowhere', dbname 'a''b')", "(a 'a''b')"),
];

fn sql(major: u32) -> String {
    let mut sql = SQL.to_owned();
    if major == 16 {
        for (own, stand_in) in BARE {
            assert!(sql.contains(own), "{own}");
            sql = sql.replace(own, stand_in);
        }
    }
    for (since, more) in [(18, SQL_18), (19, SQL_19)] {
        if major >= since {
            // Before the settings of the database, which make later sessions read-only.
            let place = sql.find("-- The database itself").unwrap();
            sql.insert_str(place, more);
        }
    }
    sql
}

fn server(major: u32) -> Server {
    let server = Server::start_with(
        major,
        &Setup {
            settings: &["allow_in_place_tablespaces=on"],
            ..Setup::default()
        },
    );
    server.createdb("kinds");
    server.psql("kinds", &sql(major));
    server
}

fn every_kind(major: u32) {
    let server = server(major);
    let store = TempDir::new();
    let taken = backup(&server, "kinds", &store);
    assert_holds_all_entries(&server, "kinds", &taken);
    plain_copy(&server, "kinds", "plain");
    // pg_dump without -C has no properties of the database; the source has the right ones.
    let expected = [
        look(&server, "plain"),
        database_properties(&server, "kinds"),
    ]
    .join("\n");
    assert_restores(&server, store.path(), &expected, &|database| {
        [
            look(&server, database),
            database_properties(&server, database),
        ]
        .join("\n")
    });
    // The source itself, whose own settings make new sessions read-only.
    let before = [look(&server, "kinds"), toc(&server, "kinds")];
    psql_restore(&server, &taken.file, "kinds");
    assert_same(
        "rows of the source after a restore over it",
        &before[0],
        &look(&server, "kinds"),
    );
    assert_same(
        "objects of the source after a restore over it",
        &before[1],
        &toc(&server, "kinds"),
    );
}

/// The contents; rows that are spread by the hash of an enum's OID, which differs from
/// database to database, as the whole that they are.
fn look(server: &Server, database: &str) -> String {
    let spread = "SELECT m, count(*), sum(n) FROM public.by_mood GROUP BY m ORDER BY m";
    let all = contents(server, database);
    let rest = all
        .lines()
        .filter(|line| !line.starts_with("table public.by_mood_"));
    let mut rest: Vec<&str> = rest.collect();
    let spread = server.psql(database, spread);
    rest.push(&spread);
    rest.join("\n")
}

#[test]
fn every_kind_of_object_comes_back_on_15() {
    every_kind(15);
}

#[test]
fn every_kind_of_object_comes_back_on_16() {
    every_kind(16);
}

#[test]
fn every_kind_of_object_comes_back_on_17() {
    every_kind(17);
}

#[test]
fn every_kind_of_object_comes_back_on_18() {
    every_kind(18);
}

#[test]
fn every_kind_of_object_comes_back_on_19() {
    every_kind(19);
}

/// Configuration tables of an extension: some of the rows, in the order of foreign keys.
#[test]
fn configuration_tables_of_an_extension_keep_the_users_rows() {
    let files = TempDir::new();
    let extension = files.join("extension");
    std::fs::create_dir(&extension).unwrap();
    std::fs::write(
        extension.join("configured.control"),
        "default_version = '1'\nschema = public\n",
    )
    .unwrap();
    std::fs::write(
        extension.join("configured--1.sql"),
        "CREATE TABLE a_child (id int PRIMARY KEY, parent int);
         CREATE TABLE b_parent (id serial PRIMARY KEY, own bool DEFAULT true);
         ALTER TABLE a_child ADD FOREIGN KEY (parent) REFERENCES b_parent;
         CREATE TABLE not_configured (a int);
         INSERT INTO b_parent (own) VALUES (false), (false);
         SELECT pg_extension_config_dump('a_child', '');
         SELECT pg_extension_config_dump('b_parent', 'WHERE own ORDER BY id');
         SELECT pg_extension_config_dump('b_parent_id_seq', '');",
    )
    .unwrap();
    let path = format!("extension_control_path={}:$system", files.path().display());
    let setup = Setup {
        settings: &[&path],
        ..Setup::default()
    };
    let server = Server::start_with(18, &setup);
    server.createdb("app");
    server.psql(
        "app",
        "CREATE EXTENSION configured; INSERT INTO b_parent DEFAULT VALUES; INSERT INTO b_parent DEFAULT VALUES;
         INSERT INTO a_child VALUES (1, 3), (2, 4); INSERT INTO not_configured VALUES (1)",
    );
    let store = TempDir::new();
    let taken = backup(&server, "app", &store);
    let rows = [
        ("public.a_child".to_owned(), 2),
        ("public.b_parent".to_owned(), 2),
    ];
    assert_eq!(taken.tables(), rows);
    assert_holds_all_entries(&server, "app", &taken);
    plain_copy(&server, "app", "plain");
    let expected = contents(&server, "plain");
    assert_restores(&server, store.path(), &expected, &|database| {
        contents(&server, database)
    });
    let look = "SELECT array_agg(id ORDER BY id), (SELECT count(*) FROM a_child), nextval('b_parent_id_seq') FROM b_parent";
    assert_eq!(server.psql("by_pgark", look), "{1,2,3,4}|2|5");
}
