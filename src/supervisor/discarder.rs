//! Discards notifications with descriptors that the supervisor does not want.
//!
//! A descriptor that is received has to be closed, and a close can wait without an end: the file
//! system of a file may be another process (FUSE). So such a notification is received without room
//! for its descriptors, and the kernel drops them, which does not wait for the file system. But a
//! TCP socket still waits for its peer if its sender has asked for that (SO_LINGER in socket(7)). A
//! signal ends this wait. So a thread receives, and is sent signals until it is done: the supervisor
//! waits for a few milliseconds, whatever was sent.
//!
//! What no signal ends holds the thread, such as the last close of a file whose server is down
//! (NFS). Another thread takes its place. While [`MAX_STUCK`] threads are held, the supervisor
//! receives nothing.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use socket2::Socket;

use crate::clock::Deadline;
use crate::log;
use crate::sys::{self, NotifySocket};

/// The most threads that are held when more is received.
const MAX_STUCK: usize = 16;

/// The time between two signals to the thread.
const INTERVAL: Duration = Duration::from_millis(1);

/// How long to wait for the thread. Longer than the system may let the thread wait for a CPU: it must
/// have taken the notification from the queue when another thread takes its place.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often to look whether a thread has come back.
const PAUSE: Duration = Duration::from_millis(50);

/// See above.
#[derive(Debug, Default)]
pub(super) struct Discarder {
    /// The thread that waits for work, if one does.
    idle: Option<DiscardThread>,
    /// Each thread has a copy.
    thread_token: Arc<()>,
    /// The log has said that nothing is received.
    is_full: bool,
}

#[derive(Debug)]
struct DiscardThread {
    handle: JoinHandle<()>,
    /// The thread ends when this is dropped.
    requests: Sender<()>,
    results: Receiver<()>,
}

impl Discarder {
    /// Takes the next notification from the queue of the socket, and drops its descriptors.
    pub(super) fn discard(&mut self, socket: &Socket) {
        let started = match self.idle.take() {
            Some(thread) => Ok(thread),
            None => DiscardThread::start(socket, Arc::clone(&self.thread_token)),
        };
        match started {
            Ok(thread) => self.idle = thread.discard(),
            Err(error) => {
                log::error!("cannot start a thread that discards notifications: {error}");
                discard_here(socket);
            }
        }
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
        !is_full
    }

    /// How many threads are held.
    pub(super) fn stuck(&self) -> usize {
        let threads = Arc::strong_count(&self.thread_token) - 1;
        threads - usize::from(self.idle.is_some())
    }

    /// When to call [`may_receive`](Self::may_receive) again, if it returned false.
    pub(super) fn deadline(&self) -> Deadline {
        match self.is_full {
            true => Deadline::after(Instant::now(), PAUSE),
            false => Deadline::NEVER,
        }
    }
}

impl DiscardThread {
    fn start(socket: &Socket, token: Arc<()>) -> io::Result<Self> {
        let socket = socket.try_clone()?;
        let (requests, queue) = crossbeam_channel::bounded::<()>(1);
        let (done, results) = crossbeam_channel::bounded(1);
        let run = move || {
            let _token = token;
            sys::supervision::allow_interrupts();
            for () in queue {
                discard_here(&socket);
                if done.send(()).is_err() {
                    break;
                }
            }
        };
        let thread = thread::Builder::new().name("discard".to_owned());
        Ok(Self {
            handle: thread.spawn(run)?,
            requests,
            results,
        })
    }

    /// Has the thread discard a notification. `None` if the thread does not come back.
    fn discard(self) -> Option<Self> {
        let give_up_at = Instant::now() + PATIENCE;
        // The thread waits for this.
        let _ = self.requests.send(());
        while self.results.recv_timeout(INTERVAL).is_err() {
            if Instant::now() >= give_up_at {
                log::warn!("a descriptor that was sent with a notification cannot be closed");
                return None;
            }
            sys::supervision::interrupt(&self.handle);
        }
        Some(self)
    }
}

fn discard_here(socket: &Socket) {
    if let Err(error) = NotifySocket::discard(socket) {
        log::error!("cannot discard a notification: {error}");
    }
}
