//! One run of a base backup: take, copy to the second store, expire, write the records.
//!
//! Invariants: as those of `service::run`, whose records it shares; a backup of a cluster with
//! damaged pages is kept and is an error all the same. A crash leaves what `backup::base` leaves.

use super::report;
use super::run::{Done, Records, Wanted};
use super::stores;
use crate::app::App;
use crate::backup::base::{self, Options};
use crate::catalog::base::BAD_CHECKSUMS;
use crate::catalog::list;
use crate::catalog::manifest::Manifest;
use crate::clock;
use crate::error::{Error, Result};
use crate::postgres::replication::Checkpoint;
use crate::service::journal::{Trigger, Work};
use crate::store::Store;

/// How a base backup is wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct How {
    pub incremental: bool,
    pub max_rate_kib: Option<u32>,
}

/// Takes the backup, expires what is old, writes journal and report.
///
/// # Errors
/// What kept it from being taken; `Damage` for one of a cluster with damaged pages, which is kept;
/// `Partial` when the second store is not up to date.
pub fn run(app: &App, store: &dyn Store, wanted: &Wanted<'_>, how: How) -> (Done, Result<()>) {
    let started_at = clock::now();
    let before = list::load(store).unwrap_or_default();
    let (mut done, mut notes) = (Done::default(), Vec::new());
    let mut verdict = take(app, store, wanted, how).and_then(|manifest| {
        let verdict = judge(&manifest);
        done.taken.push(manifest);
        verdict
    });
    if !done.taken.is_empty() {
        let mut stores = stores::replicate(app, wanted.say).unwrap_or_else(|error| {
            // Another process is at it: none of them is known to be up to date.
            let others = app.others().into_iter();
            stores::Replicated {
                failed: others
                    .map(|name| (name.to_owned(), error.clone()))
                    .collect(),
                ..stores::Replicated::default()
            }
        });
        for (name, error) in &stores.failed {
            notes.push(report::failed(&format!("store {name}"), error));
        }
        verdict = verdict.and_then(|()| stores.verdict());
        done.copied = std::mem::take(&mut stores.copied);
        let names = app.store_names().into_iter().filter(|_| !wanted.no_prune);
        for name in names.filter(|name| stores.reached(name)) {
            if let Err(error) = stores::expire(app, name, &mut done.pruned, &mut notes) {
                notes.push(report::failed(&format!("prune of {name}"), &error));
            }
        }
    }
    let records = Records {
        dir: &app.config.dir,
        store: store.describe(),
        started_at,
        work: if how.incremental {
            Work::Incremental
        } else {
            Work::Base
        },
        wanted,
    };
    records.write(&before, &done, &notes, verdict.as_ref().err());
    done.notices.extend(notes);
    (done, verdict)
}

/// Takes the backup alone.
///
/// # Errors
/// What kept it from being taken.
pub fn take(app: &App, store: &dyn Store, wanted: &Wanted<'_>, how: How) -> Result<Manifest> {
    let target = app.pin_when_ready(&[], wanted.say)?;
    let warnings = target.warnings().iter();
    warnings.for_each(|warning| (wanted.say)(&format!("warning: {warning}")));
    base::take(&base::Run {
        target: &target,
        options: Options {
            cluster: app.config.cluster.clone(),
            codec: Options::archive_codec(app.codec),
            crypt: app.crypt.clone(),
            jobs: app.config.jobs,
            incremental: how.incremental,
            chain_max: app.config.wal.chain_max,
            // A person waits; nothing can be restored before the first one, nor behind a gap. A schedule
            // can wait.
            checkpoint: match wanted.trigger {
                Trigger::Manual | Trigger::Start | Trigger::Gap => Checkpoint::Fast,
                Trigger::Schedule => Checkpoint::Spread,
            },
            max_rate_kib: how.max_rate_kib,
            started_at: clock::now(),
        },
        store,
        dir: &app.config.dir,
        progress: wanted.progress,
        cancel: &app.cancel,
        say: wanted.say,
    })
}

fn judge(manifest: &Manifest) -> Result<()> {
    let bad = manifest
        .base
        .as_ref()
        .is_some_and(|base| base.bad_checksums);
    if !bad {
        return Ok(());
    }
    Err(Error::damage(format!(
        "{} is kept, but {BAD_CHECKSUMS}: {}",
        manifest.id,
        manifest.warnings.join("; ")
    ))
    .hint("the server's disk loses data: look at it now, and keep the older backups"))
}
