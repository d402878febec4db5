//! Systems without epoll or completion ports: a poller with one waiting thread, where an event
//! disarms its socket.

use std::io;
use std::time::Duration;

use polling::Event as Raw;
use socket2::Socket;

use crate::log;
use crate::sys::{Event, Interest};

/// See the contract in [`sys`](crate::sys).
#[derive(Debug)]
pub(crate) struct Poller(polling::Poller);

impl Poller {
    pub(crate) const SHARED: bool = false;
    pub(crate) const REPORTS_ONCE: bool = true;

    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(polling::Poller::new()?))
    }

    #[allow(unsafe_code)]
    pub(crate) fn add(&self, socket: &Socket, token: u64) -> io::Result<()> {
        // SAFETY: by the contract, the caller calls `remove` before it closes the socket.
        unsafe { self.0.add(socket, raw(token, Interest::Read)?) }
    }

    /// As [`add`](Self::add): a connection wakes every process that watches.
    pub(crate) fn add_shared(&self, listener: &Socket, token: u64) -> io::Result<()> {
        self.add(listener, token)
    }

    pub(crate) fn rearm(&self, socket: &Socket, token: u64, interest: Interest) -> io::Result<()> {
        self.0.modify(socket, raw(token, interest)?)
    }

    pub(crate) fn remove(&self, socket: &Socket) -> io::Result<()> {
        self.0.delete(socket)
    }

    /// Waits for events, without a limit on their number: one thread takes them all.
    pub(crate) fn wait(
        &self,
        events: &mut Events,
        _max_events: usize,
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        events.0.clear();
        match self.0.wait(&mut events.0, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    pub(crate) fn wake(&self) {
        if let Err(error) = self.0.notify() {
            log::error!("cannot wake the poller: {error}");
        }
    }
}

fn raw(token: u64, interest: Interest) -> io::Result<Raw> {
    let key = usize::try_from(token).map_err(io::Error::other)?;
    Ok(match interest {
        Interest::Read => Raw::readable(key),
        Interest::Write => Raw::writable(key),
        Interest::Both => Raw::all(key),
    })
}

/// The buffer of the waiting thread.
pub(crate) struct Events(polling::Events);

impl Events {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        let capacity = std::num::NonZeroUsize::new(capacity).unwrap_or(std::num::NonZeroUsize::MIN);
        Self(polling::Events::with_capacity(capacity))
    }

    /// Always true: `polling` does not report whether a call of [`Poller::wake`] ended the wait.
    pub(crate) fn was_woken(&self) -> bool {
        true
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Event> + '_ {
        // `polling` does not report hang-ups on every system. A false report costs one read more.
        self.0.iter().map(|event| Event {
            token: event.key as u64,
            hangup: true,
        })
    }
}
