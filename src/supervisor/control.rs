//! The control socket: processes that may send signals to the supervisor can send it requests too.
//!
//! A client sends a line with a request ([`ControlRequest`](crate::wire::ControlRequest)), and gets
//! a line with the answer ([`Status`](crate::wire::Status) or [`Answer`]), which ends the
//! connection.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::Settings;
use crate::addr::Addr;
use crate::clock::Deadline;
use crate::listener::{Bind, Listener};
use crate::log;
use crate::sys::{self, DirectoryEntry};
use crate::wire::{Answer, Record};

/// The control socket and its clients.
#[derive(Debug)]
pub(super) struct ControlSocket {
    pub(super) listener: Listener,
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
}

#[derive(Debug)]
struct ControlClient {
    id: u64,
    socket: Socket,
    input: Vec<u8>,
    /// When the request must have come; never, if the request has come.
    deadline: Deadline,
    /// The client sends no more: end-of-file or an error was received.
    ended: bool,
}

/// The most clients that have not sent their end-of-file yet; others wait in the kernel's queue.
const MAX_CLIENTS: usize = 16;

/// The longest request, in bytes, and how long it may take.
const MAX_REQUEST: usize = 256;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The time between two looks whether the socket's file is still there. One call each costs less
/// than a watch of the directory (inotify(7)), which reports what others do there.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// How long to wait after an error of `accept`.
const PAUSE: Duration = Duration::from_secs(1);

impl ControlSocket {
    pub(super) fn bind(path: &Path, settings: &Settings) -> io::Result<Self> {
        Ok(Self::new(bind_listener(path, settings)?, settings))
    }

    /// Binds the socket again if its file was removed or replaced. What took its place is left alone,
    /// but for the file of a dead process of this user.
    pub(super) fn restore_file(&mut self, now: Instant, settings: &Settings) {
        if !self.next_check.has_passed(now) {
            return;
        }
        self.next_check = Deadline::after(now, CHECK_INTERVAL);
        let Some(path) = self.listener.local_addr().as_path().map(Path::to_owned) else {
            return;
        };
        if self.listener.has_its_file() {
            self.failure = None;
            return;
        }
        let bound = match owner_of(&path) {
            Some(owner) if owner != sys::process::effective_uid() => Err(io::Error::other(
                format!("a file of user {owner} has its place"),
            )),
            _ => bind_listener(&path, settings),
        };
        match bound {
            Ok(listener) => {
                log::warn!(
                    "the control socket {} was gone: bound it again",
                    path.display()
                );
                self.listener = listener;
                self.failure = None;
            }
            Err(error) => {
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
        Self {
            listener,
            clients: Vec::new(),
            next_id: 1,
            not_before: None,
            next_check: Deadline::after(Instant::now(), CHECK_INTERVAL),
            failure: None,
            is_open: settings.control_mode.is_some() || settings.control_group.is_some(),
        }
    }

    /// The sockets to wait for.
    pub(super) fn sockets(&self) -> impl Iterator<Item = &Socket> {
        let accepts = self.has_room() && self.not_before.is_none();
        let clients = self.clients.iter().filter(|client| !client.ended);
        let clients = clients.map(|client| &client.socket);
        let listener = accepts.then_some(&self.listener.socket);
        listener.into_iter().chain(clients)
    }

    /// Adds a client that is connected already. Returns its id.
    pub(super) fn adopt(&mut self, socket: Socket, deadline: Deadline) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.clients.push(ControlClient {
            id,
            socket,
            input: Vec::new(),
            deadline,
            ended: false,
        });
        id
    }

    pub(super) fn socket_of(&self, id: u64) -> Option<&Socket> {
        let client = self.clients.iter().find(|client| client.id == id);
        client.map(|client| &client.socket)
    }

    /// The lines that clients have sent since the last call, with the ids of the clients.
    pub(super) fn requests(&mut self) -> Vec<(u64, String)> {
        self.accept();
        let clients = self.clients.iter_mut().filter(|client| !client.ended);
        let requests = clients.filter_map(|client| Some((client.id, client.read_request()?)));
        let requests = requests.collect();
        // Clients that have disconnected without a request.
        self.clients
            .retain(|client| !(client.ended && client.deadline != Deadline::NEVER));
        requests
    }

    fn has_room(&self) -> bool {
        let sending = self.clients.iter().filter(|client| !client.ended).count();
        sending < MAX_CLIENTS && self.clients.len() < 4 * MAX_CLIENTS
    }

    fn accept(&mut self) {
        if self.not_before.is_some_and(|at| at > Instant::now()) {
            return;
        }
        self.not_before = None;
        while self.has_room() {
            let socket = match self.listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    log::warn!("cannot accept on the control socket: {error}");
                    self.not_before = Some(Instant::now() + PAUSE);
                    return;
                }
            };
            let deadline = Deadline::after(Instant::now(), REQUEST_TIMEOUT);
            let user = sys::socket::peer_uid(&socket);
            let id = self.adopt(socket, deadline);
            // The mode of the file already keeps other users out, unless it was changed. If the
            // settings let others in, the mode alone decides.
            let is_allowed =
                |uid: &u32| self.is_open || *uid == 0 || *uid == sys::process::effective_uid();
            if !user.as_ref().is_ok_and(is_allowed) {
                log::warn!("refused a control connection of user {user:?}");
                self.reply(id, &Answer::failure("permission denied"));
            }
        }
    }

    /// Answers a client, and closes its connection.
    pub(super) fn reply(&mut self, id: u64, answer: &impl Record) {
        let Some(at) = self.clients.iter().position(|client| client.id == id) else {
            return;
        };
        let client = self.clients.remove(at);
        let line = answer.encode().map(|record| record + "\n");
        let line = line.unwrap_or_else(|error| {
            log::error!("cannot answer a control client: {error}");
            String::new()
        });
        // The answer fits into the socket's buffer, or the client has not read for a long time.
        match sys::socket::send(&client.socket, line.as_bytes()) {
            Ok(sent) if sent == line.len() => {}
            other => log::debug!("a control client has not got its answer: {other:?}"),
        }
    }

    pub(super) fn deadline(&self) -> Deadline {
        let deadlines = self.clients.iter().map(|client| client.deadline);
        let own = Deadline::at(self.not_before).earlier(self.next_check);
        deadlines.fold(own, Deadline::earlier)
    }

    pub(super) fn expire(&mut self, now: Instant) {
        self.clients
            .retain(|client| !client.deadline.has_passed(now));
    }
}

impl ControlClient {
    /// The line of the request, when all of the line has come.
    fn read_request(&mut self) -> Option<String> {
        let mut piece = [0; MAX_REQUEST];
        // A client that sends without a pause must not delay the supervisor.
        for _ in 0..4 {
            match sys::socket::recv(&self.socket, &mut piece) {
                Ok(0) => {
                    self.ended = true;
                    let is_request = self.deadline != Deadline::NEVER && !self.input.is_empty();
                    return is_request.then(|| self.take_line(self.input.len()));
                }
                // Input after the request is ignored.
                Ok(_) if self.deadline == Deadline::NEVER => {}
                Ok(count) => {
                    self.input.extend_from_slice(&piece[..count]);
                    let end = self.input.iter().position(|&byte| byte == b'\n');
                    if end.is_some() || self.input.len() > MAX_REQUEST {
                        return Some(self.take_line(end.unwrap_or(0)));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(_) => {
                    self.ended = true;
                    return None;
                }
            }
        }
        None
    }

    fn take_line(&mut self, end: usize) -> String {
        self.deadline = Deadline::NEVER;
        String::from_utf8_lossy(&self.input[..end]).into_owned()
    }
}

// ---- the socket's file ----

/// The mode of the socket's file, if only its group is set.
const GROUP_MODE: u32 = 0o660;

fn bind_listener(path: &Path, settings: &Settings) -> io::Result<Listener> {
    let bind = Bind::from(Addr::Unix(Some(path.to_owned())));
    let bind = bind.name("control").unix_mode(0o600).bind_attempts(1);
    let listener = bind.bind()?;
    set_access(&listener, settings)?;
    Ok(listener)
}

/// Sets the group and the mode of the socket's file as the settings say.
pub(super) fn set_access(listener: &Listener, settings: &Settings) -> io::Result<()> {
    let group = settings.control_group.as_deref();
    let group = group.map(sys::supervision::find_group).transpose()?;
    let mode = settings.control_mode.or(group.map(|_| GROUP_MODE));
    let Some(mode) = mode else {
        return Ok(());
    };
    listener.set_file_access(group, mode).map_err(|error| {
        let addr = listener.local_addr();
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
