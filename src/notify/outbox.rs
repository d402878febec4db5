//! The notifications that the service manager has not taken: no send waits for the manager.
//!
//! A manager that is stopped (SIGSTOP, a debugger) reads nothing, and after a few datagrams
//! (net.unix.max_dgram_qlen) a send would block. So what cannot be sent stays in a queue, in order,
//! and each thread that notifies sends it later, from its own loop: [`Outbox::retry`] when
//! [`Outbox::retry_at`] has come. The queue is bounded, since only the latest notifications of a
//! [`Kind`] are of use to the manager.
//!
//! The lock is held while datagrams are sent, so that two threads keep their order. That takes no
//! longer than the system call, because the socket is non-blocking. Nothing is logged meanwhile:
//! the logger is the application's.

use std::collections::VecDeque;
use std::env;
use std::io;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use socket2::Socket;

use crate::clock::Deadline;
use crate::log;
use crate::sys::{self, Descriptor, Interest};

/// A notification that is to be sent.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) kind: Kind,
    pub(super) text: String,
    pub(super) descriptors: Vec<Descriptor>,
}

/// What a notification is about, which says which earlier ones it replaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// READY, RELOADING, STOPPING, MAINPID, and what only a supervisor of this crate reads. A
    /// manager that waits for RELOADING needs it although READY has followed, so that the last
    /// [`MAX_STATES`] are kept.
    State,
    /// STATUS alone.
    Status,
    MoreTime,
    Watchdog,
    /// How many requests the process has served.
    Requests,
    /// The socket with this device and inode is stored under the name.
    Store {
        name: String,
        socket: Option<(u64, u64)>,
    },
    /// What is stored under the name is removed.
    Remove {
        name: String,
    },
}

/// The most notifications of the kind [`Kind::State`] in the queue, and of all kinds.
const MAX_STATES: usize = 16;
const MAX_MESSAGES: usize = 1024;

/// How long to wait before the next attempt to send.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// The notifications of this process.
pub(super) static OUTBOX: Outbox = Outbox(Mutex::new(Queue {
    messages: VecDeque::new(),
    retry_at: None,
}));

/// Notifications that wait for the manager.
#[derive(Debug)]
pub(super) struct Outbox(Mutex<Queue>);

#[derive(Debug)]
struct Queue {
    messages: VecDeque<Message>,
    /// When to try again. `None`: nothing waits.
    retry_at: Option<Instant>,
}

impl Outbox {
    /// Sends a notification as soon as the manager takes it.
    ///
    /// # Errors
    ///
    /// The manager cannot be reached. The notification is lost.
    pub(super) fn send(&self, message: Message) -> io::Result<()> {
        let (sent, begins_to_wait) = {
            let mut queue = self.0.lock();
            let waited = queue.retry_at.is_some();
            queue.push(message);
            (queue.send_all(), !waited && queue.retry_at.is_some())
        };
        if begins_to_wait {
            log::warn!("the service manager does not read notifications: they are sent later");
        }
        sent
    }

    /// Sends what waits, if the time for another attempt has come.
    pub(super) fn retry(&self, now: Instant) -> io::Result<()> {
        let mut queue = self.0.lock();
        match queue.retry_at.is_some_and(|at| at <= now) {
            true => queue.send_all(),
            false => Ok(()),
        }
    }

    pub(super) fn retry_at(&self) -> Deadline {
        Deadline::at(self.0.lock().retry_at)
    }

    /// Sends what waits, and then this text, and waits until the deadline for the manager to take
    /// them. For threads that may wait.
    pub(super) fn send_by(
        &self,
        text: &str,
        descriptors: &[&Descriptor],
        deadline: Deadline,
    ) -> io::Result<()> {
        loop {
            let socket = connect()?;
            let nothing_waits = {
                let mut queue = self.0.lock();
                queue.send_all()?;
                queue.messages.is_empty()
            };
            if nothing_waits {
                match sys::message::send(&socket, text, descriptors) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    result => return result,
                }
            }
            let left = deadline.time_left(Instant::now());
            if left.is_some_and(|left| left.is_zero()) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            // Others may send as well, and be first.
            let left = left.map_or(RETRY_INTERVAL, |left| left.min(RETRY_INTERVAL));
            sys::socket::wait_ready(&socket, Interest::Write, Some(left))?;
        }
    }
}

impl Queue {
    /// Adds a notification, in place of those that it replaces.
    fn push(&mut self, message: Message) {
        self.messages.retain(|earlier| !message.replaces(earlier));
        self.messages.push_back(message);
        let is_state = |message: &Message| message.kind == Kind::State;
        let states = self.messages.iter().filter(|one| is_state(one)).count();
        if states > MAX_STATES {
            let oldest = self.messages.iter().position(is_state);
            oldest.map(|at| self.messages.remove(at));
        }
        if self.messages.len() > MAX_MESSAGES {
            self.messages.pop_front();
        }
    }

    /// Sends in order until the manager takes no more. Returns the last error.
    fn send_all(&mut self) -> io::Result<()> {
        let mut sent = Ok(());
        self.retry_at = None;
        while let Some(message) = self.messages.front() {
            let descriptors: Vec<&Descriptor> = message.descriptors.iter().collect();
            let result = connect()
                .and_then(|socket| sys::message::send(&socket, &message.text, &descriptors));
            match result {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.retry_at = Some(Instant::now() + RETRY_INTERVAL);
                    return sent;
                }
                Err(error) => sent = Err(error),
                Ok(()) => {}
            }
            self.messages.pop_front();
        }
        sent
    }
}

impl Message {
    /// Whether the manager has no use for an earlier notification, once it has this one.
    fn replaces(&self, earlier: &Self) -> bool {
        match (&self.kind, &earlier.kind) {
            (Kind::State, _) => false,
            (Kind::Remove { name }, Kind::Store { name: stored, .. }) => name == stored,
            (own, earlier) => own == earlier,
        }
    }
}

/// A non-blocking socket that is connected to the manager which `NOTIFY_SOCKET` names.
fn connect() -> io::Result<Socket> {
    sys::message::connect_to_manager(&env::var_os("NOTIFY_SOCKET").unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: Kind, text: &str) -> Message {
        Message {
            kind,
            text: text.to_owned(),
            descriptors: Vec::new(),
        }
    }

    fn store(name: &str, inode: u64) -> Kind {
        Kind::Store {
            name: name.to_owned(),
            socket: Some((1, inode)),
        }
    }

    fn remove(name: &str) -> Kind {
        let name = name.to_owned();
        Kind::Remove { name }
    }

    #[test]
    fn only_what_is_of_use_waits() {
        use Kind::{MoreTime, State, Status, Watchdog};
        let mut queue = Queue {
            messages: VecDeque::new(),
            retry_at: None,
        };
        for (kind, text) in [
            (State, "ready"),
            (Watchdog, "alive"),
            (Status, "old"),
            (store("a", 1), "a1"),
            (store("a", 2), "a2"),
            (store("b", 3), "b3"),
            (State, "reloading"),
            (MoreTime, "more"),
            (Watchdog, "trigger"),
            (store("a", 1), "a1 again"),
            (remove("b"), "no b"),
            (State, "ready again"),
            (Status, "new"),
            (MoreTime, "more again"),
        ] {
            queue.push(message(kind, text));
        }
        let texts: Vec<&str> = queue.messages.iter().map(|one| &*one.text).collect();
        let expected = [
            "ready",
            "a2",
            "reloading",
            "trigger",
            "a1 again",
            "no b",
            "ready again",
            "new",
            "more again",
        ];
        assert_eq!(texts, expected);
    }

    #[test]
    fn the_queue_is_bounded_and_the_latest_state_stays() {
        let mut queue = Queue {
            messages: VecDeque::new(),
            retry_at: None,
        };
        for number in 0..2 * MAX_MESSAGES as u64 {
            queue.push(message(store("a", number), ""));
            queue.push(message(Kind::State, &number.to_string()));
        }
        assert_eq!(queue.messages.len(), MAX_MESSAGES);
        let states = queue.messages.iter().filter(|one| one.kind == Kind::State);
        let states: Vec<&str> = states.map(|one| &*one.text).collect();
        assert_eq!(states.len(), MAX_STATES);
        assert_eq!(states.last(), Some(&"2047"));
    }
}
