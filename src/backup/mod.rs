//! Taking backups.
pub mod dump;
pub mod run;
