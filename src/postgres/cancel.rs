//! Stops a session from another thread: politely, by a request to the server, or by closing
//! its socket. Neither needs the session's own thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustls::ClientConfig;
use socket2::Socket;

use super::open;
use super::stream::{Got, Stream};
use super::target::Target;
use super::wire;

const CANCEL_TIMEOUT: Duration = Duration::from_secs(10);

/// Stops a session from another thread.
#[derive(Clone)]
pub struct Canceller {
    pub(super) target: Target,
    pub(super) tls: Option<Arc<ClientConfig>>,
    pub(super) pid: i32,
    pub(super) secret: i32,
    pub(super) socket: Arc<Socket>,
    pub(super) closed: Arc<AtomicBool>,
}

impl std::fmt::Debug for Canceller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Canceller(backend {})", self.pid)
    }
}

impl Canceller {
    /// Asks the server to cancel what the session is doing, over a connection of its own to
    /// the same address. Best effort: the session reports what came of it.
    pub fn cancel(&self) {
        let _ = self.request();
    }

    fn request(&self) -> io::Result<()> {
        let mut stream = open::open_again(&self.target, self.tls.as_ref(), CANCEL_TIMEOUT)?;
        stream.write(&wire::cancel_request(self.pid, self.secret))?;
        stream.flush()?;
        // The server closes when it has passed the request on.
        while let Got::Bytes(_) = stream.read(&mut [0; 64], true)? {}
        Ok(())
    }

    /// Shuts the socket: every call that is blocked on the session returns an error.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        Stream::close(&self.socket);
    }
}
