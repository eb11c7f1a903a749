//! The rules for one variable, one claim a test.

use super::*;
use std::os::unix::ffi::OsStringExt;

#[test]
fn variable_of_ours_that_is_not_utf8_is_an_error_others_are_left_out() {
    let odd = || OsString::from_vec(vec![b'a', 0xFF]);
    for name in [
        "DB_PASSWORD",
        "DB_PASSWORD_FILE",
        "PGPASSWORD",
        "BACKUP_X",
        "S3_BUCKET",
    ] {
        let error = Environment::from_os([(name.into(), odd())].into_iter()).unwrap_err();
        assert!(error.fact.contains(name), "{}", error.fact);
    }
    let env = Environment::from_os([("LS_COLORS".into(), odd())].into_iter()).unwrap();
    assert_eq!(env.get("LS_COLORS"), None);
}

#[test]
fn debug_shows_no_values() {
    let env = Environment::from_pairs([("DB_PASSWORD", "hunter2")]);
    let shown = format!("{env:?} {:?}", Secret::new("hunter2".to_owned()));
    assert!(
        !shown.contains("hunter2") && shown.contains("***"),
        "{shown}"
    );
}

fn with_default_file(path: &std::path::Path) -> Variable {
    let path: &'static str = Box::leak(path.display().to_string().into_boxed_str());
    Variable {
        default_file: Some(path),
        ..*VARIABLES
            .iter()
            .find(|row| row.name == "DB_PASSWORD")
            .unwrap()
    }
}

#[test]
fn default_secret_file_may_be_absent_and_yields_to_the_variable() {
    let dir = crate::config::tests::scratch("default_secret");
    let path = dir.join("db_password");
    let variable = with_default_file(&path);
    let none = Environment::default();
    assert!(lookup(&variable, &none).unwrap().is_none());
    std::fs::write(&path, "from file\r\n").unwrap();
    let found = lookup(&variable, &none).unwrap().unwrap();
    assert_eq!(found.text, "from file");
    assert!(found.source.contains("db_password"), "{}", found.source);
    let set = Environment::from_pairs([("DB_PASSWORD", "direct")]);
    assert_eq!(lookup(&variable, &set).unwrap().unwrap().text, "direct");
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn default_secret_file_that_exists_and_cannot_be_read_is_an_error() {
    // A directory is unreadable for root as well.
    let dir = crate::config::tests::scratch("unreadable_secret");
    let Err(error) = lookup(&with_default_file(&dir), &Environment::default()) else {
        panic!("accepted");
    };
    assert!(
        error.fact.contains(&dir.display().to_string()),
        "{}",
        error.fact
    );
    std::fs::remove_dir_all(dir).unwrap();
}
