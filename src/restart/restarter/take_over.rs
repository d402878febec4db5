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
use crate::wire::{HandshakeMessage, ServerId};

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
            server.start_accepting();
            self.stage = ServerStage::Serving;
            self.log_serving();
        }
    }

    fn handle_predecessor_message(
        &mut self,
        server: &dyn RestartableServer,
        message: HandshakeMessage,
    ) {
        let stage = std::mem::replace(&mut self.stage, ServerStage::Stopping);
        self.stage = match (stage, message) {
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

    /// Open connections of the predecessor come over this channel. Its end tells the predecessor
    /// that they stay.
    fn adopt_connections(
        &self,
        server: &dyn RestartableServer,
        server_id: ServerId,
        channel: Option<Descriptor>,
    ) {
        let channel = channel.map(sys::descriptor::into_socket);
        match (&self.stage, channel) {
            (ServerStage::Serving, Some(Ok(channel))) => {
                server.adopt_connections(&server_id, channel);
            }
            (ServerStage::Replaced, Some(Ok(channel))) => {
                self.pass_channel_on(server_id, channel);
            }
            (_, Some(Err(error))) => {
                log::error!("cannot adopt the connections of the predecessor: {error}");
            }
            (ServerStage::Stopping, _) => {}
            (_, _) => log::debug!("ignoring connections of the predecessor: not expected now"),
        }
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
                self.stage = ServerStage::Serving;
                self.log_serving();
                notify::send_ready(self.supervised_generation(), self.status());
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
