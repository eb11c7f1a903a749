//! Base backups away from where they were taken: in a bucket, by the manual's own commands, and
//! encrypted.

use super::{Copy, DIGEST, SAMPLE, pgark, place, restore, show, take, verified_by_postgres};
use crate::second_store::with_bucket;
use crate::support::garage::Garage;
use crate::support::{Pgark, Server, Setup, TempDir, as_server_user, bin, project, run};
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
pub(crate) fn commands(heading: &str) -> Vec<String> {
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
pub(crate) fn readable(folder: &Path, keep: &TempDir) -> PathBuf {
    let copy = keep.join("backup");
    let script = r#"cp -r "$0" "$1" && chown -R --reference "$(dirname "$1")" "$1""#;
    run(Command::new("sh")
        .args(["-c", script])
        .arg(folder)
        .arg(&copy))
    .assert_code(0);
    copy
}

pub(crate) fn as_the_manual_says(major: u32, script: &str) {
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
    assert_eq!(copy.psql("SHOW max_logical_replication_workers"), "0");
}

/// A key of its own; the recipient and the file.
fn key(keys: &TempDir) -> (String, PathBuf) {
    let file = keys.join("key");
    let made = Pgark::new(["keygen", "--out", file.to_str().unwrap(), "-q"]).run();
    let recipient = made.assert_code(0).stdout.trim().to_owned();
    (recipient, file)
}

/// Every file but the three that must be readable is one of age; none of the three names a table.
fn assert_sealed(folder: &Path) {
    let mut sealed = 0;
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let bytes = std::fs::read(entry.path()).unwrap();
        if ["manifest.json", "SHA256SUMS", "backup_manifest"].contains(&name.as_str()) {
            continue;
        }
        assert!(name.contains(".tar.zst.age"), "{name}");
        assert!(bytes.starts_with(b"age-encryption.org/v1\n"), "{name}");
        sealed += 1;
    }
    assert_eq!(sealed, 4, "base and pg_wal, each with its index");
}

/// With `age` and the manual's tools.
fn opened_by_age(folder: &Path, key: &Path) {
    let script = "cd \"$0\" && sha256sum -c --quiet SHA256SUMS && \
        age -d -i \"$1\" base.tar.zst.age | zstd -dcq | tar -tv | grep global/pg_control && \
        age -d -i \"$1\" base.tar.zst.age.idx | zstd -dcq | grep -q pg_control";
    run(Command::new("bash")
        .args(["-o", "pipefail", "-c", script])
        .arg(folder)
        .arg(key))
    .assert_code(0);
}

#[test]
fn an_encrypted_chain_opens_with_the_key_alone() {
    let setup = Setup {
        settings: &["summarize_wal=on"],
        ..Setup::default()
    };
    let server = Server::start_with(17, &setup);
    server.psql("postgres", SAMPLE);
    let (backups, keys) = (TempDir::new(), TempDir::new());
    let (recipient, key) = key(&keys);
    // The full one is plain, as before the key was set: a chain may hold both.
    let plain = take(&server, &backups, &[]);
    server.psql("postgres", "UPDATE t SET m = 'second' WHERE i % 100 = 0");
    let encrypted = || {
        let args = ["backup", "--base", "--incremental", "-q"];
        let backup = pgark(&server, &backups, args).env("BACKUP_ENCRYPT_RECIPIENTS", &recipient);
        crate::support::site::first_id(&backup.run().assert_code(0).stdout)
    };
    let (middle, last) = (encrypted(), encrypted());
    let expected = server.psql("postgres", DIGEST);
    for (id, parent) in [(&middle, &plain), (&last, &middle)] {
        let shown = show(&server, &backups, id);
        assert_eq!(shown["parent"], parent.as_str());
        assert_eq!(shown["encrypted"], true);
        assert_sealed(&backups.join(id));
    }
    opened_by_age(&backups.join(&last), &key);
    let (_keep, data) = place();
    restore(&server, &backups, &last, &data, &[])
        .assert_code(2)
        .assert_says("no identity is set");
    assert!(!data.exists());
    let shallow = pgark(&server, &backups, ["verify", &last])
        .run()
        .assert_code(0);
    assert!(shallow.stdout.contains("no identity is set"));
    assert_eq!(show(&server, &backups, &last)["state"], "taken");
    let opened = |args: &[&str]| pgark(&server, &backups, args).env("BACKUP_IDENTITY_FILE", &key);
    opened(&["verify", "--all", "-q"]).run().assert_code(0);
    assert_eq!(show(&server, &backups, &last)["state"], "verified");
    let dir = data.to_str().unwrap();
    opened(&["restore", "latest", "--data-dir", dir, "-q"])
        .run()
        .assert_code(0);
    verified_by_postgres(17, &data);
    let copy = Copy::start(17, &data);
    assert_eq!(copy.psql(DIGEST), expected);
    damage_is_found(&server, &backups, (&middle, &last), &key);
}

/// A bit within one of the chain, with the key and without.
fn damage_is_found(server: &Server, backups: &TempDir, (id, last): (&str, &str), key: &Path) {
    let path = backups.join(id).join("base.tar.zst.age");
    let mut bad = std::fs::read(&path).unwrap();
    let at = bad.len() / 2;
    bad[at] ^= 1;
    std::fs::write(&path, &bad).unwrap();
    pgark(server, backups, ["verify", id, "-q"])
        .run()
        .assert_code(4);
    let (_keep, data) = place();
    let dir = data.to_str().unwrap();
    pgark(server, backups, ["restore", last, "--data-dir", dir, "-q"])
        .env("BACKUP_IDENTITY_FILE", key)
        .run()
        .assert_code(4);
    assert!(!data.join("global/pg_control").exists());
}
