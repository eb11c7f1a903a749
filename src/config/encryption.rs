//! Keys of age as they were given; `archive::crypt` reads them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::load::setting;
use super::{Environment, Secret};
use crate::error::Result;

/// Keys of age, each with the variable, or variable and path, that gave it, for messages.
#[derive(Debug, Clone)]
pub struct Encryption {
    /// Public keys; hidden all the same, since somebody may give a secret one by mistake.
    pub recipients: Option<(Secret, String)>,
    pub identity: Option<(Secret, String)>,
    pub passphrase: Option<Secret>,
}

pub(super) fn load(env: &Environment) -> Result<Encryption> {
    let given = |name| -> Result<Option<(Secret, String)>> {
        Ok(setting(name, env)?.map(|found| (Secret::new(found.text), found.source)))
    };
    Ok(Encryption {
        recipients: given("BACKUP_ENCRYPT_RECIPIENTS")?,
        identity: given("BACKUP_IDENTITY")?,
        passphrase: given("BACKUP_IDENTITY_PASSPHRASE")?.map(|(secret, _)| secret),
    })
}

/// The text of a file. One of `age -p` is binary; it becomes what `age -p -a` writes. None for
/// anything else that is not UTF-8.
pub(super) fn text(bytes: Vec<u8>) -> Option<String> {
    if !bytes.starts_with(b"age-encryption.org/") {
        return String::from_utf8(bytes).ok();
    }
    let body = STANDARD.encode(bytes);
    Some(format!(
        "-----BEGIN AGE ENCRYPTED FILE-----\n{body}\n-----END AGE ENCRYPTED FILE-----"
    ))
}
