//! Unix: notifications to the service manager (sd_notify(3)).

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use rustix::io::retry_on_intr;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, sendmsg};
use socket2::{Domain, SockAddr, Socket, Type};

use super::socket::SEND_FLAGS;
use crate::sys::Descriptor;

/// The most descriptors that go with one message (unix(7), SCM_MAX_FD).
const MAX_DESCRIPTORS: usize = 253;

/// Sends a notification, and up to 253 descriptors with it. `manager` is the value of
/// NOTIFY_SOCKET: a path, or an abstract name behind an @.
pub(crate) fn send(manager: &OsStr, text: &str, descriptors: &[&Descriptor]) -> io::Result<()> {
    let addr = match manager.as_bytes().strip_prefix(b"@") {
        Some(name) => SockAddr::unix(OsStr::from_bytes(&[b"\0", name].concat()))?,
        None => SockAddr::unix(manager)?,
    };
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    socket.connect(&addr)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<_> = descriptors.iter().map(|one| one.as_fd()).collect();
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("too many descriptors"));
    }
    let text = [IoSlice::new(text.as_bytes())];
    retry_on_intr(|| sendmsg(&socket, &text, &mut control, SEND_FLAGS))?;
    Ok(())
}
