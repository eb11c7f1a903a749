//! What keeps a restored server from reaching into production, and makes it recover to the
//! backup's own end, or to a moment behind it, without a delay. Pure.
//!
//! Lines for the end of `postgresql.auto.conf`, which is read last: of several values for one
//! setting, the last one counts.

use std::collections::BTreeMap;

use super::recovery::Recovery;

/// Told apart from a person's settings.
pub(super) const HEAD: &str = "# Added by pgark restore: this server is a copy.";

/// The settings for a server of this version.
pub(super) fn settings(version: u32, recovery: Option<&Recovery<'_>>) -> String {
    let mut lines = vec![
        HEAD.to_owned(),
        "# It archives nothing, follows nobody, waits for no standby and applies no publication."
            .to_owned(),
        "# Before it takes the place of the lost server, remove what you need from here."
            .to_owned(),
    ];
    let mut set = |name: &str, value: &str| lines.push(format_line(name, value));
    for (name, value) in [
        ("archive_mode", "off"),
        ("archive_command", ""),
        ("archive_cleanup_command", ""),
        ("recovery_end_command", ""),
        ("primary_conninfo", ""),
        ("primary_slot_name", ""),
        ("synchronous_standby_names", ""),
        ("max_logical_replication_workers", "0"),
        // A backup of a standby that lags on purpose brings its delay along.
        ("recovery_min_apply_delay", "0"),
        // All that is needed lies in pg_wal; an empty command is refused.
        ("restore_command", "false"),
        ("recovery_target_name", ""),
        ("recovery_target_time", ""),
        ("recovery_target_xid", ""),
        ("recovery_target_lsn", ""),
        ("recovery_target", "immediate"),
        ("recovery_target_action", "promote"),
        ("recovery_target_timeline", "current"),
    ] {
        set(name, value);
    }
    if version >= 150_000 {
        set("archive_library", "");
    }
    if version >= 170_000 {
        set("sync_replication_slots", "off");
        set("synchronized_standby_slots", "");
    }
    if let Some(recovery) = recovery {
        // Of several values the last one counts; two targets at once are refused.
        set("recovery_target", "");
        set("restore_command", &recovery.restore_command);
        set("recovery_end_command", &recovery.recovery_end_command);
        for (name, value) in &recovery.settings {
            set(name, value);
        }
    }
    let mut text = String::from("\n");
    for line in lines {
        text.push_str(&line);
        text.push('\n');
    }
    text
}

/// The files of a configuration that did not lie in the data directory (Debian), where they are
/// missing: the least with which the server recovers and lets its own user in.
pub(super) fn configuration(found: &BTreeMap<String, String>) -> [(&'static str, String); 3] {
    let mut conf = String::from(
        "# Made by pgark restore: the configuration of the lost server did not lie in its data\n\
         # directory and is in no base backup. These are its values that recovery needs.\n",
    );
    for name in [
        "max_connections",
        "max_worker_processes",
        "max_wal_senders",
        "max_prepared_transactions",
        "max_locks_per_transaction",
        "wal_level",
        "shared_preload_libraries",
    ] {
        if let Some(value) = found.get(name).filter(|value| !value.is_empty()) {
            conf.push_str(&format_setting(name, value));
        }
    }
    conf.push_str("listen_addresses = 'localhost'\n");
    let hba = "# Made by pgark restore.\n\
        local   all  all                peer\n\
        host    all  all  127.0.0.1/32  scram-sha-256\n\
        host    all  all  ::1/128       scram-sha-256\n";
    [
        ("postgresql.conf", conf),
        ("pg_hba.conf", hba.to_owned()),
        ("pg_ident.conf", String::new()),
    ]
}

fn format_setting(name: &str, value: &str) -> String {
    format!("{}\n", format_line(name, value))
}

fn format_line(name: &str, value: &str) -> String {
    let quoted = value.replace('\\', "\\\\").replace('\'', "''");
    format!("{name} = '{quoted}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_into_production_is_closed() {
        let text = settings(170_000, None);
        for line in [
            "archive_mode = 'off'",
            "archive_library = ''",
            "primary_conninfo = ''",
            "synchronous_standby_names = ''",
            "max_logical_replication_workers = '0'",
            "recovery_min_apply_delay = '0'",
            "restore_command = 'false'",
            "recovery_target = 'immediate'",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}");
        }
        assert!(!settings(140_000, None).contains("archive_library"));
        assert!(!settings(160_000, None).contains("sync_replication_slots"));
    }

    #[test]
    fn a_moment_goes_before_the_end_of_the_backup() {
        let recovery = Recovery {
            settings: vec![("recovery_target_name", "it's".to_owned())],
            restore_command: "'/a b/pgark' wal-get %f %p".to_owned(),
            recovery_end_command: String::new(),
            fetch: None,
        };
        let text = settings(170_000, Some(&recovery));
        let last = |name: &str| {
            let mut lines = text.lines().rev();
            let found = lines.find(|line| line.starts_with(&format!("{name} = ")));
            found.unwrap().to_owned()
        };
        assert_eq!(last("recovery_target"), "recovery_target = ''");
        assert_eq!(
            last("recovery_target_name"),
            "recovery_target_name = 'it''s'"
        );
        assert_eq!(
            last("restore_command"),
            "restore_command = '''/a b/pgark'' wal-get %f %p'"
        );
    }

    #[test]
    fn values_stay_in_their_quotes() {
        let found = [
            ("shared_preload_libraries", "a'b\\c"),
            ("max_connections", "77"),
        ];
        let found = found
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        let [(_, conf), (_, hba), _] = configuration(&found);
        assert!(conf.contains("shared_preload_libraries = 'a''b\\\\c'\n"));
        assert!(conf.contains("max_connections = '77'\n") && !hba.contains("trust"));
    }
}
