//! Encrypted backups among the others: commit, catalog, remains, copies and deletion.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;

use crate::archive::crypt::{self, Crypt, Identities, IdentityFile, Recipients};
use crate::archive::{ArtefactWriter, Codec};
use crate::cancel::Token;
use crate::catalog::layout::Part;
use crate::catalog::manifest::{NamedVersion, TableCount};
use crate::catalog::{
    self, Manifest, State, begin, check_legacy, clear_remains, commit, ensure_sums, load, remove,
};
use crate::error::{Kind, Result};
use crate::progress::Progress;
use crate::store::failing::{FailingStore, Failure};
use crate::store::local::LocalStore;
use crate::store::tests::Scratch;
use crate::store::{Key, Store};
use crate::units::BackupId;
use crate::verify;

fn now() -> Timestamp {
    "2025-01-22T02:00:15Z".parse().unwrap()
}

fn id() -> BackupId {
    BackupId::dump("app", now())
}

fn keys() -> (Crypt, Identities) {
    let (recipient, secret) = crypt::generate().unwrap();
    let recipients = Recipients::parse(&recipient).unwrap();
    let IdentityFile::Open(identities) = IdentityFile::parse(&secret).unwrap() else {
        panic!("protected");
    };
    (Crypt::Age(Arc::new(recipients)), identities)
}

/// A backup as a dump makes it, without a server.
fn take(store: &dyn Store, codec: Codec, crypt: &Crypt) -> Result<Manifest> {
    let (artefact, index) = begin(store, &id(), codec, crypt.is_encrypted())?;
    let writer = ArtefactWriter::start(artefact, index, (codec, crypt), 2, Arc::default());
    let sender = writer.sender();
    for rows in 1..4 {
        let raw = format!("COPY\n{}\\.\n", "secret_row\n".repeat(rows)).into_bytes();
        let meaning = format!("{{\"k\":\"rows\",\"id\":7,\"rows\":{rows},\"head\":5,\"tail\":3}}");
        sender.send(raw, meaning)?;
    }
    let mut manifest = Manifest::new(id(), codec, now(), now());
    manifest.rows = 6;
    manifest.tables = vec![TableCount {
        id: 7,
        schema: "hidden_schema".to_owned(),
        name: "hidden_table".to_owned(),
        rows: 6,
        bytes: 66,
    }];
    manifest.extensions = vec![NamedVersion {
        name: "hidden_extension".to_owned(),
        version: "1".to_owned(),
    }];
    manifest.warnings = vec!["hidden_warning".to_owned()];
    manifest.properties = Some(serde_json::json!({"owner": "hidden_owner"}));
    if let Crypt::Age(recipients) = crypt {
        manifest.encrypted = true;
        manifest.recipients = recipients.names();
        manifest.conceal(&|json| crypt::seal(recipients, json))?;
    }
    commit(store, writer.finish()?, manifest)
}

fn open(scratch: &Scratch) -> LocalStore {
    LocalStore::open(scratch.path()).unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
    let mut names: Vec<_> = files
        .map(|e| e.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn make_old(dir: &Path) {
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    for name in names(dir) {
        let file = std::fs::File::options()
            .write(true)
            .open(dir.join(name))
            .unwrap();
        file.set_modified(then).unwrap();
    }
}

#[test]
fn encrypted_backup_shows_no_name_from_within_and_gives_all_back_to_the_identity() {
    for codec in [Codec::GZIP, Codec::ZSTD, Codec::None] {
        let (scratch, (crypt, identities)) = (Scratch::new(), keys());
        let store = open(&scratch);
        let stored = take(&store, codec, &crypt).unwrap();
        let base = format!("{}.sql{}.age", id(), codec.suffix());
        let expected = ["", ".idx", ".json", ".sha256"].map(|suffix| format!("{base}{suffix}"));
        assert_eq!(names(scratch.path()), expected);
        for name in names(scratch.path()) {
            let bytes = std::fs::read(scratch.path().join(&name)).unwrap();
            for secret in [&b"hidden_"[..], b"secret_row", b"COPY"] {
                let found = bytes.windows(secret.len()).any(|window| window == secret);
                assert!(!found, "{name} shows {}", String::from_utf8_lossy(secret));
            }
        }
        let sums = Command::new("sha256sum")
            .args(["-c", &expected[3]])
            .current_dir(scratch.path())
            .output()
            .unwrap();
        assert!(sums.status.success(), "{sums:?}");
        let listed = load(&store).unwrap().entries.remove(0);
        assert!(listed.good && listed.encrypted && listed.state == State::Taken);
        let manifest = listed.manifest.clone().unwrap();
        assert_eq!(manifest, stored);
        assert_eq!((manifest.rows, manifest.table_count), (6, Some(1)));
        let open = |sealed: &[u8]| crypt::open(&identities, sealed);
        let clear = manifest.reveal(&open).unwrap();
        assert_eq!(clear.tables[0].name, "hidden_table");
        assert_eq!(clear.warnings, ["hidden_warning"]);
        assert_eq!(clear.extensions[0].name, "hidden_extension");
        assert_eq!(clear.properties.unwrap()["owner"], "hidden_owner");
        let judge = |identities: Option<&Identities>| {
            let progress = Progress::default();
            verify::entry(&store, &listed, identities, 2, &progress, &Token::new())
        };
        // What is stored is whole: that is no more than `taken`.
        assert!(judge(None).unwrap().starts_with("only what is stored"));
        assert_eq!(load(&store).unwrap().entries[0].state, State::Taken);
        assert!(judge(Some(&identities)).unwrap().ends_with("6 rows"));
        assert_eq!(load(&store).unwrap().entries[0].state, State::Verified);
        let error = judge(Some(&keys().1)).unwrap_err();
        assert_eq!(error.kind, Kind::Usage, "{error}");
        assert_eq!(load(&store).unwrap().entries[0].state, State::Verified);
    }
}

#[test]
fn damage_of_an_encrypted_backup_is_found_without_an_identity() {
    let (scratch, (crypt, identities)) = (Scratch::new(), keys());
    let store = open(&scratch);
    let manifest = take(&store, Codec::GZIP, &crypt).unwrap();
    let files = [
        &manifest.artefact.name,
        &manifest.index.as_ref().unwrap().name,
    ];
    for name in files {
        let path = scratch.path().join(name);
        let good = std::fs::read(&path).unwrap();
        let mut flipped = good.clone();
        flipped[good.len() / 2] ^= 1;
        for bad in [&flipped[..], &good[..good.len() - 1]] {
            for known in [None, Some(&identities)] {
                std::fs::write(&path, bad).unwrap();
                let entry = load(&store).unwrap().entries.remove(0);
                let progress = Progress::default();
                let judged = verify::entry(&store, &entry, known, 2, &progress, &Token::new());
                assert_eq!(judged.unwrap_err().kind, Kind::Damage, "{name}");
                assert_eq!(load(&store).unwrap().entries[0].state, State::Failed);
                std::fs::write(&path, &good).unwrap();
                catalog::state::forget(&store, &id()).unwrap();
            }
        }
    }
}

/// The outcome of a failed verify lies beside the backup, and on the second store as well.
#[test]
fn reason_of_a_failed_verify_names_no_table_either() {
    let (scratch, (crypt, identities)) = (Scratch::new(), keys());
    let store = open(&scratch);
    take(&store, Codec::GZIP, &crypt).unwrap();
    let mut entry = load(&store).unwrap().entries.remove(0);
    let manifest = entry.manifest.take().unwrap();
    let mut wrong = manifest
        .reveal(&|sealed| crypt::open(&identities, sealed))
        .unwrap();
    wrong.tables[0].rows = 99;
    entry.manifest = Some(wrong);
    let progress = Progress::default();
    let judged = verify::entry(
        &store,
        &entry,
        Some(&identities),
        2,
        &progress,
        &Token::new(),
    );
    let error = judged.unwrap_err();
    assert_eq!(error.kind, Kind::Damage);
    assert!(
        error.fact.contains("6 rows of the table with dump id 7"),
        "{error}"
    );
    let reason = load(&store).unwrap().entries[0].reason.clone().unwrap();
    assert!(!reason.contains("hidden"), "{reason}");
}

#[test]
fn remains_of_an_encrypted_backup_are_known_by_their_mark() {
    for codec in [Codec::GZIP, Codec::None] {
        let (scratch, (crypt, _)) = (Scratch::new(), keys());
        let (store, dir) = (open(&scratch), scratch.path());
        let manifest = take(&store, codec, &crypt).unwrap();
        for suffix in [".sha256", ".json"] {
            std::fs::remove_file(dir.join(format!("{}{suffix}", manifest.artefact.name))).unwrap();
        }
        // Somebody's own, in the making.
        let theirs = "backup_app_20240101_020000.sql.gz.age";
        std::fs::write(dir.join(theirs), "age-encryption.org/v1\n-> X25519 abc\n").unwrap();
        let clear = || clear_remains(&store, crate::clock::now(), &[]).unwrap();
        assert!(clear().is_empty(), "younger than a day");
        make_old(dir);
        assert_eq!(clear().len(), 2);
        assert_eq!(names(dir), [theirs]);
    }
}

#[test]
fn failure_at_any_step_of_an_encrypted_backup_leaves_nothing_false() {
    let counting = Scratch::new();
    let (crypt, _) = keys();
    let store = FailingStore::new(Box::new(open(&counting)), Failure::None);
    take(&store, Codec::GZIP, &crypt).unwrap();
    for at in 1..=store.steps() {
        let scratch = Scratch::new();
        let store = FailingStore::new(Box::new(open(&scratch)), Failure::Error { at });
        let error = take(&store, Codec::GZIP, &crypt).unwrap_err();
        let store = open(&scratch);
        let exists = load(&store).unwrap().find(id().as_str()).is_ok();
        assert_eq!(exists, error.kind == Kind::Partial, "step {at}: {error}");
        clear_remains(&store, crate::clock::now(), &[id().to_string()]).unwrap();
        ensure_sums(&store).unwrap();
        let files = if exists { 4 } else { 0 };
        assert_eq!(names(scratch.path()).len(), files, "step {at}");
    }
}

#[test]
fn encrypted_backup_is_copied_as_it_is_and_deleted_whole() {
    let (first, second, (crypt, identities)) = (Scratch::new(), Scratch::new(), keys());
    let (from, to) = (open(&first), open(&second));
    take(&from, Codec::GZIP, &crypt).unwrap();
    let entry = load(&from).unwrap().entries.remove(0);
    // What a dead copy left is known as pgark's.
    let artefact = entry.key(Part::Artefact).unwrap();
    std::fs::copy(
        first.path().join(artefact.as_str()),
        second.path().join(artefact.as_str()),
    )
    .unwrap();
    catalog::commit::copy(&from, &to, &entry, &Token::new()).unwrap();
    assert_eq!(names(first.path()), names(second.path()));
    let there = load(&to).unwrap().entries.remove(0);
    let progress = Progress::default();
    verify::entry(&to, &there, Some(&identities), 2, &progress, &Token::new()).unwrap();
    remove(&to, &there).unwrap();
    assert!(names(second.path()).is_empty());
}

#[test]
fn encrypted_backup_that_lost_its_manifest_is_not_good() {
    let (scratch, (crypt, _)) = (Scratch::new(), keys());
    let store = open(&scratch);
    let manifest = take(&store, Codec::GZIP, &crypt).unwrap();
    store
        .delete(&Key::new(&format!("{}.json", manifest.artefact.name)).unwrap())
        .unwrap();
    let mut catalog = load(&store).unwrap();
    assert_eq!(catalog.entries[0].state, State::Legacy);
    let error = check_legacy(&store, &catalog.entries[0]).unwrap_err();
    assert_eq!(error.kind, Kind::Damage);
    assert!(error.hint.unwrap().contains("age -d -i"));
    let kind = crate::units::BackupKind::Dump;
    assert!(catalog.latest_good(&store, kind, None).is_err());
}
