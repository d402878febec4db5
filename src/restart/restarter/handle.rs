//! The handle: how servers ask the restarter, and report to it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError};
use parking_lot::Mutex;
use socket2::Socket;

use super::{CompletedRestart, ResultSender, stopping_error};
use crate::clock::Deadline;
use crate::log;
use crate::restart::error::RestartError;
use crate::sys::Poller;
use crate::wire::ServerId;

/// The most requests that wait for the restarter. Senders of more wait themselves.
const MAX_REQUESTS: usize = 1024;

/// What the server asks of the restarter, or reports to it.
pub(super) enum RestarterRequest {
    /// The server could serve. Answered when the server accepts, or must not accept.
    Ready(Sender<Result<(), String>>),
    /// A successor is to take over.
    Restart(Option<ResultSender>),
    /// A channel for the connections of this server of the predecessor, for the successor.
    PassOn(ServerId, Socket),
    /// The server has begun to stop.
    Stopping,
    /// One of the servers has stopped, with this report. If it was the last one, a successor that
    /// was aborted ends by the latest of these times.
    Stopped(String, Deadline),
}

/// The server's side of the restarter.
#[derive(Clone)]
pub(crate) struct RestarterHandle {
    requests: Sender<RestarterRequest>,
    /// Closed when the restarter has ended. Requests that it has not read by then stay in their
    /// channel, and their senders with them.
    ended: Receiver<()>,
    poller: Arc<Poller>,
    /// The server has stopped. The restarter may run on, to report results to callers.
    stays: Arc<AtomicBool>,
    /// How many of the servers have not stopped.
    servers_left: Arc<AtomicUsize>,
    /// The restarter's thread, until it is joined.
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

/// The other side of a [`RestarterHandle`].
pub(in crate::restart) struct RestarterEnd {
    pub(super) requests: Receiver<RestarterRequest>,
    /// Its drop closes [`RestarterHandle::ended`].
    pub(super) end: Sender<()>,
    pub(super) poller: Arc<Poller>,
    pub(super) stays: Arc<AtomicBool>,
    pub(super) servers_left: Arc<AtomicUsize>,
    pub(super) thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

/// Makes the two sides, for a restarter that is made later. Requests wait for it.
pub(in crate::restart) fn connect() -> io::Result<(RestarterHandle, RestarterEnd)> {
    let (sender, requests) = crossbeam_channel::bounded(MAX_REQUESTS);
    let (end, ended) = crossbeam_channel::bounded(0);
    let handle = RestarterHandle {
        requests: sender,
        ended,
        poller: Arc::new(Poller::new()?),
        stays: Arc::default(),
        servers_left: Arc::default(),
        thread: Arc::default(),
    };
    let restarter_end = RestarterEnd {
        requests,
        end,
        poller: Arc::clone(&handle.poller),
        stays: Arc::clone(&handle.stays),
        servers_left: Arc::clone(&handle.servers_left),
        thread: Arc::clone(&handle.thread),
    };
    Ok((handle, restarter_end))
}

impl RestarterHandle {
    /// Waits until the server accepts: at once, or when the predecessor agrees. Also returns when
    /// the server is stopped meanwhile, which is no error.
    pub(crate) fn announce_ready(&self) -> Result<(), String> {
        let (reply, answer) = crossbeam_channel::bounded(1);
        self.send(RestarterRequest::Ready(reply));
        self.wait_for(&answer).unwrap_or(Ok(()))
    }

    /// Begins a restart; after the one in progress, if there is one.
    pub(crate) fn request_restart(&self) {
        match self.requests.try_send(RestarterRequest::Restart(None)) {
            Ok(()) => self.poller.wake(),
            // Restarts that were requested before are in it.
            Err(TrySendError::Full(_)) => {}
            Err(TrySendError::Disconnected(_)) => {
                log::warn!("a restart was requested too late: this process is about to exit");
            }
        }
    }

    /// Begins a restart, or joins the next one, and waits for the result.
    pub(crate) fn wait_for_restart(&self) -> Result<CompletedRestart, RestartError> {
        let (reply, answer) = crossbeam_channel::bounded(1);
        self.send(RestarterRequest::Restart(Some(reply)));
        self.wait_for(&answer)
            .unwrap_or_else(|| Err(stopping_error()))
    }

    /// This process was replaced: the successor gets the channel for the connections of the
    /// predecessor's server `server_id`. Without a successor that adopts connections, the channel is
    /// closed.
    pub(crate) fn pass_on_channel(&self, server_id: ServerId, channel: Socket) {
        self.send(RestarterRequest::PassOn(server_id, channel));
    }

    pub(crate) fn report_stopping(&self) {
        self.send(RestarterRequest::Stopping);
    }

    /// One of the servers has stopped. Ends the restarter, if it was the last one. `aborted_by`: when
    /// a successor that was told to abort is killed, if no other server gives it more time.
    pub(crate) fn report_stopped(&self, report: String, aborted_by: Deadline) {
        self.send(RestarterRequest::Stopped(report, aborted_by));
        self.servers_left.fetch_sub(1, SeqCst);
    }

    /// Whether the restarter still waits for other servers to stop, or has to report the result of a
    /// restart. It ends then.
    pub(crate) fn stays(&self) -> bool {
        (self.stays.load(SeqCst) || self.waits_for_servers()) && !self.has_ended()
    }

    /// Whether other servers have not stopped, so that the restarter goes on.
    pub(crate) fn waits_for_servers(&self) -> bool {
        self.servers_left.load(SeqCst) > 0
    }

    /// Whether the restarter's thread has nothing left to do.
    fn has_ended(&self) -> bool {
        !matches!(self.ended.try_recv(), Err(TryRecvError::Empty))
    }

    /// Closed when the restarter has ended.
    pub(crate) fn ended(&self) -> &Receiver<()> {
        &self.ended
    }

    /// Waits for the thread of a restarter that has ended.
    pub(crate) fn join(&self) {
        let thread = self.thread.lock().take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            log::error!("the restart thread panicked");
        }
    }

    /// The answer; `None` if the restarter ends without one.
    fn wait_for<T>(&self, answer: &Receiver<T>) -> Option<T> {
        crossbeam_channel::select! {
            recv(answer) -> answer => answer.ok(),
            recv(self.ended) -> _ => answer.try_recv().ok(),
        }
    }

    fn send(&self, request: RestarterRequest) {
        // A restarter that has ended needs no requests.
        if self.requests.send(request).is_ok() {
            self.poller.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restart::error::RestartErrorKind;

    #[test]
    fn no_call_waits_for_a_restarter_that_has_ended() {
        let (handle, RestarterEnd { requests, end, .. }) = connect().unwrap();
        // Unread requests stay in the channel as long as there are senders.
        drop(end);
        assert_eq!(handle.announce_ready(), Ok(()));
        let error = handle.wait_for_restart().unwrap_err();
        assert_eq!(error.kind(), RestartErrorKind::Stopping);
        assert_eq!(requests.len(), 2);
    }
}
