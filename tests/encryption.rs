//! Encrypted backups on real servers, opened by the `age` program and by pgark.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::site::{files, first_id};
use crate::support::{Pgark, Run, Site, run, table_digest};

/// In no other file than a plain backup.
const NAME: &str = "hidden_salaries";

struct Key {
    recipient: String,
    file: PathBuf,
}

/// A pair of keys in a file of the site's directory's neighbour.
fn key(dir: &Path, name: &str) -> Key {
    let file = dir.join(name);
    let made = Pgark::new(["keygen", "--out", file.to_str().unwrap()])
        .run()
        .assert_code(0)
        .assert_says("none on this server or beside the backups");
    Key {
        recipient: made.stdout.trim().to_owned(),
        file,
    }
}

/// A database with a name that must not be seen, an encrypted backup of it, and its key.
fn taken(database: &str, codec: &str) -> (Site, Key, String) {
    let site = Site::new(database);
    site.server.psql(
        database,
        &format!(
            "CREATE TABLE {NAME} AS SELECT i, 'pay of ' || md5(i::text) AS pay FROM generate_series(1, 200000) i;
             CREATE INDEX {NAME}_i ON {NAME} (i)"
        ),
    );
    let keys = site.dir.join("keys");
    std::fs::create_dir(&keys).unwrap();
    let key = key(&keys, "key");
    let done = site
        .backup_with(|pgark| {
            pgark
                .env("BACKUP_ENCRYPT_RECIPIENTS", &key.recipient)
                .env("BACKUP_COMPRESSION", codec)
        })
        .assert_code(0);
    let id = first_id(&done.stdout);
    (site, key, id)
}

fn with_key(pgark: Pgark, key: &Key) -> Pgark {
    pgark.env("BACKUP_IDENTITY_FILE", &key.file)
}

/// `age -d -i KEY FILE | UNPACK`, as a person would.
fn by_hand(key: &Key, file: &Path, unpack: &str) -> Run {
    let line = format!(
        "set -o pipefail; age -d -i '{}' '{}' | {unpack}",
        key.file.display(),
        file.display()
    );
    run(Command::new("bash").args(["-c", &line]))
}

fn round_trip(database: &str, codec: &str, suffix: &str, unpack: &str) {
    let (site, key, id) = taken(database, codec);
    let file = site.dir.join(&format!("{id}.sql{suffix}.age"));
    assert_names_no_table(&site);
    run(Command::new("sh")
        .current_dir(site.dir.path())
        .args(["-c", "sha256sum --quiet -c *.sha256"]))
    .assert_code(0);
    // age and psql, and nothing of pgark.
    let plain = by_hand(&key, &file, unpack).assert_code(0).stdout;
    assert!(plain.contains(NAME));
    let by_age = format!("{database}_by_age");
    site.server.createdb(&by_age);
    let script = site.dir.join("keys/plain.sql");
    std::fs::write(&script, &plain).unwrap();
    site.server.psql_file(&by_age, &script).assert_code(0);
    let expected = table_digest(site.server, database);
    assert_eq!(table_digest(site.server, &by_age), expected);
    // pgark.
    let by_pgark = format!("{database}_by_pgark");
    let verb = ["restore", &id, "--into", &by_pgark, "-q"];
    with_key(site.pgark(verb), &key).run().assert_code(0);
    assert_eq!(table_digest(site.server, &by_pgark), expected);
    let owner = "SELECT pg_get_userbyid(datdba), pg_encoding_to_char(encoding) FROM pg_database WHERE datname = current_database()";
    assert_eq!(
        site.server.psql(&by_pgark, owner),
        site.server.psql(database, owner)
    );
    let cat = with_key(site.pgark(["cat", &id]), &key)
        .run()
        .assert_code(0);
    assert!(cat.stdout == plain, "cat differs from age -d | {unpack}");
    let globals = file.parent().unwrap().read_dir().unwrap().flatten();
    let globals = globals
        .map(|entry| entry.file_name().into_string().unwrap())
        .find(|name| name.starts_with("globals_") && name.ends_with(".age"))
        .expect("encrypted globals");
    let globals = globals.split('.').next().unwrap();
    let cat = with_key(site.pgark(["cat", globals]), &key)
        .run()
        .assert_code(0);
    assert!(cat.stdout.contains("CREATE ROLE"), "{}", cat.stdout);
    faces(&site, &key, &id);
}

/// What list, show and verify say with and without the key.
fn faces(site: &Site, key: &Key, id: &str) {
    assert_eq!(site.entry(id)["encrypted"], true);
    let show = site.pgark(["show", id]).run().assert_code(0).stdout;
    assert!(
        show.contains(&key.recipient) && !show.contains(NAME),
        "{show}"
    );
    assert!(show.contains("BACKUP_IDENTITY_FILE shows them"), "{show}");
    let show = with_key(site.pgark(["show", id]), key)
        .run()
        .assert_code(0)
        .stdout;
    assert!(show.contains(NAME), "{show}");
    let verify = site.pgark(["verify", id, "-q"]).run().assert_code(0).stdout;
    assert!(verify.contains("only what is stored"), "{verify}");
    assert_eq!(site.entry(id)["state"], "taken");
    let json = site
        .pgark(["verify", id, "-q", "--json"])
        .run()
        .assert_code(0)
        .stdout;
    assert!(json.contains("\"content\": false"), "{json}");
    let verify = with_key(site.pgark(["verify", id, "-q"]), key)
        .run()
        .assert_code(0)
        .stdout;
    assert!(verify.contains("rows"), "{verify}");
    assert_eq!(site.entry(id)["state"], "verified");
}

#[test]
fn encrypted_gzip_is_opened_by_age_and_by_pgark() {
    round_trip("sealed_gzip", "gzip", ".gz", "gunzip");
}

#[test]
fn encrypted_zstd_is_opened_by_age_and_by_pgark() {
    round_trip("sealed_zstd", "zstd", ".zst", "zstd -dc");
}

#[test]
fn without_the_right_key_nothing_is_touched_and_the_recipient_is_named() {
    let (site, key, id) = taken("sealed_keys", "gzip");
    let other = self::key(&site.dir.join("keys"), "other");
    for verb in [
        &["restore", &id, "--into", "sealed_nowhere"][..],
        &["restore", &id, "--into", "sealed_nowhere", "--dry-run"],
        &["cat", &id],
    ] {
        site.pgark(verb)
            .run()
            .assert_code(2)
            .assert_says(&format!("{id} is encrypted for {}", key.recipient))
            .assert_says("no identity is set")
            .assert_says("hint: set BACKUP_IDENTITY_FILE");
        let wrong = with_key(site.pgark(verb), &other).run().assert_code(2);
        let wrong = wrong
            .assert_says(&key.recipient)
            .assert_says(&other.recipient);
        assert!(!wrong.stderr.contains("SECRET") && wrong.stdout.is_empty());
    }
    assert!(!site.has_database("sealed_nowhere"));
    // Verify: what is stored holds, what is in it cannot be judged; that is no damage.
    with_key(site.pgark(["verify", &id]), &other)
        .run()
        .assert_code(2);
    assert_eq!(site.entry(&id)["state"], "taken");
    // Turned on in the middle: plain ones before it stay as they are.
    let plain = site.backup();
    assert_eq!(site.entry(&plain)["encrypted"], false);
    with_key(site.pgark(["verify", "--all", "-q"]), &key)
        .run()
        .assert_code(0);
}

#[test]
fn each_of_two_recipients_opens_it_and_rotation_leaves_old_backups_to_old_keys() {
    let (site, old, first) = taken("sealed_two", "gzip");
    let new = key(&site.dir.join("keys"), "new");
    let both = site.dir.join("keys/recipients");
    std::fs::write(
        &both,
        format!("# both\n{}\n{}\n", old.recipient, new.recipient),
    )
    .unwrap();
    let take = |recipients: &str, name: &str| {
        let done = site.backup_with(|pgark| pgark.env(name, recipients));
        first_id(&done.assert_code(0).stdout)
    };
    let second = take(both.to_str().unwrap(), "BACKUP_ENCRYPT_RECIPIENTS_FILE");
    let third = take(&new.recipient, "BACKUP_ENCRYPT_RECIPIENTS");
    let opens = |key: &Key, id: &str| {
        let file = site.dir.join(&format!("{id}.sql.gz.age"));
        let age = by_hand(key, &file, "gunzip").code == 0;
        let pgark = with_key(site.pgark(["cat", id]), key).run().code == 0;
        assert_eq!(age, pgark, "age and pgark differ for {id}");
        pgark
    };
    assert_eq!(
        [&first, &second, &third].map(|id| opens(&old, id)),
        [true, true, false]
    );
    assert_eq!(
        [&first, &second, &third].map(|id| opens(&new, id)),
        [false, true, true]
    );
    // A file with both keys opens all.
    let all = site.dir.join("keys/all");
    let text = [&old, &new].map(|key| std::fs::read_to_string(&key.file).unwrap());
    std::fs::write(&all, text.concat()).unwrap();
    let verified = site
        .pgark(["verify", "--all", "-q"])
        .env("BACKUP_IDENTITY_FILE", &all);
    verified.run().assert_code(0);
}

/// The gate compares sums, since the manifests before it name no table; nor does what it finds.
#[test]
fn fall_of_an_encrypted_backup_is_seen_and_names_no_table() {
    let (site, key, _) = taken("sealed_fall", "gzip");
    site.server.psql("sealed_fall", &format!("TRUNCATE {NAME}"));
    let encrypted = |pgark: Pgark| pgark.env("BACKUP_ENCRYPT_RECIPIENTS", &key.recipient);
    let done = site.backup_with(encrypted).assert_code(3);
    assert_eq!(site.entry(&first_id(&done.stdout))["state"], "suspect");
    assert_names_no_table(&site);
}

fn assert_names_no_table(site: &Site) {
    for (name, bytes) in files(site.dir.path()) {
        let mut windows = bytes.windows(NAME.len());
        assert!(
            !windows.any(|window| window == NAME.as_bytes()),
            "{name} names a table"
        );
    }
}

/// Runs a command on a terminal of its own; types when it asks for a passphrase.
fn on_terminal(command: &str, typed: &str) -> Run {
    use std::io::{Read as _, Write as _};
    let mut script = Command::new("script");
    script.args(["-qec", command, "/dev/null"]);
    let mut child = script
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (mut shown, mut some) = (Vec::new(), [0; 256]);
    while !String::from_utf8_lossy(&shown).contains("assphrase") {
        let count = stdout.read(&mut some).unwrap();
        let said = String::from_utf8_lossy(&shown).into_owned();
        assert!(count > 0, "{command} asked for nothing: {said}");
        shown.extend_from_slice(&some[..count]);
    }
    stdin.write_all(typed.as_bytes()).unwrap();
    stdout.read_to_end(&mut shown).unwrap();
    // stdin stays open until here: its end would be the session's.
    let mut output = child.wait_with_output().unwrap();
    drop(stdin);
    output.stdout = shown;
    Run::new(command, &output)
}

#[test]
fn identity_with_a_passphrase_is_unlocked_by_a_variable_or_on_the_terminal() {
    let (site, key, id) = taken("sealed_locked", "gzip");
    let locked = site.dir.join("keys/locked.age");
    let protect = format!("age -p -o {} {}", locked.display(), key.file.display());
    on_terminal(&protect, "correct horse\ncorrect horse\n").assert_code(0);
    let locked_key = Key {
        recipient: key.recipient,
        file: locked,
    };
    let verb = ["verify", &id, "-q"];
    let given = |passphrase: &str| {
        with_key(site.pgark(verb), &locked_key)
            .env("BACKUP_IDENTITY_PASSPHRASE", passphrase)
            .run()
    };
    assert!(
        given("correct horse")
            .assert_code(0)
            .stdout
            .contains("rows")
    );
    let wrong = given("battery staple")
        .assert_code(2)
        .assert_says("the passphrase is wrong");
    assert!(!wrong.stderr.contains("staple"));
    // The test has no terminal: nobody can be asked.
    let command = format!(
        "BACKUP_DIR={} BACKUP_IDENTITY_FILE={} {} verify {id} -q",
        site.dir.path().display(),
        locked_key.file.display(),
        env!("CARGO_BIN_EXE_pgark")
    );
    run(Command::new("setsid").args(["-w", "sh", "-c", &command]))
        .assert_code(2)
        .assert_says("protected by a passphrase")
        .assert_says("BACKUP_IDENTITY_PASSPHRASE_FILE");
    let asked = on_terminal(&command, "correct horse\n").assert_code(0);
    assert!(
        asked.stdout.contains("Passphrase of BACKUP_IDENTITY_FILE"),
        "{}",
        asked.stdout
    );
    assert!(asked.stdout.contains("rows"), "{}", asked.stdout);
    assert!(
        !asked.stdout.contains("correct horse"),
        "what was typed is shown"
    );
    // What only lists asks for nothing.
    with_key(site.pgark(["list"]), &locked_key)
        .run()
        .assert_code(0);
}

#[test]
fn damaged_and_cut_encrypted_files_are_damage_and_touch_nothing() {
    const CHUNK: usize = (64 << 10) + 16;
    let (site, key, id) = taken("sealed_damage", "gzip");
    let file = site.dir.join(&format!("{id}.sql.gz.age"));
    let good = std::fs::read(&file).unwrap();
    assert!(good.len() > 4 * CHUNK, "{} bytes are too few", good.len());
    let header = good.windows(5).position(|text| text == b"\n--- ").unwrap() + 1 + 4 + 43 + 1 + 16;
    let mut bad = vec![
        good[..header + 2 * CHUNK].to_vec(),
        good[..header + CHUNK / 2].to_vec(),
    ];
    bad.push(good[..good.len() - 1].to_vec());
    bad.push(good[..100].to_vec());
    let judge = |verb: &[&str], says: &str| {
        with_key(site.pgark(verb), &key)
            .run()
            .assert_code(4)
            .assert_says(says);
    };
    for cut in bad {
        std::fs::write(&file, cut).unwrap();
        judge(&["restore", &id, "--into", "sealed_nowhere", "-q"], &id);
        judge(&["cat", &id], &id);
    }
    let mut flipped = good.clone();
    flipped[header + 2 * CHUNK + 99] ^= 4;
    std::fs::write(&file, &flipped).unwrap();
    judge(&["cat", &id], "chunk 2 is not as it was written");
    judge(&["restore", &id, "--into", "sealed_nowhere", "-q"], "");
    assert!(!site.has_database("sealed_nowhere"));
    site.pgark(["verify", &id, "-q"]).run().assert_code(4);
    std::fs::write(&file, &good).unwrap();
    judge_whole(&site, &key, &id);
}

fn judge_whole(site: &Site, key: &Key, id: &str) {
    with_key(site.pgark(["verify", id, "-q"]), key)
        .run()
        .assert_code(0);
}

#[test]
fn malformed_keys_end_with_code_2_before_anything_is_done() {
    let (site, key, _) = taken("sealed_typo", "gzip");
    let secret = std::fs::read_to_string(&key.file).unwrap();
    let secret = secret.lines().last().unwrap();
    let before = files(site.dir.path()).len();
    let two = format!("{}, {secret}", key.recipient);
    let refused = site
        .backup_with(|pgark| pgark.env("BACKUP_ENCRYPT_RECIPIENTS", &two))
        .assert_code(2)
        .assert_says("BACKUP_ENCRYPT_RECIPIENTS: recipient 2 is a secret key (not shown)");
    assert!(
        !refused.stderr.contains(&secret[16..]),
        "{}",
        refused.stderr
    );
    site.backup_with(|pgark| pgark.env("BACKUP_ENCRYPT_RECIPIENTS", ","))
        .assert_code(2)
        .assert_says("names no recipient");
    let typo = secret.replace("AGE-SECRET-KEY-1", "AGE-SECRET-KEY-1Q");
    let refused = site
        .pgark(["list"])
        .env("BACKUP_IDENTITY", &typo)
        .run()
        .assert_code(2);
    let refused = refused.assert_says("BACKUP_IDENTITY: line 1 is no identity");
    assert!(!refused.stderr.contains(&typo[16..]), "{}", refused.stderr);
    assert_eq!(files(site.dir.path()).len(), before, "nothing was written");
}

#[test]
fn keygen_writes_a_pair_that_age_knows_and_never_overwrites() {
    let dir = crate::support::TempDir::new();
    let pair = key(dir.path(), "key");
    let mode = std::fs::metadata(&pair.file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let public = run(Command::new("age-keygen").arg("-y").arg(&pair.file)).assert_code(0);
    assert_eq!(public.stdout.trim(), pair.recipient);
    let before = std::fs::read(&pair.file).unwrap();
    let out = pair.file.to_str().unwrap();
    Pgark::new(["keygen", "--out", out])
        .run()
        .assert_code(2)
        .assert_says("exists; nothing was written");
    assert_eq!(std::fs::read(&pair.file).unwrap(), before);
    let printed = Pgark::new(["keygen"]).run().assert_code(0);
    assert!(
        printed.stdout.contains("\nAGE-SECRET-KEY-1"),
        "{}",
        printed.stdout
    );
    assert!(
        !printed.stderr.contains("AGE-SECRET-KEY-1Q"),
        "{}",
        printed.stderr
    );
    let json = Pgark::new(["keygen", "--json", "-q"]).run().assert_code(0);
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert!(json["recipient"].as_str().unwrap().starts_with("age1"));
    assert!(
        json["identity"]
            .as_str()
            .unwrap()
            .starts_with("AGE-SECRET-KEY-1")
    );
}
