//! When dumps and base backups are taken, what is promised of them, and the window.

use jiff::tz::TimeZone;

use super::App;
use crate::error::Result;
use crate::schedule::{self, Schedule};
use crate::status::Promised;

impl App {
    /// When dumps are taken.
    ///
    /// # Errors
    /// `Usage` for a schedule that is malformed or never comes.
    pub fn schedule(&self) -> Result<Schedule> {
        self.parse("BACKUP_SCHEDULE", &self.config.service.schedule)
    }

    /// When base backups are taken, and whether there has to be one at all.
    ///
    /// # Errors
    /// As [`App::schedule`].
    pub fn base_schedules(&self) -> Result<Promised> {
        let service = &self.config.service;
        let parse = |name, text: &Option<String>| {
            let text = text.as_ref();
            text.map(|text| self.parse(name, text)).transpose()
        };
        Ok(Promised {
            full: parse("BASE_SCHEDULE", &service.base_schedule)?,
            incremental: parse(
                "BASE_INCREMENTAL_SCHEDULE",
                &service.base_incremental_schedule,
            )?,
            streaming: self.config.wal.streaming,
        })
    }

    /// Days that can be restored to any moment, where WAL is received.
    pub(super) fn wal_days(&self) -> Option<u32> {
        let wal = &self.config.wal;
        wal.streaming.then_some(wal.retention_days)
    }

    fn parse(&self, name: &str, text: &str) -> Result<Schedule> {
        let zone = match &self.config.service.zone {
            Some(name) => schedule::zone(name).map_err(|error| error.context("TZ"))?,
            None => TimeZone::try_system().unwrap_or(TimeZone::UTC),
        };
        Schedule::parse(text, &zone).map_err(|error| error.context(name))
    }
}
