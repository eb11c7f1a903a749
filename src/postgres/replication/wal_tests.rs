//! Streams in any pieces, and streams of nonsense.

use super::*;
use proptest::prelude::*;

fn wal_message(start: u64, end: u64, bytes: &[u8]) -> Vec<u8> {
    let mut body = vec![b'w'];
    for number in [start, end, 42] {
        body.extend_from_slice(&number.to_be_bytes());
    }
    body.extend_from_slice(bytes);
    body
}

/// The moment that the messages here carry.
fn sent_at() -> Timestamp {
    "2000-01-01T00:00:00.000042Z".parse().unwrap()
}

fn keepalive(end: u64, reply: u8) -> Vec<u8> {
    let mut body = vec![b'k'];
    for number in [end, 42] {
        body.extend_from_slice(&number.to_be_bytes());
    }
    body.push(reply);
    body
}

/// Feeds a message in pieces of these sizes; what came of it.
fn feed(decoder: &mut Decoder, body: &[u8], sizes: &[usize]) -> Result<Vec<(Message, Vec<u8>)>> {
    let mut found = Vec::new();
    let (mut at, mut sizes) = (0, sizes.iter().cycle());
    loop {
        let end = body.len().min(at + sizes.next().unwrap());
        let piece = &body[at..end];
        if let Some(message) = decoder.piece(piece, end == body.len())? {
            let count = match message {
                Message::Wal { count, .. } => count,
                Message::Keepalive { .. } => 0,
            };
            found.push((message, piece[piece.len() - count..].to_vec()));
        }
        at = end;
        if at == body.len() {
            return Ok(found);
        }
    }
}

proptest! {
    #[test]
    fn wal_survives_any_cut(
        start in 0_u64..1 << 60,
        messages in prop::collection::vec(prop::option::of(prop::collection::vec(any::<u8>(), 0..200)), 1..20),
        sizes in prop::collection::vec(0_usize..60, 1..8).prop_filter("some size must move on", |sizes| sizes.iter().any(|size| *size > 0)),
    ) {
        let mut decoder = Decoder::new(Lsn(start));
        let (mut sent, mut received) = (Vec::new(), Vec::new());
        for message in messages {
            let at = start + sent.len() as u64;
            let Some(bytes) = message else {
                let found = feed(&mut decoder, &keepalive(at + 7, 1), &sizes).unwrap();
                prop_assert_eq!(found.len(), 1);
                prop_assert_eq!(found[0].0, Message::Keepalive { sent: Lsn(at + 7), time: sent_at(), reply: true });
                continue;
            };
            sent.extend_from_slice(&bytes);
            for (message, piece) in feed(&mut decoder, &wal_message(at, at + 9, &bytes), &sizes).unwrap() {
                let expected = Lsn(start + received.len() as u64);
                prop_assert_eq!(message, Message::Wal { start: expected, count: piece.len(), sent: Lsn(at + 9), time: sent_at() });
                received.extend_from_slice(&piece);
            }
        }
        prop_assert_eq!(decoder.next(), Lsn(start + sent.len() as u64));
        prop_assert_eq!(received, sent);
    }

    #[test]
    fn any_bytes_in_any_pieces_are_messages_or_an_error(
        pieces in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..40), any::<bool>()), 0..30),
        kinds in prop::collection::vec(prop::sample::select(vec![b'w', b'k', b'r', b'x']), 30),
    ) {
        let mut decoder = Decoder::new(Lsn(0));
        for ((mut piece, last), kind) in pieces.into_iter().zip(kinds) {
            if let Some(first) = piece.first_mut() {
                *first = kind;
            }
            match decoder.piece(&piece, last) {
                Ok(Some(Message::Wal { count, .. })) => prop_assert!(count <= piece.len()),
                Ok(_) => {}
                Err(_) => break,
            }
        }
    }
}

#[test]
fn a_gap_a_step_back_and_cut_messages_are_errors() {
    let next = || Decoder::new(Lsn(100));
    let good = wal_message(100, 200, b"wal");
    assert!(next().piece(&good, true).is_ok());
    for start in [99, 101, 0, u64::MAX] {
        let error = next()
            .piece(&wal_message(start, 200, b"wal"), true)
            .unwrap_err();
        assert!(error.fact.contains("0/64 was next"), "{error}");
    }
    for cut in 0..25 {
        assert!(next().piece(&good[..cut], true).is_err(), "{cut}");
    }
    let ping = keepalive(1, 0);
    for cut in 0..18 {
        assert!(next().piece(&ping[..cut], true).is_err(), "{cut}");
    }
    assert!(next().piece(&[ping, vec![0]].concat(), true).is_err());
}

#[test]
fn the_status_is_laid_out_as_the_manual_says() {
    let status = Status {
        write: Lsn(0x0102_0304_0506_0708),
        flush: Lsn(9),
        reply: true,
    };
    let body = status.encode("2000-01-01T00:00:01Z".parse().unwrap());
    let mut expected = vec![b'r', 1, 2, 3, 4, 5, 6, 7, 8];
    expected.extend([0, 0, 0, 0, 0, 0, 0, 9]);
    expected.extend([0; 8]);
    expected.extend(1_000_000_u64.to_be_bytes());
    expected.push(1);
    assert_eq!(&body[..], expected);
}
