//! pgark's mark: how a file under a backup's name is known to be pgark's and not the old
//! service's, so that a crash's remains can be cleared without ever touching a legacy backup.
//!
//! - gzip: the first member carries one FEXTRA subfield (RFC 1952, 2.3.1.1) with the id `P`,`g`
//!   and the content `pgark1`. Every gzip program skips it.
//! - zstd: the stream begins with a skippable frame (RFC 8878, 3.1.2), magic 0x184D2A50, whose
//!   content is `pgark1`.
//! - none: the text itself: its first line is `\if true`, its second begins with `-- pgark`.
//!
//! - age: the header's first stanza is `-> pgark 1` with an empty body. It wraps no key; every age
//!   program passes over a stanza that it does not know.
//!
//! The digit is the mark's version. An encrypted index shows the mark too.

/// The mark's content.
pub const MARK: &[u8; 6] = b"pgark1";

/// A gzip header (RFC 1952) with FLG.FEXTRA and the mark: no time, no name, OS unknown.
pub const GZIP_HEADER: &[u8; 22] = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x0a\0Pg\x06\0pgark1";

/// The skippable frame that goes before the first zstd frame.
pub const ZSTD_FRAME: &[u8; 14] = b"\x50\x2a\x4d\x18\x06\0\0\0pgark1";

/// What an encrypted file begins with: age's version line and the stanza with the mark.
pub const AGE_HEADER: &[u8; 34] = b"age-encryption.org/v1\n-> pgark 1\n\n";

/// How many first bytes [`has_mark`] wants to see.
pub const MARK_BYTES: u64 = 64;

/// Whether a file that begins so was written by pgark.
#[must_use]
pub fn has_mark(first_bytes: &[u8]) -> bool {
    // Versions other than 1 are pgark's as well: compare without the digit.
    let gzip = &GZIP_HEADER[..GZIP_HEADER.len() - 1];
    let zstd = &ZSTD_FRAME[..ZSTD_FRAME.len() - 1];
    let age = &AGE_HEADER[..AGE_HEADER.len() - 3];
    first_bytes.starts_with(gzip)
        || first_bytes.starts_with(zstd)
        || first_bytes.starts_with(age)
        || first_bytes.starts_with(b"\\if true\n-- pgark")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_others_have_no_mark() {
        for start in [
            &b""[..],
            b"\x1f\x8b\x08\0\0\0\0\0\0\x03",
            b"\x28\xb5\x2f\xfd",
            b"--\n-- PostgreSQL database dump\n",
            b"\\if true\n-- mine",
            b"age-encryption.org/v1\n-> X25519 ",
            b"age-encryption.org/v1\n-> pgarkling 1\n\n",
        ] {
            assert!(!has_mark(start));
        }
        assert!(has_mark(GZIP_HEADER) && has_mark(ZSTD_FRAME) && has_mark(AGE_HEADER));
        assert!(has_mark(b"\\if true\n-- pgark dump of app"));
    }
}
