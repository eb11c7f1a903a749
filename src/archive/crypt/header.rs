//! The header of an age file (age-encryption.org/v1): stanzas that wrap the file key, and a MAC.
//! Pure.
//!
//! Invariants: nothing is taken from a header whose MAC does not hold; a header is bounded. The
//! first stanza of a file that pgark writes is its mark (`store::mark`), which opens nothing and
//! which every age program passes over.

use aws_lc_rs::{hkdf, hmac, rand};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use crate::error::{Error, Result};
use crate::store::mark::AGE_HEADER;

/// More than some thousand recipients need.
pub(super) const HEADER_BYTES_MAX: usize = 1 << 20;

const VERSION: &[u8] = b"age-encryption.org/v1\n";
const VERSION_NAME: &[u8] = b"age-encryption.org/";
const FOOTER: &[u8] = b"---";
/// Base64 characters on a full line of a stanza's body.
const COLUMNS: usize = 64;

/// What encrypts one file.
pub(super) struct FileKey(pub(super) [u8; 16]);

impl FileKey {
    pub(super) fn generate() -> Result<FileKey> {
        let mut key = [0; 16];
        rand::fill(&mut key).map_err(refused)?;
        Ok(FileKey(key))
    }

    /// HKDF-SHA-256 of this key.
    pub(super) fn derive(&self, salt: &[u8], info: &[u8]) -> Result<[u8; 32]> {
        derive(&self.0, salt, info)
    }

    fn mac(&self) -> Result<hmac::Key> {
        let key = self.derive(&[], b"header")?;
        Ok(hmac::Key::new(hmac::HMAC_SHA256, &key))
    }
}

/// HKDF-SHA-256 (RFC 5869), 32 bytes.
pub(super) fn derive(secret: &[u8], salt: &[u8], info: &[u8]) -> Result<[u8; 32]> {
    let mut key = [0; 32];
    hkdf::Salt::new(hkdf::HKDF_SHA256, salt)
        .extract(secret)
        .expand(&[info], hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(&mut key))
        .map_err(refused)?;
    Ok(key)
}

/// The library says no more than this.
pub(super) fn refused(_: aws_lc_rs::error::Unspecified) -> Error {
    Error::failed("the library of ciphers refused its work")
}

/// One way to the file key.
#[derive(Debug)]
pub(super) struct Stanza {
    /// The type, then what it needs.
    pub words: Vec<String>,
    pub body: Vec<u8>,
}

impl Stanza {
    pub(super) fn is(&self, name: &str) -> bool {
        self.words.first().is_some_and(|word| word == name)
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"-> ");
        out.extend_from_slice(self.words.join(" ").as_bytes());
        out.push(b'\n');
        let body = STANDARD_NO_PAD.encode(&self.body);
        // The last line is short, and empty where the others are full.
        let full = body.len() / COLUMNS * COLUMNS;
        for line in body.as_bytes()[..full].chunks(COLUMNS) {
            out.extend_from_slice(line);
            out.push(b'\n');
        }
        out.extend_from_slice(&body.as_bytes()[full..]);
        out.push(b'\n');
    }
}

/// A header with pgark's mark and these stanzas.
pub(super) fn write(stanzas: &[Stanza], key: &FileKey) -> Result<Vec<u8>> {
    let mut out = AGE_HEADER.to_vec();
    for stanza in stanzas {
        stanza.write(&mut out);
    }
    out.extend_from_slice(FOOTER);
    let mac = hmac::sign(&key.mac()?, &out);
    out.push(b' ');
    out.extend_from_slice(STANDARD_NO_PAD.encode(mac.as_ref()).as_bytes());
    out.push(b'\n');
    Ok(out)
}

/// A header as it was read; its MAC is checked by whoever has the file key.
#[derive(Debug)]
pub(super) struct Header {
    pub stanzas: Vec<Stanza>,
    /// Of the whole header.
    pub bytes: usize,
    /// What the MAC covers.
    covered: Vec<u8>,
    mac: Vec<u8>,
}

impl Header {
    /// Reads the header at the beginning of `bytes`; none when it goes on behind them.
    ///
    /// # Errors
    /// `Damage` when this is no header of age.
    pub(super) fn parse(bytes: &[u8]) -> Result<Option<Header>> {
        let seen = bytes.len().min(VERSION.len());
        if bytes[..seen] != VERSION[..seen] {
            let newer = bytes.starts_with(VERSION_NAME);
            return Err(Error::damage(if newer {
                "it is of another version of age"
            } else {
                "it does not begin as a file of age"
            }));
        }
        let mut lines = Lines {
            bytes,
            at: VERSION.len(),
        };
        let mut stanzas = Vec::new();
        loop {
            let start = lines.at;
            let Some(line) = lines.next() else {
                return unfinished(bytes);
            };
            if let Some(mac) = line.strip_prefix(FOOTER) {
                let mac = mac.strip_prefix(b" ").and_then(decode);
                return Ok(Some(Header {
                    stanzas,
                    bytes: lines.at,
                    covered: bytes[..start + FOOTER.len()].to_vec(),
                    mac: mac.ok_or_else(malformed)?,
                }));
            }
            let words = line.strip_prefix(b"-> ").and_then(words);
            let words = words.ok_or_else(malformed)?;
            let mut body = Vec::new();
            loop {
                let Some(line) = lines.next() else {
                    return unfinished(bytes);
                };
                body.extend(decode(line).ok_or_else(malformed)?);
                if line.len() > COLUMNS {
                    return Err(malformed());
                }
                if line.len() < COLUMNS {
                    break;
                }
            }
            stanzas.push(Stanza { words, body });
        }
    }

    /// # Errors
    /// `Damage` when the header was changed.
    pub(super) fn check(&self, key: &FileKey) -> Result<()> {
        hmac::verify(&key.mac()?, &self.covered, &self.mac)
            .map_err(|_| Error::damage("its header is not as it was written"))
    }
}

fn unfinished(bytes: &[u8]) -> Result<Option<Header>> {
    if bytes.len() >= HEADER_BYTES_MAX {
        return Err(Error::damage("its header has no end"));
    }
    Ok(None)
}

fn malformed() -> Error {
    Error::damage("its header is malformed")
}

/// Base64 without padding, in its one canonical form.
fn decode(line: &[u8]) -> Option<Vec<u8>> {
    STANDARD_NO_PAD.decode(line).ok()
}

fn words(line: &[u8]) -> Option<Vec<String>> {
    let printable = |word: &[u8]| !word.is_empty() && word.iter().all(u8::is_ascii_graphic);
    line.split(|byte| *byte == b' ')
        .map(|word| printable(word).then(|| String::from_utf8_lossy(word).into_owned()))
        .collect()
}

struct Lines<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    /// The next whole line.
    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.bytes.get(self.at..)?;
        let end = memchr::memchr(b'\n', rest)?;
        self.at += end + 1;
        Some(&rest[..end])
    }
}
