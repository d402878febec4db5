//! The channels for open connections: to the process that serves in place of this one, and from
//! processes that this one has replaced.
//!
//! A channel is a socket pair. One end goes to the other process with a message that names the
//! server, over the handshake socket or over a lane; the mover has the other end.

use std::io;

use socket2::Socket;

use super::hand_over::{Successor, SuccessorStage};
use super::{RestartableServer, Restarter, ServerStage};
use crate::log;
use crate::restart::link::send_with;
use crate::sys::{self, Descriptor};
use crate::wire::{HandshakeMessage, ServerId};

impl Restarter {
    /// Another process serves, on the listeners at the positions `taken`: the servers drain. Their
    /// connections move to that process, if it adopts connections.
    pub(super) fn drain_after_replacement(&self, server: &dyn RestartableServer, taken: &[u32]) {
        let to = self.adopting_process();
        server.drain_after_replacement(taken, &mut |id| open_channel(to?, id));
    }

    /// The socket over which channels go to the process that serves in place of this one. `None` if there
    /// is none, or it does not adopt connections.
    fn adopting_process(&self) -> Option<&Socket> {
        let adopts = |successor: &&Successor| {
            successor.stage == SuccessorStage::Serving && self.moves_connections && successor.adopts
        };
        let successor = self.successor.as_ref().filter(adopts);
        let recipient = self.recipient.as_ref();
        recipient.or_else(|| successor.map(|successor| successor.link.socket()))
    }

    /// Passes the channel for connections of a predecessor on. If no process adopts connections, the
    /// end of the channel tells the predecessor that they stay.
    pub(super) fn pass_channel_on(&self, server_id: ServerId, channel: Socket) {
        match self.adopting_process() {
            Some(to) => {
                // A failure is logged, and closes the channel.
                send_channel(to, server_id, channel);
            }
            None => log::debug!("connections of another process stay there"),
        }
    }

    /// Open connections of another process come over this channel. Its end tells that process that
    /// they stay.
    pub(super) fn adopt_connections(
        &self,
        server: &dyn RestartableServer,
        server_id: ServerId,
        channel: Option<Descriptor>,
    ) {
        let channel = channel.map(sys::descriptor::into_socket);
        match (&self.stage, channel) {
            (ServerStage::Serving, Some(Ok(channel))) => {
                server.adopt_connections(&server_id, channel);
            }
            (ServerStage::Replaced, Some(Ok(channel))) => {
                self.pass_channel_on(server_id, channel);
            }
            (_, Some(Err(error))) => {
                log::error!("cannot adopt the connections of another process: {error}");
            }
            (ServerStage::Stopping, _) => {}
            (_, _) => log::debug!("ignoring connections of another process: not expected now"),
        }
    }
}

/// Sends another process one end of a socket pair, for the connections of this server. Returns the
/// other end.
fn open_channel(to: &Socket, server_id: ServerId) -> Option<Socket> {
    let failed = |error: &io::Error| {
        log::error!("open connections stay: cannot make a channel for them: {error}");
    };
    let channel = sys::message::create_channel();
    let (own_end, other_end) = channel.inspect_err(failed).ok()?;
    send_channel(to, server_id, other_end).then_some(own_end)
}

/// Sends another process a channel, for the connections of this server. False if that failed.
fn send_channel(to: &Socket, server_id: ServerId, channel: Socket) -> bool {
    let message = HandshakeMessage::Connections(server_id);
    let sent = sys::descriptor::from_socket(channel)
        .and_then(|descriptor| send_with(to, &message, &descriptor));
    let failed = |error: &io::Error| {
        log::error!("open connections stay: cannot send a channel for them: {error}");
    };
    sent.inspect_err(failed).is_ok()
}
