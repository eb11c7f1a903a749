//! TLS as libpq does it: which mode tries what, which files count, what is checked.
//!
//! Invariants: a root certificate file that exists is always used, in every mode (so
//! `require` with a root file is `verify-ca`); `verify-*` without one is an error, never a
//! silent downgrade. Two deviations, both to the safe side: a root or client certificate
//! that was *named* and does not exist is an error, where libpq would go on without it.
//!
//! Certificates are read at every connect, so that renewed ones need no restart.
//! Source: PostgreSQL manual, "SSL Support"; `fe-secure-openssl.c`.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore};

use super::conninfo::ConnInfo;
use super::key;
use super::verify::Verifier;
use super::x509::Certificate;
use crate::error::{Error, Result};

/// The protocol name that PostgreSQL 17 and later expect in ALPN.
pub(super) const ALPN: &[u8] = b"postgresql";

/// libpq's `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl SslMode {
    /// libpq's word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            SslMode::Disable => "disable",
            SslMode::Allow => "allow",
            SslMode::Prefer => "prefer",
            SslMode::Require => "require",
            SslMode::VerifyCa => "verify-ca",
            SslMode::VerifyFull => "verify-full",
        }
    }

    fn parse(text: &str) -> SslMode {
        let all = [
            SslMode::Disable,
            SslMode::Allow,
            SslMode::Require,
            SslMode::VerifyCa,
            SslMode::VerifyFull,
        ];
        let found = all.into_iter().find(|mode| mode.name() == text);
        found.unwrap_or(SslMode::Prefer)
    }
}

/// Whom to trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Root {
    /// The operating system's authorities (`sslrootcert=system`).
    System,
    File(PathBuf),
}

/// A client certificate and its key.
#[derive(Clone)]
pub(super) struct ClientCertificate {
    pub cert: PathBuf,
    pub key: PathBuf,
    password: Option<String>,
}

/// `channel_binding`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChannelBindingMode {
    Disable,
    Prefer,
    Require,
}

/// What the parameters and the files in `~/.postgresql` say about TLS.
#[derive(Debug, Clone)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "as many switches as libpq has"
)]
pub(super) struct TlsSettings {
    pub mode: SslMode,
    /// TLS from the first byte on, without asking (PostgreSQL 17+).
    pub direct: bool,
    pub root: Option<Root>,
    pub crl: Option<PathBuf>,
    pub client: Option<ClientCertificate>,
    pub channel_binding: ChannelBindingMode,
    /// Whether to tell the server which host is meant.
    server_name: bool,
    allow_12: bool,
    allow_13: bool,
}

impl TlsSettings {
    /// Decides the files; does not read them.
    pub(super) fn new(info: &ConnInfo, home: Option<&Path>) -> Result<TlsSettings> {
        let folder = home.map(|home| home.join(".postgresql"));
        let own = |name: &str| {
            let path = folder.as_ref().map(|folder| folder.join(name));
            path.filter(|path| path.exists())
        };
        let named = |key: &str| info.get(key).map(PathBuf::from);
        let root = match info.get("sslrootcert") {
            Some("system") => Some(Root::System),
            Some(path) => Some(Root::File(path.into())),
            None => own("root.crt").map(Root::File),
        };
        let mode = match (info.get("sslmode"), &root) {
            (None, Some(Root::System)) => SslMode::VerifyFull,
            (mode, root) => {
                let mode = mode.map_or(SslMode::Prefer, SslMode::parse);
                if *root == Some(Root::System) && mode != SslMode::VerifyFull {
                    return Err(Error::usage(format!(
                        "sslmode {} is too weak for sslrootcert=system",
                        mode.name()
                    ))
                    .hint(
                        "anyone can get a certificate from a public authority: use verify-full",
                    ));
                }
                mode
            }
        };
        let direct = info.get("sslnegotiation") == Some("direct");
        if direct && mode < SslMode::Require {
            return Err(Error::usage(
                "sslnegotiation=direct needs sslmode=require or stronger",
            ));
        }
        if info.get("sslcrldir").is_some() {
            return Err(
                Error::usage("a folder of CRLs (sslcrldir) is not supported")
                    .hint("use sslcrl with one file"),
            );
        }
        let minimum = info.get("ssl_min_protocol_version").unwrap_or("TLSv1.2");
        let maximum = info.get("ssl_max_protocol_version").unwrap_or("TLSv1.3");
        Ok(TlsSettings {
            mode,
            direct,
            root,
            crl: named("sslcrl").or_else(|| own("root.crl")),
            client: client_certificate(
                info,
                named("sslcert").or_else(|| own("postgresql.crt")),
                named("sslkey").or_else(|| own("postgresql.key")),
            ),
            channel_binding: match info.get("channel_binding") {
                Some("disable") => ChannelBindingMode::Disable,
                Some("require") => ChannelBindingMode::Require,
                _ => ChannelBindingMode::Prefer,
            },
            server_name: info.get("sslsni") != Some("0"),
            allow_12: minimum < "TLSv1.3" && maximum >= "TLSv1.2",
            allow_13: maximum >= "TLSv1.3",
        })
    }

    /// Reads the files and builds rustls' configuration for one host.
    pub(super) fn client_config(&self, host: Option<&str>) -> Result<Arc<ClientConfig>> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut versions = Vec::new();
        if self.allow_13 {
            versions.push(&rustls::version::TLS13);
        }
        if self.allow_12 {
            versions.push(&rustls::version::TLS12);
        }
        let wrong = |error: rustls::Error| Error::usage(format!("TLS cannot be set up: {error}"));
        let verifier = self.verifier(&provider, host)?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .map_err(wrong)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &self.client {
            Some(client) => {
                let certified = client.certified(builder.crypto_provider())?;
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.enable_sni = self.server_name;
        Ok(Arc::new(config))
    }

    fn verifier(&self, provider: &Arc<CryptoProvider>, host: Option<&str>) -> Result<Verifier> {
        let algorithms = provider.signature_verification_algorithms;
        let mut verifier = Verifier {
            chain: None,
            roots: Vec::new(),
            host: None,
            revocation: self.crl.is_some(),
            algorithms,
        };
        let Some(root) = &self.root else {
            if self.mode >= SslMode::VerifyCa {
                return Err(Error::usage(format!(
                    "sslmode={} needs a root certificate, and ~/.postgresql/root.crt does not exist",
                    self.mode.name()
                ))
                .hint("set DB_SSLROOTCERT to the authority's certificate, or to system for a public one"));
            }
            return Ok(verifier);
        };
        if self.mode == SslMode::VerifyFull {
            verifier.host = Some(host.map(str::to_owned).ok_or_else(|| {
                Error::usage(
                    "sslmode=verify-full needs a host name to check the certificate against",
                )
                .hint("set host (DB_HOST) beside hostaddr")
            })?);
        }
        verifier.roots = root.read()?;
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(verifier.roots.iter().cloned());
        let mut builder =
            WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone());
        if let Some(path) = &self.crl {
            let lists: Vec<CertificateRevocationListDer> = read_pem(path, "sslcrl")?;
            builder = builder.with_crls(lists);
        }
        let chain = builder.build().map_err(|error| {
            Error::usage(format!("the trusted certificates cannot be used: {error}"))
        })?;
        verifier.chain = Some(chain);
        Ok(verifier)
    }

    /// The name for rustls; a stand-in when the host has none that TLS can carry (the names
    /// are checked by [`Verifier`], not by rustls).
    pub(super) fn server_name(host: &str) -> ServerName<'static> {
        ServerName::try_from(host.to_owned()).unwrap_or(ServerName::IpAddress(
            std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED).into(),
        ))
    }
}

/// The certificate to offer, unless `sslcertmode=disable`.
fn client_certificate(
    info: &ConnInfo,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
) -> Option<ClientCertificate> {
    if info.get("sslcertmode") == Some("disable") {
        return None;
    }
    let cert = cert?;
    // A certificate whose key is missing is reported with the key's usual place.
    let key = key.unwrap_or_else(|| cert.with_file_name("postgresql.key"));
    let password = info.get("sslpassword").map(str::to_owned);
    Some(ClientCertificate {
        cert,
        key,
        password,
    })
}

impl std::fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "ClientCertificate({}, {})",
            self.cert.display(),
            self.key.display()
        )
    }
}

impl ClientCertificate {
    /// The certificate with its key, checked to belong together. Not by rustls, which does
    /// not read version 1 certificates.
    fn certified(&self, provider: &CryptoProvider) -> Result<CertifiedKey> {
        let (chain, key) = self.read()?;
        let key = provider
            .key_provider
            .load_private_key(key)
            .map_err(|error| {
                Error::usage(format!("client key {}: {error}", self.key.display()))
                    .hint("use RSA (2048 bits or more), ECDSA (P-256, P-384) or Ed25519")
            })?;
        let wrong = |what: &str| {
            let cert = self.cert.display();
            Err(Error::usage(format!("client certificate {cert} {what}"))
                .hint("the certificate (DB_SSLCERT) comes first in its file, then its chain"))
        };
        let Some(certificate) = chain.first().and_then(|der| Certificate::parse(der)) else {
            return wrong("is malformed");
        };
        if key
            .public_key()
            .is_some_and(|public| public.as_ref() != certificate.key_info)
        {
            return wrong(&format!(
                "does not belong to the key {}",
                self.key.display()
            ));
        }
        Ok(CertifiedKey::new(chain, key))
    }

    fn read(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let chain = read_pem(&self.cert, "sslcert")?;
        let status = std::fs::metadata(&self.key).map_err(|error| {
            Error::usage(format!("client key {}: {error}", self.key.display()))
                .hint("a client certificate needs its key: set DB_SSLKEY")
        })?;
        // libpq's rule: a key of root may be readable by its group, any other by nobody else.
        let forbidden = if status.uid() == 0 { 0o037 } else { 0o077 };
        let mode = status.permissions().mode() & 0o777;
        if mode & forbidden != 0 {
            return Err(Error::usage(format!(
                "client key {} is open to others (mode {mode:04o})",
                self.key.display()
            ))
            .hint("chmod 0600; 0640 is allowed when root owns it"));
        }
        let key = key::read(&self.key, self.password.as_deref())?;
        Ok((chain, key))
    }
}

impl Root {
    fn read(&self) -> Result<Vec<CertificateDer<'static>>> {
        match self {
            Root::File(path) => read_pem(path, "sslrootcert"),
            Root::System => {
                let found = rustls_native_certs::load_native_certs();
                if found.certs.is_empty() {
                    return Err(Error::usage("this system has no trusted authorities")
                        .hint("install ca-certificates, or set DB_SSLROOTCERT to a file"));
                }
                Ok(found.certs)
            }
        }
    }
}

fn read_pem<T: PemObject>(path: &Path, key: &str) -> Result<Vec<T>> {
    let wrong = |what: String| {
        Error::usage(format!("{key} {}: {what}", path.display()))
            .hint("it must be a readable PEM file")
    };
    let bytes = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let items: std::result::Result<Vec<T>, _> = T::pem_slice_iter(&bytes).collect();
    let items = items.map_err(|error| wrong(error.to_string()))?;
    if items.is_empty() {
        return Err(wrong("it holds no certificate".to_owned()));
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Result<TlsSettings> {
        TlsSettings::new(
            &ConnInfo::parse(text).unwrap(),
            Some(Path::new("/nonexistent")),
        )
    }

    #[test]
    fn the_mode_follows_the_root_as_in_libpq() {
        assert_eq!(settings("host=h").unwrap().mode, SslMode::Prefer);
        assert_eq!(
            settings("sslrootcert=system").unwrap().mode,
            SslMode::VerifyFull
        );
        assert!(settings("sslrootcert=system sslmode=require").is_err());
        assert!(settings("sslnegotiation=direct").is_err());
    }

    #[test]
    fn verify_without_a_root_is_an_error() {
        let strict = settings("sslmode=verify-ca").unwrap();
        assert!(
            strict
                .client_config(Some("h"))
                .unwrap_err()
                .fact
                .contains("root certificate")
        );
        let missing = settings("sslmode=require sslrootcert=/none.crt").unwrap();
        assert!(
            missing
                .client_config(Some("h"))
                .unwrap_err()
                .fact
                .contains("/none.crt")
        );
        assert!(
            settings("sslmode=require")
                .unwrap()
                .client_config(None)
                .is_ok()
        );
    }
}
