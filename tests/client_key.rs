//! A client certificate whose key is encrypted, by every way to name a connection: pgark and the
//! programs that it runs log in with it, and no password shows.

use std::path::Path;
use std::process::Command;

use crate::support::{Pgark, Run, Server, Setup, TempDir, run};
use crate::trip::only_dump;

/// Certificates: an authority, the server's and the client's, as PostgreSQL's manual makes them.
const MAKE: &str = r"
    set -e
    openssl req -new -x509 -days 30 -nodes -newkey rsa:2048 -subj /CN=authority -out ca.crt -keyout ca.key
    for who in localhost postgres; do
        openssl req -new -nodes -newkey rsa:2048 -subj /CN=$who -out $who.csr -keyout $who.key
        openssl x509 -req -in $who.csr -days 30 -CA ca.crt -CAkey ca.key -CAcreateserial -out $who.crt
    done
    openssl pkcs8 -topk8 -v2 aes-256-cbc -passout 'pass:s3cret key' -in postgres.key -out aes.key
    openssl pkcs8 -topk8 -v2 aes-128-cbc -v2prf hmacWithSHA1 -passout 'pass:s3cret key' -in postgres.key -out sha1.key
    openssl pkcs8 -topk8 -v2 des3 -passout 'pass:s3cret key' -in postgres.key -out des3.key
    openssl pkcs8 -topk8 -v2 aes-256-cbc -passout 'pass:s3cret key ' -in postgres.key -out blank.key
    openssl pkcs8 -topk8 -scrypt -passout 'pass:s3cret key' -in postgres.key -out scrypt.key
    openssl rsa -aes256 -traditional -passout 'pass:s3cret key' -in postgres.key -out old.key
    chmod 600 *.key
";

struct Place {
    server: Server,
    files: TempDir,
}

impl Place {
    fn new() -> Place {
        let files = TempDir::new();
        run(Command::new("sh")
            .args(["-c", MAKE])
            .current_dir(files.path()))
        .assert_code(0);
        let install = |data: &Path| {
            for name in ["localhost.crt", "localhost.key", "ca.crt"] {
                std::fs::copy(files.join(name), data.join(name)).unwrap();
                if let Some((uid, gid)) = crate::support::server_user() {
                    std::os::unix::fs::chown(data.join(name), Some(uid), Some(gid)).unwrap();
                }
            }
        };
        let server = Server::start_with(
            17,
            &Setup {
                settings: &[
                    "ssl=on",
                    "ssl_cert_file=localhost.crt",
                    "ssl_key_file=localhost.key",
                    "ssl_ca_file=ca.crt",
                ],
                hba: Some("local all all trust\nhostssl all all 127.0.0.1/32 cert\n"),
                prepare: Some(&install),
                ..Setup::default()
            },
        );
        server.createdb("app");
        server.psql("app", "CREATE TABLE t AS SELECT 1 AS a");
        Place { server, files }
    }

    fn path(&self, name: &str) -> String {
        self.files.join(name).display().to_string()
    }

    /// A backup with nothing said about the connection but what `change` says.
    fn backup(&self, change: impl FnOnce(Pgark) -> Pgark) -> Run {
        let store = self.files.join("store");
        let _ = std::fs::remove_dir_all(&store);
        let path = format!("{}:/usr/bin:/bin", self.server.bin().display());
        let done = change(Pgark::new(["backup"]).env("PATH", path).store(&store)).run();
        for text in [&done.stdout, &done.stderr] {
            assert!(!text.contains("s3cret"), "{text}");
        }
        if done.code == 0 {
            assert_eq!(
                only_dump(&store).unwrap().tables(),
                [("public.t".to_owned(), 1)]
            );
        }
        done
    }

    /// By `DB_*` variables.
    fn by_variables(&self, key: &str, password: Option<&str>) -> Run {
        self.backup(|pgark| {
            let pgark = pgark
                .env("DB_HOST", "localhost")
                .env("DB_PORT", self.server.port.to_string())
                .env("DB_USER", "postgres")
                .env("DB_NAME", "app")
                .env("DB_SSLMODE", "verify-full")
                .env("DB_SSLROOTCERT", self.path("ca.crt"))
                .env("DB_SSLCERT", self.path("postgres.crt"))
                .env("DB_SSLKEY", self.path(key));
            match password {
                Some(password) => pgark.env("DB_SSLPASSWORD", password),
                None => pgark,
            }
        })
    }
}

#[test]
fn an_encrypted_client_key_logs_pgark_and_its_programs_in() {
    let place = Place::new();
    for key in ["aes.key", "sha1.key", "des3.key", "scrypt.key"] {
        place.by_variables(key, Some("s3cret key")).assert_code(0);
    }
    // As libpq: a password beside a plain key is no matter.
    place
        .by_variables("postgres.key", Some("s3cret key"))
        .assert_code(0);
    for (key, password, said) in [
        ("aes.key", None, "it is encrypted, and no password is set"),
        ("aes.key", Some("wrong s3cret"), "it cannot be decrypted"),
        ("scrypt.key", Some("wrong s3cret"), "it cannot be decrypted"),
        ("old.key", Some("s3cret key"), "openssl pkcs8 -topk8"),
        ("blank.key", Some("s3cret key "), "ends in a blank"),
    ] {
        place
            .by_variables(key, password)
            .assert_code(2)
            .assert_says(said);
    }
}

#[test]
fn a_uri_pairs_and_a_service_name_the_same_server() {
    let place = Place::new();
    let (ca, cert, key) = (
        place.path("ca.crt"),
        place.path("postgres.crt"),
        place.path("aes.key"),
    );
    let port = place.server.port;
    let uri = format!(
        "postgresql://postgres@localhost:{port}/app?sslmode=verify-full&sslrootcert={ca}&sslcert={cert}&sslkey={key}&sslpassword=s3cret%20key"
    );
    let pairs = format!(
        "host = elsewhere.invalid hostaddr=127.0.0.1 port={port} user=postgres dbname=app sslmode=verify-ca sslrootcert='{ca}' sslcert={cert} sslkey={key} sslpassword='s3cret key'"
    );
    for text in [&uri, &pairs] {
        place
            .backup(|pgark| pgark.env("DB_CONNINFO", text))
            .assert_code(0);
    }
    let file = place.path("services");
    std::fs::write(
        &file,
        format!(
            "[mine]\n{}\n",
            pairs
                .replace(" = ", "=")
                .replace(' ', "\n")
                .replace("'s3cret\nkey'", "s3cret key")
                .replace('\'', "")
        ),
    )
    .unwrap();
    place
        .backup(|pgark| {
            pgark
                .env("DB_CONNINFO", "service=mine")
                .env("PGSERVICEFILE", &file)
        })
        .assert_code(0);
    // What a variable says goes before it, and a mistake in it is named without its text.
    let other = uri.replace(&format!(":{port}/"), ":1/");
    place
        .backup(|pgark| {
            pgark
                .env("DB_CONNINFO", other)
                .env("DB_PORT", port.to_string())
        })
        .assert_code(0);
    place
        .backup(|pgark| pgark.env("DB_CONNINFO", "host=h pasword=s3cret"))
        .assert_code(2)
        .assert_says("did you mean password?");
}
