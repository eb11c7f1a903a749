//! Turns entries of pg_dump's table of contents into the SQL that recreates them.
//!
//! The rules are those of `_printTocEntry`, `_getObjectDescription`, `IssueCommandPerBlob` and
//! `IssueACLPerBlob` in PostgreSQL's `src/bin/pg_dump/pg_backup_archiver.c` and
//! `pg_backup_db.c`.
//!
//! Invariant: each rendered entry stands alone. pg_dump's text is positional (one `SET
//! default_tablespace` serves all that follow); here an entry that needs a setting brings it
//! and takes it back, so entries can run in any order that their dependencies allow.

use super::toc::{Entry, Section, Toc};
use crate::archive::script::Stage;
use crate::error::{Error, Result};

/// The stage of every entry, in the archive's order. Comments and labels have no section of
/// their own; they go with the entry before them, as in `ProcessArchiveRestoreOptions`.
#[must_use]
pub(super) fn stages(entries: &[Entry]) -> Vec<Stage> {
    let mut current = Stage::Pre;
    entries
        .iter()
        .map(|entry| {
            match entry.section {
                Section::None => {}
                Section::PreData => current = Stage::Pre,
                Section::Data => current = Stage::Data,
                Section::PostData => current = Stage::Post,
            }
            match entry.desc.as_str() {
                "ACL" | "ACL LANGUAGE" | "DEFAULT ACL" => Stage::Rights,
                "EVENT TRIGGER" | "MATERIALIZED VIEW DATA" => Stage::Last,
                "STATISTICS DATA" if current == Stage::Post => Stage::Last,
                "COMMENT" | "SECURITY LABEL" if entry.tag.starts_with(b"EVENT TRIGGER ") => {
                    Stage::Last
                }
                _ => current,
            }
        })
        .collect()
}

/// Whether pgark writes this entry by itself or not at all: settings of the session, the
/// database's own properties (the properties block has them), and data.
#[must_use]
pub(super) fn is_statement(entry: &Entry) -> bool {
    let about_database = matches!(entry.desc.as_str(), "ACL" | "COMMENT" | "SECURITY LABEL")
        && entry.tag.starts_with(b"DATABASE ");
    !about_database
        && !matches!(
            entry.desc.as_str(),
            "ENCODING"
                | "STDSTRINGS"
                | "SEARCHPATH"
                | "DATABASE"
                | "DATABASE PROPERTIES"
                | "TABLE DATA"
                | "BLOBS"
        )
}

/// Quotes a name unless it is plainly safe: lower-case words are quoted too when they could
/// be a keyword, which cannot be told without the server's own list, so all of them are.
fn quote(name: &[u8]) -> Vec<u8> {
    let mut quoted = vec![b'"'];
    for &byte in name {
        if byte == b'"' {
            quoted.push(b'"');
        }
        quoted.push(byte);
    }
    quoted.push(b'"');
    quoted
}

fn qualified(entry: &Entry) -> Vec<u8> {
    let mut name = Vec::new();
    if let Some(namespace) = &entry.namespace {
        name.extend(quote(namespace));
        name.push(b'.');
    }
    name.extend(quote(&entry.tag));
    name
}

/// The entry's SQL, ending with a newline; empty when there is nothing to run.
///
/// # Errors
/// `Failed` for an object type whose owner this pgark does not know how to set: a silent
/// change of owner would be a loss.
pub(super) fn render(toc: &Toc, entry: &Entry) -> Result<Vec<u8>> {
    let mut sql = Vec::new();
    // An ordinary table takes its access method from the session, a partitioned one by ALTER.
    let partitioned = entry.relkind == b'p';
    let method = entry
        .table_access_method
        .as_ref()
        .filter(|name| !partitioned && name.as_slice() != b"heap");
    if let Some(tablespace) = &entry.tablespace {
        sql.extend(
            [
                b"SET default_tablespace = ".as_slice(),
                &quote(tablespace),
                b";\n",
            ]
            .concat(),
        );
    }
    if let Some(method) = method {
        sql.extend(
            [
                b"SET default_table_access_method = ".as_slice(),
                &quote(method),
                b";\n",
            ]
            .concat(),
        );
    }
    sql.extend(definition(toc, entry)?);
    sql.extend(owner(entry)?);
    if let (true, Some(method)) = (partitioned, &entry.table_access_method) {
        let alter = [
            b"ALTER TABLE ".as_slice(),
            &qualified(entry),
            b" SET ACCESS METHOD ",
            &quote(method),
            b";\n",
        ];
        sql.extend(alter.concat());
    }
    if method.is_some() {
        sql.extend_from_slice(b"SET default_table_access_method = heap;\n");
    }
    if entry.tablespace.is_some() {
        sql.extend_from_slice(b"SET default_tablespace = '';\n");
    }
    Ok(sql)
}

fn definition(toc: &Toc, entry: &Entry) -> Result<Vec<u8>> {
    if entry.desc == "BLOB METADATA" {
        return Ok(per_large_object(
            entry,
            b"SELECT pg_catalog.lo_create('",
            b"');\n",
        ));
    }
    if entry.desc == "ACL" && entry.tag.starts_with(b"LARGE OBJECTS") {
        let metadata = entry
            .dependencies
            .first()
            .and_then(|id| toc.entries.iter().find(|e| e.dump_id == *id));
        let metadata = metadata.ok_or_else(|| {
            Error::failed(
                "pg_dump's archive is damaged: rights of large objects that are not there",
            )
        })?;
        return large_object_rights(entry, metadata);
    }
    let mut sql = entry.definition.clone();
    // A schema that holds something which is not of this dump outlives the drop block.
    let create_schema = b"CREATE SCHEMA ";
    if entry.desc == "SCHEMA" && sql.starts_with(create_schema) {
        sql.splice(..create_schema.len(), *b"CREATE SCHEMA IF NOT EXISTS ");
    }
    while sql.last() == Some(&b'\n') {
        sql.pop();
    }
    if !sql.is_empty() {
        sql.push(b'\n');
    }
    Ok(sql)
}

/// `begin OID end` for every OID that a BLOB METADATA entry lists, one a line.
fn per_large_object(metadata: &Entry, begin: &[u8], end: &[u8]) -> Vec<u8> {
    let oids = metadata
        .definition
        .split(|&byte| byte == b'\n')
        .filter(|oid| !oid.is_empty());
    oids.flat_map(|oid| [begin, oid, end].concat()).collect()
}

/// The OIDs of the large objects that an entry creates.
#[must_use]
pub(super) fn large_objects(entry: &Entry) -> Vec<u32> {
    let list: &[u8] = match entry.desc.as_str() {
        "BLOB METADATA" => &entry.definition,
        "BLOB" => &entry.tag,
        _ => b"",
    };
    list.split(|&byte| byte == b'\n')
        .filter_map(|oid| std::str::from_utf8(oid).ok()?.parse().ok())
        .collect()
}

/// PostgreSQL 17 and later write rights once, for the first large object of a group; each
/// command is repeated for all of them. Only quoted role names could hold a semicolon.
fn large_object_rights(entry: &Entry, metadata: &Entry) -> Result<Vec<u8>> {
    const NOUN: &[u8] = b"LARGE OBJECT ";
    let text = &entry.definition;
    let (mut sql, mut start, mut split, mut at, mut quoted) = (Vec::new(), 0, None, 0, false);
    while at < text.len() {
        if text[at] == b'"' {
            quoted = !quoted;
        }
        if !quoted && text[at..].starts_with(NOUN) {
            at += NOUN.len();
            let digits = text[at..]
                .iter()
                .take_while(|byte| byte.is_ascii_digit())
                .count();
            split = Some((at, at + digits));
            at += digits;
            continue;
        }
        if !quoted && text[at] == b';' {
            let (end_of_head, start_of_tail) = split.take().ok_or_else(|| {
                Error::failed("pg_dump's archive holds rights of large objects in an unknown form")
            })?;
            let tail = [&text[start_of_tail..at], b";\n"].concat();
            sql.extend(per_large_object(
                metadata,
                text[start..end_of_head].trim_ascii_start(),
                &tail,
            ));
            start = at + 1;
        }
        at += 1;
    }
    Ok(sql)
}

/// `ALTER … OWNER TO …`, or nothing when the object has no owner of its own.
fn owner(entry: &Entry) -> Result<Vec<u8>> {
    // "Anything without a DROP command is not a separately ownable object."
    if entry.owner.is_empty() || entry.drop_statement.is_empty() {
        return Ok(Vec::new());
    }
    let to = [b" OWNER TO ".as_slice(), &quote(&entry.owner), b";\n"].concat();
    let object = match entry.desc.as_str() {
        "COLLATION"
        | "CONVERSION"
        | "DOMAIN"
        | "FOREIGN TABLE"
        | "MATERIALIZED VIEW"
        | "SEQUENCE"
        | "STATISTICS"
        | "TABLE"
        | "TEXT SEARCH DICTIONARY"
        | "TEXT SEARCH CONFIGURATION"
        | "TYPE"
        | "VIEW"
        | "PROPERTY GRAPH"
        | "PROCEDURAL LANGUAGE"
        | "SCHEMA"
        | "EVENT TRIGGER"
        | "FOREIGN DATA WRAPPER"
        | "SERVER"
        | "PUBLICATION"
        | "SUBSCRIPTION" => [entry.desc.as_bytes(), b" ", &qualified(entry)].concat(),
        "BLOB" => [b"LARGE OBJECT ", entry.tag.as_slice()].concat(),
        "BLOB METADATA" => return Ok(per_large_object(entry, b"ALTER LARGE OBJECT ", &to)),
        "AGGREGATE" | "FUNCTION" | "OPERATOR" | "OPERATOR CLASS" | "OPERATOR FAMILY"
        | "PROCEDURE" => {
            // These need argument types, and DROP has exactly those.
            let drop = entry
                .drop_statement
                .strip_prefix(b"DROP ")
                .unwrap_or(&entry.drop_statement);
            let end = drop
                .iter()
                .rposition(|byte| !matches!(byte, b'\n' | b';'))
                .map_or(0, |last| last + 1);
            drop[..end].to_vec()
        }
        "CAST" | "CHECK CONSTRAINT" | "CONSTRAINT" | "DEFAULT" | "FK CONSTRAINT" | "INDEX"
        | "RULE" | "TRIGGER" | "ROW SECURITY" | "POLICY" | "USER MAPPING" => return Ok(Vec::new()),
        other => {
            return Err(Error::failed(format!(
                "pg_dump wrote an object of type {other}, whose owner cannot be set"
            ))
            .hint("this pgark does not know the type; use a newer pgark"));
        }
    };
    Ok([b"ALTER ".as_slice(), &object, &to].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(desc: &str, tag: &str, definition: &str) -> Entry {
        Entry {
            dump_id: 1,
            class_oid: 0,
            oid: 0,
            tag: tag.into(),
            desc: desc.into(),
            section: Section::None,
            definition: definition.into(),
            drop_statement: Vec::new(),
            copy_statement: Vec::new(),
            namespace: None,
            tablespace: None,
            table_access_method: None,
            relkind: 0,
            owner: b"o\"x".to_vec(),
            dependencies: vec![1],
        }
    }

    #[test]
    fn rights_are_repeated_for_each_large_object_even_beside_a_role_with_a_semicolon() {
        let metadata = entry("BLOB METADATA", "1..2", "101\n102\n");
        let rights = entry(
            "ACL",
            "LARGE OBJECTS 101..102",
            "REVOKE ALL ON LARGE OBJECT 101 FROM \"a;LARGE OBJECT 5\";\nGRANT SELECT ON LARGE OBJECT 101 TO b;\n",
        );
        let toc = Toc {
            server_version: String::new(),
            program_version: String::new(),
            entries: vec![metadata],
        };
        assert_eq!(
            String::from_utf8(render(&toc, &rights).unwrap()).unwrap(),
            "REVOKE ALL ON LARGE OBJECT 101 FROM \"a;LARGE OBJECT 5\";\n\
             REVOKE ALL ON LARGE OBJECT 102 FROM \"a;LARGE OBJECT 5\";\n\
             GRANT SELECT ON LARGE OBJECT 101 TO b;\nGRANT SELECT ON LARGE OBJECT 102 TO b;\n"
        );
    }

    #[test]
    fn an_entry_takes_back_the_settings_that_it_brings() {
        let mut table = entry("TABLE", "t", "CREATE TABLE public.t ();\n");
        table.tablespace = Some(b"fast".to_vec());
        table.table_access_method = Some(b"columnar".to_vec());
        table.drop_statement = b"DROP TABLE public.t;\n".to_vec();
        let toc = Toc {
            server_version: String::new(),
            program_version: String::new(),
            entries: vec![],
        };
        assert_eq!(
            String::from_utf8(render(&toc, &table).unwrap()).unwrap(),
            "SET default_tablespace = \"fast\";\nSET default_table_access_method = \"columnar\";\n\
             CREATE TABLE public.t ();\nALTER TABLE \"t\" OWNER TO \"o\"\"x\";\n\
             SET default_table_access_method = heap;\nSET default_tablespace = '';\n"
        );
    }

    #[test]
    fn an_unknown_kind_of_object_is_an_error_rather_than_a_changed_owner() {
        let mut thing = entry("PLEASURE DOME", "xanadu", "CREATE PLEASURE DOME xanadu;");
        thing.drop_statement = b"DROP PLEASURE DOME xanadu;".to_vec();
        let toc = Toc {
            server_version: String::new(),
            program_version: String::new(),
            entries: vec![],
        };
        assert!(
            render(&toc, &thing)
                .unwrap_err()
                .fact
                .contains("PLEASURE DOME")
        );
    }
}
