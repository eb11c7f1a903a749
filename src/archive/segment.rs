//! A WAL segment, or a piece of one, as a file of its own: zstd frames, pgark's mark first, encrypted
//! where backups are. `zstd -d` (behind `age -d`) gives the WAL back.
//!
//! Invariants: what is written was read back in size; memory is one frame beside what the caller
//! holds; what is read is at most as long as the caller says. A crash leaves an upload's
//! temporary name.

use std::io::Read;

use super::codec::{Codec, Compressor, decoder};
use super::crypt::{self, Crypt, Identities};
use super::sink::Sink;
use crate::error::{Error, Result};
use crate::store::{Key, Object, Store, Upload, missing};

/// Bytes of WAL in one frame.
const FRAME_BYTES: usize = 4 << 20;

/// The codec for WAL where dumps have that one: always zstd, so that the names are those of the
/// contract; quick, because it runs beside the server all the time.
#[must_use]
pub fn wal_codec(configured: Codec) -> Codec {
    match configured {
        Codec::Zstd { level } => Codec::Zstd { level },
        Codec::Gzip { .. } | Codec::None => Codec::Zstd { level: Some(1) },
    }
}

/// Writes all of `raw` and makes the object appear.
///
/// # Errors
/// As the store and the reader; `Failed` when the store holds another number of bytes.
pub fn write(
    upload: Box<dyn Upload>,
    raw: &mut dyn Read,
    codec: Codec,
    crypt: &Crypt,
) -> Result<Object> {
    let mut sink = Sink::start(upload, crypt)?;
    let mut compressor = Compressor::new(codec)?;
    let (mut buffer, mut frame) = (Vec::new(), Vec::new());
    let mut first = true;
    loop {
        buffer.clear();
        raw.take(FRAME_BYTES as u64).read_to_end(&mut buffer)?;
        if buffer.is_empty() && !first {
            break;
        }
        frame.clear();
        compressor.compress(&buffer, first, &mut frame)?;
        sink.append(&frame)?;
        first = false;
    }
    let stored = sink.finish()?;
    let object = stored.upload.finish()?;
    if object.bytes != stored.bytes {
        return Err(Error::failed(format!(
            "{} holds {} bytes after {} were written",
            object.key, object.bytes, stored.bytes
        ))
        .hint("the store lost data; look at it before anything else"));
    }
    Ok(object)
}

/// Reads such a file whole: at most `bytes_max` bytes of WAL.
///
/// # Errors
/// `Damage` when it is missing, cut, changed or longer; `Usage` when it is encrypted and no identity
/// opens it; as the store.
pub fn read(
    store: &dyn Store,
    key: &Key,
    opened_by: (bool, Option<&Identities>),
    bytes_max: u64,
) -> Result<Vec<u8>> {
    let object = store.stat(key)?.ok_or_else(|| missing(store, key))?;
    read_object(store, &object, opened_by, bytes_max)
}

/// As [`read`], where a listing has shown it already.
///
/// # Errors
/// As [`read`].
pub fn read_object(
    store: &dyn Store,
    object: &Object,
    (encrypted, identities): (bool, Option<&Identities>),
    bytes_max: u64,
) -> Result<Vec<u8>> {
    let key = &object.key;
    let mut stored = store.read(key, 0..object.bytes)?;
    if encrypted {
        let identities = identities.ok_or_else(|| {
            Error::usage(format!("{key} is encrypted, and no identity is set"))
                .hint("set BACKUP_IDENTITY_FILE to the file with the secret key")
        })?;
        stored = crypt::open(identities, &stored).map_err(|error| error.context(key))?;
    }
    let mut raw = Vec::new();
    let decoded = decoder(Codec::ZSTD, stored.as_slice())?
        .take(bytes_max.saturating_add(1))
        .read_to_end(&mut raw);
    let damage = |what: &str| {
        Error::damage(format!("{key} in {} is damaged: {what}", store.describe()))
            .hint("another store may hold it whole: --store NAME")
    };
    if let Err(error) = decoded {
        return Err(damage(&error.to_string()));
    }
    if raw.len() as u64 > bytes_max {
        return Err(damage("it holds more than a segment"));
    }
    Ok(raw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::store::local::LocalStore;
    use crate::store::tests::Scratch;
    use crate::store::{Put, put};

    #[test]
    fn a_segment_comes_back_and_a_damaged_one_is_refused() {
        let scratch = Scratch::new();
        let store = LocalStore::open(scratch.path()).unwrap();
        let key = Key::new("wal/1/000000010000000000000001.zst").unwrap();
        let raw: Vec<u8> = (0..9 << 20).map(|at: u32| at.to_le_bytes()[1]).collect();
        let upload = store.create(&key, Put::New).unwrap();
        let object = write(upload, &mut raw.as_slice(), Codec::ZSTD, &Crypt::None).unwrap();
        assert!(object.bytes < raw.len() as u64 / 10);
        let plain = (false, None);
        assert!(read(&store, &key, plain, raw.len() as u64).unwrap() == raw);
        let short = read(&store, &key, plain, raw.len() as u64 - 1).unwrap_err();
        assert_eq!(short.kind, Kind::Damage);
        let mut bytes = store.read(&key, 0..object.bytes).unwrap();
        bytes.truncate(bytes.len() - 5);
        put(&store, &key, &bytes, Put::Replace).unwrap();
        let cut = read(&store, &key, plain, raw.len() as u64).unwrap_err();
        assert_eq!(cut.kind, Kind::Damage, "{cut}");
        let gone = Key::new("wal/1/000000010000000000000002.zst").unwrap();
        assert_eq!(
            read(&store, &gone, plain, 9).unwrap_err().kind,
            Kind::Damage
        );
        let sealed = read(&store, &key, (true, None), 9).unwrap_err();
        assert_eq!(sealed.kind, Kind::Usage);
    }
}
