//! Why a server or a supervisor did not start.

use std::error::Error;
use std::fmt;
use std::io;

/// Why a server or a supervisor could not start: an [`io::Error`], into which it converts, but its
/// `Debug` is its text, which `fn main() -> Result<(), Box<dyn Error>>` prints.
///
/// # Examples
///
/// ```
/// use std::io;
///
/// use handover::{Servers, StartError};
///
/// let error: StartError = Servers::new().run().unwrap_err();
/// assert_eq!(format!("{error:?}"), "there is no server to start");
/// assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
/// ```
pub struct StartError(io::Error);

impl StartError {
    /// The kind of the error.
    pub fn kind(&self) -> io::ErrorKind {
        self.0.kind()
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The text of the error, as `main` prints it.
impl fmt::Debug for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl Error for StartError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> Self {
        Self(error)
    }
}

impl From<StartError> for io::Error {
    fn from(error: StartError) -> Self {
        error.0
    }
}
