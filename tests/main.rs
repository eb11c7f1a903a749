//! The one integration test binary: one link step, one harness.
//!
//! `scripts/setup.sh test` prepares what the tests need; `make test` runs both.

// Names on a store are exact.
#![allow(clippy::case_sensitive_file_extension_comparisons)]

mod anomaly;
mod any_data;
mod any_second;
mod any_server;
mod bad_luck;
mod base;
mod check;
mod cli;
mod client_key;
mod clusters;
mod connection;
mod container;
mod demo;
mod drop_block;
mod elsewhere;
mod encryption;
mod environment;
mod heartbeat;
mod interrupted;
mod killed;
mod kinds;
mod leaving;
mod many;
mod mid_dump;
mod misfortune;
mod moment;
mod pooler;
mod prune;
mod replace;
mod replication;
mod restore_tables;
mod round_trip;
mod s3_alone;
mod screens;
mod second_store;
mod service;
mod session;
mod store_damage;
mod support;
mod tidy;
mod trip;
mod wal;
mod wal_records;
