//! Bringing backups back.

pub mod base;
mod carry;
pub mod compat;
pub mod dump;
mod execute;
pub mod globals;
mod inside;
pub mod legacy;
mod mark;
pub mod needs;
pub mod plan;
pub mod replace;
mod schedule;
pub mod select;
mod sessions;
pub mod space;
mod target;
pub mod wal;

pub use target::{Place, admin_connection, exists, free_name, fresh_name, refuse_existing};
