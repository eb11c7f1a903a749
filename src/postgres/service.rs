//! The connection service file (`pg_service.conf`): named sets of parameters.
//! Source: PostgreSQL manual, "The Connection Service File".

use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result};

/// Where libpq looks, in order: the named file or else `~/.pg_service.conf`, then the
/// system's folder (Debian's when `PGSYSCONFDIR` is not set).
pub(super) fn files(
    named: Option<String>,
    home: Option<&Path>,
    env: &dyn Fn(&str) -> Option<String>,
) -> Vec<PathBuf> {
    let own = named.map(PathBuf::from);
    let own = own.or_else(|| home.map(|home| home.join(".pg_service.conf")));
    let system = env("PGSYSCONFDIR").unwrap_or_else(|| "/etc/postgresql-common".to_owned());
    own.into_iter()
        .chain([Path::new(&system).join("pg_service.conf")])
        .collect()
}

/// The parameters of service `name` from the first file that has it.
///
/// # Errors
/// `Usage` when no file has it or its file is malformed.
pub(super) fn find(name: &str, files: &[PathBuf]) -> Result<Vec<(String, String)>> {
    for file in files {
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).context(|| format!("service file {}", file.display())),
        };
        if let Some(pairs) = section(name, &text, file)? {
            return Ok(pairs);
        }
    }
    let places: Vec<String> = files
        .iter()
        .map(|file| file.display().to_string())
        .collect();
    Err(
        Error::usage(format!("the connection service {name:?} is not defined")).hint(format!(
            "looked in {}; add [{name}] there",
            places.join(" and ")
        )),
    )
}

fn section(name: &str, text: &str, file: &Path) -> Result<Option<Vec<(String, String)>>> {
    let mut found: Option<Vec<(String, String)>> = None;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(title) = line.strip_prefix('[') {
            if found.is_some() {
                break;
            }
            if title.split(']').next() == Some(name) {
                found = Some(Vec::new());
            }
            continue;
        }
        let Some(pairs) = &mut found else { continue };
        let place = format!("{}:{}", file.display(), number + 1);
        let (key, value) = line
            .split_once('=')
            .ok_or_else(|| {
                Error::usage(format!("{place}: a line without ="))
                    .hint("each line of a service file is a keyword and its value, as host=db1; a comment begins with #")
            })?;
        let (key, value) = (key.trim(), value.trim());
        if key == "service" || key == "servicefile" {
            return Err(Error::usage(format!("{place}: services cannot be nested")));
        }
        pairs.push((key.to_owned(), value.to_owned()));
    }
    Ok(found)
}
