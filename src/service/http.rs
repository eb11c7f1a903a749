//! `/livez` and `/healthz`, for orchestrators and load balancers.
//!
//! Invariants: no answer holds a secret or needs a password; a client that is slow, or sends
//! nonsense, costs one task and no other client. `/livez` is 503 when the supervisor's loop has
//! not turned for two minutes.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use serde_json::{Value, json};

use super::health::Health;
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
    health: Arc<Health>,
    pulse: Arc<Pulse>,
}

/// Binds `address` and serves on a thread of its own until the process ends. Gives the address
/// that it listens on (the port may have been 0).
///
/// # Errors
/// `Usage` for an address that cannot be had.
pub fn serve(address: &str, health: Arc<Health>, pulse: Arc<Pulse>) -> Result<SocketAddr> {
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
        .with_state(Shared { health, pulse });
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
    let alive = shared.pulse.is_alive();
    (code(alive), Json(json!({"alive": alive})))
}

async fn healthz(State(shared): State<Shared>) -> (StatusCode, Json<Value>) {
    let health = Arc::clone(&shared.health);
    // It reads the store.
    let (healthy, answer) = tokio::task::spawn_blocking(move || health.answer())
        .await
        .unwrap_or_else(|_| (false, json!({"healthy": false})));
    (code(healthy), Json(answer))
}

fn code(good: bool) -> StatusCode {
    if good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}
