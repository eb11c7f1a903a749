//! Is there a connection pooler that changes the server's session between transactions?
//!
//! What a session sets would then be set for a stranger, or not at all: row security would hide
//! rows from a dump, and its lock would outlive it. A pooler that keeps a session whole is fine.
//!
//! Invariant: a direct connection costs one small query and no second connection.

use super::client::Client;
use crate::error::{Error, Result};

/// Looks whether `client` keeps its server process from one transaction to the next, also while
/// another connection wants one.
///
/// # Errors
/// `Failed` when it does not; the connection's own.
pub fn refuse_transaction_pooler(client: &mut Client) -> Result<()> {
    let own = process(client)?;
    // A pooler makes up the number that it tells at the start.
    if own == client.backend_pid().to_string() {
        return Ok(());
    }
    let target = client.pinned();
    let mut other = Client::connect(&target)?;
    other.execute("BEGIN")?;
    // One that gives the free process away gives ours; one that takes turns gives us another.
    let mut moved = process(&mut other)? == own;
    for _ in 0..3 {
        moved |= process(client)? != own;
    }
    if !moved {
        return Ok(());
    }
    Err(Error::failed(format!(
        "a connection pooler in transaction mode stands between pgark and {}",
        target.describe()
    ))
    .hint("a dump needs a session that stays whole: let DB_HOST and DB_PORT name the server itself, or a pooler in session mode; nothing was written"))
}

fn process(client: &mut Client) -> Result<String> {
    let rows = client.query("SELECT pg_catalog.pg_backend_pid()")?;
    rows.first()
        .map_or(Ok(String::new()), |row| row.str(0).map(str::to_owned))
}
