//! Directories and files as a server wants them. A crash leaves a part of one.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::extract::Owner;
use crate::error::{Context, Result};

/// A directory as a server wants it.
pub(super) fn make(dir: &Path, owner: Option<Owner>) -> Result<()> {
    let context = || format!("cannot create {}", dir.display());
    if !dir.is_dir() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .context(context)?;
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).context(context)?;
    owner.map_or(Ok(()), |owner| owner.give(dir))
}

/// A new file, durable.
pub(super) fn write(path: &Path, content: &[u8], owner: Option<Owner>) -> Result<()> {
    let mut options = fs::OpenOptions::new();
    let options = options.write(true).create_new(true).mode(0o600);
    let written = options.open(path).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    });
    written.context(|| format!("cannot write {}", path.display()))?;
    owner.map_or(Ok(()), |owner| owner.give(path))
}

pub(super) fn append(path: &Path, text: &str, owner: Option<Owner>) -> Result<()> {
    let mut options = fs::OpenOptions::new();
    let options = options.append(true).create(true).mode(0o600);
    let written = options
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    written.context(|| format!("cannot write {}", path.display()))?;
    owner.map_or(Ok(()), |owner| owner.give(path))
}
