//! The demo's story: figures in, text or JSON out. Pure.

use std::fmt::Write as _;

use serde::Serialize;

use super::fingerprint::Counts;
use super::sample::Shape;
use crate::units::ByteSize;

/// Differences that are listed; the rest is counted.
const SHOWN: usize = 4;

/// What the demo found out, step by step; also its `--json`.
#[derive(Debug, Default, Serialize)]
pub(super) struct Figures {
    pub server_version: String,
    pub pg_dump: String,
    pub jobs: usize,
    pub sample: Shape,
    pub sample_seconds: f64,
    /// What the sample holds, and what every comparison looks at.
    pub compared: Counts,
    pub backup: Backup,
    pub verify_seconds: f64,
    pub verified: String,
    pub base: Base,
    pub afternoon_seconds: f64,
    /// The second before the disaster.
    pub moment: String,
    pub disaster_differences: usize,
    pub restored: Restored,
    pub by_hand: Restored,
    /// The cluster at that moment.
    pub recovered: Restored,
    pub total_seconds: f64,
    /// Where the backups are, if they were kept.
    pub kept: Option<String>,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Backup {
    pub id: String,
    pub file: String,
    pub bytes: u64,
    pub raw_bytes: u64,
    pub frames: u64,
    /// The globals' file.
    pub globals: String,
    pub seconds: f64,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Base {
    pub id: String,
    pub bytes: u64,
    pub codec: String,
    pub seconds: f64,
}

/// A way back, and whether what came back is what was there.
#[derive(Debug, Default, Serialize)]
pub(super) struct Restored {
    pub database: String,
    pub seconds: f64,
    pub differences: Vec<String>,
    pub compare_seconds: f64,
}

pub(super) fn opening(figures: &Figures, socket_dir: &str) -> String {
    format!(
        "PostgreSQL {}, a throwaway server in {socket_dir}: it listens on a socket only.\n",
        figures.server_version
    )
}

fn head(number: u32, title: &str, seconds: f64) -> String {
    format!("\n{number}  {title:<58}{seconds:>6.1} s\n")
}

pub(super) fn sample(figures: &Figures) -> String {
    let (shape, counts) = (&figures.sample, &figures.compared);
    head(0, "A shop's database", figures.sample_seconds)
        + &format!(
            "   {} in {} schemas: {} tables ({} are partitions), {} indexes, {} foreign keys,\n   \
             {} rows, {} sequences, {}; JSON with GIN indexes, materialised views, row security.\n   \
             A fingerprint of it is kept for later: schema, rows of every table, sequences, large objects.\n",
            ByteSize(shape.bytes),
            shape.schemas,
            shape.tables,
            shape.partitions,
            shape.indexes,
            shape.foreign_keys,
            grouped(counts.rows),
            counts.sequences,
            count(counts.large_objects as u64, "large object")
        )
}

pub(super) fn backup(figures: &Figures) -> String {
    let backup = &figures.backup;
    head(1, "Backup", backup.seconds)
        + &format!(
            "   $ pgark backup --database {}\n   {}   {} from {} of SQL\n   \
             Plain SQL in {} gzip members, copied over {}. Beside it: .json (the manifest),\n   \
             .idx (what lies where), .sha256 (for sha256sum -c), {} (roles).\n",
            super::sample::DATABASE,
            backup.file,
            ByteSize(backup.bytes),
            ByteSize(backup.raw_bytes),
            backup.frames,
            count(figures.jobs as u64, "connection"),
            backup.globals
        )
}

pub(super) fn verify(figures: &Figures) -> String {
    head(2, "Verify", figures.verify_seconds)
        + &format!(
            "   $ pgark verify latest\n   Every byte read again, its hash compared, every row counted: {}.\n",
            figures.verified
        )
}

pub(super) fn base(figures: &Figures) -> String {
    let base = &figures.base;
    head(3, "Base backup, and WAL from now on", base.seconds)
        + &format!(
            "   $ WAL_STREAMING=on pgark serve\n   $ pgark backup --base\n   {}   {} of tar archives ({}); every change after it is streamed into wal/.\n",
            base.id,
            ByteSize(base.bytes),
            base.codec
        )
}

pub(super) fn afternoon(transactions: u32, figures: &Figures) -> String {
    head(4, "An afternoon of orders", figures.afternoon_seconds)
        + &format!(
            "   {transactions} transactions that no dump has. A second fingerprint is kept: {}.\n",
            figures.moment
        )
}

pub(super) fn disaster(statements: &[&str], figures: &Figures, seconds: f64) -> String {
    let mut text = head(5, "Disaster", seconds);
    for statement in statements {
        let _ = writeln!(text, "   {}=# {statement};", super::sample::DATABASE);
    }
    let differences = count(figures.disaster_differences as u64, "difference");
    text + &format!("   The comparison with the fingerprint now finds {differences}.\n")
}

pub(super) fn restore(figures: &Figures) -> String {
    let restored = &figures.restored;
    head(6, "Restore", restored.seconds)
        + &format!(
            "   $ pgark restore latest\n   Into the new database {}, over {};\n   the damaged one is not touched.\n",
            restored.database,
            count(figures.jobs as u64, "connection")
        )
}

pub(super) fn comparison(figures: &Figures) -> String {
    head(7, "Comparison", figures.restored.compare_seconds) + &verdict(figures, &figures.restored)
}

pub(super) fn by_hand(figures: &Figures, file: &str) -> String {
    let by_hand = &figures.by_hand;
    head(8, "The same without pgark", by_hand.seconds)
        + &format!(
            "   $ createdb -T template0 {}\n   $ gunzip -c {file} | psql -X -d {}\n",
            by_hand.database, by_hand.database
        )
        + &verdict(figures, by_hand)
}

pub(super) fn second_before(figures: &Figures) -> String {
    let recovered = &figures.recovered;
    head(9, "The second before", recovered.seconds)
        + &format!(
            "   $ pgark restore --data-dir DIR --at {} --start\n   A second server, from the base backup and the WAL: the afternoon is there, the disaster is not.\n",
            figures.moment
        )
        + &verdict(figures, recovered)
}

fn verdict(figures: &Figures, restored: &Restored) -> String {
    if restored.differences.is_empty() {
        let counts = &figures.compared;
        return format!(
            "   Equal: {} lines of schema (pg_dump {}), {} rows in {} tables and views,\n   {} sequences, {}, the database's settings and rights.\n",
            counts.schema_lines,
            figures.pg_dump,
            grouped(counts.rows),
            counts.relations,
            counts.sequences,
            count(counts.large_objects as u64, "large object")
        );
    }
    let mut text = format!(
        "   DIFFERENT from what was backed up, {}:\n",
        count(restored.differences.len() as u64, "difference")
    );
    for line in restored.differences.iter().take(SHOWN) {
        let _ = writeln!(text, "   - {line}");
    }
    text
}

/// The error's fact when a restored database differs.
pub(super) fn failure(restored: &Restored) -> String {
    let mut listed: Vec<&str> = restored.differences.iter().map(String::as_str).collect();
    let more = listed.len().saturating_sub(SHOWN);
    listed.truncate(SHOWN);
    let mut text = format!(
        "database {} differs from what was backed up: {}",
        restored.database,
        listed.join("; ")
    );
    if more > 0 {
        let _ = write!(text, "; and {more} more");
    }
    text
}

pub(super) fn ending(figures: &Figures) -> String {
    let left = match &figures.kept {
        Some(path) => format!("The backups are in {path}; the rest is gone"),
        None => "Nothing is left behind".to_owned(),
    };
    format!(
        "\nAll of it came back: the backup both ways, and the second before. {left}. {:.1} s in all.\n",
        figures.total_seconds
    )
}

fn count(number: u64, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

/// `1234567` as `1 234 567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_set_apart() {
        let shown: Vec<String> = [0, 999, 1000, 1_234_567].into_iter().map(grouped).collect();
        assert_eq!(shown, ["0", "999", "1 000", "1 234 567"]);
    }

    #[test]
    fn a_difference_never_reads_as_equal() {
        let mut figures = Figures::default();
        assert!(comparison(&figures).contains("Equal"));
        figures.restored.database = "copy".to_owned();
        figures.restored.differences = (0..7).map(|n| format!("table t{n} is missing")).collect();
        let text = comparison(&figures);
        assert!(
            text.contains("DIFFERENT") && !text.contains("Equal"),
            "{text}"
        );
        assert_eq!(
            failure(&figures.restored),
            "database copy differs from what was backed up: table t0 is missing; table t1 is missing; \
             table t2 is missing; table t3 is missing; and 3 more"
        );
    }

    #[test]
    fn the_end_says_where_the_backups_are() {
        let mut figures = Figures::default();
        assert!(ending(&figures).contains("Nothing is left behind"));
        figures.kept = Some("/tmp/x".to_owned());
        assert!(ending(&figures).contains("/tmp/x"));
    }
}
