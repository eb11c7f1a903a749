//! The environment as a value, and the rules for one variable: aliases, `NAME_FILE`,
//! default files, empty is unset.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::{ErrorKind, Read};

use super::databases::{self, Databases};
use super::encryption;
use super::file::{self, Key};
use super::form::Form;
use super::table::{Section, VARIABLES, Variable};
use crate::error::{Error, Result};

/// More than any setting needs; bounds what a `_FILE` that names a device can cost.
pub(super) const FILE_LEN_MAX: u64 = 256 * 1024;

/// The process's variables. Prints as their names only: some values are secrets.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// The variables of this process.
    ///
    /// # Errors
    /// `Usage` when a variable of pgark or libpq is not UTF-8; others are left out.
    pub fn from_process() -> Result<Self> {
        Self::from_os(std::env::vars_os())
    }

    fn from_os(variables: impl Iterator<Item = (OsString, OsString)>) -> Result<Self> {
        let mut map = BTreeMap::new();
        for (name, value) in variables {
            let Ok(name) = name.into_string() else {
                continue;
            };
            match value.into_string() {
                Ok(value) => {
                    map.insert(name, value);
                }
                Err(_) if concerns_us(&name) => {
                    return Err(Error::usage(format!("the variable {name} is not UTF-8"))
                        .hint("set it again in UTF-8, or unset it"));
                }
                Err(_) => {}
            }
        }
        Ok(Environment(map))
    }

    /// Adds what the service hands its runs on stdin: the variables that hold secrets.
    ///
    /// # Errors
    /// `Usage` when stdin is none of the service's.
    pub fn add_secrets(mut self, input: impl Read) -> Result<Self> {
        if self.0.remove(SECRETS_ON_STDIN).is_none() {
            return Ok(self);
        }
        let secrets: BTreeMap<String, String> = serde_json::from_reader(input).map_err(|_| {
            Error::usage(format!(
                "{SECRETS_ON_STDIN} is set, but stdin holds no variables"
            ))
            .hint(format!(
                "unset {SECRETS_ON_STDIN}: it is for pgark's own runs"
            ))
        })?;
        self.0.extend(secrets);
        Ok(self)
    }

    /// Beside the variables, what the files hold that they and the configuration file name, and
    /// that file itself: for a process that may not read them. A file that cannot be had is left
    /// to that process, which says so.
    #[must_use]
    pub fn with_files(mut self, config: Option<&str>) -> Self {
        self.add_file(config.unwrap_or(file::DEFAULT_PATH));
        if let Ok(Some(file)) = file::File::load(config, &self) {
            file.named_files().for_each(|path| self.add_file(path));
        }
        for variable in VARIABLES {
            let named = variable.spellings().filter_map(|name| {
                let path = self.get(&format!("{name}_FILE"))?;
                Some(path.to_owned())
            });
            let paths: Vec<String> = named
                .chain(variable.default_file.map(str::to_owned))
                .collect();
            for path in &paths {
                self.add_file(path);
            }
        }
        self
    }

    fn add_file(&mut self, path: &str) {
        if let Some(text) = read_bounded(path).ok().and_then(encryption::text) {
            self.0.insert(format!("{FILE_PREFIX}{path}"), text);
        }
    }

    /// A file's bytes: as they were handed over, else as they lie there.
    pub(super) fn read(&self, path: &str) -> std::io::Result<Vec<u8>> {
        match self.0.get(&format!("{FILE_PREFIX}{path}")) {
            Some(text) => Ok(text.clone().into_bytes()),
            None => read_bounded(path),
        }
    }

    /// The same with what a file's top says where nobody set the variable.
    pub(super) fn with_defaults(mut self, keys: &[Key]) -> Self {
        let unset: Vec<&Key> = keys.iter().filter(|key| !self.sets(key.variable)).collect();
        for key in unset {
            self.0.insert(key.name.clone(), key.text.clone());
        }
        self
    }

    /// The same with what a table says, which goes before everything else. `told` hears of each
    /// variable of the process that says otherwise.
    pub(super) fn with_table(
        mut self,
        keys: &[Key],
        process: &Environment,
        told: &mut dyn FnMut(&Key),
    ) -> Self {
        self.forget_other_servers(keys, process);
        for key in keys {
            if process.sets(key.variable) && process.get(&key.name) != Some(&key.text) {
                told(key);
            }
            for name in key.variable.spellings() {
                self.0.remove(name);
                self.0.remove(&format!("{name}_FILE"));
            }
            self.0.insert(key.name.clone(), key.text.clone());
        }
        self
    }

    /// A table that says which server it means is not to meet half of another one: libpq would
    /// join a host of here with an address of there. What the top of the file says is for all, and stays.
    fn forget_other_servers(&mut self, keys: &[Key], process: &Environment) {
        let names = |name: &str| keys.iter().any(|key| key.variable.name == name);
        let whole = names("DB_CONNINFO");
        if !whole && !names("DB_HOST") {
            return;
        }
        for name in ["PGHOST", "PGHOSTADDR", "PGSERVICE", "DB_CONNINFO"] {
            self.0.remove(name);
            self.0.remove(&format!("{name}_FILE"));
        }
        if !whole {
            return;
        }
        self.0.remove("PGPORT");
        let connection = VARIABLES
            .iter()
            .filter(|row| row.section == Section::Connection);
        for variable in connection {
            for name in variable.spellings().filter(|_| process.sets(variable)) {
                self.0.remove(name);
                self.0.remove(&format!("{name}_FILE"));
            }
            // A default file that is handed over empty counts as absent.
            if let Some(path) = variable.default_file {
                self.0.insert(format!("{FILE_PREFIX}{path}"), String::new());
            }
        }
    }

    /// Whether a variable is set, by any of its names, or as a file.
    pub(super) fn sets(&self, variable: &Variable) -> bool {
        let set = |name| self.get(name).is_some() || self.get(&format!("{name}_FILE")).is_some();
        variable.spellings().any(set)
    }

    /// The variables without secrets, and those that are or may hold one.
    #[must_use]
    pub fn split(&self) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
        let pairs = self
            .0
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()));
        pairs.partition(|(name, _)| !may_hold_secret(name))
    }

    /// An environment of these variables only.
    pub fn from_pairs<K: Into<String>, V: Into<String>>(
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        let pairs = pairs.into_iter();
        Environment(
            pairs
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        )
    }

    /// A variable's value; an empty one is unset.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// The names that are set, in order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0
            .keys()
            .map(String::as_str)
            .filter(|name| self.get(name).is_some())
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Set for a run of the service: its secrets come on stdin.
pub const SECRETS_ON_STDIN: &str = "PGARK_SECRETS_ON_STDIN";

/// Before the path of a file whose content stands among the variables.
const FILE_PREFIX: &str = "file:";

/// Whether a child must not have it: our own secrets, libpq's, and what others name like one.
fn may_hold_secret(name: &str) -> bool {
    let ours = VARIABLES.iter().filter(|variable| variable.secret);
    let known = ours
        .flat_map(Variable::spellings)
        .chain(["PGPASSWORD", "PGSSLPASSWORD"])
        .any(|known| known == name);
    known
        || name.starts_with(FILE_PREFIX)
        || ["PASSWORD", "SECRET", "TOKEN", "PASSPHRASE"]
            .iter()
            .any(|word| name.ends_with(word))
}

fn concerns_us(name: &str) -> bool {
    let base = name.strip_suffix("_FILE").unwrap_or(name);
    ["PG", "BACKUP_", "DB_"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
        || VARIABLES
            .iter()
            .any(|variable| variable.spellings().any(|known| known == base))
}

/// A value that never prints.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    #[must_use]
    pub fn new(text: String) -> Self {
        Secret(text)
    }

    /// The secret itself: for the connection and nothing else.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A value and who gave it. Not `Debug`: it may be a secret.
#[derive(Clone)]
pub(super) struct Setting {
    pub text: String,
    /// `--jobs`, `BACKUP_JOBS`, or `BACKUP_JOBS_FILE (/path)`.
    pub source: String,
}

impl Setting {
    pub(super) fn flag(name: &str, text: &str) -> Self {
        Setting {
            text: text.to_owned(),
            source: name.to_owned(),
        }
    }

    /// Whether the value has the variable's form.
    pub(super) fn check(&self, variable: &Variable) -> Result<()> {
        variable
            .form
            .check(&self.text)
            .map_err(|fix| self.malformed(variable, &fix))
    }

    /// Parses a list of databases.
    pub(super) fn parse_databases(&self) -> Result<Databases> {
        databases::parse(&self.text)
            .map_err(|fix| Error::usage(format!("{} is malformed: {fix}", self.source)))
    }

    fn malformed(&self, variable: &Variable, fix: &str) -> Error {
        // A URL may carry a password.
        let fact = if variable.secret || self.text.contains("://") {
            format!("{} is malformed: {fix}", self.source)
        } else {
            let shown: String = self.text.chars().take(80).collect();
            format!("{} is malformed: {shown:?}: {fix}", self.source)
        };
        Error::usage(fact).hint(match variable.default {
            Some(default) => format!("correct it, or unset it for the default {default}"),
            None => "correct it, or unset it".to_owned(),
        })
    }
}

/// Finds and checks a variable: by any of its names, as value or `_FILE`, else in its
/// default file.
pub(super) fn lookup(variable: &Variable, env: &Environment) -> Result<Option<Setting>> {
    let mut found: Option<(Setting, bool)> = None;
    for name in variable.spellings() {
        let file_name = format!("{name}_FILE");
        let direct = env.get(name).map(|text| (Setting::flag(name, text), false));
        let file = env
            .get(&file_name)
            .map(|path| (Setting::flag(&file_name, path), true));
        for next in [direct, file].into_iter().flatten() {
            match &found {
                None => found = Some(next),
                // An alias that says the same is no contradiction.
                Some(first) if first.0.text == next.0.text && first.1 == next.1 => {}
                Some(first) => {
                    return Err(Error::usage(format!(
                        "{} and {} are both set",
                        first.0.source, next.0.source
                    ))
                    .hint(format!("unset {} or {}", first.0.source, next.0.source)));
                }
            }
        }
    }
    let setting = match found {
        Some((setting, false)) => Some(setting),
        Some((named, true)) => {
            let source = format!("{} ({})", named.source, named.text);
            Some(
                read_file(variable, env, &named.text, source, true)?.ok_or_else(|| {
                    Error::usage(format!(
                        "{} names the empty file {}",
                        named.source, named.text
                    ))
                    .hint(format!(
                        "write the value into it, or unset {}",
                        named.source
                    ))
                })?,
            )
        }
        None => match variable.default_file {
            Some(path) => {
                let source = format!("{}_FILE ({path})", variable.name);
                read_file(variable, env, path, source, false)?
            }
            None => None,
        },
    };
    if let Some(setting) = &setting {
        setting.check(variable)?;
    }
    Ok(setting)
}

/// Reads a value from a file, less exactly one trailing newline. None when it is empty, or
/// absent and not `explicit`.
fn read_file(
    variable: &Variable,
    env: &Environment,
    path: &str,
    source: String,
    explicit: bool,
) -> Result<Option<Setting>> {
    let refuse = |why: String| Error::usage(format!("{source}: {why}"));
    let bytes = match env.read(path) {
        Ok(bytes) => bytes,
        Err(error)
            if !explicit
                && matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
        {
            return Ok(None);
        }
        Err(error) => {
            return Err(refuse(format!("the file cannot be read: {error}"))
                .hint("mount the file where pgark's user can read it, or name another one"));
        }
    };
    if bytes.len() as u64 > FILE_LEN_MAX {
        return Err(
            refuse(format!("the file is longer than {FILE_LEN_MAX} bytes"))
                .hint("it should hold the value and nothing else"),
        );
    }
    let mut text = encryption::text(bytes).ok_or_else(|| {
        refuse("the file is not UTF-8".to_owned()).hint("write it again in UTF-8")
    })?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    if text.contains(['\n', '\r']) && !variable.form.holds_lines() {
        let hint = if matches!(variable.form, Form::Path) {
            format!(
                "{} takes the path itself: set it, without _FILE",
                variable.name
            )
        } else {
            "leave one line in it: the value and nothing else".to_owned()
        };
        return Err(refuse("the file holds several lines".to_owned()).hint(hint));
    }
    Ok((!text.is_empty()).then_some(Setting { text, source }))
}

/// A file's first bytes, one more than any value may have.
fn read_bounded(path: &str) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?
        .take(FILE_LEN_MAX + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
