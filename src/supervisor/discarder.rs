//! Discards notifications with descriptors that the supervisor does not want.
//!
//! A descriptor that is received has to be closed, and a close can wait without an end: the file
//! system of a file may be another process (FUSE). So such a notification is received without room
//! for its descriptors, and the kernel drops them, which does not wait for most file systems. But a
//! TCP socket still waits for its peer if its sender has asked for that (SO_LINGER in socket(7)). A
//! signal ends this wait. So a thread receives, and is sent signals until it is done: the supervisor
//! mostly waits for a few milliseconds.
//!
//! What no signal ends holds the thread: the last close of a file whose server is down (NFS), or
//! whose file system writes the file first (FUSE with a write-back cache). Any user can have such a
//! file system. Another thread takes the place of one that is held, after [`PATIENCE`], or sooner if
//! there are others already ([`LITTLE_PATIENCE`]). While [`MAX_STUCK`] threads are held, the
//! supervisor receives nothing.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use crate::clock::Deadline;
use crate::log;
use crate::sys::{self, NotifySocket};

/// The most threads that are held when more is received.
const MAX_STUCK: usize = 16;

/// The time between two signals to the thread.
const INTERVAL: Duration = Duration::from_millis(1);

/// How many intervals to wait for the thread, which must have taken the notification from the queue
/// when another thread takes its place. Not a time, which also passes while the whole process is
/// stopped.
const PATIENCE: usize = 1000;

/// As [`PATIENCE`], while other threads are held.
const LITTLE_PATIENCE: usize = 50;

/// How often to look whether a thread has come back, or can be started.
const PAUSE: Duration = Duration::from_millis(50);

/// Drops notifications on a thread, since the kernel may make whoever drops their descriptors wait.
#[derive(Debug, Default)]
pub(super) struct Discarder {
    /// Each thread has a copy.
    thread_token: Arc<()>,
    /// The log has said that nothing is received.
    is_full: bool,
    /// The log has said that no thread can be started.
    cannot_start: bool,
    /// When to try again to start a thread.
    retry_at: Deadline,
}

impl Discarder {
    /// Takes the next notification from the queue, and drops its descriptors. False if
    /// there is no thread for that: the notification is still in the queue, for later.
    pub(super) fn discard(&mut self, socket: &NotifySocket) -> bool {
        let patience = match self.stuck() {
            0 => PATIENCE,
            _ => LITTLE_PATIENCE,
        };
        let started = start_thread(socket, Arc::clone(&self.thread_token));
        let Some((thread, events)) = self.note_start(started) else {
            return false;
        };
        wait_for(thread, &events, patience);
        true
    }

    /// The value, unless the start of the thread has failed.
    fn note_start<T>(&mut self, started: io::Result<T>) -> Option<T> {
        let failed = |error: &io::Error| {
            if !self.cannot_start {
                log::error!(
                    "cannot start a thread that discards notifications: {error}; nothing more is \
                     received until that succeeds"
                );
            }
            self.retry_at = Deadline::after(Instant::now(), PAUSE);
        };
        let started = started.inspect_err(failed).ok();
        self.cannot_start = started.is_none();
        started
    }

    /// Whether a notification may be received.
    pub(super) fn may_receive(&mut self) -> bool {
        let stuck = self.stuck();
        let is_full = stuck >= MAX_STUCK;
        if is_full && !self.is_full {
            log::error!(
                "{stuck} threads wait for the close of descriptors that were sent with \
                 notifications: nothing more is received until they are closed"
            );
        }
        self.is_full = is_full;
        if self.retry_at.has_passed(Instant::now()) {
            self.retry_at = Deadline::NEVER;
        }
        !is_full && self.retry_at == Deadline::NEVER
    }

    /// How many threads are held.
    pub(super) fn stuck(&self) -> usize {
        Arc::strong_count(&self.thread_token) - 1
    }

    /// When to call [`may_receive`](Self::may_receive) again, if it returned false.
    pub(super) fn deadline(&self) -> Deadline {
        match self.is_full {
            true => Deadline::after(Instant::now(), PAUSE),
            false => self.retry_at,
        }
    }
}

/// Starts a thread that discards a notification. A message says that it begins, and the channel is
/// closed when that is done.
fn start_thread(
    socket: &NotifySocket,
    token: Arc<()>,
) -> io::Result<(JoinHandle<()>, Receiver<()>)> {
    let discard = socket.discarder()?;
    let (running, events) = crossbeam_channel::bounded(1);
    let run = move || {
        let (_token, running) = (token, running);
        sys::supervision::allow_interrupts();
        // Only this message is ever sent, so that there is room.
        _ = running.try_send(());
        if let Err(error) = discard() {
            log::error!("cannot discard a notification: {error}");
        }
    };
    let thread = thread::Builder::new().name("discard".to_owned());
    Ok((thread.spawn(run)?, events))
}

/// Waits for the end of the thread. False if it does not come back, and is given up.
fn wait_for(thread: JoinHandle<()>, events: &Receiver<()>, patience: usize) -> bool {
    // The system may let the thread wait for a CPU. An error: it is done.
    _ = events.recv();
    let mut left = patience;
    while events.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
        if left == 0 {
            log::warn!("a descriptor that was sent with a notification cannot be closed");
            return false;
        }
        left -= 1;
        sys::supervision::interrupt(&thread);
    }
    if thread.join().is_err() {
        log::error!("a thread that discards notifications has panicked");
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_thread_a_notification_stays_in_the_queue_for_a_while() {
        let mut discarder = Discarder::default();
        assert!(discarder.may_receive() && discarder.deadline() == Deadline::NEVER);
        let failed: io::Result<()> = Err(io::ErrorKind::WouldBlock.into());
        assert_eq!(discarder.note_start(failed), None);
        assert!(!discarder.may_receive() && discarder.deadline() != Deadline::NEVER);
        while !discarder.may_receive() {
            thread::yield_now();
        }
        assert_eq!(discarder.note_start(Ok(7)), Some(7));
        assert!(discarder.may_receive() && discarder.deadline() == Deadline::NEVER);
    }

    #[test]
    fn a_thread_is_waited_for_by_the_count() {
        for (patience, comes_back) in [(0, false), (3, false), (usize::MAX, true)] {
            let (running, events) = crossbeam_channel::bounded(1);
            let (let_go, waits) = crossbeam_channel::bounded::<()>(0);
            let run = move || {
                running.send(()).unwrap();
                _ = waits.recv();
            };
            let thread = thread::spawn(run);
            let let_go = (!comes_back).then_some(let_go);
            assert_eq!(wait_for(thread, &events, patience), comes_back);
            drop(let_go);
        }
    }
}
