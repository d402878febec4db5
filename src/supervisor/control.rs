//! The control socket: who may send signals to the supervisor may ask it for more here.
//!
//! A request is a line, the answer is one of JSON, and ends the connection.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use socket2::Socket;

use crate::addr::Addr;
use crate::clock::Deadline;
use crate::listener::{Bind, Listener};
use crate::sys;

/// The control socket, and who is connected to it.
#[derive(Debug)]
pub(super) struct ControlSocket {
    pub(super) listener: Listener,
    clients: Vec<ControlClient>,
    next_id: u64,
    /// After an error, the system is left alone until then.
    not_before: Option<Instant>,
}

#[derive(Debug)]
struct ControlClient {
    id: u64,
    socket: Socket,
    input: Vec<u8>,
    /// When it is too late to ask; never, once it has.
    deadline: Deadline,
    /// It says no more.
    ended: bool,
}

/// What somebody asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Status,
    Restart { waits: bool },
    Stop,
    Upgrade { waits: bool },
}

impl Request {
    fn parse(line: &str) -> Option<Self> {
        Some(match line.trim_end() {
            "status" => Self::Status,
            "restart" => Self::Restart { waits: false },
            "restart wait" => Self::Restart { waits: true },
            "stop" => Self::Stop,
            "upgrade" => Self::Upgrade { waits: false },
            "upgrade wait" => Self::Upgrade { waits: true },
            _ => return None,
        })
    }
}

/// How many may be connected; others wait.
const CLIENTS: usize = 16;

/// How long a request may be, and take.
const LINE: usize = 256;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait after an error of `accept`.
const PAUSE: Duration = Duration::from_secs(1);

impl ControlSocket {
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        let bind = Bind::from(Addr::Unix(Some(path.to_owned())));
        let listener = bind
            .name("control")
            .unix_mode(0o600)
            .bind_attempts(1)
            .bind()?;
        Ok(Self::new(listener))
    }

    pub(super) fn new(listener: Listener) -> Self {
        Self {
            listener,
            clients: Vec::new(),
            next_id: 1,
            not_before: None,
        }
    }

    /// All that something may come from.
    pub(super) fn sockets(&self) -> impl Iterator<Item = &Socket> {
        let has_room = self.has_room() && self.not_before.is_none();
        let clients = self.clients.iter().filter(|client| !client.ended);
        let clients = clients.map(|client| &client.socket);
        has_room
            .then_some(&self.listener.socket)
            .into_iter()
            .chain(clients)
    }

    /// Takes one in that is connected already, and has asked. Returns its number.
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

    /// What has been asked since the last time, and by whom.
    pub(super) fn requests(&mut self) -> Vec<(u64, Request)> {
        self.accept();
        let (mut requests, mut refused) = (Vec::new(), Vec::new());
        for client in self.clients.iter_mut().filter(|client| !client.ended) {
            match client.read() {
                None => {}
                Some(line) => match Request::parse(&line) {
                    Some(request) => requests.push((client.id, request)),
                    None => refused.push(client.id),
                },
            }
        }
        for id in refused {
            self.reply(id, r#"{"ok":false,"error":"there is no such request"}"#);
        }
        // Who has gone without having asked.
        self.clients
            .retain(|client| !(client.ended && client.deadline != Deadline::NEVER));
        requests
    }

    /// Those who say no more only wait for what they have asked for.
    fn has_room(&self) -> bool {
        let speaking = self.clients.iter().filter(|client| !client.ended).count();
        speaking < CLIENTS && self.clients.len() < 4 * CLIENTS
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
            // The file's mode says so already, but not where somebody has changed it.
            match sys::socket::peer_uid(&socket) {
                Ok(uid) if uid == 0 || uid == sys::process::effective_uid() => {
                    self.adopt(socket, deadline);
                }
                other => {
                    log::warn!("refused a control connection of user {other:?}");
                    let id = self.adopt(socket, deadline);
                    self.reply(id, r#"{"ok":false,"error":"permission denied"}"#);
                }
            }
        }
    }

    /// Answers, and is done with whoever it was.
    pub(super) fn reply(&mut self, id: u64, json: &str) {
        let Some(at) = self.clients.iter().position(|client| client.id == id) else {
            return;
        };
        let client = self.clients.remove(at);
        // It fits into the socket's buffer, or the client has not read for long.
        match sys::socket::send(&client.socket, format!("{json}\n").as_bytes()) {
            Ok(sent) if sent == json.len() + 1 => {}
            other => log::debug!("a control client has not got its answer: {other:?}"),
        }
    }

    pub(super) fn deadline(&self) -> Deadline {
        let deadlines = self.clients.iter().map(|client| client.deadline);
        deadlines.fold(Deadline::at(self.not_before), Deadline::earlier)
    }

    pub(super) fn expire(&mut self, now: Instant) {
        self.clients.retain(|client| !client.deadline.passed(now));
    }
}

impl ControlClient {
    /// A line, if it is there.
    fn read(&mut self) -> Option<String> {
        let mut piece = [0; LINE];
        // Whoever goes on saying things holds up nobody.
        for _ in 0..4 {
            match sys::socket::recv(&self.socket, &mut piece) {
                Ok(0) => {
                    self.ended = true;
                    let asks = self.deadline != Deadline::NEVER && !self.input.is_empty();
                    return asks.then(|| self.line(self.input.len()));
                }
                // It has asked already.
                Ok(_) if self.deadline == Deadline::NEVER => {}
                Ok(count) => {
                    self.input.extend_from_slice(&piece[..count]);
                    let end = self.input.iter().position(|&byte| byte == b'\n');
                    if end.is_some() || self.input.len() > LINE {
                        return Some(self.line(end.unwrap_or(0)));
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

    fn line(&mut self, end: usize) -> String {
        self.deadline = Deadline::NEVER;
        String::from_utf8_lossy(&self.input[..end]).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_exact() {
        assert_eq!(
            Request::parse("restart wait\r\n"),
            Some(Request::Restart { waits: true })
        );
        for line in ["", "restart  wait", "Status", "stop now", "\u{fffd}"] {
            assert_eq!(Request::parse(line), None, "{line:?}");
        }
    }
}
