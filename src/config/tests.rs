//! The configuration's rules, one claim a test.

use std::time::Duration;

use super::load::load as load_all;
use super::*;
use crate::error::{Error, Kind, Result};

/// The only cluster's.
fn load(flags: &Flags, env: &Environment) -> Result<Config> {
    load_all(flags, env).map(|mut all| all.remove(0))
}

/// An empty directory of this test's own.
pub(super) fn scratch(test: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("pgark_config_{test}_{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn from(pairs: &[(&str, &str)]) -> Result<Config> {
    load(
        &Flags::default(),
        &Environment::from_pairs(pairs.iter().copied()),
    )
}

fn refused(pairs: &[(&str, &str)]) -> Error {
    let error = from(pairs).unwrap_err();
    assert_eq!(error.kind, Kind::Usage, "{error}");
    error
}

fn named(names: &[&str]) -> Databases {
    Databases::Named(names.iter().map(|name| (*name).to_owned()).collect())
}

#[test]
fn nothing_set_gives_the_defaults_of_the_old_service() {
    let config = from(&[]).unwrap();
    assert_eq!(config.cluster, "main");
    assert_eq!(config.databases, named(&["agentic_db"]));
    assert!(!config.databases_given);
    assert_eq!(config.dir, PathBuf::from("/backups"));
    assert_eq!(config.compression, "gzip");
    assert!((1..=4).contains(&config.jobs));
    assert_eq!(config.lock_timeout, Duration::from_secs(60));
    let defaults = [("host", "postgres"), ("port", "5432")];
    assert_eq!(
        config.connection.defaults,
        defaults.map(|(k, v)| (k.to_owned(), v.to_owned()))
    );
    assert!(config.warnings.is_empty() && config.no_effect_yet.is_none());
}

#[test]
fn flag_wins_over_variable_and_variable_over_default() {
    let env = Environment::from_pairs([
        ("BACKUP_DIR", "/var"),
        ("BACKUP_JOBS", "3"),
        ("BACKUP_COMPRESSION", "zstd:3"),
        ("DB_NAME", "a,b"),
    ]);
    let config = load(&Flags::default(), &env).unwrap();
    assert_eq!(config.dir, PathBuf::from("/var"));
    assert_eq!((config.jobs, config.compression.as_str()), (3, "zstd:3"));
    assert_eq!(config.databases, named(&["a", "b"]));
    let flags = Flags {
        dir: Some("/flag".into()),
        database: vec!["x,y".to_owned()],
        jobs: Some(7),
        compression: Some("none".to_owned()),
        config: None,
        cluster: None,
    };
    let config = load(&flags, &env).unwrap();
    assert_eq!(config.dir, PathBuf::from("/flag"));
    assert_eq!((config.jobs, config.compression.as_str()), (7, "none"));
    assert_eq!(config.databases, named(&["x,y"]));
}

#[test]
fn malformed_flag_is_named_as_the_flag() {
    let flags = Flags {
        jobs: Some(65),
        ..Flags::default()
    };
    let error = load(&flags, &Environment::default()).unwrap_err();
    assert!(
        error.fact.contains("--jobs") && !error.fact.contains("BACKUP_JOBS"),
        "{error}"
    );
    let flags = Flags {
        database: vec![String::new()],
        ..Flags::default()
    };
    assert!(
        load(&flags, &Environment::default())
            .unwrap_err()
            .fact
            .contains("--database")
    );
}

#[test]
fn db_variables_become_libpq_keywords() {
    let pairs = [
        ("DB_HOST", "db"),
        ("DB_PORT", "6000"),
        ("DB_USER", "u"),
        ("DB_SSLMODE", "verify-full"),
        ("DB_SSLROOTCERT", "/ca"),
        ("DB_SSLCERT", "/crt"),
        ("DB_SSLKEY", "/key"),
    ];
    let expected = [
        ("host", "db"),
        ("port", "6000"),
        ("user", "u"),
        ("sslmode", "verify-full"),
        ("sslrootcert", "/ca"),
        ("sslcert", "/crt"),
        ("sslkey", "/key"),
    ];
    let explicit = from(&pairs).unwrap().connection.explicit;
    assert_eq!(
        explicit,
        expected.map(|(k, v)| (k.to_owned(), v.to_owned()))
    );
}

#[test]
fn pgdatabase_names_the_database_unless_db_name_does() {
    let config = from(&[("PGDATABASE", "a,b")]).unwrap();
    assert_eq!(
        (config.databases, config.databases_given),
        (named(&["a,b"]), true)
    );
    let config = from(&[("PGDATABASE", "a"), ("DB_NAME", "*")]).unwrap();
    assert_eq!(config.databases, Databases::All);
}

#[test]
fn exactly_one_trailing_newline_of_a_file_is_stripped() {
    let dir = scratch("newline");
    for (i, (content, expected)) in [
        ("secret", "secret"),
        ("secret\n", "secret"),
        ("secret\r\n", "secret"),
        (" secret \n", " secret "),
    ]
    .iter()
    .enumerate()
    {
        let path = dir.join(i.to_string());
        std::fs::write(&path, content).unwrap();
        let config = from(&[("DB_PASSWORD_FILE", path.to_str().unwrap())]).unwrap();
        assert_eq!(config.connection.password.unwrap().expose(), *expected);
        assert!(
            config
                .connection
                .password_source
                .unwrap()
                .contains("DB_PASSWORD_FILE")
        );
    }
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn file_with_several_lines_is_refused_without_showing_them() {
    let dir = scratch("lines");
    let path = dir.join("p");
    for content in ["one\ntwo", "one\n\n", "one\rtwo\n"] {
        std::fs::write(&path, content).unwrap();
        let error = refused(&[("DB_PASSWORD_FILE", path.to_str().unwrap())]);
        assert!(error.fact.contains("several lines"), "{error}");
        assert!(!error.to_string().contains("two"), "{error}");
    }
    let error = refused(&[("DB_SSLKEY_FILE", path.to_str().unwrap())]);
    assert!(error.to_string().contains("without _FILE"), "{error}");
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn explicit_file_that_is_absent_empty_too_long_or_not_utf8_is_an_error_with_its_path() {
    let dir = scratch("explicit");
    let write = |name: &str, content: &[u8]| {
        let path = dir.join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let absent = dir.join("absent").display().to_string();
    let empty = write("empty", b"\n");
    let long = write("long", &vec![b'x'; 300_000]);
    let latin1 = write("latin1", b"caf\xe9");
    for path in [&absent, &empty, &long, &latin1] {
        let error = refused(&[("DB_USER_FILE", path)]);
        assert!(error.fact.contains(path.as_str()), "{error}");
        assert!(error.fact.contains("DB_USER_FILE"), "{error}");
    }
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn variable_and_its_file_together_are_an_error_unless_one_is_empty() {
    let error = refused(&[("DB_PASSWORD", "hunter2"), ("DB_PASSWORD_FILE", "/x")]);
    assert!(
        error.fact.contains("DB_PASSWORD and DB_PASSWORD_FILE"),
        "{error}"
    );
    assert!(!error.to_string().contains("hunter2"));
    from(&[("DB_PASSWORD", "x"), ("DB_PASSWORD_FILE", "")]).unwrap();
}

#[test]
fn empty_variable_is_unset() {
    let config = from(&[("BACKUP_DIR", ""), ("BACKUP_JOBS", ""), ("S3_BUCKET", "")]).unwrap();
    assert_eq!(config.dir, PathBuf::from("/backups"));
}

#[test]
fn malformed_value_names_variable_value_and_fix() {
    for (name, value, fix) in [
        ("BACKUP_JOBS", "many", "1 to 64"),
        ("BACKUP_JOBS", "0", "1 to 64"),
        ("DB_PORT", "54x", "65535"),
        ("DB_SSLMODE", "on", "verify-full"),
        ("BACKUP_COMPRESSION", "lz4", "zstd"),
        ("BACKUP_SCHEDULE", "nightly", "cron"),
        ("BACKUP_RETENTION_DAYS", "-1", "whole number"),
        ("PGARK_LOCK_TIMEOUT", "60", "unit"),
        ("DB_NAME", "a,,b", "comma"),
    ] {
        let error = refused(&[(name, value)]);
        for part in [name, value, fix] {
            assert!(error.fact.contains(part), "{part}: {error}");
        }
        assert!(error.hint.is_some());
    }
}

#[test]
fn password_in_a_url_or_secret_never_reaches_the_message() {
    let error = refused(&[("DB_HOST", "postgres://u:hunter2@db/app")]);
    assert!(!error.to_string().contains("hunter2"), "{error}");
    let error = refused(&[("DB_PASSWORD", "hunter2\0")]);
    assert!(!error.to_string().contains("hunter2"), "{error}");
}

#[test]
fn without_a_local_store_there_must_be_a_bucket() {
    let error = refused(&[("BACKUP_DIR", "none")]);
    assert!(error.fact.contains("BACKUP_DIR none"), "{error}");
    assert!(error.hint.unwrap().contains("S3_BUCKET"));
    let alone = [("BACKUP_DIR", "none"), ("S3_BUCKET", "b")];
    let config = from(&alone).unwrap();
    assert!(!config.has_local() && config.stores.len() == 1);
    assert_eq!(config.dir, PathBuf::from("/var/lib/pgark"));
    assert_eq!(config.stores[0].name, "s3");
    let elsewhere = [alone[0], alone[1], ("PGARK_STATE_DIR", "/state")];
    assert_eq!(from(&elsewhere).unwrap().dir, PathBuf::from("/state"));
    let both = from(&[("BACKUP_DIR", "./none"), ("S3_BUCKET", "b")]).unwrap();
    assert!(both.has_local() && both.stores.len() == 2);
    let flags = Flags {
        dir: Some("none".into()),
        ..Flags::default()
    };
    assert!(load(&flags, &Environment::default()).is_err());
}

#[test]
fn what_has_no_effect_yet_is_named_in_one_line_without_values() {
    let config = from(&[
        ("BASE_SCHEDULE", "@daily"),
        ("DRILL_SCHEDULE", "@weekly"),
        ("HTTP_ADDR", "0.0.0.0:80"),
        ("WEB_PASSWORD", "hunter2"),
        ("AWS_REGION", "eu-west-1"),
    ])
    .unwrap();
    let line = config.no_effect_yet.unwrap();
    for name in ["DRILL_SCHEDULE", "WEB_PASSWORD"] {
        assert!(line.contains(name), "{line}");
    }
    assert!(!line.contains("BASE_SCHEDULE"), "{line}");
    assert!(
        !line.contains('\n') && !line.contains("hunter2") && !line.contains("AWS"),
        "{line}"
    );
    assert!(config.warnings.is_empty());
}

#[test]
fn what_stays_and_when_runs_come_is_read() {
    let config = from(&[
        ("BACKUP_SCHEDULE", "@hourly"),
        ("BACKUP_ON_START", "no"),
        ("BACKUP_RETENTION_DAYS", "7"),
        ("BACKUP_KEEP_WEEKLY", "4"),
        ("PGARK_RUN_TIMEOUT", "2h"),
        ("TZ", "Europe/Berlin"),
    ])
    .unwrap();
    let Retention {
        days,
        keep_weekly,
        keep_yearly,
        keep_min,
        ..
    } = config.stores[0].retention;
    assert_eq!((days, keep_weekly, keep_yearly, keep_min), (7, 4, 0, 1));
    let service = config.service;
    assert_eq!(
        (service.schedule.as_str(), service.on_start),
        ("@hourly", false)
    );
    assert_eq!(service.run_timeout, Duration::from_secs(7200));
    assert_eq!(service.zone.as_deref(), Some("Europe/Berlin"));
    let config = from(&[]).unwrap();
    assert!(config.service.on_start && config.stores[0].retention.days == 30);
}

#[test]
fn wal_and_base_backups_are_off_until_they_are_asked_for() {
    let config = from(&[("BACKUP_RETENTION_DAYS", "9")]).unwrap();
    assert!(!config.wal.streaming);
    assert_eq!(config.wal.flush_interval, Duration::from_secs(10));
    assert_eq!(config.wal.retention_days, 9, "as the backups");
    let service = config.service;
    assert_eq!(service.base_schedule, None);
    assert_eq!(service.base_incremental_schedule, None);
    let config = from(&[
        ("WAL_STREAMING", "on"),
        ("WAL_FLUSH_INTERVAL", "2s"),
        ("WAL_RETENTION_DAYS", "4"),
        ("BASE_SCHEDULE", "@weekly"),
        ("BASE_INCREMENTAL_SCHEDULE", "@daily"),
    ])
    .unwrap();
    assert!(config.wal.streaming && config.no_effect_yet.is_none());
    assert_eq!(config.wal.flush_interval, Duration::from_secs(2));
    assert_eq!(config.wal.retention_days, 4);
    assert_eq!(config.stores[0].retention.days, 30);
    let service = config.service;
    assert_eq!(service.base_schedule.as_deref(), Some("@weekly"));
    assert_eq!(service.base_incremental_schedule.as_deref(), Some("@daily"));
    for (name, value) in [
        ("WAL_STREAMING", "maybe"),
        ("WAL_FLUSH_INTERVAL", "10"),
        ("WAL_RETENTION_DAYS", "0"),
        ("BASE_SCHEDULE", "weekly"),
    ] {
        let error = refused(&[(name, value)]);
        assert!(error.fact.contains(name), "{error}");
    }
}

#[test]
fn a_child_gets_no_secret_in_its_environment() {
    let env = Environment::from_pairs([
        ("DB_PASSWORD", "hunter2"),
        ("PGPASSWORD", "hunter2"),
        ("AWS_SECRET_ACCESS_KEY", "hunter2"),
        ("APP_TOKEN", "hunter2"),
        ("DB_HOST", "db"),
        ("DB_PASSWORD_FILE", "/run/secrets/db_password"),
    ]);
    let (plain, secret) = env.split();
    assert_eq!(secret.len(), 4, "{:?}", secret.keys());
    assert!(plain.values().all(|value| value != "hunter2"));
    assert!(plain.contains_key("DB_HOST") && plain.contains_key("DB_PASSWORD_FILE"));
    let child = Environment::from_pairs(
        plain
            .into_iter()
            .chain([(SECRETS_ON_STDIN.to_owned(), "1".to_owned())]),
    );
    let json = serde_json::to_vec(&secret).unwrap();
    let child = child.add_secrets(json.as_slice()).unwrap();
    assert_eq!(child.get("DB_PASSWORD"), Some("hunter2"));
    assert_eq!(child.get(SECRETS_ON_STDIN), None);
    // Nothing is read unless it is announced.
    let plain = Environment::default().add_secrets(json.as_slice()).unwrap();
    assert_eq!(plain.get("DB_PASSWORD"), None);
    let wrong = Environment::from_pairs([(SECRETS_ON_STDIN, "1")]);
    assert!(wrong.add_secrets(b"".as_slice()).is_err());
}

#[test]
fn alias_that_agrees_is_fine_and_one_that_contradicts_is_an_error() {
    let error = refused(&[("S3_BUCKET", "a"), ("BACKUP_S3_BUCKET", "b")]);
    assert!(
        error
            .fact
            .contains("S3_BUCKET and BACKUP_S3_BUCKET are both set"),
        "{error}"
    );
    let config = from(&[("S3_BUCKET", "a"), ("BACKUP_S3_BUCKET", "a")]).unwrap();
    let Place::S3(s3) = &config.stores[1].place else {
        panic!("{:?}", config.stores);
    };
    assert_eq!(s3.bucket, "a");
}

#[test]
fn misspelt_variable_is_a_warning_not_an_error() {
    let config = from(&[("BACKUP_COMPRESION", "zstd")]).unwrap();
    assert_eq!(config.warnings.len(), 1);
    assert!(config.warnings[0].contains("did you mean BACKUP_COMPRESSION?"));
}

#[test]
fn config_never_prints_its_password() {
    let config = from(&[("DB_PASSWORD", "hunter2")]).unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
}
