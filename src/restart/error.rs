//! Why a restart failed.

use std::error::Error;
use std::fmt;
use std::io;
use std::process::ExitStatus;
use std::sync::Arc;

/// Why this process was not replaced. It goes on serving, unless [`kind`](Self::kind) says
/// otherwise.
#[derive(Clone)]
pub struct RestartError {
    kind: RestartErrorKind,
    why: String,
    source: Option<Arc<io::Error>>,
    status: Option<ExitStatus>,
    stderr: Vec<String>,
}

/// The kinds of [`RestartError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RestartErrorKind {
    /// The server was built without [`Builder::restart`](crate::Builder::restart).
    Off,
    /// No process could be started: the program is missing, or cannot be run. The
    /// [`source`](Error::source) is the system's error.
    Start,
    /// The successor exited before it had taken over.
    Ended,
    /// The successor was not ready in time, and was ended.
    TimedOut,
    /// The state could not be handed over exactly, see
    /// [`Restart::exact_state`](crate::Restart::exact_state).
    State,
    /// The server is being stopped, or was stopped.
    Stopping,
    /// The process has been replaced already, and could not pass the request on: its successor has
    /// ended, or does not answer.
    Replaced,
    /// The call came from a thread of the server, which would wait for itself.
    OwnThread,
}

impl RestartError {
    pub(crate) fn new(kind: RestartErrorKind, why: impl Into<String>) -> Self {
        Self {
            kind,
            why: why.into(),
            source: None,
            status: None,
            stderr: Vec::new(),
        }
    }

    pub(super) fn with_source(mut self, source: io::Error) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// Adds how the successor ended, and the last lines of its standard error.
    pub(super) fn with_exit(mut self, status: Option<ExitStatus>, stderr: Vec<String>) -> Self {
        self.status = status;
        self.stderr = stderr;
        self
    }

    /// The reason without the exit status and the output.
    pub(super) fn why(&self) -> &str {
        &self.why
    }

    /// The number of the system's error, if there is one.
    pub(super) fn errno(&self) -> Option<i32> {
        self.source.as_ref()?.raw_os_error()
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> RestartErrorKind {
        self.kind
    }

    /// The successor's exit status; `None` if the successor has not exited, or if the status is not
    /// known.
    pub fn status(&self) -> Option<ExitStatus> {
        self.status
    }

    /// The last lines that the successor wrote to standard error before it was ready, at most 20.
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
            last => write!(f, "; its last output: {}", last.join(" | ")),
        }
    }
}

/// The text of the error, as `main` prints it.
impl fmt::Debug for RestartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error for RestartError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_of_a_failed_start_is_kept() {
        let cause = io::Error::from(io::ErrorKind::NotFound);
        let error = RestartError::new(RestartErrorKind::Start, "no").with_source(cause);
        let source = error.source().and_then(|source| source.downcast_ref());
        assert_eq!(source.map(io::Error::kind), Some(io::ErrorKind::NotFound));
    }

    #[test]
    fn the_last_lines_of_output_are_shown() {
        let lines = ["a", " b", "c", "d"].map(str::to_owned).to_vec();
        let error = RestartError::new(RestartErrorKind::Ended, "it ended").with_exit(None, lines);
        assert_eq!(error.to_string(), "it ended; its last output: b | c | d");
    }
}
