//! Did a database shrink in a way that nobody may have wanted? Pure: values in, falls out.
//!
//! What a new backup holds is compared with the good ones before it, uncompressed, so that
//! another codec or level changes nothing:
//!
//! - a table is gone that held rows;
//! - the rows of a table, all rows, or the large objects fell by a share;
//! - the size fell by a share.
//!
//! The newest good backup is the measure. What lies below the minima is not looked at: small
//! tables come and go. Nor is a fall that the good backups before it already know: a table that
//! is emptied every night, or that somebody accepted as emptied, is no news.
//!
//! Tables whose names differ only in their digits and of which new ones appear (partitions by
//! date, chunks) are judged together, by the sum of their rows: that the oldest goes while
//! another comes is their way of life.
//!
//! Invariants: contents that did not shrink raise nothing, nor do contents that equal the newest
//! good ones: so to accept is to teach. Where the names of tables are not known (encrypted
//! backups), only sums are compared and no table is named.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::units::ByteSize;

/// Falls that are told one by one; more are summed up.
const FALLS_MAX: usize = 20;

/// What counts as a fall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Rows that fall by so much of a hundred. 0: rows are not compared.
    pub rows_fall_percent: u32,
    /// Fewer rows than this are a small table.
    pub rows_min: u64,
    /// The uncompressed size, likewise.
    pub size_fall_percent: u32,
    pub size_min_bytes: u64,
    /// Whether a table that is gone counts.
    pub table_gone: bool,
    /// With fewer rows than this it does not.
    pub table_gone_rows_min: u64,
    /// Good backups that are looked back on.
    pub history: usize,
}

/// One table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// `schema.name`.
    pub name: String,
    pub rows: u64,
}

/// What a backup holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// None: not known.
    pub tables: Option<Vec<Table>>,
    pub rows: u64,
    pub large_objects: u64,
    /// Uncompressed.
    pub raw_bytes: u64,
}

/// What fell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// A table is gone; its rows before.
    TableGone,
    /// Rows of a table, or without one of all.
    Rows,
    LargeObjects,
    /// Uncompressed size.
    Bytes,
    /// How many tables there are: the sum of what is not told one by one.
    Tables,
}

/// One reason why a backup is suspect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fall {
    pub measure: Measure,
    /// `schema.name`; with `#` for digits it stands for all tables of that form.
    #[serde(default)]
    pub table: Option<String>,
    pub before: u64,
    pub after: u64,
}

impl fmt::Display for Fall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, after) = (self.before, self.after);
        let table = self
            .table
            .as_deref()
            .unwrap_or("?")
            .replace(char::is_control, "?");
        let percent = u128::from(before.saturating_sub(after)) * 100 / u128::from(before.max(1));
        match self.measure {
            Measure::TableGone => write!(f, "table {table} is gone ({before} rows before)"),
            Measure::Rows if self.table.is_some() => {
                write!(f, "table {table}: {before} -> {after} rows (-{percent} %)")
            }
            Measure::Rows => write!(f, "rows in all: {before} -> {after} (-{percent} %)"),
            Measure::LargeObjects => {
                write!(f, "large objects: {before} -> {after} (-{percent} %)")
            }
            Measure::Bytes => {
                let (before, after) = (ByteSize(before), ByteSize(after));
                write!(f, "size: {before} -> {after} uncompressed (-{percent} %)")
            }
            Measure::Tables => write!(f, "and more: {before} -> {after} tables"),
        }
    }
}

/// All of them in one sentence.
#[must_use]
pub fn sentence(falls: &[Fall]) -> String {
    let texts: Vec<String> = falls.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

/// How the new contents fell against the good ones before (oldest first). Empty: nothing is wrong.
#[must_use]
pub fn falls(now: &Contents, history: &[Contents], limits: &Thresholds) -> Vec<Fall> {
    let history = &history[history.len().saturating_sub(limits.history)..];
    if history.is_empty() {
        return Vec::new();
    }
    let mut falls = tables_that_fell(now, history, limits);
    let rows = |measure| (measure, limits.rows_fall_percent, limits.rows_min);
    let size = (
        Measure::Bytes,
        limits.size_fall_percent,
        limits.size_min_bytes,
    );
    // Tables that fell say it better than their sum.
    if falls.is_empty() {
        let series: Vec<u64> = history.iter().map(|one| one.rows).collect();
        falls.extend(sum_that_fell(rows(Measure::Rows), &series, now.rows));
    }
    let series: Vec<u64> = history.iter().map(|one| one.large_objects).collect();
    let objects = rows(Measure::LargeObjects);
    falls.extend(sum_that_fell(objects, &series, now.large_objects));
    let series: Vec<u64> = history.iter().map(|one| one.raw_bytes).collect();
    falls.extend(sum_that_fell(size, &series, now.raw_bytes));
    falls
}

/// Whether `after` is less than `before` by at least so many percent; 0 percent is never.
fn is_fall(before: u64, after: u64, percent: u32) -> bool {
    let left = u128::from(100_u32.saturating_sub(percent));
    percent > 0 && after < before && u128::from(after) * 100 <= u128::from(before) * left
}

/// Whether good backups have fallen to this level before.
fn is_known(series: &[u64], after: u64, percent: u32) -> bool {
    series
        .windows(2)
        .any(|pair| is_fall(pair[0], pair[1], percent) && !is_fall(pair[1], after, percent))
}

fn sum_that_fell(
    (measure, percent, min): (Measure, u32, u64),
    series: &[u64],
    after: u64,
) -> Option<Fall> {
    let before = *series.last()?;
    let counts =
        before >= min && is_fall(before, after, percent) && !is_known(series, after, percent);
    counts.then_some(Fall {
        measure,
        table: None,
        before,
        after,
    })
}

/// Rows by table, or by the form of names that are judged together.
type Rows<'a> = BTreeMap<&'a str, u64>;

fn tables_that_fell(now: &Contents, history: &[Contents], limits: &Thresholds) -> Vec<Fall> {
    // Those behind one whose names are not known would only be compared across the gap.
    let known = history.iter().rev().map_while(|one| one.tables.as_ref());
    let mut known: Vec<&Vec<Table>> = known.collect();
    known.reverse();
    let (Some(now), false) = (&now.tables, known.is_empty()) else {
        return Vec::new();
    };
    known.push(now);
    let forms = forms_that_renew(&known);
    let sums: Vec<Rows> = known.iter().map(|tables| sums(tables, &forms)).collect();
    let Some((after, history)) = sums.split_last() else {
        return Vec::new();
    };
    let mut falls: Vec<Fall> = history[history.len() - 1]
        .iter()
        .filter_map(|(name, before)| {
            let series: Vec<Option<u64>> =
                history.iter().map(|rows| rows.get(name).copied()).collect();
            let fall = |measure, after| Fall {
                measure,
                table: Some((*name).to_owned()),
                before: *before,
                after,
            };
            match after.get(name) {
                None => is_news(&series, *before, limits).then(|| fall(Measure::TableGone, 0)),
                Some(after) => {
                    let series: Vec<u64> = series.iter().map(|rows| rows.unwrap_or(0)).collect();
                    let percent = limits.rows_fall_percent;
                    let counts = *before >= limits.rows_min
                        && is_fall(*before, *after, percent)
                        && !is_known(&series, *after, percent);
                    counts.then(|| fall(Measure::Rows, *after))
                }
            }
        })
        .collect();
    falls.sort_by_key(|fall| std::cmp::Reverse(fall.before - fall.after));
    if falls.len() > FALLS_MAX {
        falls.truncate(FALLS_MAX);
        falls.push(Fall {
            measure: Measure::Tables,
            table: None,
            before: known[known.len() - 2].len() as u64,
            after: now.len() as u64,
        });
    }
    falls
}

/// Whether a table's going counts: it held rows, and was not gone and back before.
fn is_news(series: &[Option<u64>], before: u64, limits: &Thresholds) -> bool {
    let went = |pair: &[Option<u64>]| pair[0].is_some() && pair[1].is_none();
    limits.table_gone && before >= limits.table_gone_rows_min && !series.windows(2).any(went)
}

/// A name with `#` in place of each number.
fn form(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '0'..='9' if out.ends_with('#') => {}
            '0'..='9' => out.push('#'),
            c => out.push(c),
        }
    }
    out
}

/// Forms of which there are several tables, and to which one was added lately: the form of each name.
fn forms_that_renew<'a>(known: &[&'a Vec<Table>]) -> BTreeMap<&'a str, String> {
    let mut members: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    let mut first: BTreeMap<&str, usize> = BTreeMap::new();
    let mut begins: BTreeMap<String, usize> = BTreeMap::new();
    for (at, tables) in known.iter().enumerate() {
        for table in *tables {
            let form = form(&table.name);
            if form == table.name {
                continue;
            }
            first.entry(&table.name).or_insert(at);
            begins.entry(form.clone()).or_insert(at);
            members.entry(form).or_default().insert(&table.name);
        }
    }
    let mut forms = BTreeMap::new();
    for (form, names) in members {
        let began = begins.get(&form).copied().unwrap_or(0);
        if names
            .iter()
            .any(|name| first.get(name).is_some_and(|at| *at > began))
        {
            forms.extend(names.into_iter().map(|name| (name, form.clone())));
        }
    }
    forms
}

fn sums<'a>(tables: &'a [Table], forms: &'a BTreeMap<&'a str, String>) -> Rows<'a> {
    let mut rows = Rows::new();
    for table in tables {
        let name = forms.get(table.name.as_str()).unwrap_or(&table.name);
        let sum = rows.entry(name.as_str()).or_default();
        *sum = sum.saturating_add(table.rows);
    }
    rows
}

#[cfg(test)]
mod tests;
