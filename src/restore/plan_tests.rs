//! The plan's claims.

use super::*;
use crate::restore::schedule::Schedule;
use proptest::prelude::*;

fn part(id: i32, desc: &str, stage: Stage, deps: &[i32]) -> Part {
    let len = usize::from(desc != "TABLE DATA");
    Part {
        at: 0,
        len,
        role: Role::Entry,
        stage,
        id,
        desc: desc.into(),
        name: String::new(),
        deps: deps.into(),
    }
}

fn rows(id: i32) -> (Meaning, u64) {
    (
        Meaning::Rows {
            id,
            rows: 10,
            head: 1,
            tail: 1,
            root: false,
        },
        20 << 20,
    )
}

fn dump() -> Vec<(Meaning, u64)> {
    let pre = vec![
        part(1, "TABLE", Stage::Pre, &[]),
        part(2, "TABLE", Stage::Pre, &[]),
        part(11, "TABLE DATA", Stage::Data, &[1]),
        part(12, "TABLE DATA", Stage::Data, &[2]),
    ];
    let post = vec![
        part(21, "CONSTRAINT", Stage::Post, &[1]),
        part(22, "INDEX", Stage::Post, &[2]),
        part(23, "FK CONSTRAINT", Stage::Post, &[21, 1, 2]),
        part(31, "ACL", Stage::Rights, &[1]),
    ];
    vec![
        (Meaning::Sql { parts: pre }, 100),
        rows(11),
        rows(12),
        rows(12),
        rows(12),
        (Meaning::Sql { parts: post }, 100),
    ]
}

#[test]
fn the_table_with_the_slow_index_is_loaded_first_and_by_all() {
    let sql = |statement: &Statement| {
        if statement.part.id == 22 {
            b"CREATE INDEX i ON t USING gin (j)".to_vec()
        } else {
            Vec::new()
        }
    };
    let plan = plan(&dump(), &sql, 2).unwrap();
    let mut schedule = Schedule::new(&plan.tasks);
    let mut loaded = Vec::new();
    while let Some(task) = schedule.take(&plan.tasks) {
        if let Work::Load { table, .. } = plan.tasks[task].work {
            loaded.push(table);
        }
    }
    assert_eq!(loaded, [12, 12, 12, 11]);
    assert_eq!(plan.rows, BTreeMap::from([(11, 10), (12, 30)]));
}

#[test]
fn indexes_are_attached_one_at_a_time() {
    let mut frames = dump();
    let attach = |id, deps: &[i32]| part(id, "INDEX ATTACH", Stage::Post, deps);
    let parts = vec![attach(41, &[21]), attach(42, &[22])];
    frames.push((Meaning::Sql { parts }, 100));
    let plan = plan(&frames, &|_| Vec::new(), 2).unwrap();
    let is_attach = |task: usize| matches!(&plan.tasks[task].work, Work::Run(statement) if statement.part.desc == "INDEX ATTACH");
    let mut schedule = Schedule::new(&plan.tasks);
    let mut attached = 0;
    while !schedule.is_done() {
        let taken: Vec<usize> = std::iter::from_fn(|| schedule.take(&plan.tasks)).collect();
        assert!(!taken.is_empty());
        let at_once = taken.iter().filter(|task| is_attach(**task)).count();
        assert!(at_once <= 1, "{at_once} at once");
        attached += at_once;
        for task in taken {
            schedule.finish(&plan.tasks, task);
        }
    }
    assert_eq!(attached, 2);
}

#[test]
fn a_trigger_of_a_partitioned_parent_waits_for_every_load() {
    let mut frames = dump();
    let trigger = vec![
        part(3, "TABLE", Stage::Pre, &[]),
        part(41, "TRIGGER", Stage::Post, &[3]),
    ];
    frames.push((Meaning::Sql { parts: trigger }, 100));
    let plan = plan(&frames, &|_| Vec::new(), 2).unwrap();
    let is_load = |task: &&Task| matches!(task.work, Work::Load { .. });
    let loads = plan.tasks.iter().filter(is_load).count();
    let trigger = plan
        .tasks
        .iter()
        .find(|task| matches!(&task.work, Work::Run(statement) if statement.part.id == 41));
    assert_eq!(trigger.unwrap().after.len(), loads);
}

#[test]
fn waiting_in_a_circle_is_damage_and_no_hang() {
    let frames = vec![(
        Meaning::Sql {
            parts: vec![
                part(1, "INDEX", Stage::Post, &[]),
                part(2, "INDEX", Stage::Post, &[1]),
            ],
        },
        10,
    )];
    let mut made = plan(&frames, &|_| Vec::new(), 2).unwrap();
    made.tasks[0].after = vec![1];
    assert!(rank(&mut made.tasks, &[1.0, 1.0]).is_err());
}

proptest! {
    #[test]
    fn every_schedule_ends_with_all_done_and_nothing_before_its_time(
        deps in proptest::collection::vec(proptest::collection::vec(0_usize..40, 0..4), 1..40),
        locks in proptest::collection::vec((proptest::collection::vec(0_i32..4, 0..2), any::<bool>()), 40),
        workers in 1_usize..5,
    ) {
        let mut tasks: Vec<Task> = deps.iter().enumerate().map(|(i, deps)| {
            let mut after: Vec<usize> = deps.iter().copied().filter(|d| *d < i).collect();
            after.sort_unstable();
            after.dedup();
            let mut tables = locks[i].0.clone();
            tables.dedup();
            let (locks, shares) = if locks[i].1 { (tables, vec![]) } else { (vec![], tables) };
            Task { work: Work::Analyze { table: 0 }, after, locks, shares, rank: 0.0 }
        }).collect();
        let costs = vec![1.0; tasks.len()];
        rank(&mut tasks, &costs).unwrap();
        let mut schedule = Schedule::new(&tasks);
        let (mut running, mut done) = (Vec::<usize>::new(), HashSet::new());
        loop {
            while running.len() < workers {
                let Some(task) = schedule.take(&tasks) else { break };
                prop_assert!(tasks[task].after.iter().all(|before| done.contains(before)));
                for other in &running {
                    let clash = tasks[task].locks.iter().any(|t| tasks[*other].locks.contains(t) || tasks[*other].shares.contains(t))
                        || tasks[task].shares.iter().any(|t| tasks[*other].locks.contains(t));
                    prop_assert!(!clash);
                }
                running.push(task);
            }
            if running.is_empty() { break; }
            let task = running.remove(0);
            schedule.finish(&tasks, task);
            done.insert(task);
        }
        prop_assert!(schedule.is_done());
        prop_assert_eq!(done.len(), tasks.len());
    }
}
