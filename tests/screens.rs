//! The screens that the manuals show, played on a real server.
//!
//! A block of ```` ```console ```` is a transcript: `$ ` begins a command, what follows is what a
//! terminal shows. Numbers, hashes and the width of columns may differ; words may not. Ids of the
//! page stand for those of the run. `UPDATE_DOCS=1` writes the pages anew from what was seen.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::bad_luck::Tmpfs;
use crate::support::{Server, Setup, TempDir};

/// What the pages say for the places of a test.
const DIR: &str = "/backups";
const HOST: &str = "db:5432";

/// A stage: a server with the database `app`, a directory, pgark in the path.
struct Stage {
    server: Server,
    place: TempDir,
    /// Ids of the page, and those of this run.
    ids: BTreeMap<String, String>,
    /// Further variables of the page.
    more: Vec<(&'static str, String)>,
    /// What they name, as the page calls it.
    names: Vec<(String, &'static str)>,
}

impl Stage {
    fn new() -> Stage {
        let server = Server::start(17);
        server.createdb("app");
        server.psql(
            "app",
            "CREATE TABLE customer (id int PRIMARY KEY, name text);
             CREATE TABLE invoice (id int PRIMARY KEY, customer int REFERENCES customer, total numeric);
             INSERT INTO customer SELECT i, 'customer ' || i FROM generate_series(1, 20000) i;
             INSERT INTO invoice SELECT i, i % 20000 + 1, i * 1.5 FROM generate_series(1, 80000) i;",
        );
        server.psql("postgres", "CREATE ROLE reader LOGIN PASSWORD 'reader'");
        Stage {
            server,
            place: TempDir::new(),
            ids: BTreeMap::new(),
            more: Vec::new(),
            names: Vec::new(),
        }
    }

    fn dir(&self) -> PathBuf {
        self.place.join("backups")
    }

    fn address(&self) -> String {
        let env = self.server.env();
        let value = |name: &str| {
            env.iter()
                .find(|(known, _)| *known == name)
                .unwrap()
                .1
                .clone()
        };
        format!("{}:{}", value("DB_HOST"), value("DB_PORT"))
    }

    /// Plays one command as a shell would, and gives what the terminal shows, in the page's words.
    fn play(&self, command: &str) -> String {
        let mut line = command.to_owned();
        for (page, own) in &self.ids {
            line = line.replace(page, own);
        }
        let line = line.replace(DIR, &self.dir().display().to_string());
        let pgark = Path::new(env!("CARGO_BIN_EXE_pgark"));
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("{{ {line}\n}} 2>&1"));
        shell.env_clear().envs(self.server.env());
        let path = format!(
            "{}:{}:/usr/bin:/bin",
            pgark.parent().unwrap().display(),
            self.server.bin().display()
        );
        shell
            .env("PATH", path)
            .env("TZ", "UTC")
            .env("LC_ALL", "C.UTF-8");
        shell.env("HOME", self.place.path());
        // For the page's own psql.
        for (name, value) in self.server.env() {
            if let Some(name) = name.strip_prefix("DB_") {
                shell.env(format!("PG{name}"), value);
            }
        }
        shell
            .env("BACKUP_DIR", self.dir())
            .env("DB_NAME", "app")
            .env("BACKUP_JOBS", "2");
        shell.envs(self.more.iter().map(|(name, value)| (*name, value)));
        shell.current_dir(self.place.path()).stdin(Stdio::null());
        let shown = shell.output().unwrap();
        let shown = String::from_utf8_lossy(&shown.stdout);
        let shown = shown.replace(&self.dir().display().to_string(), DIR);
        let shown = shown.replace(&self.place.path().display().to_string(), "~");
        let shown = shown.replace(&self.address(), HOST);
        let names = self.names.iter();
        names.fold(shown, |shown, (own, page)| shown.replace(own, page))
    }
}

/// Ids in a text, in order.
fn ids(text: &str) -> Vec<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c: char| !word(c));
    words
        .filter(|text| {
            let begins = [
                "backup_",
                "globals_",
                "app_restored_",
                "app_replaced_",
                "base_",
            ];
            let stamp =
                text.len() > 16 && text[text.len() - 6..].bytes().all(|b| b.is_ascii_digit());
            stamp && begins.iter().any(|begin| text.starts_with(begin))
        })
        .map(str::to_owned)
        .collect()
}

/// The words of a line, without what differs from run to run.
fn words(line: &str) -> String {
    let mut out = String::new();
    let hash = |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    for word in line
        .split_whitespace()
        .map(|word| if hash(word) { "0" } else { word })
    {
        // A public key of this run.
        if let Some((before, _)) = word.split_once("age1") {
            out.extend([before, "age1 "]);
            continue;
        }
        let mut number = false;
        for c in word.chars() {
            let digit = c.is_ascii_digit() || (number && c == '.');
            if !digit {
                out.push(c);
            } else if !number {
                out.push('#');
            }
            number = digit;
        }
        out.push(' ');
    }
    // A size may change its unit, and so may a time.
    let sizes = ["KiB", "MiB", "GiB", "TiB"].map(|unit| (format!("# {unit}"), "# B"));
    let times = ["# d # h", "# h # min", "# min"].map(|time| (time.to_owned(), "# s"));
    let units = sizes.into_iter().chain(times);
    units.fold(out, |out, (unit, one)| out.replace(&unit, one))
}

fn same(shown: &str, page: &str) -> bool {
    let lines = |text: &str| text.lines().map(words).collect::<Vec<_>>();
    lines(shown.trim_end()) == lines(page.trim_end())
}

/// A command and what the page shows below it.
struct Scene {
    command: String,
    shown: String,
}

fn scenes(block: &str) -> Vec<Scene> {
    let mut scenes: Vec<Scene> = Vec::new();
    let mut more = false;
    for line in block.lines() {
        match (line.strip_prefix("$ "), scenes.last_mut()) {
            (Some(command), _) => scenes.push(Scene {
                command: command.to_owned(),
                shown: String::new(),
            }),
            (None, Some(scene)) if more => scene.command.extend(["\n", line]),
            (None, Some(scene)) => scene.shown.extend([line, "\n"]),
            (None, None) => panic!("a transcript begins with a command: {line}"),
        }
        more = (more || line.starts_with("$ ")) && line.ends_with('\\');
    }
    scenes
}

/// Plays a page's transcripts from the first to the last on one stage.
#[track_caller]
fn play(page: &str, mut stage: Stage) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs")
        .join(page);
    let text = std::fs::read_to_string(&path).unwrap();
    let update = std::env::var_os("UPDATE_DOCS").is_some_and(|value| value == "1");
    let (mut renewed, mut wrong, mut played) = (text.clone(), String::new(), 0);
    for block in text.split("```console\n").skip(1) {
        let block = block.split("```").next().unwrap();
        let mut new = String::new();
        for scene in scenes(block) {
            played += 1;
            let shown = stage.play(&scene.command);
            new.extend(["$ ", &scene.command, "\n", &shown]);
            if !shown.is_empty() && !shown.ends_with('\n') {
                new.push('\n');
            }
            let own = ids(&shown);
            if same(&shown, &scene.shown) {
                stage.ids.extend(ids(&scene.shown).into_iter().zip(own));
            } else if update {
                stage.ids.extend(own.into_iter().map(|id| (id.clone(), id)));
            } else {
                let (command, page) = (&scene.command, &scene.shown);
                wrong.extend([
                    "$ ",
                    command,
                    "\n--- page\n",
                    page,
                    "--- shown\n",
                    &shown,
                    "\n",
                ]);
            }
        }
        if !same(&new, block) {
            renewed = renewed.replacen(block, &new, 1);
        }
    }
    assert!(played > 3, "{page} has {played} scenes");
    if update && renewed != text {
        std::fs::write(&path, renewed).unwrap();
        return;
    }
    assert!(
        wrong.is_empty(),
        "docs/{page} (UPDATE_DOCS=1 renews it):\n{wrong}"
    );
}

#[test]
fn the_screens_are_what_a_user_sees() {
    play("screens.md", Stage::new());
}

#[test]
fn the_page_for_3_am_works_as_it_stands() {
    play("3am.md", Stage::new());
}

/// Ten things that go wrong, each mended by what pgark said.
#[test]
fn what_goes_wrong_is_mended_by_what_is_printed() {
    let mut stage = Stage::new();
    let (disk, files) = (Tmpfs::new("size=256k"), TempDir::new());
    let extension = files.join("extension");
    std::fs::create_dir(&extension).unwrap();
    let control = "default_version = '1.7'\nschema = public\n";
    std::fs::write(extension.join("rare.control"), control).unwrap();
    std::fs::write(
        extension.join("rare--1.7.sql"),
        "CREATE TABLE rare_thing (a int);",
    )
    .unwrap();
    let path = format!("extension_control_path={}:$system", files.path().display());
    let setup = Setup {
        settings: &[&path],
        ..Setup::default()
    };
    let (rare, new) = (Server::start_with(18, &setup), Server::start(18));
    rare.createdb("geo");
    rare.psql("geo", "CREATE EXTENSION rare");
    for (name, page, server) in [("RARE", "rare:5432", &rare), ("NEW", "new:5432", &new)] {
        let env = server.env();
        let port = &env.iter().find(|(name, _)| *name == "DB_PORT").unwrap().1;
        stage.names.push((format!("127.0.0.1:{port}"), page));
        stage.names.push((format!("port {port}"), "port 5432"));
        stage.more.push((name, port.clone()));
    }
    stage
        .more
        .push(("SMALL_DISK", disk.path().display().to_string()));
    stage
        .more
        .push(("EXTENSIONS", files.path().display().to_string()));
    stage.more.push((
        "OLD_PROGRAMS",
        crate::support::bin(15).display().to_string(),
    ));
    // Each server's own programs: those of an older minor version do not know all that a newer
    // server keeps (17.12 marks columns in a way that pg_dump 18.6 does not leave out).
    let programs = [crate::support::bin(17), new.bin()].map(|path| path.display().to_string());
    stage.more.push(("PGARK_PG_BIN", programs.join(":")));
    stage
        .names
        .push((disk.path().display().to_string(), "/small"));
    stage.names.push((
        new.bin().display().to_string(),
        "/usr/lib/postgresql/18/bin",
    ));
    play("when-it-fails.md", stage);
}

#[test]
fn what_may_differ_is_numbers_and_widths_only() {
    assert!(same("a  12.5 MiB  x\n", "a 3 KiB x"));
    assert!(!same("a 12 rows", "b 12 rows") && !same("a\nb", "a"));
    let text = "restored backup_app_20250122_020015 into \"app_restored_20250122_020015\"";
    assert_eq!(
        ids(text),
        ["backup_app_20250122_020015", "app_restored_20250122_020015"]
    );
    let scenes = scenes("$ a \\\n  b\nshown\n$ c\n");
    assert_eq!(scenes[0].command, "a \\\n  b");
    assert_eq!(
        (scenes[0].shown.as_str(), scenes[1].command.as_str()),
        ("shown\n", "c")
    );
}
