//! Roles and tablespaces of the cluster, as `pg_dumpall --globals-only` writes them.
//!
//! Two things differ. `CREATE ROLE` is guarded, because a role that exists (the one that
//! restores, at least) would stop the script; and the script refuses to run cut, like
//! every other. A role that may not read passwords gets the globals without them, and is
//! told so once.

use std::io::Read;
use std::process::Stdio;

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
    cancel: &Token,
) -> Result<Globals> {
    let passfile = PassFile::create(target.passfile_line())?;
    let mut command = program.command();
    command
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
    if !whole || !sql.windows(COMPLETE.len()).any(|window| window == COMPLETE) {
        return Err(
            Error::failed(format!("pg_dumpall: {}", stderr.trim().replace('\n', "; ")))
                .hint("the roles could not be read; `pgark backup` took no globals"),
        );
    }
    let notice = (!with_passwords).then(|| {
        format!("{} may not read role passwords: the globals come without them; set them anew after a restore", target.user())
    });
    Ok(Globals {
        sql: guard_roles(&sql),
        warnings: Vec::new(),
        notice,
    })
}

const COMPLETE: &[u8] = b"PostgreSQL database cluster dump complete";

/// Wraps each `CREATE ROLE` so that a role which exists is no error. Statements are found with
/// their quotes: a role's name may hold newlines.
fn guard_roles(script: &[u8]) -> Vec<u8> {
    const CREATE: &[u8] = b"CREATE ROLE ";
    let (mut out, mut at) = (Vec::with_capacity(script.len() + 4096), 0);
    let (mut single, mut double, mut line_start) = (false, false, true);
    while at < script.len() {
        if line_start && !single && !double {
            // pg_dumpall's own key; pgark puts one around the whole file.
            let is_key = script[at..].starts_with(b"\\restrict ")
                || script[at..].starts_with(b"\\unrestrict ");
            if is_key || script[at..].starts_with(b"--") {
                let end = script[at..]
                    .iter()
                    .position(|&byte| byte == b'\n')
                    .map_or(script.len(), |end| at + end + 1);
                out.extend_from_slice(if is_key { b"" } else { &script[at..end] });
                at = end;
                continue;
            }
            if script[at..].starts_with(CREATE) {
                let end = statement_end(script, at);
                let statement = script[at..end]
                    .strip_suffix(b";")
                    .unwrap_or(&script[at..end]);
                out.extend_from_slice(b"DO $pgark$ BEGIN ");
                out.extend_from_slice(statement);
                out.extend_from_slice(b"; EXCEPTION WHEN duplicate_object THEN NULL; END $pgark$;");
                at = end;
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

/// The position behind the semicolon that ends the statement at `start`.
fn statement_end(script: &[u8], start: usize) -> usize {
    let mut quoted = false;
    for (at, byte) in script.iter().enumerate().skip(start) {
        match byte {
            b'"' => quoted = !quoted,
            b';' if !quoted => return at + 1,
            _ => {}
        }
    }
    script.len()
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_real_create_role_statements_are_guarded() {
        let script =
            b"--\nCREATE ROLE \"a;\nCREATE ROLE b\";\nCOMMENT ON ROLE x IS 'y\nCREATE ROLE z;';\n";
        let guarded = String::from_utf8(super::guard_roles(script)).unwrap();
        assert_eq!(guarded.matches("DO $pgark$").count(), 1, "{guarded}");
        assert!(
            guarded.contains("BEGIN CREATE ROLE \"a;\nCREATE ROLE b\"; EXCEPTION"),
            "{guarded}"
        );
        assert!(guarded.ends_with("IS 'y\nCREATE ROLE z;';\n"), "{guarded}");
    }
}
