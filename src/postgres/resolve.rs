//! From parameters to a target: defaults, the password file, TLS files, DNS.
//!
//! Names are resolved once, here, so that everything that follows speaks to the addresses
//! found now. A name that fails beside others that work is reported only if none answers.

use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::auth::AuthMethods;
use super::conninfo::ConnInfo;
use super::passfile::Passfile;
use super::target::{Address, Endpoint, SessionKind, Settings, Target};
use super::tls::TlsSettings;
use crate::error::{Error, Result};

/// Debian's socket folder and PostgreSQL's own default.
pub(super) const SOCKET_FOLDERS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

pub(super) fn resolve(info: &ConnInfo) -> Result<Target> {
    let uid = rustix::process::geteuid().as_raw();
    let account = account(uid);
    let home = info
        .home
        .clone()
        .or_else(|| std::env::var_os("HOME").map(PathBuf::from))
        .or_else(|| account.as_ref().map(|account| account.home.clone()));
    let user = match info.get("user") {
        Some(user) => user.to_owned(),
        None => account.map(|account| account.name).ok_or_else(|| {
            Error::usage(format!(
                "no user is set, and uid {uid} has no name on this system"
            ))
            .hint("set DB_USER or PGUSER")
        })?,
    };
    let (passfile, passfile_path, warning) = read_passfile(info, home.as_deref());
    let endpoints = endpoints(info)?;
    if let Some(failure) = all_failed(&endpoints) {
        return Err(failure);
    }
    let settings = Settings {
        passfile,
        passfile_path,
        warnings: warning.into_iter().collect(),
        tls: TlsSettings::new(info, home.as_deref())?,
        methods: AuthMethods::parse(info.get("require_auth"))?,
        connect_timeout: connect_timeout(info),
        info: info.clone(),
        user,
    };
    Ok(Target {
        database: info.get("dbname").unwrap_or(&settings.user).to_owned(),
        settings: Arc::new(settings),
        endpoints,
        pinned: false,
        session: session_kind(info),
        replication: false,
    })
}

/// A line of `/etc/passwd`.
struct Account {
    name: String,
    home: PathBuf,
}

fn account(uid: u32) -> Option<Account> {
    let text = std::fs::read("/etc/passwd").ok()?;
    let text = String::from_utf8_lossy(&text);
    text.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.get(2)?.parse() == Ok(uid)).then(|| Account {
            name: fields[0].to_owned(),
            home: PathBuf::from(fields.get(5).copied().unwrap_or("/")),
        })
    })
}

/// The name of a user of this machine, for `requirepeer`.
pub(super) fn user_name(uid: u32) -> Option<String> {
    account(uid).map(|account| account.name)
}

fn read_passfile(
    info: &ConnInfo,
    home: Option<&Path>,
) -> (Option<Passfile>, Option<PathBuf>, Option<String>) {
    let path = info.get("passfile").map(PathBuf::from);
    let Some(path) = path.or_else(|| home.map(|home| home.join(".pgpass"))) else {
        return (None, None, None);
    };
    let (passfile, warning) = Passfile::read(&path);
    let path = passfile.is_some().then_some(path);
    (passfile, path, warning)
}

fn session_kind(info: &ConnInfo) -> SessionKind {
    match info.get("target_session_attrs") {
        Some("read-write") => SessionKind::ReadWrite,
        Some("read-only") => SessionKind::ReadOnly,
        Some("primary") => SessionKind::Primary,
        Some("standby") => SessionKind::Standby,
        Some("prefer-standby") => SessionKind::PreferStandby,
        _ => SessionKind::Any,
    }
}

/// As libpq: zero and below wait forever. Unlike libpq, not saying anything is 30 seconds.
fn connect_timeout(info: &ConnInfo) -> Option<Duration> {
    match number(info, "connect_timeout") {
        None => Some(CONNECT_TIMEOUT_DEFAULT),
        Some(seconds) => u64::try_from(seconds)
            .ok()
            .filter(|seconds| *seconds > 0)
            .map(Duration::from_secs),
    }
}

/// A numeric parameter; they were checked when they were set.
pub(super) fn number(info: &ConnInfo, key: &str) -> Option<i64> {
    info.get(key).and_then(|value| value.trim().parse().ok())
}

fn endpoints(info: &ConnInfo) -> Result<Vec<Endpoint>> {
    let list = |key: &str| -> Vec<String> {
        let text = info.get(key).unwrap_or_default();
        let items = text.split(',').map(|item| item.trim().to_owned());
        if text.is_empty() {
            Vec::new()
        } else {
            items.collect()
        }
    };
    let (hosts, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
    let count = hosts.len().max(addresses.len()).max(1);
    if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
        return Err(mismatch("host", hosts.len(), "hostaddr", addresses.len()));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(mismatch("port", ports.len(), "host", count));
    }
    (0..count)
        .map(|i| {
            let said = |list: &[String]| list.get(i).filter(|item| !item.is_empty()).cloned();
            let port = if ports.len() == 1 {
                said(&ports[..1]).or(ports.first().cloned())
            } else {
                said(&ports)
            };
            let port = port.and_then(|port| port.parse().ok()).unwrap_or(5432);
            Ok(endpoint(said(&hosts), said(&addresses).as_deref(), port))
        })
        .collect()
}

fn mismatch(a: &str, a_count: usize, b: &str, b_count: usize) -> Error {
    Error::usage(format!("{a} lists {a_count} values, {b} lists {b_count}"))
        .hint("the lists belong together, item by item")
}

fn endpoint(host: Option<String>, address: Option<&str>, port: u16) -> Endpoint {
    let named = host.is_some();
    let host = host
        .or_else(|| address.map(str::to_owned))
        .unwrap_or_else(|| {
            // As libpq built by Debian or by hand would: the local socket; without one, loopback.
            let socket =
                |folder: &&&str| Path::new(folder).join(format!(".s.PGSQL.{port}")).exists();
            SOCKET_FOLDERS
                .iter()
                .find(socket)
                .map_or("localhost", |folder| folder)
                .to_owned()
        });
    let mut endpoint = Endpoint {
        named,
        port,
        addresses: Vec::new(),
        failure: None,
        host,
    };
    if endpoint.host.starts_with('/') && address.is_none() {
        endpoint
            .addresses
            .push(Address::Unix(PathBuf::from(&endpoint.host), port));
        return endpoint;
    }
    let name = address.unwrap_or(&endpoint.host);
    match (name, port).to_socket_addrs() {
        Ok(found) => {
            for address in found.map(Address::Tcp) {
                if !endpoint.addresses.contains(&address) {
                    endpoint.addresses.push(address);
                }
            }
        }
        Err(error) => {
            let text = error.to_string();
            let text = text.trim_start_matches("failed to lookup address information: ");
            endpoint.failure = Some(format!("host name {name:?} has no address: {text}"));
        }
    }
    endpoint
}

fn all_failed(endpoints: &[Endpoint]) -> Option<Error> {
    let failures: Vec<&str> = endpoints
        .iter()
        .filter_map(|endpoint| endpoint.failure.as_deref())
        .collect();
    (failures.len() == endpoints.len()).then(|| {
        Error::failed(failures.join("; "))
            .hint("check the host's spelling (DB_HOST) and this machine's DNS; in compose, the service's name")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Target {
        ConnInfo::parse(text).unwrap().resolve().unwrap()
    }

    #[test]
    fn conninfo_is_read_back_and_holds_no_password() {
        let text = "host=127.0.0.1 port=5433 user='o\\'ne il' dbname='a/b \"c\"\\\\' password=s3cret passfile=/none sslmode=disable";
        let target = target(text);
        let out = target.conninfo(Some(Path::new("/tmp/p f")));
        assert!(!out.contains("s3cret"), "{out}");
        let back = ConnInfo::parse(&out).unwrap();
        assert_eq!(back.get("user"), Some("o'ne il"));
        assert_eq!(back.get("dbname"), Some("a/b \"c\"\\"));
        assert_eq!(back.get("hostaddr"), Some("127.0.0.1"));
        assert_eq!(back.get("passfile"), Some("/tmp/p f"));
        assert_eq!(target.describe(), "o'ne il@127.0.0.1:5433/a/b \"c\"\\");
        assert!(!format!("{target:?}").contains("s3cret"));
        let line = target.passfile_line().unwrap();
        assert_eq!(line, b"127.0.0.1:5433:a/b \"c\"\\\\:o'ne il:s3cret\n");
    }

    #[test]
    fn lists_belong_together_item_by_item() {
        let two = target("host=127.0.0.1,/tmp port=5433,5434 user=u sslmode=disable");
        assert_eq!(two.endpoints.len(), 2);
        assert_eq!(
            two.endpoints[1].addresses,
            [Address::Unix("/tmp".into(), 5434)]
        );
        assert_eq!(
            target("host=127.0.0.1,::1 port=7 user=u").endpoints[1].port,
            7
        );
        let wrong = ConnInfo::parse("host=a,b port=1,2,3 user=u").unwrap();
        assert_eq!(wrong.resolve().unwrap_err().kind, crate::error::Kind::Usage);
    }

    #[test]
    fn defaults_are_those_of_libpq() {
        let target = target("host=127.0.0.1 user=me");
        assert_eq!((target.database(), target.port()), ("me", 5432));
        assert_eq!(
            target.settings.connect_timeout,
            Some(CONNECT_TIMEOUT_DEFAULT)
        );
        assert_eq!(
            super::connect_timeout(&ConnInfo::parse("connect_timeout=0").unwrap()),
            None
        );
    }

    #[test]
    fn a_name_without_an_address_is_named() {
        let info = ConnInfo::parse("host=no-such-host.invalid user=u").unwrap();
        let error = info.resolve().unwrap_err();
        assert!(error.fact.contains("no-such-host.invalid"), "{error}");
    }
}
