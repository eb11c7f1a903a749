//! Quoting of names and texts for SQL. Pure.

/// A name as an SQL identifier; always quoted, so that key words and case survive.
#[must_use]
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// [`quote_ident`] for a name in any encoding that keeps ASCII (every server encoding does).
#[must_use]
pub fn quote_ident_bytes(name: &[u8]) -> Vec<u8> {
    doubled(name, b"\"", b'"', b'"')
}

/// A text as an SQL literal. With a backslash it becomes `E'…'`, which means the same
/// whatever `standard_conforming_strings` says (as libpq's `PQescapeLiteral`).
#[must_use]
pub fn quote_literal(text: &str) -> String {
    if text.contains('\\') {
        format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}

/// [`quote_literal`] for a text in any server encoding.
#[must_use]
pub fn quote_literal_bytes(text: &[u8]) -> Vec<u8> {
    if text.contains(&b'\\') {
        doubled(text, b"E'", b'\'', b'\\')
    } else {
        doubled(text, b"'", b'\'', b'\'')
    }
}

fn doubled(text: &[u8], open: &[u8], quote: u8, other: u8) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 3);
    out.extend_from_slice(open);
    for &byte in text {
        if byte == quote || byte == other {
            out.push(byte);
        }
        out.push(byte);
    }
    out.push(quote);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_doubles_what_would_end_the_text() {
        assert_eq!(quote_ident("a\"b"), "\"a\"\"b\"");
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal("a\\'b"), "E'a\\\\''b'");
        for text in ["a\"b", "it's", "a\\'b", "ü\n", ""] {
            assert_eq!(
                quote_ident_bytes(text.as_bytes()),
                quote_ident(text).into_bytes()
            );
            assert_eq!(
                quote_literal_bytes(text.as_bytes()),
                quote_literal(text).into_bytes()
            );
        }
    }
}
