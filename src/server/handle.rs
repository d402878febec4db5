//! The handle: controls a server from other threads, before and while it runs.

use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::addr::Addr;
use crate::clock::Deadline;
use crate::log;
use crate::restart::{RestartError, RestartErrorKind};
use crate::server::app_threads::PeriodicCall;
use crate::server::report::{Generation, Report, RestartReport};
use crate::server::shared::{RequestedStop, ServerShared};
use crate::stats::Stats;

/// Controls a server. Clones control the same server. [`Server::handle`](crate::Server::handle)
/// gives one before the server runs, and [`Server::start`](crate::Server::start) when it does.
///
/// No call waits for the server, except [`join`](Self::join), [`join_timeout`](Self::join_timeout)
/// and [`restart`](Self::restart).
///
/// # Dropping handles
///
/// The drop of the last handle of a running server begins a stop, within
/// [`Builder::drain_timeout`](crate::Builder::drain_timeout), and returns at once. A program that
/// ends then cuts off what is in progress: call [`join`](Self::join) before.
/// [`Server::run`](crate::Server::run) has a handle of its own until it returns, so the drop of
/// other handles has no effect then. The server of a service that keeps a handle runs until another
/// stop.
#[derive(Clone)]
#[must_use = "dropping the last handle stops the server"]
pub struct Handle(Arc<Owner>);

struct Owner {
    shared: Arc<ServerShared>,
    /// The server's main thread, once it was started and until it is joined. `None` where a scope
    /// joins it.
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Set when the server starts.
    life: OnceLock<Arc<Life>>,
}

/// The handles of all servers of a group have this. Its drop is that of the last handle.
struct Life(Vec<Arc<ServerShared>>);

impl Handle {
    pub(super) fn new(shared: Arc<ServerShared>) -> Self {
        Self(Arc::new(Owner {
            shared,
            thread: Mutex::default(),
            life: OnceLock::new(),
        }))
    }

    /// Makes these servers run as long as one of them has a handle.
    pub(super) fn share_life(handles: &[Self]) {
        let all = handles.iter().map(|handle| Arc::clone(handle.shared()));
        let life = Arc::new(Life(all.collect()));
        for handle in handles {
            let _ = handle.0.life.set(Arc::clone(&life));
        }
    }

    pub(super) fn shared(&self) -> &Arc<ServerShared> {
        &self.0.shared
    }

    pub(super) fn set_thread(&self, thread: JoinHandle<()>) {
        *self.0.thread.lock() = Some(thread);
    }

    /// The addresses that the server listens on, in the order of the builder, with real ports.
    pub fn local_addrs(&self) -> Vec<Addr> {
        self.0.shared.addrs.clone()
    }

    /// Stops the server, and those that run beside it ([`Servers`](crate::Servers)): no new
    /// connection is accepted, what is in progress may go on for `within`, and then sockets are shut
    /// down. Returns at once; [`join`](Self::join) waits. A later call can make the deadline
    /// earlier, never later. A server that has not started yet stops when it starts, and accepts
    /// nothing.
    pub fn stop(&self, within: Duration) {
        let deadline = Deadline::after(Instant::now(), within);
        let stop = RequestedStop::by(deadline);
        self.0.shared.request_stop_of_all(stop);
    }

    /// Stops the server now: calls in progress are cut off, and a restart that is not complete is not
    /// waited for. Returns at once.
    pub fn stop_now(&self) {
        self.0.shared.request_stop_of_all(RequestedStop::now());
    }

    /// Whether a stop was requested or has begun, for whatever reason: a call of
    /// [`stop`](Self::stop), a signal, a successor that serves. True for good from then on. The
    /// application's own threads can end by it; [`Builder::on_stop`](crate::Builder::on_stop) can
    /// wake them.
    pub fn is_stopping(&self) -> bool {
        self.0.shared.stop.is_stopping()
    }

    /// Stops accepting: new connections wait in the kernel's queue. Open connections are served as
    /// before. A server that has not started yet accepts nothing until [`resume`](Self::resume).
    pub fn pause(&self) {
        self.0.shared.gate.pause();
    }

    /// Accepts again after [`pause`](Self::pause).
    pub fn resume(&self) {
        self.0.shared.gate.resume();
    }

    /// Starts a successor, see [`Restart`](crate::Restart), and waits until this process has
    /// drained. A call that comes before a restart in progress has executed the program shares that
    /// restart. A later call starts another one, as the program on disk may have changed: the
    /// successor is replaced as well, and the report names the process that serves in the end. If
    /// this process was replaced before the call, its successor is replaced in the same way. A call
    /// that comes before this process serves waits until it does.
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
        if shared.is_own_thread() {
            let why = "a thread of the server cannot wait for the end of the server";
            return Err(RestartError::new(RestartErrorKind::OwnThread, why));
        }
        let done = restarter.wait_for_restart()?;
        let drained = shared.report.wait(Deadline::NEVER);
        Ok(RestartReport {
            ready_after: done.ready_after,
            paused_for: done.paused_for,
            drained: drained.unwrap_or_default().0,
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
        match &self.0.shared.restarter {
            Some(restarter) => restarter.request_restart(),
            None => log::warn!("the server was built without Builder::restart"),
        }
    }

    /// Makes `call` once per `interval`, the first time after one interval: heartbeats, ticks of a
    /// game, the cleaning of a cache. The calls are made on a thread of their own, which starts and
    /// ends with the server. They go on while the server drains, as those of the service do. Then
    /// the stop waits for a call in progress within its deadline, as for a call of the service, and
    /// drops `call`.
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
    /// cannot be started. If the server has not started, the latter is an error of its start.
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
        let call = PeriodicCall::new(interval, call)?;
        self.0.shared.app_threads.add(call)
    }

    /// The server's counters and gauges. They can be read before the start and after the stop as
    /// well.
    pub fn stats(&self) -> Stats {
        (self.0.shared.stats)()
    }

    /// Waits until the server has stopped, and returns the report. May be called by several
    /// threads, and again. The report of a server that was dropped before it started is empty.
    ///
    /// # Panics
    ///
    /// On a thread of this server, which would wait for its own end.
    pub fn join(&self) -> Report {
        self.join_by(Deadline::NEVER).unwrap_or_default()
    }

    /// As [`join`](Self::join), but waits for at most `timeout`. `None` if the server has not
    /// stopped by then: it goes on as before.
    ///
    /// # Panics
    ///
    /// On a thread of this server, which would wait for its own end.
    pub fn join_timeout(&self, timeout: Duration) -> Option<Report> {
        self.join_by(Deadline::after(Instant::now(), timeout))
    }

    fn join_by(&self, deadline: Deadline) -> Option<Report> {
        assert!(
            !self.0.shared.is_own_thread(),
            "a thread of the server cannot wait for the server to stop"
        );
        let (report, all_ended) = self.0.shared.report.wait(deadline)?;
        // A thread that a stuck handler holds may never end.
        if all_ended {
            let thread = self.0.thread.lock().take();
            if thread.is_some_and(|thread| thread.join().is_err()) {
                log::error!("the server's main thread panicked");
            }
        }
        Some(report)
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let runs = |shared: &Arc<ServerShared>| !shared.stop.is_stopping();
        if self.0.iter().any(runs) {
            log::info!("the last handle was dropped: stopping");
        }
        self.0.iter().for_each(|shared| shared.request_drain());
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("addrs", &self.0.shared.addrs)
            .field("is_stopping", &self.is_stopping())
            .finish_non_exhaustive()
    }
}
