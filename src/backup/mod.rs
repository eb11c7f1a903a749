//! Taking backups.
pub mod dump;
pub mod gate;
pub mod run;
