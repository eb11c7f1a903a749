//! Base backups away from where they were taken: in a bucket, by the manual's own commands, and
//! encrypted.

use super::{Copy, DIGEST, SAMPLE, pgark, place, take, verified_by_postgres};
use crate::second_store::with_bucket;
use crate::support::garage::Garage;
use crate::support::{Pgark, Server, TempDir, as_server_user, bin, project, run};
use std::path::{Path, PathBuf};
use std::process::Command;

#[test]
fn the_bucket_alone_brings_the_cluster_back() {
    let (server, garage) = (Server::start(17), Garage::start());
    server.psql("postgres", SAMPLE);
    let expected = server.psql("postgres", DIGEST);
    let backups = TempDir::new();
    let backup = pgark(&server, &backups, ["backup", "--base", "-q"]);
    let done = with_bucket(backup, garage.port).run().assert_code(0);
    let id = crate::support::site::first_id(&done.stdout);
    let lost = TempDir::new();
    let there = |args: &[&str]| with_bucket(pgark(&server, &lost, args), garage.port);
    let shown = there(&["list", "--json", "--store", "s3"])
        .run()
        .assert_code(0);
    let listed: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(listed[0]["id"], id.as_str());
    assert_eq!(listed[0]["good"], true);
    there(&["verify", &id, "--store", "s3", "-q"])
        .run()
        .assert_code(0);
    let (_keep, data) = place();
    let dir = data.to_str().unwrap();
    there(&[
        "restore",
        "latest",
        "--data-dir",
        dir,
        "--store",
        "s3",
        "-q",
    ])
    .run()
    .assert_code(0);
    verified_by_postgres(17, &data);
    let copy = Copy::start(17, &data);
    assert_eq!(copy.psql(DIGEST), expected);
}

/// The blocks of commands of a section of `docs/restore-without-pgark.md`.
fn commands(heading: &str) -> Vec<String> {
    let page = std::fs::read_to_string(project().join("docs/restore-without-pgark.md")).unwrap();
    let section = page
        .split_once(&format!("\n{heading}\n"))
        .expect("the section")
        .1;
    let end = section.find("\n##").unwrap_or(section.len());
    let parts = section[..end].split("```");
    parts.skip(1).step_by(2).map(str::to_owned).collect()
}

/// A copy of a backup's folder that the servers' user may read.
fn readable(folder: &Path, keep: &TempDir) -> PathBuf {
    let copy = keep.join("backup");
    let script = r#"cp -r "$0" "$1" && chown -R --reference "$(dirname "$1")" "$1""#;
    run(Command::new("sh")
        .args(["-c", script])
        .arg(folder)
        .arg(&copy))
    .assert_code(0);
    copy
}

fn as_the_manual_says(major: u32, script: &str) {
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{path}", bin(major).display());
    let mut shell = as_server_user("bash");
    run(shell
        .args(["-e", "-o", "pipefail", "-c", script])
        .env("PATH", path))
    .assert_code(0);
}

#[test]
fn the_manual_for_a_life_without_pgark_holds_word_by_word() {
    let server = Server::start(17);
    server.psql("postgres", SAMPLE);
    let expected = server.psql("postgres", DIGEST);
    let backups = TempDir::new();
    let id = take(&server, &backups, &[]);
    let (keep, data) = place();
    let folder = readable(&backups.join(&id), &keep);
    let blocks = commands("## A base backup");
    let [names, unpack, start] = &blocks[..] else {
        panic!("{} blocks", blocks.len());
    };
    assert!(names.contains("B=/backups/base_"), "{names}");
    let ours = format!("B={}\nD={}\n", folder.display(), data.display());
    as_the_manual_says(17, &format!("{ours}{unpack}"));
    // The reader's own port and place: the lost server's are in use here.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    std::fs::write(keep.join("hba"), "local all all trust\n").unwrap();
    let own = format!(
        "port = {port}\nlisten_addresses = ''\nunix_socket_directories = '{0}'\nhba_file = '{0}/hba'\n",
        keep.path().display()
    );
    let add = format!(
        "{ours}cat >> $D/postgresql.auto.conf <<'OWN'\n{own}OWN\nexec > {}/log 2>&1\n",
        keep.path().display()
    );
    as_the_manual_says(17, &format!("{add}{start}"));
    let copy = Copy {
        data,
        port,
        major: 17,
    };
    crate::support::until("the end of recovery", || {
        copy.psql("SELECT pg_is_in_recovery()") == "f"
    });
    assert_eq!(copy.psql(DIGEST), expected);
    assert_eq!(copy.psql("SHOW archive_mode"), "off");
}

#[test]
fn recipients_are_never_ignored() {
    let server = Server::start(17);
    let (backups, keys) = (TempDir::new(), TempDir::new());
    let file = keys.join("key");
    let made = Pgark::new(["keygen", "--out", file.to_str().unwrap(), "-q"]).run();
    let recipient = made.assert_code(0).stdout.trim().to_owned();
    pgark(&server, &backups, ["backup", "--base", "-q"])
        .env("BACKUP_ENCRYPT_RECIPIENTS", recipient)
        .run()
        .assert_code(2)
        .assert_says("base backups are not encrypted yet");
    let left = std::fs::read_dir(backups.path()).unwrap().flatten();
    let left = left.filter(|entry| entry.file_name().to_string_lossy().starts_with("base_"));
    assert_eq!(left.count(), 0);
}
