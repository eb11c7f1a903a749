//! The one error type: what happened, and the way out.
//!
//! Invariant: the `Kind` alone decides the exit code (design §6). `fact` is a whole
//! sentence without a trailing full stop; `hint` tells the reader what to do next.
//! Neither ever holds a secret.

use std::fmt;

/// What an error means to the caller. Each kind is one exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Exit 1: the work failed; nothing was lost.
    Failed,
    /// Exit 2: wrong usage or configuration.
    Usage,
    /// Exit 3: some databases or stores failed, others succeeded.
    Partial,
    /// Exit 4: damage found; verification or drill failed.
    Damage,
    /// Exit 5: the target cannot be reached; nothing was touched.
    Unreachable,
    /// Exit 6: another run holds the cluster.
    Busy,
    /// Exit 128 + n: ended by signal n.
    Signal(u8),
}

impl Kind {
    /// The process's exit code for this kind.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Failed => 1,
            Kind::Usage => 2,
            Kind::Partial => 3,
            Kind::Damage => 4,
            Kind::Unreachable => 5,
            Kind::Busy => 6,
            Kind::Signal(signal) => 128_u8.saturating_add(signal),
        }
    }
}

/// Why a store refused, or a search in it, where a caller decides by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The name is taken; nothing was overwritten.
    Exists,
    /// The disk or the quota is full.
    NoSpace,
    /// Several fit what was asked for: the caller must say which, and no other store knows it.
    Ambiguous,
}

/// A failure with its way out.
#[derive(Debug, Clone)]
pub struct Error {
    pub kind: Kind,
    pub fact: String,
    pub hint: Option<String>,
    /// The server's SQLSTATE when PostgreSQL reported the failure.
    pub sqlstate: Option<String>,
    /// Why a store refused, where a caller decides by it.
    pub cause: Option<Cause>,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn new(kind: Kind, fact: impl Into<String>) -> Self {
        Error {
            kind,
            fact: fact.into(),
            hint: None,
            sqlstate: None,
            cause: None,
        }
    }

    pub fn failed(fact: impl Into<String>) -> Self {
        Self::new(Kind::Failed, fact)
    }

    pub fn usage(fact: impl Into<String>) -> Self {
        Self::new(Kind::Usage, fact)
    }

    pub fn damage(fact: impl Into<String>) -> Self {
        Self::new(Kind::Damage, fact)
    }

    pub fn busy(fact: impl Into<String>) -> Self {
        Self::new(Kind::Busy, fact)
    }

    /// Adds the way out.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Puts what was being done before the fact: `context: fact`.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.fact = format!("{context}: {}", self.fact);
        self
    }

    /// Notes why a store refused.
    #[must_use]
    pub fn cause(mut self, cause: Cause) -> Self {
        self.cause = Some(cause);
        self
    }

    /// Whether a name was taken.
    #[must_use]
    pub fn is_exists(&self) -> bool {
        self.cause == Some(Cause::Exists)
    }

    /// Whether the disk or the quota is full.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        self.cause == Some(Cause::NoSpace)
    }

    /// Whether PostgreSQL reported this SQLSTATE.
    #[must_use]
    pub fn is_sqlstate(&self, code: &str) -> bool {
        self.sqlstate.as_deref() == Some(code)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.fact)?;
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        // One of ours that travelled through a `Read` or `Write` keeps its kind and hint.
        match error.downcast::<Error>() {
            Ok(ours) => ours,
            Err(error) => Error::failed(error.to_string()),
        }
    }
}

/// Runs a worker of `what`; a panic becomes an error, so that those who work beside it stop too.
///
/// # Errors
/// The worker's own, or `Failed` for the panic (whose message the panic hook has printed).
pub fn caught<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(Error::failed(format!("a worker of {what} panicked")).hint("please report this"))
    })
}

/// Adds context to a foreign error on its way out.
pub trait Context<T> {
    /// Turns the failure into an [`Error`] that says what was being done.
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| error.into().context(what()))
    }
}
