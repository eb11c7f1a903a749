//! Tries what backups need of a store, and leaves nothing behind.
//!
//! Invariant: what is written is deleted before the end; where it could not be deleted, nothing is
//! written. A crash in between leaves one small object, named `pgark-check-…`.

use std::hash::{BuildHasher, Hasher};

use super::{Key, Put, Store};
use crate::error::{Error, Result};

/// One thing that was tried.
#[derive(Debug, Clone)]
pub struct Tried {
    /// What it was, for people: `write`, or the right's own name, `s3:PutObject`.
    pub right: &'static str,
    /// Whether a backup cannot do without.
    pub needed: bool,
    pub result: Result<()>,
    /// What gives the right: a statement of a policy.
    pub policy: Option<String>,
}

impl Tried {
    #[must_use]
    pub fn new(right: &'static str, result: Result<()>) -> Tried {
        Tried {
            right,
            needed: true,
            result,
            policy: None,
        }
    }
}

/// A name that no backup has and no other check takes.
///
/// # Errors
/// None that can happen: the name is fixed but for digits.
pub fn trial_key() -> Result<Key> {
    let random = std::hash::RandomState::new().build_hasher().finish();
    Key::new(&format!("pgark-check-{random:016x}"))
}

/// Writes, reads back, lists and deletes a small object. Ends at the first that fails, but for the
/// deletion, which is tried whenever something may be there.
pub fn write_read_delete<S: Store + ?Sized>(store: &S, key: &Key) -> Vec<Tried> {
    let content = format!("{key}, written by `pgark check`; it may be deleted\n");
    let write = || -> Result<()> {
        let mut upload = store.create(key, Put::New)?;
        upload.write(content.as_bytes())?;
        upload.finish().map(drop)
    };
    let read = || -> Result<()> {
        let found = store.read(key, 0..content.len() as u64)?;
        if found == content.as_bytes() {
            return Ok(());
        }
        Err(
            Error::failed(format!("{key} came back other than it was written"))
                .hint("the store changes data: check it before the next backup"),
        )
    };
    let list = || -> Result<()> {
        if store.list("")?.iter().any(|object| object.key == *key) {
            return Ok(());
        }
        Err(
            Error::failed(format!("{key} was written and is not listed"))
                .hint("the store shows what was written only later; backups need it at once"),
        )
    };
    let mut tried = vec![Tried::new("write", write())];
    if tried[0].result.is_ok() {
        tried.push(Tried::new("read", read()));
        tried.push(Tried::new("list", list()));
    }
    // After a failure the object may be there all the same.
    let deleted =
        store.delete(key).and_then(|_| match store.stat(key)? {
            None => Ok(()),
            Some(_) => Err(Error::failed(format!("{key} is there after its deletion"))
                .hint("delete it by hand")),
        });
    if tried[0].result.is_ok() || !matches!(deleted, Ok(())) {
        tried.push(Tried::new("delete", deleted));
    }
    tried
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::failing::{FailingStore, Failure};
    use crate::store::local::LocalStore;
    use crate::store::tests::Scratch;

    #[test]
    fn a_trial_leaves_nothing_whatever_step_fails() {
        for at in 0..8 {
            let scratch = Scratch::new();
            let inner = Box::new(LocalStore::open(scratch.path()).unwrap());
            let store = FailingStore::new(inner, Failure::Error { at });
            let tried = store.try_rights(&trial_key().unwrap());
            let failed: Vec<&str> = tried
                .iter()
                .filter(|one| one.result.is_err())
                .map(|one| one.right)
                .collect();
            // create, write, before and after finish; delete; no more steps.
            let expected: &[&str] = match at {
                1..=4 => &["write"],
                5 => &["delete"],
                _ => &[],
            };
            assert_eq!(failed, expected, "step {at}");
            let left = std::fs::read_dir(scratch.path()).unwrap().count();
            // Only a deletion that fails leaves what it could not delete.
            assert_eq!(left, usize::from(at == 5), "step {at}");
        }
    }
}
