//! The house rules that no compiler checks: floors, sizes, banned calls, headers, links.
//!
//! The list of exceptions is a ratchet: each may only shrink, and goes when it is not
//! needed any more.

use crate::support::project;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

mod source;
use source::{Source, functions};

/// Lines of a file, tests included.
const FILE_LINES_MAX: usize = 450;
/// Lines of a function, from `fn` to its closing brace.
const FUNCTION_LINES_MAX: usize = 60;

/// What is longer today: `path` or `path::function`, and its length. Never raise one.
const LONGER: &[(&str, usize)] = &[
    ("src/backup/dump/mod.rs::take_once", 71),
    ("src/backup/dump/properties.rs::block", 65),
    ("src/backup/dump/rows.rs::plan", 65),
    (
        "src/config/form.rs::each_form_accepts_its_values_and_refuses_others",
        64,
    ),
    ("src/pipeline_tests.rs", 453),
    ("src/postgres/tls.rs::new", 62),
    ("src/restore/plan.rs::add_loads", 68),
    (
        "tests/cli.rs::list_json_has_the_contracts_fields_and_utc_times",
        63,
    ),
    ("tests/connection.rs", 822),
    (
        "tests/connection.rs::a_server_killed_in_mid_copy_is_noticed",
        61,
    ),
    (
        "tests/drop_block.rs::what_was_made_later_and_depends_on_ours_is_named_before_anything_is_dropped",
        85,
    ),
];

/// The floors of the house, from the ground up (design §5). A room may use what lies on
/// lower floors and nothing else.
const FLOORS: &[(u8, &[&str])] = &[
    (0, &["error", "units", "clock", "progress", "cancel"]),
    (1, &["store", "config", "notify", "schedule", "anomaly"]),
    (2, &["archive", "catalog", "postgres", "retention"]),
    (
        3,
        &[
            "backup",
            "restore",
            "verify",
            "status",
            "prune",
            "replicate",
            "check",
            // The archive and the catalog together, in tests only.
            "pipeline_tests",
            "sealed_tests",
        ],
    ),
    (4, &["drill"]),
    (5, &["app"]),
    (6, &["service"]),
    (7, &["cli"]),
    (8, &["main", "lib"]),
];

fn floor(room: &str) -> Option<u8> {
    let found = FLOORS.iter().find(|(_, rooms)| rooms.contains(&room));
    found.map(|(floor, _)| *floor)
}

/// Collects what is wrong, so that one run shows all of it.
#[derive(Default)]
struct Findings(String);

impl Findings {
    fn add(&mut self, finding: impl std::fmt::Display) {
        let _ = writeln!(self.0, "  {finding}");
    }

    #[track_caller]
    fn assert_none(self) {
        assert!(self.0.is_empty(), "tidy found:\n{}", self.0);
    }
}

fn files(below: &str, suffix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![project().join(below)];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).unwrap().flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with(".git") {
                open.push(path);
            } else if name.ends_with(suffix) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn sources(below: &str) -> Vec<Source> {
    let of = |path: PathBuf| Source::read(&path, shown(&path));
    files(below, ".rs").into_iter().map(of).collect()
}

/// The path as a reader types it.
fn shown(path: &Path) -> String {
    path.strip_prefix(project()).unwrap().display().to_string()
}

/// The room of a file: `src/archive/frame.rs` lies in `archive`.
fn room(source: &Source) -> &str {
    let below = source.name.strip_prefix("src/").unwrap();
    below.split(['/', '.']).next().unwrap()
}

#[test]
fn arrows_point_down() {
    let mut findings = Findings::default();
    for source in sources("src") {
        let from = room(&source);
        let Some(here) = floor(from) else {
            findings.add(format!("{}: room `{from}` is on no floor", source.name));
            continue;
        };
        for (line, to) in source.rooms_used() {
            // Anything else below `crate::` is an item of lib.rs itself.
            let Some(there) = floor(&to).filter(|_| to != from) else {
                continue;
            };
            // `error` and `units` lie under the rest of the ground floor.
            let is_ground = matches!(to.as_str(), "error" | "units") && from != "error";
            if there >= here && !is_ground {
                findings.add(format!(
                    "{}:{line}: `{from}` (floor {here}) must not use `{to}` (floor {there})",
                    source.name
                ));
            }
        }
        for line in source.lines_with("super::super::") {
            findings.add(format!(
                "{}:{line}: name the path from `crate::`",
                source.name
            ));
        }
    }
    findings.assert_none();
}

#[test]
fn files_and_functions_stay_short() {
    let mut findings = Findings::default();
    let mut used = Vec::new();
    for source in sources("src").into_iter().chain(sources("tests")) {
        let whole = (
            source.name.clone(),
            source.text.lines().count(),
            FILE_LINES_MAX,
        );
        let parts = functions(&source.code).into_iter().map(|(name, lines)| {
            (
                format!("{}::{name}", source.name),
                lines,
                FUNCTION_LINES_MAX,
            )
        });
        for (name, lines, most) in std::iter::once(whole).chain(parts) {
            let exception = LONGER.iter().find(|(listed, _)| *listed == name);
            used.extend(exception.filter(|_| lines > most));
            let most = exception.map_or(most, |(_, length)| most.max(*length));
            if lines > most {
                findings.add(format!("{name}: {lines} lines, at most {most}"));
            } else if exception.is_some_and(|(_, length)| lines < *length) {
                findings.add(format!("{name}: {lines} lines now; lower its exception"));
            }
        }
    }
    for exception in LONGER.iter().filter(|exception| !used.contains(exception)) {
        findings.add(format!("{}: needs no exception any more", exception.0));
    }
    findings.assert_none();
}

#[test]
fn banned_calls_stay_where_they_belong() {
    // Each call with the only rooms that may make it.
    const BANNED: &[(&str, &[&str])] = &[
        ("SystemTime::now", &["clock"]),
        ("Timestamp::now", &["clock"]),
        ("Zoned::now", &["clock"]),
        ("println!", &["cli"]),
        ("print!", &["cli"]),
        ("eprintln!", &["cli", "main", "progress"]),
        ("eprint!", &["cli", "progress"]),
        ("dbg!", &[]),
        ("todo!", &[]),
        ("unimplemented!", &[]),
        ("unsafe ", &[]),
    ];
    let mut findings = Findings::default();
    for source in sources("src") {
        for (call, rooms) in BANNED {
            if rooms.contains(&room(&source)) {
                continue;
            }
            for line in source.lines_with(call) {
                findings.add(format!("{}:{line}: {call}", source.name));
            }
        }
        for call in [".unwrap()", ".expect("] {
            for line in source.lines_with(call) {
                // `// infallible: <reason>`, on the line or within the two above.
                let near = source.text.lines().skip(line.saturating_sub(3)).take(3);
                if !near
                    .into_iter()
                    .any(|text| text.contains("// infallible: "))
                {
                    findings.add(format!(
                        "{}:{line}: {call} without `// infallible:` and a reason",
                        source.name
                    ));
                }
            }
        }
    }
    findings.assert_none();
}

#[test]
fn every_module_says_its_job() {
    let mut findings = Findings::default();
    for source in sources("src").into_iter().chain(sources("tests")) {
        if !source.text.starts_with("//! ") {
            findings.add(format!("{}: no `//!` header", source.name));
        }
    }
    findings.assert_none();
}

#[test]
fn links_of_the_documents_lead_somewhere() {
    let mut findings = Findings::default();
    for path in files("", ".md") {
        let text = std::fs::read_to_string(&path).unwrap();
        for link in text.split("](").skip(1) {
            let target = link.split([')', ' ', '#']).next().unwrap();
            let elsewhere = target.contains("://") || target.starts_with("mailto:");
            if !target.is_empty() && !elsewhere && !path.parent().unwrap().join(target).exists() {
                findings.add(format!("{}: {target} does not exist", shown(&path)));
            }
        }
    }
    findings.assert_none();
}

#[test]
fn words_that_promise_or_say_nothing_are_absent() {
    // Nouns for types, verbs for effects; work to be done is an issue, not a comment;
    // nothing refers to the machine it was written on.
    const FORBIDDEN: &[&str] = &[
        "Manager",
        "Handler",
        "Helper",
        "mod utils",
        "TODO",
        "FIXME",
        "/work/",
        "blazing",
    ];
    let mut findings = Findings::default();
    let own = project().join("tests/tidy.rs");
    let written = [
        ("src", ".rs"),
        ("tests", ".rs"),
        ("", ".md"),
        ("", ".toml"),
        ("scripts", ".sh"),
    ];
    for (below, suffix) in written {
        for path in files(below, suffix).into_iter().filter(|path| *path != own) {
            let text = std::fs::read_to_string(&path).unwrap();
            for (at, line) in text.lines().enumerate() {
                if let Some(word) = FORBIDDEN.iter().find(|word| line.contains(**word)) {
                    findings.add(format!("{}:{}: {word}", shown(&path), at + 1));
                }
            }
        }
    }
    findings.assert_none();
}
