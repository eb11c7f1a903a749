//! The rules of `pgark.toml`, one claim a test.

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::super::{Among, Config, Databases, Environment, Flags, Place, load};
use crate::error::{Error, Kind};

/// Loads a text as the file, beside these variables.
pub(super) fn read(text: &str, variables: &[(&str, &str)]) -> Result<Vec<Config>, Error> {
    let pairs = [("PGARK_CONFIG", "/x.toml"), ("file:/x.toml", text)];
    let pairs = pairs.into_iter().chain(variables.iter().copied());
    load(&Flags::default(), &Environment::from_pairs(pairs))
}

#[track_caller]
fn refused(text: &str) -> Error {
    let error = read(text, &[])
        .err()
        .unwrap_or_else(|| panic!("accepted: {text}"));
    assert_eq!(error.kind, Kind::Usage, "{error}");
    assert!(
        error.hint.is_some() || error.fact.contains("expected"),
        "{error}"
    );
    error
}

#[track_caller]
pub(super) fn all_refused(cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        let error = refused(text);
        assert!(error.fact.starts_with("/x.toml, line "), "{error}");
        assert!(error.fact.contains(expected), "{text}: {error}");
    }
}

#[test]
fn what_is_wrong_is_named_with_line_and_column() {
    all_refused(&[
        (
            "backup_jobs = 2\nbackup_job = 3",
            "line 2, column 1: unknown key \"backup_job\"",
        ),
        (
            "BACKUP_JOBS = 2",
            "line 1, column 1: unknown key \"BACKUP_JOBS\"",
        ),
        (
            "backup_jobs = 0",
            "line 1, column 15: BACKUP_JOBS is malformed",
        ),
        ("\n  backup_jobs = true", "line 2, column 17: BACKUP_JOBS"),
        ("backup_jobs = [1]", "expected text in quotes"),
        ("backup_jobs = 1.5", "expected a whole number"),
        ("backup_dir = 'x", "line 1, column"),
        ("max_runs = 0", "expected a whole number from 1 to 100"),
        ("anomaly = 1", "expected a table [anomaly]"),
        (
            "[anomaly]\nrows_fall_percent = 101",
            "line 2, column 21: expected a whole number from 0 to 100",
        ),
        ("[anomaly]\ntable_gone = 1", "expected true or false"),
        (
            "[anomaly]\nrows = 5",
            "line 2, column 1: unknown key \"rows\" in [anomaly]",
        ),
        ("pgark_config = 'x'", "cannot be set in the top"),
        (
            "db_user='a'\ndb_user_file='/b'",
            "db_user_file and db_user are both set",
        ),
        ("s3_bucket='a'\nbackup_s3_bucket='a'", "are both set"),
    ]);
}

#[test]
fn a_table_takes_its_own_keys_only_and_needs_a_name_that_can_be_a_folder() {
    all_refused(&[
        (
            "[cluster]\nname = 'a'",
            "expected [[cluster]], with two brackets",
        ),
        ("[[cluster]]\ndb_host = 'a'", "[[cluster]] has no name"),
        (
            "[[cluster]]\nname = 'a b'",
            "line 2, column 8: the name \"a b\" cannot be a folder",
        ),
        ("[[cluster]]\nname = '../a'", "cannot be a folder"),
        ("[[cluster]]\nname = 'wal'", "would look like a backup"),
        ("[[cluster]]\nname = 'base_x'", "would look like a backup"),
        (
            "[[cluster]]\nname='a'\n[[cluster]]\nname='a'",
            "line 3, column 1: there are two",
        ),
        (
            "[[cluster]]\nname='a'\nbackup_dir='/b'",
            "backup_dir cannot be set in [[cluster]]",
        ),
        (
            "[[cluster]]\nname='a'\ns3_bucket='b'",
            "s3_bucket cannot be set in [[cluster]]",
        ),
        (
            "[[cluster]]\nname='a'\nhttp_addr=':80'",
            "http_addr cannot be set in [[cluster]]",
        ),
        ("[[store]]\nname='a'", "needs backup_dir or s3_bucket"),
        (
            "[[store]]\nname='a'\nbackup_dir='/b'\ns3_retention_days=3",
            "s3_retention_days means nothing to a local store",
        ),
        (
            "[[store]]\nname='a'\nbackup_dir='/b'\ns3_bucket='b'",
            "needs backup_dir or s3_bucket",
        ),
        (
            "[[store]]\nname='a'\nbackup_dir='/b'\ndb_host='b'",
            "db_host cannot be set in [[store]]",
        ),
    ]);
}

#[test]
fn a_misspelt_key_gets_the_nearest_name_of_its_table() {
    let hint = |text| refused(text).hint.unwrap();
    assert_eq!(
        hint("backup_retention_day = 3"),
        "did you mean backup_retention_days?"
    );
    assert_eq!(
        hint("[[cluster]]\nname='a'\ndb_hots='b'"),
        "did you mean db_host?"
    );
    assert_eq!(hint("[[store]]\nnam='a'"), "did you mean name?");
    assert_eq!(hint("[[clusters]]\nname='a'"), "did you mean cluster?");
    assert!(hint("[[store]]\nname='a'\ndb_host='b'").contains("[[cluster]]"));
}

#[test]
fn no_message_holds_a_secret() {
    for text in [
        "db_password = { a = 'hunter2' }",
        "db_password = ['hunter2']",
        "web_password = 'hunter2",
    ] {
        let error = refused(text);
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}

#[test]
fn a_variable_goes_before_the_top_and_a_table_before_the_variable() {
    let text = "backup_jobs = 3\ndb_name = 'top'\n[[cluster]]\nname = 'a'\ndb_name = 'own'";
    let config = read(text, &[]).unwrap().remove(0);
    assert_eq!((config.jobs, config.cluster.as_str()), (3, "a"));
    let config = read(text, &[("BACKUP_JOBS", "5"), ("DB_NAME", "variable")])
        .unwrap()
        .remove(0);
    assert_eq!(config.jobs, 5);
    assert_eq!(config.databases, Databases::Named(vec!["own".to_owned()]));
    assert_eq!(
        config.warnings,
        ["DB_NAME is set, but line 5 of /x.toml goes before it for a"]
    );
    let config = read("db_name = 'top'", &[("DB_NAME", "variable")])
        .unwrap()
        .remove(0);
    assert_eq!(
        config.databases,
        Databases::Named(vec!["variable".to_owned()])
    );
}

#[test]
fn a_table_s_file_goes_before_the_variable_itself() {
    let path = std::env::temp_dir().join(format!("pgark-toml-{}", std::process::id()));
    std::fs::write(&path, "from file\n").unwrap();
    let text = format!("[[cluster]]\nname = 'a'\ndb_password_file = {path:?}");
    let config = read(&text, &[("DB_PASSWORD", "variable")])
        .unwrap()
        .remove(0);
    assert_eq!(config.connection.password.unwrap().expose(), "from file");
    std::fs::remove_file(path).unwrap();
}

fn places(config: &Config) -> Vec<(&str, String)> {
    let stores = config.stores.iter().map(|store| {
        let place = match &store.place {
            Place::Local(dir) => dir.display().to_string(),
            Place::S3(s3) => format!("{}:{}", s3.bucket, s3.prefix),
        };
        (store.name.as_str(), place)
    });
    stores.collect()
}

#[test]
fn several_clusters_have_a_folder_each_on_every_store_and_one_has_none() {
    let one = "s3_bucket = 'b'\n[[cluster]]\nname = 'a'\n";
    let config = read(one, &[]).unwrap().remove(0);
    assert_eq!(
        places(&config),
        [("local", "/backups".into()), ("s3", "b:backups/".into())]
    );
    assert!(config.among == Among::Alone);
    let two = format!("{one}[[cluster]]\nname = 'c'\nfolder = '.'\n");
    let configs = read(&two, &[("S3_PREFIX", "x")]).unwrap();
    assert_eq!(
        places(&configs[0]),
        [("local", "/backups/a".into()), ("s3", "b:x/a/".into())]
    );
    assert_eq!(
        places(&configs[1]),
        [("local", "/backups".into()), ("s3", "b:x".into())]
    );
    assert_eq!(configs[0].dir, PathBuf::from("/backups/a"));
    assert!(configs.iter().all(|config| config.among == Among::Several));
    let error = read(&format!("{two}[[cluster]]\nname='d'\nfolder='a'"), &[]).unwrap_err();
    assert!(
        error.fact.contains("a and d have the same folder"),
        "{error}"
    );
}

#[test]
fn stores_come_from_the_file_with_their_own_retention() {
    let text = "backup_retention_days = 7
        [[store]]\nname = 'far'\ns3_bucket = 'b'\nbackup_keep_yearly = 2\naws_region = 'eu'
        [[store]]\nname = 'near'\nbackup_dir = '/n'\nbackup_retention_days = 3";
    let variables = [
        ("BACKUP_DIR", "/backups"),
        ("AWS_REGION", "us"),
        ("S3_BUCKET", "b"),
    ];
    let config = read(text, &variables).unwrap().remove(0);
    // What is written first is local, wherever it stands.
    assert_eq!(
        places(&config),
        [("near", "/n".into()), ("far", "b:backups/".into())]
    );
    let days: Vec<u32> = config
        .stores
        .iter()
        .map(|store| store.retention.days)
        .collect();
    assert_eq!(
        (days, config.stores[1].retention.keep_yearly),
        (vec![3, 7], 2)
    );
    let Place::S3(s3) = &config.stores[1].place else {
        panic!()
    };
    assert_eq!(s3.region, "eu");
    let warnings = config.warnings.join("\n");
    assert!(
        warnings.contains("BACKUP_DIR is set, but has no effect"),
        "{warnings}"
    );
    assert!(
        warnings.contains("AWS_REGION is set, but line 6"),
        "{warnings}"
    );
    assert!(!warnings.contains("S3_BUCKET"), "{warnings}");
}

#[test]
fn a_cluster_is_chosen_by_its_name() {
    let text = "[[cluster]]\nname = 'a'\n[[cluster]]\nname = 'b'\nbackup_jobs = 9";
    let environment =
        Environment::from_pairs([("PGARK_CONFIG", "/x.toml"), ("file:/x.toml", text)]);
    let wanted = |name: &str| {
        let flags = Flags {
            cluster: Some(name.to_owned()),
            ..Flags::default()
        };
        load(&flags, &environment)
    };
    let found = wanted("b").unwrap();
    assert_eq!((found.len(), found[0].jobs), (1, 9));
    assert!(found[0].among == Among::Chosen && found[0].dir.ends_with("b"));
    let error = wanted("c").unwrap_err();
    assert_eq!(error.hint.as_deref(), Some("clusters: a, b"));
}

#[test]
fn a_file_that_was_named_must_be_there() {
    let environment = Environment::from_pairs([("PGARK_CONFIG", "/nowhere/pgark.toml")]);
    let error = load(&Flags::default(), &environment).unwrap_err();
    assert!(
        error.fact.contains("/nowhere/pgark.toml cannot be read"),
        "{error}"
    );
    assert_eq!(
        load(&Flags::default(), &Environment::default())
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn a_cluster_s_server_is_never_half_of_another_one() {
    let left_over = [
        ("DB_HOST", "postgres"),
        ("DB_USER", "other"),
        ("PGHOSTADDR", "192.0.2.1"),
        ("PGSERVICE", "other"),
    ];
    let text = "[[cluster]]\nname = 'b'\ndb_conninfo = 'host=db-b user=u dbname=x'";
    let config = read(text, &left_over).unwrap().remove(0);
    assert!(config.connection.conninfo.is_some());
    assert_eq!(config.connection.explicit, []);
    // What the top of the file says is for all clusters.
    let shared = format!("db_sslmode = 'require'\n{text}");
    let shared = read(&shared, &left_over).unwrap().remove(0);
    let mode = ("sslmode".to_owned(), "require".to_owned());
    assert_eq!(shared.connection.explicit, [mode]);
    let text = "[[cluster]]\nname = 'b'\ndb_host = 'db-b'";
    let other = read(text, &left_over).unwrap().remove(0);
    let host = ("host".to_owned(), "db-b".to_owned());
    assert!(other.connection.explicit.contains(&host));
    for config in [config, other] {
        for name in ["PGHOSTADDR", "PGSERVICE"] {
            assert_eq!(config.environment.get(name), None, "{name}");
        }
    }
}

#[test]
fn days_of_a_store_go_before_those_of_all_buckets() {
    let text = "[[store]]\nname = 'own'\ns3_bucket = 'a'\nbackup_retention_days = 90
        [[store]]\nname = 'all'\ns3_bucket = 'b'
        [[store]]\nname = 'near'\nbackup_dir = '/n'";
    let config = read(text, &[("S3_RETENTION_DAYS", "7")]).unwrap().remove(0);
    let days = config.stores.iter();
    let days: Vec<(&str, u32)> = days
        .map(|store| (store.name.as_str(), store.retention.days))
        .collect();
    assert_eq!(days, [("near", 30), ("own", 90), ("all", 7)]);
}

#[test]
fn two_stores_in_one_place_are_refused() {
    let two = |a: &str, b: &str| format!("[[store]]\nname='a'\n{a}\n[[store]]\nname='b'\n{b}");
    for (a, b) in [
        ("backup_dir='/b'", "backup_dir='/b'"),
        ("s3_bucket='x'", "s3_bucket='x'\ns3_prefix='backups'"),
    ] {
        let error = refused(&two(a, b));
        assert!(error.fact.contains("a and b are one place"), "{error}");
    }
    read(&two("s3_bucket='x'", "s3_bucket='x'\ns3_prefix='c/'"), &[]).unwrap();
}

#[test]
fn a_file_that_is_too_long_is_refused_and_never_cut() {
    let long = format!("backup_jobs = 2\n# {}\n", "x".repeat(300_000));
    assert!(refused(&long).fact.contains("longer than"));
}

/// Every file that is shipped, and every one that the manuals show.
#[test]
fn every_shipped_example_is_read() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut examples = Vec::new();
    for folder in ["contrib", "docs", "docs/decisions", "."] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let kind = path.extension().and_then(|kind| kind.to_str());
            let text = || std::fs::read_to_string(&path).unwrap();
            let name = path.display().to_string();
            match kind {
                Some("toml") if folder == "contrib" => examples.push((name, text())),
                Some("md") => {
                    let text = text();
                    let blocks = text.split("```toml\n").skip(1);
                    let blocks = blocks.map(|block| block.split("```").next().unwrap().to_owned());
                    examples.extend(blocks.map(|block| (name.clone(), block)));
                }
                _ => {}
            }
        }
    }
    assert!(examples.len() >= 2, "{}", examples.len());
    for (name, text) in examples {
        // Secrets' files are not on this machine: what they hold is handed over.
        let files: Vec<(String, String)> = text
            .lines()
            .filter_map(|line| line.split_once("_file = \"")?.1.split('"').next())
            .map(|path| (format!("file:{path}"), "secret".to_owned()))
            .collect();
        let files: Vec<(&str, &str)> = files
            .iter()
            .map(|(a, b)| (a.as_str(), b.as_str()))
            .collect();
        let configs = read(&text, &files).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(
            configs.iter().all(|config| config.warnings.is_empty()),
            "{name}"
        );
    }
}

proptest! {
    #[test]
    fn any_text_is_a_configuration_or_an_error(text in "\\PC{0,60}|([a-z_]{1,12} = (true|[0-9]{1,4}|\"[^\"\\\\]{0,9}\")\n|\\[\\[(cluster|store)\\]\\]\n|name = \"[a-z]{1,3}\"\n){0,8}") {
        if let Err(error) = read(&text, &[]) {
            prop_assert_eq!(error.kind, Kind::Usage);
        }
    }
}

#[test]
fn the_thresholds_of_suspect_backups_are_keys_of_the_file() {
    let of = |text: &str| read(text, &[]).unwrap()[0].anomaly;
    let usual = of("");
    assert_eq!(usual, crate::config::Anomaly::default());
    let text = "[anomaly]\nrows_fall_percent = 80\nrows_min = 5\nsize_fall_percent = 0\nsize_min_bytes = 7\n\
        table_gone = false\ntable_gone_rows_min = 9\nhistory = 3";
    let set = of(text);
    assert_eq!((set.rows_fall_percent, set.rows_min), (80, 5));
    assert_eq!((set.size_fall_percent, set.size_min_bytes), (0, 7));
    assert_eq!((set.table_gone, set.table_gone_rows_min), (false, 9));
    assert_eq!(set.history, 3);
}
