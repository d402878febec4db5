//! Unix: messages to other processes: the successor, the supervisor, the service manager.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use rustix::io::Errno;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

pub(crate) use super::ancillary::receive_all;
pub(crate) use crate::sys::native::peer_packet::{create_pair, receive, send_packet};
pub(crate) use crate::sys::native::socket::allow_descriptors;

use super::ancillary;
use crate::sys::Descriptor;

/// Sends a message, and up to 253 descriptors with it. Does not wait, even if another process has
/// made the socket a blocking one.
pub(crate) fn send(socket: &impl AsFd, text: &str, descriptors: &[&Descriptor]) -> io::Result<()> {
    ancillary::send(socket, text.as_bytes(), descriptors).map(drop)
}

/// Sends a message as [`send_packet`], to an end of a pair that another process has sent.
pub(crate) fn send_answer(
    reply_to: &Descriptor,
    text: &str,
    descriptors: &[&Descriptor],
) -> io::Result<()> {
    send_packet(&SockRef::from(reply_to), text, descriptors)
}

/// Whether a send that has failed may succeed later: the receiver's queue is full, or descriptors or
/// memory are lacking.
pub(crate) fn is_temporary(error: &io::Error) -> bool {
    let shortage = matches!(
        Errno::from_io_error(error),
        Some(Errno::NOBUFS | Errno::NOMEM | Errno::MFILE | Errno::NFILE)
    );
    shortage || error.kind() == io::ErrorKind::WouldBlock
}

/// A non-blocking socket for notifications to the service manager (sd_notify(3)). `manager` is the
/// value of NOTIFY_SOCKET: a path, or an abstract name behind an @.
pub(crate) fn connect_to_manager(manager: &OsStr) -> io::Result<Socket> {
    let addr = match manager.as_bytes().strip_prefix(b"@") {
        Some(name) => SockAddr::unix(OsStr::from_bytes(&[b"\0", name].concat()))?,
        None => SockAddr::unix(manager)?,
    };
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    socket.connect(&addr)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_send_does_not_wait_for_a_peer_that_does_not_read() {
        let Ok((own, _other)) = create_pair() else {
            return;
        };
        own.set_nonblocking(false).unwrap();
        let error = loop {
            if let Err(error) = send(&own, "text", &[]) {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_message_that_is_cut_is_an_error() {
        let Ok((own, other)) = create_pair() else {
            return;
        };
        let descriptor = other.as_fd().try_clone_to_owned().unwrap();
        for (text, descriptors, is_whole) in [
            ("1234", 0, true),
            ("1234", 1, true),
            ("12345", 0, false),
            ("1234", 10, false),
        ] {
            send_packet(&own, text, &vec![&descriptor; descriptors]).unwrap();
            match receive(&other, &mut [0; 4]) {
                Ok((size, got)) => {
                    assert!(is_whole && size == text.len());
                    assert_eq!(got.is_some(), descriptors == 1);
                }
                Err(error) => {
                    assert!(!is_whole && error.kind() == io::ErrorKind::InvalidData);
                }
            }
        }
    }

    #[test]
    fn a_shortage_passes_and_a_missing_manager_does_not() {
        for (errno, expected) in [
            (Errno::AGAIN, true),
            (Errno::NOBUFS, true),
            (Errno::NOMEM, true),
            (Errno::MFILE, true),
            (Errno::NFILE, true),
            (Errno::CONNREFUSED, false),
            (Errno::NOENT, false),
            (Errno::MSGSIZE, false),
        ] {
            assert_eq!(is_temporary(&errno.into()), expected, "{errno}");
        }
    }
}
