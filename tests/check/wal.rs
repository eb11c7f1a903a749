//! What base backups and WAL streaming need: each mend done as it was printed.

use std::path::Path;

use super::{Place, one};
use crate::support::{Pgark, Server, Setup, as_server_user, run, until};

/// Settings in the file, where `ALTER SYSTEM` goes before them.
fn with_settings(major: u32, lines: &str, hba: Option<&str>) -> Place {
    let prepare = |data: &Path| {
        let path = data.join("postgresql.conf");
        let old = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{old}\n{lines}\n")).unwrap();
    };
    let setup = Setup {
        prepare: Some(&prepare),
        hba,
        ..Setup::default()
    };
    let place = Place::new(major, &setup);
    let sql = "GRANT pg_read_all_data TO \"back up\"; GRANT SELECT ON pg_authid TO \"back up\"";
    place.server.psql("postgres", sql);
    place.server.psql("app", sql);
    place
}

fn streaming(pgark: Pgark) -> Pgark {
    pgark
        .env("WAL_STREAMING", "on")
        .env("BASE_INCREMENTAL_SCHEDULE", "@daily")
}

/// A server that was started anew with the same options; it ends with this.
struct Restarted<'a>(&'a Server);

impl Restarted<'_> {
    fn new(server: &Server) -> Restarted<'_> {
        let mut pg_ctl = as_server_user(server.bin().join("pg_ctl"));
        let log = server.data_dir().join("restarted.log");
        pg_ctl
            .args(["restart", "-m", "fast", "-w", "-D"])
            .arg(server.data_dir());
        // Nobody reads what it says once this has ended.
        pg_ctl.arg("-l").arg(log);
        run(&mut pg_ctl).assert_code(0);
        Restarted(server)
    }
}

impl Drop for Restarted<'_> {
    fn drop(&mut self) {
        let mut pg_ctl = as_server_user(self.0.bin().join("pg_ctl"));
        pg_ctl
            .args(["stop", "-m", "immediate", "-w", "-D"])
            .arg(self.0.data_dir());
        run(&mut pg_ctl);
    }
}

impl Place {
    /// As `mend`, where WAL streaming is wanted; takes some time to take effect.
    #[track_caller]
    fn mend_streaming(&self, topic: &str, level: &str, words: &str) {
        let (findings, _) = self.check_with(streaming);
        let finding = one(&findings, topic);
        assert_eq!(finding["level"], level, "{finding}");
        let fact = finding["fact"].as_str().unwrap();
        assert!(fact.contains(words), "{finding}");
        self.do_as_told(finding);
        until(&format!("{topic} to be mended"), || {
            let (findings, _) = self.check_with(streaming);
            findings
                .iter()
                .all(|one| one["topic"] != topic || one["level"] != level)
        });
    }
}

#[test]
fn without_wal_and_base_backups_nothing_of_them_is_asked() {
    let place = with_settings(15, "wal_level = minimal\nmax_wal_senders = 0", None);
    let (findings, code) = place.check();
    assert_eq!(code, 0, "{findings:#?}");
    let topics = [
        "wal_level",
        "wal_senders",
        "replication_right",
        "slot_limit",
    ];
    for finding in &findings {
        assert!(!topics.contains(&finding["topic"].as_str().unwrap()));
    }
}

#[test]
fn rights_and_settings_of_a_running_server_are_mended_one_after_the_other() {
    let hba = "local all postgres trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
    let place = with_settings(17, "", Some(hba));
    let backup = || place.pgark(&["backup", "--base"]).run();
    // What it says is so: no base backup.
    assert_eq!(backup().code, 1);
    place.mend_streaming("replication_right", "fail", "may not replicate");
    assert_eq!(backup().code, 1);
    place.mend_streaming("replication_connection", "fail", "pg_hba.conf");
    backup().assert_code(0);
    place.mend_streaming("summarize_wal", "warning", "full ones are taken");
    place.mend_streaming("slot_limit", "fail", "until the server's disk is full");
    let (findings, code) = place.check_with(streaming);
    assert_eq!(code, 0, "{findings:#?}");
    let size = findings
        .iter()
        .find(|one| one["topic"] == "wal_segment_size");
    assert!(size.unwrap()["fact"].as_str().unwrap().contains("16.0 MiB"));
}

#[test]
fn settings_that_need_a_restart_are_mended_by_what_is_printed() {
    let lines = "wal_level = minimal\nmax_wal_senders = 0\nmax_replication_slots = 1";
    let place = with_settings(15, lines, None);
    place
        .server
        .psql("postgres", "ALTER ROLE \"back up\" REPLICATION");
    let (findings, _) = place.check_with(streaming);
    for topic in ["wal_level", "wal_senders", "replication_slots"] {
        let finding = one(&findings, topic);
        assert_eq!(finding["level"], "fail", "{finding}");
        place.do_as_told(finding);
    }
    let older = one(&findings, "summarize_wal");
    assert_eq!(older["mend"]["how"], "advice", "PostgreSQL 15: {older}");
    let _server = Restarted::new(&place.server);
    let (findings, _) = place.check_with(streaming);
    for topic in [
        "wal_level",
        "wal_senders",
        "replication_slots",
        "replication_connection",
    ] {
        let left = findings.iter().find(|one| one["topic"] == topic);
        assert!(left.is_none(), "{left:?}");
    }
    place.pgark(&["backup", "--base"]).run().assert_code(0);
}

#[test]
fn a_slot_that_lost_wal_is_named_and_dropped_as_told() {
    let place = with_settings(15, "max_slot_wal_keep_size = 1MB\nwal_keep_size = 0", None);
    let server = &place.server;
    server.psql("postgres", "ALTER ROLE \"back up\" REPLICATION");
    server.psql(
        "postgres",
        "SELECT pg_create_physical_replication_slot('pgark', true)",
    );
    let (findings, _) = place.check_with(streaming);
    let low = one(&findings, "slot_limit");
    assert_eq!(low["level"], "warning", "{low}");
    assert!(findings.iter().all(|one| one["topic"] != "slot"));
    until("the slot to lose WAL", || {
        let fill = "CREATE TABLE IF NOT EXISTS filler (n int); INSERT INTO filler VALUES (1)";
        server.psql("postgres", fill);
        server.psql("postgres", "SELECT pg_switch_wal()");
        server.psql("postgres", "CHECKPOINT");
        server.psql("postgres", "SELECT wal_status FROM pg_replication_slots") == "lost"
    });
    place.mend_streaming("slot", "fail", "has lost WAL");
    let left = server.psql("postgres", "SELECT count(*) FROM pg_replication_slots");
    assert_eq!(left, "0");
}

#[test]
fn a_slot_that_streaming_left_behind_is_named_and_dropped_as_told() {
    let place = with_settings(15, "", None);
    let server = &place.server;
    server.psql("postgres", "ALTER ROLE \"back up\" REPLICATION");
    let make = "SELECT pg_create_physical_replication_slot('pgark', true)";
    server.psql("postgres", make);
    let (findings, code) = place.check();
    assert_eq!(code, 1, "{findings:#?}");
    let slot = one(&findings, "slot");
    assert_eq!(slot["level"], "fail", "{slot}");
    assert!(
        slot["fact"]
            .as_str()
            .unwrap()
            .contains("WAL_STREAMING is off"),
        "{slot}"
    );
    place.do_as_told(slot);
    let (findings, code) = place.check();
    assert_eq!(code, 0, "{findings:#?}");
}
