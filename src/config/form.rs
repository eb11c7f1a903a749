//! The forms a value can take: one check for each, with its description for the docs. Pure.

use std::time::Duration;

use super::databases;

/// What a variable's value looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// One line of text.
    Text,
    /// Text of several lines or items.
    Lines,
    /// A path.
    Path,
    /// A URL of HTTP.
    Url,
    /// A host name, an address or a socket directory; several with commas between.
    Host,
    /// A port; several with commas between, as many as hosts.
    Port,
    Databases,
    /// A whole number in this range.
    Count(u32, u32),
    /// `true` or `false`.
    Switch,
    OneOf(&'static [&'static str]),
    Compression,
    Duration,
    Schedule,
    /// `address:port`.
    Listen,
}

impl Form {
    /// Checks a value that is not empty.
    ///
    /// # Errors
    /// What is expected instead.
    pub(super) fn check(self, text: &str) -> Result<(), String> {
        if text.contains('\0') {
            return Err("it holds a zero byte".to_owned());
        }
        let good = match self {
            Form::Text | Form::Lines | Form::Path => true,
            Form::Url => return url(text),
            Form::Host => return host(text),
            Form::Databases => return databases::parse(text).map(|_| ()),
            Form::Port => text.split(',').all(|port| count(port, 1, 65_535)),
            Form::Count(min, max) => count(text, min, max),
            Form::Switch => SWITCHES.contains(&text.to_ascii_lowercase().as_str()),
            Form::OneOf(choices) => choices.contains(&text),
            Form::Compression => compression(text),
            Form::Duration => duration(text).is_some(),
            Form::Schedule => schedule(text),
            Form::Listen => text
                .rsplit_once(':')
                .is_some_and(|(_, port)| count(port, 0, 65_535)),
        };
        if good {
            Ok(())
        } else {
            Err(format!("expected {}", self.describe()))
        }
    }

    /// What is expected, as the object of a sentence.
    #[must_use]
    pub fn describe(self) -> String {
        match self {
            Form::Text => "text".to_owned(),
            Form::Lines => "text, several lines allowed".to_owned(),
            Form::Path => "a path".to_owned(),
            Form::Url => "a URL: `https://host/path`".to_owned(),
            Form::Host => "a host name, address or socket directory".to_owned(),
            Form::Port => "a port from 1 to 65535".to_owned(),
            Form::Databases => "a name, a list with commas, or `*`".to_owned(),
            Form::Count(min, max) => format!("a whole number from {min} to {max}"),
            Form::Switch => "`true` or `false`".to_owned(),
            Form::OneOf(choices) => {
                let quoted: Vec<String> = choices.iter().map(|one| format!("`{one}`")).collect();
                format!("one of {}", quoted.join(", "))
            }
            Form::Compression => {
                "`gzip`, `gzip:1` to `gzip:12`, `zstd`, `zstd:1` to `zstd:19`, or `none`".to_owned()
            }
            Form::Duration => "a number with a unit: `500ms`, `10s`, `5m`, `2h` or `1d`".to_owned(),
            Form::Schedule => {
                "five cron fields (`0 2 * * *`) or `@hourly`, `@daily`, `@weekly`, `@monthly`, \
                 `@yearly`, after an optional `CRON_TZ=Zone`"
                    .to_owned()
            }
            Form::Listen => "an address and a port, `127.0.0.1:8080`".to_owned(),
        }
    }

    /// Whether a file with several lines is a value of this form.
    pub(super) fn holds_lines(self) -> bool {
        self == Form::Lines
    }
}

const SWITCHES: [&str; 8] = ["true", "false", "on", "off", "yes", "no", "1", "0"];

/// Whether a checked switch is on.
pub(super) fn switch(text: &str) -> bool {
    ["true", "on", "yes", "1"].contains(&text.to_ascii_lowercase().as_str())
}

fn count(text: &str, min: u32, max: u32) -> bool {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits && text.parse::<u32>().is_ok_and(|n| (min..=max).contains(&n))
}

fn host(text: &str) -> Result<(), String> {
    if text.contains("://") {
        Err("it is a URL; give the host alone, and port, database and user in DB_PORT, DB_NAME and DB_USER".to_owned())
    } else if !text.starts_with('/') && text.contains(char::is_whitespace) {
        Err("a host name holds no blanks".to_owned())
    } else {
        Ok(())
    }
}

fn url(text: &str) -> Result<(), String> {
    let expected = || Err(format!("expected {}", Form::Url.describe()));
    let Ok(uri) = text.parse::<http::Uri>() else {
        return expected();
    };
    match (uri.scheme_str(), uri.authority()) {
        (Some("http" | "https"), Some(place)) if !place.as_str().contains('@') => Ok(()),
        (Some("http" | "https"), Some(_)) => {
            Err("a user in a URL is not supported; give the secret in its path".to_owned())
        }
        _ => expected(),
    }
}

fn compression(text: &str) -> bool {
    match text.split_once(':') {
        None => matches!(text, "gzip" | "zstd" | "none"),
        Some(("gzip", level)) => count(level, 1, 12),
        Some(("zstd", level)) => count(level, 1, 19),
        Some(_) => false,
    }
}

/// Parses `500ms`, `10s`, `5m`, `2h`, `1d`. A number without a unit is none: libpq would
/// read milliseconds, people mean seconds.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let n: u64 = digits.parse().ok()?;
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    // PostgreSQL's timeouts are 32-bit milliseconds; some 24 days.
    let ms = n.checked_mul(unit_ms)?;
    (1..=i32::MAX as u64)
        .contains(&ms)
        .then(|| Duration::from_millis(ms))
}

/// Parses `512kB`, `64MB`, `16GB`, `1TB` as PostgreSQL does: in powers of 1024, which `MiB` says
/// more plainly. A number without a unit is none.
pub(super) fn size(text: &str) -> Option<u64> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let n: u64 = digits.parse().ok()?;
    let shift = match unit.trim_start() {
        "B" => 0,
        "kB" | "KiB" => 10,
        "MB" | "MiB" => 20,
        "GB" | "GiB" => 30,
        "TB" | "TiB" => 40,
        _ => return None,
    };
    n.checked_mul(1 << shift)
}

/// The outer form of a schedule; the scheduler knows the rest.
fn schedule(text: &str) -> bool {
    let mut words = text.split_ascii_whitespace().peekable();
    words.next_if(|word| word.starts_with("TZ=") || word.starts_with("CRON_TZ="));
    let words: Vec<&str> = words.collect();
    match words.as_slice() {
        [word] => matches!(
            *word,
            "@hourly" | "@daily" | "@midnight" | "@weekly" | "@monthly" | "@yearly" | "@annually"
        ),
        [_, _, _, _, _] => words.iter().all(|field| {
            field
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"*,/-?#".contains(&byte))
                && (field.contains('*')
                    || field.contains('?')
                    || field.bytes().any(|byte| byte.is_ascii_alphanumeric()))
        }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_accepts_its_values_and_refuses_others() {
        let cases: &[(Form, &[&str], &[&str])] = &[
            (
                Form::Count(1, 64),
                &["1", "64"],
                &["0", "65", "-1", "+4", "4x", " 4", "99999999999"],
            ),
            (
                Form::Port,
                &["5432", "5432,5433"],
                &["0", "65536", "5432,", "a"],
            ),
            (
                Form::Host,
                &["db", "db1,db2", "::1", "/run/my sockets"],
                &["postgres://u:p@h/d", "a b"],
            ),
            (Form::Switch, &["true", "False", "0"], &["maybe"]),
            (
                Form::Compression,
                &["gzip", "gzip:1", "gzip:12", "zstd:19", "none"],
                &[
                    "gzip:0", "gzip:13", "zstd:20", "none:1", "lz4", "gzip:", "GZIP",
                ],
            ),
            (
                Form::Duration,
                &["500ms", "10s", "5m", "2h", "1d"],
                &["10", "s", "0s", "1y", "-1s", "1.5h", "99d"],
            ),
            (
                Form::Schedule,
                &[
                    "0 2 * * *",
                    "*/5 0-6 1,15 jan MON",
                    "@daily",
                    "CRON_TZ=Europe/Berlin 0 2 * * *",
                ],
                &[
                    "0 2 * *",
                    "0 2 * * * *",
                    "@reboot",
                    "daily",
                    "0 2 * * $",
                    "0 2 , * *",
                ],
            ),
            (
                Form::Listen,
                &["127.0.0.1:8080", "[::]:80", ":8080"],
                &["8080", "localhost", "a:b"],
            ),
            (Form::OneOf(&["a", "b"]), &["a"], &["A", "c"]),
            (Form::Text, &["anything"], &["zero\0byte"]),
        ];
        for (form, good, bad) in cases {
            for text in *good {
                assert_eq!(form.check(text), Ok(()), "{form:?} {text:?}");
            }
            for text in *bad {
                assert!(form.check(text).is_err(), "{form:?} {text:?}");
            }
        }
    }

    #[test]
    fn a_url_names_a_scheme_and_a_host_and_no_user() {
        for good in [
            "https://a/b?c=d&e=",
            "http://127.0.0.1:1",
            "https://[::1]/x",
        ] {
            assert_eq!(Form::Url.check(good), Ok(()), "{good}");
        }
        for bad in [
            "a",
            "a/b",
            "ftp://a/b",
            "https://",
            "https://a b",
            "https://u:p@h/x",
            "//h/x",
        ] {
            let error = Form::Url.check(bad).unwrap_err();
            assert!(!error.contains("u:p"), "{error}");
        }
    }

    #[test]
    fn sizes_are_powers_of_1024_and_need_their_unit() {
        for (text, bytes) in [
            ("0B", Some(0)),
            ("64MB", Some(64 << 20)),
            ("16GB", Some(16 << 30)),
            ("16 GiB", Some(16 << 30)),
            ("2TB", Some(2 << 40)),
            ("16", None),
            ("GB", None),
            ("-1GB", None),
            ("1.5GB", None),
            ("16gb", None),
            ("99999999999TB", None),
        ] {
            assert_eq!(size(text), bytes, "{text}");
        }
    }

    #[test]
    fn durations_are_exact() {
        assert_eq!(duration("90s"), Some(Duration::from_secs(90)));
        assert_eq!(duration("2h"), Some(Duration::from_secs(7200)));
        assert_eq!(duration("18446744073709551615h"), None);
    }
}
