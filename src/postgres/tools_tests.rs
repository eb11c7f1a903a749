//! Finding programs, and password files, one claim a test.

use super::*;

fn scratch(test: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("pgark_tools_{test}_{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn program(version_num: u32) -> Program {
    Program {
        path: PathBuf::from(format!("/pg/{version_num}")),
        version_num,
        version_text: version_text(version_num),
    }
}

/// A script that answers `--version`.
fn fake(dir: &Path, name: &str, version: &str) {
    std::fs::create_dir_all(dir).unwrap();
    let path = dir.join(name);
    let script = format!("#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n");
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    // A test that forks at this moment holds our descriptor until it execs; run the script
    // once it is free.
    while let Err(error) = Command::new(&path).stdout(Stdio::null()).status() {
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::ExecutableFileBusy,
            "{error}"
        );
    }
}

#[test]
fn versions_are_read_as_the_server_counts_them() {
    for (text, expected) in [
        (
            "pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)",
            Some((150_018, "15.18")),
        ),
        ("pg_dump (PostgreSQL) 19devel", Some((190_000, "19devel"))),
        ("pg_dump (PostgreSQL) 19beta1\n", Some((190_000, "19beta1"))),
        ("pg_dump (PostgreSQL) 9.6.24", Some((90_624, "9.6.24"))),
        ("pg_dump 15.18", None),
        ("psql (PostgreSQL) 15.18", None),
        ("pg_dump (PostgreSQL) devel", None),
        ("", None),
    ] {
        let expected = expected.map(|(number, text)| (number, text.to_owned()));
        assert_eq!(parse_version("pg_dump", text), expected, "{text}");
    }
    assert_eq!(version_text(170_006), "17.6");
    assert_eq!(version_text(90_624), "9.6.24");
}

#[test]
fn same_major_is_preferred_then_the_next_newer_and_the_newest_minor_of_it() {
    let have = || {
        [140_002, 150_002, 150_018, 170_001, 180_000]
            .map(program)
            .to_vec()
    };
    for (server, picked) in [
        (150_003, 150_018),
        (150_099, 150_018),
        (160_004, 170_001),
        (180_001, 180_000),
        (90_624, 140_002),
    ] {
        assert_eq!(
            choose("pg_dump", have(), server).unwrap().version_num,
            picked,
            "{server}"
        );
    }
}

#[test]
fn only_older_programs_are_an_error_that_names_the_package() {
    let dir = scratch("older");
    fake(&dir, "pg_dump", "15.18 (Debian 15.18-0+deb12u1)");
    let mut tools = Tools::find(Some(&dir));
    tools.set = false;
    let error = tools.pick("pg_dump", 170_006).unwrap_err();
    assert_eq!(error.fact, "pg_dump 15.18 is older than the server (17.6)");
    assert!(
        error
            .hint
            .unwrap()
            .contains("apt-get install postgresql-client-17")
    );
    let error = tools.pick("pg_restore", 170_006).unwrap_err();
    assert_eq!(error.fact, "pg_restore was not found");
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn setting_wins_over_every_other_place_and_may_list_directories() {
    let dir = scratch("setting");
    fake(&dir.join("a"), "pg_dump", "16.1");
    fake(&dir.join("b"), "pg_dump", "98.0");
    let setting = format!("{}:{}", dir.join("a").display(), dir.join("b").display());
    let tools = Tools::find(Some(Path::new(&setting)));
    assert_eq!(tools.pick("pg_dump", 160_000).unwrap().version_num, 160_001);
    let next = tools.pick("pg_dump", 170_000).unwrap();
    assert_eq!(
        (next.version_num, next.path),
        (980_000, dir.join("b/pg_dump"))
    );
    // psql is installed on this machine, but not there.
    let error = tools.newest("psql").unwrap_err();
    assert!(error.hint.unwrap().contains("PGARK_PG_BIN names"));
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn debians_wrapper_and_files_that_are_no_programs_are_skipped() {
    let dir = scratch("wrapper");
    // It answers as pg_dump would: the name alone tells it apart.
    fake(&dir, "pg_dump", "15.1");
    std::fs::rename(dir.join("pg_dump"), dir.join("pg_wrapper")).unwrap();
    fake(&dir.join("bin"), "psql", "15.1");
    std::os::unix::fs::symlink(dir.join("pg_wrapper"), dir.join("bin/pg_dump")).unwrap();
    std::fs::write(dir.join("bin/pg_restore"), "not executable").unwrap();
    let tools = Tools::find(Some(&dir.join("bin")));
    assert!(tools.pick("pg_dump", 150_000).is_err());
    assert!(tools.pick("pg_restore", 150_000).is_err());
    assert_eq!(tools.newest("psql").unwrap().version_text, "15.1");
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn broken_program_is_named_in_the_error() {
    let dir = scratch("broken");
    fake(&dir, "pg_dump", "?");
    let error = Tools::find(Some(&dir))
        .pick("pg_dump", 150_000)
        .unwrap_err();
    assert!(
        error.fact.contains("did not answer with a version"),
        "{error}"
    );
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn installed_programs_are_found_without_a_setting() {
    let found = Tools::find(None).newest("pg_dump").unwrap();
    assert!(found.version_num >= 140_000, "{found:?}");
    let real = found.path.canonicalize().unwrap();
    assert_ne!(real.file_name().unwrap(), "pg_wrapper");
}

#[test]
fn password_file_is_private_and_gone_after_use() {
    let base = scratch("pass");
    let file = PassFile::create_in(std::slice::from_ref(&base), b"*:*:*:me:p w\n").unwrap();
    let text = std::fs::read_to_string(file.path()).unwrap();
    assert_eq!(text, "*:*:*:me:p w\n");
    assert_eq!(file.path().metadata().unwrap().mode() & 0o777, 0o600);
    assert_eq!(file.dir.metadata().unwrap().mode() & 0o777, 0o700);
    drop(file);
    assert_eq!(std::fs::read_dir(&base).unwrap().count(), 0);
    std::fs::remove_dir_all(base).unwrap();
}

#[test]
fn password_that_no_line_can_hold_is_refused_without_showing_it() {
    let Err(error) = PassFile::create(Some(b"*:*:*:me:hunter2\nx\n".to_vec())) else {
        panic!("accepted");
    };
    assert!(!error.to_string().contains("hunter2"));
}

#[test]
fn password_file_goes_to_the_next_place_when_one_is_missing() {
    let base = scratch("next");
    let bases = [base.join("missing"), base.clone()];
    let file = PassFile::create_in(&bases, b"*:*:*:*:x\n").unwrap();
    assert!(file.path().starts_with(&base));
    drop(file);
    std::fs::remove_dir_all(base).unwrap();
}

#[test]
fn password_files_of_dead_processes_are_swept_and_others_stay() {
    let base = scratch("sweep");
    // A process that has certainly ended: reaped by us.
    let mut child = Command::new("/bin/true").spawn().unwrap();
    child.wait().unwrap();
    let dead = base.join(format!("{PASS_PREFIX}{}-0", child.id()));
    let held = base.join(format!("{PASS_PREFIX}{}-1", child.id()));
    let alive = base.join(format!("{PASS_PREFIX}{}-0", std::process::id()));
    let foreign = base.join("someone-else");
    for dir in [&dead, &held, &alive, &foreign] {
        std::fs::create_dir(dir).unwrap();
        std::fs::write(dir.join(PASS_NAME), "x").unwrap();
    }
    let lock = File::open(held.join(PASS_NAME)).unwrap();
    lock.lock().unwrap();
    sweep(&base);
    assert!(!dead.exists());
    assert!(held.exists() && alive.exists() && foreign.exists());
    std::fs::remove_dir_all(base).unwrap();
}
