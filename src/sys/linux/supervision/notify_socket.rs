//! Linux: the socket that receives the notifications of processes.

use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::net::sockopt::set_socket_passcred;
use socket2::{Domain, SockAddr, Socket, Type};

use super::Source;
use crate::sys::socket::unix_path;
use crate::sys::{Datagram, Descriptor, message};

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

/// Room for control messages, in words of eight bytes: for the sender alone, and for the sender and the
/// most descriptors of a message, which are 253.
const SENDER_CONTROL: usize = control_words(size_of::<libc::ucred>());
const FULL_CONTROL: usize = 256;

const fn control_words(data: usize) -> usize {
    // SAFETY: the call computes with numbers only.
    #[allow(unsafe_code)]
    let bytes = unsafe { libc::CMSG_SPACE(data as libc::c_uint) } as usize;
    bytes / size_of::<u64>()
}

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

    /// The source that is ready when there is a notification.
    pub(crate) fn source(&self) -> Source<'_> {
        &self.socket
    }

    /// A second descriptor of the socket.
    pub(crate) fn duplicate(&self) -> io::Result<Descriptor> {
        Ok(self.socket.try_clone()?.into())
    }

    /// The next notification, which stays in the queue, with its descriptors. `None` if there is none.
    /// The text of one that is too long is empty.
    #[allow(unsafe_code)]
    pub(crate) fn peek(&self) -> io::Result<Option<Datagram>> {
        let (mut text, mut control) = ([0; MAX_TEXT], [0; SENDER_CONTROL]);
        let received = receive(&self.socket, &mut text, &mut control, libc::MSG_PEEK)?;
        let Some((header, size)) = received else {
            return Ok(None);
        };
        // SAFETY: the kernel has filled the header and its buffers, which are alive.
        let (sender, _) = unsafe { read_control(&header) };
        let is_cut = header.msg_flags & libc::MSG_TRUNC != 0;
        let text = if is_cut { &[][..] } else { &text[..size] };
        Ok(Some(Datagram {
            pid: sender.pid.unsigned_abs(),
            uid: sender.uid,
            text: String::from_utf8_lossy(text).into_owned(),
            // They have found no room.
            has_descriptors: header.msg_flags & libc::MSG_CTRUNC != 0,
        }))
    }

    /// Takes the next notification from the queue, with its descriptors.
    ///
    /// # Errors
    ///
    /// Not all descriptors could be received. The notification is lost then.
    #[allow(unsafe_code)]
    pub(crate) fn take(&self) -> io::Result<TakenNotification> {
        let mut control = [0; FULL_CONTROL];
        let flags = libc::MSG_CMSG_CLOEXEC;
        let Some((header, _)) = receive(&self.socket, &mut [], &mut control, flags)? else {
            return Ok(TakenNotification::default());
        };
        // SAFETY: the kernel has filled the header and its buffers, which are alive.
        let (_, descriptors) = unsafe { read_control(&header) };
        match header.msg_flags & libc::MSG_CTRUNC {
            0 => Ok(TakenNotification { descriptors }),
            _ => Err(io::Error::other("not all descriptors could be received")),
        }
    }

    /// Takes the next notification from the queue. The kernel drops its descriptors, which may make
    /// this thread wait.
    pub(crate) fn discard(&self) -> io::Result<()> {
        receive(&self.socket, &mut [], &mut [], 0).map(drop)
    }

    /// A function that does the same, for another thread.
    pub(crate) fn discarder(&self) -> io::Result<impl FnOnce() -> io::Result<()> + Send + 'static> {
        let socket = self.socket.try_clone()?;
        Ok(move || receive(&socket, &mut [], &mut [], 0).map(drop))
    }
}

/// A notification that was taken from the queue.
#[derive(Debug, Default)]
pub(crate) struct TakenNotification {
    pub(crate) descriptors: Vec<Descriptor>,
}

impl TakenNotification {
    /// Whether the sender waits for an answer: on a socket, whose descriptor it has sent first.
    pub(crate) fn wants_answer(&self) -> bool {
        !self.descriptors.is_empty()
    }

    pub(crate) fn answer(&self, text: &str, descriptors: &[&Descriptor]) -> io::Result<()> {
        let reply_to = self.descriptors.first().ok_or(ErrorKind::NotConnected)?;
        message::send_answer(reply_to, text, descriptors)
    }
}

/// Receives a message, without waiting (recvmsg(2)). Returns its header, which points to the buffers,
/// and its length. `None` if there is none.
// With musl, lengths are of another type.
#[allow(unsafe_code, clippy::unnecessary_cast)]
fn receive(
    socket: &Socket,
    text: &mut [u8],
    control: &mut [u64],
    flags: libc::c_int,
) -> io::Result<Option<(libc::msghdr, usize)>> {
    let mut slice = libc::iovec {
        iov_base: text.as_mut_ptr().cast(),
        iov_len: text.len(),
    };
    // SAFETY: any bits are a header. Its pointers are to live buffers of the lengths that it names,
    // aligned as control messages are.
    unsafe {
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &raw mut slice;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(control) as _;
        let (fd, flags) = (socket.as_raw_fd(), flags | libc::MSG_DONTWAIT);
        loop {
            match libc::recvmsg(fd, &raw mut header, flags) {
                -1 => match io::Error::last_os_error() {
                    error if error.kind() == ErrorKind::Interrupted => {}
                    error if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                    error => return Err(error),
                },
                size => {
                    header.msg_iov = std::ptr::null_mut();
                    return Ok(Some((header, size.unsigned_abs())));
                }
            }
        }
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
