//! Our slot on the other hosts that are listed: when one of them is promoted, it still has the WAL from which
//! the stream goes on.
//!
//! Invariants: a slot there never moves beyond what is durable here, and is dropped only above the limit or when
//! it has lost WAL (a new one begins where that server then is); nothing is done on a server of another cluster, on one that takes writes (the stream's own session
//! sees to that), or with a slot of somebody else's. What fails on a host is told once, and hinders nobody.
//!
//! A crash leaves the slots where they were: they hold a little more until the next stream. `pgark slot drop`
//! drops them all.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Stream;
use super::guard::{SlotReport, report};
use super::tail::Tail;
use crate::config::SlotPolicy;
use crate::error::{Error, Result};
use crate::postgres::{Client, Target};
use crate::units::{ByteSize, Lsn, SystemId};

/// How often each host is looked at.
const INTERVAL: Duration = Duration::from_secs(20);

/// The thread that looks at them.
pub(super) struct Standbys<'a> {
    stream: &'a Stream<'a>,
    tail: &'a Tail,
    system: SystemId,
}

impl<'a> Standbys<'a> {
    /// For the hosts of the cluster that is streamed.
    pub(super) fn new(stream: &'a Stream<'a>, tail: &'a Tail, system: SystemId) -> Standbys<'a> {
        Standbys {
            stream,
            tail,
            system,
        }
    }

    /// Works until the stream has ended.
    pub(super) fn run(self) {
        let mut complained = BTreeSet::new();
        loop {
            // A list of one is the server that is streamed from.
            let hosts = (self.stream.hosts)().unwrap_or_default();
            for host in hosts.iter().filter(|_| hosts.len() > 1) {
                let name = format!("{}:{}", host.host(), host.port());
                match self.look_after(host) {
                    Ok(()) => {
                        complained.remove(&name);
                    }
                    Err(error) if !complained.contains(&name) => {
                        (self.stream.say)(&format!(
                            "warning: the slot on {name} cannot be looked after, and would be missed if it were promoted: {error}"
                        ));
                        complained.insert(name);
                    }
                    Err(_) => {}
                }
                if self.tail.is_over() {
                    return;
                }
            }
            if self.tail.pause(INTERVAL) {
                return;
            }
        }
    }

    fn look_after(&self, host: &Target) -> Result<()> {
        let mut client = connect(host)?;
        let rows = client.query(
            "SELECT pg_catalog.pg_is_in_recovery(), system_identifier::text, \
             coalesce(pg_catalog.pg_last_wal_replay_lsn(), '0/0')::text FROM pg_catalog.pg_control_system()",
        )?;
        let Some(row) = rows.first() else {
            return Ok(());
        };
        if !row.bool(0)? {
            return Ok(());
        }
        if row.str(1)? != self.system.to_string() {
            return Err(Error::failed(format!(
                "it is the cluster {}, and not {}",
                row.str(1)?,
                self.system
            )));
        }
        let replayed: Lsn = row.str(2)?.parse()?;
        let seen = report(&mut client, &self.stream.options.slot)?;
        self.keep(&mut client, seen, replayed)
    }

    /// Makes the slot of a standby that has replayed so far, moves it on, or drops it.
    fn keep(&self, client: &mut Client, seen: Option<SlotReport>, replayed: Lsn) -> Result<()> {
        let options = &self.stream.options;
        let slot = &options.slot;
        let durable = self.tail.lock().durable;
        let Some(seen) = seen else {
            return client.execute(format!(
                "SELECT pg_catalog.pg_create_physical_replication_slot('{slot}', true)"
            ));
        };
        if seen.logical || seen.active {
            // Somebody else's.
            return Ok(());
        }
        let lost = seen.wal_status.as_deref() == Some("lost");
        let over = seen.retained_bytes > options.slot_limit_bytes
            && options.slot_policy == SlotPolicy::ProtectPrimary;
        let Some(restart) = seen.restart.filter(|_| !lost && !over) else {
            client.execute(format!(
                "SELECT pg_catalog.pg_drop_replication_slot('{slot}')"
            ))?;
            return Err(Error::failed(format!(
                "it held {} of WAL or had lost some, and was dropped; it is made anew",
                ByteSize(seen.retained_bytes)
            )));
        };
        let to = durable.min(replayed);
        if to > restart {
            client.execute(format!(
                "SELECT pg_catalog.pg_replication_slot_advance('{slot}', '{to}')"
            ))?;
        }
        Ok(())
    }
}

/// In a database that is there, whichever.
fn connect(host: &Target) -> Result<Client> {
    match Client::connect(&host.with_database("postgres")) {
        Err(error) if error.is_sqlstate("3D000") => {
            Client::connect(&host.with_database("template1"))
        }
        other => other,
    }
}
