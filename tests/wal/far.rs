//! Buckets and encrypted stores: pieces within the interval, and outages that lose nothing.

use super::{Place, assert_same_wal, first_stored, lsn};
use crate::second_store::with_bucket;
use crate::support::garage::{ACCESS_KEY, BUCKET, Garage, REGION, SECRET_KEY};
use crate::support::gate::Gate;
use crate::support::wire::Wire;
use crate::support::{Pgark, Running, TempDir, run, until};
use pgark::cancel::Token;
use pgark::store::object::{Keys, S3Options, S3Store, Secret};
use pgark::store::{Key, Store as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A second, so that nobody waits.
fn quick(pgark: Pgark, port: u16) -> Pgark {
    with_bucket(pgark, port).env("WAL_FLUSH_INTERVAL", "1s")
}

/// The bucket's WAL of this cluster as files.
fn fetched(garage: &Garage, place: &Place, into: &Path) -> PathBuf {
    let system = place.wal().file_name().unwrap().to_owned();
    let prefix = format!("wal/{}/", system.to_string_lossy());
    let folder = into.join(&system);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let store = bucket(garage);
    for object in store.list(&prefix).unwrap() {
        // Part of a whole segment by now, perhaps.
        if let Some(bytes) = pgark::store::get(&store, &object.key).unwrap() {
            std::fs::write(folder.join(object.key.file_name()), bytes).unwrap();
        }
    }
    folder
}

/// The bucket, by pgark's own client.
fn bucket(garage: &Garage) -> S3Store {
    let mut options = S3Options::new(BUCKET);
    options.region = Some(REGION.to_owned());
    options.endpoint = Some(garage.endpoint());
    options.allow_http = true;
    "backups/".clone_into(&mut options.prefix);
    options.keys = Some(Keys {
        access_key_id: ACCESS_KEY.to_owned(),
        secret_access_key: Secret::new(SECRET_KEY),
        session_token: None,
    });
    S3Store::open(&options, &|_| None, &Token::new()).unwrap()
}

#[test]
fn a_bucket_beside_the_directory_has_everything_within_the_interval() {
    let (place, garage, dir) = (Place::new(17), Garage::start(), TempDir::new());
    let stream = place.stream_with(|pgark| quick(pgark, garage.port));
    until("the slot", || place.confirmed() > 0);
    place.write(40);
    let end = place.caught_up();
    let reach = |end: u64| {
        let folder = fetched(&garage, &place, dir.path());
        let from = first_stored(&folder);
        (folder, (from, end))
    };
    let written = Instant::now();
    let name = reached_key(&place);
    until("the bucket to follow", || reached(&garage, &name) >= end);
    assert!(
        written.elapsed() < Duration::from_secs(10),
        "{:?}",
        written.elapsed()
    );
    let (folder, range) = reach(end);
    assert_same_wal(&folder, &place.server, range, 1);
    // A little more is one more piece.
    place
        .server
        .psql("postgres", "INSERT INTO t (filler) VALUES ('x')");
    let end = place.caught_up();
    until("the piece", || reached(&garage, &name) >= end);
    let (folder, range) = reach(end);
    assert_same_wal(&folder, &place.server, range, 1);
    stream.signal("TERM");
    stream.wait().assert_code(0);
}

fn reached_key(place: &Place) -> String {
    format!(
        ".pgark/wal_{}.json",
        place.wal().file_name().unwrap().to_string_lossy()
    )
}

fn reached(garage: &Garage, key: &str) -> u64 {
    let key = Key::new(key).unwrap();
    let Some(json) = pgark::store::get(&bucket(garage), &key).unwrap() else {
        return 0;
    };
    noted(&json)
}

/// The position in a note of how far a stream has come.
fn noted(json: &[u8]) -> u64 {
    let json: serde_json::Value = serde_json::from_slice(json).unwrap();
    let (high, low) = json["lsn"].as_str().unwrap().split_once('/').unwrap();
    u64::from_str_radix(high, 16).unwrap() << 32 | u64::from_str_radix(low, 16).unwrap()
}

#[test]
fn a_dead_bucket_never_holds_up_the_directory_and_catches_up() {
    let (place, garage, dir) = (Place::new(15), Garage::start(), TempDir::new());
    let gate = Gate::to(garage.port);
    let stream = place.stream_with(|pgark| quick(pgark, gate.port));
    until("the slot", || place.confirmed() > 0);
    place.write(20);
    let key = reached_key(&place);
    let end = place.caught_up();
    until("the bucket to follow", || reached(&garage, &key) >= end);
    gate.close();
    place.write(60);
    let end = place.caught_up();
    until("a warning", || {
        place.said().contains("store s3 takes no WAL now")
    });
    gate.open();
    until("the bucket to catch up", || reached(&garage, &key) >= end);
    let folder = fetched(&garage, &place, dir.path());
    assert_same_wal(&folder, &place.server, (first_stored(&folder), end), 1);
    stream.signal("TERM");
    stream.wait().assert_code(0);
    assert_eq!(
        place.said().matches("takes no WAL now").count(),
        1,
        "{}",
        place.said()
    );
}

/// Between pgark and its bucket nothing arrives any more, and no connection ends: the server keeps what is not
/// stored. The server is on pgark's own host, by its socket.
#[test]
fn a_wire_to_the_bucket_that_is_cut_for_a_while_is_caught_up_with() {
    let (place, garage, wire) = (Place::new(17), Garage::start(), Wire::new());
    let (dir, way) = (TempDir::new(), wire.way_to(garage.port));
    let endpoint = format!("http://{}:{}", wire.address, way.port);
    let stream = place.stream_with(|pgark| {
        quick(pgark, way.port)
            .env("S3_ENDPOINT", &endpoint)
            .env("DB_HOST", place.server.socket_dir())
            .env("BACKUP_DIR", "none")
            .env("PGARK_STATE_DIR", dir.join("state"))
            .within(&wire.namespace)
    });
    until("the slot", || place.confirmed() > 0);
    place.write(20);
    place.caught_up();
    wire.cut();
    place.write(30);
    std::thread::sleep(Duration::from_secs(6));
    let confirmed = place.confirmed();
    assert!(confirmed < place.lsn());
    let folder = fetched(&garage, &place, dir.path());
    assert_same_wal(
        &folder,
        &place.server,
        (first_stored(&folder), confirmed),
        1,
    );
    wire.mend();
    let end = place.caught_up();
    let folder = fetched(&garage, &place, dir.path());
    assert_same_wal(&folder, &place.server, (first_stored(&folder), end), 1);
    stream.signal("TERM");
    stream.wait().assert_code(0);
}

/// A server whose WAL goes into a bucket alone, through a gate.
struct Alone {
    place: Place,
    garage: Garage,
    gate: Gate,
    dir: TempDir,
}

impl Alone {
    fn new() -> Alone {
        let garage = Garage::start();
        Alone {
            place: Place::new(17),
            gate: Gate::to(garage.port),
            garage,
            dir: TempDir::new(),
        }
    }

    /// A stream, and the slot is there.
    fn stream(&self) -> Running {
        let stream = self.place.stream_with(|pgark| {
            quick(pgark, self.gate.port)
                .env("BACKUP_DIR", "none")
                .env("PGARK_STATE_DIR", self.dir.join("state"))
        });
        until("the slot", || self.place.confirmed() > 0);
        stream
    }

    /// What the bucket holds.
    fn fetched(&self) -> PathBuf {
        fetched(&self.garage, &self.place, self.dir.path())
    }
}

#[test]
fn with_a_bucket_alone_only_what_it_holds_is_confirmed() {
    let alone = Alone::new();
    let (place, gate) = (&alone.place, &alone.gate);
    let stream = alone.stream();
    place.write(40);
    let end = place.caught_up();
    let folder = alone.fetched();
    let from = first_stored(&folder);
    assert_same_wal(&folder, &place.server, (from, end), 1);
    // Away: the server keeps what is not stored.
    gate.close();
    place.write(100);
    until("a warning", || place.said().contains("takes no WAL now"));
    let confirmed = place.confirmed();
    // Nobody waits long for a bucket that is away.
    let asked = Instant::now();
    stream.signal("TERM");
    stream.wait().assert_code(0);
    assert!(asked.elapsed() < Duration::from_secs(6), "{}", place.said());
    assert_eq!(place.confirmed(), confirmed);
    let folder = alone.fetched();
    assert_same_wal(&folder, &place.server, (from, confirmed), 1);
    gate.open();
    let stream = alone.stream();
    let end = place.caught_up();
    // The end stores and confirms what has just come.
    place
        .server
        .psql("postgres", "INSERT INTO t (filler) VALUES ('x')");
    let last = place.lsn();
    stream.signal("TERM");
    stream.wait().assert_code(0);
    assert!(place.confirmed() >= end);
    let folder = alone.fetched();
    assert_same_wal(
        &folder,
        &place.server,
        (from, place.confirmed().min(last)),
        1,
    );
}

#[test]
fn a_new_connection_confirms_nothing_that_still_waits_for_the_bucket() {
    let alone = Alone::new();
    let (place, gate) = (&alone.place, &alone.gate);
    let stream = alone.stream();
    place.write(1);
    place.caught_up();
    let from = first_stored(&alone.fetched());
    gate.close();
    // Several segments wait in memory, fewer than the backlog may have.
    place.write(40);
    let sent = "SELECT coalesce(max(sent_lsn), '0/0') FROM pg_stat_replication";
    let end = place.lsn();
    until("all of it to be sent", || lsn(&place.server, sent) >= end);
    until("a warning", || place.said().contains("takes no WAL now"));
    let confirmed = place.confirmed();
    let sender = || {
        let sql = "SELECT coalesce(max(active_pid), 0) FROM pg_replication_slots";
        place.server.psql("postgres", sql)
    };
    let before = sender();
    let kill = format!("SELECT pg_terminate_backend({before})");
    place.server.psql("postgres", &kill);
    until("another connection", || {
        ![&before, "0"].contains(&sender().as_str())
    });
    place.write(1);
    let end = place.lsn();
    until("all of it to be sent again", || {
        lsn(&place.server, sent) >= end
    });
    // A status is sent every two seconds.
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(place.confirmed(), confirmed, "{}", place.said());
    stream.signal("KILL");
    stream.wait();
    gate.open();
    let stream = alone.stream();
    let end = place.caught_up();
    stream.signal("TERM");
    stream.wait().assert_code(0);
    assert!(!place.said().contains("a gap"), "{}", place.said());
    let folder = alone.fetched();
    assert_same_wal(&folder, &place.server, (from, end), 1);
}

/// A stream for recipients, and the key that opens what it stored.
struct Sealed {
    place: Place,
    recipient: String,
    key: PathBuf,
}

impl Sealed {
    fn new() -> Sealed {
        let place = Place::new(17);
        let key = place.dir.join("key");
        let made = Pgark::new(["keygen", "--out", key.to_str().unwrap()]).run();
        let made = made.assert_code(0).stdout;
        let mut recipient = made.split_whitespace();
        let recipient = recipient.find(|word| word.starts_with("age1"));
        Sealed {
            recipient: recipient.unwrap().to_owned(),
            place,
            key,
        }
    }

    fn stream(&self, change: impl FnOnce(Pgark) -> Pgark) -> Running {
        let sealed = |pgark: Pgark| pgark.env("BACKUP_ENCRYPT_RECIPIENTS", &self.recipient);
        self.place.stream_with(|pgark| change(sealed(pgark)))
    }

    /// What is stored up to `end` is the server's.
    #[track_caller]
    fn assert_same(&self, end: u64) {
        let open = self.place.dir.join("open");
        let _ = std::fs::remove_dir_all(&open);
        std::fs::create_dir(&open).unwrap();
        for entry in std::fs::read_dir(self.place.wal()).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if name.starts_with('.') {
                continue;
            }
            let name = name.strip_suffix(".age");
            let name = name.unwrap_or_else(|| panic!("{} is not encrypted", path.display()));
            let mut age = Command::new("age");
            age.arg("-d").arg("-i").arg(&self.key);
            run(age.arg("-o").arg(open.join(name)).arg(&path)).assert_code(0);
        }
        assert_same_wal(&open, &self.place.server, (first_stored(&open), end), 1);
    }
}

#[test]
fn an_encrypted_directory_never_holds_wal_as_it_is() {
    let sealed = Sealed::new();
    let place = &sealed.place;
    let stream = sealed.stream(|pgark| pgark);
    until("the slot", || place.confirmed() > 0);
    place.write(40);
    let end = place.caught_up();
    stream.signal("KILL");
    stream.wait();
    sealed.assert_same(end);
    let stream = sealed.stream(|pgark| pgark);
    place
        .server
        .psql("postgres", "INSERT INTO t (filler) VALUES ('x')");
    place.caught_up();
    stream.signal("TERM");
    stream.wait().assert_code(0);
    sealed.assert_same(place.confirmed());
}

#[test]
fn an_encrypted_store_that_fails_or_dies_at_any_step_loses_nothing_confirmed() {
    let sealed = Sealed::new();
    let place = &sealed.place;
    let first = sealed.stream(|pgark| pgark);
    until("the slot", || place.confirmed() > 0);
    place.write(1);
    place.caught_up();
    first.signal("KILL");
    first.wait();
    for how in ["error", "abort"] {
        for step in 1..=9 {
            let at = format!("{how}:{step}");
            let mut stream = sealed.stream(|pgark| pgark.env("PGARK_FAIL_AT", at));
            place.write(5);
            let end = place.lsn();
            until("the stream", || {
                place.confirmed() >= end || !stream.is_alive()
            });
            if stream.is_alive() {
                stream.signal("TERM");
            }
            stream.wait();
            sealed.assert_same(place.confirmed());
        }
    }
}

#[test]
fn a_second_directory_that_was_away_catches_up() {
    let place = Place::new(17);
    let stream = place.stream_with(|pgark| place.with_second(pgark));
    until("the slot", || place.confirmed() > 0);
    place.write(20);
    let folder = place.second_wal();
    let system = folder.file_name().unwrap().to_string_lossy().into_owned();
    let note = place.second().join(format!(".pgark/wal_{system}.json"));
    let note = || std::fs::read(&note).map_or(0, |json| noted(&json));
    let end = place.caught_up();
    until("the second one to follow", || note() >= end);
    // Its place is taken by something else.
    let away = place.dir.join("away");
    std::fs::rename(&folder, &away).unwrap();
    std::fs::write(&folder, "").unwrap();
    place.write(40);
    let end = place.caught_up();
    until("a warning", || {
        place.said().contains("store second takes no WAL now")
    });
    std::fs::remove_file(&folder).unwrap();
    std::fs::rename(&away, &folder).unwrap();
    until("the second one to catch up", || note() >= end);
    let from = first_stored(&folder);
    assert_same_wal(&folder, &place.server, (from, end), 1);
    stream.signal("TERM");
    stream.wait().assert_code(0);
}
