//! `wal-get` on stores in directories, and what was fetched ahead.

use super::super::read::tests::{SYSTEM, name, piece, segment, size, store_file, whole};
use super::*;
use crate::store::local::LocalStore;
use crate::store::tests::Scratch;
use std::process::Command;

fn ask(stores: Vec<(String, Result<Box<dyn Store>>)>) -> Ask<'static> {
    Ask {
        stores,
        system: SYSTEM,
        size: size(),
        identities: None,
        encrypted: false,
    }
}

fn local(scratch: &Scratch) -> (String, Result<Box<dyn Store>>) {
    let store = LocalStore::open(scratch.path()).unwrap();
    ("local".to_owned(), Ok(Box::new(store)))
}

#[test]
fn a_store_that_fails_is_not_absence_and_another_one_serves() {
    let (scratch, out) = (Scratch::new(), Scratch::new());
    let store = LocalStore::open(scratch.path()).unwrap();
    store_file(&store, &whole(1), &segment(1, SYSTEM));
    let path = out.path().join("RECOVERYXLOG");
    let away = || ("s3".to_owned(), Err(Error::failed("it is away")));
    let both = ask(vec![away(), local(&scratch)]);
    assert_eq!(
        both.get(&name(1).to_string(), &path).unwrap(),
        Answer::Delivered
    );
    assert!(fs::read(&path).unwrap() == segment(1, SYSTEM));
    assert!(both.get(&name(2).to_string(), &path).is_err());
    assert!(both.get("00000002.history", &path).is_err());
    let one = ask(vec![local(&scratch)]);
    assert_eq!(
        one.get(&name(2).to_string(), &path).unwrap(),
        Answer::Absent
    );
    assert_eq!(one.get("00000002.history", &path).unwrap(), Answer::Absent);
    // Damage in one, whole in the other.
    let other = Scratch::new();
    let damaged = LocalStore::open(other.path()).unwrap();
    store_file(&damaged, &whole(1), b"short");
    let both = ask(vec![local(&other), local(&scratch)]);
    assert_eq!(
        both.get(&name(1).to_string(), &path).unwrap(),
        Answer::Delivered
    );
    assert!(
        ask(vec![local(&other)])
            .get(&name(1).to_string(), &path)
            .is_err()
    );
    // What a crash left under the temporary name is written over.
    fs::write(temporary(&path), "half").unwrap();
    assert_eq!(
        one.get(&name(1).to_string(), &path).unwrap(),
        Answer::Delivered
    );
    assert!(!temporary(&path).exists());
}

#[test]
fn pieces_serve_at_the_end_and_never_before_more() {
    let (scratch, out) = (Scratch::new(), Scratch::new());
    let store = LocalStore::open(scratch.path()).unwrap();
    let raw = segment(1, SYSTEM);
    store_file(&store, &piece(1, 0), &raw[..6000]);
    let path = out.path().join("RECOVERYXLOG");
    let get = || ask(vec![local(&scratch)]).get(&name(1).to_string(), &path);
    assert_eq!(get().unwrap(), Answer::Delivered);
    let found = fs::read(&path).unwrap();
    assert!(found.len() == raw.len() && found[..6000] == raw[..6000]);
    // A hole behind which there is more.
    store_file(&store, &piece(1, 7000), &raw[7000..7500]);
    assert!(get().unwrap_err().fact.contains("a piece of it is missing"));
    store_file(&store, &piece(1, 6000), &raw[6000..7000]);
    assert_eq!(get().unwrap(), Answer::Delivered);
    store_file(&store, &piece(2, 0), &segment(2, SYSTEM)[..9000]);
    assert!(get().unwrap_err().fact.contains("7500 bytes"));
    store_file(&store, &piece(1, 7500), &raw[7500..]);
    assert_eq!(get().unwrap(), Answer::Delivered);
}

#[test]
fn what_was_fetched_ahead_is_looked_at_before_it_is_used() {
    let (scratch, out) = (Scratch::new(), Scratch::new());
    let store = LocalStore::open(scratch.path()).unwrap();
    for number in 1..8 {
        store_file(&store, &whole(number), &segment(number, SYSTEM));
    }
    let path = out.path().join("RECOVERYXLOG");
    let folder = out.path().join(super::super::prefetch::FOLDER);
    let one = ask(vec![local(&scratch)]);
    one.fill(name(1), &path, 4, 2).unwrap();
    let ahead = |number: u64| folder.join(name(number).to_string());
    assert!((2..6).all(|number| ahead(number).exists()) && !ahead(6).exists());
    let mut nothing = Command::new("true");
    let mut get = |number: u64| {
        let answer = one.get_ahead(&name(number).to_string(), &path, (4, &mut nothing));
        assert_eq!(answer.unwrap(), Answer::Delivered);
        assert!(
            fs::read(&path).unwrap() == segment(number, SYSTEM),
            "{number}"
        );
    };
    get(2);
    assert!(!ahead(2).exists(), "moved, not copied");
    // Half written, and another one's.
    fs::write(ahead(3), &segment(3, SYSTEM)[..9000]).unwrap();
    fs::write(ahead(4), segment(5, SYSTEM)).unwrap();
    get(3);
    get(4);
    fs::write(folder.join("junk.pgark-tmp"), "").unwrap();
    one.fill(name(4), &path, 4, 2).unwrap();
    let names: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(names.len(), 4, "5 to 7 and the lock: {names:?}");
}
