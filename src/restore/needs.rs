//! What a dump's statements want from the cluster beside the database: roles, tablespaces,
//! extensions. Pure.
//!
//! Read from the statements themselves, whose form is pg_dump's and pgark's own: an owner stands at a
//! statement's end, quoted; a right names its role last. Names are bytes in the dump's encoding.

use std::collections::BTreeSet;

use crate::archive::script::Part;

type Names = BTreeSet<Vec<u8>>;

/// See the module.
#[derive(Debug, Default)]
pub struct Needs {
    /// Roles that own something.
    pub owners: Names,
    /// Roles that are named in rights, policies and mappings.
    pub named: Names,
    pub tablespaces: Names,
    pub extensions: BTreeSet<String>,
}

impl Needs {
    /// Adds what one statement wants.
    pub fn add(&mut self, part: &Part, sql: &[u8]) {
        let name = |rest: &[u8]| identifier(rest).map(|(name, _)| name);
        if let Some(rest) = sql.strip_prefix(b"SET default_tablespace = ") {
            self.tablespaces.extend(name(rest));
        }
        match part.desc.as_str() {
            "EXTENSION" => {
                self.extensions.insert(part.name.clone());
            }
            "ACL" | "DEFAULT ACL" => statements(sql).for_each(|statement| self.right(statement)),
            "POLICY" => {
                let ends = [&b" USING ("[..], b" WITH CHECK ("];
                let end = ends
                    .into_iter()
                    .filter_map(|word| outside_quotes(sql, word, false));
                let head = &sql[..end.min().unwrap_or(sql.len())];
                if let Some(at) = outside_quotes(head, b" TO ", false) {
                    self.list(&head[at + 4..]);
                }
            }
            "USER MAPPING" => {
                if let Some(at) = outside_quotes(sql, b" FOR ", false) {
                    self.list(&sql[at + 5..]);
                }
            }
            _ => self.owners.extend(owner(sql)),
        }
    }

    /// `GRANT … TO role`, `REVOKE … FROM role`, `ALTER DEFAULT PRIVILEGES FOR ROLE role …`.
    fn right(&mut self, statement: &[u8]) {
        if let Some(rest) = statement.strip_prefix(b"SET SESSION AUTHORIZATION ") {
            return self.list(rest);
        }
        if let Some(at) = outside_quotes(statement, b" FOR ROLE ", false) {
            self.list(&statement[at + 10..]);
        }
        let last = [&b" TO "[..], b" FROM "].into_iter();
        let last =
            last.filter_map(|word| Some(outside_quotes(statement, word, true)? + word.len()));
        if let Some(at) = last.max() {
            self.list(&statement[at..]);
        }
    }

    /// `a, "b c"`; PUBLIC is everybody and needs nobody.
    fn list(&mut self, text: &[u8]) {
        let mut text = text;
        while let Some((name, rest)) = identifier(text) {
            let words = [&b"public"[..], b"default", b"current_user", b"user"];
            if text.first() == Some(&b'"') || !words.contains(&name.to_ascii_lowercase().as_slice())
            {
                self.named.insert(name);
            }
            match rest.strip_prefix(b", ") {
                Some(more) => text = more,
                None => return,
            }
        }
    }
}

const OWNER_TO: &[u8] = b" OWNER TO ";

/// The role of `ALTER … OWNER TO "role";` at the statement's end.
fn owner(sql: &[u8]) -> Option<Vec<u8>> {
    let mut sql = sql;
    for after in [
        &b"SET default_tablespace = '';\n"[..],
        b"SET default_table_access_method = heap;\n",
    ] {
        sql = sql.strip_suffix(after).unwrap_or(sql);
    }
    if let Some(at) = memchr::memmem::rfind(sql, b"\nALTER TABLE ")
        && memchr::memmem::find(&sql[at..], b" SET ACCESS METHOD ").is_some()
    {
        sql = &sql[..=at];
    }
    let at = memchr::memmem::rfind(sql, OWNER_TO)?;
    let (name, rest) = identifier(&sql[at + OWNER_TO.len()..])?;
    (rest == b";\n").then_some(name)
}

/// Statements without their semicolons.
fn statements(sql: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut quoted = false;
    sql.split(move |&byte| {
        quoted ^= byte == b'"';
        byte == b';' && !quoted
    })
    .map(<[u8]>::trim_ascii)
}

/// Where the words stand outside double quotes, first or last.
fn outside_quotes(sql: &[u8], words: &[u8], last: bool) -> Option<usize> {
    let (mut quoted, mut found) = (false, None);
    for at in 0..sql.len() {
        quoted ^= sql[at] == b'"';
        if !quoted && sql[at..].starts_with(words) {
            found = Some(at);
            if !last {
                break;
            }
        }
    }
    found
}

/// The identifier at the beginning, without its quotes, and what follows.
pub(super) fn identifier(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    if text.first() != Some(&b'"') {
        let word = |byte: &u8| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$') || *byte >= 0x80
        };
        let end = text
            .iter()
            .position(|byte| !word(byte))
            .unwrap_or(text.len());
        return (end > 0).then(|| (text[..end].to_vec(), &text[end..]));
    }
    let (mut name, mut at) = (Vec::new(), 1);
    loop {
        match (text.get(at)?, text.get(at + 1)) {
            (b'"', Some(b'"')) => {
                name.push(b'"');
                at += 2;
            }
            (b'"', _) => return Some((name, &text[at + 1..])),
            (byte, _) => {
                name.push(*byte);
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::script::{Role, Stage};

    fn needs(desc: &str, sql: &str) -> Needs {
        let part = Part {
            at: 0,
            len: sql.len(),
            role: Role::Entry,
            stage: Stage::Pre,
            id: 1,
            desc: desc.into(),
            name: "hstore".into(),
            deps: vec![],
        };
        let mut needs = Needs::default();
        needs.add(&part, sql.as_bytes());
        needs
    }

    fn words(names: &Names) -> Vec<String> {
        names
            .iter()
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect()
    }

    #[test]
    fn owners_stand_at_the_end_and_nowhere_else() {
        let table = "SET default_tablespace = \"fa\"\"st\";\nCREATE TABLE t ();\nALTER TABLE \"t\" OWNER TO \"o\"\"; x\";\nSET default_tablespace = '';\n";
        let found = needs("TABLE", table);
        assert_eq!(
            (words(&found.owners), words(&found.tablespaces)),
            (vec!["o\"; x".into()], vec!["fa\"st".into()])
        );
        let part = "CREATE TABLE p ();\nALTER TABLE \"p\" OWNER TO \"me\";\nALTER TABLE \"p\" SET ACCESS METHOD \"x\";\n";
        assert_eq!(words(&needs("TABLE", part).owners), ["me"]);
        let body = "CREATE FUNCTION f() AS $$ ALTER TABLE x OWNER TO \"nobody\";\n$$;\nALTER FUNCTION f() OWNER TO \"me\";\n";
        assert_eq!(words(&needs("FUNCTION", body).owners), ["me"]);
        assert!(
            needs("COMMENT", "COMMENT ON TABLE t IS ' OWNER TO \"x\";\n';\n")
                .owners
                .is_empty()
        );
    }

    #[test]
    fn roles_of_rights_policies_and_mappings() {
        let acl = "REVOKE ALL ON TABLE public.\"a TO b\" FROM former;\nGRANT SELECT ON TABLE public.\"a TO b\" TO \"The Reader\";\n\
                   GRANT SELECT(note) ON TABLE public.t TO PUBLIC;\nSET SESSION AUTHORIZATION giver;\nGRANT ALL ON TABLE t TO x WITH GRANT OPTION;\nRESET SESSION AUTHORIZATION;\n";
        assert_eq!(
            words(&needs("ACL", acl).named),
            ["The Reader", "former", "giver", "x"]
        );
        let defaults = "ALTER DEFAULT PRIVILEGES FOR ROLE maker IN SCHEMA s GRANT SELECT ON TABLES TO reader;\n";
        assert_eq!(
            words(&needs("DEFAULT ACL", defaults).named),
            ["maker", "reader"]
        );
        let policy =
            "CREATE POLICY p ON public.t FOR SELECT TO a, \"b c\" USING ((x = ' TO y'::text));\n";
        assert_eq!(words(&needs("POLICY", policy).named), ["a", "b c"]);
        assert!(
            needs(
                "POLICY",
                "CREATE POLICY p ON public.t USING ((x = ' TO y'::text));\n"
            )
            .named
            .is_empty()
        );
        let mapping = "CREATE USER MAPPING FOR me SERVER s OPTIONS (password 'x');\n";
        assert_eq!(words(&needs("USER MAPPING", mapping).named), ["me"]);
        assert!(
            needs("EXTENSION", "CREATE EXTENSION IF NOT EXISTS hstore;\n")
                .extensions
                .contains("hstore")
        );
    }
}
