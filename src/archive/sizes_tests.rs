//! A dump of 5 TB by simulation: the real index of frames of their real sizes, and what it costs to
//! keep and to read.

use proptest::prelude::*;

use super::crypt::Crypt;
use super::index::{Index, IndexWriter, digest, meaning};
use super::script::{FRAME_RAW_BYTES, Meaning, frame_raw_bytes};
use crate::store::local::LocalStore;
use crate::store::tests::Scratch;
use crate::store::{Key, Put, Store};
use crate::units::Codec;

const TERABYTE: u64 = 1_000_000_000_000;

/// Resident memory of this process.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[test]
fn the_index_of_5_tb_is_small_on_the_store_and_in_memory() {
    let scratch = Scratch::new();
    let store = LocalStore::open(scratch.path()).unwrap();
    let key = Key::new("x.idx").unwrap();
    let upload = store.create(&key, Put::Replace).unwrap();
    let mut writer = IndexWriter::start(upload, Codec::GZIP, &Crypt::None).unwrap();
    let (mut sent, mut frames) = (0_u64, 0_u64);
    while sent < 5 * TERABYTE {
        let raw = frame_raw_bytes(sent, 4) as u64;
        let rows = Meaning::Rows {
            id: 3456,
            rows: raw / 100 + frames % 97,
            head: 71,
            tail: 4,
            root: false,
        };
        let stored = raw / 4 + frames % 1009;
        let rows = meaning(rows.to_json().unwrap()).unwrap();
        writer
            .add(stored, raw, digest(&frames.to_le_bytes()), rows)
            .unwrap();
        sent += raw;
        frames += 1;
    }
    let written = writer.finish().unwrap();
    let (bytes, sha256) = (written.bytes, written.sha256);
    written.upload.finish().unwrap();
    let before = resident_bytes();
    let index = Index::read(&store, &key, &sha256, None).unwrap();
    let meanings: Vec<Meaning> = index
        .frames
        .iter()
        .map(|frame| Meaning::from_json(&frame.meaning).unwrap())
        .collect();
    let held = resident_bytes().saturating_sub(before);
    eprintln!("5 TB: {frames} frames, index of {bytes} bytes, {held} bytes of memory when read");
    assert_eq!(meanings.len() as u64, frames);
    assert_eq!(index.raw_bytes, sent);
    assert!(frames < 800_000, "{frames} frames");
    assert!(bytes < 32 << 20, "an index of {bytes} bytes");
    assert!(held < 160 << 20, "{held} bytes of memory");
}

proptest! {
    #[test]
    fn frames_grow_with_the_dump_within_what_the_connections_may_hold(sent: u64, more in 0..TERABYTE, jobs in 0_usize..100) {
        let (now, later) = (frame_raw_bytes(sent, jobs), frame_raw_bytes(sent.saturating_add(more), jobs));
        prop_assert!(FRAME_RAW_BYTES <= now && now <= later);
        prop_assert!(later <= 8 << 20);
        prop_assert!(later == FRAME_RAW_BYTES || later * jobs <= 32 << 20);
    }

    #[test]
    fn a_small_dump_has_small_frames(sent in 0_u64..16 << 30, jobs in 1_usize..100) {
        prop_assert!(frame_raw_bytes(sent, jobs) < FRAME_RAW_BYTES + (1 << 18));
    }
}
