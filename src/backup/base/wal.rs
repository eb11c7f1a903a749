//! The WAL that makes a base backup consistent, received beside it: `pg_wal.tar`.
//!
//! A temporary slot holds the server's WAL from before BASE_BACKUP begins, and a second connection
//! streams it: a long backup never finds its first segments recycled, and waits for no archiver.
//!
//! Invariants: the archive holds every segment from the one of the start to the one of the end,
//! each of full length; what had not been written by then is zeros, which a server takes for the
//! end of WAL. The wait for the end has a bound. A failure here ends the backup at once.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};

use super::intake::{begin, names};
use super::{Session, store_archive};
use crate::archive::ArtefactWriter;
use crate::archive::tar::{TarFrames, file_header};
use crate::catalog::manifest::ArchiveRecord;
use crate::clock;
use crate::error::{Error, Result, caught};
use crate::postgres::client::Canceller;
use crate::postgres::replication::{Received, Replication, SlotName};
use crate::progress::Progress;
use crate::units::{BackupId, Lsn, SegmentName, SegmentSize, Timeline};

/// How long WAL may stand still before the end of the backup.
const STALL_MAX: Duration = Duration::from_secs(60);
/// How often the slot's place is moved on.
const CONFIRM_INTERVAL: Duration = Duration::from_secs(1);
/// How soon the end is noticed.
const TICK: Duration = Duration::from_millis(100);
/// Zeros written at once.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

type Place = (Lsn, Timeline);

/// Receives WAL in a thread of its own.
pub(super) struct Collector {
    start: Sender<Place>,
    end: Sender<Place>,
    canceller: Canceller,
    thread: Mutex<Option<JoinHandle<Result<ArchiveRecord>>>>,
}

impl Collector {
    /// Reserves WAL from now on. `backup` is ended when this fails.
    ///
    /// # Errors
    /// The server's; 53300 when it allows no second connection for replication.
    pub(super) fn start(
        session: &Session<'_>,
        id: &BackupId,
        backup: Canceller,
    ) -> Result<Collector> {
        let mut link = Replication::connect(session.target)?;
        let name = format!("pgark_{id}_{}", std::process::id());
        let slot = SlotName::new(&name)?;
        let slot = match link.create_slot(&slot, true) {
            Ok(()) => Some(slot),
            // All slots are taken: the server keeps WAL for a while without one.
            Err(error) if error.is_sqlstate("53400") => None,
            Err(error) => return Err(error),
        };
        let run = session.run;
        let names = names("pg_wal", run);
        // Its bytes are not among those that the estimate counts.
        let writer = begin(run, id, &names, 1, Arc::<Progress>::default())?;
        let (start, started) = unbounded();
        let (end, ended) = unbounded();
        let canceller = link.canceller();
        let work = Work {
            link,
            slot,
            segment: session.segment,
            started,
            ended,
        };
        let thread = std::thread::Builder::new()
            .name("wal".to_owned())
            .spawn(move || {
                let result = caught("the WAL of a base backup", || work.run(writer, names));
                if result.is_err() {
                    backup.close();
                }
                result
            })
            .map_err(|error| Error::from(error).context("could not start a thread"))?;
        Ok(Collector {
            start,
            end,
            canceller,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// The backup begins there.
    pub(super) fn begin(&self, lsn: Lsn, timeline: Timeline) {
        // A thread that has ended says why when it is asked.
        let _ = self.start.send((lsn, timeline));
    }

    /// Waits for the WAL up to the end of the backup, and stores it.
    ///
    /// # Errors
    /// What kept it from being received or stored.
    pub(super) fn finish(&self, lsn: Lsn, timeline: Timeline) -> Result<ArchiveRecord> {
        let _ = self.end.send((lsn, timeline));
        self.join()
            .unwrap_or_else(|| Err(Error::failed("the WAL was asked for twice")))
    }

    /// Why it failed, if it has.
    pub(super) fn failure(&self) -> Option<Error> {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = thread.as_ref().is_some_and(JoinHandle::is_finished);
        drop(thread);
        if ended { self.join()?.err() } else { None }
    }

    fn join(&self) -> Option<Result<ArchiveRecord>> {
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()?;
        let panicked = |_| Err(Error::failed("the thread that receives WAL panicked"));
        Some(thread.join().unwrap_or_else(panicked))
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let left = self
            .thread
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = left {
            self.canceller.close();
            let (closed, _) = unbounded();
            self.start = closed;
            let _ = thread.join();
        }
    }
}

/// What the thread works with.
struct Work {
    link: Replication,
    slot: Option<SlotName>,
    segment: SegmentSize,
    started: Receiver<Place>,
    ended: Receiver<Place>,
}

impl Work {
    fn run(mut self, writer: ArtefactWriter, names: [String; 2]) -> Result<ArchiveRecord> {
        let abandoned = |_| Error::failed("the base backup was given up");
        let (start, timeline) = self.started.recv().map_err(abandoned)?;
        let begin = start.segment_start(self.segment);
        let first = SegmentName::holding(timeline, begin, self.segment);
        let mut wal = Segments::new(TarFrames::new(writer.sender()), first, self.segment);
        if timeline > Timeline::FIRST {
            let file = self.link.timeline_history(timeline)?;
            wal.small_file(&file.name, &file.content)?;
        }
        self.receive(begin, timeline, &mut wal)?;
        wal.finish()?;
        store_archive(writer.finish()?, names)
    }

    /// Receives from `begin` to the end, which becomes known on the way.
    fn receive(&mut self, begin: Lsn, timeline: Timeline, wal: &mut Segments) -> Result<()> {
        let mut stream = self.link.stream(self.slot.as_ref(), begin, timeline)?;
        let mut end: Option<Lsn> = None;
        let mut moved = Instant::now();
        let mut confirmed = Instant::now();
        loop {
            match stream.receive(TICK)? {
                Received::Wal { bytes, .. } => {
                    wal.write(bytes)?;
                    moved = Instant::now();
                }
                Received::Keepalive { .. } | Received::Nothing => {}
                Received::End(_) => {
                    return Err(Error::failed(format!(
                        "timeline {timeline} ended while the base backup was taken"
                    ))
                    .hint("the server was promoted or is stopping; take the backup again"));
                }
            }
            if end.is_none() {
                match self.ended.try_recv() {
                    Ok((lsn, on)) if on == timeline => {
                        end = Some(lsn);
                        moved = Instant::now();
                    }
                    Ok((_, on)) => {
                        return Err(Error::failed(format!(
                            "the base backup began on timeline {timeline} and ended on {on}"
                        ))
                        .hint("a server was promoted meanwhile; take the backup again"));
                    }
                    Err(TryRecvError::Disconnected) => {
                        return Err(Error::failed("the base backup was given up"));
                    }
                    Err(TryRecvError::Empty) => {}
                }
            }
            let position = stream.position();
            if end.is_some_and(|end| position >= end) {
                return stream.stop();
            }
            if end.is_some() && moved.elapsed() > STALL_MAX {
                return Err(Error::failed(format!(
                    "the WAL up to the backup's end did not come: it stands at {position}"
                ))
                .hint("a standby receives it from its primary: is that connection up?"));
            }
            if confirmed.elapsed() > CONFIRM_INTERVAL {
                // Lost together with the backup: the server need not hold it any longer.
                stream.confirm(position, position)?;
                confirmed = Instant::now();
            }
        }
    }
}

/// Segments on their way into a tar stream.
struct Segments {
    frames: TarFrames,
    size: SegmentSize,
    next: SegmentName,
    /// Bytes that the open segment lacks.
    lacks: u64,
    names: Vec<SegmentName>,
    time_s: u64,
}

impl Segments {
    fn new(frames: TarFrames, first: SegmentName, size: SegmentSize) -> Segments {
        Segments {
            frames,
            size,
            next: first,
            lacks: 0,
            names: Vec::new(),
            time_s: u64::try_from(clock::now().as_second()).unwrap_or(0),
        }
    }

    fn small_file(&mut self, name: &str, content: &[u8]) -> Result<()> {
        let header = file_header(name, content.len() as u64, self.time_s)?;
        self.frames.write(&header)?;
        self.frames.write(content)?;
        let padding = content.len().wrapping_neg() % 512;
        self.frames.write(&ZEROS[..padding])
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let mut bytes = bytes;
        while !bytes.is_empty() {
            if self.lacks == 0 {
                let size = self.size.bytes();
                let header = file_header(&self.next.to_string(), size, self.time_s)?;
                self.frames.write(&header)?;
                self.names.push(self.next);
                self.next = self.next.next(self.size);
                self.lacks = size;
            }
            let count = usize::try_from(self.lacks).unwrap_or(usize::MAX);
            let (head, rest) = bytes.split_at(count.min(bytes.len()));
            self.frames.write(head)?;
            self.lacks -= head.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    /// Fills the open segment with zeros: servers refuse one of another length.
    fn finish(mut self) -> Result<()> {
        while self.lacks > 0 {
            let count = self.lacks.min(ZEROS.len() as u64);
            // Bounded by the length of ZEROS.
            self.frames
                .write(&ZEROS[..usize::try_from(count).unwrap_or(0)])?;
            self.lacks -= count;
        }
        // So that a restored server archives none of them anew.
        for name in std::mem::take(&mut self.names) {
            self.small_file(&format!("archive_status/{name}.done"), &[])?;
        }
        self.frames.write(&[0; 1024])?;
        self.frames.finish()
    }
}
