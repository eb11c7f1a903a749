//! The service: runs by schedule, their records, and the answer to "is all well?".
//!
//! Invariant: a run is a process of its own. What it leaks, or how it dies, costs the service
//! nothing, and it reads every setting and secret anew.

pub mod base;
pub mod child;
pub mod crontab;
pub mod health;
pub mod heartbeat;
pub mod http;
pub mod journal;
pub mod keeper;
pub mod log;
pub mod notify;
pub mod report;
pub mod run;
pub mod slots;
pub mod stores;
pub mod streamer;
pub mod supervisor;
pub mod windows;
