//! A cancel ends what is blocked; what makes objects appear gets its last words.

use super::proxy::{Act, answer};
use super::*;
use crate::error::Kind;
use crate::store::put;
use std::time::Instant;

const LIST: (&str, &str) = ("GET", "list-type");
const FOREVER: Act = Act::Hang(Duration::from_secs(60));

/// Cancels when a request of this method and piece has come; how long the work took from there.
fn cancelled_in<T: Send>(
    site: &Site,
    (method, piece): (&str, &str),
    work: impl FnOnce() -> T + Send,
) -> (T, Duration) {
    std::thread::scope(|scope| {
        let working = scope.spawn(work);
        while site.proxy.count(method, piece) == 0 {
            assert!(!working.is_finished(), "it ended before it was blocked");
            std::thread::sleep(Duration::from_millis(5));
        }
        let at = Instant::now();
        site.token.cancel(15);
        (working.join().unwrap(), at.elapsed())
    })
}

#[test]
fn blocked_listing_ends_at_once() {
    let site = Site::new();
    let store = site.store();
    site.proxy.when("GET", "list-type", usize::MAX, FOREVER);
    let (listed, time) = cancelled_in(&site, LIST, || store.list(""));
    let error = listed.unwrap_err();
    assert_eq!(error.kind, Kind::Signal(15), "{error}");
    assert!(time < Duration::from_secs(1), "{time:?}");
    // What comes later does not even begin, though the server would answer.
    site.proxy.behave();
    assert_eq!(store.list("").unwrap_err().kind, Kind::Signal(15));
}

#[test]
fn pause_between_two_attempts_ends_at_once() {
    let site = Site::new();
    let store = site.store();
    let busy = answer(503, "retry-after: 15\r\n", "");
    site.proxy.when("GET", "list-type", usize::MAX, busy);
    let (listed, time) = cancelled_in(&site, LIST, || store.list(""));
    assert_eq!(listed.unwrap_err().kind, Kind::Signal(15));
    assert!(time < Duration::from_secs(1), "{time:?}");
}

#[test]
fn blocked_parts_end_and_the_upload_is_aborted() {
    let site = Site::new();
    let store = site.store();
    site.proxy.when("PUT", "partNumber", usize::MAX, FOREVER);
    let (stored, time) = cancelled_in(&site, ("PUT", "partNumber"), || {
        upload(&store, "backup_x", &noise(60 << 20), Put::New)
    });
    assert_eq!(stored.unwrap_err().kind, Kind::Signal(15));
    assert!(time < Duration::from_secs(2), "{time:?}");
    assert_eq!(
        site.proxy.count("DELETE", "uploadId="),
        1,
        "the abort is said after the cancel"
    );
    assert!(site.store_with(|_| {}).bucket.notes.all().is_empty());
}

#[test]
fn commit_under_way_is_said_to_its_end() {
    let site = Site::new();
    let store = site.store();
    site.proxy
        .when("PUT", "/a", 1, Act::Delay(Duration::from_secs(1)));
    let (stored, _) = cancelled_in(&site, ("PUT", "/a"), || {
        put(&store, &key("a"), b"1", Put::New)
    });
    assert_eq!(stored.unwrap().bytes, 1);
    assert!(
        store.delete(&key("a")).unwrap(),
        "a caller may take back what it made"
    );
}

#[test]
fn commit_that_hangs_ends_within_ten_seconds() {
    let site = Site::new();
    let store = site.store();
    site.proxy.when("PUT", "/a", usize::MAX, FOREVER);
    let (stored, time) = cancelled_in(&site, ("PUT", "/a"), || {
        put(&store, &key("a"), b"1", Put::New)
    });
    assert_eq!(stored.unwrap_err().kind, Kind::Signal(15));
    assert!(
        time > Duration::from_secs(5) && time < Duration::from_secs(10),
        "{time:?}"
    );
}
