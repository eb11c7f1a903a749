//! The store in a bucket against real servers, and against a server that misbehaves on purpose.

mod cancel;
mod credentials;
mod faults;
// The unit tests use a part of it only.
#[allow(dead_code)]
#[path = "../../../../tests/support/garage.rs"]
mod garage;

mod lists;
mod proxy;
mod real;
mod refusals;
mod rights;
mod server;
mod tls;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use self::proxy::Proxy;
use self::server::Server;
use super::{Keys, S3Options, S3Store, Secret};
use crate::cancel::Token;
use crate::store::{Key, Put, Store};

/// No variable is set.
fn nothing(_: &str) -> Option<String> {
    None
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

/// Bytes that compress badly and differ everywhere.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

/// An in-process server, and a proxy before it that plays tricks.
struct Site {
    server: Server,
    proxy: Proxy,
    warnings: Arc<Mutex<Vec<String>>>,
    token: Token,
}

impl Site {
    fn new() -> Site {
        let server = Server::start();
        let proxy = Proxy::start(server.port);
        Site {
            server,
            proxy,
            warnings: Arc::default(),
            token: Token::new(),
        }
    }

    fn options(&self) -> S3Options {
        let warnings = Arc::clone(&self.warnings);
        S3Options {
            endpoint: Some(format!("http://127.0.0.1:{}", self.proxy.port)),
            allow_http: true,
            keys: Some(Keys {
                access_key_id: server::ACCESS_KEY.to_owned(),
                secret_access_key: Secret::new(server::SECRET_KEY),
                session_token: None,
            }),
            deadline: Duration::from_secs(20),
            warn: Arc::new(move |text| warnings.lock().unwrap().push(text.to_owned())),
            ..S3Options::new(server::BUCKET)
        }
    }

    fn store(&self) -> S3Store {
        self.store_with(|_| {})
    }

    fn store_with(&self, change: impl FnOnce(&mut S3Options)) -> S3Store {
        let mut options = self.options();
        change(&mut options);
        S3Store::open(&options, &nothing, &self.token).unwrap()
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap().clone()
    }
}

/// Uploads in pieces as a pipeline does.
fn upload(
    store: &dyn Store,
    name: &str,
    bytes: &[u8],
    mode: Put,
) -> crate::error::Result<crate::store::Object> {
    let mut upload = store.create_sized(&key(name), mode, 1)?;
    for piece in bytes.chunks(300_000) {
        upload.write(piece)?;
    }
    upload.finish()
}

/// More than two parts of the smallest size.
const THREE_PARTS: usize = (17 << 20) + 12345;
