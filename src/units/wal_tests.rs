//! Positions and names of segments, compared with what PostgreSQL itself prints.

use super::*;
use proptest::prelude::*;

fn sizes() -> impl Strategy<Value = SegmentSize> {
    (20_u32..=30).prop_map(|shift| SegmentSize::new(1 << shift).unwrap())
}

/// From `pg_walfile_name` with 16 MiB, 1 MiB and 1 GiB segments.
#[test]
fn names_are_those_of_the_server() {
    let timeline = Timeline::new(3).unwrap();
    for (lsn, mib, name) in [
        ("0/1000000", 16, "000000030000000000000001"),
        ("16/B374D848", 16, "0000000300000016000000B3"),
        ("16/B374D848", 1, "000000030000001600000B37"),
        ("16/B374D848", 1024, "000000030000001600000002"),
        ("FFFFFFFF/FFFFFFFF", 16, "00000003FFFFFFFF000000FF"),
    ] {
        let size = SegmentSize::new(mib << 20).unwrap();
        let segment = SegmentName::holding(timeline, lsn.parse().unwrap(), size);
        assert_eq!(segment.to_string(), name);
    }
}

#[test]
fn what_is_no_position_timeline_or_name_is_refused() {
    for text in [
        "",
        "/",
        "0",
        "0/",
        "/0",
        "0/G",
        "+1/0",
        "123456789/0",
        "0/123456789",
        "0/0 ",
    ] {
        assert!(text.parse::<Lsn>().is_err(), "{text:?}");
    }
    for text in ["", "0", "-1", "+1", "4294967296", "1 ", "x"] {
        assert!(text.parse::<Timeline>().is_err(), "{text:?}");
    }
    for text in [
        "00000001000000000000000",
        "0000000100000000000000001",
        "00000001000000000000000a",
        "000000000000000000000001",
        "000000010000000000000001.partial",
        "0000000é000000000000001",
    ] {
        assert!(!SegmentName::is_name(text), "{text:?}");
    }
    assert_eq!(
        Timeline::parse_history_name("0000000A.history"),
        Timeline::new(10)
    );
    for text in [
        "0000000a.history",
        "A.history",
        "00000000.history",
        "0000000A",
    ] {
        assert_eq!(Timeline::parse_history_name(text), None, "{text:?}");
    }
    for bytes in [0, 1 << 19, (16 << 20) + 1, 1 << 31] {
        assert!(SegmentSize::new(bytes).is_err(), "{bytes}");
    }
    for text in ["16", "MB", "3MB", "2GB", "5000GB", "-1MB"] {
        assert!(SegmentSize::parse(text).is_err(), "{text}");
    }
    assert_eq!(SegmentSize::parse("16MB").unwrap(), SegmentSize::DEFAULT);
    assert_eq!(SegmentSize::parse("1GB").unwrap().bytes(), 1 << 30);
}

#[test]
fn a_name_of_another_segment_size_is_damage() {
    let name: SegmentName = "000000010000000000000100".parse().unwrap();
    assert!(name.start(SegmentSize::DEFAULT).is_err());
    assert_eq!(
        name.start(SegmentSize::new(1 << 20).unwrap()).unwrap(),
        Lsn(0x1000_0000)
    );
}

proptest! {
    #[test]
    fn positions_survive_their_text(number in any::<u64>()) {
        prop_assert_eq!(Lsn(number).to_string().parse::<Lsn>().unwrap(), Lsn(number));
        let json = serde_json::to_string(&Lsn(number)).unwrap();
        prop_assert_eq!(serde_json::from_str::<Lsn>(&json).unwrap(), Lsn(number));
    }

    #[test]
    fn a_segment_holds_the_positions_from_its_start_to_the_next(
        number in any::<u64>(), timeline in 1_u32.., size in sizes(),
    ) {
        let (lsn, timeline) = (Lsn(number), Timeline::new(timeline).unwrap());
        let name = SegmentName::holding(timeline, lsn, size);
        prop_assert_eq!(name.to_string().parse::<SegmentName>().unwrap(), name);
        let start = name.start(size).unwrap();
        prop_assert_eq!(start, lsn.segment_start(size));
        prop_assert_eq!(start.plus(lsn.segment_offset(size)), lsn);
        prop_assert_eq!(SegmentName::holding(timeline, start, size), name);
        let next = name.next(size);
        if start.0.checked_add(size.bytes()).is_some() {
            prop_assert_eq!(next, SegmentName::holding(timeline, start.plus(size.bytes()), size));
            prop_assert!(next > name && next.to_string() > name.to_string());
        } else {
            prop_assert_eq!(next, name);
        }
    }

    #[test]
    fn any_text_is_a_name_or_an_error(text in "\\PC{0,30}|[0-9A-Fa-f/.]{0,30}") {
        let _ = (text.parse::<Lsn>(), text.parse::<Timeline>(), SegmentSize::parse(&text));
        if let Ok(name) = text.parse::<SegmentName>() {
            prop_assert_eq!(name.to_string(), text);
        }
    }
}
