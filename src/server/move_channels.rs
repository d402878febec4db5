//! The channels for open connections that the restarter has opened for a server.

use std::collections::VecDeque;

use parking_lot::Mutex;
use socket2::Socket;

/// Channels for open connections, which the restarter has opened for this server.
#[derive(Default)]
pub(super) struct MoveChannels(Mutex<Channels>);

#[derive(Default)]
struct Channels {
    /// To the successor.
    outgoing: Option<Socket>,
    /// From predecessors.
    incoming: VecDeque<Socket>,
    /// The server has stopped.
    is_closed: bool,
}

impl MoveChannels {
    /// Leaves the channel to the successor for the main thread. If the server has stopped, the
    /// channel is closed.
    pub(super) fn set_outgoing(&self, channel: Option<Socket>) {
        let mut channels = self.0.lock();
        if !channels.is_closed {
            channels.outgoing = channel;
        }
    }

    pub(super) fn take_outgoing(&self) -> Option<Socket> {
        self.0.lock().outgoing.take()
    }

    /// Leaves a channel from a predecessor for the main thread. If the server has stopped, the
    /// channel is closed.
    pub(super) fn add_incoming(&self, channel: Socket) {
        let mut channels = self.0.lock();
        if !channels.is_closed {
            channels.incoming.push_back(channel);
        }
    }

    pub(super) fn take_incoming(&self) -> Option<Socket> {
        self.0.lock().incoming.pop_front()
    }

    /// Closes the channels, and all that come later.
    pub(super) fn close(&self) {
        let mut channels = self.0.lock();
        channels.is_closed = true;
        channels.outgoing = None;
        channels.incoming.clear();
    }
}
