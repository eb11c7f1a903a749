//! Several clusters and stores of one `pgark.toml`, on real servers.

use std::path::PathBuf;

use serde_json::Value;

use crate::service::{Service, journal};
use crate::support::garage::{ACCESS_KEY, BUCKET, Garage, REGION, SECRET_KEY};
use crate::support::site::{first_id, list, password_file};
use crate::support::{Pgark, Server, TempDir};

/// Two servers, a file that names both, and a directory for all backups.
struct Two {
    servers: [Server; 2],
    place: TempDir,
}

impl Two {
    /// `top` stands at the top of the file, `end` behind its clusters.
    fn new(top: &str, end: &str) -> Two {
        let two = Two {
            servers: [Server::start(15), Server::start(17)],
            place: TempDir::new(),
        };
        for server in &two.servers {
            server.createdb("app");
            server.psql(
                "app",
                "CREATE TABLE item AS SELECT generate_series(1, 100) id",
            );
        }
        let ports = [two.port(0), two.port(1)];
        two.write(top, ports, end);
        two
    }

    fn port(&self, server: usize) -> String {
        let mut env = self.servers[server].env().into_iter();
        env.find(|(name, _)| *name == "PGPORT" || *name == "DB_PORT")
            .unwrap()
            .1
    }

    fn write(&self, top: &str, ports: [String; 2], end: &str) {
        let password = password_file(&self.place).display().to_string();
        let clusters: Vec<String> = ["one", "two"]
            .iter()
            .zip(ports)
            .zip(&self.servers)
            .map(|((name, port), server)| {
                let programs = server.bin().display().to_string();
                format!(
                    "[[cluster]]\nname = {name:?}\ndb_host = \"127.0.0.1\"\ndb_port = {port}\n\
                     db_name = \"app\"\ndb_user = \"postgres\"\ndb_password_file = {password:?}\n\
                     pgark_pg_bin = {programs:?}\n"
                )
            })
            .collect();
        let text = format!("{top}\n{}\n{end}", clusters.concat());
        std::fs::write(self.file(), text).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.place.join("pgark.toml")
    }

    fn backups(&self, cluster: &str) -> PathBuf {
        self.place.join("backups").join(cluster)
    }

    fn pgark(&self, args: &[&str]) -> Pgark {
        Pgark::new(args)
            .env("PGARK_CONFIG", self.file())
            .store(&self.place.join("backups"))
    }

    fn json(&self, args: &[&str]) -> Value {
        let done = self.pgark(args).run().assert_code(0);
        serde_json::from_str(&done.stdout).unwrap()
    }
}

#[test]
fn each_has_a_folder_of_its_own_and_its_name_before_its_ids() {
    let two = Two::new("backup_jobs = 1", "");
    let done = two.pgark(&["backup"]).run().assert_code(0);
    let id = first_id(&done.stdout);
    assert!(id.starts_with("one/backup_app_"), "{}", done.stdout);
    for name in ["one", "two"] {
        let there = list(&two.backups(name));
        assert_eq!(there.len(), 2, "a dump and the globals of {name}");
        assert!(
            there.iter().all(|entry| entry["cluster"] == name),
            "{there:?}"
        );
    }
    let all = two.json(&["list", "--json"]);
    let all = all.as_array().unwrap();
    assert_eq!(all.len(), 4);
    assert!(
        all.iter()
            .any(|entry| entry["id"] == id.as_str() && entry["cluster"] == "one")
    );
    // What is printed can be given back.
    assert_eq!(two.json(&["show", &id, "--json"])["id"], id.as_str());
    two.pgark(&["verify", &id]).run().assert_code(0);
    assert!(
        two.pgark(&["cat", &id])
            .run()
            .assert_code(0)
            .stdout
            .contains("CREATE TABLE")
    );
    let plan = two.pgark(&["restore", "two/latest", "--dry-run"]).run();
    plan.assert_code(0);
}

#[test]
fn what_could_mean_several_is_refused_with_the_candidates() {
    let two = Two::new("backup_jobs = 1", "");
    let done = two.pgark(&["backup"]).run().assert_code(0);
    let id = first_id(&done.stdout);
    // Several could be meant: the candidates are named, and nothing is done.
    let refused = two.pgark(&["restore"]).run().assert_code(2);
    assert!(
        refused.stderr.contains(&id) && refused.stderr.contains("two/"),
        "{}",
        refused.stderr
    );
    let only = two.json(&["list", "--json", "--cluster", "two"]);
    assert_eq!(only.as_array().unwrap().len(), 2);
    let refused = two
        .pgark(&["list", "--cluster", "three"])
        .run()
        .assert_code(2);
    assert!(
        refused.stderr.contains("clusters: one, two"),
        "{}",
        refused.stderr
    );
    let status = two.json(&["status", "--json"]);
    let clusters = status["clusters"].as_array().unwrap();
    assert!(
        clusters.iter().all(|one| one["healthy"] == true),
        "{status}"
    );
    assert_eq!(clusters[1]["cluster"], "two");
    let plan = two.json(&["prune", "--dry-run", "--json"]);
    let verdict = &plan["clusters"][0]["verdicts"][0];
    assert!(
        verdict["id"].as_str().unwrap().starts_with("one/"),
        "{plan}"
    );
}

#[test]
fn one_that_fails_stops_no_other() {
    let two = Two::new("", "");
    let dead = Two::closed_port();
    two.write("", [dead, two.port(1)], "");
    let done = two.pgark(&["backup"]).run().assert_code(3);
    assert!(
        done.stderr.contains("1 of 2 clusters failed: one"),
        "{}",
        done.stderr
    );
    assert!(done.stderr.contains("one: "), "{}", done.stderr);
    assert_eq!(list(&two.backups("two")).len(), 2);
    // The same of one whose directory cannot be had.
    std::fs::remove_dir_all(two.backups("one")).unwrap();
    std::fs::write(two.backups("one"), "a file").unwrap();
    let done = two.pgark(&["list"]).run().assert_code(3);
    assert!(done.stdout.contains("two/backup_app_"), "{}", done.stdout);
    let done = two.pgark(&["status", "--exit-code"]).run().assert_code(3);
    assert!(done.stdout.contains("two/backup_app_"), "{}", done.stdout);
}

impl Two {
    /// A port where nobody listens.
    fn closed_port() -> String {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port().to_string()
    }
}

#[test]
fn a_service_serves_each_and_no_more_runs_at_once_than_allowed() {
    let two = Two::new("max_runs = 1\nbackup_retention_days = 9", "");
    let service = Service::start(two.pgark(&["serve"]));
    for name in ["one", "two"] {
        service.wait_for_log(&format!("{name}: run done"));
    }
    let log = service.log();
    let at = |text: &str| log.find(text).unwrap_or_else(|| panic!("{text}: {log}"));
    let before = |first: &str, second: &str| {
        at(&format!("{first}: run done")) < at(&format!("{second}: database app: dump begins"))
    };
    assert!(before("one", "two") || before("two", "one"), "{log}");
    for name in ["one", "two"] {
        assert_eq!(journal(&two.backups(name)).len(), 1);
    }
    assert!(
        service.log().contains("waits for its turn"),
        "{}",
        service.log()
    );
    let (code, health) = service.get("/healthz");
    assert_eq!(code, 200, "{health}");
    assert_eq!(health["clusters"][0]["cluster"], "one");
    // One cluster lost its backups: the answer is about all of them.
    for entry in std::fs::read_dir(two.backups("two")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::remove_file(path).unwrap();
        }
    }
    crate::support::until("the loss to show", || service.get("/healthz").0 == 503);
    let (_, health) = service.get("/healthz");
    assert_eq!(health["clusters"][0]["healthy"], true, "{health}");
    assert_eq!(health["clusters"][1]["healthy"], false, "{health}");
    service.end("TERM", 143);
}

#[test]
fn a_service_goes_on_with_the_others_when_one_cannot_begin() {
    let two = Two::new("", "");
    std::fs::create_dir_all(two.place.join("backups")).unwrap();
    std::fs::write(two.backups("one"), "a file").unwrap();
    // From the time when there was one cluster.
    let old = "backup_app_20240101_020000.sql.gz";
    for suffix in ["", ".sha256"] {
        std::fs::write(two.backups(&format!("{old}{suffix}")), "old").unwrap();
    }
    let service = Service::start(two.pgark(&["serve"]));
    service.wait_for_log("two: run done");
    service.wait_for_log("one: run ended with exit code");
    assert!(
        service.log().contains("is not a directory"),
        "{}",
        service.log()
    );
    assert_eq!(service.get("/healthz").0, 503);
    service.end("TERM", 143);
    assert_eq!(list(&two.backups("two")).len(), 2);
}

#[test]
fn several_stores_are_filled_and_one_that_is_away_stops_no_other() {
    let garage = Garage::start();
    let store = |name: &str, port: &str, prefix: &str| {
        format!(
            "[[store]]\nname = {name:?}\ns3_bucket = {BUCKET:?}\ns3_prefix = {prefix:?}\n\
             s3_endpoint = \"http://127.0.0.1:{port}\"\naws_region = {REGION:?}\n\
             aws_access_key_id = {ACCESS_KEY:?}\naws_secret_access_key = {SECRET_KEY:?}\n"
        )
    };
    let port = garage.port.to_string();
    let (near, gone) = (TempDir::new(), Two::closed_port());
    let disk = format!(
        "[[store]]\nname = \"disk\"\nbackup_dir = {:?}\n",
        near.path()
    );
    let stores = |b: &str| disk.clone() + &store("a", &gone, "a/") + &store("b", b, "b/");
    let two = Two::new("", &stores(&port));
    let pgark = |args: &[&str]| Pgark::new(args).env("PGARK_CONFIG", two.file());
    let done = pgark(&["backup", "--cluster", "two"]).run().assert_code(3);
    assert!(
        done.stderr.contains("a is not up to date"),
        "{}",
        done.stderr
    );
    let id = first_id(&done.stdout);
    let done = pgark(&["list", "--json", "--cluster", "two"])
        .run()
        .assert_code(0);
    let all: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(all[1]["stores"], serde_json::json!(["disk", "b"]), "{all}");
    // Straight from the second one, the first being lost.
    std::fs::remove_dir_all(near.path().join("two")).unwrap();
    std::fs::create_dir_all(near.path().join("two")).unwrap();
    let done = pgark(&["cat", &id, "--store", "b"]).run().assert_code(0);
    assert!(done.stdout.contains("pgark: complete, 1 tables, 100 rows"));
}
