//! The frame around every script that pgark writes, and the frames of statements in it.
//!
//! The first line is `\if true` and the last `\endif`: psql refuses a script that was cut
//! anywhere, also where the compressed stream is whole (a cut at a member's border is valid
//! gzip). The script sets ON_ERROR_STOP itself. `\restrict` keeps psql from taking a
//! backslash in the data for a command (CVE-2025-8714); psql before August 2025 does not know it,
//! not even inside an inactive `\if`, so it is written only when the server's own minor version
//! does, with one key over the whole file.

use std::io::Read;

use crate::archive::script::{Meaning, Part, Role, Stage};
use crate::archive::writer::FrameSender;
use crate::error::{Context, Result};

/// Statements are collected into frames of this many raw bytes.
const FRAME_BYTES: usize = 1 << 20;

/// Whether psql of this server's minor version knows `\restrict`.
fn knows_restrict(server_version_num: u32) -> bool {
    match server_version_num / 10_000 {
        14 => server_version_num >= 140_019,
        15 => server_version_num >= 150_014,
        16 => server_version_num >= 160_010,
        17 => server_version_num >= 170_006,
        major => major >= 18,
    }
}

/// The head and the tail of one script; they share the key.
pub(super) struct Envelope {
    key: Option<String>,
}

impl Envelope {
    /// # Errors
    /// `Failed` when the system has no random numbers.
    pub(super) fn new(server_version_num: u32) -> Result<Self> {
        if !knows_restrict(server_version_num) {
            return Ok(Envelope { key: None });
        }
        let mut bytes = [0_u8; 32];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(&mut bytes))
            .context(|| "cannot read random numbers".to_owned())?;
        Ok(Envelope {
            key: Some(hex::encode(bytes)),
        })
    }

    /// Up to and without the session's settings. `about` is one line of plain words.
    pub(super) fn head(&self, about: &str) -> Vec<u8> {
        let about = about.replace(char::is_control, " ");
        format!(
            "\\if true\n-- pgark: {about}\n-- Restore: gunzip -c FILE | psql -X -d DATABASE  (zstd -dc for .zst)\n\
             \\set ON_ERROR_STOP on\n\\set AUTOCOMMIT on\n{}\n",
            self.line("restrict")
        )
        .into_bytes()
    }

    /// From the completion line on.
    pub(super) fn tail(&self, complete: &str) -> Vec<u8> {
        let unrestrict = self.line("unrestrict");
        format!("\n{unrestrict}-- pgark: complete, {complete}\n\\endif\n").into_bytes()
    }

    /// A query of our own with a `\gexec` behind it, which `\restrict` would not let through.
    pub(super) fn gexec(&self, query: &[u8]) -> Vec<u8> {
        [
            self.line("unrestrict").as_bytes(),
            query,
            b" \\gexec\n",
            self.line("restrict").as_bytes(),
        ]
        .concat()
    }

    fn line(&self, command: &str) -> String {
        self.key
            .as_ref()
            .map_or_else(String::new, |key| format!("\\{command} {key}\n"))
    }
}

/// Collects statements into frames.
pub(super) struct Statements<'a> {
    sender: &'a FrameSender,
    raw: Vec<u8>,
    parts: Vec<Part>,
}

impl<'a> Statements<'a> {
    pub(super) fn new(sender: &'a FrameSender) -> Self {
        Statements {
            sender,
            raw: sender.buffer(),
            parts: Vec::new(),
        }
    }

    /// Adds one of pgark's own blocks.
    pub(super) fn block(&mut self, role: Role, sql: &[u8]) -> Result<()> {
        let stage = if role == Role::Properties {
            Stage::Last
        } else {
            Stage::Pre
        };
        self.add(
            Part {
                at: 0,
                len: 0,
                role,
                stage,
                id: 0,
                desc: String::new(),
                name: String::new(),
                deps: Vec::new(),
            },
            sql,
        )
    }

    /// Adds a part; its place is filled in here.
    pub(super) fn add(&mut self, mut part: Part, sql: &[u8]) -> Result<()> {
        if !sql.is_empty() && part.role == Role::Entry {
            self.raw
                .extend_from_slice(format!("\n-- {} {}\n", part.desc, part.name).as_bytes());
        }
        part.at = self.raw.len();
        part.len = sql.len();
        self.raw.extend_from_slice(sql);
        self.parts.push(part);
        if self.raw.len() >= FRAME_BYTES {
            self.flush()
        } else {
            Ok(())
        }
    }

    /// Sends what was collected.
    pub(super) fn flush(&mut self) -> Result<()> {
        if self.parts.is_empty() {
            return Ok(());
        }
        let raw = std::mem::replace(&mut self.raw, self.sender.buffer());
        let meaning = Meaning::Sql {
            parts: std::mem::take(&mut self.parts),
        };
        self.sender.send(raw, meaning.to_json()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_written_only_for_servers_whose_psql_knows_it() {
        for (version, known) in [
            (150_013, false),
            (150_014, true),
            (140_018, false),
            (180_000, true),
            (170_005, false),
            (160_010, true),
        ] {
            let head = String::from_utf8(Envelope::new(version).unwrap().head("x")).unwrap();
            assert_eq!(head.contains("\\restrict"), known, "{version}");
            assert!(head.starts_with("\\if true\n"));
        }
    }

    #[test]
    fn a_newline_in_a_name_cannot_leave_its_comment() {
        let head =
            String::from_utf8(Envelope::new(150_000).unwrap().head("of \"a\n\\! rm\"")).unwrap();
        assert!(head.contains("-- pgark: of \"a \\! rm\"\n"), "{head}");
    }
}
