//! The life of a stream: what dead ones left, the workers, one connection after another, the end.
//!
//! Invariants: one stream a cluster, by the lock; every connection is to the cluster that the first one
//! was to; a server that ended in order is left alone for a while; when asked to end, what is in memory
//! is stored and confirmed first, within seconds.
//!
//! A crash leaves the lock to the kernel, and files that the next stream settles.

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::guard::{Guard, drop_slot};
use super::pack::{Note, Pace, Packer, is_lasting};
use super::position::{self, Fate, Known};
use super::session::{End, Session};
use super::shelf::{Pieces, Shelf};
use super::ship::{ANNOUNCED_MAX, Shipper};
use super::spool::{Spool, end_of_data};
use super::standbys::Standbys;
use super::tail::{Body, Full, Tail};
use super::{Backoff, Stream};
use crate::catalog::layout::{WAL_LOCK, WalFile, wal_folder};
use crate::catalog::wal::{self, WalArchive, clear_remains};
use crate::error::{Error, Kind, Result};
use crate::postgres::replication::Replication;
use crate::store::lock::DirLock;
use crate::units::{Lsn, SegmentSize, SystemId, Timeline};

/// What the stores may take to end their work.
const END_MAX: Duration = Duration::from_millis(3500);
/// A server that stops, or hands over to a standby, is not asked again before.
const SERVER_LEFT_PAUSE: Duration = Duration::from_secs(5);
/// How long the guard waits for the stream's own session to leave the slot.
const LEAVE_MAX: Duration = Duration::from_secs(20);

/// Streams until the token is cancelled.
///
/// # Errors
/// `Partial` after a gap: a base backup is to follow at once; `Busy` when another process streams;
/// `Damage` when WAL differs from what is stored; `Usage` for another cluster than before, and for what
/// the server refuses for good. Everything else is tried again for ever.
pub fn run(stream: &Stream<'_>) -> Result<()> {
    let _lock = DirLock::acquire(stream.dir, WAL_LOCK)?;
    let tail = Arc::new(Tail::default());
    let (bell, stores) = (Arc::clone(&tail), stream.stores_cancel.clone());
    let _hook = stream.cancel.on_cancel(move || {
        bell.stop();
        let stores = stores.clone();
        // What is left undone by then stays on the server, or is packed by the next stream.
        std::thread::spawn(move || {
            std::thread::sleep(END_MAX);
            stores.cancel(15);
        });
    });
    let result = std::thread::scope(|scope| {
        // From the first moment on: a store that is away must not keep anybody from looking.
        scope.spawn(|| {
            Guard {
                stream,
                tail: &tail,
            }
            .run();
        });
        let result = begin(stream, &tail);
        tail.end();
        result
    });
    let (failure, verdict) = {
        let mut state = tail.lock();
        (state.failure.take(), state.verdict.take())
    };
    let Some(ended) = result.err().or(failure) else {
        return verdict.map_or(Ok(()), |verdict| Err(give_up_slot(stream, verdict)));
    };
    if !is_of_our_slot(&ended) {
        return Err(ended);
    }
    // One that always ends before the guard has looked twice would fill the server's disk.
    let guard = Guard {
        stream,
        tail: &tail,
    };
    let Some(verdict) = guard.last_word() else {
        return Err(ended);
    };
    let given_up = give_up_slot(stream, verdict);
    Err(Error {
        fact: format!("{}; the stream had ended: {}", given_up.fact, ended.fact),
        ..given_up
    })
}

/// Whether a stream that ended so leaves a slot behind that is ours. Another cluster may have a slot of the
/// same name, and a gap has left its own behind.
fn is_of_our_slot(ended: &Error) -> bool {
    match ended.kind {
        Kind::Failed | Kind::Damage => true,
        // What the server itself refuses, and not what is found out about it.
        Kind::Usage => ended.sqlstate.is_some(),
        _ => false,
    }
}

/// Who the server is, and what the first store has.
fn begin(stream: &Stream<'_>, tail: &Tail) -> Result<()> {
    let cluster = retry(tail, stream, "the server is not reached", || {
        let mut link = Replication::connect(&(stream.target)()?)?;
        Ok((link.identify()?.id, link.segment_size()?))
    })?;
    let Some(cluster) = cluster else {
        return Ok(());
    };
    let what = format!("{} is not reached", stream.first.describe());
    let archive = retry(tail, stream, &what, || {
        clear_remains(stream.first)?;
        WalArchive::load(stream.first, cluster.0)
    })?;
    let Some(archive) = archive else {
        return Ok(());
    };
    if archive.is_empty() {
        tell_of_others(stream, cluster.0);
    }
    live(stream, tail, cluster, &archive)
}

/// Tries until it works; none when the stream was asked to end before.
fn retry<T>(
    tail: &Tail,
    stream: &Stream<'_>,
    what: &str,
    work: impl Fn() -> Result<T>,
) -> Result<Option<T>> {
    let mut backoff = Backoff::new(what);
    loop {
        match work() {
            Ok(found) => return Ok(Some(found)),
            Err(_) if tail.lock().stop => return Ok(None),
            Err(error) if is_lasting(&error) || is_refusal(&error) => return Err(error),
            Err(error) => {
                if tail.pause(backoff.failed(stream.say, &error)) {
                    return Ok(None);
                }
            }
        }
    }
}

/// What waiting does not mend: wrong password, no right, no slot to be had, a setting.
pub(super) fn is_refusal(error: &Error) -> bool {
    let code = error.sqlstate.as_deref().unwrap_or_default();
    code.starts_with("28") || matches!(code, "42501" | "53400" | "0A000" | "42601")
}

/// A new cluster is no fault (`pg_upgrade`), but one that nobody expected is.
fn tell_of_others(stream: &Stream<'_>, system: SystemId) {
    for other in wal::systems(stream.first).unwrap_or_default() {
        if other != system {
            (stream.say)(&format!(
                "warning: {} holds WAL of the cluster {other}; this server is {system}, and gets a folder of its own. After pg_upgrade or a new initdb that is right; otherwise look where DB_HOST leads",
                stream.first.describe()
            ));
        }
    }
}

fn live(
    stream: &Stream<'_>,
    tail: &Tail,
    (system, size): (SystemId, SegmentSize),
    archive: &WalArchive,
) -> Result<()> {
    let known = position::known(archive, size)?;
    let spool = match stream.first_dir {
        Some(dir) if stream.on_disk() => Spool::disk(dir, system),
        _ => Spool::Memory {
            bytes_max: stream.options.backlog_max_bytes,
        },
    };
    settle(stream, tail, archive, size)?;
    let shelf = |store| Shelf {
        store,
        system,
        size,
        codec: stream.options.codec,
        crypt: &stream.options.crypt,
    };
    let channels = stream.others.iter().map(|_| bounded(ANNOUNCED_MAX));
    let (senders, receivers): (Vec<_>, Vec<_>) = channels.unzip();
    let packer = packer(stream, tail, shelf(stream.first), archive, &senders);
    let shippers: Vec<Shipper<'_>> = stream
        .others
        .iter()
        .zip(receivers)
        .zip(&stream.others_local)
        .map(|((store, announced), local)| {
            shipper(stream, tail, shelf(store.as_ref()), announced, *local)
        })
        .collect();
    let mut life = Life {
        stream,
        tail,
        shelf: shelf(stream.first),
        spool,
        known,
        seen: position::seen(archive, size)?,
        gap: None,
        histories: BTreeSet::new(),
        senders,
    };
    std::thread::scope(|scope| {
        scope.spawn(|| packer.run());
        scope.spawn(move || Standbys::new(stream, tail, system).run());
        for shipper in shippers {
            scope.spawn(|| shipper.run());
        }
        let result = life.receive();
        tail.end();
        result
    })
}

fn packer<'a>(
    stream: &'a Stream<'_>,
    tail: &'a Tail,
    shelf: Shelf<'a>,
    archive: &WalArchive,
    others: &[Sender<WalFile>],
) -> Packer<'a> {
    let local = stream.first_dir.is_some();
    Packer {
        tail,
        memory: !stream.on_disk(),
        flush_interval: interval(stream, local),
        pieces: Pieces::of(archive),
        note: Note {
            pace: if local { Pace::LOCAL } else { Pace::FAR },
            last: wal::reached(stream.first, shelf.system).ok().flatten(),
            at: Instant::now(),
        },
        others: others.to_vec(),
        say: stream.say,
        shelf,
    }
}

fn shipper<'a>(
    stream: &'a Stream<'_>,
    tail: &'a Tail,
    shelf: Shelf<'a>,
    announced: Receiver<WalFile>,
    local: bool,
) -> Shipper<'a> {
    Shipper {
        shelf,
        first: stream.first,
        tail,
        memory: !stream.on_disk(),
        flush_interval: stream.options.flush_interval,
        announced,
        piece_at: Instant::now(),
        note: Note {
            pace: if local { Pace::LOCAL } else { Pace::FAR },
            last: None,
            at: Instant::now(),
        },
        say: stream.say,
    }
}

/// How old bytes in memory may become: a directory has no reason to wait long.
fn interval(stream: &Stream<'_>, local: bool) -> Duration {
    let wanted = stream.options.flush_interval;
    if local {
        wanted.min(Duration::from_millis(500))
    } else {
        wanted
    }
}

/// The open files that dead streams left.
fn settle(stream: &Stream<'_>, tail: &Tail, archive: &WalArchive, size: SegmentSize) -> Result<()> {
    let Some(dir) = stream.first_dir else {
        return Ok(());
    };
    for (name, fate) in position::settle(archive, size) {
        let path = dir.join(wal_folder(archive.system));
        let path = path.join(WalFile::Open(name).file_name());
        let (bytes, whole) = match fate {
            Fate::Keep => continue,
            Fate::Drop => {
                std::fs::remove_file(&path)?;
                continue;
            }
            Fate::Pack => (size.bytes(), true),
            Fate::Close => (end_of_data(&File::open(&path)?)?, false),
        };
        tail.lock().full.push_back(Arc::new(Full {
            name,
            start: name.start(size)?,
            bytes,
            whole,
            body: Body::File(path),
        }));
    }
    Ok(())
}

/// Drops the slot as the guard wants it.
fn give_up_slot(stream: &Stream<'_>, verdict: Error) -> Error {
    let until = Instant::now() + LEAVE_MAX;
    let slot = &stream.options.slot;
    loop {
        let dropped = (stream.sql_target)().and_then(|target| drop_slot(&target, slot));
        match dropped {
            Ok(_) => {
                return Error {
                    fact: format!("{}; it was dropped to protect the server", verdict.fact),
                    ..verdict
                }
                .hint("a base backup makes the window whole again from now on; wal.slot_policy = protect-archive keeps the slot whatever it holds");
            }
            Err(_) if Instant::now() < until && stream.cancel.check().is_ok() => {
                std::thread::sleep(Duration::from_millis(200));
            }
            Err(error) => return error.context(format!("the slot {slot} could not be dropped")),
        }
    }
}

/// What is known from one connection to the next.
pub(super) struct Life<'a> {
    pub stream: &'a Stream<'a>,
    pub tail: &'a Tail,
    pub shelf: Shelf<'a>,
    pub spool: Spool,
    pub known: Known,
    /// How far each timeline was surely stored when the stream began.
    pub seen: Known,
    /// WAL that nobody has any more, from and to.
    pub gap: Option<(Lsn, Lsn)>,
    /// Those that are known to be stored.
    pub histories: BTreeSet<Timeline>,
    pub senders: Vec<Sender<WalFile>>,
}

impl Life<'_> {
    /// One connection after another, until the end.
    fn receive(&mut self) -> Result<()> {
        let mut backoff = Backoff::new("the stream of WAL has stopped");
        loop {
            let began = self.tail.lock().durable;
            let ended = Session { life: self }.run();
            if self.tail.lock().durable > began {
                backoff.good(self.stream.say, "WAL streams again");
            }
            let pause = match ended {
                Ok(End::Stopped) => return Ok(()),
                Ok(End::Again) => continue,
                Ok(End::NoRoom) => {
                    self.wait_for_room();
                    continue;
                }
                Ok(End::ServerLeft) => {
                    (self.stream.say)("the server has ended the stream; it is asked again soon");
                    SERVER_LEFT_PAUSE
                }
                Err(error) if is_lasting(&error) || is_refusal(&error) => return Err(error),
                Err(error) => backoff.failed(self.stream.say, &error),
            };
            if self.tail.pause(pause) {
                return Ok(());
            }
        }
    }

    /// Until the stores have taken some of what waits in memory.
    fn wait_for_room(&self) {
        // The store may have taken all of it by now.
        let backlog = self.tail.lock().full.len().max(1);
        (self.stream.say)(
            "warning: the backlog is as long as it may be; WAL waits on the server until the store takes it",
        );
        while self.tail.lock().full.len() >= backlog && !self.tail.pause(Duration::from_secs(1)) {}
    }

    /// Stores a history before any WAL of its timeline.
    pub(super) fn store_history(&mut self, timeline: Timeline, content: &[u8]) -> Result<()> {
        if self.histories.contains(&timeline) {
            return Ok(());
        }
        let file = WalFile::History(timeline);
        self.shelf.put_history(&file, content)?;
        for other in &self.senders {
            let _ = other.try_send(file);
        }
        self.histories.insert(timeline);
        Ok(())
    }
}
