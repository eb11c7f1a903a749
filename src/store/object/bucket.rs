//! The bucket as its store and its uploads share it: requests, and the commit of an object.
//!
//! Invariant: an object counts as stored only when the server has shown it under its name with
//! this upload's mark, size, ETag and (where the server keeps one) checksum.
//!
//! `Put::New` on a server without conditional requests (Garage): a look-up directly before the
//! last call must do. In the moment between the two another program could take the name and be
//! overwritten; pgark's own runs are kept apart by their lock, and by names with seconds.

use std::collections::BTreeSet;
use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use http::Method;
use jiff::Timestamp;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use super::fault::{Fault, moment};
use super::options::{Place, Warn};
use super::remains::Notes;
use super::wire::{Action, Call, Reply, Wire};
use super::xml;
use crate::cancel;
use crate::error::{Cause, Error, Result};
use crate::store::{Key, Object, Put};

/// The metadata that tells one upload's object from any other.
const MARK: &str = "x-amz-meta-pgark-upload";

pub(super) struct Bucket {
    pub(super) wire: Arc<Wire>,
    pub(super) place: Place,
    pub(super) notes: Notes,
    /// Headers of every new object: encryption, storage class.
    pub(super) headers: Vec<(&'static str, String)>,
    /// Whether the server takes checksums, and `If-None-Match`, as far as is known.
    checksums: AtomicBool,
    conditions: AtomicBool,
    pub(super) token: cancel::Token,
    pub(super) _hook: cancel::Hook,
    warn: Warn,
    warned: Mutex<BTreeSet<String>>,
    runtime: Option<Runtime>,
}

/// What a look-up shows of an object.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) bytes: u64,
    pub(super) modified: Timestamp,
    etag: String,
    mark: String,
    sha256: String,
}

/// An upload at its last step.
pub(super) struct Finish {
    pub(super) key: Key,
    pub(super) mode: Put,
    pub(super) mark: String,
    pub(super) bytes: u64,
    /// As the server would show it: base64, of all parts with their number behind it.
    pub(super) sha256: String,
}

/// A new upload's mark.
pub(super) fn mark() -> String {
    // The standard library's hash seeds are random.
    let random = || std::hash::RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", random(), random())
}

impl Bucket {
    pub(super) fn new(
        wire: Wire,
        place: Place,
        notes: Notes,
        headers: Vec<(&'static str, String)>,
        (token, hook): (cancel::Token, cancel::Hook),
        warn: Warn,
        runtime: Runtime,
    ) -> Bucket {
        Bucket {
            wire: Arc::new(wire),
            place,
            notes,
            headers,
            checksums: AtomicBool::new(true),
            conditions: AtomicBool::new(true),
            token,
            _hook: hook,
            warn,
            warned: Mutex::new(BTreeSet::new()),
            runtime: Some(runtime),
        }
    }

    fn runtime(&self) -> &Runtime {
        let runtime = self.runtime.as_ref();
        // infallible: only the drop takes it.
        runtime.expect("the runtime lives as long as the bucket")
    }

    /// Waits for a future on the calling thread.
    pub(super) fn run<F: Future>(&self, future: F) -> F::Output {
        self.runtime().block_on(future)
    }

    pub(super) fn spawn<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.runtime().spawn(future)
    }

    /// Says a sentence, once.
    pub(super) fn warn(&self, sentence: &str) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.insert(sentence.to_owned()) {
            (self.warn)(&format!("{}: {sentence}", self.place.show("")));
        }
    }

    pub(super) fn takes_checksums(&self) -> bool {
        self.checksums.load(Ordering::Relaxed)
    }

    /// A request that creates an object or an upload.
    pub(super) fn new_object(
        &self,
        action: Action,
        method: Method,
        url: String,
        mark: &str,
    ) -> Call {
        let call = Call::new(action, method, url)
            .header("content-type", "application/octet-stream")
            .header(MARK, mark);
        self.headers
            .iter()
            .fold(call, |call, (name, value)| call.header(name, value))
    }

    pub(super) fn explain(&self, fault: &Fault, action: Action, doing: &str) -> Error {
        if fault.is_cancelled()
            && let Err(interrupted) = self.token.check()
        {
            return interrupted.context(format!("could not {doing}"));
        }
        fault.explain(&self.place, action, doing)
    }

    /// Sends, and explains a failure.
    pub(super) fn send(&self, call: &Call, doing: impl Fn() -> String) -> Result<Reply> {
        self.run(self.wire.send(call))
            .map_err(|fault| self.explain(&fault, call.action, &doing()))
    }

    /// Looks an object up.
    pub(super) fn head(&self, key: &Key, action: Action) -> Result<Option<Head>> {
        let url = self.place.object_url(key.as_str());
        let mut call = Call::new(action, Method::HEAD, url.clone());
        if self.takes_checksums()
            && !self
                .headers
                .iter()
                .any(|(_, value)| value.starts_with("aws:kms"))
        {
            // With a KMS key this would need a right more.
            call = call.header("x-amz-checksum-mode", "ENABLED");
        }
        let fault = match self.run(self.wire.send(&call)) {
            Ok(reply) => return Ok(Some(Head::of(&reply))),
            Err(fault) if fault.status() == 404 => return Ok(None),
            Err(fault) => fault,
        };
        let doing = format!("look at {}", self.place.show(key.as_str()));
        if fault.status() == 0 {
            return Err(self.explain(&fault, Action::Stat, &doing));
        }
        // A refused HEAD has no body: the same question as a GET says why.
        let ask = Call::new(action, Method::GET, url).header("range", "bytes=0-0");
        match self.run(self.wire.send(&ask)) {
            Err(why) if why.status() == 404 => Ok(None),
            Err(why) => Err(self.explain(&why, Action::Stat, &doing)),
            Ok(_) => Err(self.explain(&fault, Action::Stat, &doing)),
        }
    }

    pub(super) fn exists(&self, key: &Key) -> Error {
        Error::failed(format!("{} exists already", self.place.show(key.as_str())))
            .hint("nothing was overwritten; move it away if it should be taken anew")
            .cause(Cause::Exists)
    }

    /// The last request of an upload, and the proof that the object is there.
    pub(super) fn commit(&self, finish: &Finish, call: impl Fn(bool) -> Call) -> Result<Object> {
        let doing = format!("store {}", self.place.show(finish.key.as_str()));
        let new = finish.mode == Put::New;
        if new && self.head(&finish.key, Action::Finish)?.is_some() {
            return Err(self.exists(&finish.key));
        }
        loop {
            let checksums = self.takes_checksums();
            let conditional = new && self.conditions.load(Ordering::Relaxed);
            let mut call = call(checksums);
            if conditional {
                call = call.header("if-none-match", "*");
            }
            match self.run(self.wire.send(&call)) {
                Ok(reply) => return self.prove(finish, &etag(&reply)),
                Err(fault) if self.do_without(&fault, conditional, checksums) => {}
                Err(fault) => return self.look_up(finish, &fault, &doing),
            }
        }
    }

    /// Whether the server only does not know a header, and can be asked without it.
    fn do_without(&self, fault: &Fault, conditional: bool, checksums: bool) -> bool {
        let Some(refusal) = fault.refusal() else {
            return false;
        };
        let unknown = refusal.is_not_implemented()
            || (refusal.status == 400
                && matches!(refusal.code.as_str(), "InvalidArgument" | "InvalidRequest"));
        if !unknown {
            return false;
        }
        if conditional {
            self.conditions.store(false, Ordering::Relaxed);
        } else if checksums {
            self.checksums.store(false, Ordering::Relaxed);
        } else {
            return false;
        }
        true
    }

    /// The last call failed: it may have worked all the same, or somebody has the name.
    fn look_up(&self, finish: &Finish, fault: &Fault, doing: &str) -> Result<Object> {
        let taken = fault.status() == 412;
        if fault.unsure || taken || fault.code() == "NoSuchUpload" {
            let found = self.head(&finish.key, Action::Finish);
            if let Ok(Some(head)) = &found
                && head.mark == finish.mark
            {
                return self.compare(finish, "", head);
            }
            if taken || (finish.mode == Put::New && matches!(found, Ok(Some(_)))) {
                return Err(self.exists(&finish.key));
            }
        }
        Err(self.explain(fault, Action::Finish, doing))
    }

    fn prove(&self, finish: &Finish, etag: &str) -> Result<Object> {
        match self.head(&finish.key, Action::Finish)? {
            Some(head) => self.compare(finish, etag, &head),
            None => Err(Error::failed(format!(
                "the server took {} and does not show it",
                self.place.show(finish.key.as_str())
            ))
            .hint("another program or a rule of the bucket deleted it; look at its log")),
        }
    }

    fn compare(&self, finish: &Finish, etag: &str, head: &Head) -> Result<Object> {
        let shown = self.place.show(finish.key.as_str());
        if head.mark != finish.mark {
            return Err(
                Error::failed(format!("{shown} was replaced by another program"))
                    .hint("two programs write the same names: give each its own S3_PREFIX")
                    .cause(Cause::Exists),
            );
        }
        let wrong = if head.bytes != finish.bytes {
            Some(format!(
                "{} bytes after {} were sent",
                head.bytes, finish.bytes
            ))
        } else if !etag.is_empty() && !head.etag.is_empty() && head.etag != etag {
            Some(format!("the ETag {} instead of {etag}", head.etag))
        } else if comparable(&head.sha256, &finish.sha256) && head.sha256 != finish.sha256 {
            Some("another SHA-256 than what was sent".to_owned())
        } else {
            None
        };
        if let Some(wrong) = wrong {
            return Err(Error::failed(format!("{shown} has {wrong}"))
                .hint("the server lost or changed data; check it before the next backup"));
        }
        Ok(Object {
            key: finish.key.clone(),
            bytes: head.bytes,
            modified: head.modified,
            etag: head.etag(),
        })
    }

    /// Ends an upload that is not finished. False: the server does not know it.
    pub(super) fn abort(&self, key: &str, upload_id: &str) -> Result<bool> {
        let call = Call::new(Action::Abort, Method::DELETE, self.place.object_url(key))
            .query("uploadId", upload_id);
        let Err(fault) = self.run(self.wire.send(&call)) else {
            self.notes.forget(upload_id);
            return Ok(true);
        };
        if fault.status() == 404 {
            self.notes.forget(upload_id);
            return Ok(false);
        }
        if fault.is_denied() || fault.is_not_implemented() {
            self.warn(
                "unfinished uploads cannot be aborted (s3:AbortMultipartUpload is missing); \
                 they cost space until the bucket's lifecycle rule AbortIncompleteMultipartUpload \
                 ends them",
            );
            return Ok(false);
        }
        let doing = format!("abort the upload of {}", self.place.show(key));
        Err(self.explain(&fault, Action::Abort, &doing))
    }
}

/// The ETag that the last reply names: of a completed upload it is in the body.
fn etag(reply: &Reply) -> String {
    match reply.etag() {
        etag if etag.is_empty() => xml::completed_etag(&reply.body),
        etag => etag,
    }
}

/// Whether two checksums are of the same form: of one body, or of so many parts.
fn comparable(shown: &str, sent: &str) -> bool {
    let parts = |checksum: &str| checksum.split_once('-').map(|(_, parts)| parts.to_owned());
    !shown.is_empty() && parts(shown) == parts(sent)
}

impl Head {
    /// None when the server shows none.
    pub(super) fn etag(&self) -> Option<String> {
        Some(self.etag.clone()).filter(|etag| !etag.is_empty())
    }

    fn of(reply: &Reply) -> Head {
        Head {
            bytes: reply.header("content-length").parse().unwrap_or(0),
            // Unknown is too young to be cleared: the careful side.
            modified: moment(reply.header("last-modified")).unwrap_or(Timestamp::MAX),
            etag: reply.etag(),
            mark: reply.header(MARK).to_owned(),
            sha256: reply.header("x-amz-checksum-sha256").to_owned(),
        }
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Does not wait, so it may also happen on a runtime's own thread.
            runtime.shutdown_background();
        }
    }
}
