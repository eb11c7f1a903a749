//! Misspelt variables: `BACKUP_RETENTION_DAY` must not pass for "unset".

use super::environment::Environment;
use super::table::VARIABLES;

/// One warning for each variable with a prefix of pgark's own that the table does not hold.
pub(super) fn unknown_variables(env: &Environment) -> Vec<String> {
    let known: Vec<&str> = VARIABLES
        .iter()
        .flat_map(super::table::Variable::spellings)
        .collect();
    let mut warnings = Vec::new();
    for name in env.names() {
        let ours = name.starts_with("BACKUP_") || name.starts_with("PGARK_");
        let base = name.strip_suffix("_FILE").unwrap_or(name);
        if !ours || known.contains(&base) {
            continue;
        }
        warnings.push(match nearest(base, known.iter().copied()) {
            Some(candidate) => {
                format!("unknown variable {name} is ignored: did you mean {candidate}?")
            }
            None => format!(
                "unknown variable {name} is ignored: docs/configuration.md lists what pgark reads"
            ),
        });
    }
    warnings
}

/// The candidate that somebody who wrote `name` may have meant.
pub(super) fn nearest<'a>(
    name: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    candidates
        .map(|candidate| (distance(name, candidate), candidate))
        .min()
        .filter(|&(distance, _)| distance <= (name.len() / 3).max(2))
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance in bytes.
#[must_use]
pub fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("same", "same"), 0);
    }

    #[test]
    fn unknown_backup_variable_is_a_warning_with_the_nearest_name() {
        let env = Environment::from_pairs([
            ("BACKUP_RETENTION_DAY", "3"),
            ("BACKUP_JOB_FILE", "/x"),
            ("BACKUP_SOMETHING_ELSE_ENTIRELY", "1"),
            ("BACKUP_EMPTY", ""),
            ("BACKUP_DIR", "/b"),
            ("BACKUP_S3_BUCKET", "b"),
            ("OTHER_BACKUP_DIR", "x"),
        ]);
        let warnings = unknown_variables(&env);
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        assert!(warnings[0].contains("BACKUP_JOB_FILE") && warnings[0].contains("BACKUP_JOBS?"));
        assert!(warnings[1].contains("did you mean BACKUP_RETENTION_DAYS?"));
        assert!(!warnings[2].contains("did you mean"), "{}", warnings[2]);
    }
}
