//! The stores of a cluster, from variables or from the file's `[[store]]` tables.
//!
//! Invariants: never none; each lies in the cluster's folder; the first is the one that runs
//! write to, a local one where there is one. Reads no file but those that variables name.

use std::path::{Path, PathBuf};

use super::environment::{Environment, Secret, Setting};
use super::file::{File, Table};
use super::load::{backup_dir, goes_before, required, setting, variable};
use super::{Flags, Place, Retention, S3, S3Keys, StoreConfig, form};
use crate::error::{Error, Result};

/// The stores' names where no file gives others.
const LOCAL: &str = "local";
const S3_STORE: &str = "s3";

/// The stores of a cluster, each in the cluster's folder; the first one is the one that runs
/// write to: a local one, where there is one. `process` are the variables without the file's.
pub(super) fn stores(
    flags: &Flags,
    (env, process): (&Environment, &Environment),
    file: Option<&File>,
    folder: &str,
    warnings: &mut Vec<String>,
) -> Result<Vec<StoreConfig>> {
    let Some(file) = file.filter(|file| !file.stores.is_empty()) else {
        return variables_stores(flags, env, folder);
    };
    let mut flag = flags.dir.clone();
    let mut stores = Vec::new();
    for table in &file.stores {
        let env = env.clone().with_table(&table.keys, process, &mut |key| {
            // What says where the stores are says it of none of them.
            if !["BACKUP_DIR", "S3_BUCKET"].contains(&key.variable.name) {
                warnings.push(goes_before(key, &file.path, &table.name));
            }
        });
        stores.push(store(table, env, &mut flag, folder)?);
    }
    if let Some(dir) = flag {
        let (dir, path) = (dir.display(), &file.path);
        return Err(Error::usage(format!(
            "--dir {dir} names a local store, and {path} has none"
        ))
        .hint("leave it out, or add a [[store]] with backup_dir"));
    }
    same_place(&stores)?;
    for name in ["BACKUP_DIR", "S3_BUCKET"] {
        let Some(set) = setting(name, process)? else {
            continue;
        };
        let used = stores.iter().any(|store| match &store.place {
            Place::Local(dir) => *dir == within(PathBuf::from(&set.text), folder),
            Place::S3(s3) => s3.bucket == set.text,
        });
        if !used {
            let (source, path) = (set.source, &file.path);
            warnings.push(format!(
                "{source} is set, but has no effect: {path} names the stores"
            ));
        }
    }
    stores.sort_by_key(|store| matches!(store.place, Place::S3(_)));
    Ok(stores)
}

/// Two stores in one place would expire each other's backups, and clear each other's uploads.
fn same_place(stores: &[StoreConfig]) -> Result<()> {
    let place = |store: &StoreConfig| match &store.place {
        Place::Local(dir) => std::fs::canonicalize(dir)
            .unwrap_or_else(|_| dir.clone())
            .display()
            .to_string(),
        Place::S3(s3) => {
            let endpoint = s3.endpoint.as_deref().unwrap_or(&s3.region);
            let prefix = s3.prefix.trim_matches('/');
            format!(
                "s3 {} {} {prefix}",
                endpoint.trim_end_matches('/'),
                s3.bucket
            )
        }
    };
    for (at, one) in stores.iter().enumerate() {
        if let Some(other) = stores[..at].iter().find(|other| place(other) == place(one)) {
            let text = format!("the stores {} and {} are one place", other.name, one.name);
            return Err(Error::usage(text)
                .hint("each store needs a directory, or a bucket and prefix, of its own"));
        }
    }
    Ok(())
}

/// One of the file's; `flag` is where the first local one lies instead.
fn store(
    table: &Table,
    env: Environment,
    flag: &mut Option<PathBuf>,
    folder: &str,
) -> Result<StoreConfig> {
    let (place, days) = match (s3(&env, folder)?, flag.take()) {
        (Some(s3), kept) if table.is_bucket() => {
            *flag = kept;
            // What the table says of its days goes before the variable for all buckets.
            let sets = |name| table.keys.iter().any(|key| key.variable.name == name);
            let own = sets("BACKUP_RETENTION_DAYS") && !sets("S3_RETENTION_DAYS");
            let days = if own {
                None
            } else {
                setting("S3_RETENTION_DAYS", &env)?
            };
            (Place::S3(Box::new(s3)), days)
        }
        (_, Some(dir)) => (Place::Local(within(dir, folder)), None),
        (_, None) => {
            let dir = PathBuf::from(required("BACKUP_DIR", &env)?.text);
            (Place::Local(within(dir, folder)), None)
        }
    };
    Ok(StoreConfig {
        name: table.name.clone(),
        retention: retention(&env, days)?,
        place,
        environment: env,
    })
}

/// The stores without a `[[store]]`: `local`, and `s3` where there is a bucket.
fn variables_stores(flags: &Flags, env: &Environment, folder: &str) -> Result<Vec<StoreConfig>> {
    let dir = backup_dir(flags, env)?;
    let mut stores = Vec::new();
    if !is_none(&dir) {
        stores.push(StoreConfig {
            name: LOCAL.to_owned(),
            place: Place::Local(within(dir, folder)),
            retention: retention(env, None)?,
            environment: env.clone(),
        });
    }
    if let Some(s3) = s3(env, folder)? {
        stores.push(StoreConfig {
            name: S3_STORE.to_owned(),
            place: Place::S3(Box::new(s3)),
            retention: retention(env, setting("S3_RETENTION_DAYS", env)?)?,
            environment: env.clone(),
        });
    }
    if stores.is_empty() {
        let source = if flags.dir.is_some() {
            "--dir"
        } else {
            "BACKUP_DIR"
        };
        return Err(Error::usage(format!(
            "{source} none means no local store, and there is no other one"
        ))
        .hint("S3_BUCKET names a bucket; a directory that is really called none is ./none"));
    }
    Ok(stores)
}

/// Whether this says that there is no local store.
pub(super) fn is_none(dir: &Path) -> bool {
    dir.as_os_str() == "none"
}

pub(super) fn within(dir: PathBuf, folder: &str) -> PathBuf {
    if folder.is_empty() {
        dir
    } else {
        dir.join(folder)
    }
}

/// The retention of a store, with days of its own or those of all.
fn retention(env: &Environment, days: Option<Setting>) -> Result<Retention> {
    let count = |name| -> Result<u32> {
        let found = match variable(name)?.default {
            Some(_) => Some(required(name, env)?),
            None => setting(name, env)?,
        };
        Ok(found.and_then(|found| found.text.parse().ok()).unwrap_or(0))
    };
    let own = days.and_then(|days| days.text.parse().ok());
    Ok(Retention {
        days: own.map_or_else(|| count("BACKUP_RETENTION_DAYS"), Ok)?,
        keep_daily: count("BACKUP_KEEP_DAILY")?,
        keep_weekly: count("BACKUP_KEEP_WEEKLY")?,
        keep_monthly: count("BACKUP_KEEP_MONTHLY")?,
        keep_yearly: count("BACKUP_KEEP_YEARLY")?,
        keep_min: count("BACKUP_KEEP_MIN")?,
    })
}

fn s3(env: &Environment, folder: &str) -> Result<Option<S3>> {
    let text = |name| Ok::<_, Error>(setting(name, env)?.map(|found| found.text));
    let Some(bucket) = text("S3_BUCKET")? else {
        return Ok(None);
    };
    let pair = (text("AWS_ACCESS_KEY_ID")?, text("AWS_SECRET_ACCESS_KEY")?);
    let keys = match pair {
        (Some(access_key_id), Some(secret)) => Some(S3Keys {
            access_key_id,
            secret_access_key: Secret::new(secret),
            session_token: text("AWS_SESSION_TOKEN")?.map(Secret::new),
        }),
        (None, None) => None,
        (found, _) => {
            let [set, unset] = match found {
                Some(_) => ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"],
                None => ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"],
            };
            return Err(Error::usage(format!("{set} is set and {unset} is not"))
                .hint("set both, or neither for the usual AWS chain (roles, files)"));
        }
    };
    let mut prefix = required("S3_PREFIX", env)?.text;
    if !folder.is_empty() {
        let above = prefix.trim_end_matches('/');
        prefix = format!(
            "{above}{}{folder}/",
            if above.is_empty() { "" } else { "/" }
        );
    }
    Ok(Some(S3 {
        bucket,
        prefix,
        region: required("AWS_REGION", env)?.text,
        endpoint: text("S3_ENDPOINT")?,
        force_path_style: text("S3_FORCE_PATH_STYLE")?.map(|text| form::switch(&text)),
        sse: text("S3_SSE")?,
        kms_key_id: text("S3_KMS_KEY_ID")?,
        storage_class: text("S3_STORAGE_CLASS")?,
        ca_file: text("AWS_CA_BUNDLE")?.map(PathBuf::from),
        keys,
    }))
}
