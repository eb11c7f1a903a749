//! `pgark wal-get`, the restore_command of a server that recovers.
//!
//! Invariant: it ends with 0 (delivered), 1 (proven absent) or 255, whatever happens: to PostgreSQL
//! any other code up to 125 says that the archive ends here, and it promotes with rows missing. So
//! wrong usage, a broken configuration, a panic and a signal are 255 as well.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};

use clap::Parser;

use super::args::{Args, Verb, WalGet};
use super::note;
use crate::app::App;
use crate::cancel::Token;
use crate::config::Environment;
use crate::error::{Context, Error, Result, caught};
use crate::restore::wal::control;
use crate::restore::wal::get::{Answer, Ask};
use crate::service::keeper::{self, Work};
use crate::units::{SegmentSize, SystemId};

/// Every other outcome than the two that PostgreSQL may act upon.
const STOP: u8 = 255;
const VERB: &str = "wal-get";
const CONTROL: &str = "global/pg_control";

/// Whether these are its arguments, however wrong.
pub(super) fn is_wanted(args: impl Iterator<Item = OsString>) -> bool {
    let mut args = args.skip(1);
    args.any(|arg| arg == VERB)
}

/// Runs it for this process.
pub(super) fn main() -> ExitCode {
    caught(VERB, || Ok(parse_and_run())).unwrap_or(ExitCode::from(STOP))
}

fn parse_and_run() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            // Help is no failure, and no server asks for it.
            return ExitCode::from(if error.use_stderr() { STOP } else { 0 });
        }
    };
    let Verb::WalGet(verb) = &args.verb else {
        // The word stands among the arguments of another verb.
        return super::finish(super::run(&args));
    };
    match run(&args, verb) {
        Ok(Answer::Delivered) => ExitCode::SUCCESS,
        Ok(Answer::Absent) => ExitCode::FAILURE,
        Err(error) => {
            note(&error.to_string());
            ExitCode::from(STOP)
        }
    }
}

fn run(args: &Args, verb: &WalGet) -> Result<Answer> {
    let cancel = Token::new();
    stop_on_signals()?;
    let environment = Environment::from_process()?;
    if let Some(code) = keeper::enter(&args.flags(), &environment, Work::Read)? {
        return Err(Error::failed(format!("it ended with {code}")));
    }
    let environment = keeper::environment()?;
    let mut apps = App::all(&args.flags(), &environment, &cancel)?;
    let (Some(app), true) = (apps.pop(), apps.is_empty()) else {
        return Err(Error::usage("there are several clusters")
            .hint("--cluster names the one whose WAL is wanted"));
    };
    let wanted = args.global.store.as_deref();
    app.check_store(wanted)?;
    let names = app.store_names().into_iter();
    let names = names.filter(|name| wanted.is_none_or(|wanted| wanted == *name));
    let (system, size) = cluster(verb)?;
    let ask = Ask {
        stores: names
            .map(|name| (name.to_owned(), app.existing_store(Some(name))))
            .collect(),
        system,
        size,
        identities: app.identities_at_hand()?,
        encrypted: app.config.encryption.recipients.is_some(),
    };
    if verb.fill {
        let name = verb.segment.parse()?;
        let jobs = app.config.jobs;
        ask.fill(name, &verb.path, usize::from(verb.prefetch), jobs)?;
        return Ok(Answer::Delivered);
    }
    if verb.prefetch == 0 {
        return ask.get(&verb.segment, &verb.path);
    }
    // Itself, with the same configuration.
    let mut fill = Command::new("/proc/self/exe");
    fill.args(std::env::args_os().skip(1)).arg("--fill");
    let ahead = (usize::from(verb.prefetch), &mut fill);
    ask.get_ahead(&verb.segment, &verb.path, ahead)
}

/// Of the data directory that the server runs in, or as it was said.
fn cluster(verb: &WalGet) -> Result<(SystemId, SegmentSize)> {
    let control = std::fs::read(Path::new(CONTROL));
    match (verb.system_id, control) {
        (None, control) => {
            let content = control.context(|| CONTROL.to_owned()).map_err(|error| {
                error.hint(
                    "run it in the data directory, as restore_command does, or give --system-id",
                )
            })?;
            control::read(&content)
        }
        (Some(system), Ok(content)) => Ok((system, control::read(&content)?.1)),
        (Some(system), Err(_)) => Ok((system, SegmentSize::DEFAULT)),
    }
}

/// At once: there is nothing to bring to an end.
fn stop_on_signals() -> Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([
        signal_hook::consts::SIGINT,
        signal_hook::consts::SIGTERM,
        signal_hook::consts::SIGHUP,
        signal_hook::consts::SIGQUIT,
    ])?;
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            std::process::exit(i32::from(STOP));
        }
    });
    Ok(())
}
