//! Unfinished uploads: how a dead run's are found again.
//!
//! A multipart upload has no name in a listing of objects, only an id. So each id is noted in a
//! file before the first part is sent, and forgotten after the upload's end. What the server
//! lists itself comes on top: that needs a right of its own, and shows other machines' uploads
//! too, which may be alive; those count only a day after they began.
//!
//! Towards the callers an upload of `backup_x` is named `.backup_x.<8 hex digits>.pgark-tmp`,
//! as a temporary file of the local store is; deleting that name aborts the upload.
//!
//! A crash leaves the note, which is what it is for. A crash before the note, an id that was lost
//! with its reply, or a machine that is lost with its notes, leaves an upload that the server's
//! list shows after a day, and that a lifecycle rule of the bucket ends where the list is not
//! allowed.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::options::Place;
use crate::clock;
use crate::store::local::create_dir;
use crate::store::{Key, Object};

/// An upload that nobody noted here is shown when it is older than this.
const FOREIGN_AGE_MIN: SignedDuration = SignedDuration::from_hours(24);

/// The names that pgark uploads begin with one of these.
const OURS: [&str; 5] = ["backup_", "globals_", "base_", "wal/", ".pgark/"];

/// An upload that began and did not end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unfinished {
    /// Bucket and prefix: notes of several stores may share a directory.
    store: String,
    pub(super) key: String,
    pub(super) upload_id: String,
    pub(super) begun: Timestamp,
}

impl Unfinished {
    fn new(place: &Place, key: &str, upload_id: &str, begun: Timestamp) -> Unfinished {
        Unfinished {
            store: format!("{}/{}", place.url, place.prefix),
            key: key.to_owned(),
            upload_id: upload_id.to_owned(),
            begun,
        }
    }

    /// One that the server listed, if pgark may take it for a remain of its own.
    pub(super) fn listed(
        place: &Place,
        key: &str,
        upload_id: &str,
        begun: Timestamp,
        now: Timestamp,
    ) -> Option<Unfinished> {
        let ours = OURS.iter().any(|start| key.starts_with(start));
        let old = now.duration_since(begun) > FOREIGN_AGE_MIN;
        (ours && old).then(|| Unfinished::new(place, key, upload_id, begun))
    }

    /// As the store shows it. None when the key is none of pgark's.
    pub(super) fn object(&self) -> Option<Object> {
        let (folder, name) = match self.key.rsplit_once('/') {
            Some((folder, name)) => (format!("{folder}/"), name),
            None => (String::new(), self.key.as_str()),
        };
        let digest = hex::encode(&Sha256::digest(&self.upload_id)[..4]);
        Some(Object {
            key: Key::new(&format!("{folder}.{name}.{digest}.pgark-tmp")).ok()?,
            // How much has arrived would cost a request for each.
            bytes: 0,
            modified: self.begun,
            etag: None,
        })
    }

    fn file_name(&self) -> String {
        let whole = format!("{}\n{}\n{}", self.store, self.key, self.upload_id);
        format!("upload-{}.json", hex::encode(&Sha256::digest(whole)[..8]))
    }
}

/// The notes.
#[derive(Debug)]
pub(super) struct Notes {
    dir: Option<PathBuf>,
    place: Place,
    known: Mutex<BTreeMap<String, Unfinished>>,
}

impl Notes {
    /// Reads the notes of this store. One that cannot be read is none: it costs a remain.
    pub(super) fn open(dir: Option<&Path>, place: &Place) -> Notes {
        let mut known = BTreeMap::new();
        let mine = format!("{}/{}", place.url, place.prefix);
        let entries = dir.and_then(|dir| fs::read_dir(dir).ok());
        for entry in entries.into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if !name.starts_with("upload-") || !name.ends_with(".json") {
                continue;
            }
            let read = fs::read(entry.path()).ok();
            let note = read.and_then(|text| serde_json::from_slice::<Unfinished>(&text).ok());
            if let Some(note) = note.filter(|note| note.store == mine) {
                known.insert(note.upload_id.clone(), note);
            }
        }
        Notes {
            dir: dir.map(Path::to_owned),
            place: place.clone(),
            known: Mutex::new(known),
        }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Unfinished>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an upload that has just begun.
    ///
    /// # Errors
    /// When the note cannot be kept beyond this process; it is kept within.
    pub(super) fn add(&self, key: &str, upload_id: &str) -> std::io::Result<()> {
        let note = Unfinished::new(&self.place, key, upload_id, clock::now());
        let written = self.write(&note);
        self.known().insert(upload_id.to_owned(), note);
        written
    }

    fn write(&self, note: &Unfinished) -> std::io::Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        create_dir(dir)?;
        let path = dir.join(note.file_name());
        let temporary = path.with_extension("tmp");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(&serde_json::to_vec(note)?)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    }

    /// Forgets an upload that has ended.
    pub(super) fn forget(&self, upload_id: &str) {
        let Some(note) = self.known().remove(upload_id) else {
            return;
        };
        if let Some(dir) = &self.dir {
            // A note too many costs one request that says so.
            let _ = fs::remove_file(dir.join(note.file_name()));
        }
    }

    /// All that are noted.
    pub(super) fn all(&self) -> Vec<Unfinished> {
        self.known().values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::local::final_name;
    use crate::store::object::options::S3Options;
    use crate::store::tests::Scratch;

    fn place(bucket: &str) -> Place {
        S3Options::new(bucket)
            .place("us-east-1".to_owned())
            .unwrap()
    }

    #[test]
    fn notes_outlive_the_process_and_belong_to_one_bucket() {
        let scratch = Scratch::new();
        let dir = scratch.path().join("uploads");
        let notes = Notes::open(Some(&dir), &place("one"));
        notes.add("backup_a", "id-1").unwrap();
        notes.add("backup_b", "id/2").unwrap();
        notes.forget("id-1");
        drop(notes);
        fs::write(dir.join("upload-torn.json"), "{").unwrap();
        let notes = Notes::open(Some(&dir), &place("one"));
        let left: Vec<_> = notes.all().into_iter().map(|note| note.upload_id).collect();
        assert_eq!(left, ["id/2"]);
        assert!(Notes::open(Some(&dir), &place("two")).all().is_empty());
    }

    #[test]
    fn uploads_have_names_of_pgarks_own_pattern() {
        let note = Unfinished::new(
            &place("b"),
            "base_1/base.tar.zst",
            "id",
            Timestamp::UNIX_EPOCH,
        );
        let key = note.object().unwrap().key;
        assert!(key.as_str().starts_with("base_1/.base.tar.zst."), "{key}");
        assert_eq!(final_name(key.file_name()), Some("base.tar.zst"));
    }

    #[test]
    fn uploads_of_others_and_young_ones_are_left_alone() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let begun = |hours| now.checked_sub(SignedDuration::from_hours(hours)).unwrap();
        let shown =
            |key, hours| Unfinished::listed(&place("b"), key, "id", begun(hours), now).is_some();
        assert!(shown("backup_x_20260101_000000.sql.gz", 25));
        assert!(!shown("backup_x_20260101_000000.sql.gz", 23));
        assert!(!shown("holiday.mp4", 25));
    }
}
