//! The properties of the database itself: what `pg_dump` without `-C` and `pg_dumpall -g`
//! both leave out. Owner, comment, rights, ALTER DATABASE SET, ALTER ROLE … IN DATABASE,
//! connection limit; and encoding and locale, which only a new database can take.
//!
//! Two forms: a JSON object for the manifest, from which restore creates the database, and a
//! block of SQL at the end of the file that applies the rest to `current_database()`. It is at the
//! end because a setting such as `default_transaction_read_only` would stop the restore's own
//! later sessions.

use crate::error::Result;
use crate::postgres::{Client, quote_ident_bytes, quote_literal_bytes, set_clause};

/// What the manifest and the file say of the database.
pub(super) struct Properties {
    pub manifest: serde_json::Value,
    pub block: Vec<u8>,
}

/// Reads the properties of the connection's database.
///
/// # Errors
/// Those of the connection.
pub(super) fn read(holder: &mut Client) -> Result<Properties> {
    let encoding = holder
        .parameter("server_encoding")
        .unwrap_or("UTF8")
        .to_owned();
    if encoding != "SQL_ASCII" {
        holder.execute("SET client_encoding = 'UTF8'")?;
    }
    let manifest = holder.query(include_str!("sql/properties.sql"));
    holder.execute(format!("SET client_encoding = '{encoding}'"))?;
    let manifest = manifest?;
    let text = manifest
        .first()
        .and_then(|row| row.bytes(0))
        .unwrap_or(b"{}");
    let manifest = serde_json::from_slice(text).map_err(|error| {
        crate::error::Error::failed(format!("the database's properties cannot be read: {error}"))
    })?;
    Ok(Properties {
        manifest,
        block: block(holder)?,
    })
}

fn block(holder: &mut Client) -> Result<Vec<u8>> {
    let mut statements: Vec<Vec<u8>> = Vec::new();
    let rows = holder.query(
        "SELECT pg_catalog.pg_get_userbyid(d.datdba), d.datconnlimit, \
         pg_catalog.shobj_description(d.oid, 'pg_database'), d.datistemplate, d.datallowconn \
         FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()",
    )?;
    let Some(row) = rows.first() else {
        return Ok(Vec::new());
    };
    let owner = quote_ident_bytes(row.bytes(0).unwrap_or_default());
    let on_database = |verb: &[u8], rest: &[u8]| {
        // '<verb> ' || quote_ident(current_database()) || '<rest>'
        [
            b"EXECUTE ".as_slice(),
            &quote_literal_bytes(verb),
            b" || me || ",
            &quote_literal_bytes(rest),
        ]
        .concat()
    };
    statements.push(on_database(
        b"ALTER DATABASE ",
        &[b" OWNER TO ".as_slice(), &owner].concat(),
    ));
    statements.push(on_database(
        b"ALTER DATABASE ",
        &[
            b" CONNECTION LIMIT ".as_slice(),
            row.bytes(1).unwrap_or(b"-1"),
        ]
        .concat(),
    ));
    if row.bool(3)? {
        statements.push(on_database(b"ALTER DATABASE ", b" IS_TEMPLATE true"));
    }
    let comment = row
        .bytes(2)
        .map_or_else(|| b"NULL".to_vec(), quote_literal_bytes);
    statements.push(on_database(
        b"COMMENT ON DATABASE ",
        &[b" IS ".as_slice(), &comment].concat(),
    ));
    for label in holder.query(
        "SELECT provider, label FROM pg_catalog.pg_shseclabel s JOIN pg_catalog.pg_database d ON d.oid = s.objoid \
         WHERE s.classoid = 'pg_catalog.pg_database'::pg_catalog.regclass AND d.datname = pg_catalog.current_database()",
    )? {
        let provider = quote_ident_bytes(label.bytes(0).unwrap_or_default());
        let verb = [b"SECURITY LABEL FOR ".as_slice(), &provider, b" ON DATABASE "].concat();
        let is = [b" IS ".as_slice(), &quote_literal_bytes(label.bytes(1).unwrap_or_default())].concat();
        statements.push(on_database(&verb, &is));
    }
    rights(holder, &mut statements, &on_database)?;
    settings(holder, &mut statements, &on_database)?;
    let mut body = Vec::new();
    for statement in statements {
        body.extend_from_slice(b"  BEGIN ");
        body.extend(statement);
        body.extend_from_slice(
            b"; EXCEPTION WHEN OTHERS THEN \
            RAISE WARNING 'a property of the database was not restored: %', SQLERRM; END;\n",
        );
    }
    Ok(quoted_block(&body))
}

/// The block's head, `body` and end, between dollar quotes that the body (a comment, a setting)
/// does not hold.
fn quoted_block(body: &[u8]) -> Vec<u8> {
    let mut tag = "$pgark_properties$".to_owned();
    while memchr::memmem::find(body, tag.as_bytes()).is_some() {
        tag.insert(tag.len() - 1, '_');
    }
    let head = include_str!("sql/properties_head.sql").replace("$pgark_properties$", &tag);
    [head.as_bytes(), body, b"END\n", tag.as_bytes(), b";\n\n"].concat()
}

type OnDatabase<'a> = dyn Fn(&[u8], &[u8]) -> Vec<u8> + 'a;

fn rights(
    holder: &mut Client,
    statements: &mut Vec<Vec<u8>>,
    on_database: &OnDatabase<'_>,
) -> Result<()> {
    for row in holder.query(
        "SELECT a.privilege_type, CASE WHEN a.grantee = 0 THEN NULL ELSE pg_catalog.pg_get_userbyid(a.grantee) END, \
         a.is_grantable FROM pg_catalog.pg_database d, \
         pg_catalog.aclexplode(coalesce(d.datacl, pg_catalog.acldefault('d', d.datdba))) a \
         WHERE d.datname = pg_catalog.current_database() ORDER BY a.grantor <> d.datdba, 1, 2",
    )? {
        let verb = [b"GRANT ".as_slice(), row.bytes(0).unwrap_or_default(), b" ON DATABASE "].concat();
        let grantee = row.bytes(1).map_or_else(|| b"PUBLIC".to_vec(), quote_ident_bytes);
        let option: &[u8] = if row.bool(2)? { b" WITH GRANT OPTION" } else { b"" };
        statements.push(on_database(&verb, &[b" TO ".as_slice(), &grantee, option].concat()));
    }
    Ok(())
}

fn settings(
    holder: &mut Client,
    statements: &mut Vec<Vec<u8>>,
    on_database: &OnDatabase<'_>,
) -> Result<()> {
    statements.push(on_database(b"ALTER DATABASE ", b" RESET ALL"));
    // Of every role, whichever the target knows.
    statements.push(
        b"FOR old IN SELECT setrole AS grantee FROM pg_catalog.pg_db_role_setting s, pg_catalog.pg_database d \
          WHERE d.oid = s.setdatabase AND d.datname = pg_catalog.current_database() AND s.setrole <> 0 LOOP \
          EXECUTE 'ALTER ROLE ' || pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(old.grantee)) \
            || ' IN DATABASE ' || me || ' RESET ALL'; END LOOP"
            .to_vec(),
    );
    for row in holder.query(
        "SELECT CASE WHEN s.setrole = 0 THEN NULL ELSE pg_catalog.pg_get_userbyid(s.setrole) END, \
         pg_catalog.unnest(s.setconfig) FROM pg_catalog.pg_db_role_setting s \
         JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase \
         WHERE d.datname = pg_catalog.current_database() ORDER BY 1 NULLS FIRST",
    )? {
        let Some(set) = row.bytes(1).and_then(set_clause) else {
            continue;
        };
        statements.push(match row.bytes(0) {
            None => on_database(b"ALTER DATABASE ", &[b" SET ".as_slice(), &set].concat()),
            Some(role) => {
                let verb = [
                    b"ALTER ROLE ".as_slice(),
                    &quote_ident_bytes(role),
                    b" IN DATABASE ",
                ]
                .concat();
                on_database(&verb, &[b" SET ".as_slice(), &set].concat())
            }
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_comment_cannot_close_the_block() {
        let block = super::quoted_block(b"'$pgark_properties$'");
        let block = String::from_utf8(block).unwrap();
        assert!(block.ends_with("END\n$pgark_properties_$;\n\n"), "{block}");
        assert!(block.contains("DO $pgark_properties_$"), "{block}");
    }
}
