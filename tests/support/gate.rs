//! A way to a server that can be closed, as a network that fails.

use std::io::copy;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Passes connections on while it is open; lives until the process ends.
pub(crate) struct Gate {
    pub(crate) port: u16,
    to: Arc<AtomicU16>,
    open: Arc<AtomicBool>,
    passing: Arc<Mutex<Vec<TcpStream>>>,
}

impl Gate {
    /// An open way to a port of this machine.
    pub(crate) fn to(port: u16) -> Gate {
        Self::at("127.0.0.1", port)
    }

    /// The same from another address of this machine.
    pub(crate) fn at(address: &str, port: u16) -> Gate {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let gate = Gate {
            port: listener.local_addr().unwrap().port(),
            to: Arc::new(AtomicU16::new(port)),
            open: Arc::new(AtomicBool::new(true)),
            passing: Arc::default(),
        };
        let (open, passing) = (Arc::clone(&gate.open), Arc::clone(&gate.passing));
        let to = Arc::clone(&gate.to);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // Closed: the connection ends at once.
                let server = TcpStream::connect(("127.0.0.1", to.load(Ordering::SeqCst)));
                if let (true, Ok(server)) = (open.load(Ordering::SeqCst), server) {
                    let mut list = passing.lock().unwrap_or_else(PoisonError::into_inner);
                    list.push(client.try_clone().unwrap());
                    list.push(server.try_clone().unwrap());
                    pass(client, server);
                }
            }
        });
        gate
    }

    /// Ends what passes; the next connections lead to that port.
    pub(crate) fn lead_to(&self, port: u16) {
        self.to.store(port, Ordering::SeqCst);
        self.close();
        self.open();
    }

    /// Ends what passes, and lets nothing through.
    pub(crate) fn close(&self) {
        self.open.store(false, Ordering::SeqCst);
        let mut list = self.passing.lock().unwrap_or_else(PoisonError::into_inner);
        for stream in list.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub(crate) fn open(&self) {
        self.open.store(true, Ordering::SeqCst);
    }
}

fn pass(client: TcpStream, server: TcpStream) {
    let pairs = [
        (client.try_clone().unwrap(), server.try_clone().unwrap()),
        (server, client),
    ];
    for (mut source, mut sink) in pairs {
        std::thread::spawn(move || {
            let _ = copy(&mut source, &mut sink);
            let _ = sink.shutdown(Shutdown::Write);
        });
    }
}
