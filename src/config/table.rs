//! Every variable that pgark reads: design §7 and the old service's manual.
//!
//! Invariant: one row for each variable; `docs/configuration.md` is generated from it.

use super::form::Form;

/// Where the documentation lists a variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    Connection,
    Backups,
    Programs,
    Schedules,
    Retention,
    S3,
    Wal,
    Service,
}

impl Section {
    pub const ALL: [Section; 8] = [
        Section::Connection,
        Section::Backups,
        Section::Programs,
        Section::Schedules,
        Section::Retention,
        Section::S3,
        Section::Wal,
        Section::Service,
    ];

    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Section::Connection => "Connection",
            Section::Backups => "Backups",
            Section::Programs => "Programs and limits",
            Section::Schedules => "Schedules",
            Section::Retention => "Retention",
            Section::S3 => "S3",
            Section::Wal => "Base backups and WAL",
            Section::Service => "Service, pages, messages",
        }
    }
}

/// Whether this version uses a variable, and what happens if it does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// Used.
    Now,
    /// Belongs to a feature that is not built yet; set, it is named in a warning.
    Later(&'static str),
}

/// One variable.
#[derive(Debug, Clone, Copy)]
pub struct Variable {
    pub name: &'static str,
    pub aliases: &'static [&'static str],
    pub default: Option<&'static str>,
    pub form: Form,
    /// Its value never appears in a message.
    pub secret: bool,
    pub summary: &'static str,
    pub since: Since,
    /// Read when neither `NAME` nor `NAME_FILE` is set; may be absent.
    pub default_file: Option<&'static str>,
    pub section: Section,
    /// The libpq keyword that it sets.
    pub keyword: Option<&'static str>,
}

impl Variable {
    /// The name and its aliases.
    pub fn spellings(&self) -> impl Iterator<Item = &'static str> + use<> {
        std::iter::once(self.name).chain(self.aliases.iter().copied())
    }

    const fn new(
        section: Section,
        name: &'static str,
        form: Form,
        summary: &'static str,
    ) -> Variable {
        Variable {
            name,
            aliases: &[],
            default: None,
            form,
            secret: false,
            summary,
            since: Since::Now,
            default_file: None,
            section,
            keyword: None,
        }
    }

    const fn default(mut self, text: &'static str) -> Variable {
        self.default = Some(text);
        self
    }

    const fn alias(mut self, names: &'static [&'static str]) -> Variable {
        self.aliases = names;
        self
    }

    const fn secret(mut self) -> Variable {
        self.secret = true;
        self
    }

    const fn file(mut self, path: &'static str) -> Variable {
        self.default_file = Some(path);
        self
    }

    const fn keyword(mut self, keyword: &'static str) -> Variable {
        self.keyword = Some(keyword);
        self
    }

    const fn later(mut self, feature: &'static str) -> Variable {
        self.since = Since::Later(feature);
        self
    }
}

const SSL_MODES: &[&str] = &[
    "disable",
    "allow",
    "prefer",
    "require",
    "verify-ca",
    "verify-full",
];
const DAYS: Form = Form::Count(1, 36_500);
const KEEP: Form = Form::Count(0, 10_000);

use Section::{Backups, Connection, Programs, Retention, S3, Schedules, Service, Wal};

const fn var(section: Section, name: &'static str, form: Form, summary: &'static str) -> Variable {
    Variable::new(section, name, form, summary)
}

/// Every variable, in the order of the documentation.
#[rustfmt::skip]
pub const VARIABLES: &[Variable] = &[
    var(Connection, "DB_HOST", Form::Host, "The server: a name, an address, or the directory of its Unix socket.")
        .default("postgres").keyword("host"),
    var(Connection, "DB_PORT", Form::Port, "The server's port.")
        .default("5432").keyword("port"),
    var(Connection, "DB_NAME", Form::Databases, "What to back up: a database, a list with commas, or `*` for every database that accepts connections and is no template. A name with a comma goes in double quotes.")
        .default("agentic_db"),
    var(Connection, "DB_USER", Form::Text, "The role that connects.")
        .file("/run/secrets/db_user").keyword("user"),
    var(Connection, "DB_PASSWORD", Form::Text, "Its password. Better given as a file.")
        .secret().file("/run/secrets/db_password"),
    var(Connection, "DB_SSLMODE", Form::OneOf(SSL_MODES), "As libpq's `sslmode`.")
        .keyword("sslmode"),
    var(Connection, "DB_SSLROOTCERT", Form::Path, "Path of the certificates that may sign the server's; `system` for the machine's own.")
        .keyword("sslrootcert"),
    var(Connection, "DB_SSLCERT", Form::Path, "Path of the client's certificate.")
        .keyword("sslcert"),
    var(Connection, "DB_SSLKEY", Form::Path, "Path of the client's key.")
        .keyword("sslkey"),
    var(Connection, "DB_SSLPASSWORD", Form::Text, "Password of the client's key, where that is encrypted (PKCS#8). `PGSSLPASSWORD` is read too.")
        .secret(),
    var(Connection, "DB_CONNINFO", Form::Text, "All of the connection as libpq takes it: `postgresql://user@host:port/name?sslmode=require`, or `host=… port=… service=…`. What another `DB_*` variable says goes before it.")
        .secret(),

    var(Backups, "BACKUP_DIR", Form::Path, "The local store: a directory. `none`: no local store; backups are streamed straight into the bucket, with no scratch disk.")
        .default("/backups"),
    var(Backups, "BACKUP_COMPRESSION", Form::Compression, "How dumps are compressed, with a level if you like.")
        .default("gzip"),
    var(Backups, "BACKUP_JOBS", Form::Count(1, 64), "Parallel connections; compressors follow. Unset: the machine's cores, at most 4."),
    var(Backups, "BACKUP_ENCRYPT_RECIPIENTS", Form::Lines, "Encrypt backups for these public keys of age (`age1…`): several with commas or line breaks between, each opens every backup alone. Unset: no encryption. See [encryption](encryption.md).")
        .secret(),
    var(Backups, "BACKUP_IDENTITY", Form::Lines, "The secret key of age that opens encrypted backups: `AGE-SECRET-KEY-1…`, or a file of `age -p`. Needed to restore, `cat` and to verify content; not to take backups. Better given as a file.")
        .secret(),
    var(Backups, "BACKUP_IDENTITY_PASSPHRASE", Form::Text, "The passphrase of that key, when `age -p` protects it. Unset: asked for on the terminal.")
        .secret(),

    var(Programs, "PGARK_PG_BIN", Form::Path, "Directory of PostgreSQL's client programs, or several with colons between. Set, no other place is searched."),
    var(Programs, "PGARK_LOCK_TIMEOUT", Form::Duration, "How long a dump waits: for the lock on a table that somebody else holds, and for a server that is still starting.")
        .default("60s"),
    var(Programs, "PGARK_STATE_DIR", Form::Path, "Where locks, journal and `backup.log` lie when there is no local store.")
        .default("/var/lib/pgark"),
    var(Programs, "PGARK_RUN_TIMEOUT", Form::Duration, "How long a run of the service may take; then it is ended, so that the next one can begin.")
        .default("24h"),
    var(Programs, "PGARK_CONFIG", Form::Path, "The configuration file, for several clusters or stores. Unset: `/etc/pgark/pgark.toml`, if it exists."),

    var(Schedules, "BACKUP_SCHEDULE", Form::Schedule, "When to take dumps.")
        .default("0 2 * * *"),
    var(Schedules, "BACKUP_ON_START", Form::Switch, "Take a backup when the service starts, unless there is one of the last hour; so a run that was missed while the service was down is made up for.")
        .default("true"),
    var(Schedules, "BASE_SCHEDULE", Form::Schedule, "When to take base backups: physical copies of the whole cluster. Unset: never."),
    var(Schedules, "BASE_INCREMENTAL_SCHEDULE", Form::Schedule, "When to take incremental base backups (PostgreSQL 17 or newer): what changed since the one before. Unset: never."),
    var(Schedules, "DRILL_SCHEDULE", Form::Schedule, "When to restore into a throwaway server and check. Unset: never.")
        .later("drills"),

    var(Retention, "BACKUP_RETENTION_DAYS", DAYS, "Days to keep backups.")
        .default("30"),
    var(Retention, "BACKUP_KEEP_DAILY", KEEP, "Daily backups to keep beside the days: the newest of each."),
    var(Retention, "BACKUP_KEEP_WEEKLY", KEEP, "Weekly backups to keep beside the days: the newest of each."),
    var(Retention, "BACKUP_KEEP_MONTHLY", KEEP, "Monthly backups to keep beside the days: the newest of each."),
    var(Retention, "BACKUP_KEEP_YEARLY", KEEP, "Yearly backups to keep beside the days: the newest of each."),
    var(Retention, "BACKUP_KEEP_MIN", Form::Count(1, 10_000), "Never fewer good backups than this per database and store.")
        .default("1"),
    var(Retention, "S3_RETENTION_DAYS", DAYS, "Days to keep backups on S3. Unset: as BACKUP_RETENTION_DAYS."),

    var(S3, "S3_BUCKET", Form::Text, "Bucket for a second copy: the bare name. Unset: off.")
        .alias(&["BACKUP_S3_BUCKET"]),
    var(S3, "S3_PREFIX", Form::Text, "Prefix of the keys in the bucket.").default("backups/"),
    var(S3, "S3_ENDPOINT", Form::Text, "URL of an S3-compatible server, without the bucket. `http://` asks for no encryption."),
    var(S3, "S3_FORCE_PATH_STYLE", Form::Switch, "Whether the bucket is in the path instead of the host name. Unset: with an endpoint."),
    var(S3, "S3_SSE", Form::Text, "Encryption by the server: `AES256`, `aws:kms`."),
    var(S3, "S3_KMS_KEY_ID", Form::Text, "Key of the encryption by the server."),
    var(S3, "S3_STORAGE_CLASS", Form::Text, "Storage class of what is written: `STANDARD_IA`, `GLACIER_IR` and others."),
    var(S3, "AWS_CA_BUNDLE", Form::Path, "Path of certificates that may sign the S3 server's, beside the machine's own."),
    var(S3, "AWS_REGION", Form::Text, "Region of the bucket.").default("us-east-1"),
    var(S3, "AWS_ACCESS_KEY_ID", Form::Text, "Access key; without one, the usual AWS chain."),
    var(S3, "AWS_SECRET_ACCESS_KEY", Form::Text, "Its secret.").secret(),
    var(S3, "AWS_SESSION_TOKEN", Form::Text, "Its session token.").secret(),

    var(Wal, "WAL_STREAMING", Form::Switch, "Receive WAL all the time, so that any moment can be restored.").default("off"),
    var(Wal, "WAL_FLUSH_INTERVAL", Form::Duration, "The longest that received WAL stays out of S3.").default("10s"),
    var(Wal, "WAL_RETENTION_DAYS", DAYS, "Days that can be restored to any second. Unset: as BACKUP_RETENTION_DAYS."),

    var(Service, "HTTP_ADDR", Form::Listen, "Where `/livez` and `/healthz` are served.").default("127.0.0.1:8080"),
    var(Service, "WEB_PASSWORD", Form::Text, "Password of the pages.").secret().later("pages"),
    var(Service, "NOTIFY_URLS", Form::Lines, "Where to report failures.").secret().later("notifications"),
    var(Service, "HEARTBEAT_URL", Form::Url, "Fetched after each run that did all it promised: a dead man's switch such as Healthchecks or Uptime Kuma.").secret(),
    var(Service, "PGARK_LOG_PATH", Form::Path, "A file that gets the service's log as well; at 4 MiB it becomes `<name>.1`. The image sets it, so that `/var/log/cron/backup-cron.log` is there."),
    var(Service, "PGARK_CRONTAB_PATH", Form::Path, "A file in which the service shows its schedule as a crontab. The image sets it, so that `/etc/crontabs/root` is there."),
    var(Service, "PGARK_RUN_AS", Form::OneOf(&["owner"]), "`owner`: when root starts pgark, it reads the secrets as root and works as the owner of BACKUP_DIR; an empty directory of root's is given to user 10001 first, one with contents stays root's, and so does the work. The image sets it. Unset: pgark works as who started it."),
    var(Service, "LOG_FORMAT", Form::OneOf(&["text", "json", "logfmt"]), "Form of the service's log.").default("text"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_name_is_there_once_and_every_default_has_its_form() {
        let mut seen = HashSet::new();
        for variable in VARIABLES {
            for name in variable.spellings() {
                assert!(seen.insert(name), "{name} twice");
                assert!(!name.ends_with("_FILE"), "{name} would be ambiguous");
            }
            if let Some(default) = variable.default {
                assert_eq!(variable.form.check(default), Ok(()), "{}", variable.name);
            }
            assert!(variable.summary.ends_with('.'), "{}", variable.name);
        }
    }

    /// The old service's manual; its users change the image and nothing else.
    #[test]
    fn every_variable_of_the_old_service_is_known() {
        let old = [
            "BACKUP_SCHEDULE",
            "BACKUP_RETENTION_DAYS",
            "DB_HOST",
            "DB_PORT",
            "DB_NAME",
            "DB_USER_FILE",
            "DB_PASSWORD_FILE",
            "BACKUP_DIR",
            "S3_BUCKET",
            "AWS_REGION",
            "BACKUP_S3_BUCKET",
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
        ];
        for name in old {
            let base = name.strip_suffix("_FILE").unwrap_or(name);
            assert!(
                VARIABLES
                    .iter()
                    .any(|row| row.spellings().any(|known| known == base)),
                "{name}"
            );
        }
    }
}
