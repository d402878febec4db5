//! A WebSocket echo server, with `tungstenite` on an upgraded connection.
//!
//! ```sh
//! cargo run --release --example websocket --features http -- --listen 127.0.0.1:8081
//! ```
//!
//! Then type in a browser's console:
//!
//! ```text
//! ws = new WebSocket("ws://127.0.0.1:8081/");
//! ws.onmessage = e => console.log(e.data);
//! ws.onopen = () => ws.send("hello");
//! ```

mod common;

use std::io;

use handover::http::{self, Body, HeaderValue, Reply, Request, Response, StatusCode, header};
use handover::{Connection, Next};
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::{Role, WebSocket};
use tungstenite::{Error, Message};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = common::Options::parse("127.0.0.1:8081")?;
    let server = options.builder().build(http::service(answer))?;
    common::announce_http(&server.local_addrs());
    let report = server.run()?;
    println!("{report}");
    Ok(())
}

/// Accepts the upgrade to a WebSocket (RFC 6455, section 4.2.2).
fn answer(request: &mut Request<Body<'_>>) -> Response<Reply> {
    let fields = request.headers();
    let is = |name, value: &str| {
        let field = fields.get(name).map(HeaderValue::as_bytes);
        field.is_some_and(|field| field.eq_ignore_ascii_case(value.as_bytes()))
    };
    let key = fields.get(header::SEC_WEBSOCKET_KEY);
    let mut response = Response::new(Reply::upgrade(echo));
    match key {
        Some(key)
            if is(header::UPGRADE, "websocket") && is(header::SEC_WEBSOCKET_VERSION, "13") =>
        {
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let fields = response.headers_mut();
            fields.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            if let Ok(accept) = derive_accept_key(key.as_bytes()).parse() {
                fields.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
            }
        }
        _ => {
            *response.body_mut() = "this is a WebSocket\n".into();
            *response.status_mut() = StatusCode::UPGRADE_REQUIRED;
            let fields = response.headers_mut();
            fields.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            let version = HeaderValue::from_static("13");
            fields.insert(header::SEC_WEBSOCKET_VERSION, version);
        }
    }
    response
}

/// Serves one client with blocking reads: this holds a worker until the client disconnects.
fn echo(conn: &mut Connection) -> io::Result<Next> {
    let mut socket = WebSocket::from_raw_socket(conn, Role::Server, None);
    loop {
        match socket.read() {
            Ok(message @ (Message::Text(_) | Message::Binary(_))) => {
                socket.send(message).map_err(io::Error::other)?;
            }
            Ok(_) => {}
            Err(Error::ConnectionClosed) => return Ok(Next::Close),
            Err(Error::Io(error)) => return Err(error),
            Err(error) => return Err(io::Error::other(error)),
        }
    }
}
