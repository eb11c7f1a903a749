//! `pgark completions` and `pgark man`: both from the table of arguments.

use clap::CommandFactory;

use super::args::{Args, Completions};
use super::print;
use crate::error::{Error, Result};

/// The script that a shell reads.
pub(super) fn completions(verb: &Completions) -> Result<()> {
    let mut script = Vec::new();
    let mut command = Args::command();
    clap_complete::generate(verb.shell, &mut command, "pgark", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// Every verb's page behind the first, as one manual page in roff.
pub(super) fn man() -> Result<()> {
    let mut page = Vec::new();
    let mut command = Args::command();
    command.build();
    let render = |command: clap::Command, page: &mut Vec<u8>| {
        clap_mangen::Man::new(command)
            .render(page)
            .map_err(|error| Error::failed(error.to_string()))
    };
    let verbs: Vec<clap::Command> = command.get_subcommands().cloned().collect();
    render(command, &mut page)?;
    for verb in verbs.into_iter().filter(|verb| !verb.is_hide_set()) {
        let name = format!("pgark-{}", verb.get_name());
        render(verb.name(name), &mut page)?;
    }
    print(&String::from_utf8_lossy(&page))
}
