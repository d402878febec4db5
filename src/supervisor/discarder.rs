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

use crossbeam_channel::{Receiver, RecvTimeoutError};
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
    /// Each thread has a copy.
    thread_token: Arc<()>,
    /// The log has said that nothing is received.
    is_full: bool,
}

impl Discarder {
    /// Takes the next notification from the queue of the socket, and drops its descriptors.
    pub(super) fn discard(&mut self, socket: &Socket) {
        match start_thread(socket, Arc::clone(&self.thread_token)) {
            Ok((thread, done)) => wait_for(thread, &done),
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
        Arc::strong_count(&self.thread_token) - 1
    }

    /// When to call [`may_receive`](Self::may_receive) again, if it returned false.
    pub(super) fn deadline(&self) -> Deadline {
        match self.is_full {
            true => Deadline::after(Instant::now(), PAUSE),
            false => Deadline::NEVER,
        }
    }
}

/// Starts a thread that discards a notification. The channel is closed when that is done.
fn start_thread(socket: &Socket, token: Arc<()>) -> io::Result<(JoinHandle<()>, Receiver<()>)> {
    let socket = socket.try_clone()?;
    let (running, done) = crossbeam_channel::bounded::<()>(0);
    let run = move || {
        let _held = (token, running);
        sys::supervision::allow_interrupts();
        discard_here(&socket);
    };
    let thread = thread::Builder::new().name("discard".to_owned());
    Ok((thread.spawn(run)?, done))
}

/// Waits for the end of the thread, and gives it up if it does not come back.
fn wait_for(thread: JoinHandle<()>, done: &Receiver<()>) {
    let give_up_at = Instant::now() + PATIENCE;
    while done.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
        if Instant::now() >= give_up_at {
            return log::warn!("a descriptor that was sent with a notification cannot be closed");
        }
        sys::supervision::interrupt(&thread);
    }
    if thread.join().is_err() {
        log::error!("a thread that discards notifications has panicked");
    }
}

fn discard_here(socket: &Socket) {
    if let Err(error) = NotifySocket::discard(socket) {
        log::error!("cannot discard a notification: {error}");
    }
}
