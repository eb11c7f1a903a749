//! A stored setting (`search_path="$user", public`) as the clause that sets it again. Pure.

use super::quote::{quote_ident_bytes, quote_literal_bytes};

/// Settings that are lists of names: their text is already quoted name by name
/// (`variable_is_guc_list_quote` in `src/bin/pg_dump/dumputils.c`).
const NAME_LISTS: [&str; 6] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];

/// `name TO value`, for `ALTER … SET`, from `name=value`.
///
/// `text` is an element of `pg_db_role_setting.setconfig`. None for one that is none.
#[must_use]
pub fn set_clause(text: &[u8]) -> Option<Vec<u8>> {
    let at = text.iter().position(|&byte| byte == b'=')?;
    let (name, value) = (&text[..at], &text[at + 1..]);
    let is_list = NAME_LISTS
        .iter()
        .any(|list| list.as_bytes().eq_ignore_ascii_case(name));
    let value = if is_list {
        name_list(value)
    } else {
        quote_literal_bytes(value)
    };
    // A setting of an extension is called `extension.name`: each half is a name.
    let name = name
        .split(|&byte| byte == b'.')
        .map(quote_ident_bytes)
        .collect::<Vec<_>>()
        .join(&b'.');
    Some([name.as_slice(), b" TO ", &value].concat())
}

/// Splits `"$user", public` into its names and writes each as a literal (`SplitGUCList`).
fn name_list(text: &[u8]) -> Vec<u8> {
    let (mut names, mut name, mut quoted) = (Vec::new(), Vec::new(), false);
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' if quoted && bytes.peek() == Some(&b'"') => {
                bytes.next();
                name.push(b'"');
            }
            b'"' => quoted = !quoted,
            b',' if !quoted => names.push(std::mem::take(&mut name)),
            b' ' | b'\t' | b'\n' if !quoted => {}
            _ => name.push(byte),
        }
    }
    names.push(name);
    let literals: Vec<Vec<u8>> = names.iter().map(|name| quote_literal_bytes(name)).collect();
    literals.join(&b", "[..])
}

#[cfg(test)]
mod tests {
    #[test]
    fn search_path_stays_a_list_of_names() {
        let list = super::name_list(b"\"$user\", public, \"a, \"\"b\"\"\"");
        assert_eq!(
            String::from_utf8(list).unwrap(),
            "'$user', 'public', 'a, \"b\"'"
        );
        assert_eq!(super::name_list(b"\"\""), b"''");
    }
}
