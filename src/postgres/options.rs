//! The keywords of a connection, as a table: libpq's names, their variables, and what
//! pgark does with each. Source: PostgreSQL manual, "Parameter Key Words" and
//! "Environment Variables".

/// One libpq keyword.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keyword {
    pub name: &'static str,
    /// The variable that fills it when it is not set.
    pub variable: Option<&'static str>,
    /// Whether [`super::Target::conninfo`] passes it to libpq programs as it is. Those that
    /// are not are either resolved (host, user …), pgark's own business, or a secret.
    pub passed: bool,
}

const fn keyword(name: &'static str, variable: &'static str) -> Keyword {
    Keyword {
        name,
        variable: Some(variable),
        passed: false,
    }
}

const fn bare(name: &'static str) -> Keyword {
    Keyword {
        name,
        variable: None,
        passed: false,
    }
}

const fn passed(of: Keyword) -> Keyword {
    Keyword { passed: true, ..of }
}

/// Every keyword that pgark knows, libpq's of PostgreSQL 14 to 19.
pub(super) const KEYWORDS: &[Keyword] = &[
    keyword("service", "PGSERVICE"),
    keyword("servicefile", "PGSERVICEFILE"),
    keyword("host", "PGHOST"),
    keyword("hostaddr", "PGHOSTADDR"),
    keyword("port", "PGPORT"),
    keyword("dbname", "PGDATABASE"),
    keyword("user", "PGUSER"),
    keyword("password", "PGPASSWORD"),
    keyword("passfile", "PGPASSFILE"),
    passed(keyword("require_auth", "PGREQUIREAUTH")),
    passed(keyword("channel_binding", "PGCHANNELBINDING")),
    passed(keyword("connect_timeout", "PGCONNECT_TIMEOUT")),
    keyword("client_encoding", "PGCLIENTENCODING"),
    passed(keyword("options", "PGOPTIONS")),
    keyword("application_name", "PGAPPNAME"),
    bare("fallback_application_name"),
    passed(bare("keepalives")),
    passed(bare("keepalives_idle")),
    passed(bare("keepalives_interval")),
    passed(bare("keepalives_count")),
    passed(bare("tcp_user_timeout")),
    bare("replication"),
    keyword("sslmode", "PGSSLMODE"),
    passed(keyword("sslnegotiation", "PGSSLNEGOTIATION")),
    passed(keyword("sslcompression", "PGSSLCOMPRESSION")),
    keyword("sslcert", "PGSSLCERT"),
    keyword("sslkey", "PGSSLKEY"),
    passed(keyword("sslcertmode", "PGSSLCERTMODE")),
    // libpq has no variable for it.
    keyword("sslpassword", "PGSSLPASSWORD"),
    keyword("sslrootcert", "PGSSLROOTCERT"),
    keyword("sslcrl", "PGSSLCRL"),
    keyword("sslcrldir", "PGSSLCRLDIR"),
    passed(keyword("sslsni", "PGSSLSNI")),
    passed(keyword("requirepeer", "PGREQUIREPEER")),
    passed(keyword(
        "ssl_min_protocol_version",
        "PGSSLMINPROTOCOLVERSION",
    )),
    passed(keyword(
        "ssl_max_protocol_version",
        "PGSSLMAXPROTOCOLVERSION",
    )),
    keyword("min_protocol_version", "PGMINPROTOCOLVERSION"),
    keyword("max_protocol_version", "PGMAXPROTOCOLVERSION"),
    keyword("gssencmode", "PGGSSENCMODE"),
    keyword("krbsrvname", "PGKRBSRVNAME"),
    keyword("gsslib", "PGGSSLIB"),
    bare("gssdelegation"),
    keyword("target_session_attrs", "PGTARGETSESSIONATTRS"),
    keyword("load_balance_hosts", "PGLOADBALANCEHOSTS"),
];

/// The values that a keyword may take, for those that are a choice.
pub(super) fn choices(name: &str) -> Option<&'static [&'static str]> {
    Some(match name {
        "sslmode" => &[
            "disable",
            "allow",
            "prefer",
            "require",
            "verify-ca",
            "verify-full",
        ],
        "channel_binding" => &["disable", "prefer", "require"],
        // pgark cannot require GSS: it does not speak it.
        "gssencmode" => &["disable", "prefer"],
        "sslnegotiation" => &["postgres", "direct"],
        "sslcertmode" => &["disable", "allow", "require"],
        "load_balance_hosts" => &["disable", "random"],
        "target_session_attrs" => &[
            "any",
            "read-write",
            "read-only",
            "primary",
            "standby",
            "prefer-standby",
        ],
        "sslsni" | "keepalives" | "sslcompression" | "gssdelegation" => &["0", "1"],
        "ssl_min_protocol_version" | "ssl_max_protocol_version" => {
            &["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"]
        }
        _ => return None,
    })
}

/// Whether a keyword's value is a whole number.
pub(super) fn is_number(name: &str) -> bool {
    matches!(
        name,
        "connect_timeout"
            | "keepalives_idle"
            | "keepalives_interval"
            | "keepalives_count"
            | "tcp_user_timeout"
    )
}

/// The known keyword nearest to a mistyped one, when it is near at all.
pub(super) fn nearest(name: &str) -> Option<&'static str> {
    KEYWORDS
        .iter()
        .map(|keyword| (distance(name, keyword.name), keyword.name))
        .min()
        .filter(|(distance, _)| *distance <= 2)
        .map(|(_, name)| name)
}

/// Edits between two words (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let changed = corner + usize::from(from != *to);
            corner = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}
