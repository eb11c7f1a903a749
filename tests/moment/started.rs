//! `--start`, and WAL that only a key opens.

use super::World;
use crate::base::{Copy, place};
use crate::support::{Pgark, TempDir, as_server_user, bin, run};
use std::process::Command;

#[test]
fn the_server_is_started_and_has_recovered_when_the_command_ends() {
    let world = World::start(17);
    world.base(&[]);
    world.psql("INSERT INTO ledger VALUES (1, 0)");
    world.switch();
    let (keep, data) = place();
    // Its configuration is the lost server's, whose port is in use only where the tests run.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let sockets = keep.path().display().to_string();
    std::fs::write(keep.join("hba"), "local all all trust\n").unwrap();
    for (name, value) in [
        ("port", port.to_string()),
        ("listen_addresses", String::new()),
        ("unix_socket_directories", sockets.clone()),
        ("hba_file", format!("{sockets}/hba")),
    ] {
        world.psql(&format!("ALTER SYSTEM SET {name} = '{value}'"));
    }
    world.base(&[]);
    world.psql("INSERT INTO ledger VALUES (2, 0)");
    world.switch();
    world
        .restore("latest", &data, &["--start"])
        .assert_code(0)
        .assert_says("the server has recovered and runs")
        .assert_says(&format!("port {port}"));
    let copy = Copy {
        data: data.clone(),
        port,
        major: 17,
    };
    assert_eq!(copy.psql("SELECT pg_is_in_recovery()"), "f");
    assert_eq!(super::rows(&copy), [1, 2]);
    // Another one in its place does not start, and says why.
    let (_keep, second) = place();
    world
        .restore("latest", &second, &["--start"])
        .assert_code(1)
        .assert_says("did not start")
        .assert_says("already exists");
    run(as_server_user(bin(17).join("pg_ctl"))
        .args(["status", "-D"])
        .arg(&data))
    .assert_code(0);
}

#[test]
fn encrypted_wal_opens_with_its_key_and_with_no_other() {
    let world = World::start(17);
    world.base(&[]);
    world.psql("INSERT INTO ledger VALUES (1, 0)");
    world.switch();
    world.psql("INSERT INTO ledger VALUES (2, 0)");
    world.store_piece();
    let keys = TempDir::new();
    let made = |name: &str| {
        let path = keys.join(name);
        let args = ["keygen", "--out", path.to_str().unwrap(), "-q"];
        let made = Pgark::new(args).run().assert_code(0);
        (path, made.stdout.trim().to_owned())
    };
    let ((right, recipient), (wrong, _)) = (made("right"), made("wrong"));
    let seal = "cd \"$0\" && for f in *.zst; do age -r \"$1\" -o $f.age $f && rm $f; done";
    run(Command::new("sh")
        .args(["-c", seal])
        .arg(&world.wal)
        .arg(recipient))
    .assert_code(0);
    let with = |key: Option<&std::path::Path>, data: &std::path::Path| {
        let dir = data.to_str().unwrap();
        let args = ["restore", "--data-dir", dir, "--at", "latest", "-q"];
        let pgark = crate::base::pgark(&world.server, &world.backups, args);
        match key {
            Some(key) => pgark.env("BACKUP_IDENTITY_FILE", key).run(),
            None => pgark.run(),
        }
    };
    let (_keep, data) = place();
    with(None, &data)
        .assert_code(2)
        .assert_says("no identity is set");
    let refused = with(Some(&wrong), &data);
    assert!([2, 4].contains(&refused.code), "{}", refused.stderr);
    assert!(!data.exists());
    with(Some(&right), &data).assert_code(0);
    let copy = Copy::start(17, &data);
    assert_eq!(super::rows(&copy), [1, 2]);
}
