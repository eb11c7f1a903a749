//! When a backup is suspect. Values only: keys of the file, with their defaults.

/// What counts as a fall against the good backups before it; `crate::anomaly` decides by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anomaly {
    /// Rows of a table (and of all, and large objects) that fall by so much of a hundred. 0: off.
    pub rows_fall_percent: u32,
    /// Tables with fewer rows are small: their rows are not compared.
    pub rows_min: u64,
    /// The uncompressed size, likewise. 0: off.
    pub size_fall_percent: u32,
    /// Smaller dumps are not compared by size.
    pub size_min_bytes: u64,
    /// Whether a table that is gone counts.
    pub table_gone: bool,
    /// One with fewer rows than this does not.
    pub table_gone_rows_min: u64,
    /// Good backups of the database that are looked back on.
    pub history: usize,
}

impl Default for Anomaly {
    fn default() -> Anomaly {
        Anomaly {
            rows_fall_percent: 50,
            rows_min: 1000,
            size_fall_percent: 50,
            size_min_bytes: 1 << 20,
            table_gone: true,
            table_gone_rows_min: 1,
            history: 14,
        }
    }
}
