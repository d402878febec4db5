//! What the three ways of a connection through the server cost: in and out again, through the parking lot, and through
//! the queue. The client shares the machine with the server, so the figures are for comparing one commit with another.

#![allow(missing_docs, reason = "criterion_group! makes a public function")]

use std::hint::black_box;
use std::io::{self, BufRead, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use handover::{Addr, Bind, Connection, Handle, Next, Server};

const MESSAGE: [u8; 64] = *b"sixty-four bytes, a small request and its answer, both the same\n";

criterion_group!(
    benches,
    accept_serve_close,
    keep_alive_round_trip,
    queue_hand_off
);
criterion_main!(benches);

/// A client connects, is answered, and sees the end of the stream.
fn accept_serve_close(c: &mut Criterion) {
    let server = Running::start(2, |conn| {
        echo(conn)?;
        Ok(Next::Close)
    });
    c.bench_function("accept_serve_close", |bencher| {
        bencher.iter(|| {
            let mut stream = TcpStream::connect(server.address).expect("the server accepts");
            stream.write_all(&MESSAGE).expect("the server reads");
            let mut answer = [0; MESSAGE.len() + 1];
            let mut length = 0;
            loop {
                match stream
                    .read(&mut answer[length..])
                    .expect("the server answers")
                {
                    0 => break,
                    count => length += count,
                }
            }
            assert_eq!(answer[..length], MESSAGE);
            // The reset that this makes of the close spares the machine 100,000s of sockets in TIME_WAIT.
            socket2::SockRef::from(&stream)
                .set_linger(Some(Duration::ZERO))
                .expect("the socket is open");
        });
    });
}

/// One client sends a message when it has the answer to the last: between the two its connection is parked.
fn keep_alive_round_trip(c: &mut Criterion) {
    let server = Running::start(2, |conn| {
        echo(conn)?;
        Ok(Next::Park)
    });
    let mut stream = server.connect();
    c.bench_function("keep_alive_round_trip", |bencher| {
        bencher.iter(|| {
            let mut answer = [0; MESSAGE.len()];
            stream.write_all(&MESSAGE).expect("the server reads");
            stream.read_exact(&mut answer).expect("the server answers");
            black_box(answer)
        });
    });
}

/// A message of many steps, of which each worker serves one and puts the connection at the back of the queue. So the
/// round trip is paid once, and what remains is the hand-off: alone, and with a second worker that wants the same.
fn queue_hand_off(c: &mut Criterion) {
    const STEPS: usize = 1000;
    const LAST: u8 = b'!';

    let mut group = c.benchmark_group("queue_hand_off");
    group.throughput(Throughput::Elements(STEPS as u64));
    for workers in [1, 2] {
        let server = Running::start(workers, |conn| {
            let step = conn.buffer()[0];
            conn.consume(1);
            if step == LAST {
                conn.write_all(&[LAST])?;
            }
            Ok(if conn.buffer().is_empty() {
                Next::Park
            } else {
                Next::Again
            })
        });
        let mut stream = server.connect();
        let mut message = [b'.'; STEPS];
        message[STEPS - 1] = LAST;
        group.bench_function(format!("{workers}_workers"), |bencher| {
            bencher.iter(|| {
                let mut answer = [0];
                stream.write_all(&message).expect("the server reads");
                stream.read_exact(&mut answer).expect("the server answers");
                black_box(answer)
            });
        });
    }
}

fn echo(conn: &mut Connection) -> io::Result<()> {
    let arrived = conn.buffer().to_vec();
    conn.write_all(&arrived)?;
    conn.consume(arrived.len());
    Ok(())
}

/// A server on a free port of the loopback, stopped when it is dropped.
struct Running {
    handle: Handle,
    address: SocketAddr,
}

impl Running {
    fn start(
        workers: usize,
        service: impl Fn(&mut Connection) -> io::Result<Next> + Send + Sync + 'static,
    ) -> Self {
        let bind = Bind::new("127.0.0.1:0").nodelay(true);
        let server = Server::builder()
            .listen(bind)
            .workers(workers)
            .build(service)
            .expect("a port is free");
        let handle = server.start().expect("threads can be started");
        match handle.local_addrs()[..] {
            [Addr::Ip(address)] => Self { handle, address },
            ref other => panic!("one address was bound, not {other:?}"),
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("the server accepts");
        stream.set_nodelay(true).expect("the socket is open");
        stream
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.handle.stop(Duration::from_secs(5));
        self.handle.join();
    }
}
