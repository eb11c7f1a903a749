//! The two ends of a backup's way to the store: its writer, and its commit; encrypted where that is
//! asked for.
//!
//! Invariant: what is encrypted shows nothing from within the database, its manifest included.

use std::sync::Arc;

use super::Options;
use crate::archive::crypt::{self, Crypt};
use crate::archive::{ArtefactWriter, Written};
use crate::backup::gate::Gate;
use crate::catalog::{self, Manifest};
use crate::error::Result;
use crate::progress::Progress;
use crate::store::Store;
use crate::units::BackupId;

/// Begins the artefact and its index.
///
/// # Errors
/// As [`catalog::begin`].
pub(super) fn begin(
    store: &dyn Store,
    id: &BackupId,
    options: &Options,
    threads: usize,
    progress: &Arc<Progress>,
) -> Result<ArtefactWriter> {
    let (codec, crypt) = (options.codec, &options.crypt);
    let (artefact, index) = catalog::begin(store, id, codec, crypt.is_encrypted())?;
    let progress = Arc::clone(progress);
    Ok(ArtefactWriter::start(
        artefact,
        index,
        (codec, crypt),
        threads,
        progress,
    ))
}

/// Makes the backup exist; the manifest comes back in the clear.
///
/// # Errors
/// As [`catalog::commit`].
pub(super) fn commit(
    store: &dyn Store,
    written: Written,
    mut manifest: Manifest,
    crypt: &Crypt,
    gate: &Gate<'_>,
) -> Result<Manifest> {
    // The gate names no table of what is encrypted.
    manifest.encrypted = crypt.is_encrypted();
    let mut manifest = gate.judged(manifest);
    let Crypt::Age(recipients) = crypt else {
        return catalog::commit(store, written, manifest);
    };
    manifest.recipients = recipients.names();
    let details = manifest.conceal(&|json| crypt::seal(recipients, json))?;
    Ok(catalog::commit(store, written, manifest)?.with(details))
}
