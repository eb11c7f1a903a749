//! A real connection pooler between pgark and the server: refused where it splits sessions, and
//! no hindrance where it keeps them whole.

use std::net::TcpStream;
use std::process::{Child, Stdio};

use crate::support::{PASSWORD, Pgark, Server, TempDir, as_server_user, until};
use crate::trip::only_dump;

/// PgBouncer in front of a server, ended on drop.
pub(crate) struct Bouncer {
    child: Child,
    pub(crate) port: u16,
    _place: TempDir,
}

impl Bouncer {
    pub(crate) fn start(server: &Server, mode: &str) -> Bouncer {
        let place = TempDir::new();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let users = place.join("users");
        std::fs::write(&users, format!("\"postgres\" \"{PASSWORD}\"\n")).unwrap();
        let config = place.join("pgbouncer.ini");
        std::fs::write(
            &config,
            format!(
                "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
                 unix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {}\npool_mode = {mode}\ndefault_pool_size = 20\n\
                 server_round_robin = 1\nlogfile = {}\n",
                server.port,
                users.display(),
                place.join("log").display(),
            ),
        )
        .unwrap();
        place.give_to_postgres();
        for file in [&users, &config] {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o644)).unwrap();
        }
        let mut command = as_server_user("/usr/sbin/pgbouncer");
        let child = command
            .arg("-q")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until("pgbouncer to listen", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Bouncer {
            child,
            port,
            _place: place,
        }
    }
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_pooler_that_splits_sessions_is_refused_and_one_that_keeps_them_is_not() {
    let server = Server::start(15);
    server.createdb("app");
    server.psql(
        "app",
        "CREATE TABLE t AS SELECT generate_series(1, 100) AS i",
    );
    server.psql(
        "postgres",
        &format!("ALTER ROLE postgres PASSWORD '{PASSWORD}'"),
    );
    let store = TempDir::new();
    let pgark = |verb: &[&str], bouncer: &Bouncer| {
        Pgark::new(verb)
            .server(&server)
            .store(store.path())
            .env("DB_NAME", "app")
            .env("DB_PORT", bouncer.port.to_string())
    };
    let splits = Bouncer::start(&server, "transaction");
    // Also with a warm pool, in which a stranger's process is free at once.
    for _ in 0..4 {
        let done = pgark(&["backup"], &splits).run().assert_code(1);
        done.assert_says("pooler in transaction mode")
            .assert_says("hint:");
    }
    assert!(only_dump(store.path()).is_none());
    let keeps = Bouncer::start(&server, "session");
    pgark(&["backup"], &keeps).run().assert_code(0);
    let restore = ["restore", "latest", "--into", "back"];
    pgark(&restore, &splits)
        .run()
        .assert_code(1)
        .assert_says("pooler in transaction mode");
    pgark(&restore, &keeps).run().assert_code(0);
    assert_eq!(server.psql("back", "SELECT count(*) FROM t"), "100");
}
