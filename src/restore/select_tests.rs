//! What `--table` selects, on dumps made up for it.

use super::*;
use crate::error::Kind;
use proptest::prelude::*;

fn select(meanings: &[Meaning], wanted: &[String], whole: bool) -> Result<Selection> {
    super::select(meanings, &BTreeMap::new(), wanted, whole)
}

fn part(id: i32, desc: &str, name: &str, deps: &[i32]) -> Part {
    let stage = match desc {
        "TABLE DATA" | "SEQUENCE SET" => Stage::Data,
        "INDEX" | "CONSTRAINT" | "FK CONSTRAINT" | "TRIGGER" | "POLICY" | "INDEX ATTACH" => {
            Stage::Post
        }
        "ACL" => Stage::Rights,
        _ => Stage::Pre,
    };
    Part {
        at: 0,
        len: 1,
        role: Role::Entry,
        stage,
        id,
        desc: desc.into(),
        name: name.into(),
        deps: deps.into(),
    }
}

fn rows(id: i32, root: bool) -> Meaning {
    Meaning::Rows {
        id,
        rows: 1,
        head: 1,
        tail: 1,
        root,
    }
}

/// As pg_dump has it: two schemas, a serial, a foreign key, a partitioned table, inheritance.
fn dump() -> Vec<Meaning> {
    let parts = vec![
        part(1, "SCHEMA", "s", &[]),
        part(2, "EXTENSION", "hstore", &[]),
        part(3, "TYPE", "public.mood", &[]),
        part(4, "FUNCTION", "public.tf()", &[]),
        part(5, "FUNCTION", "public.unused()", &[]),
        part(10, "TABLE", "s.item", &[3, 1]),
        part(11, "SEQUENCE", "s.item_id_seq", &[10, 1]),
        part(12, "SEQUENCE OWNED BY", "s.item_id_seq", &[11]),
        part(13, "DEFAULT", "s.item id", &[10, 11, 10]),
        part(20, "TABLE", "public.line", &[]),
        part(21, "TABLE", "public.shared", &[11]),
        part(30, "TABLE", "public.par", &[]),
        part(31, "TABLE", "public.par1", &[30]),
        part(32, "TABLE ATTACH", "public.par1", &[31, 30]),
        part(40, "TABLE", "public.base", &[]),
        part(41, "TABLE", "public.kid", &[40, 2]),
        part(45, "TABLE", "public.item", &[]),
        part(46, "TABLE", "public.Item", &[]),
        part(47, "VIEW", "public.seen", &[20]),
        part(110, "TABLE DATA", "s.item", &[10]),
        part(120, "TABLE DATA", "public.line", &[20]),
        part(131, "TABLE DATA", "public.par1", &[31]),
        part(140, "TABLE DATA", "public.base", &[40]),
        part(141, "TABLE DATA", "public.kid", &[41]),
        part(150, "SEQUENCE SET", "s.item_id_seq", &[11]),
        part(200, "CONSTRAINT", "s.item item_pkey", &[10]),
        part(201, "INDEX", "public.par_k_idx", &[30]),
        part(202, "INDEX", "public.par1_k_idx", &[201, 31, 31]),
        part(
            203,
            "INDEX ATTACH",
            "public.par1_k_idx",
            &[202, 201, 31, 30],
        ),
        part(210, "TRIGGER", "public.line tr", &[4, 20]),
        part(
            211,
            "FK CONSTRAINT",
            "public.line line_item_fkey",
            &[10, 200, 20],
        ),
        part(212, "POLICY", "public.line p", &[20, 40]),
        part(300, "ACL", "public.TABLE line", &[20]),
        part(301, "COMMENT", "public.TYPE mood", &[3]),
    ];
    vec![
        Meaning::Sql { parts },
        rows(110, false),
        rows(120, false),
        rows(131, false),
        rows(140, false),
        rows(141, false),
        Meaning::Objects { count: 1, bytes: 1 },
    ]
}

fn kept(selection: &Selection) -> Vec<i32> {
    let mut ids = Vec::new();
    for meaning in &selection.meanings {
        if let Meaning::Sql { parts } = meaning {
            ids.extend(parts.iter().map(|part| part.id));
        }
    }
    ids
}

fn select_one(name: &str) -> Selection {
    select(&dump(), &[name.to_owned()], true).unwrap()
}

#[test]
fn a_table_comes_with_what_belongs_to_it_and_what_it_needs() {
    let item = select_one("s.item");
    assert_eq!(kept(&item), [1, 3, 10, 11, 12, 13, 110, 150, 200, 301]);
    assert_eq!(item.data, BTreeSet::from([110]));
    assert!(item.left_out.is_empty(), "{:?}", item.left_out);
    assert!(
        item.notes[0].contains("public.line line_item_fkey"),
        "{:?}",
        item.notes
    );
    assert!(item.notes[1].contains("large objects"), "{:?}", item.notes);
}

#[test]
fn what_needs_another_table_is_left_out_and_named_unless_that_one_comes_too() {
    let line = select_one("line");
    assert_eq!(kept(&line), [4, 20, 120, 210, 300]);
    let left: Vec<&str> = line
        .left_out
        .iter()
        .map(|left| left.what.as_str())
        .collect();
    assert_eq!(
        left,
        [
            "FK CONSTRAINT public.line line_item_fkey",
            "POLICY public.line p"
        ]
    );
    assert_eq!(line.left_out[0].why, "it needs s.item");
    // In a database that exists, the other end may be there.
    let inside = select(&dump(), &["line".into()], false).unwrap();
    assert!(kept(&inside).contains(&211) && !kept(&inside).contains(&10));
    let both = select(
        &dump(),
        &["line".into(), "s.item".into(), "base".into()],
        true,
    )
    .unwrap();
    assert!(both.left_out.is_empty() && kept(&both).contains(&211) && kept(&both).contains(&212));
}

#[test]
fn partitions_come_with_their_table_and_one_comes_alone() {
    assert_eq!(kept(&select_one("par")), [30, 31, 32, 131, 201, 202, 203]);
    let alone = select_one("par1");
    assert_eq!(kept(&alone), [31, 131, 202]);
    assert!(
        alone
            .left_out
            .iter()
            .any(|left| left.what == "TABLE ATTACH public.par1"),
        "{:?}",
        alone.left_out
    );
}

#[test]
fn a_partition_whose_rows_go_through_the_root_does_not_come_alone() {
    let mut dump = dump();
    dump[3] = rows(131, true);
    let error = select(&dump, &["par1".into()], true).unwrap_err();
    assert!(error.kind == Kind::Usage && error.hint.unwrap().contains("public.par"));
    assert!(select(&dump, &["par".into()], true).is_ok());
}

#[test]
fn a_definition_that_is_needed_comes_without_rows_and_says_so() {
    let kid = select_one("kid");
    assert_eq!(kept(&kid), [2, 40, 41, 141]);
    assert!(
        kid.notes[0].contains("public.base comes along without its rows"),
        "{:?}",
        kid.notes
    );
    // A sequence of another table comes, that table does not.
    assert_eq!(kept(&select_one("shared")), [1, 11, 21, 150]);
}

#[test]
fn names_are_found_as_people_write_them() {
    let toc = dump();
    let find = |name: &str| {
        select(&toc, &[name.to_owned()], true).map(|s| s.tables.into_values().next().unwrap())
    };
    assert_eq!(find("public.item").unwrap(), "public.item");
    assert_eq!(find("Item").unwrap(), "public.Item");
    assert_eq!(find("\"Item\"").unwrap(), "public.Item");
    assert_eq!(find("PUBLIC.LINE").unwrap(), "public.line");
    assert_eq!(find("Public.\"Item\"").unwrap(), "public.Item");
    for (name, says) in [
        ("item", "public.item"),
        ("item", "s.item"),
        ("ITEM", "could be any of"),
        ("\"LINE\"", "holds no table"),
        ("seen", "is a view"),
        ("lin", "public.line"),
        ("nothing", "pgark show"),
    ] {
        let error = find(name).unwrap_err();
        assert!(
            error.kind == Kind::Usage && error.to_string().contains(says),
            "{name}: {error}"
        );
    }
}

proptest! {
    /// Whatever the dependencies are.
    #[test]
    fn what_is_kept_finds_all_that_it_waits_for(
        kinds in proptest::collection::vec(0_usize..10, 2..40),
        deps in proptest::collection::vec(proptest::collection::vec(0_i32..40, 0..4), 40),
        chosen in 0_usize..40,
    ) {
        const KINDS: [&str; 10] = ["TABLE", "TYPE", "FUNCTION", "SEQUENCE", "INDEX", "FK CONSTRAINT", "TRIGGER", "VIEW", "ACL", "TABLE DATA"];
        let count = i32::try_from(kinds.len()).unwrap();
        let mut parts = vec![part(0, "TABLE", "public.t0", &[])];
        for (id, kind) in (1..count).zip(&kinds) {
            let deps: Vec<i32> = deps[usize::try_from(id).unwrap()].iter().copied().filter(|dep| *dep < id).collect();
            parts.push(part(id, KINDS[*kind], &format!("public.t{id}"), &deps));
        }
        let tables: Vec<String> = parts.iter().filter(|part| part.desc == "TABLE").map(|part| part.name.clone()).collect();
        let wanted = tables[chosen % tables.len()].clone();
        let meanings = vec![Meaning::Sql { parts: parts.clone() }];
        let selection = select(&meanings, std::slice::from_ref(&wanted), true).unwrap();
        let ids: BTreeSet<i32> = kept(&selection).into_iter().collect();
        let none = BTreeMap::new();
        let toc = Toc::read(&meanings, &none);
        prop_assert!(ids.iter().any(|id| toc.by_id[id].name == wanted));
        for id in &ids {
            for dep in toc.wanted_by(toc.by_id[id]) {
                prop_assert!(ids.contains(&dep.id), "{id} wants {}", dep.id);
            }
        }
        // Rows of the wanted table only.
        for id in &selection.data {
            prop_assert!(toc.by_id[id].deps.iter().any(|dep| selection.tables.contains_key(dep)));
        }
    }
}
