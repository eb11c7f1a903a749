//! Bad luck on the way: cut, lost, delayed, refused for a while.

use super::proxy::{Act, answer, refuse};
use super::*;
use crate::store::{get, put};
use std::time::Instant;

const BIG: &str = "backup_a_20260101_000000.sql.gz";

/// Uploads parts, and proves that what lies there is what was sent.
fn stores_whole(site: &Site, store: &dyn Store) {
    let bytes = noise(THREE_PARTS);
    let object = upload(store, BIG, &bytes, Put::New).unwrap();
    assert_eq!(object.bytes, THREE_PARTS as u64);
    let stored = std::fs::read(site.server.bucket().join("backups").join(BIG)).unwrap();
    assert!(stored == bytes, "what was stored differs");
    drop(site.proxy.heads());
}

#[test]
fn a_part_cut_in_the_middle_is_sent_again() {
    let site = Site::new();
    let store = site.store();
    site.proxy
        .when("PUT", "partNumber=2", 2, Act::CutBody(1 << 20));
    site.proxy.when("PUT", "partNumber=3", 1, Act::LoseReply);
    stores_whole(&site, &store);
    assert_eq!(site.proxy.count("PUT", "partNumber=2"), 3);
    assert_eq!(site.proxy.count("PUT", "partNumber=3"), 2);
}

#[test]
fn reply_lost_after_the_completing_call_is_looked_up() {
    let site = Site::new();
    site.proxy.when("POST", "uploadId=", 1, Act::LoseReply);
    stores_whole(&site, &site.store());
    assert_eq!(
        site.proxy.count("POST", "uploadId="),
        2,
        "asked again, then looked up"
    );
    // The completed upload was not aborted, and nothing is thought unfinished.
    assert_eq!(site.proxy.count("DELETE", "uploadId="), 0);
}

#[test]
fn reply_lost_after_a_small_put_is_not_taken_for_a_stranger() {
    let site = Site::new();
    let store = site.store();
    site.proxy.when("PUT", "/small", 1, Act::LoseReply);
    let object = put(&store, &key("small"), b"hello", Put::New).unwrap();
    assert_eq!(object.bytes, 5);
    assert_eq!(
        site.proxy.count("PUT", "/small"),
        2,
        "the second was refused as taken"
    );
    assert_eq!(get(&store, &key("small")).unwrap().unwrap(), b"hello");
}

#[test]
fn stranger_under_the_name_is_told_apart_from_a_lost_reply() {
    let site = Site::new();
    let (store, other) = (site.store(), site.store());
    let mut upload = store.create(&key("x"), Put::New).unwrap();
    upload.write(b"ours!").unwrap();
    std::fs::create_dir_all(site.server.bucket().join("backups")).unwrap();
    std::fs::write(site.server.bucket().join("backups/x"), "their").unwrap();
    // The look-up before the last call sees nothing, and the first try's reply does not come:
    // only the condition can save the other's object, and only the mark can tell whose it is.
    site.proxy.when("HEAD", "/x", 1, answer(404, "", ""));
    site.proxy.when("PUT", "/x", 1, Act::Hang(Duration::ZERO));
    assert!(upload.finish().unwrap_err().is_exists());
    assert_eq!(get(&other, &key("x")).unwrap().unwrap(), b"their");
    let conditional = |head: &String| head.contains("if-none-match: *");
    assert!(site.proxy.heads().iter().any(conditional));
}

#[test]
fn storm_of_503_and_429_is_weathered() {
    let site = Site::new();
    let store = site.store();
    site.proxy.when("HEAD", "", 2, answer(503, "", ""));
    site.proxy
        .when("PUT", "partNumber=1", 3, refuse(503, "SlowDown"));
    site.proxy.when(
        "PUT",
        "partNumber=2",
        2,
        answer(429, "retry-after: 0\r\n", ""),
    );
    site.proxy
        .when("POST", "uploads=", 1, refuse(500, "InternalError"));
    site.proxy.when(
        "POST",
        "uploadId=",
        1,
        answer(
            200,
            "",
            "<?xml version=\"1.0\"?>\n<Error><Code>InternalError</Code></Error>",
        ),
    );
    stores_whole(&site, &store);
}

#[test]
fn storm_without_end_ends_at_the_deadline_in_words() {
    let site = Site::new();
    let store = site.store_with(|o| o.deadline = Duration::from_secs(2));
    site.proxy
        .when("PUT", "", usize::MAX, refuse(503, "SlowDown"));
    let started = Instant::now();
    let error = put(&store, &key("a"), b"1", Put::New).unwrap_err();
    assert!(
        started.elapsed() < Duration::from_secs(4),
        "{:?}",
        started.elapsed()
    );
    let text = error.to_string();
    assert!(
        text.contains("asks for fewer requests") && text.contains("(tried "),
        "{text}"
    );
    assert!(text.contains("s3://bucket/backups/a"), "{text}");
    site.proxy.behave();
    assert!(store.list("").unwrap().is_empty());
}

#[test]
fn crawling_server_is_given_up_at_the_deadline() {
    let site = Site::new();
    let store = site.store_with(|o| o.deadline = Duration::from_secs(2));
    store.list("").unwrap();
    site.proxy.when(
        "GET",
        "list-type",
        usize::MAX,
        Act::Hang(Duration::from_secs(30)),
    );
    let started = Instant::now();
    let error = store.list("").unwrap_err();
    assert!(
        started.elapsed() < Duration::from_secs(4),
        "{:?}",
        started.elapsed()
    );
    assert!(error.fact.contains("too slow"), "{error}");
}

#[test]
fn crawling_part_is_given_up_and_its_upload_aborted() {
    let site = Site::new();
    let store = site.store_with(|o| {
        o.deadline = Duration::from_secs(2);
        o.bytes_per_second_min = u64::MAX;
    });
    site.proxy.when(
        "PUT",
        "partNumber=2",
        usize::MAX,
        Act::Hang(Duration::from_secs(60)),
    );
    let bytes = noise(THREE_PARTS);
    let started = Instant::now();
    let error = upload(&store, BIG, &bytes, Put::New).unwrap_err();
    assert!(
        started.elapsed() < Duration::from_secs(6),
        "{:?}",
        started.elapsed()
    );
    assert!(
        error.fact.contains("too slow") && error.fact.contains(BIG),
        "{error}"
    );
    assert_eq!(site.proxy.count("DELETE", "uploadId="), 1);
    assert!(store.unfinished().unwrap().is_empty());
}

#[test]
fn drop_does_not_wait_long_for_a_server_that_is_away() {
    let site = Site::new();
    let store = site.store_with(|o| o.deadline = Duration::from_secs(60));
    let mut upload = store.create_sized(&key(BIG), Put::New, 1).unwrap();
    upload.write(&noise(THREE_PARTS)).unwrap();
    site.proxy
        .when("DELETE", "uploadId=", usize::MAX, refuse(503, "SlowDown"));
    let started = Instant::now();
    drop(upload);
    assert!(
        started.elapsed() < Duration::from_secs(12),
        "{:?}",
        started.elapsed()
    );
    // Its note is there for the next run.
    assert_eq!(store.unfinished().unwrap().len(), 1);
}

#[test]
fn several_threads_share_a_store() {
    let site = Site::new();
    let store = site.store();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let store = &store;
            scope.spawn(move || {
                for n in 0..10 {
                    let name = key(&format!("{thread}-{n}"));
                    let text = name.to_string();
                    put(store, &name, text.as_bytes(), Put::New).unwrap();
                    assert_eq!(get(store, &name).unwrap().unwrap(), text.as_bytes());
                }
            });
        }
    });
    assert_eq!(store.list("").unwrap().len(), 80);
}

#[test]
fn wrong_endpoint_is_told_after_the_first_contacts_time() {
    let site = Site::new();
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let store = site.store_with(|o| {
        o.endpoint = Some(format!("http://{closed}"));
        o.first_contact = Duration::from_secs(1);
    });
    let started = Instant::now();
    let error = store.list("").unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(3));
    assert!(error.fact.contains("refused") && error.hint.unwrap().contains("S3_ENDPOINT"));
}

#[test]
fn reply_cut_in_a_read_is_read_again() {
    let site = Site::new();
    let store = site.store();
    put(&store, &key("r"), &noise(100_000), Put::New).unwrap();
    site.proxy.when("GET", "/r", 2, Act::CutReply(50_000));
    assert_eq!(
        store.read(&key("r"), 10..99_990).unwrap(),
        &noise(100_000)[10..99_990]
    );
}

#[test]
fn server_that_lost_bytes_is_found_out() {
    let site = Site::new();
    let store = site.store();
    let path = site.server.bucket().join("backups/lost");
    let mut upload = store.create(&key("lost"), Put::New).unwrap();
    upload.write(b"hello").unwrap();
    // The last look-up tells another size than what was sent.
    site.proxy
        .when("HEAD", "/lost", 1, Act::Delay(Duration::ZERO));
    let mark = || {
        let heads = site.proxy.heads();
        let head = heads
            .iter()
            .find(|head| head.starts_with("PUT "))
            .cloned()?;
        Some(
            head.lines()
                .find(|line| line.starts_with("x-amz-meta"))?
                .to_owned(),
        )
    };
    assert!(mark().is_none());
    upload.finish().unwrap();
    assert!(mark().is_some() && path.exists());
    // Same again, with a server that claims to have kept less, or other bytes.
    for shown in [
        "content-length: 4\r\n",
        "content-length: 5\r\netag: \"other\"\r\n",
    ] {
        let mut upload = store.create(&key("y"), Put::Replace).unwrap();
        upload.write(b"hello").unwrap();
        site.proxy
            .when("HEAD", "/y", 1, Act::Echo(shown.to_owned()));
        let error = upload.finish().unwrap_err();
        assert!(
            error.fact.contains("4 bytes after 5") || error.fact.contains("ETag other"),
            "{error}"
        );
    }
}

#[test]
fn delete_whose_reply_was_lost_is_a_delete() {
    let site = Site::new();
    let store = site.store();
    put(&store, &key("d"), b"1", Put::New).unwrap();
    site.proxy.when("DELETE", "/d", 1, Act::LoseReply);
    assert!(store.delete(&key("d")).unwrap());
    assert!(!store.delete(&key("d")).unwrap());
}

#[test]
fn headers_that_a_server_does_not_know_are_done_without() {
    let site = Site::new();
    let store = site.store();
    site.proxy
        .when("PUT", "/n", 2, refuse(501, "NotImplemented"));
    put(&store, &key("n"), b"1", Put::New).unwrap();
    put(&store, &key("m"), b"1", Put::New).unwrap();
    assert!(
        put(&store, &key("m"), b"2", Put::New)
            .unwrap_err()
            .is_exists()
    );
    let last = site
        .proxy
        .heads()
        .into_iter()
        .rfind(|head| head.starts_with("PUT "))
        .unwrap();
    assert!(
        !last.contains("if-none-match") && !last.contains("x-amz-checksum-sha256"),
        "{last}"
    );
    assert!(
        last.contains("x-amz-content-sha256"),
        "the signature still covers the body"
    );
}
