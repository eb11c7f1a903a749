//! The private key of a client certificate, plain or encrypted.
//!
//! Encrypted means PKCS#8 with a password scheme of PKCS#5 v2 (what `openssl pkcs8 -topk8` and
//! `openssl genpkey -aes-256-cbc` write; RFC 5958, RFC 8018). OpenSSL's older form, with
//! `Proc-Type: 4,ENCRYPTED`, derives its key by one round of MD5 and is refused with the command
//! that converts it.
//!
//! Invariant: the decrypted key stays in memory; PostgreSQL's programs get the password in a private
//! file and decrypt the key themselves.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::error::{Error, Result};

const BEGIN: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----";
const END: &str = "-----END ENCRYPTED PRIVATE KEY-----";

/// Reads the key; `password` counts only where it is encrypted, as in libpq.
///
/// # Errors
/// `Usage`: unreadable, of another form, no password or the wrong one.
pub(super) fn read(path: &Path, password: Option<&str>) -> Result<PrivateKeyDer<'static>> {
    let wrong = |what: &str, hint: &str| {
        Error::usage(format!("client key {}: {what}", path.display())).hint(hint)
    };
    let bytes = std::fs::read(path).map_err(|error| {
        wrong(
            &error.to_string(),
            "a client certificate needs its key: set DB_SSLKEY",
        )
    })?;
    let text = String::from_utf8_lossy(&bytes);
    if let Some(body) = text
        .split_once(BEGIN)
        .and_then(|(_, rest)| rest.split_once(END))
    {
        let password = password.ok_or_else(|| {
            wrong(
                "it is encrypted, and no password is set",
                "set DB_SSLPASSWORD_FILE or DB_SSLPASSWORD, or sslpassword in the service file",
            )
        })?;
        let base64: String = body.0.split_whitespace().collect();
        let der = STANDARD.decode(base64);
        let der = der.map_err(|error| wrong(&error.to_string(), "it must be a PEM file"))?;
        return decrypt(&der, password).map_err(|what| wrong(&what, DECRYPT_HINT));
    }
    if text.contains("Proc-Type: 4,ENCRYPTED") {
        return Err(wrong(
            "it is encrypted in OpenSSL's older form",
            "convert it: openssl pkcs8 -topk8 -v2 aes-256-cbc -in OLD -out NEW",
        ));
    }
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| {
        wrong(
            &error.to_string(),
            "it must be a PEM key: PKCS#8 (plain or encrypted), PKCS#1 or SEC1",
        )
    })
}

const DECRYPT_HINT: &str = "is DB_SSLPASSWORD (sslpassword) the password of this key? \
    `openssl pkey -in KEY -noout` asks for it and tells; -v2 aes-256-cbc is a scheme that pgark reads";

fn decrypt(der: &[u8], password: &str) -> std::result::Result<PrivateKeyDer<'static>, String> {
    let sealed = pkcs8::EncryptedPrivateKeyInfo::try_from(der)
        .map_err(|error| format!("its form is not understood ({error})"))?;
    let plain = sealed
        .decrypt(password.as_bytes())
        .map_err(|error| format!("it cannot be decrypted ({error})"))?;
    Ok(PrivatePkcs8KeyDer::from(plain.as_bytes().to_vec()).into())
}
