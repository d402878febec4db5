//! The outbox: output that is ready while its worker is in a handler.
//!
//! A service that answers several messages in one call writes the answers together. An answer that
//! is ready must not wait for a slow handler, though. So the service lends its pending output to
//! the outbox while it calls the handler. If the call lasts longer than a tick, the keeper writes
//! the output in the meantime.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use parking_lot::Mutex;
use socket2::Socket;

use crate::sys;

/// The pending output of one connection.
#[derive(Debug, Default)]
pub(crate) struct Outbox(Mutex<Lent>);

#[derive(Debug, Default)]
struct Lent {
    bytes: Vec<u8>,
    sent: usize,
    error: Option<io::Error>,
}

impl Outbox {
    #[cfg(feature = "http")]
    pub(super) fn lend(&self, bytes: &mut Vec<u8>) {
        std::mem::swap(&mut self.0.lock().bytes, bytes);
    }

    /// Takes the output back, without what has been sent. Returns how many bytes that was.
    #[cfg(feature = "http")]
    pub(super) fn reclaim(&self, bytes: &mut Vec<u8>) -> io::Result<usize> {
        let mut lent = self.0.lock();
        std::mem::swap(&mut lent.bytes, bytes);
        let sent = std::mem::take(&mut lent.sent);
        bytes.drain(..sent);
        lent.error.take().map_or(Ok(sent), Err)
    }

    /// Sends what the socket takes at once. The lock is held meanwhile, so that the worker does not
    /// send the same bytes.
    pub(crate) fn send(&self, socket: &Socket) {
        let mut lent = self.0.lock();
        while lent.error.is_none() && lent.sent < lent.bytes.len() {
            match sys::socket::send(socket, &lent.bytes[lent.sent..]) {
                Ok(count) => lent.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => lent.error = Some(error),
            }
        }
    }
}

/// Tells the keeper of a server when outboxes are in use.
#[derive(Default)]
pub(crate) struct OutboxWatch {
    /// Output was lent since the keeper's last tick.
    is_used: AtomicBool,
    /// The keeper ticks.
    is_watched: AtomicBool,
    wake_keeper: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl OutboxWatch {
    pub(crate) fn on_use(&self, wake_keeper: impl Fn() + Send + Sync + 'static) {
        let _ = self.wake_keeper.set(Box::new(wake_keeper));
    }

    #[cfg(feature = "http")]
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

    /// The keeper stops ticking, unless output was lent meanwhile.
    pub(crate) fn stop_watching(&self) {
        self.is_watched.store(false, SeqCst);
        if self.is_used.load(SeqCst) {
            self.is_watched.store(true, SeqCst);
        }
    }
}
