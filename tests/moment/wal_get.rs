//! `pgark wal-get` as a restore_command: what it answers, and what a server makes of it.

use super::World;
use crate::base::{Copy, place};
use crate::support::{Run, TempDir, as_server_user, bin, run, until};
use std::path::Path;

/// What a server whose directory is `data` would get.
fn wal_get(world: &World, data: &Path, args: &[&str]) -> Run {
    let dir = world.backups.path().to_str().unwrap();
    let script = "cd \"$0\" && exec \"$@\"";
    run(std::process::Command::new("sh")
        .args(["-c", script])
        .arg(data)
        .arg(env!("CARGO_BIN_EXE_pgark"))
        .args(["wal-get", "--dir", dir])
        .args(args)
        .env_clear()
        .env("PATH", "/usr/bin:/bin"))
}

#[test]
fn it_delivers_or_proves_absence_or_stops_the_server() {
    let world = World::start(17);
    world.psql("INSERT INTO ledger VALUES (1, 0)");
    let first = world.switch();
    world.psql("INSERT INTO ledger VALUES (2, 0)");
    let second = world.switch();
    world.psql("INSERT INTO ledger VALUES (3, 0)");
    let piece = world.store_piece();
    let open = piece.file_name().unwrap().to_str().unwrap()[..24].to_owned();
    let data = world.server.data_dir();
    let out = world.backups.join("out");
    let path = out.to_str().unwrap();
    let get = |name: &str| {
        let _ = std::fs::remove_file(&out);
        wal_get(&world, &data, &[name, path])
    };
    for name in [&first, &second] {
        get(name).assert_code(0);
        let original = std::fs::read(&out).unwrap();
        assert_eq!(original.len(), 16 << 20);
    }
    // The open one, with zeros behind what is there.
    get(&open).assert_code(0);
    assert_eq!(std::fs::metadata(&out).unwrap().len(), 16 << 20);
    // Behind the end, and what is never archived.
    for absent in [
        "0000000100000000000000F0",
        "00000002.history",
        "000000010000000000000002.00000028.backup",
    ] {
        let done = get(absent).assert_code(1);
        assert!(!out.exists(), "{absent} {}", done.stderr);
    }
    trouble(&world, &first, &second, &get);
}

/// What must stop a server.
fn trouble(world: &World, first: &str, second: &str, get: &dyn Fn(&str) -> Run) {
    let data = world.server.data_dir();
    let out = world.backups.join("out");
    let path = out.to_str().unwrap();
    // A gap.
    let hidden = world.backups.join("hidden");
    std::fs::rename(world.wal.join(format!("{second}.zst")), &hidden).unwrap();
    get(second).assert_code(255).assert_says("comes after it");
    // Damage, and the other segment under its name.
    let place = world.wal.join(format!("{second}.zst"));
    let mut bytes = std::fs::read(&hidden).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&place, &bytes).unwrap();
    get(second).assert_code(255).assert_says("damaged");
    std::fs::copy(world.wal.join(format!("{first}.zst")), &place).unwrap();
    get(second).assert_code(255).assert_says("not that segment");
    // Wrong usage, another directory, no store, another cluster.
    for args in [
        &["--bogus"][..],
        &[],
        &["x/y", path],
        &[first, path, "--store", "none"],
    ] {
        wal_get(world, &data, args).assert_code(255);
    }
    wal_get(world, Path::new("/tmp"), &[first, path]).assert_code(255);
    wal_get(
        world,
        &data,
        &["0000000100000000000000F0", path, "--system-id", "5"],
    )
    .assert_code(255);
    wal_get(world, &data, &[first, "/nonexistent/x"]).assert_code(255);
    std::fs::rename(world.backups.path().join("wal"), world.backups.join("away")).unwrap();
    get("0000000100000000000000F0").assert_code(255);
}

#[test]
fn a_server_that_fetches_its_wal_comes_to_the_moment_and_stops_when_the_store_fails() {
    let world = World::start(17);
    world.base(&[]);
    for n in 1..=6 {
        world.psql(&format!("INSERT INTO ledger VALUES ({n}, 0)"));
        world.switch();
    }
    world.psql("INSERT INTO ledger VALUES (7, 0)");
    world.store_piece();
    // For the server's user, who may read the store's directory.
    let restore = |data: &Path| {
        world.restore(
            "latest",
            data,
            &[
                "--wal",
                "get",
                "--dir",
                world.backups.path().to_str().unwrap(),
            ],
        )
    };
    open_to_all(&world);
    let (_keep, data) = place();
    restore(&data).assert_code(0);
    let copy = Copy::start(17, &data);
    assert_eq!(super::rows(&copy), (1..=7).collect::<Vec<u32>>());
    assert!(!data.join("pg_wal/.pgark-wal").exists());
    drop(copy);
    // A segment is damaged after the plan was made.
    let (keep, data) = place();
    restore(&data).assert_code(0);
    stops(&world, &keep, &data);
}

/// The server does not come up, and is not promoted.
fn stops(world: &World, keep: &TempDir, data: &Path) {
    let files = std::fs::read_dir(&world.wal)
        .unwrap()
        .flatten()
        .map(|entry| entry.path());
    let mut whole: Vec<_> = files
        .filter(|path| path.to_str().unwrap().ends_with(".zst"))
        .collect();
    whole.sort();
    std::fs::write(&whole[whole.len() - 3], "damaged").unwrap();
    std::fs::write(keep.join("hba"), "local all all trust\n").unwrap();
    let log = keep.join("log");
    let mut start = as_server_user(bin(17).join("pg_ctl"));
    start
        .args(["start", "-W", "-D"])
        .arg(data)
        .arg("-l")
        .arg(&log);
    start.args([
        "-o",
        &format!(
            "-c port=1 -c listen_addresses= -c unix_socket_directories={}",
            keep.path().display()
        ),
    ]);
    run(&mut start);
    until("the server to stop", || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.contains("database system is shut down")
            || text.contains("startup process") && text.contains("shutting down")
    });
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(
        text.contains("damaged") && !text.contains("archive recovery complete"),
        "{text}"
    );
    assert!(
        !data.join("pg_wal/00000002.history").exists(),
        "it was promoted"
    );
}

/// The store's directory, so that the server's user reads it as its owner would.
fn open_to_all(world: &World) {
    run(std::process::Command::new("chmod")
        .args(["-R", "a+rX"])
        .arg(world.backups.path()))
    .assert_code(0);
    run(std::process::Command::new("chmod")
        .args(["a+rwx"])
        .arg(world.backups.path()))
    .assert_code(0);
}
