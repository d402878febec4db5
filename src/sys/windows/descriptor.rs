//! Windows: sockets and handles that this process passes on, or was started with.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::windows::io::{
    AsHandle, AsRawHandle, AsRawSocket, AsSocket, BorrowedHandle, IntoRawHandle, OwnedHandle,
    OwnedSocket,
};
use std::process::Stdio;
use std::ptr;

use socket2::{SockRef, Socket};
use windows_sys::Win32::Foundation::INVALID_HANDLE_VALUE;
use windows_sys::Win32::Networking::WinSock::{SO_ACCEPTCONN, SOL_SOCKET, getsockopt};
use windows_sys::Win32::System::Console::{GetStdHandle, STD_ERROR_HANDLE, SetStdHandle};
use windows_sys::Win32::System::Pipes::CreatePipe;

use super::handle::{self, Kind, check, file_id};
use super::passing_table;

/// What a process can pass on: a socket, or another handle, such as one of a pipe or of a file. It
/// is made from the types of the standard library, and [`TryFrom`] makes such a type of it.
#[derive(Debug)]
pub struct Descriptor(pub(super) Kind);

impl Descriptor {
    /// A second descriptor of the same object.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(match &self.0 {
            Kind::Socket(socket) => Kind::Socket(socket.try_clone()?),
            Kind::Handle(handle) => Kind::Handle(handle.try_clone()?),
        }))
    }

    pub(in crate::sys) fn as_handle(&self) -> io::Result<BorrowedHandle<'_>> {
        match &self.0 {
            Kind::Handle(handle) => Ok(handle.as_handle()),
            Kind::Socket(_) => Err(wrong_kind("a socket, and not a file or a pipe")),
        }
    }
}

fn wrong_kind(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

impl From<OwnedSocket> for Descriptor {
    fn from(socket: OwnedSocket) -> Self {
        Self(Kind::Socket(socket))
    }
}

impl From<OwnedHandle> for Descriptor {
    fn from(handle: OwnedHandle) -> Self {
        Self(Kind::Handle(handle))
    }
}

/// Fails with `InvalidInput` if the descriptor is not one of a socket.
impl TryFrom<Descriptor> for OwnedSocket {
    type Error = io::Error;

    fn try_from(descriptor: Descriptor) -> io::Result<Self> {
        match descriptor.0 {
            Kind::Socket(socket) => Ok(socket),
            Kind::Handle(_) => Err(wrong_kind("not a socket")),
        }
    }
}

/// Fails with `InvalidInput` if the descriptor is one of a socket.
impl TryFrom<Descriptor> for OwnedHandle {
    type Error = io::Error;

    fn try_from(descriptor: Descriptor) -> io::Result<Self> {
        match descriptor.0 {
            Kind::Handle(handle) => Ok(handle),
            Kind::Socket(_) => Err(wrong_kind("a socket, and not a file or a pipe")),
        }
    }
}

/// For types of the standard library that own a socket or a handle.
macro_rules! impl_conversions {
    ($owned:ty: $($type:ty),*) => { $(
        impl From<$type> for Descriptor {
            fn from(value: $type) -> Self {
                <$owned>::from(value).into()
            }
        }

        /// Fails with `InvalidInput` if the descriptor is of another kind. It is not checked
        /// whether a socket or a file is the right one.
        impl TryFrom<Descriptor> for $type {
            type Error = io::Error;

            fn try_from(descriptor: Descriptor) -> io::Result<Self> {
                <$owned>::try_from(descriptor).map(Self::from)
            }
        }
    )* };
}

impl_conversions!(OwnedSocket: TcpListener, TcpStream, UdpSocket);
impl_conversions!(OwnedHandle: File);

/// Gives the descriptor to a program as its standard input, output or error. On Windows a socket
/// cannot be one of these: the program gets the null device instead.
impl From<Descriptor> for Stdio {
    fn from(descriptor: Descriptor) -> Self {
        match descriptor.0 {
            Kind::Handle(handle) => handle.into(),
            Kind::Socket(_) => Self::null(),
        }
    }
}

/// Takes what this process was started with, once for each number.
///
/// # Errors
///
/// Nothing was passed under this number, or it was taken before.
pub(crate) fn adopt(number: i32) -> io::Result<Descriptor> {
    passing_table::take(number).map(Descriptor)
}

/// A descriptor has no number here that another program could use.
pub(crate) fn number<T>(_descriptor: &T) -> i32 {
    -1
}

/// Equal for two descriptors of one bound socket, and of one file. Sockets are told by their
/// address: Windows binds a second socket to it only if both sockets share it by choice
/// (SO_REUSEADDR), as none of this crate do.
pub(crate) fn inode(descriptor: &Descriptor) -> io::Result<(u64, u64)> {
    let socket = match &descriptor.0 {
        Kind::Handle(handle) => return file_id(handle),
        Kind::Socket(socket) => SockRef::from(socket),
    };
    let mut hasher = DefaultHasher::new();
    socket.local_addr()?.hash(&mut hasher);
    let kind: i32 = socket.r#type()?.into();
    Ok((u64::from(kind.unsigned_abs()), hasher.finish()))
}

/// Whether this is a listening stream socket.
pub(crate) fn is_listener(descriptor: &Descriptor) -> bool {
    match &descriptor.0 {
        Kind::Socket(socket) => accepts_connections(socket).unwrap_or(false),
        Kind::Handle(_) => false,
    }
}

/// There are no such sockets.
pub(crate) fn is_packet_socket(_: &Descriptor) -> bool {
    false
}

#[allow(unsafe_code)]
pub(super) fn accepts_connections(socket: &impl AsRawSocket) -> io::Result<bool> {
    let mut is_listening = 0i32;
    let mut size = size_of::<i32>() as i32;
    // SAFETY: the socket is open, and the call writes at most `size` bytes to a live i32.
    let result = unsafe {
        getsockopt(
            socket.as_raw_socket() as _,
            SOL_SOCKET,
            SO_ACCEPTCONN,
            (&raw mut is_listening).cast(),
            &mut size,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(is_listening != 0)
}

/// A second descriptor of a socket.
pub(crate) fn duplicate(socket: &Socket) -> io::Result<Descriptor> {
    Ok(socket.as_socket().try_clone_to_owned()?.into())
}

/// Does not fail on Windows.
#[cfg_attr(not(test), allow(dead_code))]
pub(crate) fn from_socket(socket: Socket) -> io::Result<Descriptor> {
    Ok(OwnedSocket::from(socket).into())
}

/// Fails if the descriptor is not one of a socket.
pub(crate) fn into_socket(descriptor: Descriptor) -> io::Result<Socket> {
    OwnedSocket::try_from(descriptor).map(Socket::from)
}

/// Fails if the descriptor is one of a socket.
pub(crate) fn into_file(descriptor: Descriptor) -> io::Result<File> {
    descriptor.try_into()
}

/// Closes a descriptor that another process has sent, without waiting for the time-out that the
/// process may have set (SO_LINGER).
pub(crate) fn discard(descriptor: Descriptor) {
    if let Ok(socket) = into_socket(descriptor) {
        // The socket is closed either way.
        let _ = socket.set_linger(None);
    }
}

/// A pipe: its reading and its writing end.
#[allow(unsafe_code)]
pub(crate) fn create_pipe() -> io::Result<(Descriptor, Descriptor)> {
    let (mut reader, mut writer) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: both places are alive; if the call succeeds, it has made two handles, which nothing
    // else owns.
    unsafe {
        check(CreatePipe(&mut reader, &mut writer, ptr::null(), 0))?;
        Ok((handle::own(reader)?.into(), handle::own(writer)?.into()))
    }
}

/// A second handle of standard error.
pub(crate) fn duplicate_stderr() -> io::Result<Descriptor> {
    let own = standard_handle(STD_ERROR_HANDLE)?;
    let own = own.ok_or_else(|| io::Error::other("this process has no standard error"))?;
    Ok(own.into())
}

/// A second handle of standard input, output or error. `None` if this process has none, as a
/// service.
#[allow(unsafe_code)]
pub(super) fn standard_handle(which: u32) -> io::Result<Option<OwnedHandle>> {
    // SAFETY: the call takes a number. The process keeps its standard handles open; another thread
    // that closes one makes the next call fail.
    let borrowed = unsafe {
        match GetStdHandle(which) {
            INVALID_HANDLE_VALUE => return Err(io::Error::last_os_error()),
            own if own.is_null() => return Ok(None),
            own => BorrowedHandle::borrow_raw(own),
        }
    };
    handle::duplicate(borrowed, false).map(Some)
}

/// Makes `to` the standard error of this process. The old handle stays open: a C library looks up
/// the standard handles only when it is loaded, and may go on using the old handle.
#[allow(unsafe_code)]
pub(crate) fn replace_stderr(to: &Descriptor) -> io::Result<()> {
    let copy = handle::duplicate(to.as_handle()?, false)?;
    // SAFETY: the handle is open, and stays so: the standard handles own it from now on.
    check(unsafe { SetStdHandle(STD_ERROR_HANDLE, copy.as_raw_handle()) })?;
    let _ = copy.into_raw_handle();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_becomes_what_it_was_and_nothing_else() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let descriptor = Descriptor::from(listener);
        assert!(is_listener(&descriptor));
        let copy = descriptor.try_clone().unwrap();
        assert_eq!(inode(&copy).unwrap(), inode(&descriptor).unwrap());
        let other = TcpListener::bind("127.0.0.1:0").unwrap().into();
        assert_ne!(inode(&other).unwrap(), inode(&descriptor).unwrap());
        let listener = TcpListener::try_from(descriptor).unwrap();
        assert_eq!(listener.local_addr().unwrap(), addr);
        let error = into_file(copy).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        let (reader, _writer) = create_pipe().unwrap();
        assert!(!is_listener(&reader));
        let error = UdpSocket::try_from(reader).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
