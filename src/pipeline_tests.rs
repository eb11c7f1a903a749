//! Archive, catalog and store together: whole backups, failures and crashes at every step.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};

use crate::archive::{ArtefactWriter, Codec, Crypt};
use crate::catalog::layout::{Outcome, parse_key};
use crate::catalog::{
    Catalog, Manifest, State, begin, check_legacy, clear_remains, commit, ensure_sums, free_id,
    load, remove, state,
};
use crate::error::{Kind, Result};
use crate::store::failing::{FailingStore, Failure};
use crate::store::local::LocalStore;
use crate::store::lock::DirLock;
use crate::store::tests::Scratch;
use crate::store::{Key, Store};
use crate::units::{BackupId, BackupKind};

const LEGACY: &str = "backup_app_20240101_020000.sql.gz";
const YOUNG: &str = "backup_app_20250122_020014.sql.gz";

fn now() -> Timestamp {
    "2025-01-22T02:00:15Z".parse().unwrap()
}

fn id() -> BackupId {
    BackupId::dump("app", now())
}

fn take(store: &dyn Store, codec: Codec, id: &BackupId) -> Result<Manifest> {
    let (artefact, index) = begin(store, id, codec, false)?;
    let how = (codec, &Crypt::None);
    let writer = ArtefactWriter::start(artefact, index, how, 2, Arc::default());
    let sender = writer.sender();
    for i in 0..3 {
        let raw = format!("\\if true\n-- pgark dump\nSELECT {i};\n").into_bytes();
        sender.send(raw, format!("{{\"i\":{i}}}"))?;
    }
    let mut manifest = Manifest::new(id.clone(), codec, now(), now());
    manifest.rows = 3;
    commit(store, writer.finish()?, manifest)
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn legacy(dir: &Path, name: &str, text: &str) {
    let bytes = gzip(text);
    let line = format!("{}  {name}\n", hex::encode(Sha256::digest(&bytes)));
    std::fs::write(dir.join(name), bytes).unwrap();
    std::fs::write(dir.join(format!("{name}.sha256")), line).unwrap();
}

/// What must never be touched: a legacy backup, a legacy dump in the making, and strangers.
fn neighbours(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let end = "--\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict x\n";
    legacy(dir, LEGACY, &format!("SELECT 1;\n{end}"));
    std::fs::write(dir.join(YOUNG), &gzip("SELECT 1;")[..12]).unwrap();
    std::fs::write(dir.join("notes.txt"), "mine").unwrap();
    std::fs::write(dir.join("app-x.sql.gz"), gzip("x")).unwrap();
    files(dir)
}

fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_file())
        .map(|e| {
            (
                e.file_name().into_string().unwrap(),
                std::fs::read(e.path()).unwrap(),
            )
        })
        .collect();
    files.sort();
    files
}

fn open(scratch: &Scratch) -> LocalStore {
    LocalStore::open(scratch.path()).unwrap()
}

fn failing(scratch: &Scratch, failure: Failure) -> FailingStore {
    FailingStore::new(Box::new(open(scratch)), failure)
}

fn ids(catalog: &Catalog) -> Vec<&str> {
    catalog.entries.iter().map(|e| e.id.as_str()).collect()
}

/// After a failure or crash: nothing false is listed; the next run leaves the neighbours as they
/// were, plus the backup if it exists.
fn assert_clean_after(scratch: &Scratch, before: &[(String, Vec<u8>)], dead: &[String], step: u64) {
    let store = open(scratch);
    let listed = |store: &LocalStore| {
        let catalog = load(store).unwrap();
        let ours = catalog
            .entries
            .iter()
            .find(|e| e.id == id())
            .map(|e| (e.state, e.good));
        assert_eq!(
            catalog.entries.len(),
            1 + usize::from(ours.is_some()),
            "step {step}"
        );
        assert!(
            ours.is_none() || ours == Some((State::Taken, true)),
            "step {step}: {ours:?}"
        );
        ours.is_some()
    };
    let exists = listed(&store);
    clear_remains(&store, crate::clock::now(), dead).unwrap();
    ensure_sums(&store).unwrap();
    assert_eq!(listed(&store), exists, "step {step}");
    let after = files(scratch.path());
    let (ours, others): (Vec<_>, Vec<_>) = after
        .into_iter()
        .partition(|(name, _)| name.contains(id().as_str()));
    assert_eq!(others, before, "step {step}");
    assert_eq!(
        ours.len(),
        if exists { 4 } else { 0 },
        "step {step}: {ours:?}"
    );
}

#[test]
fn committed_backup_is_judged_whole_by_standard_tools() {
    for (codec, tool) in [
        (Codec::GZIP, "gunzip"),
        (Codec::ZSTD, "zstd"),
        (Codec::None, "cat"),
    ] {
        let scratch = Scratch::new();
        let manifest = take(&open(&scratch), codec, &id()).unwrap();
        let run = |command: &mut Command| command.current_dir(scratch.path()).output();
        let sums = format!("{}.sha256", manifest.artefact.name);
        let output = run(Command::new("sha256sum").args(["-c", &sums])).unwrap();
        assert!(output.status.success(), "{output:?}");
        let file = std::fs::File::open(scratch.path().join(&manifest.artefact.name)).unwrap();
        let flag: &[&str] = if tool == "cat" { &[] } else { &["-dc"] };
        let Ok(output) = run(Command::new(tool).args(flag).stdin(file)) else {
            continue; // zstd is not everywhere
        };
        assert!(output.status.success() && output.stdout.ends_with(b"SELECT 2;\n"));
        let catalog = load(&open(&scratch)).unwrap();
        assert_eq!(ids(&catalog), [id().as_str()]);
        assert_eq!(catalog.entries[0].manifest.as_ref(), Some(&manifest));
    }
}

#[test]
fn error_at_any_step_of_a_backup_leaves_nothing_false() {
    let counting = Scratch::new();
    let store = failing(&counting, Failure::None);
    take(&store, Codec::GZIP, &id()).unwrap();
    let steps = store.steps();
    assert!(steps > 12, "{steps}");
    for codec in [Codec::GZIP, Codec::None] {
        for at in 1..=steps {
            let scratch = Scratch::new();
            let before = neighbours(scratch.path());
            let error = take(&failing(&scratch, Failure::Error { at }), codec, &id()).unwrap_err();
            let exists = load(&open(&scratch)).unwrap().find(id().as_str()).is_ok();
            // Only the last file, the .sha256, may fail once the backup exists.
            assert_eq!(exists, error.kind == Kind::Partial, "step {at}: {error}");
            assert!(error.is_no_space(), "step {at}: {error}");
            assert_clean_after(&scratch, &before, &[id().to_string()], at);
        }
    }
}

/// Not a test by itself: the process that `crash_at_any_step…` starts, and that dies.
#[test]
fn crash_child() {
    let Ok(dir) = std::env::var("PGARK_CRASH_DIR") else {
        return;
    };
    let at = std::env::var("PGARK_CRASH_AT").unwrap().parse().unwrap();
    let act = Box::new(|| std::process::abort());
    let inner = Box::new(LocalStore::open(Path::new(&dir)).unwrap());
    let store = FailingStore::new(inner, Failure::Call { at, act });
    let mut lock = DirLock::acquire(Path::new(&dir), "dump").unwrap();
    lock.note(&[id().to_string()]).unwrap();
    if std::env::var_os("PGARK_CRASH_REMOVE").is_some() {
        let catalog = load(&store).unwrap();
        remove(&store, catalog.find(id().as_str()).unwrap()).unwrap();
    } else {
        take(&store, Codec::GZIP, &id()).unwrap();
    }
    lock.release().unwrap();
}

/// Runs the child in `scratch`; whether it came to its end.
fn child(scratch: &Scratch, at: u64, removing: bool) -> bool {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "pipeline_tests::crash_child", "--nocapture"]);
    command.env("PGARK_CRASH_DIR", scratch.path());
    command.env("PGARK_CRASH_AT", at.to_string());
    if removing {
        command.env("PGARK_CRASH_REMOVE", "1");
    }
    command.output().unwrap().status.success()
}

#[test]
fn crash_at_any_step_of_a_backup_is_cleared_by_the_next_run() {
    let mut at = 1;
    loop {
        let scratch = Scratch::new();
        let before = neighbours(scratch.path());
        let ended = child(&scratch, at, false);
        let lock = DirLock::acquire(scratch.path(), "dump").unwrap();
        let dead = lock.previous_intents().to_vec();
        assert_eq!(dead.is_empty(), ended);
        assert_clean_after(&scratch, &before, &dead, at);
        if ended {
            break;
        }
        at += 1;
    }
    assert!(at > 12, "{at}");
}

#[test]
fn crash_at_any_step_of_a_deletion_leaves_no_false_legacy() {
    let mut at = 1;
    loop {
        let scratch = Scratch::new();
        let before = neighbours(scratch.path());
        let store = open(&scratch);
        take(&store, Codec::GZIP, &id()).unwrap();
        state::record(&store, &id(), Outcome::Verified, now(), None).unwrap();
        let ended = child(&scratch, at, true);
        let catalog = load(&store).unwrap();
        let state = catalog.find(id().as_str()).ok().map(|entry| entry.state);
        assert!(
            matches!(state, None | Some(State::Verified)),
            "step {at}: {state:?}"
        );
        if state.is_none() {
            let later = crate::clock::now() + SignedDuration::from_hours(25);
            clear_remains(&store, later, &[]).unwrap();
            assert_eq!(files(scratch.path()), before, "step {at}");
            assert!(store.list(".pgark/state/").unwrap().is_empty());
        }
        if ended {
            break;
        }
        at += 1;
    }
    assert!(at > 4, "{at}");
}

#[test]
fn remains_wait_a_day_unless_a_dead_run_noted_them() {
    let scratch = Scratch::new();
    let before = neighbours(scratch.path());
    let store = open(&scratch);
    take(&store, Codec::GZIP, &id()).unwrap();
    for suffix in [".json", ".sha256"] {
        let name = format!("{}.sql.gz{suffix}", id());
        assert!(store.delete(&Key::new(&name).unwrap()).unwrap());
    }
    let clock = crate::clock::now();
    assert!(clear_remains(&store, clock, &[]).unwrap().is_empty());
    let legacy_ids = [LEGACY, YOUNG].map(|n| n.trim_end_matches(".sql.gz").to_owned());
    assert!(
        clear_remains(&store, clock, &legacy_ids)
            .unwrap()
            .is_empty()
    );
    let later = clock + SignedDuration::from_hours(25);
    let cleared = clear_remains(&store, later, &[]).unwrap();
    assert_eq!(
        cleared,
        [format!("{}.sql.gz.idx", id()), format!("{}.sql.gz", id())]
    );
    assert_eq!(files(scratch.path()), before);
}

#[test]
fn unmarked_plain_artefact_needs_the_note_of_a_dead_run() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let name = format!("{}.sql", id());
    std::fs::write(scratch.path().join(&name), "SELECT 1;").unwrap();
    let later = crate::clock::now() + SignedDuration::from_hours(25);
    assert!(clear_remains(&store, later, &[]).unwrap().is_empty());
    assert_eq!(
        clear_remains(&store, later, &[id().to_string()]).unwrap(),
        [name]
    );
}

#[test]
fn foreign_temporary_names_wait_a_day() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let dump = format!(".{}.sql.gz.0123abcd.pgark-tmp", id());
    for name in [dump.as_str(), ".other.0123abcd.pgark-tmp"] {
        std::fs::write(scratch.path().join(name), "").unwrap();
    }
    let clock = crate::clock::now();
    assert_eq!(clear_remains(&store, clock, &[]).unwrap(), [dump]);
    let later = clock + SignedDuration::from_hours(25);
    assert_eq!(
        clear_remains(&store, later, &[]).unwrap(),
        [".other.0123abcd.pgark-tmp"]
    );
}

#[test]
fn taken_names_move_to_the_next_second() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    std::fs::write(scratch.path().join(format!("{}.sql.zst", id())), "").unwrap();
    let make = |time| BackupId::dump("app", time);
    let (next, time) = free_id(&store, &make, now()).unwrap();
    assert_eq!(next.as_str(), "backup_app_20250122_020016");
    assert_eq!(time, now() + SignedDuration::from_secs(1));
    let name = format!("{next}.sql.gz");
    std::fs::write(scratch.path().join(&name), "theirs").unwrap();
    let taken = begin(&store, &next, Codec::GZIP, false);
    assert!(taken.err().unwrap().is_exists());
    let left = std::fs::read(scratch.path().join(&name)).unwrap();
    assert_eq!(left, b"theirs");
}

#[test]
fn catalog_shows_every_state_and_hides_nothing() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    neighbours(scratch.path());
    let at = |n| BackupId::dump("app", now() + SignedDuration::from_secs(n));
    for n in 0..8 {
        take(&store, Codec::GZIP, &at(n)).unwrap();
    }
    let path = |n, suffix: &str| scratch.path().join(format!("{}.sql.gz{suffix}", at(n)));
    state::record(&store, &at(1), Outcome::Verified, now(), None).unwrap();
    state::record(&store, &at(2), Outcome::Proven, now(), None).unwrap();
    state::record(&store, &at(3), Outcome::Verified, now(), None).unwrap();
    state::record(
        &store,
        &at(3),
        Outcome::Failed,
        now(),
        Some("a row is gone"),
    )
    .unwrap();
    std::fs::remove_file(path(4, "")).unwrap();
    std::fs::write(path(5, ""), "short").unwrap();
    std::fs::write(path(6, ".json"), "{\"format\": 9}").unwrap();
    std::fs::copy(path(0, ".json"), path(7, ".json")).unwrap();
    let catalog = load(&store).unwrap();
    let state = |n: i64| {
        let entry = catalog.find(at(n).as_str()).unwrap();
        assert_eq!(entry.good, entry.reason.is_none());
        (entry.state, entry.reason.clone().unwrap_or_default())
    };
    assert_eq!(state(0).0, State::Taken);
    assert_eq!(state(1).0, State::Verified);
    assert_eq!(state(2).0, State::Proven);
    assert_eq!(state(3), (State::Failed, "a row is gone".to_owned()));
    assert_eq!(state(4).0, State::Missing);
    assert!(state(5).0 == State::Failed && state(5).1.contains("5 bytes instead of"));
    assert!(state(6).0 == State::Failed && state(6).1.contains("format 9"));
    assert!(state(7).0 == State::Failed && state(7).1.contains("another backup"));
    assert_eq!(catalog.entries.last().unwrap().state, State::Legacy);
    assert_eq!(catalog.entries.len(), 9);
    let (latest, skipped) = catalog.latest(BackupKind::Dump, None).unwrap();
    assert_eq!(latest.id, at(2));
    assert_eq!(skipped.len(), 5);
    let error = catalog.find("backup_app_20250122_020014").unwrap_err();
    assert!(error.kind == Kind::Usage && error.hint.unwrap().contains("backup_app_20250122_02001"));
}

#[test]
fn latest_is_refused_among_several_databases() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    assert!(
        load(&store)
            .unwrap()
            .latest(BackupKind::Dump, None)
            .is_err()
    );
    take(&store, Codec::GZIP, &id()).unwrap();
    take(&store, Codec::ZSTD, &BackupId::dump("crm", now())).unwrap();
    let catalog = load(&store).unwrap();
    let error = catalog.latest(BackupKind::Dump, None).unwrap_err();
    assert!(error.kind == Kind::Usage && error.fact.contains("app, crm"));
    let (entry, _) = catalog.latest(BackupKind::Dump, Some("crm")).unwrap();
    assert_eq!(entry.database.as_deref(), Some("crm"));
}

#[test]
fn legacy_backup_counts_only_when_it_is_whole() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    neighbours(scratch.path());
    let cut = "backup_app_20250101_020000.sql.gz";
    legacy(scratch.path(), cut, "SELECT 1;\n");
    let changed = "backup_app_20250102_020000.sql.gz";
    legacy(
        scratch.path(),
        changed,
        "-- PostgreSQL database dump complete\n",
    );
    std::fs::write(scratch.path().join(changed), gzip("x")).unwrap();
    let mut catalog = load(&store).unwrap();
    assert_eq!(catalog.entries.len(), 3);
    for entry in &catalog.entries {
        let whole = check_legacy(&store, entry).is_ok();
        assert_eq!(whole, LEGACY.starts_with(entry.id.as_str()), "{}", entry.id);
    }
    let (entry, skipped) = catalog.latest_good(&store, BackupKind::Dump, None).unwrap();
    assert!(LEGACY.starts_with(entry.id.as_str()) && entry.good);
    assert_eq!(skipped.len(), 2);
    assert!(
        skipped
            .iter()
            .all(|e| e.state == State::Failed && e.reason.is_some())
    );
    remove(&store, &entry).unwrap();
    assert!(load(&store).unwrap().find(entry.id.as_str()).is_err());
    assert!(parse_key(LEGACY).is_some() && !scratch.path().join(LEGACY).exists());
}

#[test]
fn missing_sums_are_written_again_from_the_manifest() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    take(&store, Codec::GZIP, &id()).unwrap();
    let path = scratch.path().join(format!("{}.sql.gz.sha256", id()));
    let line = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(ensure_sums(&store).unwrap(), [id().to_string()]);
    assert_eq!(std::fs::read(&path).unwrap(), line);
    assert!(ensure_sums(&store).unwrap().is_empty());
}
