//! Sends what was written on its way to the disk while more is coming, so that whoever makes it durable
//! in the end need not wait for all of it.
//!
//! Invariant: an error that a flush meets is told by the next call: the system tells it once only. Nothing
//! is durable by this alone. Dropped, the thread ends by itself.

use std::fs::File;
use std::io;
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, TrySendError, bounded};

/// Often enough that little is left for the end, seldom enough that the disk is not kept waiting for its journal.
const FLUSH_BYTES: u64 = 32 << 20;

/// Flushes the files that one thread writes.
#[derive(Default)]
pub struct Flusher {
    waiting: u64,
    running: Option<Running>,
}

struct Running {
    files: Sender<File>,
    thread: JoinHandle<io::Result<()>>,
}

impl Flusher {
    /// Notes that `bytes` more were written to `file`.
    ///
    /// # Errors
    /// The disk's, of a flush before.
    pub fn wrote(&mut self, file: &File, bytes: u64) -> io::Result<()> {
        self.waiting += bytes;
        if self.waiting < FLUSH_BYTES {
            return Ok(());
        }
        let running = match &self.running {
            Some(running) => running,
            None => self.running.insert(start()?),
        };
        match running.files.try_send(file.try_clone()?) {
            Ok(()) => self.waiting = 0,
            // The disk is slower than what is written; the next call asks again.
            Err(TrySendError::Full(_)) => {}
            Err(TrySendError::Disconnected(_)) => return self.finish(),
        }
        Ok(())
    }

    /// Waits for what is being flushed.
    ///
    /// # Errors
    /// The disk's.
    pub fn finish(&mut self) -> io::Result<()> {
        let Some(Running { files, thread }) = self.running.take() else {
            return Ok(());
        };
        drop(files);
        let panicked = |_| Err(io::Error::other("the thread that flushes panicked"));
        thread.join().unwrap_or_else(panicked)
    }
}

fn start() -> io::Result<Running> {
    let (files, waiting) = bounded::<File>(1);
    let thread = std::thread::Builder::new()
        .name("flush".to_owned())
        .spawn(move || waiting.into_iter().try_for_each(|file| file.sync_data()))?;
    Ok(Running { files, thread })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::Scratch;

    #[test]
    fn what_cannot_be_flushed_is_told() {
        let scratch = Scratch::new();
        let file = File::create(scratch.path().join("x")).unwrap();
        let mut flusher = Flusher::default();
        flusher.wrote(&file, FLUSH_BYTES - 1).unwrap();
        assert!(flusher.running.is_none(), "too early");
        flusher.wrote(&file, 1).unwrap();
        flusher.finish().unwrap();
        // fdatasync(2): EINVAL for a file that cannot be synchronised.
        let (_end, pipe) = io::pipe().unwrap();
        let pipe = File::from(std::os::fd::OwnedFd::from(pipe));
        flusher.wrote(&pipe, FLUSH_BYTES).unwrap();
        assert!(flusher.finish().is_err());
        flusher.wrote(&pipe, FLUSH_BYTES).unwrap();
        let told = (0..1000).any(|_| {
            std::thread::yield_now();
            flusher.wrote(&pipe, FLUSH_BYTES).is_err()
        });
        assert!(told || flusher.finish().is_err());
    }
}
