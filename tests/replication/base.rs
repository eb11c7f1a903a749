//! BASE_BACKUP against real servers, judged by their own programs.

use super::connect;
use crate::support::{Server, Setup, TempDir, as_server_user, run, until};
use pgark::error::{Error, Kind};
use pgark::postgres::replication::{
    Archive, BaseBackup, BaseEnd, BaseEvent, Checkpoint, Replication,
};
use pgark::units::Timeline;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// A base backup in memory.
#[derive(Default)]
struct Taken {
    archives: BTreeMap<Archive, Vec<u8>>,
    manifest: Vec<u8>,
    progress: u64,
    estimate_kib: u64,
}

fn take(link: &mut Replication, wanted: &BaseBackup) -> Result<(Taken, BaseEnd), Error> {
    let mut taken = Taken::default();
    let mut current = None;
    let end = link.base_backup(wanted, &mut |event| {
        match event {
            BaseEvent::Archive(archive) => current = Some(archive),
            BaseEvent::Data(bytes) => {
                let archive = taken.archives.entry(current.unwrap()).or_default();
                archive.extend_from_slice(bytes);
            }
            BaseEvent::ManifestData(bytes) => taken.manifest.extend_from_slice(bytes),
            BaseEvent::Progress(bytes) => {
                assert!(bytes >= taken.progress);
                taken.progress = bytes;
            }
            BaseEvent::Tablespaces(list) => {
                taken.estimate_kib = list.iter().filter_map(|one| one.size_kib).sum();
            }
            BaseEvent::Start { .. } | BaseEvent::Manifest => {}
        }
        Ok(())
    })?;
    Ok((taken, end))
}

/// Unpacks with tar, and lets pg_verifybackup judge.
fn verified(server: &Server, taken: &Taken, wal: bool) {
    let dir = TempDir::new();
    dir.give_to_postgres();
    let tar = dir.join("base.tar");
    std::fs::write(&tar, &taken.archives[&Archive::Base]).unwrap();
    let data = dir.join("data");
    std::fs::create_dir(&data).unwrap();
    let unpacked = run(Command::new("tar")
        .arg("-xf")
        .arg(&tar)
        .arg("-C")
        .arg(&data));
    assert_eq!(unpacked.assert_code(0).stderr, "");
    std::fs::write(data.join("backup_manifest"), &taken.manifest).unwrap();
    let mut judge = Command::new(server.bin().join("pg_verifybackup"));
    judge.args((!wal).then_some("-n")).arg("-e").arg(&data);
    let said = run(&mut judge).assert_code(0);
    assert!(
        said.stdout.contains("backup successfully verified"),
        "{said:?}"
    );
}

#[test]
fn base_backups_are_whole_for_the_servers_own_judge() {
    for major in [15, 17, 18] {
        let settings: &[&str] = if major > 15 {
            &["summarize_wal=on"]
        } else {
            &[]
        };
        let server = Server::start_with(
            major,
            &Setup {
                settings,
                ..Setup::default()
            },
        );
        server.psql(
            "postgres",
            "CREATE TABLE t AS SELECT i, md5(i::text) FROM generate_series(1, 50000) i",
        );
        let mut link = connect(&server);
        let full = BaseBackup {
            label: "it's a test".to_owned(),
            checkpoint: Checkpoint::Fast,
            progress: true,
            wal: true,
            ..BaseBackup::default()
        };
        let (taken, end) = take(&mut link, &full).unwrap();
        assert!(!end.bad_checksums && end.start < end.end && end.start_timeline == Timeline::FIRST);
        let bytes = taken.archives[&Archive::Base].len() as u64;
        assert!(taken.progress > bytes / 2 && taken.estimate_kib * 1024 > bytes / 2);
        verified(&server, &taken, true);
        // Without WAL, and with the connection used again.
        let bare = BaseBackup {
            wal: false,
            progress: false,
            max_rate_kib: Some(1 << 20),
            ..full.clone()
        };
        let (bare, _) = take(&mut link, &bare).unwrap();
        assert!(
            bare.estimate_kib == 0
                && bare.archives[&Archive::Base].len() as u64 + (16 << 20) <= bytes
        );
        verified(&server, &bare, false);
        let next = BaseBackup {
            incremental: true,
            ..full
        };
        incremental(&mut link, &next, &taken, major);
    }
}

/// A second backup that brings only what changed, where the server can make one.
fn incremental(link: &mut Replication, next: &BaseBackup, taken: &Taken, major: u32) {
    if major == 15 {
        assert_eq!(take(link, next).err().unwrap().kind, Kind::Usage);
        assert_eq!(
            link.upload_manifest(&taken.manifest[..]).unwrap_err().kind,
            Kind::Usage
        );
        return;
    }
    // Without its manifest there is nothing to build on.
    let error = take(link, next).err().unwrap();
    assert!(error.fact.contains("UPLOAD_MANIFEST"), "{error}");
    let nonsense = link.upload_manifest(&b"{}"[..]).unwrap_err();
    assert!(!link.is_broken(), "{nonsense}");
    link.upload_manifest(&taken.manifest[..]).unwrap();
    let (smaller, _) = take(link, next).unwrap();
    let content = &smaller.archives[&Archive::Base];
    assert!(memchr::memmem::find(content, b"INCREMENTAL.").is_some());
}

#[test]
fn a_backup_that_is_not_wanted_any_more_ends_on_the_server() {
    let server = Server::start(17);
    let mut link = connect(&server);
    let wanted = BaseBackup {
        label: "stopped".to_owned(),
        checkpoint: Checkpoint::Fast,
        max_rate_kib: Some(1024),
        ..BaseBackup::default()
    };
    let error = link.base_backup(&wanted, &mut |event| match event {
        BaseEvent::Data(_) => Err(Error::failed("enough")),
        _ => Ok(()),
    });
    assert_eq!(error.unwrap_err().fact, "enough");
    // The session is at peace again, and the server runs no backup.
    link.identify().unwrap();
    let running = "SELECT count(*) FROM pg_stat_progress_basebackup";
    until("the backup to end", || {
        server.psql("postgres", running) == "0"
    });
    // Closed from another thread while the server sends slowly.
    let canceller = link.canceller();
    let error = std::thread::scope(|scope| {
        scope.spawn(move || {
            until("the backup to run", || {
                server.psql("postgres", running) == "1"
            });
            canceller.close();
        });
        link.base_backup(&wanted, &mut |_| Ok(())).unwrap_err()
    });
    assert!(error.fact.contains("pgark closed it"), "{error}");
    assert!(link.is_broken());
}

#[test]
fn pages_with_wrong_checksums_are_kept_and_told() {
    // Both the template and its tables have no checksums: the server makes them here.
    for major in [15, 18] {
        let with_checksums = |data: &Path| {
            let mut enable = as_server_user(crate::support::bin(major).join("pg_checksums"));
            run(enable.arg("--enable").arg("-D").arg(data));
        };
        let server = Server::start_with(
            major,
            &Setup {
                prepare: Some(&with_checksums),
                ..Setup::default()
            },
        );
        server.psql(
            "postgres",
            "CREATE TABLE t AS SELECT i FROM generate_series(1, 5000) i; CHECKPOINT",
        );
        let path = server.psql("postgres", "SELECT pg_relation_filepath('t')");
        let file = server.data_dir().join(&path);
        let mut bytes = std::fs::read(&file).unwrap();
        // In the middle of the third page.
        bytes[2 * 8192 + 4000] ^= 0xFF;
        std::fs::write(&file, bytes).unwrap();
        let mut link = connect(&server);
        let wanted = BaseBackup {
            label: "damaged".to_owned(),
            checkpoint: Checkpoint::Fast,
            ..BaseBackup::default()
        };
        let (taken, end) = take(&mut link, &wanted).unwrap();
        assert!(end.bad_checksums);
        assert!(
            end.warnings
                .iter()
                .any(|line| line.contains(&path) && line.contains("block 2")),
            "{:?}",
            end.warnings
        );
        verified(&server, &taken, false);
        link.identify().unwrap();
    }
}
