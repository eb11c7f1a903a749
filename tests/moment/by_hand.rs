//! To a moment without pgark: the manual's own commands, word by word.

use super::{World, rows};
use crate::base::elsewhere::{as_the_manual_says, commands, readable};
use crate::base::{Copy, place};
use crate::support::{run, until};
use std::process::Command;

/// The newest segment in two pieces that overlap.
fn split(world: &World) {
    let piece = world.store_piece();
    let split = "zstd -dqc \"$0\" > \"$1\" && head -c 9000 \"$1\" | zstd -qc > \"$0\".a && \
        tail -c +8193 \"$1\" | zstd -qc > \"${0%0000000000.zst}0000008192.zst\" && \
        mv \"$0\".a \"$0\" && rm \"$1\"";
    run(Command::new("sh")
        .args(["-c", split])
        .arg(&piece)
        .arg(world.backups.join("raw")))
    .assert_code(0);
}

#[test]
fn the_manual_brings_a_moment_back_without_pgark() {
    let world = World::start(17);
    let id = world.base(&[]);
    for n in 1..=3 {
        world.psql(&format!("INSERT INTO ledger VALUES ({n}, 0)"));
        world.switch();
    }
    world.psql("INSERT INTO ledger VALUES (4, 0)");
    let moment = world.psql("SELECT clock_timestamp()");
    world.psql("INSERT INTO ledger VALUES (5, 0)");
    split(&world);
    let (keep, data) = place();
    let folder = readable(&world.backups.join(&id), &keep);
    let wal = keep.join("wal");
    let copy = "cp -r \"$0\" \"$1\" && chown -R --reference \"$(dirname \"$1\")\" \"$1\"";
    run(Command::new("sh")
        .args(["-c", copy])
        .arg(&world.wal)
        .arg(&wal))
    .assert_code(0);
    let unpack = &commands("## A base backup")[1];
    let blocks = commands("### To a moment");
    let [names, recover] = &blocks[..] else {
        panic!("{} blocks", blocks.len());
    };
    assert!(
        names.contains("W=/backups/wal/") && names.contains("MOMENT="),
        "{names}"
    );
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    std::fs::write(keep.join("hba"), "local all all trust\n").unwrap();
    let own = format!(
        "B={}\nD={}\nW={}\nA={}\nMOMENT='{moment}'\n",
        folder.display(),
        data.display(),
        wal.display(),
        keep.join("archive").display()
    );
    as_the_manual_says(17, &format!("{own}{unpack}"));
    let settings = format!(
        "port = {port}\nlisten_addresses = ''\nunix_socket_directories = '{0}'\nhba_file = '{0}/hba'\n",
        keep.path().display()
    );
    let add = format!(
        "{own}cat >> $D/postgresql.auto.conf <<'OWN'\n{settings}OWN\nexec > {}/log 2>&1\n",
        keep.path().display()
    );
    as_the_manual_says(17, &format!("{add}{recover}"));
    let copy = Copy {
        data,
        port,
        major: 17,
    };
    until("the end of recovery", || {
        copy.psql("SELECT pg_is_in_recovery()") == "f"
    });
    assert_eq!(rows(&copy), [1, 2, 3, 4]);
}
