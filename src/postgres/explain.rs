//! What went wrong and the way out, for a person at three in the morning.
//!
//! Invariant: no text here holds a password; the source of one is named instead.

use std::fmt::Write as _;
use std::io;

use rustls::{AlertDescription, CertificateError};

use super::target::{Address, Endpoint, Target};
use super::wire::Fields;
use crate::error::{Error, Kind};

/// The fields of an `ErrorResponse` or `NoticeResponse`, decoded lossily: before the
/// encodings agree, the server may answer in any.
#[derive(Debug, Default)]
pub(super) struct Report {
    severity: String,
    code: String,
    message: String,
    detail: String,
    hint: String,
    context: String,
}

impl Report {
    pub(super) fn parse(body: &[u8]) -> Report {
        let mut report = Report::default();
        let mut fields = Fields(body);
        while let (Ok(kind @ 1..), Ok(text)) = (fields.u8(), fields.text()) {
            let text = String::from_utf8_lossy(text).into_owned();
            match kind {
                // V is S untranslated, and comes after it.
                b'S' | b'V' => report.severity = text,
                b'C' => report.code = text,
                b'M' => report.message = text,
                b'D' => report.detail = text,
                b'H' => report.hint = text,
                b'W' => report.context = text,
                _ => {}
            }
        }
        report
    }

    /// Whether the server ends the connection after it.
    pub(super) fn is_fatal(&self) -> bool {
        matches!(self.severity.as_str(), "FATAL" | "PANIC")
    }

    /// `WARNING: text`, one line as far as the server's text is one.
    pub(super) fn line(&self) -> String {
        let mut line = format!("{}: {}", self.severity, self.message);
        if !self.detail.is_empty() {
            let _ = write!(line, "\nDETAIL: {}", self.detail);
        }
        line
    }

    pub(super) fn error(self) -> Error {
        let mut fact = self.line();
        // The last line of a context is the outermost; the first says where it happened.
        if let Some(place) = self.context.lines().next() {
            let _ = write!(fact, "\nCONTEXT: {place}");
        }
        let hint = match (self.hint.is_empty(), self.code.as_str()) {
            // The server's own hint is to do the same again, which would end the same.
            (_, "40001" | "57014") if self.message.contains("recovery") => Some(
                "on a standby: raise max_standby_streaming_delay or set hot_standby_feedback=on"
                    .to_owned(),
            ),
            (false, _) => Some(self.hint),
            (true, "57P01" | "57P02") => Some(
                "the server was stopped or an administrator ended the connection; see its log"
                    .to_owned(),
            ),
            (true, "57P03") => {
                Some("the server is starting or recovering: try again shortly".to_owned())
            }
            (true, "53100") => Some("the server's disk is full".to_owned()),
            _ => None,
        };
        Error {
            kind: Kind::Failed,
            fact,
            hint,
            cause: None,
            sqlstate: Some(self.code),
        }
    }
}

/// `db.example:5432 (10.0.0.5)`, or the socket's path.
pub(super) fn place(endpoint: &Endpoint, address: &Address) -> String {
    let shown = address.to_string();
    if address.is_unix() {
        return format!("socket {shown}");
    }
    let host = &endpoint.host;
    if *host == shown {
        format!("{host}:{}", endpoint.port)
    } else {
        format!("{host}:{} ({shown})", endpoint.port)
    }
}

/// No connection at all.
pub(super) fn unreachable(error: &io::Error, endpoint: &Endpoint, address: &Address) -> Error {
    let (what, hint) = match error.kind() {
        io::ErrorKind::ConnectionRefused => (
            "connection refused".to_owned(),
            "nothing listens there: is the server running, is the port right, does listen_addresses include this address?",
        ),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => (
            "no answer in time".to_owned(),
            "a firewall may drop the packets, or the host is down; connect_timeout sets how long to wait",
        ),
        io::ErrorKind::NotFound => (
            "no such socket".to_owned(),
            "is the server running? set DB_HOST to its socket's folder or its host name",
        ),
        io::ErrorKind::PermissionDenied => (
            "permission denied".to_owned(),
            "this user may not open the server's socket; connect over TCP (DB_HOST)",
        ),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => (
            "no route to the host".to_owned(),
            "check the network between this machine and the server",
        ),
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe => (
            "the server closed the connection without an answer".to_owned(),
            "is that a PostgreSQL server? its log may say why; a proxy in between closes like this too",
        ),
        _ => (error.to_string(), "check DB_HOST and DB_PORT"),
    };
    Error::failed(format!(
        "cannot connect to {}: {what}",
        place(endpoint, address)
    ))
    .hint(hint)
}

/// The TLS handshake failed, or an alert came right after it.
pub(super) fn tls_failed(error: &io::Error, endpoint: &Endpoint, address: &Address) -> Error {
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let Some(inner) = inner else {
        return unreachable(error, endpoint, address);
    };
    let place = place(endpoint, address);
    let (what, hint) = match inner {
        rustls::Error::InvalidCertificate(certificate) => {
            return bad_certificate(certificate, endpoint, &place);
        }
        rustls::Error::AlertReceived(
            alert @ (AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateRequired
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::DecryptError
            | AlertDescription::HandshakeFailure),
        ) => (
            format!("the server refused the TLS handshake ({alert:?})"),
            "does the server's ssl_ca_file trust the client certificate (DB_SSLCERT, DB_SSLKEY)?",
        ),
        rustls::Error::PeerIncompatible(_)
        | rustls::Error::AlertReceived(AlertDescription::ProtocolVersion) => (
            format!("no common TLS version or cipher: {inner}"),
            "pgark speaks TLS 1.2 and 1.3; check the server's ssl_min_protocol_version and certificate",
        ),
        _ => (format!("TLS failed: {inner}"), "see the server's log"),
    };
    Error::failed(format!("cannot connect to {place}: {what}")).hint(hint)
}

fn bad_certificate(error: &CertificateError, endpoint: &Endpoint, place: &str) -> Error {
    let (what, hint) = match error {
        CertificateError::UnknownIssuer => (
            "is not trusted: none of the root certificates signed it".to_owned(),
            "set DB_SSLROOTCERT to the certificate of the authority that signed the server's".to_owned(),
        ),
        CertificateError::NotValidForNameContext { presented, .. } => (
            format!("is for {}, not for {}", presented.join(", "), endpoint.host),
            "connect by a name that is in it (DB_HOST, with hostaddr if DNS does not know it), or use sslmode=verify-ca".to_owned(),
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            ("has expired".to_owned(), "renew it on the server".to_owned())
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            ("is not valid yet".to_owned(), "check the clocks of both machines".to_owned())
        }
        CertificateError::Revoked => ("is revoked".to_owned(), "the CRL (sslcrl) names it".to_owned()),
        CertificateError::UnknownRevocationStatus => (
            "is not covered by the CRL".to_owned(),
            "sslcrl must hold a list of every authority in the chain".to_owned(),
        ),
        other => (format!("is not acceptable: {other}"), "see the certificate with openssl x509 -text".to_owned()),
    };
    Error::failed(format!(
        "cannot connect to {place}: the server's certificate {what}"
    ))
    .hint(hint)
}

/// The server answered and said no: adds the place and a way out by SQLSTATE.
pub(super) fn refused(
    error: Error,
    target: &Target,
    endpoint: &Endpoint,
    address: &Address,
    encrypted: bool,
) -> Error {
    let (user, database) = (target.user(), target.database());
    let hint = match error.sqlstate.as_deref() {
        Some("28P01") => Some(wrong_password(target, endpoint)),
        Some("28000") if error.fact.contains("pg_hba.conf") => Some(format!(
            "the server's pg_hba.conf has no line that lets {user:?} into {database:?} from here {}; add one, for example: {} {database} {user} samenet scram-sha-256",
            if encrypted { "over TLS" } else { "without TLS (sslmode?)" },
            if encrypted { "hostssl" } else { "host" },
        )),
        Some("28000") => Some(format!(
            "the server does not let {user:?} in: does the role exist, may it LOGIN, and does the method in pg_hba.conf fit (peer and cert map names)?"
        )),
        Some("3D000") => Some(format!(
            "create {database:?} or set DB_NAME to one that exists (psql -l lists them)"
        )),
        Some("42501") if target.replication => Some(format!("base backups and WAL need the right to replicate: ALTER ROLE {} REPLICATION", super::quote_ident(user))),
        Some("53300") if target.replication => Some(
            "all connections for replication are taken: raise max_wal_senders (and where it is 0, ALTER SYSTEM SET wal_level = 'replica'; a restart), or see who holds them in pg_stat_replication".to_owned(),
        ),
        Some("42501") => Some(format!("GRANT CONNECT ON DATABASE {} TO {}", super::quote_ident(database), super::quote_ident(user))),
        Some("53300") => Some(
            "all connections are taken: raise max_connections, lower BACKUP_JOBS, or see who holds them in pg_stat_activity".to_owned(),
        ),
        Some("55000") => Some(format!("does {database:?} allow connections (datallowconn)?")),
        _ => None,
    };
    let whole = error.context(format!("cannot connect to {}", place(endpoint, address)));
    match hint {
        Some(hint) => whole.hint(hint),
        None => whole,
    }
}

/// Who was refused, where the password came from and how to give another.
fn wrong_password(target: &Target, endpoint: &Endpoint) -> String {
    let user = target.user();
    let mut hint = match target.password(endpoint) {
        Some((_, origin)) => format!("user {user:?}; the password came from {origin}"),
        None => format!("user {user:?}; no password was given"),
    };
    hint.push_str("; set the right one with DB_PASSWORD or DB_PASSWORD_FILE");
    for warning in target.warnings() {
        let _ = write!(hint, "; {warning}");
    }
    hint
}

/// The server wants a password and there is none.
pub(super) fn no_password(target: &Target, endpoint: &Endpoint, address: &Address) -> Error {
    Error::failed(format!(
        "cannot connect to {}: the server asks {:?} for a password and none was given",
        place(endpoint, address),
        target.user()
    ))
    .hint({
        let mut hint = "set DB_PASSWORD or DB_PASSWORD_FILE, or add a line to ~/.pgpass".to_owned();
        for warning in target.warnings() {
            let _ = write!(hint, "; {warning}");
        }
        hint
    })
}
