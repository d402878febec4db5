//! A chat room over WebSocket (RFC 6455): `tungstenite` reads the frames, and no client occupies a
//! worker while it is silent.
//!
//! ```sh
//! cargo run --release --example websocket --features websocket -- --listen 127.0.0.1:8081
//! ```
//!
//! Open http://127.0.0.1:8081/ in two tabs of a browser: what one of them says, both read. `kill
//! -HUP` restarts the server, and the tabs connect again.
//!
//! - A message is encoded once, and goes to the outbox of each client.
//! - A client that does not read is dropped when its outbox is full; the others do not notice.
//! - Each client is pinged now and then, and dropped if nothing comes from it until the next ping.
//! - A stop says goodbye: the close code is 1001, or 1012 at a restart. No message may follow a
//!   close frame (RFC 6455, section 5.5.1), so a close frame at once would leave unanswered what a
//!   client has sent meanwhile. The close frame goes behind the next answer, or comes when the
//!   client was silent for a second.

mod common;

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use handover::http::{
    self, Body, HeaderValue, Method, Reply, Request, Response, StatusCode, header,
};
use handover::{Connection, Next, Outbox, Service, WhenFull};
use lexopt::ValueExt;
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tungstenite::protocol::frame::{CloseFrame, Frame};
use tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use tungstenite::{Error, Message};

/// How long a client may take to answer a close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// After this many messages of one client, other clients are served.
const MESSAGES_PER_CALL: usize = 64;

const ABOUT: common::About = common::About {
    name: "websocket",
    purpose: "A chat room over WebSocket.",
    listen: "127.0.0.1:8081",
    own_options: "  --max-message BYTES       the longest message
  --max-unread BYTES        how much a client may leave unread before it is dropped
  --ping SECONDS            the time between two pings
",
    can_restart: true,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut limits = Limits::default();
    let mut options = common::Options::parse_with(&ABOUT, |name, parser| {
        match name {
            "max-message" => limits.message = parser.value()?.parse_with(common::number)?,
            "max-unread" => limits.unread = parser.value()?.parse_with(common::number)?,
            "ping" => limits.ping = parser.value()?.parse_with(common::seconds)?,
            _ => return Ok(false),
        }
        Ok(true)
    });
    let restart = options.restart()?;
    let builder = options.builder().restart(restart);
    let server = builder.build(service(Arc::new(Room::new(limits))))?;
    common::announce_http(&server.local_addrs());
    let report = server.run()?;
    common::say(report);
    Ok(())
}

/// What one client may take.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// The longest message, in bytes, all its fragments together. Defaults to 64 KiB.
    pub(crate) message: usize,
    /// How many bytes a client may leave unread. Defaults to 256 KiB.
    pub(crate) unread: usize,
    /// The time between two pings. Something has to come from the client in between. Defaults to
    /// 20 s.
    pub(crate) ping: Duration,
    /// How long a client has to be silent before a stop closes its connection. Defaults to 1 s.
    pub(crate) silence: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message: 64 * 1024,
            unread: 256 * 1024,
            ping: Duration::from_secs(20),
            silence: Duration::from_secs(1),
        }
    }
}

/// The clients of the room.
pub(crate) struct Room {
    limits: Limits,
    last_id: AtomicU64,
    members: Mutex<HashMap<u64, Outbox>>,
}

impl Room {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            last_id: AtomicU64::new(0),
            members: Mutex::default(),
        }
    }

    fn with_members<T>(&self, act: impl FnOnce(&mut HashMap<u64, Outbox>) -> T) -> T {
        act(&mut self.members.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sends to all, without waiting for any. A frame of a server is not masked, so that one
    /// serves for all.
    fn broadcast(&self, data: Bytes, kind: Data) -> io::Result<()> {
        let mut frame = Vec::with_capacity(data.len() + 10);
        let message = Frame::message(data, OpCode::Data(kind), true);
        message.format(&mut frame).map_err(io::Error::other)?;
        let frame = Bytes::from(frame);
        // Sending is I/O: not under the lock.
        let members: Vec<_> = self.with_members(|members| members.values().cloned().collect());
        for member in members {
            // A client that has left, or whose outbox is full, is closed without this loop.
            let _ = member.send(frame.clone());
        }
        Ok(())
    }
}

/// The HTTP service of a room.
pub(crate) fn service(room: Arc<Room>) -> impl Service {
    http::service(move |request| answer(request, &room))
}

/// Accepts the upgrade to a WebSocket (RFC 6455, section 4.2.2).
fn answer(request: &Request<Body<'_>>, room: &Arc<Room>) -> Response<Reply> {
    let fields = request.headers();
    let is = |name, value: &str| {
        let field = fields.get(name).map(HeaderValue::as_bytes);
        field.is_some_and(|field| field.eq_ignore_ascii_case(value.as_bytes()))
    };
    if request.method() != Method::GET {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, header::ALLOW, "GET");
    }
    if !is(header::UPGRADE, "websocket") {
        let mut response = Response::new(Reply::from(PAGE));
        let html = HeaderValue::from_static("text/html; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, html);
        return response;
    }
    let key = fields
        .get(header::SEC_WEBSOCKET_KEY)
        .map(HeaderValue::as_bytes);
    let accept = key.and_then(|key| derive_accept_key(key).parse().ok());
    let Some(accept) = accept.filter(|_| is(header::SEC_WEBSOCKET_VERSION, "13")) else {
        return refuse(
            StatusCode::UPGRADE_REQUIRED,
            header::SEC_WEBSOCKET_VERSION,
            "13",
        );
    };
    let mut client = Client::new(Arc::clone(room));
    let mut response = Response::new(Reply::upgrade(move |conn| client.serve(conn)));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let fields = response.headers_mut();
    fields.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    fields.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    response
}

fn refuse(status: StatusCode, name: header::HeaderName, value: &'static str) -> Response<Reply> {
    let mut response = Response::new(Reply::from("this is a WebSocket\n"));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(name, HeaderValue::from_static(value));
    response
}

/// One client, and its place in the room.
struct Client {
    room: Arc<Room>,
    /// `Some` while the client is in the room.
    id: Option<u64>,
    socket: WebSocketContext,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    New,
    Open,
    /// The client was pinged, and has sent nothing since.
    Pinged,
    /// The server drains, and the client was not told. The close goes behind the next answer.
    Leaving {
        is_answered: bool,
    },
    /// The server has sent a close, and waits for that of the client.
    Closing,
}

impl Client {
    fn new(room: Arc<Room>) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(4096)
            .write_buffer_size(0)
            .max_message_size(Some(room.limits.message))
            .max_frame_size(Some(room.limits.message));
        Self {
            room,
            id: None,
            socket: WebSocketContext::new(Role::Server, Some(config)),
            stage: Stage::New,
        }
    }

    /// Serves what has happened since the last call: bytes of the client, the timer, a stop.
    fn serve(&mut self, conn: &mut Connection) -> io::Result<Next> {
        if self.stage == Stage::New {
            self.enter(conn);
        }
        let next = self.handle_events(conn).or_else(|error| match error {
            Error::ConnectionClosed | Error::AlreadyClosed => Ok(Next::Close),
            Error::Io(error) => Err(error),
            error => self.fail(conn, &error),
        })?;
        // What `tungstenite` could not write. A client that leaves so much unread does not read its
        // pongs: a broadcast must not come between the halves of one.
        match self.socket.flush(&mut conn.nonblocking()) {
            Ok(()) | Err(Error::ConnectionClosed | Error::AlreadyClosed) => Ok(next),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    fn handle_events(&mut self, conn: &mut Connection) -> Result<Next, Error> {
        let cause = conn.cause();
        if cause.draining && self.stage != Stage::Closing {
            self.stage = Stage::Leaving { is_answered: false };
        }
        if self.read_messages(conn)? {
            return Ok(Next::Again);
        }
        let is_silent = cause.timer && !cause.draining && !cause.readable;
        match self.stage {
            Stage::Leaving { is_answered } if is_answered || is_silent => {
                let code = match conn.has_successor() {
                    true => CloseCode::Restart,
                    false => CloseCode::Away,
                };
                self.close(conn, code, "")?;
            }
            Stage::Leaving { .. } if cause.draining || cause.timer => {
                conn.wake_at(Instant::now().checked_add(self.room.limits.silence));
            }
            Stage::Leaving { .. } | Stage::Closing => {}
            _ if cause.timer => {
                self.ping(conn)?;
                return Ok(Next::Park);
            }
            _ => return Ok(Next::Park),
        }
        // A stop waits for the client: for its silence, and for its close.
        Ok(Next::More)
    }

    /// Handles the messages that have arrived. True if there may be more.
    fn read_messages(&mut self, conn: &mut Connection) -> Result<bool, Error> {
        for _ in 0..MESSAGES_PER_CALL {
            match self.socket.read(&mut conn.nonblocking()) {
                Ok(message) => self.handle(conn, message)?,
                Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn handle(&mut self, conn: &mut Connection, message: Message) -> io::Result<()> {
        if self.stage == Stage::Pinged {
            self.stage = Stage::Open;
        }
        match message {
            Message::Text(text) => self.say(text.into(), Data::Text),
            Message::Binary(bytes) => self.say(bytes, Data::Binary),
            // The next read answers it, and then ends.
            Message::Close(_) => {
                self.leave(conn);
                Ok(())
            }
            // `tungstenite` answers a ping. A pong needs no answer.
            _ => Ok(()),
        }
    }

    /// Sends the message to all in the room. A client that was told to leave is not in the room any
    /// more.
    fn say(&mut self, data: Bytes, kind: Data) -> io::Result<()> {
        if let Stage::Leaving { is_answered } = &mut self.stage {
            *is_answered = true;
        }
        self.room.broadcast(data, kind)
    }

    fn enter(&mut self, conn: &mut Connection) {
        let outbox = conn.outbox(self.room.limits.unread);
        outbox.set_when_full(WhenFull::CloseConnection);
        let id = self.room.last_id.fetch_add(1, Relaxed);
        self.room.with_members(|members| members.insert(id, outbox));
        self.id = Some(id);
        self.stage = Stage::Open;
        // The ping bounds the time, and the limit of a message the memory, also of a client that
        // has sent a part of a message.
        conn.set_idle_timeout(self.room.limits.ping.saturating_mul(3));
        self.set_timer(conn);
    }

    fn set_timer(&self, conn: &mut Connection) {
        conn.wake_at(Instant::now().checked_add(self.room.limits.ping));
    }

    /// The timer is due: pings the client, or gives it up.
    fn ping(&mut self, conn: &mut Connection) -> Result<(), Error> {
        match self.stage {
            Stage::New | Stage::Leaving { .. } | Stage::Closing => Ok(()),
            Stage::Pinged => Err(Error::ConnectionClosed),
            Stage::Open => {
                self.stage = Stage::Pinged;
                self.set_timer(conn);
                self.socket
                    .write(&mut conn.nonblocking(), Message::Ping(Bytes::new()))
            }
        }
    }

    /// Begins to close: no message follows.
    fn close(&mut self, conn: &mut Connection, code: CloseCode, why: &str) -> Result<(), Error> {
        self.leave(conn);
        self.stage = Stage::Closing;
        conn.wake_at(None);
        conn.set_read_timeout(CLOSE_TIMEOUT);
        let frame = CloseFrame {
            code,
            reason: why.into(),
        };
        self.socket.close(&mut conn.nonblocking(), Some(frame))
    }

    /// Closes the connection of a client that has broken the protocol (RFC 6455, section 7.1.7).
    fn fail(&mut self, conn: &mut Connection, error: &Error) -> io::Result<Next> {
        let code = match error {
            Error::Capacity(_) => CloseCode::Size,
            Error::Utf8(_) => CloseCode::Invalid,
            _ => CloseCode::Protocol,
        };
        // An error of this means that the client has left.
        let _ = self.close(conn, code, "");
        Ok(Next::Close)
    }

    fn leave(&mut self, conn: &mut Connection) {
        self.forget();
        // Messages that were sent before come before the close.
        conn.close_outbox();
    }

    fn forget(&mut self) {
        if let Some(id) = self.id.take() {
            // Dropped after the lock.
            let _outbox = self.room.with_members(|members| members.remove(&id));
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.forget();
    }
}

const PAGE: &str = r#"<!doctype html>
<title>chat</title>
<form><input autofocus size=60></form>
<pre></pre>
<script>
const [form, input, out] = ["form", "input", "pre"].map(name => document.querySelector(name));
const show = line => out.prepend(line + "\n");
let socket;
function connect() {
    socket = new WebSocket(location.href.replace("http", "ws"));
    socket.onmessage = event => show(event.data);
    socket.onopen = () => show("(connected)");
    socket.onclose = event => { show(`(closed: ${event.code})`); setTimeout(connect, 1000); };
}
connect();
form.onsubmit = event => { event.preventDefault(); socket.send(input.value); input.value = ""; };
</script>
"#;
