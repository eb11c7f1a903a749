//! Segments out of a store: whole, in pieces, open, damaged; and files for the other tests here.

use super::*;
use crate::archive::{Codec, Crypt};
use crate::catalog::layout::wal_key;
use crate::catalog::wal::WalArchive;
use crate::error::Kind;
use crate::store::local::LocalStore;
use crate::store::tests::Scratch;
use crate::store::{Put, put};

pub(crate) const SYSTEM: SystemId = SystemId(77);
pub(crate) const MIB: usize = 1 << 20;

pub(crate) fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

pub(crate) fn name(number: u64) -> SegmentName {
    SegmentName::holding(
        crate::units::Timeline::FIRST,
        crate::units::Lsn(number << 20),
        size(),
    )
}

/// A segment whose first page has its header, with some bytes in it and zeros behind.
pub(crate) fn segment(number: u64, system: SystemId) -> Vec<u8> {
    let mut bytes = vec![0; MIB];
    bytes[..8].copy_from_slice(&[0x10, 0xD1, 2, 0, 1, 0, 0, 0]);
    bytes[8..16].copy_from_slice(&(number << 20).to_le_bytes());
    bytes[24..32].copy_from_slice(&system.0.to_le_bytes());
    bytes[32..36].copy_from_slice(&(1_u32 << 20).to_le_bytes());
    bytes[36..40].copy_from_slice(&8192_u32.to_le_bytes());
    bytes[100..8000].fill(u8::try_from(number).unwrap());
    bytes
}

pub(crate) fn store_file(store: &dyn Store, file: &WalFile, raw: &[u8]) {
    let key = wal_key(SYSTEM, file).unwrap();
    if matches!(file, WalFile::Open(_) | WalFile::History(_)) {
        put(store, &key, raw, Put::Replace).unwrap();
        return;
    }
    let upload = store.create(&key, Put::Replace).unwrap();
    segment::write(upload, &mut &*raw, Codec::ZSTD, &Crypt::None).unwrap();
}

pub(crate) fn whole(number: u64) -> WalFile {
    WalFile::Segment {
        name: name(number),
        encrypted: false,
    }
}

pub(crate) fn piece(number: u64, offset: u64) -> WalFile {
    WalFile::Piece {
        segment: name(number),
        offset,
        encrypted: false,
    }
}

fn read(store: &LocalStore, number: u64) -> Result<Content> {
    let archive = WalArchive::load(store, SYSTEM).unwrap();
    let source = Source {
        store,
        system: SYSTEM,
        size: size(),
        identities: None,
    };
    source.read(name(number), archive.segment(name(number)).unwrap())
}

#[test]
fn pieces_are_laid_at_their_places_up_to_the_first_hole() {
    let scratch = Scratch::new();
    let store = LocalStore::open(scratch.path()).unwrap();
    let raw = segment(3, SYSTEM);
    store_file(&store, &piece(3, 0), &raw[..5000]);
    // They may overlap.
    store_file(&store, &piece(3, 4000), &raw[4000..7000]);
    let content = read(&store, 3).unwrap();
    assert_eq!(
        (content.filled, content.whole, content.hole),
        (7000, false, false)
    );
    assert!(content.bytes[..7000] == raw[..7000] && content.bytes.len() == MIB);
    assert!(content.bytes[7000..].iter().all(|byte| *byte == 0));
    store_file(&store, &piece(3, 7001), &raw[7001..9000]);
    let content = read(&store, 3).unwrap();
    assert_eq!((content.filled, content.hole), (7000, true));
    store_file(&store, &piece(3, 7000), &raw[7000..]);
    let content = read(&store, 3).unwrap();
    assert!(content.whole && content.bytes == raw);
    // The whole one goes before its pieces.
    store_file(&store, &whole(3), &raw);
    assert!(read(&store, 3).unwrap().whole);
}

#[test]
fn what_is_not_that_segment_is_damage() {
    let scratch = Scratch::new();
    let store = LocalStore::open(scratch.path()).unwrap();
    for raw in [
        segment(4, SYSTEM),
        segment(3, SystemId(78)),
        segment(3, SYSTEM)[..MIB - 1].to_vec(),
        vec![1; MIB],
    ] {
        store_file(&store, &whole(3), &raw);
        assert_eq!(
            read(&store, 3).err().map(|error| error.kind),
            Some(Kind::Damage)
        );
    }
    store_file(&store, &piece(5, 0), &segment(6, SYSTEM)[..9000]);
    assert!(read(&store, 5).is_err());
    // An open one whose records do not go to its end is not complete.
    store_file(&store, &WalFile::Open(name(7)), &segment(7, SYSTEM));
    let content = read(&store, 7).unwrap();
    assert_eq!((content.filled, content.whole), (8000, false));
}
