//! Where locks and records lie when the store is far away.
//!
//! Invariant: a directory that somebody else could have made, or could change, is not used.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::store::local::create_dir;

/// Makes the directory of locks and records where there is no local store; where it cannot be
/// made or written, one that goes with the machine's next start must do, with a warning.
pub(super) fn settle(dir: &mut PathBuf) -> Result<Option<String>> {
    let why = match usable(dir) {
        Ok(()) => return Ok(None),
        Err(error) => error,
    };
    let user = rustix::process::geteuid().as_raw();
    let own = std::env::temp_dir().join(format!("pgark-{user}"));
    // Each cluster its own, as in what was asked for.
    let instead = own.join(dir.strip_prefix("/").unwrap_or(dir));
    let text = format!("locks and records cannot lie in {}: {why}", dir.display());
    private(&own)
        .and_then(|()| usable(&instead))
        .map_err(|error| {
            Error::failed(format!("{text}; nor in {}: {error}", instead.display())).hint(
                "PGARK_STATE_DIR names a directory that pgark may write; in a read-only container, a tmpfs",
            )
        })?;
    let warning = format!(
        "{text}; they lie in {} until it is cleared (PGARK_STATE_DIR)",
        instead.display()
    );
    *dir = instead;
    Ok(Some(warning))
}

fn usable(dir: &Path) -> std::io::Result<()> {
    create_dir(dir)?;
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    Ok(rustix::fs::access(dir, access)?)
}

/// Where everybody may write, somebody else may have been first.
fn private(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    create_dir(dir)?;
    let about = std::fs::symlink_metadata(dir)?;
    let ours = about.uid() == rustix::process::geteuid().as_raw();
    if about.is_dir() && ours && about.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(std::io::Error::other(format!(
        "{} is somebody else's",
        dir.display()
    )))
}
