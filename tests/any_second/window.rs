//! `WAL_RETENTION_DAYS`: WAL that no base backup of the window needs goes; the window stays whole.

use super::{Stage, To, Writers, rows};
use pgark::catalog::Manifest;
use pgark::store::Key;
use std::path::Path;

/// Makes a base backup as old as that, in its manifest.
fn age(store: &Path, id: &str, days: i64) {
    let key = Key::new(&format!("{id}/manifest.json")).unwrap();
    let path = store.join(key.as_str());
    let mut manifest = Manifest::parse(&key, &std::fs::read(&path).unwrap()).unwrap();
    let age = jiff::SignedDuration::from_hours(24 * days);
    manifest.started_at -= age;
    manifest.finished_at -= age;
    std::fs::write(&path, manifest.to_json().unwrap()).unwrap();
}

fn segments(store: &Path) -> Vec<String> {
    let wal = store.join("wal");
    let folder = std::fs::read_dir(&wal).unwrap().next().unwrap().unwrap();
    let names = std::fs::read_dir(folder.path()).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".zst")).collect();
    names.sort();
    names
}

#[test]
fn wal_before_the_anchor_of_the_window_goes_and_the_window_stays_whole() {
    let mut stage = Stage::new(15, To::Local);
    let stream = stage.stream();
    let writers = Writers::start(&stage.server, 1);
    let mut bases = Vec::new();
    for _ in 0..3 {
        bases.push(stage.base(&["--no-prune"]));
        stage.server.psql("postgres", "SELECT pg_switch_wal()");
        stage
            .server
            .psql("postgres", "INSERT INTO ledger (writer) VALUES (7)");
        stage.server.psql("postgres", "SELECT pg_switch_wal()");
    }
    drop(writers);
    Stage::caught_up(&stage.server);
    stream.stop();
    age(&stage.store(), &bases[0], 9);
    age(&stage.store(), &bases[1], 4);
    let prune = |days: &str, more: &[&str]| {
        let args = ["prune"].iter().chain(more);
        let pgark = stage.pgark(args).env("WAL_RETENTION_DAYS", days);
        pgark.env("BACKUP_RETENTION_DAYS", "1").run().assert_code(0)
    };
    // The oldest is the anchor of a window of five days: all from its start on stays.
    prune("5", &[]);
    let before = segments(&stage.store());
    assert!(stage.store().join(&bases[0]).exists());
    let expected = rows(
        &stage
            .server
            .psql("postgres", "SELECT n FROM ledger ORDER BY n"),
    );
    assert_eq!(stage.rows_at("latest", &[&bases[0]]), expected);
    // Of one of two days, the second is.
    prune("2", &["--dry-run"]).assert_says("would expire WAL");
    assert_eq!(segments(&stage.store()), before);
    prune("2", &[]).assert_says("expired WAL");
    let after = segments(&stage.store());
    assert!(
        after.len() < before.len() && before.ends_with(&after),
        "{after:?}"
    );
    assert!(!stage.store().join(&bases[0]).exists());
    let expected = rows(
        &stage
            .server
            .psql("postgres", "SELECT n FROM ledger ORDER BY n"),
    );
    for id in &bases[1..] {
        assert_eq!(stage.rows_at("latest", &[id]), expected, "{id}");
    }
    // Once more changes nothing.
    prune("2", &[]);
    assert_eq!(segments(&stage.store()), after);
}
