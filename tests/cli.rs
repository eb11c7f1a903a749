//! The command line's contract (design §6): names, fields, exit codes, and what is left alone.

use crate::support::site::{files, first_id};
use crate::support::{Pgark, Site, TempDir, assert_same, dump_schema, run, table_digest};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

#[test]
fn files_are_0600_and_new_directories_0700() {
    let site = Site::new("modes");
    let dir = site.dir.join("new/deep");
    let done = site.backup_with(|pgark| pgark.store(&dir));
    done.assert_code(0);
    let id_dir = run(Command::new("find")
        .arg(site.dir.join("new"))
        .args(["-printf", "%y %m %P\n"]));
    let mut count = 0;
    for line in id_dir.stdout.lines() {
        let expected = if line.starts_with('d') {
            "d 700 "
        } else {
            "f 600 "
        };
        assert!(line.starts_with(expected), "{line}");
        count += 1;
    }
    assert!(count >= 10, "{}", id_dir.stdout);
    // A directory that was there keeps its mode.
    let mode = std::fs::metadata(site.dir.path())
        .unwrap()
        .permissions()
        .mode();
    assert_ne!(mode & 0o777, 0o700);
}

#[test]
fn list_json_has_the_contracts_fields_and_utc_times() {
    let site = Site::new("fields");
    let done = site.backup_with(|pgark| pgark.env("TZ", "Asia/Kolkata"));
    let id = first_id(&done.assert_code(0).stdout);
    let listed = site.list();
    assert_eq!(listed.len(), 2, "the dump and its globals: {listed:?}");
    let fields = [
        "id",
        "kind",
        "cluster",
        "database",
        "started_at",
        "finished_at",
        "state",
        "good",
        "bytes",
        "raw_bytes",
        "encrypted",
        "stores",
        "sha256",
        "parent",
    ];
    for entry in &listed {
        for field in fields {
            assert!(entry.get(field).is_some(), "{field} is missing: {entry}");
        }
        for time in ["started_at", "finished_at"] {
            let text = entry[time].as_str().unwrap();
            text.parse::<jiff::Timestamp>().unwrap();
            assert!(text.ends_with('Z') && text.as_bytes()[10] == b'T', "{text}");
        }
        assert_eq!(
            (&entry["encrypted"], &entry["stores"][0]),
            (&false.into(), &"local".into())
        );
    }
    let entry = site.entry(&id);
    assert_eq!(
        (&entry["kind"], &entry["database"]),
        (&"dump".into(), &"fields".into())
    );
    assert_eq!(
        (&entry["state"], &entry["good"]),
        (&"taken".into(), &true.into())
    );
    let artefact = std::fs::read(site.file(&id, "")).unwrap();
    assert_eq!(entry["bytes"], artefact.len());
    // The name, the field and the sum agree, in UTC whatever TZ says.
    let stamp = entry["started_at"].as_str().unwrap()[..19]
        .replace(['-', ':'], "")
        .replace('T', "_");
    assert_eq!(id, format!("backup_fields_{stamp}"));
    let sums = std::fs::read_to_string(site.file(&id, ".sha256")).unwrap();
    assert_eq!(
        sums,
        format!("{}  {id}.sql.gz\n", entry["sha256"].as_str().unwrap())
    );
    run(Command::new("sha256sum")
        .arg("-c")
        .arg(site.file(&id, ".sha256"))
        .current_dir(site.dir.path()))
    .assert_code(0);
}

#[test]
fn list_before_is_strict_and_newest_comes_first() {
    let site = Site::new("before");
    let (first, second) = (site.backup(), site.backup());
    let listed = |before: &str| {
        let listed = site
            .pgark(["list", "--before", before])
            .run()
            .assert_code(0);
        let ids = listed
            .stdout
            .lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().next());
        ids.filter(|id| id.starts_with("backup_"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let time = site.entry(&second)["started_at"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(listed(&time), std::slice::from_ref(&first));
    assert_eq!(listed("2099-01-01"), [second, first]);
    assert!(listed("2001-01-01 02:00").is_empty());
    site.pgark(["list", "--before", "yesterday-ish"])
        .run()
        .assert_code(2)
        .assert_says("--before");
}

#[test]
fn cat_equals_gunzip_and_a_reader_that_stops_is_no_failure() {
    let site = Site::new("cat");
    site.server.psql("cat", "INSERT INTO item SELECT i, md5(i::text) || md5((-i)::text) FROM generate_series(10000, 80000) i");
    let id = site.backup();
    let unpacked = run(Command::new("gunzip").arg("-c").arg(site.file(&id, ""))).assert_code(0);
    let cat = site.pgark(["cat", &id]).run().assert_code(0);
    assert!(unpacked.stdout.len() > 1 << 20);
    assert!(cat.stdout == unpacked.stdout, "cat and gunzip differ");
    assert!(cat.stderr.is_empty(), "{}", cat.stderr);
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "\"$0\" cat \"$1\" | head -1; ",
        env!("CARGO_BIN_EXE_pgark"),
        &id,
    ]);
    let head = run(command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("BACKUP_DIR", site.dir.path()))
    .assert_code(0);
    assert_eq!(head.stdout, "\\if true\n");
    assert_eq!(head.stderr, "", "loud after | head -1");
}

#[test]
fn an_output_that_cannot_be_written_is_an_error() {
    let site = Site::new("full_output");
    let id = site.backup();
    for verb in ["cat", "show"] {
        let full = std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgark"));
        command.args([verb, &id]).env("BACKUP_DIR", site.dir.path());
        let done = command
            .stdout(Stdio::from(full))
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        assert_eq!(done.status.code(), Some(1), "{verb}");
        assert!(String::from_utf8_lossy(&done.stderr).contains("stdout"));
    }
}

#[test]
fn dry_run_touches_nothing() {
    let site = Site::new("dry");
    let id = site.backup();
    let before = files(site.dir.path());
    let databases = || {
        site.server.psql(
            "postgres",
            "SELECT count(*) FROM pg_database WHERE datname LIKE 'dry%'",
        )
    };
    let done = site
        .pgark(["restore", &id, "--dry-run"])
        .run()
        .assert_code(0);
    assert!(done.stdout.contains("5000 rows"), "{}", done.stdout);
    assert_eq!(databases(), "1");
    assert!(
        before == files(site.dir.path()),
        "a dry run changed the directory"
    );
    let json = site
        .pgark(["restore", &id, "--dry-run", "--json"])
        .run()
        .assert_code(0);
    let plan: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(plan["rows"], 5000);
}

#[test]
fn a_restore_has_a_fresh_name_by_default_and_equals_its_source() {
    let site = Site::new("fresh");
    site.backup();
    site.pgark(["restore", "-q"]).run().assert_code(0);
    let name = site.server.psql(
        "postgres",
        "SELECT datname FROM pg_database WHERE datname ~ '^fresh_restored_[0-9]{8}_[0-9]{6}$'",
    );
    assert!(!name.is_empty() && !name.contains('\n'), "{name:?}");
    assert_same(
        "rows",
        &table_digest(site.server, "fresh"),
        &table_digest(site.server, &name),
    );
    assert_same(
        "schemas",
        &dump_schema(site.server, "fresh"),
        &dump_schema(site.server, &name),
    );
}

#[test]
fn an_existing_target_is_refused_and_untouched() {
    let site = Site::new("target");
    let id = site.backup();
    let before = table_digest(site.server, "target");
    site.server
        .psql("target", "INSERT INTO item VALUES (-1, 'newer')");
    site.restore(&id, "target")
        .assert_code(2)
        .assert_says("exists already");
    assert_ne!(before, table_digest(site.server, "target"));
    assert_eq!(
        site.server
            .psql("target", "SELECT label FROM item WHERE id = -1"),
        "newer"
    );
    // The same for a legacy backup, and for a target with sessions.
    let legacy = site.legacy("20240101_000000");
    site.restore(&legacy, "target")
        .assert_code(2)
        .assert_says("exists already");
    assert_eq!(
        site.server.psql("target", "SELECT count(*) FROM item"),
        "3001"
    );
}

#[test]
fn latest_of_several_databases_names_the_candidates() {
    let (site, other) = (Site::new("latest_a"), Site::new("latest_b"));
    let a = site.backup();
    let done = other
        .backup_with(|pgark| pgark.store(site.dir.path()))
        .assert_code(0);
    let b = first_id(&done.stdout);
    for verb in ["restore", "show", "cat"] {
        let done = site.pgark([verb, "latest"]).run().assert_code(2);
        done.assert_says(&a)
            .assert_says(&b)
            .assert_says("ambiguous");
    }
    let done = site
        .pgark([
            "restore",
            "latest",
            "--database",
            "latest_a",
            "--dry-run",
            "--json",
        ])
        .run();
    let plan: serde_json::Value = serde_json::from_str(&done.assert_code(0).stdout).unwrap();
    assert_eq!(plan["backup"], a.as_str());
}

#[test]
fn an_unknown_id_names_its_neighbours() {
    let site = Site::new("near");
    let id = site.backup();
    for verb in ["show", "verify", "cat", "restore"] {
        let typo = id.replace("backup_near", "backup_naer");
        let done = site.pgark([verb, &typo]).run().assert_code(2);
        done.assert_says(&typo).assert_says(&id);
    }
    site.pgark(["show", &id]).run().assert_code(0);
    // Nothing there at all is said as well, and reading creates no directory.
    let nowhere = site.dir.join("nowhere");
    let done = Pgark::new(["list"]).store(&nowhere).run().assert_code(2);
    done.assert_says("nowhere");
    assert!(!nowhere.exists());
}

#[test]
fn an_unknown_variable_is_warned_about_with_the_nearest_name() {
    let dir = TempDir::new();
    let listed = Pgark::new(["list"])
        .store(dir.path())
        .env("BACKUP_COMPRESION", "zstd")
        .run();
    let listed = listed.assert_code(0);
    listed
        .assert_says("BACKUP_COMPRESION")
        .assert_says("BACKUP_COMPRESSION");
}

#[test]
fn verify_all_tells_good_from_damaged_by_its_exit_code() {
    let site = Site::new("verify_all");
    let (first, second) = (site.backup(), site.backup());
    let all = || site.pgark(["verify", "--all", "--json", "-q"]).run();
    let done = all().assert_code(0);
    let results: Vec<serde_json::Value> = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(results.len(), 4);
    assert!(
        results.iter().all(|result| result["ok"] == true),
        "{results:?}"
    );
    assert_eq!(site.entry(&first)["state"], "verified");
    let path = site.file(&first, "");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let done = all().assert_code(4).assert_says(&first);
    let results: Vec<serde_json::Value> = serde_json::from_str(&done.stdout).unwrap();
    let ok = |id: &str| results.iter().find(|result| result["id"] == id).unwrap()["ok"].clone();
    assert_eq!((ok(&first), ok(&second)), (false.into(), true.into()));
    site.pgark(["verify", &second]).run().assert_code(0);
    site.pgark(["verify", &first]).run().assert_code(4);
}

#[test]
fn wrong_usage_exits_2_and_help_and_version_0() {
    for (args, code) in [
        (&["backup", "--jobs", "0"][..], 2),
        (&["restore", "--into", ""], 2),
        (&["frobnicate"], 2),
        (&[], 2),
        (&["--help"], 0),
        (&["restore", "--help"], 0),
        (&["--version"], 0),
    ] {
        Pgark::new(args).run().assert_code(code);
    }
}
