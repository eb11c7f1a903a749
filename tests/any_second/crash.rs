//! pgark killed at random moments of streaming and of base backups: no gap, no segment with other
//! contents, and every backup that is listed restores.

use super::{Dice, Stage, To, Writers, count, equals_the_servers, rows};
use crate::support::until;
use std::time::{Duration, Instant};

fn crashes(major: u32, to: To, usual: u32) {
    let mut stage = Stage::new(major, to);
    let mut dice = Dice::new();
    let writers = Writers::start(&stage.server, 2);
    let number = count("PGARK_CRASHES", usual);
    for round in 0..number {
        let mut stream = stage.stream();
        let backup = (round % 3 == 0).then(|| {
            stage
                .pgark(["backup", "--base", "-q", "--no-prune"])
                .spawn()
        });
        let life = Duration::from_millis(50 + dice.below(1500) as u64);
        if round % 2 == 0 {
            stage.server.psql("postgres", "SELECT pg_switch_wal()");
        }
        let begun = Instant::now();
        until("its moment", || begun.elapsed() > life);
        assert!(stream.is_alive(), "round {round}: {}", stream.log());
        stream.kill();
        if let Some(mut backup) = backup {
            if backup.is_alive() {
                backup.signal("KILL");
            }
            backup.wait();
        }
    }
    let stream = stage.stream();
    let last = stage.base(&[]);
    drop(writers);
    Stage::caught_up(&stage.server);
    let on_server = rows(
        &stage
            .server
            .psql("postgres", "SELECT n FROM ledger ORDER BY n"),
    );
    stream.stop();
    if to == To::Local {
        let compared = equals_the_servers(&stage.store(), &stage.server);
        assert!(
            u32::try_from(compared).unwrap() >= number / 2,
            "{compared} segments compared"
        );
    }
    // The first backup that is listed, over everything that was streamed since; and each other one.
    let listed = stage.pgark(["list", "--json"]).run().assert_code(0);
    let listed: Vec<serde_json::Value> = serde_json::from_str(&listed.stdout).unwrap();
    let ids: Vec<&str> = listed
        .iter()
        .map(|one| one["id"].as_str().unwrap())
        .collect();
    assert!(ids.contains(&last.as_str()), "{ids:?}");
    for id in ids {
        let (_place, data, run) = stage.restore_to("latest", &[id]);
        run.assert_code(0);
        let copy = crate::base::Copy::start(major, &data);
        let found = rows(&copy.psql("SELECT n FROM ledger ORDER BY n"));
        assert_eq!(found, on_server, "{id}");
    }
}

#[test]
fn a_killed_stream_leaves_no_gap_in_a_local_store() {
    crashes(17, To::Local, 8);
}

#[test]
fn a_killed_stream_leaves_no_gap_in_a_bucket() {
    crashes(15, To::Bucket, 5);
}

#[test]
fn a_killed_stream_leaves_no_gap_in_an_encrypted_store() {
    crashes(18, To::Sealed, 4);
}
