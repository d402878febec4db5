//! The lane of a process: over it, the supervisor tells the process to move its connections to another
//! process, and to end. The supervisor does so when it reduces the number of processes, and when a
//! successor that it has started itself is ready.
//!
//! A lane is a socket pair. A supervised process whose connections can move sends one end to its
//! supervisor when it starts, and reads the other end. In place of SIGTERM, the supervisor sends two
//! messages over the lane:
//!
//! ```text
//! supervisor                surplus process                  process that goes on
//! Recipient, with the
//! lane of the other     ─►
//! Leave                 ─►  close the listeners, drain
//!                           Connections                 ─►   adopt the open connections
//! ```
//!
//! From then on, the surplus process is like one that was replaced: its stage is `Replaced`, idle
//! connections move, and busy ones follow when they are between two messages. Those that cannot move
//! have the idle grace, and SIGTERM stops it as any process that drains.
//!
//! `Leave` is a message of its own, so that a process that has no descriptor left for the lane of the
//! other process learns that it has to stop.
//!
//! A process whose servers do not handle signals opens no lane: the application decides how it ends at
//! the signal. A process with [`Restart::pass_state`](crate::Restart::pass_state) or
//! [`Restart::exact_state`](crate::Restart::exact_state) opens no lane: the process that goes on has
//! another state, which the sessions of the connections may refer to.

use std::io;

use super::{LANE, RestartableServer, Restarter, ServerStage};
use crate::log;
use crate::notify;
use crate::restart::link::{Incoming, Link};
use crate::sys;
use crate::wire::HandshakeMessage;

impl Restarter {
    /// Leaves a lane with the supervisor, if connections of this process can go to other processes.
    pub(super) fn open_lane(&mut self, server: &dyn RestartableServer) {
        let has_state = self.state.is_some() || self.exact_state.is_some();
        let can_move = self.moves_connections && server.can_adopt() && !has_state;
        if self.lifeline.is_none() || !can_move || !server.handle_signals() {
            return;
        }
        let failed = |error: &io::Error| {
            log::error!("connections of this process will not move to other processes: {error}");
        };
        self.lane = self.create_lane().inspect_err(failed).ok();
    }

    fn create_lane(&self) -> io::Result<Link> {
        let (own_end, supervisor_end) = sys::message::create_pair()?;
        let lane = Link::new(own_end, &self.poller, LANE)?;
        let supervisor_end = sys::descriptor::from_socket(supervisor_end)?;
        notify::send_lane(self.generation, supervisor_end)?;
        Ok(lane)
    }

    pub(super) fn watch_lane(&mut self, server: &dyn RestartableServer) {
        while let Some(incoming) = self.lane.as_ref().and_then(Link::receive) {
            match incoming {
                Incoming::Message(HandshakeMessage::Connections(server_id), channel) => {
                    self.adopt_connections(server, server_id, channel);
                }
                Incoming::Message(HandshakeMessage::Recipient, lane) => {
                    let lane = lane.map(sys::descriptor::into_socket).transpose();
                    let failed = |error: &io::Error| log::error!("cannot use a lane: {error}");
                    self.recipient = lane.inspect_err(failed).ok().flatten();
                }
                Incoming::Message(HandshakeMessage::Leave, _) => self.leave(server),
                Incoming::Message(unexpected, _) => {
                    log::debug!("ignoring {unexpected:?} on the lane");
                }
                // The supervisor knows no lanes, or has died.
                Incoming::End => {
                    log::debug!("the lane of this process is closed");
                    self.lane = None;
                }
            }
        }
    }

    /// The connections of this process move to the recipient. During a restart, or without a recipient,
    /// this process stops.
    fn leave(&mut self, server: &dyn RestartableServer) {
        match self.stage {
            ServerStage::Replaced | ServerStage::Stopping => {}
            ServerStage::Serving if self.successor.is_none() && self.recipient.is_some() => {
                log::info!(
                    "leaving, as the supervisor asks: open connections move to another process"
                );
                self.stage = ServerStage::Replaced;
                // The recipient may have another program, which serves other listeners: the clients that
                // wait are accepted here, and move.
                self.drain_after_replacement(server, &[]);
            }
            _ => {
                log::info!(
                    "stopping, as the supervisor asks: no process can take the open connections now"
                );
                server.stop_in_drain_timeout();
            }
        }
    }
}
