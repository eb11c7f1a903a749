//! The clusters that a verb works on: one, or those of `pgark.toml`.
//!
//! Invariants: one that fails stops no other; an id with `cluster/` before it means that cluster,
//! and one without is found wherever it is; what could mean several is refused with the
//! candidates. JSON of one cluster is the verb's own; of several, an array of them.

use serde_json::{Value, json};

use super::args::Global;
use super::{note, print_json, read};
use crate::app::App;
use crate::error::{Error, Kind, Result};

/// What a verb has to say of one cluster.
pub(super) struct Out<'a> {
    cluster: Option<&'a str>,
    values: Vec<Value>,
}

impl Out<'_> {
    /// The result, as JSON.
    pub(super) fn json(&mut self, mut value: Value) {
        let Some(cluster) = self.cluster else {
            self.values.push(value);
            return;
        };
        if !value.is_object() {
            value = json!({"results": value});
        }
        value["cluster"] = json!(cluster);
        self.values.push(value);
    }
}

/// Does the work for every cluster.
///
/// # Errors
/// With one cluster, its own. With several, the signal's; `Damage` where it was found; `Partial` when
/// it failed for some; when for all, the first one's kind.
pub(super) fn each(
    apps: &[App],
    mut work: impl FnMut(&App, &mut Out<'_>) -> Result<()>,
) -> Result<()> {
    let several = apps.len() > 1;
    let mut out = Out {
        cluster: None,
        values: Vec::new(),
    };
    let mut failed: Vec<(&str, Error)> = Vec::new();
    for app in apps {
        let name = app.config.cluster.as_str();
        out.cluster = several.then_some(name);
        if let Err(error) = work(app, &mut out) {
            if matches!(error.kind, Kind::Signal(_)) {
                return Err(error);
            }
            if several {
                note(&format!("{name}: {error}"));
            }
            failed.push((name, error));
        }
    }
    match out.values.as_slice() {
        [] => {}
        [only] if !several => print_json(only)?,
        values => print_json(&json!({"clusters": values}))?,
    }
    verdict(failed, apps.len())
}

fn verdict(mut failed: Vec<(&str, Error)>, of: usize) -> Result<()> {
    if of == 1 {
        return failed.pop().map_or(Ok(()), |(_, error)| Err(error));
    }
    let Some((_, first)) = failed.first() else {
        return Ok(());
    };
    let damage = failed.iter().any(|(_, error)| error.kind == Kind::Damage);
    let kind = if damage {
        Kind::Damage
    } else if failed.len() == of {
        first.kind
    } else {
        Kind::Partial
    };
    let names: Vec<&str> = failed.iter().map(|(name, _)| *name).collect();
    let text = format!(
        "{} of {of} clusters failed: {}",
        failed.len(),
        names.join(", ")
    );
    Err(Error::new(kind, text).hint("what befell each is said above"))
}

/// The cluster that has this backup; `latest` has to mean one only.
///
/// # Errors
/// `Usage` with the candidates when it could mean several; what keeps the only one from being
/// read; that none has it.
pub(super) fn holding<'a>(
    apps: &'a [App],
    backup: &str,
    database: Option<&str>,
    global: &Global,
) -> Result<&'a App> {
    if let [only] = apps {
        return Ok(only);
    }
    if let Some((name, _)) = backup.split_once('/') {
        let named = apps.iter().find(|app| app.config.cluster == name);
        return named.ok_or_else(|| {
            Error::usage(format!("there is no cluster {name:?}"))
                .hint(format!("clusters: {}", names(apps)))
        });
    }
    let (mut found, mut ambiguous, mut refused) = (Vec::new(), Vec::new(), None);
    for app in apps {
        let first = app.catalog(global.store.as_deref());
        match first.map(drop) {
            // A cluster that has no directory as yet has no backup; one that is away may have.
            Err(error) if error.kind == Kind::Usage => {
                refused.get_or_insert(error);
                continue;
            }
            Err(error) if backup == "latest" && app.others().is_empty() => {
                return Err(error.context(&app.config.cluster));
            }
            _ => {}
        }
        match read::locate(app, global, backup, database) {
            Ok((_, entry)) => found.push((app, format!("{}{}", app.prefix(), entry.id))),
            // Several databases there: then surely several in all.
            Err(error) if error.kind == Kind::Usage && backup == "latest" => {
                ambiguous.push(app.prefix() + "…");
                refused.get_or_insert(error);
            }
            Err(error) => {
                refused.get_or_insert(error);
            }
        }
    }
    match (found.as_slice(), ambiguous.is_empty()) {
        ([(only, _)], true) => Ok(only),
        ([], true) => Err(refused.unwrap_or_else(|| Error::usage("there is no cluster"))),
        _ => {
            let found = found.into_iter().map(|(_, id)| id);
            let candidates: Vec<String> = found.chain(ambiguous).collect();
            Err(Error::usage(format!(
                "{backup} could mean several backups: {}",
                candidates.join(", ")
            ))
            .hint("put the cluster before it, as in the list, or name it with --cluster"))
        }
    }
}

fn names(apps: &[App]) -> String {
    let names: Vec<&str> = apps.iter().map(|app| app.config.cluster.as_str()).collect();
    names.join(", ")
}
