//! Closes descriptors that other processes have sent, on a thread of its own.
//!
//! A close can wait without an end: the file system of a file may be another process (FUSE) or
//! another machine, and a TCP socket waits for its peer if its sender has asked for that (SO_LINGER
//! in socket(7)). The close of a Unix socket also closes the descriptors in the messages that were
//! not received. None of this may stop the supervisor's loop.
//!
//! The thread closes one descriptor after another. While [`LIMIT`] of them are left, the supervisor
//! receives nothing that could bring more of them ([`Closer::may_receive`]): so a process that sends
//! descriptors which cannot be closed delays the notifications of others, but neither stops the
//! supervisor nor takes all of its descriptors.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use crate::clock::Deadline;
use crate::log;
use crate::sys::{self, Descriptor};

/// The most descriptors that are left when more are received.
const LIMIT: usize = 256;

/// The most that can be left: a message brings up to 253, and each of the control socket's clients
/// is a descriptor itself.
const CAPACITY: usize = 1024;

/// How often to look whether the thread has made room.
const PAUSE: Duration = Duration::from_millis(50);

/// A queue of descriptors, and the thread that closes them, which is started for the first one or by
/// [`Closer::started`].
#[derive(Debug)]
pub(super) struct Closer {
    /// The name of the thread.
    name: &'static str,
    sender: Sender<Descriptor>,
    /// `None` when the thread has it.
    queue: Option<Receiver<Descriptor>>,
    /// How many are not closed yet.
    left: Arc<AtomicUsize>,
    /// The log has said that nothing is received.
    is_full: bool,
}

impl Closer {
    pub(super) fn new(name: &'static str) -> Self {
        let (sender, queue) = crossbeam_channel::bounded(CAPACITY);
        Self {
            name,
            sender,
            queue: Some(queue),
            left: Arc::default(),
            is_full: false,
        }
    }

    /// Starts the thread already.
    pub(super) fn started(mut self) -> Self {
        self.start();
        self
    }

    /// Closes the descriptors, soon.
    pub(super) fn close(&mut self, descriptors: impl IntoIterator<Item = Descriptor>) {
        for descriptor in descriptors {
            self.left.fetch_add(1, SeqCst);
            if let Err(full) = self.sender.try_send(descriptor) {
                // `may_receive` comes before each message, so that this does not happen.
                log::error!(
                    "{}: the queue is full, closing a descriptor here",
                    self.name
                );
                self.left.fetch_sub(1, SeqCst);
                sys::descriptor::discard(full.into_inner());
            }
        }
        self.ensure_thread();
    }

    /// Whether a message may be received, with the descriptors in it.
    pub(super) fn may_receive(&mut self) -> bool {
        let left = self.left();
        let is_full = left >= LIMIT;
        if is_full && !self.is_full {
            log::error!(
                "{}: {left} descriptors of other processes are not closed yet: nothing more is \
                 received until they are",
                self.name
            );
        }
        if is_full {
            self.ensure_thread();
        }
        self.is_full = is_full;
        !is_full
    }

    /// What [`may_receive`](Self::may_receive) has found last.
    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }

    /// How many descriptors are not closed yet.
    pub(super) fn left(&self) -> usize {
        self.left.load(SeqCst)
    }

    /// When to call [`may_receive`](Self::may_receive) again, if it returned false.
    pub(super) fn deadline(&self) -> Deadline {
        match self.is_full {
            true => Deadline::after(Instant::now(), PAUSE),
            false => Deadline::NEVER,
        }
    }

    /// Starts the thread if it does not run and is needed.
    fn ensure_thread(&mut self) {
        if self.left() > 0 {
            self.start();
        }
    }

    /// Starts the thread if it does not run. After an error, the next call tries again.
    fn start(&mut self) {
        let Some(queue) = self.queue.take() else {
            return;
        };
        if let Err(error) = self.start_thread(queue.clone()) {
            log::error!("cannot start the thread {}: {error}", self.name);
            self.queue = Some(queue);
        }
    }

    /// The thread ends with this closer, when it has closed everything.
    fn start_thread(&self, queue: Receiver<Descriptor>) -> io::Result<()> {
        let left = Arc::clone(&self.left);
        let run = move || {
            for descriptor in queue {
                sys::descriptor::discard(descriptor);
                left.fetch_sub(1, SeqCst);
            }
        };
        let thread = thread::Builder::new().name(self.name.to_owned());
        thread.spawn(run).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_more_is_received_than_can_be_closed() {
        let Ok((own, other)) = sys::message::create_pair() else {
            return;
        };
        let mut closer = Closer::new("test-close");
        // No thread can be started yet.
        let queue = closer.queue.take().unwrap();
        for count in 0..LIMIT {
            assert!(closer.may_receive() && closer.left() == count);
            closer.close(sys::descriptor::duplicate(&own));
        }
        assert!(!closer.may_receive() && closer.deadline() != Deadline::NEVER);
        drop(own);
        closer.queue = Some(queue);
        // The thread starts, and closes all of them: the other end is at its end then.
        assert!(!closer.may_receive());
        while closer.left() > 0 {
            thread::yield_now();
        }
        assert_eq!(sys::socket::recv(&other, &mut [0]).unwrap(), 0);
        assert!(closer.may_receive() && closer.deadline() == Deadline::NEVER);
    }
}
