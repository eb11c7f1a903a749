//! `pgark keygen`: a pair of keys for encrypted backups, as `age-keygen` makes one. Needs no
//! configuration, no store and no server.
//!
//! Invariant: a file that exists is never written over: it may be the only key to every backup.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde_json::json;

use super::args::{Global, Keygen};
use super::{note, print, print_json};
use crate::archive::crypt;
use crate::error::{Context as _, Error, Result};

pub(super) fn keygen(verb: &Keygen, global: &Global) -> Result<()> {
    let (recipient, identity) = crypt::generate()?;
    let text = format!(
        "# created: {}\n# public key: {recipient}\n{identity}\n",
        crate::clock::now().strftime("%Y-%m-%dT%H:%M:%SZ")
    );
    if let Some(path) = &verb.out {
        write_new(path, &text)?;
    }
    if global.json {
        let secret = verb.out.is_none().then_some(&identity);
        let file = verb.out.as_ref().map(|path| path.display().to_string());
        print_json(&json!({"recipient": recipient, "identity": secret, "file": file}))?;
    } else if verb.out.is_some() {
        print(&format!("{recipient}\n"))?;
    } else {
        print(&text)?;
    }
    if !global.quiet {
        advise(&recipient, verb.out.as_deref());
    }
    Ok(())
}

fn advise(recipient: &str, path: Option<&Path>) {
    let what = match path {
        Some(path) => format!("the secret key is in {}", path.display()),
        None => "the line AGE-SECRET-KEY-1… is the secret key".to_owned(),
    };
    note(&format!(
        "{what}: without it no backup can be restored; keep two copies of it, none on this server or beside the backups"
    ));
    note(&format!(
        "on the server set BACKUP_ENCRYPT_RECIPIENTS={recipient}"
    ));
    note("to restore, set BACKUP_IDENTITY_FILE to the file with the secret key");
}

fn write_new(path: &Path, text: &str) -> Result<()> {
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    let mut file = made.map_err(|error| {
        if error.kind() == ErrorKind::AlreadyExists {
            Error::usage(format!("{} exists; nothing was written", path.display()))
                .hint("name another file: a key that backups were made for must not get lost")
        } else {
            Error::failed(format!("cannot create {}: {error}", path.display()))
                .hint("name a file in a directory that you may write to")
        }
    })?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all());
    if let Err(error) = written {
        // Half a key is worse than none.
        let _ = std::fs::remove_file(path);
        return Err(Error::failed(format!(
            "cannot write {}: {error}",
            path.display()
        )));
    }
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))
        .and_then(|dir| dir.sync_all())
        .context(|| format!("cannot make {} durable", path.display()))
}
