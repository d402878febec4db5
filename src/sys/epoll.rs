//! The shared poller on Linux: an epoll that every idle worker waits on by itself.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use socket2::Socket;

use super::{Event, Interest};

/// The token of the eventfd behind [`Poller::wake`]; no caller uses it.
const WAKE: u64 = u64::MAX;

/// See the contract in the parent module.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
    waker: OwnedFd,
}

impl Poller {
    pub(crate) const SHARED: bool = true;

    pub(crate) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let waker = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        // Edge-triggered: each write is one event, and nobody needs to read the counter back.
        epoll::add(
            &epoll,
            &waker,
            EventData::new_u64(WAKE),
            EventFlags::IN | EventFlags::ET,
        )?;
        Ok(Self { epoll, waker })
    }

    pub(crate) fn add(&self, socket: &Socket, token: u64) -> io::Result<()> {
        let data = EventData::new_u64(token);
        Ok(epoll::add(
            &self.epoll,
            socket,
            data,
            flags(Interest::Read),
        )?)
    }

    pub(crate) fn rearm(&self, socket: &Socket, token: u64, interest: Interest) -> io::Result<()> {
        let data = EventData::new_u64(token);
        Ok(epoll::modify(&self.epoll, socket, data, flags(interest))?)
    }

    pub(crate) fn remove(&self, socket: &Socket) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, socket)?)
    }

    /// Waits for up to `most` events. An interrupted wait is an empty one.
    pub(crate) fn wait(
        &self,
        events: &mut Events,
        most: usize,
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        events.filled = 0;
        let timeout = timeout.map(|t| Timespec::try_from(t).unwrap_or(FAR));
        let most = most.clamp(1, events.buffer.len());
        match epoll::wait(&self.epoll, &mut events.buffer[..most], timeout.as_ref()) {
            Ok(filled) => events.filled = filled,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    pub(crate) fn wake(&self) {
        // The only possible failure is a full counter, after 2^64 - 2 wake-ups.
        let _ = rustix::io::write(&self.waker, &1u64.to_ne_bytes());
    }
}

/// A wait so long that nobody sees its end.
const FAR: Timespec = Timespec {
    tv_sec: 1 << 31,
    tv_nsec: 0,
};

fn flags(interest: Interest) -> EventFlags {
    let wanted = match interest {
        Interest::Read => EventFlags::IN | EventFlags::RDHUP,
        Interest::Write => EventFlags::OUT,
        Interest::Both => EventFlags::IN | EventFlags::RDHUP | EventFlags::OUT,
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

    /// Whether a call of [`Poller::wake`] was among what ended the wait.
    pub(crate) fn was_woken(&self) -> bool {
        let mut filled = self.buffer[..self.filled].iter();
        filled.any(|event| {
            let data = event.data;
            data.u64() == WAKE
        })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Event> + '_ {
        self.buffer[..self.filled].iter().filter_map(|event| {
            // Copied out: the kernel's structure is packed.
            let (flags, data) = (event.flags, event.data);
            let token = data.u64();
            let ended = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
            (token != WAKE).then_some(Event {
                token,
                hangup: flags.intersects(ended),
            })
        })
    }
}
