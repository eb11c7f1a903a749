//! A suspect backup holds the others of its database, and counts for nothing itself.

use super::*;

fn suspect(database: &str, time: Timestamp) -> Backup {
    dump(database, time).is(Condition::Suspect("table s.t is gone".into()))
}

fn decide(backups: &[Backup]) -> Plan {
    let clock = Clock {
        now: night(100),
        confirmed: true,
    };
    plan(backups, &DAYS_30, clock)
}

#[test]
fn nothing_of_a_database_expires_beside_a_suspect_one_and_other_databases_do() {
    let backups = [
        dump("app", night(0)),
        dump("app", night(1)).bad(),
        globals(night(1)),
        suspect("app", night(2)),
        globals(night(2)),
        dump("app-x", night(0)),
        dump("app-x", night(3)),
    ];
    let plan = decide(&backups);
    let keeps: Vec<bool> = plan.decisions.iter().map(|one| one.keep).collect();
    assert_eq!(keeps, [true, true, true, true, true, false, true]);
    let id = &backups[3].id;
    let words = plan.decisions[3].to_string();
    assert_eq!(
        words,
        format!(
            "suspect (table s.t is gone), nothing of its database expires while {id} is suspect"
        )
    );
    // The good one is the newest, for the suspect one does not count.
    let words = plan.decisions[0].to_string();
    assert!(words.starts_with("the only good backup of app"), "{words}");
    let id = id.clone();
    assert_eq!(plan.warnings, [Warning::Suspect { id, held: 2 }]);
    // Accepted, it is as any other.
    let mut accepted = backups;
    accepted[3].condition = Condition::Good;
    let plan = decide(&accepted);
    let keeps: Vec<bool> = plan.decisions.iter().map(|one| one.keep).collect();
    assert_eq!(keeps, [false, false, false, true, true, false, true]);
    assert_eq!(plan.warnings, []);
}

#[test]
fn the_newest_suspect_one_is_named_and_none_when_nothing_was_due() {
    let young = [
        suspect("app", night(98)),
        suspect("app", night(99)),
        dump("app", night(97)),
    ];
    let plan = decide(&young);
    assert_eq!(plan.warnings, []);
    assert!(plan.decisions.iter().all(|one| one.keep));
    let newest = &young[1].id;
    let named = |one: &Decision| one.to_string().contains(newest.as_str());
    assert!(plan.decisions.iter().all(named));
}
