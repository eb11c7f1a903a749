//! The old service's manual: its bash blocks in order, and what of them needs S3.
//!
//! The manual lies beside the project (`shared/old-service.md` above it). Where it is missing the
//! blocks below serve; where it is there, they must be its own.

use std::path::PathBuf;

use crate::support::project;

/// Every bash block of the manual, in its order and without its indentation.
pub(super) const BLOCKS: &[&str] = &[
    "\
# Start all services including backup
docker-compose -f docker-compose.prod.yml up -d

# View backup logs
docker-compose -f docker-compose.prod.yml logs -f backup

# Check backup status
docker exec agentic-backup-prod ls -lh /backups/

# Run manual backup
docker exec agentic-backup-prod /usr/local/bin/backup.sh
",
    "aws s3 mb s3://agentic-platform-backups --region us-east-1\n",
    "\
export BACKUP_S3_BUCKET=agentic-platform-backups
export AWS_REGION=us-east-1
export AWS_ACCESS_KEY_ID=your-access-key
export AWS_SECRET_ACCESS_KEY=your-secret-key
",
    UP,
    "\
docker run --rm \\
  --network agentic-network \\
  -v $(pwd)/backups:/backups \\
  -v $(pwd)/secrets:/run/secrets \\
  -e DB_HOST=postgres \\
  -e DB_NAME=agentic_db \\
  -e BACKUP_RETENTION_DAYS=30 \\
  agentic-backup-prod \\
  /usr/local/bin/backup.sh
",
    "ls -lh backups/backup_agentic_db_*.sql.gz\n",
    "\
cd backups
sha256sum -c backup_agentic_db_20250122_020015.sql.gz.sha256
",
    "docker-compose -f docker-compose.prod.yml stop api\n",
    RESTORE,
    "docker-compose -f docker-compose.prod.yml start api\n",
    "aws s3 ls s3://agentic-platform-backups/backups/\n",
    "\
aws s3 cp s3://agentic-platform-backups/backups/backup_agentic_db_20250122_020015.sql.gz ./
aws s3 cp s3://agentic-platform-backups/backups/backup_agentic_db_20250122_020015.sql.gz.sha256 ./
",
    "\
# List backups with timestamps
ls -lt backups/backup_*.sql.gz
",
    "\
# View backup service logs
docker-compose -f docker-compose.prod.yml logs -f backup

# View cron logs
docker exec agentic-backup-prod cat /var/log/cron/backup-cron.log

# View backup script logs
docker exec agentic-backup-prod cat /backups/backup.log
",
    "\
# Local backups
docker exec agentic-backup-prod ls -lh /backups/

# S3 backups
aws s3 ls s3://agentic-platform-backups/backups/
",
    "\
# Check latest backup
docker exec agentic-backup-prod sh -c \\
  'cd /backups && sha256sum -c $(ls -t backup_*.sha256 | head -1)'
",
    "find backups/ -name \"backup_*.sql.gz\" -mtime +7 -delete\n",
    "\
BACKUP_SCHEDULE=\"0 */4 * * *\"  # Every 4 hours
BACKUP_RETENTION_DAYS=7        # Keep 1 week
S3_BUCKET=production-backups
",
    "\
BACKUP_SCHEDULE=\"0 2 * * *\"    # Daily at 2 AM
BACKUP_RETENTION_DAYS=30       # Keep 30 days
S3_BUCKET=production-backups
",
    "\
BACKUP_SCHEDULE=\"0 0 * * 0\"    # Weekly on Sunday
BACKUP_RETENTION_DAYS=14       # Keep 2 weeks
S3_BUCKET=\"\"                   # No S3 (local only)
",
];

pub(super) const UP: &str = "docker-compose -f docker-compose.prod.yml up -d\n";

pub(super) const RESTORE: &str = "\
# Extract and restore
gunzip -c backups/backup_agentic_db_20250122_020015.sql.gz | \\
docker exec -i agentic-postgres-prod psql -U postgres -d agentic_db
";

/// The name that the manual's examples use.
pub(super) const EXAMPLE: &str = "backup_agentic_db_20250122_020015";

/// The manual's text, where it is.
fn text() -> Option<String> {
    let paths = project().ancestors().skip(1);
    let mut paths = paths.map(|above| above.join("shared/old-service.md"));
    let path: PathBuf = paths.find(|path| path.is_file())?;
    Some(std::fs::read_to_string(path).unwrap())
}

/// The text's bash blocks, without the indentation of the list that they stand in.
fn blocks(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        match &mut open {
            None if line.trim() == "```bash" => open = Some((indent, String::new())),
            Some(_) if line.trim() == "```" => found.extend(open.take().map(|(_, block)| block)),
            Some((indent, block)) => {
                block.push_str(line.get(*indent..).unwrap_or_default());
                block.push('\n');
            }
            None => {}
        }
    }
    found
}

#[test]
fn the_blocks_are_the_manuals_own() {
    if let Some(text) = text() {
        assert_eq!(blocks(&text), BLOCKS);
    }
}

#[test]
fn every_variable_of_the_old_manual_has_its_default() {
    use pgark::config::VARIABLES;
    let Some(text) = text() else { return };
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    let mut checked = 0;
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let (name, default) = (cells[1].trim_matches('`'), cells[2].trim_matches('`'));
        let base = name.strip_suffix("_FILE").unwrap_or(name);
        let variable = VARIABLES.iter().find(|one| one.name == base);
        let variable = variable.unwrap_or_else(|| panic!("{name} is unknown"));
        let ours = if name == base {
            variable.default
        } else {
            variable.default_file
        };
        assert_eq!(ours.unwrap_or("(empty)"), default, "{name}");
        checked += 1;
    }
    assert_eq!(checked, 10);
}
