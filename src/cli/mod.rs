//! The command line: arguments in, one function per verb, tables or JSON out.
//!
//! Invariants: results go to stdout, everything else to stderr; an error is a fact and a way
//! out, and its kind alone decides the exit code. A reader that closes stdout early
//! (`| head`) is no failure.

mod accept;
pub mod args;
mod backup;
mod check;
mod clusters;
mod demo;
mod keygen;
mod manual;
mod read;
mod render;
mod restore;
mod restore_base;
mod restore_moment;
mod restore_page;
mod restore_warnings;
mod serve;
mod service;
mod wal;
mod wal_get;

use std::collections::BTreeSet;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use self::args::{Args, Verb};
use self::clusters::{each, holding};
use crate::app::App;
use crate::cancel::Token;
use crate::config::Environment;
use crate::error::{Error, Result};
use crate::service::keeper::{self, Work};

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    if wal_get::is_wanted(std::env::args_os()) {
        return wal_get::main();
    }
    finish(run(&Args::parse()))
}

fn finish(result: Result<u8>) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "pgark: {error}");
            ExitCode::from(error.kind.exit_code())
        }
    }
}

fn run(args: &Args) -> Result<u8> {
    let work = match &args.verb {
        Verb::Serve(_) => Some(Work::Serve),
        Verb::Backup(_) | Verb::WalStream(_) => Some(Work::Write),
        Verb::Demo(_) | Verb::Keygen(_) | Verb::Completions(_) | Verb::Man => None,
        Verb::Status(verb) if verb.probe => None,
        _ => Some(Work::Read),
    };
    if let Some(work) = work {
        let environment = Environment::from_process()?;
        if let Some(code) = keeper::enter(&args.flags(), &environment, work)? {
            return Ok(code);
        }
    }
    work_on(args).map(|()| 0)
}

fn work_on(args: &Args) -> Result<()> {
    let cancel = Token::new();
    watch_signals(&cancel)?;
    match &args.verb {
        Verb::Demo(demo) => return demo::demo(demo, &args.global, &cancel),
        Verb::Completions(verb) => return manual::completions(verb),
        Verb::Man => return manual::man(),
        Verb::Keygen(verb) => return keygen::keygen(verb, &args.global),
        _ => {}
    }
    let environment = keeper::environment()?;
    // A stream that ends still stores what it has.
    let stores = match &args.verb {
        Verb::WalStream(_) => Token::new(),
        _ => cancel.clone(),
    };
    let apps = App::all(&args.flags(), &environment, &stores)?;
    warn(&apps);
    let holding = |backup: &str, database| holding(&apps, backup, database, &args.global);
    match &args.verb {
        Verb::Serve(_) => serve::serve(apps, &environment, &args.flags()),
        Verb::Check(_) => each(&apps, |app, out| check::check(app, &args.global, out)),
        Verb::Accept(verb) => accept::accept(holding(&verb.backup, None)?, verb, &args.global),
        Verb::Prune(verb) => each(&apps, |app, out| {
            service::prune(app, verb, &args.global, out)
        }),
        Verb::Replicate(_) => each(&apps, |app, out| service::replicate(app, &args.global, out)),
        Verb::Status(verb) if verb.probe => service::probe(&apps),
        Verb::Status(verb) => each(&apps, |app, out| {
            service::status(app, verb, &args.global, out)
        }),
        Verb::Backup(verb) => each(&apps, |app, out| {
            backup::backup(app, verb, &args.global, out)
        }),
        Verb::WalStream(_) => wal::stream(&apps, &cancel),
        Verb::Slot(verb) => each(&apps, |app, out| wal::slot(app, verb, &args.global, out)),
        Verb::List(verb) => read::list(&apps, verb, &args.global),
        Verb::Show(verb) => read::show(holding(&verb.backup, None)?, verb, &args.global),
        Verb::Verify(verb) if verb.all => {
            each(&apps, |app, out| read::verify(app, verb, &args.global, out))
        }
        Verb::Verify(verb) => {
            let app = std::slice::from_ref(holding(&verb.backup, None)?);
            each(app, |app, out| read::verify(app, verb, &args.global, out))
        }
        Verb::Cat(verb) => read::cat(holding(&verb.backup, None)?, verb, &args.global),
        Verb::Restore(verb) => {
            let app = holding(&verb.backup, verb.database.as_deref())?;
            match &verb.data_dir {
                Some(dir) => restore_base::restore(app, verb, dir, &args.global),
                None => restore::restore(app, verb, &args.global),
            }
        }
        Verb::Demo(_) | Verb::Keygen(_) | Verb::Completions(_) | Verb::Man | Verb::WalGet(_) => {
            Ok(())
        }
    }
}

/// What the configuration has to say, each line once.
fn warn(apps: &[App]) {
    let mut warned = BTreeSet::new();
    for warning in apps.iter().flat_map(|app| &app.config.warnings) {
        if warned.insert(warning) {
            note(&format!("warning: {warning}"));
        }
    }
}

/// The first SIGINT or SIGTERM asks for the end, a second one ends the process at once.
fn watch_signals(cancel: &Token) -> Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([
        signal_hook::consts::SIGINT,
        signal_hook::consts::SIGTERM,
        signal_hook::consts::SIGHUP,
    ])?;
    let cancel = cancel.clone();
    std::thread::spawn(move || {
        let mut asked = false;
        for signal in &mut signals {
            if asked {
                std::process::exit(128 + signal);
            }
            asked = true;
            note("ending; a second signal ends at once");
            cancel.cancel(u8::try_from(signal).unwrap_or(15));
        }
    });
    Ok(())
}

/// A line for people, on stderr.
fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "pgark: {text}");
}

/// Writes a result to stdout.
fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Error::failed(format!("cannot write to stdout: {error}"))),
        Ok(()) => Ok(()),
    }
}

/// Writes a JSON value and a newline to stdout.
fn print_json(value: &serde_json::Value) -> Result<()> {
    let text =
        serde_json::to_string_pretty(value).map_err(|error| Error::failed(error.to_string()))?;
    print(&format!("{text}\n"))
}
