//! What the configuration takes from the command line. Pure.

use super::{Args, Verb};
use crate::config::Flags;

impl Args {
    /// What the configuration takes from the command line. `restore --database` is not among
    /// it: that chooses a backup, not what to back up.
    #[must_use]
    pub fn flags(&self) -> Flags {
        let mut flags = Flags {
            config: self.global.config.clone(),
            cluster: self.global.cluster.clone(),
            ..Flags::default()
        };
        let (place, width) = match &self.verb {
            Verb::Backup(verb) => {
                flags.database.clone_from(&verb.database);
                flags.compression.clone_from(&verb.compression);
                (Some(&verb.place), Some(&verb.width))
            }
            Verb::Serve(verb) => (Some(&verb.place), None),
            Verb::Check(verb) => {
                flags.database.clone_from(&verb.database);
                (Some(&verb.place), Some(&verb.width))
            }
            Verb::Accept(verb) => (Some(&verb.place), None),
            Verb::Prune(verb) => (Some(&verb.place), None),
            Verb::Status(verb) => (Some(&verb.place), None),
            Verb::Replicate(verb) => (Some(&verb.place), None),
            Verb::List(verb) => (Some(&verb.place), None),
            Verb::Show(verb) => (Some(&verb.place), None),
            Verb::Verify(verb) => (Some(&verb.place), Some(&verb.width)),
            Verb::Restore(verb) => (Some(&verb.place), Some(&verb.width)),
            Verb::Slot(verb) => (Some(&verb.place), None),
            Verb::WalStream(verb) => (Some(&verb.place), None),
            Verb::WalGet(verb) => (Some(&verb.place), None),
            Verb::Cat(verb) => (Some(&verb.place), None),
            Verb::Demo(verb) => (None, Some(&verb.width)),
            Verb::Keygen(_) | Verb::Completions(_) | Verb::Man => (None, None),
        };
        flags.dir = place.and_then(|place| place.dir.clone());
        flags.jobs = width.and_then(|width| width.jobs);
        flags
    }
}
