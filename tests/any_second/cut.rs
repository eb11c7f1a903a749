//! The network between pgark and PostgreSQL cut for a while, and that between pgark and the bucket.

use super::{Stage, To, Writers, rows};
use crate::second_store::with_bucket;
use crate::support::garage::Garage;
use crate::support::gate::Gate;
use crate::support::until;
use std::time::{Duration, Instant};

fn pass(time: Duration) {
    let begun = Instant::now();
    until("some time without a network", || begun.elapsed() > time);
}

#[test]
fn wal_catches_up_after_the_way_to_the_server_was_cut() {
    let stage = Stage::new(17, To::Local);
    let gate = Gate::to(stage.server.port);
    let log = stage.dir.join("log");
    let mut stream = stage
        .pgark(["wal-stream"])
        .env("DB_PORT", gate.port.to_string())
        .spawn_logging_to(&log);
    stage.base(&[]);
    let writers = Writers::start(&stage.server, 2);
    for _ in 0..2 {
        pass(Duration::from_millis(700));
        gate.close();
        pass(Duration::from_millis(1500));
        stage.server.psql("postgres", "SELECT pg_switch_wal()");
        gate.open();
    }
    drop(writers);
    Stage::caught_up(&stage.server);
    assert!(stream.is_alive());
    let expected = rows(
        &stage
            .server
            .psql("postgres", "SELECT n FROM ledger ORDER BY n"),
    );
    assert_eq!(stage.rows_at("latest", &[]), expected);
    stream.signal("TERM");
    stream.wait().assert_code(0);
}

/// The local store goes on meanwhile; the bucket has everything a while after.
#[test]
fn wal_catches_up_after_the_way_to_the_bucket_was_cut() {
    let stage = Stage::new(15, To::Local);
    let garage = Garage::start();
    let gate = Gate::to(garage.port);
    let log = stage.dir.join("log");
    let stream = with_bucket(stage.pgark(["wal-stream"]), gate.port).spawn_logging_to(&log);
    let bucket = |args: &[&str]| with_bucket(stage.pgark(args), garage.port);
    bucket(&["backup", "--base", "-q"]).run().assert_code(0);
    let writers = Writers::start(&stage.server, 2);
    gate.close();
    for _ in 0..3 {
        pass(Duration::from_millis(700));
        stage.server.psql("postgres", "SELECT pg_switch_wal()");
    }
    drop(writers);
    // What the local store has is confirmed, whatever the bucket does.
    Stage::caught_up(&stage.server);
    let expected = rows(
        &stage
            .server
            .psql("postgres", "SELECT n FROM ledger ORDER BY n"),
    );
    gate.open();
    let mut found = Vec::new();
    until("the bucket to have it all", || {
        let place = crate::support::TempDir::new();
        place.give_to_postgres();
        let data = place.join("data");
        let path = data.display().to_string();
        let args = [
            "restore",
            "--data-dir",
            &path,
            "--at",
            "latest",
            "--store",
            "s3",
            "-q",
        ];
        if bucket(&args).run().code != 0 {
            return false;
        }
        let copy = crate::base::Copy::start(15, &data);
        found = rows(&copy.psql("SELECT n FROM ledger ORDER BY n"));
        found == expected
    });
    stream.signal("TERM");
    stream.wait().assert_code(0);
    // A server that would ask wal-get needs what is not written into its settings.
    let plan = "restore --data-dir /nonexistent/x --at latest --store s3 --wal get --dry-run";
    let plan: Vec<&str> = plan.split(' ').collect();
    bucket(&plan)
        .env("NO_PROXY", "127.0.0.1")
        .run()
        .assert_code(0)
        .assert_says("must hold AWS_SECRET_ACCESS_KEY, NO_PROXY: no secret");
}
