//! Who pgark is to the bucket: the usual AWS chain, from a given environment.
//!
//! In this order: keys given outright or in the environment; web identity; the shared
//! credentials file (`~/.aws/credentials`, `AWS_PROFILE`); the container's role (ECS, EKS);
//! the instance's role. Roles are object_store's work: it asks again five minutes before they
//! expire, and reads a web identity's or a container's token file anew each time. The shared
//! file is read again when it has changed, so rotated keys serve a run in progress.
//!
//! Left out: SSO, `credential_process` and `role_arn` of `~/.aws/config`.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, AwsCredential, AwsCredentialProvider};
use object_store::{
    BackoffConfig, ClientOptions, CredentialProvider, RetryConfig, StaticCredentialProvider,
};

use super::options::{Keys, S3Options};
use crate::error::{Error, Result};

/// Looks up a variable; an empty one is unset.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The variables of roles, by the names that object_store knows them under.
const ROLES: [&str; 8] = [
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_ENDPOINT_URL_STS",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_METADATA_ENDPOINT",
];

/// Where the credentials come from, for people.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) provider: AwsCredentialProvider,
    pub(super) shown: String,
}

/// The region: given, or of the environment, or AWS's first.
pub(super) fn region(options: &S3Options, environment: Environment) -> String {
    let found = options.region.clone().filter(|region| !region.is_empty());
    found
        .or_else(|| set(environment, "AWS_REGION"))
        .or_else(|| set(environment, "AWS_DEFAULT_REGION"))
        .unwrap_or_else(|| "us-east-1".to_owned())
}

/// Chooses the first source that is there. No request is made yet.
///
/// # Errors
/// `Usage` when a source is there by half.
pub(super) fn source(
    options: &S3Options,
    region: &str,
    client: &ClientOptions,
    environment: Environment,
) -> Result<Source> {
    if let Some(keys) = &options.keys {
        return fixed(keys.into(), "the keys given");
    }
    if let Some(credential) = from_environment(environment)? {
        return fixed(credential, "AWS_ACCESS_KEY_ID");
    }
    let web_identity = set(environment, "AWS_WEB_IDENTITY_TOKEN_FILE").is_some();
    if !web_identity && let Some(file) = SharedFile::find(environment)? {
        return Ok(Source {
            shown: format!("profile {} of {}", file.profile, file.path.display()),
            provider: Arc::new(file),
        });
    }
    roles(options, region, client, environment)
}

fn set(environment: Environment, name: &str) -> Option<String> {
    environment(name).filter(|value| !value.is_empty())
}

fn fixed(credential: AwsCredential, shown: &str) -> Result<Source> {
    Ok(Source {
        provider: Arc::new(StaticCredentialProvider::new(checked(credential)?)),
        shown: shown.to_owned(),
    })
}

/// Credentials that a header can carry: object_store panics over others.
fn checked(credential: AwsCredential) -> Result<AwsCredential> {
    let bad = |text: &str| text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic());
    let named = [
        ("AWS_ACCESS_KEY_ID", Some(&credential.key_id)),
        ("AWS_SECRET_ACCESS_KEY", Some(&credential.secret_key)),
        ("AWS_SESSION_TOKEN", credential.token.as_ref()),
    ];
    match named
        .iter()
        .find(|(_, text)| text.is_some_and(|text| bad(text)))
    {
        None => Ok(credential),
        Some((name, _)) => Err(Error::usage(format!(
            "{name} is empty, or holds a blank or another character that no key has"
        ))
        .hint("copy it anew; in a file, only one line's end may follow it")),
    }
}

impl From<&Keys> for AwsCredential {
    fn from(keys: &Keys) -> AwsCredential {
        AwsCredential {
            key_id: keys.access_key_id.clone(),
            secret_key: keys.secret_access_key.expose().to_owned(),
            token: keys
                .session_token
                .as_ref()
                .map(|token| token.expose().to_owned()),
        }
    }
}

fn from_environment(environment: Environment) -> Result<Option<AwsCredential>> {
    let id = set(environment, "AWS_ACCESS_KEY_ID");
    let secret = set(environment, "AWS_SECRET_ACCESS_KEY");
    let missing = match (id, secret) {
        (None, None) => return Ok(None),
        (Some(key_id), Some(secret_key)) => {
            return Ok(Some(AwsCredential {
                key_id,
                secret_key,
                token: set(environment, "AWS_SESSION_TOKEN"),
            }));
        }
        (None, Some(_)) => "AWS_ACCESS_KEY_ID",
        (Some(_), None) => "AWS_SECRET_ACCESS_KEY",
    };
    Err(
        Error::usage(format!("{missing} is missing beside its other half")).hint(
            "set both of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or neither to use a role",
        ),
    )
}

fn roles(
    options: &S3Options,
    region: &str,
    client: &ClientOptions,
    environment: Environment,
) -> Result<Source> {
    let given = |name| set(environment, name).is_some();
    let disabled = set(environment, "AWS_EC2_METADATA_DISABLED");
    let shown = if given("AWS_WEB_IDENTITY_TOKEN_FILE") {
        together(environment, "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN")?;
        "the web identity"
    } else if given("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") {
        "the container's role"
    } else if given("AWS_CONTAINER_CREDENTIALS_FULL_URI") {
        let token = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";
        together(environment, "AWS_CONTAINER_CREDENTIALS_FULL_URI", token)?;
        "the container's role"
    } else if disabled.is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Err(Error::usage("there are no credentials for S3").hint(HOW));
    } else {
        "the instance's role"
    };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&options.bucket)
        .with_region(region)
        .with_client_options(client.clone())
        // The request that needs the credentials is repeated as a whole.
        .with_retry(RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: 2,
            retry_timeout: Duration::from_secs(10),
        });
    for name in ROLES {
        let Some(value) = set(environment, name) else {
            continue;
        };
        if let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
            builder = builder.with_config(key, value);
        }
    }
    if let Some(endpoint) = set(environment, "AWS_EC2_METADATA_SERVICE_ENDPOINT") {
        builder = builder.with_metadata_endpoint(endpoint);
    }
    let built = builder.build().map_err(|error| {
        Error::usage(format!("the credentials for S3 cannot be used: {error}")).hint(HOW)
    })?;
    Ok(Source {
        provider: Arc::clone(built.credentials()),
        shown: shown.to_owned(),
    })
}

/// object_store passes over a role that is described by half.
fn together(environment: Environment, there: &str, wanted: &str) -> Result<()> {
    if set(environment, wanted).is_some() {
        return Ok(());
    }
    Err(Error::usage(format!("{there} is set and {wanted} is not"))
        .hint("the platform sets both; pass both on to pgark"))
}

/// What to do when nothing of the chain answers.
pub(super) const HOW: &str = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or …_FILE), \
    or give this machine or container a role";

/// A profile of the shared credentials file; read anew when the file changes.
#[derive(Debug)]
struct SharedFile {
    path: PathBuf,
    profile: String,
    cached: Mutex<Option<(SystemTime, Arc<AwsCredential>)>>,
}

impl SharedFile {
    /// The file, if it is there and holds keys of the profile.
    fn find(environment: Environment) -> Result<Option<SharedFile>> {
        let explicit = set(environment, "AWS_SHARED_CREDENTIALS_FILE");
        let path = match &explicit {
            Some(path) => PathBuf::from(path),
            None => match set(environment, "HOME") {
                Some(home) => Path::new(&home).join(".aws/credentials"),
                None => return Ok(None),
            },
        };
        let named = set(environment, "AWS_PROFILE");
        let file = SharedFile {
            path,
            profile: named.clone().unwrap_or_else(|| "default".to_owned()),
            cached: Mutex::new(None),
        };
        match file.read() {
            Ok(_) => Ok(Some(file)),
            Err(error) if explicit.is_some() || named.is_some() => Err(error),
            // Nobody asked for it: another source may serve.
            Err(_) => Ok(None),
        }
    }

    fn read(&self) -> Result<Arc<AwsCredential>> {
        let fail = |error: std::io::Error| {
            Error::usage(format!("{} cannot be read: {error}", self.path.display()))
                .hint("check AWS_SHARED_CREDENTIALS_FILE and its rights")
        };
        let changed = std::fs::metadata(&self.path)
            .and_then(|about| about.modified())
            .map_err(fail)?;
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((read, credential)) = &*cached
            && *read == changed
        {
            return Ok(Arc::clone(credential));
        }
        let text = std::fs::read_to_string(&self.path).map_err(fail)?;
        let credential = parse(&text, &self.profile).ok_or_else(|| {
            Error::usage(format!(
                "{} holds no keys of profile {}",
                self.path.display(),
                self.profile
            ))
            .hint("set AWS_PROFILE to a profile with aws_access_key_id and aws_secret_access_key")
        })?;
        let credential = Arc::new(checked(credential)?);
        *cached = Some((changed, Arc::clone(&credential)));
        Ok(credential)
    }
}

#[async_trait]
impl CredentialProvider for SharedFile {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        self.read().map_err(|error| object_store::Error::Generic {
            store: "S3",
            source: error.into(),
        })
    }
}

/// The keys of one profile in a file of `[name]` sections with `key = value` lines.
fn parse(text: &str, profile: &str) -> Option<AwsCredential> {
    let (mut inside, mut id, mut secret, mut token) = (false, None, None, None);
    for line in text.lines().map(str::trim) {
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            inside = name.trim() == profile;
        } else if inside && let Some((name, value)) = line.split_once('=') {
            let value = Some(value.trim().to_owned());
            match name.trim().to_ascii_lowercase().as_str() {
                "aws_access_key_id" => id = value,
                "aws_secret_access_key" => secret = value,
                "aws_session_token" => token = value,
                _ => {}
            }
        }
    }
    Some(AwsCredential {
        key_id: id?,
        secret_key: secret?,
        token,
    })
}
