//! One connection: who the server is, the slot, the stream to its end.
//!
//! Invariants: the cluster is the one that the stream began with; a history is stored before any WAL of
//! its timeline; every page is looked at before it is kept; what is confirmed is durable, and never
//! more. WAL that the server has removed is a gap, which is noted, passed over and then reported.
//!
//! A lost connection leaves what was synced or stored; the next one begins with the open segment anew.

use std::time::{Duration, Instant};

use super::flow::Flow;
use super::guard::{is_logical, report};
use super::position::{self, Place};
use super::spool::Taken;
use super::stream::Life;
use crate::archive::wal::PageCheck;
use crate::error::{Error, Kind, Result};
use crate::postgres::Client;
use crate::postgres::replication::{Received, Replication, SlotState, Streaming, Switch, System};
use crate::units::{Lsn, SegmentSize, TimelineHistory};

/// How long the end waits for the store.
const FLUSH_MAX: Duration = Duration::from_secs(3);

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// As it was asked to.
    Stopped,
    /// To begin anew at once: a timeline has ended, or a gap was noted.
    Again,
    /// The backlog is full.
    NoRoom,
    /// The server stops.
    ServerLeft,
}

pub(super) struct Session<'s, 'a> {
    pub life: &'s mut Life<'a>,
}

impl Session<'_, '_> {
    pub(super) fn run(mut self) -> Result<End> {
        if self.is_over() {
            return Ok(End::Stopped);
        }
        let mut link = Replication::connect(&(self.life.stream.target)()?)?;
        let system = link.identify()?;
        if system.id != self.life.shelf.system {
            return Err(Error::usage(format!(
                "the server is the cluster {} now; the stream is of {}",
                system.id, self.life.shelf.system
            ))
            .hint("nothing of it was stored. Look where DB_HOST leads; if the cluster is a new one on purpose (pg_upgrade, initdb), start pgark again: its WAL gets a folder of its own"));
        }
        let history = self.histories(&mut link, system)?;
        // A standby's clock and end say nothing of what its primary has committed.
        let standby = link.parameter("in_hot_standby") == Some("on");
        if !standby {
            self.refuse_set_back(system)?;
        }
        let restart = self.slot(&mut link)?;
        let size = self.life.shelf.size;
        if let Some(open) = self.life.tail.lock().open.as_ref() {
            self.life.known.insert(open.name.timeline(), open.start);
        }
        let begin = position::begin(&self.life.known, &history, restart, size);
        let Life { spool, tail, .. } = &mut *self.life;
        spool.begin(tail, begin.timeline, begin.at, size)?;
        {
            let mut state = tail.lock();
            state.catch_up = system.flushed;
            state.moments.restart();
        }
        // Nor does the clock of one who sends an old timeline's end: its own commits are on the next.
        let clock = !standby && begin.timeline == system.timeline;
        let ended = self.stream(&mut link, begin, restart, clock);
        match ended {
            Err(error) if error.is_sqlstate("58P01") => {
                self.pass_over(&mut link, begin, &history, &error)?;
                Ok(End::Again)
            }
            // The slot was invalidated: it holds nothing any more.
            Err(error) if error.is_sqlstate("55000") && !link.is_broken() && self.is_lost()? => {
                let slot = &self.life.stream.options.slot;
                (self.life.stream.say)(&format!("warning: the slot {slot} is lost: {error}"));
                link.drop_slot(slot)?;
                Ok(End::Again)
            }
            other => other,
        }
    }

    /// A primary's WAL ends behind all that it ever sent, or it is not what it was.
    fn refuse_set_back(&self, system: System) -> Result<()> {
        let life = &*self.life;
        let seen = life.seen.get(&system.timeline).copied();
        let state = life.tail.lock();
        let durable = (state.timeline == Some(system.timeline)).then_some(state.durable);
        match seen.max(durable) {
            Some(stored) if system.flushed < stored => Err(set_back(system, stored)),
            _ => Ok(()),
        }
    }

    /// Whether the server says that the slot holds nothing any more.
    fn is_lost(&self) -> Result<bool> {
        let mut client = Client::connect(&(self.life.stream.sql_target)()?)?;
        let seen = report(&mut client, &self.life.stream.options.slot)?;
        Ok(seen.is_some_and(|seen| {
            seen.restart.is_none() || seen.wal_status.as_deref() == Some("lost")
        }))
    }

    fn is_over(&self) -> bool {
        let state = self.life.tail.lock();
        state.stop || state.failure.is_some() || state.verdict.is_some()
    }

    /// Stores the histories of what can come; gives that of the server.
    fn histories(&mut self, link: &mut Replication, system: System) -> Result<TimelineHistory> {
        let first = TimelineHistory::first();
        if system.timeline == first.timeline() {
            return Ok(first);
        }
        let own = link.timeline_history(system.timeline)?;
        for (timeline, _) in own.history.ancestors() {
            if *timeline == first.timeline() || self.life.histories.contains(timeline) {
                continue;
            }
            // An old one may be gone from the server; the newer ones tell what it told.
            match link.timeline_history(*timeline) {
                Ok(file) => self.life.store_history(*timeline, &file.content)?,
                Err(_) if !link.is_broken() => {}
                Err(error) => return Err(error),
            }
        }
        self.life.store_history(system.timeline, &own.content)?;
        Ok(own.history)
    }

    /// From where on the slot keeps WAL; it is created if it is not there.
    fn slot(&self, link: &mut Replication) -> Result<Lsn> {
        let name = &self.life.stream.options.slot;
        match self.read_slot(link)? {
            Some(SlotState {
                restart: Some(restart),
                ..
            }) => return Ok(restart),
            // Invalidated, or made without a reserve: it holds nothing.
            Some(_) => link.drop_slot(name)?,
            None => {}
        }
        link.create_slot(name, false).map_err(|error| {
            let setting = error.is_sqlstate("55000");
            let kind = if setting { Kind::Usage } else { error.kind };
            let error = Error { kind, ..error };
            if setting && error.hint.is_none() {
                return error.hint("ALTER SYSTEM SET wal_level = 'replica', and max_replication_slots = 10; then restart the server");
            }
            error
        })?;
        (self.life.stream.say)(&format!(
            "the slot {name} holds WAL on the server from now on"
        ));
        let created = self.read_slot(link)?.and_then(|slot| slot.restart);
        created.ok_or_else(|| Error::failed(format!("the slot {name} holds no WAL")))
    }

    fn read_slot(&self, link: &mut Replication) -> Result<Option<SlotState>> {
        let name = &self.life.stream.options.slot;
        let error = match link.read_slot(name) {
            Err(error) if error.kind == Kind::Usage || error.sqlstate.is_some() => error,
            other => return other,
        };
        // PostgreSQL 14 has no such command; later ones refuse it for a slot that decodes WAL.
        let mut client = Client::connect(&(self.life.stream.sql_target)()?)?;
        match report(&mut client, name)? {
            Some(seen) if seen.logical => Err(is_logical(name)),
            seen if error.kind == Kind::Usage => Ok(seen.map(|seen| SlotState {
                restart: seen.restart,
                timeline: None,
            })),
            _ => Err(error),
        }
    }

    /// The server has no WAL any more where the stream should go on: it goes on where the slot begins.
    fn pass_over(
        &mut self,
        link: &mut Replication,
        begin: Place,
        history: &TimelineHistory,
        error: &Error,
    ) -> Result<()> {
        if link.is_broken() {
            return Err(error.clone());
        }
        let restart = self.slot(link)?;
        let size = self.life.shelf.size;
        let at = restart.segment_start(size);
        let timeline = history.at(restart);
        if at <= begin.at && timeline == begin.timeline {
            return Err(error.clone());
        }
        (self.life.stream.say)(&format!(
            "warning: a gap: the server has removed the WAL from {} on, which was not received; the stream goes on at {at} ({error})",
            begin.at
        ));
        let Life { spool, tail, .. } = &mut *self.life;
        spool.close(tail)?;
        self.life.known.clear();
        self.life.known.insert(timeline, at);
        let from = self.life.gap.map_or(begin.at, |(from, _)| from);
        self.life.gap = Some((from, at));
        Ok(())
    }

    fn stream(
        &mut self,
        link: &mut Replication,
        begin: Place,
        restart: Lsn,
        clock: bool,
    ) -> Result<End> {
        let slot = self.life.stream.options.slot.clone();
        let mut stream = link.stream(Some(&slot), begin.at, begin.timeline)?;
        let size = self.life.shelf.size;
        let mut flow = Flow::new(
            PageCheck::new(self.life.shelf.system, size, begin.timeline),
            restart,
            clock,
        );
        loop {
            if self.is_over() {
                return self.stop(stream, &flow);
            }
            self.report_gap()?;
            let Some(end) = self.step(&mut stream, &mut flow, begin, size)? else {
                continue;
            };
            if end == End::NoRoom {
                // In peace, so that the slot is free for the next one.
                stream.stop()?;
            }
            return Ok(end);
        }
    }

    /// What comes next, and what follows from it.
    fn step(
        &mut self,
        stream: &mut Streaming<'_>,
        flow: &mut Flow,
        begin: Place,
        size: SegmentSize,
    ) -> Result<Option<End>> {
        let Life { spool, tail, .. } = &mut *self.life;
        let position = stream.position();
        let wait = flow.wait(tail.lock().prompt, flow.confirmed < position);
        let mut quiet = false;
        match stream.receive(wait)? {
            Received::Wal {
                start,
                bytes,
                sent,
                time,
            } => {
                flow.check.feed(start, bytes)?;
                if spool.append(tail, start, bytes, size)? == Taken::NoRoom {
                    return Ok(Some(End::NoRoom));
                }
                flow.came(bytes.len() as u64);
                if flow.clock {
                    tail.hear(sent, time);
                }
            }
            Received::Keepalive { sent, time, asked } => {
                if flow.clock {
                    tail.hear(sent, time);
                }
                flow.heard = Instant::now();
                if flow.is_left_waiting(asked && flow.confirmed < sent) {
                    return Ok(Some(End::ServerLeft));
                }
                if asked {
                    quiet = true;
                    // It stops as soon as everything is confirmed.
                    tail.lock().flush = true;
                    tail.ring();
                }
            }
            Received::Nothing => quiet = true,
            Received::End(switch) => return self.ended(begin, position, switch).map(Some),
        }
        let position = stream.position();
        if flow.is_sync_due(quiet) {
            spool.sync(tail)?;
            flow.synced();
        }
        let durable = tail.lock().durable.min(position);
        if durable > flow.confirmed {
            stream.confirm(position, durable)?;
            flow.confirmed = durable;
        } else if flow.is_silent() {
            stream.ask()?;
        }
        Ok(None)
    }

    /// The server has ended the stream.
    fn ended(&mut self, begin: Place, position: Lsn, switch: Option<Switch>) -> Result<End> {
        let Life { spool, tail, .. } = &mut *self.life;
        spool.sync(tail)?;
        let Some(switch) = switch else {
            return Ok(End::ServerLeft);
        };
        if position != switch.at {
            return Err(Error::failed(format!(
                "timeline {} ends at {}, but WAL came up to {position}",
                begin.timeline, switch.at
            )));
        }
        spool.close(tail)?;
        self.life.known.insert(begin.timeline, switch.at);
        (self.life.stream.say)(&format!(
            "timeline {} ends at {}; timeline {} goes on",
            begin.timeline, switch.at, switch.timeline
        ));
        Ok(End::Again)
    }

    /// Everything that came is stored and confirmed, then the stream ends in peace.
    fn stop(&mut self, mut stream: Streaming<'_>, flow: &Flow) -> Result<End> {
        let position = stream.position();
        let Life { spool, tail, .. } = &mut *self.life;
        let mut durable = spool.sync(tail)?;
        if durable < position {
            durable = tail.flush(position, FLUSH_MAX);
        }
        if durable.min(position) > flow.confirmed {
            stream.confirm(position, durable.min(position))?;
        }
        stream.stop()?;
        Ok(End::Stopped)
    }

    /// A gap is reported once something behind it is durable: from there on the next stream goes on.
    fn report_gap(&self) -> Result<()> {
        let Some((from, to)) = self.life.gap else {
            return Ok(());
        };
        if self.life.tail.lock().durable <= to {
            return Ok(());
        }
        Err(Error::new(
            Kind::Partial,
            format!(
                "the WAL from {from} to {to} is lost: the server removed it before it was received"
            ),
        )
        .hint("moments within cannot be restored; a base backup taken now begins a new window"))
    }
}

fn set_back(system: System, stored: Lsn) -> Error {
    Error::damage(format!(
        "the server's WAL ends at {} of timeline {}, where more is stored of it, up to {stored}: it was set back (a snapshot, a copy, lost writes)",
        system.flushed, system.timeline
    ))
    .hint("nothing was overwritten. If this server is the true one from now on, move the folder of its WAL away: a base backup then begins a new window")
}
