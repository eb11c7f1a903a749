//! `pgark prune`, `replicate` and `status`.

use serde_json::{Value, json};

use super::args::{Global, Prune, Status};
use super::clusters::Out;
use super::{note, print, render};
use crate::app::App;
use crate::error::{Error, Kind, Result};
use crate::prune::{Pruned, Verdict};
use crate::service::health;
use crate::service::http;
use crate::service::stores::{self, Behind};
use crate::service::windows::of_store;
use crate::status::windows::rpo;
use crate::units::ByteSize;

pub(super) fn replicate(app: &App, global: &Global, out: &mut Out<'_>) -> Result<()> {
    if app.others().is_empty() {
        return Err(
            Error::usage("there is no second store: nothing to replicate")
                .hint("S3_BUCKET names the bucket of one, beside a BACKUP_DIR"),
        );
    }
    let say = |text: &str| {
        if !global.quiet {
            note(&format!("{}{text}", app.whose()));
        }
    };
    let done = stores::replicate(app, &say)?;
    let prefix = app.prefix();
    if global.json {
        let ids: Vec<String> = done
            .copied
            .iter()
            .map(|(_, id)| format!("{prefix}{id}"))
            .collect();
        out.json(json!({"copied": ids}));
    } else {
        for (_, id) in &done.copied {
            print(&format!("{prefix}{id}\n"))?;
        }
    }
    match done.failed.into_iter().next() {
        None => Ok(()),
        Some((_, error)) => Err(error),
    }
}

pub(super) fn prune(app: &App, verb: &Prune, global: &Global, out: &mut Out<'_>) -> Result<()> {
    let prefix = app.prefix();
    let names = match global.store.as_deref() {
        Some(name) => vec![name],
        None => app.store_names(),
    };
    let (mut pruned, mut verdicts) = (Pruned::default(), Vec::new());
    let mut warnings = Vec::new();
    let (mut away, all) = (Vec::new(), names.len());
    for name in names {
        let planned = app.catalog(Some(name)).and_then(|(store, catalog)| {
            let plan = stores::plan(app, name, &catalog)?;
            let old = crate::prune::old_wal(
                store.as_ref(),
                &catalog,
                &app.policy(name)?,
                crate::clock::now(),
            )?;
            Ok((plan, old))
        });
        let result = planned.and_then(|(plan, old)| {
            if verb.dry_run {
                warnings.extend(plan.warnings);
                warnings.extend(old.iter().map(|old| old.describe(false)));
            } else {
                stores::expire(app, name, &mut pruned, &mut warnings)?;
            }
            verdicts.extend(plan.verdicts.into_iter().map(|verdict| (name, verdict)));
            Ok(())
        });
        // One store that is away stops no other.
        away.extend(result.err().map(|error| (name, error)));
    }
    if !global.json {
        for text in &warnings {
            note(&format!("{}{text}", app.whose()));
        }
    }
    if global.json {
        out.json(pruned_json(verb, &verdicts, &pruned, &warnings, &prefix));
    } else if verb.dry_run {
        print(&render::verdicts(&verdicts, &prefix))?;
    } else {
        for entry in &pruned.removed {
            print(&format!(
                "{prefix}{}  {}\n",
                entry.id,
                ByteSize(entry.bytes)
            ))?;
        }
    }
    verdict(away, all, pruned)
}

/// What kept the work from being done whole.
fn verdict(mut away: Vec<(&str, Error)>, all: usize, pruned: Pruned) -> Result<()> {
    if let Some((name, error)) = away.pop() {
        let kind = if away.len() + 1 < all {
            Kind::Partial
        } else {
            error.kind
        };
        return Err(Error {
            kind,
            ..error.context(name)
        });
    }
    match pruned.stayed.into_iter().next() {
        None => Ok(()),
        Some((_, error)) => Err(Error::new(
            Kind::Partial,
            format!(
                "not everything that expired could be deleted: {}",
                error.fact
            ),
        )),
    }
}

fn pruned_json(
    verb: &Prune,
    verdicts: &[(&str, Verdict)],
    pruned: &Pruned,
    warnings: &[String],
    prefix: &str,
) -> Value {
    let verdicts: Vec<_> = verdicts
        .iter()
        .map(|(store, verdict)| {
            json!({
                "store": store,
                "id": format!("{prefix}{}", verdict.entry.id),
                "keep": verdict.keep,
                "reason": verdict.reason,
                "bytes": verdict.entry.bytes,
            })
        })
        .collect();
    let expired = pruned.removed.iter();
    let expired: Vec<String> = expired.map(|one| format!("{prefix}{}", one.id)).collect();
    json!({
        "dry_run": verb.dry_run, "verdicts": verdicts, "expired": expired, "warnings": warnings,
    })
}

/// Asks the service that runs here.
pub(super) fn probe(apps: &[App]) -> Result<()> {
    let address = apps.first().map_or("", |app| &app.config.service.http_addr);
    print(&format!("{}\n", http::probe(address)?))
}

pub(super) fn status(app: &App, verb: &Status, global: &Global, out: &mut Out<'_>) -> Result<()> {
    let (store, catalog) = app.catalog(global.store.as_deref())?;
    let (now, promised) = (crate::clock::now(), app.base_schedules()?);
    let windows = of_store(store.as_ref(), &catalog)?;
    let status = health::judge(
        &app.databases()?,
        &app.config.dir,
        &catalog,
        (&app.schedule()?, &promised),
        health::wal_trouble(&promised, &windows, now),
    );
    let behind = Behind::all(&app.config.dir, &app.others());
    let (healthy, mut value) = health::to_json(&status, &behind);
    if global.json {
        value["store"] = json!(store.name());
        value["windows"] = json!(windows);
        value["rpo_seconds"] = json!(rpo(&windows, now).map(|lost| lost.as_secs()));
        out.json(value);
    } else {
        if !app.whose().is_empty() {
            print(&format!("cluster   {}\n\n", app.config.cluster))?;
        }
        print(&render::status(
            &status,
            &store.describe(),
            &app.prefix(),
            now,
        ))?;
        print(&render::windows(&windows, now))?;
        for one in &behind {
            if let Some(error) = &one.error {
                note(&format!(
                    "warning: {} is not up to date: {error}",
                    one.store
                ));
            }
        }
        if !app.whose().is_empty() {
            print("\n")?;
        }
    }
    if verb.exit_code && !healthy {
        let what = match &status.bases {
            Some(bases) if bases.trouble.is_some() => "not everything is backed up as promised",
            _ => "not every database is backed up as promised",
        };
        return Err(Error::failed(what)
            .hint("`pgark list` shows what there is; backup.log in the store says what failed"));
    }
    Ok(())
}
