//! Can this server take this backup? Asked before anything is touched, and answered all at once.
//!
//! Looked at: the server's version, the extensions it has installed packages of, roles and
//! tablespaces, encoding and locale, and what pgark's own role may do. A finding is what would
//! certainly stop the restore; a note is what may surprise. Reads only.

use std::collections::BTreeSet;

use super::needs::Needs;
use super::target::Place;
use crate::catalog::manifest::NamedVersion;
use crate::error::{Error, Kind, Result};
use crate::postgres::{Client, quote_literal, quote_literal_bytes};

/// Extensions that are made only on a server that loads their library at its start.
const PRELOADED: [&str; 3] = ["citus", "pg_cron", "timescaledb"];

/// Why the restore cannot be done, and the way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub what: String,
    pub hint: String,
}

/// What the look at the server brought.
#[derive(Debug, Default)]
pub struct Report {
    pub findings: Vec<Finding>,
    pub notes: Vec<String>,
}

impl Report {
    pub(super) fn add(&mut self, what: impl Into<String>, hint: impl Into<String>) {
        let (what, hint) = (what.into(), hint.into());
        self.findings.push(Finding { what, hint });
    }

    /// All findings as one error; nothing was touched.
    ///
    /// # Errors
    /// `Unreachable` when there is a finding.
    pub fn verdict(&self) -> Result<()> {
        let (what, hints): (Vec<&str>, Vec<&str>) = self
            .findings
            .iter()
            .map(|finding| (finding.what.as_str(), finding.hint.as_str()))
            .unzip();
        match what.as_slice() {
            [] => Ok(()),
            [one] => Err(
                Error::new(Kind::Unreachable, format!("{one}; nothing was touched")).hint(hints[0]),
            ),
            several => {
                let mut told: Vec<&str> = Vec::new();
                for hint in hints {
                    if !told.contains(&hint) {
                        told.push(hint);
                    }
                }
                Err(Error::new(
                    Kind::Unreachable,
                    format!(
                        "the backup cannot be restored there, for {} reasons; nothing was touched\n  - {}",
                        several.len(),
                        several.join("\n  - ")
                    ),
                )
                .hint(told.join("\nhint: ")))
            }
        }
    }
}

/// What is known of a backup and what will be there when its turn comes.
pub(super) struct Wanted<'a> {
    pub backup: &'a str,
    pub server_version: &'a str,
    pub server_version_num: u32,
    pub extensions: &'a [NamedVersion],
    /// Those with which the new database is created; none for tables into an existing one.
    pub properties: Option<&'a serde_json::Value>,
    /// Of the dump's texts.
    pub encoding: &'a str,
    pub needs: &'a Needs,
    /// Roles and tablespaces that the globals will have made.
    pub coming: &'a BTreeSet<Vec<u8>>,
    pub place: &'a Place,
}

/// Looks at the server of `admin`.
///
/// # Errors
/// Those of the connection.
pub(super) fn look(admin: &mut Client, wanted: &Wanted<'_>, report: &mut Report) -> Result<()> {
    version(admin, wanted, report);
    extensions(admin, wanted, report)?;
    // Names in the backup are in its own encoding.
    let own = admin
        .parameter("client_encoding")
        .unwrap_or("UTF8")
        .to_owned();
    if wanted.encoding != "SQL_ASCII" {
        admin
            .execute(format!(
                "SET client_encoding = {}",
                quote_literal(wanted.encoding)
            ))
            .map_err(|error| error.context("the backup's encoding is unknown there"))?;
    }
    let result = names(admin, wanted, report);
    admin.execute(format!("SET client_encoding = {}", quote_literal(&own)))?;
    result?;
    if let Some(properties) = wanted.properties {
        locale(admin, properties, report)?;
    }
    abilities(admin, wanted, report)
}

fn version(admin: &mut Client, wanted: &Wanted<'_>, report: &mut Report) {
    let (there, source) = (
        admin.server_version_num() / 10_000,
        wanted.server_version_num / 10_000,
    );
    if source > there {
        report.add(
            format!("the backup is of PostgreSQL {source}, that server is {there}: an older one does not know what a newer one writes"),
            format!(
                "restore into PostgreSQL {source} or later; or by hand, at your own risk: pgark cat {} | psql -X -d DATABASE",
                wanted.backup
            ),
        );
    } else if source > 0 && source < there {
        report.notes.push(format!(
            "from PostgreSQL {} to {there}",
            wanted.server_version.split(' ').next().unwrap_or_default()
        ));
    }
}

fn extensions(admin: &mut Client, wanted: &Wanted<'_>, report: &mut Report) -> Result<()> {
    let preloaded = admin
        .query("SELECT pg_catalog.current_setting('shared_preload_libraries', true)")
        .ok()
        .and_then(|rows| rows.first()?.opt_str(0).map(str::to_owned));
    for name in &wanted.needs.extensions {
        let rows = admin.query(format!(
            "SELECT e.default_version, v.superuser AND NOT v.trusted AND NOT r.rolsuper FROM pg_catalog.pg_available_extensions e \
             LEFT JOIN pg_catalog.pg_available_extension_versions v ON v.name = e.name AND v.version = e.default_version, \
             pg_catalog.pg_roles r WHERE r.rolname = current_user AND e.name = {}",
            quote_literal(name)
        ))?;
        let of_source = wanted
            .extensions
            .iter()
            .find(|extension| extension.name == *name);
        let Some(row) = rows.first() else {
            let version = of_source
                .map(|extension| format!(" {}", extension.version))
                .unwrap_or_default();
            report.add(
                format!("the extension {name}{version} is not installed on that server's machine"),
                "install the extensions' packages for that server's PostgreSQL version there, then run this again",
            );
            continue;
        };
        if row.opt_str(1) == Some("t") {
            report.add(
                format!("the extension {name} can be created by a superuser only"),
                "restore as a superuser of that server",
            );
        }
        let here = row.opt_str(0).unwrap_or_default();
        if let Some(source) = of_source.filter(|source| source.version != here) {
            report.notes.push(format!(
                "extension {name}: version {} in the backup, {here} there; {here} is what it will be",
                source.version
            ));
        }
        let lacks = |list: &String| {
            !list
                .split(',')
                .any(|library| library.trim().trim_matches('"') == name)
        };
        if PRELOADED.contains(&name.as_str()) && preloaded.as_ref().is_some_and(lacks) {
            report.add(
                format!("the extension {name} needs its library loaded at that server's start"),
                format!("add {name} to shared_preload_libraries there and restart it"),
            );
        }
    }
    Ok(())
}

/// Roles and tablespaces.
fn names(admin: &mut Client, wanted: &Wanted<'_>, report: &mut Report) -> Result<()> {
    let mut roles: BTreeSet<Vec<u8>> = wanted
        .needs
        .owners
        .union(&wanted.needs.named)
        .cloned()
        .collect();
    let mut tablespaces = wanted.needs.tablespaces.clone();
    if let Some(properties) = wanted.properties {
        let text = |key: &str| properties.get(key).and_then(serde_json::Value::as_str);
        roles.extend(text("owner").map(|name| name.as_bytes().to_vec()));
        tablespaces.extend(text("tablespace").map(|name| name.as_bytes().to_vec()));
    }
    let hint = "--globals restores them first, with the backup's roles and tablespaces; or create them by hand";
    for (what, names, sql) in [
        (
            "role",
            &roles,
            "SELECT FROM pg_catalog.pg_roles WHERE rolname = ",
        ),
        (
            "tablespace",
            &tablespaces,
            "SELECT FROM pg_catalog.pg_tablespace WHERE spcname = ",
        ),
    ] {
        let mut missing = Vec::new();
        for name in names.iter().filter(|name| !wanted.coming.contains(*name)) {
            if admin
                .query([sql.as_bytes(), &quote_literal_bytes(name)].concat())?
                .is_empty()
            {
                missing.push(String::from_utf8_lossy(name).into_owned());
            }
        }
        if !missing.is_empty() {
            let plural = if missing.len() == 1 { "" } else { "s" };
            report.add(
                format!("{what}{plural} missing there: {}", missing.join(", ")),
                hint,
            );
        }
    }
    Ok(())
}

/// What the backup's database is made of, where the live one is made of something else.
pub(super) fn differences(backup: &serde_json::Value, live: &serde_json::Value) -> Vec<String> {
    let keys = [
        "encoding",
        "collate",
        "ctype",
        "locale_provider",
        "locale",
        "icu_rules",
    ];
    let text = |of: &serde_json::Value, key: &str| {
        of.get(key)
            .and_then(|value| value.as_str().map(str::to_owned))
    };
    let differ = keys
        .iter()
        .filter(|key| text(backup, key) != text(live, key));
    differ
        .map(|key| {
            let shown = |of| text(of, key).unwrap_or_else(|| "none".to_owned());
            format!(
                "{key}: {} today, {} in the backup, and so it will be",
                shown(live),
                shown(backup)
            )
        })
        .collect()
}

/// Encoding and locale of the new database. A locale that the server's machine has not cannot be
/// seen in any catalog, but a setting of it is refused.
fn locale(admin: &mut Client, properties: &serde_json::Value, report: &mut Report) -> Result<()> {
    let text = |key: &str| properties.get(key).and_then(serde_json::Value::as_str);
    let hint = "give that machine the locale (Debian: locale-gen; alpine images lack most) and restart the server";
    let locales: BTreeSet<&str> = [text("collate"), text("ctype")]
        .into_iter()
        .flatten()
        .collect();
    for name in locales {
        match admin.execute(format!("SET lc_monetary = {}", quote_literal(name))) {
            Err(error) if error.is_sqlstate("22023") => {
                report.add(
                    format!("that server's machine has no locale {name:?}"),
                    hint,
                );
            }
            result => result?,
        }
    }
    admin.execute("RESET lc_monetary")?;
    if let Some(encoding) = text("encoding") {
        let rows = admin.query(format!(
            "SELECT pg_catalog.pg_char_to_encoding({})",
            quote_literal(encoding)
        ))?;
        if rows.first().and_then(|row| row.opt_str(0)) == Some("-1") {
            report.add(
                format!("that server does not know the encoding {encoding}"),
                "restore into a version that does",
            );
        }
    }
    let icu = "SELECT FROM pg_catalog.pg_collation WHERE collprovider = 'i' LIMIT 1";
    if text("locale_provider") == Some("i") && admin.query(icu)?.is_empty() {
        report.add(
            "the database's locale is one of ICU, which that server was built without",
            "restore into a server that has ICU",
        );
    }
    Ok(())
}

/// What pgark's own role may do there.
fn abilities(admin: &mut Client, wanted: &Wanted<'_>, report: &mut Report) -> Result<()> {
    let rows = admin.query(
        "SELECT rolsuper, rolcreatedb, pg_catalog.pg_is_in_recovery() FROM pg_catalog.pg_roles WHERE rolname = current_user",
    )?;
    let Some(row) = rows.first() else {
        return Ok(());
    };
    let user = admin.pinned().user().to_owned();
    if row.bool(2)? {
        report.add(
            "that server is a standby and takes no writes",
            "name the primary, or promote it first",
        );
    }
    if row.bool(0)? {
        return Ok(());
    }
    if !row.bool(1)? && !wanted.place.inside {
        report.add(
            format!("role {user} may not create databases there"),
            format!(
                "ALTER ROLE {} CREATEDB;",
                crate::postgres::quote_ident(&user)
            ),
        );
    }
    let foreign = foreign_owners(admin, wanted)?;
    if !foreign.is_empty() {
        report.add(
            format!("role {user} may not give objects to {}", foreign.join(", ")),
            format!(
                "GRANT {} TO {};  or restore as a superuser",
                foreign.join(", "),
                crate::postgres::quote_ident(&user)
            ),
        );
    }
    Ok(())
}

/// Owners that pgark's role may not make something's owner.
fn foreign_owners(admin: &mut Client, wanted: &Wanted<'_>) -> Result<Vec<String>> {
    // From 16 on a membership may come without the right to act as the role.
    let right = if admin.server_version_num() >= 160_000 {
        "SET"
    } else {
        "MEMBER"
    };
    let mut owners = wanted.needs.owners.clone();
    let of_database = wanted
        .properties
        .and_then(|properties| properties.get("owner")?.as_str());
    owners.extend(of_database.map(|owner| owner.as_bytes().to_vec()));
    let mut foreign = Vec::new();
    for owner in &owners {
        let literal = quote_literal_bytes(owner);
        let sql = [
            b"SELECT FROM pg_catalog.pg_roles WHERE rolname = ".as_slice(),
            &literal,
            b" AND NOT pg_catalog.pg_has_role(current_user, oid, '",
            right.as_bytes(),
            b"')",
        ];
        if !admin.query(sql.concat())?.is_empty() {
            foreign.push(String::from_utf8_lossy(owner).into_owned());
        }
    }
    Ok(foreign)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finding_is_told_at_once_and_each_way_out_once() {
        let mut report = Report::default();
        assert!(report.verdict().is_ok());
        report.add("role missing there: a", "--globals");
        let one = report.verdict().unwrap_err();
        assert_eq!(
            (one.kind, one.fact.as_str()),
            (
                Kind::Unreachable,
                "role missing there: a; nothing was touched"
            )
        );
        report.add("tablespace missing there: b", "--globals");
        report.add("no locale", "locale-gen");
        let all = report.verdict().unwrap_err();
        assert_eq!(
            all.fact,
            "the backup cannot be restored there, for 3 reasons; nothing was touched\n  - role missing there: a\n  - tablespace missing there: b\n  - no locale"
        );
        assert_eq!(all.hint.unwrap(), "--globals\nhint: locale-gen");
    }
}
