//! Connection URIs. Pure. Source: PostgreSQL manual, "Connection URIs".

use super::conninfo::{ConnInfo, syntax};
use crate::error::Result;

/// Parses what follows the scheme: `[user[:password]@][host[:port],…][/dbname][?key=value&…]`.
pub(super) fn parse_uri(text: &str) -> Result<ConnInfo> {
    let mut info = ConnInfo::new();
    let (text, query) = text
        .split_once('?')
        .map_or((text, None), |(a, b)| (a, Some(b)));
    // A blank in the path would be another argument's; libpq refuses it too.
    let (authority, path) = text
        .split_once('/')
        .map_or((text, None), |(a, b)| (a, Some(b)));
    let hosts = match authority.rsplit_once('@') {
        Some((user, hosts)) => {
            let (user, password) = user.split_once(':').unwrap_or((user, ""));
            info.set("user", &decode(user)?)?;
            info.set("password", &decode(password)?)?;
            hosts
        }
        None => authority,
    };
    let (hosts, ports) = uri_hosts(hosts)?;
    info.set("host", &hosts)?;
    info.set("port", &ports)?;
    if let Some(path) = path {
        info.set("dbname", &decode(path)?)?;
    }
    for pair in query
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
    {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| syntax("a parameter without ="))?;
        match (decode(key)?.as_str(), decode(value)?.as_str()) {
            // JDBC's spelling, which libpq accepts as well.
            ("ssl", "true") => info.set("sslmode", "require")?,
            (key, value) => info.set(key, value)?,
        }
    }
    Ok(info)
}

/// Splits `host:port,[::1]:port` into libpq's two comma lists; both empty when nothing is said.
fn uri_hosts(text: &str) -> Result<(String, String)> {
    let mut hosts = Vec::new();
    let mut ports = Vec::new();
    for part in text.split(',') {
        let (host, port) = if let Some(inner) = part.strip_prefix('[') {
            let (host, port) = inner.split_once(']').ok_or_else(|| syntax("[ without ]"))?;
            if !port.is_empty() && !port.starts_with(':') {
                return Err(syntax("text after ]"));
            }
            (host, port.strip_prefix(':').unwrap_or_default())
        } else {
            part.split_once(':').unwrap_or((part, ""))
        };
        hosts.push(decode(host)?);
        ports.push(decode(port)?);
    }
    let join = |list: Vec<String>| {
        let said = list.iter().any(|item| !item.is_empty());
        if said { list.join(",") } else { String::new() }
    };
    Ok((join(hosts), join(ports)))
}

/// Decodes `%XX`; anything else stays.
fn decode(text: &str) -> Result<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let pair = [bytes.next().unwrap_or(0), bytes.next().unwrap_or(0)];
        let digits = std::str::from_utf8(&pair).unwrap_or_default();
        let valid = pair.iter().all(u8::is_ascii_hexdigit);
        match u8::from_str_radix(digits, 16) {
            Ok(byte) if valid && byte != 0 => out.push(byte),
            _ => {
                return Err(syntax(
                    "a % that is no %XX escape; write %25 for a percent sign",
                ));
            }
        }
    }
    String::from_utf8(out).map_err(|_| syntax("an escape that is not UTF-8"))
}
