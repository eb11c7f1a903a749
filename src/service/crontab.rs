//! The schedule as a crontab, where the old service's users look for it.
//!
//! Invariants: nothing reads it but people; one that cannot be written stops nothing. It is
//! replaced whole.

use std::path::Path;

use crate::error::{Context, Result};
use crate::store::local;

/// What the old service's line ran.
const COMMAND: &str = "/usr/local/bin/backup.sh >> /var/log/cron/backup-cron.log 2>&1";

/// Writes it.
///
/// # Errors
/// `Failed` with the path.
pub fn write(path: &Path, schedule: &str, zone: Option<&str>) -> Result<()> {
    let context = || format!("cannot write {}", path.display());
    if let Some(folder) = path.parent() {
        local::create_dir(folder).context(context)?;
    }
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    std::fs::write(&new, text(schedule, zone))
        .and_then(|()| std::fs::rename(&new, path))
        .context(context)
}

fn text(schedule: &str, zone: Option<&str>) -> String {
    // A schedule may name its own zone, at its front.
    let (own, fields) = match schedule.trim().split_once(char::is_whitespace) {
        Some((own, fields)) if own.contains("TZ=") => (own.split_once('='), fields.trim()),
        _ => (None, schedule.trim()),
    };
    let zone = own.map(|(_, zone)| zone).or(zone);
    let zone = zone.map_or_else(String::new, |zone| format!("CRON_TZ={zone}\n"));
    format!(
        "# For your eyes: the service keeps this schedule itself. Change BACKUP_SCHEDULE instead.\n\
         {zone}{fields} {COMMAND}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_crontabs_line_with_the_zone_before_it() {
        let last = |text: String| text.lines().last().map(str::to_owned).unwrap_or_default();
        let line = "0 2 * * * /usr/local/bin/backup.sh >> /var/log/cron/backup-cron.log 2>&1";
        assert_eq!(last(text("0 2 * * *", None)), line);
        let zoned = text("CRON_TZ=Asia/Tokyo 0 2 * * *", Some("UTC"));
        assert!(zoned.ends_with(&format!("\nCRON_TZ=Asia/Tokyo\n{line}\n")));
        assert!(text("@daily", Some("UTC")).contains("CRON_TZ=UTC\n@daily /usr"));
    }
}
