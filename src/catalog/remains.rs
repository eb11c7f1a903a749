//! Clears what crashed runs left, and nothing else.
//!
//! What is a remain, and why it is safe to delete it:
//! - A temporary name of a dump or globals: its pattern is pgark's alone, and the caller holds
//!   the lock under which they are written, so its writer is dead. Any other temporary name (a
//!   state file, a base backup) may belong to a living run under another lock: after a day.
//! - An artefact without manifest and without `.sha256`, with pgark's mark at its beginning:
//!   the crash came between two steps of the commit or of a deletion. After a day, or at once
//!   when a dead run had noted its id.
//! - An uncompressed artefact that is not encrypted shows no sure mark: a dead run must have noted it.
//! - An index without manifest and without `.sha256`: by its own first line, or by the mark when it
//!   is encrypted, under the same ages.
//! - An outcome without any file of its backup, after a day.
//!
//! What is never touched: an artefact with a `.sha256` and no manifest (legacy, always); one
//! without mark (a dump of the old service in the making: it writes the `.sha256` last); every
//! name that `layout` does not know. A crash in here leaves fewer remains.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};

use jiff::{SignedDuration, Timestamp};

use super::base::in_base_folder;
use super::layout::{Part, STATE_FOLDER, in_wal_folder, parse_key, parse_state_key};
use crate::error::Result;
use crate::store::local::final_name;
use crate::store::mark::{MARK_BYTES, has_mark};
use crate::store::{Key, Object, Store, StoreReader};
use crate::units::{BackupId, Codec};

/// An orphan younger than this may still get its manifest.
const AGE_MIN: SignedDuration = SignedDuration::from_hours(24);

/// Clears remains; returns the deleted names. The caller holds the lock of runs that take dumps.
/// `dead_run_ids` are the ids that earlier holders had noted.
///
/// # Errors
/// As the store; what was cleared before stays cleared.
pub fn clear_remains(
    store: &dyn Store,
    now: Timestamp,
    dead_run_ids: &[String],
) -> Result<Vec<String>> {
    let mut cleared = Vec::new();
    let mut clear = |key: &Key| -> Result<()> {
        if store.delete(key)? {
            cleared.push(key.to_string());
        }
        Ok(())
    };
    let old = |object: &Object| now.duration_since(object.modified) > AGE_MIN;

    for object in store.unfinished()? {
        // Base backups and WAL are written under locks of their own: `catalog::base` and
        // `catalog::wal` clear theirs.
        if in_base_folder(&object.key) || in_wal_folder(&object.key) {
            continue;
        }
        let name = final_name(object.key.file_name());
        if name.is_some_and(|name| parse_key(name).is_some()) || old(&object) {
            clear(&object.key)?;
        }
    }
    let objects = store.list("")?;
    let mut families: BTreeMap<(BackupId, &str, bool), BTreeMap<Part, &Object>> = BTreeMap::new();
    for object in &objects {
        if let Some((id, codec, encrypted, part)) = parse_key(object.key.as_str()) {
            let family = families.entry((id, codec.name(), encrypted)).or_default();
            family.insert(part, object);
        }
    }
    for ((id, codec, encrypted), family) in &families {
        if family.contains_key(&Part::Manifest) || family.contains_key(&Part::Sums) {
            continue;
        }
        let dead = dead_run_ids.iter().any(|dead| dead == id.as_str());
        let markless = !encrypted && *codec == Codec::None.name();
        // Index first, as in every deletion.
        for part in [Part::Index, Part::Artefact] {
            let Some(object) = family.get(&part) else {
                continue;
            };
            if !dead && !old(object) {
                continue;
            }
            // What cannot be read is not provably ours, and must not stop a backup.
            if is_ours(store, &object.key).unwrap_or(false) || (dead && markless) {
                clear(&object.key)?;
            }
        }
    }
    clear_outcomes(store, &old, &mut clear)?;
    Ok(cleared)
}

/// Outcomes of which no file of their backup is left.
fn clear_outcomes(
    store: &dyn Store,
    old: &dyn Fn(&Object) -> bool,
    clear: &mut dyn FnMut(&Key) -> Result<()>,
) -> Result<()> {
    let left = store.list("")?;
    let alive: BTreeSet<BackupId> = left
        .iter()
        .filter_map(|object| Some(parse_key(object.key.as_str())?.0))
        .collect();
    for object in store.list(STATE_FOLDER)? {
        let Some((id, _)) = parse_state_key(object.key.as_str()) else {
            continue;
        };
        let dump = id.kind() != crate::units::BackupKind::Base;
        if dump && !alive.contains(&id) && old(&object) {
            clear(&object.key)?;
        }
    }
    Ok(())
}

/// Whether an artefact or index shows by itself that pgark wrote it.
pub(super) fn is_ours(store: &dyn Store, key: &Key) -> Result<bool> {
    let Some(object) = store.stat(key)? else {
        return Ok(false);
    };
    if matches!(parse_key(key.as_str()), Some((_, _, false, Part::Index))) {
        return Ok(is_index(StoreReader::open(store, key)?));
    }
    let first = store.read(key, 0..object.bytes.min(MARK_BYTES))?;
    Ok(has_mark(&first))
}

/// Whether the first line inside is that of an index.
fn is_index(source: impl Read) -> bool {
    let mut line = Vec::new();
    let Ok(decoder) = zstd::stream::read::Decoder::new(source) else {
        return false;
    };
    // What does not decode is not provably ours.
    let read = BufReader::new(decoder.take(4096)).read_until(b'\n', &mut line);
    read.is_ok() && line.starts_with(b"{\"pgark_index\":")
}
