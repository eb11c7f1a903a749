//! Many backups in a bucket: what reads them all takes no request for each.

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::second_store::with_bucket;
use crate::support::garage::Garage;
use crate::support::site::files;
use crate::support::{Pgark, Site};

const COUNT: i64 = 300;

/// So many older backups with the data of this one, an hour between two.
fn add_older(site: &Site, id: &str, count: i64) {
    let stamp = &id[id.len() - 15..];
    let at = jiff::civil::DateTime::strptime("%Y%m%d_%H%M%S", stamp).unwrap();
    let json: Value =
        serde_json::from_slice(&std::fs::read(site.file(id, ".json")).unwrap()).unwrap();
    for hours in 1..=count {
        let moment = at - jiff::Span::new().hours(hours);
        let other = id.replace(stamp, &moment.strftime("%Y%m%d_%H%M%S").to_string());
        let mut json = json.clone();
        json.as_object_mut().unwrap().remove("check");
        json["started_at"] = Value::from(format!("{moment}Z"));
        json["finished_at"] = Value::from(format!("{moment}Z"));
        let text = serde_json::to_string_pretty(&json)
            .unwrap()
            .replace(id, &other);
        let body = text.strip_suffix("\n}").unwrap();
        let check = hex::encode(Sha256::digest(body));
        let text = format!("{body},\n  \"check\": \"{check}\"\n}}\n");
        std::fs::write(site.file(&other, ".json"), text).unwrap();
        for suffix in ["", ".idx"] {
            std::fs::hard_link(site.file(id, suffix), site.file(&other, suffix)).unwrap();
        }
    }
}

/// Requests that the server has logged.
fn requests(garage: &Garage) -> usize {
    let log = garage.log();
    log.lines()
        .filter(|line| line.contains("generic_server") && line.contains(" /"))
        .count()
}

#[test]
fn reading_all_backups_of_a_bucket_takes_no_request_for_each() {
    let (site, garage) = (Site::new("many"), Garage::start());
    let id = site.backup();
    add_older(&site, &id, COUNT);
    let pgark = |verb: &[&str]| with_bucket(site.pgark(verb), garage.port);
    pgark(&["replicate", "-q"]).run().assert_code(0);
    let all = usize::try_from(COUNT).unwrap() + 2;
    let ask = |pgark: Pgark| {
        let before = requests(&garage);
        let done = pgark.run().assert_code(0);
        (done.stdout, requests(&garage) - before)
    };
    let lines = |text: &str| text.lines().count();
    let (listed, count) = ask(pgark(&["list", "--store", "s3"]));
    assert_eq!(lines(&listed), all + 1);
    assert!(
        (2..12).contains(&count),
        "list: {count} requests\n{}",
        garage.log()
    );
    let (verdicts, count) = ask(pgark(&["prune", "--dry-run", "--store", "s3"]));
    assert_eq!(lines(&verdicts), all + 1);
    assert!(count < 12, "prune: {count} requests");
    let (status, count) = ask(pgark(&["status", "--exit-code", "--store", "s3"]));
    assert!(
        status.contains(&id) && count < 12,
        "status: {count} requests"
    );
    // A backup is used by its manifest, which is read then.
    let (_, count) = ask(pgark(&["verify", &id, "--store", "s3", "-q"]));
    assert!(count < 30, "verify: {count} requests");
    // What a prune leaves is known at once, and no more than that.
    let short = |verb: &[&str]| pgark(verb).env("S3_RETENTION_DAYS", "12");
    let expired = short(&["prune", "--store", "s3"]).run().assert_code(0);
    let left = all - lines(&expired.stdout);
    assert!((280..all).contains(&left), "{left}");
    let (listed, count) = ask(pgark(&["list", "--store", "s3"]));
    assert_eq!(lines(&listed), left + 1);
    assert!((2..12).contains(&count), "list: {count} requests");
    let here = pgark(&["list", "--json", "--store", "local"])
        .run()
        .assert_code(0)
        .stdout;
    assert_eq!(
        files(site.dir.path())
            .keys()
            .filter(|name| name.contains("catalog"))
            .count(),
        0
    );
    let there = pgark(&["list", "--json", "--store", "s3"])
        .run()
        .assert_code(0)
        .stdout;
    assert_eq!(seen(&here)[..left], seen(&there));
}

/// What both stores must say alike: not the name of the store, nor the outcome of its verify.
fn seen(json: &str) -> Vec<String> {
    let entries: Vec<Value> = serde_json::from_str(json).unwrap();
    let fields = [
        "id",
        "database",
        "started_at",
        "finished_at",
        "bytes",
        "raw_bytes",
        "sha256",
    ];
    let line = |entry: &Value| fields.map(|field| entry[field].to_string()).join(" ");
    entries.iter().map(line).collect()
}
