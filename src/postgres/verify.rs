//! Is this the server's certificate that we want? libpq's rules on top of rustls' webpki.
//!
//! Invariant: without a root certificate nothing is verified, and only modes up to `require`
//! come here without one; with one, the chain is always verified, and the name in
//! `verify-full`.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};

use super::tls::TlsSettings;
use super::x509::Certificate;

/// Checks the server's certificate: the chain by webpki, the names by libpq's rules, and two
/// cases that webpki refuses but PostgreSQL's manual teaches (see [`Verifier::by_hand`]).
#[derive(Debug)]
pub(super) struct Verifier {
    /// None: nothing is verified (no root certificate, mode at most `require`).
    pub chain: Option<Arc<WebPkiServerVerifier>>,
    pub roots: Vec<CertificateDer<'static>>,
    /// The name to check, in `verify-full` only.
    pub host: Option<String>,
    pub revocation: bool,
    pub algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    /// A certificate that is itself in the root file (self-signed, with CA:TRUE as `openssl
    /// req -x509` makes it), or one of version 1 signed directly by a root (`openssl x509
    /// -req` without extensions): it has nothing to constrain it, so dates, issuer and
    /// signature are all there is to check. Never with a CRL, which only webpki applies.
    fn by_hand(&self, leaf: &Certificate, now: i64) -> bool {
        if self.revocation || !leaf.is_valid_at(now) {
            return false;
        }
        if self.roots.iter().any(|root| root.as_ref() == leaf.der) {
            return true;
        }
        leaf.version == 1
            && self
                .roots
                .iter()
                .filter_map(|root| Certificate::parse(root))
                .any(|root| {
                    root.subject == leaf.issuer
                        && root.is_valid_at(now)
                        && root.may_issue()
                        && self.is_signed_by(leaf, &root)
                })
    }

    fn is_signed_by(&self, leaf: &Certificate, root: &Certificate) -> bool {
        self.algorithms.all.iter().any(|algorithm| {
            algorithm.signature_alg_id().as_ref() == leaf.signature_algorithm
                && algorithm.public_key_alg_id().as_ref() == root.key_algorithm
                && algorithm
                    .verify_signature(root.key, leaf.signed, leaf.signature)
                    .is_ok()
        })
    }

    /// The handshake's signature under a version 1 certificate, which webpki does not parse.
    fn verify_plain(
        &self,
        message: &[u8],
        cert: &Certificate,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let schemes = self.algorithms.mapping.iter();
        let mut algorithms = schemes
            .filter(|(scheme, _)| *scheme == signed.scheme)
            .flat_map(|(_, algorithms)| algorithms.iter())
            .filter(|algorithm| algorithm.public_key_alg_id().as_ref() == cert.key_algorithm);
        if algorithms.any(|it| {
            it.verify_signature(cert.key, message, signed.signature())
                .is_ok()
        }) {
            Ok(HandshakeSignatureValid::assertion())
        } else {
            Err(CertificateError::BadSignature.into())
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        let parsed = Certificate::parse(leaf).ok_or(CertificateError::BadEncoding)?;
        match chain.verify_server_cert(leaf, intermediates, name, ocsp, now) {
            // The chain is good, which webpki checks first; names are checked below.
            Ok(_)
            | Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => {}
            Err(error) => {
                let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
                if !self.by_hand(&parsed, seconds) {
                    return Err(error);
                }
            }
        }
        match &self.host {
            Some(host) if !parsed.is_for(host) => Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForNameContext {
                    expected: TlsSettings::server_name(host),
                    presented: parsed.names(),
                },
            )),
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        match Certificate::parse(cert) {
            Some(old) if old.version < 3 => self.verify_plain(message, &old, signed),
            _ => rustls::crypto::verify_tls12_signature(message, cert, signed, &self.algorithms),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        match Certificate::parse(cert) {
            Some(old) if old.version < 3 => {
                let key = rustls::pki_types::SubjectPublicKeyInfoDer::from(old.key_info);
                rustls::crypto::verify_tls13_signature_with_raw_key(
                    message,
                    &key,
                    signed,
                    &self.algorithms,
                )
            }
            _ => rustls::crypto::verify_tls13_signature(message, cert, signed, &self.algorithms),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
