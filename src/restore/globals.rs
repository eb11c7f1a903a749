//! `--globals`: roles and tablespaces of a backup, into a server that may have some of them.
//!
//! The script is the one that anybody can pipe into psql; here it is taken apart, because piped
//! it would also give existing roles the backup's passwords and rights. Roles and tablespaces that
//! exist are left alone, with everything that the script says about them.
//!
//! Invariants: all roles are made in one transaction, so that a crash leaves all or none; no
//! statement is ever quoted in an error, because it may hold a password. Tablespaces follow one by
//! one (the server allows no transaction there), and what was made is found again by the next run.

use std::collections::BTreeSet;

use super::needs::identifier;
use crate::error::{Error, Result};
use crate::postgres::{Client, quote_ident_bytes};

/// What one statement is about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum About {
    Session,
    CreateRole(Vec<u8>),
    Role(Vec<u8>),
    /// The member's name: a membership is a matter of the member.
    Member(Vec<u8>),
    CreateTablespace(Vec<u8>),
    Tablespace(Vec<u8>),
}

/// A globals script taken apart.
pub struct Globals(Vec<(About, Vec<u8>)>);

/// What was done, or would be.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub created: Vec<String>,
    /// Roles and tablespaces that exist and were left alone.
    pub left_alone: Vec<String>,
    pub warnings: Vec<String>,
}

impl Globals {
    /// Takes the script apart.
    ///
    /// # Errors
    /// `Failed` for a statement of a kind that is not known here.
    pub fn parse(script: &[u8]) -> Result<Globals> {
        split(script)
            .into_iter()
            .map(|sql| match about(&sql) {
                Some((about, sql)) => Ok((about, sql)),
                None => Err(Error::failed(format!(
                    "the globals hold a statement of an unknown kind, {}",
                    // Never more of it: a password comes later in the text.
                    String::from_utf8_lossy(&sql)
                        .split_whitespace()
                        .take(2)
                        .collect::<Vec<_>>()
                        .join(" ")
                ))
                .hint("restore them by hand: pgark cat GLOBALS | psql -X -d postgres")),
            })
            .collect::<Result<_>>()
            .map(Globals)
    }

    /// Names of all roles and tablespaces in it.
    #[must_use]
    pub fn names(&self) -> BTreeSet<Vec<u8>> {
        let creates = self.0.iter().filter_map(|(about, _)| match about {
            About::CreateRole(name) | About::CreateTablespace(name) => Some(name.clone()),
            _ => None,
        });
        creates.collect()
    }

    /// What a restore would create and leave alone.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn plan(&self, admin: &mut Client) -> Result<Outcome> {
        self.session(admin)?;
        let (roles, tablespaces) = (existing(admin, ROLES)?, existing(admin, TABLESPACES)?);
        let mut outcome = Outcome::default();
        for (about, _) in &self.0 {
            let (word, name, there) = match about {
                About::CreateRole(name) => ("role", name, &roles),
                About::CreateTablespace(name) => ("tablespace", name, &tablespaces),
                _ => continue,
            };
            let list = if there.contains(name) {
                &mut outcome.left_alone
            } else {
                &mut outcome.created
            };
            list.push(format!("{word} {}", String::from_utf8_lossy(name)));
        }
        Ok(outcome)
    }

    fn session(&self, admin: &mut Client) -> Result<()> {
        for (_, sql) in self.0.iter().filter(|(about, _)| *about == About::Session) {
            admin.execute(sql)?;
        }
        Ok(())
    }

    /// Creates what is missing.
    ///
    /// # Errors
    /// `Failed` with the role or tablespace at fault. No role was made then; tablespaces come last.
    pub fn restore(&self, admin: &mut Client) -> Result<Outcome> {
        let mut outcome = self.plan(admin)?;
        let (roles, tablespaces) = (existing(admin, ROLES)?, existing(admin, TABLESPACES)?);
        admin.execute("BEGIN")?;
        let made = self.roles(admin, &roles, &mut outcome.warnings);
        admin.execute(if made.is_ok() { "COMMIT" } else { "ROLLBACK" })?;
        made?;
        for (about, sql) in &self.0 {
            let (About::CreateTablespace(name) | About::Tablespace(name)) = about else {
                continue;
            };
            if !tablespaces.contains(name) {
                admin.execute(sql).map_err(|error| {
                    error
                        .context(format!("cannot restore tablespace {}", String::from_utf8_lossy(name)))
                        .hint("make its directory on the server's machine, empty and owned by the server's user, and run this again: what exists is left alone")
                })?;
            }
        }
        Ok(outcome)
    }

    fn roles(
        &self,
        admin: &mut Client,
        there: &BTreeSet<Vec<u8>>,
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        for (about, sql) in &self.0 {
            match about {
                About::CreateRole(name) | About::Role(name) if !there.contains(name) => {
                    admin.execute(sql).map_err(|error| {
                        let (name, first) = (String::from_utf8_lossy(name), error.fact.lines().next().unwrap_or_default());
                        Error { fact: format!("cannot restore role {name}: {first}; no role was created"), ..error.clone() }
                            .hint("only a superuser may make every role; by hand, leaving out what is not allowed: pgark cat GLOBALS | psql -X -d postgres")
                    })?;
                }
                About::Member(member) if !there.contains(member) => {
                    admin.execute("SAVEPOINT pgark_member")?;
                    if let Err(error) = admin.execute(sql) {
                        if error.sqlstate.is_none() {
                            return Err(error);
                        }
                        admin.execute("ROLLBACK TO pgark_member")?;
                        warnings.push(format!(
                            "a membership or right of role {} was not restored: {}",
                            String::from_utf8_lossy(member),
                            error.fact.lines().next().unwrap_or_default()
                        ));
                    }
                    admin.execute("RELEASE pgark_member")?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

const ROLES: &str = "SELECT rolname FROM pg_catalog.pg_roles";
const TABLESPACES: &str = "SELECT spcname FROM pg_catalog.pg_tablespace";

fn existing(admin: &mut Client, sql: &str) -> Result<BTreeSet<Vec<u8>>> {
    let rows = admin.query(sql)?;
    Ok(rows
        .iter()
        .filter_map(|row| row.bytes(0).map(<[u8]>::to_vec))
        .collect())
}

/// Statements, each to its semicolon or `\gexec`, without comments and psql's own lines.
fn split(script: &[u8]) -> Vec<Vec<u8>> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < script.len() {
        let rest = &script[at..];
        if rest[0].is_ascii_whitespace() {
            at += 1;
        } else if rest.starts_with(b"--") || rest[0] == b'\\' {
            at += memchr::memchr(b'\n', rest).map_or(rest.len(), |end| end + 1);
        } else {
            let end = statement_end(rest);
            found.push(rest[..end].to_vec());
            at += end;
        }
    }
    found
}

fn statement_end(script: &[u8]) -> usize {
    let (mut single, mut double) = (false, false);
    for (at, byte) in script.iter().enumerate() {
        match byte {
            b'\'' if !double => single = !single,
            b'"' if !single => double = !double,
            b';' if !single && !double => return at + 1,
            b'\\' if !single && !double => return at,
            _ => {}
        }
    }
    script.len()
}

/// What the statement is about, and what to run for it.
fn about(sql: &[u8]) -> Option<(About, Vec<u8>)> {
    let name = |text: &[u8]| identifier(text).map(|(name, _)| name);
    let strip = |start: &[u8]| sql.strip_prefix(start);
    // A role under its guard, a tablespace under its condition: the text within.
    if let Some(body) =
        strip(b"DO 'BEGIN CREATE ROLE ").or_else(|| strip(b"DO E'BEGIN CREATE ROLE "))
    {
        let name = name(&unquoted(body))?;
        let create = [b"CREATE ROLE ".as_slice(), &quote_ident_bytes(&name)].concat();
        return Some((About::CreateRole(name), create));
    }
    if let Some(literal) = strip(b"SELECT '") {
        let create = unquoted(literal);
        let name = name(create.strip_prefix(b"CREATE TABLESPACE ")?)?;
        return Some((About::CreateTablespace(name), create));
    }
    let about = if strip(b"SET ").is_some() {
        About::Session
    } else if let Some(rest) = strip(b"CREATE ROLE ") {
        About::CreateRole(name(rest)?)
    } else if let Some(rest) = strip(b"CREATE TABLESPACE ") {
        About::CreateTablespace(name(rest)?)
    } else if let Some(rest) = strip(b"ALTER ROLE ").or_else(|| strip(b"COMMENT ON ROLE ")) {
        About::Role(name(rest)?)
    } else if let Some(rest) =
        strip(b"ALTER TABLESPACE ").or_else(|| strip(b"COMMENT ON TABLESPACE "))
    {
        About::Tablespace(name(rest)?)
    } else if strip(b"SECURITY LABEL ").is_some() {
        match after(sql, b" ON ROLE ") {
            Some(rest) => About::Role(name(rest)?),
            None => About::Tablespace(name(after(sql, b" ON TABLESPACE ")?)?),
        }
    } else if strip(b"GRANT ").or_else(|| strip(b"REVOKE ")).is_some() {
        match after(sql, b" ON TABLESPACE ") {
            Some(rest) => About::Tablespace(name(rest)?),
            // A membership, or a right on a parameter.
            None => About::Member(name(
                after(sql, b" TO ").or_else(|| after(sql, b" FROM "))?,
            )?),
        }
    } else {
        return None;
    };
    Some((about, sql.to_vec()))
}

/// What follows the words outside double quotes.
fn after<'a>(sql: &'a [u8], words: &[u8]) -> Option<&'a [u8]> {
    let mut quoted = false;
    let at = (0..sql.len()).find(|&at| {
        quoted ^= sql[at] == b'"';
        !quoted && sql[at..].starts_with(words)
    })?;
    Some(&sql[at + words.len()..])
}

/// A literal's text, from behind its opening quote to its end.
fn unquoted(literal: &[u8]) -> Vec<u8> {
    let (mut text, mut at) = (Vec::new(), 0);
    while let Some(&byte) = literal.get(at) {
        if byte == b'\'' {
            if literal.get(at + 1) != Some(&b'\'') {
                break;
            }
            at += 1;
        }
        text.push(byte);
        at += 1;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &[u8] = b"\\if true\n-- pgark: roles\n\\set ON_ERROR_STOP on\n\\restrict x\n\nSET client_encoding = 'UTF8';\n--\n-- Roles; with a semicolon\n--\n\
        DO 'BEGIN CREATE ROLE \"it''s; a\"; EXCEPTION WHEN duplicate_object THEN NULL; END';\nALTER ROLE \"it's; a\" WITH LOGIN PASSWORD 'SCRAM;x';\n\
        COMMENT ON ROLE b IS 'x\nCREATE ROLE z;';\nALTER ROLE b SET search_path TO 'a', 'b';\nGRANT grp TO \"x TO y\" WITH INHERIT TRUE GRANTED BY postgres;\n\
        GRANT SET ON PARAMETER work_mem TO b;\n\\unrestrict x\nSELECT 'CREATE TABLESPACE \"f;t\" OWNER me LOCATION ''/a b'';' WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_tablespace WHERE spcname = 'f;t') \\gexec\n\\restrict x\n\
        ALTER TABLESPACE fast SET (seq_page_cost=2);\nREVOKE ALL ON TABLESPACE fast FROM me;\nSECURITY LABEL FOR p ON TABLESPACE fast IS 'l';\n\n\\unrestrict x\n-- pgark: complete, roles and tablespaces\n\\endif\n";

    #[test]
    fn every_statement_is_known_by_whom_it_is_about() {
        let globals = Globals::parse(SCRIPT).unwrap();
        let found: Vec<String> = globals
            .0
            .iter()
            .map(|(about, _)| match about {
                About::Session => "session".to_owned(),
                About::CreateRole(name) => format!("create {}", String::from_utf8_lossy(name)),
                About::Role(name) => format!("role {}", String::from_utf8_lossy(name)),
                About::Member(name) => format!("member {}", String::from_utf8_lossy(name)),
                About::CreateTablespace(name) => format!("space {}", String::from_utf8_lossy(name)),
                About::Tablespace(name) => format!("of space {}", String::from_utf8_lossy(name)),
            })
            .collect();
        assert_eq!(
            found,
            [
                "session",
                "create it's; a",
                "role it's; a",
                "role b",
                "role b",
                "member x TO y",
                "member b",
                "space f;t",
                "of space fast",
                "of space fast",
                "of space fast"
            ]
        );
        assert_eq!(globals.0[1].1, b"CREATE ROLE \"it's; a\"");
        assert_eq!(
            globals.0[7].1,
            b"CREATE TABLESPACE \"f;t\" OWNER me LOCATION '/a b';"
        );
        assert_eq!(
            globals.names(),
            BTreeSet::from([b"it's; a".to_vec(), b"f;t".to_vec()])
        );
    }

    #[test]
    fn an_unknown_statement_is_refused_without_its_secrets() {
        let error = Globals::parse(b"CREATE WONDER x PASSWORD 'hush';")
            .err()
            .unwrap();
        assert!(
            error.fact.contains("CREATE WONDER") && !error.to_string().contains("hush"),
            "{error}"
        );
    }

    proptest::proptest! {
        #[test]
        fn no_script_makes_it_panic(script in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = Globals::parse(&script);
            let _ = Globals::parse(&[b"DO 'BEGIN CREATE ROLE ".as_slice(), &script].concat());
        }
    }
}
