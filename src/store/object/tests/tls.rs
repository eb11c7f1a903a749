//! Certificates: of a named authority, of an unknown one, for another name, and no TLS at all.

use super::*;
use crate::error::Error;
use crate::store::tests::Scratch;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

const EMPTY: &str = "<ListBucketResult/>";

/// An authority `ca.pem`, and `name.pem` with `name.key` signed by it.
fn certificates(dir: &Path, name: &str, alternative: &str) {
    let openssl = |arguments: &str| {
        let done = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(dir)
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
    };
    let new = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2";
    if !dir.join("ca.pem").exists() {
        openssl(&format!(
            "{new} -subj /CN=authority -keyout ca.key -out ca.pem"
        ));
    }
    openssl(&format!(
        "{new} -subj /CN=server -addext subjectAltName={alternative} -addext basicConstraints=critical,CA:FALSE \
         -CA ca.pem -CAkey ca.key -keyout {name}.key -out {name}.pem"
    ));
}

/// A server that answers every request with this.
fn serve(dir: &Path, name: &str, body: &'static str) -> u16 {
    let chain = CertificateDer::pem_file_iter(dir.join(format!("{name}.pem"))).unwrap();
    let key = PrivateKeyDer::from_pem_file(dir.join(format!("{name}.key"))).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain.map(Result::unwrap).collect(), key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = rustls::StreamOwned::new(connection, stream);
            let mut head = [0; 8 << 10];
            let length = body.len();
            // A client that does not trust us ends the connection here.
            if stream.read(&mut head).is_ok() {
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
                );
            }
        }
    });
    port
}

fn list(port: u16, ca_file: Option<&Path>) -> Result<usize, Error> {
    let options = S3Options {
        endpoint: Some(format!("https://127.0.0.1:{port}")),
        ca_file: ca_file.map(Path::to_owned),
        keys: Some(Keys {
            access_key_id: "id".to_owned(),
            secret_access_key: Secret::new("x"),
            session_token: None,
        }),
        ..S3Options::new("bucket")
    };
    let store = S3Store::open(&options, &nothing, &Token::new())?;
    Ok(store.list("")?.len())
}

#[test]
fn certificate_of_the_named_authority_is_trusted_and_no_other() {
    let scratch = Scratch::new();
    let dir = scratch.path();
    certificates(dir, "good", "IP:127.0.0.1");
    certificates(dir, "other", "DNS:elsewhere.example");
    let ca = dir.join("ca.pem");
    let good = serve(dir, "good", EMPTY);
    assert_eq!(list(good, Some(&ca)).unwrap(), 0);

    let started = std::time::Instant::now();
    let unknown = list(good, None).unwrap_err();
    let other_name = list(serve(dir, "other", EMPTY), Some(&ca)).unwrap_err();
    for error in [unknown, other_name] {
        let text = error.to_string();
        assert!(
            text.contains("cannot be trusted") && text.contains("CA file"),
            "{text}"
        );
        assert!(text.contains("certificate"), "{text}");
    }
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "there is no use in trying again"
    );
}

#[test]
fn server_without_tls_is_told() {
    let site = Site::new();
    let error = list(site.server.port, None).unwrap_err().to_string();
    assert!(
        error.contains("cannot be trusted") && error.contains("write http://"),
        "{error}"
    );
}

#[test]
fn ca_file_without_certificate_is_refused() {
    let scratch = Scratch::new();
    let path = scratch.path().join("ca.pem");
    for text in [None, Some(""), Some("-----BEGIN NOTHING-----\n")] {
        if let Some(text) = text {
            std::fs::write(&path, text).unwrap();
        }
        let error = list(1, Some(&path)).unwrap_err();
        assert!(error.fact.contains("the CA file"), "{error}");
    }
}

#[test]
fn web_identity_is_traded_for_keys_over_tls() {
    const KEYS: &str = "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>\
        <AccessKeyId>AKIDWEB</AccessKeyId><SecretAccessKey>x</SecretAccessKey><SessionToken>t</SessionToken>\
        <Expiration>2099-01-01T00:00:00Z</Expiration>\
        </Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>";
    let (site, scratch) = (Site::new(), Scratch::new());
    let dir = scratch.path();
    certificates(dir, "sts", "IP:127.0.0.1");
    std::fs::write(dir.join("token"), "the token of this pod").unwrap();
    let sts = format!("https://127.0.0.1:{}", serve(dir, "sts", KEYS));
    let token = dir.join("token").display().to_string();
    let environment = |name: &str| match name {
        "AWS_WEB_IDENTITY_TOKEN_FILE" => Some(token.clone()),
        "AWS_ROLE_ARN" => Some("arn:aws:iam::1:role/pgark".to_owned()),
        "AWS_ENDPOINT_URL_STS" => Some(sts.clone()),
        _ => None,
    };
    let mut options = site.options();
    options.keys = None;
    options.ca_file = Some(dir.join("ca.pem"));
    let store = S3Store::open(&options, &environment, &site.token).unwrap();
    let _ = store.list("");
    let heads = site.proxy.heads();
    assert!(heads[0].contains("Credential=AKIDWEB/"), "{heads:?}");
    assert!(heads[0].contains("x-amz-security-token: t"), "{heads:?}");
    let half = |name: &str| environment(name).filter(|_| name != "AWS_ROLE_ARN");
    let error = S3Store::open(&options, &half, &site.token).err().unwrap();
    assert!(error.fact.contains("AWS_ROLE_ARN is not"), "{error}");
}
