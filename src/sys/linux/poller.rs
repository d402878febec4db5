//! Linux: a poller that any number of threads wait on (epoll(7)).

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use socket2::Socket;

use crate::sys::{Event, Interest};

/// The token of the eventfd behind [`Poller::wake`]. No caller uses this token.
const WAKE: u64 = u64::MAX;

/// See the contract in [`sys`](crate::sys).
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
    waker: OwnedFd,
}

impl Poller {
    pub(crate) const SHARED: bool = true;
    pub(crate) const REPORTS_ONCE: bool = false;

    pub(crate) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let waker = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        // Edge-triggered, so that each write is an event without a read in between.
        let flags = EventFlags::IN | EventFlags::ET;
        epoll::add(&epoll, &waker, EventData::new_u64(WAKE), flags)?;
        Ok(Self { epoll, waker })
    }

    pub(crate) fn add(&self, socket: &Socket, token: u64) -> io::Result<()> {
        let data = EventData::new_u64(token);
        let flags = flags(Interest::Read);
        Ok(epoll::add(&self.epoll, socket, data, flags)?)
    }

    /// Watches a listener that other processes may watch as well (EPOLLEXCLUSIVE, epoll_ctl(2)).
    pub(crate) fn add_shared(&self, listener: &Socket, token: u64) -> io::Result<()> {
        let data = EventData::new_u64(token);
        let flags = EventFlags::IN | EventFlags::ET | EventFlags::EXCLUSIVE;
        Ok(epoll::add(&self.epoll, listener, data, flags)?)
    }

    pub(crate) fn rearm(&self, socket: &Socket, token: u64, interest: Interest) -> io::Result<()> {
        let data = EventData::new_u64(token);
        Ok(epoll::modify(&self.epoll, socket, data, flags(interest))?)
    }

    pub(crate) fn remove(&self, socket: &Socket) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, socket)?)
    }

    /// Waits for up to `max_events`. A wait that a signal interrupts has no events.
    pub(crate) fn wait(
        &self,
        events: &mut Events,
        max_events: usize,
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        events.filled = 0;
        // A time-out too long for the call is none.
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let max_events = max_events.clamp(1, events.buffer.len());
        let buffer = &mut events.buffer[..max_events];
        match epoll::wait(&self.epoll, buffer, timeout.as_ref()) {
            Ok(filled) => events.filled = filled,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    pub(crate) fn wake(&self) {
        // The call fails only if the counter is full, after 2^64 - 2 calls.
        let _ = rustix::io::write(&self.waker, &1u64.to_ne_bytes());
    }
}

fn flags(interest: Interest) -> EventFlags {
    let wanted = match interest {
        Interest::Read => EventFlags::IN | EventFlags::RDHUP | EventFlags::PRI,
        Interest::Write => EventFlags::OUT,
        Interest::Both => EventFlags::IN | EventFlags::RDHUP | EventFlags::PRI | EventFlags::OUT,
    };
    wanted | EventFlags::ET
}

/// The buffer of one waiting thread.
pub(crate) struct Events {
    buffer: Vec<epoll::Event>,
    filled: usize,
}

impl Events {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        let empty = epoll::Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        };
        Self {
            buffer: vec![empty; capacity],
            filled: 0,
        }
    }

    /// Whether a call of [`Poller::wake`] was among the events.
    pub(crate) fn was_woken(&self) -> bool {
        let mut filled = self.buffer[..self.filled].iter();
        // The kernel's structure is packed, so that its fields cannot be borrowed.
        filled.any(|event| { event.data }.u64() == WAKE)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Event> + '_ {
        self.buffer[..self.filled].iter().filter_map(|event| {
            let (flags, token) = (event.flags, { event.data }.u64());
            // A read stops before urgent data (tcp(7)), whatever has arrived behind it.
            let stops_reads =
                EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR | EventFlags::PRI;
            (token != WAKE).then_some(Event {
                token,
                hangup: flags.intersects(stops_reads),
            })
        })
    }
}
