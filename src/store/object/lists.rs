//! What lies in the bucket: objects, and uploads that never became one.
//!
//! A listing is some pages of a thousand names, never a request for each. A name that no store
//! could have written is passed over, so that nothing of others can make it fail.

use std::collections::BTreeMap;

use http::Method;
use jiff::Timestamp;

use super::S3Store;
use super::fault::{Fault, moment};
use super::remains::Unfinished;
use super::wire::{Action, Call};
use super::xml;
use crate::clock;
use crate::error::{Error, Result};
use crate::store::local::final_name;
use crate::store::{Key, Object};

/// Pages of a listing before it is taken for endless: fifty million names.
const PAGES_MAX: usize = 50_000;

/// Where the next page begins.
type Marker = (String, String);

/// Why a listing ended early.
enum Listing {
    Fault(Fault),
    Error(Error),
}

impl S3Store {
    /// The objects of one level, sorted.
    pub(super) fn level(&self, prefix: &str) -> Result<Vec<Object>> {
        Ok(self.level_and_folders(prefix)?.0)
    }

    /// The objects of one level and the names of the folders there, sorted.
    pub(super) fn level_and_folders(&self, prefix: &str) -> Result<(Vec<Object>, Vec<String>)> {
        let place = &self.bucket.place;
        let level = format!("{}{prefix}", place.prefix);
        let (mut objects, mut folders) = (Vec::new(), Vec::new());
        let listed = self.pages(
            |marker| {
                let call = Call::new(Action::List, Method::GET, format!("{}/", place.url))
                    .query("list-type", "2")
                    .query("prefix", &level)
                    .query("delimiter", "/");
                match marker {
                    Some((token, _)) => call.query("continuation-token", token),
                    None => call,
                }
            },
            |page: &xml::Page| {
                let token = page
                    .next_continuation_token
                    .clone()
                    .filter(|_| page.is_truncated)?;
                Some((token, String::new()))
            },
            |page| {
                folders.extend(page.common_prefixes.iter().filter_map(|folder| {
                    let name = folder.prefix.strip_prefix(&level)?.strip_suffix('/')?;
                    (!name.is_empty()).then(|| name.to_owned())
                }));
                objects.extend(
                    page.contents
                        .iter()
                        .filter_map(|entry| object(entry, &place.prefix)),
                );
            },
        );
        match listed {
            Ok(()) => {}
            Err(Listing::Error(error)) => return Err(error),
            Err(Listing::Fault(fault)) => {
                let doing = format!("list {}", place.show(prefix));
                return Err(self.bucket.explain(&fault, Action::List, &doing));
            }
        }
        objects.sort_by(|a, b| a.key.cmp(&b.key));
        folders.sort();
        Ok((objects, folders))
    }

    /// One page after the other of a request that lists.
    fn pages<T: serde::de::DeserializeOwned>(
        &self,
        call: impl Fn(&Option<Marker>) -> Call,
        next: impl Fn(&T) -> Option<Marker>,
        mut take: impl FnMut(T),
    ) -> std::result::Result<(), Listing> {
        let mut marker = None;
        for _ in 0..PAGES_MAX {
            let call = call(&marker);
            let reply = self
                .bucket
                .run(self.bucket.wire.send(&call))
                .map_err(Listing::Fault)?;
            let page: T = xml::read(&reply.body, "listing").map_err(Listing::Error)?;
            let following = next(&page);
            take(page);
            if following.is_none() {
                return Ok(());
            }
            if following == marker {
                break;
            }
            marker = following;
        }
        Err(Listing::Error(
            Error::failed("the server lists the same page again and again")
                .hint("is the endpoint really an S3 server? check S3_ENDPOINT"),
        ))
    }

    /// What the server lists of uploads that began and did not end.
    pub(super) fn listed_uploads(&self, now: Timestamp) -> Result<Vec<Unfinished>> {
        let bucket = &self.bucket;
        let mut found = Vec::new();
        let pages = self.pages(
            |marker| {
                let call = Call::new(
                    Action::ListUploads,
                    Method::GET,
                    format!("{}/", bucket.place.url),
                )
                .query("uploads", "")
                .query("prefix", &bucket.place.prefix);
                match marker {
                    Some((key, id)) => call.query("key-marker", key).query("upload-id-marker", id),
                    None => call,
                }
            },
            |page: &xml::Uploads| {
                let key = page
                    .next_key_marker
                    .as_deref()
                    .filter(|_| page.is_truncated)?;
                Some((
                    key.to_owned(),
                    page.next_upload_id_marker.clone().unwrap_or_default(),
                ))
            },
            |page| {
                for entry in &page.upload {
                    let Some(key) = entry.key.strip_prefix(&bucket.place.prefix) else {
                        continue;
                    };
                    let begun = moment(&entry.initiated).unwrap_or(now);
                    found.extend(Unfinished::listed(
                        &bucket.place,
                        key,
                        &entry.upload_id,
                        begun,
                        now,
                    ));
                }
            },
        );
        match pages {
            Ok(()) => Ok(found),
            Err(Listing::Error(error)) => Err(error),
            Err(Listing::Fault(fault)) => self.without_list(&fault).map(|()| found),
        }
    }

    /// The server did not list uploads: says so, when a run can do without.
    fn without_list(&self, fault: &Fault) -> Result<()> {
        let bucket = &self.bucket;
        let why = if fault.is_denied() {
            "s3:ListBucketMultipartUploads is missing"
        } else if fault.is_not_implemented() {
            "the server does not offer it"
        } else {
            let doing = format!("list the uploads of {}", bucket.place.show(""));
            return Err(bucket.explain(fault, Action::ListUploads, &doing));
        };
        bucket.warn(&format!(
            "unfinished uploads cannot be listed ({why}); those of another machine cost space \
             until the bucket's lifecycle rule AbortIncompleteMultipartUpload ends them"
        ));
        Ok(())
    }

    /// Unfinished uploads by the name that they are shown under.
    pub(super) fn uploads(&self) -> Result<BTreeMap<Key, (Object, Unfinished)>> {
        let mut all = self.listed_uploads(clock::now())?;
        // Noted ones last: what is known here wins.
        all.extend(self.bucket.notes.all());
        let shown = |upload: Unfinished| Some((upload.object()?, upload));
        let named = all.into_iter().filter_map(shown);
        Ok(named
            .map(|(object, upload)| (object.key.clone(), (object, upload)))
            .collect())
    }

    pub(super) fn abort(&self, key: &Key) -> Result<bool> {
        match self.uploads()?.remove(key) {
            Some((_, upload)) => self.bucket.abort(&upload.key, &upload.upload_id),
            None => Ok(false),
        }
    }
}

/// A listed object, unless its name is none of a store's: somebody else's, or a folder's mark.
fn object(entry: &xml::Entry, prefix: &str) -> Option<Object> {
    let key = Key::new(entry.key.strip_prefix(prefix)?).ok()?;
    // A copy of a local store may have brought a temporary file along.
    if final_name(key.file_name()).is_some() {
        return None;
    }
    let etag = entry.etag.trim_matches('"');
    Some(Object {
        key,
        etag: Some(etag.to_owned()).filter(|etag| !etag.is_empty()),
        bytes: entry.size,
        // Unknown is too young to be cleared: the careful side.
        modified: moment(&entry.last_modified).unwrap_or(jiff::Timestamp::MAX),
    })
}
