//! Why there was no restart.

use std::fmt;
use std::process::ExitStatus;

/// Why this process was not replaced. It serves on, unless [`kind`](Self::kind) says otherwise.
#[derive(Clone, Debug)]
pub struct RestartError {
    kind: RestartErrorKind,
    why: String,
    status: Option<ExitStatus>,
    stderr: Vec<String>,
}

/// The kinds of [`RestartError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RestartErrorKind {
    /// The server was built without [`Builder::restart`](crate::Builder::restart).
    Off,
    /// No process could be started: the program is missing, or cannot be run.
    Start,
    /// The successor ended before it had taken over.
    Ended,
    /// The successor was not ready in time, and was ended.
    TimedOut,
    /// The server is being stopped, or was stopped.
    Stopping,
    /// The process has been replaced already.
    Replaced,
    /// The call came from a thread of the server's, which would have to wait for itself.
    OwnThread,
}

impl RestartError {
    pub(crate) fn new(kind: RestartErrorKind, why: impl Into<String>) -> Self {
        Self {
            kind,
            why: why.into(),
            status: None,
            stderr: Vec::new(),
        }
    }

    pub(super) fn with(mut self, status: Option<ExitStatus>, stderr: Vec<String>) -> Self {
        self.status = status;
        self.stderr = stderr;
        self
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> RestartErrorKind {
        self.kind
    }

    /// How the successor ended, if it did and that is known.
    pub fn status(&self) -> Option<ExitStatus> {
        self.status
    }

    /// The last lines that the successor wrote to standard error, at most 20.
    pub fn stderr(&self) -> &[String] {
        &self.stderr
    }
}

impl fmt::Display for RestartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)?;
        if let Some(status) = self.status {
            write!(f, " ({status})")?;
        }
        let lines: Vec<&str> = self.stderr.iter().map(|line| line.trim()).collect();
        match &lines[lines.len().saturating_sub(3)..] {
            [] => Ok(()),
            last => write!(f, "; its last words: {}", last.join(" | ")),
        }
    }
}

impl std::error::Error for RestartError {}
