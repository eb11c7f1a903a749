//! The composition root: from a configuration to a store, a server and its programs.
//!
//! Invariant: building anything here touches nothing but what it opens; a connection is made
//! only by those who ask for one.

mod elsewhere;
mod keys;
mod records;
mod schedules;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;

use crate::anomaly::Thresholds;
use crate::archive::{Crypt, Identities};
use crate::backup::dump::Options;
use crate::backup::gate::Gate;
use crate::cancel::Token;
use crate::catalog::list::{self, Catalog, Entry};
use crate::config::{Among, Config, Databases, Environment, Flags, Place, S3, StoreConfig};
use crate::error::{Error, Result};
use crate::postgres::tools::Tools;
use crate::postgres::{ConnInfo, Target, patience};
use crate::retention::Policy;
use crate::store::Store;
use crate::store::local::LocalStore;
use crate::store::lock::Reading;
use crate::store::object::{Keys, S3Options, S3Store, Secret};
use crate::units::Codec;

/// Everything that a verb works with, for one cluster.
pub struct App {
    pub config: Config,
    pub codec: Codec,
    pub crypt: Crypt,
    pub cancel: Token,
    /// Read, and unlocked, when first needed.
    identities: OnceLock<Identities>,
}

impl App {
    /// Reads the configuration: one for each cluster, or for the one that the flags name.
    ///
    /// # Errors
    /// `Usage`, with the variable, flag or line, and the fix.
    pub fn all(flags: &Flags, environment: &Environment, cancel: &Token) -> Result<Vec<App>> {
        let configs = crate::config::load(flags, environment)?.into_iter();
        let app = |mut config: Config| {
            if !config.has_local() {
                config.warnings.extend(records::settle(&mut config.dir)?);
            }
            keys::identity_file(&config.encryption)?;
            Ok(App {
                codec: Codec::parse(&config.compression)?,
                crypt: keys::crypt(&config.encryption)?,
                config,
                cancel: cancel.clone(),
                identities: OnceLock::new(),
            })
        };
        configs.map(app).collect()
    }

    /// The same without a file of several clusters.
    ///
    /// # Errors
    /// As [`App::all`].
    pub fn new(flags: &Flags, environment: &Environment, cancel: &Token) -> Result<App> {
        let mut all = App::all(flags, environment, cancel)?;
        match (all.pop(), all.is_empty()) {
            (Some(app), true) => Ok(app),
            _ => Err(Error::usage("there are several clusters").hint("--cluster names one")),
        }
    }

    /// `shop/` before an id, where there are several clusters.
    #[must_use]
    pub fn prefix(&self) -> String {
        self.before(self.config.among != Among::Alone, "/")
    }

    fn before(&self, wanted: bool, what: &str) -> String {
        let named = wanted.then(|| format!("{}{what}", self.config.cluster));
        named.unwrap_or_default()
    }

    /// `shop: ` before a line for people, where it could be about several clusters.
    #[must_use]
    pub fn whose(&self) -> String {
        self.before(self.config.among == Among::Several, ": ")
    }

    /// An id without this cluster's name before it.
    #[must_use]
    pub fn own_id<'a>(&self, id: &'a str) -> &'a str {
        let own = id.strip_prefix(self.config.cluster.as_str());
        own.and_then(|rest| rest.strip_prefix('/')).unwrap_or(id)
    }

    /// Whether there is a store of this name.
    ///
    /// # Errors
    /// `Usage` with those that there are.
    pub fn check_store(&self, wanted: Option<&str>) -> Result<()> {
        self.store_config(wanted).map(drop)
    }

    /// The store of this name, for reading or writing; the first when none is wanted.
    ///
    /// # Errors
    /// `Usage` when `wanted` names no store; what keeps it from being opened.
    pub fn store(&self, wanted: Option<&str>) -> Result<Box<dyn Store>> {
        self.store_within(wanted, None)
    }

    /// The same, that gives up a request after so long: for one who tries again himself.
    ///
    /// # Errors
    /// As [`App::store`].
    pub fn store_within(
        &self,
        wanted: Option<&str>,
        deadline: Option<Duration>,
    ) -> Result<Box<dyn Store>> {
        let config = self.store_config(wanted)?;
        match &config.place {
            Place::Local(dir) => local(&config.name, dir),
            Place::S3(s3) => self.object_store(config, s3, deadline),
        }
    }

    fn store_config(&self, wanted: Option<&str>) -> Result<&StoreConfig> {
        let name = wanted.unwrap_or_else(|| self.first());
        let found = self.config.stores.iter().find(|store| store.name == name);
        found.ok_or_else(|| {
            Error::usage(format!("there is no store {name:?}")).hint(format!(
                "stores: {}; S3_BUCKET adds s3, and pgark.toml any other",
                self.store_names().join(", ")
            ))
        })
    }

    /// The name of the store that runs write to.
    #[must_use]
    pub fn first(&self) -> &str {
        self.config.stores.first().map_or("", |store| &store.name)
    }

    /// The names of the stores that are filled from the first.
    #[must_use]
    pub fn others(&self) -> Vec<&str> {
        self.store_names().split_off(1)
    }

    /// The names of all stores, the first one first.
    #[must_use]
    pub fn store_names(&self) -> Vec<&str> {
        let stores = self.config.stores.iter();
        stores.map(|store| store.name.as_str()).collect()
    }

    /// An object store. Makes no request.
    fn object_store(
        &self,
        config: &StoreConfig,
        s3: &S3,
        deadline: Option<Duration>,
    ) -> Result<Box<dyn Store>> {
        let mut options = S3Options::new(s3.bucket.as_str());
        options.deadline = deadline.unwrap_or(options.deadline);
        options.name.clone_from(&config.name);
        options.prefix.clone_from(&s3.prefix);
        options.region = Some(s3.region.clone());
        options.endpoint.clone_from(&s3.endpoint);
        options.allow_http = s3
            .endpoint
            .as_deref()
            .is_some_and(|url| url.starts_with("http://"));
        options.force_path_style = s3.force_path_style;
        options.ca_file.clone_from(&s3.ca_file);
        options.sse.clone_from(&s3.sse);
        options.kms_key_id.clone_from(&s3.kms_key_id);
        options.storage_class.clone_from(&s3.storage_class);
        options.keys = s3.keys.as_ref().map(|keys| Keys {
            access_key_id: keys.access_key_id.clone(),
            secret_access_key: Secret::new(keys.secret_access_key.expose()),
            session_token: keys
                .session_token
                .as_ref()
                .map(|token| Secret::new(token.expose())),
        });
        if self.config.dir.is_dir() {
            options.state_dir = Some(self.uploads_dir(&config.name));
        }
        options.warn = Arc::new(|text| {
            let _ = writeln!(std::io::stderr(), "pgark: warning: {text}");
        });
        let environment = |name: &str| config.environment.get(name).map(str::to_owned);
        Ok(Box::new(S3Store::open(
            &options,
            &environment,
            &self.cancel,
        )?))
    }

    /// Where the ids of a store's uploads are remembered. That of the variables' own bucket is
    /// where it always was.
    fn uploads_dir(&self, name: &str) -> PathBuf {
        let uploads = self.config.dir.join(".pgark/uploads");
        match name {
            "s3" => uploads,
            name => uploads.join(name),
        }
    }

    /// The catalog of a store that must exist already: reading never creates a directory.
    ///
    /// # Errors
    /// `Usage` when there is no such directory.
    pub fn catalog(&self, wanted: Option<&str>) -> Result<(Box<dyn Store>, Catalog)> {
        let store = self.existing_store(wanted)?;
        let catalog = list::load(store.as_ref())?;
        Ok((store, catalog))
    }

    /// A store that must exist already.
    ///
    /// # Errors
    /// `Usage` when there is no such directory.
    pub fn existing_store(&self, wanted: Option<&str>) -> Result<Box<dyn Store>> {
        let config = self.store_config(wanted)?;
        if let Place::Local(dir) = &config.place
            && !dir.is_dir()
        {
            let others = self.store_names().into_iter();
            let others = others.filter(|name| *name != config.name);
            let also: Vec<String> = others
                .map(|name| format!("; --store {name} reads another"))
                .collect();
            return Err(
                Error::usage(format!("there is no directory {}", dir.display())).hint(format!(
                    "BACKUP_DIR or --dir names the directory of the backups{}",
                    also.concat()
                )),
            );
        }
        self.store(wanted)
    }

    /// Keeps a backup from being deleted while it is read. None where the directory cannot be
    /// written: the reader there is not protected.
    #[must_use]
    pub fn reading(&self, entry: &Entry) -> Option<Reading> {
        Reading::hold(&self.config.dir, entry.id.as_str())
    }

    /// PostgreSQL's programs on this machine.
    #[must_use]
    pub fn tools(&self) -> Tools {
        Tools::find(self.config.program_dir.as_deref())
    }

    /// Where the server is, resolved and pinned to the one address that answered, so that
    /// every later connection of a run reaches the same server. Asks in the database
    /// `postgres`, and where that is missing or closed in those of `names`.
    ///
    /// # Errors
    /// `Usage` for a contradictory configuration, `Failed` when nothing answers.
    pub fn pin(&self, names: &[String]) -> Result<Target> {
        self.pin_to(&self.target()?, names)
    }

    /// The same for another server.
    ///
    /// # Errors
    /// As [`Self::pin`].
    pub fn pin_to(&self, target: &Target, names: &[String]) -> Result<Target> {
        self.pin_within(target, names, Duration::ZERO, &|_| ())
    }

    /// The same for a run of dumps, which waits for a server that is still starting as long as for a
    /// lock.
    ///
    /// # Errors
    /// As [`App::pin`].
    pub fn pin_when_ready(&self, names: &[String], say: &dyn Fn(&str)) -> Result<Target> {
        self.pin_within(&self.target()?, names, self.config.lock_timeout, say)
    }

    fn pin_within(
        &self,
        target: &Target,
        names: &[String],
        wait: Duration,
        say: &dyn Fn(&str),
    ) -> Result<Target> {
        let connect = |name: &str| {
            patience::connect_when_ready(&target.with_database(name), wait, &self.cancel, say)
        };
        let mut result = connect("postgres");
        for name in names.iter().map(String::as_str).chain(["template1"]) {
            // Missing, or closed to us: that database's fault and not the server's.
            let elsewhere = |error: &Error| {
                matches!(error.sqlstate.as_deref(), Some("3D000" | "42501" | "28000"))
            };
            match &result {
                Err(error) if elsewhere(error) => {
                    result = connect(name);
                }
                _ => break,
            }
        }
        Ok(result?.pinned())
    }

    /// Where the server is, by explicit settings, then libpq's own, then pgark's defaults.
    ///
    /// # Errors
    /// `Usage` for a contradictory configuration.
    pub fn target(&self) -> Result<Target> {
        self.info()?.resolve()
    }

    fn info(&self) -> Result<ConnInfo> {
        let settings = &self.config.connection;
        let mut info = ConnInfo::new();
        for (key, value) in &settings.explicit {
            info.set(key, value)?;
        }
        if let Some(password) = &settings.key_password {
            info.set("sslpassword", password.expose())?;
        }
        if let Some(password) = &settings.password {
            info.set("password", password.expose())?;
            if let Some(source) = &settings.password_source {
                info.set_password_origin(source.clone());
            }
        }
        if let Some(conninfo) = &settings.conninfo {
            info = info.or(&ConnInfo::parse(conninfo.expose())?, "DB_CONNINFO")?;
        }
        let mut info =
            info.or_environment(&|name| self.config.environment.get(name).map(str::to_owned))?;
        for (key, value) in &settings.defaults {
            if info.get(key).is_none() {
                info.set(key, value)?;
            }
        }
        if info.get("application_name").is_none() {
            info.set("application_name", "pgark")?;
        }
        Ok(info)
    }

    /// The databases to back up. A service file's `dbname` goes before pgark's own default.
    ///
    /// # Errors
    /// `Usage` for a contradictory configuration.
    pub fn databases(&self) -> Result<Databases> {
        if self.config.databases_given {
            return Ok(self.config.databases.clone());
        }
        Ok(match self.info()?.get("dbname") {
            Some(name) => Databases::Named(vec![name.to_owned()]),
            None => self.config.databases.clone(),
        })
    }

    /// How the dumps of a run that began then are taken.
    #[must_use]
    pub fn dump_options(&self, started_at: Timestamp) -> Options {
        Options {
            cluster: self.config.cluster.clone(),
            codec: self.codec,
            crypt: self.crypt.clone(),
            jobs: self.config.jobs,
            lock_timeout: self.config.lock_timeout,
            started_at,
        }
    }

    /// What stays when backups of a store expire.
    ///
    /// # Errors
    /// `Usage` when there is no such store.
    pub fn policy(&self, store: &str) -> Result<Policy> {
        let keep = &self.store_config(Some(store))?.retention;
        Ok(Policy {
            days: keep.days,
            keep_daily: keep.keep_daily,
            keep_weekly: keep.keep_weekly,
            keep_monthly: keep.keep_monthly,
            keep_yearly: keep.keep_yearly,
            keep_min: keep.keep_min,
            wal_days: self.wal_days(),
        })
    }

    /// When a backup is suspect.
    #[must_use]
    pub fn thresholds(&self) -> Thresholds {
        let set = &self.config.anomaly;
        Thresholds {
            rows_fall_percent: set.rows_fall_percent,
            rows_min: set.rows_min,
            size_fall_percent: set.size_fall_percent,
            size_min_bytes: set.size_min_bytes,
            table_gone: set.table_gone,
            table_gone_rows_min: set.table_gone_rows_min,
            history: set.history,
        }
    }

    /// What new backups are compared with.
    #[must_use]
    pub fn gate<'a>(&self, catalog: &'a Catalog) -> Gate<'a> {
        let limits = self.thresholds();
        Gate { catalog, limits }
    }

    /// A fresh progress counter.
    #[must_use]
    pub fn progress(&self) -> Arc<crate::progress::Progress> {
        Arc::new(crate::progress::Progress::default())
    }
}

fn local(name: &str, dir: &Path) -> Result<Box<dyn Store>> {
    let store = LocalStore::open(dir)?.named(name);
    // Tests end the real program at each step of the store's work.
    #[cfg(debug_assertions)]
    return crate::store::failing::FailingStore::from_environment(Box::new(store));
    #[cfg(not(debug_assertions))]
    Ok(Box::new(store))
}
