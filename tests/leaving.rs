//! What ends a session, and what must not.

use std::time::{Duration, Instant};

use crate::support::{PASSWORD, Server, until};
use pgark::postgres::{Client, ConnInfo, Target};

fn target(server: &Server, user: &str, database: &str) -> Target {
    let text = format!(
        "host=127.0.0.1 port={} user={user} password='{PASSWORD}' dbname={database}",
        server.port
    );
    ConnInfo::parse(&text).unwrap().resolve().unwrap()
}

/// A role's timeouts are made for applications.
#[test]
fn no_timeout_of_the_role_ends_a_session_or_a_statement() {
    let server = Server::start(17);
    server.psql(
        "postgres",
        &format!("CREATE ROLE hasty LOGIN PASSWORD '{PASSWORD}'"),
    );
    for setting in [
        "statement_timeout",
        "lock_timeout",
        "transaction_timeout",
        "idle_session_timeout",
        "idle_in_transaction_session_timeout",
    ] {
        server.psql(
            "postgres",
            &format!("ALTER ROLE hasty SET {setting} = '300ms'"),
        );
    }
    let mut client = Client::connect(&target(&server, "hasty", "postgres")).unwrap();
    client.query("SELECT pg_sleep(0.6)").unwrap();
    std::thread::sleep(Duration::from_millis(600));
    client.execute("BEGIN").unwrap();
    std::thread::sleep(Duration::from_millis(600));
    client.query("SELECT pg_sleep(0.1)").unwrap();
    client.execute("COMMIT").unwrap();
}

/// A session that is shut while its window is closed must be reset: closed in peace, the server
/// waits to send for minutes, its locks in hand.
#[test]
fn an_abandoned_copy_ends_on_the_server_at_once() {
    let server = Server::start(15);
    server.psql(
        "postgres",
        &format!("ALTER ROLE postgres PASSWORD '{PASSWORD}'"),
    );
    let mut client = Client::connect(&target(&server, "postgres", "postgres")).unwrap();
    let canceller = client.canceller();
    let backend = client.backend_pid();
    let waits = || {
        let sql =
            format!("SELECT coalesce(wait_event, '') FROM pg_stat_activity WHERE pid = {backend}");
        server.psql("postgres", &sql)
    };
    let mut rows = 0_u64;
    let copied = client.copy_out(
        "COPY (SELECT repeat('x', 1000) FROM generate_series(1, 100000000)) TO STDOUT",
        &mut |_, _| {
            rows += 1;
            if rows == 10 {
                until("the server to wait for us", || waits() == "ClientWrite");
                canceller.close();
            }
            Ok(())
        },
    );
    assert!(copied.is_err() && rows > 10, "{rows} rows");
    drop(client);
    let started = Instant::now();
    until("the server's session to end", || waits().is_empty());
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
}
