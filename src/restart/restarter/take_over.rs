//! The successor's part of the handshake: taking over from the predecessor.

use std::path::{Path, PathBuf};
use std::sync::Weak;
use std::time::Duration;

use crossbeam_channel::Sender;

use super::rounds::Waiter;
use super::{RestartableServer, Restarter, ServerStage, reply};
use crate::log;
use crate::notify;
use crate::restart::link::{Incoming, Link, path_of};
use crate::restart::pid_file::PidFile;
use crate::restart::program::relay_subprocesses;
use crate::sys::{self, Descriptor};
use crate::wire::HandshakeMessage;

impl Restarter {
    /// The server could serve.
    pub(super) fn handle_ready(
        &mut self,
        server: &dyn RestartableServer,
        waiter: Sender<Result<(), String>>,
    ) {
        self.restore_stderr();
        self.end_start_guard();
        if let Some(reason) = self.abort_reason.take() {
            reply(&waiter, Err(reason));
        } else if matches!(self.stage, ServerStage::Stopping) {
            // The server was stopped before it accepted; the caller learns of the stop elsewhere.
            reply(&waiter, Ok(()));
        } else if let Some(link) = &self.predecessor {
            link.send(&HandshakeMessage::Ready {
                adopts: self.moves_connections && server.can_adopt(),
                imports: self.exact_state.is_some(),
            });
            self.stage = ServerStage::Waiting(waiter);
        } else {
            let result = self.start_serving(server);
            reply(&waiter, result);
        }
    }

    /// This process has started: see [`StartGuard`](sys::StartGuard).
    fn end_start_guard(&mut self) {
        if let Some(pipe) = self.start_pipe.take() {
            sys::process::end_start(pipe);
        }
    }

    fn restore_stderr(&mut self) {
        if let Some(stderr) = self.own_stderr.take() {
            if let Err(error) = sys::descriptor::replace_stderr(&stderr.own) {
                log::error!("cannot restore standard error: {error}");
            }
            self.stderr_pipe = stderr.pipe;
        }
    }

    /// Starts to serve without a predecessor.
    fn start_serving(&mut self, server: &dyn RestartableServer) -> Result<(), String> {
        self.import_state(None)?;
        if let Some(path) = &self.pid_file_path {
            // A predecessor that has just died may still hold its lock.
            let file = match self.generation {
                1 => PidFile::claim(path),
                _ => PidFile::replace(path),
            };
            let file = file.map_err(|error| format!("cannot write the pid file: {error}"));
            self.pid_file = Some(file?);
        }
        server.start_accepting();
        self.stage = ServerStage::Serving;
        notify::send_ready(self.supervised_generation(), self.status());
        Ok(())
    }

    pub(super) fn receive_from_predecessor(&mut self, server: &dyn RestartableServer) {
        while let Some(incoming) = self.predecessor.as_ref().and_then(Link::receive) {
            match incoming {
                Incoming::Message(HandshakeMessage::Connections(server_id), channel) => {
                    self.proceed(server);
                    self.adopt_connections(server, server_id, channel);
                }
                Incoming::Message(HandshakeMessage::Cutover { has_state }, file) => {
                    self.cut_over(server, has_state.then_some(file));
                }
                Incoming::Message(HandshakeMessage::Proceed, _) => self.proceed(server),
                Incoming::Message(message, _) => {
                    if matches!(message, HandshakeMessage::Drained { .. }) {
                        self.proceed(server);
                    }
                    self.handle_predecessor_message(server, message);
                }
                Incoming::End => {
                    self.predecessor = None;
                    self.handle_predecessor_end(server);
                }
            }
        }
    }

    /// The predecessor leaves the service to this process. `state`: an exact state, with the file that
    /// has come.
    fn cut_over(&mut self, server: &dyn RestartableServer, state: Option<Option<Descriptor>>) {
        let stage = std::mem::replace(&mut self.stage, ServerStage::Building);
        let ServerStage::Waiting(waiter) = stage else {
            log::debug!("ignoring a cutover from the predecessor: not expected now");
            self.stage = stage;
            return;
        };
        let stage = match state {
            // The predecessor may go on until it has received the Ack.
            Some(_) => ServerStage::Imported,
            None => ServerStage::Accepting,
        };
        if let Err(reason) = self.import_state(state) {
            let told = reason.clone();
            self.tell_predecessor(&HandshakeMessage::Abort { reason: told });
            return reply(&waiter, Err(reason));
        }
        if matches!(stage, ServerStage::Accepting) {
            server.start_accepting();
        }
        let taken = self.taken.clone();
        self.tell_predecessor(&HandshakeMessage::Accepting { taken });
        reply(&waiter, Ok(()));
        self.stage = stage;
    }

    /// The predecessor has received the Ack, as all that it sends afterwards shows.
    fn proceed(&mut self, server: &dyn RestartableServer) {
        if matches!(self.stage, ServerStage::Acknowledged) {
            server.resume();
            self.stage = ServerStage::Serving;
            self.log_serving();
            if self.stop_requested {
                self.begin_stop();
            }
        }
    }

    fn handle_predecessor_message(
        &mut self,
        server: &dyn RestartableServer,
        message: HandshakeMessage,
    ) {
        let stage = std::mem::replace(&mut self.stage, ServerStage::Stopping);
        self.stage = match (stage, message) {
            // The stop is about to abort the restart.
            (ServerStage::Imported, HandshakeMessage::Commit { .. }) if !server.start_paused() => {
                ServerStage::Imported
            }
            (
                stage @ (ServerStage::Accepting | ServerStage::Imported),
                HandshakeMessage::Commit {
                    paths,
                    drain_millis,
                },
            ) => {
                self.note_drain_of_predecessor(drain_millis.map(Duration::from_millis));
                let paths: Vec<PathBuf> = paths.iter().map(path_of).collect();
                self.take_over_files(&paths);
                self.tell_predecessor(&HandshakeMessage::Ack);
                if matches!(stage, ServerStage::Imported) {
                    ServerStage::Acknowledged
                } else {
                    self.log_serving();
                    ServerStage::Serving
                }
            }
            (ServerStage::Waiting(waiter), HandshakeMessage::Abort { reason }) => {
                reply(&waiter, Err(reason));
                ServerStage::Building
            }
            (ServerStage::Building, HandshakeMessage::Abort { reason }) => {
                self.abort_reason = Some(reason);
                ServerStage::Building
            }
            (
                ServerStage::Accepting
                | ServerStage::Imported
                | ServerStage::Acknowledged
                | ServerStage::Serving,
                HandshakeMessage::Abort { reason },
            ) => {
                log::error!("the predecessor goes on serving: {reason}");
                for listener in self.listeners.iter().filter_map(Weak::upgrade) {
                    listener.set_removes_file(false);
                }
                server.stop_in_drain_timeout();
                ServerStage::Stopping
            }
            (stage, HandshakeMessage::Drained { report }) => {
                // The predecessor shows it.
                log::debug!("{report}");
                self.forget_predecessor();
                stage
            }
            (stage, HandshakeMessage::RestartAgain) => {
                self.add_request(Some(Waiter::Predecessor));
                stage
            }
            (stage, unexpected) => {
                log::debug!("ignoring {unexpected:?} from the predecessor: not expected now");
                stage
            }
        };
    }

    /// The predecessor has ended. If it had not handed over, this process serves in its place.
    fn handle_predecessor_end(&mut self, server: &dyn RestartableServer) {
        self.restore_stderr();
        if let Some(Err(error)) = self.stderr_pipe.take().map(relay_subprocesses) {
            log::error!("cannot relay the standard error of subprocesses: {error}");
        }
        match std::mem::replace(&mut self.stage, ServerStage::Stopping) {
            ServerStage::Waiting(waiter) => {
                log::warn!("the predecessor has died; serving in its place");
                self.stage = ServerStage::Building;
                let result = self.start_serving(server);
                reply(&waiter, result);
            }
            stage
            @ (ServerStage::Accepting | ServerStage::Imported | ServerStage::Acknowledged) => {
                log::warn!("the predecessor has died; serving in its place");
                if !matches!(stage, ServerStage::Acknowledged) {
                    self.take_over_files(&[]);
                }
                server.start_accepting();
                server.resume();
                self.stage = ServerStage::Serving;
                self.log_serving();
                notify::send_ready(self.supervised_generation(), self.status());
                if self.stop_requested {
                    self.begin_stop();
                }
            }
            ServerStage::Serving => {
                self.stage = ServerStage::Serving;
                // The predecessor may have died before it told the supervisor.
                if let Some(generation) = self.supervised_generation() {
                    notify::send_ready(Some(generation), self.status());
                }
            }
            stage => self.stage = stage,
        }
    }

    /// Drains when the supervisor has died: no other process would stop or restart this one.
    pub(super) fn watch_lifeline(&mut self, server: &dyn RestartableServer) {
        while let Some(incoming) = self.lifeline.as_ref().and_then(Link::receive) {
            if let Incoming::End = incoming {
                self.lifeline = None;
                if !matches!(self.stage, ServerStage::Replaced | ServerStage::Stopping) {
                    log::error!("the supervisor has died: finishing open connections");
                    server.stop_in_drain_timeout();
                }
            }
        }
    }

    pub(super) fn log_serving(&self) {
        log::info!("{}", self.status());
    }

    /// Takes over the pid file and the files of Unix sockets, as the serving process.
    pub(super) fn take_over_files(&mut self, socket_files: &[PathBuf]) {
        self.take_socket_files(socket_files);
        if let Some(path) = &self.pid_file_path {
            match PidFile::replace(path) {
                Ok(file) => self.pid_file = Some(file),
                Err(error) => log::error!("cannot write {}: {error}", path.display()),
            }
        }
    }

    /// Makes this process remove the files of these Unix sockets in the end.
    pub(super) fn take_socket_files(&self, paths: &[PathBuf]) {
        for listener in self.listeners.iter().filter_map(Weak::upgrade) {
            let path = listener.addr().as_path();
            if path.is_some_and(|path| is_among(path, paths)) {
                listener.set_removes_file(true);
            }
        }
    }

    pub(super) fn tell_predecessor(&self, message: &HandshakeMessage) {
        if let Some(link) = &self.predecessor {
            link.send(message);
        }
    }
}

pub(super) fn is_among(path: &Path, paths: &[PathBuf]) -> bool {
    paths.iter().any(|other| other == path)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use crossbeam_channel::Receiver;
    use socket2::Socket;

    use super::*;
    use crate::clock::Deadline;
    use crate::restart::inherited::{Inherited, Predecessor};
    use crate::restart::link::send_with;
    use crate::restart::program::Program;
    use crate::restart::restarter::{RestarterHandle, connect};
    use crate::restart::{ExactState, RestartParts};
    use crate::sys::{Interest, Poller};
    use crate::wire::ServerId;

    const LIMIT: Duration = Duration::from_secs(60);

    /// What the restarter has the servers do.
    #[derive(Debug, PartialEq, Eq)]
    enum Told {
        Accept,
        StartPaused,
        Resume,
        Stop,
    }

    /// A server that accepts a hand-over, or was stopped before.
    struct Server {
        told: Sender<Told>,
        was_stopped: bool,
    }

    impl RestartableServer for Server {
        fn start_accepting(&self) {
            self.told.send(Told::Accept).unwrap();
        }

        fn start_paused(&self) -> bool {
            self.told.send(Told::StartPaused).unwrap();
            !self.was_stopped
        }

        fn pause(&self) {}

        fn resume(&self) {
            self.told.send(Told::Resume).unwrap();
        }

        fn settle(&self, _: bool) {}

        fn is_settled(&self) -> bool {
            true
        }

        fn close_calls(&self) {}

        fn has_calls(&self) -> bool {
            false
        }

        fn drain_after_replacement(
            &self,
            _: &[u32],
            _: &mut dyn FnMut(ServerId) -> Option<Socket>,
        ) {
        }

        fn can_adopt(&self) -> bool {
            true
        }

        fn handle_signals(&self) -> bool {
            true
        }

        fn adopt_connections(&self, _: &ServerId, _: Socket) {}

        fn connections_left(&self) -> usize {
            0
        }

        fn requests(&self) -> u64 {
            0
        }

        fn stop_in_drain_timeout(&self) {
            self.told.send(Told::Stop).unwrap();
        }
    }

    /// A successor, and its predecessor's end of the handshake.
    struct Successor {
        handle: RestarterHandle,
        predecessor: Link,
        told: Receiver<Told>,
        imported: Receiver<Vec<u8>>,
    }

    impl Successor {
        /// A successor that has imported an exact state. `None` on a system without restarts.
        fn with_state(was_stopped: bool) -> Option<Self> {
            let (own_end, other_end) = sys::message::create_pair().ok()?;
            let (handle, restarter_end) = connect().unwrap();
            let mut inherited = Inherited::default();
            inherited.predecessor = Some(Predecessor {
                handshake: other_end,
                stderr: None,
                state: None,
                start_pipe: None,
            });
            let (import, imported) = crossbeam_channel::unbounded();
            let parts = RestartParts {
                program: Program::of_this_process().unwrap(),
                inherited,
                restarter_end,
                ready_timeout: LIMIT,
                idle_grace: LIMIT,
                max_draining: 1,
                moves_connections: true,
                ready_when: None,
                passed: Vec::new(),
                state: None,
                exact_state: Some(ExactState {
                    export: Box::new(Vec::new),
                    import: Some(Box::new(move |state| Ok(import.send(state)?))),
                }),
                pause_limit: LIMIT,
                pid_file: None,
                recorded_signals: None,
            };
            let (tell, told) = crossbeam_channel::unbounded();
            let server = Server {
                told: tell,
                was_stopped,
            };
            let restarter = Restarter::new(parts, 1, Vec::new(), LIMIT).unwrap();
            restarter
                .start("restart".to_owned(), || {}, server)
                .unwrap();
            let poller = Arc::new(Poller::new().unwrap());
            let successor = Self {
                handle,
                predecessor: Link::new(own_end, &poller, 0).unwrap(),
                told,
                imported,
            };
            let waiting = successor.handle.clone();
            let waiting = std::thread::spawn(move || waiting.announce_ready());
            let ready = HandshakeMessage::Ready {
                adopts: sys::message::PASSES_CONNECTIONS,
                imports: true,
            };
            assert_eq!(successor.answer(), Some(ready));
            let state = sys::file::create_anonymous(b"state").unwrap();
            let cutover = HandshakeMessage::Cutover { has_state: true };
            let socket = successor.predecessor.socket();
            send_with(socket, &cutover, &state.into()).unwrap();
            let accepting = HandshakeMessage::Accepting { taken: Vec::new() };
            assert_eq!(successor.answer(), Some(accepting));
            assert_eq!(successor.imported.recv().unwrap(), b"state");
            assert_eq!(waiting.join().unwrap(), Ok(()));
            assert!(successor.told.is_empty());
            Some(successor)
        }

        fn commit(&self) {
            self.predecessor.send(&HandshakeMessage::Commit {
                paths: Vec::new(),
                drain_millis: None,
            });
        }

        /// A successor that has sent `Ack`.
        fn acknowledged() -> Option<Self> {
            let successor = Self::with_state(false)?;
            successor.commit();
            assert_eq!(successor.answer(), Some(HandshakeMessage::Ack));
            assert_eq!(successor.told(), Told::StartPaused);
            assert!(successor.told.is_empty());
            Some(successor)
        }

        /// The next message to the predecessor. `None` at its end.
        fn answer(&self) -> Option<HandshakeMessage> {
            loop {
                match self.predecessor.receive() {
                    Some(Incoming::Message(message, _)) => return Some(message),
                    Some(Incoming::End) => return None,
                    None => {
                        let socket = self.predecessor.socket();
                        let ready = sys::socket::wait_ready(socket, Interest::Read, Some(LIMIT));
                        assert!(ready.unwrap().readable, "no message");
                    }
                }
            }
        }

        fn told(&self) -> Told {
            self.told.recv_timeout(LIMIT).unwrap()
        }

        fn end(&self) {
            self.handle.report_stopping();
            let now = Deadline::at(Some(Instant::now()));
            self.handle.report_stopped(String::new(), now);
            self.handle.ended().recv_timeout(LIMIT).unwrap_err();
            self.handle.join();
        }
    }

    #[test]
    fn a_takeover_that_was_acknowledged_waits_for_the_predecessor() {
        let drained = || HandshakeMessage::Drained {
            report: String::new(),
        };
        for go_on in [HandshakeMessage::Proceed, drained()] {
            let Some(successor) = Successor::acknowledged() else {
                return;
            };
            successor.predecessor.send(&go_on);
            assert_eq!(successor.told(), Told::Resume);
            successor.end();
            assert_eq!(successor.answer(), None);
        }
    }

    #[test]
    fn a_takeover_that_was_acknowledged_follows_the_death_of_the_predecessor() {
        let Some(mut successor) = Successor::acknowledged() else {
            return;
        };
        // The drop of the link closes the predecessor's end.
        let poller = Arc::new(Poller::new().unwrap());
        let (unused, _) = sys::message::create_pair().unwrap();
        successor.predecessor = Link::new(unused, &poller, 0).unwrap();
        assert_eq!(successor.told(), Told::Accept);
        assert_eq!(successor.told(), Told::Resume);
        successor.end();
    }

    #[test]
    fn a_takeover_that_was_acknowledged_can_be_aborted() {
        let Some(successor) = Successor::acknowledged() else {
            return;
        };
        let reason = "late".to_owned();
        let abort = HandshakeMessage::Abort { reason };
        successor.predecessor.send(&abort);
        assert_eq!(successor.told(), Told::Stop);
        successor.end();
        assert_eq!(successor.answer(), None);
        assert!(successor.told.is_empty());
    }

    /// The clients that the kernel has queued are accepted when the predecessor has left them.
    #[test]
    fn a_stop_behind_the_ack_waits_for_the_predecessor_and_aborts_nothing() {
        let Some(successor) = Successor::acknowledged() else {
            return;
        };
        successor.handle.report_stopping();
        successor.predecessor.send(&HandshakeMessage::Proceed);
        assert_eq!(successor.told(), Told::Resume);
        successor.end();
        assert_eq!(successor.answer(), None);
    }

    #[test]
    fn a_stop_before_the_ack_aborts_the_restart() {
        let Some(successor) = Successor::with_state(true) else {
            return;
        };
        successor.commit();
        assert_eq!(successor.told(), Told::StartPaused);
        successor.handle.report_stopping();
        let reason = "the successor was stopped".to_owned();
        let abort = HandshakeMessage::Abort { reason };
        assert_eq!(successor.answer(), Some(abort));
        successor.end();
        assert_eq!(successor.answer(), None);
    }
}
