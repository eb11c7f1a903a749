//! Which objects of a dump `--table` brings back. Pure.
//!
//! The tables that were named and their partitions are *own*, with everything that belongs to them:
//! rows, sequences, defaults, indexes, constraints, triggers, rules, policies, rights, comments. What
//! they cannot be made without (schema, types, functions, extensions) is a *need*. An
//! object of theirs that also wants something else of the dump (a foreign key to another
//! table) is left out, and named.
//!
//! Invariants: no rows but those of own tables are kept; whatever is kept finds everything that it
//! waits for in the dump among what is kept.

mod names;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::archive::script::{Meaning, Part, Role, Stage};
use crate::error::{Error, Result};

/// Types of objects that belong to a table when they hang on it.
const BELONGS: [&str; 19] = [
    "TABLE DATA",
    "TABLE ATTACH",
    "DEFAULT",
    "SEQUENCE OWNED BY",
    "SEQUENCE SET",
    "CONSTRAINT",
    "CHECK CONSTRAINT",
    "FK CONSTRAINT",
    "INDEX",
    "INDEX ATTACH",
    "TRIGGER",
    "RULE",
    "POLICY",
    "ROW SECURITY",
    "STATISTICS",
    "STATISTICS DATA",
    "COMMENT",
    "SECURITY LABEL",
    "ACL",
];

/// What comes along with a need.
const OF_NEED: [&str; 4] = ["SEQUENCE SET", "COMMENT", "SECURITY LABEL", "ACL"];

/// What holds rows or shows them: never brought along for the sake of something that could do without.
const RELATIONS: [&str; 4] = ["TABLE", "VIEW", "MATERIALIZED VIEW", "FOREIGN TABLE"];

/// Something of an own table that does not come along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// `FK CONSTRAINT public.line line_item_fkey`
    pub what: String,
    pub why: String,
}

/// What `--table` means in one dump.
#[derive(Debug, Default)]
pub struct Selection {
    /// The frames' meanings, of each only what is kept.
    pub meanings: Vec<Meaning>,
    /// Ids of the own tables' `TABLE` entries, and their names.
    pub tables: BTreeMap<i32, String>,
    /// Ids of the tables' `TABLE DATA` entries.
    pub data: BTreeSet<i32>,
    /// Ids of everything that belongs to them, themselves included.
    pub own: BTreeSet<i32>,
    pub left_out: Vec<LeftOut>,
    /// Said once.
    pub notes: Vec<String>,
}

/// Selects the tables that `wanted` names. For a `whole` new database the database's own properties
/// are kept; for one that exists, foreign keys to tables that may be there. `exact` has the names of
/// tables, by the id of their data, which those of the index may not be in an encoding other than UTF-8.
///
/// # Errors
/// `Usage` for a name that is no table of the dump, or that several tables have.
pub fn select(
    meanings: &[Meaning],
    exact: &BTreeMap<i32, String>,
    wanted: &[String],
    whole: bool,
) -> Result<Selection> {
    let toc = Toc::read(meanings, exact);
    let mut tables = BTreeMap::new();
    for name in wanted {
        let id = toc.find(name)?;
        toc.with_partitions(id, &mut tables);
    }
    toc.refuse_rows_of_a_root(meanings, &tables)?;
    let mut choice = Choice {
        toc: &toc,
        own: tables.keys().copied().collect(),
        needs: BTreeSet::new(),
        tables: &tables,
        every_key: !whole,
    };
    choice.sequences();
    let tables_alone: Vec<i32> = choice.own.iter().copied().collect();
    for id in tables_alone {
        let closure = choice.closure(id);
        choice.needs.extend(closure);
    }
    let left = choice.attach();
    let (left_out, mut notes) = toc.tell(&left, &tables);
    let of_needs = choice.of_needs();
    notes.extend(choice.notes(meanings));
    let Choice { own, needs, .. } = choice;
    let keep = |part: &Part| match part.role {
        Role::Entry => [&own, &needs, &of_needs]
            .iter()
            .any(|ids| ids.contains(&part.id)),
        Role::Properties => whole,
        _ => false,
    };
    let data = toc
        .ids_of("TABLE DATA")
        .filter(|id| own.contains(id))
        .collect();
    Ok(Selection {
        meanings: meanings
            .iter()
            .map(|meaning| filter(meaning, &keep, &data))
            .collect(),
        tables,
        data,
        own,
        left_out,
        notes,
    })
}

/// The frame's meaning without what is not kept.
fn filter(meaning: &Meaning, keep: &dyn Fn(&Part) -> bool, data: &BTreeSet<i32>) -> Meaning {
    match meaning {
        Meaning::Sql { parts } => Meaning::Sql {
            parts: parts.iter().filter(|part| keep(part)).cloned().collect(),
        },
        Meaning::Rows { id, .. } if data.contains(id) => meaning.clone(),
        _ => Meaning::Sql { parts: Vec::new() },
    }
}

/// The dump's objects.
struct Toc<'a> {
    /// In the archive's order.
    parts: Vec<&'a Part>,
    by_id: HashMap<i32, &'a Part>,
    /// The partitioned table of each partition.
    parent: BTreeMap<i32, i32>,
    /// Names as people write them, where those of the parts are not.
    exact: BTreeMap<i32, &'a str>,
}

impl<'a> Toc<'a> {
    fn read(meanings: &'a [Meaning], exact: &'a BTreeMap<i32, String>) -> Toc<'a> {
        let parts: Vec<&Part> = meanings
            .iter()
            .filter_map(|meaning| match meaning {
                Meaning::Sql { parts } => Some(parts),
                _ => None,
            })
            .flatten()
            .filter(|part| part.role == Role::Entry)
            .collect();
        let attach = parts.iter().filter(|part| part.desc == "TABLE ATTACH");
        let parent = attach
            .filter_map(|part| Some((*part.deps.first()?, *part.deps.get(1)?)))
            .collect();
        let data = parts.iter().filter(|part| part.desc == "TABLE DATA");
        let exact = data
            .filter_map(|part| Some((*part.deps.first()?, exact.get(&part.id)?.as_str())))
            .collect();
        Toc {
            exact,
            by_id: parts.iter().map(|part| (part.id, *part)).collect(),
            parts,
            parent,
        }
    }

    fn ids_of(&self, desc: &str) -> impl Iterator<Item = i32> {
        self.parts
            .iter()
            .filter(move |part| part.desc == desc)
            .map(|part| part.id)
    }

    /// The table and, of a partitioned one, its partitions down to the last.
    fn with_partitions(&self, id: i32, tables: &mut BTreeMap<i32, String>) {
        let name = self
            .by_id
            .get(&id)
            .map(|part| part.name.clone())
            .unwrap_or_default();
        if tables.insert(id, name).is_none() {
            for (&child, _) in self.parent.iter().filter(|(_, parent)| **parent == id) {
                self.with_partitions(child, tables);
            }
        }
    }

    /// Some partitions' rows were dumped to go in through the root, which then must come along.
    fn refuse_rows_of_a_root(
        &self,
        meanings: &[Meaning],
        tables: &BTreeMap<i32, String>,
    ) -> Result<()> {
        let through_root: BTreeSet<i32> = meanings
            .iter()
            .filter_map(|meaning| match meaning {
                Meaning::Rows { id, root: true, .. } => Some(*id),
                _ => None,
            })
            .collect();
        for data in self
            .parts
            .iter()
            .filter(|part| through_root.contains(&part.id))
        {
            let Some(table) = data.deps.iter().find(|id| tables.contains_key(id)) else {
                continue;
            };
            let mut root = *table;
            while let Some(&up) = self.parent.get(&root) {
                root = up;
            }
            if !tables.contains_key(&root) {
                let name = |id: &i32| self.by_id.get(id).map_or("?", |part| part.name.as_str());
                return Err(Error::usage(format!(
                    "the rows of {} go in through {}, of which it is a partition",
                    name(table),
                    name(&root)
                ))
                .hint(format!("--table {} brings both", name(&root))));
            }
        }
        Ok(())
    }

    /// The dependencies that the object cannot be made without.
    fn wanted_by(&self, part: &'a Part) -> impl Iterator<Item = &'a Part> {
        let deps = part
            .deps
            .iter()
            .filter_map(|id| self.by_id.get(id).copied());
        deps.filter(move |dep| match part.desc.as_str() {
            // A partition is made alone and attached later; a sequence is handed to its owner later.
            "TABLE" => self.parent.get(&part.id) != Some(&dep.id),
            "SEQUENCE" => dep.desc != "TABLE",
            // The index of the partitioned table, which it is attached to later.
            "INDEX" | "CONSTRAINT" => !matches!(dep.desc.as_str(), "INDEX" | "CONSTRAINT"),
            _ => true,
        })
    }

    /// What to say of the objects that hang on own tables and were not kept.
    fn tell(&self, left: &[&Part], tables: &BTreeMap<i32, String>) -> (Vec<LeftOut>, Vec<String>) {
        let (mut left_out, mut others) = (Vec::new(), Vec::new());
        for part in left {
            let belongs = is_of(part, tables);
            let named = matches!(part.desc.as_str(), "STATISTICS" | "INDEX" | "TABLE ATTACH");
            if belongs || named {
                let missing = self.wanted_by(part).find(|dep| {
                    RELATIONS.contains(&dep.desc.as_str()) && !tables.contains_key(&dep.id)
                });
                left_out.push(LeftOut {
                    what: format!("{} {}", part.desc, part.name),
                    why: missing.map_or_else(
                        || "it needs what does not come along".to_owned(),
                        |dep| format!("it needs {}", dep.name),
                    ),
                });
            } else if part.desc == "FK CONSTRAINT" {
                others.push(part.name.as_str());
            }
        }
        let notes = (!others.is_empty()).then(|| {
            format!(
                "foreign keys of other tables do not come along: {}",
                others.join(", ")
            )
        });
        (left_out, notes.into_iter().collect())
    }
}

struct Choice<'a> {
    toc: &'a Toc<'a>,
    own: BTreeSet<i32>,
    needs: BTreeSet<i32>,
    tables: &'a BTreeMap<i32, String>,
    /// Their foreign keys are kept wherever they point: what they point to may be in the target already.
    every_key: bool,
}

impl<'a> Choice<'a> {
    fn has(&self, id: i32) -> bool {
        self.own.contains(&id) || self.needs.contains(&id)
    }

    /// Sequences of own tables: those that a column owns, and identities.
    fn sequences(&mut self) {
        let tables = self.own.clone();
        for part in self.toc.parts.iter().filter(|part| part.desc == "SEQUENCE") {
            if part.deps.iter().any(|dep| tables.contains(dep)) {
                self.own.insert(part.id);
            }
        }
    }

    /// Everything that must be there before this object and is not yet.
    fn closure(&self, id: i32) -> BTreeSet<i32> {
        let (mut found, mut open) = (BTreeSet::new(), vec![id]);
        while let Some(next) = open.pop() {
            let Some(part) = self.toc.by_id.get(&next) else {
                continue;
            };
            for dep in self.toc.wanted_by(part).filter(|dep| !self.has(dep.id)) {
                if found.insert(dep.id) {
                    open.push(dep.id);
                }
            }
        }
        found
    }

    /// Takes all that belongs to the own tables; gives what hangs on them and could not be taken.
    fn attach(&mut self) -> Vec<&'a Part> {
        let belongs = |part: &&&Part| BELONGS.contains(&part.desc.as_str());
        let mut open: Vec<&'a Part> = self.toc.parts.iter().filter(belongs).copied().collect();
        loop {
            let before = open.len();
            open.retain(|part| !self.take(part));
            if open.len() == before {
                open.retain(|part| part.deps.iter().any(|dep| self.own.contains(dep)));
                return open;
            }
        }
    }

    fn take(&mut self, part: &Part) -> bool {
        if !part.deps.iter().any(|dep| self.own.contains(dep)) {
            return false;
        }
        let of_table = || part.deps.iter().any(|dep| self.tables.contains_key(dep));
        if part.desc == "TABLE DATA" && !of_table() {
            return false;
        }
        if part.desc == "FK CONSTRAINT" && self.every_key && is_of(part, self.tables) {
            self.own.insert(part.id);
            return true;
        }
        let closure = self.closure(part.id);
        let loose = closure.iter().all(|id| {
            let dep = self.toc.by_id.get(id);
            dep.is_some_and(|dep| {
                dep.stage == Stage::Pre && !RELATIONS.contains(&dep.desc.as_str())
            })
        });
        // A sequence of another table is not handed over.
        let foreign =
            part.desc == "SEQUENCE OWNED BY" && !part.deps.iter().all(|dep| self.own.contains(dep));
        if loose && !foreign {
            self.needs.extend(closure);
            self.own.insert(part.id);
        }
        loose && !foreign
    }

    /// Comments, rights and positions of the needs.
    fn of_needs(&self) -> BTreeSet<i32> {
        let mut found = BTreeSet::new();
        for part in self
            .toc
            .parts
            .iter()
            .filter(|part| OF_NEED.contains(&part.desc.as_str()))
        {
            let known = |dep: &i32| self.needs.contains(dep) || found.contains(dep);
            if !self.own.contains(&part.id) && !part.deps.is_empty() && part.deps.iter().all(known)
            {
                found.insert(part.id);
            }
        }
        found
    }

    /// What must not surprise.
    fn notes(&self, meanings: &[Meaning]) -> Vec<String> {
        let mut notes = self.lent();
        let is_objects = |meaning: &Meaning| matches!(meaning, Meaning::Objects { .. });
        if meanings.iter().any(is_objects) {
            notes.push(
                "large objects do not come along: a table does not say which are its own"
                    .to_owned(),
            );
        }
        notes
    }

    /// A table that only lends its definition comes without rows.
    fn lent(&self) -> Vec<String> {
        let relation = |id: &&i32| {
            let part = self.toc.by_id.get(id);
            part.is_some_and(|part| RELATIONS.contains(&part.desc.as_str()))
        };
        let names = self
            .needs
            .iter()
            .filter(relation)
            .map(|id| self.toc.by_id[id].name.as_str());
        names
            .map(|name| format!("{name} comes along without its rows: the tables are made from it"))
            .collect()
    }
}

/// Whether the object is named after one of the tables, as constraints, triggers and the like are.
fn is_of(part: &Part, tables: &BTreeMap<i32, String>) -> bool {
    tables.values().any(|name| {
        let rest = part.name.strip_prefix(name.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    })
}

#[cfg(test)]
#[path = "select_tests.rs"]
mod tests;
