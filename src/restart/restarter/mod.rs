//! The restarter: the thread that takes over from this process's predecessor, and later hands over
//! to its successor.
//!
//! The restarter is one loop over the server's requests, the messages of the predecessor and of the
//! successor, and deadlines. It starts successors itself, as they are children of the thread that
//! starts them.
//!
//! The stages of this process ([`ServerStage`]):
//!
//! ```text
//!             Ready sent            Cutover             Commit            Ack received
//! Building ──────────────► Waiting ─────────► Accepting ──────► Serving ─────────────► Replaced
//!     └──────────────────────────────────────────────────────────▲
//!            no predecessor, or it died
//! ```
//!
//! With an exact state, `Cutover` leads to `Imported`, `Commit` to `Acknowledged`, and `Proceed` to
//! `Serving`.
//!
//! A stop leads from each of them but `Replaced` to `Stopping`.
//!
//! A process that its supervisor does not need any more gets from `Serving` to `Replaced` without a
//! successor ([`lane`]).
//!
//! [`rounds`] has what happens to a restart that is requested while another one runs, and
//! [`earlier`] why a restart may have to wait for generations that drain.

mod channels;
mod drain_status;
mod earlier;
mod hand_over;
mod handle;
mod lane;
mod pause;
mod request_report;
mod rounds;
mod take_over;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;
use socket2::Socket;

use crate::clock::Deadline;
use crate::listener::Listener;
use crate::log;
use crate::notify;
use crate::restart::error::{RestartError, RestartErrorKind};
use crate::restart::inherited::OwnStderr;
use crate::restart::link::Link;
use crate::restart::pid_file::PidFile;
use crate::restart::program::Program;
use crate::restart::{ExactState, RestartParts, StateSource};
use crate::sys::{self, Descriptor, Events, Poller};
use crate::wire::{HandshakeMessage, ListenerRecord, ServerId, to_fd_name};

use drain_status::DrainStatus;
use earlier::Earlier;
use hand_over::{Successor, SuccessorStage};
pub(crate) use handle::RestarterHandle;
use handle::RestarterRequest;
pub(super) use handle::{RestarterEnd, connect};
use pause::PauseProgress;
use request_report::RequestReport;
use rounds::{Rounds, Waiter};

/// What the restarter asks of the servers that it belongs to, as if they were one.
pub(crate) trait RestartableServer: Sync {
    /// Accepts connections from now on.
    fn start_accepting(&self);

    /// Starts, and leaves clients in the kernel's queue until `resume`. False if a server was stopped
    /// before this call: then the listeners are closed.
    fn start_paused(&self) -> bool;

    /// Stops accepting until `resume`. A stop waits for it as well: either process may have to serve the
    /// clients that wait meanwhile.
    fn pause(&self);

    /// Accepts again, unless the application has paused the server, and calls services again.
    fn resume(&self);

    /// Begins the pause for an exact state: accepts no more, closes connections that cannot move, and
    /// begins no message. `moves`: connections can move to the successor.
    fn settle(&self, moves: bool);

    /// Whether no connection needs a call of its service before it can move, or end.
    fn is_settled(&self) -> bool;

    /// Begins no call of a service until `resume`.
    fn close_calls(&self);

    /// Whether calls of a service have begun and not ended.
    fn has_calls(&self) -> bool;

    /// Closes all listeners, and finishes the open connections: another process serves. It has
    /// the listeners at the positions `taken`. `open_channel` is called for each server whose
    /// connections can move. It returns the channel to that process, if it adopts connections.
    fn drain_after_replacement(
        &self,
        taken: &[u32],
        open_channel: &mut dyn FnMut(ServerId) -> Option<Socket>,
    );

    /// Whether connections of some server can move.
    fn can_adopt(&self) -> bool;

    /// Whether the servers react to the signals of the process, such as SIGTERM.
    fn handle_signals(&self) -> bool;

    /// The connections of the server `server_id` of another process come over this channel.
    fn adopt_connections(&self, server_id: &ServerId, channel: Socket);

    /// How many connections are open and not finished.
    fn connections_left(&self) -> usize;

    /// How many calls of the service have begun.
    fn requests(&self) -> u64;

    /// Stops: finishes the open connections within the server's drain time-out.
    fn stop_in_drain_timeout(&self);
}

/// Where the result of a restart goes.
type ResultSender = Sender<Result<CompletedRestart, RestartError>>;

/// A restart that succeeded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CompletedRestart {
    /// From the start of the successor until it could serve.
    pub(crate) ready_after: Duration,
    /// How long the clients waited for an exact state.
    pub(crate) paused_for: Option<Duration>,
    /// The successor's process id.
    pub(crate) pid: u32,
    /// The successor's generation. After a round that was passed on, this
    /// is the successor's successor: see [`rounds`].
    pub(crate) new_generation: u64,
    /// The generation of this process.
    pub(crate) generation: u64,
}

fn stopping_error() -> RestartError {
    RestartError::new(RestartErrorKind::Stopping, "the server is being stopped")
}

/// The stage of this process.
enum ServerStage {
    /// The server is being built.
    Building,
    /// The server is ready, and waits until the predecessor lets it accept.
    Waiting(Sender<Result<(), String>>),
    /// The server accepts; the predecessor still counts as the serving process.
    Accepting,
    /// The server has imported an exact state, and waits for `Commit`.
    Imported,
    /// The server has an exact state, and has sent `Ack`. The server accepts at `Proceed`, or when the
    /// predecessor dies.
    Acknowledged,
    Serving,
    /// The successor serves, or this process has [left](lane) its connections to another one.
    Replaced,
    Stopping,
}

/// The restarter of a process. See the module `restart` for the handshake.
pub(crate) struct Restarter {
    /// Its drop closes [`RestarterHandle::ended`].
    _ended: Sender<()>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
    servers: usize,
    /// The reports of the servers that have stopped.
    reports: Vec<String>,
    /// The latest time of theirs for a successor that was told to abort.
    aborted_by: Deadline,
    program: Program,
    requests: Receiver<RestarterRequest>,
    poller: Arc<Poller>,
    listeners: Vec<Weak<Listener>>,
    /// Descriptors that the application passes to successors, with their names.
    passed: Vec<(String, Descriptor)>,
    /// The application's state for successors.
    state: Option<StateSource>,
    exact_state: Option<ExactState>,
    pause_limit: Duration,
    /// The pause for the state, from its begin until the successor has taken over.
    pause: Option<PauseProgress>,
    /// What the predecessor has left by `pass_state`, if the application has not taken it.
    inherited_state: Option<Vec<u8>>,
    ready_timeout: Duration,
    drain_timeout: Duration,
    /// How many generations may drain at once.
    max_draining: usize,
    /// Open connections move between this process and others.
    moves_connections: bool,
    pid_file_path: Option<PathBuf>,
    pid_file: Option<PidFile>,
    generation: u64,
    stage: ServerStage,
    predecessor: Option<Link>,
    /// The link on which this process sees end-of-file when the supervisor dies.
    lifeline: Option<Link>,
    /// The supervisor has the other end: see [`lane`].
    lane: Option<Link>,
    /// The lane of the process that adopts the connections of this one. `None` if the supervisor has
    /// named none.
    recipient: Option<Socket>,
    /// The standard error of this process, while a pipe to the predecessor is in its place.
    own_stderr: Option<OwnStderr>,
    /// The pipe that was the standard error of this process, and still is that of subprocesses that
    /// were started meanwhile. The predecessor relays it as long as it lives.
    stderr_pipe: Option<Descriptor>,
    /// Written to and closed when this process can serve: see [`StartGuard`](sys::StartGuard).
    start_pipe: Option<Descriptor>,
    /// The positions of the inherited descriptors that this process took.
    taken: Vec<u32>,
    /// Why the predecessor aborted, if it did before this process was ready.
    abort_reason: Option<String>,
    successor: Option<Successor>,
    /// The generations before this one that have not ended.
    earlier: Vec<Earlier>,
    /// This process holds it until it has drained. Later generations see its end.
    drain_token: Option<Socket>,
    rounds: Rounds<Waiter>,
    /// The requested restart waits until fewer processes drain, and has said so.
    waits_for_drains: bool,
    /// This server was told to stop, also while it drained already.
    stop_requested: bool,
    stays: Arc<AtomicBool>,
    /// When the service manager was last asked for more time.
    last_extension: Instant,
    drain_status: DrainStatus,
    request_report: RequestReport,
    created_at: Instant,
}

/// The poller's tokens of the links.
const PREDECESSOR: u64 = 0;
const SUCCESSOR: u64 = 1;
const LIFELINE: u64 = 2;
const LANE: u64 = 3;
/// The tokens of earlier generations begin here.
const EARLIER: u64 = 4;

/// How long a successor that accepts may take to acknowledge the takeover.
const ACK_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest drain that a restart waits for, also if the drain time-out is longer.
const LONGEST_DRAIN: Duration = Duration::from_secs(3600);

/// How often the service manager is asked for more time, and for how much.
const EXTEND_EVERY: Duration = Duration::from_secs(5);
const EXTEND_BY: Duration = Duration::from_secs(20);

impl Restarter {
    /// Makes the restarter of this number of servers. `drain_timeout` is the longest of theirs.
    ///
    /// # Errors
    ///
    /// Errors of the system.
    pub(crate) fn new(
        restart: RestartParts,
        servers: usize,
        listeners: Vec<Weak<Listener>>,
        drain_timeout: Duration,
    ) -> io::Result<Self> {
        let generation = restart.inherited.generation();
        let RestarterEnd {
            requests,
            end,
            poller,
            stays,
            servers_left,
            thread,
        } = restart.restarter_end;
        servers_left.store(servers, SeqCst);
        let earlier = restart.inherited.earlier.into_iter();
        let earlier = earlier.map(|passed| Earlier::watch(passed, &poller));
        let earlier = earlier.collect::<io::Result<_>>()?;
        let (mut predecessor, mut own_stderr, mut start_pipe) = (None, None, None);
        let mut inherited_state = None;
        if let Some(inherited) = restart.inherited.predecessor {
            predecessor = Some(Link::new(inherited.handshake, &poller, PREDECESSOR)?);
            own_stderr = inherited.stderr;
            start_pipe = inherited.start_pipe;
            inherited_state = inherited.state;
        }
        let mut lifeline = None;
        if let Some(socket) = restart.inherited.lifeline {
            send_listener_copies(generation, &listeners)?;
            lifeline = Some(Link::new(socket, &poller, LIFELINE)?);
        }
        Ok(Self {
            _ended: end,
            thread,
            servers,
            reports: Vec::new(),
            aborted_by: Deadline::at(Some(Instant::now())),
            program: restart.program,
            requests,
            poller,
            listeners,
            passed: restart.passed,
            state: restart.state,
            exact_state: restart.exact_state,
            pause_limit: restart.pause_limit,
            pause: None,
            inherited_state,
            ready_timeout: restart.ready_timeout,
            drain_timeout,
            max_draining: restart.max_draining,
            moves_connections: restart.moves_connections && sys::message::PASSES_CONNECTIONS,
            pid_file_path: restart.pid_file,
            pid_file: None,
            generation,
            stage: ServerStage::Building,
            predecessor,
            lifeline,
            lane: None,
            recipient: None,
            own_stderr,
            stderr_pipe: None,
            start_pipe,
            taken: restart.inherited.taken,
            abort_reason: None,
            successor: None,
            earlier,
            drain_token: None,
            rounds: Rounds::default(),
            waits_for_drains: false,
            stop_requested: false,
            stays,
            last_extension: Instant::now(),
            drain_status: DrainStatus::default(),
            request_report: RequestReport::default(),
            created_at: Instant::now(),
        })
    }

    /// Starts the thread of this restarter, which ends when all servers have stopped. `begin` is
    /// called on it first.
    pub(crate) fn start(
        self,
        name: String,
        begin: impl FnOnce() + Send + 'static,
        server: impl RestartableServer + Send + 'static,
    ) -> io::Result<()> {
        let own = Arc::clone(&self.thread);
        let mut own = own.lock();
        let thread = thread::Builder::new().name(name).spawn(move || {
            begin();
            self.run(&server);
        })?;
        *own = Some(thread);
        Ok(())
    }

    fn run(mut self, server: &dyn RestartableServer) {
        let mut events = Events::with_capacity(4);
        self.open_lane(server);
        loop {
            while let Ok(request) = self.requests.try_recv() {
                match request {
                    RestarterRequest::Ready(reply) => self.handle_ready(server, reply),
                    RestarterRequest::Restart(waiter) => {
                        self.add_request(waiter.map(Waiter::Caller));
                    }
                    RestarterRequest::PassOn(server_id, channel) => {
                        self.pass_channel_on(server_id, channel);
                    }
                    RestarterRequest::Stopping => {
                        self.stop_requested = true;
                        self.begin_stop();
                        if self.stays.load(SeqCst) {
                            self.end_aborted_successor_by(Deadline::at(Some(Instant::now())));
                        }
                    }
                    RestarterRequest::Stopped(report, aborted_by) => {
                        self.note_stopped_server(server, report, aborted_by);
                    }
                }
            }
            self.watch_earlier_generations();
            self.watch_lifeline(server);
            self.watch_lane(server);
            self.receive_from_predecessor(server);
            self.receive_from_successor(server);
            self.handle_deadlines(server);
            self.begin_requested_restart();
            if self.stays.load(SeqCst) && !self.stays_for_callers() && !self.aborts_successor() {
                return;
            }
            let timeout = self.next_deadline().time_left(Instant::now());
            if let Err(error) = self.poller.wait(&mut events, 4, timeout) {
                log::error!("the restart thread cannot wait for events: {error}");
            }
        }
    }

    // ---- the stop ----

    fn begin_stop(&mut self) {
        match &self.stage {
            // The clients that wait in the kernel are about to be those of this process: see `proceed`.
            ServerStage::Acknowledged => return,
            ServerStage::Serving => {
                let generation = self.generation;
                notify::send_stopping(format_args!("generation {generation} is stopping"));
                self.last_extension = Instant::now();
            }
            ServerStage::Waiting(waiter) => reply(waiter, Ok(())),
            // The predecessor is not to wait for this process.
            ServerStage::Accepting | ServerStage::Imported => {
                let reason = "the successor was stopped".to_owned();
                self.tell_predecessor(&HandshakeMessage::Abort { reason });
            }
            ServerStage::Replaced => return,
            ServerStage::Building | ServerStage::Stopping => {}
        }
        self.stage = ServerStage::Stopping;
    }

    /// One of the servers has stopped.
    fn note_stopped_server(
        &mut self,
        server: &dyn RestartableServer,
        report: String,
        aborted_by: Deadline,
    ) {
        self.reports.push(report);
        self.aborted_by = self.aborted_by.later(aborted_by);
        if self.reports.len() == self.servers {
            self.finish(server, self.reports.join("; "));
            self.end_aborted_successor_by(self.aborted_by);
            self.stays.store(true, SeqCst);
        }
    }

    /// All servers have stopped.
    fn finish(&mut self, server: &dyn RestartableServer, report: String) {
        self.begin_stop();
        // Connections of the predecessor may have come, or a request to pass on.
        self.receive_from_predecessor(server);
        // The successor may have taken over since its last message was received.
        self.receive_from_successor(server);
        self.handle_deadlines(server);
        if let Some(successor) = &self.successor {
            if successor.stage == SuccessorStage::Serving {
                let message = HandshakeMessage::Drained { report };
                successor.link.send(&message);
            }
        }
        self.drain_token = None;
        // A request that has just come is not to be lost by the end of this process.
        self.pass_on_next_round();
    }

    // ---- time ----

    fn handle_deadlines(&mut self, server: &dyn RestartableServer) {
        let now = Instant::now();
        notify::retry();
        self.advance_pause(server);
        self.handle_successor_deadline(server, now);
        self.handle_passed_on_deadline(now);
        if self.needs_more_time() && now >= self.last_extension + EXTEND_EVERY {
            self.last_extension = now;
            notify::request_more_time(EXTEND_BY);
        }
        if matches!(self.stage, ServerStage::Serving) && self.lifeline.is_some() {
            self.request_report.begin(now);
        } else {
            self.request_report.end();
        }
        if let Some(count) = self.request_report.report(now, || server.requests()) {
            notify::send_requests(count);
        }
        if self.is_draining() {
            self.drain_status.begin(now);
        }
        if let Some(left) = self.drain_status.report(now, || server.connections_left()) {
            match self.stage {
                ServerStage::Replaced => notify::send_status(left),
                _ => {
                    let generation = self.generation;
                    notify::send_status(format_args!(
                        "generation {generation} is stopping: {left}"
                    ));
                }
            }
        }
    }

    /// Whether this process finishes its connections, and a service manager asks for its status:
    /// systemd listens to the main process only, which is the successor after a replacement.
    fn is_draining(&self) -> bool {
        let is_draining = match self.stage {
            ServerStage::Stopping => true,
            ServerStage::Replaced => self.lifeline.is_some(),
            _ => false,
        };
        is_draining && notify::has_manager()
    }

    /// Whether the service manager is to be asked for more time.
    fn needs_more_time(&self) -> bool {
        notify::has_manager()
            && match self.stage {
                // A predecessor or a supervisor has its own time-out for the start.
                ServerStage::Building => {
                    self.predecessor.is_none()
                        && self.lifeline.is_none()
                        && self.created_at.elapsed() < self.ready_timeout
                }
                ServerStage::Serving => self.successor.is_some() || self.waits_for_drains,
                ServerStage::Stopping => true,
                // systemd listens to the main process only, which is the successor now.
                ServerStage::Replaced => self.lifeline.is_some(),
                ServerStage::Waiting(_)
                | ServerStage::Accepting
                | ServerStage::Imported
                | ServerStage::Acknowledged => false,
            }
    }

    fn next_deadline(&self) -> Deadline {
        let successor = self.successor.as_ref();
        let deadline = successor.map_or(Deadline::NEVER, |successor| successor.deadline);
        let needs_more_time = self.needs_more_time();
        let extend = needs_more_time.then(|| self.last_extension + EXTEND_EVERY);
        let deadline = deadline
            .earlier(self.passed_on_deadline())
            .earlier(self.drain_deadline());
        let drain_status = self.drain_status.deadline();
        let pause = self.pause.as_ref();
        deadline
            .earlier(pause.map_or(Deadline::NEVER, PauseProgress::next_check))
            .earlier(Deadline::at(extend))
            .earlier(drain_status)
            .earlier(self.request_report.deadline())
            .earlier(notify::retry_at())
    }

    /// The generation of this process, for notifications, if a supervisor of this crate reads them.
    fn supervised_generation(&self) -> Option<u64> {
        self.lifeline.as_ref().map(|_| self.generation)
    }

    fn status(&self) -> String {
        format!("generation {} serves", self.generation)
    }
}

/// Leaves copies of the listeners with the supervisor, which holds them while no process serves,
/// and removes the files of Unix sockets in the end.
fn send_listener_copies(generation: u64, listeners: &[Weak<Listener>]) -> io::Result<()> {
    let (mut records, mut copies) = (Vec::new(), Vec::new());
    for listener in listeners.iter().filter_map(Weak::upgrade) {
        records.push(ListenerRecord {
            name: to_fd_name(listener.name()),
            matches_by_name: listener.matches_by_name,
            removes_file: listener.removed_file().is_some(),
        });
        copies.push(sys::descriptor::duplicate(&listener.socket)?);
    }
    notify::send_listener_copies(generation, &records, copies)?;
    for listener in listeners.iter().filter_map(Weak::upgrade) {
        listener.set_removes_file(false);
    }
    Ok(())
}

fn reply<T>(to: &Sender<T>, answer: T) {
    // The thread that asked may have stopped waiting.
    let _ = to.send(answer);
}
