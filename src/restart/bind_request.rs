//! Listeners from the supervisor: what this process does not have yet, it asks for, so that all processes of the service
//! have the same, and none of them needs the privileges for it.

use std::io;
use std::time::{Duration, Instant};

use crate::clock::Deadline;
use crate::listener::{Bind, BindError, Listener};
use crate::notify;
use crate::sys::{self, Interest};

/// How long the supervisor may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How an answer begins that brings no listener: the address is in use, the system says no, or something else.
const IN_USE: &str = "in-use";
const ERRNO: &str = "errno";
const OTHER: &str = "other";

/// Has the supervisor bind.
pub(super) fn bind(generation: u64, bind: Bind) -> Result<Listener, BindError> {
    bind.bind_by(|bind, addr| match bind.to_words() {
        Some(words) => ask(generation, bind, &words),
        None => bind.try_bind(addr),
    })
}

fn ask(generation: u64, bind: &Bind, words: &str) -> io::Result<Listener> {
    let (own, theirs) = sys::message::create_pair()?;
    notify::bind(generation, words, &sys::descriptor::duplicate(&theirs)?)?;
    drop(theirs);
    let deadline = Deadline::after(Instant::now(), TIMEOUT);
    let (text, descriptor) = loop {
        match sys::message::receive_with_descriptor(&own) {
            Ok(Some(answer)) => break answer,
            Ok(None) => return Err(io::Error::other("the supervisor does not answer")),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let now = Instant::now();
                if deadline.passed(now) {
                    return Err(io::Error::other("the supervisor takes too long to answer"));
                }
                sys::socket::wait_ready(&own, Interest::Read, deadline.left(now))?;
            }
            Err(error) => return Err(error),
        }
    };
    match descriptor {
        Some(descriptor) => bind
            .clone()
            .adopt(sys::descriptor::into_socket(descriptor)?, false),
        None => Err(error_of(&text)),
    }
}

/// An error, as it goes over the wire.
pub(crate) fn text_of(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => format!("{ERRNO} {number}"),
        None if error.kind() == io::ErrorKind::AddrInUse => format!("{IN_USE} {error}"),
        None => format!("{OTHER} {error}"),
    }
}

fn error_of(text: &str) -> io::Error {
    let (kind, rest) = text.split_once(' ').unwrap_or((OTHER, text));
    match (kind, rest.parse()) {
        (ERRNO, Ok(number)) => io::Error::from_raw_os_error(number),
        (IN_USE, _) => io::Error::new(io::ErrorKind::AddrInUse, rest),
        _ => io::Error::other(rest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_and_options_go_there_and_back() {
        let in_use = io::Error::new(io::ErrorKind::AddrInUse, "somebody is there");
        let refused = io::Error::from_raw_os_error(13);
        for error in [
            in_use,
            refused,
            io::Error::other("no"),
            io::Error::other(""),
        ] {
            let back = error_of(&text_of(&error));
            assert_eq!(
                (back.kind(), back.to_string()),
                (error.kind(), error.to_string())
            );
        }
        let bind = Bind::new("127.0.0.1:80")
            .name("a b")
            .backlog(7)
            .fast_open(3)
            .reuse_port(true);
        let words = bind.to_words().unwrap();
        assert_eq!(Bind::from_words(&words).unwrap().to_words(), Some(words));
        for unfit in [
            Bind::new("nonsense"),
            Bind::new("127.0.0.1:80").name("a\tb"),
        ] {
            assert_eq!(unfit.to_words(), None);
        }
        for words in ["", "1", "1 2 3\t\t", "1 -1 -1 x false false\t\t127.0.0.1:1"] {
            assert!(Bind::from_words(words).is_none(), "{words:?}");
        }
    }
}
