//! Waits until nobody listens at an address. On Linux, the wait makes no connection that a server would have to accept.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// Bounds a test that would hang otherwise.
const LIMIT: Duration = Duration::from_secs(120);

pub(crate) fn until_refused(addr: SocketAddr) {
    let until = Instant::now() + LIMIT;
    while Instant::now() < until {
        if is_refused(addr) {
            return;
        }
        thread::park_timeout(Duration::from_millis(1));
    }
    panic!("{addr} still accepts");
}

/// On Linux an address can be bound beside its connections as soon as nobody listens (SO_REUSEADDR, socket(7)).
/// Elsewhere an attempt to connect tells it, which is one more connection as long as somebody does.
fn is_refused(addr: SocketAddr) -> bool {
    if cfg!(target_os = "linux") && TcpListener::bind(addr).is_err() {
        return false;
    }
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    TcpStream::connect(addr).is_err_and(refused)
}
