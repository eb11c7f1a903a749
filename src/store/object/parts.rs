//! How large the parts of an upload are. Pure.
//!
//! Rules of the servers: at most 10,000 parts, each of 5 MiB to 5 GiB but the last; Cloudflare R2
//! also wants all but the last equal. So the size is chosen before the first part, from what the
//! caller expects. Only an object that outgrows its expectation by far gets larger parts at its
//! end: R2 refuses those, but there the upload would have ended at 10,000 equal parts anyway.

/// One mebibyte.
const MIB: u64 = 1 << 20;

/// A server takes no more parts than this.
pub(super) const PARTS_MAX: u32 = 10_000;

/// The parts that all have the first one's size.
const EQUAL_PARTS: u32 = 9_000;

/// After how many parts the size doubles from there on.
const DOUBLES_EVERY: u32 = 125;

/// The largest multiple of the first size.
const DOUBLINGS_MAX: u32 = 5;

/// For an unknown size: 140 GiB in equal parts, 450 GiB in all.
const UNKNOWN_BYTES: u64 = 16 * MIB;

/// For a small expectation: less memory, and 70 GiB in equal parts all the same.
const LEAST_BYTES: u64 = 8 * MIB;

/// What an upload may hold in memory, as long as its parts are small enough.
const MEMORY_BYTES: u64 = 64 * MIB;

/// The size of an upload's first parts.
///
/// An expectation may be exceeded by half before the size has to grow. Up to 200 GB an upload
/// holds at most 64 MiB; above, two parts: 1.7 GB for 5 TB.
#[must_use]
pub(super) fn first_bytes(expected_bytes: Option<u64>) -> u64 {
    let Some(expected) = expected_bytes else {
        return UNKNOWN_BYTES;
    };
    let with_reserve = expected.saturating_add(expected / 2);
    with_reserve
        .div_ceil(u64::from(EQUAL_PARTS))
        .next_multiple_of(MIB)
        .max(LEAST_BYTES)
}

/// The size of the part with this number, from 0.
#[must_use]
pub(super) fn bytes(first: u64, number: u32) -> u64 {
    match number.checked_sub(EQUAL_PARTS) {
        None => first,
        Some(beyond) => first << (beyond / DOUBLES_EVERY + 1).min(DOUBLINGS_MAX),
    }
}

/// How many parts may be on their way while the next one is filled.
#[must_use]
pub(super) fn in_flight(part_bytes: u64) -> usize {
    match MEMORY_BYTES / part_bytes {
        0..=2 => 1,
        3 => 2,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(first: u64) -> u64 {
        (0..PARTS_MAX).map(|number| bytes(first, number)).sum()
    }

    #[test]
    fn five_terabytes_fit_in_equal_parts() {
        let first = first_bytes(Some(5_000_000_000_000));
        assert!(first * u64::from(EQUAL_PARTS) >= 5_000_000_000_000);
        assert!(first < 5 << 30, "a part has at most 5 GiB");
    }

    #[test]
    fn expectation_may_be_wrong_by_half_and_then_by_far() {
        for expected in [1, 1 << 30, 200 << 30, 3_000_000_000_000] {
            let first = first_bytes(Some(expected));
            assert!(first * u64::from(EQUAL_PARTS) >= expected / 2 * 3);
            assert!(all(first) >= 4 * expected, "{expected}");
        }
        assert!(all(first_bytes(None)) >= 440 << 30);
    }

    #[test]
    fn parts_are_equal_until_nine_tenths_are_used() {
        assert_eq!(
            bytes(UNKNOWN_BYTES, 0),
            bytes(UNKNOWN_BYTES, EQUAL_PARTS - 1)
        );
        assert_eq!(bytes(UNKNOWN_BYTES, EQUAL_PARTS), 2 * UNKNOWN_BYTES);
        assert!(bytes(8 * MIB, PARTS_MAX - 1) <= 5 << 30);
    }

    #[test]
    fn memory_is_bounded_while_parts_are_small() {
        for part in [LEAST_BYTES, UNKNOWN_BYTES, 20 * MIB, 32 * MIB] {
            assert!(
                (in_flight(part) as u64 + 1) * part <= MEMORY_BYTES,
                "{part}"
            );
        }
        assert_eq!(in_flight(900 * MIB), 1);
    }
}
