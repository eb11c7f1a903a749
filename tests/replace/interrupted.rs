//! Every way to be interrupted on the way to the swap, and what the next run makes of it.

use super::Stage;
use crate::support::site::Session;
use crate::support::until;

/// Killed at each stage of the work; what is left is found by the next run, which ends well.
#[test]
fn killed_at_any_stage_nothing_is_lost_and_it_can_be_run_again() {
    let stage = Stage::plain(17);
    let activity = |like: &str| {
        format!(
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '{like}' AND pid <> pg_backend_pid()"
        )
    };
    let moments = [
        (
            "created",
            "SELECT count(*) FROM pg_database WHERE datname LIKE 'app\\_restored\\_%'".to_owned(),
        ),
        ("loading", activity("COPY public.bulk%")),
        // Nothing else begins so: the database's own ALTERs come before the first row.
        (
            "constraints and statistics",
            "SELECT count(*) FROM pg_stat_activity WHERE query ~ '^(ANALYZE|ALTER TABLE ONLY)'"
                .to_owned(),
        ),
    ];
    for (moment, sql) in moments {
        let mut running = stage.replace(&[]).spawn();
        until(moment, || !running.is_alive() || stage.sql(&sql) != "0");
        running.signal("KILL");
        assert_eq!(
            running.wait().code,
            137,
            "{moment}: it ended before it could be killed"
        );
        let left = stage.named("app\\_restored\\_%");
        assert_eq!(left.len(), 1, "{moment}: {left:?}");
        assert_eq!(
            stage.server.psql(
                "app",
                "SELECT count(*) || ' ' || (SELECT a FROM later) FROM item"
            ),
            "5 1"
        );
        // The mark says what it is to whoever looks, and a look removes nothing.
        let comment = format!(
            "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = '{}'",
            left[0]
        );
        assert!(stage.sql(&comment).contains(&stage.id), "{moment}");
        stage.replace(&["--dry-run"]).run().assert_code(0);
        assert_eq!(stage.named("app\\_restored\\_%"), left);
    }
    // Each run removed what the one before had left; the last one's is removed now.
    let left = stage.named("app\\_restored\\_%").remove(0);
    let done = stage.replace(&[]).run().assert_code(0);
    done.assert_says(&format!(
        "{left:?}, which an interrupted restore had left half-made, was removed first"
    ));
    stage.assert_swapped();
}

/// The first rename is done and the second waits for a lock that somebody holds.
#[test]
fn killed_within_the_swap_nothing_of_it_has_happened() {
    let stage = Stage::plain(15);
    let new = stage.ready_copy();
    let held = format!("BEGIN; COMMENT ON DATABASE \"{new}\" IS 'held'; SELECT pg_sleep(600)");
    let holder = Session::start(&stage.server, "postgres", &held);
    let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'BEGIN; COMMENT%' AND wait_event = 'PgSleep'";
    until("the lock", || stage.sql(sleeps) == "1");
    let waits = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'ALTER DATABASE \"{new}\" RENAME TO%'"
    );
    let killed = stage.replace(&[]).spawn();
    until("the swap to wait", || stage.sql(&waits) == "1");
    killed.signal("KILL");
    killed.wait().assert_code(137);
    // The server notices a dead client when it has something to say.
    stage.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'",
    );
    until("its session to end", || stage.sql(&waits) == "0");
    assert_eq!(stage.server.psql("app", "SELECT count(*) FROM later"), "1");
    assert_eq!(stage.named("app%"), ["app".to_owned(), new.clone()]);

    // A step that is all or nothing is not broken off by a signal that can be heard: it is done.
    let told = stage.replace(&[]).spawn();
    until("the swap to wait", || stage.sql(&waits) == "1");
    told.signal("TERM");
    drop(holder);
    told.wait().assert_code(0);
    stage.assert_swapped();
}

#[test]
fn a_signal_removes_the_copy_and_leaves_the_database() {
    let stage = Stage::plain(17);
    let mut running = stage.replace(&[]).spawn();
    until("loading", || {
        !running.is_alive()
            || stage
                .sql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY public.bulk%'")
                != "0"
    });
    running.signal("TERM");
    running.wait().assert_code(143);
    stage.assert_untouched();
}

/// Two at once: the second is told, and the first ends well.
#[test]
fn two_replacements_of_one_database_exclude_each_other() {
    let stage = Stage::plain(15);
    let first = stage.replace(&[]).spawn();
    until("the new database", || {
        !stage.named("app\\_restored\\_%").is_empty()
    });
    first.signal("STOP");
    stage
        .replace(&[])
        .run()
        .assert_code(6)
        .assert_says("another restore works on database");
    first.signal("CONT");
    first.wait().assert_code(0);
    stage.assert_swapped();
}

/// A copied or inherited comment proves nothing.
#[test]
fn only_what_is_provably_a_remain_is_removed() {
    let stage = Stage::plain(17);
    let comment = |of: &str, named: &str| {
        let json = format!(
            "{{\"database\":\"{named}\",\"backup\":\"{}\",\"state\":\"loading\",\"replaces\":\"app\"}}",
            stage.id
        );
        stage.sql(&format!("CREATE DATABASE \"{of}\"; "));
        stage.sql(&format!(
            "COMMENT ON DATABASE \"{of}\" IS 'pgark restore {json}'"
        ));
    };
    comment("copied", "app_restored_20250101_000000");
    comment(
        "app_restored_20250101_000001",
        "app_restored_20250101_000001",
    );
    stage.replace(&[]).run().assert_code(0);
    assert_eq!(stage.named("copied"), ["copied"]);
    assert_eq!(stage.named("app\\_restored\\_%"), Vec::<String>::new());
}

/// The server goes on making a database for a client that is dead, before it has a mark.
#[test]
fn killed_while_the_server_makes_the_database_leaves_a_temporary_name_that_is_cleared() {
    let stage = Stage::plain(15);
    let held = "BEGIN; ALTER DATABASE template0 RENAME TO elsewhere; SELECT pg_sleep(600)";
    let holder = Session::start(&stage.server, "postgres", held);
    until("the lock", || {
        stage.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'") == "1"
    });
    let making =
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CREATE DATABASE \"pgark%'";
    let running = stage.replace(&[]).spawn();
    until("CREATE DATABASE", || {
        stage.sql(&format!("{making} AND wait_event_type = 'Lock'")) == "1"
    });
    running.signal("KILL");
    running.wait().assert_code(137);
    drop(holder);
    until("the database", || !stage.named("pgark%").is_empty());
    until("its session to end", || stage.sql(making) == "0");
    let left = stage.named("pgark%").remove(0);
    let removed = format!("{left:?}, which an interrupted restore had left half-made");
    stage
        .replace(&[])
        .run()
        .assert_code(0)
        .assert_says(&removed);
    assert_eq!(stage.named("pgark%"), Vec::<String>::new());
    stage.assert_swapped();
}

/// Somebody found the half-made database and works with it.
#[test]
fn a_remain_that_is_in_use_is_not_removed() {
    let stage = Stage::plain(17);
    let mut running = stage.replace(&[]).spawn();
    let loading = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY public.bulk%'";
    until("loading", || {
        !running.is_alive() || stage.sql(loading) != "0"
    });
    running.signal("KILL");
    running.wait().assert_code(137);
    let left = stage.named("app\\_restored\\_%").remove(0);
    let session = Session::start(&stage.server, &left, "SELECT pg_sleep(600)");
    until("the session", || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        stage.sql(sql) == "1"
    });
    let busy = stage.replace(&[]).run().assert_code(6);
    busy.assert_says("somebody is connected to it")
        .assert_says("IS NULL;");
    assert_eq!(
        stage.named("app\\_restored\\_%"),
        std::slice::from_ref(&left)
    );
    // What the hint says keeps it for good.
    stage.sql(&format!("COMMENT ON DATABASE \"{left}\" IS NULL"));
    drop(session);
    stage.replace(&[]).run().assert_code(0);
    assert_eq!(stage.named("app\\_restored\\_%"), [left]);
}

/// An ordinary restore into the name that was asked for.
#[test]
fn an_ordinary_restore_that_was_killed_can_be_run_again_into_the_same_name() {
    let stage = Stage::plain(15);
    let restore = || {
        let args = ["restore", "latest", "--into", "copy", "-q"];
        let pgark = crate::support::Pgark::new(args).server(&stage.server);
        pgark.store(stage.store.path())
    };
    let mut running = restore().spawn();
    let loading = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY public.bulk%'";
    until("loading", || {
        !running.is_alive() || stage.sql(loading) != "0"
    });
    running.signal("KILL");
    running.wait().assert_code(137);
    let removed = "\"copy\", which an interrupted restore had left half-made, was removed first";
    restore().run().assert_code(0).assert_says(removed);
    let digest = crate::support::table_digest(&stage.server, "copy");
    crate::support::assert_same("rows", &stage.digest, &digest);
    // Whole, it has no mark any more and is nobody's remain.
    restore().run().assert_code(2).assert_says("exists already");
}
