//! What kept incremental base backups need. Pure.
//!
//! Invariant: nothing is kept without the full backup, and all between, that it builds on.

use std::collections::BTreeMap;

use super::{Reason, Verdicts, sort_key};
use crate::units::BackupId;

impl Verdicts<'_> {
    /// What a kept incremental backup builds on stays, down to the full one.
    pub(super) fn keep_chains(&mut self) {
        let backups = self.backups;
        let places = backups.iter().enumerate();
        let places: BTreeMap<&BackupId, usize> = places.map(|(at, one)| (&one.id, at)).collect();
        // Newest first: a parent is older than what builds on it.
        let mut order: Vec<usize> = (0..backups.len()).collect();
        order.sort_by(|a, b| sort_key(&backups[*b]).cmp(&sort_key(&backups[*a])));
        for at in order {
            let parent = backups[at].parent.as_ref().and_then(|id| places.get(id));
            if let Some(parent) = parent.filter(|_| !self.reasons[at].is_empty()) {
                self.reasons[*parent].push(Reason::NeededBy(backups[at].id.clone()));
            }
        }
    }
}
