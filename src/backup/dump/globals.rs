//! Roles and tablespaces of the cluster, as `pg_dumpall --globals-only` writes them.
//!
//! Two things differ. `CREATE ROLE` and `CREATE TABLESPACE` are guarded, because a role that
//! exists (the one that restores, at least) would stop the script; and the script refuses to
//! run cut, like every other. A role that may not read passwords gets the globals without them, and is
//! told so once.

use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use super::begin::FULL_HINT;
use super::schema;
use super::script::Envelope;
use crate::cancel::Token;
use crate::error::{Error, Result};
use crate::postgres::Target;
use crate::postgres::process::{Child, Finished};
use crate::postgres::tools::{PassFile, Program};

/// The script and what there is to tell about it.
pub(super) struct Globals {
    pub sql: Vec<u8>,
    pub warnings: Vec<String>,
    /// Said once, and no failure: the globals come without passwords.
    pub notice: Option<String>,
}

/// Reads the globals; without passwords when `with_passwords` is not set.
///
/// # Errors
/// What pg_dumpall said.
pub(super) fn read(
    program: &Program,
    target: &Target,
    with_passwords: bool,
    envelope: &Envelope,
    cancel: &Token,
) -> Result<Globals> {
    let mut attempt = 1;
    let sql = loop {
        match run(program, target, with_passwords, cancel)? {
            Ok(sql) => break sql,
            // Sessions that were just closed may still be counted.
            Err(said) if schema::is_full(&said) && attempt < 5 => {
                std::thread::sleep(Duration::from_millis(300) * attempt);
                attempt += 1;
            }
            Err(said) => {
                let full = schema::is_full(&said).then_some(FULL_HINT);
                return Err(Error::failed(format!(
                    "pg_dumpall: {}",
                    said.trim().replace('\n', "; ")
                ))
                .hint(
                    full.unwrap_or("the roles could not be read; `pgark backup` took no globals"),
                ));
            }
        }
    };
    let notice = (!with_passwords).then(|| {
        format!("{} may not read role passwords: the globals come without them; set them anew after a restore", target.user())
    });
    Ok(Globals {
        sql: guard_existing(&sql, envelope),
        warnings: Vec::new(),
        notice,
    })
}

/// Runs pg_dumpall; its script, or what it said.
fn run(
    program: &Program,
    target: &Target,
    with_passwords: bool,
    cancel: &Token,
) -> Result<std::result::Result<Vec<u8>, String>> {
    let passfile = PassFile::of(target)?;
    let mut command = program.command();
    command
        .envs(passfile.variables())
        .args(["--globals-only", "--no-password"])
        .arg(format!("--database={}", target.database()))
        .arg(format!(
            "--dbname={}",
            target.conninfo(Some(passfile.path()))
        ))
        .stdout(Stdio::piped());
    if !with_passwords {
        command.arg("--no-role-passwords");
    }
    let mut child = Child::spawn("pg_dumpall", &mut command)?;
    let hook = cancel.on_cancel(child.killer());
    let mut sql = Vec::new();
    let read = child
        .take_stdout()
        .map(|mut stdout| stdout.read_to_end(&mut sql));
    drop(hook);
    let Finished { status, stderr } = child.wait()?;
    cancel.check()?;
    let whole = matches!(read, Some(Ok(_))) && status.success();
    let whole = whole && sql.windows(COMPLETE.len()).any(|window| window == COMPLETE);
    Ok(if whole { Ok(sql) } else { Err(stderr) })
}

const COMPLETE: &[u8] = b"PostgreSQL database cluster dump complete";

/// Makes each `CREATE ROLE` and `CREATE TABLESPACE` of one that exists no error. Statements are
/// found with their quotes: a name may hold newlines.
fn guard_existing(script: &[u8], envelope: &Envelope) -> Vec<u8> {
    let (mut out, mut at) = (Vec::with_capacity(script.len() + 4096), 0);
    let (mut single, mut double, mut line_start) = (false, false, true);
    while at < script.len() {
        let rest = &script[at..];
        if line_start && !single && !double {
            // pg_dumpall's own key; pgark puts one around the whole file.
            let is_key = rest.starts_with(b"\\restrict ") || rest.starts_with(b"\\unrestrict ");
            if is_key || rest.starts_with(b"--") {
                let end = memchr::memchr(b'\n', rest).map_or(rest.len(), |end| end + 1);
                out.extend_from_slice(if is_key { b"" } else { &rest[..end] });
                at += end;
                continue;
            }
            let statement = &rest[..statement_end(rest)];
            if let Some(guarded) = guard(statement, envelope) {
                out.extend(guarded);
                at += statement.len();
                continue;
            }
        }
        match script[at] {
            b'\'' if !double => single = !single,
            b'"' if !single => double = !double,
            _ => {}
        }
        line_start = script[at] == b'\n';
        out.push(script[at]);
        at += 1;
    }
    out
}

/// The statement under its guard, or none when it needs none. Neither lies in dollar quotes,
/// which a name could end.
fn guard(statement: &[u8], envelope: &Envelope) -> Option<Vec<u8>> {
    const TABLESPACE: &[u8] = b"CREATE TABLESPACE ";
    if statement.starts_with(b"CREATE ROLE ") {
        let body = [
            b"BEGIN ",
            statement,
            b" EXCEPTION WHEN duplicate_object THEN NULL; END",
        ];
        return Some([b"DO ", literal(&body.concat()).as_slice(), b";"].concat());
    }
    // Not allowed in a block; psql runs what the query gives.
    let name = literal(&identifier(statement.strip_prefix(TABLESPACE)?));
    let query: [&[u8]; 5] = [
        b"SELECT ",
        &literal(statement),
        b" WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_tablespace WHERE spcname = ",
        &name,
        b")",
    ];
    Some(envelope.gexec(&query.concat()))
}

/// As a string literal under `standard_conforming_strings`, which pg_dumpall sets.
fn literal(text: &[u8]) -> Vec<u8> {
    let mut out = vec![b'\''];
    for &byte in text {
        out.extend_from_slice(if byte == b'\'' {
            b"''"
        } else {
            std::slice::from_ref(&byte)
        });
    }
    out.push(b'\'');
    out
}

/// The identifier at the beginning of `text`, without its quotes.
fn identifier(text: &[u8]) -> Vec<u8> {
    if text.first() != Some(&b'"') {
        let end = memchr::memchr(b' ', text).unwrap_or(text.len());
        return text[..end].to_vec();
    }
    let (mut name, mut bytes) = (Vec::new(), text[1..].iter().peekable());
    while let Some(&byte) = bytes.next() {
        if byte == b'"' && bytes.next_if_eq(&&b'"').is_none() {
            break;
        }
        name.push(byte);
    }
    name
}

/// The length of the statement at the beginning of `script`, its semicolon included.
fn statement_end(script: &[u8]) -> usize {
    let (mut single, mut double) = (false, false);
    for (at, byte) in script.iter().enumerate() {
        match byte {
            b'\'' if !double => single = !single,
            b'"' if !single => double = !double,
            b';' if !single && !double => return at + 1,
            _ => {}
        }
    }
    script.len()
}

#[cfg(test)]
mod tests {
    use super::{Envelope, guard_existing};

    fn guarded(script: &[u8]) -> String {
        // psql of this one knows no \restrict.
        let envelope = Envelope::new(150_000).unwrap();
        String::from_utf8(guard_existing(script, &envelope)).unwrap()
    }

    #[test]
    fn only_real_create_role_statements_are_guarded() {
        let text = guarded(
            b"--\nCREATE ROLE \"a;\nCREATE ROLE b's\";\nCOMMENT ON ROLE x IS 'y\nCREATE ROLE z;';\n",
        );
        assert_eq!(text.matches("DO '").count(), 1, "{text}");
        assert!(
            text.contains("DO 'BEGIN CREATE ROLE \"a;\nCREATE ROLE b''s\"; EXCEPTION"),
            "{text}"
        );
        assert!(text.ends_with("IS 'y\nCREATE ROLE z;';\n"), "{text}");
    }

    #[test]
    fn tablespaces_are_guarded_by_their_bare_name() {
        let text = guarded(
            b"CREATE TABLESPACE fast OWNER me LOCATION '/a;b';\nCREATE TABLESPACE \"a\"\" b\" OWNER me LOCATION '';\n",
        );
        let expected = "SELECT 'CREATE TABLESPACE fast OWNER me LOCATION ''/a;b'';' WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_tablespace WHERE spcname = 'fast') \\gexec\n";
        assert!(text.starts_with(expected), "{text}");
        assert!(text.ends_with("spcname = 'a\" b') \\gexec\n\n"), "{text}");
    }
}
