//! Which of several is taken, and what is said of it: restore points, base backups, stores.

use super::World;
use super::refused::{note_reached, now, refused, segments};
use crate::base::{Copy, pgark, place};
use crate::support::{Pgark, Run, TempDir, run, until};
use pgark::catalog::Manifest;
use pgark::store::Key;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The positions that a refusal lists.
fn positions(told: &Run) -> Vec<String> {
    let words = told.stderr.split("LSN ").skip(1);
    let words = words.filter_map(|rest| Some(rest.split_once(" (")?.0.to_owned()));
    words.collect()
}

#[test]
fn restore_point_that_was_made_twice_is_refused_with_both_places() {
    let world = World::start(17);
    world.base(&[]);
    for n in 1..=3 {
        world.psql(&format!("INSERT INTO ledger VALUES ({n}, 0)"));
        world.psql("SELECT pg_create_restore_point('twice')");
        world.switch();
        if n == 2 {
            world.psql("SELECT pg_create_restore_point('once')");
        }
    }
    let told = refused(&world, "twice", &[], 2, &["was given 3 times", "--at "]);
    let places = positions(&told);
    assert_eq!(places.len(), 3, "{}", told.stderr);
    for (at, last) in places.iter().zip([1, 2, 3]) {
        assert_eq!(world.ledger_at(at, &[]).last(), Some(&last), "{at}");
    }
    assert_eq!(world.ledger_at("once", &[]), [1, 2]);
    // Behind the newest base backup it lies but once.
    world.base(&[]);
    world.psql("SELECT pg_create_restore_point('twice')");
    for n in 4..=5 {
        world.psql(&format!("INSERT INTO ledger VALUES ({n}, 0)"));
        world.switch();
    }
    assert_eq!(world.ledger_at("twice", &[]), [1, 2, 3]);
    // Where WAL behind it is damaged, how to come back to it all the same is said.
    let all = segments(&world);
    std::fs::write(all.last().unwrap(), "damaged").unwrap();
    let told = refused(&world, "twice", &[], 4, &["cannot be told: --at "]);
    let at = told.stderr.split("--at ").nth(1).unwrap();
    let at = at.split_whitespace().next().unwrap();
    assert_eq!(world.ledger_at(at, &[]), [1, 2, 3]);
}

#[test]
fn restore_point_within_the_backup_is_not_taken_for_the_one_behind_it() {
    let world = World::start(17);
    let args = ["backup", "--base", "-q", "--max-rate", "8m"];
    let taken = pgark(&world.server, &world.backups, args).spawn();
    let streaming =
        "SELECT count(*) FROM pg_stat_progress_basebackup WHERE phase = 'streaming database files'";
    until("the backup to be under way", || {
        world.psql(streaming) == "1"
    });
    world.psql("SELECT pg_create_restore_point('release')");
    taken.wait().assert_code(0);
    world.psql("INSERT INTO ledger VALUES (1, 0)");
    world.psql("SELECT pg_create_restore_point('release')");
    world.psql("INSERT INTO ledger VALUES (2, 0)");
    world.switch();
    assert_eq!(world.ledger_at("release", &[]), [1]);
}

/// Notes in its manifest that the server found damaged pages while it was taken.
fn with_bad_checksums(store: &Path, id: &str) {
    let key = Key::new(&format!("{id}/manifest.json")).unwrap();
    let path = store.join(key.as_str());
    let mut manifest = Manifest::parse(&key, &std::fs::read(&path).unwrap()).unwrap();
    manifest.base.as_mut().unwrap().bad_checksums = true;
    std::fs::write(&path, manifest.to_json().unwrap()).unwrap();
}

#[test]
fn base_backup_with_bad_checksums_serves_when_it_is_named() {
    let world = World::start(17);
    let id = world.base(&[]);
    world.psql("INSERT INTO ledger VALUES (1, 0)");
    world.switch();
    with_bad_checksums(world.backups.path(), &id);
    refused(&world, "latest", &[], 5, &["no good base backup"]);
    let (_keep, data) = place();
    world
        .restore("latest", &data, &[&id])
        .assert_code(0)
        .assert_says(&format!("warning: {id}: the server found pages"));
    let copy = Copy::start(17, &data);
    assert_eq!(super::rows(&copy), [1]);
    drop(copy);
    // Damage of the backup itself is no such exception.
    std::fs::remove_file(world.backups.join(&id).join("base.tar.zst")).unwrap();
    refused(&world, "latest", &[&id], 4, &["is not good"]);
}

/// A copy of the store as it is now, and the configuration with both: `near`, then `far`.
fn second_store(world: &World) -> (TempDir, PathBuf) {
    let (keep, near) = (TempDir::new(), world.backups.path());
    let (far, config) = (keep.join("far"), keep.join("pgark.toml"));
    run(Command::new("cp").arg("-rT").arg(near).arg(&far)).assert_code(0);
    let table = |name: &str, dir: &Path| {
        let dir = dir.display();
        format!("[[store]]\nname = \"{name}\"\nbackup_dir = \"{dir}\"\n")
    };
    let tables = table("near", near) + &table("far", &far);
    std::fs::write(&config, tables).unwrap();
    (keep, config)
}

/// Both stores, and nothing else.
fn from_both(config: &Path, at: &str) -> (Run, Vec<u32>) {
    let (_keep, data) = place();
    let path = data.display().to_string();
    let args = ["restore", "--data-dir", &path, "--at", at, "-q"];
    let told = Pgark::new(args).env("PGARK_CONFIG", config).run();
    let told = told.assert_code(0);
    (told, super::rows(&Copy::start(17, &data)))
}

#[test]
fn another_store_serves_and_it_is_said_why_and_what_is_missing() {
    let world = World::start(17);
    let id = world.base(&[]);
    world.psql("INSERT INTO ledger VALUES (1, 0)");
    let first = world.switch();
    let (keep, config) = second_store(&world);
    world.psql("INSERT INTO ledger VALUES (2, 0)");
    let second = world.switch();
    let lsn = world.psql("SELECT pg_current_wal_flush_lsn()");
    let noted = note_reached(&world, &lsn, &now(&world));
    let missing = format!("{first}.zst");
    std::fs::remove_file(world.wal.join(&missing)).unwrap();
    let (told, found) = from_both(&config, "latest");
    assert_eq!(found, [1]);
    let told = told.assert_says("near does not serve: ");
    let told = told.assert_says(&format!("{first} is missing in "));
    let told = told.assert_says(&format!("near had come to LSN {lsn} of timeline 1"));
    told.assert_says("far ends at LSN")
        .assert_says(", after the commit of");
    // Where nobody knows, that is said.
    std::fs::rename(&noted, world.backups.join("away")).unwrap();
    let (told, _) = from_both(&config, "latest");
    told.assert_says("how far the WAL in near went is not known");
    std::fs::rename(world.backups.join("away"), &noted).unwrap();
    // Where nothing is missing, nothing is said of it.
    let name = format!("{second}.zst");
    let far_wal = keep.join("far/wal").join(world.wal.file_name().unwrap());
    std::fs::copy(world.wal.join(&name), far_wal.join(&name)).unwrap();
    let (told, found) = from_both(&config, "latest");
    assert_eq!(found, [1, 2]);
    let told = told.assert_says("near does not serve: ");
    assert!(!told.stderr.contains("had come to") && !told.stderr.contains("not known"));
    // A base backup alone is no different.
    std::fs::remove_dir_all(world.backups.join(&id)).unwrap();
    let (_keep, data) = place();
    let args = ["restore", &id, "--dry-run", "--data-dir"];
    let args = args.into_iter().chain(data.to_str());
    let told = Pgark::new(args).env("PGARK_CONFIG", &config).run();
    told.assert_code(0)
        .assert_says("near does not serve: there is no backup")
        .assert_says(&format!("{id} is read from "));
}

#[test]
fn store_that_knows_one_of_two_restore_points_is_not_asked_instead() {
    let world = World::start(17);
    world.base(&[]);
    world.psql("SELECT pg_create_restore_point('twice')");
    world.switch();
    let (_stores, config) = second_store(&world);
    world.psql("INSERT INTO ledger VALUES (1, 0)");
    world.psql("SELECT pg_create_restore_point('twice')");
    world.switch();
    let (_keep, data) = place();
    let args = ["restore", "--at", "twice", "--data-dir"];
    let args = args.into_iter().chain(data.to_str());
    let told = Pgark::new(args).env("PGARK_CONFIG", &config).run();
    told.assert_code(2).assert_says("was given 2 times");
    assert!(!data.exists());
}
