//! What a local store promises beyond the conformance suite.

use super::*;
use crate::store::tests::{Scratch, conformance};
use crate::store::{get, put};
use std::os::unix::fs::PermissionsExt;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn local_store_conforms() {
    let scratch = Scratch::new();
    conformance(&LocalStore::open(&scratch.path().join("a/b")).unwrap());
}

#[test]
fn files_and_directories_are_private() {
    let scratch = Scratch::new();
    let dir = scratch.path().join("new");
    let store = LocalStore::open(&dir).unwrap();
    let key = Key::new(".pgark/state/x.json").unwrap();
    put(&store, &key, b"1", Put::New).unwrap();
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&dir.join(".pgark/state")), 0o700);
    assert_eq!(mode(&dir.join(key.as_str())), 0o600);
}

#[test]
fn only_names_of_our_pattern_are_unfinished() {
    let scratch = Scratch::new();
    let store = LocalStore::open(scratch.path()).unwrap();
    for name in [
        ".notes.pgark-tmp",
        "x.0123abcd.pgark-tmp",
        ".x.0123ABCD.pgark-tmp",
        ".x.0123abcd.tmp",
        "..0123abcd.pgark-tmp",
        ".x.0123abcd.pgark-tmp",
    ] {
        fs::write(scratch.path().join(name), "").unwrap();
    }
    let found = store.unfinished().unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].key.as_str(), ".x.0123abcd.pgark-tmp");
    assert_eq!(store.list("").unwrap().len(), 5);
}

#[test]
fn link_fallback_never_replaces() {
    let scratch = Scratch::new();
    let (a, b) = (scratch.path().join("a"), scratch.path().join("b"));
    fs::write(&a, "new").unwrap();
    fs::write(&b, "old").unwrap();
    let error = link_new(&a, &b).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(fs::read(&b).unwrap(), b"old");
    fs::remove_file(&b).unwrap();
    link_new(&a, &b).unwrap();
    assert!(!a.exists() && fs::read(&b).unwrap() == b"new");
}

#[test]
fn name_taken_during_the_upload_is_not_overwritten() {
    let scratch = Scratch::new();
    let store = LocalStore::open(scratch.path()).unwrap();
    let key = Key::new("backup").unwrap();
    let mut upload = store.create(&key, Put::New).unwrap();
    upload.write(b"ours").unwrap();
    fs::write(scratch.path().join("backup"), "theirs").unwrap();
    assert!(upload.finish().unwrap_err().is_exists());
    assert_eq!(get(&store, &key).unwrap().unwrap(), b"theirs");
    assert!(store.unfinished().unwrap().is_empty());
}

#[test]
fn failures_say_what_to_do() {
    let scratch = Scratch::new();
    let file = scratch.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(LocalStore::open(&file).unwrap_err().hint.is_some());
    let store = LocalStore::open(scratch.path()).unwrap();
    let long = Key::new(&"x".repeat(250)).unwrap();
    let error = store.create(&long, Put::New).err().unwrap();
    assert!(error.fact.contains("too long"), "{error}");
    let full = explain(Errno::NOSPC.into(), Path::new("/backups"), "write x");
    assert!(full.fact.starts_with("no space left on /backups"));
    assert!(full.is_no_space() && full.hint.is_some());
}
