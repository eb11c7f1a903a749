//! Proves to the server who we are: trust, cleartext, MD5, SCRAM-SHA-256 with and without
//! channel binding. GSS and SSPI are refused with a hint.
//!
//! Invariants: with `channel_binding=require` nothing but SCRAM-SHA-256-PLUS gets a password;
//! with `require_auth` no method outside it does; a SCRAM exchange counts only when the
//! server has proven that it knows the password too.
//!
//! Source: PostgreSQL manual, "Start-up" and "SASL Authentication"; `fe-auth.c`.

use postgres_protocol::authentication::{md5_hash, sasl};

use super::explain;
use super::link::Link;
use super::target::{Address, Endpoint, Target};
use super::tls::ChannelBindingMode;
use super::wire::{Fields, put};
use super::x509::Certificate;
use crate::error::{Error, Result};

/// The methods that `require_auth` allows; none allows all.
#[derive(Debug, Clone, Default)]
pub(super) struct AuthMethods {
    allowed: Option<Vec<String>>,
}

const METHODS: [&str; 6] = ["password", "md5", "gss", "sspi", "scram-sha-256", "none"];

impl AuthMethods {
    /// Parses `scram-sha-256,md5` or `!password,!md5`.
    pub(super) fn parse(text: Option<&str>) -> Result<AuthMethods> {
        let Some(text) = text else {
            return Ok(AuthMethods::default());
        };
        let words: Vec<&str> = text.split(',').map(str::trim).collect();
        let denied = words.iter().filter(|word| word.starts_with('!')).count();
        let names: Vec<&str> = words
            .iter()
            .map(|word| word.trim_start_matches('!'))
            .collect();
        let known = names.iter().all(|name| METHODS.contains(name));
        if !known || (denied != 0 && denied != words.len()) {
            return Err(
                Error::usage(format!("require_auth cannot be {text:?}")).hint(format!(
                    "a list of {}; all with ! before, or none",
                    METHODS.join(", ")
                )),
            );
        }
        let listed = |name: &&str| names.contains(name) == (denied == 0);
        let allowed = METHODS
            .into_iter()
            .filter(listed)
            .map(str::to_owned)
            .collect();
        Ok(AuthMethods {
            allowed: Some(allowed),
        })
    }

    fn check(&self, method: &str) -> Result<()> {
        match &self.allowed {
            Some(allowed) if !allowed.iter().any(|name| name == method) => {
                Err(Error::failed(format!(
                    "the server asks for the authentication method {method:?}, which require_auth excludes"
                ))
                .hint(format!("require_auth allows: {}", allowed.join(", "))))
            }
            _ => Ok(()),
        }
    }
}

/// What an exchange needs to know.
pub(super) struct Login<'a> {
    pub target: &'a Target,
    pub endpoint: &'a Endpoint,
    pub address: &'a Address,
}

/// How far the exchange came.
#[derive(Default)]
struct Progress {
    /// The server asked for something.
    challenged: bool,
    scram: Option<sasl::ScramSha256>,
    /// The server proved itself, bound to this TLS session.
    bound: bool,
    verified: bool,
}

impl Login<'_> {
    /// Answers the server until it is content.
    ///
    /// # Errors
    /// The server's refusal, with its SQLSTATE, or ours.
    pub(super) fn run(&self, link: &mut Link) -> Result<()> {
        let mut progress = Progress::default();
        loop {
            let span = link.receive()?;
            match span.tag {
                b'R' => {
                    let body = link.inbox.body(span).to_vec();
                    if self.answer(link, &body, &mut progress)? {
                        return Ok(());
                    }
                }
                b'E' => return Err(link.server_error(span)),
                // The server speaks an older minor protocol: 3.0 is all we asked for.
                b'v' => {}
                tag => {
                    return Err(Error::failed(format!(
                        "the server sent {:?} instead of asking who we are",
                        char::from(tag)
                    )));
                }
            }
        }
    }

    /// Answers one request; true when the server let us in.
    fn answer(&self, link: &mut Link, body: &[u8], progress: &mut Progress) -> Result<bool> {
        let mut fields = Fields(body);
        let request = fields.i32()?;
        let methods = &self.target.settings.methods;
        if request != 0 {
            progress.challenged = true;
        }
        match request {
            0 => {
                self.accept(progress)?;
                return Ok(true);
            }
            3 => {
                methods.check("password")?;
                let password = self.password_without_binding()?;
                send(link, &[password.as_bytes(), &[0]])?;
            }
            5 => {
                methods.check("md5")?;
                let salt = fields.bytes(4)?;
                let salt = [salt[0], salt[1], salt[2], salt[3]];
                let password = self.password_without_binding()?;
                let hash = md5_hash(self.target.user().as_bytes(), password.as_bytes(), salt);
                send(link, &[hash.as_bytes(), &[0]])?;
            }
            10 => {
                methods.check("scram-sha-256")?;
                self.start_scram(link, fields, progress)?;
            }
            11 | 12 => {
                let scram = progress
                    .scram
                    .as_mut()
                    .ok_or_else(|| scram_failed("out of order"))?;
                if request == 11 {
                    scram.update(fields.0).map_err(scram_failed)?;
                    let answer = scram.message().to_vec();
                    send(link, &[&answer])?;
                } else {
                    scram.finish(fields.0).map_err(scram_failed)?;
                    progress.verified = true;
                }
            }
            2 | 7..=9 => {
                return Err(Error::failed(
                    "the server asks for Kerberos (GSS or SSPI), which pgark does not speak",
                )
                .hint("give pgark's role a line with scram-sha-256 or cert in pg_hba.conf"));
            }
            other => {
                return Err(Error::failed(format!(
                    "the server asks for authentication method {other}, which pgark does not know"
                ))
                .hint("use scram-sha-256 or cert in pg_hba.conf"));
            }
        }
        Ok(false)
    }

    /// The server says yes: was that enough for us?
    fn accept(&self, progress: &Progress) -> Result<()> {
        if progress.scram.is_some() && !progress.verified {
            return Err(scram_failed(
                "the server did not prove that it knows the password",
            ));
        }
        if !progress.challenged {
            self.target.settings.methods.check("none")?;
        }
        let binding = self.target.settings.tls.channel_binding;
        if binding == ChannelBindingMode::Require && !progress.bound {
            return Err(binding_missing("the server let us in without it"));
        }
        Ok(())
    }

    fn password(&self) -> Result<&str> {
        let password = self.target.password(self.endpoint);
        password
            .map(|(password, _)| password)
            .ok_or_else(|| explain::no_password(self.target, self.endpoint, self.address))
    }

    /// The password for a method that cannot bind to the TLS session.
    fn password_without_binding(&self) -> Result<&str> {
        if self.target.settings.tls.channel_binding == ChannelBindingMode::Require {
            return Err(binding_missing(
                "the server asks for a method that cannot do it",
            ));
        }
        self.password()
    }

    fn start_scram(
        &self,
        link: &mut Link,
        mut fields: Fields,
        progress: &mut Progress,
    ) -> Result<()> {
        let (mut plain, mut plus) = (false, false);
        loop {
            match fields.text()? {
                b"" => break,
                b"SCRAM-SHA-256" => plain = true,
                b"SCRAM-SHA-256-PLUS" => plus = true,
                _ => {}
            }
        }
        let mode = self.target.settings.tls.channel_binding;
        let end_point = if mode == ChannelBindingMode::Disable {
            None
        } else {
            end_point(link)
        };
        let encrypted = link.stream.tls().is_some();
        let (name, binding) = match end_point {
            Some(data) if plus => {
                progress.bound = true;
                (
                    sasl::SCRAM_SHA_256_PLUS,
                    sasl::ChannelBinding::tls_server_end_point(data),
                )
            }
            _ if mode == ChannelBindingMode::Require => {
                let why = if encrypted {
                    "the server does not offer it"
                } else {
                    "the connection is not encrypted"
                };
                return Err(binding_missing(why));
            }
            // Saying that we could have bound detects someone who took -PLUS off the list.
            Some(_) if plain => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested()),
            _ if plain => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported()),
            _ => return Err(scram_failed("no mechanism in common")),
        };
        let scram = sasl::ScramSha256::new(self.password()?.as_bytes(), binding);
        let first = scram.message();
        let length = i32::try_from(first.len()).unwrap_or(0).to_be_bytes();
        send(link, &[name.as_bytes(), &[0], &length, first])?;
        progress.scram = Some(scram);
        Ok(())
    }
}

/// The channel binding data of this TLS session.
fn end_point(link: &Link) -> Option<Vec<u8>> {
    let certificates = link.stream.tls()?.peer_certificates()?;
    Certificate::parse(certificates.first()?)?.end_point()
}

fn send(link: &mut Link, parts: &[&[u8]]) -> Result<()> {
    let mut packet = Vec::new();
    put(&mut packet, b'p', parts)?;
    link.send(&packet)
}

fn scram_failed(why: impl std::fmt::Display) -> Error {
    Error::failed(format!("the SCRAM exchange failed: {why}")).hint(
        "the server may not be the one it claims to be; check DB_HOST, TLS and what is in between",
    )
}

fn binding_missing(why: &str) -> Error {
    Error::failed(format!("channel binding is required, but {why}"))
        .hint("it needs TLS and a scram-sha-256 line in pg_hba.conf; channel_binding=prefer asks for less")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn require_auth_reads_lists_and_denials() {
        let allows = |text: &str, method: &str| {
            AuthMethods::parse(Some(text))
                .unwrap()
                .check(method)
                .is_ok()
        };
        assert!(allows("scram-sha-256, md5", "md5"));
        assert!(!allows("scram-sha-256", "password"));
        assert!(allows("!password", "none") && !allows("!password", "password"));
        assert!(AuthMethods::parse(Some("!md5,none")).is_err());
        assert!(AuthMethods::parse(Some("magic")).is_err());
    }
}
