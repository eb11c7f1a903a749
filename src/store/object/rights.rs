//! Tries each right that backups need in a bucket, one by one, and names the one that is missing.
//!
//! What needs no object is tried first, on names and ids that are not there: a server looks at the
//! right before it looks for the object. Nothing is written that could not be deleted again.

use http::Method;

use super::S3Store;
use super::fault::{Fault, right};
use super::wire::{Action, Call};
use crate::store::Key;
use crate::store::rights::{Tried, write_read_delete};

/// No upload has it.
const NO_UPLOAD: &str = "pgark-check-no-such-upload";

impl S3Store {
    /// See [`crate::store::Store::try_rights`].
    pub(super) fn rights(&self, key: &Key) -> Vec<Tried> {
        let list = self.asks(Action::List, &self.listing().query("list-type", "2"));
        let away = matches!(&list, Err(fault) if !fault.is_denied());
        let mut tried = vec![self.tried(Action::List, list)];
        // No server, no bucket, wrong keys: the others would only say the same.
        if away {
            return tried;
        }
        let url = self.bucket.place.object_url(key.as_str());
        let call = Call::new(Action::Delete, Method::DELETE, url.clone());
        let delete = self.asks(Action::Delete, &call);
        let call =
            Call::new(Action::Abort, Method::DELETE, url.clone()).query("uploadId", NO_UPLOAD);
        let abort = self.asks(Action::Abort, &call);
        let uploads = self.listing().query("uploads", "");
        let uploads = self.asks(Action::ListUploads, &uploads);
        let may_delete = delete.is_ok();
        if may_delete {
            for mut one in write_read_delete(self, key) {
                let action = match one.right {
                    "write" => Action::Put,
                    "read" => Action::Get,
                    "list" => Action::List,
                    _ => Action::Delete,
                };
                // Known by now, and said above with more words.
                if action == Action::List && one.result.is_err() && tried[0].result.is_err() {
                    continue;
                }
                one.right = right(action);
                one.policy = Some(self.policy(action));
                tried.push(one);
            }
        }
        if !may_delete {
            // A part of no upload needs the right to put, and makes no object.
            let call = Call::new(Action::Put, Method::PUT, url)
                .query("partNumber", "1")
                .query("uploadId", NO_UPLOAD)
                .body(bytes::Bytes::from_static(b"x"));
            let put = self.asks(Action::Put, &call);
            tried.push(self.tried(Action::Put, put));
            tried.push(self.tried(Action::Delete, delete));
        }
        tried.push(self.tried(Action::Abort, abort));
        tried.push(self.tried(Action::ListUploads, uploads));
        tried
    }

    /// Whether the server lets us, whatever else it says.
    fn asks(&self, action: Action, call: &Call) -> std::result::Result<(), Fault> {
        let harmless = |fault: &Fault| {
            let absent = matches!(fault.status(), 400 | 404) && fault.code() != "NoSuchBucket";
            let unknown = fault.is_not_implemented() && action == Action::ListUploads;
            unknown || (absent && matches!(action, Action::Delete | Action::Abort | Action::Put))
        };
        match self.bucket.run(self.bucket.wire.send(call)) {
            Err(fault) if !harmless(&fault) => Err(fault),
            _ => Ok(()),
        }
    }

    fn listing(&self) -> Call {
        let place = &self.bucket.place;
        Call::new(Action::List, Method::GET, format!("{}/", place.url))
            .query("prefix", &place.prefix)
    }

    fn tried(&self, action: Action, result: std::result::Result<(), Fault>) -> Tried {
        let place = &self.bucket.place;
        let doing = match action {
            Action::List => format!("list {}", place.show("")),
            Action::ListUploads => format!("list the uploads of {}", place.show("")),
            Action::Abort => format!("abort uploads in {}", place.show("")),
            Action::Put => format!("write in {}", place.show("")),
            _ => format!("delete in {}", place.show("")),
        };
        let denied = matches!(&result, Err(fault) if fault.is_denied());
        Tried {
            right: right(action),
            // Without these a run goes on: expiry and remains wait for a rule of the bucket.
            needed: !matches!(action, Action::Delete | Action::Abort | Action::ListUploads),
            result: result.map_err(|fault| self.bucket.explain(&fault, action, &doing)),
            policy: denied.then(|| self.policy(action)),
        }
    }

    /// The statement of a policy that gives the right.
    fn policy(&self, action: Action) -> String {
        let place = &self.bucket.place;
        let of_bucket = matches!(action, Action::List | Action::ListUploads);
        let resource = if of_bucket {
            format!("arn:aws:s3:::{}", place.bucket)
        } else {
            format!("arn:aws:s3:::{}/{}*", place.bucket, place.prefix)
        };
        serde_json::json!({
            "Effect": "Allow",
            "Action": [right(action)],
            "Resource": resource,
        })
        .to_string()
    }
}
