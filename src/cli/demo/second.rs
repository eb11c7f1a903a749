//! The part of the demo that brings back the second before: a stream of WAL, a base backup, an afternoon, the
//! disaster, and a second server that is recovered to the moment between the two.

use std::time::{Duration, Instant};

use clap::Parser as _;
use jiff::Timestamp;

use super::fingerprint::Fingerprint;
use super::session::Session;
use super::stage::Stage;
use super::{Play, fingerprint, judge, sample, seconds, story, tamper};
use crate::backup::base::Options;
use crate::cancel::Token;
use crate::cli::args::{Args, Verb};
use crate::cli::{restore_base, wal};
use crate::error::{Error, Result};
use crate::postgres::Target;
use crate::progress::Reporter;
use crate::service::base::{self, How};
use crate::service::journal::Trigger;
use crate::service::run::Wanted;
use crate::store::Store;
use crate::units::Lsn;

/// What people do on a Friday.
const DISASTER: [&str; 4] = [
    "DROP TABLE sales.orders CASCADE",
    "DELETE FROM telemetry.events",
    "UPDATE catalog.products SET price = 9.99",
    "SELECT lo_unlink(content) FROM files.documents",
];
/// Transactions of the afternoon, each of these statements with its number.
const TRANSACTIONS: u32 = 40;
const AFTERNOON: &str = "INSERT INTO sales.orders (id, ordered_at, customer_id) \
     SELECT 1000000 + {n} * 10 + i, timestamptz '2025-12-19 14:00+00' + {n} * interval '1 minute', i FROM generate_series(1, 5) i; \
     INSERT INTO crm.notes (customer_id, body) VALUES (1, 'the {n}th call of the afternoon'); \
     UPDATE catalog.products SET price = price + 1 WHERE id % 40 = {n} % 40";
/// How long the stream may take to be connected, and to have what was written.
const STREAM_LIMIT: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(20);
/// The stream's own end, as a service tells it.
const TERM: u8 = 15;

impl Play {
    /// As `WAL_STREAMING=on pgark serve` and `pgark backup --base`; an afternoon, then the disaster. Gives what the
    /// database was just before that.
    pub(super) fn stream_through(
        &mut self,
        stage: &Stage,
        store: &dyn Store,
        shop: &Target,
        before: &Fingerprint,
    ) -> Result<Fingerprint> {
        let end = Token::new();
        let told = end.clone();
        let hook = stage.app.cancel.on_cancel(move || told.cancel(TERM));
        let (played, streamed) = std::thread::scope(|scope| {
            // The demo goes on when the stream has ended: its own token is not the stream's to cancel.
            let stream = scope.spawn(|| wal::stream_of(&stage.app, (&end, &Token::new()), &|_| {}));
            let until = Streamed {
                stage,
                ended: &|| stream.is_finished(),
            };
            let played = self.friday(stage, store, shop, before, &until);
            end.cancel(TERM);
            let streamed = stream.join();
            (
                played,
                streamed.unwrap_or_else(|_| Err(Error::failed("the stream of WAL panicked"))),
            )
        });
        drop(hook);
        streamed.and(played)
    }

    fn friday(
        &mut self,
        stage: &Stage,
        store: &dyn Store,
        shop: &Target,
        before: &Fingerprint,
        streamed: &Streamed<'_>,
    ) -> Result<Fingerprint> {
        self.base(stage, store, streamed)?;
        let last = self.afternoon(stage, shop, before)?;
        self.disaster(stage, shop, &last)?;
        streamed.all()?;
        Ok(last)
    }

    /// As `pgark backup --base`, once the stream is there.
    fn base(&mut self, stage: &Stage, store: &dyn Store, streamed: &Streamed<'_>) -> Result<()> {
        let (app, started) = (&stage.app, Instant::now());
        streamed.all()?;
        let progress = app.progress();
        let reporter = Reporter::start("backup", std::sync::Arc::clone(&progress), self.quiet);
        let wanted = Wanted {
            trigger: Trigger::Manual,
            no_prune: true,
            progress: &progress,
            say: &|_| {},
        };
        let taken = base::take(app, store, &wanted, How::default());
        drop(reporter);
        let taken = taken?;
        self.figures.base = story::Base {
            id: taken.id.to_string(),
            bytes: taken.files().iter().map(|file| file.bytes).sum(),
            codec: Options::archive_codec(app.codec).to_string(),
            seconds: seconds(started),
        };
        self.tell(&story::base(&self.figures))
    }

    /// Work that no dump has. Ends with the moment to come back to.
    fn afternoon(
        &mut self,
        stage: &Stage,
        shop: &Target,
        before: &Fingerprint,
    ) -> Result<Fingerprint> {
        let started = Instant::now();
        let mut session = Session::open(shop, &stage.app.cancel)?;
        for n in 0..TRANSACTIONS {
            session
                .client
                .execute(AFTERNOON.replace("{n}", &n.to_string()))?;
        }
        let last = fingerprint(stage, shop)?;
        if before.differences(&last).is_empty() {
            return Err(Error::damage(
                "the afternoon changed nothing, so its recovery would prove nothing",
            ));
        }
        let moment: Timestamp = clock(&mut session)?;
        self.figures.moment = moment.to_string();
        self.figures.afternoon_seconds = seconds(started);
        self.tell(&story::afternoon(TRANSACTIONS, &self.figures))?;
        // What follows is later, also by a coarse clock.
        while clock(&mut session)? <= moment {
            std::thread::sleep(TICK);
        }
        Ok(last)
    }

    fn disaster(&mut self, stage: &Stage, shop: &Target, last: &Fingerprint) -> Result<()> {
        let started = Instant::now();
        let mut session = Session::open(shop, &stage.app.cancel)?;
        for statement in DISASTER {
            session.client.execute(statement)?;
        }
        let took = seconds(started);
        // A comparison that never fails would prove nothing.
        let found = last.differences(&fingerprint(stage, shop)?);
        if found.len() < DISASTER.len() {
            return Err(Error::damage(format!(
                "the comparison sees {} differences after the disaster, so it cannot be trusted",
                found.len()
            )));
        }
        self.figures.disaster_differences = found.len();
        self.tell(&story::disaster(&DISASTER, &self.figures, took))
    }

    /// As `pgark restore --data-dir … --at …`, a server on it, and the comparison.
    pub(super) fn second_before(&mut self, stage: &Stage, last: Fingerprint) -> Result<()> {
        let started = Instant::now();
        let (server, admin) = stage.second_server(|data_dir| {
            let data_dir = data_dir.display().to_string();
            let words = [
                "pgark",
                "restore",
                "--data-dir",
                &data_dir,
                "--at",
                &self.figures.moment,
            ];
            let args =
                Args::try_parse_from(words).map_err(|error| Error::failed(error.to_string()))?;
            let Verb::Restore(verb) = &args.verb else {
                return Err(Error::failed("the words of a restore mean something else"));
            };
            restore_base::restore_silently(&stage.app, verb, data_dir.as_ref(), &args.global)
        })?;
        let shop = admin.with_database(sample::DATABASE);
        sample::DATABASE.clone_into(&mut self.figures.recovered.database);
        self.figures.recovered.seconds = seconds(started);
        tamper(stage, &shop, "recovered")?;
        let compared = Instant::now();
        let found = fingerprint(stage, &shop)?.of_what_is_logged();
        let last = last.of_what_is_logged();
        self.figures.recovered.differences = last.differences(&found);
        self.figures.recovered.compare_seconds = seconds(compared);
        self.tell(&story::second_before(&self.figures))?;
        judge(&self.figures.recovered)?;
        server.stop()
    }
}

fn clock(session: &mut Session) -> Result<Timestamp> {
    let rows = session.client.query(
        "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
    )?;
    let text = rows.first().map(|row| row.str(0)).transpose()?;
    let parsed = text.and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| Error::failed("the server does not tell the time"))
}

/// What the stream has.
struct Streamed<'a> {
    stage: &'a Stage,
    ended: &'a dyn Fn() -> bool,
}

impl Streamed<'_> {
    /// Waits until it has, durably, all that the server has written.
    fn all(&self) -> Result<()> {
        let mut session = Session::open(&self.stage.admin, &self.stage.app.cancel)?;
        let lsn: Lsn = {
            let rows = session.client.query("SELECT pg_switch_wal()::text")?;
            let text = rows.first().map(|row| row.str(0)).transpose()?;
            text.unwrap_or_default().parse()?
        };
        let query = format!(
            "SELECT coalesce(bool_or(flush_lsn >= '{lsn}'), false)::text FROM pg_stat_replication"
        );
        let deadline = Instant::now() + STREAM_LIMIT;
        loop {
            let rows = session.client.query(query.as_str())?;
            if rows
                .first()
                .is_some_and(|row| row.opt_str(0) == Some("true"))
            {
                return Ok(());
            }
            if (self.ended)() || Instant::now() > deadline {
                return Err(Error::failed(format!(
                    "the stream of WAL does not come to {lsn}"
                )));
            }
            std::thread::sleep(TICK);
        }
    }
}
