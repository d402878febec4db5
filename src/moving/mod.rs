//! Open connections move to the successor: its clients notice nothing of a restart.
//!
//! When a successor serves, and says that it adopts connections, the [`Mover`] of the old process
//! sends it those that are between two messages, and the [`Adopter`] of the new process takes them.
//! Each server of a process has a channel of its own, a socket pair. The handshake carries one end
//! (`HandshakeMessage::Connections`).
//!
//! ```text
//! mover                                                   adopter
//! claim, out of the poller, pack the session
//! a batch of records, with the sockets          ─►        make connections of them
//! close the sockets that are not refused        ◄─  Ack   serve them
//! take back those that are refused
//! ```
//!
//! # Each connection has one owner
//!
//! A connection is the mover's until the `Ack` is sent, and then the adopter's, except those that the
//! `Ack` refuses. The adopter neither reads nor writes before.
//!
//! - The mover takes a connection back if the `Ack` refuses it, or at the end-of-file of the channel
//!   if there is no `Ack`: then the successor has died, or stops. An `Ack` that was sent before the
//!   end is received before it.
//! - The mover closes its end of the channel when it has nothing in flight, or this process gives
//!   those in flight up. So an adopter that finds the channel closed, by the death of the other
//!   process, keeps what it has received.
//! - Neither of them shuts a socket down: that would end the connection in both processes.
//!
//! # The process in between is replaced
//!
//! A process that drains may have connections to move when its successor has been replaced as well.
//! The adopter of the process in between adopts the batches that have arrived, and ends. While an
//! exact state pauses the service, it adopts none. That process passes its end of the channel on to
//! its own successor, with the message that every channel comes with. Batches that are left in the
//! channel, or arrive later, go along. So each channel leads to
//! the newest process, and no process stays for the channel of its predecessor. If there is nobody to
//! pass the channel on to, it is closed: the connections of the mover drain.
//!
//! [`credit`] has the batches in flight, [`crate::wire`] the records, and
//! [`crate::parking`] what a connection is between two owners.

mod adopter;
mod credit;
mod mover;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::SeqCst};

use socket2::Socket;

use crate::log;
use crate::sys::{Interest, Poller};

pub(crate) use adopter::Adopter;
pub(crate) use mover::Mover;

/// Makes the poller report later messages too, on platforms where it reports a socket once.
fn rearm(poller: &Poller, channel: &Socket) -> io::Result<()> {
    match Poller::REPORTS_ONCE {
        true => poller.rearm(channel, 0, Interest::Read),
        false => Ok(()),
    }
}

/// Logs what may happen for each of many connections: once as a warning, then at debug level.
#[derive(Default)]
struct WarnOnce(AtomicBool);

impl WarnOnce {
    fn write(&self, text: fmt::Arguments<'_>) {
        match self.0.swap(true, SeqCst) {
            true => log::debug!("{text}"),
            false => log::warn!("{text}"),
        }
    }
}

/// Asks a mover or an adopter to end.
#[derive(Clone)]
pub(crate) struct EndRequest {
    made: Arc<AtomicU8>,
    /// The thread waits in it.
    poller: Arc<Poller>,
}

const LEAVE_CHANNEL: u8 = 1;
const END: u8 = 2;

impl EndRequest {
    pub(crate) fn new(poller: Arc<Poller>) -> Self {
        let made = Arc::default();
        Self { made, poller }
    }

    pub(crate) fn make(&self) {
        self.made.store(END, SeqCst);
        self.poller.wake();
    }

    /// Asks an adopter to end after the batches that have arrived, and to leave its channel: this
    /// process was replaced. During a pause, the adopter ends at once.
    pub(crate) fn ask_for_channel(&self) {
        self.made.fetch_max(LEAVE_CHANNEL, SeqCst);
        self.poller.wake();
    }

    /// Makes the thread look at the stage of the drain.
    pub(crate) fn wake(&self) {
        self.poller.wake();
    }

    fn is_made(&self) -> bool {
        self.made.load(SeqCst) == END
    }

    fn asks_for_channel(&self) -> bool {
        self.made.load(SeqCst) == LEAVE_CHANNEL
    }
}
