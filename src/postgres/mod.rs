//! Talks to PostgreSQL: where it is, who may connect, and what goes over the wire.
//!
//! A blocking client over TCP or a Unix socket, one thread per connection, without libpq.
//! From the text of a connection to the connection itself:
//! `conninfo` (keywords, URI, `PG*`) → `resolve` (files, defaults, DNS) → `target` →
//! `connect` (address by address, `tls`, `auth`) → `link` (messages) → `client` (SQL, COPY).
//! `wire` frames messages and `stream` moves bytes; the replication client builds on both.
//!
//! Nothing here keeps state outside memory: a crash leaves nothing behind but a
//! connection that the server notices as closed.

mod auth;
mod cancel;
pub mod client;
mod connect;
pub mod conninfo;
mod explain;
mod key;
pub(crate) mod link;
mod open;
mod options;
mod passfile;
pub mod patience;
mod pooler;
pub mod process;
mod quote;
pub mod replication;
mod resolve;
mod row;
pub mod server;
mod service;
mod settings;
pub mod started;
mod stream;
mod target;
pub mod tls;
pub mod tools;
mod uri;
mod verify;
pub mod wire;
mod x509;

pub use client::{Canceller, Client, CopyIn, Row, Target};
pub use conninfo::ConnInfo;
pub use pooler::refuse_transaction_pooler;
pub use quote::{quote_ident, quote_ident_bytes, quote_literal, quote_literal_bytes};
pub use replication::Replication;
pub use settings::set_clause;
