//! Who is connected to a database: as lines for people, as an error, and ended.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::target;
use crate::error::{Error, Result};
use crate::postgres::{Client, Target};

/// Between two rounds of ending sessions.
const ROUND: Duration = Duration::from_millis(100);
/// Sessions that are named in a message.
const SHOWN: usize = 10;

/// Who is connected, for people. Autovacuum gives way by itself.
pub(super) fn connected(admin: &mut Client, oid: u32) -> Result<Vec<String>> {
    let rows = admin.query(format!(
        "SELECT pid, coalesce(usename, '-'), coalesce(nullif(application_name, ''), backend_type, '-'), \
         coalesce(host(client_addr), 'local'), pg_catalog.date_trunc('second', backend_start)::text, coalesce(state, '-') \
         FROM pg_catalog.pg_stat_activity WHERE datid = {oid} AND pid <> pg_catalog.pg_backend_pid() \
         AND coalesce(backend_type, '') <> 'autovacuum worker' ORDER BY backend_start"
    ))?;
    Ok(rows
        .iter()
        .map(|row| {
            let text = |column| row.opt_str(column).unwrap_or("?");
            format!(
                "pid {}, user {}, {}, from {}, since {}, {}",
                text(0),
                text(1),
                text(2),
                text(3),
                text(4),
                text(5)
            )
        })
        .collect())
}

/// The sessions that stand in the way, as an error.
pub(super) fn busy(old: &str, sessions: &[String], rest: &str, hint: &str) -> Error {
    let more = sessions.len().saturating_sub(SHOWN);
    let mut list: Vec<String> = sessions.iter().take(SHOWN).cloned().collect();
    if more > 0 {
        list.push(format!("and {more} more"));
    }
    let are = if sessions.len() == 1 {
        "session is"
    } else {
        "sessions are"
    };
    Error::busy(format!(
        "{} {are} connected to database {old:?}; {rest}\n  - {}",
        sessions.len(),
        list.join("\n  - ")
    ))
    .hint(hint)
}

/// Ends every session of the database until told that nobody is in the way any more.
pub(super) fn end_all(target: &Target, oid: u32, ended: &AtomicBool) -> Result<()> {
    let mut client = target::admin_connection(target)?;
    while !ended.load(Ordering::SeqCst) {
        client.execute(format!(
            "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity \
             WHERE datid = {oid} AND pid <> pg_catalog.pg_backend_pid() AND coalesce(backend_type, '') <> 'autovacuum worker'"
        ))?;
        std::thread::sleep(ROUND);
    }
    Ok(())
}
