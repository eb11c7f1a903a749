//! What went wrong between pgark and a server, and the way out in words.
//!
//! Invariant: no secret gets into an error. Of a refusal's body only code, message and region
//! are kept; the message of a wrong signature would hold the signed text, and is left out.

use std::error::Error as _;
use std::time::Duration;

use http::HeaderMap;
use jiff::Timestamp;
use object_store::client::{HttpError, HttpErrorKind};

use super::credentials::HOW;
use super::options::Place;
use super::wire::{Action, header};
use super::xml;
use crate::clock;
use crate::error::{Cause, Error};

/// Clocks that differ by more than this fail every signature.
const SKEW_MAX_SECONDS: i64 = 15 * 60;

/// A call that failed for good.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) trouble: Trouble,
    pub(super) attempts: u32,
    pub(super) elapsed: Duration,
    /// Whether some attempt may have had its effect.
    pub(super) unsure: bool,
}

/// Why one attempt failed.
#[derive(Debug)]
pub(super) enum Trouble {
    Refused(Box<Refusal>),
    /// No whole answer came: refused, reset, cut, not resolved.
    Transport {
        text: String,
        sent: bool,
    },
    /// The server's certificate is not trusted, or it speaks no TLS.
    Tls(String),
    /// Out of time.
    Slow,
    Credentials(String),
    /// The request could not even be made.
    Request(String),
    Cancelled,
}

/// What a server said no with.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) code: String,
    message: String,
    region: String,
    /// How far the server's clock is ahead of ours, in seconds.
    ahead_seconds: Option<i64>,
    retry_after: Option<Duration>,
}

impl Refusal {
    pub(super) fn new(status: u16, headers: &HeaderMap, body: &[u8]) -> Refusal {
        let said = xml::refusal(body);
        let there = jiff::fmt::rfc2822::parse(header(headers, "date"));
        let ahead = there.map(|time| time.timestamp().as_second() - clock::now().as_second());
        let region = header(headers, "x-amz-bucket-region");
        Refusal {
            status,
            code: short(&said.code, 60),
            message: short(&said.message, 200),
            region: short(
                if region.is_empty() {
                    &said.region
                } else {
                    region
                },
                40,
            ),
            ahead_seconds: ahead.ok(),
            retry_after: header(headers, "retry-after")
                .parse()
                .ok()
                .map(|seconds: u64| Duration::from_secs(seconds.min(60))),
        }
    }

    fn is_passing(&self) -> bool {
        match self.code.as_str() {
            "SlowDown"
            | "InternalError"
            | "ServiceUnavailable"
            | "RequestTimeout"
            | "OperationAborted"
            | "ConditionalRequestConflict"
            | "IncompleteBody"
            | "BadDigest"
            | "XAmzContentSHA256Mismatch"
            | "Throttling"
            | "RequestLimitExceeded" => true,
            "NotImplemented" | "QuotaExceeded" => false,
            _ => matches!(self.status, 408 | 425 | 429 | 500 | 502..=506 | 509..),
        }
    }

    /// Whether the server does not know a header or a call.
    pub(super) fn is_not_implemented(&self) -> bool {
        self.status == 501 || matches!(self.code.as_str(), "NotImplemented" | "MethodNotAllowed")
    }

    fn is_full(&self) -> bool {
        self.status == 507
            || matches!(
                self.code.as_str(),
                "QuotaExceeded"
                    | "InsufficientStorage"
                    | "InsufficientStorageSpace"
                    | "XMinioStorageFull"
                    | "XMinioAdminBucketQuotaExceeded"
                    | "CapExceeded"
            )
    }
}

/// The first characters, without control characters.
fn short(text: &str, most: usize) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(most)
        .collect()
}

impl Trouble {
    pub(super) fn transport(error: &HttpError) -> Trouble {
        let mut text = String::new();
        let mut source = error.source();
        let mut tls = false;
        while let Some(cause) = source {
            let said = cause.to_string();
            tls |= said.contains("certificate") || said.contains("received corrupt message");
            // Each level of the chain repeats the ones below or says little.
            text = said;
            source = cause.source();
        }
        if text.is_empty() {
            text = error.to_string();
        }
        if tls {
            return Trouble::Tls(text);
        }
        Trouble::Transport {
            sent: error.kind() != HttpErrorKind::Connect,
            text,
        }
    }

    /// Whether another attempt may help.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Trouble::Refused(refusal) => refusal.is_passing(),
            Trouble::Transport { .. } | Trouble::Slow => true,
            Trouble::Tls(_)
            | Trouble::Credentials(_)
            | Trouble::Request(_)
            | Trouble::Cancelled => false,
        }
    }

    /// Whether the server may have done what it was asked for.
    pub(super) fn is_unsure(&self) -> bool {
        match self {
            Trouble::Refused(refusal) => refusal.status >= 500 || refusal.status == 408,
            Trouble::Transport { sent, .. } => *sent,
            Trouble::Slow | Trouble::Cancelled => true,
            Trouble::Tls(_) | Trouble::Credentials(_) | Trouble::Request(_) => false,
        }
    }

    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Trouble::Refused(refusal) => refusal.retry_after,
            _ => None,
        }
    }
}

impl Fault {
    pub(super) fn refusal(&self) -> Option<&Refusal> {
        match &self.trouble {
            Trouble::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    pub(super) fn status(&self) -> u16 {
        self.refusal().map_or(0, |refusal| refusal.status)
    }

    pub(super) fn code(&self) -> &str {
        self.refusal().map_or("", |refusal| &refusal.code)
    }

    /// Whether the key is good and only lacks the right.
    pub(super) fn is_denied(&self) -> bool {
        self.status() == 403 && matches!(self.code(), "" | "AccessDenied" | "AllAccessDisabled")
    }

    /// Whether the server does not know what was asked for.
    pub(super) fn is_not_implemented(&self) -> bool {
        self.refusal().is_some_and(Refusal::is_not_implemented)
    }

    pub(super) fn is_cancelled(&self) -> bool {
        matches!(self.trouble, Trouble::Cancelled)
    }

    /// The fact and the way out. `doing` reads as "could not {doing}".
    pub(super) fn explain(&self, place: &Place, action: Action, doing: &str) -> Error {
        let tried = match self.attempts {
            0 | 1 => String::new(),
            n => format!(" (tried {n} times in {} s)", self.elapsed.as_secs()),
        };
        let error = match &self.trouble {
            Trouble::Refused(refusal) => refusal.explain(place, action),
            Trouble::Transport { text, .. } => {
                Error::failed(format!("no answer from {}: {text}", server(place)))
                    .hint("check S3_ENDPOINT, the name's resolution, the network and the proxy")
            }
            Trouble::Tls(text) => {
                Error::failed(format!("{} cannot be trusted: {text}", server(place))).hint(
                    "name the certificate of its authority as CA file for this store; \
                     for a server without TLS write http:// and allow it",
                )
            }
            Trouble::Slow => Error::failed(format!(
                "{} is too slow: a request was not done within its deadline",
                server(place)
            ))
            .hint(
                "what was sent is not counted as stored; look at the network and the server's load",
            ),
            Trouble::Credentials(text) => {
                Error::failed(format!("there are no credentials from {text}")).hint(HOW)
            }
            Trouble::Request(text) => Error::failed(format!("the request cannot be made: {text}"))
                .hint("check S3_BUCKET, S3_PREFIX, S3_ENDPOINT and the keys for stray characters"),
            Trouble::Cancelled => Error::failed("interrupted"),
        };
        let mut error = error.context(format!("could not {doing}"));
        error.fact.push_str(&tried);
        error
    }
}

/// Scheme and host.
fn server(place: &Place) -> &str {
    let end = place.url.find("://").map_or(0, |at| at + 3);
    let host = place.url[end..]
        .find('/')
        .map_or(place.url.len(), |at| end + at);
    &place.url[..host]
}

/// The right that IAM calls the action by.
pub(super) fn right(action: Action) -> &'static str {
    match action {
        Action::Put | Action::Finish => "s3:PutObject",
        Action::Get => "s3:GetObject",
        Action::Stat => "s3:GetObject and s3:ListBucket",
        Action::List => "s3:ListBucket",
        Action::Delete => "s3:DeleteObject",
        Action::Abort => "s3:AbortMultipartUpload",
        Action::ListUploads => "s3:ListBucketMultipartUploads",
    }
}

impl Refusal {
    fn explain(&self, place: &Place, action: Action) -> Error {
        if self.is_full() {
            return Error::failed(format!("{} is full: {}", place.show(""), self.said()))
                .hint("raise the quota, or let pgark expire more: `pgark prune --dry-run`")
                .cause(Cause::NoSpace);
        }
        let skew = self
            .ahead_seconds
            .filter(|seconds| seconds.abs() > SKEW_MAX_SECONDS);
        if self.code == "RequestTimeTooSkewed" || (self.status == 403 && skew.is_some()) {
            return self.explain_skew(place);
        }
        // Garage says "AccessDenied: Forbidden: Invalid signature".
        let code = if self.code == "AccessDenied" && self.message.contains("Invalid signature") {
            "SignatureDoesNotMatch"
        } else {
            self.code.as_str()
        };
        match code {
            "SignatureDoesNotMatch" => Error::failed("the secret key is wrong: the server computes another signature")
                .hint("check AWS_SECRET_ACCESS_KEY for a missing or additional character"),
            "InvalidAccessKeyId" => Error::failed("the server does not know this access key")
                .hint("check AWS_ACCESS_KEY_ID, and that the key belongs to this server"),
            "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" => {
                Error::failed("the session token has expired")
                    .hint("renew AWS_SESSION_TOKEN, or use a role or a lasting key: those pgark renews itself")
            }
            "InvalidToken" => Error::failed("the server does not accept the session token")
                .hint("AWS_SESSION_TOKEN must belong to the access key; remove it for a lasting key"),
            "NoSuchBucket" => Error::failed(format!("there is no bucket {}", place.bucket))
                .hint("create it, or correct S3_BUCKET"),
            "NoSuchUpload" => Error::failed("the upload is no longer known to the server")
                .hint("a lifecycle rule or another program aborted it; take the backup again"),
            _ if self.is_elsewhere() => self.explain_region(place),
            code if code.starts_with("KMS") || self.message.contains("kms:") => {
                Error::failed(format!("the KMS key cannot be used: {}", self.said()))
                    .hint("check S3_KMS_KEY_ID; pgark needs kms:GenerateDataKey and kms:Decrypt on it")
            }
            "AccessDenied" | "AllAccessDisabled" | "AccountProblem" => self.explain_denial(place, action),
            _ if matches!(self.status, 401 | 403) => self.explain_denial(place, action),
            "InvalidStorageClass" => Error::failed("the server does not have this storage class")
                .hint("unset it, or take one that the server offers"),
            _ if self.status == 429 || self.status == 503 => {
                Error::failed(format!("{} asks for fewer requests: {}", server(place), self.said()))
                    .hint("it was asked again and again until the deadline; try later")
            }
            _ => Error::failed(format!("{} refuses: {}", server(place), self.said()))
                .hint("look the code up in the server's manual; `pgark check` tries every right"),
        }
    }

    fn explain_denial(&self, place: &Place, action: Action) -> Error {
        Error::failed(format!(
            "access to {} is denied: {}",
            place.show(""),
            self.said()
        ))
        .hint(format!(
            "the key or role needs {} there; check the key, its policy and the bucket's",
            right(action)
        ))
    }

    fn explain_skew(&self, place: &Place) -> Error {
        let fact = match self.ahead_seconds {
            Some(ahead) if ahead.abs() > 60 => format!(
                "this machine's clock is {} {} that of {}",
                span(ahead.unsigned_abs()),
                if ahead > 0 { "behind" } else { "ahead of" },
                server(place)
            ),
            _ => format!(
                "this machine's clock differs from that of {}",
                server(place)
            ),
        };
        Error::failed(fact).hint("set the clock (NTP); S3 accepts a difference of 15 minutes")
    }

    fn is_elsewhere(&self) -> bool {
        matches!(self.status, 301 | 307)
            || matches!(
                self.code.as_str(),
                "PermanentRedirect"
                    | "TemporaryRedirect"
                    | "AuthorizationHeaderMalformed"
                    | "IllegalLocationConstraintException"
            )
    }

    fn explain_region(&self, place: &Place) -> Error {
        let fact = format!("bucket {} is not in region {}", place.bucket, place.region);
        let region = &self.region;
        if region.is_empty() || *region == place.region {
            return Error::failed(format!("{fact}: {}", self.said()))
                .hint("set AWS_REGION to the bucket's region, and S3_ENDPOINT to its server");
        }
        Error::failed(format!("{fact} but in {region}")).hint(format!("set AWS_REGION={region}"))
    }

    /// The server's own words.
    fn said(&self) -> String {
        match (self.code.as_str(), self.message.as_str()) {
            ("", "") => format!("status {}", self.status),
            ("", message) => format!("status {}, {message}", self.status),
            (code, "") => format!("status {}, {code}", self.status),
            (code, message) => format!("status {}, {code}: {message}", self.status),
        }
    }
}

fn span(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} seconds"),
        120..=7199 => format!("{} minutes", seconds / 60),
        7200..=172_799 => format!("{} hours", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// The moment of an HTTP date or an ISO one, in whole seconds.
pub(super) fn moment(text: &str) -> Option<Timestamp> {
    let parsed = match jiff::fmt::rfc2822::parse(text) {
        Ok(time) => time.timestamp(),
        Err(_) => text.parse().ok()?,
    };
    Timestamp::from_second(parsed.as_second()).ok()
}
