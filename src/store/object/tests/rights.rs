//! Each right that is missing is named, and a trial leaves nothing in the bucket.

use super::proxy::refuse;
use super::*;
use crate::store::rights::{Tried, trial_key};

/// What is tried while the server denies these.
fn with_denied(denied: &[(&str, &str)]) -> (Vec<Tried>, Vec<String>) {
    let site = Site::new();
    let store = site.store();
    for (method, piece) in denied {
        site.proxy
            .when(method, piece, usize::MAX, refuse(403, "AccessDenied"));
    }
    no_upload_is_known(&site);
    let tried = store.try_rights(&trial_key().unwrap());
    // Looked at past the proxy's rules.
    let other = Site::options(&site);
    let direct = S3Options {
        endpoint: Some(format!("http://127.0.0.1:{}", site.server.port)),
        ..other
    };
    let direct = S3Store::open(&direct, &nothing, &site.token).unwrap();
    let left = direct.list("").unwrap();
    (
        tried,
        left.into_iter()
            .map(|object| object.key.to_string())
            .collect(),
    )
}

/// As S3 answers for an upload that never was; the server behind the proxy has other words.
fn no_upload_is_known(site: &Site) {
    for method in ["DELETE", "PUT"] {
        let act = refuse(404, "NoSuchUpload");
        site.proxy.when(method, "uploadId", usize::MAX, act);
    }
}

fn failed(tried: &[Tried]) -> Vec<(&str, bool)> {
    let failed = tried.iter().filter(|one| one.result.is_err());
    failed.map(|one| (one.right, one.needed)).collect()
}

#[test]
fn with_every_right_each_is_tried_and_nothing_is_left() {
    let (tried, left) = with_denied(&[]);
    assert_eq!(failed(&tried), []);
    let rights: Vec<&str> = tried.iter().map(|one| one.right).collect();
    for right in [
        "s3:ListBucket",
        "s3:PutObject",
        "s3:GetObject",
        "s3:DeleteObject",
        "s3:AbortMultipartUpload",
        "s3:ListBucketMultipartUploads",
    ] {
        assert!(rights.contains(&right), "{right}: {rights:?}");
    }
    assert_eq!(left, [""; 0]);
}

#[test]
fn each_denial_names_its_right_and_the_statement_that_gives_it() {
    type Case = (
        &'static [(&'static str, &'static str)],
        &'static str,
        bool,
        &'static str,
    );
    let cases: [Case; 5] = [
        (
            &[("GET", "list-type")],
            "s3:ListBucket",
            true,
            "arn:aws:s3:::bucket\"",
        ),
        (
            &[("PUT", "pgark-check")],
            "s3:PutObject",
            true,
            "arn:aws:s3:::bucket/backups/*",
        ),
        (
            &[("DELETE", "uploadId")],
            "s3:AbortMultipartUpload",
            false,
            "arn:aws:s3:::bucket/backups/*",
        ),
        (
            &[("GET", "uploads=")],
            "s3:ListBucketMultipartUploads",
            false,
            "arn:aws:s3:::bucket\"",
        ),
        (
            &[("GET", "pgark-check")],
            "s3:GetObject",
            true,
            "arn:aws:s3:::bucket/backups/*",
        ),
    ];
    for (denied, right, needed, resource) in cases {
        let (tried, left) = with_denied(denied);
        let failed = failed(&tried);
        assert_eq!(failed, [(right, needed)], "{denied:?}: {tried:?}");
        let policy = tried
            .iter()
            .find(|one| one.result.is_err())
            .unwrap()
            .policy
            .clone()
            .unwrap();
        assert!(
            policy.contains(right) && policy.contains(resource),
            "{policy}"
        );
        assert_eq!(left, [""; 0], "{right}");
    }
}

#[test]
fn where_nothing_can_be_deleted_nothing_is_written_and_the_right_to_write_is_known_all_the_same() {
    for (may_write, expected) in [
        (true, vec![("s3:DeleteObject", false)]),
        (
            false,
            vec![("s3:PutObject", true), ("s3:DeleteObject", false)],
        ),
    ] {
        let site = Site::new();
        if !may_write {
            site.proxy
                .when("PUT", "", usize::MAX, refuse(403, "AccessDenied"));
        }
        no_upload_is_known(&site);
        site.proxy
            .when("DELETE", "", usize::MAX, refuse(403, "AccessDenied"));
        let tried = site.store().try_rights(&trial_key().unwrap());
        assert_eq!(failed(&tried), expected, "{tried:?}");
        assert!(tried.iter().any(|one| one.right == "s3:PutObject"));
        assert_eq!(
            site.store().list("").unwrap().len(),
            0,
            "something was written"
        );
    }
}

#[test]
fn a_server_that_is_away_is_said_once() {
    let site = Site::new();
    let store = site.store_with(|options| {
        options.first_contact = Duration::from_millis(300);
        options.endpoint = Some("http://127.0.0.1:9".to_owned());
    });
    let tried = store.try_rights(&trial_key().unwrap());
    assert_eq!(failed(&tried).len(), 1);
    assert_eq!(tried.len(), 1);
}
