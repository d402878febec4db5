//! The handle: a running server's remote control.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use parking_lot::{Condvar, Mutex};

use crate::addr::Addr;
use crate::clock::Deadline;
use crate::restart::{RestartError, RestartErrorKind, UpgraderHandle};
use crate::server::report::{Generation, Report, RestartReport};
use crate::signals::Command;
use crate::stats::Stats;

thread_local! {
    /// Whose thread this is; 0 for nobody's.
    static SERVER: Cell<usize> = const { Cell::new(0) };
}

/// Says that this thread is one of that server's.
pub(super) fn belong_to(server: usize) {
    SERVER.set(server);
}

/// Waiting for the server would be waiting for this thread.
fn is_thread_of(server: usize) -> bool {
    SERVER.get() == server
}

/// Controls a running server. Clones control the same one.
///
/// Dropping the last handle stops the server as [`Builder::drain_timeout`](crate::Builder::drain_timeout) says, and
/// waits for it. So a service that keeps a handle of its own server runs until somebody stops it.
#[derive(Clone)]
#[must_use = "dropping the last handle stops the server"]
pub struct Handle(Arc<Owner>);

/// What handles and the server's main thread share.
pub(super) struct ServerShared {
    pub(super) commands: Sender<Command>,
    pub(super) addrs: Vec<Addr>,
    /// What tells the server from others in the process.
    pub(super) server: usize,
    pub(super) stats: Box<dyn Fn() -> Stats + Send + Sync>,
    pub(super) outcome: ReportCell,
    /// There if the server can be restarted.
    pub(super) restart: Option<UpgraderHandle>,
}

/// Where the report is left.
#[derive(Default)]
pub(super) struct ReportCell {
    /// With it: whether all threads have ended.
    report: Mutex<Option<(Report, bool)>>,
    there: Condvar,
}

impl ReportCell {
    pub(super) fn set(&self, report: Report, all_ended: bool) {
        *self.report.lock() = Some((report, all_ended));
        self.there.notify_all();
    }

    fn wait(&self) -> (Report, bool) {
        let mut report = self.report.lock();
        loop {
            if let Some(report) = &*report {
                return report.clone();
            }
            self.there.wait(&mut report);
        }
    }
}

struct Owner {
    control: Arc<ServerShared>,
    /// The server's main thread, until somebody has joined it; none where it is joined by a scope.
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Handle {
    pub(super) fn new(control: Arc<ServerShared>, thread: Option<JoinHandle<()>>) -> Self {
        let thread = Mutex::new(thread);
        Self(Arc::new(Owner { control, thread }))
    }

    /// Where the server listens, in the order of the builder, with real ports.
    pub fn local_addrs(&self) -> Vec<Addr> {
        self.0.control.addrs.clone()
    }

    /// Stops the server: nothing new is accepted, what is in progress may go on for at most so long, and then sockets
    /// are shut down. Returns at once; [`join`](Self::join) waits. A later call can bring the end forward, never put
    /// it off.
    pub fn stop(&self, within: Duration) {
        self.0
            .send(Command::StopBy(Deadline::after(Instant::now(), within)));
    }

    /// Stops the server without letting anything finish. Returns at once.
    pub fn stop_now(&self) {
        self.0.send(Command::StopNow);
    }

    /// Stops accepting: new connections wait in the kernel's queue, those that are open are served on.
    pub fn pause(&self) {
        self.0.send(Command::Pause);
    }

    /// Accepts again after [`pause`](Self::pause).
    pub fn resume(&self) {
        self.0.send(Command::Resume);
    }

    /// Has a new process take over, see [`Restart`](crate::Restart), and waits until this one has served all that it
    /// had. Calls at the same time have one restart in common.
    ///
    /// # Errors
    ///
    /// [`RestartError`] says why this process was not replaced now; it serves on, unless it is being stopped or has been
    /// replaced before.
    pub fn restart(&self) -> Result<RestartReport, RestartError> {
        let control = &self.0.control;
        let Some(remote) = &control.restart else {
            let why = "the server was built without restarts";
            return Err(RestartError::new(RestartErrorKind::Off, why));
        };
        if is_thread_of(control.server) {
            let why = "a service cannot wait for the end of its own server";
            return Err(RestartError::new(RestartErrorKind::OwnThread, why));
        }
        let done = remote.wait_for_restart()?;
        let (drained, _) = control.outcome.wait();
        Ok(RestartReport {
            ready_after: done.ready_after,
            accept_gap: done.accept_gap,
            drained,
            old: Generation {
                number: done.generation,
                pid: std::process::id(),
            },
            new: Generation {
                number: done.generation + 1,
                pid: done.pid,
            },
        })
    }

    /// As [`restart`](Self::restart), without waiting: what comes of it is logged. A service may call it.
    pub fn request_restart(&self) {
        self.0.send(Command::Restart);
    }

    /// What the server has done and does now. Still there after it has stopped.
    pub fn stats(&self) -> Stats {
        (self.0.control.stats)()
    }

    /// Waits until the server has stopped, and says how it went. May be called by several, and again.
    ///
    /// # Panics
    ///
    /// On a thread of this server, which would wait for itself.
    pub fn join(&self) -> Report {
        assert!(
            !is_thread_of(self.0.control.server),
            "a service cannot wait for its own server to stop"
        );
        self.0.join()
    }
}

impl Owner {
    fn send(&self, command: Command) {
        // A server that has ended does not listen any more, and needs not.
        let _ = self.control.commands.send(command);
    }

    fn join(&self) -> Report {
        let (report, all_ended) = self.control.outcome.wait();
        // A thread that a stuck handler keeps is not worth waiting for.
        if all_ended {
            let thread = self.thread.lock().take();
            if thread.is_some_and(|thread| thread.join().is_err()) {
                log::error!("the server's main thread panicked");
            }
        }
        report
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.send(Command::Drain);
        if !is_thread_of(self.control.server) {
            self.join();
        }
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("addrs", &self.0.control.addrs)
            .finish_non_exhaustive()
    }
}
