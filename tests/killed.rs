//! pgark killed at every step of the commit protocol, and failing at each, beside files of the
//! old service: nothing false is listed, nothing foreign is touched, every remain is cleared.

use crate::support::site::{files, list, stays};
use crate::support::{Pgark, Run, Server, TempDir, run};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

const LEGACY: &str = "backup_app_20240101_000000.sql.gz";
const YOUNG: &str = "backup_app_20240102_000000.sql.gz";

/// A store in which the old service has lived, on a server of its own.
struct Stage {
    server: Server,
    dir: TempDir,
    foreign: BTreeMap<String, Vec<u8>>,
}

impl Stage {
    fn new() -> Stage {
        let server = Server::start(15);
        server.createdb("app");
        server.psql(
            "app",
            "CREATE TABLE t AS SELECT i, md5(i::text) FROM generate_series(1, 500) i",
        );
        let dir = TempDir::new();
        let dump = "pg_dump -d app | gzip > \"$0\" && sha256sum \"$0\" > \"$0.sha256\"";
        let mut shell = Command::new("sh");
        shell
            .args(["-c", dump, LEGACY])
            .current_dir(dir.path())
            .env_clear()
            .env("PGHOST", server.socket_dir())
            .env("PGPORT", server.port.to_string())
            .env("PGUSER", "postgres")
            .env("PATH", format!("{}:/usr/bin:/bin", server.bin().display()));
        run(&mut shell).assert_code(0);
        std::fs::copy(dir.join(LEGACY), dir.join(YOUNG)).unwrap();
        std::fs::write(dir.join("notes.txt"), "mine").unwrap();
        // Not everything that begins with a dot is pgark's.
        std::fs::write(dir.join(".hidden"), "mine too").unwrap();
        let foreign = files(dir.path());
        assert_eq!(foreign.len(), 5);
        Stage {
            server,
            dir,
            foreign,
        }
    }

    fn backup(&self, failure: Option<&str>) -> Run {
        let pgark = Pgark::new(["backup", "-q", "--no-prune"])
            .server(&self.server)
            .store(self.dir.path());
        let pgark = pgark.env("DB_NAME", "app").env("BACKUP_JOBS", "1");
        match failure {
            Some(failure) => pgark.env("PGARK_FAIL_AT", failure).run(),
            None => pgark.run(),
        }
    }

    /// Store steps of one undisturbed run.
    fn steps(&self) -> u32 {
        let count = self.dir.join("count");
        let pgark = Pgark::new(["backup", "--no-prune"])
            .server(&self.server)
            .store(self.dir.path());
        pgark
            .env("DB_NAME", "app")
            .env("BACKUP_JOBS", "1")
            .env("PGARK_FAIL_COUNT", &count)
            .run()
            .assert_code(0);
        let steps = std::fs::read_to_string(&count).unwrap().parse().unwrap();
        self.reset();
        steps
    }

    /// Back to the old service's files alone.
    fn reset(&self) {
        for name in files(self.dir.path())
            .keys()
            .filter(|name| !self.foreign.contains_key(*name))
        {
            std::fs::remove_file(self.dir.join(name)).unwrap();
        }
    }

    /// Whatever happened: the list is true, and foreign files are what they were.
    #[track_caller]
    fn assert_true(&self, when: &str) {
        let now = files(self.dir.path());
        for (name, content) in &self.foreign {
            assert!(now.get(name) == Some(content), "{when}: {name} was touched");
        }
        for entry in list(self.dir.path()) {
            let id = entry["id"].as_str().unwrap();
            if format!("{id}.sql.gz") == LEGACY {
                assert_eq!(entry["state"], "legacy", "{when}");
                continue;
            }
            assert!(
                now.contains_key(&format!("{id}.sql.gz.json")),
                "{when}: {id} is listed"
            );
            assert_eq!(entry["good"], true, "{when}: {entry}");
            let verified = Pgark::new(["verify", id, "-q"])
                .store(self.dir.path())
                .run();
            assert_eq!(verified.code, 0, "{when}: {verified:?}");
        }
    }

    /// No temporary name, no artefact or index without its manifest, no manifest without a sum.
    #[track_caller]
    fn assert_clear(&self, when: &str) {
        let now = files(self.dir.path());
        for name in now.keys().filter(|name| !self.foreign.contains_key(*name)) {
            if stays(name) || name.starts_with(".pgark/state/") {
                assert!(!name.ends_with(".pgark-tmp"), "{when}: {name} is left");
                continue;
            }
            let base = name.split_inclusive(".sql.gz").next().unwrap();
            for suffix in ["", ".idx", ".json", ".sha256"] {
                assert!(
                    now.contains_key(&format!("{base}{suffix}")),
                    "{when}: {name} is left without {suffix}"
                );
            }
        }
        sums_hold(self.dir.path(), when);
    }
}

#[track_caller]
fn sums_hold(dir: &Path, when: &str) {
    let check = "cat *.sha256 | sha256sum --quiet -c";
    let done = run(Command::new("sh").args(["-c", check]).current_dir(dir));
    assert_eq!(done.code, 0, "{when}: {done:?}");
}

#[test]
fn a_run_killed_at_any_step_lists_nothing_false_and_the_next_clears_it() {
    let stage = Stage::new();
    let steps = stage.steps();
    assert!(
        steps > 25,
        "a dump and its globals are more than {steps} steps"
    );
    let mut remains_seen = 0;
    for step in 1..=steps {
        let when = format!("killed at step {step} of {steps}");
        let killed = stage.backup(Some(&format!("abort:{step}")));
        assert_eq!(killed.code, 134, "{when}: {killed:?}");
        stage.assert_true(&when);
        let left = files(stage.dir.path()).len() - stage.foreign.len();
        // Two deaths in a row are no better excuse: the second comes at the clearing.
        if step % 3 == 0 {
            let again = stage.backup(Some("abort:1"));
            assert_eq!(again.code, 134, "{when}, then at once: {again:?}");
            stage.assert_true(&format!("{when} and again"));
        }
        let done = stage.backup(None);
        assert_eq!(done.code, 0, "after {when}: {done:?}");
        stage.assert_true(&format!("after {when}"));
        stage.assert_clear(&format!("after {when}"));
        remains_seen += usize::from(left > 1);
        stage.reset();
    }
    assert!(
        remains_seen > 20,
        "only {remains_seen} deaths left anything"
    );
}

#[test]
fn a_run_that_fails_at_any_step_cleans_up_after_itself() {
    let stage = Stage::new();
    let steps = stage.steps();
    for step in 1..=steps {
        let when = format!("failed at step {step} of {steps}");
        let failed = stage.backup(Some(&format!("error:{step}")));
        assert!(matches!(failed.code, 1 | 3), "{when}: {failed:?}");
        let failed = failed.assert_says("no space left: injected");
        stage.assert_true(&when);
        let dumps = list(stage.dir.path())
            .iter()
            .filter(|entry| entry["kind"] == "dump" && entry["state"] != "legacy")
            .count();
        assert_eq!(
            dumps > 0,
            failed.code == 3,
            "{when}: code and list disagree: {failed:?}"
        );
        let temporary = files(stage.dir.path())
            .into_keys()
            .find(|name| name.ends_with(".pgark-tmp"));
        assert_eq!(temporary, None, "{when}");
        let done = stage.backup(None);
        assert_eq!(done.code, 0, "after {when}: {done:?}");
        stage.assert_true(&format!("after {when}"));
        stage.assert_clear(&format!("after {when}"));
        stage.reset();
    }
}
