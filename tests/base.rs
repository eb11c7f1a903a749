//! Base backups with the real program, judged by PostgreSQL's own: taken, verified, restored by
//! hand and by pgark, started, chained, expired.

use crate::support::{Pgark, Run, Server, Setup, TempDir, as_server_user, bin, run, until};
use serde_json::Value;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

mod elsewhere;

const SAMPLE: &str = "CREATE TABLE t AS SELECT i, md5(i::text) AS m FROM generate_series(1, 40000) i; \
    CREATE INDEX ON t (i); CHECKPOINT";
const DIGEST: &str = "SELECT count(*), md5(string_agg(m, '' ORDER BY i)) FROM t";

pub(crate) fn pgark<A: AsRef<std::ffi::OsStr>>(
    server: &Server,
    dir: &TempDir,
    args: impl IntoIterator<Item = A>,
) -> Pgark {
    Pgark::new(args)
        .server(server)
        .store(dir.path())
        .env("BACKUP_JOBS", "2")
        .env("BACKUP_RETENTION_DAYS", "36500")
}

/// `pgark backup --base` that must succeed; the id.
#[track_caller]
pub(crate) fn take(server: &Server, dir: &TempDir, more: &[&str]) -> String {
    let args = ["backup", "--base", "-q"].iter().chain(more);
    let done = pgark(server, dir, args).run().assert_code(0);
    crate::support::site::first_id(&done.stdout)
}

fn show(server: &Server, dir: &TempDir, id: &str) -> Value {
    let shown = pgark(server, dir, ["show", id, "--json"])
        .run()
        .assert_code(0);
    serde_json::from_str(&shown.stdout).unwrap()
}

/// A server on a restored directory, stopped on drop.
pub(crate) struct Copy {
    pub(crate) data: PathBuf,
    pub(crate) port: u16,
    pub(crate) major: u32,
}

impl Copy {
    pub(crate) fn start(major: u32, data: &Path) -> Copy {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let mut start = as_server_user(bin(major).join("pg_ctl"));
        let sockets = data.parent().unwrap().display();
        start
            .arg("-D")
            .arg(data)
            .arg("-l")
            .arg(data.with_extension("log"))
            .args(["-w", "-t", "60", "-o"]);
        start.arg(format!("-c port={port} -c listen_addresses= -c unix_socket_directories={sockets} -c hba_file={sockets}/hba"));
        std::fs::write(data.with_file_name("hba"), "local all all trust\n").unwrap();
        let done = run(start.arg("start"));
        let log = std::fs::read_to_string(data.with_extension("log")).unwrap_or_default();
        assert_eq!(done.code, 0, "{}\n{log}", done.stderr);
        let copy = Copy {
            data: data.to_owned(),
            port,
            major,
        };
        until("the end of recovery", || {
            copy.psql("SELECT pg_is_in_recovery()") == "f"
        });
        copy
    }

    pub(crate) fn psql(&self, sql: &str) -> String {
        let mut psql = Command::new(bin(self.major).join("psql"));
        psql.args([
            "-XqAt",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            "postgres",
            "-d",
            "postgres",
            "-c",
            sql,
        ]);
        psql.env("PGHOST", self.data.parent().unwrap())
            .env("PGPORT", self.port.to_string());
        run(&mut psql).assert_code(0).stdout.trim_end().to_owned()
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let mut stop = as_server_user(bin(self.major).join("pg_ctl"));
        run(stop
            .args(["stop", "-m", "immediate", "-w", "-D"])
            .arg(&self.data));
    }
}

/// An empty directory that belongs to the servers' user, inside one that does too.
pub(crate) fn place() -> (TempDir, PathBuf) {
    let dir = TempDir::new();
    dir.give_to_postgres();
    let data = dir.join("data");
    (dir, data)
}

#[track_caller]
fn restore(server: &Server, dir: &TempDir, id: &str, data: &Path, more: &[String]) -> Run {
    let path = data.display().to_string();
    let args = ["restore", id, "--data-dir", &path, "-q"].map(str::to_owned);
    pgark(server, dir, args.iter().chain(more)).run()
}

fn verified_by_postgres(major: u32, data: &Path) {
    let judged = run(Command::new(bin(major).join("pg_verifybackup"))
        .args(["-n", "-e"])
        .arg(data));
    judged.assert_code(0);
}

/// With standard tools only.
fn by_hand(server: &Server, folder: &Path, expected: &str) {
    let major = server.major;
    let (_keep, data) = place();
    let script = format!(
        "set -e; cd {0}; sha256sum -c --quiet SHA256SUMS; mkdir -m 700 {1}; \
         zstd -dcq base.tar.zst | tar -x -C {1}; zstd -dcq pg_wal.tar.zst | tar -x -C {1}/pg_wal; \
         cp backup_manifest {1}; chown -R --reference $(dirname {1}) {1}",
        folder.display(),
        data.display()
    );
    run(Command::new("sh").args(["-c", &script])).assert_code(0);
    let judged = run(Command::new(bin(major).join("pg_verifybackup"))
        .arg("-e")
        .arg(&data)
        .env("PATH", bin(major)));
    judged.assert_code(0);
    let copy = Copy::start(major, &data);
    assert_eq!(copy.psql(DIGEST), expected);
}

#[test]
fn a_base_backup_comes_back_by_hand_and_by_pgark() {
    for major in [15, 17, 18] {
        let server = Server::start(major);
        server.psql("postgres", SAMPLE);
        let expected = server.psql("postgres", DIGEST);
        let backups = TempDir::new();
        let id = take(&server, &backups, &[]);
        let folder = backups.join(&id);
        let manifest = show(&server, &backups, &id);
        assert_eq!(manifest["kind"], "base");
        assert_eq!(manifest["manifest"]["base"]["from_standby"], false);
        by_hand(&server, &folder, &expected);
        // By pgark.
        pgark(&server, &backups, ["verify", &id])
            .run()
            .assert_code(0);
        let (_keep, data) = place();
        restore(&server, &backups, &id, &data, &[]).assert_code(0);
        verified_by_postgres(major, &data);
        let copy = Copy::start(major, &data);
        assert_eq!(copy.psql(DIGEST), expected);
        for (name, value) in [
            ("archive_mode", "off"),
            ("max_logical_replication_workers", "0"),
            ("synchronous_standby_names", ""),
        ] {
            assert_eq!(copy.psql(&format!("SHOW {name}")), value);
        }
        let timeline = "SELECT timeline_id FROM pg_control_checkpoint()";
        copy.psql("CREATE TABLE later (); CHECKPOINT");
        assert_eq!(
            copy.psql(timeline),
            "2",
            "a copy must not go on where its model does"
        );
        if major > 15 {
            run(Command::new(bin(major).join("pg_amcheck"))
                .args(["-U", "postgres", "--install-missing", "postgres"])
                .env("PGHOST", data.parent().unwrap())
                .env("PGPORT", copy.port.to_string()))
            .assert_code(0);
        }
        // A directory that is not empty is refused and stays.
        let again = restore(&server, &backups, &id, &data, &[]).assert_code(2);
        assert!(again.stderr.contains("is not empty"));
    }
}

/// The newest comes back, by `pg_combinebackup`.
fn combined(server: &Server, backups: &TempDir, expected: &str) {
    let (_keep, data) = place();
    restore(server, backups, "latest", &data, &[]).assert_code(0);
    verified_by_postgres(server.major, &data);
    assert!(!data.join(".pgark-restore").exists());
    let copy = Copy::start(server.major, &data);
    assert_eq!(copy.psql(DIGEST), expected);
    assert_eq!(copy.psql("SELECT one FROM extra"), "1");
}

#[test]
fn a_chain_is_combined_and_its_parents_stay() {
    for major in [17, 18] {
        let server = Server::start_with(
            major,
            &Setup {
                settings: &["summarize_wal=on"],
                ..Setup::default()
            },
        );
        server.psql("postgres", SAMPLE);
        let backups = TempDir::new();
        // There is nothing to build on yet: a full one, with the reason.
        let first = take(&server, &backups, &["--incremental"]);
        let shown = show(&server, &backups, &first);
        assert!(
            shown["manifest"]["base"]["full_because"]
                .as_str()
                .unwrap()
                .contains("no good base backup")
        );
        server.psql("postgres", "UPDATE t SET m = 'second' WHERE i % 100 = 0");
        let second = take(&server, &backups, &["--incremental"]);
        server.psql(
            "postgres",
            "DELETE FROM t WHERE i % 7 = 0; CREATE TABLE extra AS SELECT 1 AS one",
        );
        let third = take(&server, &backups, &["--incremental"]);
        let expected = server.psql("postgres", DIGEST);
        assert_eq!(show(&server, &backups, &second)["parent"], first.as_str());
        let shown = show(&server, &backups, &third);
        assert_eq!(shown["parent"], second.as_str());
        let size = |id: &str| show(&server, &backups, id)["bytes"].as_u64().unwrap();
        assert!(
            size(&third) * 3 < size(&first),
            "{} of {}",
            size(&third),
            size(&first)
        );
        pgark(&server, &backups, ["verify", "--all", "-q"])
            .run()
            .assert_code(0);
        combined(&server, &backups, &expected);
        // A broken link breaks what builds on it, and nothing is touched.
        std::fs::write(backups.join(&second).join("backup_manifest"), "{}").unwrap();
        let (_keep, data) = place();
        restore(&server, &backups, &third, &data, &[]).assert_code(4);
        assert!(!data.exists());
        restore(&server, &backups, "latest", &data, &[])
            .assert_code(0)
            .assert_says(&format!("passed over {third}"));
    }
}

#[test]
fn tablespaces_go_where_they_are_sent() {
    let server = Server::start_with(
        17,
        &Setup {
            settings: &["summarize_wal=on"],
            ..Setup::default()
        },
    );
    let old = server.socket_dir().join("space");
    run(as_server_user("mkdir").arg(&old)).assert_code(0);
    server.psql(
        "postgres",
        &format!("CREATE TABLESPACE far LOCATION '{}'", old.display()),
    );
    server.psql(
        "postgres",
        &format!("SET default_tablespace = far; {SAMPLE}"),
    );
    let backups = TempDir::new();
    let full = take(&server, &backups, &["--max-rate", "1g"]);
    server.psql("postgres", "UPDATE t SET m = 'second' WHERE i % 100 = 0");
    let next = take(&server, &backups, &["--incremental"]);
    let expected = server.psql("postgres", DIGEST);
    pgark(&server, &backups, ["verify", "--all", "-q"])
        .run()
        .assert_code(0);
    // Its old place is taken, by the server itself.
    let (_keep, data) = place();
    let refused = restore(&server, &backups, &full, &data, &[]).assert_code(2);
    assert!(refused.stderr.contains("is not empty") && !data.exists());
    let none = [
        "--tablespace-mapping".to_owned(),
        "/nowhere=/tmp/x".to_owned(),
    ];
    restore(&server, &backups, &full, &data, &none)
        .assert_code(2)
        .assert_says("no tablespace lay in /nowhere");
    for (id, digest) in [(&full, None), (&next, Some(&expected))] {
        let (keep, data) = place();
        let new = keep.join("elsewhere");
        let mapping = [
            "--tablespace-mapping".to_owned(),
            format!("{}={}", old.display(), new.display()),
        ];
        restore(&server, &backups, id, &data, &mapping).assert_code(0);
        let copy = Copy::start(17, &data);
        let location =
            "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'far'";
        assert_eq!(copy.psql(location), new.display().to_string());
        let found = copy.psql(DIGEST);
        assert!(digest.is_none_or(|expected| found == *expected), "{found}");
    }
}

#[test]
fn what_is_damaged_is_found_and_never_restored() {
    let server = Server::start(17);
    server.psql("postgres", SAMPLE);
    let backups = TempDir::new();
    let id = take(&server, &backups, &[]);
    for name in [
        "base.tar.zst",
        "pg_wal.tar.zst",
        "backup_manifest",
        "base.tar.zst.idx",
    ] {
        let path = backups.join(&id).join(name);
        let whole = std::fs::read(&path).unwrap();
        let mut bad = whole.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        pgark(&server, &backups, ["verify", &id, "-q"])
            .run()
            .assert_code(4);
        let (_keep, data) = place();
        restore(&server, &backups, &id, &data, &[]).assert_code(4);
        std::fs::write(&path, &whole[1..]).unwrap();
        restore(&server, &backups, &id, &data, &[])
            .assert_code(4)
            .assert_says(name);
        assert!(!data.exists(), "nothing was touched");
        std::fs::write(&path, &whole).unwrap();
        pgark(&server, &backups, ["verify", &id, "-q"])
            .run()
            .assert_code(0);
    }
}

#[test]
fn a_run_that_is_ended_leaves_no_backup_and_the_next_one_clears() {
    let server = Server::start(17);
    server.psql("postgres", SAMPLE);
    let backups = TempDir::new();
    for signal in ["TERM", "KILL"] {
        let running = pgark(&server, &backups, ["backup", "--base", "--max-rate", "1m"]).spawn();
        until("some of it to be there", || {
            std::fs::read_dir(backups.path())
                .unwrap()
                .flatten()
                .any(|entry| {
                    entry.path().is_dir()
                        && entry.file_name().to_string_lossy().starts_with("base_")
                })
        });
        running.signal(signal);
        let code = running.wait().code;
        assert_eq!(code, if signal == "TERM" { 143 } else { 137 });
        let listed = pgark(&server, &backups, ["list", "--json"])
            .run()
            .assert_code(0);
        assert_eq!(listed.stdout.trim(), "[]");
        let slots = "SELECT count(*) FROM pg_replication_slots";
        until("the slot to go", || server.psql("postgres", slots) == "0");
    }
    let id = take(&server, &backups, &[]);
    let mut folders: Vec<String> = std::fs::read_dir(backups.path())
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    folders.retain(|name| name.starts_with("base_"));
    assert_eq!(folders, [id]);
}
