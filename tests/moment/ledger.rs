//! The ledger: writers that commit and roll back all the time, restores to moments taken by lot, and
//! `pg_waldump` as the judge of what must be there.
//!
//! `PGARK_LEDGER_COUNT` is how many moments of each server (default 6).

use super::World;
use crate::support::{Session, bin, run, until};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
