//! A database and a backup directory of its own for one test, and the old service's files.

use super::{PASSWORD, Pgark, Run, Server, TempDir, run};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

/// A database with a little of everything, and a directory for its backups.
pub(crate) struct Site {
    pub(crate) server: &'static Server,
    pub(crate) database: String,
    pub(crate) dir: TempDir,
}

const SAMPLE: &str = "
    CREATE TABLE item (id int PRIMARY KEY, label text);
    INSERT INTO item SELECT i, 'item ' || md5(i::text) FROM generate_series(1, 3000) i;
    CREATE TABLE line (id bigint GENERATED ALWAYS AS IDENTITY, item int REFERENCES item, note text);
    INSERT INTO line (item, note) SELECT i, repeat('x', i % 50) FROM generate_series(1, 2000) i;
    CREATE INDEX ON line (item);
    CREATE VIEW both_tables AS SELECT label, note FROM item JOIN line ON item.id = line.item;
    SELECT lo_from_bytea(0, 'a large object');
";

/// One run per cluster at a time is pgark's own rule: tests that do not mean it take turns.
static TURN: Mutex<()> = Mutex::new(());

impl Site {
    /// On a server that these tests share among themselves; the database's name must be unique.
    pub(crate) fn new(database: &str) -> Site {
        static SERVER: OnceLock<Server> = OnceLock::new();
        let site = Site {
            server: SERVER.get_or_init(|| Server::start(15)),
            database: database.to_owned(),
            dir: TempDir::new(),
        };
        site.server.createdb(database);
        site.server.psql(database, SAMPLE);
        site
    }

    /// pgark with its server, database and directory.
    pub(crate) fn pgark<A: AsRef<std::ffi::OsStr>>(
        &self,
        args: impl IntoIterator<Item = A>,
    ) -> Pgark {
        // A list's syntax must not matter to names with commas or quotes.
        let quoted = format!("\"{}\"", self.database.replace('"', "\"\""));
        Pgark::new(args)
            .server(self.server)
            .store(self.dir.path())
            .env("DB_NAME", quoted)
            .env("BACKUP_JOBS", "2")
            // What tests lay down as old must stay, unless they are about that.
            .env("BACKUP_RETENTION_DAYS", "36500")
    }

    /// `pgark backup`, when no other test of ours runs one, changed by the test.
    pub(crate) fn backup_with(&self, change: impl FnOnce(Pgark) -> Pgark) -> Run {
        let _turn = self.turn();
        change(self.pgark(["backup"])).run()
    }

    /// Nobody else's backup runs on this server while this is held.
    #[allow(clippy::unused_self)]
    pub(crate) fn turn(&self) -> std::sync::MutexGuard<'static, ()> {
        TURN.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A backup that must succeed; the dump's id.
    #[track_caller]
    pub(crate) fn backup(&self) -> String {
        let done = self.backup_with(|pgark| pgark).assert_code(0);
        first_id(&done.stdout)
    }

    /// `pgark list --json`.
    #[track_caller]
    pub(crate) fn list(&self) -> Vec<serde_json::Value> {
        list(self.dir.path())
    }

    /// The listed entry with this id.
    #[track_caller]
    pub(crate) fn entry(&self, id: &str) -> serde_json::Value {
        let found = self.list().into_iter().find(|entry| entry["id"] == id);
        found.unwrap_or_else(|| panic!("{id} is not listed"))
    }

    /// `pgark restore` of this into a new database, without progress.
    pub(crate) fn restore(&self, id: &str, into: &str) -> Run {
        self.pgark(["restore", id, "--into", into, "-q"]).run()
    }

    pub(crate) fn has_database(&self, name: &str) -> bool {
        let sql = format!("SELECT count(*) FROM pg_database WHERE datname = '{name}'");
        self.server.psql("postgres", &sql) == "1"
    }

    /// One of a backup's files: suffix `""`, `.json`, `.idx` or `.sha256`.
    pub(crate) fn file(&self, id: &str, suffix: &str) -> PathBuf {
        self.dir.join(&format!("{id}.sql.gz{suffix}"))
    }

    /// What the old service left for this database: `pg_dump | gzip`, then `sha256sum`.
    pub(crate) fn legacy(&self, stamp: &str) -> String {
        let dump = run(self
            .server
            .client("pg_dump")
            .arg("--dbname")
            .arg(&self.database))
        .assert_code(0);
        self.legacy_of(stamp, &dump.stdout)
    }

    /// The same of any text.
    pub(crate) fn legacy_of(&self, stamp: &str, sql: &str) -> String {
        let id = format!("backup_{}_{stamp}", self.database);
        self.young_legacy(&id, sql);
        let name = format!("{id}.sql.gz");
        let mut sum = Command::new("sha256sum");
        let sum = run(sum.arg(&name).current_dir(self.dir.path())).assert_code(0);
        std::fs::write(self.dir.join(&format!("{name}.sha256")), sum.stdout).unwrap();
        id
    }

    /// An old service's file that still lacks its `.sha256`.
    pub(crate) fn young_legacy(&self, id: &str, sql: &str) {
        let plain = self.dir.join(&format!("{id}.sql"));
        std::fs::write(&plain, sql).unwrap();
        run(Command::new("gzip").arg(&plain)).assert_code(0);
    }

    /// A session that holds a table until it is dropped.
    pub(crate) fn hold(&self, table: &str) -> Session {
        let session = Session::start(
            self.server,
            &self.database,
            &format!("BEGIN; LOCK TABLE {table}; SELECT pg_sleep(600)"),
        );
        super::until("the lock to be held", || {
            self.server.psql(&self.database, &format!("SELECT count(*) FROM pg_locks WHERE relation = '{table}'::regclass AND mode = 'AccessExclusiveLock' AND granted")) == "1"
        });
        session
    }
}

/// A psql that runs beside the test, killed on drop together with its backend.
pub(crate) struct Session(Child);

impl Session {
    pub(crate) fn start(server: &Server, database: &str, sql: &str) -> Session {
        let mut psql = server.client("psql");
        psql.args(["-Xqc", sql, "-d", database]);
        psql.env("PGOPTIONS", "-c client_connection_check_interval=100ms");
        psql.stdin(Stdio::null()).stdout(Stdio::null());
        Session(psql.stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The id in the first line that `pgark backup` printed.
#[track_caller]
pub(crate) fn first_id(stdout: &str) -> String {
    let id = stdout.split_whitespace().next().expect("a backup's line");
    id.to_owned()
}

/// `pgark list --json` of a directory, which needs no server.
#[track_caller]
pub(crate) fn list(dir: &Path) -> Vec<serde_json::Value> {
    let listed = Pgark::new(["list", "--json"]).store(dir).run();
    serde_json::from_str(&listed.assert_code(0).stdout).unwrap()
}

/// Every file below a directory with its content, by relative path.
pub(crate) fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(content) = std::fs::read(&path) {
                let name = path.strip_prefix(dir).unwrap().display().to_string();
                found.insert(name, content);
            }
        }
    }
    found
}

/// Its names only, without what stays on purpose.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let names = files(dir).into_keys();
    names.filter(|name| !stays(name)).collect()
}

/// The lock and the records of runs stay on purpose.
pub(crate) fn stays(name: &str) -> bool {
    [".pgark/dump.lock", "backup.log", ".pgark/journal.jsonl"].contains(&name)
}

/// Password of the superuser, as a file with the newline that editors leave.
pub(crate) fn password_file(dir: &TempDir) -> PathBuf {
    let path = dir.join("password");
    std::fs::write(&path, format!("{PASSWORD}\n")).unwrap();
    path
}
