//! The notifications that the service manager has not taken: no send waits for the manager.
//!
//! A manager that is stopped (SIGSTOP, a debugger) reads nothing, and after a few datagrams
//! (net.unix.max_dgram_qlen) a send would block. And for a while this process or the system may lack
//! the descriptors or the memory for a send. So what cannot be sent stays in a queue, in order,
//! and each thread that notifies sends it later, from its own loop: [`Outbox::retry`] when
//! [`Outbox::retry_at`] has come. The queue is bounded, since only the latest notifications of a
//! [`Kind`] are of use to the manager.
//!
//! A send tells only of its own message. The failures of those that waited are logged.
//!
//! The lock is held while datagrams are sent, so that two threads keep their order. That takes no
//! longer than the system call, because the socket is non-blocking. Nothing is logged meanwhile:
//! the logger is the application's.

use std::collections::VecDeque;
use std::env;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::clock::Deadline;
use crate::log;
use crate::sys::message::ManagerConnection;
use crate::sys::{self, Descriptor};

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
pub(super) static OUTBOX: Outbox = Outbox(Mutex::new(Queue::new()));

/// Notifications that wait for the manager.
#[derive(Debug)]
pub(super) struct Outbox(Mutex<Queue>);

#[derive(Debug)]
struct Queue {
    messages: VecDeque<Numbered>,
    /// When to try again. `None`: nothing waits.
    retry_at: Option<Instant>,
    /// That of the latest message.
    last_number: u64,
}

/// A message, and its number in the order of the sends.
#[derive(Debug)]
struct Numbered(u64, Message);

/// A message that the manager never gets, and why.
#[derive(Debug)]
struct Failure {
    number: u64,
    text: String,
    error: io::Error,
}

/// What became of the messages of the queue.
#[derive(Debug, Default)]
struct Attempt {
    failures: Vec<Failure>,
    /// Why the rest is sent later.
    delay: Option<io::Error>,
}

impl Attempt {
    /// Logs the failures, except that of this message, which is returned.
    fn result_of(mut self, own: u64) -> io::Result<()> {
        let at = self.failures.iter().position(|one| one.number == own);
        let own = at.map(|at| self.failures.remove(at));
        self.log_failures();
        own.map_or(Ok(()), |failure| Err(failure.error))
    }

    fn log_failures(self) {
        for Failure { text, error, .. } in self.failures {
            log::warn!("cannot notify the service manager of {text:?}, which has waited: {error}");
        }
    }
}

impl Outbox {
    /// Sends a notification as soon as the manager takes it.
    ///
    /// # Errors
    ///
    /// The manager cannot be reached. The notification is lost.
    pub(super) fn send(&self, message: Message) -> io::Result<()> {
        let (number, attempt, waited) = {
            let mut queue = self.0.lock();
            let waited = queue.retry_at.is_some();
            let number = queue.push(message);
            (number, queue.send_all(send), waited)
        };
        if let (Some(error), false) = (&attempt.delay, waited) {
            log::warn!(
                "the service manager does not take notifications, they are sent later: {error}"
            );
        }
        attempt.result_of(number)
    }

    /// Sends what waits, if the time for another attempt has come.
    pub(super) fn retry(&self, now: Instant) {
        let attempt = {
            let mut queue = self.0.lock();
            if queue.retry_at.is_none_or(|at| at > now) {
                return;
            }
            queue.send_all(send)
        };
        attempt.log_failures();
    }

    pub(super) fn retry_at(&self) -> Deadline {
        Deadline::at(self.0.lock().retry_at)
    }

    /// Sends what waits, and then this text, and waits until the deadline for the manager to take
    /// them. Returns the connection on which the text was sent. For threads that may wait.
    ///
    /// # Errors
    ///
    /// `TimedOut`, or the manager cannot be reached.
    pub(super) fn send_by(
        &self,
        text: &str,
        descriptors: &[&Descriptor],
        deadline: Deadline,
    ) -> io::Result<ManagerConnection> {
        loop {
            let (attempt, nothing_waits) = {
                let mut queue = self.0.lock();
                let attempt = queue.send_all(send);
                (attempt, queue.messages.is_empty())
            };
            attempt.log_failures();
            if nothing_waits {
                match send_now(text, descriptors) {
                    Err(error) if sys::message::is_temporary(&error) => {}
                    result => return result,
                }
            }
            let left = deadline.time_left(Instant::now());
            if left.is_some_and(|left| left.is_zero()) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            // Others may send as well, and be first.
            wait_for_manager(left.map_or(RETRY_INTERVAL, |left| left.min(RETRY_INTERVAL)))?;
        }
    }
}

/// Waits until the manager may take a datagram, for at most this long.
fn wait_for_manager(limit: Duration) -> io::Result<()> {
    let began_at = Instant::now();
    match connect() {
        Ok(manager) => {
            manager.wait_until_writable(limit)?;
            // The manager has room, but a descriptor or memory may be lacking.
            let pause = Duration::from_millis(1);
            if began_at.elapsed() < pause {
                thread::sleep(pause);
            }
        }
        Err(error) if sys::message::is_temporary(&error) => thread::sleep(limit),
        Err(error) => return Err(error),
    }
    Ok(())
}

impl Queue {
    const fn new() -> Self {
        Self {
            messages: VecDeque::new(),
            retry_at: None,
            last_number: 0,
        }
    }

    /// Adds a notification, in place of those that it replaces. Returns its number.
    fn push(&mut self, message: Message) -> u64 {
        self.last_number += 1;
        self.messages
            .retain(|Numbered(_, earlier)| !message.replaces(earlier));
        self.messages.push_back(Numbered(self.last_number, message));
        let is_state = |one: &Numbered| one.1.kind == Kind::State;
        let states = self.messages.iter().filter(|one| is_state(one)).count();
        if states > MAX_STATES {
            let oldest = self.messages.iter().position(is_state);
            oldest.map(|at| self.messages.remove(at));
        }
        if self.messages.len() > MAX_MESSAGES {
            self.messages.pop_front();
        }
        self.last_number
    }

    /// Sends in order until the manager takes no more.
    fn send_all(&mut self, send: impl Fn(&str, &[&Descriptor]) -> io::Result<()>) -> Attempt {
        let mut attempt = Attempt::default();
        self.retry_at = None;
        while let Some(Numbered(_, message)) = self.messages.front() {
            let descriptors: Vec<&Descriptor> = message.descriptors.iter().collect();
            let sent = send(&message.text, &descriptors);
            if let Err(error) = &sent {
                if sys::message::is_temporary(error) {
                    self.retry_at = Some(Instant::now() + RETRY_INTERVAL);
                    attempt.delay = sent.err();
                    return attempt;
                }
            }
            let message = self.messages.pop_front();
            if let (Err(error), Some(Numbered(number, message))) = (sent, message) {
                attempt.failures.push(Failure {
                    number,
                    text: message.text,
                    error,
                });
            }
        }
        attempt
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

fn send(text: &str, descriptors: &[&Descriptor]) -> io::Result<()> {
    send_now(text, descriptors).map(drop)
}

/// Sends on a new connection, and returns it.
fn send_now(text: &str, descriptors: &[&Descriptor]) -> io::Result<ManagerConnection> {
    let manager = connect()?;
    manager.send(text, descriptors)?;
    Ok(manager)
}

/// A connection to the manager which `NOTIFY_SOCKET` names.
fn connect() -> io::Result<ManagerConnection> {
    ManagerConnection::open(&env::var_os("NOTIFY_SOCKET").unwrap_or_default())
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
        let mut queue = Queue::new();
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
        let texts: Vec<&str> = queue.messages.iter().map(|one| &*one.1.text).collect();
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
        let mut queue = Queue::new();
        for number in 0..2 * MAX_MESSAGES as u64 {
            queue.push(message(store("a", number), ""));
            queue.push(message(Kind::State, &number.to_string()));
        }
        assert_eq!(queue.messages.len(), MAX_MESSAGES);
        let states = queue.messages.iter();
        let states = states.filter(|one| one.1.kind == Kind::State);
        let states: Vec<&str> = states.map(|one| &*one.1.text).collect();
        assert_eq!(states.len(), MAX_STATES);
        assert_eq!(states.last(), Some(&"2047"));
    }

    /// Sends, and fails with these errors first. Returns the texts that were sent.
    fn attempt(queue: &mut Queue, errors: &[Option<io::ErrorKind>]) -> (Vec<String>, Attempt) {
        let (sent, next) = (std::cell::RefCell::new(Vec::new()), std::cell::Cell::new(0));
        let attempt = queue.send_all(|text, _| {
            let error = errors.get(next.replace(next.get() + 1)).copied();
            match error.flatten() {
                Some(error) => return Err(error.into()),
                None => sent.borrow_mut().push(text.to_owned()),
            }
            Ok(())
        });
        (sent.into_inner(), attempt)
    }

    #[test]
    fn an_error_that_passes_delays_messages_and_loses_none() {
        let mut queue = Queue::new();
        for text in ["a", "b", "c"] {
            queue.push(message(Kind::State, text));
        }
        let (sent, delayed) = attempt(&mut queue, &[None, Some(io::ErrorKind::WouldBlock)]);
        assert!(sent == ["a"] && queue.retry_at.is_some());
        assert!(delayed.failures.is_empty() && delayed.delay.is_some());
        assert!(delayed.result_of(3).is_ok());
        let (sent, rest) = attempt(&mut queue, &[]);
        assert_eq!(sent, ["b", "c"]);
        assert!(rest.delay.is_none() && queue.retry_at.is_none());
    }

    #[test]
    fn a_send_fails_by_its_own_error_only() {
        let refused = Some(io::ErrorKind::ConnectionRefused);
        // (the errors of two messages, whether the second one has failed)
        for (errors, failed) in [
            ([refused, None], false),
            ([None, refused], true),
            ([refused, refused], true),
            ([None, None], false),
        ] {
            let mut queue = Queue::new();
            queue.push(message(Kind::State, "an earlier one"));
            let own = queue.push(message(Kind::State, "its own"));
            let (_, attempt) = attempt(&mut queue, &errors);
            assert!(queue.messages.is_empty() && queue.retry_at.is_none());
            let result = attempt.result_of(own);
            assert_eq!(result.is_err(), failed, "{errors:?}");
        }
    }
}
