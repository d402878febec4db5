//! Clients that send the head of a request one byte per second, and never come to its end.
//!
//! Says `ready N` once all of them have sent their first byte, sends until the end of its standard input, then
//! says `open N`: how many connections the server has neither closed nor written to.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use versus::Arguments;

const HEAD: &[u8] = b"GET / HTTP/1.1\r\nHost: versus\r\nX-Padding: ";
const PATIENCE: Duration = Duration::from_secs(5);

fn main() -> io::Result<()> {
    let arguments = Arguments::read(&["--connect", "--connections"]);
    let server: SocketAddr = arguments.required("--connect");
    let wanted: u32 = arguments.required("--connections");

    let mut clients = Vec::new();
    for _ in 0..wanted {
        let mut client = TcpStream::connect_timeout(&server, PATIENCE)?;
        client.write_all(&HEAD[..1])?;
        clients.push(client);
    }
    println!("ready {}", clients.len());

    let stop = end_of_input();
    for byte in HEAD[1..].iter().copied().chain(std::iter::repeat(b'x')) {
        for client in &mut clients {
            // Spread over the second, so that they do not come as one burst.
            if stop.recv_timeout(Duration::from_secs(1) / wanted) != Err(RecvTimeoutError::Timeout)
            {
                println!(
                    "open {}",
                    clients
                        .iter()
                        .filter(|client| versus::is_open_and_silent(client))
                        .count()
                );
                return Ok(());
            }
            // A client that the server has closed is counted at the end.
            let _ = client.write_all(&[byte]);
        }
    }
    Ok(())
}

/// A channel that is closed once the standard input is.
fn end_of_input() -> mpsc::Receiver<()> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        drop(sender);
    });
    receiver
}
