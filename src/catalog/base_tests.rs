//! Folders with and without manifests, chains, and what is cleared.

use super::*;
use crate::catalog::list;
use crate::catalog::manifest::{ArchiveRecord, BaseRecord, FileRecord};
use crate::store::local::LocalStore;
use crate::store::mark::ZSTD_FRAME;
use crate::store::tests::Scratch;
use crate::units::{Lsn, SegmentSize, Timeline};
use sha2::{Digest, Sha256};

fn id(day: u32) -> BackupId {
    BackupId::parse(&format!("base_202501{day:02}_030000")).unwrap()
}

fn file(store: &dyn Store, id: &BackupId, name: &str, content: &[u8]) -> FileRecord {
    let key = base_key(id, name).unwrap();
    store::put(store, &key, content, Put::New).unwrap();
    FileRecord {
        name: name.to_owned(),
        bytes: content.len() as u64,
        sha256: hex::encode(Sha256::digest(content)),
    }
}

/// The files of a backup, and the manifest that would commit it.
fn prepare(store: &dyn Store, day: u32, parent: Option<u32>) -> Manifest {
    let id = id(day);
    let time = id.time().unwrap();
    let archive = |name: &str| ArchiveRecord {
        oid: None,
        location: None,
        file: file(store, &id, &format!("{name}.tar.zst"), &ZSTD_FRAME[..]),
        index: file(store, &id, &format!("{name}.tar.zst.idx"), b"index"),
        raw_bytes: 1,
        frames: 1,
    };
    let archives = vec![archive("base"), archive("pg_wal")];
    let mut manifest = Manifest::new(id.clone(), Codec::ZSTD, time, time);
    manifest.parent = parent.map(self::id);
    manifest.artefact = archives[0].file.clone();
    manifest.base = Some(BaseRecord {
        start_lsn: Lsn(1),
        start_timeline: Timeline::FIRST,
        end_lsn: Lsn(2),
        end_timeline: Timeline::FIRST,
        wal_segment_bytes: SegmentSize::DEFAULT,
        from_standby: false,
        archives,
        backup_manifest: file(store, &id, "backup_manifest", b"{}"),
        bad_checksums: false,
        full_because: None,
        settings: BTreeMap::new(),
    });
    manifest
}

fn take(store: &dyn Store, day: u32, parent: Option<u32>) {
    commit(store, &prepare(store, day, parent)).unwrap();
}

fn states(store: &dyn Store) -> Vec<(String, bool)> {
    let entries = list::load(store).unwrap().entries;
    entries
        .iter()
        .map(|one| (one.id.to_string(), one.good))
        .collect()
}

#[test]
fn a_folder_is_a_backup_from_its_manifest_on_and_sums_hold() {
    let scratch = Scratch::new();
    let store = LocalStore::open(scratch.path()).unwrap();
    let manifest = prepare(&store, 1, None);
    assert!(states(&store).is_empty());
    commit(&store, &manifest).unwrap();
    assert_eq!(states(&store), [(id(1).to_string(), true)]);
    let entry = list::load(&store).unwrap().entries.remove(0);
    assert_eq!(entry.manifest.as_ref(), Some(&manifest));
    let mut check = std::process::Command::new("sha256sum");
    let folder = scratch.path().join(id(1).as_str());
    let checked = check
        .args(["-c", "--quiet", "--strict", BASE_SUMS])
        .current_dir(&folder)
        .status();
    assert!(checked.unwrap().success());
    // A second commit of that name changes nothing.
    assert!(commit(&store, &manifest).unwrap_err().is_exists());
    // A cut file is seen by its size, and a missing one.
    std::fs::write(folder.join("pg_wal.tar.zst"), "x").unwrap();
    assert_eq!(states(&store), [(id(1).to_string(), false)]);
    std::fs::remove_file(folder.join("base.tar.zst")).unwrap();
    assert_eq!(list::load(&store).unwrap().entries[0].state, State::Missing);
    super::remove(&store, &id(1)).unwrap();
    assert!(!folder.exists());
}

#[test]
fn an_incremental_backup_is_as_good_as_its_chain() {
    let scratch = Scratch::new();
    let store = LocalStore::open(scratch.path()).unwrap();
    take(&store, 1, None);
    take(&store, 2, Some(1));
    take(&store, 3, Some(2));
    take(&store, 4, Some(9));
    let entries = list::load(&store).unwrap().entries;
    let good = |entries: &[Entry]| entries.iter().map(|one| one.good).collect::<Vec<_>>();
    assert_eq!(good(&entries), [false, true, true, true]);
    let names = chain(&entries, &entries[1]).unwrap();
    let names: Vec<&str> = names.iter().map(|one| one.id.as_str()).collect();
    assert_eq!(names, [id(1).as_str(), id(2).as_str(), id(3).as_str()]);
    assert!(
        chain(&entries, &entries[0])
            .unwrap_err()
            .fact
            .contains("base_20250109")
    );
    std::fs::remove_file(scratch.path().join(id(1).as_str()).join("backup_manifest")).unwrap();
    assert_eq!(good(&list::load(&store).unwrap().entries), [false; 4]);
}

#[test]
fn remains_go_by_note_or_by_age_and_mark_and_foreign_files_stay() {
    let scratch = Scratch::new();
    let store = LocalStore::open(scratch.path()).unwrap();
    take(&store, 1, None);
    prepare(&store, 2, None);
    let notes = scratch.path().join(id(2).as_str()).join("notes.txt");
    std::fs::write(&notes, "mine").unwrap();
    prepare(&store, 3, None);
    let now = crate::clock::now();
    assert!(
        clear_remains(&store, now, &[]).unwrap().is_empty(),
        "too young"
    );
    let cleared = clear_remains(&store, now, &[id(3).to_string()]).unwrap();
    assert_eq!(cleared.len(), 5);
    assert!(!scratch.path().join(id(3).as_str()).exists());
    let empty = scratch.path().join(id(4).as_str());
    std::fs::create_dir(&empty).unwrap();
    clear_remains(&store, now, &[]).unwrap();
    assert!(!empty.exists());
    let later = now + SignedDuration::from_hours(25);
    // Without anything that shows the mark, nothing is provably ours.
    for name in ["base.tar.zst", "pg_wal.tar.zst"] {
        std::fs::write(scratch.path().join(id(2).as_str()).join(name), "theirs").unwrap();
    }
    assert!(clear_remains(&store, later, &[]).unwrap().is_empty());
    std::fs::write(
        scratch.path().join(id(2).as_str()).join("base.tar.zst"),
        ZSTD_FRAME,
    )
    .unwrap();
    assert_eq!(clear_remains(&store, later, &[]).unwrap().len(), 5);
    assert!(notes.exists());
    assert_eq!(states(&store), [(id(1).to_string(), true)]);
}

#[test]
fn a_copy_is_committed_as_the_original_and_damage_is_not_copied() {
    let scratch = Scratch::new();
    let from = LocalStore::open(&scratch.path().join("from")).unwrap();
    let to = LocalStore::open(&scratch.path().join("to")).unwrap();
    take(&from, 1, None);
    let entry = list::load(&from).unwrap().entries.remove(0);
    // What a dead copy left is written over.
    prepare(&to, 1, None);
    crate::catalog::commit::copy(&from, &to, &entry, &Token::new()).unwrap();
    assert_eq!(states(&to), [(id(1).to_string(), true)]);
    crate::catalog::remove(&to, &entry).unwrap();
    let wal = scratch
        .path()
        .join("from")
        .join(id(1).as_str())
        .join("backup_manifest");
    std::fs::write(wal, "[]").unwrap();
    let error = crate::catalog::commit::copy(&from, &to, &entry, &Token::new()).unwrap_err();
    assert_eq!(error.kind, Kind::Damage);
    assert!(states(&to).is_empty());
}
