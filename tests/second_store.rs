//! The second store: a bucket of a real server beside the local directory.

use serde_json::Value;

use crate::support::garage::{ACCESS_KEY, BUCKET, Garage, REGION, SECRET_KEY};
use crate::support::gate::Gate;
use crate::support::site::{first_id, list};
use crate::support::{Pgark, Site, table_digest, until};

/// With a bucket behind this port.
pub(crate) fn with_bucket(pgark: Pgark, port: u16) -> Pgark {
    pgark
        .env("S3_BUCKET", BUCKET)
        .env("S3_ENDPOINT", format!("http://127.0.0.1:{port}"))
        .env("AWS_REGION", REGION)
        .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
}

fn listed(pgark: Pgark) -> Vec<Value> {
    serde_json::from_str(&pgark.run().assert_code(0).stdout).unwrap()
}

fn ids(entries: &[Value]) -> Vec<&str> {
    entries
        .iter()
        .map(|entry| entry["id"].as_str().unwrap())
        .collect()
}

#[test]
fn a_backup_is_in_both_stores_and_comes_back_from_each() {
    let (site, garage) = (Site::new("both"), Garage::start());
    let port = garage.port;
    let done = site
        .backup_with(|pgark| with_bucket(pgark, port))
        .assert_code(0);
    let id = first_id(&done.stdout);
    let all = listed(with_bucket(site.pgark(["list", "--json"]), port));
    assert_eq!(all.len(), 2);
    for entry in &all {
        assert_eq!(
            entry["stores"],
            serde_json::json!(["local", "s3"]),
            "{entry}"
        );
    }
    let there = listed(with_bucket(
        site.pgark(["list", "--json", "--store", "s3"]),
        port,
    ));
    assert_eq!(ids(&there), ids(&all));
    assert_eq!(there[1]["sha256"], site.entry(&id)["sha256"]);
    // The local directory is lost.
    let verb = ["restore", &id, "--into", "from_s3", "--store", "s3"];
    let elsewhere = site.dir.join("nothing");
    with_bucket(site.pgark(verb), port)
        .store(&elsewhere)
        .run()
        .assert_code(0);
    assert_eq!(
        table_digest(site.server, "both"),
        table_digest(site.server, "from_s3")
    );
    // Not there, or not whole there: the bucket serves without being asked.
    let latest = with_bucket(site.pgark(["restore", "--into", "unasked"]), port);
    latest
        .store(&elsewhere)
        .run()
        .assert_code(0)
        .assert_says("is read from s3://");
    std::fs::remove_file(site.file(&id, "")).unwrap();
    with_bucket(site.pgark(["cat", &id]), port)
        .run()
        .assert_code(0)
        .assert_says("is read from s3://");
    with_bucket(site.pgark(["verify", &id, "--store", "s3", "-q"]), port)
        .run()
        .assert_code(0);
    let report = std::fs::read_to_string(site.dir.join("backup.log")).unwrap();
    assert!(report.contains(&format!("{id} is in s3 now")), "{report}");
    // Nothing is copied twice, nor what is not whole here.
    let again = with_bucket(site.pgark(["replicate"]), port)
        .run()
        .assert_code(0);
    assert_eq!(again.stdout, "");
}

#[test]
fn an_outage_leaves_the_local_copy_good_and_the_service_catches_up_by_itself() {
    let (site, garage) = (Site::new("outage"), Garage::start());
    let gate = Gate::to(garage.port);
    let first = site
        .backup_with(|pgark| with_bucket(pgark, gate.port))
        .assert_code(0);
    gate.close();
    let during = site
        .backup_with(|pgark| with_bucket(pgark, gate.port))
        .assert_code(3)
        .assert_says("the backup is kept")
        .assert_says("s3 is not up to date");
    let id = first_id(&during.stdout);
    assert_eq!(site.entry(&id)["good"], true);
    let status = with_bucket(site.pgark(["status"]), gate.port).run();
    status.assert_says("s3 is not up to date");
    // Somebody else's upload that is cut in its middle is no copy either.
    let here = with_bucket(site.pgark(["list", "--json"]), gate.port)
        .run()
        .assert_code(0);
    here.assert_says("s3 cannot be listed");
    let _turn = site.turn();
    let log = site.dir.join("serve.out");
    let serve = with_bucket(site.pgark(["serve"]), gate.port)
        .env("BACKUP_ON_START", "false")
        .env("HTTP_ADDR", "127.0.0.1:0")
        .spawn_logging_to(&log);
    until("the service to fail once", || {
        let text = std::fs::read_to_string(&log).unwrap();
        text.contains("S3") || text.contains("s3") && text.contains("hint")
    });
    gate.open();
    until("the service to catch up", || {
        let text = std::fs::read_to_string(&log).unwrap();
        text.contains(&format!("{id} is in "))
    });
    serve.signal("TERM");
    assert_eq!(serve.wait().code, 143);
    let there = listed(with_bucket(
        site.pgark(["list", "--json", "--store", "s3"]),
        gate.port,
    ));
    assert!(ids(&there).contains(&id.as_str()) && there.iter().all(|entry| entry["good"] == true));
    assert_eq!(there.len(), list(site.dir.path()).len());
    drop(first);
}

#[test]
fn what_the_bucket_has_expired_is_not_copied_again() {
    let (site, garage) = (Site::new("expired_there"), Garage::start());
    let port = garage.port;
    let old = crate::prune::backup_at(&site, "-20d");
    let young = crate::prune::backup_at(&site, "-2d");
    let pgark = |verb: &[&str]| with_bucket(site.pgark(verb), port).env("S3_RETENTION_DAYS", "7");
    pgark(&["replicate"]).run().assert_code(0);
    let there = listed(pgark(&["list", "--json", "--store", "s3"]));
    assert!(
        ids(&there).contains(&young.as_str()) && !ids(&there).contains(&old.as_str()),
        "{there:?}"
    );
    // With a longer memory it would.
    pgark(&["replicate"])
        .env("S3_RETENTION_DAYS", "30")
        .run()
        .assert_code(0);
    let there = listed(pgark(&["list", "--json", "--store", "s3"]));
    assert!(ids(&there).contains(&old.as_str()));
    let dry = pgark(&["prune", "--dry-run"]).run().assert_code(0);
    let line = dry
        .stdout
        .lines()
        .find(|line| line.contains(&old) && line.starts_with("s3"))
        .unwrap();
    assert!(
        line.contains("expire") && line.contains("older than 7 days"),
        "{line}"
    );
    pgark(&["prune"]).run().assert_code(0);
    let there = listed(pgark(&["list", "--json", "--store", "s3"]));
    assert!(!ids(&there).contains(&old.as_str()));
    assert_eq!(site.entry(&old)["good"], true, "the local copy stays");
    pgark(&["replicate"]).run().assert_code(0);
    let there = listed(pgark(&["list", "--json", "--store", "s3"]));
    assert!(!ids(&there).contains(&old.as_str()));
}

#[test]
fn a_local_copy_that_is_damaged_is_not_copied() {
    let (site, garage) = (Site::new("damaged_here"), Garage::start());
    let id = site.backup();
    let file = site.file(&id, "");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let done = with_bucket(site.pgark(["replicate"]), garage.port)
        .run()
        .assert_code(3);
    done.assert_says(&id)
        .assert_says("not what its manifest says");
    let there = listed(with_bucket(
        site.pgark(["list", "--json", "--store", "s3"]),
        garage.port,
    ));
    assert!(!ids(&there).contains(&id.as_str()));
}

#[test]
fn wrong_settings_say_what_is_wrong_and_the_backup_is_kept() {
    let (site, garage) = (Site::new("wrong_keys"), Garage::start());
    let cases = [
        ("AWS_SECRET_ACCESS_KEY", "wrong", "AWS_SECRET_ACCESS_KEY"),
        ("S3_BUCKET", "absent", "absent"),
    ];
    for (name, value, words) in cases {
        let done = site.backup_with(|pgark| with_bucket(pgark, garage.port).env(name, value));
        let done = done
            .assert_code(3)
            .assert_says("the backup is kept")
            .assert_says(words);
        assert!(!done.stderr.contains(SECRET_KEY));
        assert_eq!(site.entry(&first_id(&done.stdout))["good"], true);
    }
    site.pgark(["backup"])
        .env("S3_BUCKET", BUCKET)
        .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        .run()
        .assert_code(2)
        .assert_says("AWS_SECRET_ACCESS_KEY is not");
    site.pgark(["replicate"])
        .run()
        .assert_code(2)
        .assert_says("S3_BUCKET");
    site.pgark(["list", "--store", "s3"]).run().assert_code(2);
}
