//! `pgark check`: the preflight. Runs what can be run: without a server the stores are still looked
//! at, and the other way round.

use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::json;

use super::args::Global;
use super::clusters::Out;
use super::print;
use crate::app::App;
use crate::catalog::list::{self, Catalog};
use crate::check::server::Facts;
use crate::check::{Finding, How, Level, database, server, store, wal, worst};
use crate::config::{Databases, Place};
use crate::error::{Error, Result};
use crate::postgres::{Client, Target, patience};
use crate::service::stores::Behind;

pub(super) fn check(app: &App, global: &Global, out: &mut Out<'_>) -> Result<()> {
    let wanted = global.store.as_deref();
    app.check_store(wanted)?;
    let (mut findings, seen) = of_server(app)?;
    app.cancel.check()?;
    let stores = app.config.stores.iter();
    for one in stores.filter(|one| wanted.is_none_or(|name| name == one.name)) {
        match &one.place {
            Place::Local(dir) => findings.extend(of_directory(app, &one.name, dir, &seen)),
            Place::S3(_) => findings.extend(of_bucket(app, &one.name)),
        }
        app.cancel.check()?;
    }
    let level = worst(&findings);
    if global.json {
        out.json(json!({"level": level, "findings": findings}));
    } else {
        let cluster = app.whose();
        if !cluster.is_empty() {
            print(&format!("cluster {cluster}\n"))?;
        }
        print(&page(&findings))?;
    }
    if level < Level::Fail {
        return Ok(());
    }
    let failed = findings
        .iter()
        .filter(|one| one.level == Level::Fail)
        .count();
    Err(Error::failed(format!(
        "{failed} of {} findings would make a backup fail or leave something out",
        findings.len()
    ))
    .hint("each has what mends it; run pgark check again afterwards"))
}

/// What is known of the databases for the sake of the stores.
#[derive(Default)]
struct Seen {
    databases: Vec<String>,
    /// Sum of their sizes on the server.
    bytes: u64,
}

fn of_server(app: &App) -> Result<(Vec<Finding>, Seen)> {
    let databases = app.databases()?;
    let mut seen = Seen::default();
    if let Databases::Named(names) = &databases {
        seen.databases.clone_from(names);
    }
    let mut findings: Vec<Finding> = secrets(app).into_iter().collect();
    let target = app.target()?;
    let mut client = match connect(app, &target, &seen.databases) {
        Ok(client) => client,
        Err(refused) => {
            let (at, error) = *refused;
            findings.push(server::refused("server", &error, &at));
            return Ok((findings, seen));
        }
    };
    if databases == Databases::All {
        seen.databases = crate::backup::run::all_databases(&mut client)?;
    }
    // The run takes the globals through the first database that it dumped.
    let globals = seen.databases.first().map_or("postgres", String::as_str);
    let looked = server::look(&mut client, &target, app.config.jobs, globals, &app.cancel);
    let (facts, found) = match looked {
        Ok(looked) => looked,
        Err(error) => {
            findings.push(server::refused("server", &error, &target));
            return Ok((findings, seen));
        }
    };
    findings.extend(found);
    let fixed = app.config.program_dir.is_some();
    findings.extend(server::programs(&app.tools(), facts.version_num, fixed));
    match wal::look(&mut client, &of_wal(app), &app.cancel) {
        Ok(found) => findings.extend(found),
        Err(error) => findings.push(server::refused("server", &error, &target)),
    }
    let pinned = client.pinned();
    // Not one of those that a database's limit counts.
    drop(client);
    findings.extend(of_databases(app, &pinned, &facts, &mut seen)?);
    Ok((findings, seen))
}

/// What of WAL and base backups is asked for.
fn of_wal(app: &App) -> wal::Wanted {
    let (service, wal) = (&app.config.service, &app.config.wal);
    let incremental = service.base_incremental_schedule.is_some();
    wal::Wanted {
        base: wal.streaming || incremental || service.base_schedule.is_some(),
        streaming: wal.streaming,
        incremental,
        slot_name: wal.slot_name.clone(),
        slot_policy: wal.slot_policy,
        slot_limit_bytes: wal.slot_limit_bytes,
    }
}

fn of_databases(
    app: &App,
    target: &Target,
    facts: &Facts,
    seen: &mut Seen,
) -> Result<Vec<Finding>> {
    if seen.databases.is_empty() {
        let fact = "there is no database to back up";
        let finding = Finding::new(Level::Fail, "databases", "server", fact);
        return Ok(vec![finding.advice(
            "`*` means every database that accepts connections and is no template; DB_NAME names others",
        )]);
    }
    let mut findings = Vec::new();
    for name in &seen.databases {
        app.cancel.check()?;
        let found = database::look(&target.with_database(name), facts, &app.cancel);
        findings.extend(found.findings);
        seen.bytes = seen.bytes.saturating_add(found.bytes.unwrap_or(0));
    }
    Ok(findings)
}

/// The server, by the first database that lets us in: a closed one is that database's finding.
fn connect(
    app: &App,
    target: &Target,
    names: &[String],
) -> std::result::Result<Client, Box<(Target, Error)>> {
    let mut first = None;
    let names_first = names.first().map(String::as_str);
    let names = names.iter().map(String::as_str);
    for name in std::iter::once("postgres")
        .chain(names)
        .chain(["template1"])
    {
        let at = target.with_database(name);
        match patience::connect(&at, &app.cancel) {
            Ok(client) => return Ok(client),
            Err(error) => {
                let elsewhere = matches!(
                    error.sqlstate.as_deref(),
                    Some("3D000" | "42501" | "28000" | "53300")
                );
                // Of `postgres` we can do without; of the wanted one not.
                let wanted = names_first == Some(at.database());
                if wanted || first.is_none() || !elsewhere {
                    first = Some((at, error));
                }
                if !elsewhere {
                    break;
                }
            }
        }
    }
    let none = || (target.clone(), Error::failed("no database was asked"));
    Err(Box::new(first.unwrap_or_else(none)))
}

/// A file of the password that others may read.
fn secrets(app: &App) -> Option<Finding> {
    let source = app.config.connection.password_source.as_deref()?;
    // `DB_PASSWORD_FILE (/run/secrets/db_password)`.
    let path = Path::new(source.split_once('(')?.1.strip_suffix(')')?);
    let mode = std::fs::metadata(path).ok()?.mode() & 0o7777;
    if mode.trailing_zeros() >= 6 {
        return None;
    }
    let shown = path.display();
    let fact = format!("the password's file {shown} may be read by others (mode {mode:04o})");
    let finding = Finding::new(Level::Note, "password_file", "role", fact);
    Some(finding.command(format!("chmod 0600 '{shown}'")))
}

fn of_directory(app: &App, name: &str, dir: &Path, seen: &Seen) -> Vec<Finding> {
    let (mut findings, there) = store::directory(dir, name);
    let mut catalog = Catalog::default();
    if there {
        match app.store(Some(name)) {
            Ok(local) => {
                findings.extend(store::trial(local.as_ref()));
                catalog = list::load(local.as_ref()).unwrap_or_default();
            }
            Err(error) => findings.push(failed(name, error)),
        }
    }
    let (last, known) = store::last_bytes(&catalog, &seen.databases);
    let exact = known > 0 && known == seen.databases.len();
    let needed = if exact { last } else { seen.bytes };
    findings.push(store::space(dir, name, needed, exact));
    findings.extend(store::suspects(&catalog, name));
    findings.extend(behind(app, name));
    findings
}

fn of_bucket(app: &App, name: &str) -> Vec<Finding> {
    let mut findings = match app.store(Some(name)) {
        Ok(bucket) => store::trial(bucket.as_ref()),
        Err(error) => vec![failed(name, error)],
    };
    findings.extend(behind(app, name));
    findings
}

/// A store that lacks what the first one has.
fn behind(app: &App, name: &str) -> Option<Finding> {
    let behind = Behind::read(&app.config.dir, name)?;
    let (since, error) = (behind.since?, behind.error?);
    let fact = format!("it is not up to date since {since}: {error}");
    let finding = Finding::new(Level::Warning, "behind", format!("store {name}"), fact);
    Some(finding.command("pgark replicate"))
}

fn failed(name: &str, error: Error) -> Finding {
    let finding = Finding::new(Level::Fail, "rights", format!("store {name}"), error.fact);
    match error.hint {
        Some(hint) => finding.advice(hint),
        None => finding,
    }
}

/// For people: the worst last, where the eye rests.
fn page(findings: &[Finding]) -> String {
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|one| one.level);
    let width = sorted
        .iter()
        .map(|one| one.subject.chars().count())
        .max()
        .unwrap_or(0);
    let indent = " ".repeat(9 + width + 2);
    let mut text = String::new();
    for one in sorted {
        let fact = one.fact.replace('\n', "; ");
        let _ = writeln!(text, "{:<9}{:<width$}  {fact}", one.level, one.subject);
        let Some(mend) = &one.mend else { continue };
        let head = match mend.how {
            How::Sql => format!("SQL, as a superuser, in database {}:", mend.place),
            How::Hba => format!("in pg_hba.conf, {}:", mend.place),
            How::Command => "command:".to_owned(),
            How::Policy => "in the policy of the key or role:".to_owned(),
            How::Advice => {
                let _ = writeln!(text, "{indent}hint: {}", mend.lines.join("; "));
                continue;
            }
        };
        let _ = writeln!(text, "{indent}{head}");
        for line in &mend.lines {
            let _ = writeln!(text, "{indent}  {line}");
        }
    }
    text
}
