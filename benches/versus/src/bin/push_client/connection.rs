//! Connections to the server, and the plain responses that arrive on them.

use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

/// How long a client waits for something that the server owes it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// One address has a few more ports than these for its connections to one server.
const PORTS: usize = 20_000;
const SMALL_BUFFER: usize = 4096;
const SMALL_SEGMENT: u32 = 536;

/// A blocking connection.
pub(crate) fn connect(server: SocketAddr) -> io::Result<TcpStream> {
    let connection = TcpStream::connect_timeout(&server, PATIENCE)?;
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    Ok(connection)
}

/// The connection number `index` of very many, not blocking. To a loopback address, each 20,000 have another source
/// address. One that `reads_nothing` has small buffers, on both sides, so that the server soon notices that.
pub(crate) fn connect_many(
    server: SocketAddr,
    index: usize,
    reads_nothing: bool,
) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
    if reads_nothing {
        socket.set_recv_buffer_size(SMALL_BUFFER)?;
        // Linux sizes the other side's send buffer by the segment, and one of loopback has 64 KiB.
        socket.set_tcp_mss(SMALL_SEGMENT)?;
    }
    if server.is_ipv4() && server.ip().is_loopback() && index >= PORTS {
        let host = 1 + u8::try_from(index / PORTS).map_err(io::Error::other)?;
        let source = SocketAddr::from(([127, 0, 0, host], 0));
        socket.bind(&source.into())?;
    }
    socket.connect(&server.into())?;
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Reads one response.
pub(crate) fn read_response(connection: &mut TcpStream) -> io::Result<()> {
    let mut answer = Vec::new();
    let mut chunk = [0; 1024];
    while response_length(&answer)?.is_none_or(|length| answer.len() < length) {
        let read = connection.read(&mut chunk)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        answer.extend_from_slice(&chunk[..read]);
    }
    Ok(())
}

/// The length of a response, once its head is complete. Its status must be one of success.
pub(crate) fn response_length(answer: &[u8]) -> io::Result<Option<usize>> {
    let Some(head) = answer.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(&answer[..head]).to_ascii_lowercase();
    if !text.starts_with("http/1.1 2") {
        let status = text.lines().next().unwrap_or_default();
        return Err(io::Error::other(format!("the server answers {status}")));
    }
    let body = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .map_or(Ok(0), |length| length.trim().parse::<usize>())
        .map_err(io::Error::other)?;
    Ok(Some(head + 4 + body))
}
