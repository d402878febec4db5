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

use crossbeam_utils::atomic::AtomicCell;
use parking_lot::Mutex;
use socket2::Socket;

use crate::sys;

/// The pending output of one connection.
///
/// The worker lends its output before each call of a handler, and reclaims it afterwards. Each costs
/// one atomic exchange, where a lock would cost two.
#[derive(Default)]
pub(crate) struct EarlyOutput {
    /// The output, while it is lent. Who works on it takes it out.
    slot: AtomicCell<Option<Box<Lent>>>,
    /// Locked while the keeper has the output.
    sending: Mutex<()>,
    /// The kernel holds back the last segment, see [`last_answer`](super::last_answer).
    is_held: AtomicBool,
}

#[derive(Debug, Default)]
pub(super) struct Lent {
    bytes: Vec<u8>,
    /// How many of the bytes were sent.
    sent: usize,
    /// The error of the keeper's send. The worker gets it from `reclaim`.
    error: Option<io::Error>,
}

impl EarlyOutput {
    /// Lends the bytes, in `spare` if it is there.
    #[inline]
    pub(super) fn lend(&self, bytes: &mut Vec<u8>, spare: &mut Option<Box<Lent>>) {
        let mut lent = spare.take().unwrap_or_default();
        std::mem::swap(&mut lent.bytes, bytes);
        self.slot.store(Some(lent));
    }

    /// Adds the parts to what is lent. `None` if they do not fit into the room, or the keeper's
    /// send has failed.
    pub(super) fn add(&self, parts: &[IoSlice<'_>], room: usize) -> Option<usize> {
        let mut lent = self.take()?;
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let fits = lent.error.is_none() && lent.bytes.len() - lent.sent + total <= room;
        if fits {
            for part in parts {
                lent.bytes.extend_from_slice(part);
            }
        }
        self.slot.store(Some(lent));
        fits.then_some(total)
    }

    /// Takes back the output that was not sent. Returns how many bytes were sent.
    ///
    /// # Errors
    ///
    /// The error of the keeper's send.
    #[inline]
    pub(super) fn reclaim(
        &self,
        bytes: &mut Vec<u8>,
        spare: &mut Option<Box<Lent>>,
    ) -> io::Result<usize> {
        let lent = spare.insert(self.take().unwrap_or_default());
        std::mem::swap(&mut lent.bytes, bytes);
        let sent = std::mem::take(&mut lent.sent);
        if sent > 0 {
            bytes.drain(..sent);
        }
        lent.error.take().map_or(Ok(sent), Err)
    }

    /// Takes the output out. Waits while the keeper has it. For the connection's worker.
    #[inline]
    fn take(&self) -> Option<Box<Lent>> {
        self.slot.take().or_else(|| {
            // Held until the output is out: the keeper would take it again.
            let _sending = self.sending.lock();
            self.slot.take()
        })
    }

    /// Sends what the socket takes at once. The worker waits meanwhile, so that it does not send
    /// the same bytes. False if the socket has refused a part.
    pub(crate) fn send(&self, socket: &Socket) -> bool {
        let _sending = self.sending.lock();
        let Some(mut lent) = self.slot.take() else {
            // The call has flushed.
            self.release(socket);
            return true;
        };
        let mut is_refused = false;
        while !is_refused && lent.error.is_none() && lent.sent < lent.bytes.len() {
            match sys::socket::send(socket, &lent.bytes[lent.sent..]) {
                Ok(count) => lent.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => is_refused = true,
                Err(error) => lent.error = Some(error),
            }
        }
        self.release(socket);
        self.slot.store(Some(lent));
        !is_refused
    }

    /// Makes the kernel hold back the last segment. False if it cannot.
    pub(super) fn hold(&self, socket: &Socket) -> bool {
        // The keeper may be releasing just now.
        let _sending = self.sending.lock();
        let is_held = self.is_held() || sys::socket::hold_last_segment(socket);
        self.is_held.store(is_held, SeqCst);
        is_held
    }

    #[inline]
    pub(super) fn is_held(&self) -> bool {
        self.is_held.load(SeqCst)
    }

    /// Sends what the kernel holds back.
    #[inline]
    pub(super) fn release(&self, socket: &Socket) {
        if self.is_held() {
            self.is_held.store(false, SeqCst);
            sys::socket::release_last_segment(socket);
        }
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
