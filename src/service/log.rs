//! The service's log: one event a line on stderr, in the form that `LOG_FORMAT` names.
//!
//! Invariant: an event is one line, whatever a message holds; a log that cannot be written stops
//! nothing. A file that gets the log as well is bounded, as the journal is.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;

use super::journal;

/// Two threads that find the file too long must not both rename it.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// How loud an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Info,
    Warn,
    Error,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        }
    }
}

/// The form of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
    Logfmt,
}

/// The log; cheap to copy.
#[derive(Debug, Clone, Copy)]
pub struct Log {
    format: Format,
    file: Option<&'static Path>,
    /// Before each message: whose it is, where there are several clusters.
    cluster: Option<&'static str>,
}

impl Log {
    /// `format` as `LOG_FORMAT` names it.
    #[must_use]
    pub fn new(format: &str) -> Log {
        let format = match format {
            "json" => Format::Json,
            "logfmt" => Format::Logfmt,
            _ => Format::Text,
        };
        Log {
            format,
            file: None,
            cluster: None,
        }
    }

    /// The same for one of several clusters. It lives as long as the service.
    #[must_use]
    pub fn of_cluster(self, name: &str) -> Log {
        Log {
            cluster: Some(Box::leak(name.to_owned().into_boxed_str())),
            ..self
        }
    }

    /// The same, that also writes to a file. A service has one log as long as it lives, so the
    /// path is never freed.
    #[must_use]
    pub fn with_file(self, path: Option<&Path>) -> Log {
        let leak = |path: &Path| -> &'static Path { Box::leak(path.to_owned().into_boxed_path()) };
        Log {
            file: path.map(leak),
            ..self
        }
    }

    pub fn info(&self, message: &str) {
        self.write(Level::Info, message);
    }

    pub fn warn(&self, message: &str) {
        self.write(Level::Warn, message);
    }

    pub fn error(&self, message: &str) {
        self.write(Level::Error, message);
    }

    fn write(self, level: Level, message: &str) {
        let named = self.cluster.map(|name| format!("{name}: {message}"));
        let message = named.as_deref().unwrap_or(message);
        let line = line(self.format, level, message, crate::clock::now());
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = std::io::stderr().write_all(line.as_bytes());
        if let Some(path) = self.file {
            let _ = journal::append_text(path, &line);
        }
    }
}

fn line(format: Format, level: Level, message: &str, at: Timestamp) -> String {
    let mut line = match format {
        Format::Text => {
            let mark = match level {
                Level::Info => "",
                Level::Warn => "warning: ",
                Level::Error => "error: ",
            };
            format!("{at} {mark}{}", message.trim_end().replace('\n', "; "))
        }
        Format::Json => serde_json::json!({
            "time": at, "level": level.word(), "message": message.trim_end(),
        })
        .to_string(),
        Format::Logfmt => {
            let mut line = format!("time={at} level={} msg=", level.word());
            // JSON's quotes and escapes are logfmt's.
            let _ = write!(line, "{}", serde_json::Value::from(message.trim_end()));
            line
        }
    };
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_in_every_form() {
        let at: Timestamp = "2025-01-22T02:00:00Z".parse().unwrap();
        let text = |format| line(format, Level::Warn, "a \"b\"\nhint: c\n", at);
        assert_eq!(
            text(Format::Text),
            "2025-01-22T02:00:00Z warning: a \"b\"; hint: c\n"
        );
        assert_eq!(
            text(Format::Logfmt),
            "time=2025-01-22T02:00:00Z level=warn msg=\"a \\\"b\\\"\\nhint: c\"\n"
        );
        let json: serde_json::Value = serde_json::from_str(&text(Format::Json)).unwrap();
        assert_eq!(json["message"], "a \"b\"\nhint: c");
        assert_eq!(json["level"], "warn");
    }
}
