//! A tar stream of a base backup into a directory.
//!
//! Invariants: nothing is written outside the directory, nothing that is there is overwritten;
//! `pg_control` is handed back instead of written, so that a half-restored directory never
//! starts; what would make the copy a standby of its model is left out.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use crate::archive::tar::{Member, MemberKind, Piece, TarParser};
use crate::archive::{Artefact, Index};
use crate::cancel::Token;
use crate::error::{Context, Error, Result};
use crate::progress::Progress;
use crate::store::flush::Flusher;

/// What is not written as it comes.
const CONTROL: &str = "global/pg_control";
const MAP: &str = "tablespace_map";
const LEFT_OUT: [&str; 3] = ["standby.signal", "recovery.signal", "postmaster.pid"];

/// Who owns what is written, when root writes it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Owner {
    pub(super) fn give(self, path: &Path) -> Result<()> {
        std::os::unix::fs::lchown(path, Some(self.uid), Some(self.gid))
            .context(|| format!("cannot give {} to its owner", path.display()))
    }
}

/// One stream on its way into a directory.
pub(super) struct Extract<'a> {
    pub(super) root: &'a Path,
    /// By oid.
    pub(super) tablespaces: &'a [(u32, PathBuf)],
    pub(super) owner: Option<Owner>,
    /// Keep `tablespace_map` as it is; else it is left out (the links are there already).
    pub(super) keep_map: bool,
    /// Hold `pg_control` back.
    pub(super) hold_control: bool,
    pub(super) control: Vec<u8>,
    pub(super) progress: &'a Progress,
    open: Option<Open>,
    flusher: Flusher,
}

enum Open {
    File(File, PathBuf),
    Control,
    Skipped,
}

impl<'a> Extract<'a> {
    pub(super) fn new(
        root: &'a Path,
        tablespaces: &'a [(u32, PathBuf)],
        owner: Option<Owner>,
        progress: &'a Progress,
    ) -> Extract<'a> {
        Extract {
            root,
            tablespaces,
            owner,
            keep_map: false,
            hold_control: false,
            control: Vec::new(),
            progress,
            open: None,
            flusher: Flusher::default(),
        }
    }

    /// Writes the whole stream of an artefact.
    ///
    /// # Errors
    /// `Damage` for an artefact or a stream that is not right, else as the file system.
    pub(super) fn run(
        &mut self,
        (artefact, index): &(Artefact<'_>, Index),
        threads: usize,
        cancel: &Token,
    ) -> Result<()> {
        let mut parser = TarParser::default();
        artefact.stream(index, threads, &mut |raw, _| {
            cancel.check()?;
            parser.feed(raw, &mut |piece| self.piece(piece))?;
            self.progress.add(raw.len() as u64, 0);
            Ok(())
        })?;
        self.flusher
            .finish()
            .context(|| format!("cannot write below {}", self.root.display()))?;
        parser
            .finish()
            .map_err(|error| error.context(artefact.key()))
    }

    fn piece(&mut self, piece: Piece) -> Result<()> {
        match piece {
            Piece::Begin(member) => self.begin(member),
            Piece::Data(bytes) => match &mut self.open {
                Some(Open::File(file, path)) => {
                    let path = &*path;
                    let count = bytes.len() as u64;
                    file.write_all(bytes)
                        .and_then(|()| self.flusher.wrote(file, count))
                        .context(|| format!("cannot write {}", path.display()))
                }
                Some(Open::Control) => {
                    self.control.extend_from_slice(bytes);
                    Ok(())
                }
                Some(Open::Skipped) | None => Ok(()),
            },
            Piece::End => {
                self.open = None;
                Ok(())
            }
        }
    }

    fn begin(&mut self, member: &Member) -> Result<()> {
        let relative = Path::new(std::ffi::OsStr::from_bytes(&member.path));
        let inside = relative
            .components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if !inside {
            return Err(Error::damage(format!(
                "the archive holds {}, which leads out of the directory",
                relative.display()
            )));
        }
        let path = self.root.join(relative);
        match member.kind {
            MemberKind::Folder => self.folder(&path, member.mode),
            MemberKind::Link => self.link(relative),
            MemberKind::File => {
                self.open = Some(self.file(relative, path, member.mode)?);
                Ok(())
            }
        }
    }

    fn file(&mut self, relative: &Path, path: PathBuf, mode: u32) -> Result<Open> {
        let is = |name: &str| relative == Path::new(name);
        if self.hold_control && is(CONTROL) {
            return Ok(Open::Control);
        }
        if LEFT_OUT.iter().any(|name| is(name)) || (is(MAP) && !self.keep_map) {
            return Ok(Open::Skipped);
        }
        if let Some(parent) = path.parent().filter(|parent| !parent.is_dir()) {
            self.folder(parent, 0o700)?;
        }
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode & 0o770)
            .open(&path)
            .context(|| format!("cannot create {}", path.display()))?;
        if let Some(owner) = self.owner {
            owner.give(&path)?;
        }
        Ok(Open::File(file, path))
    }

    fn folder(&self, path: &Path, mode: u32) -> Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        DirBuilder::new()
            .mode((mode | 0o700) & 0o770)
            .recursive(true)
            .create(path)
            .context(|| format!("cannot create {}", path.display()))?;
        self.owner.map_or(Ok(()), |owner| owner.give(path))
    }

    /// Only tablespaces are links, and theirs are made by [`link_tablespaces`].
    fn link(&self, relative: &Path) -> Result<()> {
        let oid = relative.strip_prefix("pg_tblspc").ok();
        let oid = oid
            .and_then(Path::to_str)
            .and_then(|oid| oid.parse::<u32>().ok());
        if self
            .tablespaces
            .iter()
            .any(|(known, _)| Some(*known) == oid)
        {
            return Ok(());
        }
        Err(Error::damage(format!(
            "the archive holds a link that is no tablespace: {}",
            relative.display()
        )))
    }
}

/// The links to the tablespaces, which a backup with a `tablespace_map` does not hold.
pub(super) fn link_tablespaces(
    root: &Path,
    tablespaces: &[(u32, PathBuf)],
    owner: Option<Owner>,
) -> Result<()> {
    for (oid, place) in tablespaces {
        let path = root.join("pg_tblspc").join(oid.to_string());
        std::os::unix::fs::symlink(place, &path)
            .context(|| format!("cannot create {}", path.display()))?;
        owner.map_or(Ok(()), |owner| owner.give(&path))?;
    }
    Ok(())
}
