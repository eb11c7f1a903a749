//! Streams in any pieces, streams of nonsense, and what tar(1) itself writes and reads.

use super::*;
use crate::store::tests::Scratch;
use proptest::prelude::*;
use std::process::Command;

fn stream(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, content) in files {
        out.extend(file_header(name, content.len() as u64, 1_700_000_000).unwrap());
        out.extend(content);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }
    out.resize(out.len() + 2 * BLOCK, 0);
    out
}

type Found = Vec<(Member, Vec<u8>)>;

fn read(stream: &[u8], sizes: &[usize]) -> Result<Found> {
    let mut parser = TarParser::default();
    let mut found: Found = Vec::new();
    let (mut at, mut open) = (0, false);
    let mut sizes = sizes.iter().cycle();
    while at < stream.len() {
        let end = stream.len().min(at + sizes.next().unwrap());
        parser.feed(&stream[at..end], &mut |piece| {
            match piece {
                Piece::Begin(member) => {
                    assert!(!open);
                    open = true;
                    found.push((member.clone(), Vec::new()));
                }
                Piece::Data(bytes) => found.last_mut().unwrap().1.extend_from_slice(bytes),
                Piece::End => open = false,
            }
            Ok(())
        })?;
        at = end;
    }
    parser.finish().map(|()| found)
}

proptest! {
    #[test]
    fn files_come_back_from_any_pieces(
        files in prop::collection::vec(("[a-z0-9_/]{1,60}", prop::collection::vec(any::<u8>(), 0..2000)), 0..8),
        sizes in prop::collection::vec(1_usize..1500, 1..6),
    ) {
        let whole = stream(&files);
        let found = read(&whole, &sizes).unwrap();
        prop_assert_eq!(found.len(), files.len());
        for ((member, bytes), (name, content)) in found.iter().zip(&files) {
            prop_assert_eq!(&member.path, name.as_bytes());
            prop_assert_eq!(bytes, content);
            let at = usize::try_from(member.offset).unwrap() + BLOCK;
            prop_assert_eq!(&whole[at..at + content.len()], &content[..]);
        }
    }

    #[test]
    fn any_bytes_are_a_stream_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..3000), sizes in prop::collection::vec(1_usize..700, 1..4)) {
        let _ = read(&bytes, &sizes);
        // Behind a right checksum, too.
        if bytes.len() >= BLOCK {
            let mut bytes = bytes;
            let check = format!("{:06o}\0 ", checksum(&bytes[..BLOCK]));
            bytes[CHECK].copy_from_slice(check.as_bytes());
            let _ = read(&bytes, &sizes);
        }
    }
}

#[test]
fn a_cut_or_changed_stream_is_damage() {
    let files = [
        ("a".to_owned(), vec![7; 700]),
        ("b/c".to_owned(), Vec::new()),
    ];
    let whole = stream(&files);
    assert!(read(&whole, &[100]).is_ok());
    for end in 0..whole.len() {
        assert!(read(&whole[..end], &[512]).is_err(), "{end}");
    }
    for at in (0..BLOCK).filter(|at| !CHECK.contains(at)) {
        let mut bad = whole.clone();
        bad[at] ^= 1;
        assert!(read(&bad, &[4096]).is_err(), "{at}");
    }
    assert!(read(&[whole.clone(), whole].concat(), &[4096]).is_err());
}

#[test]
fn large_lengths_stand_in_base_256() {
    let mut header = file_header("big", 5, 0).unwrap();
    header[SIZE].fill(0);
    header[SIZE.start] = 0x80;
    header[SIZE.end - 8..SIZE.end].copy_from_slice(&(9_u64 << 30).to_be_bytes());
    let check = format!("{:06o}\0 ", checksum(&header));
    header[CHECK].copy_from_slice(check.as_bytes());
    assert_eq!(parse(&header, 0).unwrap().bytes, 9 << 30);
}

#[test]
fn tar_reads_ours_and_we_read_tars() {
    let scratch = Scratch::new();
    let dir = scratch.path();
    let files = [
        ("000000010000000000000001".to_owned(), vec![1; 5000]),
        ("x".to_owned(), vec![2; 3]),
    ];
    std::fs::write(dir.join("ours.tar"), stream(&files)).unwrap();
    let run = |args: &[&str]| {
        let output = Command::new("tar")
            .args(args)
            .current_dir(dir)
            .output()
            .unwrap();
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{output:?}"
        );
    };
    run(&["-xf", "ours.tar"]);
    for (name, content) in &files {
        assert_eq!(std::fs::read(dir.join(name)).unwrap(), *content);
    }
    std::fs::create_dir(dir.join("folder")).unwrap();
    std::os::unix::fs::symlink("/elsewhere", dir.join("folder/link")).unwrap();
    run(&["--format=ustar", "-cf", "theirs.tar", "folder", "x"]);
    let found = read(&std::fs::read(dir.join("theirs.tar")).unwrap(), &[999]).unwrap();
    let kinds: Vec<MemberKind> = found.iter().map(|(member, _)| member.kind).collect();
    assert_eq!(
        kinds,
        [MemberKind::Folder, MemberKind::Link, MemberKind::File]
    );
    assert_eq!(found[1].0.target, b"/elsewhere");
    assert_eq!(found[2].1, [2; 3]);
}
