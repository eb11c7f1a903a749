//! Which databases: one name, a list, or all. Pure.

/// The databases that a run is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Databases {
    /// In the order given, each once.
    Named(Vec<String>),
    /// Every database that accepts connections and is no template.
    All,
}

impl Databases {
    /// Those that are named; none of them when all are meant.
    #[must_use]
    pub fn names(&self) -> &[String] {
        match self {
            Databases::Named(names) => names,
            Databases::All => &[],
        }
    }
}

/// PostgreSQL's `NAMEDATALEN` less one. The server cuts longer names silently, which would
/// back up one database under another's name.
const NAME_LEN_MAX: usize = 63;

/// Takes names as they are.
pub(super) fn exact(names: &[String]) -> Result<Databases, String> {
    let mut out: Vec<String> = Vec::new();
    for name in names {
        check_name(name)?;
        if !out.contains(name) {
            out.push(name.clone());
        }
    }
    Ok(Databases::Named(out))
}

/// Parses `DB_NAME`: a name, names with commas between, or `*`.
///
/// Blanks around an item are dropped. An item in double quotes is literal, `""` in it is one
/// quote; an item that merely holds quotes or blanks (`a/b "c"`) is literal as it stands.
pub(super) fn parse(text: &str) -> Result<Databases, String> {
    if text.trim() == "*" {
        return Ok(Databases::All);
    }
    let mut names = Vec::new();
    let mut rest = text;
    loop {
        let (item, after) = item(rest)?;
        names.push(item);
        match after {
            Some(after) => rest = after,
            None => break,
        }
    }
    exact(&names)
}

/// The first item of `text`, and what follows its comma.
fn item(text: &str) -> Result<(String, Option<&str>), String> {
    let text = text.trim_start();
    if let Some(quoted) = text.strip_prefix('"') {
        return quoted_item(quoted);
    }
    let (name, after) = match text.split_once(',') {
        Some((name, after)) => (name, Some(after)),
        None => (text, None),
    };
    match name.trim_end() {
        "" => Err("a name in the list is empty; remove the extra comma".to_owned()),
        "*" => Err(
            "`*` means all databases and stands alone; a database of that name is \"*\" in double quotes".to_owned(),
        ),
        name => Ok((name.to_owned(), after)),
    }
}

/// The item after its opening quote.
fn quoted_item(text: &str) -> Result<(String, Option<&str>), String> {
    let mut name = String::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if c != '"' {
            name.push(c);
        } else if chars.next_if(|&(_, next)| next == '"').is_some() {
            name.push('"');
        } else {
            let after = text[at + 1..].trim_start();
            return match after.strip_prefix(',') {
                Some(after) => Ok((name, Some(after))),
                None if after.is_empty() => Ok((name, None)),
                None => Err(
                    "something follows a closing double quote; quote the whole name and double the quotes in it".to_owned(),
                ),
            };
        }
    }
    Err(
        "a double quote is not closed; a name that begins with one is written in quotes, with the quote doubled"
            .to_owned(),
    )
}

fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("a database's name is empty".to_owned());
    }
    if name.contains('\0') {
        return Err("a database's name holds a zero byte".to_owned());
    }
    if name.len() > NAME_LEN_MAX {
        return Err(format!(
            "the name {name:?} has {} bytes; PostgreSQL's names have at most {NAME_LEN_MAX}",
            name.len()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn named(names: &[&str]) -> Databases {
        Databases::Named(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn lists_are_split_at_commas_and_quotes_are_literal() {
        let cases: &[(&str, Databases)] = &[
            ("app", named(&["app"])),
            (" app , shop ", named(&["app", "shop"])),
            ("a/b \"c\"", named(&["a/b \"c\""])),
            ("my db,x", named(&["my db", "x"])),
            ("\"a,b\", c", named(&["a,b", "c"])),
            ("\"say \"\"hi\"\"\"", named(&["say \"hi\""])),
            ("\" padded \"", named(&[" padded "])),
            ("app,app", named(&["app"])),
            ("*", Databases::All),
            (" * ", Databases::All),
            ("\"*\"", named(&["*"])),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text).as_ref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn ambiguous_lists_are_refused() {
        for text in ["", ",", "a,,b", "a,", "a,*", "\"a", "\"a\" b", "\"\""] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn name_that_the_server_would_cut_is_refused() {
        assert!(parse(&"x".repeat(63)).is_ok());
        assert!(parse(&"é".repeat(32)).unwrap_err().contains("64 bytes"));
    }

    #[test]
    fn database_flag_is_taken_exactly() {
        let names = ["a,b".to_owned(), "*".to_owned(), " c".to_owned()];
        assert_eq!(exact(&names), Ok(named(&["a,b", "*", " c"])));
    }

    proptest! {
        #[test]
        fn quoted_list_gives_back_its_names(
            names in proptest::collection::hash_set("[^\0]{1,15}", 1..5)
        ) {
            let names: Vec<String> = names.into_iter().collect();
            let quoted: Vec<String> =
                names.iter().map(|name| format!("\"{}\"", name.replace('"', "\"\""))).collect();
            prop_assert_eq!(parse(&quoted.join(" , ")), Ok(Databases::Named(names)));
        }

        #[test]
        fn plain_name_is_itself(name in "[a-z/%.*-][a-z \"'/\\\\é]{0,20}[a-z\"]") {
            prop_assert_eq!(parse(&name), Ok(Databases::Named(vec![name.clone()])));
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in "[a\", *]{0,12}") {
            if let Ok(Databases::Named(names)) = parse(&text) {
                prop_assert!(names.iter().all(|name| !name.is_empty()));
            }
        }
    }
}
