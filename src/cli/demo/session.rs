//! Connections of the demo that a signal closes.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::cancel::{Hook, Token};
use crate::error::{Error, Result};
use crate::postgres::{Client, Target};

/// A connection that the token closes, so that no statement outlives a signal.
pub(super) struct Session {
    pub client: Client,
    _hook: Hook,
}

impl Session {
    pub(super) fn open(target: &Target, cancel: &Token) -> Result<Session> {
        cancel.check()?;
        let client = Client::connect(target)?;
        let canceller = client.canceller();
        let hook = cancel.on_cancel(move || canceller.close());
        Ok(Session {
            client,
            _hook: hook,
        })
    }
}

/// Does `work` with every item on at most `jobs` connections; gives the results in the items'
/// order. After a failure no further item is begun.
pub(super) fn on_connections<T: Sync, R: Send>(
    target: &Target,
    jobs: usize,
    cancel: &Token,
    items: &[T],
    work: impl Fn(&mut Client, &T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let worker = || -> Result<Vec<(usize, R)>> {
        let mut done = Vec::new();
        let mut session = Session::open(target, cancel)?;
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at) else {
                return Ok(done);
            };
            let result = cancel
                .check()
                .and_then(|()| work(&mut session.client, item));
            // The others find nothing more to do.
            done.push((
                at,
                result.inspect_err(|_| next.store(items.len(), Ordering::Relaxed))?,
            ));
        }
    };
    let results: Vec<Result<Vec<(usize, R)>>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs.clamp(1, items.len().max(1)))
            .map(|_| scope.spawn(worker))
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(Error::failed("a thread of the demo panicked")))
            })
            .collect()
    });
    let mut all = Vec::new();
    for result in results {
        all.extend(result?);
    }
    all.sort_by_key(|(at, _)| *at);
    Ok(all.into_iter().map(|(_, result)| result).collect())
}
