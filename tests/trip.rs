//! What tests of whole round trips share: take a backup, restore it in each way, compare.

use crate::support::{Pgark, Run, Server, TempDir, assert_same, dump_schema, run, table_digest};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A backup that pgark took.
pub(crate) struct Taken {
    pub(crate) file: PathBuf,
    pub(crate) manifest: Value,
}

impl Taken {
    /// The lines of its index: one frame each.
    pub(crate) fn frames(&self) -> Vec<Value> {
        let mut index = self.file.clone().into_os_string();
        index.push(".idx");
        let text = run(Command::new("zstd").arg("-dcq").arg("--").arg(index)).assert_code(0);
        let lines = text
            .stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        lines
            .filter(|line: &Value| line.get("o").is_some())
            .collect()
    }

    /// Every object of the dump's table of contents: `(type, name)`, sorted.
    pub(crate) fn entries(&self) -> Vec<(String, String)> {
        let mut entries = Vec::new();
        for frame in self.frames() {
            for part in frame["m"]["parts"].as_array().into_iter().flatten() {
                if part["role"] == "entry" {
                    let text = |key: &str| part[key].as_str().unwrap_or_default().to_owned();
                    entries.push((text("desc"), text("name")));
                }
            }
        }
        entries.sort_unstable();
        entries
    }

    /// `schema.name` and rows of each table, sorted.
    pub(crate) fn tables(&self) -> Vec<(String, u64)> {
        let tables = self.manifest["tables"].as_array().unwrap().iter();
        let mut tables: Vec<_> = tables
            .map(|table| {
                let text = |key: &str| table[key].as_str().unwrap();
                (
                    format!("{}.{}", text("schema"), text("name")),
                    table["rows"].as_u64().unwrap(),
                )
            })
            .collect();
        tables.sort_unstable();
        tables
    }
}

/// `pgark backup` of one database, as superuser.
pub(crate) fn backup_command(server: &Server, database: &str, store: &Path) -> Pgark {
    Pgark::new(["backup", "--database", database, "--jobs", "2"])
        .server(server)
        .store(store)
}

/// Takes a backup that must succeed, into a store of its own.
#[track_caller]
pub(crate) fn backup(server: &Server, database: &str, store: &TempDir) -> Taken {
    backup_command(server, database, store.path())
        .run()
        .assert_code(0);
    only_dump(store.path()).expect("a committed backup")
}

/// The one dump of a store that is committed, or none.
#[track_caller]
pub(crate) fn only_dump(store: &Path) -> Option<Taken> {
    let mut found = None;
    for entry in std::fs::read_dir(store).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("backup_") && name.ends_with(".json") {
            assert!(found.is_none(), "several backups in {}", store.display());
            let json = std::fs::read(entry.path()).unwrap();
            found = Some(Taken {
                file: store.join(name.trim_end_matches(".json")),
                manifest: serde_json::from_slice(&json).unwrap(),
            });
        }
    }
    found
}

/// `pgark restore latest --into` of the store's newest backup.
pub(crate) fn restore_command(server: &Server, store: &Path, into: &str) -> Pgark {
    Pgark::new(["restore", "latest", "--into", into, "--jobs", "2"])
        .server(server)
        .store(store)
}

/// What everybody measures by: `pg_dump | psql` into a new database.
#[track_caller]
pub(crate) fn plain_copy(server: &Server, from: &str, into: &str) {
    server.createdb(into);
    let mut dump = server.client("pg_dump");
    dump.arg("--dbname").arg(from).stdout(Stdio::piped());
    let mut dump = dump.spawn().unwrap();
    let mut psql = server.client("psql");
    psql.args([
        "-Xq",
        "-v",
        "ON_ERROR_STOP=1",
        "-o",
        "/dev/null",
        "-d",
        into,
    ]);
    psql.stdin(dump.stdout.take().unwrap());
    run(&mut psql).assert_code(0);
    drop(psql);
    assert!(dump.wait().unwrap().success());
}

/// `gunzip -c FILE | psql` that must end well.
#[track_caller]
pub(crate) fn psql_restore(server: &Server, file: &Path, into: &str) -> Run {
    server.psql_file(into, file).assert_code(0)
}

/// Schema text and digests of all rows, sequences and large objects.
pub(crate) fn contents(server: &Server, database: &str) -> String {
    [
        dump_schema(server, database),
        table_digest(server, database),
    ]
    .join("\n")
}

/// Restores in each way, into databases named after `name`, and compares with `expected`:
/// by psql into an empty database, over that one again, and by `pgark restore`.
#[track_caller]
pub(crate) fn assert_restores(
    server: &Server,
    store: &Path,
    expected: &str,
    look: &dyn Fn(&str) -> String,
) {
    let taken = only_dump(store).unwrap();
    server.createdb("by_psql");
    psql_restore(server, &taken.file, "by_psql");
    assert_same("psql into an empty database", expected, &look("by_psql"));
    psql_restore(server, &taken.file, "by_psql");
    assert_same("psql over the database itself", expected, &look("by_psql"));
    restore_command(server, store, "by_pgark")
        .run()
        .assert_code(0);
    assert_same("pgark restore", expected, &look("by_pgark"));
}
