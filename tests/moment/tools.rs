//! PostgreSQL's own tools about a directory that was restored to a moment: as it lies there, while its
//! server runs, and after that has stopped.

use super::World;
use crate::base::{Copy, place};
use crate::support::{as_server_user, bin, run};
use std::path::Path;
use std::process::Command;

const CHECKSUMS: &str = "pg_checksums";

/// What a base backup holds, and what WAL then does to it.
const SAMPLE: &str = "CREATE TABLE t AS SELECT i, repeat(md5(i::text), 90) AS m FROM generate_series(1, 20000) i; \
    CREATE INDEX ON t (i); CREATE INDEX ON t (left(m, 40))";
const CHANGES: &str = "UPDATE t SET m = repeat(md5(m), 99) WHERE i % 3 = 0; DELETE FROM t WHERE i % 7 = 0; \
    CREATE TABLE later AS SELECT * FROM t; CREATE INDEX ON later (m, i)";

fn judged(major: u32, copy: &Copy) {
    let mut amcheck = Command::new(bin(major).join("pg_amcheck"));
    amcheck.args(["-U", "postgres", "--all", "--heapallindexed"]);
    amcheck.arg("--install-missing");
    amcheck.env("PGHOST", copy.data.parent().unwrap());
    run(amcheck.env("PGPORT", copy.port.to_string())).assert_code(0);
    run(as_server_user(bin(major).join("pg_ctl"))
        .args(["stop", "-m", "fast", "-w", "-D"])
        .arg(&copy.data))
    .assert_code(0);
    let checked = run(as_server_user(bin(major).join(CHECKSUMS))
        .args(["--check", "-D"])
        .arg(&copy.data));
    let told = checked.assert_code(0).stdout;
    let line = |name: &str| {
        let mut lines = told.lines();
        let found = lines.find_map(|line| line.strip_prefix(name));
        found.unwrap().trim().parse::<u64>().unwrap()
    };
    assert_eq!(line("Bad checksums:"), 0, "{told}");
    assert!(line("Blocks scanned:") > 1000, "{told}");
}

#[test]
fn the_standard_tools_agree_with_what_was_restored_to_a_moment() {
    for major in [15, 17] {
        let enable = |data: &Path| {
            let mut enable = as_server_user(bin(major).join(CHECKSUMS));
            run(enable.arg("--enable").arg("-D").arg(data)).assert_code(0);
        };
        let world = World::start_prepared(major, Some(&enable));
        world.psql(SAMPLE);
        // As a standby that lags on purpose has it.
        world.psql("ALTER SYSTEM SET recovery_min_apply_delay = '10min'");
        world.base(&[]);
        world.psql(CHANGES);
        world.psql("INSERT INTO ledger VALUES (1, 0)");
        let lsn = world.psql("SELECT pg_current_wal_insert_lsn()");
        world.psql("SELECT pg_create_restore_point('here')");
        world.psql("DROP TABLE later; INSERT INTO ledger VALUES (2, 0)");
        world.switch();
        let (_keep, data) = place();
        world.restore(&lsn, &data, &[]).assert_code(0);
        // Every file of the manifest, and no other: those that a restore adds (postgresql.auto.conf,
        // recovery.signal, pg_wal) the tool itself passes over. The WAL of the backup is read, too.
        run(Command::new(bin(major).join("pg_verifybackup"))
            .arg("-e")
            .arg(&data)
            .env("PATH", bin(major)))
        .assert_code(0);
        let copy = Copy::start(major, &data);
        assert_eq!(super::rows(&copy), [1]);
        assert_eq!(copy.psql("SHOW recovery_min_apply_delay"), "0");
        judged(major, &copy);
    }
}
