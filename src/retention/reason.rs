//! Why a backup is kept or expires, in values and in words.

use std::fmt;

use jiff::Timestamp;
use jiff::civil::Date;

use super::{Decision, Policy};
use crate::units::BackupId;

/// A period of which the newest good backup is kept (grandfather-father-son).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    Daily,
    Weekly,
    Monthly,
    Yearly,
}

impl Tier {
    /// The name of the period that the day lies in.
    pub(super) fn period(self, day: Date) -> String {
        match self {
            Tier::Daily => day.to_string(),
            Tier::Weekly => {
                let week = day.iso_week_date();
                format!("{}-W{:02}", week.year(), week.week())
            }
            Tier::Monthly => day.strftime("%Y-%m").to_string(),
            Tier::Yearly => day.strftime("%Y").to_string(),
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Tier::Daily => "daily",
            Tier::Weekly => "weekly",
            Tier::Monthly => "monthly",
            Tier::Yearly => "yearly",
        })
    }
}

impl Policy {
    pub(super) fn tiers(&self) -> [(Tier, u32); 4] {
        [
            (Tier::Daily, self.keep_daily),
            (Tier::Weekly, self.keep_weekly),
            (Tier::Monthly, self.keep_monthly),
            (Tier::Yearly, self.keep_yearly),
        ]
    }
}

/// One reason of a decision. Its words are for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// Keeps: younger than so many days.
    Young(u32),
    /// Keeps: the newest good one of a database or cluster, perhaps its only one.
    Newest { of: String, is_only: bool },
    /// Keeps: one of so many newest good ones.
    Minimum(u32),
    /// Keeps: the newest good one of a period, as in `2026-W12`.
    Period(Tier, String),
    /// Keeps a legacy one: its database has no verified or proven backup of pgark.
    LegacyWaits(String),
    /// Keeps globals: a kept dump needs them.
    GoesWith(BackupId),
    /// Keeps: this incremental backup, which is kept, builds on it.
    NeededBy(BackupId),
    /// Keeps: the newest good base backup of before the window of so many days, which it opens.
    Anchor(u32),
    /// Keeps: a good base backup within that window, the later anchors among them.
    InWindow(u32),
    /// Keeps: its time lies in the future.
    Ahead,
    /// Keeps: its age cannot be trusted.
    ClockInDoubt,
    /// Keeps one that is not good: its database or cluster has none that is.
    NothingGood(String),
    /// Keeps: this one of its database is suspect, perhaps it itself.
    BesideSuspect(BackupId),
    /// Explains: how it is suspect. It counts for no rule.
    Suspect(String),
    /// Explains: why it is not good. It counts for no rule.
    NotGood(String),
    /// Explains: legacy and not checked. It counts for no rule.
    Unchecked,
    /// Expires: older than so many days, and no rule keeps it.
    NoRule(u32),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Young(days) => write!(f, "younger than {}", plural(*days, "day")),
            Reason::Newest { of, is_only: true } => write!(f, "the only good backup of {of}"),
            Reason::Newest { of, is_only: false } => write!(f, "the newest good backup of {of}"),
            Reason::Minimum(count) => write!(f, "one of the {count} newest good ones"),
            Reason::Period(tier, period) => write!(f, "{tier} of {period}"),
            Reason::LegacyWaits(of) => {
                write!(f, "legacy, and no verified pgark backup of {of} exists yet")
            }
            Reason::GoesWith(id) => write!(f, "goes with {id}"),
            Reason::NeededBy(id) => write!(f, "{id} builds on it"),
            Reason::Anchor(days) => {
                write!(f, "the window of {} begins with it", plural(*days, "day"))
            }
            Reason::InWindow(days) => {
                write!(f, "within the window of {}", plural(*days, "day"))
            }
            Reason::Ahead => f.write_str("dated in the future"),
            Reason::ClockInDoubt => f.write_str("the clock may have jumped"),
            Reason::NothingGood(of) => write!(f, "there is no good backup of {of}"),
            Reason::BesideSuspect(id) => {
                write!(f, "nothing of its database expires while {id} is suspect")
            }
            Reason::Suspect(how) => write!(f, "suspect ({how})"),
            Reason::NotGood(why) => write!(f, "not good ({why})"),
            Reason::Unchecked => f.write_str("not checked yet"),
            Reason::NoRule(0) => f.write_str("no rule keeps it"),
            Reason::NoRule(days) => write!(f, "older than {}", plural(*days, "day")),
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, reason) in self.reasons.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{reason}")?;
        }
        Ok(())
    }
}

/// What a person should know beside the decisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warning {
    /// No good backup lies between two days, far longer than usual, so nothing expires. `held`
    /// would have.
    Silence {
        from: Date,
        until: Date,
        held: usize,
    },
    /// A backup is suspect, so nothing of its database expires. `held` would have.
    Suspect { id: BackupId, held: usize },
    /// Good backups are dated in the future; they are kept and count for no rule.
    Ahead {
        /// The one that is furthest ahead.
        id: BackupId,
        time: Timestamp,
        now: Timestamp,
        count: usize,
    },
}

impl Warning {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Warning::Suspect { .. } => {
                "look whether the database is as it should be; if it is: pgark accept BACKUP"
            }
            Warning::Silence { .. } => {
                "if the clock is right, do nothing: they expire when good backups of three days have followed"
            }
            Warning::Ahead { .. } => {
                "set the clock right; if it is, remove by hand what a wrong one has dated"
            }
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::Silence { from, until, held } => write!(
                f,
                "no good backup is dated between {from} and {until}, far longer than usual, so the clock may have jumped: nothing expires, {held} would have"
            ),
            Warning::Suspect { id, held } => write!(
                f,
                "{id} is suspect, so nothing of its database expires: {held} would have"
            ),
            Warning::Ahead {
                id,
                time,
                now,
                count,
            } => {
                let others = match count - 1 {
                    0 => String::new(),
                    others => format!(" (and {others} more)"),
                };
                write!(
                    f,
                    "{id}{others} is dated {time}, ahead of the clock ({now}): kept, and counted for no rule"
                )
            }
        }
    }
}

fn plural(count: u32, unit: &str) -> String {
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}
