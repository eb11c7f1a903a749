//! From options to a bucket that can be asked: client, credentials, runtime. No request is made.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use object_store::client::{HttpConnector, ReqwestConnector};
use object_store::{Certificate, ClientOptions, HeaderValue};
use tokio::time::Instant;

use super::bucket::Bucket;
use super::credentials::{self, Environment};
use super::options::S3Options;
use super::remains::Notes;
use super::wire::{Limits, Wire};
use crate::cancel;
use crate::error::{Error, Result};

/// See [`super::S3Store::open`].
pub(super) fn bucket(
    options: &S3Options,
    environment: Environment,
    token: &cancel::Token,
) -> Result<Bucket> {
    let region = credentials::region(options, environment);
    let place = options.place(region.clone())?;
    let client = client_options(options)?;
    let source = credentials::source(options, &region, &client, environment)?;
    let http = ReqwestConnector::default()
        .connect(&client)
        .map_err(|error| Error::usage(format!("no HTTP client for {}: {error}", place.url)))?;
    let (asked, cancelled) = tokio::sync::watch::channel(None);
    let hook = token.on_cancel(move || {
        // The first cancel counts: the last words are not prolonged by a second one.
        asked.send_if_modified(|at| at.replace(at.unwrap_or_else(Instant::now)).is_none());
    });
    let wire = Wire {
        client: http,
        source,
        region,
        limits: Limits {
            deadline: options.deadline,
            first_contact: options.first_contact,
            bytes_per_second_min: options.bytes_per_second_min,
        },
        cancelled,
        reached: AtomicBool::new(false),
    };
    let notes = Notes::open(options.state_dir.as_deref(), &place);
    Ok(Bucket::new(
        wire,
        place,
        notes,
        object_headers(options),
        (token.clone(), hook),
        Arc::clone(&options.warn),
        runtime()?,
    ))
}

fn object_headers(options: &S3Options) -> Vec<(&'static str, String)> {
    let wanted = [
        ("x-amz-server-side-encryption", &options.sse),
        (
            "x-amz-server-side-encryption-aws-kms-key-id",
            &options.kms_key_id,
        ),
        ("x-amz-storage-class", &options.storage_class),
    ];
    let set = |(name, value): (&'static str, &Option<String>)| {
        Some((name, value.clone().filter(|value| !value.is_empty())?))
    };
    wanted.into_iter().filter_map(set).collect()
}

fn client_options(options: &S3Options) -> Result<ClientOptions> {
    let mut client = ClientOptions::new()
        .with_user_agent(HeaderValue::from_static(concat!(
            "pgark/",
            env!("CARGO_PKG_VERSION")
        )))
        .with_allow_http(options.allow_http)
        // Each attempt has its own limit, by its size.
        .with_timeout_disabled()
        .with_connect_timeout(Duration::from_secs(10))
        .with_pool_idle_timeout(Duration::from_secs(30));
    if let Some(path) = &options.ca_file {
        let fail = |error: &dyn std::fmt::Display| {
            Error::usage(format!(
                "the CA file {} cannot be used: {error}",
                path.display()
            ))
            .hint("it has to hold certificates in PEM form that pgark may read")
        };
        let pem = std::fs::read(path).map_err(|error| fail(&error))?;
        let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| fail(&error))?;
        if certificates.is_empty() {
            return Err(fail(&"there is no certificate in it"));
        }
        client = certificates
            .into_iter()
            .fold(client, ClientOptions::with_root_certificate);
    }
    Ok(client)
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("s3")
        .enable_all()
        .build()
        .map_err(|error| Error::failed(format!("no thread for S3 can be started: {error}")))
}
