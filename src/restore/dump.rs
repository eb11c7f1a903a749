//! Restores a dump into a new database, in parallel, straight from its frames.
//!
//! Invariants: the target database is new and made by this restore; an existing one is touched by
//! `--table` alone, in one transaction (`inside`). Every frame is checked against the index before a byte of it reaches the
//! server, and the index against the manifest. The first failure stops all connections and
//! removes the half-made database (unless asked to keep it). At the end the server's own counts
//! of loaded rows equal the manifest's. A crash of pgark leaves the half-made database, which
//! has the name that was announced and is marked (`mark`); nothing else.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::compat::{self, Report};
use super::execute::Run;
use super::needs::Needs;
use super::plan::{self, Plan, Statement};
use super::replace::{Replacement, Stead};
use super::select::{Selection, select};
use super::target::{Birth, NewDatabase, Place};
use crate::archive::script::{Meaning, Role};
use crate::archive::{Artefact, Identities, Index};
use crate::cancel::Token;
use crate::catalog::manifest::{Manifest, TableCount};
use crate::error::{Error, Result};
use crate::postgres::{Client, Target};
use crate::progress::Progress;
use crate::store::{Key, Store};
use crate::units::Codec;

/// A dump that is ready to be restored: its index read and checked against the manifest.
pub struct Source<'a> {
    artefact: Artefact<'a>,
    pub(super) manifest: &'a Manifest,
    index: Index,
    pub(super) meanings: Vec<Meaning>,
    /// What `--table` chose.
    selection: Option<Selection>,
    /// The frames of statements, once they were wanted.
    texts: OnceLock<Arc<Texts>>,
    /// Bytes of frames that were read from the store.
    read_bytes: AtomicU64,
}

/// What a restore did.
#[derive(Debug, Default)]
pub struct Restored {
    pub database: String,
    pub rows: u64,
    pub tables: usize,
    pub warnings: Vec<String>,
    /// Foreign keys that rows of the target refuse.
    pub refused: Vec<String>,
    /// Bytes of frames that were read from the store.
    pub read_bytes: u64,
}

/// Where and how to restore.
pub struct Job<'a> {
    pub target: &'a Target,
    pub name: &'a str,
    pub jobs: usize,
    /// Keep the half-made database after a failure.
    pub keep: bool,
    /// The database whose place it is to take.
    pub stead: Option<&'a Stead>,
    pub progress: &'a Arc<Progress>,
    pub cancel: &'a Token,
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
            selection: None,
            texts: OnceLock::new(),
            read_bytes: AtomicU64::new(0),
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
        let mut counted: BTreeMap<i32, u64> = BTreeMap::new();
        for meaning in &self.meanings {
            if let Meaning::Rows { id, rows, .. } = meaning {
                *counted.entry(*id).or_default() += rows;
            }
        }
        for table in &self.manifest.tables {
            let rows = counted.get(&table.id).copied().unwrap_or(0);
            if rows != table.rows {
                return damage(format!(
                    "the index holds {rows} rows of {}.{}, the manifest {}",
                    table.schema, table.name, table.rows
                ));
            }
        }
        Ok(())
    }

    /// Restricts it to the tables of these names, and what belongs to them. `whole` for a new
    /// database, which also gets the database's own properties.
    ///
    /// # Errors
    /// `Usage` for a name that means no table, or several.
    pub fn select(&mut self, tables: &[String], whole: bool) -> Result<()> {
        let counted = self.manifest.tables.iter();
        let exact = counted
            .map(|table| (table.id, format!("{}.{}", table.schema, table.name)))
            .collect();
        let mut selection = select(&self.meanings, &exact, tables, whole)?;
        self.meanings = std::mem::take(&mut selection.meanings);
        self.selection = Some(selection);
        self.texts = OnceLock::new();
        Ok(())
    }

    /// What `--table` chose.
    #[must_use]
    pub fn selection(&self) -> Option<&Selection> {
        self.selection.as_ref()
    }

    /// The tables whose rows are restored.
    pub fn tables(&self) -> impl Iterator<Item = &TableCount> {
        let chosen = self.selection.as_ref().map(|selection| &selection.data);
        let tables = self.manifest.tables.iter();
        tables.filter(move |table| chosen.is_none_or(|chosen| chosen.contains(&table.id)))
    }

    fn is_used(meaning: &Meaning) -> bool {
        !matches!(meaning, Meaning::Text)
            && !matches!(meaning, Meaning::Sql { parts } if parts.is_empty())
    }

    /// Bytes as stored of all frames that a restore reads.
    #[must_use]
    pub fn bytes_to_read(&self) -> u64 {
        let frames = self.meanings.iter().zip(&self.index.frames);
        frames
            .filter(|(meaning, _)| Self::is_used(meaning))
            .map(|(_, frame)| frame.bytes)
            .sum()
    }

    /// The plan for so many connections.
    ///
    /// # Errors
    /// `Damage` when the index contradicts itself or a frame of statements cannot be read.
    pub fn plan(&self, jobs: usize) -> Result<Plan> {
        Ok(self.plan_with(&*self.texts()?, jobs)?.0)
    }

    /// The plan, and what its statements want from the cluster.
    fn plan_with(&self, texts: &Texts, jobs: usize) -> Result<(Plan, Needs)> {
        let sizes: Vec<(Meaning, u64)> = self
            .meanings
            .iter()
            .zip(&self.index.frames)
            .map(|(meaning, frame)| {
                let bytes = if Self::is_used(meaning) {
                    frame.raw_bytes
                } else {
                    0
                };
                (meaning.clone(), bytes)
            })
            .collect();
        let plan = plan::plan(&sizes, &|statement| texts.text(statement), jobs)?;
        let mut needs = Needs::default();
        for (frame, meaning) in self.meanings.iter().enumerate() {
            let Meaning::Sql { parts } = meaning else {
                continue;
            };
            for part in parts.iter().filter(|part| part.role == Role::Entry) {
                let statement = Statement {
                    frame,
                    part: part.clone(),
                };
                needs.add(part, &texts.text(&statement));
            }
        }
        Ok((plan, needs))
    }

    fn texts(&self) -> Result<Arc<Texts>> {
        if let Some(texts) = self.texts.get() {
            return Ok(Arc::clone(texts));
        }
        let mut frames = BTreeMap::new();
        for (i, meaning) in self.meanings.iter().enumerate() {
            if matches!(meaning, Meaning::Sql { .. }) && Self::is_used(meaning) {
                frames.insert(i, self.read(i)?);
            }
        }
        Ok(Arc::clone(
            self.texts.get_or_init(|| Arc::new(Texts(frames))),
        ))
    }

    /// A frame's raw bytes, checked against the index.
    pub(super) fn read(&self, frame: usize) -> Result<Vec<u8>> {
        let frame = &self.index.frames[frame];
        self.read_bytes.fetch_add(frame.bytes, Ordering::Relaxed);
        self.artefact.frame(frame)
    }

    /// The encoding of its texts.
    pub(super) fn encoding(&self) -> &str {
        let properties = self.manifest.properties.as_ref();
        let encoding = properties.and_then(|properties| properties.get("encoding"));
        encoding
            .and_then(serde_json::Value::as_str)
            .unwrap_or("UTF8")
    }

    /// Looks whether the server of `admin` can take it; `coming` are the roles and tablespaces that will
    /// have been made until then.
    ///
    /// # Errors
    /// Those of the connection and of a frame that cannot be read.
    pub fn look(
        &self,
        admin: &mut Client,
        place: &Place,
        stead: Option<&serde_json::Value>,
        coming: &std::collections::BTreeSet<Vec<u8>>,
        report: &mut Report,
    ) -> Result<()> {
        let needs = self.plan_with(&*self.texts()?, 1)?.1;
        let properties = self.properties(stead);
        let wanted = compat::Wanted {
            backup: self.manifest.id.as_str(),
            server_version: &self.manifest.server_version,
            server_version_num: self.manifest.server_version_num,
            extensions: &self.manifest.extensions,
            properties: properties
                .as_ref()
                .filter(|_| !place.inside || stead.is_some()),
            encoding: self.encoding(),
            needs: &needs,
            coming,
            place,
        };
        if let (Some(backup), Some(live)) = (&self.manifest.properties, stead) {
            report.notes.extend(compat::differences(backup, live));
        }
        compat::look(admin, &wanted, report)
    }

    /// With what the new database is created: what the dump's texts need, in whose stead it is.
    fn properties(&self, stead: Option<&serde_json::Value>) -> Option<serde_json::Value> {
        let mut own = self.manifest.properties.clone();
        if let (Some(own), Some(stead)) = (own.as_mut(), stead) {
            for key in ["owner", "tablespace"] {
                own[key] = stead[key].clone();
            }
        }
        own.or_else(|| stead.cloned())
    }

    /// Restores into the new database of this name.
    ///
    /// # Errors
    /// `Damage` for a bad frame, `Failed` for the first SQL error (with the object), `Signal`.
    /// The half-made database is removed then, unless it is to be kept.
    pub fn restore(&self, job: &Job<'_>) -> Result<Restored> {
        let texts = self.texts()?;
        let mut plan = self.plan_with(&texts, job.jobs)?.0;
        if job.stead.is_some() {
            // What belongs to the database itself is taken from the one that it replaces.
            plan.last
                .retain(|statement| statement.part.role != Role::Properties);
        }
        job.progress.add_expected(plan.raw_bytes);
        let properties = self.properties(job.stead.map(|stead| &stead.properties));
        let birth = Birth {
            name: job.name,
            properties: properties.as_ref(),
            backup: self.manifest.id.as_str(),
            replaces: job.stead.map(|stead| stead.old.as_str()),
        };
        let database = NewDatabase::create(job.target, &birth)?;
        let run = Run::new(self, texts, job);
        // After a signal the failure is only that a connection was closed.
        let result = job
            .stead
            .map_or(Ok(()), |stead| {
                Replacement::rehearse(stead, job.target, job.name)
            })
            .and_then(|()| run.all(&plan))
            .map_err(|error| job.cancel.check().err().unwrap_or(error));
        let warnings = database.settle(result, job.keep)?;
        Ok(self.restored(job, &plan, warnings))
    }

    /// Brings the chosen tables into the database of this name, which exists: all or nothing.
    ///
    /// # Errors
    /// As [`Self::restore`], and `Usage` when one of the tables exists there. Nothing changes then.
    pub fn restore_inside(&self, job: &Job<'_>) -> Result<Restored> {
        let texts = self.texts()?;
        let plan = self.plan_with(&texts, 1)?.0;
        job.progress.add_expected(plan.raw_bytes);
        let run = Run::new(self, texts, job);
        let done = run
            .inside(&plan)
            .map_err(|error| job.cancel.check().err().unwrap_or(error))?;
        Ok(Restored {
            refused: done.refused,
            ..self.restored(job, &plan, done.notes)
        })
    }

    fn restored(&self, job: &Job<'_>, plan: &Plan, warnings: Vec<String>) -> Restored {
        Restored {
            database: job.name.to_owned(),
            rows: plan.rows.values().sum(),
            tables: self.tables().count(),
            warnings,
            refused: Vec::new(),
            read_bytes: self.read_bytes.load(Ordering::Relaxed),
        }
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
