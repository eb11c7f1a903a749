//! BASE_BACKUP on a connection.
//!
//! Invariants: the sink sees every byte in order and decides by its error whether the backup
//! goes on; a backup that this returns is complete. Pages whose checksum the server found wrong
//! do not make it fail: they are the only copy there may be, and are reported beside.
//!
//! Cancelled or dropped in the middle, the server gives the backup up by itself.

use super::client::Replication;
use super::command::BaseBackup;
use super::framing::{Archive, Framing, Tablespace};
use crate::error::{Error, Result};
use crate::units::{Lsn, Timeline};

/// What BASE_BACKUP brings, in this order: start, tablespaces, then archives with their data
/// and the manifest with its own; progress in between.
#[derive(Debug, Clone, Copy)]
pub enum BaseEvent<'a> {
    /// The WAL from here on is needed.
    Start { lsn: Lsn, timeline: Timeline },
    /// What will come.
    Tablespaces(&'a [Tablespace]),
    /// A tar stream begins.
    Archive(Archive),
    /// Bytes of it.
    Data(&'a [u8]),
    /// `backup_manifest` begins.
    Manifest,
    /// Bytes of it.
    ManifestData(&'a [u8]),
    /// Bytes that the server has sent (15+).
    Progress(u64),
}

/// A complete base backup.
#[derive(Debug, Clone)]
pub struct BaseEnd {
    pub start: Lsn,
    pub start_timeline: Timeline,
    /// The WAL up to here is needed.
    pub end: Lsn,
    pub end_timeline: Timeline,
    /// What the server warned of meanwhile, and of pages with wrong checksums.
    pub warnings: Vec<String>,
    /// Whether the server found pages with wrong checksums.
    pub bad_checksums: bool,
}

impl Replication {
    /// Takes a base backup; `sink` gets it as it comes, straight from the receive buffer.
    ///
    /// # Errors
    /// `Usage` for what this server cannot do, the server's error, or the sink's: then the
    /// backup is cancelled on the server.
    pub fn base_backup(
        &mut self,
        wanted: &BaseBackup,
        sink: &mut dyn FnMut(BaseEvent) -> Result<()>,
    ) -> Result<BaseEnd> {
        let version = self.server_version_num();
        let command = wanted.command(version)?;
        let client = self.client();
        client.take_notices();
        client.send_query(command.as_bytes())?;
        let mut framing = Framing::new(version);
        let mut failure: Option<Error> = None;
        loop {
            let span = client.link.receive()?;
            match span.tag {
                b'Z' => break,
                b'E' => failure = Some(client.server_error(span)?),
                _ if failure.is_some() => {}
                tag => {
                    let body = client.link.inbox.body(span);
                    if let Err(error) = framing.message(tag, body, span.last, sink) {
                        client.stop(&error);
                        return Err(error);
                    }
                }
            }
        }
        let bad_checksums = match failure {
            // Said after everything was sent (`perform_base_backup` in basebackup.c).
            Some(error) if error.is_sqlstate("XX001") && framing.is_complete() => true,
            Some(error) => return Err(error),
            None => false,
        };
        let (start, end) = framing.finish()?;
        Ok(BaseEnd {
            start: start.0,
            start_timeline: start.1,
            end: end.0,
            end_timeline: end.1,
            warnings: client.take_notices(),
            bad_checksums,
        })
    }
}
