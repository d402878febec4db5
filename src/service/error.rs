//! The errors of services, of any type, as `io::Error`s.

use std::error::Error;
use std::io;

/// The error itself if it is an `io::Error`. Otherwise an error with its text, which need not be
/// `Send`, and the kind of the `io::Error` in it.
pub(crate) fn into_io_error(error: impl Into<Box<dyn Error>>) -> io::Error {
    let error = match error.into().downcast::<io::Error>() {
        Ok(error) => return *error,
        Err(error) => error,
    };
    let kind = match io_error_in(&*error) {
        Some(found) if found.kind() != io::ErrorKind::WouldBlock || is_wait(found) => found.kind(),
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, format!("{error:#}"))
}

/// Whether an error may be the `WouldBlock` of a view of the connection, which a library may have
/// passed on in an error of its own, or made anew. An error of another socket has a code of the
/// system.
pub(crate) fn is_wait(error: &(dyn Error + 'static)) -> bool {
    let found = io_error_in(error);
    found.is_some_and(|it| it.kind() == io::ErrorKind::WouldBlock && it.raw_os_error().is_none())
}

/// The first `io::Error` among an error and its causes. An error that contains another one, as that
/// of [`io::Error::other`], has no kind of its own.
fn io_error_in<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        next = match error.downcast_ref::<io::Error>() {
            // The `source` of an `io::Error` is that of the error in it.
            Some(error) => match error.get_ref() {
                Some(inner) if error.kind() == io::ErrorKind::Other => Some(inner as _),
                _ => return Some(error),
            },
            None => error.source(),
        };
    }
    None
}
