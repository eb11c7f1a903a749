//! Bringing backups back.

pub mod base;
pub mod dump;
mod execute;
pub mod legacy;
pub mod plan;
mod schedule;
mod target;
