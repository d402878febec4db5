//! Windows: notifications to a supervisor of this crate, on a named pipe.
//!
//! A notification is a message, on a connection of its own. The supervisor answers on the same
//! connection, or closes it when it has handled the notification. Another program can notify by the
//! same text: it opens the pipe that NOTIFY_SOCKET names, and writes the lines at once.

use std::ffi::{OsStr, OsString};
use std::io;
use std::time::Duration;

use super::pipe::{PipeClient, PipeKind, wait_for_instance};
use super::socket_message::{self, MAX_MESSAGE};
use crate::sys::Descriptor;

/// A connection to the supervisor.
#[derive(Debug)]
pub(crate) struct ManagerConnection {
    pipe: PipeClient,
    name: OsString,
}

impl ManagerConnection {
    /// `manager` is the value of NOTIFY_SOCKET, the name of a pipe.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if the supervisor takes no notification now.
    pub(crate) fn open(manager: &OsStr) -> io::Result<Self> {
        Ok(Self {
            pipe: PipeClient::open(manager, PipeKind::Messages)?,
            name: manager.to_owned(),
        })
    }

    /// Sends a notification. Does not wait.
    pub(crate) fn send(&self, text: &str, descriptors: &[&Descriptor]) -> io::Result<()> {
        let bytes = socket_message::make_message(text, descriptors, self.pipe.server_pid()?)?;
        match self.pipe.write(&bytes, Some(Duration::ZERO)) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                Err(io::ErrorKind::WouldBlock.into())
            }
            Err(error) => Err(error),
        }
    }

    /// Waits until the supervisor may take a notification, for at most this long.
    pub(crate) fn wait_until_writable(&self, limit: Duration) -> io::Result<()> {
        wait_for_instance(&self.name, limit)
    }
}

/// The channel of the supervisor's answer to a notification: the connection of the notification.
#[derive(Debug)]
pub(crate) struct AnswerChannel(());

impl AnswerChannel {
    pub(crate) fn create() -> io::Result<Self> {
        Ok(Self(()))
    }

    /// Nothing goes with the notification.
    pub(crate) fn descriptors(&self) -> Vec<&Descriptor> {
        Vec::new()
    }

    /// Receives the answer to a notification that was sent on this connection, and the answer's
    /// descriptor. The length is 0 if the supervisor only closes the connection. Without a limit,
    /// waits for ever.
    ///
    /// # Errors
    ///
    /// `TimedOut`, and errors of the system.
    pub(crate) fn receive(
        self,
        sent_on: ManagerConnection,
        limit: Option<Duration>,
        buffer: &mut [u8],
    ) -> io::Result<(usize, Option<Descriptor>)> {
        let mut message = vec![0; MAX_MESSAGE];
        let size = sent_on.pipe.read(&mut message, limit)?;
        let (text, sockets) = socket_message::split_message(&message[..size]);
        // First, because an error must leave none of them open.
        let descriptors = socket_message::import_sockets(sockets)?;
        let into = buffer
            .get_mut(..text.len())
            .ok_or(io::ErrorKind::InvalidData)?;
        into.copy_from_slice(text);
        Ok((text.len(), descriptors.into_iter().next()))
    }
}
