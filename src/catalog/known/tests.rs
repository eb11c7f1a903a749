//! A store far away that counts its requests, and whatever can befall the copy.

use std::fs;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use jiff::SignedDuration;

use super::super::list::{State, load};
use super::super::state;
use super::*;
use crate::catalog::layout::{Outcome, Part, part_key};
use crate::store::Upload;
use crate::store::local::LocalStore;
use crate::store::tests::Scratch;
use crate::units::Codec;

const COUNT: usize = 400;

/// A directory that looks like a bucket: ETags, pages, and a counter of requests.
struct Far {
    inner: LocalStore,
    scratch: Scratch,
    requests: AtomicUsize,
    /// It shows the same ETag for everything, as no server does.
    lies: AtomicBool,
}

impl Far {
    /// With so many backups.
    fn with(count: usize) -> Far {
        let scratch = Scratch::new();
        let store = Far {
            inner: LocalStore::open(scratch.path()).unwrap(),
            scratch,
            requests: AtomicUsize::new(0),
            lies: AtomicBool::new(false),
        };
        (0..count).for_each(|number| store.add(number));
        store
    }

    fn add(&self, number: usize) {
        let first: Timestamp = "2025-01-22T02:00:00Z".parse().unwrap();
        let at = first + SignedDuration::from_secs(60 * i64::try_from(number).unwrap());
        let id = BackupId::dump("app", at);
        let mut manifest = Manifest::new(id.clone(), Codec::GZIP, at, at);
        let name = |part| part_key(&id, Codec::GZIP, false, part).unwrap();
        manifest.artefact = FileRecord {
            name: name(Part::Artefact).to_string(),
            bytes: 1,
            sha256: hex::encode(Sha256::digest(b"x")),
        };
        manifest.system_identifier = Some("7".to_owned());
        manifest.raw_bytes = number as u64;
        self.write(name(Part::Artefact).as_str(), b"x");
        self.write(name(Part::Manifest).as_str(), &manifest.to_json().unwrap());
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.scratch.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.scratch.path().join(name)).unwrap();
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.scratch.path().join(name)).unwrap()
    }

    /// The names of the manifests, oldest first.
    fn manifests(&self) -> Vec<String> {
        let objects = self.inner.list("").unwrap();
        let names = objects.iter().map(|object| object.key.to_string());
        let suffix = Part::Manifest.suffix();
        names.filter(|name| name.ends_with(suffix)).collect()
    }

    /// The catalog, and how many requests it took.
    fn load(&self) -> (Catalog, usize) {
        let before = self.requests.load(Ordering::SeqCst);
        let catalog = load(self).unwrap();
        (catalog, self.requests.load(Ordering::SeqCst) - before)
    }

    fn ask(&self) {
        self.requests.fetch_add(1, Ordering::SeqCst);
    }

    fn tagged(&self, mut object: Object) -> Object {
        if self.lies.load(Ordering::SeqCst) {
            object.etag = Some("same".to_owned());
            object.modified = Timestamp::UNIX_EPOCH;
        } else {
            let bytes = self.bytes(object.key.as_str());
            object.etag = Some(hex::encode(&Sha256::digest(bytes)[..8]));
        }
        object
    }
}

impl Store for Far {
    fn name(&self) -> &'static str {
        "far"
    }

    fn describe(&self) -> String {
        "far away".to_owned()
    }

    fn reads_at_once(&self) -> usize {
        4
    }

    fn create(&self, key: &Key, mode: Put) -> Result<Box<dyn Upload>> {
        self.inner.create(key, mode)
    }

    fn read(&self, key: &Key, range: Range<u64>) -> Result<Vec<u8>> {
        self.ask();
        self.inner.read(key, range)
    }

    fn stat(&self, key: &Key) -> Result<Option<Object>> {
        self.ask();
        let found = self.inner.stat(key)?;
        Ok(found.map(|object| self.tagged(object)))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Object>> {
        let objects = self.inner.list(prefix)?;
        (0..=objects.len() / 1000).for_each(|_| self.ask());
        Ok(objects.into_iter().map(|one| self.tagged(one)).collect())
    }

    fn folders(&self, prefix: &str) -> Result<Vec<String>> {
        self.inner.folders(prefix)
    }

    fn unfinished(&self) -> Result<Vec<Object>> {
        self.inner.unfinished()
    }

    fn delete(&self, key: &Key) -> Result<bool> {
        self.inner.delete(key)
    }
}

/// What lists, retention and status see.
fn seen(catalog: &Catalog) -> Vec<String> {
    let line = |entry: &Entry| {
        format!(
            "{} {} {} {:?} {} {:?} {:?} {:?} {:?} {} {:?}",
            entry.id,
            entry.state,
            entry.good,
            entry.reason,
            entry.unread,
            entry.database,
            entry.finished_at,
            entry.raw_bytes,
            entry.sha256,
            entry.bytes,
            entry
                .summary
                .as_ref()
                .map(|summary| &summary.system_identifier),
        )
    };
    catalog.entries.iter().map(line).collect()
}

/// The catalog of the bare directory: every manifest read.
#[track_caller]
fn assert_true(store: &Far) -> usize {
    let (catalog, requests) = store.load();
    assert_eq!(seen(&catalog), seen(&load(&store.inner).unwrap()));
    requests
}

#[test]
fn the_second_catalog_takes_no_request_for_each() {
    let store = Far::with(COUNT);
    let (first, requests) = store.load();
    assert_eq!(first.entries.len(), COUNT);
    assert!(first.entries.iter().all(|entry| entry.good));
    // One for each and not two: the listing says how long a manifest is.
    assert!((COUNT..COUNT + 5).contains(&requests), "{requests}");
    save(&store, &first).unwrap();
    let (second, requests) = store.load();
    assert_eq!(seen(&second), seen(&first));
    assert!(requests <= 4, "{requests}: two listings, a look and a read");
    assert!(second.entries.iter().all(|entry| entry.manifest.is_none()));
    // What a run adds is read, and nothing else.
    store.add(COUNT);
    store.add(COUNT + 1);
    assert_eq!(assert_true(&store), requests + 2);
    let mut entry = second.entries[0].clone();
    entry.complete(&store);
    assert_eq!(entry.manifest.as_ref().map(|m| &m.id), Some(&entry.id));
}

#[test]
fn whatever_befell_a_manifest_since_is_seen() {
    let store = Far::with(COUNT);
    save(&store, &store.load().0).unwrap();
    let names = store.manifests();
    let artefact = |name: &str| name.strip_suffix(".json").unwrap().to_owned();
    store.remove(&names[0]);
    // As long as before, with another number in it: its check does not hold.
    let mut bytes = store.bytes(&names[1]);
    let at = bytes.iter().rposition(u8::is_ascii_digit).unwrap();
    bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
    store.write(&names[1], &bytes);
    store.write(&names[2], &store.bytes(&names[3]));
    store.write(&names[4], b"{\"format\": 99}");
    store.remove(&artefact(&names[5]));
    store.write(&artefact(&names[6]), b"longer");
    let id = |name: &str| BackupId::parse(name.strip_suffix(".sql.gz.json").unwrap()).unwrap();
    let now = crate::clock::now();
    state::record(&store, &id(&names[7]), Outcome::Verified, now, None).unwrap();
    state::record(&store, &id(&names[8]), Outcome::Failed, now, Some("rotten")).unwrap();
    let requests = assert_true(&store);
    assert!(requests < 12, "{requests}");
    let (catalog, _) = store.load();
    let state = |name: &str| {
        let mut entries = catalog.entries.iter();
        entries
            .find(|entry| entry.id == id(name))
            .map(|entry| entry.state)
    };
    assert_eq!(state(&names[0]), None);
    for failed in [1, 2, 4, 6, 8] {
        assert_eq!(state(&names[failed]), Some(State::Failed), "{failed}");
    }
    assert_eq!(state(&names[5]), Some(State::Missing));
    assert_eq!(state(&names[7]), Some(State::Verified));
    // Written from that, it says nothing of those that it could not read.
    save(&store, &catalog).unwrap();
    assert_true(&store);
}

#[test]
fn a_copy_that_is_damaged_or_foreign_costs_time_and_no_backup() {
    let store = Far::with(COUNT);
    save(&store, &store.load().0).unwrap();
    let good = store.bytes(CATALOG);
    let quick = assert_true(&store);
    let raw = zstd::stream::decode_all(good.as_slice()).unwrap();
    let pack = |raw: &[u8]| zstd::stream::encode_all(raw, 1).unwrap();
    let text = String::from_utf8(raw.clone()).unwrap();
    let head = Head {
        pgark_catalog: FORMAT,
        sha256: hex::encode(Sha256::digest(b"[]\n{}")),
    };
    let mut bad = vec![
        vec![],
        b"not zstd".to_vec(),
        good[..good.len() / 2].to_vec(),
        pack(b""),
        pack(b"{}\n"),
        pack(
            text.replacen("\"pgark_catalog\":1", "\"pgark_catalog\":2", 1)
                .as_bytes(),
        ),
        // Every line true, one changed: the head knows.
        pack(
            text.replacen("\"raw_bytes\":7,", "\"raw_bytes\":8,", 1)
                .as_bytes(),
        ),
        // A true check over lines that are none.
        pack(format!("{}\n[]\n{{}}", serde_json::to_string(&head).unwrap()).as_bytes()),
    ];
    for at in (0..good.len()).step_by(good.len() / 20) {
        let mut flipped = good.clone();
        flipped[at] ^= 0x10;
        bad.push(flipped);
    }
    for bytes in bad {
        store.write(CATALOG, &bytes);
        let requests = assert_true(&store);
        // A flip in what zstd does not use changes nothing.
        assert!(requests >= COUNT || requests == quick, "{requests}");
    }
    let huge = fs::File::create(store.scratch.path().join(CATALOG)).unwrap();
    huge.set_len(STORED_BYTES_MAX + 1).unwrap();
    store.lies.store(true, Ordering::SeqCst);
    let before = store.requests.load(Ordering::SeqCst);
    assert!(read(&store).is_none());
    let requests = store.requests.load(Ordering::SeqCst) - before;
    assert_eq!(requests, 1, "looked at, and not read");
}

#[test]
fn a_bomb_is_not_unpacked() {
    let max = 1 << 20;
    // Blanks between no lines at all: true, but for its size.
    for (count, good) in [(max - 200, true), (max, false)] {
        let body = vec![b' '; count];
        let head = Head {
            pgark_catalog: FORMAT,
            sha256: hex::encode(Sha256::digest(&body)),
        };
        let head = serde_json::to_string(&head).unwrap() + "\n";
        let raw = [head.as_bytes(), &body].concat();
        let packed = zstd::stream::encode_all(raw.as_slice(), 1).unwrap();
        assert!(packed.len() < 1000);
        assert_eq!(parse(&packed, max as u64).is_some(), good, "{count}");
    }
}

/// What another machine committed meanwhile is missing in the copy that is written last.
#[test]
fn of_two_writers_none_hides_a_backup() {
    let store = Far::with(COUNT);
    let (of_one, _) = store.load();
    (COUNT..COUNT + 5).for_each(|number| store.add(number));
    save(&store, &store.load().0).unwrap();
    save(&store, &of_one).unwrap();
    let requests = assert_true(&store);
    assert!(requests < 15, "{requests}");
}

/// Even if a server showed a changed manifest as the same, who uses the backup reads it.
#[test]
fn a_backup_is_never_used_by_its_summary() {
    let store = Far::with(COUNT);
    store.lies.store(true, Ordering::SeqCst);
    save(&store, &store.load().0).unwrap();
    let names = store.manifests();
    let mut bytes = store.bytes(&names[COUNT - 1]);
    bytes[20] ^= 1;
    store.write(&names[COUNT - 1], &bytes);
    let (mut catalog, requests) = store.load();
    assert!(requests <= 4);
    assert!(catalog.entries[0].good, "it looks the same");
    let (latest, skipped) = catalog
        .latest_good(&store, BackupKind::Dump, Some("app"))
        .unwrap();
    assert_eq!(latest.id, catalog.entries[1].id);
    assert!(latest.manifest.is_some());
    assert_eq!(skipped.len(), 1);
    assert_eq!(skipped[0].state, State::Failed, "{:?}", skipped[0].reason);
    assert!(!skipped[0].unread);
}

#[test]
fn what_costs_nothing_to_read_has_no_copy() {
    let few = Far::with(MANY - 1);
    save(&few, &few.load().0).unwrap();
    assert!(!few.scratch.path().join(CATALOG).exists());
    // Nor has what shows no ETag: a changed manifest might look the same.
    let near = Far::with(COUNT);
    let (mut catalog, _) = near.load();
    for entry in &mut catalog.entries {
        entry.summary.as_mut().unwrap().file.etag = None;
    }
    save(&near, &catalog).unwrap();
    assert!(!near.scratch.path().join(CATALOG).exists());
    save(&near.inner, &load(&near.inner).unwrap()).unwrap();
    assert!(!near.scratch.path().join(CATALOG).exists());
}
