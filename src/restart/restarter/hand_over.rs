//! The predecessor's part of the handshake: handing over to the successor.
//!
//! Each stage of the successor ([`SuccessorStage`]) has a deadline. What happens when it passes, or
//! when the successor ends or the handshake is aborted:
//!
//! | stage | deadline | late, or aborted | ended |
//! |---|---|---|---|
//! | `Started`, `HelloReceived` | the ready time-out | killed | the restart fails |
//! | `Ready` | the ready time-out | told to abort: `Aborted` | the restart fails |
//! | `Accepting` | 10 s | told to abort: `Aborted` | the restart fails; accept again |
//! | `Aborted` | the drain time-out or the ready time-out, the shorter one | killed | |
//! | `Serving` | none | | a warning |
//!
//! A stop of this process aborts the restart up to the stage `Ready`.
//!
//! With an exact state, the successor accepts only after `Proceed`. Between `Ready` and `Cutover` is the
//! pause, whose limit is one more deadline for the stages `Ready` and `Accepting`, and a successor that
//! is late in them is killed ([`pause`](super::pause)).

use std::io;
use std::path::PathBuf;
use std::sync::Weak;
use std::time::{Duration, Instant};

use super::rounds::kind_of;
use super::take_over::is_among;
use super::{
    ACK_TIMEOUT, CompletedRestart, LONGEST_DRAIN, RestartableServer, Restarter, SUCCESSOR,
    ServerStage, stopping_error,
};
use crate::clock::Deadline;
use crate::listener::Listener;
use crate::log;
use crate::notify;
use crate::panic;
use crate::restart::error::{RestartError, RestartErrorKind};
use crate::restart::inherited::LIFELINE_NAME;
use crate::restart::link::{Incoming, Link};
use crate::restart::program::{StderrTail, SuccessorStart, wait_or_kill};
use crate::sys::{self, Process};
use crate::wire::{HandshakeMessage, WirePath};

/// A process that is to take over, or has.
pub(super) struct Successor {
    process: Process,
    pub(super) link: Link,
    stderr_tail: StderrTail,
    started_at: Instant,
    /// When the successor is too late for the next stage.
    pub(super) deadline: Deadline,
    pub(super) stage: SuccessorStage,
    /// From the start until Ready was received; zero before.
    ready_after: Duration,
    /// What to undo if the successor does not take over. Set in the stage `Accepting`.
    handoff: Option<Handoff>,
    /// The successor adopts open connections.
    pub(super) adopts: bool,
}

/// What this process gave up for the successor.
struct Handoff {
    /// The positions of the descriptors that the successor took.
    taken: Vec<u32>,
    /// The files of Unix sockets that the successor removes in the end.
    socket_files: Vec<PathBuf>,
}

/// The last step of the successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SuccessorStage {
    Started,
    /// Hello received: the successor runs this protocol.
    HelloReceived,
    /// Ready received, and Cutover sent, or about to be sent: the successor may accept.
    Ready,
    /// Accepting received, and Commit sent: this process does not accept any more.
    Accepting,
    /// Ack received: the successor has taken over.
    Serving,
    /// The successor accepted, was told to end, and drains.
    Aborted,
}

impl SuccessorStage {
    /// Whether the successor may accept connections.
    fn may_accept(self) -> bool {
        !matches!(self, Self::Started | Self::HelloReceived)
    }
}

/// How long a process may take to end that has closed its control socket.
const END_TIMEOUT: Duration = Duration::from_millis(500);

impl Restarter {
    pub(super) fn begin_requested_restart(&mut self) {
        if !self.rounds.is_requested() {
            return;
        }
        match self.stage {
            // The request waits until this process serves alone.
            ServerStage::Building
            | ServerStage::Waiting(_)
            | ServerStage::Accepting
            | ServerStage::Imported
            | ServerStage::Acknowledged => {}
            ServerStage::Serving if self.successor.is_some() => self.announce_wait_for_aborted(),
            ServerStage::Serving => match self.restart_may_begin(Instant::now()) {
                None => self.start_successor(),
                Some(_) => self.announce_wait_for_drains(),
            },
            ServerStage::Replaced => self.pass_on_next_round(),
            // The answers come in the order of the requests.
            ServerStage::Stopping if self.rounds.has_running_waiters() => {}
            ServerStage::Stopping => self.refuse_next_round(&stopping_error()),
        }
    }

    /// Logs once that the requested restart waits for a successor that has failed. The wait for a
    /// successor that may still take over is not logged: that successor may run a program that is
    /// older than the request, and the next round follows.
    fn announce_wait_for_aborted(&mut self) {
        let Some(successor) = &self.successor else {
            return;
        };
        if successor.stage != SuccessorStage::Aborted || self.waits_for_drains {
            return;
        }
        self.waits_for_drains = true;
        let pid = successor.process.id();
        let left = successor.deadline.time_left(Instant::now());
        let seconds = left.unwrap_or(LONGEST_DRAIN).as_secs_f32();
        log::warn!(
            "the restart waits: the successor that failed, process {pid}, may finish its requests, \
             for {seconds:.1} s at most"
        );
        self.last_extension = Instant::now();
        notify::send_reloading(format_args!(
            "{}; a restart waits until the successor that failed, process {pid}, has ended",
            self.status()
        ));
    }

    fn notify_reloading(&self) {
        notify::send_reloading(format_args!("starting generation {}", self.generation + 1));
    }

    fn start_successor(&mut self) {
        self.begin_round();
        if self.exact_state.is_some() && !sys::message::PASSES_CONNECTIONS {
            let why = "an exact state needs Linux";
            return self.fail_handover(&RestartError::new(RestartErrorKind::State, why));
        }
        let next = self.generation + 1;
        let program = self.program.path().display().to_string();
        log::info!("starting generation {next}: {program}");
        self.notify_reloading();
        self.last_extension = Instant::now();
        match self.spawn_successor() {
            Ok(successor) => {
                if self.lifeline.is_some() {
                    notify::announce_successor(successor.process.id());
                }
                self.successor = Some(successor);
            }
            Err(error) => {
                let why = format!("cannot start {program}: {error}");
                let failure = RestartError::new(RestartErrorKind::Start, why);
                self.fail_handover(&failure.with_source(error));
            }
        }
    }

    fn spawn_successor(&mut self) -> io::Result<Successor> {
        let (own_end, successor_end) = sys::message::create_pair()?;
        let (mut descriptors, mut matched_by_name) = (Vec::new(), Vec::new());
        for (position, listener) in (0..).zip(self.listeners.iter().filter_map(Weak::upgrade)) {
            if listener.matches_by_name {
                matched_by_name.push(position);
            }
            let descriptor = sys::descriptor::duplicate(&listener.socket)?;
            descriptors.push((listener.name().to_owned(), descriptor));
        }
        if let Some(link) = &self.lifeline {
            let descriptor = sys::descriptor::duplicate(link.socket())?;
            descriptors.push((LIFELINE_NAME.to_owned(), descriptor));
        }
        for (name, descriptor) in &self.passed {
            descriptors.push((name.clone(), descriptor.try_clone()?));
        }
        let (drain_token, earlier) = self.pass_generations()?;
        let started_at = Instant::now();
        let link = Link::new(own_end, &self.poller, SUCCESSOR)?;
        let (process, stderr_tail) = self.program.spawn_as_successor(SuccessorStart {
            descriptors,
            matched_by_name,
            handshake: &successor_end,
            state: self.export_state(),
            generation: self.generation + 1,
            earlier,
            ready_timeout: self.ready_timeout,
        })?;
        self.drain_token = Some(drain_token);
        Ok(Successor {
            process,
            link,
            stderr_tail,
            started_at,
            deadline: Deadline::after(started_at, self.ready_timeout),
            stage: SuccessorStage::Started,
            ready_after: Duration::ZERO,
            handoff: None,
            adopts: false,
        })
    }

    fn export_state(&self) -> Option<Vec<u8>> {
        let state = panic::contain(self.state.as_ref()?);
        let failed = |why: &String| log::error!("the state for the successor panicked: {why}");
        state.inspect_err(failed).ok()
    }

    pub(super) fn receive_from_successor(&mut self, server: &dyn RestartableServer) {
        let receive = |successor: &Successor| successor.link.receive();
        while let Some(incoming) = self.successor.as_ref().and_then(receive) {
            match incoming {
                Incoming::Message(message, _) => self.handle_successor_message(server, message),
                Incoming::End => self.handle_successor_end(server),
            }
        }
    }

    fn handle_successor_message(
        &mut self,
        server: &dyn RestartableServer,
        message: HandshakeMessage,
    ) {
        let Some(successor) = &mut self.successor else {
            return;
        };
        match (successor.stage, message) {
            (SuccessorStage::Started, HandshakeMessage::Hello) => {
                successor.stage = SuccessorStage::HelloReceived;
            }
            (SuccessorStage::HelloReceived, HandshakeMessage::Ready { adopts, imports }) => {
                successor.ready_after = successor.started_at.elapsed();
                successor.stage = SuccessorStage::Ready;
                successor.stderr_tail.wait_until_relayed();
                successor.adopts = adopts;
                if self.exact_state.is_some() {
                    return self.begin_pause(server, imports, adopts);
                }
                let cutover = HandshakeMessage::Cutover { has_state: false };
                successor.link.send(&cutover);
            }
            // A stop comes first; see `handle_successor_deadline`.
            (SuccessorStage::Ready, HandshakeMessage::Accepting { .. })
                if matches!(self.stage, ServerStage::Stopping) => {}
            (SuccessorStage::Ready, HandshakeMessage::Accepting { taken }) => {
                self.hand_over(server, taken);
            }
            (
                SuccessorStage::Ready | SuccessorStage::Accepting,
                HandshakeMessage::Abort { reason },
            ) => {
                self.abandon_successor(server, RestartError::new(RestartErrorKind::Ended, reason));
            }
            (SuccessorStage::Accepting, HandshakeMessage::Ack) => {
                if self.exact_state.is_some() {
                    successor.link.send(&HandshakeMessage::Proceed);
                }
                self.finish_restart(server);
            }
            (
                SuccessorStage::Serving,
                HandshakeMessage::Restarted {
                    pid,
                    generation: new_generation,
                    ready_after_nanos,
                    paused_for_nanos,
                },
            ) => self.finish_passed_on_round(&Ok(CompletedRestart {
                ready_after: Duration::from_nanos(ready_after_nanos),
                paused_for: paused_for_nanos.map(Duration::from_nanos),
                pid,
                new_generation,
                generation: self.generation,
            })),
            (
                SuccessorStage::Serving,
                HandshakeMessage::RestartFailed {
                    kind,
                    reason,
                    errno,
                    status,
                    stderr,
                },
            ) => {
                let status = status.and_then(sys::process::exit_status);
                let failure = RestartError::new(kind_of(kind), reason).with_exit(status, stderr);
                let cause = errno.map(io::Error::from_raw_os_error);
                self.finish_passed_on_round(&Err(match cause {
                    Some(cause) => failure.with_source(cause),
                    None => failure,
                }));
            }
            (stage, unexpected) => {
                log::debug!("ignoring {unexpected:?} from the successor in the stage {stage:?}");
            }
        }
    }

    /// The successor accepts, on the listeners at the positions `taken`: this process
    /// stops accepting, and leaves the files of Unix sockets to the successor.
    fn hand_over(&mut self, server: &dyn RestartableServer, taken: Vec<u32>) {
        let deadline = self.takeover_deadline(ACK_TIMEOUT);
        let Some(successor) = &mut self.successor else {
            return;
        };
        server.pause();
        let socket_files = release_socket_files(&self.listeners);
        let paths = socket_files.iter().flat_map(|path| WirePath::new(path));
        let paths = paths.collect();
        let drain_millis = u64::try_from(self.drain_timeout.as_millis()).ok();
        successor.link.send(&HandshakeMessage::Commit {
            paths,
            drain_millis,
        });
        successor.deadline = deadline;
        successor.handoff = Some(Handoff {
            taken,
            socket_files,
        });
        successor.stage = SuccessorStage::Accepting;
    }

    /// The successor serves.
    fn finish_restart(&mut self, server: &dyn RestartableServer) {
        let Some(successor) = &mut self.successor else {
            return;
        };
        let Some(handoff) = successor.handoff.take() else {
            return;
        };
        successor.stage = SuccessorStage::Serving;
        successor.deadline = Deadline::NEVER;
        successor.process.detach();
        let completed = CompletedRestart {
            ready_after: successor.ready_after,
            paused_for: self.pause.take().map(|pause| pause.since.elapsed()),
            pid: successor.process.id(),
            new_generation: self.generation + 1,
            generation: self.generation,
        };
        let (pid, next) = (completed.pid, completed.new_generation);
        let millis = completed.ready_after.as_millis();
        let paused = completed.paused_for.map(|pause| {
            let millis = pause.as_secs_f64() * 1000.0;
            format!(", and the clients waited for the state for {millis:.1} ms")
        });
        let paused = paused.unwrap_or_default();
        log::info!(
            "generation {next}, process {pid}, serves; it was ready after {millis} ms{paused}"
        );
        if !matches!(self.stage, ServerStage::Stopping) {
            self.stage = ServerStage::Replaced;
        }
        // This process removes the files of listeners that the successor did not take.
        for (position, listener) in (0..).zip(&self.listeners) {
            let is_given_up = !handoff.taken.contains(&position);
            if let Some(listener) = listener.upgrade().filter(|_| is_given_up) {
                let path = listener.addr().as_path();
                let was_own = path.is_some_and(|path| is_among(path, &handoff.socket_files));
                listener.set_removes_file(was_own);
            }
        }
        self.drain_after_replacement(server, &handoff.taken);
        let generation = self.lifeline.as_ref().map(|_| next);
        notify::send_main_pid(pid, generation, format_args!("generation {next} serves"));
        self.end_round(&Ok(completed));
        self.pass_on_next_round();
    }

    /// The successor has closed its end of the handshake socket.
    fn handle_successor_end(&mut self, server: &dyn RestartableServer) {
        let Some(mut successor) = self.successor.take() else {
            return;
        };
        let why = match successor.stage {
            SuccessorStage::Serving => {
                let pid = successor.process.id();
                // It may have been replaced, or have crashed.
                log::info!("the successor, process {pid}, has ended");
                let why = "the successor has ended before it was replaced";
                let failure = RestartError::new(RestartErrorKind::Ended, why);
                self.fail_passed_on_rounds(failure);
                return;
            }
            SuccessorStage::Aborted => {
                wait_or_kill(&mut successor.process, END_TIMEOUT);
                self.waits_for_drains = false;
                return;
            }
            SuccessorStage::Started => "the successor exited before it called Restart::inherit",
            SuccessorStage::HelloReceived => "the successor exited before it was ready",
            _ => "the successor exited before it had taken over",
        };
        self.undo_handoff(server, successor.handoff.take());
        let status = wait_or_kill(&mut successor.process, END_TIMEOUT);
        let stderr_tail = successor.stderr_tail.take();
        // No process of the failed restart is left when its outcome is known.
        drop(successor);
        let failure = RestartError::new(RestartErrorKind::Ended, why);
        self.fail_handover(&failure.with_exit(status, stderr_tail));
    }

    /// Aborts the restart while the successor runs.
    pub(super) fn abort_restart(
        &mut self,
        server: &dyn RestartableServer,
        kind: RestartErrorKind,
        why: String,
    ) {
        let Some(successor) = &mut self.successor else {
            return;
        };
        let reason = why.clone();
        successor.link.send(&HandshakeMessage::Abort { reason });
        let failure = RestartError::new(kind, why);
        match successor.stage {
            // Without connections, nothing is lost by its end. With an exact state, the successor has
            // none before `Proceed`.
            stage if self.exact_state.is_some() || !stage.may_accept() => {
                let handoff = successor.handoff.take();
                let status = wait_or_kill(&mut successor.process, Duration::ZERO);
                let stderr_tail = successor.stderr_tail.take();
                self.successor = None;
                self.undo_handoff(server, handoff);
                self.fail_handover(&failure.with_exit(status, stderr_tail));
            }
            _ => self.abandon_successor(server, failure),
        }
    }

    /// Goes on serving beside a successor that may have connections, and ends by itself. The next
    /// restart waits for its end, so the successor gets no more time than another start could take.
    fn abandon_successor(&mut self, server: &dyn RestartableServer, failure: RestartError) {
        let Some(successor) = &mut self.successor else {
            return;
        };
        successor.stage = SuccessorStage::Aborted;
        let limit = self
            .drain_timeout
            .min(self.ready_timeout)
            .min(LONGEST_DRAIN);
        successor.deadline = Deadline::after(Instant::now(), limit);
        let handoff = successor.handoff.take();
        self.undo_handoff(server, handoff);
        self.fail_handover(&failure);
    }

    fn undo_handoff(&mut self, server: &dyn RestartableServer, handoff: Option<Handoff>) {
        if let Some(pause) = self.pause.take() {
            let millis = pause.since.elapsed().as_secs_f64() * 1000.0;
            log::warn!("this process calls its services again, after {millis:.1} ms");
        }
        server.resume();
        let Some(handoff) = handoff else { return };
        match self.stage {
            ServerStage::Serving => {
                self.take_over_files(&handoff.socket_files);
                self.log_serving();
            }
            _ => self.take_socket_files(&handoff.socket_files),
        }
    }

    fn fail_handover(&mut self, failure: &RestartError) {
        match self.stage {
            ServerStage::Serving => {
                log::error!("the restart failed, this process goes on serving: {failure}");
            }
            _ => log::error!("the restart failed: {failure}"),
        }
        self.drain_token = None;
        let generation = self.supervised_generation();
        match self.stage {
            ServerStage::Serving => {
                let status = format!("{}; the last restart failed: {failure}", self.status());
                notify::send_restart_failed(generation, true, status, failure);
            }
            // systemd does not wait for the restart of a process that stops; the supervisor does.
            ServerStage::Stopping if generation.is_some() => {
                notify::send_restart_failed(generation, false, "stopping", failure);
            }
            _ => {}
        }
        self.end_round(&Err(failure.clone()));
    }

    /// A successor that is aborted has not ended yet. If this process ended before, nothing would end
    /// a successor that hangs.
    pub(super) fn aborts_successor(&self) -> bool {
        let successor = self.successor.as_ref();
        successor.is_some_and(|successor| successor.stage == SuccessorStage::Aborted)
    }

    pub(super) fn end_aborted_successor_by(&mut self, latest: Deadline) {
        if let (true, Some(successor)) = (self.aborts_successor(), &mut self.successor) {
            successor.deadline = successor.deadline.earlier(latest);
        }
    }

    /// Aborts the restart if the successor is late or this process stops, and kills a successor
    /// that does not end.
    pub(super) fn handle_successor_deadline(
        &mut self,
        server: &dyn RestartableServer,
        now: Instant,
    ) {
        let stops = matches!(self.stage, ServerStage::Stopping);
        let Some(successor) = &mut self.successor else {
            return;
        };
        let is_late = successor.deadline.has_passed(now);
        let (what, timeout) = match successor.stage {
            SuccessorStage::Serving => return,
            SuccessorStage::Aborted => {
                if is_late {
                    log::error!("killing the successor, which has not ended by itself");
                    wait_or_kill(&mut successor.process, Duration::ZERO);
                    self.successor = None;
                    self.waits_for_drains = false;
                }
                return;
            }
            SuccessorStage::Accepting => ("has not taken over", ACK_TIMEOUT),
            _ if stops => {
                let why = "the server is being stopped".to_owned();
                return self.abort_restart(server, RestartErrorKind::Stopping, why);
            }
            SuccessorStage::Started => ("has not called Restart::inherit", self.ready_timeout),
            SuccessorStage::HelloReceived | SuccessorStage::Ready => {
                ("was not ready", self.ready_timeout)
            }
        };
        if is_late {
            let seconds = timeout.as_secs_f32();
            let why = format!("the successor {what} within {seconds} s");
            self.abort_restart(server, RestartErrorKind::TimedOut, why);
        }
    }
}

/// Stops this process from removing the files of Unix sockets that it owns. Returns the files.
fn release_socket_files(listeners: &[Weak<Listener>]) -> Vec<PathBuf> {
    let listeners = listeners.iter().filter_map(Weak::upgrade);
    let paths = listeners.filter_map(|listener| {
        let path = listener.removed_file()?.to_owned();
        listener.set_removes_file(false);
        Some(path)
    });
    paths.collect()
}
