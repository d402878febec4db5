//! Connections to the server, and the plain responses that arrive on them.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use rustix::net::{self, AddressFamily, SocketType, sockopt};

/// How long a client waits for something that the server owes it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// One address has a few more ports than these for its connections to one server.
const PORTS: usize = 20_000;

/// A blocking connection.
pub(crate) fn connect(server: SocketAddr) -> io::Result<TcpStream> {
    let connection = TcpStream::connect_timeout(&server, PATIENCE)?;
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    Ok(connection)
}

/// The connection number `index` of very many, not blocking. To a loopback address, each 20,000 have another source
/// address. A receive buffer of so many bytes makes the server soon see that a client does not read.
pub(crate) fn connect_many(
    server: SocketAddr,
    index: usize,
    receive_buffer: Option<usize>,
) -> io::Result<TcpStream> {
    let family = if server.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let socket = net::socket(family, SocketType::STREAM, None)?;
    if let Some(bytes) = receive_buffer {
        sockopt::set_socket_recv_buffer_size(&socket, bytes)?;
    }
    if server.is_ipv4() && server.ip().is_loopback() && index >= PORTS {
        let host = 1 + u8::try_from(index / PORTS).map_err(io::Error::other)?;
        let source = IpAddr::V4(Ipv4Addr::new(127, 0, 0, host));
        net::bind(&socket, &SocketAddr::new(source, 0))?;
    }
    net::connect(&socket, &server)?;
    let connection = TcpStream::from(socket);
    connection.set_nodelay(true)?;
    connection.set_nonblocking(true)?;
    Ok(connection)
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
