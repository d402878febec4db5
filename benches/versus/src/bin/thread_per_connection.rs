//! The simplest blocking server: the standard library, and a thread for every connection.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex};
use std::thread;

use versus::{Arguments, Page};

const HEAD_LIMIT: usize = 16 * 1024;
/// The messages that a subscriber may be behind. One that is further behind is dropped.
const BACKLOG: usize = 128;

/// The subscribers, each with a thread that waits for the next message.
type Subscribers = Mutex<Vec<SyncSender<Arc<str>>>>;

fn main() {
    let subscribers = Arc::new(Subscribers::default());
    let listener = TcpListener::bind(Arguments::read(&["--listen"]).listen()).expect("bind");
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        let subscribers = Arc::clone(&subscribers);
        // Where no thread can be had, the connection is closed as the closure is dropped.
        let _ = thread::Builder::new().spawn(move || serve(stream, &subscribers));
    }
}

fn serve(mut stream: TcpStream, subscribers: &Subscribers) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = Vec::new();
    let mut output = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let read = stream.read(&mut chunk)?;
        if read == 0 || input.len() > HEAD_LIMIT {
            return Ok(());
        }
        input.extend_from_slice(&chunk[..read]);
        // What a client has pipelined is answered in one write.
        let mut answered = 0;
        let mut close = false;
        while let Some(length) = head_length(&input[answered..]).filter(|_| !close) {
            let head = String::from_utf8_lossy(&input[answered..answered + length]);
            close = asks_to_close(&head);
            match head.split(' ').nth(1).unwrap_or_default() {
                "/subscribe" => return subscribe(stream, subscribers),
                "/publish" => {
                    let end = answered + length + content_length(&head);
                    // The rest of the body comes with a later read.
                    let Some(body) = input.get(answered + length..end) else {
                        break;
                    };
                    publish(&String::from_utf8_lossy(body), subscribers);
                    output.extend_from_slice(b"HTTP/1.1 204 No Content\r\n\r\n");
                    answered = end;
                    continue;
                }
                _ => answer(&head, close, &mut output)?,
            }
            answered += length;
        }
        input.drain(..answered);
        stream.write_all(&output)?;
        output.clear();
        if close {
            return Ok(());
        }
    }
}

fn head_length(input: &[u8]) -> Option<usize> {
    input
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .map(|at| at + 4)
}

fn asks_to_close(head: &str) -> bool {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .any(|(name, value)| {
            name.eq_ignore_ascii_case("connection") && value.trim().eq_ignore_ascii_case("close")
        })
}

fn content_length(head: &str) -> usize {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, length)| length.trim().parse().ok())
        .unwrap_or(0)
}

fn subscribe(mut stream: TcpStream, subscribers: &Subscribers) -> io::Result<()> {
    let (sender, messages) = mpsc::sync_channel(BACKLOG);
    subscribers.lock().expect("not poisoned").push(sender);
    stream.write_all(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n",
    )?;
    for event in messages {
        stream.write_all(event.as_bytes())?;
    }
    Ok(())
}

fn publish(message: &str, subscribers: &Subscribers) {
    let event: Arc<str> = format!("data: {message}\n\n").into();
    subscribers
        .lock()
        .expect("not poisoned")
        .retain(|subscriber| subscriber.try_send(Arc::clone(&event)).is_ok());
}

fn answer(head: &str, close: bool, output: &mut Vec<u8>) -> io::Result<()> {
    let target = head.split(' ').nth(1).unwrap_or_default();
    let (status, body) = match Page::from_target(target).blocking_body() {
        Some(body) => ("200 OK", body),
        None => ("404 Not Found", "".into()),
    };
    let connection = if close { "Connection: close\r\n" } else { "" };
    write!(
        output,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n{connection}\r\n{body}",
        body.len()
    )
}
