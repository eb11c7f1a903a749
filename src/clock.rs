//! The only place that reads the system's clock, so that everything else takes `now`
//! as a value and can be tested.

use jiff::Timestamp;

/// The present moment, UTC, cut to whole seconds (names and manifests carry no more).
#[must_use]
pub fn now() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The present moment with its fraction, for messages whose delay is measured.
#[must_use]
pub fn precise() -> Timestamp {
    Timestamp::now()
}
