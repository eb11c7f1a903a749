//! Another server than pgark's own, for `restore --server`.
//!
//! What the connection string (or the service that it names) does not say of user, password and TLS is
//! as for pgark's own server, and then as libpq knows it. Where that one is, is never asked. Secrets
//! that belong to a user are not taken for another one.

use super::App;
use crate::error::{Error, Result};
use crate::postgres::{ConnInfo, Target};

/// Where a server is.
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
/// With what a service is found.
const SERVICE_VARIABLES: [&str; 3] = ["HOME", "PGSERVICEFILE", "PGSYSCONFDIR"];
/// Who one is.
const OF_USER: [&str; 5] = ["password", "passfile", "sslcert", "sslkey", "sslpassword"];

impl App {
    /// The server of a connection string or URI.
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
        let environment = |name: &str| self.config.environment.get(name).map(str::to_owned);
        let of_service = |name: &str| {
            let wanted = SERVICE_VARIABLES.contains(&name);
            wanted.then(|| environment(name)).flatten()
        };
        let info = said.or_environment(&of_service)?;
        let mut own = self.info()?;
        let same_user = info
            .get("user")
            .is_none_or(|user| own.get("user") == Some(user));
        let foreign = OF_USER.iter().filter(|_| !same_user);
        // A password or a password file that is named for it says enough.
        let has_secret = OF_USER[..2].iter().any(|key| info.get(key).is_some());
        let covered = OF_USER[..2].iter().filter(|_| has_secret);
        for key in PLACE.iter().chain(foreign).chain(covered) {
            own.set(key, "")?;
        }
        let elsewhere = |name: &str| {
            let wanted = !PLACE_VARIABLES.contains(&name);
            wanted.then(|| environment(name)).flatten()
        };
        info.or(&own, "pgark's own settings")?
            .or_environment(&elsewhere)?
            .resolve()
    }
}
