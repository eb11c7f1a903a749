//! `docs/configuration.md`, from the table. A test holds the file to it.

use std::fmt::Write as _;

use super::table::{Section, Since, VARIABLES, Variable};

const HEAD: &str = "\
# Configuration

<!-- Generated from the table in src/config/table.rs. After a change:
     UPDATE_DOCS=1 cargo test --lib documentation_lists -->

pgark reads flags, variables and, for several clusters or stores, [a file](#the-file-pgarktoml).
The order: flag, variable, file, default.

- Any variable may be given as `NAME_FILE`, the path of a file that holds the value (a
  Docker secret). `NAME` and `NAME_FILE` together are an error. Exactly one newline at the
  end of the file is dropped; a file with several lines is an error where one line is
  expected.
- An empty variable is unset, so that compose may pass `${X:-}`.
- A malformed value ends pgark with exit code 2 and names the variable and the fix.
- An unknown `BACKUP_*` or `PGARK_*` variable is a warning with the nearest name.
- The default files of `DB_USER` and `DB_PASSWORD` may be absent, a file that you name may
  not. A default file that exists counts as if you had named it.
- What comes *later* is checked for its form and named in one warning when you run
  `pgark backup`.

The connection: first the `DB_*` variables, then `PG*` variables, the service file and
`.pgpass` as libpq reads them, then the defaults below. `PGDATABASE` names one database.
";

/// Keys of the file that are no variables, and what for.
const FILE_KEYS: &[(&str, &str)] = &[
    (
        "max_runs",
        "Runs of the service at once, over all clusters: so many of dumps, and so many of base backups. 1 to 100. Default: 2.",
    ),
    (
        "[anomaly]",
        "When a backup is [suspect](check.md#suspect-backups): `rows_fall_percent` (50), `rows_min` (1000), `size_fall_percent` (50), `size_min_bytes` (1048576), `table_gone` (true), `table_gone_rows_min` (1), `history` (14 backups). A percentage of 0 turns that comparison off.",
    ),
    (
        "[wal]",
        "Of WAL and base backups, for every cluster: `slot_name` (\"pgark\"), the replication slot on each server; `slot_policy`: \"protect-primary\" (above the limit the slot is dropped, the gap is recorded, a base backup follows at once) or \"protect-archive\" (the slot stays, and the server's disk may fill); `slot_limit` (\"16GB\"), WAL that the slot may hold back on the server; `backlog_max` (\"64MB\"), received WAL that may wait in memory where the first store is a bucket or backups are encrypted; `chain_max` (7), incremental base backups on one full one. Sizes as PostgreSQL writes them: \"512MB\", \"16GB\".",
    ),
];

const FILE: &str = "
## The file pgark.toml

Needed for several clusters or stores only. It is read from `--config`, else `PGARK_CONFIG`, else
`/etc/pgark/pgark.toml` if that exists; a change counts when the service starts anew.

```toml
backup_schedule = \"0 2 * * *\"        # at the top: for all; a variable goes before it

[[cluster]]                          # its keys go before variables
name = \"shop\"
db_host = \"db1.internal\"
db_name = [\"orders\", \"stock\"]
db_user = \"pgark\"
db_password_file = \"/run/secrets/shop_password\"

[[cluster]]
name = \"crm\"
db_host = \"db2.internal\"
db_name = \"*\"
backup_schedule = \"30 3 * * *\"

[[store]]                            # the first local one is what runs write to
name = \"disk\"
backup_dir = \"/backups\"

[[store]]                            # the others are filled from it
name = \"aws\"
s3_bucket = \"our-backups\"
aws_region = \"eu-central-1\"
backup_retention_days = 90
```

- A key is a variable of the tables above in lower case; `_file` behind it names a file that holds
  the value. Lists of databases, hosts and lines may be arrays.
- An unknown key, a key in the wrong table and a malformed value end pgark with exit code 2 and
  name line and column.
- `[[cluster]]` takes `name`, `folder`, and the keys of a cluster: connection, backups, limits,
  schedules, retention, `heartbeat_url`, `notify_urls`. `[[store]]` takes `name`, then `backup_dir` or
  `s3_bucket`, and the keys of S3 and retention. The rest stands at the top.
- With several clusters, each has a folder of its name on every store (`/backups/shop/`,
  `s3://our-backups/backups/shop/`); `folder` names another, `\".\"` the root. Add `folder = \".\"` to
  a first cluster that has backups already, or move its files, when a second one comes.
- Ids then have the cluster before them: `shop/backup_orders_20250122_020015`. `--cluster shop`
  limits any verb to one. A cluster that fails stops no other; the exit code is 3 then.
- Without `[[cluster]]` there is one, named `main`, and the file may hold stores only.
- A store or a cluster that is taken out of the file keeps its backups; nobody expires them any more.

The keys that are no variables:

| key | |
| --- | --- |
";

/// The text of `docs/configuration.md`.
#[must_use]
pub fn markdown() -> String {
    let mut out = HEAD.to_owned();
    for section in Section::ALL {
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            "\n## {}\n\n| variable | default | value | |\n| --- | --- | --- | --- |\n",
            section.title()
        );
        for variable in VARIABLES.iter().filter(|row| row.section == section) {
            out.push_str(&row(variable));
        }
    }
    out.push_str(FILE);
    for (key, summary) in FILE_KEYS {
        let _ = writeln!(out, "| `{key}` | {summary} |");
    }
    out
}

fn row(variable: &Variable) -> String {
    let mut name = format!("`{}`", variable.name);
    for alias in variable.aliases {
        let _ = write!(name, ", alias `{alias}`");
    }
    let default = match (variable.default, variable.default_file) {
        (Some(text), _) => format!("`{text}`"),
        (None, Some(path)) => format!("the file `{path}`"),
        (None, None) => "unset".to_owned(),
    };
    let mut text = variable.summary.to_owned();
    if let Since::Later(feature) = variable.since {
        let _ = write!(text, " *Later, with {feature}.*");
    }
    format!(
        "| {name} | {default} | {} | {text} |\n",
        variable.form.describe()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documentation_lists_exactly_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
        if std::env::var_os("UPDATE_DOCS").is_some_and(|value| value == "1") {
            std::fs::write(path, markdown()).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            written == markdown(),
            "docs/configuration.md is stale: UPDATE_DOCS=1 cargo test --lib documentation_lists"
        );
    }

    #[test]
    fn no_cell_breaks_its_table() {
        for variable in VARIABLES {
            assert_eq!(row(variable).matches('|').count(), 5, "{}", variable.name);
        }
    }
}
