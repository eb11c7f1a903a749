//! `pgark.toml`: several clusters and stores, and settings that stay with the machine (design §7).
//!
//! A key is a variable's name in lower case; `[[cluster]]` and `[[store]]` hold those that may
//! differ between clusters or stores ([decision 9](../docs/decisions/0009-configuration-file.md)).
//!
//! Invariants: an unknown key, a key in the wrong table and a malformed value are errors with
//! line and column; no message holds a secret's value. Reads one file: a crash leaves nothing.

mod anomaly;
mod wal;

use std::collections::BTreeSet;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Anomaly;
use super::environment::{Environment, FILE_LEN_MAX};
use super::form::Form;
use super::nearest::nearest;
use super::table::{Section, VARIABLES, Variable};
use super::wal::Keys;
use crate::error::{Error, Result};

/// Where the file lies when nobody names one; it may be absent.
pub(super) const DEFAULT_PATH: &str = "/etc/pgark/pgark.toml";

/// How many runs go on at once over all clusters, when the file does not say.
const MAX_RUNS: usize = 2;

/// One setting of a table, as the variable that it stands for.
#[derive(Clone)]
pub(super) struct Key {
    /// `DB_HOST` or `DB_HOST_FILE`.
    pub name: String,
    pub variable: &'static Variable,
    pub text: String,
    pub line: usize,
}

/// A `[[cluster]]` or a `[[store]]`.
#[derive(Clone)]
pub(super) struct Table {
    pub name: String,
    /// A cluster's folder on every store, where it is not its name.
    pub folder: Option<String>,
    pub keys: Vec<Key>,
}

impl Table {
    /// Whether a store is an object store.
    pub(super) fn is_bucket(&self) -> bool {
        self.keys.iter().any(|key| key.variable.name == "S3_BUCKET")
    }
}

/// What a file says.
#[derive(Clone)]
pub(super) struct File {
    pub path: String,
    pub keys: Vec<Key>,
    pub clusters: Vec<Table>,
    pub stores: Vec<Table>,
    pub max_runs: usize,
    pub anomaly: Anomaly,
    pub wal: Keys,
}

/// Which table a key stands in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Within {
    Top,
    Cluster,
    Store,
}

impl Within {
    fn title(self) -> &'static str {
        match self {
            Within::Top => "the top of the file",
            Within::Cluster => "[[cluster]]",
            Within::Store => "[[store]]",
        }
    }

    /// Whether a variable may be set there.
    fn allows(self, variable: &Variable) -> bool {
        let name = variable.name;
        let per_cluster = ["HEARTBEAT_URL", "NOTIFY_URLS"].contains(&name);
        match self {
            // The one names the file, the other says who reads it.
            Within::Top => !["PGARK_CONFIG", "PGARK_RUN_AS"].contains(&name),
            Within::Cluster => {
                per_cluster
                    || match variable.section {
                        Section::Connection
                        | Section::Schedules
                        | Section::Retention
                        | Section::Wal => true,
                        Section::Backups => name != "BACKUP_DIR",
                        Section::Programs => name != "PGARK_CONFIG",
                        Section::S3 | Section::Service => false,
                    }
            }
            Within::Store => {
                name == "BACKUP_DIR" || matches!(variable.section, Section::S3 | Section::Retention)
            }
        }
    }

    /// Keys that are no variables.
    fn own(self) -> &'static [&'static str] {
        match self {
            Within::Top => &["max_runs", "anomaly", "wal", "cluster", "store"],
            Within::Cluster => &["name", "folder"],
            Within::Store => &["name"],
        }
    }
}

impl File {
    /// The file's text, if there is one: the path named, else the default one where it exists.
    ///
    /// # Errors
    /// `Usage` with place and fix.
    pub(super) fn load(path: Option<&str>, env: &Environment) -> Result<Option<File>> {
        let (path, explicit) = match path {
            Some(path) => (path, true),
            None => (DEFAULT_PATH, false),
        };
        let bytes = match env.read(path) {
            Ok(bytes) => bytes,
            Err(error) if !explicit && error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(error) => {
                return Err(Error::usage(format!(
                    "the configuration file {path} cannot be read: {error}"
                ))
                .hint("mount it where pgark's user can read it, or name another with --config or PGARK_CONFIG"));
            }
        };
        if bytes.len() as u64 > FILE_LEN_MAX {
            let text = format!("the configuration file {path} is longer than {FILE_LEN_MAX} bytes");
            return Err(Error::usage(text).hint("common settings may stand once, at the top"));
        }
        let text = String::from_utf8(bytes).map_err(|_| {
            Error::usage(format!("the configuration file {path} is not UTF-8"))
                .hint("write it again in UTF-8")
        })?;
        Parser { path, text: &text }.file().map(Some)
    }

    /// Every file that a key names: secrets that somebody else may have to read.
    pub(super) fn named_files(&self) -> impl Iterator<Item = &str> {
        let tables = self.clusters.iter().chain(&self.stores);
        let keys = self.keys.iter().chain(tables.flat_map(|table| &table.keys));
        keys.filter(|key| key.name.ends_with("_FILE"))
            .map(|key| key.text.as_str())
    }
}

struct Parser<'a> {
    path: &'a str,
    text: &'a str,
}

type Pair<'a, 'i> = (
    &'a Spanned<toml::de::DeString<'i>>,
    &'a Spanned<DeValue<'i>>,
);

impl Parser<'_> {
    fn file(&self) -> Result<File> {
        let document = DeTable::parse(self.text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            self.error(at, error.message())
                .hint("docs/configuration.md shows a whole file")
        })?;
        let mut file = File {
            path: self.path.to_owned(),
            keys: Vec::new(),
            clusters: Vec::new(),
            stores: Vec::new(),
            max_runs: MAX_RUNS,
            anomaly: Anomaly::default(),
            wal: Keys::default(),
        };
        let mut pairs: Vec<Pair> = document.get_ref().iter().collect();
        pairs.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in pairs {
            match key.get_ref().as_ref() {
                "cluster" => file.clusters = self.tables(Within::Cluster, value)?,
                "store" => file.stores = self.tables(Within::Store, value)?,
                "anomaly" => file.anomaly = self.anomaly(value)?,
                "wal" => file.wal = self.wal(value)?,
                "max_runs" => file.max_runs = self.count(value, 1, 100)?,
                _ => self.key(Within::Top, (key, value), &mut file.keys)?,
            }
        }
        Ok(file)
    }

    fn tables(&self, within: Within, value: &Spanned<DeValue>) -> Result<Vec<Table>> {
        let title = within.title();
        let at = value.span().start;
        let DeValue::Array(items) = value.get_ref() else {
            return Err(self.error(at, &format!("expected {title}, with two brackets")));
        };
        let mut tables: Vec<Table> = Vec::new();
        for item in items {
            let at = item.span().start;
            let DeValue::Table(table) = item.get_ref() else {
                return Err(self.error(at, &format!("expected a table {title}")));
            };
            let table = self.table(within, at, table)?;
            if tables.iter().any(|known| known.name == table.name) {
                let text = format!("there are two {title} named {:?}", table.name);
                return Err(self.error(at, &text).hint("names tell them apart"));
            }
            tables.push(table);
        }
        Ok(tables)
    }

    fn table(&self, within: Within, at: usize, table: &DeTable) -> Result<Table> {
        let title = within.title();
        let mut found = Table {
            name: String::new(),
            folder: None,
            keys: Vec::new(),
        };
        let mut pairs: Vec<Pair> = table.iter().collect();
        pairs.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in pairs {
            match key.get_ref().as_ref() {
                "name" => found.name = self.name(value)?,
                "folder" if within == Within::Cluster => {
                    found.folder = Some(match value.get_ref() {
                        DeValue::String(text) if text == "." => String::new(),
                        _ => self.name(value)?,
                    });
                }
                _ => self.key(within, (key, value), &mut found.keys)?,
            }
        }
        if found.name.is_empty() {
            return Err(self
                .error(at, &format!("{title} has no name"))
                .hint("add: name = \"…\""));
        }
        let places = ["BACKUP_DIR", "S3_BUCKET"];
        let named = |name: &&str| found.keys.iter().any(|key| key.variable.name == *name);
        if within == Within::Store && places.iter().filter(|name| named(name)).count() != 1 {
            let text = format!("{title} {:?} needs backup_dir or s3_bucket", found.name);
            return Err(self
                .error(at, &text)
                .hint("one of them says where it is, and of which kind"));
        }
        let s3 = found.keys.iter().find(|key| {
            key.variable.section == Section::S3 || key.variable.name == "S3_RETENTION_DAYS"
        });
        if let (Within::Store, Some(key), false) = (within, s3, found.is_bucket()) {
            let text = format!("{} means nothing to a local store", key.name.to_lowercase());
            return Err(self
                .error(at, &text)
                .hint("leave it out; days have backup_retention_days"));
        }
        Ok(found)
    }

    /// A name that is a folder on every store, and stands before `/` in an id.
    fn name(&self, value: &Spanned<DeValue>) -> Result<String> {
        let at = value.span().start;
        let DeValue::String(text) = value.get_ref() else {
            return Err(self.error(at, "expected a name in quotes"));
        };
        let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let begins = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !begins || text.len() > 63 || !text.chars().all(good) {
            let text = format!("the name {text:?} cannot be a folder");
            return Err(self
                .error(at, &text)
                .hint("letters, digits, `.`, `_` and `-`, a letter or digit first, 63 at most"));
        }
        if text == "wal"
            || ["base_", "backup_", "globals_"]
                .iter()
                .any(|own| text.starts_with(own))
        {
            let text = format!("the name {text:?} would look like a backup");
            return Err(self.error(at, &text).hint("choose another"));
        }
        Ok(text.to_string())
    }

    fn key(&self, within: Within, pair: Pair, keys: &mut Vec<Key>) -> Result<()> {
        let (key, value) = pair;
        let (at, written) = (key.span().start, key.get_ref().as_ref());
        let upper = written.to_ascii_uppercase();
        let base = upper.strip_suffix("_FILE").unwrap_or(&upper);
        let known = VARIABLES
            .iter()
            .find(|variable| variable.spellings().any(|name| name == base));
        let variable = match known {
            Some(variable) if written == written.to_ascii_lowercase() => variable,
            _ => return Err(self.unknown(within, at, written)),
        };
        if !within.allows(variable) {
            let text = format!("{written} cannot be set in {}", within.title());
            return Err(self.error(at, &text).hint(places_of(variable)));
        }
        let text = self.text_of(variable, upper.len() > base.len(), value)?;
        if let Some(twice) = keys
            .iter()
            .find(|known| known.variable.name == variable.name)
        {
            let text = format!("{written} and {} are both set", twice.name.to_lowercase());
            return Err(self.error(at, &text).hint("leave one of them"));
        }
        keys.push(Key {
            name: upper.clone(),
            variable,
            text,
            line: self.line(at),
        });
        Ok(())
    }

    /// A value as the variable's text, checked.
    fn text_of(&self, variable: &Variable, file: bool, value: &Spanned<DeValue>) -> Result<String> {
        let at = value.span().start;
        let wrong = |what: &str| self.error(at, &format!("{} is malformed: {what}", variable.name));
        let text = match value.get_ref() {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(number) if !file => number.to_string(),
            DeValue::Boolean(switch) if !file => switch.to_string(),
            DeValue::Array(items) if !file => {
                let items = items.iter().map(|item| match item.get_ref() {
                    DeValue::String(text) => Ok(text.to_string()),
                    _ => Err(self.error(item.span().start, "expected text in quotes")),
                });
                let items = items.collect::<Result<Vec<String>>>()?;
                joined(variable.form, &items)
                    .ok_or_else(|| wrong(&format!("expected {}", variable.form.describe())))?
            }
            _ => return Err(wrong(&format!("expected {}", variable.form.describe()))),
        };
        if !file && !text.is_empty() {
            variable.form.check(&text).map_err(|fix| wrong(&fix))?;
        }
        Ok(text)
    }

    fn count(&self, value: &Spanned<DeValue>, min: usize, max: usize) -> Result<usize> {
        let number = match value.get_ref() {
            DeValue::Integer(number) => number.to_string().parse().ok(),
            _ => None,
        };
        number
            .filter(|number| (min..=max).contains(number))
            .ok_or_else(|| {
                self.error(
                    value.span().start,
                    &format!("expected a whole number from {min} to {max}"),
                )
            })
    }

    fn unknown(&self, within: Within, at: usize, written: &str) -> Error {
        let lower = |variable: &Variable| variable.name.to_ascii_lowercase();
        let allowed = VARIABLES.iter().filter(|variable| within.allows(variable));
        let known: BTreeSet<String> = allowed
            .map(lower)
            .chain(within.own().iter().map(|&name| name.to_owned()))
            .collect();
        let near = nearest(
            &written.to_ascii_lowercase(),
            known.iter().map(String::as_str),
        );
        let error = self.error(
            at,
            &format!("unknown key {written:?} in {}", within.title()),
        );
        error.hint(match near {
            Some(name) => format!("did you mean {name}?"),
            None => {
                "docs/configuration.md lists the variables; a key is one in lower case".to_owned()
            }
        })
    }

    fn line(&self, at: usize) -> usize {
        self.text[..at].matches('\n').count() + 1
    }

    fn error(&self, at: usize, what: &str) -> Error {
        let before = &self.text[..at.min(self.text.len())];
        let column = before
            .rsplit('\n')
            .next()
            .map_or(0, |line| line.chars().count())
            + 1;
        let line = before.matches('\n').count() + 1;
        Error::usage(format!(
            "{}, line {line}, column {column}: {what}",
            self.path
        ))
    }
}

/// Where a variable may be set in the file, for a hint.
fn places_of(variable: &Variable) -> String {
    let all = [Within::Top, Within::Cluster, Within::Store];
    let places: Vec<&str> = all
        .into_iter()
        .filter(|within| within.allows(variable))
        .map(Within::title)
        .collect();
    match places.as_slice() {
        [] => format!("set the variable {} instead", variable.name),
        places => format!("its place is {}", places.join(" or ")),
    }
}

/// Several items as one variable's text.
fn joined(form: Form, items: &[String]) -> Option<String> {
    match form {
        Form::Lines => Some(items.join("\n")),
        Form::Host | Form::Port => Some(items.join(",")),
        Form::Databases => {
            let quoted = items
                .iter()
                .map(|name| format!("\"{}\"", name.replace('"', "\"\"")));
            Some(quoted.collect::<Vec<_>>().join(","))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
