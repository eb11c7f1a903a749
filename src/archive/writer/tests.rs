//! The writer and the reader together.

use std::io::Read;
use std::process::Command;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::archive::codec::{decoder, has_mark};
use crate::archive::index::{FrameRecord, Index};
use crate::archive::reader::Artefact;
use crate::error::Kind;
use crate::store::failing::{FailingStore, Failure};
use crate::store::local::LocalStore;
use crate::store::tests::Scratch;
use crate::store::{Key, Put, Store, StoreReader, hash};

fn keys() -> (Key, Key) {
    (Key::new("x").unwrap(), Key::new("x.idx").unwrap())
}

fn start(store: &dyn Store, codec: Codec, threads: usize, budget: usize) -> ArtefactWriter {
    let (artefact, index) = keys();
    let artefact = store.create(&artefact, Put::Replace).unwrap();
    let index = store.create(&index, Put::Replace).unwrap();
    ArtefactWriter::with_budget(
        artefact,
        index,
        (codec, &Crypt::None),
        threads,
        Arc::default(),
        budget,
    )
}

struct Summary {
    index_sha256: String,
    frames: u64,
}

fn write_all(store: &dyn Store, codec: Codec, pieces: &[Vec<u8>], budget: usize) -> Summary {
    let writer = start(store, codec, 3, budget);
    let sender = writer.sender();
    for (i, piece) in pieces.iter().enumerate() {
        let mut buffer = sender.buffer();
        assert!(buffer.is_empty());
        buffer.extend_from_slice(piece);
        sender.send(buffer, format!("{{\"i\":{i}}}")).unwrap();
    }
    let written = writer.finish().unwrap();
    let (artefact, index) = keys();
    assert_eq!(written.artefact.finish().unwrap().bytes, written.bytes);
    assert_eq!(written.index.finish().unwrap().bytes, written.index_bytes);
    assert_eq!(
        hash(store, &artefact).unwrap(),
        (written.bytes, written.sha256)
    );
    assert_eq!(hash(store, &index).unwrap().1, written.index_sha256);
    Summary {
        index_sha256: written.index_sha256,
        frames: written.frames,
    }
}

fn read_all(store: &dyn Store, codec: Codec, index_sha256: &str) -> Result<Vec<Vec<u8>>> {
    let (artefact, index) = keys();
    let index = Index::read(store, &index, index_sha256, None)?;
    let mut pieces = Vec::new();
    let mut sink = |raw: &[u8], frame: &FrameRecord| {
        assert_eq!(frame.meaning.get(), format!("{{\"i\":{}}}", pieces.len()));
        pieces.push(raw.to_vec());
        Ok(())
    };
    Artefact::open(store, artefact, codec, None)?.stream(&index, 2, &mut sink)?;
    Ok(pieces)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn frames_keep_their_order_whatever_their_size(sizes in proptest::collection::vec(0..60_000_usize, 0..60), budget in 1..200_000_usize) {
        // Large frames take longer: compressors finish out of order.
        let pieces: Vec<Vec<u8>> = sizes.iter().enumerate()
            .map(|(i, n)| (0..*n).map(|k| u8::try_from((k * k + i) % 251).unwrap()).collect())
            .collect();
        for codec in [Codec::GZIP, Codec::ZSTD, Codec::None] {
            let scratch = Scratch::new();
            let store = LocalStore::open(scratch.path()).unwrap();
            let summary = write_all(&store, codec, &pieces, budget);
            prop_assert_eq!(summary.frames, pieces.len() as u64);
            prop_assert_eq!(&read_all(&store, codec, &summary.index_sha256).unwrap(), &pieces);
        }
    }
}

fn sample() -> Vec<Vec<u8>> {
    (0..4)
        .map(|i| format!("row {i}\t{}\n", i * 7919).repeat(20).into_bytes())
        .collect()
}

#[test]
fn gunzip_reads_the_artefact() {
    let scratch = Scratch::new();
    let store = LocalStore::open(scratch.path()).unwrap();
    write_all(&store, Codec::GZIP, &sample(), BUDGET);
    let bytes = std::fs::read(scratch.path().join("x")).unwrap();
    assert!(has_mark(&bytes));
    let file = std::fs::File::open(scratch.path().join("x")).unwrap();
    let output = Command::new("gunzip")
        .arg("-c")
        .stdin(file)
        .output()
        .unwrap();
    assert!(output.status.success() && output.stdout == sample().concat());
    let mut raw = Vec::new();
    let reader = StoreReader::open(&store, &keys().0).unwrap();
    decoder(Codec::GZIP, reader)
        .unwrap()
        .read_to_end(&mut raw)
        .unwrap();
    assert!(raw == sample().concat());
}

#[test]
fn any_flipped_bit_and_any_cut_of_an_artefact_is_damage() {
    for codec in [Codec::GZIP, Codec::ZSTD, Codec::None] {
        let scratch = Scratch::new();
        let store = LocalStore::open(scratch.path()).unwrap();
        let summary = write_all(&store, codec, &sample(), BUDGET);
        let path = scratch.path().join("x");
        let good = std::fs::read(&path).unwrap();
        let judge = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            read_all(&store, codec, &summary.index_sha256)
        };
        assert!(judge(&good).is_ok());
        for i in 0..good.len() {
            let mut bad = good.clone();
            bad[i] ^= 1 << (i % 8);
            assert_eq!(
                judge(&bad).unwrap_err().kind,
                Kind::Damage,
                "{codec} byte {i}"
            );
        }
        let index = Index::read(&store, &keys().1, &summary.index_sha256, None).unwrap();
        for frame in &index.frames {
            let cut = usize::try_from(frame.offset).unwrap();
            assert_eq!(
                judge(&good[..cut]).unwrap_err().kind,
                Kind::Damage,
                "cut at {cut}"
            );
        }
        let longer = [&good[..], &good[..]].concat();
        assert_eq!(judge(&longer).unwrap_err().kind, Kind::Damage);
        std::fs::remove_file(&path).unwrap();
        let error = read_all(&store, codec, &summary.index_sha256).unwrap_err();
        assert_eq!(error.kind, Kind::Damage);
    }
}

#[test]
fn swapped_frames_are_damage() {
    let scratch = Scratch::new();
    let store = LocalStore::open(scratch.path()).unwrap();
    let pieces = [b"one".to_vec(), b"two".to_vec()];
    let summary = write_all(&store, Codec::None, &pieces, BUDGET);
    std::fs::write(scratch.path().join("x"), "twoone").unwrap();
    let error = read_all(&store, Codec::None, &summary.index_sha256).unwrap_err();
    assert!(error.fact.contains("damaged at byte 0"), "{error}");
}

#[test]
fn sink_that_fails_ends_the_stream() {
    let scratch = Scratch::new();
    let store = LocalStore::open(scratch.path()).unwrap();
    let pieces = vec![vec![7; 1 << 20]; 120];
    let summary = write_all(&store, Codec::GZIP, &pieces, BUDGET);
    let (artefact, index) = keys();
    let index = Index::read(&store, &index, &summary.index_sha256, None).unwrap();
    let mut sink = |_: &[u8], _: &FrameRecord| Err(Error::failed("pipe closed"));
    let artefact = Artefact::open(&store, artefact, Codec::GZIP, None).unwrap();
    let error = artefact.stream(&index, 2, &mut sink).unwrap_err();
    assert_eq!(error.fact, "pipe closed");
}

#[test]
fn failing_store_ends_every_sender_with_its_error() {
    for at in 3..8 {
        let scratch = Scratch::new();
        let inner = Box::new(LocalStore::open(scratch.path()).unwrap());
        let store = FailingStore::new(inner, Failure::Error { at });
        let writer = start(&store, Codec::None, 2, 100_000);
        let failures: Vec<Error> = std::thread::scope(|scope| {
            let send = || {
                let sender = writer.sender();
                scope.spawn(move || {
                    loop {
                        if let Err(error) = sender.send(vec![1; 60_000], "1".to_owned()) {
                            return error;
                        }
                    }
                })
            };
            let threads = [send(), send(), send()];
            threads.map(|thread| thread.join().unwrap()).into()
        });
        assert!(failures.iter().all(Error::is_no_space));
        assert!(writer.finish().err().unwrap().is_no_space());
        assert!(store.unfinished().unwrap().is_empty());
    }
}

#[test]
fn dropped_writer_wakes_blocked_senders_and_leaves_nothing() {
    let scratch = Scratch::new();
    let store = LocalStore::open(scratch.path()).unwrap();
    let writer = start(&store, Codec::GZIP, 1, 1000);
    let sender = writer.sender();
    let sending = std::thread::spawn(move || {
        loop {
            if let Err(error) = sender.send(vec![1; 200_000], "1".to_owned()) {
                return error;
            }
        }
    });
    std::thread::sleep(Duration::from_millis(20));
    drop(writer);
    assert_eq!(sending.join().unwrap().fact, "the artefact was given up");
    assert!(store.unfinished().unwrap().is_empty());
    assert!(store.list("").unwrap().is_empty());
}

#[test]
fn bad_meaning_and_late_frames_are_refused() {
    let scratch = Scratch::new();
    let store = LocalStore::open(scratch.path()).unwrap();
    let writer = start(&store, Codec::GZIP, 1, 1000);
    writer.sender().send(Vec::new(), "{".to_owned()).unwrap();
    assert!(writer.finish().err().unwrap().fact.contains("not JSON"));
    let writer = start(&store, Codec::GZIP, 1, 1000);
    let sender = writer.sender();
    writer.finish().unwrap();
    assert!(sender.send(Vec::new(), "1".to_owned()).is_err());
}
