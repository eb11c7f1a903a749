//! The password file (`.pgpass`). Source: PostgreSQL manual, "The Password File";
//! `passwordFromFile` in `fe-connect.c`.

use std::fmt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A password file read into memory. Its passwords never appear in `Debug`.
#[derive(Clone, Default)]
pub(super) struct Passfile {
    pub path: PathBuf,
    lines: Vec<[String; 5]>,
}

impl fmt::Debug for Passfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Passfile({}, {} lines)",
            self.path.display(),
            self.lines.len()
        )
    }
}

impl Passfile {
    /// Reads `path`. A missing file is none; one that others can read is ignored with a
    /// warning, as libpq does.
    pub(super) fn read(path: &Path) -> (Option<Passfile>, Option<String>) {
        let Ok(status) = std::fs::metadata(path) else {
            return (None, None);
        };
        let ignored = |why: String| {
            let text = format!("password file {} is ignored: {why}", path.display());
            (None, Some(text))
        };
        if !status.is_file() {
            return ignored("it is not a plain file".to_owned());
        }
        let mode = status.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return ignored(format!(
                "its mode is {mode:04o} and must be 0600 (chmod 0600)"
            ));
        }
        match std::fs::read(path) {
            Ok(bytes) => (
                Some(Passfile {
                    path: path.to_owned(),
                    lines: parse(&String::from_utf8_lossy(&bytes)),
                }),
                None,
            ),
            Err(error) => ignored(format!("{error} (owner uid {})", status.uid())),
        }
    }

    /// The password of the first line that matches.
    pub(super) fn find(&self, host: &str, port: u16, database: &str, user: &str) -> Option<&str> {
        let port = port.to_string();
        let wanted = [host, &port, database, user];
        let matches = |line: &&[String; 5]| {
            wanted
                .iter()
                .zip(line.iter())
                .all(|(wanted, field)| field == "*" || unescape(field) == *wanted)
        };
        self.lines.iter().find(matches).map(|line| line[4].as_str())
    }
}

/// Splits lines at unescaped colons. The first four fields stay escaped (`\*` is a literal
/// star); the password is unescaped.
fn parse(text: &str) -> Vec<[String; 5]> {
    let lines = text.lines().map(|line| line.trim_end_matches('\r'));
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .filter_map(|line| {
            let mut fields: [String; 5] = Default::default();
            let mut at = 0;
            let mut chars = line.chars();
            while let Some(c) = chars.next() {
                match c {
                    ':' if at < 4 => at += 1,
                    // An unescaped colon ends the password; what follows is ignored.
                    ':' => break,
                    '\\' => {
                        fields[at].push('\\');
                        fields[at].extend(chars.next());
                    }
                    c => fields[at].push(c),
                }
            }
            fields[4] = unescape(&fields[4]);
            (at == 4).then_some(fields)
        })
        .collect()
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    out
}

/// One line of a password file. None when a value cannot be written in one: the format has
/// no escape for a line's end.
pub(super) fn line(fields: [&str; 5]) -> Option<Vec<u8>> {
    if fields.iter().any(|field| field.contains(['\n', '\r'])) {
        return None;
    }
    let escaped = fields.map(|field| match field {
        "*" => field.to_owned(),
        _ => field.replace('\\', "\\\\").replace(':', "\\:"),
    });
    Some((escaped.join(":") + "\n").into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn passfile(text: &str) -> Passfile {
        Passfile {
            path: PathBuf::new(),
            lines: parse(text),
        }
    }

    #[test]
    fn the_first_matching_line_wins() {
        let file = passfile(
            "# comment\n\ndb:5432:app:me:first\ndb:*:*:me:se\\:co\\\\nd\n*:*:*:*:last\nshort:line\n",
        );
        assert_eq!(file.find("db", 5432, "app", "me"), Some("first"));
        assert_eq!(file.find("db", 5433, "app", "me"), Some("se:co\\nd"));
        assert_eq!(file.find("other", 1, "x", "y"), Some("last"));
        assert_eq!(passfile("db:1:a:b:pw").find("db", 2, "a", "b"), None);
    }

    #[test]
    fn a_password_file_that_others_can_read_is_ignored() {
        let path = std::env::temp_dir().join(format!("pgark-pgpass-{}", std::process::id()));
        std::fs::write(&path, "*:*:*:*:secret\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let (file, warning) = Passfile::read(&path);
        assert!(file.is_none() && warning.unwrap().contains("0644"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let (file, warning) = Passfile::read(&path);
        assert!(warning.is_none() && !format!("{file:?}").contains("secret"));
        assert_eq!(file.unwrap().find("h", 1, "d", "u"), Some("secret"));
        std::fs::remove_file(path).unwrap();
    }

    proptest! {
        #[test]
        fn written_lines_are_found_again(host in "[a-z:\\\\]{1,9}", user in "[^\\n\\r\\x00*#]{1,20}", password in "[^\\n\\r\\x00]{1,20}") {
            let text = line([&host, "5432", "*", &user, &password]).unwrap();
            let file = passfile(std::str::from_utf8(&text).unwrap());
            prop_assert_eq!(file.find(&host, 5432, "any", &user), Some(password.as_str()));
        }
    }
}
