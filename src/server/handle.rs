//! The handle: controls a running server from other threads.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use parking_lot::{Condvar, Mutex};

use crate::addr::Addr;
use crate::clock::Deadline;
use crate::log;
use crate::restart::{RestartError, RestartErrorKind, RestarterHandle};
use crate::server::periodic::{PeriodicCall, PeriodicThreads};
use crate::server::report::{Generation, Report, RestartReport};
use crate::signals::ServerCommand;
use crate::stats::Stats;

thread_local! {
    /// The id of the server that this thread belongs to; 0 for no server.
    static SERVER_ID: Cell<usize> = const { Cell::new(0) };
}

/// Marks this thread as one of the server's.
pub(super) fn mark_thread(server_id: usize) {
    SERVER_ID.set(server_id);
}

/// Whether this thread is one of the server's. Such a thread cannot wait for the server's end.
fn is_thread_of(server_id: usize) -> bool {
    SERVER_ID.get() == server_id
}

/// Controls a running server. Clones control the same server.
///
/// Dropping the last handle stops the server within
/// [`Builder::drain_timeout`](crate::Builder::drain_timeout), and waits for the stop. So the server
/// of a service that keeps a handle of it runs until another stop.
#[derive(Clone)]
#[must_use = "dropping the last handle stops the server"]
pub struct Handle(Arc<Owner>);

/// What handles and the server's main thread share.
pub(super) struct ServerShared {
    pub(super) commands: Sender<ServerCommand>,
    pub(super) addrs: Vec<Addr>,
    /// Tells this server from others in the process.
    pub(super) server_id: usize,
    pub(super) thread_name_prefix: String,
    pub(super) periodic: PeriodicThreads,
    pub(super) stats: Box<dyn Fn() -> Stats + Send + Sync>,
    pub(super) report: ReportCell,
    /// `Some` if the server can be restarted.
    pub(super) restarter: Option<RestarterHandle>,
}

/// The report, once there is one, and whether all threads have ended.
#[derive(Default)]
pub(super) struct ReportCell {
    report: Mutex<Option<(Report, bool)>>,
    is_set: Condvar,
}

impl ReportCell {
    pub(super) fn set(&self, report: Report, all_ended: bool) {
        *self.report.lock() = Some((report, all_ended));
        self.is_set.notify_all();
    }

    fn wait(&self) -> (Report, bool) {
        let mut report = self.report.lock();
        loop {
            if let Some(report) = &*report {
                return report.clone();
            }
            self.is_set.wait(&mut report);
        }
    }
}

struct Owner {
    shared: Arc<ServerShared>,
    /// The server's main thread, until it is joined. `None` where a scope joins it.
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Handle {
    pub(super) fn new(shared: Arc<ServerShared>, thread: Option<JoinHandle<()>>) -> Self {
        let thread = Mutex::new(thread);
        Self(Arc::new(Owner { shared, thread }))
    }

    /// The addresses that the server listens on, in the order of the builder, with real ports.
    pub fn local_addrs(&self) -> Vec<Addr> {
        self.0.shared.addrs.clone()
    }

    /// Stops the server: no new connection is accepted, what is in progress may go on for `within`,
    /// and then sockets are shut down. Returns at once; [`join`](Self::join) waits. A later call
    /// can make the deadline earlier, never later.
    pub fn stop(&self, within: Duration) {
        self.0.send(ServerCommand::StopBy(Deadline::after(
            Instant::now(),
            within,
        )));
    }

    /// Stops the server now: calls in progress are cut off. Returns at once.
    pub fn stop_now(&self) {
        self.0.send(ServerCommand::StopNow);
    }

    /// Stops accepting: new connections wait in the kernel's queue. Open connections are served as
    /// before.
    pub fn pause(&self) {
        self.0.send(ServerCommand::Pause);
    }

    /// Accepts again after [`pause`](Self::pause).
    pub fn resume(&self) {
        self.0.send(ServerCommand::Resume);
    }

    /// Starts a successor, see [`Restart`](crate::Restart), and waits until this process has
    /// drained. A call that comes before a restart in progress has executed the program shares that
    /// restart. A later call starts another one, as the program on disk may have changed: the
    /// successor is replaced as well, and the report names the process that serves in the end. If
    /// this process was replaced before the call, its successor is replaced in the same way.
    ///
    /// # Errors
    ///
    /// [`RestartError`] says why there was no restart. This process goes on serving, unless it is
    /// being stopped or has been replaced before.
    pub fn restart(&self) -> Result<RestartReport, RestartError> {
        let shared = &self.0.shared;
        let Some(restarter) = &shared.restarter else {
            let why = "the server was built without Builder::restart";
            return Err(RestartError::new(RestartErrorKind::Off, why));
        };
        if is_thread_of(shared.server_id) {
            let why = "a thread of the server cannot wait for the end of the server";
            return Err(RestartError::new(RestartErrorKind::OwnThread, why));
        }
        let done = restarter.wait_for_restart()?;
        let (drained, _) = shared.report.wait();
        Ok(RestartReport {
            ready_after: done.ready_after,
            accept_gap: done.accept_gap,
            drained,
            old: Generation {
                number: done.generation,
                pid: std::process::id(),
            },
            new: Generation {
                number: done.new_generation,
                pid: done.pid,
            },
        })
    }

    /// As [`restart`](Self::restart), without waiting. The outcome is logged. A service may call
    /// this.
    pub fn request_restart(&self) {
        self.0.send(ServerCommand::Restart);
    }

    /// Makes `call` once per `interval`, the first time after one interval: heartbeats, ticks of a
    /// game, the cleaning of a cache. The calls are made on a thread of their own, which ends with
    /// the server. They go on while the server drains, as those of the service do. Then the stop
    /// waits for a call in progress within its deadline, as for a call of the service, and drops
    /// `call`.
    ///
    /// The calls do not drift. Those that are missed because an earlier one took too long are
    /// skipped. A panic is logged, and the calls go on.
    ///
    /// For a timer of one connection, see
    /// [`Connection::wake_at`](crate::Connection::wake_at).
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the interval is zero; an error if the server has stopped, or the thread
    /// cannot be started.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use handover::{Connection, Next, Outbox, Server};
    /// use parking_lot::Mutex;
    ///
    /// static SUBSCRIBERS: Mutex<Vec<Outbox>> = Mutex::new(Vec::new());
    ///
    /// let server = Server::builder().listen("127.0.0.1:0").build(|conn: &mut Connection| {
    ///     SUBSCRIBERS.lock().push(conn.outbox(1024));
    ///     Ok(if conn.at_eof() { Next::Close } else { Next::Wait })
    /// })?;
    /// let handle = server.start()?;
    /// handle.every(Duration::from_secs(1), || {
    ///     SUBSCRIBERS.lock().retain(|outbox| !outbox.is_closed());
    ///     // Sending is I/O: not under the lock.
    ///     let subscribers = SUBSCRIBERS.lock().clone();
    ///     for outbox in subscribers {
    ///         let _ = outbox.send("tick\n");
    ///     }
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn every(&self, interval: Duration, call: impl FnMut() + Send + 'static) -> io::Result<()> {
        self.0
            .shared
            .start_periodic(PeriodicCall::new(interval, call)?)
    }

    /// The server's counters and gauges. They can be read after the stop as well.
    pub fn stats(&self) -> Stats {
        (self.0.shared.stats)()
    }

    /// Waits until the server has stopped, and returns the report. May be called by several
    /// threads, and again.
    ///
    /// # Panics
    ///
    /// On a thread of this server, which would wait for its own end.
    pub fn join(&self) -> Report {
        assert!(
            !is_thread_of(self.0.shared.server_id),
            "a thread of the server cannot wait for the server to stop"
        );
        self.0.join()
    }
}

impl ServerShared {
    /// Starts a thread that makes the calls.
    pub(super) fn start_periodic(&self, call: PeriodicCall) -> io::Result<()> {
        let name = format!("{}-every", self.thread_name_prefix);
        let server_id = self.server_id;
        let begin = move || mark_thread(server_id);
        self.periodic.start(name, begin, call)
    }
}

impl Owner {
    fn send(&self, command: ServerCommand) {
        // A server that has ended needs no command.
        let _ = self.shared.commands.send(command);
    }

    fn join(&self) -> Report {
        let (report, all_ended) = self.shared.report.wait();
        // A thread that a stuck handler holds may never end.
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
        self.send(ServerCommand::Drain);
        if !is_thread_of(self.shared.server_id) {
            self.join();
        }
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("addrs", &self.0.shared.addrs)
            .finish_non_exhaustive()
    }
}
