//! The slot: shown, dropped, watched; and gaps, which are never passed over in silence.

use super::{Place, assert_same_wal, first_stored, lsn};
use crate::support::until;

#[test]
fn the_slot_is_shown_and_dropped() {
    for major in [15, 17] {
        let place = Place::new(major);
        let none = place.pgark(&["slot", "--json"]).run().assert_code(0);
        let none: serde_json::Value = serde_json::from_str(&none.stdout).unwrap();
        assert_eq!(none["exists"], false);
        let stream = place.stream();
        until("the slot", || place.confirmed() > 0);
        place.write(1);
        place.caught_up();
        let seen = place.pgark(&["slot", "--json"]).run().assert_code(0);
        let seen: serde_json::Value = serde_json::from_str(&seen.stdout).unwrap();
        assert_eq!(
            (&seen["active"], &seen["wal_status"]),
            (&true.into(), &"reserved".into()),
            "{seen}"
        );
        let held = place.pgark(&["slot", "drop"]).run();
        held.assert_code(6).assert_says("stop `pgark serve` first");
        stream.signal("TERM");
        stream.wait().assert_code(0);
        let page = place.pgark(&["slot"]).run().assert_code(0).stdout;
        assert!(
            page.contains("nobody streams") && page.contains("max_slot_wal_keep_size"),
            "{page}"
        );
        let dropped = place.pgark(&["slot", "drop"]).run().assert_code(0);
        assert!(
            dropped.stdout.contains("may find a gap"),
            "{}",
            dropped.stdout
        );
        assert_eq!(
            place
                .server
                .psql("postgres", "SELECT count(*) FROM pg_replication_slots"),
            "0"
        );
    }
}

#[test]
fn a_slot_dropped_behind_our_back_is_a_gap_only_if_the_wal_is_gone() {
    let place = Place::with(
        17,
        &["min_wal_size=32MB", "max_wal_size=32MB", "wal_recycle=off"],
    );
    let stream = place.stream();
    until("the slot", || place.confirmed() > 0);
    place.write(5);
    place.caught_up();
    stream.signal("TERM");
    stream.wait().assert_code(0);
    let drop = "SELECT pg_drop_replication_slot('pgark')";
    place.server.psql("postgres", drop);
    // All WAL is still there: no gap.
    let stream = place.stream();
    until("the slot", || place.confirmed() > 0);
    place.write(20);
    let before = place.caught_up();
    stream.signal("TERM");
    stream.wait().assert_code(0);
    assert!(!place.said().contains("a gap"), "{}", place.said());
    place.server.psql("postgres", drop);
    for _ in 0..3 {
        place.write(40);
        place.server.psql("postgres", "CHECKPOINT");
    }
    let ended = place.stream().wait();
    assert_eq!(ended.code, 3, "{}", place.said());
    assert!(
        place.said().contains("a gap") && place.said().contains("is lost"),
        "{}",
        place.said()
    );
    // The next stream goes on behind the gap, and says nothing of it any more.
    let stream = place.stream();
    place.write(20);
    let end = place.caught_up();
    stream.signal("TERM");
    stream.wait().assert_code(0);
    assert!(!place.said().contains("a gap"), "{}", place.said());
    let begin = lsn(
        &place.server,
        "SELECT restart_lsn FROM pg_replication_slots",
    ) - (16 << 20);
    assert!(begin > before);
    assert_same_wal(&place.wal(), &place.server, (begin, end), 1);
    assert!(first_stored(&place.wal()) < before);
}

#[test]
fn a_slot_that_the_server_invalidated_is_made_anew() {
    let place = Place::with(
        15,
        &[
            "min_wal_size=32MB",
            "max_wal_size=32MB",
            "max_slot_wal_keep_size=32MB",
            "wal_recycle=off",
        ],
    );
    let stream = place.stream();
    until("the slot", || place.confirmed() > 0);
    place.write(5);
    place.caught_up();
    stream.signal("TERM");
    stream.wait().assert_code(0);
    let lost = || {
        place
            .server
            .psql("postgres", "SELECT wal_status FROM pg_replication_slots")
            == "lost"
    };
    until("the slot to be lost", || {
        place.write(40);
        place.server.psql("postgres", "CHECKPOINT");
        lost()
    });
    let ended = place.stream().wait();
    assert_eq!(ended.code, 3, "{}", place.said());
    assert!(!lost());
    let stream = place.stream();
    place.write(5);
    place.caught_up();
    stream.signal("TERM");
    stream.wait().assert_code(0);
}

#[test]
fn the_guard_drops_a_slot_that_holds_too_much_and_keeps_it_when_told_to() {
    for (policy, code) in [("protect-archive", 0), ("protect-primary", 3)] {
        let place = Place::new(15);
        let config = place.dir.join("pgark.toml");
        let text = format!("[wal]\nslot_limit = \"20MB\"\nslot_policy = \"{policy}\"\n");
        std::fs::write(&config, text).unwrap();
        let stream = place.stream();
        until("the slot", || place.confirmed() > 0);
        stream.signal("TERM");
        stream.wait().assert_code(0);
        place.write(60);
        // A store that takes nothing: its folder is a file.
        std::fs::remove_dir_all(place.wal()).unwrap();
        std::fs::write(place.wal(), "").unwrap();
        let stream = place.stream_with(|pgark| pgark.env("PGARK_CONFIG", &config));
        until("the guard", || {
            place.said().contains("holds") && place.said().contains("of WAL on the server")
        });
        if code == 0 {
            stream.signal("TERM");
        }
        let ended = stream.wait();
        assert_eq!(ended.code, code, "{policy}: {}", place.said());
        let slots = place
            .server
            .psql("postgres", "SELECT count(*) FROM pg_replication_slots");
        assert_eq!(
            slots,
            if code == 0 { "1" } else { "0" },
            "{policy}: {}",
            place.said()
        );
    }
}
