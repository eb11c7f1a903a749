//! Ten thousand names, names of others, and unfinished uploads after a crash.

use super::proxy::{answer, refuse};
use super::*;
use crate::store::tests::Scratch;
use std::time::Instant;

const BIG: &str = "backup_a_20260101_000000.sql.gz";

#[test]
fn ten_thousand_objects_are_some_pages() {
    let site = Site::new();
    let dir = site.server.bucket().join("backups");
    std::fs::create_dir(&dir).unwrap();
    for n in 0..10_000 {
        std::fs::write(dir.join(format!("backup_{:05}", 9_999 - n)), "x").unwrap();
    }
    let store = site.store();
    let started = Instant::now();
    let objects = store.list("").unwrap();
    assert_eq!(objects.len(), 10_000);
    assert!(objects.is_sorted_by(|a, b| a.key < b.key));
    let requests = site.proxy.heads().len();
    assert!(requests <= 11, "{requests} requests");
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn names_of_others_never_make_a_listing_fail() {
    let site = Site::new();
    let entry = |key: &str| {
        format!(
            "<Contents><Key>{key}</Key><Size>1</Size><LastModified>2026-01-01T00:00:00.5Z</LastModified></Contents>"
        )
    };
    let names = [
        "backups/",
        "backups//x",
        "backups/../y",
        "elsewhere",
        "backups/&#1;odd",
        "backups/.x.0123abcd.pgark-tmp",
        "backups/notes.txt",
    ];
    let body: String = names.iter().map(|name| entry(name)).collect();
    let page = format!(
        "<ListBucketResult>{body}<CommonPrefixes><Prefix>backups//</Prefix></CommonPrefixes></ListBucketResult>"
    );
    site.proxy
        .when("GET", "list-type", 1, answer(200, "", &page));
    let listed = site.store().list("").unwrap();
    let found: Vec<_> = listed.iter().map(|o| o.key.as_str()).collect();
    assert_eq!(found, ["\u{1}odd", "notes.txt"]);
    assert_eq!(listed[1].modified.to_string(), "2026-01-01T00:00:00Z");
}

#[test]
fn server_that_repeats_a_page_does_not_hang_a_listing() {
    let site = Site::new();
    let page = "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken></ListBucketResult>";
    site.proxy
        .when("GET", "list-type", usize::MAX, answer(200, "", page));
    let error = site.store().list("").unwrap_err();
    assert!(error.fact.contains("again and again"), "{error}");
    assert_eq!(site.proxy.heads().len(), 2);
}

/// An upload whose process died in the middle.
fn crashed(store: &S3Store) {
    let mut upload = store.create_sized(&key(BIG), Put::New, 1).unwrap();
    upload.write(&noise(THREE_PARTS)).unwrap();
    // The runtime lives on in the forgotten upload, as a killed process's server side does.
    std::mem::forget(upload);
}

#[test]
fn upload_of_a_dead_run_is_found_by_its_note_and_aborted() {
    let site = Site::new();
    let scratch = Scratch::new();
    let with_notes = |o: &mut S3Options| o.state_dir = Some(scratch.path().join("uploads"));
    crashed(&site.store_with(with_notes));
    let store = site.store_with(with_notes);
    let found = store.unfinished().unwrap();
    assert_eq!(found.len(), 1);
    let name = found[0].key.as_str();
    assert!(
        name.starts_with(&format!(".{BIG}.")) && name.ends_with(".pgark-tmp"),
        "{name}"
    );
    assert!(store.list("").unwrap().is_empty());
    assert!(store.delete(&found[0].key).unwrap());
    assert!(store.unfinished().unwrap().is_empty());
    assert!(!store.delete(&found[0].key).unwrap());
    assert!(
        std::fs::read_dir(scratch.path().join("uploads"))
            .unwrap()
            .next()
            .is_none()
    );
    // The server has really forgotten it.
    assert_eq!(site.proxy.count("DELETE", "uploadId="), 1);
}

#[test]
fn upload_without_note_is_found_by_the_servers_list_after_a_day() {
    let server = garage::Garage::start();
    let options = S3Options {
        endpoint: Some(server.endpoint()),
        allow_http: true,
        region: Some(garage::REGION.to_owned()),
        keys: Some(Keys {
            access_key_id: garage::ACCESS_KEY.to_owned(),
            secret_access_key: Secret::new(garage::SECRET_KEY),
            session_token: None,
        }),
        ..S3Options::new(garage::BUCKET)
    };
    let open = || S3Store::open(&options, &nothing, &Token::new()).unwrap();
    crashed(&open());
    let store = open();
    // It may be alive on another machine.
    assert!(store.unfinished().unwrap().is_empty());
    let tomorrow = crate::clock::now() + jiff::SignedDuration::from_hours(25);
    let found = store.listed_uploads(tomorrow).unwrap();
    assert_eq!(found.len(), 1);
    assert!(
        store
            .bucket
            .abort(&found[0].key, &found[0].upload_id)
            .unwrap()
    );
    assert!(store.listed_uploads(tomorrow).unwrap().is_empty());
    assert!(
        !store
            .bucket
            .abort(&found[0].key, &found[0].upload_id)
            .unwrap()
    );
}

#[test]
fn missing_optional_rights_are_warned_of_once_and_named() {
    let site = Site::new();
    let store = site.store();
    site.proxy
        .when("GET", "uploads=", usize::MAX, refuse(403, "AccessDenied"));
    site.proxy.when(
        "DELETE",
        "uploadId=",
        usize::MAX,
        refuse(403, "AccessDenied"),
    );
    let mut upload = store.create_sized(&key(BIG), Put::New, 1).unwrap();
    upload.write(&noise(THREE_PARTS)).unwrap();
    drop(upload);
    // Known here, so still told, and nobody's run fails for it.
    let found = store.unfinished().unwrap();
    assert_eq!(found.len(), 1);
    assert!(!store.delete(&found[0].key).unwrap());
    let warnings = site.warnings();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    for right in ["s3:AbortMultipartUpload", "s3:ListBucketMultipartUploads"] {
        let named = warnings
            .iter()
            .filter(|w| w.contains(right) && w.contains("lifecycle"));
        assert_eq!(named.count(), 1, "{right} in {warnings:?}");
    }
}
