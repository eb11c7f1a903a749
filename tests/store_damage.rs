//! Damaged stores: whatever happened to a backup's files, pgark says so and restores nothing
//! of them, and the backups beside it stay usable. Legacy backups likewise.

use crate::support::site::first_id;
use crate::support::{Site, assert_same, dump_schema, table_digest};
use serde_json::Value;
use std::path::Path;

/// verify and restore both refuse with exit code 4; no database is left.
#[track_caller]
fn refused(site: &Site, id: &str, what: &str) {
    let verified = site.pgark(["verify", id, "-q"]).run();
    assert_eq!(verified.code, 4, "verify, {what}: {verified:?}");
    restore_refused(site, id, what);
}

#[track_caller]
fn restore_refused(site: &Site, id: &str, what: &str) {
    let target = format!("{}_back", site.database);
    let restored = site.restore(id, &target);
    assert_eq!(restored.code, 4, "restore, {what}: {restored:?}");
    assert!(!site.has_database(&target), "{what} left a database");
}

fn flip(path: &Path, bit: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[bit / 8] ^= 1 << (bit % 8);
    std::fs::write(path, bytes).unwrap();
}

/// Offsets and lengths of the frames, as the index says.
fn frames(site: &Site, id: &str) -> Vec<(usize, usize)> {
    let index = std::fs::read(site.file(id, ".idx")).unwrap();
    let text = String::from_utf8(zstd::stream::decode_all(&index[..]).unwrap()).unwrap();
    let lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let number = |value: &Value| usize::try_from(value.as_u64()?).ok();
    lines
        .filter_map(|line| Some((number(&line["o"])?, number(&line["n"])?)))
        .collect()
}

#[test]
fn a_cut_artefact_is_refused_at_every_border_and_inside() {
    let site = Site::new("cut");
    let id = site.backup();
    let path = site.file(&id, "");
    let whole = std::fs::read(&path).unwrap();
    let frames = frames(&site, &id);
    assert!(frames.len() >= 4, "{frames:?}");
    let borders = frames.iter().map(|(at, _)| *at);
    let inside = frames.iter().map(|(at, length)| at + length / 2);
    for end in borders.chain(inside).chain([whole.len() - 1]) {
        std::fs::write(&path, &whole[..end]).unwrap();
        assert_eq!(site.entry(&id)["good"], false, "cut to {end}");
        refused(&site, &id, &format!("cut to {end} of {}", whole.len()));
        // Nor is a cut file handed out as if it were whole.
        let cat = site.pgark(["cat", &id]).run();
        assert_eq!(cat.code, 4, "cat of a file cut to {end}");
    }
    // Longer is not whole either.
    std::fs::write(&path, [&whole[..], b"\0"].concat()).unwrap();
    refused(&site, &id, "a byte more");
    std::fs::write(&path, &whole).unwrap();
    site.pgark(["verify", &id, "-q"]).run().assert_code(0);
    site.restore(&id, "cut_back").assert_code(0);
    assert_same(
        "rows",
        &table_digest(site.server, "cut"),
        &table_digest(site.server, "cut_back"),
    );
}

#[test]
fn another_backups_artefact_of_the_same_size_is_refused() {
    let (site, other) = (Site::new("swap_a"), Site::new("swap_b"));
    other.server.psql(
        "swap_b",
        "UPDATE item SET label = reverse(label) WHERE id = 7",
    );
    let plain = |site: &Site, dir: &Site| {
        let dir = dir.dir.path();
        let done = site.backup_with(|pgark| pgark.env("BACKUP_COMPRESSION", "none").store(dir));
        first_id(&done.assert_code(0).stdout)
    };
    let (a, b) = (plain(&site, &site), plain(&other, &site));
    let path = |id: &str, suffix: &str| site.dir.join(&format!("{id}.sql{suffix}"));
    let (content_a, content_b) = (
        std::fs::read(path(&a, "")).unwrap(),
        std::fs::read(path(&b, "")).unwrap(),
    );
    assert_eq!(content_a.len(), content_b.len(), "made to be of one size");
    std::fs::write(path(&a, ""), &content_b).unwrap();
    assert_eq!(site.entry(&a)["bytes"], content_a.len());
    refused(&site, &a, "swapped artefact");
    // With the other's index beside it.
    let index = std::fs::read(path(&a, ".idx")).unwrap();
    std::fs::copy(path(&b, ".idx"), path(&a, ".idx")).unwrap();
    refused(&site, &a, "swapped artefact and index");
    // With the other's manifest as well: it names its own files.
    let manifest = std::fs::read(path(&a, ".json")).unwrap();
    std::fs::copy(path(&b, ".json"), path(&a, ".json")).unwrap();
    refused(&site, &a, "everything swapped but the names");
    for (suffix, content) in [("", content_a), (".idx", index), (".json", manifest)] {
        std::fs::write(path(&a, suffix), content).unwrap();
    }
    site.pgark(["verify", "--all", "-q"]).run().assert_code(0);
}

/// Bits of one file, spread over all of it, and every byte of its first 40.
fn sample(bytes: usize, count: usize) -> Vec<usize> {
    let head = (0..bytes.min(40)).map(|byte| byte * 8 + byte % 8);
    let step = (bytes * 8 / count).max(1);
    head.chain((0..bytes * 8).step_by(step)).collect()
}

#[test]
fn any_flipped_bit_of_artefact_and_index_is_refused() {
    let site = Site::new("bits");
    let id = site.backup();
    let mut tried = 0;
    for (suffix, count) in [("", 160), (".idx", 60)] {
        let path = site.file(&id, suffix);
        let length = std::fs::read(&path).unwrap().len();
        let mut bits = sample(length, count);
        if suffix.is_empty() {
            // The whole header of every member: names, flags, the extra field.
            bits.extend(
                frames(&site, &id)
                    .iter()
                    .flat_map(|(at, _)| (0..22).map(move |i| (at + i) * 8 + i % 8)),
            );
        }
        for bit in bits {
            flip(&path, bit);
            let done = site.pgark(["verify", &id, "-q"]).run();
            assert_eq!(done.code, 4, "bit {bit} of {}: {done:?}", path.display());
            if tried % 6 == 0 {
                restore_refused(&site, &id, &format!("bit {bit} of {}", path.display()));
            }
            flip(&path, bit);
            tried += 1;
        }
    }
    assert!(tried > 250, "{tried}");
    site.pgark(["verify", &id, "-q"]).run().assert_code(0);
}

#[test]
fn any_flipped_bit_of_a_manifest_is_refused() {
    let site = Site::new("manifest_bits");
    let id = site.backup();
    let path = site.file(&id, ".json");
    let text = std::fs::read_to_string(&path).unwrap();
    let manifest: Value = serde_json::from_str(&text).unwrap();
    let at = |value: &Value| text.find(value.as_str().unwrap()).unwrap() * 8;
    let hashes = [
        at(&manifest["artefact"]["sha256"]),
        at(&manifest["index"]["sha256"]),
    ];
    let owner = text.find("\"encoding\"").unwrap() * 8 + 13 * 8;
    let bits = sample(text.len(), 60)
        .into_iter()
        .chain(hashes)
        .chain([owner]);
    for (i, bit) in bits.enumerate() {
        flip(&path, bit);
        let entry = site.entry(&id);
        assert_eq!(entry["good"], false, "bit {bit} is not seen");
        if i % 4 == 0 || hashes.contains(&bit) {
            refused(&site, &id, &format!("bit {bit} of the manifest"));
        }
        flip(&path, bit);
    }
    assert_eq!(site.entry(&id)["good"], true);
}

#[test]
fn latest_passes_over_a_failed_backup_until_it_verifies_again() {
    let site = Site::new("passed_over");
    let (old, new) = (site.backup(), site.backup());
    let latest = || {
        let done = site
            .pgark(["show", "latest", "--json"])
            .run()
            .assert_code(0);
        let shown: Value = serde_json::from_str(&done.stdout).unwrap();
        (shown["id"].as_str().unwrap().to_owned(), done.stderr)
    };
    assert_eq!(latest().0, new);
    let path = site.file(&new, "");
    let bit = std::fs::read(&path).unwrap().len() * 4;
    flip(&path, bit);
    site.pgark(["verify", "-q"])
        .run()
        .assert_code(4)
        .assert_says(&new);
    let entry = site.entry(&new);
    assert_eq!(
        (&entry["state"], &entry["good"]),
        (&"failed".into(), &false.into())
    );
    assert!(
        entry["reason"].as_str().unwrap().contains("SHA-256"),
        "{entry}"
    );
    let (chosen, said) = latest();
    assert_eq!(chosen, old);
    assert!(
        said.contains(&new) && said.contains("passed over"),
        "{said}"
    );
    let restored = site.restore("latest", "passed_over_back").assert_code(0);
    assert!(
        restored.stdout.contains(&format!("restored {old}")),
        "{restored:?}"
    );
    restored.assert_says(&format!("passed over {new}"));

    flip(&path, bit);
    site.pgark(["verify", &new, "-q"]).run().assert_code(0);
    assert_eq!(site.entry(&new)["state"], "verified");
    assert_eq!(latest().0, new);
}

#[test]
fn a_manifest_of_a_newer_format_is_named_and_hides_no_other() {
    let site = Site::new("newer");
    let (old, new) = (site.backup(), site.backup());
    let path = site.file(&new, ".json");
    let original = std::fs::read(&path).unwrap();
    std::fs::write(
        &path,
        "{\"format\": 2, \"whatever\": [\"a later pgark writes\"]}\n",
    )
    .unwrap();
    let entry = site.entry(&new);
    assert_eq!(entry["good"], false);
    assert!(
        entry["reason"].as_str().unwrap().contains("format 2"),
        "{entry}"
    );
    for verb in ["verify", "restore"] {
        let done = site.pgark([verb, &new, "-q"]).run();
        assert_ne!(done.code, 0);
        done.assert_says("format 2");
    }
    site.pgark(["verify", &old, "-q"]).run().assert_code(0);
    site.restore("latest", "newer_back")
        .assert_code(0)
        .assert_says(&format!("passed over {new}"));
    // It was not damaged, so the pgark that understands it finds it good: nothing was noted.
    site.backup();
    std::fs::write(&path, original).unwrap();
    assert_eq!(site.entry(&new)["good"], true, "{}", site.entry(&new));
}

#[test]
fn a_missing_sha256_is_made_again_by_the_next_run() {
    let site = Site::new("sums");
    let id = site.backup();
    let path = site.file(&id, ".sha256");
    let sums = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(site.entry(&id)["good"], true);
    site.backup();
    assert_eq!(std::fs::read(&path).unwrap(), sums);
}

#[test]
fn a_deleted_artefact_is_missing_and_never_restored() {
    let site = Site::new("gone");
    let (old, new) = (site.backup(), site.backup());
    std::fs::remove_file(site.file(&new, "")).unwrap();
    let entry = site.entry(&new);
    assert_eq!(
        (&entry["state"], &entry["good"]),
        (&"missing".into(), &false.into())
    );
    assert_eq!(entry["stores"], serde_json::json!([]));
    refused(&site, &new, "deleted artefact");
    assert_eq!(site.entry(&new)["state"], "missing");
    let restored = site.restore("latest", "gone_latest").assert_code(0);
    assert!(
        restored.stdout.contains(&format!("restored {old}")),
        "{restored:?}"
    );
    // An index alone gone is damage as well.
    std::fs::remove_file(site.file(&old, ".idx")).unwrap();
    refused(&site, &old, "deleted index");
    site.pgark(["cat", &old]).run().assert_code(4);
}

#[test]
fn a_legacy_backup_lists_verifies_and_restores() {
    let site = Site::new("legacy_app");
    let id = site.legacy("20240101_000000");
    let entry = site.entry(&id);
    assert_eq!(
        (&entry["state"], &entry["database"]),
        (&"legacy".into(), &"legacy_app".into())
    );
    assert_eq!(entry["started_at"], "2024-01-01T00:00:00Z");
    site.pgark(["verify", &id, "-q"]).run().assert_code(0);
    site.restore(&id, "legacy_back").assert_code(0);
    let (server, back) = (site.server, "legacy_back");
    assert_same(
        "rows",
        &table_digest(server, "legacy_app"),
        &table_digest(server, back),
    );
    assert_same(
        "schemas",
        &dump_schema(server, "legacy_app"),
        &dump_schema(server, back),
    );
    // `latest` means it, as long as there is none of pgark's.
    site.restore("latest", "legacy_latest").assert_code(0);
}

#[test]
fn a_damaged_legacy_backup_is_refused() {
    let site = Site::new("legacy_bad");
    let id = site.legacy("20240101_000000");
    let path = site.file(&id, "");
    let bits = std::fs::read(&path).unwrap().len() * 8;
    flip(&path, bits / 2);
    refused(&site, &id, "legacy with a flipped bit");
    flip(&path, bits / 2);
    let sums = site.file(&id, ".sha256");
    flip(&sums, 80);
    refused(&site, &id, "legacy with a flipped bit in its sum");
    std::fs::write(&sums, "").unwrap();
    refused(&site, &id, "legacy with an empty sum");

    // pg_dump died, gzip and sha256sum did not: the sum holds, the last line is missing.
    let cut = site.legacy_of(
        "20240102_000000",
        "CREATE TABLE cut (id int);\nCOPY cut FROM stdin;\n1\n",
    );
    refused(&site, &cut, "legacy without completion line");
    let empty = site.legacy_of("20240103_000000", "");
    refused(&site, &empty, "empty legacy");
    assert_eq!(site.pgark(["restore", "latest", "-q"]).run().code, 1);
}

#[test]
fn an_sql_error_in_a_legacy_file_stops_it_and_leaves_no_database() {
    let site = Site::new("legacy_error");
    let sql = "CREATE TABLE made (id int);\nSELECT no_such_function();\nCREATE TABLE after_it ();\n\
        --\n-- PostgreSQL database dump complete\n--\n\n";
    let id = site.legacy_of("20240101_000000", sql);
    let done = site.restore(&id, "legacy_error_back").assert_code(1);
    done.assert_says("no_such_function");
    assert!(!site.has_database("legacy_error_back"));
    // Asked to, it keeps what there is, and says so.
    let kept = site
        .pgark(["restore", &id, "--into", "legacy_kept", "--keep", "-q"])
        .run();
    kept.assert_code(1).assert_says("legacy_kept");
    let made = "SELECT to_regclass('made') IS NOT NULL, to_regclass('after_it') IS NULL";
    assert_eq!(site.server.psql("legacy_kept", made), "t|t");
}
