//! Both framings, in any pieces, and nonsense in their place.

use super::*;
use proptest::prelude::*;

/// What was heard, put together.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Heard {
    Start(Lsn),
    Tablespaces(usize),
    Archive(Archive, Vec<u8>),
    Manifest(Vec<u8>),
    Progress(u64),
}

fn note(heard: &mut Vec<Heard>, event: BaseEvent) {
    match (event, heard.last_mut()) {
        (BaseEvent::Start { lsn, .. }, _) => heard.push(Heard::Start(lsn)),
        (BaseEvent::Tablespaces(list), _) => heard.push(Heard::Tablespaces(list.len())),
        (BaseEvent::Archive(archive), _) => heard.push(Heard::Archive(archive, Vec::new())),
        (BaseEvent::Manifest, _) => heard.push(Heard::Manifest(Vec::new())),
        (BaseEvent::Progress(bytes), _) => heard.push(Heard::Progress(bytes)),
        (BaseEvent::Data(more), _) => {
            let open = heard.iter_mut().rev().find_map(|one| match one {
                Heard::Archive(_, bytes) => Some(bytes),
                _ => None,
            });
            open.unwrap().extend_from_slice(more);
        }
        (BaseEvent::ManifestData(more), Some(Heard::Manifest(bytes))) => {
            bytes.extend_from_slice(more);
        }
        (event, last) => panic!("{event:?} after {last:?}"),
    }
}

/// The body of a `DataRow`.
fn row(columns: &[Option<&str>]) -> Vec<u8> {
    let mut body = i16::try_from(columns.len()).unwrap().to_be_bytes().to_vec();
    for column in columns {
        let length = column.map_or(-1, |text| i32::try_from(text.len()).unwrap());
        body.extend(length.to_be_bytes());
        body.extend(column.unwrap_or_default().bytes());
    }
    body
}

type Messages = Vec<(u8, Vec<u8>)>;

fn result(rows: &[Vec<u8>]) -> Messages {
    let mut messages = vec![(b'T', Vec::new())];
    messages.extend(rows.iter().map(|row| (b'D', row.clone())));
    messages.push((b'C', b"SELECT\0".to_vec()));
    messages
}

fn head() -> Messages {
    let mut messages = result(&[row(&[Some("0/2000028"), Some("1")])]);
    messages.extend(result(&[
        row(&[Some("16384"), Some("/tbs"), Some("7")]),
        row(&[None, None, Some("31000")]),
    ]));
    messages
}

fn tail() -> Messages {
    result(&[row(&[Some("0/2000150"), Some("1")])])
}

/// The same backup as 14 sends it: without the tar streams' ends.
fn of_14(archives: [&[u8]; 2], manifest: &[u8]) -> Messages {
    let mut messages = head();
    for content in [archives[0], archives[1], manifest] {
        messages.push((b'H', Vec::new()));
        messages.push((b'd', content.to_vec()));
        messages.push((b'c', Vec::new()));
    }
    messages.extend(tail());
    messages
}

/// As 15 and later send it.
fn of_15(archives: [&[u8]; 2], manifest: &[u8]) -> Messages {
    let mut messages = head();
    messages.push((b'H', Vec::new()));
    let mut say = |letter: u8, content: &[u8]| {
        messages.push((b'd', [&[letter], content].concat()));
    };
    say(b'n', b"16384.tar\0/tbs\0");
    say(b'd', &[archives[0], &TAR_END].concat());
    say(b'p', &4096_u64.to_be_bytes());
    say(b'n', b"base.tar\0\0");
    say(b'd', &[archives[1], &TAR_END].concat());
    say(b'm', b"");
    say(b'd', manifest);
    messages.push((b'c', Vec::new()));
    messages.extend(tail());
    messages
}

/// Feeds messages, those of data in pieces of these sizes.
fn feed(version: u32, messages: &Messages, sizes: &[usize]) -> Result<Vec<Heard>> {
    let mut framing = Framing::new(version);
    let mut heard = Vec::new();
    let mut sizes = sizes.iter().cycle();
    for (tag, body) in messages {
        let mut at = 0;
        loop {
            let end = match tag {
                b'd' => body.len().min(at + sizes.next().unwrap()),
                _ => body.len(),
            };
            let last = end == body.len();
            framing.message(*tag, &body[at..end], last, &mut |event| {
                note(&mut heard, event);
                Ok(())
            })?;
            at = end;
            if last {
                break;
            }
        }
    }
    framing.finish().map(|_| heard)
}

fn expected(archives: [&[u8]; 2], manifest: &[u8], progress: bool) -> Vec<Heard> {
    let whole = |content: &[u8]| [content, &TAR_END].concat();
    let mut heard = vec![
        Heard::Start(Lsn(0x0200_0028)),
        Heard::Tablespaces(2),
        Heard::Archive(Archive::Tablespace(16384), whole(archives[0])),
        Heard::Archive(Archive::Base, whole(archives[1])),
        Heard::Manifest(manifest.to_vec()),
    ];
    if progress {
        heard.insert(3, Heard::Progress(4096));
    }
    heard
}

proptest! {
    #[test]
    fn both_framings_bring_the_same_backup_in_any_pieces(
        first in prop::collection::vec(any::<u8>(), 0..3000),
        second in prop::collection::vec(any::<u8>(), 0..3000),
        manifest in prop::collection::vec(any::<u8>(), 0..300),
        sizes in prop::collection::vec(0_usize..400, 1..6).prop_filter("some size must move on", |sizes| sizes.iter().any(|size| *size > 0)),
    ) {
        let archives = [&first[..], &second[..]];
        let old = feed(140_000, &of_14(archives, &manifest), &sizes).unwrap();
        prop_assert_eq!(old, expected(archives, &manifest, false));
        let new = feed(150_000, &of_15(archives, &manifest), &sizes).unwrap();
        prop_assert_eq!(new, expected(archives, &manifest, true));
    }

    #[test]
    fn any_messages_are_a_backup_or_an_error(
        messages in prop::collection::vec((prop::sample::select(b"TDHdcCZWx".to_vec()), prop::collection::vec(any::<u8>(), 0..30), any::<bool>()), 0..40),
        letters in prop::collection::vec(prop::sample::select(b"nmdpx".to_vec()), 40),
        version in prop::sample::select(vec![140_000_u32, 180_000]),
        after_head in any::<bool>(),
    ) {
        let mut framing = Framing::new(version);
        let head = if after_head { head() } else { Vec::new() };
        for (tag, body) in head {
            framing.message(tag, &body, true, &mut |_| Ok(())).unwrap();
        }
        for ((tag, mut body, last), letter) in messages.into_iter().zip(letters) {
            if let (b'd', Some(first)) = (tag, body.first_mut()) {
                *first = letter;
            }
            if framing.message(tag, &body, last, &mut |_| Ok(())).is_err() {
                return Ok(());
            }
        }
        prop_assert!(framing.finish().is_err() || !framing.copying);
    }
}

#[test]
fn a_backup_that_lacks_anything_is_none() {
    let archives = [&b"one"[..], b"two"];
    for (version, whole) in [
        (140_000, of_14(archives, b"m")),
        (150_000, of_15(archives, b"m")),
    ] {
        assert!(feed(version, &whole, &[1000]).is_ok());
        for at in 0..whole.len() {
            let mut cut = whole.clone();
            let gone = cut.remove(at);
            // Progress and the ends of results say nothing, and empty data neither.
            let idle = gone.0 == b'C' || gone.1.starts_with(b"p") || gone.1.starts_with(b"d");
            let idle = idle || (version == 140_000 && gone.0 == b'd');
            assert_eq!(
                feed(version, &cut, &[1000]).is_ok(),
                idle,
                "{version}: {at} {gone:?}"
            );
        }
        for end in 0..whole.len() - 2 {
            assert!(
                feed(version, &whole[..end].to_vec(), &[1000]).is_err(),
                "{end}"
            );
        }
    }
}

#[test]
fn foreign_archives_and_twins_are_refused() {
    for name in [
        "../base.tar",
        "base",
        "16385.tar",
        "base.tar.gz",
        "x.tar",
        "-1.tar",
        "+16384.tar",
    ] {
        let mut messages = head();
        messages.push((b'H', Vec::new()));
        messages.push((b'd', format!("n{name}\0\0").into_bytes()));
        assert!(feed(150_000, &messages, &[1000]).is_err(), "{name}");
    }
    let mut twice = head();
    twice.push((b'H', Vec::new()));
    for _ in 0..2 {
        twice.push((b'd', b"nbase.tar\0\0".to_vec()));
    }
    let error = feed(150_000, &twice, &[1000]).unwrap_err();
    assert!(error.fact.contains("came twice"), "{error}");
}
