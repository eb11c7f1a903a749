//! How a file key lies in a stanza, and files whose key is a passphrase (`age -p`). Pure.
//!
//! Only identity files are opened with a passphrase: scrypt costs a second and 256 MiB for each
//! file (pitfall 25), which is its purpose, and too much for every artefact.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use super::header::{FileKey, Header, Stanza, refused};
use super::open_with;
use crate::error::{Error, Result};

/// The type of a stanza that a passphrase opens.
pub(super) const SCRYPT: &str = "scrypt";
const SCRYPT_SALT: &[u8] = b"age-encryption.org/v1/scrypt";
/// age itself writes 18; each more doubles time and memory (22: 4 GiB).
const LOG_N_MAX: u8 = 20;

fn cipher(key: &[u8; 32]) -> Result<(LessSafeKey, Nonce)> {
    let key = UnboundKey::new(&CHACHA20_POLY1305, key).map_err(refused)?;
    // Each wrapping key is used once.
    let nonce = Nonce::assume_unique_for_key([0; NONCE_LEN]);
    Ok((LessSafeKey::new(key), nonce))
}

/// The body of a stanza.
pub(super) fn wrap(key: &[u8; 32], file: &FileKey) -> Result<Vec<u8>> {
    let (key, nonce) = cipher(key)?;
    let mut body = file.0.to_vec();
    key.seal_in_place_append_tag(nonce, Aad::empty(), &mut body)
        .map_err(refused)?;
    Ok(body)
}

/// None when the body was made with another key.
pub(super) fn unwrap(key: &[u8; 32], body: &[u8]) -> Option<FileKey> {
    // The length first: longer ones could be opened by two keys.
    if body.len() != 32 {
        return None;
    }
    let (key, nonce) = cipher(key).ok()?;
    let mut body = body.to_vec();
    let file = key.open_in_place(nonce, Aad::empty(), &mut body).ok()?;
    <[u8; 16]>::try_from(&*file).ok().map(FileKey)
}

/// Whether a passphrase opens this file.
pub(super) fn is_protected(file: &[u8]) -> bool {
    let header = Header::parse(file).ok().flatten();
    header.is_some_and(|header| matches!(&header.stanzas[..], [one] if one.is(SCRYPT)))
}

/// The content of a file that is protected by a passphrase.
///
/// # Errors
/// `Usage` for a wrong passphrase, `Damage` for a file that was changed.
pub(super) fn unprotect(file: &[u8], passphrase: &str) -> Result<Vec<u8>> {
    open_with(file, &|header| {
        let [stanza] = &header.stanzas[..] else {
            return Err(Error::usage("it is not protected by a passphrase"));
        };
        let key = passphrase_key(stanza, passphrase)?;
        let file = unwrap(&key, &stanza.body).ok_or_else(|| {
            Error::usage("the passphrase is wrong")
                .hint("BACKUP_IDENTITY_PASSPHRASE, or the terminal, gives the one that `age -p` asked for")
        })?;
        header.check(&file)?;
        Ok(file)
    })
}

fn passphrase_key(stanza: &Stanza, passphrase: &str) -> Result<[u8; 32]> {
    let malformed = || Error::damage("its header is malformed");
    let [_, salt, log_n] = stanza.words.as_slice() else {
        return Err(malformed());
    };
    let salt = STANDARD_NO_PAD.decode(salt).map_err(|_| malformed())?;
    let log_n: u8 = log_n.parse().map_err(|_| malformed())?;
    if log_n > LOG_N_MAX {
        return Err(Error::usage(format!(
            "its passphrase costs 2^{log_n} steps; pgark goes up to 2^{LOG_N_MAX}"
        ))
        .hint("protect it anew with `age -p`"));
    }
    let params = scrypt::Params::new(log_n, 8, 1, 32).map_err(|_| malformed())?;
    let mut key = [0; 32];
    let salt = [SCRYPT_SALT, &salt].concat();
    scrypt::scrypt(passphrase.as_bytes(), &salt, &params, &mut key).map_err(|_| malformed())?;
    Ok(key)
}
