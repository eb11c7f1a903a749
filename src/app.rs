//! The composition root: from a configuration to a store, a server and its programs.
//!
//! Invariant: building anything here touches nothing but what it opens; a connection is made
//! only by those who ask for one.

use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::backup::dump::Options;
use crate::cancel::Token;
use crate::catalog::list::{self, Catalog, Entry};
use crate::config::{Config, Databases, Environment, Flags};
use crate::error::{Error, Result};
use crate::postgres::tools::Tools;
use crate::postgres::{Client, ConnInfo, Target};
use crate::retention::Policy;
use crate::schedule::{self, Schedule};
use crate::store::Store;
use crate::store::local::LocalStore;
use crate::store::lock::Reading;
use crate::units::Codec;

/// Everything that a verb works with.
pub struct App {
    pub config: Config,
    pub codec: Codec,
    pub cancel: Token,
    environment: Environment,
}

impl App {
    /// Reads the configuration.
    ///
    /// # Errors
    /// `Usage`, with the variable or flag and the fix.
    pub fn new(flags: &Flags, environment: Environment, cancel: Token) -> Result<App> {
        let config = crate::config::load(flags, &environment)?;
        let codec = Codec::parse(&config.compression)?;
        Ok(App {
            config,
            codec,
            cancel,
            environment,
        })
    }

    /// The variables that it was made from.
    #[must_use]
    pub fn environment(&self) -> &Environment {
        &self.environment
    }

    /// The local store, for reading or writing.
    ///
    /// # Errors
    /// `Usage` when `wanted` names another store; what keeps the directory from being opened.
    pub fn store(&self, wanted: Option<&str>) -> Result<Box<dyn Store>> {
        let store = LocalStore::open(&self.config.dir)?;
        if let Some(name) = wanted.filter(|name| *name != store.name()) {
            return Err(Error::usage(format!("there is no store {name:?}"))
                .hint(format!("stores: {}", store.name())));
        }
        // Tests end the real program at each step of the store's work.
        #[cfg(debug_assertions)]
        return crate::store::failing::FailingStore::from_environment(Box::new(store));
        #[cfg(not(debug_assertions))]
        Ok(Box::new(store))
    }

    /// The catalog of a store that must exist already: reading never creates a directory.
    ///
    /// # Errors
    /// `Usage` when there is no such directory.
    pub fn catalog(&self, wanted: Option<&str>) -> Result<(Box<dyn Store>, Catalog)> {
        if !self.config.dir.is_dir() {
            return Err(Error::usage(format!(
                "there is no directory {}",
                self.config.dir.display()
            ))
            .hint("BACKUP_DIR or --dir names the directory of the backups"));
        }
        let store = self.store(wanted)?;
        let catalog = list::load(store.as_ref())?;
        Ok((store, catalog))
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
        let target = self.target()?;
        let mut result = Client::connect(&target.with_database("postgres"));
        for name in names.iter().map(String::as_str).chain(["template1"]) {
            // Missing, or closed to us: that database's fault and not the server's.
            let elsewhere = |error: &Error| {
                matches!(error.sqlstate.as_deref(), Some("3D000" | "42501" | "28000"))
            };
            match &result {
                Err(error) if elsewhere(error) => {
                    result = Client::connect(&target.with_database(name));
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
        if let Some(password) = &settings.password {
            info.set("password", password.expose())?;
            if let Some(source) = &settings.password_source {
                info.set_password_origin(source.clone());
            }
        }
        let mut info =
            info.or_environment(&|name| self.environment.get(name).map(str::to_owned))?;
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
            jobs: self.config.jobs,
            lock_timeout: self.config.lock_timeout,
            started_at,
        }
    }

    /// What stays when backups expire.
    #[must_use]
    pub fn policy(&self) -> Policy {
        let keep = &self.config.retention;
        Policy {
            days: keep.days,
            keep_daily: keep.keep_daily,
            keep_weekly: keep.keep_weekly,
            keep_monthly: keep.keep_monthly,
            keep_yearly: keep.keep_yearly,
            keep_min: keep.keep_min,
        }
    }

    /// When dumps are taken.
    ///
    /// # Errors
    /// `Usage` for a schedule that is malformed or never comes.
    pub fn schedule(&self) -> Result<Schedule> {
        let service = &self.config.service;
        let zone = match &service.zone {
            Some(name) => schedule::zone(name).map_err(|error| error.context("TZ"))?,
            None => TimeZone::try_system().unwrap_or(TimeZone::UTC),
        };
        Schedule::parse(&service.schedule, &zone).map_err(|error| error.context("BACKUP_SCHEDULE"))
    }

    /// A fresh progress counter.
    #[must_use]
    pub fn progress(&self) -> Arc<crate::progress::Progress> {
        Arc::new(crate::progress::Progress::default())
    }
}
