//! What every store must do, and a scratch directory for tests.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::error::Kind;

/// A directory of one test; removed at the end.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("pgark-test-{}-{n}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

/// The suite that each store passes, on an empty one.
pub(crate) fn conformance(store: &dyn Store) {
    assert!(store.list("").unwrap().is_empty());
    assert!(store.list(".pgark/state/").unwrap().is_empty());
    appears_only_when_finished(store);
    new_never_overwrites(store);
    ranges_are_exact(store);
    levels_are_flat(store);

    assert!(store.delete(&key("a")).unwrap());
    assert!(!store.delete(&key("a")).unwrap());
    assert!(store.stat(&key("a")).unwrap().is_none());
    assert!(get(store, &key("a")).unwrap().is_none());
    assert_eq!(store.read(&key("a"), 0..1).unwrap_err().kind, Kind::Damage);
    assert_eq!(hash(store, &key("a")).unwrap_err().kind, Kind::Damage);
}

fn appears_only_when_finished(store: &dyn Store) {
    let mut upload = store.create(&key("a"), Put::New).unwrap();
    upload.write(b"hello ").unwrap();
    assert!(store.list("").unwrap().is_empty());
    assert!(store.stat(&key("a")).unwrap().is_none());
    drop(upload);
    assert!(store.list("").unwrap().is_empty());
    assert!(store.unfinished().unwrap().is_empty());

    let mut upload = store.create(&key("a"), Put::New).unwrap();
    upload.write(b"hello ").unwrap();
    upload.write(b"world").unwrap();
    let object = upload.finish().unwrap();
    assert_eq!((object.key.as_str(), object.bytes), ("a", 11));
    assert_eq!(store.stat(&key("a")).unwrap(), Some(object.clone()));
    let mut listed = store.list("").unwrap();
    assert_eq!(listed.len(), 1);
    assert!(listed[0].etag.is_none() || listed[0].etag == object.etag);
    // Some servers list no ETags.
    listed[0].etag.clone_from(&object.etag);
    assert_eq!(listed, [object]);
    assert!(store.unfinished().unwrap().is_empty());
}

fn new_never_overwrites(store: &dyn Store) {
    assert!(store.create(&key("a"), Put::New).err().unwrap().is_exists());
    let first = store.create(&key("b"), Put::New).unwrap();
    let second = store.create(&key("b"), Put::New).unwrap();
    first.finish().unwrap();
    assert!(second.finish().unwrap_err().is_exists());
    put(store, &key("b"), b"replaced", Put::Replace).unwrap();
    assert_eq!(get(store, &key("b")).unwrap().unwrap(), b"replaced");
    assert!(store.unfinished().unwrap().is_empty());
}

fn ranges_are_exact(store: &dyn Store) {
    assert_eq!(store.read(&key("a"), 0..11).unwrap(), b"hello world");
    assert_eq!(store.read(&key("a"), 6..9).unwrap(), b"wor");
    assert_eq!(store.read(&key("a"), 11..11).unwrap(), b"");
    let error = store.read(&key("a"), 6..12).unwrap_err();
    assert_eq!(error.kind, Kind::Damage);
    let (bytes, sha256) = hash(store, &key("a")).unwrap();
    assert_eq!(bytes, 11);
    assert_eq!(sha256, hex::encode(Sha256::digest(b"hello world")));
}

fn levels_are_flat(store: &dyn Store) {
    put(store, &key(".pgark/state/x.json"), b"{}", Put::New).unwrap();
    put(store, &key("c"), b"", Put::New).unwrap();
    let names = |prefix| -> Vec<String> {
        let objects = store.list(prefix).unwrap();
        objects.iter().map(|o| o.key.to_string()).collect()
    };
    assert_eq!(names(""), ["a", "b", "c"]);
    assert_eq!(names(".pgark/state/"), [".pgark/state/x.json"]);
    put(store, &key("base_20250122_030000/base.tar"), b"x", Put::New).unwrap();
    assert_eq!(names(""), ["a", "b", "c"]);
    assert_eq!(
        names("base_20250122_030000/"),
        ["base_20250122_030000/base.tar"]
    );
    let folders = |prefix| store.folders(prefix).unwrap();
    assert_eq!(folders(""), [".pgark", "base_20250122_030000"]);
    assert_eq!(folders(".pgark/"), ["state"]);
    assert!(folders("wal/").is_empty());
    // A folder goes with its last file.
    store.delete(&key("base_20250122_030000/base.tar")).unwrap();
    assert_eq!(store.folders("").unwrap(), [".pgark"]);
}

#[test]
fn keys_cannot_leave_the_store() {
    for text in ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a\0b"] {
        assert!(Key::new(text).is_err(), "{text:?}");
    }
    assert_eq!(key(".pgark/x").file_name(), "x");
}
