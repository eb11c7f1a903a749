//! The two things that a restore needs of `pg_control`. No I/O.
//!
//! Source: `ControlFileData` in `pg_control.h`; PostgreSQL 14 to 18. The identifier is its first
//! field. The sizes stand behind `floatFormat`, a constant that is there to be recognised.

use crate::error::{Error, Result};
use crate::units::{SegmentSize, SystemId};

/// `FLOATFORMAT_VALUE`.
const FLOAT_FORMAT: f64 = 1_234_567.0;
/// From there to `xlog_seg_size`: the constant, `blcksz`, `relseg_size`, `xlog_blcksz`.
const TO_SEGMENT_SIZE: usize = 20;

/// Which cluster it is, and how long its segments are.
///
/// # Errors
/// `Damage` for what is no `pg_control`.
pub fn read(content: &[u8]) -> Result<(SystemId, SegmentSize)> {
    let found = || {
        let system = u64::from_le_bytes(content.get(..8)?.try_into().ok()?);
        let mark = FLOAT_FORMAT.to_le_bytes();
        let at = content.windows(8).position(|bytes| bytes == mark)? + TO_SEGMENT_SIZE;
        let size = u32::from_le_bytes(content.get(at..at + 4)?.try_into().ok()?);
        Some((SystemId(system), SegmentSize::new(size).ok()?))
    };
    found().ok_or_else(|| {
        Error::damage("global/pg_control is none of a PostgreSQL server that pgark knows")
            .hint("run wal-get in the data directory, as restore_command does, or give --system-id")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifier_and_size_are_found_and_nothing_else_passes() {
        let mut file = vec![0_u8; 300];
        file[..8].copy_from_slice(&77_u64.to_le_bytes());
        file[200..208].copy_from_slice(&FLOAT_FORMAT.to_le_bytes());
        file[220..224].copy_from_slice(&(64_u32 << 20).to_le_bytes());
        let (system, size) = read(&file).unwrap();
        assert_eq!((system.0, size.bytes()), (77, 64 << 20));
        file[220] = 1;
        assert!(read(&file).is_err());
        assert!(read(&[]).is_err());
        assert!(read(&[0; 8192]).is_err());
    }
}
