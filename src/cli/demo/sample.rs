//! The sample database of the demo: roles, the database, its rows.
//!
//! Invariant: what it makes depends on the scale alone, so that two runs can be compared.

use serde::Serialize;
use std::fmt::Write as _;

use super::session::{Session, on_connections};
use crate::cancel::Token;
use crate::error::{Context, Result};
use crate::postgres::Target;

/// The name of the database; `sample.sql` says it too.
pub(super) const DATABASE: &str = "shop";
const SQL: &str = include_str!("sample.sql");
/// Cluster-wide, so made before the database.
const ROLES: &str = "CREATE ROLE shop_owner; CREATE ROLE shop_reader; \
     CREATE ROLE shop_app LOGIN; GRANT shop_reader TO shop_app";
/// Rows at scale 100, as the settings `demo.*` of the script's sessions.
const ROWS: [(&str, u32); 6] = [
    ("customers", 40_000),
    ("notes", 30_000),
    ("products", 4_000),
    ("orders", 100_000),
    ("events", 100_000),
    ("documents", 40),
];
/// What the size and the shape are read from. Partitions count as tables, what is partitioned does not.
const SHAPE: &str = "SELECT pg_catalog.pg_database_size(pg_catalog.current_database()), \
     (SELECT count(*) FROM pg_catalog.pg_namespace WHERE nspname !~ '^pg_|^information_schema$|^public$'), \
     count(*) FILTER (WHERE relkind = 'r'), count(*) FILTER (WHERE relispartition AND relkind = 'r'), \
     count(*) FILTER (WHERE relkind = 'i'), \
     (SELECT count(*) FROM pg_catalog.pg_constraint WHERE contype = 'f' AND conparentid = 0) \
     FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
     WHERE nspname !~ '^pg_|^information_schema$'";

/// What was made.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Shape {
    pub bytes: u64,
    pub schemas: u64,
    pub tables: u64,
    pub partitions: u64,
    pub indexes: u64,
    pub foreign_keys: u64,
}

/// Makes the database on an empty server. `percent` scales the rows.
pub(super) fn build(
    admin: &Target,
    percent: u32,
    jobs: usize,
    cancel: &Token,
) -> Result<(Target, Shape)> {
    let mut session = Session::open(admin, cancel)?;
    session.client.execute(ROLES)?;
    session
        .client
        .execute(format!("CREATE DATABASE {DATABASE} OWNER shop_owner"))?;
    let target = admin.with_database(DATABASE);
    let mut settings = "SET ROLE shop_owner; SET client_min_messages = warning".to_owned();
    for (name, rows) in ROWS {
        let rows = (u64::from(rows) * u64::from(percent) / 100).max(1);
        let _ = write!(settings, "; SET demo.{name} = {rows}");
    }
    for stage in stages(SQL) {
        on_connections(&target, jobs, cancel, &stage, |client, piece| {
            client.execute(&settings)?;
            client.execute(piece)
        })
        .context(|| "the sample database cannot be made".to_owned())?;
    }
    let mut session = Session::open(&target, cancel)?;
    let rows = session.client.query(SHAPE)?;
    let mut shape = Shape::default();
    for row in rows {
        shape = Shape {
            bytes: row.get(0)?,
            schemas: row.get(1)?,
            tables: row.get(2)?,
            partitions: row.get(3)?,
            indexes: row.get(4)?,
            foreign_keys: row.get(5)?,
        };
    }
    Ok((target, shape))
}

/// The script's stages, each a list of pieces. What stands before the first mark is a comment.
fn stages(sql: &str) -> Vec<Vec<&str>> {
    let stages = sql.split("\n-- stage\n").skip(1);
    stages
        .map(|stage| {
            let stage = stage.strip_prefix("-- piece\n").unwrap_or(stage);
            stage.split("\n-- piece\n").collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_statement_of_the_script_is_lost_between_the_marks() {
        let stages = super::stages(super::SQL);
        assert_eq!(
            stages.iter().map(Vec::len).collect::<Vec<_>>(),
            [1, 6, 4, 1]
        );
        let split: usize = stages
            .iter()
            .flatten()
            .map(|piece| piece.matches(';').count())
            .sum();
        let head = super::SQL.split("\n-- stage\n").next().unwrap();
        assert_eq!(
            split + head.matches(';').count(),
            super::SQL.matches(';').count()
        );
    }
}
