//! One request to the server, repeated until it is answered, refused or out of time.
//!
//! Retries live here and nowhere else: object_store is asked for credentials, signatures and the
//! HTTP client only, because its own loop repeats a request with its old signature and keeps a
//! reply's headers to itself. Every attempt is signed anew, so that credentials may change and
//! time may pass between two of them.
//!
//! Invariants:
//! - A call ends by its deadline, whatever the server does; within ten seconds of a cancel.
//! - Whoever gets a [`Fault`] learns whether the request may have had its effect all the same.
//!
//! A dropped future closes its connection; the server may or may not have done its work.

use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderName, HeaderValue};
use http::{HeaderMap, Method};
use object_store::aws::AwsAuthorizer;
use object_store::client::{HttpClient, HttpRequest, HttpRequestBody};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::credentials::Source;
use super::fault::{Fault, Refusal, Trouble};
use super::options::encode;
use super::xml;

/// After a cancel, what must still be said to the server has this long.
const LAST_WORDS: Duration = Duration::from_secs(8);

/// What every attempt may take, beside the time for its bytes.
const GRACE: Duration = Duration::from_secs(30);

/// A caller waits in a drop for it, and its note outlives a failure.
const ABORT_MAX: Duration = Duration::from_secs(10);

const PAUSE_FIRST: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(20);

/// What a request is for: the right that it needs, and how a cancel treats it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Put,
    /// Makes an object appear: a cancel gives it a last moment.
    Finish,
    Get,
    Stat,
    List,
    Delete,
    Abort,
    ListUploads,
}

/// A request that can be sent any number of times.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) action: Action,
    method: Method,
    url: String,
    query: String,
    headers: HeaderMap,
    body: Bytes,
    digest: [u8; 32],
    /// Bytes that are expected back.
    expected: u64,
}

impl Call {
    pub(super) fn new(action: Action, method: Method, url: String) -> Call {
        Call {
            action,
            method,
            url,
            query: String::new(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            digest: Sha256::digest(b"").into(),
            expected: 0,
        }
    }

    pub(super) fn query(mut self, name: &str, value: &str) -> Call {
        self.query
            .push(if self.query.is_empty() { '?' } else { '&' });
        self.query.push_str(&encode(name, false));
        self.query.push('=');
        self.query.push_str(&encode(value, false));
        self
    }

    /// A header; a value that no header can carry is a server's refusal waiting to happen, so
    /// it is left out and the server says what is missing.
    pub(super) fn header(mut self, name: &'static str, value: &str) -> Call {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(HeaderName::from_static(name), value);
        }
        self
    }

    pub(super) fn body(self, body: Bytes) -> Call {
        let digest = Sha256::digest(&body).into();
        self.hashed_body(body, digest)
    }

    /// A body whose SHA-256 is known already.
    pub(super) fn hashed_body(mut self, body: Bytes, digest: [u8; 32]) -> Call {
        self.digest = digest;
        self.body = body;
        self
    }

    pub(super) fn expecting(mut self, bytes: u64) -> Call {
        self.expected = bytes;
        self
    }

    /// The SHA-256 of the body.
    pub(super) fn digest(&self) -> [u8; 32] {
        self.digest
    }
}

/// A success.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Reply {
    pub(super) fn header(&self, name: &str) -> &str {
        header(&self.headers, name)
    }

    /// The ETag without quotes.
    pub(super) fn etag(&self) -> String {
        self.header("etag").trim_matches('"').to_owned()
    }
}

pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

/// How long a call may last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) deadline: Duration,
    pub(super) first_contact: Duration,
    pub(super) bytes_per_second_min: u64,
}

/// The way to one server.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) client: HttpClient,
    pub(super) source: Source,
    pub(super) region: String,
    pub(super) limits: Limits,
    /// When the end was asked for.
    pub(super) cancelled: watch::Receiver<Option<Instant>>,
    /// Whether the server has ever answered.
    pub(super) reached: AtomicBool,
}

impl Wire {
    /// Sends until success.
    pub(super) async fn send(&self, call: &Call) -> Result<Reply, Fault> {
        let started = Instant::now();
        let mut pause = PAUSE_FIRST;
        let (mut attempts, mut unsure) = (0, false);
        loop {
            attempts += 1;
            // Asked for each time: the first answer lifts the short deadline.
            let deadline = started + self.deadline(call);
            let trouble = match self.attempt(call, deadline).await {
                Ok(reply) => return Ok(reply),
                Err(trouble) => trouble,
            };
            unsure |= trouble.is_unsure();
            let fault = |trouble| Fault {
                trouble,
                attempts,
                elapsed: started.elapsed(),
                unsure,
            };
            let wait = trouble.retry_after().unwrap_or_else(|| jitter(pause));
            pause = (pause * 2).min(PAUSE_MAX);
            let too_late = Instant::now() + wait >= started + self.deadline(call);
            if too_late || !self.is_passing(&trouble) {
                return Err(fault(trouble));
            }
            tokio::select! {
                () = sleep(wait) => {}
                () = self.end_of(call.action) => return Err(fault(Trouble::Cancelled)),
            }
        }
    }

    /// Whether another attempt may help.
    fn is_passing(&self, trouble: &Trouble) -> bool {
        // A role that has served before is there: its service is only away for a moment.
        let served = self.reached.load(Ordering::Relaxed);
        trouble.is_passing() || (served && matches!(trouble, Trouble::Credentials(_)))
    }

    fn deadline(&self, call: &Call) -> Duration {
        if call.action == Action::Abort {
            return self.limits.deadline.min(ABORT_MAX);
        }
        let limit = if self.reached.load(Ordering::Relaxed) {
            self.limits.deadline
        } else {
            self.limits.first_contact.min(self.limits.deadline)
        };
        limit + self.transfer(call)
    }

    /// The time that a call's bytes may take, with as many beside it as an upload sends at once.
    fn transfer(&self, call: &Call) -> Duration {
        let bytes = call.body.len() as u64 + call.expected;
        Duration::from_secs(3 * bytes / self.limits.bytes_per_second_min.max(1))
    }

    /// Completes when a cancel ends this kind of work.
    async fn end_of(&self, action: Action) {
        let mut cancelled = self.cancelled.clone();
        let at = match cancelled.wait_for(Option::is_some).await {
            Ok(at) => *at,
            // No token any more: nobody can cancel.
            Err(_) => None,
        };
        match (at, action) {
            (None, _) => std::future::pending().await,
            (Some(at), Action::Finish | Action::Delete | Action::Abort) => {
                sleep_until(at + LAST_WORDS).await;
            }
            (Some(_), _) => {}
        }
    }

    async fn attempt(&self, call: &Call, deadline: Instant) -> Result<Reply, Trouble> {
        let until = deadline.min(Instant::now() + GRACE + self.transfer(call));
        tokio::select! {
            // A cancel that is there already must win over a fast server.
            biased;
            () = self.end_of(call.action) => Err(Trouble::Cancelled),
            done = timeout_at(until, self.once(call)) => done.unwrap_or(Err(Trouble::Slow)),
        }
    }

    async fn once(&self, call: &Call) -> Result<Reply, Trouble> {
        let request = self.signed(call).await?;
        let reply = self
            .client
            .execute(request)
            .await
            .map_err(|e| Trouble::transport(&e))?;
        let (head, body) = reply.into_parts();
        self.reached.store(true, Ordering::Relaxed);
        let status = head.status.as_u16();
        let body = body.bytes().await.map_err(|e| Trouble::transport(&e))?;
        // A server may find out that it failed after it has sent its 200.
        let late = call.method == Method::POST && xml::is_refusal(&body);
        if head.status.is_success() && !late {
            return Ok(Reply {
                status,
                headers: head.headers,
                body,
            });
        }
        Err(Trouble::Refused(Box::new(Refusal::new(
            status,
            &head.headers,
            &body,
        ))))
    }

    async fn signed(&self, call: &Call) -> Result<HttpRequest, Trouble> {
        let credential = self
            .source
            .provider
            .get_credential()
            .await
            .map_err(|error| Trouble::Credentials(format!("{}: {error}", self.source.shown)))?;
        let mut request = http::Request::builder()
            .method(call.method.clone())
            .uri(format!("{}{}", call.url, call.query))
            .body(HttpRequestBody::from(call.body.clone()))
            .map_err(|error| Trouble::Request(error.to_string()))?;
        request.headers_mut().extend(call.headers.clone());
        if matches!(call.method, Method::PUT | Method::POST) {
            request
                .headers_mut()
                .insert(CONTENT_LENGTH, HeaderValue::from(call.body.len()));
        }
        AwsAuthorizer::new(&credential, "s3", &self.region)
            .try_authorize(&mut request, Some(&call.digest))
            .map_err(|error| Trouble::Request(error.to_string()))?;
        Ok(request)
    }
}

/// Between half of a pause and all of it, so that many clients do not come back at once.
fn jitter(pause: Duration) -> Duration {
    // The standard library's hash seeds are random.
    let random = std::hash::RandomState::new().build_hasher().finish() >> 48;
    let share = u32::try_from(random).unwrap_or(0);
    pause / 2 + pause / 2 * share / (1 << 16)
}
