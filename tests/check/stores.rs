//! What `pgark check` says of stores, programs and files.

use super::{Place, one};
use crate::second_store::with_bucket;
use crate::support::garage::{ACCESS_KEY, BUCKET, Garage};
use crate::support::{Pgark, Setup, TempDir};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt as _;

#[test]
fn without_a_server_the_stores_are_looked_at_and_the_other_way_round() {
    let place = Place::new(15, &Setup::default());
    place
        .server
        .psql("app", "GRANT pg_read_all_data TO \"back up\"");
    let (findings, code) = place.check_with(|pgark| pgark.env("DB_PORT", "1"));
    assert_eq!(code, 1);
    assert_eq!(one(&findings, "connection")["subject"], "server");
    let rights = findings
        .iter()
        .find(|one| one["topic"] == "rights")
        .unwrap();
    assert_eq!(
        (&rights["level"], &rights["subject"]),
        (&"ok".into(), &"store local".into())
    );
    let (findings, code) = place.check_with(|pgark| pgark.env("DB_NAME", "app,absent"));
    assert_eq!(code, 1);
    let absent = one(&findings, "connection");
    assert_eq!(absent["subject"], "database absent");
    assert!(findings.iter().any(|one| one["subject"] == "database app"
        && one["topic"] == "tables"
        && one["level"] == "ok"));
    let file = place.store.join("file");
    std::fs::write(&file, "x").unwrap();
    let (findings, code) = place.check_with(|pgark| pgark.store(&file));
    assert_eq!(code, 1);
    assert!(
        one(&findings, "directory")["fact"]
            .as_str()
            .unwrap()
            .contains("is not a directory")
    );
    assert!(
        findings
            .iter()
            .any(|one| one["topic"] == "version" && one["level"] == "ok")
    );
    // Nothing is made: the first backup does that.
    let absent = place.store.join("not/yet");
    let (findings, code) = place.check_with(|pgark| pgark.store(&absent));
    assert_eq!(code, 0, "{findings:#?}");
    assert_eq!(one(&findings, "directory")["level"], "note");
    assert!(!absent.exists() && !place.store.join("not").exists());
    place
        .pgark(&["check", "--store", "s3"])
        .run()
        .assert_code(2);
}

#[test]
fn an_older_pg_dump_and_an_open_directory_and_password_are_named() {
    let place = Place::new(18, &Setup::default());
    place
        .server
        .psql("app", "GRANT pg_read_all_data TO \"back up\"");
    let old = crate::support::bin(15);
    let (findings, code) = place.check_with(|pgark| pgark.env("PGARK_PG_BIN", &old));
    assert_eq!(code, 1);
    let finding = findings
        .iter()
        .find(|one| one["topic"] == "programs" && one["level"] == "fail")
        .unwrap();
    assert!(
        finding["fact"]
            .as_str()
            .unwrap()
            .contains("older than the server"),
        "{finding}"
    );
    let open = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(place.store.path(), open).unwrap();
    place.mend(
        "directory",
        "warning",
        "may be written by everybody (mode 0777)",
    );
    let secret = TempDir::new();
    let file = crate::support::site::password_file(&secret);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let with_file = |pgark: Pgark| pgark.env("DB_PASSWORD", "").env("DB_PASSWORD_FILE", &file);
    let (findings, _) = place.check_with(with_file);
    let finding = one(&findings, "password_file");
    assert_eq!(finding["level"], "note");
    place.do_as_told(finding);
    let (findings, _) = place.check_with(with_file);
    assert!(findings.iter().all(|one| one["topic"] != "password_file"));
}

#[test]
fn a_directory_that_cannot_be_written_and_one_without_space_fail() {
    let place = Place::new(15, &Setup::default());
    place
        .server
        .psql("app", "GRANT pg_read_all_data TO \"back up\"");
    let locked = TempDir::new();
    let run = Pgark::unprivileged(["check", "--json"])
        .server(&place.server)
        .store(locked.path())
        .env("DB_USER", "back up")
        .env("DB_NAME", "app");
    let value: Value = serde_json::from_str(&run.run().assert_code(1).stdout).unwrap();
    let rights = one(value["findings"].as_array().unwrap(), "rights").clone();
    assert!(
        rights["fact"].as_str().unwrap().starts_with("write: "),
        "{rights}"
    );
    // The last backup took more than there is left now.
    place.server.psql(
        "app",
        "CREATE TABLE noise AS SELECT md5(random()::text) AS m FROM generate_series(1, 25000)",
    );
    let disk = crate::bad_luck::Tmpfs::new("size=2m,mode=700");
    let with_disk = |pgark: Pgark| pgark.store(disk.path());
    with_disk(place.pgark(&["backup"])).run().assert_code(0);
    std::fs::write(disk.path().join("filler"), vec![0_u8; 1_400_000]).unwrap();
    let done = with_disk(place.pgark(&["check", "--json"]))
        .run()
        .assert_code(1);
    let value: Value = serde_json::from_str(&done.stdout).unwrap();
    let space = one(value["findings"].as_array().unwrap(), "space").clone();
    assert_eq!(space["level"], "fail", "{space}");
    assert!(
        space["fact"]
            .as_str()
            .unwrap()
            .contains("the last backups took"),
        "{space}"
    );
}

#[test]
fn a_bucket_that_may_only_be_read_names_the_rights_that_lack() {
    let garage = Garage::start();
    let place = Place::new(17, &Setup::default());
    place
        .server
        .psql("app", "GRANT pg_read_all_data TO \"back up\"");
    let with = |pgark: Pgark| with_bucket(pgark, garage.port);
    let (findings, code) = place.check_with(with);
    assert_eq!(code, 0, "{findings:#?}");
    let bucket = findings
        .iter()
        .find(|one| one["subject"] == "store s3")
        .unwrap();
    assert_eq!(bucket["level"], "ok", "{bucket}");
    let there = with(place.pgark(&["list", "--json", "--store", "s3"]))
        .run()
        .assert_code(0);
    assert_eq!(there.stdout.trim(), "[]");
    garage.admin(&["bucket", "deny", "--write", BUCKET, "--key", ACCESS_KEY]);
    let (findings, code) = place.check_with(with);
    let of_bucket: Vec<&Value> = findings
        .iter()
        .filter(|one| one["subject"] == "store s3")
        .collect();
    let rights: Vec<&str> = of_bucket
        .iter()
        .map(|one| one["fact"].as_str().unwrap())
        .collect();
    assert!(
        rights
            .iter()
            .any(|fact| fact.starts_with("s3:DeleteObject: ")),
        "{rights:?}"
    );
    assert!(
        of_bucket.iter().any(|one| one["mend"]["how"] == "policy"),
        "{of_bucket:#?}"
    );
    assert!(
        rights.iter().any(|fact| fact.starts_with("s3:PutObject: ")),
        "{rights:?}"
    );
    assert_eq!(code, 1);
    // Away altogether: said once, and the rest is looked at.
    let (findings, code) =
        place.check_with(|pgark| with(pgark).env("S3_ENDPOINT", "http://127.0.0.1:9"));
    assert_eq!(code, 1);
    assert_eq!(
        findings
            .iter()
            .filter(|one| one["subject"] == "store s3")
            .count(),
        1
    );
}

#[test]
fn a_suspect_backup_is_spoken_of_until_it_is_accepted() {
    let place = Place::new(15, &Setup::default());
    place.server.psql(
        "app",
        "GRANT pg_read_all_data TO \"back up\"; CREATE TABLE lost AS SELECT generate_series(1, 10) AS i",
    );
    place.pgark(&["backup"]).run().assert_code(0);
    place.server.psql("app", "DROP TABLE lost");
    place.pgark(&["backup"]).run().assert_code(3);
    place_mends_suspect(&place);
}

#[track_caller]
fn place_mends_suspect(place: &Place) {
    let (findings, _) = place.check();
    let suspect = one(&findings, "suspect");
    let line = suspect["mend"]["lines"][0].as_str().unwrap();
    let id = line
        .strip_prefix("pgark accept '")
        .unwrap()
        .strip_suffix('\'')
        .unwrap();
    place.pgark(&["accept", id]).run().assert_code(0);
    let (findings, _) = place.check();
    assert!(findings.iter().all(|one| one["topic"] != "suspect"));
}
