//! Reads what PostgreSQL needs from an X.509 certificate: names, dates, key, signature.
//!
//! Only a reader of DER, no path building: chains are verified by rustls' webpki. It exists
//! because webpki knows neither common names nor version 1 certificates, and the recipe in
//! PostgreSQL's own manual makes both; libpq accepts them.
//!
//! Source: RFC 5280; `fe-secure-openssl.c`, `fe-secure-common.c` for the name rules;
//! RFC 5929 for `tls-server-end-point`.

use std::net::IpAddr;

use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};

/// The parts of a certificate, as slices of its DER.
#[derive(Debug)]
pub(super) struct Certificate<'a> {
    pub der: &'a [u8],
    /// The signed part.
    pub signed: &'a [u8],
    /// 1 or 3.
    pub version: u8,
    pub issuer: &'a [u8],
    pub subject: &'a [u8],
    /// Seconds since 1970.
    pub not_before: i64,
    pub not_after: i64,
    /// `SubjectPublicKeyInfo`, whole; then the parts in it.
    pub key_info: &'a [u8],
    pub key_algorithm: &'a [u8],
    pub key: &'a [u8],
    /// `AlgorithmIdentifier` without its outer header.
    pub signature_algorithm: &'a [u8],
    pub signature: &'a [u8],
    extensions: &'a [u8],
}

/// A cursor over DER. `None` means malformed.
#[derive(Clone, Copy)]
struct Der<'a>(&'a [u8]);

const SEQUENCE: u8 = 0x30;

impl<'a> Der<'a> {
    /// The next element: tag, content, and the whole element with its header.
    fn next(&mut self) -> Option<(u8, &'a [u8], &'a [u8])> {
        let tag = *self.0.first()?;
        let first = usize::from(*self.0.get(1)?);
        let (header, length) = if first < 0x80 {
            (2, first)
        } else {
            let count = first & 0x7f;
            if count == 0 || count > 4 {
                return None;
            }
            let bytes = self.0.get(2..2 + count)?;
            let length = bytes
                .iter()
                .fold(0, |sum, &byte| sum << 8 | usize::from(byte));
            (2 + count, length)
        };
        let whole = self.0.get(..header.checked_add(length)?)?;
        self.0 = &self.0[whole.len()..];
        Some((tag, &whole[header..], whole))
    }

    fn want(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|next| next.0 == tag).map(|next| next.1)
    }

    fn skip_if(&mut self, tag: u8) -> Option<&'a [u8]> {
        if self.0.first() == Some(&tag) {
            self.want(tag)
        } else {
            None
        }
    }
}

impl<'a> Certificate<'a> {
    /// Parses a certificate; none when it is malformed.
    pub(super) fn parse(der: &'a [u8]) -> Option<Certificate<'a>> {
        let mut outer = Der(Der(der).want(SEQUENCE)?);
        let (tag, body, signed) = outer.next()?;
        if tag != SEQUENCE {
            return None;
        }
        let signature_algorithm = outer.want(SEQUENCE)?;
        let signature = outer.want(3)?.strip_prefix(&[0])?;
        let mut body = Der(body);
        let version = match body.skip_if(0xa0) {
            Some(version) => *Der(version).want(2)?.first()? + 1,
            None => 1,
        };
        body.want(2)?;
        // Two places name the algorithm; they must agree, or the hash of one could be
        // passed off as that of the other.
        if body.want(SEQUENCE)? != signature_algorithm {
            return None;
        }
        let issuer = body.want(SEQUENCE)?;
        let mut validity = Der(body.want(SEQUENCE)?);
        let subject = body.want(SEQUENCE)?;
        let (_, key_body, key_info) = body.next()?;
        let mut key = Der(key_body);
        let mut extensions = &[][..];
        while !body.0.is_empty() {
            let (tag, content, _) = body.next()?;
            if tag == 0xa3 {
                extensions = Der(content).want(SEQUENCE)?;
            }
        }
        Some(Certificate {
            der,
            signed,
            version,
            issuer,
            subject,
            not_before: time(validity.next()?)?,
            not_after: time(validity.next()?)?,
            key_info,
            key_algorithm: key.want(SEQUENCE)?,
            key: key.want(3)?.strip_prefix(&[0])?,
            signature_algorithm,
            signature,
            extensions,
        })
    }

    pub(super) fn is_valid_at(&self, seconds: i64) -> bool {
        (self.not_before..=self.not_after).contains(&seconds)
    }

    /// The value of an extension by the content bytes of its OID.
    fn extension(&self, oid: &[u8]) -> Option<&'a [u8]> {
        let mut list = Der(self.extensions);
        while let Some((SEQUENCE, content, _)) = list.next() {
            let mut fields = Der(content);
            if fields.want(6)? == oid {
                fields.skip_if(1);
                return fields.want(4);
            }
        }
        None
    }

    /// Whether it may sign others: a version 1 certificate (nothing forbids it), or basic
    /// constraints that say so and a key usage, if any, that allows it.
    pub(super) fn may_issue(&self) -> bool {
        if self.version == 1 {
            return true;
        }
        let constraints = self.extension(&[0x55, 0x1d, 19]);
        let authority = constraints
            .and_then(|value| Der(Der(value).want(SEQUENCE)?).skip_if(1))
            .is_some_and(|flag| flag == [0xff]);
        let usage = self.extension(&[0x55, 0x1d, 15]);
        // Bit 5 of the usage is keyCertSign; the first content byte counts unused bits.
        let signs = usage.is_none_or(|value| {
            let bits = Der(value).want(3);
            bits.and_then(|bits| bits.get(1))
                .is_some_and(|bits| bits & 0x04 != 0)
        });
        authority && signs
    }

    /// The first common name of the subject.
    pub(super) fn common_name(&self) -> Option<&'a [u8]> {
        let mut names = Der(self.subject);
        while let Some((0x31, set, _)) = names.next() {
            let mut pair = Der(Der(set).want(SEQUENCE)?);
            if pair.want(6)? == [0x55, 4, 3] {
                return pair.next().map(|value| value.1);
            }
        }
        None
    }

    /// The alternative names: tag (2 = DNS, 7 = IP) and content.
    fn alternative_names(&self) -> Vec<(u8, &'a [u8])> {
        let value = self.extension(&[0x55, 0x1d, 17]);
        let mut list = Der(value
            .and_then(|value| Der(value).want(SEQUENCE))
            .unwrap_or(&[]));
        let mut names = Vec::new();
        while let Some((tag, content, _)) = list.next() {
            names.push((tag & 0x1f, content));
        }
        names
    }

    /// Whether the certificate is for `host`, by libpq's rules: alternative names first; the
    /// common name only when none has the host's type.
    pub(super) fn is_for(&self, host: &str) -> bool {
        let address: Option<IpAddr> = host.parse().ok();
        let mut use_common_name = true;
        for (tag, name) in self.alternative_names() {
            if tag == if address.is_some() { 7 } else { 2 } {
                use_common_name = false;
            }
            let matches = match (tag, address) {
                (2, _) => name_matches(name, host),
                (7, Some(IpAddr::V4(address))) => name == address.octets(),
                (7, Some(IpAddr::V6(address))) => name == address.octets(),
                _ => false,
            };
            if matches {
                return true;
            }
        }
        use_common_name
            && self
                .common_name()
                .is_some_and(|name| name_matches(name, host))
    }

    /// Every name in it, for messages.
    pub(super) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .alternative_names()
            .into_iter()
            .filter_map(|(tag, name)| match (tag, name.len()) {
                (2, _) => Some(String::from_utf8_lossy(name).into_owned()),
                (7, 4) => <[u8; 4]>::try_from(name)
                    .ok()
                    .map(|octets| IpAddr::from(octets).to_string()),
                (7, 16) => <[u8; 16]>::try_from(name)
                    .ok()
                    .map(|octets| IpAddr::from(octets).to_string()),
                _ => None,
            })
            .collect();
        if names.is_empty() {
            names.extend(
                self.common_name()
                    .map(|name| String::from_utf8_lossy(name).into_owned()),
            );
        }
        names
    }

    /// The data of `tls-server-end-point`: the certificate's hash with its own signature's
    /// hash function, SHA-256 in place of MD5 and SHA-1. None when it has none (Ed25519).
    pub(super) fn end_point(&self) -> Option<Vec<u8>> {
        const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1];
        const ECDSA: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4];
        let mut algorithm = Der(self.signature_algorithm);
        let oid = algorithm.want(6)?;
        if let Some(rest) = oid.strip_prefix(RSA) {
            return match rest {
                [4 | 5 | 11] => Some(Sha256::digest(self.der).to_vec()),
                [12] => Some(Sha384::digest(self.der).to_vec()),
                [13] => Some(Sha512::digest(self.der).to_vec()),
                [14] => Some(Sha224::digest(self.der).to_vec()),
                [10] => self.pss_end_point(algorithm),
                _ => None,
            };
        }
        match oid.strip_prefix(ECDSA)? {
            [1] | [3, 2] => Some(Sha256::digest(self.der).to_vec()),
            [3, 1] => Some(Sha224::digest(self.der).to_vec()),
            [3, 3] => Some(Sha384::digest(self.der).to_vec()),
            [3, 4] => Some(Sha512::digest(self.der).to_vec()),
            _ => None,
        }
    }

    /// RSA-PSS names its hash in its parameters; SHA-1 when it does not.
    fn pss_end_point(&self, mut algorithm: Der) -> Option<Vec<u8>> {
        const SHA2: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2];
        let mut parameters = Der(algorithm.want(SEQUENCE)?);
        let Some(hash) = parameters.skip_if(0xa0) else {
            return Some(Sha256::digest(self.der).to_vec());
        };
        let oid = Der(Der(hash).want(SEQUENCE)?).want(6)?;
        match oid.strip_prefix(SHA2) {
            Some([2]) => Some(Sha384::digest(self.der).to_vec()),
            Some([3]) => Some(Sha512::digest(self.der).to_vec()),
            Some([4]) => Some(Sha224::digest(self.der).to_vec()),
            Some([1]) | None => Some(Sha256::digest(self.der).to_vec()),
            _ => None,
        }
    }
}

/// `UTCTime` or `GeneralizedTime` in seconds since 1970.
fn time((tag, text, _): (u8, &[u8], &[u8])) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let text = match tag {
        0x17 => format!("{}{text}", if text < "50" { "20" } else { "19" }),
        0x18 => text.to_owned(),
        _ => return None,
    };
    let part = |from: usize, to: usize| text.get(from..to)?.parse::<i8>().ok();
    let date = jiff::civil::DateTime::new(
        text.get(..4)?.parse().ok()?,
        part(4, 6)?,
        part(6, 8)?,
        part(8, 10)?,
        part(10, 12)?,
        part(12, 14)?,
        0,
    );
    let zoned = date.ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
    Some(zoned.timestamp().as_second())
}

/// libpq's rule: equal without case, or a leading `*.` that stands for one label.
fn name_matches(pattern: &[u8], host: &str) -> bool {
    let Ok(pattern) = std::str::from_utf8(pattern) else {
        return false;
    };
    // A NUL inside a name is an attack on programs that stop reading there.
    if pattern.contains('\0') {
        return false;
    }
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    let Some(suffix) = pattern
        .strip_prefix('*')
        .filter(|suffix| suffix.starts_with('.') && suffix.len() > 1)
    else {
        return false;
    };
    host.split_once('.').is_some_and(|(label, _)| {
        !label.is_empty() && host[label.len()..].eq_ignore_ascii_case(suffix)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_wildcard_stands_for_one_label() {
        assert!(name_matches(b"*.example.com", "db.EXAMPLE.com"));
        assert!(!name_matches(b"*.example.com", "a.b.example.com"));
        assert!(!name_matches(b"*.example.com", "example.com"));
        assert!(!name_matches(b"*.", "db."));
        assert!(!name_matches(b"db\0.evil", "db"));
        assert!(!name_matches(b"*", "db"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Certificate::parse(&bytes);
        }
    }
}
