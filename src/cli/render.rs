//! How backups look: as rows of a table, as a page, as JSON with stable fields. Pure.

use std::fmt::Write as _;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::catalog::list::{Entry, State};
use crate::catalog::manifest::{BaseRecord, Manifest};
use crate::prune::Verdict;
use crate::status::windows::{Window, rpo};
use crate::status::{Bases, Status};
use crate::units::ByteSize;

/// Aligns columns by their widest cell; two blanks between them, none at the end.
pub(super) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let head: Vec<String> = header.iter().map(ToString::to_string).collect();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// A backup and the stores that hold it.
pub(super) struct Listed {
    /// Before its id, with several clusters.
    pub prefix: String,
    pub entry: Entry,
    pub stores: Vec<String>,
}

/// `list` for people.
pub(super) fn list(entries: &[Listed]) -> String {
    let rows: Vec<Vec<String>> = entries
        .iter()
        .map(|listed| {
            let (entry, stores) = (&listed.entry, &listed.stores);
            vec![
                format!("{}{}", listed.prefix, entry.id),
                entry.state.to_string(),
                ByteSize(entry.bytes).to_string(),
                entry
                    .raw_bytes
                    .map_or_else(|| "-".to_owned(), |bytes| ByteSize(bytes).to_string()),
                entry.started_at.strftime("%Y-%m-%d %H:%M:%S").to_string(),
                stores.join(","),
                entry.reason.clone().unwrap_or_default(),
            ]
        })
        .collect();
    table(
        &[
            "BACKUP",
            "STATE",
            "SIZE",
            "RAW",
            "STARTED (UTC)",
            "STORES",
            "",
        ],
        &rows,
    )
}

/// One backup as JSON. The fields of design §6 are always there.
pub(super) fn entry_json<S: AsRef<str>>(entry: &Entry, stores: &[S], prefix: &str) -> Value {
    // A store that has lost the data does not hold the backup.
    let held = stores.iter().filter(|_| entry.artefact.is_some());
    let stores: Vec<&str> = held.map(AsRef::as_ref).collect();
    let suspect = entry.summary.as_ref();
    let suspect = suspect
        .filter(|_| entry.state == State::Suspect)
        .map_or(&[][..], |summary| &summary.suspect);
    json!({
        "id": format!("{prefix}{}", entry.id),
        "kind": entry.kind.to_string(),
        "cluster": if entry.cluster.is_empty() { "main" } else { &entry.cluster },
        "database": entry.database,
        "started_at": entry.started_at,
        "finished_at": entry.finished_at,
        "state": entry.state,
        "good": entry.good,
        "reason": entry.reason,
        "suspect": suspect,
        "bytes": entry.bytes,
        "raw_bytes": entry.raw_bytes,
        "encrypted": entry.encrypted,
        "stores": stores,
        "sha256": entry.sha256,
        "parent": entry.summary.as_ref().and_then(|summary| summary.parent.as_ref()),
    })
}

/// `prune --dry-run` for people.
pub(super) fn verdicts(verdicts: &[(&str, Verdict)], prefix: &str) -> String {
    let rows: Vec<Vec<String>> = verdicts
        .iter()
        .map(|(store, verdict)| {
            vec![
                (*store).to_owned(),
                format!("{prefix}{}", verdict.entry.id),
                if verdict.keep { "keep" } else { "expire" }.to_owned(),
                ByteSize(verdict.entry.bytes).to_string(),
                verdict.reason.clone(),
            ]
        })
        .collect();
    table(&["STORE", "BACKUP", "", "SIZE", "WHY"], &rows)
}

/// `status` for people; ends with the command to restore now.
pub(super) fn status(status: &Status, store: &str, prefix: &str, now: Timestamp) -> String {
    let rows: Vec<Vec<String>> = status
        .databases
        .iter()
        .map(|one| {
            vec![
                one.name.clone(),
                if one.trouble.is_none() {
                    "ok"
                } else {
                    "NOT OK"
                }
                .to_owned(),
                one.newest
                    .as_ref()
                    .map_or_else(|| "-".to_owned(), |id| format!("{prefix}{id}")),
                one.newest_at
                    .map_or_else(|| "-".to_owned(), |at| age(now.duration_since(at))),
                ByteSize(one.bytes).to_string(),
                one.good.to_string(),
                one.trouble.clone().unwrap_or_default(),
            ]
        })
        .collect();
    let mut text = table(
        &[
            "DATABASE",
            "",
            "NEWEST GOOD BACKUP",
            "AGE",
            "SIZE",
            "GOOD",
            "",
        ],
        &rows,
    );
    let _ = writeln!(text, "\nstore     {store}");
    if let Some(bases) = &status.bases {
        text.push_str(&bases_lines(bases, prefix, now));
    }
    let _ = writeln!(
        text,
        "next run  {} (in {})",
        status.next_run,
        age(status.next_run.duration_since(now))
    );
    if let Some(newest) = status.databases.iter().find_map(|one| one.newest.as_ref()) {
        let _ = writeln!(text, "restore   pgark restore {prefix}{newest}");
    }
    text
}

/// The base backups of a cluster, where any are promised.
fn bases_lines(bases: &Bases, prefix: &str, now: Timestamp) -> String {
    let newest = match (&bases.newest, bases.newest_at) {
        (Some(id), Some(at)) => {
            let (age, bytes) = (age(now.duration_since(at)), ByteSize(bases.bytes));
            format!("{prefix}{id}, {age} old, {bytes}, {} good", bases.good)
        }
        _ => "none".to_owned(),
    };
    let trouble = bases.trouble.as_ref();
    let trouble = trouble.map_or_else(String::new, |why| format!(", NOT OK: {why}"));
    let next = bases.next_run.map_or_else(String::new, |next| {
        format!("next base {next} (in {})\n", age(next.duration_since(now)))
    });
    format!("base      {newest}{trouble}\n{next}")
}

/// A span in its two largest units.
/// The moments that can be restored, oldest first, and what the newest costs.
pub(super) fn windows(windows: &[Window], now: Timestamp) -> String {
    let mut text = String::new();
    for window in windows {
        let to = match window.to {
            Some(to) => format!("{to:.0}"),
            None => format!("LSN {}", window.to_lsn),
        };
        let _ = writeln!(
            text,
            "window    {:.0} to {to} (LSN {} to {}, timeline {}, {} base backups)",
            window.from, window.from_lsn, window.to_lsn, window.timeline, window.bases
        );
        if let Some(name) = window.missing {
            let _ = writeln!(text, "gap       {name} is missing");
        }
    }
    if let Some(lost) = rpo(windows, now) {
        let _ = writeln!(text, "rpo       {}", age(lost));
    }
    text
}

fn age(span: SignedDuration) -> String {
    let seconds = span.as_secs().max(0);
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// `show` for people.
pub(super) fn page(entry: &Entry, store: &str) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(text, "{name:<16}{value}");
        }
    };
    line("backup", entry.id.as_str());
    line("kind", &entry.kind.to_string());
    line("database", entry.database.as_deref().unwrap_or_default());
    line("state", &entry.state.to_string());
    line("reason", entry.reason.as_deref().unwrap_or_default());
    line("started", &entry.started_at.to_string());
    line(
        "finished",
        &entry
            .finished_at
            .map(|time| time.to_string())
            .unwrap_or_default(),
    );
    line(
        "size",
        &format!("{} ({} bytes)", ByteSize(entry.bytes), entry.bytes),
    );
    line("store", store);
    line("sha256", entry.sha256.as_deref().unwrap_or_default());
    if let Some(manifest) = &entry.manifest {
        manifest_lines(manifest, &mut line);
    }
    if let Some(manifest) = entry
        .manifest
        .as_ref()
        .filter(|manifest| !manifest.tables.is_empty())
    {
        let rows: Vec<Vec<String>> = manifest
            .tables
            .iter()
            .map(|table| {
                let name =
                    format!("{}.{}", table.schema, table.name).replace(char::is_control, "?");
                vec![
                    name,
                    table.rows.to_string(),
                    ByteSize(table.bytes).to_string(),
                ]
            })
            .collect();
        text.push('\n');
        text.push_str(&self::table(&["TABLE", "ROWS", "RAW"], &rows));
    }
    text
}

fn manifest_lines(manifest: &Manifest, line: &mut impl FnMut(&str, &str)) {
    line(
        "raw size",
        &format!(
            "{} in {} frames, {}",
            ByteSize(manifest.raw_bytes),
            manifest.frames,
            manifest.codec
        ),
    );
    line("server", &format!("PostgreSQL {}", manifest.server_version));
    line(
        "system id",
        manifest.system_identifier.as_deref().unwrap_or_default(),
    );
    line("program", &manifest.dump_program);
    line("encrypted for", &manifest.recipients.join(", "));
    if let Some(base) = &manifest.base {
        base_lines(manifest, base, line);
    } else if manifest.sealed.is_some() {
        line(
            "sealed",
            "tables and properties; BACKUP_IDENTITY_FILE shows them",
        );
    }
    if manifest.database.is_some() {
        let tables = manifest.table_count.unwrap_or(manifest.tables.len() as u64);
        line("rows", &format!("{} in {tables} tables", manifest.rows));
    }
    if let Some(objects) = manifest
        .large_objects
        .as_ref()
        .filter(|objects| objects.count > 0)
    {
        line(
            "large objects",
            &format!("{} ({})", objects.count, ByteSize(objects.bytes)),
        );
    }
    let extensions: Vec<String> = manifest
        .extensions
        .iter()
        .map(|extension| format!("{} {}", extension.name, extension.version))
        .collect();
    line("extensions", &extensions.join(", "));
    for warning in &manifest.warnings {
        line("warning", &warning.replace(char::is_control, " "));
    }
}

fn base_lines(manifest: &Manifest, base: &BaseRecord, line: &mut impl FnMut(&str, &str)) {
    let parent = manifest.parent.as_ref().map(ToString::to_string);
    line("builds on", &parent.unwrap_or_default());
    line(
        "full because",
        base.full_because.as_deref().unwrap_or_default(),
    );
    line(
        "wal",
        &format!(
            "{} to {} on timeline {}",
            base.start_lsn, base.end_lsn, base.end_timeline
        ),
    );
    if base.from_standby {
        line("taken from", "a standby");
    }
    for archive in &base.archives {
        let place = archive.location.as_deref();
        let place = place.map_or_else(String::new, |place| format!(", {place}"));
        let bytes = ByteSize(archive.file.bytes);
        line("file", &format!("{}, {bytes}{place}", archive.file.name));
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_align_and_lines_end_without_blanks() {
        let rows = vec![
            vec!["a".into(), "1".into()],
            vec!["längst".into(), String::new()],
        ];
        assert_eq!(
            super::table(&["X", "N"], &rows),
            "X       N\na       1\nlängst\n"
        );
    }
}
