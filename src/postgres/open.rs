//! Opens sockets and starts TLS on them, for sessions and for cancel requests alike.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use socket2::{Domain, SockAddr, Socket, TcpKeepalive, Type};

use super::resolve::{number, user_name};
use super::stream::{Got, Stream};
use super::target::{Address, Settings, Target};
use super::tls::{ALPN, TlsSettings};
use super::wire;
use crate::error::{Error, Result};

/// Asks whether the server speaks TLS. Reads one byte only: more would be unencrypted text
/// that somebody slipped in before the handshake (CVE-2021-23222).
pub(super) fn offers_tls(stream: &mut Stream) -> io::Result<bool> {
    if stream.write(&wire::SSL_REQUEST)? != wire::SSL_REQUEST.len() {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    let mut answer = [0];
    if stream.read(&mut answer, true)? == Got::End {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    match answer[0] {
        b'S' => Ok(true),
        b'N' => Ok(false),
        // Its text is not authenticated and is not shown (CVE-2024-10977).
        _ => Err(io::Error::other(
            "the server answered the request for TLS with an error",
        )),
    }
}

/// Starts TLS for a session or a cancel request.
pub(super) fn start_tls(
    stream: &mut Stream,
    config: &Arc<ClientConfig>,
    host: &str,
    direct: bool,
) -> io::Result<()> {
    let name = TlsSettings::server_name(host);
    let connection = rustls::ClientConnection::new(config.clone(), name)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    stream.start_tls(connection)?;
    let agreed = stream.tls().and_then(|tls| tls.alpn_protocol());
    if direct && agreed != Some(ALPN) {
        return Err(io::Error::other(
            "direct TLS without ALPN: the server is older than PostgreSQL 17",
        ));
    }
    Ok(())
}

/// Opens a cancel connection the same way as the session's.
pub(super) fn open_again(
    target: &Target,
    tls: Option<&Arc<ClientConfig>>,
    timeout: Duration,
) -> io::Result<Stream> {
    let missing = || io::Error::other("no address");
    let endpoint = target.endpoints.first().ok_or_else(missing)?;
    let address = endpoint.addresses.first().ok_or_else(missing)?;
    let deadline = Some(Instant::now() + timeout);
    let mut stream = Stream::new(open(address, deadline, &target.settings)?, deadline);
    if let Some(config) = tls {
        let direct = target.settings.tls.direct;
        if !direct && !offers_tls(&mut stream)? {
            return Err(io::Error::other("the server does not offer TLS any more"));
        }
        start_tls(&mut stream, config, &endpoint.host, direct)?;
    }
    Ok(stream)
}

pub(super) fn open(
    address: &Address,
    deadline: Option<Instant>,
    settings: &Settings,
) -> io::Result<Socket> {
    let (domain, place) = match address {
        Address::Tcp(address) => (Domain::for_address(*address), SockAddr::from(*address)),
        Address::Unix(folder, port) => {
            let path = Path::new(folder).join(format!(".s.PGSQL.{port}"));
            (Domain::UNIX, SockAddr::unix(path)?)
        }
    };
    let socket = Socket::new(domain, Type::STREAM, None)?;
    if address.is_unix() {
        socket.connect(&place)?;
        return Ok(socket);
    }
    match deadline {
        Some(deadline) => {
            let left = deadline.saturating_duration_since(Instant::now());
            socket.connect_timeout(&place, left.max(Duration::from_millis(1)))?;
        }
        None => socket.connect(&place)?,
    }
    socket.set_tcp_nodelay(true)?;
    keep_alive(&socket, settings)?;
    Ok(socket)
}

/// A host that died without a word is noticed after two minutes; libpq's keywords change it.
fn keep_alive(socket: &Socket, settings: &Settings) -> io::Result<()> {
    let info = &settings.info;
    let seconds = |key: &str, default: u64| {
        let said = number(info, key).and_then(|said| u64::try_from(said).ok());
        Duration::from_secs(said.filter(|said| *said > 0).unwrap_or(default))
    };
    if info.get("keepalives") != Some("0") {
        let count = number(info, "keepalives_count").and_then(|count| u32::try_from(count).ok());
        let keepalive = TcpKeepalive::new()
            .with_time(seconds("keepalives_idle", 60))
            .with_interval(seconds("keepalives_interval", 10))
            .with_retries(count.filter(|count| *count > 0).unwrap_or(6));
        socket.set_tcp_keepalive(&keepalive)?;
    }
    // No default: it would also end connections to a server that is slow to take our bytes.
    let timeout = number(info, "tcp_user_timeout").and_then(|said| u64::try_from(said).ok());
    if let Some(milliseconds) = timeout.filter(|said| *said > 0) {
        socket.set_tcp_user_timeout(Some(Duration::from_millis(milliseconds)))?;
    }
    Ok(())
}

/// `requirepeer`: the user that runs the server behind a Unix socket.
pub(super) fn check_peer(socket: &Socket, address: &Address, settings: &Settings) -> Result<()> {
    let Some(wanted) = settings
        .info
        .get("requirepeer")
        .filter(|_| address.is_unix())
    else {
        return Ok(());
    };
    let peer = rustix::net::sockopt::socket_peercred(socket)
        .map_err(|error| Error::failed(format!("cannot see who runs the server: {error}")))?;
    let uid = peer.uid.as_raw();
    let name = user_name(uid).unwrap_or_else(|| uid.to_string());
    if name == wanted {
        return Ok(());
    }
    Err(Error::failed(format!(
        "the server behind {address} is run by {name:?}, not by {wanted:?}"
    ))
    .hint("requirepeer names the user that must run it"))
}
