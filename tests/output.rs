//! Output: answers leave together, and bytes, files and readers of any size cost no worker while
//! their client reads.

mod support;

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use handover::{Connection, Next};

use support::{
    addr, answer, ask, assert_closed, bytes_at, connect, connect_narrow, door, read_pattern_from,
    server, start, stop, until,
};

/// Longer than what a kernel takes from the server before the client reads.
const BIG: usize = 20 << 20;

/// Serves one line at a time: `writeln!` with several pieces.
fn numbered(conn: &mut Connection) -> io::Result<Next> {
    let Some(line) = conn.take_line(1024)? else {
        return Ok(match conn.at_eof() {
            true => Next::Close,
            false => Next::More,
        });
    };
    let length = line.len();
    writeln!(conn, "{length} {line}")?;
    Ok(Next::Park)
}

/// With TCP_NODELAY, each system call would be a segment, and the client would see the first alone.
#[test]
fn the_pieces_of_an_answer_leave_together() {
    let handle = start(server().workers(1), numbered);
    let mut client = connect(addr(&handle));
    for _ in 0..300 {
        let mut room = [0; 64];
        client.write_all(b"hello\n").unwrap();
        let count = client.read(&mut room).unwrap();
        assert_eq!(&room[..count], b"5 hello\n");
    }
    drop(client);
    stop(&handle);
}

/// Otherwise the client might send its next request between the two, and lose it.
#[test]
#[cfg(any(target_os = "linux", target_os = "android"))] // Other systems cannot hold the answer back.
fn the_last_answer_and_the_end_leave_together() {
    let service = |conn: &mut Connection| {
        let Some(line) = conn.take_line(1024)? else {
            return Ok(Next::More);
        };
        writeln!(conn, "{line}")?;
        Ok(Next::Close)
    };
    let handle = start(server().workers(1), service);
    for _ in 0..1000 {
        let mut client = connect(addr(&handle));
        client.write_all(b"bye\n").unwrap();
        client.read_exact(&mut [0; 4]).unwrap();
        client.set_nonblocking(true).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
    stop(&handle);
}

#[test]
fn the_answers_to_pipelined_messages_leave_together() {
    let handle = start(server().workers(1), numbered);
    let mut client = connect(addr(&handle));
    // A turn ends at a tick of the clock, so one try may be cut in two.
    let together = (0..100).filter(|_| {
        let expected = b"5 hello\n".repeat(16);
        let mut room = [0; 1024];
        client.write_all(&b"hello\n".repeat(16)).unwrap();
        let count = client.read(&mut room).unwrap();
        client
            .read_exact(&mut room[count..expected.len().max(count)])
            .unwrap();
        assert_eq!(&room[..expected.len()], expected);
        count == expected.len()
    });
    assert!(together.count() > 50);
    drop(client);
    stop(&handle);
}

/// What was gathered leaves before a call waits for input, and when a call waits for anything else.
#[test]
fn no_answer_is_kept_back_while_a_call_waits() {
    let (keeper, at_door) = door();
    let handle = start(server().workers(1), move |conn: &mut Connection| {
        conn.consume(conn.buffer().len());
        conn.write_all(b"name? ")?;
        conn.write_all(b"now\n")?;
        let mut name = String::new();
        conn.read_line_limited(100, &mut name)?;
        write!(conn, "hello {name}")?;
        at_door.pass();
        writeln!(conn, "more")?;
        at_door.pass();
        Ok(Next::Close)
    });
    let mut client = connect(addr(&handle));
    client.write_all(b"hi").unwrap();
    assert_eq!(answer(&mut client), "name? now");
    client.write_all(b"you\n").unwrap();
    keeper.wait();
    assert_eq!(answer(&mut client), "hello you");
    keeper.let_one_in();
    keeper.wait();
    assert_eq!(answer(&mut client), "more");
    drop(keeper);
    assert_closed(&mut client);
    stop(&handle);
}

#[test]
fn what_was_written_before_an_error_or_a_panic_is_sent() {
    let handle = start(server().workers(1), |conn: &mut Connection| {
        let line = conn.take_line(100)?;
        write!(conn, "last words")?;
        match line.as_deref() {
            Some("panic") => panic!("as it was asked to"),
            _ => Err(io::Error::other("as it was asked to")),
        }
    });
    for line in ["panic\n", "error\n"] {
        let mut client = connect(addr(&handle));
        client.write_all(line.as_bytes()).unwrap();
        let mut all = String::new();
        client.read_to_string(&mut all).unwrap();
        assert_eq!(all, "last words");
    }
    handle.stop(support::LIMIT);
    handle.join();
}

/// A file of this length, whose bytes are those of the pattern.
fn pattern_file(length: usize) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes_at(0, length)).unwrap();
    file
}

/// Bytes, owned bytes and files, small and large, in one order.
#[test]
fn pieces_leave_in_order_and_hold_no_worker() {
    let file = Arc::new(pattern_file(6 * BIG));
    let handle = start(server().workers(1), move |conn: &mut Connection| {
        if conn.buffer() != b"all" {
            return support::lines(conn);
        }
        conn.consume(3);
        let mut place = 0;
        let mut next = |length: usize| {
            place += length;
            (place - length, length)
        };
        for owned in [BIG, 100, 3 << 20] {
            let (from, length) = next(1000);
            conn.write_all(&bytes_at(from, length))?;
            let (from, length) = next(owned);
            conn.write_owned(bytes_at(from, length))?;
            let (from, length) = next(7);
            conn.write_all(&bytes_at(from, length))?;
            let (from, length) = next(owned / 2);
            conn.send_file(Arc::clone(&file), from as u64..(from + length) as u64)?;
            conn.send_file(Arc::clone(&file), 5..5)?;
        }
        let (from, length) = next(1);
        conn.write_all(&bytes_at(from, length))?;
        Ok(Next::Park)
    });
    let length = 3 * 1007 + 1 + (BIG + 100 + (3 << 20)) / 2 * 3;
    let mut slow: Vec<TcpStream> = (0..3).map(|_| connect_narrow(addr(&handle))).collect();
    for client in &mut slow {
        client.write_all(b"all").unwrap();
    }
    until(&handle, "they do not read", |stats| {
        stats.served >= 3 && stats.parked == 3
    });
    ask(&mut connect(addr(&handle)), "others are served");
    for client in &mut slow {
        read_pattern_from(client, 0, length);
    }
    ask(&mut slow[0], "and they are served on");
    drop(slow);
    stop(&handle);
}

/// The idiom for output without an end: one piece for each call.
#[test]
fn a_piece_in_each_call_goes_as_fast_as_its_client() {
    const PIECE: usize = 1 << 20;
    const PIECES: usize = 20;
    let calls = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = Arc::clone(&calls);
    let handle = start(server().workers(1), move |conn: &mut Connection| {
        use std::sync::atomic::Ordering::SeqCst;
        if conn.buffer().starts_with(b"line") {
            return support::lines(conn);
        }
        conn.consume(conn.buffer().len());
        let call = counter.fetch_add(1, SeqCst);
        conn.write_owned(bytes_at(call * PIECE, PIECE))?;
        Ok(if call + 1 < PIECES {
            Next::Again
        } else {
            Next::Close
        })
    });
    let mut slow = connect_narrow(addr(&handle));
    slow.write_all(b"all").unwrap();
    until(&handle, "it does not read", |stats| {
        stats.served >= 1 && stats.parked == 1
    });
    ask(&mut connect(addr(&handle)), "line");
    assert!(calls.load(std::sync::atomic::Ordering::SeqCst) < PIECES);
    read_pattern_from(&mut slow, 0, PIECE * PIECES);
    assert_closed(&mut slow);
    stop(&handle);
}

/// A parked client that does not read is closed by the write time-out, and one below the minimum
/// rate as well.
#[test]
fn who_does_not_read_owned_bytes_is_closed() {
    let short = Duration::from_millis(300);
    let builder = server().workers(1).write_timeout(short);
    let handle = start(builder, |conn: &mut Connection| {
        conn.consume(conn.buffer().len());
        conn.write_owned(vec![b'x'; BIG])?;
        Ok(Next::Park)
    });
    let mut slow = connect_narrow(addr(&handle));
    slow.write_all(b"all").unwrap();
    until(&handle, "it is closed", |stats| {
        stats.expired.write == 1 && stats.live == 0
    });
    stop(&handle);
}

#[test]
fn a_file_that_is_shorter_than_announced_cuts_its_connection_off() {
    let file = Arc::new(pattern_file(BIG));
    let handle = start(server().workers(1), move |conn: &mut Connection| {
        conn.consume(conn.buffer().len());
        conn.send_file(Arc::clone(&file), 0..BIG as u64 + 1)?;
        Ok(Next::Park)
    });
    let mut client = connect(addr(&handle));
    client.write_all(b"all").unwrap();
    read_pattern_from(&mut client, 0, BIG);
    assert_closed(&mut client);
    stop(&handle);
}

#[test]
fn what_was_written_before_an_outbox_ends_comes_before_its_messages() {
    let handle = start(server().workers(1), |conn: &mut Connection| {
        let outbox = conn.outbox(1024);
        outbox.send("message ").map_err(io::Error::other)?;
        conn.write_all(b"before ")?;
        conn.close_outbox();
        conn.write_all(b"after")?;
        Ok(Next::Close)
    });
    let mut client = connect(addr(&handle));
    client.write_all(b"go").unwrap();
    let mut all = String::new();
    client.read_to_string(&mut all).unwrap();
    assert_eq!(all, "before message after");
    stop(&handle);
}
