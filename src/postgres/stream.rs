//! Bytes to and from a server, plain or under TLS, over TCP or a Unix socket.
//!
//! Invariants: a write never blocks while the server waits for us to read (both sides
//! blocked in a write would hang forever): [`Stream::write`] hands back what can be read in
//! between. With a deadline set, no call blocks beyond it. Shutting the socket from another
//! thread wakes every blocked call.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags};
use rustls::ClientConnection;
use socket2::Socket;

/// Encrypted bytes read at once; rustls itself would ask for 4 KiB.
const RAW_BYTES: usize = 128 * 1024;
/// Clear bytes encrypted ahead of the socket.
const PLAIN_BYTES: usize = 256 * 1024;

/// One connection's bytes.
pub(super) struct Stream {
    pub socket: Arc<Socket>,
    tls: Option<Box<Tls>>,
    pub deadline: Option<Instant>,
}

struct Tls {
    connection: ClientConnection,
    raw: Vec<u8>,
    start: usize,
    end: usize,
}

/// What a read brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Got {
    Bytes(usize),
    /// The server ended the connection.
    End,
    /// Nothing yet; only when the caller does not wait.
    Nothing,
}

impl Stream {
    pub(super) fn new(socket: Socket, deadline: Option<Instant>) -> Stream {
        Stream {
            socket: Arc::new(socket),
            tls: None,
            deadline,
        }
    }

    /// Encrypts everything from here on. Finishes the handshake before it returns.
    pub(super) fn start_tls(&mut self, mut connection: ClientConnection) -> io::Result<()> {
        connection.set_buffer_limit(Some(PLAIN_BYTES));
        let mut tls = Box::new(Tls {
            connection,
            raw: vec![0; RAW_BYTES],
            start: 0,
            end: 0,
        });
        while tls.connection.is_handshaking() || tls.connection.wants_write() {
            while tls.connection.wants_write() {
                if !tls.flush(&self.socket)? {
                    self.wait(PollFlags::OUT)?;
                }
            }
            if tls.connection.is_handshaking() && tls.receive(self, true)? == Got::End {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        self.tls = Some(tls);
        Ok(())
    }

    /// The TLS session, when there is one.
    pub(super) fn tls(&self) -> Option<&ClientConnection> {
        self.tls.as_ref().map(|tls| &tls.connection)
    }

    /// Ends both directions; every blocked call returns.
    pub(super) fn close(socket: &Socket) {
        // An error means that the connection is gone already.
        // Reset instead of closed in peace: a socket that was shut no longer tells the server when
        // its window opens, and the server would wait to send for minutes, locks in hand.
        let _ = socket.set_linger(Some(std::time::Duration::ZERO));
        let _ = socket.shutdown(Shutdown::Both);
    }

    /// Reads into `out`.
    pub(super) fn read(&mut self, out: &mut [u8], wait: bool) -> io::Result<Got> {
        let Some(mut tls) = self.tls.take() else {
            return self.receive(out, wait);
        };
        let got = tls.read(self, out, wait);
        self.tls = Some(tls);
        got
    }

    /// Writes some of `bytes`: how many, or 0 when the socket is full and `readable` bytes or
    /// room should be awaited with [`Self::wait_for_room`].
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            return send(&self.socket, bytes);
        };
        // First what is encrypted already: the session's buffer is bounded.
        while tls.connection.wants_write() {
            if !tls.flush(&self.socket)? {
                return Ok(0);
            }
        }
        tls.connection.writer().write(bytes)
    }

    /// Pushes out what TLS holds back; false when the socket is full.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        let Some(tls) = &mut self.tls else {
            return Ok(true);
        };
        while tls.connection.wants_write() {
            if !tls.flush(&self.socket)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Waits until the socket takes more bytes or brings some; true when it brings some.
    pub(super) fn wait_for_room(&self) -> io::Result<bool> {
        let ready = self.wait(PollFlags::OUT | PollFlags::IN)?;
        Ok(!(ready & !PollFlags::OUT).is_empty())
    }

    /// Waits for bytes until then; false when none came.
    pub(super) fn wait_for_bytes(&mut self, until: Instant) -> io::Result<bool> {
        let before = self.deadline.replace(until);
        let ready = self.wait(PollFlags::IN);
        self.deadline = before;
        match ready {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn wait(&self, events: PollFlags) -> io::Result<PollFlags> {
        loop {
            let timeout = match self.deadline {
                None => None,
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    Timespec::try_from(left).ok()
                }
            };
            let mut fds = [PollFd::new(&*self.socket, events)];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(fds[0].revents()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// One plain receive.
    fn receive(&self, out: &mut [u8], wait: bool) -> io::Result<Got> {
        // Without a deadline one blocking call does; with one, poll first.
        let flags = if wait && self.deadline.is_none() {
            RecvFlags::empty()
        } else {
            RecvFlags::DONTWAIT
        };
        loop {
            match rustix::net::recv(&*self.socket, &mut *out, flags) {
                Ok((_, 0)) => return Ok(Got::End),
                Ok((_, count)) => return Ok(Got::Bytes(count)),
                Err(rustix::io::Errno::AGAIN) if !wait => return Ok(Got::Nothing),
                Err(rustix::io::Errno::AGAIN) => {
                    self.wait(PollFlags::IN)?;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Sends what fits; 0 when nothing does.
fn send(socket: &Socket, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match rustix::net::send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(count) => return Ok(count),
            Err(rustix::io::Errno::AGAIN) => return Ok(0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Lets rustls write without blocking.
struct Outlet<'a>(&'a Socket);

impl Write for Outlet<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match send(self.0, bytes)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Tls {
    /// Writes one batch of records; false when the socket is full.
    fn flush(&mut self, socket: &Socket) -> io::Result<bool> {
        match self.connection.write_tls(&mut Outlet(socket)) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes encrypted bytes, from the buffer or else from the socket, and decrypts them.
    fn receive(&mut self, stream: &Stream, wait: bool) -> io::Result<Got> {
        if self.start == self.end {
            let got = stream.receive(&mut self.raw, wait)?;
            let Got::Bytes(count) = got else {
                return Ok(got);
            };
            self.start = 0;
            self.end = count;
        }
        let mut raw = &self.raw[self.start..self.end];
        let count = self.connection.read_tls(&mut raw)?;
        self.start += count;
        if let Err(error) = self.connection.process_new_packets() {
            // Tell the server why, if it still listens.
            let _ = self.flush(&stream.socket);
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        Ok(Got::Bytes(count))
    }

    fn read(&mut self, stream: &Stream, out: &mut [u8], wait: bool) -> io::Result<Got> {
        let mut filled = 0;
        loop {
            while filled < out.len() {
                match self.connection.reader().read(&mut out[filled..]) {
                    Ok(0) if filled == 0 => return Ok(Got::End),
                    Ok(0) => return Ok(Got::Bytes(filled)),
                    Ok(count) => filled += count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
            // Decrypt all that lies here before going back to the socket.
            if filled == out.len() || (filled > 0 && self.start == self.end) {
                return Ok(Got::Bytes(filled));
            }
            match self.receive(stream, wait)? {
                Got::Bytes(_) => {}
                other => return Ok(other),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::sync::mpsc::{RecvTimeoutError, channel};

    /// As a server that sends rows to one who stops reading, is told to close, reads what is
    /// left and goes. Closed in peace, its last word on the window stays "closed".
    #[test]
    fn a_closed_session_ends_for_a_server_that_waits_to_send() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client: Socket = TcpStream::connect(address).unwrap().into();
        let (mut server, _) = listener.accept().unwrap();
        let (sent, progress) = channel();
        let writer = std::thread::spawn(move || {
            while server.write(&[0; 4096]).is_ok() {
                let _ = sent.send(());
            }
        });
        // Until it is blocked.
        let pause = std::time::Duration::from_millis(500);
        while progress.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {}
        Stream::close(&client);
        let mut buffer = vec![0; 1 << 20];
        while (&client).read(&mut buffer).is_ok_and(|count| count > 0) {}
        drop(client);
        let started = std::time::Instant::now();
        while progress.recv_timeout(pause) != Err(RecvTimeoutError::Disconnected) {
            assert!(started.elapsed().as_secs() < 10, "the server still waits");
        }
        writer.join().unwrap();
    }
}
