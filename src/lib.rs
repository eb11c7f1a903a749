//! pgark: PostgreSQL backups that anyone can restore.
//!
//! The modules are the rooms of a house with floors; arrows point down only, and
//! `tests/tidy.rs` holds them to it. ARCHITECTURE.md is the map.

pub mod anomaly;
pub mod app;
pub mod archive;
pub mod backup;
pub mod cancel;
pub mod catalog;
pub mod check;
pub mod cli;
pub mod clock;
pub mod config;
pub mod error;
pub mod postgres;
pub mod progress;
pub mod prune;
pub mod replicate;
pub mod restore;
pub mod retention;
pub mod schedule;
pub mod service;
pub mod status;
pub mod store;
pub mod units;
pub mod verify;

#[cfg(test)]
mod pipeline_tests;
#[cfg(test)]
mod sealed_tests;
