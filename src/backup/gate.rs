//! The gate that a new backup passes: compared with the good ones before it, is it suspect?
//!
//! Invariant: a suspect backup is kept like any other; only what is said of it differs. The gate
//! reads nothing: the catalog has the manifests already, and those hold what is compared.

use crate::anomaly::{self, Contents, Fall, Table, Thresholds};
use crate::catalog::list::{Catalog, Entry, State};
use crate::catalog::manifest::Manifest;
use crate::units::BackupKind;

/// What new backups are compared with.
pub struct Gate<'a> {
    pub catalog: &'a Catalog,
    pub limits: Thresholds,
}

impl Gate<'_> {
    /// The manifest with what the gate says of it.
    #[must_use]
    pub fn judged(&self, mut manifest: Manifest) -> Manifest {
        manifest.suspect = self.judge(&manifest);
        manifest
    }

    /// How the backup of this manifest fell against the good ones of its database. The same name
    /// on another server counts: a wrong server is what an empty database often means.
    #[must_use]
    pub fn judge(&self, manifest: &Manifest) -> Vec<Fall> {
        if manifest.kind != BackupKind::Dump {
            return Vec::new();
        }
        // Newest first in the catalog.
        let good = self.catalog.entries.iter().filter(|entry| {
            entry.good && entry.kind == BackupKind::Dump && entry.database == manifest.database
        });
        let manifests = good.filter_map(|entry| entry.manifest.as_ref());
        let mut history: Vec<Contents> =
            manifests.take(self.limits.history).map(contents).collect();
        history.reverse();
        anomaly::falls(&contents(manifest), &history, &self.limits)
    }
}

/// What a backup holds, as far as its manifest tells.
fn contents(manifest: &Manifest) -> Contents {
    let tables = manifest.tables.iter().map(|table| Table {
        name: format!("{}.{}", table.schema, table.name),
        rows: table.rows,
    });
    Contents {
        // The manifest of an encrypted one names no tables, nor may what is written into it.
        tables: (!manifest.encrypted).then(|| tables.collect()),
        rows: manifest.rows,
        large_objects: manifest.large_objects.as_ref().map_or(0, |one| one.count),
        raw_bytes: manifest.raw_bytes,
    }
}

/// The suspect backups that are accepted with this one: itself, and those of its database that
/// hold no less than it, as the nights after a fall do.
#[must_use]
pub fn accepted_with<'a>(
    catalog: &'a Catalog,
    entry: &Entry,
    limits: &Thresholds,
) -> Vec<&'a Entry> {
    let Some(accepted) = &entry.manifest else {
        return Vec::new();
    };
    let measure = [contents(accepted)];
    let suspect = catalog
        .entries
        .iter()
        .filter(|other| other.state == State::Suspect && other.database == entry.database);
    suspect
        .filter(|other| {
            let manifest = other.manifest.as_ref();
            let holds_it =
                |manifest| anomaly::falls(&contents(manifest), &measure, limits).is_empty();
            other.id == entry.id || manifest.is_some_and(holds_it)
        })
        .collect()
}
