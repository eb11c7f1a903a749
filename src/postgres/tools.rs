//! PostgreSQL's client programs: where they are, which one fits a server, and how a password
//! reaches them.
//!
//! Invariants: a program is never older than the server's major version; a password is in
//! a private file only, never in argv or a child's environment. A crash leaves a
//! [`PassFile`]'s directory; the next [`PassFile`] of the same user sweeps it.

use std::collections::HashSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::Target;
use super::process::{Child, clean_command};
use crate::error::{Error, Result};

/// Folders whose sub-folders hold one version each, and the path to the programs in those:
/// Debian, PGDG's RPMs, Alpine, Homebrew.
const VERSION_DIRS: [(&str, &str, &str); 4] = [
    ("/usr/lib/postgresql", "", "bin"),
    ("/usr", "pgsql-", "bin"),
    ("/usr/libexec", "postgresql", ""),
    ("/opt/homebrew/opt", "postgresql@", "bin"),
];
const VERSION_LIMIT: Duration = Duration::from_secs(10);

/// The places where programs may lie.
#[derive(Debug, Clone)]
pub struct Tools {
    dirs: Vec<PathBuf>,
    /// `PGARK_PG_BIN` decided; nothing else was searched.
    set: bool,
}

/// One program of a known version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    pub path: PathBuf,
    /// As the server's `server_version_num`: 150018 for 15.18, 190000 for 19devel.
    pub version_num: u32,
    /// As printed: `15.18`, `19devel`.
    pub version_text: String,
}

impl Tools {
    /// Looks for directories. `setting` (`PGARK_PG_BIN`: one directory, or several with
    /// colons between) is searched instead of the usual places and `PATH`.
    #[must_use]
    pub fn find(setting: Option<&Path>) -> Tools {
        let mut dirs = Vec::new();
        if let Some(setting) = setting {
            dirs.extend(std::env::split_paths(setting).filter(|dir| !dir.as_os_str().is_empty()));
            return Tools { dirs, set: true };
        }
        for (parent, prefix, bin) in VERSION_DIRS {
            let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
            let mut found: Vec<PathBuf> = entries
                .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
                .map(|entry| entry.path().join(bin))
                .filter(|dir| dir.is_dir())
                .collect();
            found.sort();
            dirs.extend(found);
        }
        if let Some(path) = std::env::var_os("PATH") {
            // A relative entry would run what lies in the current directory.
            dirs.extend(std::env::split_paths(&path).filter(|dir| dir.is_absolute()));
        }
        Tools { dirs, set: false }
    }

    /// The program that fits a server: its own major version, else the next newer one; of
    /// several, the newest minor version.
    ///
    /// # Errors
    /// `Failed` when there is none, or only older ones; the hint names the package.
    pub fn pick(&self, program: &str, server_version_num: u32) -> Result<Program> {
        let (found, broken) = self.all(program);
        choose(program, found, server_version_num)
            .map_err(|error| self.explain(error, &broken, Some(server_version_num)))
    }

    /// The newest program of that name.
    ///
    /// # Errors
    /// `Failed` when there is none.
    pub fn newest(&self, program: &str) -> Result<Program> {
        let (found, broken) = self.all(program);
        found
            .into_iter()
            .max_by_key(|found| found.version_num)
            .ok_or_else(|| self.explain(missing(program), &broken, None))
    }

    /// Every usable program of that name, and why others are not usable.
    fn all(&self, program: &str) -> (Vec<Program>, Vec<String>) {
        let mut seen = HashSet::new();
        let mut found = Vec::new();
        let mut broken = Vec::new();
        for dir in &self.dirs {
            let path = dir.join(program);
            let Ok(real) = path.canonicalize() else {
                continue;
            };
            // Debian's /usr/bin/pg_dump: a Perl script that chooses the version by the local
            // clusters, which say nothing about a server across the network.
            let wrapper = real.file_name().is_some_and(|name| name == "pg_wrapper");
            let executable = real
                .metadata()
                .is_ok_and(|meta| meta.is_file() && meta.mode() & 0o111 != 0);
            if wrapper || !executable || !seen.insert(real.clone()) {
                continue;
            }
            // A program that goes by its own name must be called by it.
            let same_name = real.file_name().is_some_and(|name| name == program);
            match read_version(program, if same_name { real } else { path }) {
                Ok(program) => found.push(program),
                Err(error) => broken.push(error.fact),
            }
        }
        (found, broken)
    }

    /// Adds what was tried and the way out.
    fn explain(&self, mut error: Error, broken: &[String], server: Option<u32>) -> Error {
        for reason in broken {
            error.fact = format!("{} ({reason})", error.fact);
        }
        let package = match server {
            Some(version) => format!("postgresql-client-{}", major_text(version)),
            None => "postgresql-client".to_owned(),
        };
        let hint = if self.set {
            let dirs: Vec<String> = self
                .dirs
                .iter()
                .map(|dir| dir.display().to_string())
                .collect();
            format!(
                "PGARK_PG_BIN names {}; add the directory of a newer one there, or unset it and \
                 install {package} (Debian: apt-get install {package})",
                dirs.join(":")
            )
        } else {
            format!(
                "install {package} (Debian: apt-get install {package}) or set PGARK_PG_BIN to \
                 the directory of the programs"
            )
        };
        error.hint(hint)
    }
}

fn missing(program: &str) -> Error {
    Error::failed(format!("{program} was not found"))
}

fn choose(program: &str, found: Vec<Program>, server_version_num: u32) -> Result<Program> {
    let server_major = major(server_version_num);
    let (fit, older): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|found| major(found.version_num) >= server_major);
    let best = fit.into_iter().min_by_key(|found| {
        (
            major(found.version_num),
            std::cmp::Reverse(found.version_num),
        )
    });
    if let Some(best) = best {
        return Ok(best);
    }
    Err(
        match older.into_iter().max_by_key(|found| found.version_num) {
            Some(newest) => Error::failed(format!(
                "{program} {} is older than the server ({})",
                newest.version_text,
                version_text(server_version_num)
            )),
            None => missing(program),
        },
    )
}

/// Versions with one major number each: 150018 → 15, and 90624 → 906 for 9.6.
fn major(version_num: u32) -> u32 {
    if version_num >= 100_000 {
        version_num / 10_000 * 100
    } else {
        version_num / 100
    }
}

fn major_text(version_num: u32) -> String {
    if version_num >= 100_000 {
        (version_num / 10_000).to_string()
    } else {
        format!("{}.{}", version_num / 10_000, version_num / 100 % 100)
    }
}

/// `17.6` for 170006, `9.6.24` for 90624.
#[must_use]
pub fn version_text(version_num: u32) -> String {
    let last = if version_num >= 100_000 {
        version_num % 10_000
    } else {
        version_num % 100
    };
    format!("{}.{last}", major_text(version_num))
}

/// Runs `program --version`.
fn read_version(program: &str, path: PathBuf) -> Result<Program> {
    let name = path.display().to_string();
    let mut command = clean_command(&path);
    // A line of output fits the pipe; nothing has to drain it.
    let mut child = Child::spawn(&name, command.arg("--version").stdout(Stdio::piped()))?;
    let out = child.take_stdout();
    let finished = child.wait_for(VERSION_LIMIT)?;
    let mut text = String::new();
    if let Some(out) = out {
        std::io::Read::read_to_string(&mut std::io::Read::take(out, 4096), &mut text)?;
    }
    match parse_version(program, &text) {
        Some((version_num, version_text)) if finished.status.success() => Ok(Program {
            path,
            version_num,
            version_text,
        }),
        _ => Err(Error::failed(format!(
            "{name} --version did not answer with a version"
        ))),
    }
}

/// Reads `pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
fn parse_version(program: &str, text: &str) -> Option<(u32, String)> {
    let rest = text.lines().next()?.strip_prefix(program)?.trim_start();
    let version = rest
        .strip_prefix("(PostgreSQL)")?
        .split_whitespace()
        .next()?;
    let digits = |text: &str| -> Option<u32> {
        let end = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        text.get(..end)?.parse().ok().filter(|&n| n < 10_000)
    };
    let mut parts = version.split('.');
    let first = digits(parts.next()?)?;
    let second = parts.next().and_then(digits).unwrap_or(0);
    let third = parts.next().and_then(digits).unwrap_or(0);
    let number = if first >= 10 {
        first * 10_000 + second
    } else {
        first * 10_000 + second * 100 + third
    };
    (first >= 8).then(|| (number, version.to_owned()))
}

impl Program {
    /// The program with a clean environment and null stdin.
    #[must_use]
    pub fn command(&self) -> Command {
        clean_command(&self.path)
    }

    /// The major version: 15 for 15.18.
    #[must_use]
    pub fn major(&self) -> u32 {
        self.version_num / 10_000
    }
}

const PASS_PREFIX: &str = "pgark-pass-";
const PASS_NAME: &str = "pgpass";
const SERVICE_NAME: &str = "service";
static PASS_COUNT: AtomicU32 = AtomicU32::new(0);

/// A password file for libpq (`passfile=` or `PGPASSFILE`), 0600 in a 0700 directory of its
/// own, in memory where there is such a place. Removed on drop.
pub struct PassFile {
    dir: PathBuf,
    path: PathBuf,
    /// Locked while this process lives, so that another one's sweep leaves it alone, also
    /// across process namespaces.
    _lock: File,
}

impl PassFile {
    /// Writes what the programs need to log in as `target` does, after sweeping the files of dead
    /// processes.
    ///
    /// # Errors
    /// `Usage` for a password that no such file can hold, `Failed` when no directory takes it.
    pub fn of(target: &Target) -> Result<PassFile> {
        let passfile = Self::create(target.passfile_line())?;
        if let Some(text) = target.service_file() {
            let password = text.trim_end_matches('\n');
            // libpq reads a line, without the blanks at its end.
            if password.len() != password.trim_end().len() || password.matches('\n').count() > 1 {
                return Err(Error::usage(
                    "the password of the client's key (sslpassword) ends in a blank or holds a line break, which PostgreSQL's programs cannot be told",
                )
                .hint("give the key another password: openssl pkcs8 -topk8 -v2 aes-256-cbc -in OLD -out NEW"));
            }
            private_file(&passfile.dir.join(SERVICE_NAME), text.as_bytes())
                .map_err(|error| Error::failed(format!("{}: {error}", passfile.dir.display())))?;
        }
        Ok(passfile)
    }

    /// The variables with which a program finds what is in it. They hold a path, no secret.
    pub fn variables(&self) -> impl Iterator<Item = (&'static str, PathBuf)> {
        let service = self.dir.join(SERVICE_NAME);
        std::iter::once(("PGSERVICEFILE", service)).filter(|(_, path)| path.exists())
    }

    fn create(line: Option<Vec<u8>>) -> Result<PassFile> {
        let mut bases = Vec::new();
        bases.extend(std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from));
        bases.push(PathBuf::from("/dev/shm"));
        bases.push(std::env::temp_dir());
        bases.retain(|base| base.is_absolute());
        Self::create_in(&bases, &line.unwrap_or_default())
    }

    fn create_in(bases: &[PathBuf], line: &[u8]) -> Result<PassFile> {
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        if text.iter().any(|byte| matches!(byte, b'\n' | b'\r' | 0)) {
            return Err(Error::usage(
                "the connection's password or a name holds a line break or a zero byte, which PostgreSQL's password files cannot hold",
            )
            .hint("give the role a password without line breaks"));
        }
        let mut reasons = Vec::new();
        for base in bases {
            sweep(base);
            match write_private(base, &[text, b"\n"].concat()) {
                Ok(file) => return Ok(file),
                Err(error) => reasons.push(format!("{}: {error}", base.display())),
            }
        }
        Err(Error::failed(format!(
            "no directory takes the password file for PostgreSQL's programs ({})",
            reasons.join("; ")
        ))
        .hint("set TMPDIR to a directory that pgark may write"))
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PassFile {
    fn drop(&mut self) {
        remove(&self.dir);
    }
}

/// Removes such a directory and what pgark put there.
fn remove(dir: &Path) {
    for name in [SERVICE_NAME, PASS_NAME] {
        let _ = std::fs::remove_file(dir.join(name));
    }
    let _ = std::fs::remove_dir(dir);
}

fn private_file(path: &Path, text: &[u8]) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    let _ = file.try_lock();
    // libpq ignores a password file that others may read, whatever the umask.
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    file.write_all(text)?;
    Ok(file)
}

fn write_private(base: &Path, text: &[u8]) -> std::io::Result<PassFile> {
    let dir = loop {
        let n = PASS_COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = base.join(format!("{PASS_PREFIX}{}-{n}", std::process::id()));
        match DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => break dir,
            // A remain of an earlier process of this number; bounded by the counter.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && n < 10_000 => {}
            Err(error) => return Err(error),
        }
    };
    let path = dir.join(PASS_NAME);
    let written = private_file(&path, text);
    match written {
        Ok(lock) => Ok(PassFile {
            dir,
            path,
            _lock: lock,
        }),
        Err(error) => {
            remove(&dir);
            Err(error)
        }
    }
}

/// Removes password files that a killed pgark of this user left in `base`.
fn sweep(base: &Path) {
    let uid = rustix::process::geteuid().as_raw();
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.strip_prefix(PASS_PREFIX)?.split_once('-'))
            .and_then(|(pid, _)| pid.parse::<i32>().ok())
            .and_then(rustix::process::Pid::from_raw);
        let Some(pid) = pid else {
            continue;
        };
        // Not through a symbolic link, and only what is ours: `base` may be everybody's.
        let ours = entry.path().symlink_metadata();
        let ours = ours.is_ok_and(|meta| meta.is_dir() && meta.uid() == uid);
        if !ours || rustix::process::test_kill_process(pid).is_ok() {
            continue;
        }
        let path = entry.path().join(PASS_NAME);
        let held = File::open(&path).is_ok_and(|file| file.try_lock().is_err());
        if !held {
            remove(&entry.path());
        }
    }
}

#[cfg(test)]
#[path = "tools_tests.rs"]
mod tests;
