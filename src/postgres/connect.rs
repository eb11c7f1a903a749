//! From a target to a connection: hosts and addresses in order, encryption as `sslmode` says,
//! login, and the check that it is the kind of server that was asked for.
//!
//! Invariants, as libpq: a server that refuses the *login* ends the search; one that cannot
//! be reached, is starting up, or is of the wrong kind leads to the next. One deadline covers
//! one address from its first packet to the end of the startup.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use rustls::ClientConfig;

use super::auth::Login;
use super::explain;
use super::link::Link;
use super::open::{check_peer, offers_tls, open, start_tls};
use super::stream::Stream;
use super::target::{Address, Endpoint, SessionKind, Target};
use super::tls::{ChannelBindingMode, SslMode};
use super::wire::{self, Fields};
use crate::error::{Error, Result};

/// A fresh session, idle.
pub(super) struct Session {
    pub link: Link,
    pub pid: i32,
    pub secret: i32,
    pub target: Target,
    /// The configuration of its TLS, for cancel requests.
    pub tls: Option<Arc<ClientConfig>>,
}

/// Why one attempt failed, and what may be tried next.
struct Failure {
    error: Error,
    next: Next,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Another address or host may serve.
    Address,
    /// The same address may serve with, or without, TLS; if not, [`Next::Address`].
    Encryption,
    /// No line of `pg_hba.conf` lets us in: with other encryption perhaps, elsewhere no.
    Login,
    Nothing,
}

/// Connects to the first address that serves.
pub(super) fn connect(target: &Target) -> Result<Session> {
    let kind = target.session;
    // A second round takes any server when no standby was found.
    let rounds: &[SessionKind] = match kind {
        _ if target.pinned => &[SessionKind::Any],
        SessionKind::PreferStandby => &[SessionKind::Standby, SessionKind::Any],
        _ => &[kind],
    };
    let mut errors: Vec<Error> = Vec::new();
    for kind in rounds {
        errors.clear();
        for endpoint in &target.endpoints {
            errors.extend(endpoint.failure.as_ref().map(Error::failed));
            for address in &endpoint.addresses {
                match connect_one(target, endpoint, address, *kind) {
                    Ok(session) => return Ok(session),
                    Err(Failure { error, next }) => {
                        errors.push(error);
                        if matches!(next, Next::Nothing | Next::Login) {
                            return Err(joined(errors));
                        }
                    }
                }
            }
        }
    }
    Err(joined(errors))
}

/// One error out of those of all addresses; the last one's hint.
fn joined(mut errors: Vec<Error>) -> Error {
    let Some(mut last) = errors.pop() else {
        return Error::failed("the host has no address");
    };
    errors.retain(|error| error.fact != last.fact);
    if !errors.is_empty() {
        let facts: Vec<String> = errors.into_iter().map(|error| error.fact).collect();
        last.fact = format!("{}; {}", facts.join("; "), last.fact);
    }
    last
}

fn connect_one(
    target: &Target,
    endpoint: &Endpoint,
    address: &Address,
    kind: SessionKind,
) -> std::result::Result<Session, Failure> {
    let deadline = target
        .settings
        .connect_timeout
        .map(|timeout| Instant::now() + timeout);
    let tls = &target.settings.tls;
    let tries: &[bool] = match tls.mode {
        // PostgreSQL does not encrypt Unix sockets; every mode allows them.
        _ if address.is_unix() => &[false],
        SslMode::Disable => &[false],
        SslMode::Allow => &[false, true],
        SslMode::Prefer => &[true, false],
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[true],
    };
    let attempt = |encrypted: bool| {
        Attempt {
            target,
            endpoint,
            address,
            deadline,
        }
        .run(encrypted, kind)
    };
    match attempt(tries[0]) {
        Err(first) if tries.len() > 1 && matches!(first.next, Next::Encryption | Next::Login) => {
            attempt(tries[1]).map_err(|second| match (first.next, second.next) {
                // Refused both ways: the way that was preferred says it best.
                (Next::Login, Next::Login | Next::Encryption) => first,
                (Next::Encryption, _) => Failure {
                    error: joined(vec![first.error, second.error]),
                    next: second.next,
                },
                _ => second,
            })
        }
        result => result,
    }
}

/// One try at one address, encrypted or not.
struct Attempt<'a> {
    target: &'a Target,
    endpoint: &'a Endpoint,
    address: &'a Address,
    deadline: Option<Instant>,
}

impl Attempt<'_> {
    fn run(&self, encrypted: bool, kind: SessionKind) -> std::result::Result<Session, Failure> {
        let settings = &self.target.settings;
        let unreachable = |error: io::Error| Failure {
            error: explain::unreachable(&error, self.endpoint, self.address),
            next: Next::Address,
        };
        let stop = |error| Failure {
            error,
            next: Next::Nothing,
        };
        let tls = if encrypted {
            let host = self.endpoint.named.then_some(self.endpoint.host.as_str());
            Some(settings.tls.client_config(host).map_err(stop)?)
        } else {
            None
        };
        let socket = open(self.address, self.deadline, settings).map_err(unreachable)?;
        check_peer(&socket, self.address, settings).map_err(stop)?;
        let mut stream = Stream::new(socket, self.deadline);
        let tls = match tls {
            Some(config) => self.encrypt(&mut stream, config)?,
            None => None,
        };
        if settings.tls.channel_binding == ChannelBindingMode::Require && tls.is_none() {
            return Err(stop(
                Error::failed("channel binding is required, but the connection is not encrypted")
                    .hint("set sslmode=require or stronger and connect over TCP"),
            ));
        }
        let mut link = Link::new(stream, explain::place(self.endpoint, self.address));
        let (pid, secret) = self.log_in(&mut link)?;
        self.check_kind(&mut link, kind)?;
        link.stream.deadline = None;
        Ok(Session {
            link,
            pid,
            secret,
            target: self.pinned(),
            tls,
        })
    }

    /// The target with exactly this address.
    fn pinned(&self) -> Target {
        let mut target = self.target.clone();
        target.pinned = true;
        target.endpoints = vec![Endpoint {
            addresses: vec![self.address.clone()],
            failure: None,
            ..self.endpoint.clone()
        }];
        target
    }

    /// Asks for TLS and starts it; none when the server has none and the mode allows that.
    fn encrypt(
        &self,
        stream: &mut Stream,
        config: Arc<ClientConfig>,
    ) -> std::result::Result<Option<Arc<ClientConfig>>, Failure> {
        let settings = &self.target.settings.tls;
        let failed = |error: &io::Error| Failure {
            error: explain::tls_failed(error, self.endpoint, self.address),
            next: Next::Encryption,
        };
        if !settings.direct && !offers_tls(stream).map_err(|error| failed(&error))? {
            if settings.mode == SslMode::Prefer {
                return Ok(None);
            }
            return Err(Failure {
                error: Error::failed(format!(
                    "cannot connect to {}: the server does not offer TLS, and sslmode={} asks for it",
                    explain::place(self.endpoint, self.address),
                    settings.mode.name()
                ))
                .hint("set ssl=on on the server, or sslmode=prefer if the network is trusted"),
                next: Next::Encryption,
            });
        }
        start_tls(stream, &config, &self.endpoint.host, settings.direct)
            .map_err(|error| failed(&error))?;
        Ok(Some(config))
    }

    /// The startup packet, the login, and what the server says about itself.
    fn log_in(&self, link: &mut Link) -> std::result::Result<(i32, i32), Failure> {
        let encrypted = link.stream.tls().is_some();
        self.start_up(link).map_err(|error| {
            let next = match error.sqlstate.as_deref() {
                Some("57P03") => Next::Address,
                // Not for 28P01, where libpq tries again: a wrong password is as wrong
                // without TLS, and would be sent in the clear.
                Some("28000") => Next::Login,
                None if link.is_broken() => Next::Address,
                _ => Next::Nothing,
            };
            let error = if error.sqlstate.is_some() {
                explain::refused(error, self.target, self.endpoint, self.address, encrypted)
            } else if link.is_broken() {
                let hint = "the server ended the connection during the login; a TLS alert here means that it refuses our certificate";
                let hint = error.hint.clone().filter(|_| !encrypted).unwrap_or(hint.to_owned());
                error.hint(hint)
            } else {
                error
            };
            Failure { error, next }
        })
    }

    fn start_up(&self, link: &mut Link) -> Result<(i32, i32)> {
        let info = &self.target.settings.info;
        let name = info
            .get("application_name")
            .or(info.get("fallback_application_name"));
        let mut parameters = vec![
            ("user", self.target.user()),
            ("database", self.target.database()),
            ("application_name", name.unwrap_or("pgark")),
        ];
        let options = info.get("options").unwrap_or_default();
        // A session for replication knows no `SET`: no timeout of the role shall end it.
        let with_timeouts = format!("{options} -c statement_timeout=0 -c idle_session_timeout=0");
        if self.target.replication {
            parameters.push(("replication", "true"));
            parameters.push(("options", with_timeouts.trim_start()));
        } else {
            for key in ["options", "replication"] {
                parameters.extend(info.get(key).map(|value| (key, value)));
            }
        }
        // "auto" is libpq's word for the locale's encoding; we have none.
        let encoding = info
            .get("client_encoding")
            .filter(|encoding| *encoding != "auto");
        parameters.extend(encoding.map(|encoding| ("client_encoding", encoding)));
        let mut packet = Vec::new();
        wire::put_startup(&mut packet, &parameters)?;
        link.send(&packet)?;
        let login = Login {
            target: self.target,
            endpoint: self.endpoint,
            address: self.address,
        };
        login.run(link)?;
        let (mut pid, mut secret) = (0, 0);
        loop {
            let span = link.receive()?;
            match span.tag {
                b'K' => {
                    let mut fields = Fields(link.inbox.body(span));
                    pid = fields.i32()?;
                    secret = fields.i32()?;
                }
                b'Z' => return Ok((pid, secret)),
                b'E' => return Err(link.server_error(span)),
                _ => {}
            }
        }
    }

    /// Whether this server is of the kind that `target_session_attrs` asks for.
    fn check_kind(&self, link: &mut Link, kind: SessionKind) -> std::result::Result<(), Failure> {
        // Both are reported by PostgreSQL 14 and later, the oldest that pgark supports.
        let is_on = |name: &str| link.parameters.get(name).is_some_and(|value| value == "on");
        let standby = is_on("in_hot_standby");
        let read_only = standby || is_on("default_transaction_read_only");
        let (fits, wanted) = match kind {
            SessionKind::Any | SessionKind::PreferStandby => (true, ""),
            SessionKind::ReadWrite => (!read_only, "read-write"),
            SessionKind::ReadOnly => (read_only, "read-only"),
            SessionKind::Primary => (!standby, "primary"),
            SessionKind::Standby => (standby, "standby"),
        };
        if fits {
            return Ok(());
        }
        // Best effort: the server would notice anyway.
        let _ = link.send(&[b'X', 0, 0, 0, 4]);
        let place = explain::place(self.endpoint, self.address);
        Err(Failure {
            error: Error::failed(format!("{place} is not {wanted} (target_session_attrs)"))
                .hint("list every server of the cluster in host, or ask for any"),
            next: Next::Address,
        })
    }
}
