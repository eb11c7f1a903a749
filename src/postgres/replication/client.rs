//! One connection for replication: what it is connected to, slots, timelines.
//!
//! Invariants: every command runs over the simple protocol of the SQL client; an error leaves
//! the connection usable, or it says that it is broken. A slot that was created without
//! `temporary` outlives everything here.

use std::io::Read;

use super::command::{self, SlotName};
use crate::error::{Error, Result};
use crate::postgres::client::{Canceller, Client, Row};
use crate::postgres::target::Target;
use crate::units::{Lsn, SegmentSize, SystemId, Timeline, TimelineHistory};

/// A connection that speaks the replication protocol. Blocking; may move between threads.
#[derive(Debug)]
pub struct Replication {
    client: Client,
}

/// What `IDENTIFY_SYSTEM` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct System {
    pub id: SystemId,
    pub timeline: Timeline,
    /// How far WAL is flushed on the server; on a standby, how far it has been received.
    pub flushed: Lsn,
}

/// A physical slot's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotState {
    /// The server keeps WAL from here on; none when it keeps nothing.
    pub restart: Option<Lsn>,
    pub timeline: Option<Timeline>,
}

/// A timeline's history file as the server has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryFile {
    pub name: String,
    pub content: Vec<u8>,
    pub history: TimelineHistory,
}

impl Replication {
    /// Connects to the first host and address of `target` that serves, for replication.
    ///
    /// # Errors
    /// With a hint for a person: no line in `pg_hba.conf`, no right to replicate, …
    pub fn connect(target: &Target) -> Result<Replication> {
        let client = Client::open(&target.for_replication())?;
        Ok(Replication { client })
    }

    pub(super) fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    /// A handle to stop this connection from another thread.
    #[must_use]
    pub fn canceller(&self) -> Canceller {
        self.client.canceller()
    }

    /// The server's version as a number: 150013.
    #[must_use]
    pub fn server_version_num(&self) -> u32 {
        self.client.server_version_num()
    }

    /// A parameter that the server reports by itself (`in_hot_standby`, …).
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.client.parameter(name)
    }

    /// Whether the connection was lost; every further call would fail.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.client.is_broken()
    }

    /// Which cluster this is, and where its WAL is.
    ///
    /// # Errors
    /// The server's error, or a lost connection.
    pub fn identify(&mut self) -> Result<System> {
        let row = self.one_row("IDENTIFY_SYSTEM")?;
        Ok(System {
            id: row.get(0)?,
            timeline: row.get(1)?,
            flushed: row.get(2)?,
        })
    }

    /// A setting of the server.
    ///
    /// # Errors
    /// The server's error (no such setting, or one that only superusers see).
    pub fn show(&mut self, name: &str) -> Result<String> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.';
        if name.is_empty() || !name.bytes().all(plain) {
            return Err(Error::usage(format!("{name:?} is not a setting's name")));
        }
        let row = self.one_row(&format!("SHOW {name}"))?;
        Ok(row.str(0)?.to_owned())
    }

    /// The size of its WAL segments.
    ///
    /// # Errors
    /// The server's error, or a lost connection.
    pub fn segment_size(&mut self) -> Result<SegmentSize> {
        SegmentSize::parse(&self.show("wal_segment_size")?)
    }

    /// The history file of a timeline; the first one has none.
    ///
    /// # Errors
    /// The server's error when it does not know the timeline; `Damage` for a file that is none.
    pub fn timeline_history(&mut self, timeline: Timeline) -> Result<HistoryFile> {
        let row = self.one_row(&format!("TIMELINE_HISTORY {timeline}"))?;
        let name = row.str(0)?.to_owned();
        if name != timeline.history_name() {
            return Err(Error::damage(format!(
                "the server sent {name:?} as the history of timeline {timeline}"
            )));
        }
        let content = row.bytes(1).unwrap_or_default().to_vec();
        let history = TimelineHistory::parse(timeline, &content)?;
        Ok(HistoryFile {
            name,
            content,
            history,
        })
    }

    /// Creates a physical slot that holds WAL from now on. A temporary one goes with this
    /// connection.
    ///
    /// # Errors
    /// The server's error: 42710 when the name is taken, 53400 when all slots are.
    pub fn create_slot(&mut self, name: &SlotName, temporary: bool) -> Result<()> {
        let text = command::create_slot(name, temporary, self.server_version_num());
        self.client.execute(text)
    }

    /// Where a slot stands; none when there is no such slot.
    ///
    /// # Errors
    /// `Usage` before PostgreSQL 15, which tells by `pg_replication_slots` only; the server's
    /// error for a slot that is not physical.
    pub fn read_slot(&mut self, name: &SlotName) -> Result<Option<SlotState>> {
        if self.server_version_num() < command::PARENTHESISED {
            return Err(Error::usage("this server does not tell about slots here")
                .hint("PostgreSQL 15 is the first that does; ask pg_replication_slots"));
        }
        let row = self.one_row(&format!("READ_REPLICATION_SLOT \"{name}\""))?;
        if row.bytes(0).is_none() {
            return Ok(None);
        }
        Ok(Some(SlotState {
            restart: row.bytes(1).map(|_| row.get(1)).transpose()?,
            timeline: row.bytes(2).map(|_| row.get(2)).transpose()?,
        }))
    }

    /// Drops a slot that nobody uses.
    ///
    /// # Errors
    /// The server's error: 42704 when there is none, 55006 when somebody streams from it.
    pub fn drop_slot(&mut self, name: &SlotName) -> Result<()> {
        self.client
            .execute(format!("DROP_REPLICATION_SLOT \"{name}\""))
    }

    /// Hands the server the manifest that the next incremental backup builds on (17+).
    ///
    /// # Errors
    /// `Usage` for an older server, the server's error, or what the reader says.
    pub fn upload_manifest(&mut self, mut manifest: impl Read) -> Result<()> {
        if self.server_version_num() < command::INCREMENTAL {
            return Err(Error::usage("the server cannot make incremental backups")
                .hint("PostgreSQL 17 is the first that can; take a full one"));
        }
        let mut copy = self.client.copy_in("UPLOAD_MANIFEST")?;
        let mut buffer = vec![0; 64 << 10];
        loop {
            match manifest.read(&mut buffer)? {
                0 => return copy.finish().map(drop),
                count => copy.send(&buffer[..count])?,
            }
        }
    }

    fn one_row(&mut self, command: &str) -> Result<Row> {
        let mut rows = self.client.query(command)?;
        match (rows.pop(), rows.is_empty()) {
            (Some(row), true) => Ok(row),
            _ => Err(Error::failed(format!(
                "the server's answer to {command} surprises: not one row"
            ))),
        }
    }
}
