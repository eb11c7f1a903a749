//! A resolved place to connect to: addresses, user, database, how to authenticate.
//!
//! Invariants: a password never leaves through `Debug`, [`Target::describe`] or
//! [`Target::conninfo`], only through [`Target::passfile_line`]. A pinned target has exactly
//! one address, so that every worker and every libpq program reaches the same server
//! (a name with several addresses would break a shared snapshot).

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::auth::AuthMethods;
use super::conninfo::{ConnInfo, put_pair};
use super::options::KEYWORDS;
use super::passfile::{self, Passfile};
use super::tls::{Root, SslMode, TlsSettings};

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    Tcp(SocketAddr),
    /// The folder of the socket file.
    Unix(PathBuf, u16),
}

impl Address {
    pub(super) fn is_unix(&self) -> bool {
        matches!(self, Address::Unix(..))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => write!(f, "{}", address.ip()),
            Address::Unix(folder, port) => {
                write!(f, "{}", folder.join(format!(".s.PGSQL.{port}")).display())
            }
        }
    }
}

/// One host of the list and the addresses behind its name.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    /// As the user said it; the address itself when only `hostaddr` was given.
    pub host: String,
    /// Whether `host` is a name that a certificate can be checked against.
    pub named: bool,
    pub port: u16,
    pub addresses: Vec<Address>,
    /// Why the name has no address.
    pub failure: Option<String>,
}

/// Which kind of server a session must be (`target_session_attrs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SessionKind {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

/// What all targets that stem from one [`ConnInfo`] share.
#[derive(Debug)]
pub(super) struct Settings {
    pub info: ConnInfo,
    pub user: String,
    pub passfile: Option<Passfile>,
    pub passfile_path: Option<PathBuf>,
    pub warnings: Vec<String>,
    pub tls: TlsSettings,
    pub methods: AuthMethods,
    /// For one address, from the first packet to the end of the startup; none waits forever.
    pub connect_timeout: Option<Duration>,
}

/// A resolved connection target; cheap to clone.
#[derive(Clone)]
pub struct Target {
    pub(super) settings: Arc<Settings>,
    pub(super) database: String,
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) pinned: bool,
    pub(super) session: SessionKind,
    /// Whether sessions speak the replication protocol instead of SQL.
    pub(super) replication: bool,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({})", self.describe())
    }
}

impl Target {
    /// The same server and user, another database.
    #[must_use]
    pub fn with_database(&self, name: &str) -> Target {
        Target {
            database: name.to_owned(),
            ..self.clone()
        }
    }

    /// The same server and user, for physical replication. As in `pg_hba.conf` and password
    /// files, `replication` stands where the database is named.
    #[must_use]
    pub fn for_replication(&self) -> Target {
        Target {
            replication: true,
            ..self.with_database("replication")
        }
    }

    /// Each host of the list by itself, whatever kind of server it is now.
    #[must_use]
    pub fn each_host(&self) -> Vec<Target> {
        let hosts = self.endpoints.iter();
        hosts
            .map(|endpoint| Target {
                endpoints: vec![endpoint.clone()],
                session: SessionKind::Any,
                ..self.clone()
            })
            .collect()
    }

    #[must_use]
    pub fn database(&self) -> &str {
        &self.database
    }

    #[must_use]
    pub fn user(&self) -> &str {
        &self.settings.user
    }

    /// The host as the user said it (the first one of a list), or the socket's folder.
    #[must_use]
    pub fn host(&self) -> &str {
        self.endpoints.first().map_or("", |endpoint| &endpoint.host)
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.endpoints
            .first()
            .map_or(5432, |endpoint| endpoint.port)
    }

    /// `postgres@db.example:5432/app`, for messages.
    #[must_use]
    pub fn describe(&self) -> String {
        let hosts: Vec<String> = self
            .endpoints
            .iter()
            .map(|endpoint| {
                if endpoint.host.contains(':') {
                    format!("[{}]:{}", endpoint.host, endpoint.port)
                } else {
                    format!("{}:{}", endpoint.host, endpoint.port)
                }
            })
            .collect();
        format!("{}@{}/{}", self.user(), hosts.join(","), self.database)
    }

    /// Whether a network lies between: neither a socket nor this machine's own address.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        let mut addresses = self
            .endpoints
            .iter()
            .flat_map(|endpoint| &endpoint.addresses);
        addresses.any(|address| matches!(address, Address::Tcp(tcp) if !tcp.ip().is_loopback()))
    }

    /// Whether a session is refused to a server that cannot prove who it is.
    #[must_use]
    pub fn verifies_server(&self) -> bool {
        self.settings.tls.mode >= SslMode::VerifyCa
    }

    /// What a person should know about how this target was found, for instance that a
    /// password file was ignored.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.settings.warnings
    }

    /// Connection text for libpq's programs; never a password. `passfile` is the path of a
    /// [`super::tools::PassFile`], and the program runs with its variables.
    #[must_use]
    pub fn conninfo(&self, passfile: Option<&Path>) -> String {
        self.conninfo_with(passfile, "")
    }

    /// The same with more `options` for the server, after the user's own: `-c name=value`.
    #[must_use]
    pub fn conninfo_with(&self, passfile: Option<&Path>, server_options: &str) -> String {
        let mut out = String::new();
        self.put_hosts(&mut out);
        put_pair(&mut out, "user", self.user());
        put_pair(&mut out, "dbname", &self.database);
        self.put_tls(&mut out);
        let info = &self.settings.info;
        for keyword in KEYWORDS.iter().filter(|keyword| keyword.passed) {
            match info.get(keyword.name) {
                Some(value) if keyword.name != "options" => {
                    put_pair(&mut out, keyword.name, value);
                }
                _ => {}
            }
        }
        let options = [info.get("options").unwrap_or_default(), server_options].join(" ");
        if !options.trim().is_empty() {
            put_pair(&mut out, "options", options.trim());
        }
        // pgark does not speak GSS: its programs shall not try what it did not.
        put_pair(&mut out, "gssencmode", "disable");
        if let (false, Some(kind)) = (self.pinned, info.get("target_session_attrs")) {
            put_pair(&mut out, "target_session_attrs", kind);
        }
        let own = self.settings.passfile_path.as_deref();
        if let Some(path) =
            passfile.or(own.filter(|_| self.settings.info.get("password").is_none()))
        {
            put_pair(&mut out, "passfile", &path.to_string_lossy());
        }
        if passfile.is_some() && self.service_file().is_some() {
            put_pair(&mut out, "service", Self::KEY_SERVICE);
        }
        out
    }

    fn put_hosts(&self, out: &mut String) {
        let list = |of: &dyn Fn(&Endpoint) -> String| {
            let items: Vec<String> = self.endpoints.iter().map(of).collect();
            items.join(",")
        };
        put_pair(out, "host", &list(&|endpoint| endpoint.host.clone()));
        let single = self
            .endpoints
            .iter()
            .all(|endpoint| matches!(endpoint.addresses.as_slice(), [Address::Tcp(_)]));
        if single {
            // More than one address is left to the program: libpq tries them in turn.
            put_pair(
                out,
                "hostaddr",
                &list(&|endpoint| endpoint.addresses.iter().map(Address::to_string).collect()),
            );
        }
        put_pair(out, "port", &list(&|endpoint| endpoint.port.to_string()));
    }

    fn put_tls(&self, out: &mut String) {
        let tls = &self.settings.tls;
        put_pair(out, "sslmode", tls.mode.name());
        if tls.mode == SslMode::Disable {
            return;
        }
        match &tls.root {
            Some(Root::System) => put_pair(out, "sslrootcert", "system"),
            Some(Root::File(path)) => put_pair(out, "sslrootcert", &path.to_string_lossy()),
            None => {}
        }
        for (key, path) in [
            ("sslcert", tls.client.as_ref().map(|client| &client.cert)),
            ("sslkey", tls.client.as_ref().map(|client| &client.key)),
            ("sslcrl", tls.crl.as_ref()),
        ] {
            if let Some(path) = path {
                put_pair(out, key, &path.to_string_lossy());
            }
        }
    }

    /// The password for `endpoint` and where it came from.
    pub(super) fn password(&self, endpoint: &Endpoint) -> Option<(&str, String)> {
        let info = &self.settings.info;
        if let Some(password) = info.get("password") {
            return Some((password, info.password_origin()));
        }
        let file = self.settings.passfile.as_ref()?;
        let password = file.find(
            passfile_host(&endpoint.host),
            endpoint.port,
            &self.database,
            self.user(),
        )?;
        Some((password, format!("password file {}", file.path.display())))
    }

    /// The name of the service that [`Self::service_file`] defines.
    pub(super) const KEY_SERVICE: &str = "pgark_key";

    /// A service file of libpq with the password of the client's key, which no variable and no
    /// password file of it can carry.
    pub(super) fn service_file(&self) -> Option<String> {
        self.settings.tls.client.as_ref()?;
        let password = self.settings.info.get("sslpassword")?;
        Some(format!("[{}]\nsslpassword={password}\n", Self::KEY_SERVICE))
    }

    /// A line for a password file of libpq that matches this target, when a password is
    /// known. None as well for a password with a line's end, which that format cannot hold.
    #[must_use]
    pub fn passfile_line(&self) -> Option<Vec<u8>> {
        let endpoint = self.endpoints.first()?;
        let (password, _) = self.password(endpoint)?;
        let several = self.endpoints.len() > 1;
        // libpq's name for a socket depends on how it was built; any host is exact enough in
        // a private file.
        let host = if several || endpoint.host.starts_with('/') {
            "*"
        } else {
            &endpoint.host
        };
        let port = if several {
            "*".to_owned()
        } else {
            endpoint.port.to_string()
        };
        passfile::line([host, &port, &self.database, self.user(), password])
    }
}

/// The default socket folder is written as `localhost` in password files.
fn passfile_host(host: &str) -> &str {
    if super::resolve::SOCKET_FOLDERS.contains(&host) {
        "localhost"
    } else {
        host
    }
}
