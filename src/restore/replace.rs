//! `--replace`: a restored database takes the place of the old one, which is kept.
//!
//! The new one is made beside the old one, loaded, checked and closed; then one transaction gives it
//! what belongs to the old database today (`carry`), renames the old one away and the new one to its
//! name. PostgreSQL's renames are transactional, so there is no moment, and after a crash
//! no state, in which the name is missing.
//!
//! Invariants: nothing of the old database is changed but its name, and that only at the very end.
//! Whatever fails before leaves it as it was; a finished new database that could not be swapped in is
//! kept, marked as ready, and a later run only swaps. The rename waits with the database's lock
//! in hand: whom `--disconnect` ends cannot come back before the swap is done.

use std::sync::atomic::{AtomicBool, Ordering};

use super::carry::{self, Live};
use super::compat::Report;
use super::mark::{self, State};
use super::sessions::{busy, connected, end_all};
use super::target::{self, free_name, fresh_name};
use crate::cancel::Token;
use crate::error::{Error, Kind, Result};
use crate::postgres::{Client, Target, quote_ident, quote_literal, refuse_transaction_pooler};

/// How often the swap is tried while sessions still end. Each try waits some five seconds in the server.
const ATTEMPTS: u32 = 3;
/// How long the swap waits for somebody who changes one of the two databases just now.
const LOCK_WAIT: &str = "SET LOCAL lock_timeout = '20s'";

/// What stands in whose stead.
pub struct Stead {
    pub old: String,
    /// Owner, tablespace, encoding and locale of the old database as it is today.
    pub properties: serde_json::Value,
}

/// The old database as a look from outside shows it.
pub struct View {
    /// One line for each session.
    pub sessions: Vec<String>,
    /// A finished restore of this very backup, which only has to be swapped in.
    pub ready: Option<String>,
    /// Half-made databases that dead restores left.
    remains: Vec<String>,
    /// Bytes that it takes today; 0 when that is not told.
    pub bytes: u64,
    live: Live,
}

/// Looks at the database `old`; what forbids the swap becomes a finding. Reads only.
///
/// # Errors
/// `Usage` when there is no such database, or when it is one that pgark itself connects to.
pub fn view(admin: &mut Client, old: &str, backup: &str, report: &mut Report) -> Result<View> {
    let hint = format!("without --replace, --into {old} makes it anew");
    let live = carry::read(admin, old, old)?.ok_or_else(|| {
        Error::usage(format!(
            "there is no database {old:?} to replace; nothing was touched"
        ))
        .hint(hint)
    })?;
    if [
        "postgres",
        "template0",
        "template1",
        admin.pinned().database(),
    ]
    .contains(&old)
    {
        return Err(Error::usage(format!(
            "database {old:?} cannot be replaced: restores work from within it"
        ))
        .hint("restore beside it with --into, and copy what you need"));
    }
    hindrances(admin, old, report)?;
    may_rename(admin, old, live.oid, report)?;
    let (mut ready, mut remains) = (None, Vec::new());
    for mark in mark::all(admin)? {
        if mark.replaces.as_deref() != Some(old) {
            continue;
        }
        let name = &mark.database;
        match mark.state {
            State::Loading => remains.push(mark.database),
            State::Ready if mark.backup == backup => ready = Some(mark.database),
            State::Ready => report.notes.push(format!(
                "{name:?} is a finished restore of {} that was never swapped in: `pgark restore {} --replace` swaps it, DROP DATABASE {} removes it",
                mark.backup, mark.backup, quote_ident(name)
            )),
        }
    }
    Ok(View {
        sessions: connected(admin, live.oid)?,
        ready,
        remains,
        bytes: live.size,
        live,
    })
}

/// Renaming is for a database's owner who may also create one.
fn may_rename(admin: &mut Client, old: &str, oid: u32, report: &mut Report) -> Result<()> {
    let rows = admin.query(format!(
        "SELECT pg_catalog.pg_has_role(current_user, d.datdba, 'USAGE'), r.rolcreatedb OR r.rolsuper \
         FROM pg_catalog.pg_database d, pg_catalog.pg_roles r WHERE d.oid = {oid} AND r.rolname = current_user"
    ))?;
    if let Some(row) = rows.first()
        && !(row.bool(0)? && row.bool(1)?)
    {
        report.add(
            format!(
                "role {} may not rename database {old:?}",
                admin.pinned().user()
            ),
            "the role must own the database (or be a member of its owner) and have CREATEDB",
        );
    }
    Ok(())
}

/// What belongs to the old database, does not move, and would silently stay behind.
fn hindrances(admin: &mut Client, old: &str, report: &mut Report) -> Result<()> {
    let of = quote_literal(old);
    for row in admin.query(format!(
        "SELECT slot_name, CASE WHEN active THEN 'in use' ELSE 'not in use' END FROM pg_catalog.pg_replication_slots \
         WHERE database = {of} AND NOT temporary ORDER BY 1"
    ))? {
        let name = row.opt_str(0).unwrap_or("?");
        report.add(
            format!("the logical replication slot {name:?} ({}) belongs to database {old:?} and would stay with the old one", row.opt_str(1).unwrap_or("?")),
            format!("stop its consumer, SELECT pg_drop_replication_slot({}), and set the replication up anew afterwards", quote_literal(name)),
        );
    }
    for row in admin.query(format!(
        "SELECT s.subname, s.subenabled FROM pg_catalog.pg_subscription s JOIN pg_catalog.pg_database d ON d.oid = s.subdbid \
         WHERE d.datname = {of} AND (s.subenabled OR s.subslotname IS NOT NULL) ORDER BY 1"
    ))? {
        let name = row.opt_str(0).unwrap_or("?");
        let quoted = quote_ident(name);
        report.add(
            format!("the subscription {name:?} of database {old:?} would go on writing into the old one"),
            format!(
                "in {old}: ALTER SUBSCRIPTION {quoted} DISABLE; ALTER SUBSCRIPTION {quoted} SET (slot_name = NONE); its slot stays with the publisher until you drop it there"
            ),
        );
    }
    for row in admin.query(format!(
        "SELECT gid, owner, pg_catalog.date_trunc('second', prepared)::text FROM pg_catalog.pg_prepared_xacts WHERE database = {of} ORDER BY prepared"
    ))? {
        let text = |column| row.opt_str(column).unwrap_or("?");
        let gid = quote_literal(text(0));
        report.add(
            format!("the prepared transaction {gid} of {} (since {}) holds database {old:?}", text(1), text(2)),
            format!("in {old}: COMMIT PREPARED {gid}; or ROLLBACK PREPARED {gid};"),
        );
    }
    Ok(())
}

impl View {
    /// Owner, tablespace, encoding and locale as they are today.
    #[must_use]
    pub fn properties(&self) -> &serde_json::Value {
        &self.live.properties
    }

    /// Refuses to begin while somebody is connected who must not be disconnected.
    ///
    /// # Errors
    /// `Busy`, with the sessions.
    pub fn refuse_sessions(&self, old: &str, disconnect: bool) -> Result<()> {
        if disconnect || self.sessions.is_empty() {
            return Ok(());
        }
        Err(busy(
            old,
            &self.sessions,
            "nothing was touched",
            "stop the applications, or add --disconnect: it ends these sessions when the restored database is ready, not before",
        ))
    }
}

/// A replacement under way; holds the old database's lock against other replacements.
pub struct Replacement {
    admin: Client,
    backup: String,
    disconnect: bool,
    pub stead: Stead,
    /// A finished restore of this very backup.
    pub ready: Option<String>,
    /// What was cleared away, and what else lies about.
    pub notes: Vec<String>,
}

/// What a swap did.
#[derive(Debug)]
pub struct Swapped {
    /// The old database's name now.
    pub kept: String,
}

impl Replacement {
    /// Takes the lock, looks once more, clears what dead replacements of this database left.
    ///
    /// # Errors
    /// `Busy` for sessions and for another replacement, `Unreachable` for what forbids the swap.
    pub fn begin(
        target: &Target,
        old: &str,
        backup: &str,
        disconnect: bool,
    ) -> Result<Replacement> {
        let mut admin = target::admin_connection(target)?;
        refuse_transaction_pooler(&mut admin)?;
        mark::lock(&mut admin, &format!("replace {old}"))?;
        let mut report = Report::default();
        let view = view(&mut admin, old, backup, &mut report)?;
        report.verdict()?;
        view.refuse_sessions(old, disconnect)?;
        let mut notes = report.notes;
        for name in &view.remains {
            // Dead, or its lock would be held.
            if mark::try_lock(&mut admin, name)? {
                notes.push(mark::remove_remain(&mut admin, name)?);
                mark::unlock(&mut admin, name)?;
            }
        }
        Ok(Replacement {
            admin,
            backup: backup.to_owned(),
            disconnect,
            stead: Stead {
                old: old.to_owned(),
                properties: view.live.properties,
            },
            ready: view.ready,
            notes,
        })
    }

    /// A name for the new database that is free.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn new_name(&mut self) -> Result<String> {
        free_name(&mut self.admin, &self.stead.old, "restored")
    }

    /// Tries on the new, still empty database what the swap will do to it at the end.
    ///
    /// # Errors
    /// What the role may not do.
    pub(super) fn rehearse(stead: &Stead, target: &Target, new: &str) -> Result<()> {
        let mut admin = target::admin_connection(target)?;
        let live = carry::read(&mut admin, &stead.old, new)?;
        live.map_or(Ok(()), |live| live.rehearse(&mut admin))
    }

    /// Swaps the finished database `new` in.
    ///
    /// # Errors
    /// `Busy` when sessions do not end; the new database is kept and the old one untouched then.
    pub fn swap(&mut self, new: &str, cancel: &Token) -> Result<Swapped> {
        let old = self.stead.old.clone();
        let kept = free_name(&mut self.admin, &old, "replaced")?;
        for attempt in 1.. {
            cancel.check()?;
            let live = carry::read(&mut self.admin, &old, new)?.ok_or_else(|| {
                self.refused(new, &Error::failed(format!("database {old:?} is gone")))
            })?;
            // Hours may have passed since the first look.
            let mut report = Report::default();
            hindrances(&mut self.admin, &old, &mut report)?;
            report
                .verdict()
                .map_err(|error| self.refused(new, &error))?;
            let sessions = connected(&mut self.admin, live.oid)?;
            if !sessions.is_empty() && !self.disconnect {
                return Err(self.still_connected(new, &sessions));
            }
            match self.try_swap(&live, new, &kept) {
                Ok(()) => return Ok(Swapped { kept }),
                Err(error) if error.sqlstate.is_none() && self.was_committed(&kept) => {
                    return Ok(Swapped { kept });
                }
                // Somebody is connected still, or changes one of the two.
                Err(error) if matches!(error.sqlstate.as_deref(), Some("55006" | "55P03")) => {
                    if attempt >= ATTEMPTS {
                        let sessions = connected(&mut self.admin, live.oid)?;
                        return Err(if sessions.is_empty() {
                            self.refused(new, &error)
                        } else {
                            self.still_connected(new, &sessions)
                        });
                    }
                }
                Err(error) => return Err(self.refused(new, &error)),
            }
        }
        Err(Error::failed("the swap was not tried"))
    }

    /// All in one transaction.
    fn try_swap(&mut self, live: &Live, new: &str, kept: &str) -> Result<()> {
        let old = self.stead.old.clone();
        let (quoted_old, quoted_new, quoted_kept) =
            (quote_ident(&old), quote_ident(new), quote_ident(kept));
        let done = AtomicBool::new(false);
        let target = self.admin.pinned();
        let oid = live.oid;
        self.admin.execute(format!("BEGIN; {LOCK_WAIT}"))?;
        let disconnect = self.disconnect;
        let admin = &mut self.admin;
        let (result, refusal) = std::thread::scope(|scope| {
            let applied = live.apply(admin);
            let ender = (disconnect && applied.is_ok())
                .then(|| scope.spawn(|| end_all(&target, oid, &done)));
            let result = applied
                .and_then(|()| {
                    admin.execute(format!(
                        "ALTER DATABASE {quoted_old} RENAME TO {quoted_kept}"
                    ))
                })
                .and_then(|()| {
                    admin.execute(format!(
                        "ALTER DATABASE {quoted_new} RENAME TO {quoted_old}"
                    ))
                })
                .and_then(|()| live.open(admin, &old))
                .and_then(|()| admin.execute("COMMIT"));
            done.store(true, Ordering::SeqCst);
            (
                result,
                ender
                    .and_then(|ender| ender.join().ok())
                    .and_then(Result::err),
            )
        });
        if result.is_err() && !self.admin.is_broken() {
            self.admin.execute("ROLLBACK")?;
        }
        // Why sessions are still there says more than that they are.
        match (result, refusal) {
            (Err(error), Some(refusal)) if error.is_sqlstate("55006") => {
                Err(refusal.context("cannot end the sessions"))
            }
            (result, _) => result,
        }
    }

    /// After a connection that was lost at the end: the server knows how it ended.
    fn was_committed(&mut self, kept: &str) -> bool {
        let target = self.admin.pinned();
        let again = target::admin_connection(&target).and_then(|mut admin| {
            let committed = target::exists(&mut admin, kept)?;
            self.admin = admin;
            Ok(committed)
        });
        again.unwrap_or(false)
    }

    fn still_connected(&self, new: &str, sessions: &[String]) -> Error {
        let old = &self.stead.old;
        let rest =
            format!("the restored one is whole and kept as {new:?}, the old one is untouched");
        let disconnect = if self.disconnect {
            ""
        } else {
            "end them or add --disconnect, and "
        };
        busy(
            old,
            sessions,
            &rest,
            &format!(
                "{disconnect}run `pgark restore {} --replace` again: it only swaps{}",
                self.backup,
                self.by_hand(new)
            ),
        )
    }

    fn refused(&self, new: &str, error: &Error) -> Error {
        let kind = if matches!(error.sqlstate.as_deref(), Some("55006" | "55P03")) {
            Kind::Busy
        } else {
            Kind::Failed
        };
        Error {
            kind,
            fact: format!(
                "the swap failed: {}; the restored database is whole and kept as {new:?}, the old one is untouched",
                error.fact
            ),
            hint: Some(format!(
                "run `pgark restore {} --replace` again: it only swaps{}",
                self.backup,
                self.by_hand(new)
            )),
            sqlstate: error.sqlstate.clone(),
            cause: None,
        }
    }

    fn by_hand(&self, new: &str) -> String {
        let (old, new) = (quote_ident(&self.stead.old), quote_ident(new));
        let kept = quote_ident(&fresh_name(&self.stead.old, "replaced"));
        format!(
            "; by hand, with rights and settings to be set anew: BEGIN; ALTER DATABASE {old} RENAME TO {kept}; ALTER DATABASE {new} ALLOW_CONNECTIONS true; ALTER DATABASE {new} RENAME TO {old}; COMMIT;"
        )
    }
}
