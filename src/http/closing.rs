//! Why nobody waits any more for what another thread is to send, and the callbacks that say so.

use crate::log;
use crate::panic;

/// Why a [`Responder`](super::Responder) or a [`BodySender`](super::BodySender) can send nothing
/// more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseReason {
    /// The client has left, or its connection was closed: the client did not read in time, or the
    /// server's stop ran out of time.
    ClientLeft,
    /// The deadline of [`Reply::later`](super::Reply::later) has passed. The client has got another
    /// response.
    DeadlinePassed,
    /// The server stops, or a successor has taken over, and the body
    /// [ends then](super::BodySender::ends_at_drain).
    Draining,
    /// The reply was not sent, or without its body: the request was HEAD, the status has no body,
    /// or the application has dropped the reply.
    NotSent,
}

/// The application's functions that are called once, at the end.
#[derive(Default)]
pub(super) struct Callbacks(Vec<Box<dyn FnOnce(CloseReason) + Send>>);

impl Callbacks {
    pub(super) fn add(&mut self, callback: impl FnOnce(CloseReason) + Send + 'static) {
        self.0.push(Box::new(callback));
    }

    /// Calls the functions. Not under a lock: they are the application's code.
    pub(super) fn call(self, reason: CloseReason) {
        for callback in self.0 {
            if let Err(why) = panic::contain(|| callback(reason)) {
                log::error!("a callback for the end of a response panicked: {why}");
            }
        }
    }
}
