//! The tests that decide about recovery to any second: the real program streams WAL from real
//! servers under load, and what it restores is compared with what the WAL itself says.
//!
//! `PGARK_LEDGER`, `PGARK_CRASHES` raise the counts (CONTRIBUTING.md has the command for the full ones).

use crate::second_store::with_bucket;
use crate::support::garage::Garage;
use crate::support::site::first_id;
use crate::support::{Pgark, Run, Running, Server, Setup, TempDir, until};
use pgark::archive::wal::{Event, Record, Scanner};
use pgark::units::{Lsn, SegmentName, SegmentSize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

mod crash;
mod cut;
mod disaster;
mod failover;
mod ledger;
mod window;

/// Where the WAL goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum To {
    /// A directory.
    Local,
    /// A bucket and nothing else.
    Bucket,
    /// A directory, encrypted.
    Sealed,
}

/// Settings of a server whose WAL is streamed.
const SETTINGS: [&str; 5] = [
    "wal_keep_size=2GB",
    "track_commit_timestamp=on",
    "summarize_wal=on",
    "max_slot_wal_keep_size=4GB",
    "autovacuum=off",
];

/// A server, a place for its WAL, and pgark between them.
pub(crate) struct Stage {
    pub(crate) server: Server,
    pub(crate) dir: TempDir,
    pub(crate) garage: Option<Garage>,
    key: Option<(String, PathBuf)>,
    streams: u32,
}

impl Stage {
    pub(crate) fn new(major: u32, to: To) -> Stage {
        let settings: Vec<&str> = SETTINGS
            .into_iter()
            // Known from 17 on.
            .filter(|setting| major >= 17 || !setting.starts_with("summarize_wal"))
            .collect();
        let server = Server::start_with(
            major,
            &Setup {
                settings: &settings,
                ..Setup::default()
            },
        );
        let dir = TempDir::new();
        let key = (to == To::Sealed).then(|| {
            let path = dir.join("identity");
            let path_text = path.display().to_string();
            let made = Pgark::new(["keygen", "--out", &path_text])
                .run()
                .assert_code(0);
            let recipient = made
                .stdout
                .split_whitespace()
                .find(|word| word.starts_with("age1"))
                .unwrap();
            (recipient.to_owned(), path)
        });
        let stage = Stage {
            server,
            dir,
            garage: (to == To::Bucket).then(Garage::start),
            key,
            streams: 0,
        };
        stage.server.psql(
            "postgres",
            "CREATE TABLE ledger (n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, writer int, \
             xid xid8 DEFAULT pg_current_xact_id(), note text)",
        );
        stage
    }

    /// pgark in the place of this stage.
    pub(crate) fn pgark<A: AsRef<std::ffi::OsStr>>(
        &self,
        args: impl IntoIterator<Item = A>,
    ) -> Pgark {
        let pgark = Pgark::new(args)
            .server(&self.server)
            .env("BACKUP_JOBS", "2")
            .env("BACKUP_RETENTION_DAYS", "36500")
            .env("WAL_STREAMING", "on")
            .env("WAL_FLUSH_INTERVAL", "1s");
        let pgark = match &self.key {
            Some((recipient, identity)) => pgark
                .env("BACKUP_ENCRYPT_RECIPIENTS", recipient)
                .env("BACKUP_IDENTITY_FILE", identity),
            None => pgark,
        };
        match &self.garage {
            Some(garage) => with_bucket(pgark, garage.port)
                .env("BACKUP_DIR", "none")
                .env("PGARK_STATE_DIR", self.dir.join("state")),
            None => pgark.store(&self.store()),
        }
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    /// Lets the restored server's user read the store, which is 0700 and the tests' user's.
    pub(crate) fn open_to_readers(&self) {
        if self.store().is_dir() {
            let mut chmod = Command::new("chmod");
            crate::support::run(chmod.args(["-R", "a+rX"]).arg(self.store())).assert_code(0);
        }
    }

    /// Streams WAL until it is dropped or told to end.
    pub(crate) fn stream(&mut self) -> Stream {
        self.streams += 1;
        let log = self.dir.join(&format!("stream{}.log", self.streams));
        let running = self.pgark(["wal-stream"]).spawn_logging_to(&log);
        Stream {
            running: Some(running),
            log,
        }
    }

    /// A base backup that must succeed; its id.
    #[track_caller]
    pub(crate) fn base(&self, more: &[&str]) -> String {
        let args = ["backup", "--base", "-q"].iter().chain(more);
        first_id(&self.pgark(args).run().assert_code(0).stdout)
    }

    /// Waits until everything that the server has flushed by now is durable in the store.
    #[track_caller]
    pub(crate) fn caught_up(server: &Server) {
        // A record behind everything, and flushed.
        server.psql(
            "postgres",
            "SELECT pg_logical_emit_message(true, 'pgark', 'x')",
        );
        let flushed = server.psql("postgres", "SELECT pg_current_wal_flush_lsn()");
        let sql =
            format!("SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= '{flushed}'");
        until("the WAL to be stored", || {
            server.psql("postgres", &sql) != "0"
        });
    }

    /// Restores to a moment; the directory belongs to the servers' user.
    pub(crate) fn restore_to(&self, at: &str, more: &[&str]) -> (TempDir, PathBuf, Run) {
        let place = TempDir::new();
        place.give_to_postgres();
        let data = place.join("data");
        let path = data.display().to_string();
        let args = ["restore", "--data-dir", &path, "--at", at, "-q"];
        let run = self.pgark(args.iter().chain(more)).run();
        (place, data, run)
    }

    /// The rows of the ledger after a restore to that moment.
    #[track_caller]
    pub(crate) fn rows_at(&self, at: &str, more: &[&str]) -> Vec<u64> {
        let (_place, data, run) = self.restore_to(at, more);
        run.assert_code(0);
        let copy = crate::base::Copy::start(self.server.major, &data);
        rows(&copy.psql("SELECT n FROM ledger ORDER BY n"))
    }
}

pub(crate) fn rows(text: &str) -> Vec<u64> {
    text.lines().map(|line| line.parse().unwrap()).collect()
}

/// A running `wal-stream`, killed on drop.
pub(crate) struct Stream {
    running: Option<Running>,
    log: PathBuf,
}

impl Stream {
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        self.running.as_mut().is_some_and(Running::is_alive)
    }

    /// Kills it as a crash would.
    pub(crate) fn kill(mut self) {
        self.end("KILL");
    }

    /// Asks it to end, which it does in peace.
    #[track_caller]
    pub(crate) fn stop(mut self) {
        let log = self.log();
        let run = self.end("TERM").unwrap();
        assert_eq!(run.code, 0, "{log}");
    }

    fn end(&mut self, signal: &str) -> Option<Run> {
        let mut running = self.running.take()?;
        if running.is_alive() {
            running.signal(signal);
        }
        Some(running.wait())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.end("KILL");
    }
}

/// Sessions that write into the ledger until they are dropped.
pub(crate) struct Writers {
    _sessions: Vec<crate::support::Session>,
}

impl Writers {
    pub(crate) fn start(server: &Server, count: u32) -> Writers {
        let one = |writer| {
            let sql = format!(
                "DO $$ BEGIN LOOP INSERT INTO ledger (writer, note) VALUES ({writer}, repeat(md5(random()::text), 20)); \
                 IF random() < 0.1 THEN ROLLBACK; ELSE COMMIT; END IF; PERFORM pg_sleep(random() * 0.01); END LOOP; END $$"
            );
            crate::support::Session::start(server, "postgres", &sql)
        };
        Writers {
            _sessions: (0..count).map(one).collect(),
        }
    }
}

/// What the WAL in the stage's server says: every end of a transaction, in order.
pub(crate) fn events(server: &Server, from: Lsn) -> Vec<Record> {
    let size = SegmentSize::DEFAULT;
    let mut found = Vec::new();
    let wal = server.data_dir().join("pg_wal");
    let timeline = server.psql(
        "postgres",
        "SELECT timeline_id FROM pg_control_checkpoint()",
    );
    let mut name = SegmentName::holding(timeline.parse().unwrap(), from, size);
    let mut scanner = Scanner::new(from.segment_start(size), size);
    while let Ok(bytes) = std::fs::read(wal.join(name.to_string())) {
        scanner.feed(&bytes, &mut |record| found.push(record));
        name = name.next(size);
    }
    found
}

/// The rows of the ledger by the transaction that wrote them.
pub(crate) fn rows_by_xid(server: &Server) -> BTreeMap<u32, Vec<u64>> {
    let mut found: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for line in server
        .psql("postgres", "SELECT xid, n FROM ledger ORDER BY n")
        .lines()
    {
        let (xid, n) = line.split_once('|').unwrap();
        found
            .entry(xid.parse().unwrap())
            .or_default()
            .push(n.parse().unwrap());
    }
    found
}

/// The rows of these transactions that were committed.
pub(crate) fn committed<'a>(
    events: impl Iterator<Item = &'a Record>,
    by_xid: &BTreeMap<u32, Vec<u64>>,
) -> Vec<u64> {
    let mut rows: Vec<u64> = events
        .filter_map(|record| match record.event {
            Event::Commit { xid, .. } => by_xid.get(&xid),
            _ => None,
        })
        .flatten()
        .copied()
        .collect();
    rows.sort_unstable();
    rows
}

/// Every segment of the local store is, byte for byte, the server's own.
#[track_caller]
pub(crate) fn equals_the_servers(store: &Path, server: &Server) -> usize {
    let wal = store.join("wal");
    let folder = std::fs::read_dir(&wal)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let mut compared = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let Some(segment) = name.strip_suffix(".zst").filter(|name| name.len() == 24) else {
            continue;
        };
        let Ok(expected) = std::fs::read(server.data_dir().join("pg_wal").join(segment)) else {
            continue;
        };
        let mut unpack = Command::new("zstd");
        let stored = unpack.args(["-dcq"]).arg(&path).output().unwrap();
        assert!(
            stored.status.success() && stored.stdout == expected,
            "{segment}"
        );
        compared += 1;
    }
    compared
}

/// A count that an environment variable raises.
pub(crate) fn count(variable: &str, usual: u32) -> u32 {
    std::env::var(variable).map_or(usual, |text| text.parse().unwrap())
}

/// Random enough for tests: xorshift, seeded by the clock and told when a test fails.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new() -> Dice {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let seed = u64::from(now.subsec_nanos()) << 20 | 1;
        eprintln!("seed {seed}");
        Dice(seed)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % end as u64).unwrap()
    }
}
