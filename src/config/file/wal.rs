//! `[wal]`: the slot, and what waits. For every cluster alike: slots are per server.

use toml::Spanned;
use toml::de::DeValue;

use super::Parser;
use crate::config::SlotPolicy;
use crate::config::form::size;
use crate::config::wal::Keys;
use crate::error::Result;

/// The keys, in the order of the documentation.
const KEYS: [&str; 5] = [
    "slot_name",
    "slot_policy",
    "slot_limit",
    "backlog_max",
    "chain_max",
];

/// A slot or a backlog smaller than the smallest segment could never hold one.
const SIZE_MIN: u64 = 1 << 20;

impl Parser<'_> {
    pub(super) fn wal(&self, value: &Spanned<DeValue>) -> Result<Keys> {
        let DeValue::Table(table) = value.get_ref() else {
            return Err(self.error(value.span().start, "expected a table [wal]"));
        };
        let mut found = Keys::default();
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "slot_name" => found.slot_name = self.slot_name(value)?,
                "slot_policy" => found.slot_policy = self.slot_policy(value)?,
                "slot_limit" => found.slot_limit_bytes = self.size(value)?,
                "backlog_max" => found.backlog_max_bytes = self.size(value)?,
                "chain_max" => found.chain_max = self.count(value, 1, 1000)?,
                other => {
                    let text = format!("unknown key {other:?} in [wal]");
                    let hint = format!("its keys: {}", KEYS.join(", "));
                    return Err(self.error(key.span().start, &text).hint(hint));
                }
            }
        }
        Ok(found)
    }

    /// As PostgreSQL does (`ReplicationSlotValidateName`).
    fn slot_name(&self, value: &Spanned<DeValue>) -> Result<String> {
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        match value.get_ref() {
            DeValue::String(text) if (1..=63).contains(&text.len()) && text.chars().all(good) => {
                Ok(text.to_string())
            }
            _ => Err(self
                .error(
                    value.span().start,
                    "expected the name of a replication slot",
                )
                .hint("1 to 63 of small letters, digits and `_`, in quotes")),
        }
    }

    fn slot_policy(&self, value: &Spanned<DeValue>) -> Result<SlotPolicy> {
        let text = match value.get_ref() {
            DeValue::String(text) => text.as_ref(),
            _ => "",
        };
        match text {
            "protect-primary" => Ok(SlotPolicy::ProtectPrimary),
            "protect-archive" => Ok(SlotPolicy::ProtectArchive),
            _ => Err(self.error(
                value.span().start,
                "expected \"protect-primary\" or \"protect-archive\"",
            )),
        }
    }

    fn size(&self, value: &Spanned<DeValue>) -> Result<u64> {
        let bytes = match value.get_ref() {
            DeValue::String(text) => size(text),
            _ => None,
        };
        bytes.filter(|bytes| *bytes >= SIZE_MIN).ok_or_else(|| {
            self.error(
                value.span().start,
                "expected a size of 1MB or more, with its unit in quotes: \"512MB\", \"16GB\"",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{all_refused, read};
    use crate::config::SlotPolicy;

    #[test]
    fn slot_and_backlog_are_keys_of_the_file_for_every_cluster() {
        let usual = read("", &[]).unwrap().remove(0).wal;
        assert_eq!(usual.slot_name, "pgark");
        assert_eq!(usual.slot_policy, SlotPolicy::ProtectPrimary);
        assert_eq!(usual.slot_limit_bytes, 16 << 30);
        assert_eq!((usual.backlog_max_bytes, usual.chain_max), (64 << 20, 7));
        let text = "[wal]\nslot_name = \"ark_2\"\nslot_policy = \"protect-archive\"\n\
            slot_limit = \"512MB\"\nbacklog_max = \"8MB\"\nchain_max = 3\n\
            [[cluster]]\nname = \"a\"\n[[cluster]]\nname = \"b\"\nwal_streaming = true";
        let set = read(text, &[]).unwrap();
        for config in &set {
            assert_eq!(config.wal.slot_name, "ark_2");
            assert_eq!(config.wal.slot_policy, SlotPolicy::ProtectArchive);
            assert_eq!(config.wal.slot_limit_bytes, 512 << 20);
            assert_eq!(config.wal.backlog_max_bytes, 8 << 20);
            assert_eq!(config.wal.chain_max, 3);
        }
        assert_eq!((set[0].wal.streaming, set[1].wal.streaming), (false, true));
    }

    #[test]
    fn what_no_server_would_take_is_refused_with_its_place() {
        let long = format!("[wal]\nslot_name = \"{}\"", "a".repeat(64));
        all_refused(&[
            ("wal = 1", "expected a table [wal]"),
            ("[wal]\nslot = 'a'", "unknown key \"slot\" in [wal]"),
            ("[wal]\nslot_name = ''", "name of a replication slot"),
            ("[wal]\nslot_name = 'Ark'", "name of a replication slot"),
            ("[wal]\nslot_name = 'a-b'", "name of a replication slot"),
            (&long, "name of a replication slot"),
            ("[wal]\nslot_policy = 'both'", "protect-primary"),
            (
                "[wal]\nslot_limit = 16",
                "line 2, column 14: expected a size",
            ),
            ("[wal]\nslot_limit = '16'", "expected a size"),
            ("[wal]\nbacklog_max = '1kB'", "1MB or more"),
            ("[wal]\nchain_max = 0", "from 1 to 1000"),
            (
                "[[cluster]]\nname = 'a'\nslot_name = 'b'",
                "unknown key \"slot_name\" in [[cluster]]",
            ),
        ]);
    }
}
