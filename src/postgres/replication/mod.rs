//! The replication protocol: base backups and WAL over an ordinary connection.
//!
//! `command` writes what the server is asked, `framing` takes apart what BASE_BACKUP sends, and
//! `wal` what a stream of WAL is made of; none of the three does I/O. `client` (commands, slots,
//! timelines), `base` (BASE_BACKUP) and `streaming` (START_REPLICATION) run them on the
//! connection layer that SQL uses too.
//!
//! Invariants: nothing the server sends makes this panic or allocate without bound; a position
//! is confirmed only by the caller, who knows what is durable; positions never go back and
//! never skip, or the stream ends with an error.
//!
//! A crash ends the connection: a running base backup ends with it, and so does a temporary
//! slot. A permanent slot stays, and holds the server's WAL until it is dropped.
//!
//! Source: PostgreSQL manual, "Streaming Replication Protocol".

mod base;
mod client;
mod command;
mod framing;
mod streaming;
mod wal;

pub use base::{BaseEnd, BaseEvent};
pub use client::{HistoryFile, Replication, SlotState, System};
pub use command::{BaseBackup, Checkpoint, SlotName};
pub use framing::{Archive, Tablespace};
pub use streaming::{Received, Streaming, Switch};
