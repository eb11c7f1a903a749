//! Why a moment cannot be reached, and which one can. Reads only.

use super::line::Line;
use super::moment::{Candidate, Wanted};
use super::search::Searched;
use super::target::Aim;
use crate::archive::wal::Record;
use crate::error::{Cause, Error, Kind, Result};
use crate::units::{Lsn, Timeline};

impl<'a> Wanted<'a> {
    /// What is not in the line: where it ends, and whether another branch has it.
    pub(super) fn too_late(
        &self,
        base: Candidate<'a>,
        line: &Line<'a>,
        what: &str,
        has: &dyn Fn(&Searched<'_>, &Line<'a>) -> Result<bool>,
    ) -> Result<Error> {
        if let Some(elsewhere) = self.elsewhere(base, line, what, has) {
            return Ok(elsewhere);
        }
        let history = line.history;
        let end = self.end(base, line)?;
        let missing = match line.hole {
            Some(name) => format!(
                "{name} is missing in {} (timeline {})",
                self.store.describe(),
                name.timeline()
            ),
            None => format!(
                "the WAL of timeline {} in {} ends before it",
                history.timeline(),
                self.store.describe()
            ),
        };
        let error = unreachable(format!("{what} cannot be reached: {missing}"));
        let Some((begin, end)) = end else {
            return Ok(error.hint(format!(
                "the nearest moment that can be reached is the end of {} (LSN {}): leave out --at",
                base.entry.id, base.base.end_lsn
            )));
        };
        let newest = self.searched(line).newest_before(0, end)?;
        let when = newest.map(|time| format!(", after the commit of {time}"));
        let latest = if line.hole.is_none() {
            "latest"
        } else {
            &begin.to_string()
        };
        Ok(error.hint(format!(
            "the nearest moment that can be reached is LSN {begin}{}: --at {latest}",
            when.unwrap_or_default()
        )))
    }

    /// A restore point's name may have been given twice: refused, unless what was found first is the
    /// only one of it before `limit`.
    pub(super) fn ensure_only(
        &self,
        line: &Line<'a>,
        first: &Record,
        limit: Lsn,
        wanted: &(dyn Fn(&Record) -> bool + Sync),
    ) -> Result<()> {
        let Aim::Name(_) = &self.target.aim else {
            return Ok(());
        };
        let behind = line.place(first.lsn)..line.until(limit).end;
        let others = self
            .searched(line)
            .all(behind, &|record| record.lsn > first.lsn && wanted(record));
        let others = others.map_err(|error| match error.kind {
            // What is wrong with WAL behind it must not keep it from coming back.
            Kind::Damage => error.hint(format!(
                "whether {} was given once more behind {} cannot be told: --at {} takes this one",
                self.target.aim,
                place(first),
                first.lsn
            )),
            _ => error,
        })?;
        let Some(last) = others.last() else {
            return Ok(());
        };
        let places: Vec<String> = std::iter::once(first).chain(&others).map(place).collect();
        Err(Error::usage(format!(
            "{} was given {} times: {}",
            self.target.aim,
            places.len(),
            places.join(", ")
        ))
        .hint(format!("--at {} takes the last of them", last.lsn))
        .cause(Cause::Ambiguous))
    }

    /// Whether another branch has it.
    fn elsewhere(
        &self,
        base: Candidate<'a>,
        line: &Line<'a>,
        what: &str,
        has: &dyn Fn(&Searched<'_>, &Line<'a>) -> Result<bool>,
    ) -> Option<Error> {
        let history = line.history;
        for other in self.archive.histories.values() {
            let left = history.left(other.timeline());
            let from = left.or_else(|| other.ancestors().last().map(|(_, left)| *left));
            let Some(from) = from.filter(|_| other.timeline() != history.timeline()) else {
                continue;
            };
            // What is wrong with another branch is not this one's trouble.
            let Ok(branch) = self.line(base.base, other, from) else {
                continue;
            };
            if matches!(has(&self.searched(&branch), &branch), Ok(true)) {
                let number = other.timeline();
                let fact = match left {
                    Some(left) => format!(
                        "{what} is not on timeline {}: it lies on timeline {number}, which was left at {left}",
                        history.timeline()
                    ),
                    None => format!(
                        "{what} is not on timeline {}: it lies on timeline {number}, another branch",
                        history.timeline()
                    ),
                };
                return Some(
                    unreachable(fact).hint(format!("--timeline {number} follows that one")),
                );
            }
        }
        None
    }
}

/// Where a restore point lies, and when it was made.
fn place(record: &Record) -> String {
    format!("LSN {} ({})", record.lsn, record.event.time())
}

pub(super) fn too_early(bases: &[Candidate<'_>], what: &str) -> Error {
    let first = bases.last().map(|one| {
        let at = one.entry.finished_at.unwrap_or(one.entry.started_at);
        format!(
            "the first moment that can be reached is the end of {}: LSN {}, about {at}",
            one.entry.id, one.base.end_lsn
        )
    });
    let error = unreachable(format!(
        "{what} lies before the end of every base backup that could serve"
    ));
    error.hint(first.unwrap_or_default())
}

/// Nothing says that the newest moment of an older branch is the one that is meant.
pub(super) fn not_on_newest(newest: Timeline, other: Timeline) -> Error {
    unreachable(format!(
        "no base backup that could serve lies on the history of timeline {newest}, the newest"
    ))
    .hint(format!(
        "--timeline {other} follows the older branch; `pgark backup --base` takes a backup of the newest"
    ))
}

pub(super) fn unreachable(fact: String) -> Error {
    Error::new(Kind::Unreachable, fact)
}
