//! The command line's claims.

use super::*;
use crate::error::Kind;
use clap::CommandFactory;

fn parse(line: &[&str]) -> Result<Args, clap::Error> {
    Args::try_parse_from(std::iter::once("pgark").chain(line.iter().copied()))
}

#[test]
fn definition_is_sound() {
    Args::command().debug_assert();
}

#[test]
fn backup_takes_names_literally_and_passes_its_flags_on() {
    let args = parse(&[
        "backup",
        "--database",
        "a,b",
        "--database",
        "*",
        "--dir",
        "/b",
        "--jobs",
        "3",
        "--compression",
        "zstd:3",
        "--no-prune",
        "--json",
    ])
    .unwrap();
    let flags = args.flags();
    assert_eq!(flags.database, ["a,b", "*"]);
    assert_eq!(flags.dir, Some(PathBuf::from("/b")));
    assert_eq!(
        (flags.jobs, flags.compression.as_deref()),
        (Some(3), Some("zstd:3"))
    );
    assert!(args.global.json);
    assert!(matches!(
        args.verb,
        Verb::Backup(Backup { no_prune: true, .. })
    ));
}

#[test]
fn global_flags_stand_before_or_after_the_verb() {
    for line in [["--json", "list"], ["list", "--json"]] {
        assert!(parse(&line).unwrap().global.json, "{line:?}");
    }
    let flags = parse(&["list", "--config", "/x.toml"]).unwrap().flags();
    assert_eq!(flags.config, Some(PathBuf::from("/x.toml")));
}

#[test]
fn restore_and_verify_mean_the_latest_by_default() {
    let Verb::Restore(restore) = parse(&["restore", "--database", "app"]).unwrap().verb else {
        panic!("another verb");
    };
    assert_eq!(
        (restore.backup.as_str(), restore.database.as_deref()),
        ("latest", Some("app"))
    );
    let args = parse(&["restore", "--database", "app"]).unwrap();
    assert!(args.flags().database.is_empty(), "it chooses a backup");
    let Verb::Verify(verify) = parse(&["verify", "--all"]).unwrap().verb else {
        panic!("another verb");
    };
    assert!(verify.all && verify.backup == "latest");
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let cases: &[&[&str]] = &[
        &[],
        &["no-such-verb"],
        &["show"],
        &["cat"],
        &["verify", "x", "--all"],
        &["backup", "--jobs", "0"],
        &["backup", "--jobs", "65"],
        &["backup", "--database", ""],
        &["restore", "--into", ""],
        &["list", "--before", "yesterday"],
        &["list", "--jobs", "2"],
    ];
    for line in cases {
        assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line:?}");
    }
    for line in [["--help"], ["--version"]] {
        assert_eq!(parse(&line).unwrap_err().exit_code(), 0, "{line:?}");
    }
}

#[test]
fn times_without_an_offset_are_utc() {
    for (text, expected) in [
        ("2025-01-22", "2025-01-22T00:00:00Z"),
        ("2025-01-22 02:00", "2025-01-22T02:00:00Z"),
        ("2025-01-22T02:00:15", "2025-01-22T02:00:15Z"),
        ("2025-01-22T02:00:15+02:00", "2025-01-22T00:00:15Z"),
        ("2025-01-22T02:00:15Z", "2025-01-22T02:00:15Z"),
    ] {
        assert_eq!(time(text), Ok(expected.parse().unwrap()), "{text}");
    }
    for text in ["", "2025-13-01", "22.01.2025", "2025-01-22 25:00"] {
        assert!(time(text).is_err(), "{text}");
    }
}

#[test]
fn help_shows_what_exists_with_an_example_for_each_verb() {
    let command = Args::command();
    let verbs: Vec<&str> = command
        .get_subcommands()
        .map(clap::Command::get_name)
        .collect();
    assert_eq!(
        verbs,
        [
            "serve",
            "backup",
            "list",
            "show",
            "verify",
            "restore",
            "wal-get",
            "check",
            "accept",
            "prune",
            "replicate",
            "status",
            "slot",
            "wal-stream",
            "cat",
            "keygen",
            "demo",
            "completions",
            "man"
        ]
    );
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        let example = verb.get_after_help().unwrap().to_string();
        assert!(
            example.contains(&format!("pgark {}", verb.get_name())),
            "{example}"
        );
    }
    let help = Args::command().render_long_help().to_string();
    assert!(help.contains("--config"), "{help}");
}

/// The page is for people with a failed job before them; it must name them all.
#[test]
fn every_exit_code_has_its_place_in_the_documentation() {
    let page = include_str!("../../docs/exit-codes.md");
    let kinds = [
        Kind::Failed,
        Kind::Usage,
        Kind::Partial,
        Kind::Damage,
        Kind::Unreachable,
        Kind::Busy,
        Kind::Signal(2),
        Kind::Signal(15),
    ];
    for kind in kinds {
        assert!(
            page.contains(&format!("| {} |", kind.exit_code())),
            "{kind:?}"
        );
    }
}
