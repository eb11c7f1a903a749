//! What is said before a restore to a moment that is not quite what was asked for: it comes from
//! another store than the first, or follows an older timeline than the newest.
//!
//! Invariant: a store that does not serve is never passed over without its reason, nor is what it had
//! and the other one has not. Reads only.

use super::note;
use super::restore_moment::World;
use crate::app::App;
use crate::catalog::wal::{Reached, reached};
use crate::error::{Error, Result};
use crate::restore::wal::moment::Moment;
use crate::restore::wal::target::{Aim, Target};
use crate::units::Lsn;

/// Says why a store is passed over.
pub(super) fn not_served(name: &str, error: &Error) {
    note(&format!("warning: {name} does not serve: {}", error.fact));
}

/// Says that a newer timeline is not followed.
pub(super) fn older_timeline(found: &Moment<'_>) {
    if let Some(newest) = found.passed_over {
        note(&format!(
            "warning: no base backup that could serve lies on the history of timeline {newest}, the newest: timeline {} is followed",
            found.timeline
        ));
    }
}

/// Says which store serves instead of those that refused, and of `latest` what may be missing.
///
/// # Errors
/// As the store that serves.
pub(super) fn other_store(
    app: &App,
    refused: &[(&str, Error)],
    world: &World,
    (found, target): (&Moment<'_>, &Target),
) -> Result<()> {
    for (name, error) in refused {
        not_served(name, error);
    }
    if refused.is_empty() {
        return Ok(());
    }
    note(&format!("it is read from {}", world.store.describe()));
    if target.aim != Aim::Latest {
        return Ok(());
    }
    for (name, _) in refused {
        // Read anew: a store without base backups, or whose listing fails, may know it still.
        let store = app.existing_store(Some(name));
        let noted = store.and_then(|store| reached(store.as_ref(), found.line.source.system));
        let Ok(Some(noted)) = noted else {
            note(&format!(
                "warning: how far the WAL in {name} went is not known: later changes may be missing"
            ));
            continue;
        };
        if !holds(found, &noted)? {
            let end = found.end(&app.cancel)?;
            note(&format!(
                "warning: {}",
                further(name, &noted, (world.store.name(), end))
            ));
        }
    }
    Ok(())
}

/// Whether what is read goes as far as the other store had come. An older timeline was left before.
fn holds(found: &Moment<'_>, noted: &Reached) -> Result<bool> {
    let own = found.timeline;
    Ok(noted.timeline < own || noted.timeline == own && found.line.reaches(noted.lsn)?)
}

fn further(
    name: &str,
    noted: &Reached,
    (other, (lsn, time)): (&str, (Lsn, Option<jiff::Timestamp>)),
) -> String {
    let commit = time.map(|time| format!(", after the commit of {time}"));
    format!(
        "{name} had come to LSN {} of timeline {}, {}; {other} ends at LSN {lsn}{}: what came between is missing",
        noted.lsn,
        noted.timeline,
        noted.time,
        commit.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_with_both_ends() {
        let noted: Reached = serde_json::from_str(
            r#"{"timeline":2,"lsn":"0/5000000","time":"2026-01-02T03:04:05Z"}"#,
        )
        .unwrap();
        let time = "2026-01-02T03:00:00Z".parse().ok();
        assert_eq!(
            further("local", &noted, ("s3", (Lsn(0x0400_0028), time))),
            "local had come to LSN 0/5000000 of timeline 2, 2026-01-02T03:04:05Z; \
             s3 ends at LSN 0/4000028, after the commit of 2026-01-02T03:00:00Z: what came between is missing"
        );
        let told = further("local", &noted, ("s3", (Lsn(0x0400_0028), None)));
        assert!(told.contains("s3 ends at LSN 0/4000028: what"), "{told}");
    }
}
