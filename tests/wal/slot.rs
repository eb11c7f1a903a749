//! The slot: shown, dropped, watched; and gaps, which are never passed over in silence.

use super::{Place, assert_same_wal, first_stored, lsn, stored};
use crate::support::{as_server_user, run, until};
use std::os::unix::fs::FileExt;

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
    let open = stored(&place.wal()).into_keys().next_back().unwrap();
    let theirs = std::fs::read(place.server.data_dir().join("pg_wal").join(&open)).unwrap();
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
    // What had come of the segment before the gap is still there, as a part of one.
    let count = usize::try_from(before % (16 << 20)).unwrap();
    assert!(stored(&place.wal())[&open][..count] == theirs[..count]);
    let whole = place.wal().join(format!("{open}.zst"));
    assert!(!whole.exists(), "{open} never came to its end");
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

/// Far from looking twice at its leisure, the guard has the last word of a stream that dies at once.
#[test]
fn the_guard_also_judges_the_slot_of_a_stream_that_always_fails() {
    let place = Place::new(17);
    let config = place.dir.join("pgark.toml");
    std::fs::write(&config, "[wal]\nslot_limit = \"20MB\"\n").unwrap();
    let stream = place.stream();
    until("the slot", || place.confirmed() > 0);
    place.write(1);
    place.caught_up();
    stream.signal("TERM");
    stream.wait().assert_code(0);
    let open = std::fs::read_dir(place.wal()).unwrap().find_map(|entry| {
        let path = entry.unwrap().path();
        path.to_str().unwrap().ends_with(".partial").then_some(path)
    });
    let open = std::fs::OpenOptions::new()
        .write(true)
        .open(open.unwrap())
        .unwrap();
    open.write_all_at(b"another server's", 64).unwrap();
    // Below the limit it is left alone.
    let ended = place
        .stream_with(|pgark| pgark.env("PGARK_CONFIG", &config))
        .wait();
    assert_eq!(ended.code, 4, "{}", place.said());
    place.write(60);
    let ended = place
        .stream_with(|pgark| pgark.env("PGARK_CONFIG", &config))
        .wait();
    let said = place.said();
    assert_eq!(ended.code, 3, "{said}");
    assert!(
        said.contains("it was dropped to protect the server"),
        "{said}"
    );
    assert!(said.contains("the server sends other WAL"), "{said}");
    let slots = "SELECT count(*) FROM pg_replication_slots";
    assert_eq!(place.server.psql("postgres", slots), "0");
}

#[test]
fn a_logical_slot_of_our_name_is_somebody_elses() {
    let place = Place::with(17, &["wal_level=logical"]);
    let make = "SELECT pg_create_logical_replication_slot('pgark', 'pgoutput')";
    place.server.psql("postgres", make);
    let dropped = place.pgark(&["slot", "drop"]).run();
    dropped.assert_code(2).assert_says("is a logical one");
    let ended = place.stream().wait();
    assert_eq!(ended.code, 2, "{}", place.said());
    assert!(
        place.said().contains("slot_name in the section [wal]"),
        "{}",
        place.said()
    );
    let slots = "SELECT slot_type FROM pg_replication_slots";
    assert_eq!(place.server.psql("postgres", slots), "logical");
}

/// A snapshot of the server's disk is put back: what it writes from then on is not what is stored.
#[test]
fn a_server_that_was_set_back_is_told_and_nothing_is_mixed() {
    let place = Place::new(17);
    let data = place.server.data_dir();
    let snapshot = data.with_file_name("snapshot");
    let pg_ctl = |verb: &str| {
        let mut pg_ctl = as_server_user(place.server.bin().join("pg_ctl"));
        pg_ctl.args([verb, "-w", "-s", "-D"]).arg(&data);
        pg_ctl
    };
    let options = std::fs::read_to_string(data.join("postmaster.opts")).unwrap();
    let options = options.trim().split_once(' ').unwrap().1.to_owned();
    let start = || {
        let mut start = pg_ctl("start");
        start
            .arg("-l")
            .arg(data.join("again.log"))
            .arg("-o")
            .arg(&options);
        run(&mut start).assert_code(0);
    };
    run(pg_ctl("stop").args(["-m", "fast"])).assert_code(0);
    run(as_server_user("cp").arg("-a").arg(&data).arg(&snapshot)).assert_code(0);
    start();
    let stream = place.stream();
    until("the slot", || place.confirmed() > 0);
    place.write(40);
    let end = place.caught_up();
    stream.signal("TERM");
    stream.wait().assert_code(0);
    let before = stored(&place.wal());
    run(pg_ctl("stop").args(["-m", "fast"])).assert_code(0);
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&snapshot, &data).unwrap();
    start();
    let ended = place.stream().wait();
    let said = place.said();
    assert!(place.lsn() < end);
    assert_eq!(ended.code, 4, "{said}");
    assert!(
        said.contains("it was set back") && said.contains("move the folder"),
        "{said}"
    );
    assert!(
        stored(&place.wal()) == before,
        "what is stored is as it was"
    );
    run(pg_ctl("stop").args(["-m", "immediate"])).assert_code(0);
}
