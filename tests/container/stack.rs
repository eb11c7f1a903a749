//! The images, and the composed stack in a directory of its own.
//!
//! Invariants: nothing that is not this test's is touched: every image bears its label, and
//! a machine that already has containers or an image of the old manual's names is left alone.
//! Containers, networks and volumes go with the stack, and those of a killed test with the next.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Run, TempDir, cache, project, run, until};

const LABEL: &str = "org.pgark.test=1";
const BASE: &str = "pgark-test/base:bookworm";
pub(super) const IMAGE: &str = "agentic-backup-prod";
pub(super) const POSTGRES: &str = "pgark-test/postgres";
const PROJECT: &str = "pgarktest";

/// Runs bash in a directory.
pub(super) fn bash(dir: &Path, script: &str) -> Run {
    let mut command = Command::new("bash");
    command.args(["-e", "-o", "pipefail", "-c", script]);
    run(command.current_dir(dir))
}

pub(super) fn docker<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Run {
    run(Command::new("docker").args(arguments))
}

fn works(program: &str, arguments: &[&str]) -> bool {
    let output = Command::new(program).args(arguments).output();
    output.is_ok_and(|output| output.status.success())
}

/// Why the tests of the container cannot run here.
fn obstacle() -> Option<String> {
    if !works("docker", &["info"]) {
        return Some("no Docker engine answers (docker info)".to_owned());
    }
    for program in ["docker-compose", "aws"] {
        if !works(program, &["--version"]) {
            return Some(format!(
                "there is no {program}; scripts/setup.sh test installs it"
            ));
        }
    }
    if !cache().join("docker/base.tar").exists() {
        return Some("there is no base image; scripts/setup.sh test makes one".to_owned());
    }
    let label = "{{index .Config.Labels \"org.pgark.test\"}}";
    for name in [IMAGE, "agentic-postgres-prod", "agentic-api-prod"] {
        let found = docker(["inspect", "--format", label, name]);
        if found.code == 0 && found.stdout.trim() != "1" {
            return Some(format!(
                "this machine has a {name} that is not the tests' own"
            ));
        }
    }
    let label = "{{index .Labels \"com.docker.compose.project\"}}";
    let network = docker(["network", "inspect", "--format", label, "agentic-network"]);
    if network.code == 0 && !network.stdout.starts_with(PROJECT) {
        return Some(
            "this machine has a network agentic-network that is not the tests' own".to_owned(),
        );
    }
    None
}

/// The engine for one test at a time, with its images built; None where there is none, which is
/// said in one line.
pub(super) fn engine() -> Option<Engine> {
    if let Some(why) = obstacle() {
        use std::io::Write as _;
        // Past the harness, which keeps what tests print.
        let line = format!("container: tests of the image are left out: {why}\n");
        let _ = std::io::stderr().write_all(line.as_bytes());
        return None;
    }
    let turn = File::create(cache().join("docker/test.lock")).unwrap();
    turn.lock().unwrap();
    sweep();
    build();
    Some(Engine { _turn: turn })
}

/// The names are the machine's, so tests take turns, also those of other processes.
pub(super) struct Engine {
    _turn: File,
}

impl Drop for Engine {
    fn drop(&mut self) {
        sweep();
    }
}

/// Removes what is the tests' own; the lock is held.
fn sweep() {
    bash(
        Path::new("/"),
        &format!(
            "ids() {{ docker \"$@\" | xargs -r echo; }}
             containers=$(ids ps -aq --filter label={LABEL}); [ -z \"$containers\" ] || docker rm -fv $containers
             networks=$(docker network ls --format '{{{{.Name}}}} {{{{.Label \"com.docker.compose.project\"}}}}' | awk '$2 ~ /^{PROJECT}/ {{print $1}}'); [ -z \"$networks\" ] || docker network rm $networks
             volumes=$(ids volume ls -q --filter name={PROJECT}); [ -z \"$volumes\" ] || docker volume rm $volumes
             docker image prune -f --filter label={LABEL}"
        ),
    )
    .assert_code(0);
}

/// Builds both images. The layers of packages stay in the engine's own cache.
fn build() {
    if docker(["image", "inspect", BASE]).code != 0 {
        let tar = cache().join("docker/base.tar");
        docker(["import", &tar.display().to_string(), BASE]).assert_code(0);
    }
    let context = TempDir::new();
    let built = Path::new(env!("CARGO_BIN_EXE_pgark"));
    let script = format!(
        "cp -r {from}/Dockerfile {from}/.dockerignore {from}/docker . && {{ strip -o pgark {built} 2>/dev/null || cp {built} pgark; }}
         docker build -q --label {LABEL} --target prebuilt --build-arg http_proxy --build-arg https_proxy --build-arg BASE={BASE} -t {IMAGE} .
         docker build -q --label {LABEL} --build-arg http_proxy --build-arg https_proxy --build-arg BASE={BASE} -t {POSTGRES} -f {from}/tests/container/postgres.Dockerfile {from}/tests/container",
        from = project().display(),
        built = built.display(),
    );
    bash(context.path(), &script).assert_code(0);
}

/// A directory with the shipped files, as an operator has it, and what is composed from them.
pub(super) struct Stack {
    place: TempDir,
}

impl Stack {
    /// Lays it out and starts nothing. Secrets are root's alone.
    pub(super) fn new(_engine: &Engine) -> Stack {
        let stack = Stack {
            place: TempDir::new(),
        };
        let script = format!(
            "cp -r {from}/docker-compose.prod.yml {from}/secrets . && cp {from}/.env.example .env && mkdir backups
             sed -i 's|^POSTGRES_IMAGE=.*|POSTGRES_IMAGE={POSTGRES}|' .env
             printf 'COMPOSE_PROJECT_NAME={PROJECT}{id}\\nBACKUP_RETENTION_DAYS=36500\\n' >>.env
             umask 277 && cp secrets/db_user.example secrets/db_user && printf '%s\\n' '{PASSWORD}' >secrets/db_password",
            from = project().display(),
            id = std::process::id(),
        );
        stack.sh(&script).assert_code(0);
        stack
    }

    /// Runs bash where the files are.
    pub(super) fn sh(&self, script: &str) -> Run {
        bash(self.place.path(), script)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.place.join(name)
    }

    /// The service's log.
    pub(super) fn log() -> String {
        let log = docker(["logs", IMAGE]);
        log.stdout + &log.stderr
    }

    /// Waits for a text in the service's log.
    #[track_caller]
    pub(super) fn wait_for(text: &str) {
        until(text, || Self::log().contains(text));
    }

    /// The answer of the composed server.
    #[track_caller]
    pub(super) fn psql(&self, sql: &str) -> String {
        let psql = "docker exec -i agentic-postgres-prod psql -XAtq -U postgres -d agentic_db -v ON_ERROR_STOP=1";
        let done = self.sh(&format!("{psql} <<'SQL'\n{sql}\nSQL"));
        done.assert_code(0).stdout.trim().to_owned()
    }

    /// Names in `backups/` with this suffix, sorted.
    pub(super) fn backups(&self, suffix: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path("backups")).unwrap().flatten();
        let mut names: Vec<String> = entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with("backup_") && name.ends_with(suffix))
            .collect();
        names.sort();
        names
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the service's log\n{}", Stack::log());
        }
        self.sh("docker-compose down -v -t 3");
    }
}

/// With what shells and URLs stumble over.
pub(super) const PASSWORD: &str = "pass $word \"x/@";
