//! The upgrader: the thread that replaces this process by another one, and before that took it from another one's hands.
//!
//! It is one loop over what it is asked for, what the predecessor says, what the successor says, and the time. It
//! starts successors itself, so that they are children of a thread that stays.

mod predecessor;
mod successor;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use crate::clock::Deadline;
use crate::listener::Listener;
use crate::notify;
use crate::restart::Restart;
use crate::restart::error::{RestartError, RestartErrorKind};
use crate::restart::inherited::{Stderr, fd_name};
use crate::restart::link::{Link, Message};
use crate::restart::pid_file::PidFile;
use crate::restart::program::Program;
use crate::sys::{self, Descriptor, Events, Poller};

pub(super) use predecessor::greet;
use successor::{Successor, SuccessorStage};

/// What the upgrader asks of the server that it belongs to.
pub(crate) trait Host: Sync {
    /// What the service leaves for the successor.
    fn export(&self) -> Option<Vec<u8>>;

    /// Accepts from now on.
    fn open(&self);

    /// Accepts nobody for now; false if that was so already.
    fn pause(&self) -> bool;

    /// Accepts again.
    fn resume(&self);

    /// Another process serves from now on, on these of the listeners: closes all of them, and lets what is here come to
    /// its end.
    fn leave(&self, kept: &[u32]);

    /// Stops: finishes what is here, with the time that the server has for that.
    fn drain(&self);

    /// Stops at once.
    fn end(&self);
}

/// What the upgrader is asked for.
enum Request {
    /// The server could serve. Answered when it may, or is not to.
    Open(Sender<Result<(), String>>),
    Restart(Option<Waiter>),
    /// A stop has begun.
    Stopping,
    /// The server has ended, and this is how.
    End(String),
}

type Waiter = Sender<Result<Replacement, RestartError>>;

/// What a successor has achieved.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Replacement {
    pub(crate) ready_after: Duration,
    pub(crate) accept_gap: Duration,
    pub(crate) pid: u32,
    /// Of this process; the successor's is the next one.
    pub(crate) generation: u64,
}

/// The server's side of the upgrader.
#[derive(Clone)]
pub(crate) struct UpgraderHandle {
    requests: Sender<Request>,
    /// Closed when the upgrader has ended: what waits among the requests then is neither read nor dropped.
    ended: Receiver<()>,
    poller: Arc<Poller>,
}

impl UpgraderHandle {
    /// Waits until the server may serve: at once, or when the predecessor lets it.
    pub(crate) fn open(&self) -> Result<(), String> {
        let (reply, answer) = crossbeam_channel::bounded(1);
        self.send(Request::Open(reply));
        // A server that was stopped meanwhile is no failure.
        self.wait_for(&answer).unwrap_or(Ok(()))
    }

    /// Begins a restart, unless one is in progress.
    pub(crate) fn restart(&self) {
        // Where so many ask already, one more makes no difference.
        if self.requests.try_send(Request::Restart(None)).is_ok() {
            self.poller.wake();
        }
    }

    /// Waits until this process is replaced, or not to be.
    pub(crate) fn wait_restart(&self) -> Result<Replacement, RestartError> {
        let (reply, answer) = crossbeam_channel::bounded(1);
        self.send(Request::Restart(Some(reply)));
        self.wait_for(&answer).unwrap_or_else(|| Err(stopping()))
    }

    pub(crate) fn stopping(&self) {
        self.send(Request::Stopping);
    }

    pub(crate) fn end(&self, report: String) {
        self.send(Request::End(report));
    }

    /// The answer, unless the upgrader ends without one.
    fn wait_for<T>(&self, answer: &Receiver<T>) -> Option<T> {
        crossbeam_channel::select! {
            recv(answer) -> answer => answer.ok(),
            recv(self.ended) -> _ => answer.try_recv().ok(),
        }
    }

    fn send(&self, request: Request) {
        // An upgrader that has ended has nothing to do any more.
        if self.requests.send(request).is_ok() {
            self.poller.wake();
        }
    }
}

fn stopping() -> RestartError {
    RestartError::new(RestartErrorKind::Stopping, "the server is being stopped")
}

/// How far this process is.
enum Phase {
    /// The server is being built.
    Building,
    /// It is ready, and waits to be let serve.
    Asking(Sender<Result<(), String>>),
    /// It accepts, and so does its predecessor.
    Opened,
    Serving,
    /// Its successor serves.
    Left,
    /// It is stopping, for good.
    Stopping,
}

/// See the module `restart`.
pub(crate) struct Upgrader {
    _active: Active,
    /// Dropped when this ends.
    _ends: Sender<()>,
    program: Program,
    requests: Receiver<Request>,
    poller: Arc<Poller>,
    listeners: Vec<Weak<Listener>>,
    passed: Vec<(String, Descriptor)>,
    ready_timeout: Duration,
    drain_timeout: Duration,
    pid_path: Option<PathBuf>,
    pid_file: Option<PidFile>,
    generation: u64,
    phase: Phase,
    predecessor: Option<Link>,
    supervisor: Option<Link>,
    /// The standard error that the predecessor has put a pipe in the place of.
    stderr: Option<Stderr>,
    /// What of what was passed to this process it has taken.
    kept: Vec<u32>,
    /// Why the predecessor does not want this process any more.
    aborted: Option<String>,
    successor: Option<Successor>,
    /// A restart is to begin as soon as that is possible.
    wanted: bool,
    /// Those who wait for the outcome.
    waiters: Vec<Waiter>,
    /// When the service manager was told for the last time that something takes a while.
    extended: Instant,
    /// When this process was made.
    since: Instant,
}

/// A server of this process can be restarted.
static ACTIVE: AtomicBool = AtomicBool::new(false);

/// The right to be that server.
struct Active;

impl Drop for Active {
    fn drop(&mut self) {
        ACTIVE.store(false, SeqCst);
    }
}

/// The tokens of the links.
const PREDECESSOR: u64 = 0;
const SUCCESSOR: u64 = 1;
const SUPERVISOR: u64 = 2;

/// How many requests may wait for the upgrader; a thread that asks for more has to wait itself.
const REQUESTS: usize = 1024;

/// How often the service manager is told that something takes a while, and for how long that is said.
const EXTEND_EVERY: Duration = Duration::from_secs(5);
const EXTEND_BY: Duration = Duration::from_secs(20);

impl Upgrader {
    /// Makes the upgrader of a process, and the way to ask it for something.
    pub(crate) fn new(
        restart: Restart,
        listeners: Vec<Weak<Listener>>,
        drain_timeout: Duration,
    ) -> std::io::Result<(Self, UpgraderHandle)> {
        if ACTIVE.swap(true, SeqCst) {
            let text = "another server of this process can be restarted already";
            return Err(std::io::Error::new(std::io::ErrorKind::AlreadyExists, text));
        }
        let active = Active;
        let generation = restart.generation();
        let (sender, requests) = crossbeam_channel::bounded(REQUESTS);
        let poller = Arc::new(Poller::new()?);
        let (ends, ended) = crossbeam_channel::bounded(0);
        let remote = UpgraderHandle {
            requests: sender,
            ended,
            poller: Arc::clone(&poller),
        };
        let (mut predecessor, mut stderr) = (None, None);
        if let Some(left) = restart.inherited.predecessor {
            let mut link = Link::new(left.control);
            link.watch(&poller, PREDECESSOR)?;
            predecessor = Some(link);
            stderr = left.stderr;
        }
        let mut supervisor = None;
        if let Some(supervised) = restart.inherited.supervised {
            leave_copies(generation, &listeners)?;
            let mut link = Link::new(supervised.lifeline);
            link.watch(&poller, SUPERVISOR)?;
            supervisor = Some(link);
        }
        let upgrader = Self {
            _active: active,
            _ends: ends,
            program: restart.program?,
            requests,
            poller,
            listeners,
            passed: restart.passed,
            ready_timeout: restart.ready_timeout,
            drain_timeout,
            pid_path: restart.pid_file,
            pid_file: None,
            generation,
            phase: Phase::Building,
            predecessor,
            supervisor,
            stderr,
            kept: restart.inherited.taken,
            aborted: None,
            successor: None,
            wanted: false,
            waiters: Vec::new(),
            extended: Instant::now(),
            since: Instant::now(),
        };
        Ok((upgrader, remote))
    }

    /// The upgrader's life: until the server has ended.
    pub(crate) fn run(mut self, host: &dyn Host) {
        let mut events = Events::with_capacity(4);
        loop {
            while let Ok(request) = self.requests.try_recv() {
                match request {
                    Request::Open(reply) => self.ready(host, reply),
                    Request::Restart(waiter) => {
                        self.wanted = true;
                        self.waiters.extend(waiter);
                    }
                    Request::Stopping => self.stopping(),
                    Request::End(report) => return self.end(host, report),
                }
            }
            self.hear_supervisor(host);
            self.hear_predecessor(host);
            self.hear_successor(host);
            self.look_at_clock(host);
            self.restart_if_wanted(host);
            let timeout = self.next().left(Instant::now());
            if let Err(error) = self.poller.wait(&mut events, 4, timeout) {
                log::error!("the upgrader cannot wait: {error}");
            }
        }
    }

    // ---- the end ----

    fn stopping(&mut self) {
        let is_main = matches!(self.phase, Phase::Serving);
        if is_main {
            notify::stopping(format_args!("generation {} is stopping", self.generation));
            self.extended = Instant::now();
        }
        match &self.phase {
            Phase::Asking(reply) => answer(reply, Ok(())),
            // It is not to wait for this process.
            Phase::Opened => {
                self.tell_predecessor(&Message::Abort("the successor was stopped".to_owned()));
            }
            _ => {}
        }
        if !matches!(self.phase, Phase::Left) {
            self.phase = Phase::Stopping;
        }
    }

    fn end(mut self, host: &dyn Host, report: String) {
        self.stopping();
        // It may have got further than is known here.
        self.hear_successor(host);
        self.look_at_clock(host);
        if let Some(successor) = &self.successor {
            if successor.step == SuccessorStage::Serving {
                successor.link.send(&Message::Drained(report));
            }
        }
    }

    // ---- time ----

    fn look_at_clock(&mut self, host: &dyn Host) {
        let now = Instant::now();
        self.watch_successor(host, now);
        if self.takes_a_while() && now >= self.extended + EXTEND_EVERY {
            self.extended = now;
            notify::extend(EXTEND_BY);
        }
    }

    /// Is something under way that the service manager should have patience with?
    fn takes_a_while(&self) -> bool {
        // A supervisor knows how long that may take.
        let manager = self.predecessor.is_none() && self.supervisor.is_none();
        let builds = manager && self.since.elapsed() < self.ready_timeout;
        notify::is_wanted()
            && match self.phase {
                Phase::Building => builds,
                Phase::Serving => self.successor.is_some(),
                Phase::Stopping => true,
                // Systemd hears the main process only.
                Phase::Left => self.supervisor.is_some(),
                Phase::Asking(_) | Phase::Opened => false,
            }
    }

    fn next(&self) -> Deadline {
        let successor = self.successor.as_ref();
        let deadline = successor.map_or(Deadline::NEVER, |successor| successor.deadline);
        let extend = self.takes_a_while().then(|| self.extended + EXTEND_EVERY);
        deadline.earlier(Deadline::at(extend))
    }

    /// The generation, if there is a supervisor that wants to hear of it.
    fn supervised_as(&self) -> Option<u64> {
        self.supervisor.as_ref().map(|_| self.generation)
    }

    fn status(&self) -> String {
        format!("generation {} serves", self.generation)
    }
}

/// Leaves the listeners with the supervisor, which holds them while nobody serves, and removes the files of Unix sockets in
/// the end.
fn leave_copies(generation: u64, listeners: &[Weak<Listener>]) -> std::io::Result<()> {
    let (mut about, mut copies) = (Vec::new(), Vec::new());
    for listener in listeners.iter().filter_map(Weak::upgrade) {
        let copy = notify::Held {
            name: fd_name(listener.name()),
            by_name: listener.by_name,
            own_path: listener.own_path().is_some(),
        };
        about.push(copy);
        copies.push(sys::descriptor::duplicate(&listener.socket)?);
    }
    notify::listeners(generation, &about, &copies)?;
    for listener in listeners.iter().filter_map(Weak::upgrade) {
        listener.set_own_path(false);
    }
    Ok(())
}

fn answer<T>(to: &Sender<T>, with: T) {
    // Whoever asked may not wait any more.
    let _ = to.send(with);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_an_upgrader_that_has_ended() {
        let (requests, unread) = crossbeam_channel::bounded(REQUESTS);
        let (ends, ended) = crossbeam_channel::bounded(0);
        let poller = Arc::new(Poller::new().unwrap());
        let remote = UpgraderHandle {
            requests,
            ended,
            poller,
        };
        // What nobody reads any more stays in the channel as long as there are senders.
        drop(ends);
        assert_eq!(remote.open(), Ok(()));
        let error = remote.wait_restart().unwrap_err();
        assert_eq!(error.kind(), RestartErrorKind::Stopping);
        assert_eq!(unread.len(), 2);
    }
}
