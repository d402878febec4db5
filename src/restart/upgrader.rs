//! The upgrader: the thread that replaces this process by another one, and before that took it from another one's hands.
//!
//! It is one loop over what it is asked for, what the predecessor says, what the successor says, and the time. It
//! starts successors itself, so that they are children of a thread that stays.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::Restart;
use super::error::{RestartError, RestartFailure};
use super::inherit::{Predecessor, Stderr};
use super::message::{Incoming, Link, Message};
use super::pid_file::PidFile;
use super::program::{LastWords, Legacy, Program, end_of};
use crate::clock::Deadline;
use crate::listener::Listener;
use crate::notify;
use crate::sys::{self, Descriptor, Events, Poller, Process};

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
pub(crate) struct Remote {
    requests: Sender<Request>,
    poller: Arc<Poller>,
}

impl Remote {
    /// Waits until the server may serve: at once, or when the predecessor lets it.
    pub(crate) fn open(&self) -> Result<(), String> {
        let (reply, answer) = crossbeam_channel::bounded(1);
        self.send(Request::Open(reply));
        // A server that was stopped meanwhile is no failure.
        answer.recv().unwrap_or(Ok(()))
    }

    /// Begins a restart, unless one is in progress.
    pub(crate) fn restart(&self) {
        self.send(Request::Restart(None));
    }

    /// Waits until this process is replaced, or not to be.
    pub(crate) fn wait_restart(&self) -> Result<Replacement, RestartError> {
        let (reply, answer) = crossbeam_channel::bounded(1);
        self.send(Request::Restart(Some(reply)));
        answer.recv().unwrap_or_else(|_| Err(stopping()))
    }

    pub(crate) fn stopping(&self) {
        self.send(Request::Stopping);
    }

    pub(crate) fn end(&self, report: String) {
        self.send(Request::End(report));
    }

    fn send(&self, request: Request) {
        // An upgrader that has ended has nothing to do any more.
        if self.requests.send(request).is_ok() {
            self.poller.wake();
        }
    }
}

fn stopping() -> RestartError {
    RestartError::new(RestartFailure::Stopping, "the server is being stopped")
}

/// Tells a predecessor that its successor runs.
pub(super) fn greet(predecessor: &Predecessor) {
    match predecessor.control.try_clone() {
        Ok(control) => Link::new(control).send(&Message::Hello),
        Err(error) => log::error!("cannot greet the predecessor: {error}"),
    }
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

/// A process that is to take over, or has.
struct Successor {
    process: Process,
    link: Link,
    last_words: LastWords,
    started: Instant,
    /// When it is too late for the next step.
    deadline: Deadline,
    step: Step,
    /// There from the moment when this process has stopped accepting.
    handing: Option<Handing>,
}

/// What is to be undone if the successor does not take over in the end.
struct Handing {
    /// The places of the descriptors that the successor has taken.
    kept: Vec<u32>,
    /// This process did accept before.
    paused: bool,
    /// The files that are the successor's now.
    own_paths: Vec<PathBuf>,
}

/// The last step of a successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Started,
    /// It runs, and speaks this protocol.
    Greeted,
    /// It may accept by now.
    Ready {
        after: Duration,
    },
    /// This process does not accept any more, see [`Handing`].
    Accepting {
        after: Duration,
        gap: Duration,
    },
    /// It has taken over.
    Serving,
    /// It accepted, was told to end, and finishes what it has accepted.
    Aborted,
}

/// See the module `restart`.
pub(crate) struct Upgrader {
    _active: Active,
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

/// The tokens of the two links.
const PREDECESSOR: u64 = 0;
const SUCCESSOR: u64 = 1;

/// How long a successor that accepts may take until it has taken over.
const ACK_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a process may take to end that has closed its control socket.
const END_TIMEOUT: Duration = Duration::from_millis(500);

/// How often the service manager is told that something takes a while, and for how long that is said.
const EXTEND_EVERY: Duration = Duration::from_secs(5);
const EXTEND_BY: Duration = Duration::from_secs(20);

impl Upgrader {
    /// Makes the upgrader of a process, and the way to ask it for something.
    pub(crate) fn new(
        restart: Restart,
        listeners: Vec<Weak<Listener>>,
        drain_timeout: Duration,
    ) -> std::io::Result<(Self, Remote)> {
        if ACTIVE.swap(true, SeqCst) {
            let text = "another server of this process can be restarted already";
            return Err(std::io::Error::new(std::io::ErrorKind::AlreadyExists, text));
        }
        let active = Active;
        let generation = restart.generation();
        let (sender, requests) = crossbeam_channel::unbounded();
        let poller = Arc::new(Poller::new()?);
        let remote = Remote {
            requests: sender,
            poller: Arc::clone(&poller),
        };
        let (mut predecessor, mut stderr) = (None, None);
        if let Some(left) = restart.inherited.predecessor {
            let mut link = Link::new(left.control);
            link.watch(&poller, PREDECESSOR)?;
            predecessor = Some(link);
            stderr = left.stderr;
        }
        let upgrader = Self {
            _active: active,
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

    // ---- taking over ----

    fn ready(&mut self, host: &dyn Host, reply: Sender<Result<(), String>>) {
        self.restore_stderr();
        if let Some(why) = self.aborted.take() {
            answer(&reply, Err(why));
            return;
        }
        if matches!(self.phase, Phase::Stopping) {
            // Somebody was faster. It never serves, and whoever runs it hears of the stop.
            answer(&reply, Ok(()));
            return;
        }
        match &self.predecessor {
            Some(link) => {
                link.send(&Message::Ready);
                self.phase = Phase::Asking(reply);
            }
            None => {
                let result = self.serve(host);
                answer(&reply, result);
            }
        }
    }

    fn restore_stderr(&mut self) {
        if let Some(stderr) = self.stderr.take() {
            if let Err(error) = sys::set_stderr(&stderr.own) {
                log::error!("cannot get standard error back: {error}");
            }
        }
    }

    /// Serves without a predecessor that would have to agree.
    fn serve(&mut self, host: &dyn Host) -> Result<(), String> {
        if let Some(path) = &self.pid_path {
            let claimed = PidFile::claim(path);
            let claimed = claimed.map_err(|error| format!("cannot write the pid file: {error}"));
            self.pid_file = Some(claimed?);
        }
        host.open();
        self.phase = Phase::Serving;
        notify::ready(self.status());
        Ok(())
    }

    fn hear_predecessor(&mut self, host: &dyn Host) {
        while let Some(link) = &self.predecessor {
            match link.receive() {
                Incoming::Nothing => return link.rearm(),
                Incoming::Message(message) => self.obey_predecessor(host, message),
                Incoming::End => {
                    self.predecessor = None;
                    self.lose_predecessor(host);
                }
            }
        }
    }

    fn obey_predecessor(&mut self, host: &dyn Host, message: Message) {
        let phase = std::mem::replace(&mut self.phase, Phase::Stopping);
        self.phase = match (phase, message) {
            (Phase::Asking(reply), Message::Cutover) => {
                host.open();
                self.tell_predecessor(&Message::Accepting {
                    since: sys::monotonic_nanos(),
                    kept: self.kept.clone(),
                });
                answer(&reply, Ok(()));
                Phase::Opened
            }
            (Phase::Opened, Message::Commit(paths)) => {
                self.take_over(&paths);
                self.tell_predecessor(&Message::Ack);
                Phase::Serving
            }
            (Phase::Asking(reply), Message::Abort(why)) => {
                answer(&reply, Err(why));
                Phase::Building
            }
            (Phase::Building, Message::Abort(why)) => {
                self.aborted = Some(why);
                Phase::Building
            }
            (phase @ (Phase::Opened | Phase::Serving), Message::Abort(why)) => {
                log::error!("the predecessor serves on: {why}");
                for listener in self.listeners.iter().filter_map(Weak::upgrade) {
                    listener.set_own_path(false);
                }
                host.drain();
                phase
            }
            (phase, Message::Drained(how)) => {
                log::info!("generation {}: {how}", self.generation.saturating_sub(1));
                phase
            }
            (phase, other) => {
                log::debug!("the predecessor says {other:?} at a strange time");
                phase
            }
        };
    }

    /// The predecessor has ended. If it had not handed over yet, this process is all that there is.
    fn lose_predecessor(&mut self, host: &dyn Host) {
        self.restore_stderr();
        match std::mem::replace(&mut self.phase, Phase::Stopping) {
            Phase::Asking(reply) => {
                log::warn!("the predecessor has died; serving in its place");
                self.phase = Phase::Building;
                let result = self.serve(host);
                answer(&reply, result);
            }
            Phase::Opened => {
                log::warn!("the predecessor has died; serving in its place");
                self.take_over(&[]);
                self.phase = Phase::Serving;
                notify::ready(self.status());
            }
            phase => self.phase = phase,
        }
    }

    /// What belongs to the serving process belongs to this one from now on.
    fn take_over(&mut self, paths: &[PathBuf]) {
        for listener in self.listeners.iter().filter_map(Weak::upgrade) {
            let path = listener.local_addr().as_path();
            listener.set_own_path(path.is_some_and(|path| paths.iter().any(|own| own == path)));
        }
        if let Some(path) = &self.pid_path {
            match PidFile::replace(path) {
                Ok(file) => self.pid_file = Some(file),
                Err(error) => log::error!("cannot write {}: {error}", path.display()),
            }
        }
        log::info!("generation {} serves", self.generation);
    }

    fn tell_predecessor(&self, message: &Message) {
        if let Some(link) = &self.predecessor {
            link.send(message);
        }
    }

    // ---- handing over ----

    fn restart_if_wanted(&mut self, host: &dyn Host) {
        if !self.wanted {
            return;
        }
        match self.phase {
            // As soon as this process serves alone.
            Phase::Building | Phase::Asking(_) | Phase::Opened => {}
            Phase::Serving => match &self.successor {
                // The one that is under way is what is wanted.
                Some(successor) if successor.step != Step::Aborted => {
                    self.wanted = false;
                    // Who asks now may not take what was said before for an answer.
                    notify::reloading(format_args!("starting generation {}", self.generation + 1));
                }
                Some(_) => {}
                None => self.start(host),
            },
            Phase::Left => {
                let pid = self.successor.as_ref().map_or(0, |s| s.process.id());
                let why = format!("process {pid} has taken over already");
                self.refuse(&RestartError::new(RestartFailure::Replaced, why));
            }
            Phase::Stopping => self.refuse(&stopping()),
        }
    }

    fn start(&mut self, host: &dyn Host) {
        self.wanted = false;
        let next = self.generation + 1;
        log::info!(
            "starting generation {next}: {}",
            self.program.path().display()
        );
        notify::reloading(format_args!("starting generation {next}"));
        self.extended = Instant::now();
        match self.try_start(host) {
            Ok(successor) => self.successor = Some(successor),
            Err(error) => {
                let program = self.program.path().display();
                let why = format!("cannot start {program}: {error}");
                self.fail(&RestartError::new(RestartFailure::Start, why));
            }
        }
    }

    fn try_start(&self, host: &dyn Host) -> std::io::Result<Successor> {
        let (ours, theirs) = sys::message_pair()?;
        let (mut descriptors, mut by_name) = (Vec::new(), Vec::new());
        for listener in self.listeners.iter().filter_map(Weak::upgrade) {
            let name = listener.name().to_owned();
            if listener.by_name {
                by_name.push(descriptors.len());
            }
            descriptors.push((name, sys::descriptor_of(&listener.socket)?));
        }
        for (name, descriptor) in &self.passed {
            descriptors.push((name.clone(), descriptor.try_clone()?));
        }
        let started = Instant::now();
        let mut link = Link::new(ours);
        link.watch(&self.poller, SUCCESSOR)?;
        let (process, last_words) = self.program.start(Legacy {
            descriptors,
            by_name,
            control: &theirs,
            state: host.export(),
            generation: self.generation + 1,
        })?;
        Ok(Successor {
            process,
            link,
            last_words,
            started,
            deadline: Deadline::after(started, self.ready_timeout),
            step: Step::Started,
            handing: None,
        })
    }

    fn hear_successor(&mut self, host: &dyn Host) {
        while let Some(successor) = &mut self.successor {
            match successor.link.receive() {
                Incoming::Nothing => return successor.link.rearm(),
                Incoming::Message(message) => self.obey_successor(host, message),
                Incoming::End => self.lose_successor(host),
            }
        }
    }

    fn obey_successor(&mut self, host: &dyn Host, message: Message) {
        let Some(successor) = &mut self.successor else {
            return;
        };
        match (successor.step, message) {
            (Step::Started, Message::Hello) => successor.step = Step::Greeted,
            (Step::Greeted, Message::Ready) => {
                let after = successor.started.elapsed();
                successor.step = Step::Ready { after };
                successor.link.send(&Message::Cutover);
            }
            (Step::Ready { after }, Message::Accepting { since, kept }) => {
                let paused = host.pause();
                let gap = Duration::from_nanos(since.saturating_sub(sys::monotonic_nanos()));
                let own_paths = disown_paths(&self.listeners);
                successor.deadline = Deadline::after(Instant::now(), ACK_TIMEOUT);
                successor.link.send(&Message::Commit(own_paths.clone()));
                successor.handing = Some(Handing {
                    kept,
                    paused,
                    own_paths,
                });
                successor.step = Step::Accepting { after, gap };
            }
            (Step::Ready { .. } | Step::Accepting { .. }, Message::Abort(why)) => {
                self.give_up(host, RestartError::new(RestartFailure::Ended, why));
            }
            (Step::Accepting { after, gap }, Message::Ack) => {
                successor.step = Step::Serving;
                successor.deadline = Deadline::NEVER;
                successor.process.let_go();
                let replacement = Replacement {
                    ready_after: after,
                    accept_gap: gap,
                    pid: successor.process.id(),
                    generation: self.generation,
                };
                self.leave(host, replacement);
            }
            (Step::Serving, Message::Superseded) => self.tell_predecessor(&Message::Force),
            (Step::Serving, Message::Force) => {
                log::warn!("two later generations drain already: stopping now");
                host.end();
            }
            (step, other) => log::debug!("the successor says {other:?} when it is {step:?}"),
        }
    }

    /// The successor serves.
    fn leave(&mut self, host: &dyn Host, replacement: Replacement) {
        let (pid, next) = (replacement.pid, self.generation + 1);
        let millis = replacement.ready_after.as_millis();
        log::info!("generation {next}, process {pid}, serves; it was ready after {millis} ms");
        if !matches!(self.phase, Phase::Stopping) {
            self.phase = Phase::Left;
        }
        let kept = self.successor.as_mut().and_then(|s| s.handing.take());
        let kept = kept.map(|handing| handing.kept).unwrap_or_default();
        host.leave(&kept);
        self.tell_predecessor(&Message::Superseded);
        notify::replaced_by(pid, format_args!("generation {next} serves"));
        for waiter in self.waiters.drain(..) {
            answer(&waiter, Ok(replacement));
        }
    }

    /// The successor's end of the control socket is closed.
    fn lose_successor(&mut self, host: &dyn Host) {
        let Some(mut successor) = self.successor.take() else {
            return;
        };
        if successor.step == Step::Serving {
            log::warn!(
                "the successor, process {}, has ended",
                successor.process.id()
            );
            return;
        }
        self.take_back(host, successor.handing.take());
        let status = end_of(&mut successor.process, END_TIMEOUT);
        if successor.step == Step::Aborted {
            return;
        }
        let why = match successor.step {
            Step::Started => "the successor ended before it had begun",
            Step::Greeted => "the successor ended before it was ready",
            _ => "the successor ended before it had taken over",
        };
        let last_words = successor.last_words.take();
        // Whoever hears of it finds nothing left of it.
        drop(successor);
        let error = RestartError::new(RestartFailure::Ended, why);
        self.fail(&error.with(status, last_words));
    }

    /// Gives a successor up that is there still.
    fn abort(&mut self, host: &dyn Host, kind: RestartFailure, why: String) {
        let Some(successor) = &mut self.successor else {
            return;
        };
        successor.link.send(&Message::Abort(why.clone()));
        let error = RestartError::new(kind, why);
        match successor.step {
            Step::Started | Step::Greeted => {
                // It has no clients, so that nothing is lost by its end.
                let status = end_of(&mut successor.process, Duration::ZERO);
                let last_words = successor.last_words.take();
                self.successor = None;
                self.fail(&error.with(status, last_words));
            }
            _ => self.give_up(host, error),
        }
    }

    /// Serves on beside a successor that may have clients, and ends by itself.
    fn give_up(&mut self, host: &dyn Host, error: RestartError) {
        let Some(successor) = &mut self.successor else {
            return;
        };
        successor.step = Step::Aborted;
        successor.deadline = Deadline::after(Instant::now(), self.drain_timeout);
        let handing = successor.handing.take();
        self.take_back(host, handing);
        self.fail(&error);
    }

    /// What was handed over is this process's again.
    fn take_back(&mut self, host: &dyn Host, handing: Option<Handing>) {
        let Some(handing) = handing else { return };
        if handing.paused {
            host.resume();
        }
        if matches!(self.phase, Phase::Serving) {
            self.take_over(&handing.own_paths);
        }
    }

    /// There was no restart.
    fn fail(&mut self, error: &RestartError) {
        log::error!("no restart: {error}");
        if matches!(self.phase, Phase::Serving) {
            notify::ready(format_args!(
                "{}; the last restart failed: {error}",
                self.status()
            ));
        }
        self.refuse(error);
    }

    fn refuse(&mut self, error: &RestartError) {
        self.wanted = false;
        for waiter in self.waiters.drain(..) {
            answer(&waiter, Err(error.clone()));
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
            if successor.step == Step::Serving {
                successor.link.send(&Message::Drained(report));
            }
        }
    }

    // ---- time ----

    fn look_at_clock(&mut self, host: &dyn Host) {
        let now = Instant::now();
        let stops = matches!(self.phase, Phase::Stopping);
        if let Some(successor) = &mut self.successor {
            let is_late = successor.deadline.passed(now);
            match successor.step {
                Step::Serving => {}
                Step::Aborted if is_late => {
                    log::error!("ending the successor, which has not ended by itself");
                    end_of(&mut successor.process, Duration::ZERO);
                    self.successor = None;
                }
                Step::Started | Step::Greeted | Step::Ready { .. } if stops => {
                    let why = "the server is being stopped".to_owned();
                    self.abort(host, RestartFailure::Stopping, why);
                }
                Step::Started if is_late => {
                    let seconds = self.ready_timeout.as_secs_f32();
                    let why = format!("the successor has not greeted within {seconds} s");
                    self.abort(host, RestartFailure::TimedOut, why);
                }
                Step::Greeted | Step::Ready { .. } | Step::Accepting { .. } if is_late => {
                    let seconds = self.ready_timeout.as_secs_f32();
                    let why = format!("the successor was not ready within {seconds} s");
                    self.abort(host, RestartFailure::TimedOut, why);
                }
                _ => {}
            }
        }
        if self.takes_a_while() && now >= self.extended + EXTEND_EVERY {
            self.extended = now;
            notify::extend(EXTEND_BY);
        }
    }

    /// Is something under way that the service manager should have patience with?
    fn takes_a_while(&self) -> bool {
        let builds = self.predecessor.is_none() && self.since.elapsed() < self.ready_timeout;
        notify::is_wanted()
            && match self.phase {
                Phase::Building => builds,
                Phase::Serving => self.successor.is_some(),
                Phase::Stopping => true,
                Phase::Asking(_) | Phase::Opened | Phase::Left => false,
            }
    }

    fn next(&self) -> Deadline {
        let successor = self.successor.as_ref();
        let deadline = successor.map_or(Deadline::NEVER, |successor| successor.deadline);
        let extend = self.takes_a_while().then(|| self.extended + EXTEND_EVERY);
        deadline.earlier(Deadline::at(extend))
    }

    fn status(&self) -> String {
        format!("generation {} serves", self.generation)
    }
}

/// The files of Unix sockets that this process would have removed in the end, and does not any more.
fn disown_paths(listeners: &[Weak<Listener>]) -> Vec<PathBuf> {
    let listeners = listeners.iter().filter_map(Weak::upgrade);
    let paths = listeners.filter_map(|listener| {
        let path = listener.own_path()?.to_owned();
        listener.set_own_path(false);
        Some(path)
    });
    paths.collect()
}

fn answer<T>(to: &Sender<T>, with: T) {
    // Whoever asked may not wait any more.
    let _ = to.send(with);
}
