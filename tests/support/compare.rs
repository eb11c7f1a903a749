//! Whether two databases are equal: schema, rows, sequences, large objects, properties.
//!
//! Every comparison is of two texts, so that a failure shows the lines that differ.

use super::{Server, TempDir, run};
use std::fmt::Write as _;
use std::process::Command;

/// `pg_dump --schema-only` without what differs from run to run.
pub(crate) fn dump_schema(server: &Server, database: &str) -> String {
    dump(server, database, &["--schema-only"])
}

/// The whole of `pg_dump`'s text, without what differs from run to run. Rows come in
/// physical order; [`table_digest`] compares them in any.
pub(crate) fn dump_data(server: &Server, database: &str) -> String {
    dump(server, database, &[])
}

fn dump(server: &Server, database: &str, options: &[&str]) -> String {
    let mut pg_dump = server.client("pg_dump");
    pg_dump.args(options).arg("--dbname").arg(database);
    let text = run(&mut pg_dump).assert_code(0).stdout;
    let volatile = [
        "\\restrict ",
        "\\unrestrict ",
        "-- Dumped ",
        "-- Started on ",
        "-- Completed on ",
    ];
    let mut kept = String::with_capacity(text.len());
    for line in text.lines() {
        if !volatile.iter().any(|start| line.starts_with(start)) {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

/// The table of contents of a full `pg_dump -Fc`, without the numbers that differ from
/// database to database, sorted: what a dump has to bring back.
pub(crate) fn toc(server: &Server, database: &str) -> String {
    let directory = TempDir::new();
    let archive = directory.join("archive");
    run(server
        .client("pg_dump")
        .args(["-Fc", "-Z0", "-f"])
        .arg(&archive)
        .arg("--dbname")
        .arg(database))
    .assert_code(0);
    let listed = run(server.client("pg_restore").arg("-l").arg(&archive)).assert_code(0);
    let mut entries: Vec<&str> = listed
        .stdout
        .lines()
        .filter(|line| !line.starts_with(';'))
        // "3456; 1259 16389 TABLE public t owner": dump id, catalog, oid.
        .filter_map(|line| line.splitn(4, ' ').nth(3))
        .collect();
    entries.sort_unstable();
    entries.join("\n")
}

/// What belongs to the database itself: owner, encoding, locale, settings, rights, comment.
pub(crate) fn database_properties(server: &Server, database: &str) -> String {
    let properties = r"
        SELECT 'owner', datdba::regrole, 'encoding', pg_encoding_to_char(encoding), 'locale', datcollate, datctype,
               'provider', datlocprovider, 'limit', datconnlimit, 'template', datistemplate,
               'comment', shobj_description(oid, 'pg_database'), 'rights',
               (SELECT array_agg(item::text ORDER BY item::text) FROM unnest(datacl) item)
        FROM pg_database WHERE datname = current_database();
        SELECT 'setting', coalesce(nullif(setrole, 0)::regrole::text, '*'), item
        FROM pg_db_role_setting, unnest(setconfig) item
        WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database()) ORDER BY 2, 3;
    ";
    server.psql(database, properties)
}

/// Count and digest of the rows of every table and materialised view in whatever order,
/// state of every sequence, and every large object with owner, rights and comment.
pub(crate) fn table_digest(server: &Server, database: &str) -> String {
    // The digest of a row is of its text, so tables without a key compare as well.
    // Without `.*` a column of the alias's name would win.
    const EACH: &str = r#"
        SET search_path = pg_catalog;
        SET row_security = off;
        SET extra_float_digits = 3;
        SET DateStyle = ISO;
        SET IntervalStyle = postgres;
        SET TimeZone = UTC;
        SET bytea_output = hex;
        SELECT format('SELECT %L, count(*), md5(string_agg(d, '''' ORDER BY d)) FROM (SELECT md5(("the row".*)::text) AS d FROM ONLY %I.%I AS "the row") AS digests',
                      format('%s %I.%I', CASE c.relkind WHEN 'm' THEN 'view' ELSE 'table' END, n.nspname, c.relname), n.nspname, c.relname)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'm') AND c.relispopulated AND c.relpersistence <> 't'
          AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
        ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C"
        \gexec
        SELECT format('SELECT %L, last_value, is_called FROM %I.%I', format('sequence %I.%I', n.nspname, c.relname), n.nspname, c.relname)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind = 'S' AND c.relpersistence <> 't'
        ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C"
        \gexec
        SELECT 'large object', oid, lomowner::regrole, md5(lo_get(oid)), obj_description(oid, 'pg_largeobject'),
               (SELECT array_agg(item::text ORDER BY item::text) FROM unnest(lomacl) item)
        FROM pg_largeobject_metadata ORDER BY oid;
    "#;
    server.psql(database, EACH)
}

/// Fails with the differing lines unless the texts are equal.
#[track_caller]
pub(crate) fn assert_same(what: &str, expected: &str, found: &str) {
    const SHOWN: usize = 60;
    if expected == found {
        return;
    }
    let directory = TempDir::new();
    for (name, text) in [("expected", expected), ("found", found)] {
        std::fs::write(directory.join(name), format!("{text}\n")).unwrap();
    }
    let mut diff = Command::new("diff");
    diff.args(["-U1", "expected", "found"]);
    let difference = run(diff.current_dir(directory.path())).stdout;
    let mut shown = String::new();
    for line in difference.lines().take(SHOWN) {
        let _ = writeln!(shown, "{line}");
    }
    let more = difference.lines().count().saturating_sub(SHOWN);
    panic!("{what} differ:\n{shown}({more} more lines of difference)");
}
