//! Unix: descriptors that this process passes on, or was started with.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use socket2::{SockRef, Socket};

use super::check;

/// What a process can pass on: a socket, a pipe, a file.
pub type Descriptor = OwnedFd;

/// Takes ownership of a descriptor that this process was started with. Children do not inherit it
/// any more. To be called once for each number.
///
/// # Errors
///
/// No such descriptor is open.
#[allow(unsafe_code)]
pub(crate) fn adopt(number: i32) -> io::Result<Descriptor> {
    // SAFETY: the call takes numbers only.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: the descriptor is open, and the process that started this one passed it on for this
    // process to own.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The number by which a program that inherits the descriptor finds it.
pub(crate) fn number(descriptor: &impl AsFd) -> i32 {
    descriptor.as_fd().as_raw_fd()
}

/// The device and inode of the open file: equal for two descriptors of one socket only.
pub(crate) fn inode(descriptor: &Descriptor) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(descriptor)?;
    Ok((stat.st_dev as u64, stat.st_ino as u64))
}

/// Whether this is a listening stream socket. Asks no file system, which could take its time.
pub(crate) fn is_listener(descriptor: &Descriptor) -> bool {
    let socket = SockRef::from(descriptor);
    super::socket::is_listening_stream(&socket).unwrap_or(false)
}

/// Whether this is a Unix socket that keeps messages apart, as
/// [`create_pair`](crate::sys::message::create_pair) makes them on Linux. Asks no file system.
pub(crate) fn is_packet_socket(descriptor: &Descriptor) -> bool {
    let socket = SockRef::from(descriptor);
    super::socket::is_unix_packet(&socket).unwrap_or(false)
}

/// A second descriptor of a socket.
pub(crate) fn duplicate(socket: &Socket) -> io::Result<Descriptor> {
    Ok(socket.try_clone()?.into())
}

/// Does not fail on Unix.
pub(crate) fn from_socket(socket: Socket) -> io::Result<Descriptor> {
    Ok(socket.into())
}

/// Does not check that the descriptor is one of a socket.
pub(crate) fn into_socket(descriptor: Descriptor) -> io::Result<Socket> {
    Ok(Socket::from(descriptor))
}

/// Does not check that the descriptor is one of a file or a pipe.
pub(crate) fn into_file(descriptor: Descriptor) -> io::Result<File> {
    Ok(File::from(descriptor))
}

/// Closes a descriptor that another process has sent, without waiting for the time-out that the
/// process may have set (SO_LINGER in socket(7)).
pub(crate) fn discard(descriptor: Descriptor) {
    // It need not be a socket.
    let _ = Socket::from(descriptor).set_linger(None);
}

/// A pipe: its reading and its writing end.
pub(crate) fn create_pipe() -> io::Result<(Descriptor, Descriptor)> {
    crate::sys::native::calls::create_pipe()
}

/// A second descriptor of standard error.
pub(crate) fn duplicate_stderr() -> io::Result<Descriptor> {
    io::stderr().as_fd().try_clone_to_owned()
}

/// Makes `to` the standard error of this process.
#[allow(unsafe_code)]
pub(crate) fn replace_stderr(to: &Descriptor) -> io::Result<()> {
    // SAFETY: the call takes numbers of descriptors, of which the first is open.
    check(unsafe { libc::dup2(to.as_raw_fd(), 2) }).map(drop)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::{UnixDatagram, UnixStream};
    use std::thread;
    use std::time::Duration;

    use socket2::{Domain, Type};

    use super::*;

    #[test]
    fn only_a_packet_socket_is_a_packet_socket() {
        let listener: Descriptor = TcpListener::bind("127.0.0.1:0").unwrap().into();
        let file: Descriptor = File::open("/dev/null").unwrap().into();
        let (reader, _writer) = create_pipe().unwrap();
        let datagrams: Descriptor = UnixDatagram::unbound().unwrap().into();
        let stream: Descriptor = UnixStream::pair().unwrap().0.into();
        for other in [listener, file, reader, datagrams, stream] {
            assert!(!is_packet_socket(&other), "{other:?}");
        }
        let Ok((end, _other)) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None) else {
            return;
        };
        assert!(is_packet_socket(&end.into()));
    }

    #[test]
    fn a_discarded_socket_does_not_linger() {
        const AGES: Duration = Duration::from_secs(600);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _receiver = listener.accept().unwrap();
        sender.set_nonblocking(true).unwrap();
        // Until the buffers of both sides are full.
        while sender.write(&[0; 65536]).is_ok() {}
        let sender = Socket::from(sender);
        sender.set_linger(Some(AGES)).unwrap();
        let (done, closed) = crossbeam_channel::bounded(1);
        let discards = move || {
            discard(sender.into());
            done.send(())
        };
        let thread = thread::Builder::new().name("discard".to_owned());
        thread.spawn(discards).unwrap();
        closed.recv_timeout(Duration::from_secs(120)).unwrap();
    }
}
