//! The simplest blocking server: the standard library, and a thread for every connection.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use versus::{Arguments, Page};

const HEAD_LIMIT: usize = 16 * 1024;

fn main() {
    let listener = TcpListener::bind(Arguments::read(&["--listen"]).listen()).expect("bind");
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        // Where no thread can be had, the connection is closed as the closure is dropped.
        let _ = thread::Builder::new().spawn(move || serve(stream));
    }
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
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
            answer(&head, close, &mut output)?;
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
