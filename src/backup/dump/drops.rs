//! The drop block: removes from the target exactly what the dump brings back.
//!
//! `pg_dump --clean --if-exists` fails over partitions and into an empty database, because
//! its DROPs name types and parents that may not be there. Here the objects are named by
//! catalog address (`pg_identify_object_as_address`), looked up in the target, and their
//! dependents followed through `pg_depend` before anything is dropped. If something that is
//! not of the dump depends on them, the script stops there and names it.
//!
//! Invariants: nothing is dropped before every foreign dependent is known to be absent;
//! with that shown, CASCADE can remove only parts of what the dump brings back. Schemas go
//! only when they are empty at the end. A subscription is cut off from its slot first:
//! DROP SUBSCRIPTION would drop the *publisher's* slot.

use std::fmt::Write as _;

use super::toc::{Entry, Toc};
use crate::error::Result;
use crate::postgres::Client;

/// Objects that one DO block drops, so that a schema of any size fits into the default
/// lock table (64 locks × 100 connections).
const DROPS_PER_BLOCK: usize = 500;
/// Addresses that one query looks up.
const LOOKUPS_PER_QUERY: usize = 2000;

/// Catalogs of objects that stand by themselves. Defaults, columns and the like go with the
/// object that they belong to, and so do constraints; but the name of a constraint's index must
/// be free in the schema.
const CATALOGS: &str = "'pg_class','pg_proc','pg_type','pg_operator','pg_opclass','pg_opfamily','pg_collation',\
    'pg_conversion','pg_cast','pg_language','pg_extension','pg_foreign_data_wrapper','pg_foreign_server',\
    'pg_event_trigger','pg_publication','pg_subscription','pg_statistic_ext','pg_ts_config','pg_ts_dict',\
    'pg_ts_parser','pg_ts_template','pg_am','pg_transform','pg_namespace','pg_trigger','pg_rewrite','pg_policy',\
    'pg_user_mapping'";

const RESOLVE: &str = include_str!("sql/drop_resolve.sql");
const CHECK: &str = include_str!("sql/drop_check.sql");
const DROP: &str = include_str!("sql/drop.sql");

/// They are the target's own, so they stay; but what they do to rights must not go unseen.
const DEFAULT_RIGHTS: &[u8] = b"DO $pgark$ BEGIN IF EXISTS (SELECT FROM pg_catalog.pg_default_acl d JOIN pg_catalog.pg_roles r \
    ON r.oid = d.defaclrole WHERE r.rolname = current_user) THEN\n  \
    RAISE WARNING 'default privileges of % in this database apply to what is restored: its rights may be wider than they were', \
    current_user USING HINT = 'restore into a new database (pgark restore), or compare the rights afterwards';\n\
    END IF; END $pgark$;\n";

/// Writes the drop block for the objects of `toc`; `holder` sees the dump's snapshot.
///
/// # Errors
/// Those of the connection.
pub(super) fn block(holder: &mut Client, toc: &Toc) -> Result<Vec<u8>> {
    let (addresses, count) = addresses(holder, toc)?;
    let mut sql = b"\n-- Removes what this dump brings back, and nothing else. If anything else depends on it,\n\
        -- this stops before the first DROP and names it.\n"
        .to_vec();
    if count > 0 {
        sql.extend_from_slice(
            b"CREATE TEMPORARY TABLE pgark_objects (n integer PRIMARY KEY, type text, names text[], args text[], \
              class oid, object oid, place bigint);\n\
              COPY pg_temp.pgark_objects (n, type, names, args) FROM stdin;\n",
        );
        sql.extend(addresses);
        sql.extend_from_slice(b"\\.\n\n");
        sql.extend_from_slice(RESOLVE.as_bytes());
        sql.extend_from_slice(CHECK.as_bytes());
        for first in (0..count).step_by(DROPS_PER_BLOCK) {
            let range = DROP
                .replace("/*first*/", &first.to_string())
                .replace("/*last*/", &(first + DROPS_PER_BLOCK).to_string());
            sql.extend_from_slice(range.as_bytes());
        }
        sql.extend_from_slice(b"DROP TABLE pg_temp.pgark_objects;\n");
    }
    sql.extend(large_objects(toc));
    sql.extend_from_slice(DEFAULT_RIGHTS);
    Ok(sql)
}

/// The objects' addresses as rows of COPY text, and their number.
fn addresses(holder: &mut Client, toc: &Toc) -> Result<(Vec<u8>, usize)> {
    let mut ours: Vec<(u32, u32)> = toc
        .entries
        .iter()
        .filter(|entry| is_droppable(entry))
        .map(|entry| (entry.class_oid, entry.oid))
        .collect();
    if toc.entries.iter().any(|entry| entry.desc == "USER MAPPING") {
        // The archive has no OIDs of them.
        for row in holder.query(
            "SELECT 'pg_catalog.pg_user_mapping'::pg_catalog.regclass::oid, umid FROM pg_catalog.pg_user_mappings",
        )? {
            ours.push((row.get(0)?, row.get(1)?));
        }
    }
    let (mut rows, mut count) = (Vec::new(), 0);
    for (chunk, objects) in ours.chunks(LOOKUPS_PER_QUERY).enumerate() {
        let mut values = String::new();
        for (i, (class, object)) in objects.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            let number = chunk * LOOKUPS_PER_QUERY + i;
            let _ = write!(values, "{comma}({number},{class}::oid,{object}::oid)");
        }
        let sql = format!(
            "COPY (SELECT o.n, a.type, a.object_names, a.object_args FROM (VALUES {values}) AS o(n, class, object) \
             JOIN pg_catalog.pg_class c ON c.oid = o.class AND c.relnamespace = 'pg_catalog'::pg_catalog.regnamespace \
             LEFT JOIN pg_catalog.pg_constraint k ON c.relname = 'pg_constraint' AND k.oid = o.object AND k.contype IN ('p', 'u', 'x') \
             CROSS JOIN LATERAL pg_catalog.pg_identify_object_as_address( \
               CASE WHEN k.oid IS NULL THEN o.class ELSE 'pg_catalog.pg_class'::pg_catalog.regclass END, \
               CASE WHEN k.oid IS NULL THEN o.object ELSE k.conindid END, 0) a \
             WHERE a.type IS NOT NULL AND (k.oid IS NOT NULL OR c.relname IN ({CATALOGS})) ORDER BY o.n) TO STDOUT"
        );
        holder.copy_out(sql, &mut |bytes, ends_row| {
            rows.extend_from_slice(bytes);
            count += usize::from(ends_row);
            Ok(())
        })?;
    }
    Ok((rows, count))
}

/// Entries without a DROP of their own are parts of others (an identity column's sequence still
/// needs its name); a schema that the dump does not create (`public`) stays.
fn is_droppable(entry: &Entry) -> bool {
    let kept_schema = entry.desc == "SCHEMA" && entry.definition.starts_with(b"--");
    entry.oid != 0
        && (!entry.drop_statement.is_empty() || entry.desc == "SEQUENCE")
        && !kept_schema
        && !entry.desc.starts_with("BLOB")
}

fn large_objects(toc: &Toc) -> Vec<u8> {
    let oids: Vec<u32> = toc
        .entries
        .iter()
        .flat_map(super::render::large_objects)
        .collect();
    let mut sql = String::new();
    for chunk in oids.chunks(LOOKUPS_PER_QUERY) {
        let list: Vec<String> = chunk.iter().map(u32::to_string).collect();
        let _ = writeln!(
            sql,
            "SELECT pg_catalog.count(pg_catalog.lo_unlink(oid)) FROM pg_catalog.pg_largeobject_metadata \
             WHERE oid IN ({});",
            list.join(",")
        );
    }
    sql.into_bytes()
}
