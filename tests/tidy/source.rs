//! Reads Rust source just well enough for the house rules: what is code, what is a
//! comment or a text, where tests begin, and how long functions are.

use std::path::Path;

/// One source file.
pub(crate) struct Source {
    /// The path below the project.
    pub(crate) name: String,
    pub(crate) text: String,
    /// The text with comments and literals blanked, line for line.
    pub(crate) code: String,
    /// The code without its tests, line for line.
    product: String,
}

impl Source {
    pub(crate) fn read(path: &Path, name: String) -> Self {
        let text = std::fs::read_to_string(path).unwrap();
        let code = code_only(&text);
        let test_file = path
            .file_stem()
            .is_some_and(|stem| stem == "tests" || stem.to_string_lossy().ends_with("_tests"))
            || name.contains("/tests/");
        let product = if test_file {
            blank(&code)
        } else {
            without_tests(&code)
        };
        Source {
            name,
            text,
            code,
            product,
        }
    }

    /// The numbers of the lines, tests aside, whose code has this text as a whole word.
    pub(crate) fn lines_with(&self, wanted: &str) -> Vec<usize> {
        let holds = |line: &str| {
            line.match_indices(wanted).any(|(at, _)| {
                let before = line[..at].chars().next_back();
                !wanted.starts_with(char::is_alphabetic) || !before.is_some_and(is_word)
            })
        };
        let lines = self.product.lines().enumerate();
        lines
            .filter(|(_, line)| holds(line))
            .map(|(at, _)| at + 1)
            .collect()
    }

    /// The names right below `crate::` (in main.rs `pgark::`), tests aside, with lines.
    pub(crate) fn rooms_used(&self) -> Vec<(usize, String)> {
        let mut used = Vec::new();
        for root in ["crate::", "pgark::"] {
            for (at, _) in self.product.match_indices(root) {
                let line = self.product[..at].matches('\n').count() + 1;
                let rest = &self.product[at + root.len()..];
                let names = match rest.strip_prefix('{') {
                    Some(group) => group_heads(group),
                    None => vec![word_at(rest)],
                };
                used.extend(names.into_iter().map(|name| (line, name)));
            }
        }
        used
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn word_at(text: &str) -> String {
    text.chars().take_while(|c| is_word(*c)).collect()
}

/// The first words of the members of `{a::b, c, d::{e, f}}`, after its opening brace.
fn group_heads(group: &str) -> Vec<String> {
    let (mut depth, mut member, mut heads) = (0, String::new(), Vec::new());
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => heads.push(word_at(std::mem::take(&mut member).trim())),
            _ if depth == 0 => member.push(c),
            _ => {}
        }
    }
    heads.push(word_at(member.trim()));
    heads
}

/// Name and length in lines of every function with a body.
pub(crate) fn functions(code: &str) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let name = word_at(&code[at + 3..]);
        if name.is_empty() || code[..at].chars().next_back().is_some_and(is_word) {
            continue;
        }
        // `[u8; 4]` in a signature holds a semicolon that does not end it.
        let mut depth = 0;
        let body = code[at..].char_indices().find(|(_, c)| {
            depth += i32::from(matches!(c, '(' | '[')) - i32::from(matches!(c, ')' | ']'));
            depth == 0 && matches!(c, '{' | ';')
        });
        if let Some((open, '{')) = body {
            let end = at + open + closing_brace(&code[at + open..]);
            found.push((name, code[at..end].matches('\n').count() + 1));
        }
    }
    found
}

/// Where the brace that the text begins with is closed.
fn closing_brace(code: &str) -> usize {
    let mut depth = 0;
    let close = code.char_indices().find(|(_, c)| {
        depth += i32::from(*c == '{') - i32::from(*c == '}');
        depth == 0
    });
    close.map_or(code.len(), |(at, _)| at)
}

/// The code with the bodies of `#[cfg(test)]` items blanked.
fn without_tests(code: &str) -> String {
    let mut left = code.to_owned();
    for (at, mark) in code.match_indices("#[cfg(test)]") {
        let item = at + mark.len();
        let Some(open) = code[item..].find(['{', ';']) else {
            continue;
        };
        let open = item + open;
        let end = if code[open..].starts_with('{') {
            open + closing_brace(&code[open..])
        } else {
            open
        };
        left.replace_range(at..end, &blank(&code[at..end]));
    }
    left
}

/// The text with everything but line ends replaced by blanks, byte for byte.
fn blank(text: &str) -> String {
    let blanked = text.bytes().map(|b| if b == b'\n' { '\n' } else { ' ' });
    blanked.collect()
}

/// The text with comments, strings and character literals blanked, byte for byte.
fn code_only(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let after_word = code.chars().next_back().is_some_and(is_word);
        let length = comment(rest)
            .or_else(|| (!after_word).then(|| raw_string(rest)).flatten())
            .or_else(|| quoted(rest))
            .or_else(|| character(rest));
        if let Some(length) = length {
            code.push_str(&blank(&rest[..length]));
            rest = &rest[length..];
        } else {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    code
}

/// The length of the comment that the text begins with; block comments nest.
fn comment(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    let mut depth = 0;
    let mut at = 0;
    loop {
        let rest = &text[at..];
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if depth == 0 {
            return None;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return Some(at);
            }
        } else {
            at += rest.chars().next()?.len_utf8();
        }
    }
}

/// `r"…"`, `r#"…"#`, `br"…"` at the beginning of the text.
fn raw_string(text: &str) -> Option<usize> {
    let start = text.strip_prefix('b').unwrap_or(text).strip_prefix('r')?;
    let hashes = start.len() - start.trim_start_matches('#').len();
    let body = start[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let length = body.find(&end)? + end.len();
    Some(text.len() - body.len() + length)
}

/// `"…"` at the beginning of the text.
fn quoted(text: &str) -> Option<usize> {
    let mut escaped = false;
    let body = text.strip_prefix('"')?;
    let end = body.char_indices().find(|(_, c)| {
        let ends = *c == '"' && !escaped;
        escaped = *c == '\\' && !escaped;
        ends
    })?;
    Some(end.0 + 2)
}

/// `'x'` or `'\n'` at the beginning of the text, and not the lifetime `'a`.
fn character(text: &str) -> Option<usize> {
    let body = text.strip_prefix('\'')?;
    let mut chars = body.char_indices();
    let (_, first) = chars.next()?;
    if first == '\\' {
        chars.next()?;
        return Some(chars.find(|(_, c)| *c == '\'')?.0 + 2);
    }
    let (at, second) = chars.next()?;
    (second == '\'').then_some(at + 2)
}

#[test]
fn comments_and_literals_are_not_code() {
    let text =
        "a(\"b // \\\" c\"); // d\nr#\"e \" {\"#; 'f'; '\\''; x::<'g>(); /* h /* i */ j */ k";
    let code = code_only(text);
    assert_eq!(code.len(), text.len());
    let kept: Vec<&str> = code.split_whitespace().collect();
    assert_eq!(kept, ["a(", ");", ";", ";", ";", "x::<'g>();", "k"]);
}

#[test]
fn tests_and_function_lengths_are_found() {
    let code = "fn a(x: [u8; 4]) {\n  b();\n}\ntrait T { fn c(); }\n#[cfg(test)]\nmod t {\n  fn d() {}\n}\n";
    assert_eq!(functions(code), [("a".into(), 3), ("d".into(), 1)]);
    assert_eq!(functions(&without_tests(code)), [("a".into(), 3)]);
}

#[test]
fn grouped_imports_are_taken_apart() {
    assert_eq!(group_heads("a::b, c::{d, e},\n f};"), ["a", "c", "f"]);
}
