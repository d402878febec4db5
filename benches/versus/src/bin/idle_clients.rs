//! Clients that make one request and then stay silent: each one's connection is kept open, and nothing more is sent.
//!
//! Says `ready N` once all of them have been answered, waits for the end of its standard input, then says
//! `open N`: how many connections the server has neither closed nor written to since.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use versus::Arguments;

const PATIENCE: Duration = Duration::from_secs(5);

fn main() -> io::Result<()> {
    let arguments = Arguments::read(&["--connect", "--connections"]);
    let server = arguments.required("--connect");
    let wanted: usize = arguments.required("--connections");

    let mut clients = Vec::with_capacity(wanted);
    while clients.len() < wanted {
        match answered_client(server) {
            Ok(client) => clients.push(client),
            Err(error) => {
                eprintln!("connection {} of {wanted}: {error}", clients.len() + 1);
                break;
            }
        }
    }
    println!("ready {}", clients.len());
    io::stdin().read_to_end(&mut Vec::new())?;
    println!(
        "open {}",
        clients
            .iter()
            .filter(|client| versus::is_open_and_silent(client))
            .count()
    );
    Ok(())
}

/// Opens a connection and has one request answered on it.
fn answered_client(server: SocketAddr) -> io::Result<TcpStream> {
    let mut client = TcpStream::connect_timeout(&server, PATIENCE)?;
    client.set_read_timeout(Some(PATIENCE))?;
    client.write_all(b"GET / HTTP/1.1\r\nHost: versus\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut chunk = [0; 1024];
    while !answer.ends_with(versus::HELLO.as_bytes()) {
        let read = match client.read(&mut chunk) {
            // What the system says here is "resource temporarily unavailable".
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::Error::other(format!("no answer within {PATIENCE:?}")));
            }
            outcome => outcome?,
        };
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        answer.extend_from_slice(&chunk[..read]);
    }
    Ok(client)
}
