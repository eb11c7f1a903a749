//! `pgark wal-stream`, which the service keeps running, and `pgark slot`.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::json;

use super::args::{Global, Slot, SlotAct};
use super::clusters::Out;
use super::{note, print};
use crate::app::App;
use crate::archive::segment::wal_codec;
use crate::backup::wal::{self, Options, SlotReport, Stream};
use crate::cancel::Token;
use crate::config::Place;
use crate::error::{Error, Result};
use crate::postgres::Client;
use crate::postgres::replication::SlotName;
use crate::store::Store;
use crate::units::ByteSize;

/// How long one request to a store far away is repeated: the stream tries again itself, and is heard.
const STORE_DEADLINE: Duration = Duration::from_secs(30);
/// When the process ends although a store that is away has not said its last words. Nothing is lost by
/// that: what is not stored is not confirmed.
const END_MAX: Duration = Duration::from_millis(4800);

/// Streams the WAL of one cluster until `cancel`; the stores have a token of their own.
pub(super) fn stream(apps: &[App], cancel: &Token) -> Result<()> {
    let [app] = apps else {
        return Err(Error::usage("a stream is of one cluster").hint("--cluster names one"));
    };
    let whose = app.whose();
    let say = |text: &str| {
        if let Some(warning) = text.strip_prefix("warning: ") {
            note(&format!("warning: {whose}{warning}"));
        } else {
            note(&format!("{whose}{text}"));
        }
    };
    let _hook = cancel.on_cancel(|| {
        std::thread::spawn(|| {
            std::thread::sleep(END_MAX);
            note("warning: a store did not take the last WAL in time; the slot holds it");
            std::process::exit(0);
        });
    });
    stream_of(app, (cancel, &app.cancel), &say)
}

/// Streams the WAL of a cluster until the first token is cancelled, which cancels the second one for what the
/// stores then still have to do.
pub(super) fn stream_of(
    app: &App,
    (cancel, stores_cancel): (&Token, &Token),
    say: &(dyn Fn(&str) + Sync),
) -> Result<()> {
    let store = |name: Option<&str>| app.store_within(name, Some(STORE_DEADLINE));
    let first = store(None)?;
    let others: Result<Vec<Box<dyn Store>>> = app
        .others()
        .into_iter()
        .map(|name| store(Some(name)))
        .collect();
    let stores = &app.config.stores;
    let dir_of = |place: &Place| match place {
        Place::Local(dir) => Some(dir.clone()),
        Place::S3(_) => None,
    };
    let first_dir = stores.first().and_then(|store| dir_of(&store.place));
    wal::run(&Stream {
        options: options(app)?,
        dir: &app.config.dir,
        first: first.as_ref(),
        first_dir: first_dir.as_deref(),
        others: &others?,
        others_local: stores
            .iter()
            .skip(1)
            .map(|store| dir_of(&store.place).is_some())
            .collect(),
        target: &|| app.target(),
        sql_target: &|| app.pin(&[]),
        hosts: &|| Ok(app.target()?.each_host()),
        cancel,
        stores_cancel,
        say,
    })
}

fn options(app: &App) -> Result<Options> {
    let wal = &app.config.wal;
    Ok(Options {
        slot: SlotName::new(&wal.slot_name)?,
        flush_interval: wal.flush_interval,
        slot_policy: wal.slot_policy,
        slot_limit_bytes: wal.slot_limit_bytes,
        backlog_max_bytes: wal.backlog_max_bytes,
        codec: wal_codec(app.codec),
        crypt: app.crypt.clone(),
    })
}

pub(super) fn slot(app: &App, verb: &Slot, global: &Global, out: &mut Out<'_>) -> Result<()> {
    let name = options(app)?.slot;
    if verb.act == Some(SlotAct::Drop) {
        let dropped = drop_everywhere(app, &name)?;
        if global.json {
            out.json(json!({"slot": name.as_str(), "dropped": dropped}));
            return Ok(());
        }
        return print(&if dropped {
            format!(
                "{}dropped the slot {name}: the server keeps no WAL for pgark any more.\nWhat was not received is lost: a stream that starts now may find a gap, and a base backup then begins a new window.\n",
                app.whose()
            )
        } else {
            format!("{}there is no slot {name}\n", app.whose())
        });
    }
    let mut client = Client::connect(&app.pin(&[])?)?;
    let seen = wal::report(&mut client, &name)?;
    if global.json {
        out.json(json!({
            "slot": name.as_str(),
            "exists": seen.is_some(),
            "active": seen.as_ref().is_some_and(|seen| seen.active),
            "wal_status": seen.as_ref().and_then(|seen| seen.wal_status.clone()),
            "restart_lsn": seen.as_ref().and_then(|seen| seen.restart),
            "retained_bytes": seen.as_ref().map(|seen| seen.retained_bytes),
            "safe_bytes": seen.as_ref().and_then(|seen| seen.safe_bytes),
            "synchronous": seen.as_ref().is_some_and(|seen| seen.synchronous),
        }));
        return Ok(());
    }
    print(&format!("{}{}", app.whose(), page(&name, seen.as_ref())))
}

/// On every host that is listed: standbys have one each. One that is away keeps its slot, and is named.
fn drop_everywhere(app: &App, name: &SlotName) -> Result<bool> {
    let mut dropped = wal::drop_slot(&app.pin(&[])?, name)?;
    let hosts = app.target()?.each_host();
    for host in hosts.iter().filter(|_| hosts.len() > 1) {
        match app
            .pin_to(host, &[])
            .and_then(|host| wal::drop_slot(&host, name))
        {
            Ok(there) => dropped |= there,
            Err(error) => note(&format!(
                "warning: {}:{}: the slot {name} may still be there, and then holds WAL back: {error}",
                host.host(),
                host.port()
            )),
        }
    }
    Ok(dropped)
}

fn page(name: &SlotName, seen: Option<&SlotReport>) -> String {
    let Some(seen) = seen else {
        return format!("there is no slot {name}; WAL_STREAMING=on makes it\n");
    };
    let mut text = format!("slot {name}\n");
    let streaming = if seen.active {
        "a stream is connected"
    } else {
        "nobody streams"
    };
    let _ = writeln!(text, "  state          {streaming}");
    if let Some(status) = &seen.wal_status {
        let _ = writeln!(text, "  wal_status     {status}");
    }
    if let Some(restart) = seen.restart {
        let _ = writeln!(text, "  restart_lsn    {restart}");
    }
    let _ = writeln!(text, "  WAL it holds   {}", ByteSize(seen.retained_bytes));
    let bound = seen.safe_bytes.map_or_else(
        || "none: max_slot_wal_keep_size = -1".to_owned(),
        |bytes| format!("{} more", ByteSize(bytes)),
    );
    let _ = writeln!(text, "  server's bound {bound}");
    if !seen.active {
        text.push_str(
            "`pgark slot drop` drops it: the server keeps no WAL for pgark any more, and what was not received is lost\n",
        );
    }
    text
}
