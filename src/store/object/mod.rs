//! The store in a bucket of S3 or of a compatible server.
//!
//! Blocking outside; inside, a runtime of two threads that sleep while nothing is asked. Every
//! call may come from any plain thread (not from one that drives a runtime itself).
//!
//! Needs the rights Put, Get, Delete and List; what else is missing (listing and aborting
//! uploads) is left out with a warning that names it.
//!
//! Invariants:
//! - A call ends by [`S3Options::deadline`], and within ten seconds of a cancel; one that makes
//!   an object appear or deletes one gets a few seconds more to be said to its end.
//! - No secret shows in `Debug` output or in an error.
//! - What others put into the bucket never makes a listing fail.
//!
//! A crash leaves unfinished uploads at most: see `remains`.

mod bucket;
mod connect;
mod credentials;
mod fault;
mod lists;
mod options;
mod parts;
mod remains;
mod rights;
mod upload;
mod wire;
mod xml;

use std::ops::Range;
use std::sync::Arc;

use http::Method;

use self::bucket::Bucket;
pub use self::credentials::Environment;
pub use self::options::{Keys, S3Options, Secret, Warn};
use self::upload::S3Upload;
use self::wire::{Action, Call};
use super::local::final_name;
use super::rights::Tried;
use super::{Key, Object, Put, Store, Upload, missing};
use crate::cancel;
use crate::error::{Error, Result};

/// A bucket that holds backups.
pub struct S3Store {
    name: String,
    bucket: Arc<Bucket>,
}

impl S3Store {
    /// Prepares the way to a bucket; makes no request.
    ///
    /// `environment` answers for the AWS variables (credentials, region); `token` ends blocked
    /// calls.
    ///
    /// # Errors
    /// `Usage` naming the setting that cannot be; `Failed` when no thread can be started.
    pub fn open(
        options: &S3Options,
        environment: Environment,
        token: &cancel::Token,
    ) -> Result<S3Store> {
        let bucket = connect::bucket(options, environment, token)?;
        Ok(S3Store {
            name: options.name.clone(),
            bucket: Arc::new(bucket),
        })
    }
}

impl Store for S3Store {
    fn name(&self) -> &str {
        &self.name
    }

    fn describe(&self) -> String {
        self.bucket.place.show("")
    }

    fn reads_at_once(&self) -> usize {
        16
    }

    fn create(&self, key: &Key, mode: Put) -> Result<Box<dyn Upload>> {
        self.begin(key, mode, None)
    }

    fn create_sized(&self, key: &Key, mode: Put, expected_bytes: u64) -> Result<Box<dyn Upload>> {
        self.begin(key, mode, Some(expected_bytes))
    }

    fn read(&self, key: &Key, range: Range<u64>) -> Result<Vec<u8>> {
        let shown = self.bucket.place.show(key.as_str());
        let short = |bytes: u64| {
            Error::damage(format!(
                "{shown} ends at byte {bytes}, but should reach byte {}",
                range.end
            ))
            .hint(
                "the object was replaced by a shorter one; restore another backup or copy it anew",
            )
        };
        let count = range.end.saturating_sub(range.start);
        if count == 0 {
            let object = self.stat(key)?.ok_or_else(|| missing(self, key))?;
            return if object.bytes < range.end {
                Err(short(object.bytes))
            } else {
                Ok(Vec::new())
            };
        }
        let call = Call::new(
            Action::Get,
            Method::GET,
            self.bucket.place.object_url(key.as_str()),
        )
        .header("range", &format!("bytes={}-{}", range.start, range.end - 1))
        .expecting(count);
        let reply = match self.bucket.run(self.bucket.wire.send(&call)) {
            Ok(reply) => reply,
            Err(fault) if fault.status() == 404 && fault.code() != "NoSuchBucket" => {
                return Err(missing(self, key));
            }
            Err(fault) if fault.status() == 416 => {
                return Err(short(self.stat(key)?.map_or(0, |object| object.bytes)));
            }
            Err(fault) => {
                return Err(self
                    .bucket
                    .explain(&fault, Action::Get, &format!("read {shown}")));
            }
        };
        let got = reply.body.len() as u64;
        if reply.status != 206 && (range.start != 0 || got != count) {
            return Err(Error::failed(format!(
                "the server sends all of {shown} instead of a part"
            ))
            .hint("it does not know ranges; a proxy in between may be the cause"));
        }
        match got {
            _ if got == count => Ok(reply.body.into()),
            _ if got < count => Err(short(range.start + got)),
            _ => Err(Error::failed(format!(
                "the server sends {got} bytes of {shown} instead of {count}"
            ))),
        }
    }

    fn stat(&self, key: &Key) -> Result<Option<Object>> {
        let head = self.bucket.head(key, Action::Stat)?;
        Ok(head.map(|head| Object {
            key: key.clone(),
            bytes: head.bytes,
            modified: head.modified,
            etag: head.etag(),
        }))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Object>> {
        self.level(prefix)
    }

    fn folders(&self, prefix: &str) -> Result<Vec<String>> {
        Ok(self.level_and_folders(prefix)?.1)
    }

    fn unfinished(&self) -> Result<Vec<Object>> {
        Ok(self
            .uploads()?
            .into_values()
            .map(|(object, _)| object)
            .collect())
    }

    fn try_rights(&self, key: &Key) -> Vec<Tried> {
        self.rights(key)
    }

    fn delete(&self, key: &Key) -> Result<bool> {
        if final_name(key.file_name()).is_some() {
            return self.abort(key);
        }
        // S3 answers alike whether there was something or not.
        if self.bucket.head(key, Action::Delete)?.is_none() {
            return Ok(false);
        }
        let place = &self.bucket.place;
        let call = Call::new(
            Action::Delete,
            Method::DELETE,
            place.object_url(key.as_str()),
        );
        match self.bucket.run(self.bucket.wire.send(&call)) {
            Ok(_) => Ok(true),
            Err(fault) if fault.status() == 404 => Ok(true), // Deleted by a call whose reply was lost.
            Err(fault) => {
                let doing = format!("delete {}", place.show(key.as_str()));
                Err(self.bucket.explain(&fault, Action::Delete, &doing))
            }
        }
    }
}

impl S3Store {
    fn begin(&self, key: &Key, mode: Put, expected: Option<u64>) -> Result<Box<dyn Upload>> {
        // Early, so that nobody dumps for hours towards a name that is taken; finish decides.
        if mode == Put::New && self.bucket.head(key, Action::Stat)?.is_some() {
            return Err(self.bucket.exists(key));
        }
        Ok(Box::new(S3Upload::new(
            Arc::clone(&self.bucket),
            key,
            mode,
            expected,
        )))
    }
}

#[cfg(test)]
mod tests;
