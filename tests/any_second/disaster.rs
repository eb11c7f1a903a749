//! The server killed under load and its data gone; pgark killed with it. What was acknowledged to
//! the writer before the last moment is there.

use super::{Stage, To, rows};
use crate::support::until;
use pgark::postgres::client::Client;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Rows and when each was acknowledged to the writer.
type Acknowledged = Arc<Mutex<Vec<(u64, Instant)>>>;

/// Writes rows one by one until the server dies.
fn acknowledged(stage: &Stage) -> (Acknowledged, std::thread::JoinHandle<()>) {
    let list = Acknowledged::default();
    let target = crate::replication::target(&stage.server);
    let notes = Arc::clone(&list);
    let thread = std::thread::spawn(move || {
        let mut client = Client::connect(&target).unwrap();
        let insert = "INSERT INTO ledger (writer, note) VALUES (9, repeat('x', 300)) RETURNING n";
        while let Ok(found) = client.query(insert) {
            let n: u64 = found[0].get(0).unwrap();
            notes.lock().unwrap().push((n, Instant::now()));
        }
    });
    (list, thread)
}

fn disaster(major: u32, to: To, loss_max: Duration) {
    let mut stage = Stage::new(major, to);
    let stream = stage.stream();
    stage.base(&[]);
    let (list, thread) = acknowledged(&stage);
    let begun = Instant::now();
    until("seven seconds of writing", || {
        begun.elapsed() > Duration::from_secs(7)
    });
    let killed = Instant::now();
    kill_server(&stage);
    stream.kill();
    thread.join().unwrap();
    std::fs::remove_dir_all(stage.server.data_dir()).unwrap();
    let list = list.lock().unwrap().clone();
    assert!(list.len() > 200, "{}", list.len());
    let (_place, data, run) = stage.restore_to("latest", &[]);
    run.assert_code(0);
    let copy = crate::base::Copy::start(major, &data);
    let found = rows(&copy.psql("SELECT n FROM ledger ORDER BY n"));
    let missed: Vec<Instant> = list
        .iter()
        .filter(|(n, _)| found.binary_search(n).is_err())
        .map(|(_, at)| *at)
        .collect();
    let oldest = missed
        .iter()
        .map(|at| killed.saturating_duration_since(*at))
        .max();
    eprintln!(
        "PostgreSQL {major}, {to:?}: {} of {} rows lost, the oldest {oldest:?} before the end",
        missed.len(),
        list.len()
    );
    assert!(oldest.is_none_or(|oldest| oldest <= loss_max), "{oldest:?}");
}

/// `kill -9` of the postmaster and all its children at once.
fn kill_server(stage: &Stage) {
    let pid = std::fs::read_to_string(stage.server.data_dir().join("postmaster.pid")).unwrap();
    let pid = pid.lines().next().unwrap();
    let script = format!("kill -9 {pid} $(ps -o pid= --ppid {pid}) 2>/dev/null; true");
    crate::support::run(std::process::Command::new("sh").args(["-c", &script])).assert_code(0);
}

#[test]
fn a_dead_server_with_a_local_store_has_lost_a_second_at_most() {
    disaster(15, To::Local, Duration::from_secs(1));
}

#[test]
fn a_dead_server_with_a_bucket_alone_has_lost_the_flush_interval_and_little_more() {
    // WAL_FLUSH_INTERVAL is 1 s here.
    disaster(17, To::Bucket, Duration::from_secs(3));
}

#[test]
fn a_dead_server_with_an_encrypted_local_store_has_lost_little() {
    disaster(18, To::Sealed, Duration::from_secs(2));
}
