//! Retention: which backups of a store are kept and which expire, each with its reasons. Pure.
//!
//! A backup is kept when any rule keeps it; the rules only add to each other:
//!
//! - it is younger than `days` (0: this rule keeps nothing);
//! - it is the newest good one of its database and cluster, whatever the clock says;
//! - it is among the `keep_min` newest good ones of them;
//! - it is the newest good one of one of the newest days, weeks, months or years that have any;
//! - it is legacy, and its database has no verified or proven backup of pgark yet;
//! - it is not good, but nothing of its database is;
//! - it is the globals of a good dump that is kept;
//! - an incremental base backup that is kept builds on it, directly or not;
//! - it is a base backup that the window of archived WAL needs (`window`);
//! - a newer or older one of its database is suspect, and nobody accepted that one;
//! - the clock that judges it is in doubt.
//!
//! Why the *newest* of a day, week, month or year: at the moment when it is taken it is the newest
//! of all, so every rule for periods keeps it, and it stays the newest of its periods until they
//! are no longer among the newest. What is kept is thus the same as if nothing had ever expired
//! before. Periods are counted, not measured: those without a backup take no place, and a clock
//! that jumps or a service that stands still empties none. They are of UTC like the times in all
//! names (design §3): two services in different zones prune alike, and `ls` shows why.
//!
//! A database is its exact name and its cluster. Legacy backups know no cluster: they are counted
//! among all dumps of that name, so that newer ones of pgark displace them, and never the
//! other way round.
//!
//! Invariants: only good backups count; one that is not good, whatever its age, changes nothing
//! for those that are. The last good backup of a database never expires. Applying a plan and
//! planning again at the same moment expires nothing more.
//!
//! A base backup is judged like a dump, by cluster. Not here: the order of deletion.

use std::collections::{BTreeMap, BTreeSet};

use jiff::civil::Date;
use jiff::tz::Offset;
use jiff::{SignedDuration, Timestamp};

use crate::units::{BackupId, BackupKind};
pub use reason::{Reason, Tier, Warning};
pub use window::{Span, wal_floor};

mod chains;
mod doubt;
mod reason;
mod window;

/// What is known of a backup's contents.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// Legacy, and its checksum and last line were not looked at: it may be good.
    Unchecked,
    Good,
    /// Good, and re-read or restored since: verified or proven.
    Verified,
    /// Failed or missing, and why.
    Bad(String),
    /// Whole, but it holds far less than those before it: how. Until somebody accepts it, the others
    /// of its database may be the last that hold what it lacks.
    Suspect(String),
}

/// One backup of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    pub id: BackupId,
    pub kind: BackupKind,
    /// The exact name; none for globals and base backups.
    pub database: Option<String>,
    /// The system identifier; empty when not known.
    pub cluster: String,
    /// When it was begun.
    pub time: Timestamp,
    pub condition: Condition,
    /// Of the old service.
    pub legacy: bool,
    /// Of all that its deletion frees.
    pub bytes: u64,
    /// What an incremental base backup builds on.
    pub parent: Option<BackupId>,
    /// Of a base backup whose manifest tells.
    pub span: Option<Span>,
}

/// What a user wants to keep. Every rule adds to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// All of the last so many times 24 hours. 0: only what other rules keep.
    pub days: u32,
    /// The newest of each of so many UTC days that have any. 0: off, like the next three.
    pub keep_daily: u32,
    /// Of ISO weeks, which begin on Monday.
    pub keep_weekly: u32,
    pub keep_monthly: u32,
    pub keep_yearly: u32,
    /// So many good ones of each database and cluster. 0 means 1.
    pub keep_min: u32,
    /// Where WAL is archived: so many times 24 hours can be restored to any moment.
    pub wal_days: Option<u32>,
}

/// By what time ages are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    pub now: Timestamp,
    /// Another clock (a server elsewhere, a person) agrees, so a long time without backups was one
    /// and no jump.
    pub confirmed: bool,
}

/// The verdict on one backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub keep: bool,
    /// At least one: why it is kept, or why no rule keeps it.
    pub reasons: Vec<Reason>,
}

/// The verdicts on all backups of a store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order of the backups given.
    pub decisions: Vec<Decision>,
    pub warnings: Vec<Warning>,
    /// What the deletion of all that expires frees.
    pub expired_bytes: u64,
}

/// A backup further ahead of the clock than this was dated by another clock. Legacy names may be
/// in local time, up to 14 hours ahead.
const AHEAD_MAX: SignedDuration = SignedDuration::from_hours(24);

/// Decides on every backup of one store.
pub fn plan(backups: &[Backup], policy: &Policy, clock: Clock) -> Plan {
    let mut verdicts = Verdicts::new(backups, policy, clock);
    verdicts.keep_young_and_ahead();
    verdicts.keep_by_count();
    verdicts.keep_legacy();
    verdicts.keep_bad_without_good();
    let held = verdicts.keep_beside_suspects();
    verdicts.keep_globals_of_dumps();
    verdicts.keep_window();
    verdicts.keep_chains();
    let doubt = verdicts.keep_in_doubt();
    verdicts.finish(doubt.into_iter().chain(held).collect())
}

/// The work in progress: reasons to keep, by the backups' positions.
struct Verdicts<'a> {
    backups: &'a [Backup],
    policy: &'a Policy,
    clock: Clock,
    reasons: Vec<Vec<Reason>>,
}

impl Backup {
    fn is_good(&self) -> bool {
        matches!(self.condition, Condition::Good | Condition::Verified)
    }

    fn is_suspect(&self) -> bool {
        matches!(self.condition, Condition::Suspect(_))
    }

    fn is_ahead(&self, now: Timestamp) -> bool {
        self.time.duration_since(now) > AHEAD_MAX
    }

    /// Takes part in counts, newest and last: good, and not of a moment that is yet to come.
    fn counts(&self, now: Timestamp) -> bool {
        self.is_good() && !self.is_ahead(now)
    }

    fn day(&self) -> Date {
        day(self.time)
    }

    /// For people: the database, or the cluster.
    fn subject(&self) -> String {
        match &self.database {
            Some(database) => database.clone(),
            None if self.cluster.is_empty() => "an unknown cluster".to_owned(),
            None => format!("cluster {}", self.cluster),
        }
    }
}

/// The day of UTC.
fn day(time: Timestamp) -> Date {
    Offset::UTC.to_datetime(time).date()
}

impl<'a> Verdicts<'a> {
    fn new(backups: &'a [Backup], policy: &'a Policy, clock: Clock) -> Verdicts<'a> {
        Verdicts {
            backups,
            policy,
            clock,
            reasons: vec![Vec::new(); backups.len()],
        }
    }

    fn keep_young_and_ahead(&mut self) {
        let limit = SignedDuration::from_hours(24 * i64::from(self.policy.days));
        for (backup, reasons) in self.backups.iter().zip(&mut self.reasons) {
            if backup.is_ahead(self.clock.now) {
                reasons.push(Reason::Ahead);
            } else if self.clock.now.duration_since(backup.time) < limit {
                reasons.push(Reason::Young(self.policy.days));
            }
        }
    }

    /// The rules that count good backups: newest, minimum and periods.
    fn keep_by_count(&mut self) {
        let backups = self.backups;
        let mut groups: BTreeMap<(BackupKind, &str, &str), Vec<usize>> = BTreeMap::new();
        let mut names: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (at, backup) in backups.iter().enumerate() {
            if !backup.counts(self.clock.now) {
                continue;
            }
            let database = backup.database.as_deref().unwrap_or_default();
            if !backup.legacy {
                let group = (backup.kind, backup.cluster.as_str(), database);
                groups.entry(group).or_default().push(at);
            }
            if backup.kind == BackupKind::Dump {
                names.entry(database).or_default().push(at);
            }
        }
        for group in groups.into_values() {
            self.keep_of_group(group, false);
        }
        for group in names.into_values() {
            self.keep_of_group(group, true);
        }
    }

    /// Applies the counting rules to a group, and notes what they keep of its `legacy` members or
    /// of the others.
    fn keep_of_group(&mut self, mut group: Vec<usize>, legacy: bool) {
        let backups = self.backups;
        // Newest first; the rest of the key only makes equal times independent of the input's order.
        group.sort_by(|a, b| sort_key(&backups[*b]).cmp(&sort_key(&backups[*a])));
        let is_only = group.len() == 1;
        let mut periods: BTreeMap<Tier, BTreeSet<String>> = BTreeMap::new();
        for (rank, at) in group.into_iter().enumerate() {
            let backup = &backups[at];
            let mut reasons = Vec::new();
            if rank == 0 {
                let of = backup.subject();
                reasons.push(Reason::Newest { of, is_only });
            }
            // One's globals are kept by their dumps.
            if backup.kind != BackupKind::Globals {
                if (1..self.policy.keep_min as usize).contains(&rank) {
                    reasons.push(Reason::Minimum(self.policy.keep_min));
                }
                for (tier, count) in self.policy.tiers() {
                    let seen = periods.entry(tier).or_default();
                    let period = tier.period(backup.day());
                    if seen.len() < count as usize && seen.insert(period.clone()) {
                        reasons.push(Reason::Period(tier, period));
                    }
                }
            }
            if backup.legacy == legacy {
                self.reasons[at].extend(reasons);
            }
        }
    }

    fn keep_legacy(&mut self) {
        let verified: BTreeSet<Option<&str>> = self
            .backups
            .iter()
            .filter(|backup| !backup.legacy && backup.condition == Condition::Verified)
            .map(|backup| backup.database.as_deref())
            .collect();
        for (backup, reasons) in self.backups.iter().zip(&mut self.reasons) {
            if backup.legacy && !verified.contains(&backup.database.as_deref()) {
                reasons.push(Reason::LegacyWaits(backup.subject()));
            }
        }
    }

    /// What is damaged may still hold what nothing else does.
    fn keep_bad_without_good(&mut self) {
        let mut clusters: BTreeMap<(BackupKind, Option<&str>), BTreeSet<&str>> = BTreeMap::new();
        for backup in self.backups.iter().filter(|backup| backup.is_good()) {
            let name = (backup.kind, backup.database.as_deref());
            let clusters = clusters.entry(name).or_default();
            clusters.insert(&backup.cluster);
        }
        for (backup, reasons) in self.backups.iter().zip(&mut self.reasons) {
            let good = clusters.get(&(backup.kind, backup.database.as_deref()));
            // An unreadable manifest and a legacy backup do not tell the cluster: any will do.
            let has_good = good.is_some_and(|clusters| {
                backup.cluster.is_empty()
                    || clusters.contains(backup.cluster.as_str())
                    || clusters.contains("")
            });
            if matches!(backup.condition, Condition::Bad(_)) && !has_good {
                reasons.push(Reason::NothingGood(backup.subject()));
            }
        }
    }

    /// Nothing of a database expires while one of its backups is suspect.
    fn keep_beside_suspects(&mut self) -> Vec<Warning> {
        let mut suspects: BTreeMap<(BackupKind, Option<&str>), &Backup> = BTreeMap::new();
        for backup in self.backups.iter().filter(|backup| backup.is_suspect()) {
            let name = (backup.kind, backup.database.as_deref());
            // The newest: to accept it is to accept the others that hold as much.
            let newest = suspects.entry(name).or_insert(backup);
            if sort_key(backup) > sort_key(newest) {
                *newest = backup;
            }
        }
        let mut held: BTreeMap<&BackupId, usize> = BTreeMap::new();
        for (backup, reasons) in self.backups.iter().zip(&mut self.reasons) {
            let name = (backup.kind, backup.database.as_deref());
            if let Some(suspect) = suspects.get(&name) {
                *held.entry(&suspect.id).or_default() += usize::from(reasons.is_empty());
                reasons.push(Reason::BesideSuspect(suspect.id.clone()));
            }
        }
        let held = held.into_iter().filter(|(_, held)| *held > 0);
        held.map(|(id, held)| Warning::Suspect {
            id: id.clone(),
            held,
        })
        .collect()
    }

    /// A run ends with its globals, so those of a dump are the first good ones after it. Where
    /// that run has none, the last ones before it serve while there are none after it.
    fn keep_globals_of_dumps(&mut self) {
        let backups = self.backups;
        let mut globals: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (at, backup) in backups.iter().enumerate() {
            if backup.kind == BackupKind::Globals && backup.is_good() {
                globals.entry(&backup.cluster).or_default().push(at);
            }
        }
        for list in globals.values_mut() {
            list.sort_by_key(|at| sort_key(&backups[*at]));
        }
        let mut needed: BTreeMap<usize, &Backup> = BTreeMap::new();
        for (at, dump) in backups.iter().enumerate() {
            let is_kept = dump.kind == BackupKind::Dump && !self.reasons[at].is_empty();
            let Some(list) = globals.get(dump.cluster.as_str()) else {
                continue;
            };
            if is_kept && (dump.is_good() || dump.is_suspect()) && !dump.legacy {
                let after = list.partition_point(|at| backups[*at].time < dump.time);
                let found = list.get(after).or_else(|| list.last());
                let Some(found) = found else { continue };
                // The newest dump names them; that is the one whose expiry frees them.
                let by = needed.entry(*found).or_insert(dump);
                if sort_key(dump) > sort_key(by) {
                    *by = dump;
                }
            }
        }
        for (at, dump) in needed {
            self.reasons[at].push(Reason::GoesWith(dump.id.clone()));
        }
    }

    /// With a doubtful clock nothing expires.
    fn keep_in_doubt(&mut self) -> Option<Warning> {
        let doubt = doubt::find(self.backups, self.clock)?;
        let mut held = 0;
        for reasons in self.reasons.iter_mut().filter(|list| list.is_empty()) {
            reasons.push(Reason::ClockInDoubt);
            held += 1;
        }
        // Nothing would have expired: nobody needs to know.
        (held > 0).then_some(Warning::Silence {
            from: doubt.from,
            until: doubt.until,
            held,
        })
    }

    fn finish(self, warnings: Vec<Warning>) -> Plan {
        let ahead = |backup: &&Backup| backup.is_good() && backup.is_ahead(self.clock.now);
        let mut ahead: Vec<&Backup> = self.backups.iter().filter(ahead).collect();
        ahead.sort_by_key(|backup| sort_key(backup));
        let mut plan = Plan {
            decisions: Vec::with_capacity(self.backups.len()),
            warnings,
            expired_bytes: 0,
        };
        if let Some(last) = ahead.last() {
            plan.warnings.push(Warning::Ahead {
                id: last.id.clone(),
                time: last.time,
                now: self.clock.now,
                count: ahead.len(),
            });
        }
        for (backup, kept) in self.backups.iter().zip(self.reasons) {
            let keep = !kept.is_empty();
            if !keep {
                plan.expired_bytes = plan.expired_bytes.saturating_add(backup.bytes);
            }
            let mut reasons = match &backup.condition {
                Condition::Bad(why) => vec![Reason::NotGood(why.clone())],
                Condition::Suspect(how) => vec![Reason::Suspect(how.clone())],
                Condition::Unchecked => vec![Reason::Unchecked],
                Condition::Good | Condition::Verified => Vec::new(),
            };
            reasons.extend(kept);
            if !keep {
                reasons.push(Reason::NoRule(self.policy.days));
            }
            plan.decisions.push(Decision { keep, reasons });
        }
        plan
    }
}

/// By time; the rest tells apart what was taken in the same second.
fn sort_key(backup: &Backup) -> (Timestamp, &BackupId, &str, u64, &Condition) {
    (
        backup.time,
        &backup.id,
        &backup.cluster,
        backup.bytes,
        &backup.condition,
    )
}

#[cfg(test)]
mod tests;
