//! The replication client against real servers: what it reads is what the server has.

mod base;

use crate::support::{PASSWORD, Server, Setup, as_server_user, run, until};
use pgark::error::Kind;
use pgark::postgres::replication::{Received, Replication, SlotName, Streaming, Switch};
use pgark::postgres::{ConnInfo, Target};
use pgark::units::{Lsn, SegmentName, SegmentSize, Timeline};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

pub(crate) fn target(server: &Server) -> Target {
    let info = ConnInfo::parse(&server.url("postgres")).unwrap();
    info.resolve().unwrap()
}

fn connect(server: &Server) -> Replication {
    Replication::connect(&target(server)).unwrap()
}

fn slot(name: &str) -> SlotName {
    SlotName::new(name).unwrap()
}

#[test]
fn system_settings_and_slots_are_those_of_the_server() {
    for major in [15, 17, 18] {
        let server = Server::start(major);
        let mut link = connect(&server);
        let system = link.identify().unwrap();
        let sql = "SELECT system_identifier FROM pg_control_system()";
        assert_eq!(system.id.to_string(), server.psql("postgres", sql));
        assert_eq!(system.timeline, Timeline::FIRST);
        assert_eq!(link.segment_size().unwrap(), SegmentSize::DEFAULT);
        assert_eq!(link.show("port").unwrap(), server.port.to_string());
        assert_eq!(link.show("no_such_setting").unwrap_err().kind, Kind::Failed);
        assert_eq!(link.show("port; x").unwrap_err().kind, Kind::Usage);
        assert!(link.read_slot(&slot("ours")).unwrap().is_none());
        link.create_slot(&slot("ours"), false).unwrap();
        let taken = link.create_slot(&slot("ours"), true).unwrap_err();
        assert!(taken.is_sqlstate("42710"), "{taken}");
        let state = link.read_slot(&slot("ours")).unwrap().unwrap();
        assert!(state.restart.unwrap() <= system.flushed, "{state:?}");
        assert_eq!(state.timeline, Some(Timeline::FIRST));
        link.create_slot(&slot("passing"), true).unwrap();
        let slots = "SELECT string_agg(slot_name || temporary, ' ' ORDER BY slot_name) FROM pg_replication_slots";
        assert_eq!(server.psql("postgres", slots), "oursfalse passingtrue");
        drop(link);
        until("the temporary slot to go", || {
            server.psql("postgres", slots) == "oursfalse"
        });
        let mut link = connect(&server);
        link.drop_slot(&slot("ours")).unwrap();
        assert!(
            link.drop_slot(&slot("ours"))
                .unwrap_err()
                .is_sqlstate("42704")
        );
        assert_eq!(link.identify().unwrap().id, system.id);
    }
}

#[test]
fn who_may_not_replicate_is_told_the_way_out() {
    let hba = "local all postgres trust\nhost all all 127.0.0.1/32 scram-sha-256\n\
        host replication weak 127.0.0.1/32 scram-sha-256\n";
    let server = Server::start_with(
        17,
        &Setup {
            hba: Some(hba),
            ..Setup::default()
        },
    );
    server.psql(
        "postgres",
        &format!("CREATE ROLE weak LOGIN PASSWORD '{PASSWORD}'"),
    );
    let refused = |user: &str| {
        let mut info = ConnInfo::parse(&server.url("postgres")).unwrap();
        info.set("user", user).unwrap();
        let error = Replication::connect(&info.resolve().unwrap()).unwrap_err();
        error.hint.unwrap()
    };
    let hint = refused("postgres");
    assert!(hint.contains("host replication postgres"), "{hint}");
    assert!(refused("weak").contains("ALTER ROLE \"weak\" REPLICATION"));
}

/// Receives until the position is reached; the bytes.
fn receive_to(stream: &mut Streaming, end: Lsn) -> Vec<u8> {
    let mut wal = Vec::new();
    let first = stream.position();
    let started = Instant::now();
    while stream.position() < end {
        assert!(
            started.elapsed().as_secs() < 60,
            "still at {}",
            stream.position()
        );
        if let Received::Wal { start, bytes, .. } = stream.receive(Duration::from_secs(1)).unwrap()
        {
            assert_eq!(start, first.plus(wal.len() as u64));
            wal.extend_from_slice(bytes);
        }
    }
    wal
}

fn current_lsn(server: &Server) -> Lsn {
    let sql = "SELECT pg_current_wal_flush_lsn()";
    server.psql("postgres", sql).parse().unwrap()
}

#[test]
fn streamed_wal_is_the_servers_own_and_only_what_is_confirmed_goes() {
    for major in [15, 17, 18] {
        let server = Server::start(major);
        let mut link = connect(&server);
        link.create_slot(&slot("ours"), false).unwrap();
        let from = link
            .read_slot(&slot("ours"))
            .unwrap()
            .unwrap()
            .restart
            .unwrap();
        let size = SegmentSize::DEFAULT;
        let begin = from.segment_start(size);
        let mut stream = link
            .stream(Some(&slot("ours")), begin, Timeline::FIRST)
            .unwrap();
        server.psql("postgres", "CREATE TABLE t AS SELECT i, repeat('x', 200) FROM generate_series(1, 100000) i; SELECT pg_switch_wal()");
        let end = current_lsn(&server);
        let wal = receive_to(&mut stream, end);
        assert!(wal.len() as u64 > size.bytes(), "more than a segment");
        for (number, part) in wal.chunks_exact(16 << 20).enumerate() {
            let start = begin.plus(number as u64 * size.bytes());
            let name = SegmentName::holding(Timeline::FIRST, start, size).to_string();
            let file = std::fs::read(server.data_dir().join("pg_wal").join(&name)).unwrap();
            assert!(file == part, "{name} differs");
        }
        let reported = || {
            server.psql(
                "postgres",
                "SELECT coalesce(flush_lsn, '0/0') FROM pg_stat_replication",
            )
        };
        assert_eq!(reported(), "0/0", "nothing was confirmed");
        stream.confirm(end, from).unwrap();
        until("the report", || reported() == from.to_string());
        stream.confirm(end, end).unwrap();
        // A report never goes back.
        stream.confirm(from, from).unwrap();
        until("the report", || reported() == end.to_string());
        stream.stop().unwrap();
        let state = link.read_slot(&slot("ours")).unwrap().unwrap();
        assert_eq!(state.restart, Some(end));
        // What was confirmed may go; what lies ahead does not exist yet.
        let mut stream = link
            .stream(None, end.plus(1 << 30), Timeline::FIRST)
            .unwrap();
        let ahead = stream.receive(Duration::from_secs(20)).unwrap_err();
        drop(stream);
        assert!(ahead.fact.contains("ahead"), "{ahead}");
        assert!(!link.is_broken());
        let stream = link.stream(None, end, Timeline::FIRST).unwrap();
        drop(stream);
        assert!(link.identify().unwrap_err().fact.contains("abandoned"));
    }
}

#[test]
fn a_server_that_stops_waits_for_the_confirmation_and_no_longer() {
    let server = Server::start(17);
    let mut link = connect(&server);
    let from = current_lsn(&server).segment_start(SegmentSize::DEFAULT);
    let mut stream = link.stream(None, from, Timeline::FIRST).unwrap();
    let stopping = std::thread::scope(|scope| {
        let stop = scope.spawn(|| {
            let started = Instant::now();
            let mut command = as_server_user(server.bin().join("pg_ctl"));
            command.args(["stop", "-m", "fast", "-w", "-t", "60", "-D"]);
            run(command.arg(server.data_dir())).assert_code(0);
            started.elapsed()
        });
        loop {
            if let Received::End(switch) = stream.receive(Duration::from_millis(100)).unwrap() {
                break assert_eq!(switch, None);
            }
            let at = stream.position();
            stream.confirm(at, at).unwrap();
        }
        stop.join().unwrap()
    });
    assert!(stopping < Duration::from_secs(20), "{stopping:?}");
    // The end stays the end.
    assert_eq!(stream.receive(Duration::ZERO).unwrap(), Received::End(None));
}

#[test]
fn a_timeline_ends_where_the_next_one_begins() {
    for major in [15, 17, 18] {
        // At its first start it recovers what there is, and opens timeline 2.
        let recover = |data: &Path| {
            std::fs::write(data.join("recovery.signal"), "").unwrap();
            run(Command::new("chown")
                .arg("--reference")
                .arg(data)
                .arg(data.join("recovery.signal")))
            .assert_code(0);
        };
        let server = Server::start_with(
            major,
            &Setup {
                settings: &["restore_command=false"],
                prepare: Some(&recover),
                ..Setup::default()
            },
        );
        let recovering = || server.psql("postgres", "SELECT pg_is_in_recovery()");
        until("the end of recovery", || recovering() == "f");
        let mut link = connect(&server);
        let (one, two) = (Timeline::FIRST, Timeline::new(2).unwrap());
        assert_eq!(link.identify().unwrap().timeline, two);
        let file = link.timeline_history(two).unwrap();
        assert_eq!(file.name, "00000002.history");
        let on_disk = std::fs::read(server.data_dir().join("pg_wal/00000002.history")).unwrap();
        assert_eq!(file.content, on_disk);
        let left = file.history.left(one).unwrap();
        let begin = left.segment_start(SegmentSize::DEFAULT);
        let mut stream = link.stream(None, begin, one).unwrap();
        receive_to(&mut stream, left);
        let switch = Switch {
            timeline: two,
            at: left,
        };
        assert_eq!(
            stream.receive(Duration::from_secs(20)).unwrap(),
            Received::End(Some(switch))
        );
        stream.stop().unwrap();
        // Started exactly there, there is nothing to copy.
        let mut stream = link.stream(None, left, one).unwrap();
        assert_eq!(
            stream.receive(Duration::ZERO).unwrap(),
            Received::End(Some(switch))
        );
        stream.stop().unwrap();
        let beyond = link.stream(None, left.plus(1), one).map(drop).unwrap_err();
        assert!(beyond.fact.contains("timeline"), "{beyond}");
        // The new one goes on from the beginning of the switch's segment.
        let mut stream = link.stream(None, begin, two).unwrap();
        server.psql("postgres", "CREATE TABLE t ()");
        receive_to(&mut stream, current_lsn(&server));
        stream.stop().unwrap();
        assert!(link.timeline_history(Timeline::new(9).unwrap()).is_err());
    }
}
