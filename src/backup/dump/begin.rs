//! How a dump begins: a snapshot that holds, and pg_dump's description of what it sees.
//!
//! Invariants: both see the same state, or everything is let go and done anew, a bounded number of
//! times. What is returned holds every lock; dropping it lets them go.

use std::time::Duration;

use super::schema::{self, Refusal, Schema};
use super::snapshot::{self, Snapshot};
use super::{ATTEMPTS, Options, Run};
use crate::cancel::Hook;
use crate::error::Result;
use crate::postgres::{Client, Target};

/// Pause after the first such attempt; it grows with each.
const PAUSE: Duration = Duration::from_millis(300);

/// Takes the snapshot and has pg_dump describe what it sees; anew when somebody's lock request
/// came between the two, or when the role had no place left for pg_dump.
///
/// # Errors
/// What `snapshot` and pg_dump say; with a hint when it was the same in every attempt.
pub(super) fn begin(
    target: &Target,
    options: &Options,
    run: &Run<'_>,
) -> Result<(Snapshot, Schema, Hook)> {
    let mut attempt = 1;
    loop {
        run.cancel.check()?;
        let mut snapshot = snapshot::take(target, options.lock_timeout, run.cancel)?;
        let canceller = snapshot.holder.canceller();
        let hook = run.cancel.on_cancel(move || canceller.close());
        let program = run
            .tools
            .pick("pg_dump", snapshot.holder.server_version_num())?;
        let encoding = snapshot
            .holder
            .parameter("server_encoding")
            .unwrap_or("UTF8")
            .to_owned();
        let pinned = snapshot.holder.pinned();
        let server_options = fixed_settings(&mut snapshot.holder)?;
        match schema::read(
            &program,
            &pinned,
            &encoding,
            &snapshot.id,
            &server_options,
            options.lock_timeout,
            run.cancel,
        ) {
            Ok(schema) => {
                if let Some(notice) = snapshot::empty_on_standby(&mut snapshot.holder)? {
                    (run.say)(&notice);
                }
                return Ok((snapshot, schema, hook));
            }
            Err(Refusal::Blocked(_) | Refusal::Full(_)) if attempt < ATTEMPTS => {
                // Let the one who waits for an exclusive lock have it, and finish.
                drop((snapshot, hook));
                std::thread::sleep(PAUSE * attempt);
                attempt += 1;
            }
            Err(Refusal::Blocked(error)) => {
                return Err(error.hint("another session keeps asking for exclusive locks; run the backup while no migration runs"));
            }
            Err(Refusal::Full(error)) => return Err(error.hint(FULL_HINT)),
            // Without its holder there is no snapshot: why it ended is the reason.
            Err(Refusal::Failed(error)) => return Err(snapshot.why_lost().unwrap_or(error)),
        }
    }
}

pub(super) const FULL_HINT: &str = "a dump needs at least three connections at once: raise the role's CONNECTION LIMIT, \
    the database's or max_connections, or see who holds them in pg_stat_activity";

/// Options for pg_dump's session, where the role or the database has settings that pg_dump leaves
/// alone, and under which it would write literals that mean something else in every other
/// session, ours at restore included: strings with escapes, amounts of money in a local form. None
/// where none is needed: some poolers refuse options.
fn fixed_settings(holder: &mut Client) -> Result<String> {
    let rows = holder.query(
        "SELECT coalesce(pg_catalog.string_agg('-c ' || name || '=' || fixed, ' '), '') \
         FROM pg_catalog.pg_settings JOIN (VALUES ('standard_conforming_strings', 'on'), ('lc_monetary', 'C')) \
         AS f (name, fixed) USING (name) WHERE reset_val <> fixed AND (name <> 'lc_monetary' OR EXISTS (\
           SELECT FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid WHERE a.attrelid >= 16384 \
           AND 'pg_catalog.money'::pg_catalog.regtype IN (t.oid, t.typelem, t.typbasetype)))",
    )?;
    rows.first()
        .map_or(Ok(""), |row| row.str(0))
        .map(str::to_owned)
}
