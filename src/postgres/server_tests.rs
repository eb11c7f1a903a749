//! The throwaway server against real programs.

use super::super::tools::Tools;
use super::keeper::accepts;
use super::*;
use std::time::Instant;

/// The directory of the newest server; a machine without one fails these tests.
fn bin_dir() -> PathBuf {
    let postgres = Tools::find(None).newest("postgres").unwrap();
    postgres.path.parent().unwrap().to_owned()
}

fn scratch(test: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("pgark_srv_{test}_{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

fn psql(socket_dir: &Path, sql: &str) -> String {
    let mut command = Tools::find(None).newest("psql").unwrap().command();
    let out = command
        .args(["-X", "-At", "-U", "postgres", "-d", "postgres", "-h"])
        .arg(socket_dir)
        .args(["-c", sql])
        .output()
        .unwrap();
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

#[test]
fn server_answers_on_its_socket_only_and_leaves_nothing_behind() {
    let dir = scratch("life");
    let server = Throwaway::start_with(&bin_dir(), &dir, &[("wal_level", "logical")]).unwrap();
    let sql = "select current_setting('listen_addresses') || '/' || current_setting('fsync') \
               || '/' || current_setting('wal_level') || '/' || current_user";
    assert_eq!(psql(server.socket_dir(), sql), "/on/logical/postgres");
    let meta = server.socket_dir().metadata().unwrap();
    assert_eq!(meta.permissions().mode() & 0o777, 0o700);
    assert_ne!(
        std::os::unix::fs::MetadataExt::uid(&meta),
        0,
        "never as root"
    );
    // An open session does not hold the stop up.
    let mut session = Tools::find(None).newest("psql").unwrap().command();
    session.args(["-X", "-U", "postgres", "-c", "select pg_sleep(300)", "-h"]);
    session.arg(server.socket_dir()).stdout(Stdio::null());
    let session = Child::spawn("psql", &mut session).unwrap();
    let started = Instant::now();
    server.stop().unwrap();
    assert!(started.elapsed() < STOP_LIMIT);
    drop(session);
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn server_that_cannot_start_says_why_and_leaves_nothing_behind() {
    let dir = scratch("fail");
    let started = Throwaway::start_with(&bin_dir(), &dir, &[("no_such_setting", "1")]);
    let error = started.err().unwrap();
    assert!(error.fact.contains("no_such_setting"), "{error}");
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn missing_programs_and_paths_too_long_are_errors_with_a_way_out() {
    let dir = scratch("args");
    let error = Throwaway::start(&dir.join("nowhere"), &dir).err().unwrap();
    assert!(error.hint.unwrap().contains("PGARK_PG_BIN"));
    let error = Throwaway::start(&dir, &dir).err().unwrap();
    assert!(error.fact.contains("initdb"), "{error}");
    let long = dir.join("x".repeat(90));
    std::fs::create_dir(&long).unwrap();
    let error = Throwaway::start(&bin_dir(), &long).err().unwrap();
    assert!(error.fact.contains("at most 100"), "{error}");
    assert_eq!(std::fs::read_dir(&long).unwrap().count(), 0);
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn account_is_read_from_passwd_and_never_root() {
    let passwd = "root:x:0:0::/root:/bin/sh\npostgres:x:101:104:,,,:/var:/bin/bash\nbad:x:0:0\n";
    let found = Account::named(passwd, "postgres");
    assert_eq!(found, Some(Account { uid: 101, gid: 104 }));
    assert_eq!(Account::named(passwd, "bad"), None);
    assert_eq!(Account::named(passwd, "nobody"), None);
}

/// Not a test by itself: the process that the next test kills.
#[test]
#[ignore = "run by server_dies_with_its_parent"]
fn parent_that_is_killed() {
    let Some(dir) = std::env::var_os("PGARK_TEST_SERVER_DIR").map(PathBuf::from) else {
        return;
    };
    let server = Throwaway::start(&bin_dir(), &dir).unwrap();
    let path = server.socket_dir().as_os_str().as_bytes().to_vec();
    std::fs::write(dir.join("ready.tmp"), path).unwrap();
    std::fs::rename(dir.join("ready.tmp"), dir.join("ready")).unwrap();
    std::thread::sleep(Duration::from_secs(300));
}

#[test]
fn server_dies_with_its_parent() {
    let dir = scratch("orphan");
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args([
            "--ignored",
            "--exact",
            "postgres::server::tests::parent_that_is_killed",
        ])
        .env("PGARK_TEST_SERVER_DIR", &dir)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + INITDB_LIMIT;
    while !dir.join("ready").exists() {
        assert!(Instant::now() < deadline, "the server did not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    let private = PathBuf::from(std::fs::read_to_string(dir.join("ready")).unwrap());
    let socket = private.join(format!(".s.PGSQL.{PORT}"));
    assert!(accepts(&socket).unwrap());
    parent.kill().unwrap();
    parent.wait().unwrap();
    let deadline = Instant::now() + STOP_LIMIT;
    while accepts(&socket).unwrap_or(false) {
        assert!(Instant::now() < deadline, "the server outlived its parent");
        std::thread::sleep(Duration::from_millis(20));
    }
    // The postmaster removes its lock file last.
    while private.join("data/postmaster.pid").exists() {
        assert!(
            Instant::now() < deadline,
            "the server did not finish its shutdown"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    std::fs::remove_dir_all(dir).unwrap();
}
