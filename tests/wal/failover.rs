//! Promotions under load, and a server that is another one.

use super::{Place, SETTINGS, assert_same_wal, first_stored, lsn, write};
use crate::support::{Server, Setup, run, until};
use std::path::Path;
use std::process::Command;

/// A standby of the server, as pg_basebackup makes it, on a port of its own.
pub(crate) fn standby(primary: &Server, name: &str) -> Server {
    standby_with(primary, name, &SETTINGS)
}

fn standby_with(primary: &Server, name: &str, settings: &[&str]) -> Server {
    let prepare = |data: &Path| {
        std::fs::remove_dir_all(data).unwrap();
        let mut base = primary.client("pg_basebackup");
        base.args(["-R", "-X", "stream", "-c", "fast", "-C", "-S", name, "-D"])
            .arg(data);
        run(&mut base).assert_code(0);
        let mut own = Command::new("chown");
        own.arg("-R")
            .arg("--reference")
            .arg(data.parent().unwrap())
            .arg(data);
        run(&mut own).assert_code(0);
    };
    let setup = Setup {
        settings,
        prepare: Some(&prepare),
        ..Setup::default()
    };
    Server::start_with(primary.major, &setup)
}

/// pgark's variables for either of the two, whichever takes writes.
fn either(a: &Server, b: &Server) -> [(&'static str, String); 2] {
    let conninfo = format!(
        "host=127.0.0.1,127.0.0.1 port={},{} target_session_attrs=read-write dbname=postgres",
        a.port, b.port
    );
    [
        ("DB_CONNINFO", conninfo),
        ("DB_NAME", "postgres".to_owned()),
    ]
}

#[test]
fn a_promotion_under_load_leaves_both_timelines_whole() {
    for major in [15, 17] {
        let place = Place::new(major);
        let folders = [place.wal(), place.second_wal()];
        let next = standby(&place.server, "standby");
        let conninfo = either(&place.server, &next);
        let stream = place.stream_with(|mut pgark| {
            pgark = place.with_second(pgark.env("DB_HOST", "").env("DB_PORT", ""));
            conninfo
                .iter()
                .fold(pgark, |pgark, (name, value)| pgark.env(name, value))
        });
        until("the slot", || place.confirmed() > 0);
        place.write(30);
        let replayed = || {
            next.psql(
                "postgres",
                "SELECT pg_last_wal_replay_lsn() >= pg_last_wal_receive_lsn()",
            ) == "t"
        };
        let end = place.caught_up();
        until("the standby to follow", || {
            lsn(&next, "SELECT pg_last_wal_receive_lsn()") >= end && replayed()
        });
        place.server.crash();
        next.psql("postgres", "SELECT pg_promote(true, 60)");
        write(&next, 30);
        let end = lsn(&next, "SELECT pg_current_wal_lsn()");
        let confirmed = || {
            lsn(
                &next,
                "SELECT coalesce(max(restart_lsn), '0/0') FROM pg_replication_slots WHERE slot_name = 'pgark'",
            )
        };
        until("the stream to follow the promotion", || confirmed() >= end);
        stream.signal("TERM");
        stream.wait().assert_code(0);
        for wal in folders {
            both_timelines_in(&wal, &place.server, &next, end);
        }
    }
}

/// A standby that keeps no WAL of itself has a slot of ours as well: nothing is gone there while pgark is away.
#[test]
fn a_standby_that_is_promoted_while_nobody_streams_has_kept_the_wal() {
    let place = Place::new(17);
    let little = ["min_wal_size=32MB", "max_wal_size=32MB", "wal_recycle=off"];
    let next = standby_with(&place.server, "standby", &little);
    let conninfo = either(&place.server, &next);
    let both = |pgark: crate::support::Pgark| {
        let pgark = pgark.env("DB_HOST", "").env("DB_PORT", "");
        conninfo
            .iter()
            .fold(pgark, |pgark, (name, value)| pgark.env(name, value))
    };
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'pgark'";
    let stream = place.stream_with(both);
    until("the slot", || place.confirmed() > 0);
    until("the standby's slot", || next.psql("postgres", slots) == "1");
    place.write(5);
    let end = place.caught_up();
    let kept = "SELECT coalesce(max(restart_lsn), '0/0') FROM pg_replication_slots WHERE slot_name = 'pgark'";
    until("the standby's slot to move on", || lsn(&next, kept) >= end);
    stream.signal("TERM");
    stream.wait().assert_code(0);
    for _ in 0..3 {
        place.write(40);
        place.server.psql("postgres", "CHECKPOINT");
        let written = place.lsn();
        until("the standby to follow", || {
            lsn(&next, "SELECT pg_last_wal_replay_lsn()") >= written
        });
        next.psql("postgres", "CHECKPOINT");
    }
    place.server.crash();
    next.psql("postgres", "SELECT pg_promote(true, 60)");
    write(&next, 5);
    next.psql("postgres", "CHECKPOINT");
    let end = lsn(&next, "SELECT pg_current_wal_lsn()");
    let stream = place.stream_with(both);
    until("the stream to go on", || lsn(&next, kept) >= end);
    stream.signal("TERM");
    stream.wait().assert_code(0);
    assert!(!place.said().contains("a gap"), "{}", place.said());
    let history = std::fs::read_to_string(place.wal_of(&next).join("00000002.history")).unwrap();
    let left = history.split('\t').nth(1).unwrap();
    let left = lsn(&next, &format!("SELECT '{left}'::pg_lsn"));
    let wal = place.wal_of(&next);
    assert_same_wal(&wal, &place.server, (first_stored(&wal), left), 1);
    let dropped = both(place.pgark(&["slot", "drop"])).run().assert_code(0);
    dropped.assert_says("the slot pgark may still be there");
    assert_eq!(next.psql("postgres", slots), "0");
}

/// The old timeline up to where it was left, the new one from that segment on.
#[track_caller]
fn both_timelines_in(wal: &Path, old: &Server, new: &Server, end: u64) {
    let history = std::fs::read(wal.join("00000002.history")).unwrap();
    let theirs = std::fs::read(new.data_dir().join("pg_wal/00000002.history")).unwrap();
    assert_eq!(history, theirs);
    let text = String::from_utf8(history).unwrap();
    let left = text.split('\t').nth(1).unwrap();
    let left = lsn(new, &format!("SELECT '{left}'::pg_lsn"));
    assert_same_wal(wal, old, (first_stored(wal), left), 1);
    assert_same_wal(wal, new, (left, end), 2);
}

#[test]
fn another_cluster_is_refused_and_its_wal_never_stored() {
    let place = Place::new(15);
    // Servers of one major are copies of one cluster here, and have its identity.
    let other = Place::new(17);
    let gate = crate::support::gate::Gate::to(place.server.port);
    let stream = place.stream_with(|pgark| pgark.env("DB_PORT", gate.port.to_string()));
    until("the slot", || place.confirmed() > 0);
    place.caught_up();
    // The way leads to another server now.
    gate.lead_to(other.server.port);
    let ended = stream.wait();
    assert_eq!(ended.code, 2, "{}", place.said());
    assert!(
        place.said().contains("the stream is of"),
        "{}",
        place.said()
    );
    let folders = std::fs::read_dir(place.backups().join("wal"))
        .unwrap()
        .count();
    assert_eq!(folders, 1);
}

/// After pg_upgrade or a new initdb: its WAL lies beside that of the old one, never among it.
#[test]
fn a_new_cluster_gets_a_folder_of_its_own_and_a_warning() {
    let place = Place::new(15);
    let stream = place.stream();
    until("the slot", || place.confirmed() > 0);
    place.write(2);
    place.caught_up();
    stream.signal("TERM");
    stream.wait().assert_code(0);
    let before = super::stored(&place.wal());
    let new = Place::new(17);
    let stream = new.stream_with(|pgark| pgark.store(&place.backups()));
    until("the slot", || new.confirmed() > 0);
    new.write(2);
    let end = new.caught_up();
    stream.signal("TERM");
    stream.wait().assert_code(0);
    assert!(
        new.said().contains("gets a folder of its own"),
        "{}",
        new.said()
    );
    assert!(super::stored(&place.wal()) == before);
    let folder = place.wal().with_file_name(new.wal().file_name().unwrap());
    assert_ne!(folder, place.wal());
    assert_same_wal(&folder, &new.server, (first_stored(&folder), end), 1);
}
