//! The connection layer against a real PostgreSQL 15: every way to log in, every way to be
//! refused, and COPY under bad luck. One throwaway server serves most tests; it ends with the
//! test process, however that ends.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use pgark::error::{Error, Result};
use pgark::postgres::{Client, ConnInfo, Target};

const BIN: &str = "/usr/lib/postgresql/15/bin";

const HBA: &str = "\
local   all postgres trust
local   all trusted  trust
local   all all      peer
hostssl all certuser 127.0.0.1/32 cert
hostssl all scramtls 127.0.0.1/32 scram-sha-256
hostssl all clear    127.0.0.1/32 password
host    all md5user  127.0.0.1/32 md5
hostssl all tlsonly  127.0.0.1/32 trust
hostnossl all plain  127.0.0.1/32 trust
host    all scram    127.0.0.1/32 scram-sha-256
";

const ROLES: &str = "\
SET password_encryption = 'scram-sha-256';
CREATE ROLE scram LOGIN PASSWORD 'pä55 \"w''ord';
CREATE ROLE scramtls LOGIN PASSWORD 'secret';
CREATE ROLE clear LOGIN PASSWORD 'secret';
SET password_encryption = 'md5';
CREATE ROLE md5user LOGIN PASSWORD 'secret';
CREATE ROLE certuser LOGIN; CREATE ROLE tlsonly LOGIN; CREATE ROLE plain LOGIN;
CREATE ROLE trusted LOGIN; CREATE ROLE root LOGIN;
";

struct Server {
    folder: PathBuf,
    port: u16,
    // Its stdin is the server's lease of life.
    _keeper: Child,
}

fn as_postgres(script: &str) -> Command {
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args([
            "--reuid=postgres",
            "--regid=postgres",
            "--clear-groups",
            "sh",
        ]);
        command
    } else {
        Command::new("sh")
    };
    command
        .args(["-ec", script])
        .env("BIN", BIN)
        .env("PATH", "/usr/bin:/bin")
        .current_dir("/");
    command
}

fn run(mut command: Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// `openssl` certificates: `kind` says how the server's is made.
const CERTIFICATES: &str = r#"
cd "$DIR"
ca() { openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=$1" -keyout $1.key -out $1.crt; }
leaf() { openssl req -newkey rsa:2048 -nodes -subj "/CN=$2" -keyout $1.key -out $1.csr; }
ca ca; ca otherca
case "$KIND" in
  v3) leaf server server.test; printf 'subjectAltName=DNS:db.test,DNS:*.wild.test,IP:127.0.0.1' > san
      openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -sha384 -extfile san -out server.crt ;;
  v1) leaf server db.test
      openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out server.crt ;;
  self) openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=db.test -keyout server.key -out server.crt ;;
esac
leaf client certuser
openssl x509 -req -in client.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out client.crt
chmod 600 *.key
"#;

impl Server {
    fn start(kind: &str) -> Server {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let folder =
            std::env::temp_dir().join(format!("pgark-connection-{}-{port}", std::process::id()));
        run(as_postgres(&format!("mkdir -m 755 {}", folder.display())));
        let mut make = as_postgres(CERTIFICATES);
        make.env("DIR", &folder).env("KIND", kind);
        run(make);
        let mut init = as_postgres(
            r#"$BIN/initdb -N -D "$DIR/data" -U postgres -A trust -E UTF8 --locale=C.UTF-8; printf '%s' "$HBA" > "$DIR/data/pg_hba.conf"
            cat >> "$DIR/data/postgresql.conf" <<END
listen_addresses = '127.0.0.1'
port = $PORT
unix_socket_directories = '$DIR'
fsync = off
ssl = on
ssl_cert_file = '$DIR/server.crt'
ssl_key_file = '$DIR/server.key'
ssl_ca_file = '$DIR/ca.crt'
END"#,
        );
        init.env("DIR", &folder)
            .env("HBA", HBA)
            .env("PORT", port.to_string());
        run(init);
        let mut keeper = as_postgres(
            r#"trap '' HUP INT TERM; $BIN/postgres -D "$DIR/data" >"$DIR/log" 2>&1 & pid=$!; read line || true; kill -QUIT $pid; wait $pid || true; rm -rf "$DIR""#,
        );
        let keeper = keeper
            .env("DIR", &folder)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let server = Server {
            folder,
            port,
            _keeper: keeper,
        };
        server.wait_until_ready();
        server.admin().execute(ROLES).unwrap();
        server.admin().execute("CREATE DATABASE app").unwrap();
        server
    }

    /// The server that tests share.
    fn shared() -> &'static Server {
        static SERVER: OnceLock<Server> = OnceLock::new();
        SERVER.get_or_init(|| Server::start("v3"))
    }

    fn wait_until_ready(&self) {
        let end = Instant::now() + Duration::from_secs(60);
        while let Err(error) = Client::connect(&self.target(&self.socket("postgres"))) {
            assert!(Instant::now() < end, "{error}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn socket(&self, user: &str) -> String {
        format!(
            "host={} port={} user={user} dbname=postgres",
            self.folder.display(),
            self.port
        )
    }

    fn admin(&self) -> Client {
        Client::connect(&self.target(&self.socket("postgres"))).unwrap()
    }

    fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    #[allow(clippy::unused_self, reason = "reads as the server's")]
    fn target(&self, text: &str) -> Target {
        ConnInfo::parse(text).unwrap().resolve().unwrap()
    }

    /// Connects to 127.0.0.1 as `db.test` unless `rest` says otherwise.
    fn tcp(&self, rest: &str) -> Result<Client> {
        let host = if rest.contains("host=") {
            ""
        } else {
            "host=db.test"
        };
        let text = format!(
            "{host} hostaddr=127.0.0.1 port={} dbname=app passfile=/none {rest}",
            self.port
        );
        ConnInfo::parse(&text)?
            .resolve()
            .and_then(|target| Client::connect(&target))
    }

    fn refusal(&self, rest: &str) -> Error {
        self.tcp(rest).map(drop).unwrap_err()
    }
}

fn single(client: &mut Client, sql: &str) -> String {
    client.query(sql).unwrap()[0].str(0).unwrap().to_owned()
}

#[test]
fn scram_over_tls_binds_to_the_channel() {
    let server = Server::shared();
    let mut client = server
        .tcp("user=scramtls password=secret channel_binding=require")
        .unwrap();
    assert!(client.is_encrypted());
    assert_eq!(single(&mut client, "SELECT current_user"), "scramtls");
    assert_eq!(
        single(
            &mut client,
            "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        ),
        "t"
    );
    assert!(client.server_version_num() >= 150_000);
    assert_eq!(single(&mut client, "SHOW application_name"), "pgark");
    server
        .tcp("user=scramtls password=secret channel_binding=disable")
        .unwrap();
    let error = server.refusal("user=scram password=x sslmode=disable channel_binding=require");
    assert!(error.fact.contains("not encrypted"), "{error}");
    let error = server.refusal("user=clear password=secret channel_binding=require");
    assert!(
        error.fact.contains("channel binding is required"),
        "{error}"
    );
}

#[test]
fn every_password_method_works_and_tls_12_too() {
    let server = Server::shared();
    for login in [
        "user=md5user password=secret sslmode=disable",
        "user=md5user password=secret sslmode=require require_auth=md5",
        "user=clear password=secret sslmode=require",
        "user=scram password='pä55 \"w\\'ord' sslmode=disable",
        "user=scramtls password=secret ssl_max_protocol_version=TLSv1.2 channel_binding=require",
        "user=scramtls password=secret require_auth=!password,!md5",
    ] {
        let mut client = server
            .tcp(login)
            .unwrap_or_else(|error| panic!("{login}: {error}"));
        assert_eq!(single(&mut client, "SELECT 1"), "1", "{login}");
    }
    let error = server.refusal("user=clear password=secret require_auth=scram-sha-256");
    assert!(error.fact.contains("require_auth"), "{error}");
}

#[test]
fn wrong_and_missing_passwords_say_whose_and_where_from() {
    let server = Server::shared();
    for user in ["scram", "scramtls", "clear", "md5user"] {
        let mut info =
            ConnInfo::parse(&format!("host=127.0.0.1 port={} dbname=app", server.port)).unwrap();
        info.set("user", user).unwrap();
        info.set("password", "hunter2").unwrap();
        info.set_password_origin("DB_PASSWORD_FILE /run/secrets/db_password");
        let error = Client::connect(&info.resolve().unwrap())
            .map(drop)
            .unwrap_err();
        assert!(error.is_sqlstate("28P01"), "{error:?}");
        let hint = error.hint.clone().unwrap();
        assert!(
            hint.contains(user)
                && hint.contains("/run/secrets/db_password")
                && hint.contains("DB_PASSWORD"),
            "{hint}"
        );
        assert!(!error.to_string().contains("hunter2"));
    }
    let error = server.refusal("user=scram");
    assert!(error.fact.contains("none was given"), "{error}");
}

#[test]
fn a_client_certificate_logs_in_and_its_lack_is_explained() {
    let server = Server::shared();
    // The key belongs to postgres; root may read it, whoever owns it, as long as nobody else may.
    let (cert, key) = (server.file("client.crt"), server.file("client.key"));
    let mut client = server
        .tcp(&format!("user=certuser sslcert={cert} sslkey={key}"))
        .unwrap();
    assert_eq!(
        single(
            &mut client,
            "SELECT client_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        ),
        "/CN=certuser"
    );
    let error = server.refusal("user=certuser sslmode=require");
    assert!(error.fact.contains("client certificate"), "{error}");
    let error = server.refusal(&format!("user=certuser sslcert={cert} sslkey=/none.key"));
    assert!(error.fact.contains("/none.key"), "{error}");
    let error = server.refusal(&format!(
        "user=certuser sslcert={cert} sslkey={}",
        server.file("server.key")
    ));
    assert!(error.fact.contains("does not belong"), "{error}");
    let open = server.file("open.key");
    run(as_postgres(&format!("cp {key} {open}; chmod 644 {open}")));
    let error = server.refusal(&format!("user=certuser sslcert={cert} sslkey={open}"));
    assert!(error.fact.contains("0644"), "{error}");
}

#[test]
fn a_client_certificate_of_a_stranger_is_refused_with_a_hint() {
    let server = Server::shared();
    let (cert, key) = (server.file("otherca.crt"), server.file("otherca.key"));
    let error = server.refusal(&format!(
        "user=certuser sslmode=require sslcert={cert} sslkey={key}"
    ));
    assert!(error.to_string().contains("certificate"), "{error}");
}

#[test]
fn certificates_are_verified_as_the_mode_says() {
    let server = Server::shared();
    let (ca, other) = (server.file("ca.crt"), server.file("otherca.crt"));
    for good in [
        format!("sslmode=verify-full sslrootcert={ca}"),
        format!("sslmode=verify-full sslrootcert={ca} host=a.wild.test"),
        format!("sslmode=verify-full sslrootcert={ca} host=127.0.0.1"),
        format!("sslmode=verify-ca sslrootcert={ca} host=other.test"),
        "sslmode=require host=other.test".to_owned(),
        format!("sslmode=prefer sslrootcert={ca}"),
        "sslmode=allow".to_owned(),
    ] {
        let client = server.tcp(&format!("user=tlsonly {good}"));
        assert!(
            client
                .unwrap_or_else(|error| panic!("{good}: {error}"))
                .is_encrypted()
        );
    }
    for (bad, why) in [
        (
            format!("sslmode=verify-full sslrootcert={ca} host=other.test"),
            "is for db.test",
        ),
        // A common name does not count beside alternative names.
        (
            format!("sslmode=verify-full sslrootcert={ca} host=server.test"),
            "not for server.test",
        ),
        (
            format!("sslmode=verify-ca sslrootcert={other}"),
            "is not trusted",
        ),
        // A root that exists counts in require as well.
        (
            format!("sslmode=require sslrootcert={other}"),
            "is not trusted",
        ),
        (
            "sslmode=verify-full sslrootcert=system".to_owned(),
            "is not trusted",
        ),
    ] {
        let error = server.refusal(&format!("user=tlsonly {bad}"));
        assert!(
            error.fact.contains(why) && error.hint.is_some(),
            "{bad}: {error}"
        );
    }
}

#[test]
fn certificates_made_by_postgresqls_own_manual_are_accepted() {
    for (kind, root) in [("v1", "ca.crt"), ("self", "server.crt")] {
        let server = Server::start(kind);
        let (root, other) = (server.file(root), server.file("otherca.crt"));
        for version in ["TLSv1.2", "TLSv1.3"] {
            let login = format!("user=tlsonly ssl_max_protocol_version={version}");
            for mode in ["require", "verify-ca", "verify-full"] {
                let client = server.tcp(&format!("{login} sslmode={mode} sslrootcert={root}"));
                client.unwrap_or_else(|error| panic!("{kind} {mode} {version}: {error}"));
            }
            server.tcp(&format!("{login} sslmode=require")).unwrap();
            let error = server.refusal(&format!("{login} sslmode=verify-ca sslrootcert={other}"));
            assert!(error.fact.contains("certificate"), "{error}");
        }
        let error = server.refusal(&format!(
            "user=tlsonly sslmode=verify-full sslrootcert={root} host=wrong.test"
        ));
        assert!(
            error.fact.contains("is for db.test, not for wrong.test"),
            "{error}"
        );
    }
}

#[test]
fn encryption_is_retried_only_where_the_mode_allows() {
    let server = Server::shared();
    let error = server.refusal("user=tlsonly sslmode=disable");
    assert!(error.is_sqlstate("28000"), "{error}");
    assert!(
        error.hint.as_deref().unwrap().contains("pg_hba.conf"),
        "{error}"
    );
    assert!(
        !server
            .tcp("user=plain sslmode=prefer")
            .unwrap()
            .is_encrypted()
    );
    assert!(
        !server
            .tcp("user=plain sslmode=allow")
            .unwrap()
            .is_encrypted()
    );
    assert!(
        server
            .refusal("user=plain sslmode=require")
            .is_sqlstate("28000")
    );
    assert!(server.refusal("user=nobody").is_sqlstate("28000"));
}

#[test]
fn sockets_serve_trust_and_peer() {
    let server = Server::shared();
    let mut client = Client::connect(&server.target(&server.socket("trusted"))).unwrap();
    assert_eq!(single(&mut client, "SELECT current_user"), "trusted");
    if rustix::process::geteuid().is_root() {
        Client::connect(&server.target(&server.socket("root"))).unwrap();
    }
    let error = Client::connect(&server.target(&server.socket("scram")))
        .map(drop)
        .unwrap_err();
    assert!(error.is_sqlstate("28000"), "{error}");
    let peer = server.socket("trusted") + " requirepeer=nobody";
    assert!(Client::connect(&server.target(&peer)).is_err());
}

#[test]
fn a_missing_database_and_a_dead_host_are_named() {
    let server = Server::shared();
    let error = server.refusal("user=plain dbname=nope");
    assert!(error.is_sqlstate("3D000") && error.hint.unwrap().contains("nope"));
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let target = server.target(&format!(
        "host=localhost hostaddr=127.0.0.1 port={port} user=u"
    ));
    let error = Client::connect(&target).map(drop).unwrap_err();
    assert_eq!(
        error.fact,
        format!("cannot connect to localhost:{port} (127.0.0.1): connection refused")
    );
    // A host that accepts and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let started = Instant::now();
    let target = server.target(&format!(
        "host=127.0.0.1 port={port} user=u connect_timeout=1"
    ));
    assert!(Client::connect(&target).is_err());
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[test]
fn the_next_host_serves_when_the_first_is_down_and_the_choice_is_pinned() {
    let server = Server::shared();
    let dead = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let target = server.target(&format!(
        "host=127.0.0.1,127.0.0.1 port={dead},{} user=plain dbname=app target_session_attrs=read-write",
        server.port
    ));
    let client = Client::connect(&target).unwrap();
    let pinned = client.pinned();
    assert_eq!((pinned.port(), pinned.database()), (server.port, "app"));
    Client::connect(&pinned.with_database("postgres")).unwrap();
    let standby = format!(
        "host=127.0.0.1 port={} user=plain dbname=app target_session_attrs=standby",
        server.port
    );
    let error = Client::connect(&server.target(&standby))
        .map(drop)
        .unwrap_err();
    assert!(error.fact.contains("not standby"), "{error}");
    let prefer = standby.replace("attrs=standby", "attrs=prefer-standby");
    Client::connect(&server.target(&prefer)).unwrap();
}

#[test]
fn password_and_service_files_serve_as_in_libpq_and_psql_agrees() {
    let server = Server::shared();
    let home = std::env::temp_dir().join(format!("pgark-home-{}", std::process::id()));
    std::fs::create_dir_all(&home).unwrap();
    let write = |name: &str, text: String| {
        let path = home.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    let port = server.port;
    write(
        ".pgpass",
        format!("127.0.0.1:{port}:postgres:scram:wrong\n127.0.0.1:{port}:app:scram:pä55 \"w'ord\n"),
    );
    write(
        ".pg_service.conf",
        format!("[prod]\nhost=127.0.0.1\nport={port}\nuser=scram\n"),
    );
    let home_text = home.display().to_string();
    let env = |name: &str| match name {
        "HOME" => Some(home_text.clone()),
        "PGSERVICE" => Some("prod".to_owned()),
        "PGDATABASE" => Some("app".to_owned()),
        _ => None,
    };
    let target = ConnInfo::new()
        .or_environment(&env)
        .unwrap()
        .resolve()
        .unwrap();
    let client = Client::connect(&target).unwrap();
    // The password belongs to the database: another one has another line.
    let error = Client::connect(&target.with_database("postgres"))
        .map(drop)
        .unwrap_err();
    assert!(error.hint.unwrap().contains(".pgpass"));
    psql_connects_with_the_same_words(&client.pinned(), &write("passfile", String::new()));
    std::fs::set_permissions(home.join(".pgpass"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let target = ConnInfo::new()
        .or_environment(&env)
        .unwrap()
        .resolve()
        .unwrap();
    let error = Client::connect(&target).map(drop).unwrap_err();
    assert!(error.hint.unwrap().contains("0644"));
    std::fs::remove_dir_all(home).unwrap();
}

fn psql_connects_with_the_same_words(target: &Target, passfile: &Path) {
    let mut file = std::fs::File::options().write(true).open(passfile).unwrap();
    file.write_all(&target.passfile_line().unwrap()).unwrap();
    let conninfo = target.conninfo(Some(passfile));
    assert!(!conninfo.contains("ord"), "{conninfo}");
    let output = Command::new(format!("{BIN}/psql"))
        .env_clear()
        .args(["-XAtc", "SELECT current_user", &conninfo])
        .output()
        .unwrap();
    assert_eq!(
        output.stdout,
        b"scram\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn errors_keep_the_session_and_carry_what_the_server_said() {
    let mut client = Server::shared().admin();
    let error = client.query("SELECT 1/0").unwrap_err();
    assert_eq!(
        (error.fact.as_str(), error.sqlstate.as_deref()),
        ("ERROR: division by zero", Some("22012"))
    );
    let error = client
        .query("SELECT nam FROM (SELECT 1 AS name) s")
        .unwrap_err();
    assert!(error.hint.unwrap().contains("name"));
    let rows = client
        .query("SELECT 1; SELECT NULL, 'x', true; SET work_mem='4MB'")
        .unwrap();
    assert_eq!(
        (rows.len(), rows[0].opt_str(0), rows[0].bool(2).unwrap()),
        (1, None, true)
    );
    client
        .execute("DO $$ BEGIN RAISE NOTICE 'hello'; END $$")
        .unwrap();
    assert_eq!(client.take_notices(), ["NOTICE: hello"]);
    client.execute("SET client_encoding = 'LATIN1'").unwrap();
    assert_eq!(client.parameter("client_encoding"), Some("LATIN1"));
    assert_eq!(
        client.query("SELECT chr(228)").unwrap()[0].bytes(0),
        Some(&b"\xe4"[..])
    );
    assert!(
        client.copy_in("SELECT 1").is_err()
            && client.copy_out("SELECT 1", &mut |_, _| Ok(())).is_err()
    );
    assert!(client.execute("COPY pg_class FROM STDIN").is_err());
    assert_eq!(single(&mut client, "SELECT 7"), "7");
}

#[test]
fn a_row_of_300_mb_streams_through_bounded_memory() {
    let mut client = Server::shared()
        .tcp("user=tlsonly sslmode=require")
        .unwrap();
    let before = peak_kib();
    let (mut bytes, mut ends) = (0_u64, 0);
    let rows = client
        .copy_out(
            "COPY (SELECT repeat('x', 300 * 1024 * 1024) UNION ALL SELECT 'y') TO STDOUT",
            &mut |piece, last| {
                bytes += piece.len() as u64;
                ends += u64::from(last);
                Ok(())
            },
        )
        .unwrap();
    assert_eq!((rows, ends, bytes), (2, 2, 300 * 1024 * 1024 + 1 + 2));
    assert!(
        peak_kib() - before < 48 * 1024,
        "{before} to {} KiB",
        peak_kib()
    );
}

fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_failing_sink_cancels_the_copy_and_keeps_the_session() {
    for login in ["user=plain sslmode=disable", "user=tlsonly sslmode=require"] {
        let mut client = Server::shared().tcp(login).unwrap();
        let mut seen = 0;
        let error = client
            .copy_out(
                "COPY (SELECT generate_series(1, 1000000000)) TO STDOUT",
                &mut |_, _| {
                    seen += 1;
                    if seen == 5000 {
                        Err(Error::failed("disk full"))
                    } else {
                        Ok(())
                    }
                },
            )
            .unwrap_err();
        assert_eq!(error.fact, "disk full");
        assert_eq!(single(&mut client, "SELECT 1"), "1");
    }
}

#[test]
fn copy_in_loads_and_its_errors_are_noticed_midway() {
    for login in ["user=plain sslmode=disable", "user=tlsonly sslmode=require"] {
        let mut client = Server::shared().tcp(login).unwrap();
        client.execute("CREATE TEMP TABLE t (n int)").unwrap();
        let mut copy = client.copy_in("COPY t FROM STDIN").unwrap();
        let mut lines = String::new();
        for n in 0..100_000 {
            let _ = writeln!(lines, "{n}");
        }
        copy.send(lines.as_bytes()).unwrap();
        assert_eq!(copy.finish().unwrap(), 100_000);
        // Dropped unfinished: nothing is loaded.
        let mut copy = client.copy_in("COPY t FROM STDIN").unwrap();
        copy.send(b"1\n2\n").unwrap();
        drop(copy);
        assert_eq!(single(&mut client, "SELECT count(*) FROM t"), "100000");
        let mut copy = client.copy_in("COPY t FROM STDIN").unwrap();
        copy.send(b"oops\n").unwrap();
        let mut sent = 0_u64;
        let error = loop {
            match copy.send(lines.as_bytes()) {
                Ok(()) => sent += lines.len() as u64,
                Err(error) => break error,
            }
            assert!(sent < 1 << 30, "the error is never noticed");
        };
        assert!(
            error.is_sqlstate("22P02") && error.fact.contains("COPY t, line 1"),
            "{error}"
        );
        drop(copy);
        let mut copy = client.copy_in("COPY t FROM STDIN").unwrap();
        copy.send(b"oops\n").unwrap();
        assert!(copy.finish().is_err());
        assert_eq!(single(&mut client, "SELECT count(*) FROM t"), "100000");
    }
}

#[test]
fn copy_in_does_not_hang_on_a_server_that_floods_notices() {
    let mut client = Server::shared().tcp("user=plain sslmode=disable").unwrap();
    client
        .execute(
            "CREATE TEMP TABLE t (n int);
             CREATE FUNCTION pg_temp.shout() RETURNS trigger LANGUAGE plpgsql AS
               $$ BEGIN RAISE NOTICE '%', repeat('x', 1000); RETURN new; END $$;
             CREATE TRIGGER shout BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION pg_temp.shout()",
        )
        .unwrap();
    let mut copy = client.copy_in("COPY t FROM STDIN").unwrap();
    for _ in 0..20 {
        copy.send("1\n".repeat(2_000).as_bytes()).unwrap();
    }
    assert_eq!(copy.finish().unwrap(), 40_000);
    assert!(client.take_notices().len() <= 1_001);
}

#[test]
fn another_thread_can_cancel_a_query_or_close_the_session() {
    for login in ["user=plain sslmode=disable", "user=tlsonly sslmode=require"] {
        let server = Server::shared();
        let mut client = server.tcp(login).unwrap();
        let canceller = client.canceller();
        let thread = std::thread::spawn(move || {
            let error = client.query("SELECT pg_sleep(60)").unwrap_err();
            (client, error)
        });
        wait_for_sleep(server, &canceller, true);
        let (mut client, error) = thread.join().unwrap();
        assert!(error.is_sqlstate("57014"), "{error}");
        let canceller = client.canceller();
        let thread = std::thread::spawn(move || client.query("SELECT pg_sleep(60)").unwrap_err());
        wait_for_sleep(server, &canceller, false);
        assert!(thread.join().unwrap().fact.contains("pgark closed it"));
    }
}

/// Waits until a sleep runs, then stops it.
fn wait_for_sleep(server: &Server, canceller: &pgark::postgres::Canceller, cancel: bool) {
    let mut admin = server.admin();
    let pid: String = format!("{canceller:?}")
        .chars()
        .filter(char::is_ascii_digit)
        .collect();
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND state = 'active' AND wait_event = 'PgSleep'"
    );
    while single(&mut admin, &sql) != "1" {
        std::thread::sleep(Duration::from_millis(10));
    }
    if cancel {
        canceller.cancel();
    } else {
        canceller.close();
    }
}

#[test]
fn a_server_killed_in_mid_copy_is_noticed() {
    let server = Server::start("v3");
    for (login, signal) in [
        ("user=plain sslmode=disable", "KILL"),
        ("user=tlsonly sslmode=require", "KILL"),
        ("user=tlsonly sslmode=require", "TERM"),
    ] {
        server.wait_until_ready();
        let mut client = server.tcp(login).unwrap();
        let mut witness = server.admin();
        let pid = client.backend_pid();
        let mut seen = 0_u64;
        let error = client
            .copy_out(
                "COPY (SELECT generate_series(1, 1000000000)) TO STDOUT",
                &mut |_, _| {
                    seen += 1;
                    if seen == 1000 {
                        run(as_postgres(&format!("kill -{signal} {pid}")));
                    }
                    Ok(())
                },
            )
            .unwrap_err();
        if signal == "TERM" {
            assert!(
                error.is_sqlstate("57P01") && error.hint.is_some(),
                "{error:?}"
            );
        } else {
            assert!(
                error.fact.contains("the server closed the connection"),
                "{error:?}"
            );
            // One killed process restarts the whole server: every session ends.
            while witness.query("SELECT 1").is_ok() {}
        }
        let again = client.query("SELECT 1").unwrap_err();
        assert!(again.fact.contains("not usable any more"), "{again}");
    }
    // The same in a COPY IN.
    server.wait_until_ready();
    let mut client = server.tcp("user=plain sslmode=disable").unwrap();
    client.execute("CREATE TEMP TABLE t (x text)").unwrap();
    let pid = client.backend_pid();
    let mut copy = client.copy_in("COPY t FROM STDIN").unwrap();
    copy.send(b"x\n").unwrap();
    run(as_postgres(&format!("kill -KILL {pid}")));
    let block = "x\n".repeat(100_000);
    let end = Instant::now() + Duration::from_secs(60);
    let error = loop {
        assert!(Instant::now() < end);
        if let Err(error) = copy.send(block.as_bytes()) {
            break error;
        }
    };
    assert!(
        error.fact.contains("the server closed the connection"),
        "{error}"
    );
}
