//! Restores a dump into a new database, in parallel, straight from its frames.
//!
//! Invariants: the target database is new and made by this restore; an existing one is never
//! touched. Every frame is checked against the index before a byte of it reaches the
//! server, and the index against the manifest. The first failure stops all connections and
//! removes the half-made database (unless asked to keep it). At the end the server's own counts
//! of loaded rows equal the manifest's. A crash of pgark leaves the half-made database, which
//! has the name that was announced; nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::execute::Run;
use super::plan::{self, Plan, Statement};
use super::target::NewDatabase;
use crate::archive::script::Meaning;
use crate::archive::{Artefact, Identities, Index};
use crate::cancel::Token;
use crate::catalog::manifest::Manifest;
use crate::error::{Error, Result};
use crate::postgres::Target;
use crate::progress::Progress;
use crate::store::{Key, Store};
use crate::units::Codec;

/// A dump that is ready to be restored: its index read and checked against the manifest.
pub struct Source<'a> {
    artefact: Artefact<'a>,
    pub(super) manifest: &'a Manifest,
    index: Index,
    pub(super) meanings: Vec<Meaning>,
}

/// What a restore did.
#[derive(Debug)]
pub struct Restored {
    pub database: String,
    pub rows: u64,
    pub tables: usize,
    pub warnings: Vec<String>,
}

impl<'a> Source<'a> {
    /// Reads the index and proves that it and the artefact's size are what the manifest says.
    /// `identities` open an encrypted one; its manifest must be revealed already.
    ///
    /// # Errors
    /// `Damage` when anything differs, `Usage` when none of the identities opens it; nothing was
    /// touched then.
    pub fn open(
        store: &'a dyn Store,
        key: Key,
        index_key: &Key,
        codec: Codec,
        manifest: &'a Manifest,
        identities: Option<&Identities>,
    ) -> Result<Self> {
        let record = manifest.index.as_ref().ok_or_else(|| {
            Error::damage(format!("the manifest of {} names no index", manifest.id))
        })?;
        let index = Index::read(store, index_key, &record.sha256, identities)?;
        let meanings = index
            .frames
            .iter()
            .map(|frame| Meaning::from_json(&frame.meaning))
            .collect::<Result<Vec<_>>>()?;
        let source = Source {
            artefact: Artefact::open(store, key, codec, identities)?,
            manifest,
            index,
            meanings,
        };
        source.check()?;
        Ok(source)
    }

    fn check(&self) -> Result<()> {
        let damage = |what: String| {
            Err(Error::damage(format!("{}: {what}", self.artefact.key()))
                .hint("`pgark verify` tells more; `pgark list` shows other backups"))
        };
        let end = self
            .index
            .frames
            .last()
            .map_or(0, |frame| frame.offset + frame.bytes);
        let (stored, framed) = (self.artefact.stored_bytes(), self.artefact.bytes());
        if stored != self.manifest.artefact.bytes || end != framed {
            return damage(format!(
                "{stored} bytes where the manifest says {}, and {framed} of frames where the index says {end}",
                self.manifest.artefact.bytes
            ));
        }
        let plan = self.plan(1)?;
        for table in &self.manifest.tables {
            let rows = plan.rows.get(&table.id).copied().unwrap_or(0);
            if rows != table.rows {
                return damage(format!(
                    "the index holds {rows} rows of {}.{}, the manifest {}",
                    table.schema, table.name, table.rows
                ));
            }
        }
        Ok(())
    }

    /// The plan for so many connections.
    ///
    /// # Errors
    /// `Damage` when the index contradicts itself or a frame of statements cannot be read.
    pub fn plan(&self, jobs: usize) -> Result<Plan> {
        let sizes: Vec<(Meaning, u64)> = self
            .meanings
            .iter()
            .cloned()
            .zip(self.index.frames.iter().map(|frame| frame.raw_bytes))
            .collect();
        let texts = self.statement_frames()?;
        plan::plan(&sizes, &|statement| texts.text(statement), jobs)
    }

    fn statement_frames(&self) -> Result<Texts> {
        let mut frames = BTreeMap::new();
        for (i, meaning) in self.meanings.iter().enumerate() {
            if let Meaning::Sql { .. } = meaning {
                frames.insert(i, self.read(i)?);
            }
        }
        Ok(Texts(frames))
    }

    /// A frame's raw bytes, checked against the index.
    pub(super) fn read(&self, frame: usize) -> Result<Vec<u8>> {
        self.artefact.frame(&self.index.frames[frame])
    }

    /// Restores into the new database `name` on the server of `target`.
    ///
    /// # Errors
    /// `Damage` for a bad frame, `Failed` for the first SQL error (with the object), `Signal`.
    /// The half-made database is removed then, unless `keep`.
    pub fn restore(
        &self,
        target: &Target,
        name: &str,
        jobs: usize,
        keep: bool,
        progress: &Arc<Progress>,
        cancel: &Token,
    ) -> Result<Restored> {
        let plan = self.plan(jobs)?;
        let texts = self.statement_frames()?;
        progress.add_expected(plan.raw_bytes);
        let database = NewDatabase::create(target, name, self.manifest.properties.as_ref())?;
        let run = Run::new(
            self,
            texts,
            target.with_database(name),
            jobs,
            progress,
            cancel,
        );
        // After a signal the failure is only that a connection was closed.
        let result = run
            .all(&plan)
            .map_err(|error| cancel.check().err().unwrap_or(error));
        let warnings = database.settle(result, keep)?;
        Ok(Restored {
            database: name.to_owned(),
            rows: plan.rows.values().sum(),
            tables: self.manifest.tables.len(),
            warnings,
        })
    }
}

/// Raw bytes of the frames that hold statements.
pub(super) struct Texts(BTreeMap<usize, Vec<u8>>);

impl Texts {
    pub(super) fn text(&self, statement: &Statement) -> Vec<u8> {
        let range = statement.part.at..statement.part.at + statement.part.len;
        self.0
            .get(&statement.frame)
            .and_then(|raw| raw.get(range))
            .unwrap_or_default()
            .to_vec()
    }
}
