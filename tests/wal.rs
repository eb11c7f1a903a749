//! WAL streaming against real servers: what is stored equals what the server wrote, whatever happens
//! on the way.

mod failover;
mod far;
mod slot;
mod trouble;

use crate::support::{Pgark, Running, Server, Setup, TempDir, run, until};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The settings of a server whose WAL is streamed: all of it stays in pg_wal to be compared.
const SETTINGS: [&str; 2] = ["wal_keep_size=2GB", "max_wal_size=4GB"];

/// Segments of this size are enough, and quick.
const SEGMENT: usize = 16 << 20;

/// A server, a directory of backups, and a log of the stream.
pub(crate) struct Place {
    pub(crate) server: Server,
    pub(crate) dir: TempDir,
}

impl Place {
    pub(crate) fn new(major: u32) -> Place {
        Self::with(major, &SETTINGS)
    }

    pub(crate) fn with(major: u32, settings: &[&str]) -> Place {
        let setup = Setup {
            settings,
            ..Setup::default()
        };
        let server = Server::start_with(major, &setup);
        server.psql(
            "postgres",
            "CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY, filler text)",
        );
        Place {
            server,
            dir: TempDir::new(),
        }
    }

    pub(crate) fn pgark(&self, verb: &[&str]) -> Pgark {
        Pgark::new(verb)
            .server(&self.server)
            .env("DB_NAME", "postgres")
            .store(&self.backups())
    }

    pub(crate) fn backups(&self) -> PathBuf {
        self.dir.join("backups")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("stream.log")
    }

    /// What the stream said.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// `pgark wal-stream`, and the slot is there.
    pub(crate) fn stream(&self) -> Running {
        self.stream_with(|pgark| pgark)
    }

    pub(crate) fn stream_with(&self, change: impl FnOnce(Pgark) -> Pgark) -> Running {
        change(self.pgark(&["wal-stream"])).spawn_logging_to(&self.log())
    }

    /// A second directory beside the first one.
    pub(crate) fn second(&self) -> PathBuf {
        self.dir.join("second")
    }

    /// pgark with both.
    pub(crate) fn with_second(&self, pgark: Pgark) -> Pgark {
        let config = self.dir.join("two.toml");
        let store = |name: &str, dir: PathBuf| {
            format!(
                "[[store]]\nname = \"{name}\"\nbackup_dir = \"{}\"\n",
                dir.display()
            )
        };
        let text = store("near", self.backups()) + &store("second", self.second());
        std::fs::write(&config, text).unwrap();
        let pgark = pgark.env("PGARK_CONFIG", &config);
        pgark.env("WAL_FLUSH_INTERVAL", "1s")
    }

    /// The folder of this cluster's WAL in the second one.
    pub(crate) fn second_wal(&self) -> PathBuf {
        self.second()
            .join("wal")
            .join(self.wal().file_name().unwrap())
    }

    /// The folder of this cluster's WAL below a directory of backups.
    pub(crate) fn wal(&self) -> PathBuf {
        self.wal_of(&self.server)
    }

    /// The same, asked of another server of the cluster.
    fn wal_of(&self, server: &Server) -> PathBuf {
        let sql = "SELECT system_identifier FROM pg_control_system()";
        self.backups()
            .join("wal")
            .join(server.psql("postgres", sql))
    }

    /// Segments that lie open.
    fn open_files(&self) -> usize {
        let names = std::fs::read_dir(self.wal()).unwrap();
        let names = names.map(|name| name.unwrap().file_name());
        names
            .filter(|name| name.to_string_lossy().ends_with(".partial"))
            .count()
    }

    /// Writes about so many MiB of WAL.
    pub(crate) fn write(&self, mib: usize) {
        write(&self.server, mib);
    }

    pub(crate) fn lsn(&self) -> u64 {
        lsn(&self.server, "SELECT pg_current_wal_lsn()")
    }

    /// How far the slot was confirmed.
    pub(crate) fn confirmed(&self) -> u64 {
        let sql = "SELECT coalesce(max(restart_lsn), '0/0') FROM pg_replication_slots WHERE slot_name = 'pgark'";
        lsn(&self.server, sql)
    }

    /// Waits until everything that was written is confirmed.
    #[track_caller]
    pub(crate) fn caught_up(&self) -> u64 {
        let end = self.lsn();
        until("the stream to confirm", || self.confirmed() >= end);
        end
    }
}

pub(crate) fn write(server: &Server, mib: usize) {
    let sql = format!(
        "INSERT INTO t (filler) SELECT repeat(md5(i::text), 28) FROM generate_series(1, {}) i",
        mib * 1000
    );
    server.psql("postgres", &sql);
}

pub(crate) fn lsn(server: &Server, sql: &str) -> u64 {
    let text = server.psql("postgres", sql);
    let (high, low) = text.split_once('/').unwrap();
    u64::from_str_radix(high, 16).unwrap() << 32 | u64::from_str_radix(low, 16).unwrap()
}

/// The bytes of every segment that a folder holds, whole ones, open ones and pieces joined; a hole in
/// pieces fails.
pub(crate) fn stored(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    // A file that was packed since the listing is looked for anew.
    (0..100)
        .find_map(|_| try_stored(folder))
        .expect("files that stay for a moment")
}

fn try_stored(folder: &Path) -> Option<BTreeMap<String, Vec<u8>>> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with('.') && !name.ends_with(".history"))
        .collect();
    names.sort();
    let mut found: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut ends: BTreeMap<String, usize> = BTreeMap::new();
    for name in &names {
        let segment = name[..24].to_owned();
        let rest = &name[24..];
        let raw = std::fs::read(folder.join(name)).ok()?;
        let bytes = if rest == ".partial" {
            raw
        } else {
            decoded(&raw)
        };
        let offset: usize = match rest.strip_prefix(".partial.") {
            Some(rest) => rest[..10].parse().unwrap(),
            None => 0,
        };
        let end = ends.entry(segment.clone()).or_default();
        assert!(offset <= *end, "a hole before {name}");
        *end = (*end).max(offset + bytes.len());
        let whole = found.entry(segment).or_insert_with(|| vec![0; SEGMENT]);
        for (old, new) in whole[offset..].iter().zip(&bytes) {
            assert!(
                *old == 0 || *new == 0 || old == new,
                "{name} differs from another file"
            );
        }
        for (to, from) in whole[offset..].iter_mut().zip(bytes) {
            *to |= from;
        }
    }
    Some(found)
}

fn decoded(stored: &[u8]) -> Vec<u8> {
    // Several frames, and pgark's mark before them, are one stream to every decoder.
    let mut raw = Vec::new();
    let mut decoder = zstd::stream::read::Decoder::new(stored).unwrap();
    std::io::Read::read_to_end(&mut decoder, &mut raw).unwrap();
    raw
}

/// Everything that a folder holds of a server's WAL, up to `end`, is that server's pg_wal, without a
/// segment missing from `first` on.
#[track_caller]
pub(crate) fn assert_same_wal(
    folder: &Path,
    server: &Server,
    (from, end): (u64, u64),
    timeline: u32,
) {
    let stored = stored(folder);
    let mut at = from - from % SEGMENT as u64;
    while at < end {
        let name = format!(
            "{timeline:08X}{:08X}{:08X}",
            at >> 32,
            (at & 0xFFFF_FFFF) / SEGMENT as u64
        );
        let held = stored
            .get(&name)
            .unwrap_or_else(|| panic!("{name} is missing of {:?}", stored.keys()));
        let theirs = std::fs::read(server.data_dir().join("pg_wal").join(&name)).unwrap();
        let count = SEGMENT.min(usize::try_from(end - at).unwrap());
        assert!(held[..count] == theirs[..count], "{name} differs");
        at += SEGMENT as u64;
    }
}

/// The position of the oldest segment that is stored.
pub(crate) fn first_stored(folder: &Path) -> u64 {
    let name = stored(folder).into_keys().next().unwrap();
    let part = |range: std::ops::Range<usize>| u64::from_str_radix(&name[range], 16).unwrap();
    (part(8..16) << 32) + part(16..24) * SEGMENT as u64
}

/// The server's own program reads what is stored.
#[track_caller]
fn read_by_pg_waldump(place: &Place) {
    let name = std::fs::read_dir(place.wal()).unwrap().find_map(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        name.strip_suffix(".zst").map(str::to_owned)
    });
    let name = name.unwrap();
    let plain = place.dir.join(&name);
    std::fs::write(
        &plain,
        decoded(&std::fs::read(place.wal().join(format!("{name}.zst"))).unwrap()),
    )
    .unwrap();
    let mut dump = Command::new(place.server.bin().join("pg_waldump"));
    let dump = run(dump.arg("--quiet").arg(&plain));
    assert!(
        dump.code == 0 || dump.stderr.contains("error in WAL record at"),
        "{dump:?}"
    );
}

#[test]
fn stored_wal_is_the_servers_own_to_the_last_byte() {
    for major in [15, 17, 18] {
        let place = Place::new(major);
        let stream = place.stream();
        until("the slot", || place.confirmed() > 0);
        place.write(50);
        let end = place.caught_up();
        let from = first_stored(&place.wal());
        assert_same_wal(&place.wal(), &place.server, (from, end), 1);
        until("filled segments to be packed", || place.open_files() == 1);
        assert_same_wal(&place.wal(), &place.server, (from, end), 1);
        read_by_pg_waldump(&place);
        // The end comes at once, in peace, and everything is confirmed.
        let started = std::time::Instant::now();
        stream.signal("TERM");
        stream.wait().assert_code(0);
        assert!(started.elapsed().as_secs() < 5, "{}", place.said());
        // A second stream goes on where this one ended.
        let stream = place.stream();
        place.write(20);
        let end = place.caught_up();
        assert_same_wal(&place.wal(), &place.server, (from, end), 1);
        stream.signal("TERM");
        stream.wait().assert_code(0);
        let reached = place.backups().join(format!(
            ".pgark/wal_{}.json",
            place.wal().file_name().unwrap().to_string_lossy()
        ));
        let reached: serde_json::Value =
            serde_json::from_slice(&std::fs::read(reached).unwrap()).unwrap();
        assert_eq!(reached["timeline"], 1, "{reached}");
    }
}

#[test]
fn a_stream_that_is_killed_again_and_again_leaves_no_gap() {
    let kills: usize = std::env::var("PGARK_TEST_KILLS").map_or(12, |text| text.parse().unwrap());
    let place = Place::new(17);
    let (mut from, mut reserved) = (None, None);
    for number in 0..kills {
        let mut stream = place.stream();
        until("the slot", || place.confirmed() > 0);
        // Where a new slot begins, nothing was confirmed as yet.
        let reserved = *reserved.get_or_insert(place.confirmed());
        let loading = std::thread::scope(|scope| {
            let load = scope.spawn(|| place.write(5));
            // Somewhere: while it settles, connects, receives, packs.
            let micros = (number as u64 * 7919 * 131) % 700_000;
            std::thread::sleep(std::time::Duration::from_micros(micros));
            assert!(stream.is_alive(), "{}", place.said());
            stream.signal("KILL");
            stream.wait();
            load.join()
        });
        loading.unwrap();
        if from.is_none() && place.wal().is_dir() && !stored(&place.wal()).is_empty() {
            from = Some(first_stored(&place.wal()));
        }
        if let Some(from) = from.filter(|_| place.confirmed() > reserved) {
            // What was confirmed is there, at any moment.
            assert_same_wal(&place.wal(), &place.server, (from, place.confirmed()), 1);
        }
    }
    let stream = place.stream();
    let end = place.caught_up();
    assert_same_wal(&place.wal(), &place.server, (from.unwrap(), end), 1);
    stream.signal("TERM");
    stream.wait().assert_code(0);
}

#[test]
fn a_second_stream_of_the_same_cluster_is_told_who_streams() {
    let place = Place::new(15);
    let stream = place.stream();
    until("the slot", || place.confirmed() > 0);
    let second = place.pgark(&["wal-stream"]).run();
    second.assert_code(6).assert_says("locked for wal");
    stream.signal("INT");
    stream.wait().assert_code(0);
}
