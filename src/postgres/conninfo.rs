//! What the user said about a connection: keywords, a URI, variables. No network, and no
//! files but the service file.
//!
//! Invariants: precedence is that of libpq (what was set, then the service file, then
//! `PG*`, then defaults at [`ConnInfo::resolve`]); an empty value is unset; the password is
//! never shown by `Debug` nor quoted in an error.
//!
//! Source: PostgreSQL manual, "Connection Strings"; `fe-connect.c`.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::path::PathBuf;

use super::options::{self, KEYWORDS};
use super::service;
use super::target::Target;
use super::uri::parse_uri;
use crate::error::{Error, Result};

/// Connection parameters by libpq's keyword names.
#[derive(Clone, Default)]
pub struct ConnInfo {
    values: BTreeMap<&'static str, String>,
    /// Where the password came from, in words; never the password.
    password_origin: Option<String>,
    pub(super) home: Option<PathBuf>,
}

impl fmt::Debug for ConnInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |(name, value): (&&'static str, &String)| {
            let secret = matches!(*name, "password" | "sslpassword");
            (
                *name,
                if secret {
                    "***".to_owned()
                } else {
                    value.clone()
                },
            )
        };
        f.debug_map()
            .entries(self.values.iter().map(shown))
            .finish()
    }
}

impl ConnInfo {
    /// No parameters: everything comes from the environment and the defaults.
    #[must_use]
    pub fn new() -> ConnInfo {
        ConnInfo::default()
    }

    /// Parses `postgres://…`, `postgresql://…` or `key=value …`.
    ///
    /// # Errors
    /// `Usage` for a syntax error, an unknown keyword or an impossible value.
    pub fn parse(text: &str) -> Result<ConnInfo> {
        let uri = ["postgresql://", "postgres://"]
            .iter()
            .find_map(|scheme| text.strip_prefix(scheme));
        match uri {
            Some(rest) => parse_uri(rest),
            None => parse_pairs(text),
        }
    }

    /// Sets one parameter; an empty value unsets it.
    ///
    /// # Errors
    /// `Usage` for an unknown keyword or an impossible value.
    pub fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let Some(keyword) = KEYWORDS.iter().find(|known| known.name == key) else {
            let error = Error::usage(format!("{key:?} is not a connection parameter"));
            return Err(match options::nearest(key) {
                Some(near) => error.hint(format!("did you mean {near}?")),
                None => error.hint("the names are libpq's: host, port, user, dbname, sslmode, …"),
            });
        };
        check(key, value)?;
        if value.is_empty() {
            self.values.remove(keyword.name);
        } else {
            self.values.insert(keyword.name, value.to_owned());
        }
        if key == "password" {
            self.password_origin = None;
        }
        Ok(())
    }

    /// The value of a parameter, if it is set.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str)
    }

    /// Says where the password came from (`DB_PASSWORD_FILE /run/secrets/db_password`), for
    /// the message when the server refuses it.
    pub fn set_password_origin(&mut self, origin: impl Into<String>) {
        self.password_origin = Some(origin.into());
    }

    /// Where the password came from, in words.
    pub(super) fn password_origin(&self) -> String {
        let origin = self.password_origin.as_deref();
        origin.unwrap_or("the connection settings").to_owned()
    }

    /// Fills what is not set from the service file and then from `PG*`.
    ///
    /// # Errors
    /// `Usage` when a named service does not exist or a value is impossible.
    pub fn or_environment(mut self, env: &dyn Fn(&str) -> Option<String>) -> Result<ConnInfo> {
        let env = |name: &str| env(name).filter(|value| !value.is_empty());
        self.home = env("HOME").map(PathBuf::from);
        if let Some(name) = self.get("service").map(str::to_owned).or(env("PGSERVICE")) {
            let file = self.get("servicefile").map(str::to_owned);
            let files = service::files(file.or(env("PGSERVICEFILE")), self.home.as_deref(), &env);
            for (key, value) in service::find(&name, &files)? {
                let text = format!("service {name:?}");
                self.fill(&key, &value, &text)?;
            }
        }
        for keyword in KEYWORDS {
            // The service's own variables have done their work above.
            let Some(variable) = keyword
                .variable
                .filter(|_| !keyword.name.starts_with("service"))
            else {
                continue;
            };
            if let Some(value) = env(variable) {
                self.fill(keyword.name, &value, variable)?;
            }
        }
        Ok(self)
    }

    /// Fills what is not set from another one, of which messages speak as `origin`.
    ///
    /// # Errors
    /// None for values that another one accepted; passed on all the same.
    pub fn or(mut self, other: &ConnInfo, origin: &str) -> Result<ConnInfo> {
        for (key, value) in &other.values {
            self.fill(key, value, origin)?;
        }
        Ok(self)
    }

    fn fill(&mut self, key: &str, value: &str, origin: &str) -> Result<()> {
        if self.get(key).is_none() {
            self.set(key, value)
                .map_err(|error| error.context(origin))?;
            if key == "password" {
                self.password_origin = Some(origin.to_owned());
            }
        }
        Ok(())
    }

    /// Looks up the password file, fills the defaults and asks DNS.
    ///
    /// # Errors
    /// `Usage` for parameters that contradict each other; `Failed` when no host has an address.
    pub fn resolve(self) -> Result<Target> {
        super::resolve::resolve(&self)
    }
}

/// Refuses impossible values where they are said, not where they are used.
fn check(key: &str, value: &str) -> Result<()> {
    let wrong = |hint: String| Err(Error::usage(format!("{key} cannot be {value:?}")).hint(hint));
    if value.is_empty() {
        return Ok(());
    }
    if let Some(choices) = options::choices(key)
        && !choices.contains(&value)
    {
        if key == "gssencmode" && value == "require" {
            return Err(
                Error::usage("GSS encryption is not supported by pgark").hint(
                    "use TLS (sslmode=verify-full) and a SCRAM password or a client certificate",
                ),
            );
        }
        return wrong(format!("choose one of {}", choices.join(", ")));
    }
    if options::is_number(key) && value.trim().parse::<i32>().is_err() {
        return wrong("give a whole number".to_owned());
    }
    if key == "port" {
        for port in value
            .split(',')
            .map(str::trim)
            .filter(|port| !port.is_empty())
        {
            if !port.parse::<u16>().is_ok_and(|port| port > 0) {
                return wrong("give a number from 1 to 65535".to_owned());
            }
        }
    }
    if value.contains('\0') {
        return Err(Error::usage(format!("the value of {key} holds a NUL byte")));
    }
    Ok(())
}

pub(super) fn syntax(what: &str) -> Error {
    // The text itself is not quoted: it may hold a password.
    Error::usage(format!("the connection string is malformed: {what}"))
        .hint("write host=db port=5432 dbname=app user=me, or postgresql://me@db:5432/app")
}

/// Parses `key = 'value' …`; a backslash escapes the next character.
fn parse_pairs(text: &str) -> Result<ConnInfo> {
    let mut info = ConnInfo::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let name_end = rest.find(|c: char| c == '=' || c.is_whitespace());
        let (name, tail) = rest.split_at(name_end.unwrap_or(rest.len()));
        let tail = tail
            .trim_start()
            .strip_prefix('=')
            .ok_or_else(|| syntax("a word without ="))?;
        let (value, tail) = pair_value(tail.trim_start())?;
        info.set(name, &value)?;
        rest = tail.trim_start();
    }
    Ok(info)
}

fn pair_value(text: &str) -> Result<(String, &str)> {
    let (quoted, text) = match text.strip_prefix('\'') {
        Some(text) => (true, text),
        None => (false, text),
    };
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            '\'' if quoted => return Ok((value, &text[at + 1..])),
            c if !quoted && c.is_whitespace() => return Ok((value, &text[at..])),
            c => value.push(c),
        }
    }
    if quoted {
        return Err(syntax("a quoted value does not end"));
    }
    Ok((value, ""))
}

/// Appends `key='value'` so that libpq and [`ConnInfo::parse`] read it back.
pub(super) fn put_pair(out: &mut String, key: &str, value: &str) {
    if !out.is_empty() {
        out.push(' ');
    }
    let value = value.replace('\\', "\\\\").replace('\'', "\\'");
    let _ = write!(out, "{key}='{value}'");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn get(text: &str, key: &str) -> Option<String> {
        ConnInfo::parse(text).unwrap().get(key).map(str::to_owned)
    }

    #[test]
    fn pairs_are_read_as_libpq_reads_them() {
        let text = r"host = db  user='o\'neil' password=a\ b dbname='' options='-c x=\\y'";
        assert_eq!(get(text, "host").as_deref(), Some("db"));
        assert_eq!(get(text, "user").as_deref(), Some("o'neil"));
        assert_eq!(get(text, "password").as_deref(), Some("a b"));
        assert_eq!(get(text, "dbname"), None);
        assert_eq!(get(text, "options").as_deref(), Some(r"-c x=\y"));
        for wrong in [
            "host",
            "host='x",
            "=x",
            "hots=x",
            "port=0",
            "sslmode=yes",
            "port=http",
        ] {
            assert!(ConnInfo::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn uris_are_read_as_libpq_reads_them() {
        let uri = "postgresql://me:p%40ss%2F@h1:5433,[::1]:5434,h3/my%20db?sslmode=require&application_name=a%26b";
        assert_eq!(get(uri, "user").as_deref(), Some("me"));
        assert_eq!(get(uri, "password").as_deref(), Some("p@ss/"));
        assert_eq!(get(uri, "host").as_deref(), Some("h1,::1,h3"));
        assert_eq!(get(uri, "port").as_deref(), Some("5433,5434,"));
        assert_eq!(get(uri, "dbname").as_deref(), Some("my db"));
        assert_eq!(get(uri, "application_name").as_deref(), Some("a&b"));
        let socket = "postgres://%2Fvar%2Frun/app?ssl=true";
        assert_eq!(get(socket, "host").as_deref(), Some("/var/run"));
        assert_eq!(get(socket, "sslmode").as_deref(), Some("require"));
        assert_eq!(
            get("postgres:///app?host=/tmp", "host").as_deref(),
            Some("/tmp")
        );
        assert_eq!(get("postgres://", "host"), None);
        for wrong in [
            "postgres://h%zz/",
            "postgres://[::1",
            "postgres://h/db?x=1",
            "postgres://h?a",
        ] {
            assert!(ConnInfo::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_mistyped_keyword_names_the_right_one() {
        let error = ConnInfo::parse("hostadr=1.2.3.4").unwrap_err();
        assert_eq!(error.kind, crate::error::Kind::Usage);
        assert_eq!(error.hint.as_deref(), Some("did you mean hostaddr?"));
    }

    #[test]
    fn passwords_are_neither_debugged_nor_quoted_in_errors() {
        let info = ConnInfo::parse("host=h password=s3cret").unwrap();
        assert!(!format!("{info:?}").contains("s3cret"));
        for text in [
            "postgres://u:s3cret%zz@h",
            "password='s3cret",
            "password=s3cret port",
        ] {
            let error = ConnInfo::parse(text).unwrap_err();
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn the_environment_fills_only_what_is_unset() {
        let env = |name: &str| match name {
            "PGHOST" => Some("from-env".to_owned()),
            "PGUSER" => Some("env-user".to_owned()),
            "PGDATABASE" => Some(String::new()),
            "PGPASSWORD" => Some("x".to_owned()),
            _ => None,
        };
        let info = ConnInfo::parse("host=said")
            .unwrap()
            .or_environment(&env)
            .unwrap();
        assert_eq!(info.get("host"), Some("said"));
        assert_eq!(info.get("user"), Some("env-user"));
        assert_eq!(info.get("dbname"), None);
        assert_eq!(info.password_origin(), "PGPASSWORD");
    }

    #[test]
    fn the_service_file_comes_before_the_environment() {
        let folder = std::env::temp_dir().join(format!("pgark-service-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("pg_service.conf");
        std::fs::write(
            &file,
            "# c\n[other]\nhost=no\n\n[app]\nhost=svc\nport=5433\n",
        )
        .unwrap();
        let path = file.to_str().unwrap().to_owned();
        let env = |name: &str| match name {
            "PGSERVICEFILE" => Some(path.clone()),
            "PGSERVICE" => Some("app".to_owned()),
            "PGHOST" => Some("env".to_owned()),
            "PGUSER" => Some("env-user".to_owned()),
            _ => None,
        };
        let info = ConnInfo::parse("port=1")
            .unwrap()
            .or_environment(&env)
            .unwrap();
        assert_eq!(info.get("host"), Some("svc"));
        assert_eq!(info.get("port"), Some("1"));
        assert_eq!(info.get("user"), Some("env-user"));
        let missing = ConnInfo::parse("service=nope")
            .unwrap()
            .or_environment(&env);
        assert!(missing.unwrap_err().fact.contains("nope"));
        std::fs::remove_dir_all(folder).unwrap();
    }

    proptest! {
        #[test]
        fn quoted_pairs_round_trip(user in "\\PC{1,30}|[ '\\\\=\t\n\"]{1,10}", name in "\\PC{1,30}") {
            let mut text = String::new();
            put_pair(&mut text, "user", &user);
            put_pair(&mut text, "dbname", &name);
            let info = ConnInfo::parse(&text).unwrap();
            prop_assert_eq!(info.get("user"), Some(user.as_str()));
            prop_assert_eq!(info.get("dbname"), Some(name.as_str()));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,60}|(postgres://)?[a-z:@/\\[\\]%?&=,' \\\\]{0,40}") {
            let _ = ConnInfo::parse(&text);
        }
    }
}
