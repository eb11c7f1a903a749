//! `[anomaly]`: when a backup is suspect.

use toml::Spanned;
use toml::de::DeValue;

use super::Parser;
use crate::config::Anomaly;
use crate::error::Result;

/// The keys, in the order of the documentation.
pub(super) const KEYS: [&str; 7] = [
    "rows_fall_percent",
    "rows_min",
    "size_fall_percent",
    "size_min_bytes",
    "table_gone",
    "table_gone_rows_min",
    "history",
];

impl Parser<'_> {
    pub(super) fn anomaly(&self, value: &Spanned<DeValue>) -> Result<Anomaly> {
        let DeValue::Table(table) = value.get_ref() else {
            return Err(self.error(value.span().start, "expected a table [anomaly]"));
        };
        let mut found = Anomaly::default();
        let percent = |value| -> Result<u32> {
            let percent = self.count(value, 0, 100)?;
            Ok(u32::try_from(percent).unwrap_or(100))
        };
        let large = |value| -> Result<u64> {
            self.count(value, 0, usize::MAX >> 1)
                .map(|count| count as u64)
        };
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "rows_fall_percent" => found.rows_fall_percent = percent(value)?,
                "rows_min" => found.rows_min = large(value)?,
                "size_fall_percent" => found.size_fall_percent = percent(value)?,
                "size_min_bytes" => found.size_min_bytes = large(value)?,
                "table_gone" => {
                    let DeValue::Boolean(switch) = value.get_ref() else {
                        return Err(self.error(value.span().start, "expected true or false"));
                    };
                    found.table_gone = *switch;
                }
                "table_gone_rows_min" => found.table_gone_rows_min = large(value)?,
                "history" => found.history = self.count(value, 1, 1000)?,
                other => {
                    let text = format!("unknown key {other:?} in [anomaly]");
                    let hint = format!("its keys: {}", KEYS.join(", "));
                    return Err(self.error(key.span().start, &text).hint(hint));
                }
            }
        }
        Ok(found)
    }
}
