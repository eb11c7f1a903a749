//! Re-reads a base backup: every artefact's hash, every frame, every file against the server's own
//! manifest (sizes and CRC-32C), and whether `pg_wal` holds the WAL from start to end.
//!
//! Does not prove that a server starts on it; a drill does.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;

use super::{Verified, is_shallow, only_stored, stored};
use crate::archive::crc32c::Crc32c;
use crate::archive::tar::{MemberKind, Piece, TarParser};
use crate::archive::{Artefact, Identities, Index};
use crate::cancel::Token;
use crate::catalog::base::BAD_CHECKSUMS;
use crate::catalog::layout::base_key;
use crate::catalog::list::Entry;
use crate::catalog::manifest::{ArchiveRecord, BaseRecord, Manifest};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::store::{self, Key, Store};
use crate::units::{ByteSize, SegmentName};

/// `backup_manifest`, as far as it is needed.
#[derive(Deserialize)]
struct Listing {
    #[serde(rename = "Files")]
    files: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    #[serde(rename = "Path")]
    path: Option<String>,
    /// A path that is not UTF-8, in hex.
    #[serde(rename = "Encoded-Path")]
    encoded: Option<String>,
    #[serde(rename = "Size")]
    size: u64,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: Option<String>,
    #[serde(rename = "Checksum")]
    checksum: Option<String>,
}

/// Size and CRC-32C (when that is the algorithm) by path.
type Expected = HashMap<Vec<u8>, (u64, Option<String>)>;

/// What opens it, threads, and whom to tell and ask.
type With<'a> = (Option<&'a Identities>, usize, &'a Progress, &'a Token);

/// Verifies a base backup that has a manifest; says what was read.
///
/// # Errors
/// `Damage` at the first difference, with its place; also for a backup of damaged pages.
pub(super) fn content(
    store: &dyn Store,
    entry: &Entry,
    manifest: &Manifest,
    with: With<'_>,
) -> Result<String> {
    let (identities, _, _, cancel) = with;
    let Some(base) = manifest.base.as_ref() else {
        return Err(Error::damage("it is no base backup"));
    };
    if is_shallow(entry, identities) {
        for file in manifest.files() {
            cancel.check()?;
            stored(store, &base_key(&entry.id, &file.name)?, file)?;
        }
        return Ok(only_stored(entry));
    }
    let done = verify(store, entry, base, with)?;
    Ok(format!(
        "{} in {} frames, {} files",
        ByteSize(done.raw_bytes),
        done.frames,
        done.rows
    ))
}

fn verify(
    store: &dyn Store,
    entry: &Entry,
    base: &BaseRecord,
    (identities, threads, progress, cancel): With<'_>,
) -> Result<Verified> {
    let identities = identities.filter(|_| entry.encrypted);
    let mut expected = expected(store, entry, base)?;
    let mut done = Verified::default();
    for archive in &base.archives {
        cancel.check()?;
        let key = base_key(&entry.id, &archive.file.name)?;
        stored(store, &key, &archive.file)?;
        let index_key = base_key(&entry.id, &archive.index.name)?;
        let index = Index::read(store, &index_key, &archive.index.sha256, identities)?;
        let artefact = Artefact::open(store, key.clone(), entry.codec, identities)?;
        let mut check = Check {
            key: &key,
            prefix: archive
                .oid
                .map_or(String::new(), |oid| format!("pg_tblspc/{oid}/")),
            is_wal: archive.file.name.starts_with("pg_wal.tar"),
            expected: &mut expected,
            segments: BTreeMap::new(),
            open: None,
            files: 0,
        };
        check.read(&artefact, &index, (threads, progress, cancel))?;
        same_counts(&key, archive, &index)?;
        if check.is_wal {
            check.wal_is_whole(base)?;
        }
        done.bytes += archive.file.bytes;
        done.raw_bytes += archive.raw_bytes;
        done.frames += archive.frames;
        done.rows += check.files;
    }
    if let Some(path) = expected.keys().min() {
        let path = String::from_utf8_lossy(path);
        return Err(Error::damage(format!(
            "{}: {path} is in no archive",
            entry.id
        )));
    }
    if base.bad_checksums {
        return Err(Error::damage(format!("{}: {BAD_CHECKSUMS}", entry.id)));
    }
    Ok(done)
}

fn same_counts(key: &Key, archive: &ArchiveRecord, index: &Index) -> Result<()> {
    if (archive.raw_bytes, archive.frames) == (index.raw_bytes, index.frames.len() as u64) {
        return Ok(());
    }
    Err(Error::damage(format!(
        "{key}: the manifest counts other frames than the index"
    )))
}

fn expected(store: &dyn Store, entry: &Entry, base: &BaseRecord) -> Result<Expected> {
    let key = base_key(&entry.id, &base.backup_manifest.name)?;
    stored(store, &key, &base.backup_manifest)?;
    let json = store::get(store, &key)?.ok_or_else(|| store::missing(store, &key))?;
    let damage = |what: &dyn std::fmt::Display| Error::damage(format!("{key}: {what}"));
    let listing: Listing = serde_json::from_slice(&json).map_err(|error| damage(&error))?;
    let mut expected = Expected::new();
    for file in listing.files {
        let path = match (file.path, file.encoded) {
            (Some(path), _) => path.into_bytes(),
            (None, Some(encoded)) => hex::decode(encoded).map_err(|error| damage(&error))?,
            (None, None) => return Err(damage(&"a file has no path")),
        };
        let crc = file
            .checksum
            .filter(|_| file.algorithm.as_deref() == Some("CRC32C"));
        expected.insert(path, (file.size, crc));
    }
    Ok(expected)
}

/// One archive being compared.
struct Check<'a> {
    key: &'a Key,
    prefix: String,
    is_wal: bool,
    expected: &'a mut Expected,
    segments: BTreeMap<String, u64>,
    /// Path, bytes so far, checksum so far.
    open: Option<(Vec<u8>, u64, Crc32c)>,
    files: u64,
}

impl Check<'_> {
    fn read(
        &mut self,
        artefact: &Artefact<'_>,
        index: &Index,
        with: (usize, &Progress, &Token),
    ) -> Result<()> {
        let (threads, progress, cancel) = with;
        let mut parser = TarParser::default();
        artefact.stream(index, threads, &mut |raw, _| {
            cancel.check()?;
            parser.feed(raw, &mut |piece| self.piece(piece))?;
            progress.add(raw.len() as u64, 0);
            Ok(())
        })?;
        parser.finish().map_err(|error| error.context(self.key))
    }

    fn piece(&mut self, piece: Piece) -> Result<()> {
        match piece {
            Piece::Begin(member) if member.kind == MemberKind::File => {
                let path = [self.prefix.as_bytes(), &member.path].concat();
                self.open = Some((path, 0, Crc32c::default()));
            }
            Piece::Begin(_) => {}
            Piece::Data(bytes) => {
                if let Some((_, count, crc)) = &mut self.open {
                    *count += bytes.len() as u64;
                    if !self.is_wal {
                        crc.update(bytes);
                    }
                }
            }
            Piece::End => {
                if let Some((path, bytes, crc)) = self.open.take() {
                    self.file(&path, bytes, crc)?;
                }
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &[u8], bytes: u64, crc: Crc32c) -> Result<()> {
        self.files += 1;
        let name = String::from_utf8_lossy(path);
        if self.is_wal {
            self.segments.insert(name.into_owned(), bytes);
            return Ok(());
        }
        let Some((size, checksum)) = self.expected.remove(path) else {
            return Err(Error::damage(format!(
                "{}: {name} is not in backup_manifest",
                self.key
            )));
        };
        if size != bytes || checksum.is_some_and(|checksum| checksum != crc.hex()) {
            return Err(Error::damage(format!(
                "{}: {name} is not what backup_manifest says",
                self.key
            )));
        }
        Ok(())
    }

    /// Every segment from the start to the end is there in full length.
    fn wal_is_whole(&self, base: &BaseRecord) -> Result<()> {
        let size = base.wal_segment_bytes;
        let mut at = base.start_lsn.segment_start(size);
        while at < base.end_lsn {
            let name = SegmentName::holding(base.start_timeline, at, size).to_string();
            if self.segments.get(&name) != Some(&size.bytes()) {
                return Err(Error::damage(format!(
                    "{}: segment {name} is not whole",
                    self.key
                )));
            }
            at = at.plus(size.bytes());
        }
        Ok(())
    }
}
