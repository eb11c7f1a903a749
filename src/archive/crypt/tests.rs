//! Against the `age` program in both directions, and against damage. `scripts/setup.sh test`
//! installs it.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::payload::{CHUNK, TAG};
use super::*;
use crate::archive::codec::Codec;
use crate::archive::index::{FrameRecord, Index};
use crate::archive::reader::Artefact;
use crate::archive::writer::ArtefactWriter;
use crate::error::Kind;
use crate::store::local::LocalStore;
use crate::store::mark::has_mark;
use crate::store::tests::Scratch;
use crate::store::{Key, Object, Put, Store, Upload};

struct Pair {
    recipient: String,
    secret: String,
}

impl Pair {
    fn new() -> Pair {
        let (recipient, secret) = generate().unwrap();
        Pair { recipient, secret }
    }

    fn identities(&self) -> Identities {
        match IdentityFile::parse(&self.secret).unwrap() {
            IdentityFile::Open(identities) => identities,
            IdentityFile::Protected(_) => panic!("protected"),
        }
    }

    fn recipients(&self) -> Recipients {
        Recipients::parse(&self.recipient).unwrap()
    }
}

/// A program of age: what it wrote to stdout.
fn age(program: &str, arguments: &[&str], stdin: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the age program: scripts/setup.sh test installs it");
    let mut input = child.stdin.take().unwrap();
    let text = stdin.to_vec();
    // A program that refuses its input closes it early.
    let writing = std::thread::spawn(move || drop(input.write_all(&text)));
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    output.stdout
}

fn key_file(dir: &Path, pair: &Pair) -> String {
    let path = dir.join(&pair.recipient);
    std::fs::write(&path, format!("# a comment\n{}\n", pair.secret)).unwrap();
    path.display().to_string()
}

fn content(bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|i| u8::try_from(i * 31 % 251).unwrap())
        .collect()
}

fn part<'a>(bytes: &'a [u8], range: &Range<u64>) -> &'a [u8] {
    let [start, end] = [range.start, range.end].map(|at| usize::try_from(at).unwrap());
    &bytes[start..end]
}

/// Lengths around every border.
const LENGTHS: [usize; 9] = [
    0,
    1,
    15,
    CHUNK - 1,
    CHUNK,
    CHUNK + 1,
    2 * CHUNK,
    2 * CHUNK + 1,
    3 * CHUNK - 1,
];

#[test]
fn age_opens_what_pgark_sealed_and_pgark_what_age_did() {
    let (scratch, one, two) = (Scratch::new(), Pair::new(), Pair::new());
    let both = format!("{}, {}", one.recipient, two.recipient);
    let recipients = Recipients::parse(&both).unwrap();
    let files = [&one, &two].map(|pair| key_file(scratch.path(), pair));
    for length in LENGTHS {
        let plain = content(length);
        let sealed = seal(&recipients, &plain).unwrap();
        assert!(has_mark(&sealed));
        for (pair, file) in [&one, &two].into_iter().zip(&files) {
            let opened = age("age", &["-d", "-i", file], &sealed);
            assert!(opened == plain, "age, {length} bytes");
            assert!(open(&pair.identities(), &sealed).unwrap() == plain);
        }
        let theirs = age("age", &["-r", &one.recipient, "-r", &two.recipient], &plain);
        assert!(!has_mark(&theirs));
        assert!(
            open(&two.identities(), &theirs).unwrap() == plain,
            "{length}"
        );
    }
}

#[test]
fn keys_are_those_of_age_keygen() {
    let (scratch, ours) = (Scratch::new(), Pair::new());
    let file = key_file(scratch.path(), &ours);
    let public = age("age-keygen", &["-y", &file], b"");
    assert_eq!(String::from_utf8(public).unwrap().trim(), ours.recipient);
    let theirs = String::from_utf8(age("age-keygen", &[], b"")).unwrap();
    let IdentityFile::Open(theirs_read) = IdentityFile::parse(&theirs).unwrap() else {
        panic!("protected");
    };
    let public = theirs_read.recipients().remove(0);
    assert!(
        theirs.contains(&format!("# public key: {public}\n")),
        "{public}"
    );
    assert!(format!("{theirs_read:?}").contains("age1"));
    assert!(!format!("{theirs_read:?}").to_uppercase().contains("SECRET"));
}

/// Every byte of a file, its chunks' order and its end.
#[test]
fn what_was_changed_swapped_or_cut_off_is_damage() {
    let pair = Pair::new();
    let identities = pair.identities();
    let sealed = seal(&pair.recipients(), &content(3 * CHUNK + 100)).unwrap();
    let judge = |bad: &[u8]| open(&identities, bad).unwrap_err().kind;
    let start = sealed.len() - (3 * (CHUNK + TAG) + 100 + TAG);
    let stanza = sealed
        .windows(9)
        .position(|text| text == b"-> X25519")
        .unwrap();
    for at in (0..start + 40).chain([start + CHUNK, start + CHUNK + TAG, sealed.len() - 1]) {
        let mut bad = sealed.clone();
        bad[at] ^= 1;
        // In the stanza itself a changed byte looks like the key of somebody else.
        let expected = open(&identities, &bad).unwrap_err();
        let other = (stanza..start).contains(&at) && expected.kind == Kind::Usage;
        assert!(
            other || expected.kind == Kind::Damage,
            "byte {at}: {expected}"
        );
    }
    let chunk = |n: usize| start + n * (CHUNK + TAG);
    let borders = (0..=3).flat_map(|n| [chunk(n), chunk(n) + 1, chunk(n) + TAG, chunk(n) + 999]);
    let cuts = borders.chain([0, 1, 22, 40, start - 17, start - 1, sealed.len() - 1]);
    for cut in cuts.filter(|cut| *cut < sealed.len()) {
        assert_eq!(judge(&sealed[..cut]), Kind::Damage, "cut at {cut}");
    }
    let parts = |order: &[usize]| {
        let mut file = sealed[..start].to_vec();
        for n in order {
            file.extend_from_slice(&sealed[chunk(*n)..chunk(n + 1).min(sealed.len())]);
        }
        file
    };
    assert_eq!(parts(&[0, 1, 2, 3]), sealed);
    for order in [
        &[1, 0, 2, 3][..],
        &[0, 2, 3],
        &[0, 1, 1, 2, 3],
        &[0, 1, 2, 3, 3],
        &[3],
    ] {
        assert_eq!(judge(&parts(order)), Kind::Damage, "{order:?}");
    }
}

#[test]
fn key_of_somebody_else_is_told_from_damage() {
    let (pair, other) = (Pair::new(), Pair::new());
    let sealed = seal(&pair.recipients(), b"text").unwrap();
    let error = open(&other.identities(), &sealed).unwrap_err();
    assert_eq!(error.kind, Kind::Usage);
    assert!(error.fact.contains(&other.recipient), "{error}");
    assert!(!error.to_string().to_uppercase().contains("SECRET-KEY-1"));
}

#[test]
fn header_of_a_hundred_recipients_is_read() {
    let pairs: Vec<Pair> = (0..100).map(|_| Pair::new()).collect();
    let names: Vec<&str> = pairs.iter().map(|pair| pair.recipient.as_str()).collect();
    let recipients = Recipients::parse(&names.join("\n")).unwrap();
    let sealed = seal(&recipients, b"text").unwrap();
    assert!(sealed.len() as u64 > HEAD_BYTES);
    assert_eq!(open(&pairs[99].identities(), &sealed).unwrap(), b"text");
}

#[test]
fn what_is_no_recipient_is_named_by_its_place_and_a_secret_is_not_shown() {
    let pair = Pair::new();
    let mut typo = pair.recipient.clone().into_bytes();
    typo[20] = if typo[20] == b'q' { b'p' } else { b'q' };
    let typo = String::from_utf8(typo).unwrap();
    for (bad, says) in [
        (pair.secret.as_str(), "is a secret key (not shown)"),
        (&pair.secret.to_lowercase(), "is a secret key (not shown)"),
        (&typo, "checksum"),
        (&pair.recipient[..40], "checksum"),
        ("age1pq1abcdef", "post-quantum"),
        (
            "age1yubikey1qwt50d05nh5vutpdzmlg5wn80xq5negm4uj9ghv0snvdd3yysf5yw3rhl3t",
            "plugin",
        ),
        ("ssh-ed25519", "is an SSH key"),
        ("hunter2", "does not begin with age1"),
    ] {
        for list in [
            format!("{},{bad}", pair.recipient),
            format!("# mine\n{}\n\n  {bad} \n", pair.recipient),
        ] {
            let error = Recipients::parse(&list).unwrap_err();
            assert_eq!(error.kind, Kind::Usage);
            assert!(error.fact.starts_with("recipient 2 "), "{error}");
            assert!(error.fact.contains(says) && error.hint.is_some(), "{error}");
            let text = error.to_string();
            assert!(!text.contains("hunter2"), "{text}");
            assert!(!text.to_uppercase().contains(&pair.secret[20..]), "{text}");
        }
    }
    for none in ["", ",", "# only this\n", "\n\n"] {
        assert!(
            Recipients::parse(none)
                .unwrap_err()
                .fact
                .contains("no recipient")
        );
    }
    let upper = pair.recipient.to_uppercase();
    let twice = Recipients::parse(&format!("{0} {0}\n{upper}", pair.recipient)).unwrap();
    assert_eq!(twice.names(), [pair.recipient.as_str()]);
}

#[test]
fn what_is_no_identity_is_named_by_its_line_and_not_shown() {
    let pair = Pair::new();
    let mut typo = pair.secret.clone().into_bytes();
    typo[30] = if typo[30] == b'Q' { b'P' } else { b'Q' };
    let typo = String::from_utf8(typo).unwrap();
    for (bad, says) in [
        (typo.as_str(), "is no identity"),
        (pair.recipient.as_str(), "is a recipient"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", "SSH"),
        ("hunter2", "is no identity"),
    ] {
        let error = IdentityFile::parse(&format!("# x\n{bad}\n")).err().unwrap();
        assert!(error.fact.contains(says), "{error}");
        assert!(error.fact.starts_with("line 2 "), "{error}");
        let text = error.to_string();
        assert!(
            !text.contains("hunter2") && !text.contains(&typo[20..]),
            "{text}"
        );
    }
    for none in ["", "# only\n"] {
        let error = IdentityFile::parse(none).err().unwrap();
        assert!(error.fact.contains("no identity"), "{error}");
    }
    let both = format!("{}\n{}\n", Pair::new().secret, pair.secret);
    let IdentityFile::Open(both) = IdentityFile::parse(&both).unwrap() else {
        panic!("protected");
    };
    let sealed = seal(&pair.recipients(), b"text").unwrap();
    assert_eq!(open(&both, &sealed).unwrap(), b"text");
}

/// A store that counts what is read from it.
struct Counting {
    inner: LocalStore,
    read: AtomicU64,
}

impl Store for Counting {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn describe(&self) -> String {
        self.inner.describe()
    }
    fn create(&self, key: &Key, mode: Put) -> Result<Box<dyn Upload>> {
        self.inner.create(key, mode)
    }
    fn read(&self, key: &Key, range: Range<u64>) -> Result<Vec<u8>> {
        self.read
            .fetch_add(range.end - range.start, Ordering::Relaxed);
        self.inner.read(key, range)
    }
    fn stat(&self, key: &Key) -> Result<Option<Object>> {
        self.inner.stat(key)
    }
    fn list(&self, prefix: &str) -> Result<Vec<Object>> {
        self.inner.list(prefix)
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

/// Written through the pipeline; the index of what was written.
fn written(store: &Counting, codec: Codec, pair: &Pair, pieces: &[Vec<u8>]) -> Index {
    let crypt = Crypt::Age(Arc::new(pair.recipients()));
    let upload = |name| store.create(&Key::new(name).unwrap(), Put::New).unwrap();
    let how = (codec, &crypt);
    let writer = ArtefactWriter::start(upload("x"), upload("x.idx"), how, 2, Arc::default());
    let sender = writer.sender();
    for piece in pieces {
        sender.send(piece.clone(), "{}".to_owned()).unwrap();
    }
    let done = writer.finish().unwrap();
    assert_eq!(done.artefact.finish().unwrap().bytes, done.bytes);
    done.index.finish().unwrap();
    let sums = ["x", "x.idx"].map(|name| crate::store::hash(store, &Key::new(name).unwrap()));
    let [artefact, index] = sums.map(Result::unwrap);
    assert_eq!(artefact, (done.bytes, done.sha256));
    assert_eq!(index, (done.index_bytes, done.index_sha256.clone()));
    let identities = pair.identities();
    let key = Key::new("x.idx").unwrap();
    Index::read(store, &key, &done.index_sha256, Some(&identities)).unwrap()
}

#[test]
fn frame_of_an_encrypted_artefact_costs_its_own_chunks_only() {
    let (scratch, pair) = (Scratch::new(), Pair::new());
    let store = Counting {
        inner: LocalStore::open(scratch.path()).unwrap(),
        read: AtomicU64::new(0),
    };
    let pieces: Vec<Vec<u8>> = (0..100).map(|i| content(40_000 + i * 7)).collect();
    let index = written(&store, Codec::None, &pair, &pieces);
    let identities = pair.identities();
    let key = Key::new("x").unwrap();
    let artefact = Artefact::open(&store, key, Codec::None, Some(&identities)).unwrap();
    assert!(artefact.stored_bytes() > 4_000_000);
    // Nothing else is needed: all the rest becomes garbage.
    let frame = &index.frames[57];
    let path = scratch.path().join("x");
    let good = std::fs::read(&path).unwrap();
    let header = artefact.stored_bytes()
        - artefact.bytes().div_ceil(CHUNK as u64) * TAG as u64
        - artefact.bytes();
    let chunk = |at: u64| header + at / CHUNK as u64 * (CHUNK + TAG) as u64;
    let needed = chunk(frame.offset)..chunk(frame.offset + frame.bytes - 1) + (CHUNK + TAG) as u64;
    let spoilt: Vec<u8> = (0_u64..)
        .zip(&good)
        .map(|(at, byte)| if needed.contains(&at) { *byte } else { !byte })
        .collect();
    std::fs::write(&path, spoilt).unwrap();
    store.read.store(0, Ordering::Relaxed);
    assert!(artefact.frame(frame).unwrap() == pieces[57]);
    let read = store.read.load(Ordering::Relaxed);
    assert!(
        read <= 2 * (CHUNK + TAG) as u64,
        "{read} bytes for {}",
        frame.bytes
    );
    for other in [&index.frames[3], &index.frames[90]] {
        assert_eq!(artefact.frame(other).unwrap_err().kind, Kind::Damage);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_range_of_any_content_comes_back(
        length in prop_oneof![0..5 * CHUNK, (0..4_usize).prop_map(|n| n * CHUNK)],
        step in 1..150_000_usize,
        ranges in proptest::collection::vec((any::<proptest::sample::Index>(), any::<proptest::sample::Index>()), 1..20),
    ) {
        let (pair, plain) = (Pair::new(), content(length));
        let mut sealer = Sealer::new(&pair.recipients()).unwrap();
        let mut file = Vec::new();
        for piece in plain.chunks(step) {
            sealer.write(piece).unwrap();
            file.extend_from_slice(sealer.sealed());
            sealer.clear();
        }
        sealer.end().unwrap();
        file.extend_from_slice(sealer.sealed());
        let read = |range: Range<u64>| Ok(part(&file, &range).to_vec());
        let opener = Opener::new(&pair.identities(), file.len() as u64, &read).unwrap();
        prop_assert_eq!(opener.bytes(), length as u64);
        prop_assert!(open(&pair.identities(), &file).unwrap() == plain);
        let ranges: Vec<Range<u64>> = ranges.iter().map(|(a, b)| {
            let (a, b) = (a.index(length + 1) as u64, b.index(length + 1) as u64);
            a.min(b)..a.max(b)
        }).collect();
        // One key serves several threads at once.
        std::thread::scope(|scope| {
            for range in &ranges {
                let (opener, plain) = (&opener, &plain);
                scope.spawn(move || {
                    let stored = opener.covering(range);
                    let chunks = (range.end - range.start).div_ceil(CHUNK as u64) + 1;
                    assert!(stored.end - stored.start <= chunks * (CHUNK + TAG) as u64);
                    let opened = opener.open(range, read(stored).unwrap()).unwrap();
                    assert!(opened == part(plain, range));
                });
            }
        });
        let beyond = 0..length as u64 + 1;
        let error = opener.open(&beyond, read(opener.covering(&beyond)).unwrap()).unwrap_err();
        prop_assert_eq!(error.kind, Kind::Damage);
    }

    #[test]
    fn encrypted_artefact_comes_back_frame_by_frame(sizes in proptest::collection::vec(0..200_000_usize, 0..12)) {
        let pieces: Vec<Vec<u8>> = sizes.iter().map(|size| content(*size)).collect();
        for codec in [Codec::GZIP, Codec::ZSTD, Codec::None] {
            let (scratch, pair) = (Scratch::new(), Pair::new());
            let store = Counting { inner: LocalStore::open(scratch.path()).unwrap(), read: AtomicU64::new(0) };
            let index = written(&store, codec, &pair, &pieces);
            let (key, identities) = (Key::new("x").unwrap(), pair.identities());
            let artefact = Artefact::open(&store, key, codec, Some(&identities)).unwrap();
            let mut found = Vec::new();
            let mut sink = |raw: &[u8], _: &FrameRecord| { found.push(raw.to_vec()); Ok(()) };
            artefact.stream(&index, 2, &mut sink).unwrap();
            prop_assert!(found == pieces, "{}", codec);
        }
    }
}
