//! Keys of age: recipients (public) and identities (secret), as text and at work. Pure.
//!
//! Invariants: a secret is in no error and in no `Debug`; what looks like a key and is none is
//! named by its place in the list. Identities may be protected by a passphrase, as `age -p`
//! does; artefacts never are.

use std::fmt;

use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use aws_lc_rs::encoding::{AsBigEndian, Curve25519SeedBin};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use bech32::primitives::decode::CheckedHrpstring;
use bech32::{Bech32, Hrp};

use super::header::{FileKey, Header, Stanza, derive, refused};
use super::wrap;
use crate::error::{Error, Result};

const RECIPIENT: &str = "age";
const IDENTITY: &str = "age-secret-key-";
const X25519_NAME: &str = "X25519";
const X25519_INFO: &[u8] = b"age-encryption.org/v1/X25519";
const ARMOR_BEGIN: &str = "-----BEGIN AGE ENCRYPTED FILE-----";
const ARMOR_END: &str = "-----END AGE ENCRYPTED FILE-----";

/// Whom a file is encrypted for: an X25519 public key, `age1…`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Recipient([u8; 32]);

impl Recipient {
    /// # Errors
    /// What it is instead.
    fn parse(text: &str) -> std::result::Result<Recipient, Error> {
        let lower = text.to_ascii_lowercase();
        let refuse = |what: &str, hint: &str| Err(Error::usage(what).hint(hint));
        if lower.starts_with(IDENTITY) || lower.starts_with("age-plugin-") {
            return refuse(
                "is a secret key (not shown)",
                "give its public half, which begins with age1 (`age-keygen -y FILE` prints it), and keep the secret key away from this machine",
            );
        }
        if lower.starts_with("ssh-") || lower.starts_with("ecdsa-") {
            return refuse(
                "is an SSH key",
                "pgark encrypts for age's own keys; `pgark keygen` makes one",
            );
        }
        if !lower.starts_with("age1") {
            return refuse(
                "does not begin with age1",
                "recipients are public keys of age, age1…, with commas or line breaks between; `pgark keygen` makes one",
            );
        }
        match decode(RECIPIENT, text) {
            Some(key) => Ok(Recipient(key)),
            None if lower.matches('1').count() > 1 => refuse(
                "needs a plugin of age, or is post-quantum, or was mistyped",
                "give a key as `pgark keygen` or `age-keygen` make it: age1 and 58 characters",
            ),
            None => refuse(
                "is incomplete or mistyped: its checksum does not hold",
                "copy it again: age1 and 58 characters",
            ),
        }
    }

    /// The file key for this recipient.
    fn wrap(&self, file: &FileKey) -> Result<Stanza> {
        let ephemeral = PrivateKey::generate(&X25519).map_err(refused)?;
        let share = ephemeral.compute_public_key().map_err(refused)?;
        let weak = Error::usage(format!("{self} is no key that can be encrypted for"));
        let key = agree(
            &ephemeral,
            UnparsedPublicKey::new(&X25519, &self.0),
            weak,
            |secret| derive(secret, &[share.as_ref(), &self.0].concat(), X25519_INFO),
        )?;
        Ok(Stanza {
            words: vec![X25519_NAME.to_owned(), STANDARD_NO_PAD.encode(&share)],
            body: wrap::wrap(&key, file)?,
        })
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode(RECIPIENT, &self.0).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whom artefacts are encrypted for: one or more, each of whom opens them alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipients(Vec<Recipient>);

impl Recipients {
    /// Parses a list: commas, blanks or line breaks between, lines that begin with `#` left out.
    ///
    /// # Errors
    /// `Usage` naming the first that is none by its place.
    pub fn parse(text: &str) -> Result<Recipients> {
        let lines = text.lines().filter(|line| !line.trim().starts_with('#'));
        let items = lines
            .flat_map(|line| line.split(|c: char| c == ',' || c.is_whitespace()))
            .filter(|item| !item.is_empty());
        let mut found: Vec<Recipient> = Vec::new();
        for (number, item) in (1..).zip(items) {
            let recipient = Recipient::parse(item).map_err(|mut error| {
                error.fact = format!("recipient {number} {}", error.fact);
                error
            })?;
            if !found.contains(&recipient) {
                found.push(recipient);
            }
        }
        if found.is_empty() {
            return Err(Error::usage("it names no recipient")
                .hint("`pgark keygen` makes a key; unset it to write plain backups"));
        }
        Ok(Recipients(found))
    }

    /// As text, `age1…`.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }

    pub(super) fn wrap(&self, file: &FileKey) -> Result<Vec<Stanza>> {
        self.0.iter().map(|one| one.wrap(file)).collect()
    }
}

/// A secret key.
struct Identity {
    key: PrivateKey,
    recipient: Recipient,
}

impl Identity {
    fn new(key: PrivateKey) -> Result<Identity> {
        let public = key.compute_public_key().map_err(refused)?;
        let public = <[u8; 32]>::try_from(public.as_ref())
            .map_err(|_| Error::failed("a key has another length than X25519 gives it"))?;
        Ok(Identity {
            key,
            recipient: Recipient(public),
        })
    }

    fn parse(text: &str) -> Option<Identity> {
        let seed = decode(IDENTITY, text)?;
        let key = PrivateKey::from_private_key(&X25519, &seed).ok()?;
        Identity::new(key).ok()
    }

    /// None when the stanza was made for another key.
    fn unwrap(&self, stanza: &Stanza) -> Option<FileKey> {
        let [name, share] = stanza.words.as_slice() else {
            return None;
        };
        let share = STANDARD_NO_PAD.decode(share).ok()?;
        if name != X25519_NAME || share.len() != 32 {
            return None;
        }
        let salt = [share.as_slice(), &self.recipient.0].concat();
        let key = agree(
            &self.key,
            UnparsedPublicKey::new(&X25519, &share),
            (),
            |secret| derive(secret, &salt, X25519_INFO).map_err(|_| ()),
        );
        wrap::unwrap(&key.ok()?, &stanza.body)
    }
}

/// The secret keys at hand.
pub struct Identities(Vec<Identity>);

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.recipients()).finish()
    }
}

impl Identities {
    /// The public half of each.
    #[must_use]
    pub fn recipients(&self) -> Vec<String> {
        self.0.iter().map(|one| one.recipient.to_string()).collect()
    }

    /// The file key of what this header heads.
    pub(super) fn unwrap(&self, header: &Header) -> Result<FileKey> {
        if header.stanzas.iter().any(|stanza| stanza.is(wrap::SCRYPT)) {
            return Err(
                Error::usage("it is encrypted with a passphrase, not for a key")
                    .hint("`age -d` asks for the passphrase and decrypts it"),
            );
        }
        let pairs = |identity| header.stanzas.iter().map(move |stanza| (identity, stanza));
        let found = self.0.iter().flat_map(pairs);
        let mut found = found.filter_map(|(identity, stanza)| identity.unwrap(stanza));
        let file = found.next().ok_or_else(|| {
            Error::usage(format!(
                "it is not encrypted for {}, whose key was given",
                self.recipients().join(" or ")
            ))
            .hint("give the identity of a recipient that was set when the backup was taken; `pgark verify` without an identity tells whether the file is whole")
        })?;
        header.check(&file)?;
        Ok(file)
    }
}

/// Text or file with secret keys, as it was given.
pub enum IdentityFile {
    /// Ready.
    Open(Identities),
    /// Encrypted with a passphrase.
    Protected(Vec<u8>),
}

impl IdentityFile {
    /// Parses `AGE-SECRET-KEY-1…` lines (`#` begins a comment), or a file of `age -p`.
    ///
    /// # Errors
    /// `Usage` naming the line, never its text.
    pub fn parse(text: &str) -> Result<IdentityFile> {
        if text.trim_start().starts_with(ARMOR_BEGIN) {
            let sealed = unarmor(text)
                .ok_or_else(|| Error::usage("it is cut off or changed").hint("copy it again"))?;
            if !wrap::is_protected(&sealed) {
                return Err(
                    Error::usage("it is encrypted for a key, not with a passphrase")
                        .hint("protect it with `age -p`, or give the plain identity"),
                );
            }
            return Ok(IdentityFile::Protected(sealed));
        }
        let mut found = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let refuse = |what: &str, hint: &str| {
                Err(Error::usage(format!("line {number} {what}")).hint(hint))
            };
            let lower = line.to_ascii_lowercase();
            if lower.starts_with("age1") {
                return refuse(
                    "is a recipient, not an identity",
                    "an identity begins with AGE-SECRET-KEY-1; the recipient is its public half",
                );
            }
            if lower.starts_with("age-plugin-") || lower.contains("private key-----") {
                return refuse(
                    "is a key of a plugin or of SSH",
                    "pgark opens backups with age's own keys; decrypt by hand with `age -d -i FILE`",
                );
            }
            match Identity::parse(line) {
                Some(identity) => found.push(identity),
                None => {
                    return refuse(
                        "is no identity (its text is not shown)",
                        "one line of it reads AGE-SECRET-KEY-1 and 58 characters; copy it again",
                    );
                }
            }
        }
        if found.is_empty() {
            return Err(Error::usage("it holds no identity")
                .hint("an identity is a line that begins with AGE-SECRET-KEY-1"));
        }
        Ok(IdentityFile::Open(Identities(found)))
    }

    /// Opens a protected file. Costs a second and 256 MiB.
    ///
    /// # Errors
    /// `Usage` for a wrong passphrase, and as [`Self::parse`].
    pub fn unlock(self, passphrase: &str) -> Result<Identities> {
        let inner = match self {
            IdentityFile::Open(identities) => return Ok(identities),
            IdentityFile::Protected(sealed) => wrap::unprotect(&sealed, passphrase)?,
        };
        let text = String::from_utf8(inner).map_err(|_| Error::usage("it holds no identity"))?;
        match IdentityFile::parse(&text)? {
            IdentityFile::Open(identities) => Ok(identities),
            IdentityFile::Protected(_) => Err(Error::usage("it is protected twice")
                .hint("decrypt it once with `age -d`, and give what comes out")),
        }
    }
}

/// A new pair: the recipient, and the secret identity.
///
/// # Errors
/// `Failed` when the system gives no random bytes.
pub fn generate() -> Result<(String, String)> {
    let key = PrivateKey::generate(&X25519).map_err(refused)?;
    let seed: Curve25519SeedBin<'static> = key.as_be_bytes().map_err(refused)?;
    let secret = encode(IDENTITY, seed.as_ref())?.to_uppercase();
    Ok((Identity::new(key)?.recipient.to_string(), secret))
}

fn encode(prefix: &str, key: &[u8]) -> Result<String> {
    let text = Hrp::parse(prefix)
        .ok()
        .map(|hrp| bech32::encode::<Bech32>(hrp, key));
    text.and_then(std::result::Result::ok)
        .ok_or_else(|| Error::failed("a key cannot be written as text"))
}

fn decode(prefix: &str, text: &str) -> Option<[u8; 32]> {
    let checked = CheckedHrpstring::new::<Bech32>(text).ok()?;
    if checked.hrp() != Hrp::parse(prefix).ok()? {
        return None;
    }
    checked.byte_iter().collect::<Vec<u8>>().try_into().ok()
}

fn unarmor(text: &str) -> Option<Vec<u8>> {
    let body = text.trim().strip_prefix(ARMOR_BEGIN)?;
    let body = body.strip_suffix(ARMOR_END)?;
    let body: String = body.split_whitespace().collect();
    STANDARD.decode(body).ok()
}
