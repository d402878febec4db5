//! Early output: output that is ready while the connection's worker is in the service.
//!
//! What a call writes is gathered, and leaves together. But output that is ready must not wait for
//! a slow call: its client, or another program that the service talks to, may wait for it. So a
//! connection lends its gathered output to the keeper while the service's code runs. The keeper
//! checks for such output each millisecond. If a call was in progress at the last check already, the
//! keeper writes the output of the call.

use std::io::{self, IoSlice};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use parking_lot::Mutex;
use socket2::Socket;

use crate::sys;

/// The pending output of one connection.
#[derive(Debug, Default)]
pub(crate) struct EarlyOutput(Mutex<Lent>);

#[derive(Debug, Default)]
struct Lent {
    bytes: Vec<u8>,
    /// How many of the bytes were sent.
    sent: usize,
    /// The error of the keeper's send. The worker gets it from `reclaim`.
    error: Option<io::Error>,
}

impl EarlyOutput {
    pub(super) fn lend(&self, bytes: &mut Vec<u8>) {
        std::mem::swap(&mut self.0.lock().bytes, bytes);
    }

    /// Adds the parts to what is lent. `None` if they do not fit into the room, or the keeper's
    /// send has failed.
    pub(super) fn add(&self, parts: &[IoSlice<'_>], room: usize) -> Option<usize> {
        let mut lent = self.0.lock();
        let total: usize = parts.iter().map(|part| part.len()).sum();
        if lent.error.is_some() || lent.bytes.len() - lent.sent + total > room {
            return None;
        }
        for part in parts {
            lent.bytes.extend_from_slice(part);
        }
        Some(total)
    }

    /// Takes back the output that was not sent. Returns how many bytes were sent.
    ///
    /// # Errors
    ///
    /// The error of the keeper's send.
    pub(super) fn reclaim(&self, bytes: &mut Vec<u8>) -> io::Result<usize> {
        let mut lent = self.0.lock();
        std::mem::swap(&mut lent.bytes, bytes);
        let sent = std::mem::take(&mut lent.sent);
        bytes.drain(..sent);
        lent.error.take().map_or(Ok(sent), Err)
    }

    /// Sends what the socket takes at once. Holds the lock meanwhile, so that the worker does not
    /// send the same bytes. False if the socket has refused a part.
    pub(crate) fn send(&self, socket: &Socket) -> bool {
        let mut lent = self.0.lock();
        while lent.error.is_none() && lent.sent < lent.bytes.len() {
            match sys::socket::send(socket, &lent.bytes[lent.sent..]) {
                Ok(count) => lent.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) => lent.error = Some(error),
            }
        }
        true
    }
}

/// Tells a server's keeper when output was lent.
#[derive(Default)]
pub(crate) struct EarlyOutputWatch {
    /// Output was lent since the keeper's last check.
    is_used: AtomicBool,
    /// The keeper checks for such output each millisecond.
    is_watched: AtomicBool,
    wake_keeper: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl EarlyOutputWatch {
    /// Sets the function that wakes the keeper. Only the first call has an effect.
    pub(crate) fn on_use(&self, wake_keeper: impl Fn() + Send + Sync + 'static) {
        let _ = self.wake_keeper.set(Box::new(wake_keeper));
    }

    /// Notes that output was lent. Wakes the keeper if it does not check for lent output.
    #[inline]
    pub(super) fn note_use(&self) {
        if !self.is_used.load(SeqCst) {
            self.is_used.store(true, SeqCst);
            if !self.is_watched.swap(true, SeqCst) {
                if let Some(wake_keeper) = self.wake_keeper.get() {
                    wake_keeper();
                }
            }
        }
    }

    pub(crate) fn is_watched(&self) -> bool {
        self.is_watched.load(SeqCst)
    }

    /// Whether output was lent since the last call.
    pub(crate) fn take_use(&self) -> bool {
        self.is_used.swap(false, SeqCst)
    }

    /// Stops the keeper's checks, unless output was lent meanwhile.
    pub(crate) fn stop_watching(&self) {
        self.is_watched.store(false, SeqCst);
        if self.is_used.load(SeqCst) {
            self.is_watched.store(true, SeqCst);
        }
    }
}
