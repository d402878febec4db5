//! Linux: the socket that receives the notifications of processes.

use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::net::sockopt::set_socket_passcred;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::sys::socket::unix_path;
use crate::sys::{Datagram, Descriptor};

/// A socket to which processes send notifications (sd_notify(3)). Its name is abstract (unix(7)),
/// so that it leaves no file behind. Every process may send to it, and the kernel reports the
/// sender.
#[derive(Debug)]
pub(crate) struct NotifySocket {
    socket: Socket,
    name: OsString,
}

/// The longest notification, in bytes: the names of listeners need most.
const MAX_TEXT: usize = 32 * 1024;

/// Room in bytes for the most descriptors of a message, which are 253, and for the sender.
const CONTROL: usize = 2048;

impl NotifySocket {
    pub(crate) fn bind() -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
        let number = RandomState::new().build_hasher().finish();
        let name = format!("\0handover/{}/{number:016x}", std::process::id());
        socket.bind(&SockAddr::unix(name)?)?;
        Self::from_bound(socket)
    }

    pub(crate) fn from_bound(socket: Socket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        set_socket_passcred(&socket, true)?;
        let name = unix_path(&socket.local_addr()?).ok_or(ErrorKind::InvalidInput)?;
        Ok(Self {
            socket,
            name: name.into(),
        })
    }

    /// The value of NOTIFY_SOCKET.
    pub(crate) fn name(&self) -> &OsStr {
        &self.name
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Receives a notification. `None` if there is none. The text of one that is too long is empty.
    // With musl, lengths are of another type.
    #[allow(unsafe_code, clippy::unnecessary_cast)]
    pub(crate) fn receive(&self) -> io::Result<Option<Datagram>> {
        let mut buffer = [0u8; MAX_TEXT];
        let mut control = [0u64; CONTROL / size_of::<u64>()];
        let mut slice = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        // SAFETY: any bits are a header. Its pointers are to live buffers of the lengths that it
        // names, aligned as control messages are.
        let (header, size) = unsafe {
            let mut header: libc::msghdr = std::mem::zeroed();
            header.msg_iov = &raw mut slice;
            header.msg_iovlen = 1;
            header.msg_control = control.as_mut_ptr().cast();
            header.msg_controllen = CONTROL as _;
            let fd = self.socket.as_raw_fd();
            let size = loop {
                match libc::recvmsg(fd, &raw mut header, libc::MSG_CMSG_CLOEXEC) {
                    -1 => match io::Error::last_os_error() {
                        error if error.kind() == ErrorKind::Interrupted => {}
                        error if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                        error => return Err(error),
                    },
                    size => break size.unsigned_abs(),
                }
            };
            (header, size)
        };
        // SAFETY: the kernel has filled the header and its buffers, which are alive.
        let (sender, descriptors) = unsafe { read_control(&header) };
        let is_cut = header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0;
        let text = if is_cut { &[][..] } else { &buffer[..size] };
        Ok(Some(Datagram {
            pid: sender.pid.unsigned_abs(),
            uid: sender.uid,
            text: String::from_utf8_lossy(text).into_owned(),
            descriptors,
        }))
    }
}

/// The sender of a message, and the descriptors that came with it.
///
/// rustix reads control messages too, but the id of a process outside of this process's pid
/// namespace is 0, which its type does not allow.
///
/// # Safety
///
/// The header must be one that `recvmsg` has filled, and its buffer for control messages alive. To
/// be called once, because the descriptors get their owner here.
#[allow(unsafe_code, clippy::unnecessary_cast)]
unsafe fn read_control(header: &libc::msghdr) -> (libc::ucred, Vec<Descriptor>) {
    let mut sender = libc::ucred {
        pid: 0,
        uid: u32::MAX,
        gid: u32::MAX,
    };
    let mut descriptors = Vec::new();
    // SAFETY: the kernel has written whole control messages, each with data of the length that it
    // names, and descriptors that have no owner yet.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while let Some(control) = message.as_ref() {
            let data = libc::CMSG_DATA(message);
            let length = (control.cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
            match (control.cmsg_level, control.cmsg_type) {
                (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                    for at in 0..length / size_of::<libc::c_int>() {
                        let number = data.cast::<libc::c_int>().add(at).read_unaligned();
                        descriptors.push(OwnedFd::from_raw_fd(number));
                    }
                }
                (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => {
                    sender = data.cast::<libc::ucred>().read_unaligned();
                }
                _ => {}
            }
            message = libc::CMSG_NXTHDR(header, message);
        }
    }
    (sender, descriptors)
}
