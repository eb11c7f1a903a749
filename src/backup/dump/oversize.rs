//! Finds the row that is too long to be sent.
//!
//! PostgreSQL sends no row of more than 1 GB as text, and its error names neither table nor row.
//! The sizes come from the rows' headers: no value is read whole, and a table of terabytes is
//! scanned without its TOAST. A value of a type whose text is longer than what is stored (jsonb,
//! numbers) is estimated by what is stored, so the row named is the likeliest one.
//!
//! Best effort: a failure here only costs the name.

use super::snapshot::Table;
use crate::error::Error;
use crate::postgres::Client;

/// What the server says of such a row.
const TOO_LONG: [&str; 2] = ["enlarge string buffer", "invalid memory alloc request size"];

pub(super) fn is_too_long(error: &Error) -> bool {
    TOO_LONG.iter().any(|words| error.fact.contains(words))
}

/// The error with the row's place, its key and its length. `reader` sees the dump's snapshot.
pub(super) fn name_row(error: Error, reader: Option<&mut Client>, table: &Table) -> Error {
    let quoted = String::from_utf8_lossy(&table.quoted).into_owned();
    let error = match reader.and_then(|client| longest(client, table)) {
        Some((ctid, key, bytes)) => {
            let key = key.map_or(String::new(), |key| format!(" ({key})"));
            let mb = bytes / 1_000_000;
            let mut error = error;
            error.fact = format!(
                "{}; the longest row has some {mb} MB as text: ctid {ctid}{key}",
                error.fact
            );
            error
        }
        None => error,
    };
    error.hint(format!(
        "PostgreSQL cannot send a row longer than 1 GB as text (a bytea doubles), pg_dump neither: split that value, \
         or keep it in a large object; SELECT ctid, pg_column_size(t.*) FROM {quoted} t ORDER BY 2 DESC shows others"
    ))
}

/// Place, primary key and estimated length of the longest row.
fn longest(client: &mut Client, table: &Table) -> Option<(String, Option<String>, u64)> {
    // `search_path` is empty: these are PostgreSQL's own functions.
    let parts = client
        .query(format!(
            "SELECT string_agg(CASE WHEN t.typname = 'bytea' THEN format('2 * coalesce(octet_length(%1$I), 0)::bigint', a.attname) \
               WHEN t.typname IN ('text', 'varchar', 'bpchar') THEN format('coalesce(octet_length(%1$I), 0)::bigint', a.attname) \
               ELSE format('coalesce(pg_column_size(%1$I), 0)::bigint', a.attname) END, ' + '), \
             (SELECT string_agg(format('%L || coalesce(%I::text, ''null'')', k.attname || '=', k.attname), ' || '', '' || ') \
               FROM pg_index i JOIN pg_attribute k ON k.attrelid = i.indrelid AND k.attnum = ANY (i.indkey) \
               WHERE i.indrelid = {0} AND i.indisprimary) \
             FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
             WHERE a.attrelid = {0} AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''",
            table.oid
        ))
        .ok()?;
    let parts = parts.first()?;
    let rows = client
        .query(
            [
                b"SELECT ctid, ".as_slice(),
                parts.bytes(1).unwrap_or(b"NULL"),
                b", ",
                parts.bytes(0)?,
                b" FROM ONLY ",
                &table.quoted,
                b" ORDER BY 3 DESC LIMIT 1",
            ]
            .concat(),
        )
        .ok()?;
    let row = rows.first()?;
    let text = |i| {
        row.bytes(i)
            .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    };
    Some((text(0)?, text(1), row.get(2).ok()?))
}
