//! Bounds how long pg_dump may wait for somebody's lock while it describes the schema.
//!
//! `--lock-wait-timeout` covers its `LOCK TABLE` alone. What it asks about views, sequences and
//! functions can wait too, for a transaction that changes them and stays open.
//!
//! Invariants: a dump that nobody blocks costs no connection unless it takes long; the watch ends
//! with its guard. A watch that cannot connect bounds nothing, and fails nothing.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::postgres::{Client, Target, quote_literal};

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// A watch under way.
pub(super) struct Watch {
    stop: Sender<()>,
    thread: JoinHandle<Option<Error>>,
}

impl Watch {
    /// Watches the session of this `application_name`; blocked for `limit`, it is ended by `kill`.
    pub(super) fn start(
        target: Target,
        application_name: String,
        limit: Duration,
        kill: impl Fn() + Send + 'static,
    ) -> Watch {
        let (stop, stopped) = channel();
        let thread = std::thread::spawn(move || {
            let mut client = None;
            let mut since: Option<Instant> = None;
            loop {
                match stopped.recv_timeout(PAUSE) {
                    Err(RecvTimeoutError::Timeout) => {}
                    _ => return None,
                }
                if client.is_none() {
                    client = Client::connect(&target).ok();
                }
                let Some(session) = &mut client else {
                    continue;
                };
                let Some(blocker) = blocker(session, &application_name) else {
                    since = None;
                    continue;
                };
                if since.get_or_insert_with(Instant::now).elapsed() >= limit {
                    kill();
                    return Some(
                        Error::failed(format!(
                            "pg_dump waited {} s for a lock: {blocker}",
                            limit.as_secs()
                        ))
                        .hint("wait for that transaction, or end it with SELECT pg_terminate_backend(<process>); nothing was written"),
                    );
                }
            }
        });
        Watch { stop, thread }
    }

    /// Ends the watch; why it ended pg_dump, if it did.
    pub(super) fn end(self) -> Option<Error> {
        drop(self.stop);
        self.thread.join().ok().flatten()
    }
}

/// Who holds up that session.
fn blocker(session: &mut Client, application_name: &str) -> Option<String> {
    let rows = session.query(format!(
        "SELECT pg_catalog.string_agg('process ' || b.pid || ' (user ' || coalesce(b.usename, '?') || ', ' \
         || coalesce(nullif(b.application_name, ''), '?') || ', ' || coalesce(b.state, '?') || ', for ' \
         || coalesce(pg_catalog.date_trunc('second', pg_catalog.now() - b.xact_start)::text, '?') || ')', '; ') \
         FROM pg_catalog.pg_stat_activity a, pg_catalog.unnest(pg_catalog.pg_blocking_pids(a.pid)) AS p (pid) \
         JOIN pg_catalog.pg_stat_activity b ON b.pid = p.pid WHERE a.application_name = {}",
        quote_literal(application_name)
    ));
    let rows = rows.ok()?;
    rows.first()?.opt_str(0).map(str::to_owned)
}
