//! Each way a server says no, with the words that lead out of it. No secret in any.

use super::proxy::{Act, answer, refuse};
use super::*;
use crate::error::{Error, Kind};
use crate::store::put;

const SECRETS: [&str; 2] = [server::SECRET_KEY, "t0ken-of-the-session"];

/// The error of a listing that meets this reply.
fn listing(act: Act) -> Error {
    let site = Site::new();
    let store = site.store_with(|o| {
        let keys = o.keys.as_mut().unwrap();
        keys.session_token = Some(Secret::new(SECRETS[1]));
    });
    site.proxy.when("GET", "list-type", usize::MAX, act);
    let error = store.list("").unwrap_err();
    assert_eq!(
        site.proxy.count("GET", "list-type"),
        1,
        "asked again: {error}"
    );
    for secret in SECRETS {
        assert!(!error.to_string().contains(secret), "{error}");
    }
    error
}

#[track_caller]
fn says(error: &Error, pieces: &[&str]) {
    let text = error.to_string();
    for piece in pieces {
        assert!(text.contains(piece), "{piece:?} is not in: {text}");
    }
    assert!(text.contains("\nhint: "), "{text}");
}

#[test]
fn keys_and_tokens_are_told_apart() {
    let signed = format!(
        "<Error><Code>SignatureDoesNotMatch</Code><Message>{}</Message>\
         <StringToSign>AWS4 {}</StringToSign></Error>",
        "The request signature we calculated does not match", SECRETS[1]
    );
    let error = listing(answer(403, "", &signed));
    says(
        &error,
        &[
            "secret key is wrong",
            "AWS_SECRET_ACCESS_KEY",
            "list s3://bucket/backups/",
        ],
    );
    assert_eq!(error.kind, Kind::Failed);
    says(
        &listing(refuse(403, "InvalidAccessKeyId")),
        &["access key", "AWS_ACCESS_KEY_ID"],
    );
    says(
        &listing(refuse(400, "ExpiredToken")),
        &["expired", "AWS_SESSION_TOKEN"],
    );
    says(
        &listing(refuse(400, "InvalidToken")),
        &["AWS_SESSION_TOKEN"],
    );
}

#[test]
fn bucket_and_region_are_named() {
    says(
        &listing(refuse(404, "NoSuchBucket")),
        &["no bucket bucket", "S3_BUCKET"],
    );
    let moved = answer(301, "x-amz-bucket-region: eu-west-3\r\n", "");
    says(
        &listing(moved),
        &[
            "not in region us-east-1 but in eu-west-3",
            "AWS_REGION=eu-west-3",
        ],
    );
    let body =
        "<Error><Code>AuthorizationHeaderMalformed</Code><Region>ap-south-1</Region></Error>";
    says(&listing(answer(400, "", body)), &["but in ap-south-1"]);
}

#[test]
fn skewed_clock_is_measured() {
    let hour = jiff::SignedDuration::from_hours(1);
    for (there, said) in [
        (crate::clock::now() + hour, "behind that of"),
        (crate::clock::now() - hour, "ahead of that of"),
    ] {
        let date = jiff::fmt::strtime::format("%a, %d %b %Y %H:%M:%S GMT", there).unwrap();
        let body = "<Error><Code>RequestTimeTooSkewed</Code><Message>no</Message></Error>";
        let error = listing(answer(403, &format!("date: {date}\r\n"), body));
        says(&error, &[said, " minutes ", "NTP", "127.0.0.1"]);
        assert!(
            error.fact.contains("59 min") || error.fact.contains("60 min"),
            "{error}"
        );
        // Servers that only say 403 betray themselves by their clock.
        says(
            &listing(answer(403, &format!("date: {date}\r\n"), "")),
            &[said],
        );
    }
}

#[test]
fn missing_right_is_named_for_each_action() {
    let site = Site::new();
    let store = site.store();
    put(&store, &key("there"), b"1", Put::New).unwrap();
    let denied = || refuse(403, "AccessDenied");
    site.proxy.when("PUT", "/new", 9, denied());
    says(
        &put(&store, &key("new"), b"1", Put::New).unwrap_err(),
        &["denied", "s3:PutObject"],
    );
    site.proxy.when("POST", "/big", 9, denied());
    let big = noise(THREE_PARTS);
    says(
        &upload(&store, "big", &big, Put::New).unwrap_err(),
        &["s3:PutObject", "s3://bucket/backups/big"],
    );
    site.proxy.when("DELETE", "/there", 9, denied());
    says(
        &store.delete(&key("there")).unwrap_err(),
        &["could not delete", "s3:DeleteObject"],
    );
    site.proxy.when("GET", "list-type", 9, denied());
    says(&store.list("").unwrap_err(), &["s3:ListBucket"]);
    site.proxy.when("GET", "/there", 9, denied());
    says(
        &store.read(&key("there"), 0..1).unwrap_err(),
        &["s3:GetObject"],
    );
    // A refused HEAD says nothing; the reason comes by a GET.
    site.proxy.when("HEAD", "/there", 9, answer(403, "", ""));
    let error = store.stat(&key("there")).unwrap_err();
    says(
        &error,
        &["denied", "s3:GetObject and s3:ListBucket", "because"],
    );
}

#[test]
fn full_bucket_is_no_space() {
    for act in [
        refuse(507, "XMinioStorageFull"),
        refuse(403, "QuotaExceeded"),
        answer(507, "", ""),
    ] {
        let site = Site::new();
        site.proxy.when("PUT", "/x", usize::MAX, act);
        let error = put(&site.store(), &key("x"), b"1", Put::New).unwrap_err();
        assert!(error.is_no_space(), "{error}");
        says(&error, &["full", "prune"]);
        assert_eq!(site.proxy.count("PUT", "/x"), 1);
    }
}

#[test]
fn other_refusals_keep_the_servers_words() {
    says(
        &listing(refuse(400, "KMS.NotFoundException")),
        &["S3_KMS_KEY_ID", "kms:Decrypt"],
    );
    says(
        &listing(refuse(418, "Teapot")),
        &["418", "Teapot", "because"],
    );
    says(
        &listing(answer(200, "", "<html>")),
        &["understood", "S3_ENDPOINT"],
    );
}

#[test]
fn encryption_class_and_checksum_go_with_every_new_object() {
    let site = Site::new();
    let store = site.store_with(|o| {
        o.sse = Some("aws:kms".to_owned());
        o.kms_key_id = Some("the-key".to_owned());
        o.storage_class = Some("STANDARD_IA".to_owned());
    });
    for (method, piece) in [("PUT", "/small"), ("POST", "uploads=")] {
        site.proxy.when(method, piece, 9, refuse(418, "Teapot"));
    }
    put(&store, &key("small"), b"1", Put::New).unwrap_err();
    upload(&store, "large", &noise(THREE_PARTS), Put::New).unwrap_err();
    let heads = site.proxy.heads();
    let new: Vec<_> = heads.iter().filter(|h| h.starts_with('P')).collect();
    assert_eq!(new.len(), 2);
    for head in new {
        assert!(
            head.contains("x-amz-server-side-encryption: aws:kms"),
            "{head}"
        );
        assert!(
            head.contains("x-amz-server-side-encryption-aws-kms-key-id: the-key"),
            "{head}"
        );
        assert!(head.contains("x-amz-storage-class: STANDARD_IA"), "{head}");
        assert!(head.contains("x-amz-checksum-"), "{head}");
    }
}
