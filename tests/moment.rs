//! Restores to a moment, on real servers: what was committed by then is there, and nothing else. What
//! cannot be reached is refused before anything is touched.

use crate::base::{Copy, pgark, place, take};
use crate::support::{Run, Server, Setup, TempDir, run, until};
use std::path::{Path, PathBuf};
use std::process::Command;

mod by_hand;
mod chosen;
mod ledger;
mod refused;
mod started;
mod tools;
mod wal_get;

const SETTINGS: &[&str] = &[
    "track_commit_timestamp=on",
    "archive_mode=on",
    "summarize_wal=on",
];

/// A server whose WAL goes into a store, as pgark's own stream would put it there.
pub(crate) struct World {
    pub(crate) server: Server,
    pub(crate) backups: TempDir,
    pub(crate) wal: PathBuf,
}

impl World {
    pub(crate) fn start(major: u32) -> World {
        World::start_prepared(major, None)
    }

    /// `prepare` runs on the data directory before the start.
    pub(crate) fn start_prepared(major: u32, prepare: Option<&dyn Fn(&Path)>) -> World {
        let settings = if major >= 17 {
            SETTINGS
        } else {
            &SETTINGS[..2]
        };
        let setup = Setup {
            settings,
            prepare,
            ..Setup::default()
        };
        let server = Server::start_with(major, &setup);
        let backups = TempDir::new();
        let system = server.psql(
            "postgres",
            "SELECT system_identifier FROM pg_control_system()",
        );
        let wal = backups.join("wal").join(system);
        std::fs::create_dir_all(&wal).unwrap();
        let owner = "chown -R --reference \"$0\" \"$1\"";
        run(Command::new("sh")
            .args(["-c", owner])
            .arg(server.data_dir())
            .arg(backups.join("wal")))
        .assert_code(0);
        let archive = "case %f in *.history) cp %p DIR/.tmp;; *.partial|*.backup) exit 0;; \
            *) zstd -q1c %p > DIR/.tmp; z=.zst;; esac && mv DIR/.tmp DIR/%f$z";
        let archive = archive.replace("DIR", wal.to_str().unwrap());
        server.psql(
            "postgres",
            &format!("ALTER SYSTEM SET archive_command = '{archive}'"),
        );
        server.psql(
            "postgres",
            "SELECT pg_reload_conf(); CREATE TABLE ledger (n int, who int)",
        );
        World {
            server,
            backups,
            wal,
        }
    }

    pub(crate) fn psql(&self, sql: &str) -> String {
        self.server.psql("postgres", sql)
    }

    /// Ends the segment, and waits until it is in the store.
    pub(crate) fn switch(&self) -> String {
        let name = self.psql("SELECT pg_walfile_name(pg_switch_wal())");
        // A switch at a segment's very beginning does nothing.
        until("the segment to be archived", || {
            self.psql("SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver") >= name
        });
        name
    }

    /// Stores what the open segment holds, as a piece from its beginning.
    pub(crate) fn store_piece(&self) -> PathBuf {
        let name = self.psql("SELECT pg_walfile_name(pg_current_wal_flush_lsn())");
        let piece = self.wal.join(format!("{name}.partial.0000000000.zst"));
        let script = "head -c \"$1\" \"$0\" | zstd -q1c > \"$2\"";
        let offset = self.psql("SELECT (pg_current_wal_flush_lsn() - '0/0') % (16 * 1024 * 1024)");
        run(Command::new("sh")
            .args(["-c", script])
            .arg(self.server.data_dir().join("pg_wal").join(name))
            .arg(offset)
            .arg(&piece))
        .assert_code(0);
        piece
    }

    pub(crate) fn base(&self, more: &[&str]) -> String {
        take(&self.server, &self.backups, more)
    }

    pub(crate) fn restore(&self, at: &str, data: &Path, more: &[&str]) -> Run {
        let dir = data.to_str().unwrap();
        let args = ["restore", "--data-dir", dir, "--at", at, "-q"];
        pgark(&self.server, &self.backups, args.iter().chain(more)).run()
    }

    /// Restores and starts; what the ledger holds.
    #[track_caller]
    pub(crate) fn ledger_at(&self, at: &str, more: &[&str]) -> Vec<u32> {
        let (_keep, data) = place();
        self.restore(at, &data, more).assert_code(0);
        let copy = Copy::start(self.server.major, &data);
        rows(&copy)
    }
}

pub(crate) fn rows(copy: &Copy) -> Vec<u32> {
    let text = copy.psql("SELECT n FROM ledger ORDER BY n");
    text.lines().map(|line| line.parse().unwrap()).collect()
}

#[test]
fn latest_an_lsn_a_name_and_a_time_bring_back_what_was_committed_by_then() {
    for major in [15, 17, 18] {
        let world = World::start(major);
        world.psql("INSERT INTO ledger SELECT n, 0 FROM generate_series(1, 10) n");
        world.base(&[]);
        world.psql("INSERT INTO ledger VALUES (11, 0)");
        let lsn = world.psql("SELECT pg_current_wal_insert_lsn()");
        world.psql("SELECT pg_create_restore_point('before it')");
        let xid = world.psql("INSERT INTO ledger VALUES (12, 0) RETURNING xmin");
        let time = world.psql(
            "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')",
        );
        world.psql("INSERT INTO ledger VALUES (13, 0)");
        world.switch();
        world.psql("INSERT INTO ledger VALUES (14, 0)");
        world.store_piece();
        world.psql("INSERT INTO ledger VALUES (15, 0)");
        let upto = |n: u32| (1..=n).collect::<Vec<u32>>();
        assert_eq!(world.ledger_at("latest", &[]), upto(14));
        assert_eq!(world.ledger_at(&lsn, &[]), upto(11));
        assert_eq!(world.ledger_at("before it", &[]), upto(11));
        assert_eq!(world.ledger_at(&format!("xid:{xid}"), &[]), upto(12));
        assert_eq!(
            world.ledger_at(&format!("xid:{xid}"), &["--exclusive"]),
            upto(11)
        );
        let (_keep, data) = place();
        world
            .restore(&time, &data, &["--dry-run"])
            .assert_code(0)
            .assert_says("taken for UTC");
        assert!(!data.exists());
        assert_eq!(world.ledger_at(&format!("{time}+00"), &[]), upto(12));
    }
}
