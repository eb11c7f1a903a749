//! `/livez` and `/healthz`, for orchestrators and load balancers.
//!
//! Invariants: no answer holds a secret or needs a password; a client that is slow, or sends
//! nonsense, costs one task and no other client. `/livez` is 503 when the supervisor's loop has
//! not turned for two minutes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use serde_json::{Value, json};

use super::health::{self, Health};
use crate::clock;
use crate::error::{Context, Error, Result};

/// A loop that has not turned for so many seconds is stuck.
const STUCK_SECONDS: i64 = 120;

/// When the supervisor's loop turned last, in seconds since 1970.
#[derive(Debug, Default)]
pub struct Pulse(AtomicI64);

impl Pulse {
    pub fn beat(&self) {
        self.0.store(clock::now().as_second(), Ordering::Relaxed);
    }

    fn is_alive(&self) -> bool {
        clock::now().as_second() - self.0.load(Ordering::Relaxed) < STUCK_SECONDS
    }
}

#[derive(Clone)]
struct Shared {
    health: Arc<Vec<Health>>,
    pulses: Arc<Vec<Arc<Pulse>>>,
}

/// Binds `address` and serves on a thread of its own until the process ends. Gives the address
/// that it listens on (the port may have been 0).
///
/// # Errors
/// `Usage` for an address that cannot be had.
pub fn serve(
    address: &str,
    health: Arc<Vec<Health>>,
    pulses: Arc<Vec<Arc<Pulse>>>,
) -> Result<SocketAddr> {
    let refused = |why: String| {
        Error::usage(format!("cannot listen on {address}: {why}"))
            .hint("HTTP_ADDR names the address and port, as 127.0.0.1:8080")
    };
    // ":8080" is all addresses, as elsewhere.
    let wanted = if address.starts_with(':') {
        format!("[::]{address}")
    } else {
        address.to_owned()
    };
    let found: Vec<SocketAddr> = wanted
        .to_socket_addrs()
        .map_err(|error| refused(error.to_string()))?
        .collect();
    let listener =
        TcpListener::bind(found.as_slice()).map_err(|error| refused(error.to_string()))?;
    listener.set_nonblocking(true)?;
    let bound = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(2)
        .build()
        .context(|| "cannot start the HTTP server".to_owned())?;
    let routes = Router::new()
        .route("/livez", get(livez))
        .route("/healthz", get(healthz))
        .with_state(Shared { health, pulses });
    std::thread::Builder::new()
        .name("http".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                if let Ok(listener) = tokio::net::TcpListener::from_std(listener) {
                    let _ = axum::serve(listener, routes).await;
                }
            });
        })
        .context(|| "cannot start the HTTP server".to_owned())?;
    Ok(bound)
}

async fn livez(State(shared): State<Shared>) -> (StatusCode, Json<Value>) {
    let alive = shared.pulses.iter().all(|pulse| pulse.is_alive());
    (code(alive), Json(json!({"alive": alive})))
}

async fn healthz(State(shared): State<Shared>) -> (StatusCode, Json<Value>) {
    let health = Arc::clone(&shared.health);
    // It reads the store.
    let (healthy, answer) = tokio::task::spawn_blocking(move || answer(&health))
        .await
        .unwrap_or_else(|_| (false, json!({"healthy": false})));
    (code(healthy), Json(answer))
}

/// One cluster's answer as it is; several, one beside the other.
fn answer(health: &[Health]) -> (bool, Value) {
    if let [only] = health {
        return only.answer();
    }
    let answers = std::thread::scope(|scope| {
        let asked: Vec<_> = health
            .iter()
            .map(|one| (one, scope.spawn(|| one.answer())))
            .collect();
        let answers = asked.into_iter().map(|(one, asked)| {
            let silent = |_| (false, json!({"healthy": false}));
            let (healthy, value) = asked.join().unwrap_or_else(silent);
            (one.cluster.clone(), healthy, value)
        });
        answers.collect()
    });
    health::together(answers)
}

/// Asks the service at this machine's `address` whether all is well; its answer.
///
/// # Errors
/// `Failed` when it is not, or nothing answers.
pub fn probe(address: &str) -> Result<String> {
    let silent = |error: std::io::Error| {
        Error::failed(format!("no service answers at {address}: {error}"))
            .hint("HTTP_ADDR must be the service's own")
    };
    let (host, port) = address.rsplit_once(':').unwrap_or(("", address));
    let host = match host {
        "" | "0.0.0.0" | "[::]" => "localhost",
        host => host,
    };
    let answer = ask(&format!("{host}:{port}"), "/healthz").map_err(silent)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if head.split(' ').nth(1) == Some("200") {
        return Ok(body.to_owned());
    }
    Err(Error::failed(format!("the service is not well: {body}")))
}

fn ask(address: &str, path: &str) -> std::io::Result<String> {
    let limit = Duration::from_secs(8);
    let mut error = std::io::ErrorKind::AddrNotAvailable.into();
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, limit) {
            Ok(mut stream) => {
                stream.set_read_timeout(Some(limit))?;
                let get =
                    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
                stream.write_all(get.as_bytes())?;
                let mut answer = String::new();
                stream.take(1 << 20).read_to_string(&mut answer)?;
                return Ok(answer);
            }
            Err(refused) => error = refused,
        }
    }
    Err(error)
}

fn code(good: bool) -> StatusCode {
    if good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}
