//! Bad luck while WAL streams: a full disk, a server that stops, a network that is cut, a store that
//! fails at every step.

use super::{Place, assert_same_wal, first_stored};
use crate::bad_luck::Tmpfs;
use crate::support::gate::Gate;
use crate::support::wire::Wire;
use crate::support::{as_server_user, run, until};
use std::time::{Duration, Instant};

#[test]
fn a_full_disk_stops_receiving_and_nothing_more_is_confirmed() {
    let place = Place::new(17);
    let disk = Tmpfs::new("size=48m");
    let on_disk = |pgark: crate::support::Pgark| pgark.store(disk.path());
    let stream = place.stream_with(on_disk);
    until("the slot", || place.confirmed() > 0);
    // What does not compress: the disk fills.
    let noise = "INSERT INTO t (filler) SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 200000) i GROUP BY i % 2000";
    for _ in 0..16 {
        place.server.psql("postgres", noise);
    }
    until("the disk to be full for the receiver", || {
        place.said().contains("could not receive WAL")
    });
    let folder = disk
        .path()
        .join("wal")
        .join(place.wal().file_name().unwrap());
    let from = first_stored(&folder);
    let confirmed = place.confirmed();
    assert!(confirmed < place.lsn());
    assert_same_wal(&folder, &place.server, (from, confirmed), 1);
    disk.remount("size=500m");
    let end = place.caught_up();
    assert_same_wal(&folder, &place.server, (from, end), 1);
    stream.signal("TERM");
    stream.wait().assert_code(0);
}

#[test]
fn a_server_stops_and_starts_without_waiting_for_the_stream() {
    let place = Place::new(17);
    let stream = place.stream();
    until("the slot", || place.confirmed() > 0);
    place.write(20);
    let started = Instant::now();
    let mut stop = as_server_user(place.server.bin().join("pg_ctl"));
    stop.args(["stop", "-m", "fast", "-w", "-t", "60", "-D"]);
    run(stop.arg(place.server.data_dir())).assert_code(0);
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
    until("the stream to notice", || {
        place.said().contains("has ended the stream")
    });
    stream.signal("TERM");
    stream.wait().assert_code(0);
}

#[test]
fn a_cut_network_is_caught_up_with() {
    let place = Place::new(15);
    let gate = Gate::to(place.server.port);
    let stream = place.stream_with(|pgark| pgark.env("DB_PORT", gate.port.to_string()));
    until("the slot", || place.confirmed() > 0);
    for _ in 0..3 {
        place.write(5);
        gate.close();
        place.write(10);
        gate.open();
    }
    let end = place.caught_up();
    let wal = place.wal();
    assert_same_wal(&wal, &place.server, (first_stored(&wal), end), 1);
    stream.signal("TERM");
    stream.wait().assert_code(0);
}

/// Nobody is told that the wire is cut: no connection ends, and nothing arrives.
#[test]
fn a_wire_that_is_cut_for_a_while_is_caught_up_with() {
    let (place, wire) = (Place::new(17), Wire::new());
    let way = wire.way_to(place.server.port);
    let stream = place.stream_with(|pgark| {
        pgark
            .env("DB_HOST", &wire.address)
            .env("DB_PORT", way.port.to_string())
            .within(&wire.namespace)
    });
    until("the slot", || place.confirmed() > 0);
    let from = place.caught_up();
    for seconds in [1, 6] {
        place.write(5);
        wire.cut();
        place.write(10);
        std::thread::sleep(Duration::from_secs(seconds));
        assert!(place.confirmed() < place.lsn());
        wire.mend();
        place.write(1);
    }
    let end = place.caught_up();
    assert_same_wal(&place.wal(), &place.server, (from, end), 1);
    stream.signal("TERM");
    stream.wait().assert_code(0);
}

#[test]
fn a_store_that_fails_or_dies_at_any_step_loses_nothing_confirmed() {
    let place = Place::new(17);
    let mut from = None;
    for how in ["error", "abort"] {
        for step in 1..=14 {
            let mut stream =
                place.stream_with(|pgark| pgark.env("PGARK_FAIL_AT", format!("{how}:{step}")));
            until("the slot", || {
                place.confirmed() > 0 || !place.wal().exists()
            });
            place.write(5);
            let end = place.lsn();
            until("the stream", || {
                place.confirmed() >= end || !stream.is_alive()
            });
            if stream.is_alive() {
                stream.signal("TERM");
            }
            stream.wait();
            let wal = place.wal();
            let from = *from.get_or_insert_with(|| first_stored(&wal));
            assert_same_wal(&wal, &place.server, (from, place.confirmed()), 1);
        }
    }
    let stream = place.stream();
    let end = place.caught_up();
    assert_same_wal(&place.wal(), &place.server, (from.unwrap(), end), 1);
    stream.signal("TERM");
    stream.wait().assert_code(0);
}

/// A server that sends no WAL is told with the setting, and gets its stream once it is mended.
#[test]
fn a_server_with_minimal_wal_is_told_what_to_set() {
    let place = Place::with(17, &["wal_level=minimal", "max_wal_senders=0"]);
    let stream = place.stream();
    until("a word of it", || place.said().contains("max_wal_senders"));
    let said = place.said();
    assert!(said.contains("wal_level = 'replica'"), "{said}");
    stream.signal("TERM");
    stream.wait().assert_code(0);
    let backup = place.pgark(&["backup", "--base"]).run();
    backup.assert_code(1).assert_says("max_wal_senders");
}

/// Transactions that wait for the stream get their word at once, and only for what is durable.
#[test]
fn a_synchronous_stream_confirms_each_commit() {
    let place = Place::new(17);
    let stream = place.stream();
    until("the slot", || place.confirmed() > 0);
    let from = first_stored(&place.wal());
    let set = |value: &str| {
        let sql = format!("ALTER SYSTEM SET synchronous_standby_names = '{value}'");
        // It waits for nobody yet, or no more.
        place.server.psql("postgres", &sql);
        place.server.psql("postgres", "SELECT pg_reload_conf()");
    };
    set("*");
    let state = "SELECT coalesce(max(sync_state), 'none') FROM pg_stat_replication";
    until("the stream to be the one", || {
        place.server.psql("postgres", state) == "sync"
    });
    let started = Instant::now();
    for _ in 0..20 {
        place
            .server
            .psql("postgres", "INSERT INTO t (filler) VALUES ('x')");
    }
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "{:?}",
        started.elapsed()
    );
    let end = place.lsn();
    stream.signal("KILL");
    stream.wait();
    assert!(place.confirmed() >= end - 8192);
    assert_same_wal(&place.wal(), &place.server, (from, place.confirmed()), 1);
    set("");
}
