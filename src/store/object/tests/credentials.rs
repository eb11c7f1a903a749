//! The chain of credentials, and that they are renewed in mid-run.

use super::proxy::answer;
use super::*;
use crate::store::put;
use crate::store::tests::Scratch;
use std::collections::BTreeMap;
use std::fs;

/// Opens a store whose credentials come from these variables.
fn open(site: &Site, variables: &[(&str, String)]) -> crate::error::Result<S3Store> {
    let variables: BTreeMap<_, _> = variables.iter().cloned().collect();
    let mut options = site.options();
    options.keys = None;
    S3Store::open(&options, &|name| variables.get(name).cloned(), &site.token)
}

fn profile(id: &str, secret: &str) -> String {
    format!(
        "# mine\n[default]\naws_access_key_id = {id}\naws_secret_access_key={secret}\n\n[other]\nregion = x\n"
    )
}

/// The access key that the last request was signed with.
fn signed_by(site: &Site) -> String {
    let heads = site.proxy.heads();
    let head = heads.last().unwrap();
    let (_, rest) = head.split_once("Credential=").unwrap();
    rest.split('/').next().unwrap().to_owned()
}

#[test]
fn variables_serve_and_halves_are_refused() {
    let site = Site::new();
    let id = ("AWS_ACCESS_KEY_ID", server::ACCESS_KEY.to_owned());
    let store = open(
        &site,
        &[
            id.clone(),
            ("AWS_SECRET_ACCESS_KEY", server::SECRET_KEY.to_owned()),
        ],
    );
    put(&store.unwrap(), &key("a"), b"1", Put::New).unwrap();
    let error = open(&site, &[id]).err().unwrap();
    assert!(
        error.fact.contains("AWS_SECRET_ACCESS_KEY is missing"),
        "{error}"
    );
    let error = open(&site, &[("AWS_EC2_METADATA_DISABLED", "true".to_owned())])
        .err()
        .unwrap();
    assert!(error.to_string().contains("AWS_ACCESS_KEY_ID"), "{error}");
}

#[test]
fn rotated_credentials_file_serves_a_run_in_progress() {
    let site = Site::new();
    let scratch = Scratch::new();
    let path = scratch.path().join("credentials");
    fs::write(&path, profile(server::ACCESS_KEY, server::SECRET_KEY)).unwrap();
    let file = ("AWS_SHARED_CREDENTIALS_FILE", path.display().to_string());
    let store = open(&site, std::slice::from_ref(&file)).unwrap();
    put(&store, &key("a"), b"1", Put::New).unwrap();
    assert_eq!(signed_by(&site), server::ACCESS_KEY);
    fs::write(&path, profile("AKIDROTATED", "x")).unwrap();
    let error = store.list("").unwrap_err();
    assert_eq!(signed_by(&site), "AKIDROTATED", "{error}");
    // As variables: a home directory, another profile.
    fs::create_dir(scratch.path().join(".aws")).unwrap();
    fs::rename(&path, scratch.path().join(".aws/credentials")).unwrap();
    let home = ("HOME", scratch.path().display().to_string());
    assert!(
        open(&site, std::slice::from_ref(&home))
            .unwrap()
            .list("")
            .is_err()
    );
    assert_eq!(signed_by(&site), "AKIDROTATED");
    let error = open(&site, &[home, ("AWS_PROFILE", "other".to_owned())])
        .err()
        .unwrap();
    assert!(error.fact.contains("no keys of profile other"), "{error}");
    assert!(
        open(&site, &[file]).is_err(),
        "an explicit path must be there"
    );
}

#[test]
fn container_role_is_renewed_before_it_expires() {
    let site = Site::new();
    let scratch = Scratch::new();
    let token = scratch.path().join("token");
    fs::write(&token, "first").unwrap();
    let role = Proxy::start(1);
    let reply = |id: &str, minutes| {
        let until = crate::clock::now() + jiff::SignedDuration::from_mins(minutes);
        let (secret, session) = (server::SECRET_KEY, "t0ken");
        answer(
            200,
            "",
            &format!(
                r#"{{"AccessKeyId":"{id}","SecretAccessKey":"{secret}","Token":"{session}","Expiration":"{until}"}}"#
            ),
        )
    };
    // Within five minutes of its end a credential is asked for again.
    role.when("GET", "/role", 1, reply("AKIDSHORT", 4));
    role.when("GET", "/role", usize::MAX, reply("AKIDLONG", 60));
    let store = open(
        &site,
        &[
            (
                "AWS_CONTAINER_CREDENTIALS_FULL_URI",
                format!("http://127.0.0.1:{}/role", role.port),
            ),
            (
                "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
                token.display().to_string(),
            ),
        ],
    )
    .unwrap();
    let _ = store.list("");
    assert_eq!(signed_by(&site), "AKIDSHORT");
    fs::write(&token, "second").unwrap();
    std::thread::sleep(Duration::from_millis(150));
    let _ = store.list("");
    assert_eq!(signed_by(&site), "AKIDLONG");
    let _ = store.list("");
    let heads = role.heads();
    assert_eq!(heads.len(), 2, "the long one is kept");
    assert!(
        heads[0].contains("first") && heads[1].contains("second"),
        "{heads:?}"
    );
}

#[test]
fn role_that_is_away_for_a_moment_is_waited_for() {
    let site = Site::new();
    let role = Proxy::start(1);
    let until = crate::clock::now() + jiff::SignedDuration::from_mins(4);
    let secret = server::SECRET_KEY;
    let reply = format!(
        r#"{{"AccessKeyId":"AKIDROLE","SecretAccessKey":"{secret}","Token":"t","Expiration":"{until}"}}"#
    );
    role.when("GET", "/role", 1, answer(200, "", &reply));
    role.when("GET", "/role", 2, answer(404, "", "not now"));
    role.when("GET", "/role", usize::MAX, answer(200, "", &reply));
    let scratch = Scratch::new();
    let token = scratch.path().join("token");
    fs::write(&token, "t").unwrap();
    let url = format!("http://127.0.0.1:{}/role", role.port);
    let store = open(
        &site,
        &[
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", url),
            (
                "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
                token.display().to_string(),
            ),
        ],
    )
    .unwrap();
    let _ = store.list("");
    std::thread::sleep(Duration::from_millis(150));
    let asked = site.proxy.heads().len();
    let _ = store.list("");
    assert_eq!(role.heads().len(), 4);
    assert_eq!(site.proxy.heads().len(), asked + 1);
}

#[test]
fn role_of_the_instance_serves() {
    let site = Site::new();
    let metadata = Proxy::start(1);
    let until = crate::clock::now() + jiff::SignedDuration::from_mins(60);
    let reply = format!(
        r#"{{"AccessKeyId":"AKIDHOST","SecretAccessKey":"x","Token":"t","Expiration":"{until}"}}"#
    );
    let base = "/latest/meta-data/iam/security-credentials/";
    metadata.when("PUT", "/latest/api/token", 1, answer(200, "", "session"));
    metadata.when("GET", &format!("{base}backup"), 1, answer(200, "", &reply));
    metadata.when("GET", base, 1, answer(200, "", "backup"));
    let url = format!("http://127.0.0.1:{}", metadata.port);
    let store = open(&site, &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)]).unwrap();
    let _ = store.list("");
    assert_eq!(signed_by(&site), "AKIDHOST");
    assert!(
        metadata.heads()[2].contains("session"),
        "IMDSv2's token goes along"
    );
}

#[test]
fn keys_that_no_header_can_carry_are_refused_without_being_shown() {
    let site = Site::new();
    for bad in ["s3cr\net", "", "s3cr\u{e9}t", "two words"] {
        let mut options = site.options();
        options.keys.as_mut().unwrap().session_token = Some(Secret::new(bad));
        let error = S3Store::open(&options, &nothing, &site.token)
            .err()
            .unwrap();
        assert!(error.fact.contains("AWS_SESSION_TOKEN"), "{error}");
        assert!(!error.to_string().contains("s3cr"), "{error}");
    }
}

#[test]
fn role_that_does_not_answer_is_explained() {
    let site = Site::new();
    let role = Proxy::start(1);
    role.when("GET", "/role", usize::MAX, answer(404, "", "no role"));
    role.when("PUT", "/", usize::MAX, answer(404, "", "no role"));
    let url = format!("http://127.0.0.1:{}", role.port);
    let store = open(&site, &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)]).unwrap();
    let error = store.list("").unwrap_err();
    assert!(
        error
            .fact
            .contains("no credentials from the instance's role"),
        "{error}"
    );
    assert!(error.hint.unwrap().contains("AWS_ACCESS_KEY_ID"));
    assert_eq!(site.proxy.heads().len(), 0);
}

#[test]
fn nothing_that_is_shown_holds_a_secret() {
    let site = Site::new();
    assert!(!format!("{:?}", site.options().keys).contains(server::SECRET_KEY));
    let store = site.store();
    assert!(!format!("{:?}", store.bucket.wire).contains(server::SECRET_KEY));
    assert!(!store.describe().contains(server::ACCESS_KEY));
}
