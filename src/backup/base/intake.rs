//! Where the bytes of BASE_BACKUP go: each archive into frames, the server's manifest as it is.
//!
//! Invariants: an archive appears under its name when it is whole; memory is that of one archive's
//! pipeline; what the sink copies, it copies once, from the receive buffer into a frame.

use sha2::{Digest, Sha256};

use super::wal::Collector;
use super::{Run, store_archive};
use crate::archive::ArtefactWriter;
use crate::archive::tar::TarFrames;
use crate::catalog::commit::same_size;
use crate::catalog::layout::{BACKUP_MANIFEST, Part, base_key};
use crate::catalog::manifest::{ArchiveRecord, FileRecord};
use crate::error::{Error, Result};
use crate::postgres::replication::{Archive, BaseEvent, Tablespace};
use crate::store::{Put, Upload};
use crate::units::BackupId;

pub(super) struct Intake<'a> {
    run: &'a Run<'a>,
    id: &'a BackupId,
    collector: &'a Collector,
    tablespaces: Vec<Tablespace>,
    current: Current,
    archives: Vec<ArchiveRecord>,
    manifest: Option<FileRecord>,
    untouched: bool,
}

enum Current {
    Nothing,
    Archive(Box<Open>),
    Manifest(Listing),
}

struct Open {
    archive: Archive,
    names: [String; 2],
    writer: ArtefactWriter,
    frames: TarFrames,
}

/// `backup_manifest` on its way.
struct Listing {
    upload: Box<dyn Upload>,
    hasher: Sha256,
    bytes: u64,
}

/// The names of an archive and its index.
pub(super) fn names(stem: &str, run: &Run<'_>) -> [String; 2] {
    let age = if run.options.crypt.is_encrypted() {
        ".age"
    } else {
        ""
    };
    let name = format!("{stem}.tar{}{age}", run.options.codec.suffix());
    let index = format!("{name}{}", Part::Index.suffix());
    [name, index]
}

/// Begins an archive with this many compressors.
pub(super) fn begin(
    run: &Run<'_>,
    id: &BackupId,
    names: &[String; 2],
    threads: usize,
    progress: std::sync::Arc<crate::progress::Progress>,
) -> Result<ArtefactWriter> {
    let create = |name: &str| run.store.create(&base_key(id, name)?, Put::New);
    Ok(ArtefactWriter::start(
        create(&names[0])?,
        create(&names[1])?,
        (run.options.codec, &run.options.crypt),
        threads,
        progress,
    ))
}

impl<'a> Intake<'a> {
    pub(super) fn new(run: &'a Run<'a>, id: &'a BackupId, collector: &'a Collector) -> Self {
        Intake {
            run,
            id,
            collector,
            tablespaces: Vec::new(),
            current: Current::Nothing,
            archives: Vec::new(),
            manifest: None,
            untouched: true,
        }
    }

    /// Whether nothing has come yet: another attempt may follow.
    pub(super) fn is_untouched(&self) -> bool {
        self.untouched
    }

    pub(super) fn take(&mut self, event: BaseEvent) -> Result<()> {
        self.untouched = false;
        match (event, &mut self.current) {
            (BaseEvent::Data(bytes), Current::Archive(open)) => {
                self.run.cancel.check()?;
                return open.frames.write(bytes);
            }
            (BaseEvent::ManifestData(bytes), Current::Manifest(listing)) => {
                listing.hasher.update(bytes);
                listing.bytes += bytes.len() as u64;
                return listing.upload.write(bytes);
            }
            (BaseEvent::Start { lsn, timeline }, _) => self.collector.begin(lsn, timeline),
            (BaseEvent::Tablespaces(list), _) => {
                self.tablespaces = list.to_vec();
                let kib: u64 = list.iter().filter_map(|one| one.size_kib).sum();
                self.run.progress.add_expected(kib * 1024);
            }
            (BaseEvent::Archive(archive), _) => {
                self.close()?;
                let stem = match archive {
                    Archive::Base => "base".to_owned(),
                    Archive::Tablespace(oid) => oid.to_string(),
                };
                let names = names(&stem, self.run);
                let progress = std::sync::Arc::clone(self.run.progress);
                let writer = begin(self.run, self.id, &names, self.run.options.jobs, progress)?;
                let frames = TarFrames::new(writer.sender());
                self.current = Current::Archive(Box::new(Open {
                    archive,
                    names,
                    writer,
                    frames,
                }));
            }
            (BaseEvent::Manifest, _) => {
                self.close()?;
                let key = base_key(self.id, BACKUP_MANIFEST)?;
                self.current = Current::Manifest(Listing {
                    upload: self.run.store.create(&key, Put::New)?,
                    hasher: Sha256::new(),
                    bytes: 0,
                });
            }
            (BaseEvent::Progress(_), _) => {}
            (BaseEvent::Data(_) | BaseEvent::ManifestData(_), _) => {
                return Err(Error::failed("data came before its archive"));
            }
        }
        Ok(())
    }

    /// Stores what was being received.
    fn close(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.current, Current::Nothing) {
            Current::Nothing => {}
            Current::Archive(open) => {
                open.frames.finish()?;
                let mut record = store_archive(open.writer.finish()?, open.names)?;
                if let Archive::Tablespace(oid) = open.archive {
                    let known = self
                        .tablespaces
                        .iter()
                        .find(|one| one.archive == open.archive);
                    record.oid = Some(oid);
                    record.location = known.and_then(|one| one.location.clone());
                }
                self.archives.push(record);
            }
            Current::Manifest(listing) => {
                same_size(&listing.upload.finish()?, listing.bytes)?;
                self.manifest = Some(FileRecord {
                    name: BACKUP_MANIFEST.to_owned(),
                    bytes: listing.bytes,
                    sha256: hex::encode(listing.hasher.finalize()),
                });
            }
        }
        Ok(())
    }

    /// What was stored, the data directory first.
    pub(super) fn finish(mut self) -> Result<(Vec<ArchiveRecord>, FileRecord)> {
        self.close()?;
        let manifest = self.manifest;
        let manifest = manifest.ok_or_else(|| Error::failed("the server sent no manifest"))?;
        self.archives.sort_by_key(|archive| archive.oid);
        Ok((self.archives, manifest))
    }
}
