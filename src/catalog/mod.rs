//! What exists on a store: names, manifests, the commit protocol and the list of backups.
//!
//! Invariant: a backup exists exactly when its manifest does; the catalog is read from the store
//! and never kept anywhere else. (`known` saves reads; it is derived, and checked against the store.)

pub mod base;
pub mod commit;
pub mod known;
pub mod layout;
pub mod legacy;
pub mod list;
pub mod manifest;
pub mod remains;
pub mod state;
pub mod wal;

pub use commit::{begin, commit, ensure_sums, free_id, remove};
pub use legacy::check_legacy;
pub use list::{Catalog, Entry, State, load};
pub use manifest::{FileRecord, Manifest, NamedVersion, ObjectCount, TableCount};
pub use remains::clear_remains;
