//! What belongs to a live database itself and goes over to the one that takes its place: owner,
//! rights, settings, connection limit, comment, labels, tablespace.
//!
//! As they are *today*: a restore brings back what the database holds, not who may connect to it or
//! how it is set up. Names are bytes in the session's encoding, read and written through the
//! same session. Reads only; the statements are run by the swap.

use crate::error::{Error, Result};
use crate::postgres::{
    Client, quote_ident, quote_ident_bytes, quote_literal, quote_literal_bytes, set_clause,
};

/// A live database.
pub(super) struct Live {
    pub oid: u32,
    pub size: u64,
    allows_connections: bool,
    is_template: bool,
    comment: Option<Vec<u8>>,
    /// Encoding, locale, owner and tablespace, in the manifest's form.
    pub properties: serde_json::Value,
    /// Run on its successor before the swap.
    statements: Vec<Vec<u8>>,
}

/// Reads what is to be carried over from `old` to `new`; none when there is no such database.
pub(super) fn read(admin: &mut Client, old: &str, new: &str) -> Result<Option<Live>> {
    let rows = admin.query(format!(
        "SELECT d.oid, pg_catalog.pg_get_userbyid(d.datdba), d.datconnlimit, d.datallowconn, d.datistemplate, \
         pg_catalog.shobj_description(d.oid, 'pg_database'), d.datacl IS NULL, t.spcname, pg_catalog.pg_encoding_to_char(d.encoding), \
         d.datcollate, d.datctype, coalesce(pg_catalog.to_jsonb(d)->>'datlocprovider', 'c'), \
         coalesce(pg_catalog.to_jsonb(d)->>'datlocale', pg_catalog.to_jsonb(d)->>'daticulocale'), \
         pg_catalog.to_jsonb(d)->>'daticurules' \
         FROM pg_catalog.pg_database d JOIN pg_catalog.pg_tablespace t ON t.oid = d.dattablespace WHERE d.datname = {}",
        quote_literal(old)
    ))?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let oid: u32 = row.get(0)?;
    let text = |column: usize| row.opt_str(column);
    let properties = serde_json::json!({
        "owner": text(1), "tablespace": text(7), "encoding": text(8), "collate": text(9), "ctype": text(10),
        "locale_provider": text(11), "locale": text(12), "icu_rules": text(13),
    });
    let owner = quote_ident_bytes(row.bytes(1).unwrap_or_default());
    let target = quote_ident(new).into_bytes();
    let on_new = |verb: &[u8], rest: &[u8]| [verb, b" DATABASE ", target.as_slice(), rest].concat();
    let mut statements = vec![
        on_new(b"ALTER", &[b" OWNER TO ".as_slice(), &owner].concat()),
        on_new(
            b"ALTER",
            &[
                b" CONNECTION LIMIT ".as_slice(),
                row.bytes(2).unwrap_or(b"-1"),
            ]
            .concat(),
        ),
    ];
    if !row.bool(6)? {
        rights(admin, oid, &target, &owner, &mut statements)?;
    }
    settings(admin, oid, &target, &mut statements)?;
    labels(admin, oid, &target, &mut statements)?;
    let size = admin.query(format!("SELECT pg_catalog.pg_database_size({oid})"));
    Ok(Some(Live {
        oid,
        // Without the right to connect to it, its size is not told.
        size: size
            .ok()
            .and_then(|rows| rows.first()?.get(0).ok())
            .unwrap_or(0),
        allows_connections: row.bool(3)?,
        is_template: row.bool(4)?,
        comment: row.bytes(5).map(<[u8]>::to_vec),
        properties,
        statements,
    }))
}

fn labels(
    admin: &mut Client,
    oid: u32,
    target: &[u8],
    statements: &mut Vec<Vec<u8>>,
) -> Result<()> {
    for row in admin.query(format!(
        "SELECT provider, label FROM pg_catalog.pg_shseclabel WHERE objoid = {oid} \
         AND classoid = 'pg_catalog.pg_database'::pg_catalog.regclass"
    ))? {
        let provider = quote_ident_bytes(row.bytes(0).unwrap_or_default());
        let label = quote_literal_bytes(row.bytes(1).unwrap_or_default());
        let verb = b"SECURITY LABEL FOR ".as_slice();
        statements.push([verb, &provider, b" ON DATABASE ", target, b" IS ", &label].concat());
    }
    Ok(())
}

fn rights(
    admin: &mut Client,
    oid: u32,
    target: &[u8],
    owner: &[u8],
    statements: &mut Vec<Vec<u8>>,
) -> Result<()> {
    for from in [b"PUBLIC".as_slice(), owner] {
        statements.push(
            [
                b"REVOKE ALL ON DATABASE ".as_slice(),
                target,
                b" FROM ",
                from,
            ]
            .concat(),
        );
    }
    for row in admin.query(format!(
        "SELECT a.privilege_type, CASE WHEN a.grantee = 0 THEN NULL ELSE pg_catalog.pg_get_userbyid(a.grantee) END, \
         a.is_grantable FROM pg_catalog.pg_database d, pg_catalog.aclexplode(d.datacl) a WHERE d.oid = {oid} \
         ORDER BY a.grantor <> d.datdba, 1, 2"
    ))? {
        let grantee = row.bytes(1).map_or_else(|| b"PUBLIC".to_vec(), quote_ident_bytes);
        let option: &[u8] = if row.bool(2)? { b" WITH GRANT OPTION" } else { b"" };
        let right = row.bytes(0).unwrap_or_default();
        statements.push([b"GRANT ".as_slice(), right, b" ON DATABASE ", target, b" TO ", &grantee, option].concat());
    }
    Ok(())
}

fn settings(
    admin: &mut Client,
    oid: u32,
    target: &[u8],
    statements: &mut Vec<Vec<u8>>,
) -> Result<()> {
    for row in admin.query(format!(
        "SELECT CASE WHEN s.setrole = 0 THEN NULL ELSE pg_catalog.pg_get_userbyid(s.setrole) END, \
         pg_catalog.unnest(s.setconfig) FROM pg_catalog.pg_db_role_setting s WHERE s.setdatabase = {oid} ORDER BY 1 NULLS FIRST"
    ))? {
        let Some(set) = row.bytes(1).and_then(set_clause) else {
            continue;
        };
        statements.push(match row.bytes(0) {
            None => [b"ALTER DATABASE ".as_slice(), target, b" SET ", &set].concat(),
            Some(role) => {
                let role = quote_ident_bytes(role);
                [b"ALTER ROLE ".as_slice(), &role, b" IN DATABASE ", target, b" SET ", &set].concat()
            }
        });
    }
    Ok(())
}

impl Live {
    /// Runs the statements inside the caller's transaction.
    ///
    /// # Errors
    /// The server's, with the statement at fault.
    pub(super) fn apply(&self, admin: &mut Client) -> Result<()> {
        for statement in &self.statements {
            admin.execute(statement).map_err(|error| {
                error.context(format!(
                    "cannot carry over: {}",
                    String::from_utf8_lossy(statement)
                ))
            })?;
        }
        Ok(())
    }

    /// Tries them in a transaction that is rolled back: what is not allowed shows before the long
    /// work and not after it.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub(super) fn rehearse(&self, admin: &mut Client) -> Result<()> {
        admin.execute("BEGIN")?;
        let result = self.apply(admin);
        admin.execute("ROLLBACK")?;
        result.map_err(|error| {
            error.hint("pgark's role must own the database and may need to be a superuser for its settings")
        })
    }

    /// What comes last, under the old name: until then nobody may connect, and the mark stays.
    pub(super) fn open(&self, admin: &mut Client, name: &str) -> Result<()> {
        let name = quote_ident(name).into_bytes();
        let comment = self
            .comment
            .as_deref()
            .map_or_else(|| b"NULL".to_vec(), quote_literal_bytes);
        admin.execute([b"COMMENT ON DATABASE ".as_slice(), &name, b" IS ", &comment].concat())?;
        let options = format!(
            " ALLOW_CONNECTIONS {} IS_TEMPLATE {}",
            self.allows_connections, self.is_template
        );
        admin
            .execute([b"ALTER DATABASE ".as_slice(), &name, options.as_bytes()].concat())
            .map_err(|error: Error| error.context("cannot open the database"))
    }
}
