//! An object on its way into the bucket.
//!
//! What fits into one part goes as one request at the end; more goes as a multipart upload whose
//! parts are sent while the next one is filled. Both ends are a commit: the name is looked up,
//! the last request carries `If-None-Match: *` where it must not replace, a lost reply is looked
//! up by the mark that this upload alone has set, and size, ETag and checksum are read back.
//!
//! Invariants: no more than [`parts::in_flight`] parts and the one being filled are in memory. A
//! part is sent again as often as it takes, whole. Nothing shows in the bucket before `finish`.
//!
//! Dropped, it aborts what it began, with a last word of some seconds after a cancel. A crash
//! leaves parts without a name; `remains` tells how they are found.

use std::collections::VecDeque;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::Method;
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;

use super::bucket::{Bucket, Finish};
use super::fault::Fault;
use super::parts;
use super::wire::{Action, Call, Wire};
use super::xml::{self, Part};
use crate::error::{Error, Result};
use crate::store::{Key, Object, Put, Upload};

/// See the module.
pub(super) struct S3Upload {
    bucket: Arc<Bucket>,
    key: Key,
    mode: Put,
    /// In the object's metadata: whose it is, when the reply is lost.
    mark: String,
    first_bytes: u64,
    buffer: Vec<u8>,
    bytes: u64,
    multipart: Option<Multipart>,
    /// Why nothing more can be done.
    failed: Option<Error>,
}

struct Multipart {
    id: String,
    checksums: bool,
    begun: u32,
    flights: VecDeque<JoinHandle<std::result::Result<Landed, Fault>>>,
    done: Vec<Part>,
    /// The SHA-256 of each part, one after the other: their hash is the object's checksum.
    digests: Vec<u8>,
}

/// A part that the server has, and the SHA-256 of what was sent.
type Landed = (Part, [u8; 32]);

impl S3Upload {
    pub(super) fn new(
        bucket: Arc<Bucket>,
        key: &Key,
        mode: Put,
        expected: Option<u64>,
    ) -> S3Upload {
        S3Upload {
            bucket,
            key: key.clone(),
            mode,
            mark: super::bucket::mark(),
            first_bytes: parts::first_bytes(expected),
            buffer: Vec::new(),
            bytes: 0,
            multipart: None,
            failed: None,
        }
    }

    fn url(&self) -> String {
        self.bucket.place.object_url(self.key.as_str())
    }

    fn doing(&self) -> String {
        format!("store {}", self.bucket.place.show(self.key.as_str()))
    }

    /// How large the part that is being filled gets.
    fn part_bytes(&self) -> Result<usize> {
        let number = self.multipart.as_ref().map_or(0, |m| m.begun);
        if number >= parts::PARTS_MAX {
            return Err(Error::failed(format!(
                "{} outgrew {} parts",
                self.key,
                parts::PARTS_MAX
            ))
            .hint("it is several times larger than expected; take it again, or split the database"));
        }
        usize::try_from(parts::bytes(self.first_bytes, number))
            .map_err(|_| Error::failed("a part is larger than this machine's memory"))
    }

    fn append(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let size = self.part_bytes()?;
            if self.buffer.capacity() == 0 {
                // Pages that are never written cost nothing.
                self.buffer.reserve_exact(size);
            }
            let count = bytes.len().min(size - self.buffer.len());
            let (now, later) = bytes.split_at(count);
            self.buffer.extend_from_slice(now);
            self.bytes += count as u64;
            bytes = later;
            if self.buffer.len() == size {
                self.send_part()?;
            }
        }
        Ok(())
    }

    /// Puts the buffer on its way, and waits for older parts when too many are.
    fn send_part(&mut self) -> Result<()> {
        let mut multipart = match self.multipart.take() {
            Some(multipart) => multipart,
            None => self.begin()?,
        };
        let part_bytes = self.buffer.len() as u64;
        let body = Bytes::from(std::mem::take(&mut self.buffer));
        // Put back before anything can fail: the drop aborts it.
        let landed = self.wait_for_room(&mut multipart, parts::in_flight(part_bytes) - 1);
        if landed.is_ok() {
            multipart.begun += 1;
            let call = Call::new(Action::Put, Method::PUT, self.url())
                .query("partNumber", &multipart.begun.to_string())
                .query("uploadId", &multipart.id);
            let wire = Arc::clone(&self.bucket.wire);
            let checksums = multipart.checksums;
            // Hashed over there: this thread has the next part to fill.
            multipart.flights.push_back(
                self.bucket
                    .spawn(async move { send_part(&wire, call.body(body), checksums).await }),
            );
        }
        self.multipart = Some(multipart);
        landed
    }

    fn begin(&self) -> Result<Multipart> {
        let checksums = self.bucket.takes_checksums();
        let mut call = self
            .bucket
            .new_object(Action::Put, Method::POST, self.url(), &self.mark);
        call = call.query("uploads", "");
        if checksums {
            call = call.header("x-amz-checksum-algorithm", "SHA256");
        }
        let reply = self.bucket.send(&call, || self.doing())?;
        let id = xml::upload_id(&reply.body)?;
        if let Err(error) = self.bucket.notes.add(self.key.as_str(), &id) {
            self.bucket.warn(&format!(
                "the ids of unfinished uploads cannot be noted ({error}); \
                 after a crash only the bucket's lifecycle rule clears them"
            ));
        }
        Ok(Multipart {
            id,
            checksums,
            begun: 0,
            flights: VecDeque::new(),
            done: Vec::new(),
            digests: Vec::new(),
        })
    }

    /// Waits until at most `most` parts are on their way.
    fn wait_for_room(&self, multipart: &mut Multipart, most: usize) -> Result<()> {
        while multipart.flights.len() > most {
            let Some(flight) = multipart.flights.pop_front() else {
                break;
            };
            match self.bucket.run(flight) {
                Ok(Ok((part, digest))) => {
                    multipart.done.push(part);
                    multipart.digests.extend_from_slice(&digest);
                }
                Ok(Err(fault)) => {
                    return Err(self.bucket.explain(&fault, Action::Put, &self.doing()));
                }
                Err(_) => {
                    return Err(Error::failed(format!(
                        "the sending of {} broke off",
                        self.key
                    )));
                }
            }
        }
        Ok(())
    }

    fn finish_small(&mut self) -> Result<Object> {
        let body = Bytes::from(std::mem::take(&mut self.buffer));
        let digest: [u8; 32] = Sha256::digest(&body).into();
        let sha256 = BASE64_STANDARD.encode(digest);
        let call = self
            .bucket
            .new_object(Action::Finish, Method::PUT, self.url(), &self.mark)
            .hashed_body(body, digest);
        let finish = self.finish_as(sha256.clone());
        self.bucket.commit(&finish, |checksums| {
            let call = call.clone();
            if checksums {
                call.header("x-amz-checksum-sha256", &sha256)
            } else {
                call
            }
        })
    }

    fn finish_multipart(&mut self, mut multipart: Multipart) -> Result<Object> {
        if let Err(error) = self.wait_for_room(&mut multipart, 0) {
            self.multipart = Some(multipart);
            return Err(error);
        }
        let call = Call::new(Action::Finish, Method::POST, self.url())
            .query("uploadId", &multipart.id)
            .body(Bytes::from(xml::complete(&multipart.done)))
            .header("content-type", "application/xml");
        let whole = BASE64_STANDARD.encode(Sha256::digest(&multipart.digests));
        let finish = self.finish_as(format!("{whole}-{}", multipart.done.len()));
        let done = self.bucket.commit(&finish, |_| call.clone());
        match &done {
            Ok(_) => self.bucket.notes.forget(&multipart.id),
            Err(_) => self.multipart = Some(multipart),
        }
        done
    }

    fn finish_as(&self, sha256: String) -> Finish {
        Finish {
            key: self.key.clone(),
            mode: self.mode,
            mark: self.mark.clone(),
            bytes: self.bytes,
            sha256,
        }
    }
}

/// Sends a part until the server has it.
async fn send_part(wire: &Wire, call: Call, checksums: bool) -> std::result::Result<Landed, Fault> {
    let digest = call.digest();
    let sha256 = checksums.then(|| BASE64_STANDARD.encode(digest));
    let call = match &sha256 {
        Some(sha256) => call.header("x-amz-checksum-sha256", sha256),
        None => call,
    };
    let reply = wire.send(&call).await?;
    let part = Part {
        etag: reply.header("etag").to_owned(),
        // A server that ignored the checksum may stumble over it at the end.
        sha256: sha256.filter(|sha256| reply.header("x-amz-checksum-sha256") == sha256),
    };
    Ok((part, digest))
}

impl Upload for S3Upload {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let done = self.append(bytes);
        if let Err(error) = &done {
            self.failed = Some(error.clone());
            self.buffer = Vec::new();
        }
        done
    }

    fn finish(mut self: Box<Self>) -> Result<Object> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.multipart.is_none() {
            return self.finish_small();
        }
        if !self.buffer.is_empty() {
            self.send_part()?;
        }
        match self.multipart.take() {
            Some(multipart) => self.finish_multipart(multipart),
            None => self.finish_small(), // Cannot be: it was some.
        }
    }
}

impl Drop for S3Upload {
    fn drop(&mut self) {
        let Some(multipart) = self.multipart.take() else {
            return;
        };
        // No part may arrive after the abort: it would stay.
        for flight in multipart.flights {
            flight.abort();
            let _ = self.bucket.run(flight);
        }
        // What stays here is found by its note.
        let _ = self.bucket.abort(self.key.as_str(), &multipart.id);
    }
}
