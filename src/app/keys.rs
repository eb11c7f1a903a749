//! The keys of age that the configuration names: whom to encrypt for, and what opens it again.
//!
//! Invariants: a recipient or identity that is none is an error at start, and its text is in no
//! message; a passphrase is asked for only when something must be opened, and not shown.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use super::App;
use crate::archive::crypt::{self, Crypt, Identities, IdentityFile, Recipients};
use crate::cancel::Token;
use crate::catalog::list::Entry;
use crate::config::Encryption;
use crate::error::{Error, Result};

/// How often somebody who waits for a passphrase looks for a signal.
const TICK: Duration = Duration::from_millis(100);
const PASSPHRASE_BYTES_MAX: usize = 4096;

/// For whom backups are encrypted.
///
/// # Errors
/// `Usage` naming the variable and the recipient's place in it.
pub(super) fn crypt(keys: &Encryption) -> Result<Crypt> {
    let Some((text, source)) = &keys.recipients else {
        return Ok(Crypt::None);
    };
    let recipients = Recipients::parse(text.expose()).map_err(|error| error.context(source))?;
    Ok(Crypt::Age(Arc::new(recipients)))
}

/// The identity as it was given, perhaps protected.
///
/// # Errors
/// `Usage` naming the variable and the line.
pub(super) fn identity_file(keys: &Encryption) -> Result<Option<IdentityFile>> {
    let Some((text, source)) = &keys.identity else {
        return Ok(None);
    };
    let file = IdentityFile::parse(text.expose()).map_err(|error| error.context(source))?;
    Ok(Some(file))
}

impl App {
    /// What opens encrypted backups, unlocked; none when no identity is configured.
    ///
    /// # Errors
    /// `Usage` for a wrong passphrase, or none where nobody can be asked.
    pub fn identities(&self) -> Result<Option<&Identities>> {
        let keys = &self.config.encryption;
        let Some(file) = identity_file(keys)? else {
            return Ok(None);
        };
        if let Some(known) = self.identities.get() {
            return Ok(Some(known));
        }
        let identities = match file {
            IdentityFile::Open(identities) => identities,
            IdentityFile::Protected(_) => {
                let source = self.identity_source();
                let passphrase = match &keys.passphrase {
                    Some(given) => given.expose().to_owned(),
                    None => ask(source, &self.cancel)?,
                };
                file.unlock(&passphrase)
                    .map_err(|error| error.context(source))?
            }
        };
        Ok(Some(self.identities.get_or_init(|| identities)))
    }

    /// As [`Self::identities`] for a run that nobody watches: none, too, where somebody would have
    /// to be asked.
    ///
    /// # Errors
    /// `Usage` for a wrong passphrase.
    pub fn identities_at_hand(&self) -> Result<Option<&Identities>> {
        let keys = &self.config.encryption;
        match identity_file(keys)? {
            Some(IdentityFile::Protected(_)) if keys.passphrase.is_none() => Ok(None),
            _ => self.identities(),
        }
    }

    /// What opens this backup, whose manifest is revealed on the way; none when it is not
    /// encrypted.
    ///
    /// # Errors
    /// `Usage` without an identity, or with that of somebody else; `Damage` when the manifest's
    /// sealed part is not as it was written.
    pub fn unseal(&self, entry: &mut Entry) -> Result<Option<&Identities>> {
        if !entry.encrypted {
            return Ok(None);
        }
        let manifest = entry.manifest.clone();
        let wanted = manifest.as_ref().map_or(&[][..], |found| &found.recipients);
        let identities = self
            .identities()?
            .ok_or_else(|| none_given(entry, wanted))?;
        ensure_match(entry, identities, wanted, self.identity_source())?;
        let open = |sealed: &[u8]| crypt::open(identities, sealed);
        entry.manifest = manifest.map(|found| found.reveal(&open)).transpose()?;
        Ok(Some(identities))
    }

    fn identity_source(&self) -> &str {
        let identity = self.config.encryption.identity.as_ref();
        identity.map_or("", |(_, source)| source)
    }
}

/// age does not say whom a file is encrypted for; the manifest does.
fn ensure_match(
    entry: &Entry,
    identities: &Identities,
    wanted: &[String],
    source: &str,
) -> Result<()> {
    let given = identities.recipients();
    if wanted.is_empty() || given.iter().any(|one| wanted.contains(one)) {
        return Ok(());
    }
    Err(Error::usage(format!(
        "{} is encrypted for {}; {source} holds the key of {}",
        entry.id,
        wanted.join(" and "),
        given.join(" and ")
    ))
    .hint(other_key(wanted)))
}

fn other_key(wanted: &[String]) -> String {
    let which = match wanted {
        [_] => "of that recipient",
        _ => "of one of them; each opens it alone",
    };
    format!("set BACKUP_IDENTITY_FILE to the file with the secret key {which}")
}

fn none_given(entry: &Entry, wanted: &[String]) -> Error {
    let whom = if wanted.is_empty() {
        String::new()
    } else {
        format!(" for {}", wanted.join(" and "))
    };
    Error::usage(format!(
        "{} is encrypted{whom}, and no identity is set",
        entry.id
    ))
    .hint(other_key(wanted))
}

/// Asks on the terminal, without showing what is typed.
fn ask(source: &str, cancel: &Token) -> Result<String> {
    let nobody = |_| {
        Error::usage(format!("{source} is protected by a passphrase"))
            .hint("set BACKUP_IDENTITY_PASSPHRASE_FILE, or run pgark on a terminal, where it asks")
    };
    let mut terminal = File::options()
        .read(true)
        .write(true)
        .open("/dev/tty")
        .map_err(nobody)?;
    let before = tcgetattr(&terminal).map_err(|error| nobody(error.into()))?;
    let hidden = Hidden::new(&terminal, before)?;
    // Only now: what is typed at once must neither be shown nor thrown away.
    write!(&terminal, "Passphrase of {source}: ")?;
    let answer = read_line(&terminal, cancel);
    drop(hidden);
    writeln!(terminal)?;
    answer
}

/// A terminal that does not show what is typed, until this is dropped.
struct Hidden<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Hidden<'a> {
    fn new(terminal: &'a File, before: Termios) -> Result<Hidden<'a>> {
        let mut modes = before.clone();
        modes.local_modes.remove(LocalModes::ECHO);
        tcsetattr(terminal, OptionalActions::Flush, &modes).map_err(std::io::Error::from)?;
        Ok(Hidden { terminal, before })
    }
}

impl Drop for Hidden<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.terminal, OptionalActions::Now, &self.before);
    }
}

fn read_line(mut terminal: &File, cancel: &Token) -> Result<String> {
    let tick = TICK.try_into().ok();
    let mut line = Vec::new();
    while line.len() < PASSPHRASE_BYTES_MAX {
        cancel.check()?;
        let mut fds = [PollFd::new(&terminal, PollFlags::IN)];
        match poll(&mut fds, tick.as_ref()) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(std::io::Error::from(error).into()),
        }
        let mut byte = [0];
        if terminal.read(&mut byte)? == 0 || byte == *b"\n" {
            break;
        }
        line.extend(byte);
    }
    String::from_utf8(line).map_err(|_| Error::usage("the passphrase is not UTF-8"))
}
