//! The composition root: from a configuration to a store, a server and its programs.
//!
//! Invariant: building anything here touches nothing but what it opens; a connection is made
//! only by those who ask for one.

use std::io::Write as _;
use std::path::PathBuf;
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
use crate::store::object::{Keys, S3Options, S3Store, Secret};
use crate::units::Codec;

/// The names of the stores.
pub const LOCAL: &str = "local";
pub const S3: &str = "s3";

/// Where a server is: what another one never takes from pgark's own, nor from the environment.
const PLACE: [&str; 7] = [
    "host",
    "hostaddr",
    "port",
    "dbname",
    "service",
    "servicefile",
    "target_session_attrs",
];
const PLACE_VARIABLES: [&str; 6] = [
    "PGHOST",
    "PGHOSTADDR",
    "PGPORT",
    "PGDATABASE",
    "PGSERVICE",
    "PGTARGETSESSIONATTRS",
];

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

    /// The store of this name, for reading or writing; the local one when none is wanted.
    ///
    /// # Errors
    /// `Usage` when `wanted` names no store; what keeps it from being opened.
    pub fn store(&self, wanted: Option<&str>) -> Result<Box<dyn Store>> {
        match wanted {
            None | Some(LOCAL) => self.local(),
            Some(S3) if self.config.s3.is_some() => self.second()?.ok_or_else(|| {
                Error::usage("there is no second store").hint("S3_BUCKET names its bucket")
            }),
            Some(name) => {
                let also = self.config.s3.as_ref().map_or("", |_| ", s3");
                Err(Error::usage(format!("there is no store {name:?}"))
                    .hint(format!("stores: {LOCAL}{also}; S3_BUCKET adds s3")))
            }
        }
    }

    /// The names of the stores that are configured.
    #[must_use]
    pub fn store_names(&self) -> Vec<&'static str> {
        let second = self.config.s3.as_ref().map(|_| S3);
        std::iter::once(LOCAL).chain(second).collect()
    }

    fn local(&self) -> Result<Box<dyn Store>> {
        let store = LocalStore::open(&self.config.dir)?;
        // Tests end the real program at each step of the store's work.
        #[cfg(debug_assertions)]
        return crate::store::failing::FailingStore::from_environment(Box::new(store));
        #[cfg(not(debug_assertions))]
        Ok(Box::new(store))
    }

    /// The second store, when one is configured. Makes no request.
    ///
    /// # Errors
    /// `Usage` for settings that contradict each other.
    pub fn second(&self) -> Result<Option<Box<dyn Store>>> {
        let Some(s3) = &self.config.s3 else {
            return Ok(None);
        };
        let mut options = S3Options::new(s3.bucket.as_str());
        options.prefix.clone_from(&s3.prefix);
        options.region = Some(s3.region.clone());
        options.endpoint.clone_from(&s3.endpoint);
        options.allow_http = s3
            .endpoint
            .as_deref()
            .is_some_and(|url| url.starts_with("http://"));
        options.force_path_style = s3.force_path_style;
        options.ca_file = self.environment.get("AWS_CA_BUNDLE").map(PathBuf::from);
        options.sse.clone_from(&s3.sse);
        options.kms_key_id.clone_from(&s3.kms_key_id);
        options.keys = s3.keys.as_ref().map(|keys| Keys {
            access_key_id: keys.access_key_id.clone(),
            secret_access_key: Secret::new(keys.secret_access_key.expose()),
            session_token: keys
                .session_token
                .as_ref()
                .map(|token| Secret::new(token.expose())),
        });
        if self.config.dir.is_dir() {
            options.state_dir = Some(self.config.dir.join(".pgark/uploads"));
        }
        options.warn = Arc::new(|text| {
            let _ = writeln!(std::io::stderr(), "pgark: warning: {text}");
        });
        let environment = |name: &str| self.environment.get(name).map(str::to_owned);
        Ok(Some(Box::new(S3Store::open(
            &options,
            &environment,
            &self.cancel,
        )?)))
    }

    /// The catalog of a store that must exist already: reading never creates a directory.
    ///
    /// # Errors
    /// `Usage` when there is no such directory.
    pub fn catalog(&self, wanted: Option<&str>) -> Result<(Box<dyn Store>, Catalog)> {
        if wanted.is_none_or(|name| name == LOCAL) && !self.config.dir.is_dir() {
            let also = self
                .config
                .s3
                .as_ref()
                .map_or("", |_| "; --store s3 reads the bucket");
            return Err(Error::usage(format!(
                "there is no directory {}",
                self.config.dir.display()
            ))
            .hint(format!(
                "BACKUP_DIR or --dir names the directory of the backups{also}"
            )));
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
        Self::pin_to(&self.target()?, names)
    }

    /// The same for another server.
    ///
    /// # Errors
    /// As [`Self::pin`].
    pub fn pin_to(target: &Target, names: &[String]) -> Result<Target> {
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

    /// Another server by a connection string. What it does not say of user, password and TLS is as
    /// for pgark's own server; where that one is, is not asked.
    ///
    /// # Errors
    /// `Usage` for a string that is malformed or names no server.
    pub fn elsewhere(&self, text: &str) -> Result<Target> {
        let said = ConnInfo::parse(text).map_err(|error| error.context("--server"))?;
        let named = ["host", "hostaddr", "service"];
        if !named.iter().any(|key| said.get(key).is_some()) {
            return Err(Error::usage("--server names no host")
                .hint("--server 'host=db2.example port=5432', a URI, or service=NAME"));
        }
        let own_user = self.info()?.get("user").map(str::to_owned);
        // First the service that it names, then pgark's own settings, then what libpq knows.
        let files = ["HOME", "PGSERVICEFILE", "PGSYSCONFDIR"];
        let only = |wanted: &dyn Fn(&str) -> bool, name: &str| {
            self.environment
                .get(name)
                .filter(|_| wanted(name))
                .map(str::to_owned)
        };
        let mut info = said.or_environment(&|name| only(&|name| files.contains(&name), name))?;
        let settings = &self.config.connection;
        // Another user's password is another one: the password file may know it.
        if let Some(password) = &settings.password
            && info.get("password").is_none()
            && info.get("passfile").is_none()
            && info
                .get("user")
                .is_none_or(|user| Some(user) == own_user.as_deref())
        {
            info.set("password", password.expose())?;
            let origin = settings.password_source.clone();
            info.set_password_origin(origin.unwrap_or_else(|| "pgark's own settings".to_owned()));
        }
        let fill = |info: &mut ConnInfo, from: &[(String, String)]| {
            for (key, value) in from {
                if info.get(key).is_none() && !PLACE.contains(&key.as_str()) {
                    info.set(key, value)?;
                }
            }
            Ok::<(), Error>(())
        };
        fill(&mut info, &settings.explicit)?;
        let mut info =
            info.or_environment(&|name| only(&|name| !PLACE_VARIABLES.contains(&name), name))?;
        fill(&mut info, &settings.defaults)?;
        if info.get("application_name").is_none() {
            info.set("application_name", "pgark")?;
        }
        info.resolve()
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

    /// What stays when backups of a store expire.
    #[must_use]
    pub fn policy(&self, store: &str) -> Policy {
        let keep = &self.config.retention;
        let s3 = self.config.s3.as_ref().filter(|_| store == S3);
        Policy {
            days: s3.map_or(keep.days, |s3| s3.days),
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
