//! A store that fails or dies at a chosen step, for tests.
//!
//! It counts the steps that change the store: `create`, each `write`, `finish` before and after
//! the inner one, `delete`. At step n (from 1) it returns an error like a full disk's, or calls a
//! closure (tests pass `std::process::abort`). Other steps pass through untouched.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Key, Object, Put, Store, Upload};
use crate::error::{Cause, Error, Result};

/// What happens at the chosen step.
pub enum Failure {
    /// Nothing; steps are only counted.
    None,
    /// An error with `is_no_space()`.
    Error { at: u64 },
    /// The closure is called; when it returns, the step goes on.
    Call {
        at: u64,
        act: Box<dyn Fn() + Send + Sync>,
    },
}

struct Steps {
    taken: AtomicU64,
    failure: Failure,
    count_file: Option<PathBuf>,
}

impl Steps {
    fn step(&self, what: &str) -> Result<()> {
        let now = self.taken.fetch_add(1, Ordering::SeqCst) + 1;
        if let Some(path) = &self.count_file {
            std::fs::write(path, now.to_string())?;
        }
        match &self.failure {
            Failure::Error { at } if *at == now => Err(Error::failed(format!(
                "no space left: injected at step {now}, {what}"
            ))
            .hint("this failure was asked for by a test")
            .cause(Cause::NoSpace)),
            Failure::Call { at, act } if *at == now => {
                act();
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Wraps a store; see the module.
pub struct FailingStore {
    inner: Box<dyn Store>,
    steps: Arc<Steps>,
}

impl FailingStore {
    #[must_use]
    pub fn new(inner: Box<dyn Store>, failure: Failure) -> FailingStore {
        FailingStore {
            inner,
            steps: Arc::new(Steps {
                taken: AtomicU64::new(0),
                failure,
                count_file: None,
            }),
        }
    }

    /// Steps taken so far.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps.taken.load(Ordering::SeqCst)
    }

    /// For tests of the real binary: `PGARK_FAIL_AT=abort:7` or `error:7` wraps the store, and
    /// `PGARK_FAIL_COUNT=path` keeps the number of steps taken in that file. Without either the
    /// store comes back as it is. Not in release builds.
    ///
    /// # Errors
    /// `Usage` when the variable is malformed.
    #[cfg(debug_assertions)]
    pub fn from_environment(inner: Box<dyn Store>) -> Result<Box<dyn Store>> {
        let at = std::env::var("PGARK_FAIL_AT").ok();
        let count_file = std::env::var_os("PGARK_FAIL_COUNT").map(PathBuf::from);
        let failure = match at.as_deref() {
            None if count_file.is_none() => return Ok(inner),
            None => Failure::None,
            Some(text) => parse(text).ok_or_else(|| {
                Error::usage(format!("PGARK_FAIL_AT={text:?} is not understood"))
                    .hint("give abort:<step> or error:<step>")
            })?,
        };
        Ok(Box::new(FailingStore {
            inner,
            steps: Arc::new(Steps {
                taken: AtomicU64::new(0),
                failure,
                count_file,
            }),
        }))
    }
}

#[cfg(debug_assertions)]
fn parse(text: &str) -> Option<Failure> {
    let (what, at) = text.split_once(':')?;
    let at = at.parse().ok()?;
    match what {
        "error" => Some(Failure::Error { at }),
        "abort" => Some(Failure::Call {
            at,
            act: Box::new(|| std::process::abort()),
        }),
        _ => None,
    }
}

impl Store for FailingStore {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn create(&self, key: &Key, mode: Put) -> Result<Box<dyn Upload>> {
        self.steps.step(&format!("create {key}"))?;
        Ok(Box::new(FailingUpload {
            inner: self.inner.create(key, mode)?,
            steps: Arc::clone(&self.steps),
        }))
    }

    fn create_sized(&self, key: &Key, mode: Put, expected_bytes: u64) -> Result<Box<dyn Upload>> {
        self.steps.step(&format!("create {key}"))?;
        Ok(Box::new(FailingUpload {
            inner: self.inner.create_sized(key, mode, expected_bytes)?,
            steps: Arc::clone(&self.steps),
        }))
    }

    fn read(&self, key: &Key, range: Range<u64>) -> Result<Vec<u8>> {
        self.inner.read(key, range)
    }

    fn stat(&self, key: &Key) -> Result<Option<Object>> {
        self.inner.stat(key)
    }

    fn list(&self, prefix: &str) -> Result<Vec<Object>> {
        self.inner.list(prefix)
    }

    fn folders(&self, prefix: &str) -> Result<Vec<String>> {
        self.inner.folders(prefix)
    }

    fn unfinished(&self) -> Result<Vec<Object>> {
        self.inner.unfinished()
    }

    fn delete(&self, key: &Key) -> Result<bool> {
        self.steps.step(&format!("delete {key}"))?;
        self.inner.delete(key)
    }
}

struct FailingUpload {
    inner: Box<dyn Upload>,
    steps: Arc<Steps>,
}

impl Upload for FailingUpload {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.steps.step("write")?;
        self.inner.write(bytes)
    }

    fn finish(self: Box<Self>) -> Result<Object> {
        self.steps.step("before finish")?;
        let object = self.inner.finish()?;
        self.steps
            .step(&format!("after finish of {}", object.key))?;
        Ok(object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::local::LocalStore;
    use crate::store::put;
    use crate::store::tests::{Scratch, conformance};

    #[test]
    fn wrapper_without_failure_conforms() {
        let scratch = Scratch::new();
        let inner = Box::new(LocalStore::open(scratch.path()).unwrap());
        conformance(&FailingStore::new(inner, Failure::None));
    }

    #[test]
    fn each_step_of_a_put_can_fail() {
        for (at, there) in [(1, false), (2, false), (3, false), (4, true)] {
            let scratch = Scratch::new();
            let inner = Box::new(LocalStore::open(scratch.path()).unwrap());
            let store = FailingStore::new(inner, Failure::Error { at });
            let key = Key::new("a").unwrap();
            assert!(put(&store, &key, b"x", Put::New).unwrap_err().is_no_space());
            assert_eq!(store.stat(&key).unwrap().is_some(), there, "step {at}");
            assert!(store.unfinished().unwrap().is_empty());
        }
    }

    #[test]
    fn malformed_request_is_refused() {
        assert!(parse("error:3").is_some() && parse("abort:1").is_some());
        assert!(
            parse("error").is_none() && parse("boom:1").is_none() && parse("error:x").is_none()
        );
    }
}
