//! Unix: messages to other processes: the successor, the supervisor, the service manager.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

pub(crate) use super::ancillary::receive_all;
pub(crate) use crate::sys::native::packet::{
    PASSES_CONNECTIONS, create_channel, receive_sockets, send_sockets,
};
pub(crate) use crate::sys::native::peer_packet::{create_pair, receive, send_packet};
pub(crate) use crate::sys::native::socket::allow_descriptors;

use super::ancillary;
use super::socket::wait_ready;
use crate::sys::{Descriptor, Interest};

/// Sends a message, and up to 253 descriptors with it. Does not wait, even if another process has
/// made the socket a blocking one.
pub(crate) fn send(socket: &impl AsFd, text: &str, descriptors: &[&Descriptor]) -> io::Result<()> {
    ancillary::send(socket, text.as_bytes(), descriptors).map(drop)
}

/// Sends a message as [`send_packet`], to an end of a pair that another process has sent.
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
pub(crate) fn send_answer(
    reply_to: &Descriptor,
    text: &str,
    descriptors: &[&Descriptor],
) -> io::Result<()> {
    send_packet(&SockRef::from(reply_to), text, descriptors)
}

/// Whether a send that has failed may succeed later: the receiver's queue is full, descriptors or
/// memory are lacking, or too many descriptors are under way (RLIMIT_NOFILE in getrlimit(2)).
pub(crate) fn is_temporary(error: &io::Error) -> bool {
    let shortage = matches!(
        Errno::from_io_error(error),
        Some(Errno::NOBUFS | Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::TOOMANYREFS)
    );
    shortage || error.kind() == io::ErrorKind::WouldBlock
}

/// A connection to the service manager, for notifications (sd_notify(3)).
#[derive(Debug)]
pub(crate) struct ManagerConnection(Socket);

impl ManagerConnection {
    /// `manager` is the value of NOTIFY_SOCKET: a path, or an abstract name behind an @.
    pub(crate) fn open(manager: &OsStr) -> io::Result<Self> {
        connect_to_manager(manager).map(Self)
    }

    /// Sends a notification. Does not wait.
    pub(crate) fn send(&self, text: &str, descriptors: &[&Descriptor]) -> io::Result<()> {
        send(&self.0, text, descriptors)
    }

    /// Waits until the manager may take a notification, for at most this long.
    pub(crate) fn wait_until_writable(&self, limit: Duration) -> io::Result<()> {
        wait_ready(&self.0, Interest::Write, Some(limit)).map(drop)
    }
}

/// The channel of the manager's answer to a notification: a socket pair, of which the manager gets
/// one end.
#[derive(Debug)]
pub(crate) struct AnswerChannel {
    own_end: Socket,
    manager_end: Descriptor,
}

impl AnswerChannel {
    pub(crate) fn create() -> io::Result<Self> {
        let (own_end, manager_end) = create_pair()?;
        let manager_end = manager_end.into();
        Ok(Self {
            own_end,
            manager_end,
        })
    }

    /// What goes with the notification.
    pub(crate) fn descriptors(&self) -> Vec<&Descriptor> {
        vec![&self.manager_end]
    }

    /// Receives the answer to a notification that was sent on this connection, as [`receive`] does.
    /// The length is 0 if the manager only closes its end. Without a limit, waits for ever.
    ///
    /// # Errors
    ///
    /// `TimedOut`, and errors of the system.
    pub(crate) fn receive(
        self,
        _sent_on: ManagerConnection,
        limit: Option<Duration>,
        buffer: &mut [u8],
    ) -> io::Result<(usize, Option<Descriptor>)> {
        let Self {
            own_end,
            manager_end,
        } = self;
        drop(manager_end);
        own_end.set_nonblocking(false)?;
        // A time-out of zero would be none.
        own_end.set_read_timeout(limit.map(|limit| limit.max(Duration::from_millis(1))))?;
        match receive(&own_end, buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(io::ErrorKind::TimedOut.into())
            }
            received => received,
        }
    }
}

/// A non-blocking socket for notifications.
fn connect_to_manager(manager: &OsStr) -> io::Result<Socket> {
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
