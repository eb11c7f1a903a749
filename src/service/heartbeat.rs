//! A dead man's switch: a monitor hears of every run that did all it promised, and calls somebody
//! when it hears nothing any more.
//!
//! `HEARTBEAT_URL` is fetched as it stands after a run that ended well: every database, on every
//! store. A monitor of the Healthchecks kind (`https://hc-ping.com/…`, or a path that begins with
//! `/ping/`) hears `/start` and `/fail` too; for any other those would be unknown addresses.
//!
//! Invariants: the URL is a secret, so messages show its host alone. A monitor that is away costs
//! a warning and a bounded time, never a run. A run that was broken off, or met another run,
//! says nothing at its end. A crash leaves silence, which is what the monitor listens for.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use http::{Method, Uri};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody,
    ReqwestConnector,
};

use crate::cancel::Token;
use crate::config::Secret;
use crate::error::{Error, Kind, Result};

/// One attempt.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(10);
/// Before the second and the third attempt.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];
/// All of it, whatever the attempts do.
const LIMIT: Duration = Duration::from_secs(30);

/// What is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beat {
    Start,
    Success,
    Fail,
}

/// The monitor of one run.
pub struct Heartbeat {
    uri: Uri,
    client: HttpClient,
    begun: Option<JoinHandle<()>>,
}

impl Heartbeat {
    /// Tells of the start, beside the run. None: nobody listens.
    ///
    /// # Errors
    /// What keeps it from ever being told, for a warning.
    pub fn begin(url: Option<&Secret>) -> Result<Option<Heartbeat>> {
        let Some(url) = url else {
            return Ok(None);
        };
        let uri: Uri = url.expose().parse().map_err(|_| no_url())?;
        if uri.host().is_none() || uri.scheme().is_none() {
            return Err(no_url());
        }
        let options = ClientOptions::new()
            .with_user_agent(http::HeaderValue::from_static(concat!(
                "pgark/",
                env!("CARGO_PKG_VERSION")
            )))
            .with_allow_http(true)
            .with_timeout(ATTEMPT_LIMIT);
        let client = ReqwestConnector::default().connect(&options);
        let client = client.map_err(|_| Error::failed("HEARTBEAT_URL: no HTTP client"))?;
        let begun = address(&uri, Beat::Start).map(|start| {
            let client = client.clone();
            // Once: the end matters, and no run waits for a monitor.
            std::thread::spawn(move || drop(fetch(&client, &start, &[])))
        });
        Ok(Some(Heartbeat { uri, client, begun }))
    }

    /// Tells how the run ended; gives a warning when nobody heard it.
    #[must_use]
    pub fn end(self, verdict: &Result<()>, cancel: &Token) -> Option<String> {
        let beat = match verdict {
            Ok(()) => Beat::Success,
            Err(error) if matches!(error.kind, Kind::Signal(_) | Kind::Busy) => return None,
            Err(_) => Beat::Fail,
        };
        let end = address(&self.uri, beat)?;
        let (told, heard) = channel();
        let Heartbeat { client, begun, .. } = self;
        std::thread::spawn(move || {
            // A start that came after the end would leave the monitor waiting.
            let _ = begun.map(JoinHandle::join);
            let _ = told.send(fetch(&client, &end, &PAUSES));
        });
        let until = Instant::now() + LIMIT;
        let why = loop {
            match heard.recv_timeout(Duration::from_millis(100)) {
                Ok(Ok(())) => return None,
                Ok(Err(why)) => break why,
                Err(RecvTimeoutError::Timeout) if cancel.check().is_err() => {
                    break "broken off".to_owned();
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() < until => {}
                Err(_) => break "no answer in time".to_owned(),
            }
        };
        let host = self.uri.host().unwrap_or_default();
        Some(format!(
            "the monitor at {host} did not hear of this run (HEARTBEAT_URL): {why}"
        ))
    }
}

fn no_url() -> Error {
    Error::usage("HEARTBEAT_URL is not a URL").hint("give it as https://host/path")
}

/// Where that is told; none when this monitor does not want to know.
fn address(uri: &Uri, beat: Beat) -> Option<Uri> {
    let suffix = match beat {
        Beat::Success => return Some(uri.clone()),
        Beat::Start => "/start",
        Beat::Fail => "/fail",
    };
    if uri.host() != Some("hc-ping.com") && !uri.path().starts_with("/ping/") {
        return None;
    }
    let path = uri.path().trim_end_matches('/');
    let query = uri
        .query()
        .map_or_else(String::new, |query| format!("?{query}"));
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = format!("{path}{suffix}{query}").parse().ok();
    Uri::from_parts(parts).ok()
}

/// Fetches, again after each of these pauses.
fn fetch(client: &HttpClient, uri: &Uri, pauses: &[Duration]) -> std::result::Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let mut pauses = pauses.iter();
    loop {
        let answer = runtime.block_on(async {
            let mut request = HttpRequest::new(HttpRequestBody::empty());
            *request.method_mut() = Method::GET;
            *request.uri_mut() = uri.clone();
            client.execute(request).await
        });
        let (why, passing) = match answer {
            Ok(answer) if answer.status().is_success() => return Ok(()),
            Ok(answer) => {
                let status = answer.status().as_u16();
                let passing = status >= 500 || matches!(status, 408 | 429);
                (format!("it answered {status}"), passing)
            }
            Err(error) => (explain(&error, uri), true),
        };
        match pauses.next() {
            Some(pause) if passing => std::thread::sleep(*pause),
            _ => return Err(why),
        }
    }
}

/// The innermost cause, unless it tells of the URL.
fn explain(error: &HttpError, uri: &Uri) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let text = cause.to_string();
    let mut parts = uri.path().split('/').chain(uri.query());
    if !parts.any(|part| part.len() > 3 && text.contains(part)) {
        return text;
    }
    match error.kind() {
        HttpErrorKind::Timeout => "no answer in time".to_owned(),
        HttpErrorKind::Connect => "no connection".to_owned(),
        _ => "no answer".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_monitors_that_know_them_hear_of_starts_and_failures() {
        let told = |url: &str, beat| {
            let uri: Uri = url.parse().unwrap();
            address(&uri, beat).map(|uri| uri.to_string())
        };
        for (url, start) in [
            (
                "https://hc-ping.com/5b1f?create=1",
                Some("https://hc-ping.com/5b1f/start?create=1"),
            ),
            (
                "https://hc-ping.com/key/slug/",
                Some("https://hc-ping.com/key/slug/start"),
            ),
            (
                "http://checks.example.com:8000/ping/5b1f",
                Some("http://checks.example.com:8000/ping/5b1f/start"),
            ),
            (
                "https://kuma.example.com/api/push/T0ken?status=up&msg=OK&ping=",
                None,
            ),
            ("https://example.com", None),
        ] {
            assert_eq!(told(url, Beat::Start).as_deref(), start, "{url}");
            let fail = start.map(|start| start.replace("/start", "/fail"));
            assert_eq!(told(url, Beat::Fail), fail, "{url}");
            let success: Uri = url.parse().unwrap();
            assert_eq!(told(url, Beat::Success), Some(success.to_string()));
        }
    }
}
