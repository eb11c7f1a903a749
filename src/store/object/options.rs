//! What a bucket's store is opened with, and the checks that need no network.
//!
//! Invariant: no secret shows in `Debug` output or in an error.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::store::Key;

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Keys given outright; without them the usual AWS chain is asked.
#[derive(Debug, Clone)]
pub struct Keys {
    pub access_key_id: String,
    pub secret_access_key: Secret,
    pub session_token: Option<Secret>,
}

/// Says what is left out for want of a right or a feature; each sentence comes once.
pub type Warn = Arc<dyn Fn(&str) + Send + Sync>;

/// A bucket and how to reach it.
#[derive(Clone)]
pub struct S3Options {
    /// The store's configured name.
    pub name: String,
    pub bucket: String,
    /// Before every key; `backups/` unless set. Empty: the bucket's root.
    pub prefix: String,
    /// `AWS_REGION` and then `us-east-1` unless set.
    pub region: Option<String>,
    /// The URL of a compatible server, with scheme and without the bucket.
    pub endpoint: Option<String>,
    /// Whether the bucket is in the path. Unset: with an endpoint, or with a dot in its name.
    pub force_path_style: Option<bool>,
    /// Certificates (PEM) that are trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Whether the endpoint may be `http://`.
    pub allow_http: bool,
    pub keys: Option<Keys>,
    /// `AES256`, `aws:kms` or `aws:kms:dsse`.
    pub sse: Option<String>,
    pub kms_key_id: Option<String>,
    /// `STANDARD_IA`, `GLACIER_IR`…
    pub storage_class: Option<String>,
    /// How long one request, with its repetitions, may stay without success, beside the time that
    /// its bytes take at the least rate.
    pub deadline: Duration,
    /// The same while the server has never answered: a wrong endpoint is told soon.
    pub first_contact: Duration,
    /// The least rate of the way to the server, for all that is sent at once. A request slower
    /// than that (after half a minute's grace) is cut and repeated.
    pub bytes_per_second_min: u64,
    /// Where the ids of unfinished uploads are remembered. Unset: while the process lives.
    pub state_dir: Option<PathBuf>,
    pub warn: Warn,
}

impl S3Options {
    /// The defaults for a bucket of AWS.
    pub fn new(bucket: impl Into<String>) -> S3Options {
        S3Options {
            name: "s3".to_owned(),
            bucket: bucket.into(),
            prefix: "backups/".to_owned(),
            region: None,
            endpoint: None,
            force_path_style: None,
            ca_file: None,
            allow_http: false,
            keys: None,
            sse: None,
            kms_key_id: None,
            storage_class: None,
            deadline: Duration::from_secs(300),
            first_contact: Duration::from_secs(30),
            bytes_per_second_min: 64 << 10,
            state_dir: None,
            warn: Arc::new(|_| {}),
        }
    }

    /// The checked place of the bucket.
    ///
    /// # Errors
    /// `Usage` naming the setting.
    pub(super) fn place(&self, region: String) -> Result<Place> {
        if self.bucket.is_empty()
            || !self
                .bucket
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
        {
            return Err(
                Error::usage(format!("{:?} is not a bucket's name", self.bucket))
                    .hint("set S3_BUCKET to the bare name: no s3://, no folder"),
            );
        }
        let base = match &self.endpoint {
            None => format!("https://s3.{region}.{}", aws_domain(&region)),
            Some(url) => self.checked_endpoint(url)?,
        };
        let path_style = self
            .force_path_style
            .unwrap_or(self.endpoint.is_some() || self.bucket.contains('.'));
        let (scheme, host) = base.split_once("://").unwrap_or(("https", &base));
        let url = if path_style {
            format!("{base}/{}", self.bucket)
        } else {
            format!("{scheme}://{}.{host}", self.bucket)
        };
        Ok(Place {
            url,
            prefix: self.checked_prefix()?,
            region,
            bucket: self.bucket.clone(),
        })
    }

    fn checked_endpoint(&self, url: &str) -> Result<String> {
        let url = url.trim_end_matches('/');
        let (scheme, host) = url.split_once("://").unwrap_or(("", url));
        // A password in the URL would show in every error.
        if !matches!(scheme, "http" | "https") || host.is_empty() || host.contains(['@', '/', '?'])
        {
            return Err(Error::usage("S3_ENDPOINT is not the URL of a server")
                .hint("write it as https://minio.example:9000, without bucket, path or password"));
        }
        if scheme == "http" && !self.allow_http {
            return Err(Error::usage(format!("the endpoint {url} is not encrypted"))
                .hint("use https://, or allow plain HTTP for this store explicitly"));
        }
        Ok(url.to_owned())
    }

    fn checked_prefix(&self) -> Result<String> {
        let prefix = self.prefix.trim_matches('/');
        if prefix.is_empty() {
            return Ok(String::new());
        }
        Key::new(prefix).map_err(|_| {
            Error::usage(format!("{:?} cannot be a prefix in a bucket", self.prefix))
                .hint("set S3_PREFIX to a folder such as backups/")
        })?;
        Ok(format!("{prefix}/"))
    }
}

/// Where the bucket is.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// Of the bucket, without a slash at its end.
    pub(super) url: String,
    /// Empty, or with a slash at its end.
    pub(super) prefix: String,
    pub(super) region: String,
    pub(super) bucket: String,
}

impl Place {
    /// For people.
    pub(super) fn show(&self, key: &str) -> String {
        format!("s3://{}/{}{key}", self.bucket, self.prefix)
    }

    /// The URL of an object below the prefix.
    pub(super) fn object_url(&self, key: &str) -> String {
        format!(
            "{}/{}",
            self.url,
            encode(&format!("{}{key}", self.prefix), true)
        )
    }
}

fn aws_domain(region: &str) -> &'static str {
    if region.starts_with("cn-") {
        "amazonaws.com.cn"
    } else {
        "amazonaws.com"
    }
}

/// Percent-encodes as Signature Version 4 wants it; `slashes` stay when asked for.
pub(super) fn encode(text: &str, slashes: bool) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        let stays =
            byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || (slashes && byte == b'/');
        if stays {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(change: impl FnOnce(&mut S3Options)) -> Result<String> {
        let mut options = S3Options::new("bucket");
        change(&mut options);
        let place = options.place("eu-central-1".to_owned())?;
        Ok(place.object_url("a%20 b"))
    }

    #[test]
    fn urls_follow_endpoint_and_style() {
        let aws = "https://bucket.s3.eu-central-1.amazonaws.com/backups/a%2520%20b";
        assert_eq!(url(|_| {}).unwrap(), aws);
        let server = |o: &mut S3Options| o.endpoint = Some("https://minio:9000/".to_owned());
        assert_eq!(
            url(server).unwrap(),
            "https://minio:9000/bucket/backups/a%2520%20b"
        );
        let hosted = url(|o| {
            server(o);
            o.force_path_style = Some(false);
            o.prefix = "/x//".to_owned();
        });
        assert_eq!(hosted.unwrap(), "https://bucket.minio:9000/x/a%2520%20b");
        // A certificate for *.s3.amazonaws.com does not cover a name with a dot.
        let dotted = url(|o| o.bucket = "my.bucket".to_owned()).unwrap();
        assert!(dotted.starts_with("https://s3.eu-central-1.amazonaws.com/my.bucket/"));
        assert!(
            url(|o| o.prefix = String::new())
                .unwrap()
                .ends_with("amazonaws.com/a%2520%20b")
        );
    }

    #[test]
    fn plain_http_has_to_be_asked_for() {
        let plain = |o: &mut S3Options| o.endpoint = Some("http://minio:9000".to_owned());
        assert!(url(plain).unwrap_err().fact.contains("not encrypted"));
        assert!(
            url(|o| {
                plain(o);
                o.allow_http = true;
            })
            .is_ok()
        );
    }

    #[test]
    fn nonsense_is_refused_without_repeating_a_secret() {
        for bucket in ["", "s3://b", "a/b"] {
            assert!(url(|o| o.bucket = bucket.to_owned()).is_err());
        }
        for endpoint in [
            "minio:9000",
            "https://u:s3cret@minio",
            "ftp://x",
            "https://",
        ] {
            let error = url(|o| o.endpoint = Some(endpoint.to_owned())).unwrap_err();
            assert!(!error.to_string().contains("s3cret"));
        }
        assert!(url(|o| o.prefix = "../x".to_owned()).is_err());
        let keys = Keys {
            access_key_id: "id".to_owned(),
            secret_access_key: Secret::new("s3cret"),
            session_token: Some(Secret::new("s3cret")),
        };
        assert!(!format!("{keys:?}").contains("s3cret"));
    }
}
