//! The conformance suite, and parts, on s3s-fs and on Garage.

use super::*;
use crate::store::tests::conformance;
use crate::store::{Object, hash};
use sha2::{Digest, Sha256};

fn garage_options(server: &garage::Garage) -> S3Options {
    S3Options {
        endpoint: Some(server.endpoint()),
        allow_http: true,
        region: Some(garage::REGION.to_owned()),
        keys: Some(Keys {
            access_key_id: garage::ACCESS_KEY.to_owned(),
            secret_access_key: Secret::new(garage::SECRET_KEY),
            session_token: None,
        }),
        deadline: Duration::from_secs(30),
        ..S3Options::new(garage::BUCKET)
    }
}

fn garage_store(server: &garage::Garage) -> S3Store {
    S3Store::open(&garage_options(server), &nothing, &Token::new()).unwrap()
}

/// An object of several parts appears whole, and a dropped one leaves nothing.
fn parts_make_one_object(store: &dyn Store) {
    let bytes = noise(THREE_PARTS);
    let name = "backup_parts_20260101_000000.sql.gz";
    let mut dropped = store.create_sized(&key(name), Put::New, 1).unwrap();
    dropped.write(&bytes).unwrap();
    assert!(store.stat(&key(name)).unwrap().is_none());
    assert_eq!(store.unfinished().unwrap().len(), 1);
    drop(dropped);
    assert!(store.unfinished().unwrap().is_empty());

    let object = upload(store, name, &bytes, Put::New).unwrap();
    assert_eq!(object.bytes, THREE_PARTS as u64);
    assert_eq!(store.stat(&key(name)).unwrap(), Some(object.clone()));
    let listed: Vec<Object> = store.list("").unwrap();
    // s3s-fs lists no ETags.
    let same = |listed: &Object| {
        let etag = object.etag.clone().filter(|_| listed.etag.is_some());
        *listed
            == Object {
                etag,
                ..object.clone()
            }
    };
    assert!(listed.iter().any(same), "{listed:?}");
    let (count, sha256) = hash(store, &key(name)).unwrap();
    assert_eq!(count, object.bytes);
    assert_eq!(sha256, hex::encode(Sha256::digest(&bytes)));
    assert!(
        upload(store, name, &bytes, Put::New)
            .unwrap_err()
            .is_exists()
    );
    assert!(store.unfinished().unwrap().is_empty());
}

/// Names that need encoding in a URL, in XML, or nowhere.
fn odd_names_come_back(store: &dyn Store) {
    let names = [
        "a b",
        "a%20b",
        "a+b",
        "a&b<c>\"'",
        "ä/ö",
        "a=b?c#d",
        "~x!*()",
        "backup_a%2Fb_1.gz",
    ];
    for name in names {
        let object = upload(store, name, name.as_bytes(), Put::New).unwrap();
        assert_eq!(store.stat(&key(name)).unwrap(), Some(object), "{name}");
        assert_eq!(store.read(&key(name), 0..1).unwrap(), &name.as_bytes()[..1]);
    }
    let listed: Vec<String> = store
        .list("")
        .unwrap()
        .iter()
        .map(|o| o.key.to_string())
        .collect();
    for name in names.iter().filter(|name| !name.contains('/')) {
        assert!(
            listed.iter().any(|found| found == name),
            "{name} in {listed:?}"
        );
    }
    assert_eq!(store.list("ä/").unwrap().len(), 1);
    for name in names {
        assert!(store.delete(&key(name)).unwrap(), "{name}");
    }
}

#[test]
fn s3s_conforms() {
    let site = Site::new();
    conformance(&site.store());
    // The one thing that it cannot do is said once.
    let warnings = site.warnings();
    assert!(
        matches!(&*warnings, [one] if one.contains("cannot be listed")),
        "{warnings:?}"
    );
}

#[test]
fn s3s_takes_parts_and_odd_names() {
    let site = Site::new();
    let store = site.store();
    parts_make_one_object(&store);
    odd_names_come_back(&store);
}

#[test]
fn garage_conforms() {
    let server = garage::Garage::start();
    conformance(&garage_store(&server));
}

#[test]
fn garage_takes_parts_and_odd_names() {
    let server = garage::Garage::start();
    let store = garage_store(&server);
    parts_make_one_object(&store);
    odd_names_come_back(&store);
}

#[test]
fn garage_refuses_a_wrong_key_and_bucket_in_words() {
    let server = garage::Garage::start();
    let ask = |change: &dyn Fn(&mut S3Options)| {
        let mut options = garage_options(&server);
        change(&mut options);
        S3Store::open(&options, &nothing, &Token::new())
            .unwrap()
            .list("")
            .unwrap_err()
            .to_string()
    };
    let text = ask(&|o| o.bucket = "missing".to_owned());
    assert!(
        text.contains("there is no bucket missing") && text.contains("S3_BUCKET"),
        "{text}"
    );
    let text = ask(&|o| o.keys.as_mut().unwrap().secret_access_key = Secret::new("wr0ng"));
    assert!(
        text.contains("the secret key is wrong") && !text.contains("wr0ng"),
        "{text}"
    );
    let text = ask(&|o| o.region = Some("us-east-1".to_owned()));
    assert!(
        text.contains("not in region us-east-1 but in garage"),
        "{text}"
    );
}
