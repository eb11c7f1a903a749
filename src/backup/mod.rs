//! Taking backups.
pub mod base;
pub mod dump;
pub mod gate;
pub mod run;
pub mod wal;
