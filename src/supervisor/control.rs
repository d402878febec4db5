//! The control socket, which is a named pipe on Windows: processes that may send signals to the
//! supervisor can also send it requests.
//!
//! A client sends a line with a request ([`ControlRequest`](crate::wire::ControlRequest)), and gets
//! a line with the answer ([`Status`](crate::wire::Status) or [`Answer`]), which ends the
//! connection. Nothing here waits for a client.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::Settings;
use super::closer::Closer;
use crate::addr::Addr;
use crate::clock::Deadline;
use crate::listener::{Bind, Listener};
use crate::log;
use crate::sys::supervision::{ControlPipe, ControlStream, Source};
use crate::sys::{self, Descriptor, DirectoryEntry, IfLocked, Interest};
use crate::wire::{Answer, Record};

/// The control socket and its clients.
#[derive(Debug)]
pub(super) struct ControlSocket {
    listener: ControlListener,
    /// The oldest first.
    clients: Vec<ControlClient>,
    next_id: u64,
    /// No client is accepted before this time, after an error of `accept`.
    not_before: Option<Instant>,
    /// When to look whether the socket's file is still there.
    next_check: Deadline,
    /// Why the socket cannot be bound again, to log each reason once.
    failure: Option<String>,
    /// The settings let others than the supervisor's user send requests.
    is_open: bool,
    /// Closes the descriptors that clients send, and clients whose close could wait.
    pub(super) closer: Closer,
}

/// Where clients come from.
#[derive(Debug)]
enum ControlListener {
    Socket(Listener),
    Pipe(ControlPipe),
}

#[derive(Debug)]
struct ControlClient {
    id: u64,
    stream: ControlStream,
    stage: ClientStage,
    /// When the client is given up.
    deadline: Deadline,
}

#[derive(Debug)]
enum ClientStage {
    /// This much of the request has come.
    Requesting { input: Vec<u8> },
    /// The client waits for a result. `ended`: it sends no more.
    Waiting { ended: bool },
    /// This much of the answer is to be sent.
    Answering { output: Vec<u8> },
    /// The client has disconnected.
    Gone,
}

/// The most clients that have not sent their requests, and that have not read their answers. Beyond
/// that, the oldest of them is given up: a new client is served, whatever others do.
const MAX_SLOW: usize = 64;

/// The most clients that wait for a result. Further ones are refused.
const MAX_WAITING: usize = 64;

/// The most clients that are accepted in one turn of the supervisor's loop.
const MAX_ACCEPTED: usize = 256;

/// The longest request, in bytes.
const MAX_REQUEST: usize = 256;

/// How long a request may take to come, and an answer to be read.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// The time between two looks whether the socket's file is still there. One call each costs less
/// than a watch of the directory (inotify(7)), which reports what others do there.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// How long to wait after an error of `accept`, and for a lock on the directory of the socket.
const PAUSE: Duration = Duration::from_secs(1);

impl ControlSocket {
    pub(super) fn bind(path: &Path, settings: &Settings, if_locked: IfLocked) -> io::Result<Self> {
        let listener = match ControlPipe::bind(path)? {
            Some(pipe) => ControlListener::Pipe(pipe),
            None => ControlListener::Socket(bind_listener(path, settings, if_locked)?),
        };
        Ok(Self::with_listener(listener, settings))
    }

    /// Binds the socket again if its file was removed or replaced. A file that has taken the path
    /// is not removed, except the socket file of a dead process of this user.
    pub(super) fn restore_file(&mut self, now: Instant, settings: &Settings) {
        if !self.next_check.has_passed(now) {
            return;
        }
        self.next_check = Deadline::after(now, CHECK_INTERVAL);
        let ControlListener::Socket(listener) = &self.listener else {
            return;
        };
        let Some(path) = listener.addr().as_path().map(Path::to_owned) else {
            return;
        };
        if listener.has_its_file() {
            self.failure = None;
            return;
        }
        // Another process may have the lock for a moment, but must not keep the socket away.
        let if_locked = match self.failure {
            None => IfLocked::Fail,
            Some(_) => IfLocked::Ignore,
        };
        let bound = match owner_of(&path) {
            Some(owner) if owner != sys::process::effective_uid() => Err(io::Error::other(
                format!("a file of user {owner} has its place"),
            )),
            _ => bind_listener(&path, settings, if_locked),
        };
        match bound {
            Ok(listener) => {
                log::warn!(
                    "the control socket {} was gone: bound it again",
                    path.display()
                );
                self.listener = ControlListener::Socket(listener);
                self.failure = None;
            }
            Err(error) => {
                if error.kind() == io::ErrorKind::WouldBlock {
                    self.next_check = Deadline::after(now, PAUSE);
                }
                let why = error.to_string();
                if self.failure.as_ref() != Some(&why) {
                    log::error!(
                        "cannot bind the control socket {} again: {why}",
                        path.display()
                    );
                }
                self.failure = Some(why);
            }
        }
    }

    pub(super) fn new(listener: Listener, settings: &Settings) -> Self {
        Self::with_listener(ControlListener::Socket(listener), settings)
    }

    fn with_listener(listener: ControlListener, settings: &Settings) -> Self {
        Self {
            listener,
            clients: Vec::new(),
            next_id: 1,
            not_before: None,
            next_check: Deadline::after(Instant::now(), CHECK_INTERVAL),
            failure: None,
            is_open: settings.control_mode.is_some() || settings.control_group.is_some(),
            closer: Closer::new("close-control"),
        }
    }

    /// What to wait for.
    pub(super) fn sources(&self) -> impl Iterator<Item = (Source<'_>, Interest)> {
        let may_receive = !self.closer.is_full();
        let accepts = self.not_before.is_none();
        let listener = accepts.then(|| (self.listener.source(), Interest::Read));
        let clients = self.clients.iter();
        let clients =
            clients.filter_map(|client| Some((client.stream.source(), client.stage.interest()?)));
        let all = listener.into_iter().chain(clients);
        all.filter(move |(_, interest)| may_receive || *interest == Interest::Write)
    }

    /// Adds a client that waits for a result already. Returns its id.
    pub(super) fn adopt(&mut self, stream: ControlStream) -> u64 {
        self.add(
            stream,
            ClientStage::Waiting { ended: false },
            Deadline::NEVER,
        )
    }

    fn add(&mut self, stream: ControlStream, stage: ClientStage, deadline: Deadline) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.clients.push(ControlClient {
            id,
            stream,
            stage,
            deadline,
        });
        id
    }

    /// A second descriptor of the client's connection.
    pub(super) fn duplicate_client(&self, id: u64) -> Option<io::Result<Descriptor>> {
        let client = self.clients.iter().find(|client| client.id == id);
        client.map(|client| client.stream.duplicate())
    }

    /// The listener, if it is a socket.
    pub(super) fn listener(&self) -> Option<&Listener> {
        match &self.listener {
            ControlListener::Socket(listener) => Some(listener),
            ControlListener::Pipe(_) => None,
        }
    }

    /// Whether one more client may wait for a result. The clients whose requests were returned by
    /// [`requests`](Self::requests) count as waiting.
    pub(super) fn may_wait(&self) -> bool {
        let is_waiting =
            |client: &&ControlClient| matches!(client.stage, ClientStage::Waiting { .. });
        self.clients.iter().filter(is_waiting).count() <= MAX_WAITING
    }

    /// The lines that clients have sent since the last call, with the ids of the clients. Also sends
    /// what is left of answers.
    pub(super) fn requests(&mut self) -> Vec<(u64, String)> {
        let closer = &mut self.closer;
        let clients = self.clients.iter_mut();
        let requests = clients.filter_map(|client| Some((client.id, client.proceed(closer)?)));
        let mut requests: Vec<_> = requests.collect();
        self.drop_gone();
        self.accept(&mut requests);
        requests
    }

    /// Accepts clients. Most have sent their requests already.
    fn accept(&mut self, requests: &mut Vec<(u64, String)>) {
        let now = Instant::now();
        if self.not_before.is_some_and(|at| at > now) {
            return;
        }
        self.not_before = None;
        for _ in 0..MAX_ACCEPTED {
            if !self.closer.may_receive() {
                break;
            }
            let stream = match self.listener.accept() {
                Ok(stream) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    log::warn!("cannot accept on the control socket: {error}");
                    self.not_before = Some(now + PAUSE);
                    break;
                }
            };
            let user = stream.peer_uid();
            let stage = ClientStage::Requesting { input: Vec::new() };
            let id = self.add(stream, stage, Deadline::after(now, CLIENT_TIMEOUT));
            // The mode of the file already keeps other users out, unless it was changed. If the
            // settings let others in, the mode alone decides.
            let is_allowed =
                |uid: &u32| self.is_open || *uid == 0 || *uid == sys::process::effective_uid();
            if !user.as_ref().is_ok_and(is_allowed) {
                log::warn!("refused a control connection of user {user:?}");
                self.reply(id, &Answer::failure("permission denied"));
            } else if let Some(client) = self.clients.last_mut() {
                let request = client.proceed(&mut self.closer);
                requests.extend(request.map(|request| (id, request)));
            }
            self.give_up_slow_clients();
        }
    }

    fn give_up_slow_clients(&mut self) {
        self.drop_gone();
        let slow = |stage: &ClientStage| !matches!(stage, ClientStage::Waiting { .. });
        let count = self
            .clients
            .iter()
            .filter(|client| slow(&client.stage))
            .count();
        if count > MAX_SLOW {
            if let Some(oldest) = self.clients.iter().position(|client| slow(&client.stage)) {
                log::debug!("giving up the oldest of {count} slow control clients");
                let client = self.clients.remove(oldest);
                client.close(&mut self.closer);
            }
        }
    }

    fn drop_gone(&mut self) {
        self.close_if(|client| matches!(client.stage, ClientStage::Gone));
    }

    fn close_if(&mut self, is_over: impl Fn(&ControlClient) -> bool) {
        while let Some(at) = self.clients.iter().position(&is_over) {
            let client = self.clients.remove(at);
            client.close(&mut self.closer);
        }
    }

    /// Answers a client, and closes its connection when the answer is sent.
    pub(super) fn reply(&mut self, id: u64, answer: &impl Record) {
        let line = answer.encode().or_else(|error| {
            log::error!("cannot answer a control client: {error}");
            Answer::failure(format!("cannot encode the answer: {error}")).encode()
        });
        let line = line.map_or(String::new(), |record| record + "\n");
        let mut clients = self.clients.iter_mut();
        if let Some(client) = clients.find(|client| client.id == id) {
            let output = line.into_bytes();
            client.stage = ClientStage::Answering { output };
            client.deadline = Deadline::after(Instant::now(), CLIENT_TIMEOUT);
            client.send_answer();
        }
        self.give_up_slow_clients();
    }

    pub(super) fn deadline(&self) -> Deadline {
        let deadlines = self.clients.iter().map(|client| client.deadline);
        let own = Deadline::at(self.not_before).earlier(self.next_check);
        let own = own.earlier(self.closer.deadline());
        deadlines.fold(own, Deadline::earlier)
    }

    pub(super) fn expire(&mut self, now: Instant) {
        self.close_if(|client| client.deadline.has_passed(now));
    }
}

impl ControlListener {
    /// Accepts a client, or fails with `WouldBlock`.
    fn accept(&self) -> io::Result<ControlStream> {
        match self {
            Self::Socket(listener) => ControlStream::from_socket(listener.accept()?.0),
            Self::Pipe(pipe) => pipe.accept(),
        }
    }

    fn source(&self) -> Source<'_> {
        match self {
            Self::Socket(listener) => sys::supervision::source_of(&listener.socket),
            Self::Pipe(pipe) => pipe.source(),
        }
    }
}

impl ClientStage {
    /// What the supervisor waits for. `None`: the client sends no more.
    fn interest(&self) -> Option<Interest> {
        match self {
            Self::Requesting { .. } | Self::Waiting { ended: false } => Some(Interest::Read),
            Self::Answering { .. } => Some(Interest::Write),
            Self::Waiting { ended: true } | Self::Gone => None,
        }
    }
}

impl ControlClient {
    /// Does what can be done without waiting. Returns the line of the request, when all of the line
    /// has come.
    fn proceed(&mut self, closer: &mut Closer) -> Option<String> {
        let mut piece = [0; MAX_REQUEST];
        // A client that sends without a pause must not delay the supervisor.
        for _ in 0..4 {
            if matches!(self.stage, ClientStage::Answering { .. }) {
                self.send_answer();
                return None;
            }
            self.stage.interest()?;
            if !closer.may_receive() {
                return None;
            }
            let received = match self.stream.receive(&mut piece) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(_) => 0,
                Ok((received, descriptors)) => {
                    closer.close(descriptors);
                    received
                }
            };
            match (&mut self.stage, received) {
                (ClientStage::Requesting { input }, 1..) => {
                    input.extend_from_slice(&piece[..received]);
                    let end = input.iter().position(|&byte| byte == b'\n');
                    if end.is_some() || input.len() > MAX_REQUEST {
                        return Some(self.take_line(end.unwrap_or(0)));
                    }
                }
                (ClientStage::Requesting { input }, 0) if !input.is_empty() => {
                    let end = input.len();
                    return Some(self.take_line(end));
                }
                // The client may have ended its side only, and read its answer.
                (ClientStage::Waiting { ended }, 0) => *ended = true,
                // Input after the request is ignored.
                (ClientStage::Waiting { .. }, _) => {}
                _ => self.stage = ClientStage::Gone,
            }
        }
        None
    }

    /// Ends the connection. What the client has sent and was not received is closed with the socket,
    /// also descriptors.
    fn close(self, closer: &mut Closer) {
        closer.close(self.stream.end());
    }

    /// Sends what the socket takes of the answer.
    fn send_answer(&mut self) {
        while let ClientStage::Answering { output } = &mut self.stage {
            match self.stream.send(output) {
                Ok(sent) if sent < output.len() => drop(output.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                result => {
                    if let Err(error) = result {
                        log::debug!("a control client has not got its answer: {error}");
                    }
                    self.stage = ClientStage::Gone;
                }
            }
        }
    }

    fn take_line(&mut self, end: usize) -> String {
        let waiting = ClientStage::Waiting { ended: false };
        self.deadline = Deadline::NEVER;
        match std::mem::replace(&mut self.stage, waiting) {
            ClientStage::Requesting { input } => {
                String::from_utf8_lossy(&input[..end]).into_owned()
            }
            _ => String::new(),
        }
    }
}

// ---- the socket's file ----

/// The mode of the socket's file, if only its group is set.
const GROUP_MODE: u32 = 0o660;

/// The mode without such settings.
const OWN_MODE: u32 = 0o600;

fn bind_listener(path: &Path, settings: &Settings, if_locked: IfLocked) -> io::Result<Listener> {
    let bind = Bind::from(Addr::Unix(Some(path.to_owned())));
    let bind = bind.name("control").unix_mode(OWN_MODE).bind_attempts(1);
    let listener = bind.if_locked(if_locked).bind()?;
    if settings.control_mode.is_some() || settings.control_group.is_some() {
        set_access(&listener, settings)?;
    }
    Ok(listener)
}

/// Sets the group and the mode of the socket's file as the settings say, whatever they were.
pub(super) fn set_access(listener: &Listener, settings: &Settings) -> io::Result<()> {
    let group = settings.control_group.as_deref();
    let group = group.map(sys::supervision::find_group).transpose()?;
    let default = group.map_or(OWN_MODE, |_| GROUP_MODE);
    let mode = settings.control_mode.unwrap_or(default);
    let group = group.unwrap_or_else(sys::process::effective_gid);
    listener
        .set_file_access(Some(group), mode)
        .map_err(|error| {
            let addr = listener.addr();
            let text =
                format!("cannot set the group and the mode of the control socket {addr}: {error}");
            io::Error::new(error.kind(), text)
        })
}

/// The user that the file at a path belongs to.
fn owner_of(path: &Path) -> Option<u32> {
    let found = DirectoryEntry::open(path).ok()?.find().ok()?;
    found.map(|found| found.owner)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use socket2::{Domain, SockAddr, Socket, Type};

    use super::*;
    use crate::supervisor::Supervisor;

    #[test]
    fn the_file_comes_back_though_the_directory_is_locked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let settings = Supervisor::new().0;
        let Ok(mut control) = ControlSocket::bind(&path, &settings, IfLocked::Wait) else {
            return;
        };
        let lock = std::fs::File::open(dir.path()).unwrap();
        assert!(sys::file::try_lock(&lock).unwrap());
        std::fs::remove_file(&path).unwrap();
        let first = Instant::now() + CHECK_INTERVAL;
        control.restore_file(first, &settings);
        assert!(!path.exists(), "another process may be about to bind");
        control.restore_file(first + PAUSE, &settings);
        assert!(path.exists());
    }

    #[test]
    fn a_client_may_read_a_long_answer_slowly() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let Ok(mut control) = ControlSocket::bind(&path, &Supervisor::new().0, IfLocked::Wait)
        else {
            return;
        };
        let mut client = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        client.connect(&SockAddr::unix(&path).unwrap()).unwrap();
        client.write_all(b"status\n").unwrap();
        let requests = control.requests();
        let [(id, _)] = requests[..] else {
            panic!("{requests:?}");
        };
        // More than the buffer of a Unix socket takes.
        control.reply(id, &Answer::failure("x".repeat(900_000)));
        assert!(
            control
                .sources()
                .any(|(_, wanted)| wanted == Interest::Write)
        );
        client.set_nonblocking(true).unwrap();
        let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
        loop {
            match client.read(&mut piece) {
                Ok(0) => break,
                Ok(count) => answer.extend_from_slice(&piece[..count]),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    assert!(control.requests().is_empty());
                }
            }
        }
        assert!(answer.len() > 900_000 && answer.ends_with(b"}\n"));
        assert_eq!(control.sources().count(), 1);
    }

    /// A pair of Unix sockets which, unlike those of the control socket, take descriptors.
    fn connected(path: &Path) -> (Socket, Socket) {
        let addr = SockAddr::unix(path).unwrap();
        let new = || Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        let (listener, client) = (new(), new());
        listener.bind(&addr).unwrap();
        listener.listen(1).unwrap();
        client.connect(&addr).unwrap();
        let (own_end, _) = listener.accept().unwrap();
        std::fs::remove_file(path).unwrap();
        (own_end, client)
    }

    /// A socket whose close waits for ten minutes, and its peer, which does not read.
    fn lingering() -> Option<(Socket, TcpStream)> {
        const AGES: Duration = Duration::from_secs(600);
        let listener = TcpListener::bind("127.0.0.1:0").ok()?;
        let sender = TcpStream::connect(listener.local_addr().ok()?).ok()?;
        let (receiver, _) = listener.accept().ok()?;
        sender.set_nonblocking(true).ok()?;
        while (&sender).write(&[0; 65536]).is_ok() {}
        let sender = Socket::from(sender);
        sender.set_linger(Some(AGES)).ok()?;
        Some((sender, receiver))
    }

    #[test]
    fn no_close_of_what_a_client_has_sent_waits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let Ok(mut control) = ControlSocket::bind(&path, &Supervisor::new().0, IfLocked::Wait)
        else {
            return;
        };
        for is_received in [true, false] {
            let (own_end, client) = connected(&dir.path().join("pair"));
            own_end.set_nonblocking(true).unwrap();
            let id = control.adopt(ControlStream::from_socket(own_end).unwrap());
            let (sender, receiver) = lingering().unwrap();
            let descriptor = sys::descriptor::from_socket(sender).unwrap();
            sys::message::send(&client, "x", &[&descriptor]).unwrap();
            drop(descriptor);
            if is_received {
                assert!(control.requests().is_empty());
            }
            let before = Instant::now();
            control.reply(id, &Answer::failure("x"));
            control.requests();
            assert_eq!(control.clients.len(), 0);
            // The answer comes though the socket is closed later.
            let mut answer = String::new();
            let _ = (&client).read_to_string(&mut answer);
            assert!(answer.ends_with("}\n"), "{answer}");
            // What the socket holds is closed with the time-out of the sender.
            while control.closer.left() != usize::from(!is_received) {
                assert!(before.elapsed() < Duration::from_secs(60));
                std::thread::yield_now();
            }
            drop(receiver);
        }
    }
}
