//! Why an address cannot be listened on.

use std::fmt;
use std::io;

/// An address that could not be listened on.
pub struct BindError {
    /// The address as text. `None` if it is no address.
    pub(super) shown: Option<String>,
    pub(super) attempts: u32,
    pub(super) cause: io::Error,
}

impl BindError {
    /// How often the bind was tried.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    pub(crate) fn into_cause(self) -> io::Error {
        self.cause
    }

    /// The kind of the last error.
    pub fn kind(&self) -> io::ErrorKind {
        self.cause.kind()
    }
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(addr) = &self.shown else {
            return self.cause.fmt(f);
        };
        write!(f, "cannot listen on {addr}: {}", self.cause)?;
        match self.attempts {
            0 | 1 => Ok(()),
            tries => write!(f, " (tried {tries} times)"),
        }
    }
}

/// The text of the error with its cause, as `main` prints it.
impl fmt::Debug for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}

impl From<BindError> for io::Error {
    fn from(error: BindError) -> Self {
        Self::new(error.kind(), error)
    }
}
