//! The few XML documents of the S3 protocol that pgark reads and writes.
//!
//! Reading is lenient: what a server leaves out is empty, what it adds is passed over.
//!
//! Listings are asked for without `encoding-type=url`: some servers (s3s-fs) confirm it and send
//! the keys as they are, and pgark's own names hold `%`. The parser takes odd bytes as they come.

use std::fmt::Write as _;

use serde::Deserialize;

use crate::error::{Error, Result};

/// The body of a refusal.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Refusal {
    pub(super) code: String,
    pub(super) message: String,
    /// The bucket's own region, when the request went to another.
    pub(super) region: String,
}

/// One page of `ListObjectsV2`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Page {
    pub(super) contents: Vec<Entry>,
    pub(super) common_prefixes: Vec<CommonPrefix>,
    pub(super) is_truncated: bool,
    pub(super) next_continuation_token: Option<String>,
}

/// What lies deeper, by the name of its folder.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct CommonPrefix {
    pub(super) prefix: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) size: u64,
    pub(super) last_modified: String,
    #[serde(rename = "ETag")]
    pub(super) etag: String,
}

/// One page of `ListMultipartUploads`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Uploads {
    pub(super) upload: Vec<UploadEntry>,
    pub(super) is_truncated: bool,
    pub(super) next_key_marker: Option<String>,
    pub(super) next_upload_id_marker: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct UploadEntry {
    pub(super) key: String,
    pub(super) upload_id: String,
    pub(super) initiated: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Initiated {
    upload_id: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Completed {
    #[serde(rename = "ETag")]
    etag: String,
}

/// A stored part, as the completing request names it.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) etag: String,
    /// Base64, when the server took checksums.
    pub(super) sha256: Option<String>,
}

/// Reads a document; `what` names it in the error.
///
/// # Errors
/// `Failed` when it is not XML of that form.
pub(super) fn read<T: serde::de::DeserializeOwned>(body: &[u8], what: &str) -> Result<T> {
    let text = String::from_utf8_lossy(body);
    quick_xml::de::from_str(&text).map_err(|error| {
        Error::failed(format!("the server's {what} cannot be understood: {error}"))
            .hint("is the endpoint really an S3 server? check S3_ENDPOINT")
    })
}

/// The refusal that a body holds, or an empty one.
pub(super) fn refusal(body: &[u8]) -> Refusal {
    if !is_refusal(body) {
        return Refusal::default();
    }
    quick_xml::de::from_str(&String::from_utf8_lossy(body)).unwrap_or_default()
}

/// Whether the document is an `<Error>`: a server may only find out after it has answered 200.
pub(super) fn is_refusal(body: &[u8]) -> bool {
    let text = String::from_utf8_lossy(&body[..body.len().min(200)]);
    let after_declaration = match text.trim_start().strip_prefix("<?xml") {
        Some(rest) => rest.split_once("?>").map_or("", |(_, document)| document),
        None => &text,
    };
    let root = after_declaration.trim_start();
    root.starts_with("<Error>") || root.starts_with("<Error ")
}

/// The id of a new upload.
///
/// # Errors
/// `Failed` when the reply holds none.
pub(super) fn upload_id(body: &[u8]) -> Result<String> {
    let reply: Initiated = read(body, "reply to a new upload")?;
    if reply.upload_id.is_empty() {
        return Err(Error::failed("the server began an upload without an id"));
    }
    Ok(reply.upload_id)
}

/// The ETag of a completed upload, without quotes; empty when the server gives none.
pub(super) fn completed_etag(body: &[u8]) -> String {
    let reply: Completed =
        quick_xml::de::from_str(&String::from_utf8_lossy(body)).unwrap_or_default();
    reply.etag.trim_matches('"').to_owned()
}

/// The body that completes an upload.
pub(super) fn complete(parts: &[Part]) -> String {
    let mut text =
        String::from("<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
    for (at, part) in parts.iter().enumerate() {
        let etag = part.etag.replace('&', "&amp;").replace('<', "&lt;");
        let _ = write!(
            text,
            "<Part><PartNumber>{}</PartNumber><ETag>{etag}</ETag>",
            at + 1
        );
        if let Some(sha256) = &part.sha256 {
            let _ = write!(text, "<ChecksumSHA256>{sha256}</ChecksumSHA256>");
        }
        text.push_str("</Part>");
    }
    text.push_str("</CompleteMultipartUpload>");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_interleaved_elements_are_read() {
        let page: Page = read(
            b"<?xml version=\"1.0\"?><ListBucketResult xmlns=\"x\"><Name>b</Name>\
              <Contents><Key>a</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><Size>3</Size></Contents>\
              <CommonPrefixes><Prefix>p/</Prefix></CommonPrefixes>\
              <Contents><Key>b</Key><Size>4</Size><StorageClass>GLACIER</StorageClass></Contents>\
              <IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>\
              </ListBucketResult>",
            "listing",
        )
        .unwrap();
        let found: Vec<_> = page
            .contents
            .iter()
            .map(|e| (e.key.as_str(), e.size))
            .collect();
        assert_eq!(found, [("a", 3), ("b", 4)]);
        assert!(page.is_truncated && page.next_continuation_token.as_deref() == Some("t"));
        let empty: Page = read(b"<ListBucketResult/>", "listing").unwrap();
        assert!(empty.contents.is_empty());
        assert!(read::<Page>(b"no xml", "listing").is_err());
    }

    #[test]
    fn refusals_are_known_by_their_root() {
        assert!(is_refusal(
            b"<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>X</Code></Error>"
        ));
        assert!(!is_refusal(b"<Result><Error>no</Error></Result>"));
        assert!(!is_refusal(b""));
        let refusal =
            refusal(b"<Error><Code>SlowDown</Code><Message>a &lt; b</Message><X/></Error>");
        assert_eq!(
            (refusal.code.as_str(), refusal.message.as_str()),
            ("SlowDown", "a < b")
        );
    }

    #[test]
    fn completing_names_every_part_in_order() {
        let part = |etag: &str, sha256: Option<&str>| Part {
            etag: etag.to_owned(),
            sha256: sha256.map(str::to_owned),
        };
        let text = complete(&[part("\"a\"", None), part("\"b\"", Some("c="))]);
        assert!(text.contains("<Part><PartNumber>1</PartNumber><ETag>\"a\"</ETag></Part>"));
        assert!(text.contains("<PartNumber>2</PartNumber><ETag>\"b\"</ETag><ChecksumSHA256>c=<"));
    }
}
