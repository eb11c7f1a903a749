//! The table that a person means by a name. Pure.

use super::{RELATIONS, Toc};
use crate::archive::script::Part;
use crate::error::{Error, Result};

impl Toc<'_> {
    fn name<'b>(&'b self, part: &'b Part) -> &'b str {
        self.exact.get(&part.id).copied().unwrap_or(&part.name)
    }

    /// The table that a person means: `table`, `schema.table`, either with SQL's quotes.
    pub(super) fn find(&self, wanted: &str) -> Result<i32> {
        let (spelt, quoted) = spell(wanted);
        let mut spellings = vec![spelt.clone()];
        // Unquoted, a name means what SQL makes of it, unless there is one that is written so.
        spellings.extend((!quoted).then(|| spelt.to_lowercase()));
        let relations = || {
            self.parts
                .iter()
                .filter(|part| RELATIONS.contains(&part.desc.as_str()))
        };
        for name in &spellings {
            let tail = format!(".{name}");
            for is_it in [
                &(|part: &Part| self.name(part) == *name) as &dyn Fn(&Part) -> bool,
                &|part: &Part| self.name(part).ends_with(&tail),
            ] {
                let found: Vec<&Part> = relations().filter(|part| is_it(part)).copied().collect();
                match found.as_slice() {
                    [] => {}
                    [part] if part.desc == "TABLE" => return Ok(part.id),
                    [part] => {
                        return Err(Error::usage(format!("{} is a {} and no table", part.name, part.desc.to_lowercase()))
                            .hint("--table takes tables; restore the whole backup into a new database for the rest"));
                    }
                    several => {
                        let names: Vec<&str> = several.iter().map(|part| self.name(part)).collect();
                        return Err(Error::usage(format!(
                            "--table {wanted} could be any of {}",
                            names.join(", ")
                        ))
                        .hint("name the schema too: --table schema.table"));
                    }
                }
            }
        }
        let like = spelt.rsplit('.').next().unwrap_or_default().to_lowercase();
        let near: Vec<&str> = relations()
            .filter(|part| part.desc == "TABLE" && self.name(part).to_lowercase().contains(&like))
            .map(|part| self.name(part))
            .take(5)
            .collect();
        Err(
            Error::usage(format!("the backup holds no table {wanted}")).hint(if near.is_empty() {
                "`pgark show BACKUP` lists its tables".to_owned()
            } else {
                format!(
                    "it holds {}; `pgark show BACKUP` lists all",
                    near.join(", ")
                )
            }),
        )
    }
}

/// `"A"."b c"` as `A.b c`, and whether it was quoted; parts outside quotes mean lower case.
fn spell(text: &str) -> (String, bool) {
    if !text.contains('"') {
        return (text.to_owned(), false);
    }
    let (mut out, mut inside, mut chars) = (String::new(), false, text.chars().peekable());
    while let Some(c) = chars.next() {
        match c {
            '"' if inside && chars.peek() == Some(&'"') => {
                chars.next();
                out.push('"');
            }
            '"' => inside = !inside,
            c if inside => out.push(c),
            c => out.extend(c.to_lowercase()),
        }
    }
    (out, true)
}
