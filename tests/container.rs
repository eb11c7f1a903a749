//! The image and the composed stack, used as the old service's manual says. Needs a Docker
//! engine; where there is none, one line says so.

mod bucket;
mod manual;
mod stack;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::{Run, run, until};
use bucket::Bucket;
use manual::{BLOCKS, EXAMPLE, RESTORE, UP};
use stack::{IMAGE, PASSWORD, Stack, bash, docker, engine};

/// What stands in for a person: `logs -f` is looked at for a while, and so is `ping`; the S3
/// server is not Amazon's.
const PERSON: &str = "\
docker-compose() { case \" $* \" in *' logs -f '*) timeout 4 docker-compose \"$@\" || [ $? = 124 ];; *) command docker-compose \"$@\";; esac; }
docker() { case \" $* \" in *' ping '*) timeout 3 docker \"$@\" || [ $? = 124 ];; *) command docker \"$@\";; esac; }
aws() { (. ./s3.env && command aws --endpoint-url \"$S3_ENDPOINT\" \"$@\"); }
";

/// A stack whose database holds something, with its first backup taken.
fn filled(stack: &Stack) {
    stack.sh(UP).assert_code(0);
    Stack::wait_for("run done");
    stack.psql(
        "CREATE TABLE item (id int PRIMARY KEY, label text);
         INSERT INTO item SELECT i, md5(i::text) FROM generate_series(1, 1000) i;",
    );
}

/// Lays down a backup as the old service left it, of the old manual's name.
fn lay_legacy(stack: &Stack) {
    let script = format!(
        "cd backups
         docker exec agentic-postgres-prod pg_dump --clean --if-exists -U postgres agentic_db | gzip >{EXAMPLE}.sql.gz
         sha256sum {EXAMPLE}.sql.gz >{EXAMPLE}.sql.gz.sha256"
    );
    stack.sh(&script).assert_code(0);
}

const UP_LINE: &str = "docker-compose -f docker-compose.prod.yml up -d";

const CONTENTS: &str = "SELECT count(*), md5(string_agg(item::text, ' ' ORDER BY id)) FROM item";

/// Backends of the application.
const CLIENTS: &str = "SELECT count(*) FROM pg_stat_activity WHERE client_addr IS NOT NULL AND application_name = 'psql'";

#[test]
fn every_command_of_the_old_manual_works_literally() {
    let Some(engine) = engine() else { return };
    let stack = Stack::new(&engine);
    filled(&stack);
    let bucket = Bucket::start(&stack);
    for block in BLOCKS {
        follow(&stack, &bucket, block);
    }
    in_passing(&stack);
}

/// A block on its way: what it is, what it said, and the backups before and after it.
struct Step<'a> {
    block: &'a str,
    /// Its first command.
    first: &'a str,
    stdout: String,
    before: Vec<String>,
    after: Vec<String>,
}

impl Step<'_> {
    #[track_caller]
    fn says(&self, words: &[&str]) {
        for word in words {
            let (block, stdout) = (self.block, &self.stdout);
            assert!(stdout.contains(word), "{word:?} in {block}\n{stdout}");
        }
    }
}

/// A shell of a person's.
fn person(stack: &Stack, script: &str) -> Run {
    stack.sh(&format!("{PERSON}{script}"))
}

/// Runs one block and checks what it is for.
fn follow(stack: &Stack, bucket: &Bucket, block: &str) {
    let first = block.lines().find(|line| !line.starts_with('#')).unwrap();
    if block == RESTORE {
        return restores(stack);
    }
    if first.starts_with("BACKUP_SCHEDULE=") {
        return is_accepted(block);
    }
    let before = stack.backups(".sql.gz");
    prepare(stack, first, &before);
    let before = stack.backups(".sql.gz");
    let done = person(stack, block).assert_code(0);
    let step = Step {
        block,
        first,
        stdout: done.stdout,
        before,
        after: stack.backups(".sql.gz"),
    };
    if first.starts_with("aws ") || first.starts_with("export ") || block == UP {
        check_s3(stack, bucket, &step);
    } else {
        check(stack, bucket, &step);
    }
}

/// Lays down what a block works on.
fn prepare(stack: &Stack, first: &str, before: &[String]) {
    match first {
        "cd backups" | "docker run --rm \\" => lay_legacy(stack),
        _ if first.starts_with("aws s3 cp ") => {
            lay_legacy(stack);
            person(stack, &Bucket::put_example()).assert_code(0);
        }
        _ if first.starts_with("find ") => {
            // The old service's and one of pgark's.
            for name in &before[..2] {
                let old = stack.path("backups").join(name);
                run(Command::new("touch").args(["-d", "8 days ago"]).arg(old)).assert_code(0);
            }
        }
        _ => {}
    }
}

fn check(stack: &Stack, bucket: &Bucket, step: &Step) {
    let (before, after) = (&step.before, &step.after);
    match step.first {
        UP_LINE => {
            step.says(&["run done", "backup.log", &before[0]]);
            assert_eq!(after.len(), before.len() + 1, "a manual run's backup");
        }
        "docker run --rm \\" => {
            // One came; the old service's file, of 2025, waited for it and has expired.
            assert!(!after.contains(&format!("{EXAMPLE}.sql.gz")), "{after:?}");
            assert_eq!(after.len(), before.len(), "{before:?} {after:?}");
        }
        "cd backups" => step.says(&[&format!("{EXAMPLE}.sql.gz: OK")]),
        "docker-compose -f docker-compose.prod.yml stop api" => {
            until("the client to be gone", || stack.psql(CLIENTS) == "0");
        }
        "docker-compose -f docker-compose.prod.yml start api" => {
            until("the client to be back", || stack.psql(CLIENTS) == "1");
        }
        "docker-compose -f docker-compose.prod.yml logs -f backup" => {
            step.says(&["serves: database agentic_db", "backup done: ", "sha256 "]);
            let log = docker(["exec", IMAGE, "cat", "/var/log/cron/backup-cron.log"]);
            assert!(log.assert_code(0).stdout.contains("is in s3://"));
        }
        "docker exec agentic-backup-prod ls -lh /backups/" => {
            step.says(&[after.last().unwrap()]);
            // Four files here and four in the bucket.
            assert_eq!(step.stdout.matches(&bucket.newest()).count(), 8);
        }
        first if first.starts_with("docker exec agentic-backup-prod sh -c") => {
            step.says(&[".sql.gz: OK"]);
        }
        first if first.starts_with("ls ") => step.says(&[after.last().unwrap()]),
        first if first.starts_with("find ") => {
            assert_eq!(*after, before[2..]);
            // The bucket has it still.
            for (store, words) in [("local", "missing"), ("s3", "taken")] {
                let list = docker(["exec", IMAGE, "pgark", "list", "--store", store]);
                let list = list.assert_code(0).stdout;
                let id = before[1].trim_end_matches(".sql.gz");
                let line = list.lines().find(|line| line.starts_with(id));
                assert!(line.is_some_and(|line| line.contains(words)), "{list}");
            }
        }
        first => panic!("the block that begins with {first} has no check"),
    }
}

fn check_s3(stack: &Stack, bucket: &Bucket, step: &Step) {
    match step.first {
        // What the manual leaves to its reader: real keys in the place of the examples.
        first if first.starts_with("export ") => Bucket::export(stack),
        UP_LINE => {
            until("the local backups to reach the bucket", || {
                let list = person(stack, bucket::LIST);
                list.stdout.contains(step.before.last().unwrap())
            });
            docker(["exec", IMAGE, "backup.sh"]).assert_code(0);
            bucket.holds(stack);
        }
        first if first.starts_with("aws s3 mb ") => {
            step.says(&["make_bucket: agentic-platform-backups"]);
        }
        first if first.starts_with("aws s3 ls ") => step.says(&[&bucket.newest()]),
        first if first.starts_with("aws s3 cp ") => {
            let check = format!("sha256sum -c {EXAMPLE}.sql.gz.sha256");
            let checked = stack.sh(&check).assert_code(0);
            assert!(checked.stdout.contains("OK"), "{}", checked.stdout);
        }
        first => panic!("the block that begins with {first} has no check"),
    }
}

/// The block restores the old service's file, and pgark's own in its place.
fn restores(stack: &Stack) {
    let contents = stack.psql(CONTENTS);
    let newest = stack.backups(".sql.gz").pop().unwrap();
    let own = newest.strip_suffix(".sql.gz").unwrap();
    assert_ne!(own, EXAMPLE);
    for id in [EXAMPLE, own] {
        stack.psql("DELETE FROM item WHERE id > 10; UPDATE item SET label = 'overwritten'");
        stack.sh(&RESTORE.replace(EXAMPLE, id)).assert_code(0);
        assert_eq!(stack.psql(CONTENTS), contents, "{id}");
    }
}

/// The manual's examples of settings.
fn is_accepted(script: &str) {
    let status = "docker run --rm -e BACKUP_SCHEDULE=\"$BACKUP_SCHEDULE\" -e BACKUP_RETENTION_DAYS=\"$BACKUP_RETENTION_DAYS\" agentic-backup-prod pgark";
    let script = format!("{script}\n{status} status && {status} prune --dry-run");
    let done = bash(Path::new("/"), &script).assert_code(0);
    assert!(!done.stderr.contains("warning"), "{}", done.stderr);
}

/// What the manual says in passing, within its lines of text.
fn in_passing(stack: &Stack) {
    let says = |script: &str, word: &str| {
        let done: Run = stack.sh(&format!("{PERSON}{script}")).assert_code(0);
        assert!(done.stdout.contains(word), "{script}\n{}", done.stdout);
    };
    says("docker-compose ps postgres", "Up");
    // Its `backup` is the container's name for short.
    says(
        "docker exec agentic-backup-prod ping postgres",
        "bytes from",
    );
    says(
        "docker exec agentic-backup-prod cat /etc/crontabs/root",
        "\n0 2 * * * /usr/local/bin/backup.sh >> /var/log/cron/backup-cron.log 2>&1\n",
    );
    says("docker-compose logs backup", "serves: database agentic_db");
    stack.sh("docker-compose restart backup").assert_code(0);
    until("the second start", || {
        Stack::log().matches("no initial backup").count() == 2
    });
    for word in ["find --version", "gzip --version", "date --version"] {
        says(&format!("docker exec agentic-backup-prod {word}"), "GNU");
    }
    until("docker to call it healthy", || {
        docker(["exec", IMAGE, "pgark", "status", "--probe"]).code == 0
    });
}

/// PID, user and command line of every process in a container.
fn processes(container: &str) -> String {
    let script = "for p in /proc/[0-9]*; do [ -r $p/status ] && echo \"${p#/proc/} $(sed -n 's/^Uid:\\t\\([0-9]*\\).*/\\1/p; s/^State:\\t\\(.\\).*/\\1/p' $p/status | tr '\\n' ' ')$(tr '\\0' ' ' <$p/cmdline)\"; done";
    docker(["exec", container, "sh", "-c", script])
        .assert_code(0)
        .stdout
}

/// Everything that a look at the container's processes shows.
fn exposed(container: &str) -> String {
    let script = "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'";
    docker(["exec", container, "sh", "-c", script]).stdout
}

/// Runs by the minute: the first one meets a wrong password in a file that only root may read.
#[test]
fn the_service_works_as_the_owner_and_a_changed_secret_of_roots_counts() {
    let Some(engine) = engine() else { return };
    let stack = Stack::new(&engine);
    stack
        .sh("chown 1234:1235 backups; echo 'BACKUP_SCHEDULE=* * * * *' >>.env
             chmod 600 secrets/db_password; echo wrong >secrets/wrong; chmod 400 secrets/wrong
             sed -i 's|file: ./secrets/db_password|file: ./secrets/${WHICH:-db_password}|' docker-compose.prod.yml
             docker-compose up -d postgres")
        .assert_code(0);
    // The server has the right one already; the service alone begins with the wrong one.
    stack
        .sh("WHICH=wrong docker-compose up -d --no-deps backup")
        .assert_code(0);
    Stack::wait_for("run ended with exit code 1");
    let shown = processes(IMAGE);
    assert!(shown.contains("1 S 0 pgark serve"), "{shown}");
    assert!(shown.contains(" S 1234 pgark serve"), "{shown}");
    stack
        .sh("cat secrets/db_password >secrets/wrong")
        .assert_code(0);
    Stack::wait_for("run done");
    for name in stack.backups("") {
        use std::os::unix::fs::MetadataExt as _;
        let file = std::fs::metadata(stack.path("backups").join(&name)).unwrap();
        assert_eq!(
            (file.uid(), file.gid(), file.mode() & 0o777),
            (1234, 1235, 0o600),
            "{name}"
        );
    }
    // A run by hand has the same rights, and the same secrets.
    docker(["exec", IMAGE, "backup.sh"]).assert_code(0);
    let shown = exposed(IMAGE);
    assert!(
        shown.contains("DB_PASSWORD_FILE") && !shown.contains(PASSWORD),
        "{shown}"
    );
    // Orphans are buried by process 1.
    docker(["exec", IMAGE, "sh", "-c", "(sleep 0.2 &) ; exec sleep 0.1"]).assert_code(0);
    until("no zombie to be left", || !processes(IMAGE).contains(" Z "));
    let began = Instant::now();
    docker(["stop", IMAGE]).assert_code(0);
    assert!(
        began.elapsed() < Duration::from_secs(9),
        "{:?}",
        began.elapsed()
    );
    let code = docker(["inspect", "--format", "{{.State.ExitCode}}", IMAGE]);
    assert_eq!(code.stdout.trim(), "143");
}

#[test]
fn a_run_takes_the_rights_that_its_directory_and_its_user_give() {
    let Some(engine) = engine() else { return };
    let stack = Stack::new(&engine);
    // On the way: the other compose file is valid too.
    let development = crate::support::project().join("docker-compose.dev.yml");
    let development = development.display();
    stack
        .sh(&format!(
            "docker-compose -f {development} --profile s3 config -q"
        ))
        .assert_code(0);
    stack.sh("docker-compose up -d postgres").assert_code(0);
    until("the server", || {
        stack
            .sh("{ docker exec agentic-postgres-prod psql -U postgres -d agentic_db -h 127.0.0.1 2>&1 || true; } | grep -q password")
            .code
            == 0
    });
    let run = |options: &str| {
        stack.sh(&format!(
            "docker run --rm --network agentic-network --read-only -v $(pwd)/backups:/backups -v $(pwd)/secrets:/run/secrets {options} agentic-backup-prod /usr/local/bin/backup.sh"
        ))
    };
    let owner = || {
        let path = "stat -c '%u:%g' backups backups/backup_*.sql.gz | sort -u | tr '\\n' ' '";
        stack.sh(path).stdout.trim().to_owned()
    };
    // Empty and root's: it is given away.
    run("").assert_code(0);
    assert_eq!(owner(), "10001:10001");
    // root's, with contents: as it was with the old service.
    stack.sh("chown -R root:root backups").assert_code(0);
    run("").assert_code(0);
    assert_eq!(owner(), "0:0");
    // The operator says who.
    stack
        .sh("chown -R 4321:4321 backups; chmod 444 secrets/*; chmod 755 secrets")
        .assert_code(0);
    run("--user 4321:4321 --cap-drop ALL").assert_code(0);
    assert_eq!(owner(), "4321:4321");
    // Without the rights to hand over, it says what to do.
    run("--cap-drop ALL --cap-add DAC_READ_SEARCH")
        .assert_code(1)
        .assert_says("user:");
}
