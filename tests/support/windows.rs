//! What the tests ask Windows about this process and its sockets.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::ptr;
use std::time::Duration;

use socket2::SockAddrStorage;
use windows_sys::Win32::Foundation::{FILETIME, INVALID_HANDLE_VALUE, LocalFree};
use windows_sys::Win32::Networking::WinSock::{
    FIONREAD, MSG_PEEK, POLLERR, POLLHUP, POLLRDNORM, SOCKET, WSAEWOULDBLOCK, WSAPOLLFD, WSAPoll,
    getpeername, getsockname, ioctlsocket, recv,
};
use windows_sys::Win32::System::Diagnostics::ToolHelp::{
    CreateToolhelp32Snapshot, TH32CS_SNAPTHREAD, THREADENTRY32, Thread32First, Thread32Next,
};
use windows_sys::Win32::System::LibraryLoader::{GetModuleHandleW, GetProcAddress};
use windows_sys::Win32::System::Threading::{
    GetCurrentProcess, GetProcessHandleCount, GetProcessTimes, GetThreadDescription, OpenThread,
    THREAD_QUERY_LIMITED_INFORMATION,
};
use windows_sys::core::w;

/// Whether this is wine. If so, prints what wine does not do as Windows does: the test, or a part of it, is left out.
#[allow(unsafe_code)]
pub(crate) fn wine_cannot(what: &str) -> bool {
    // SAFETY: the names are terminated, and the module is never unloaded.
    let is_wine = unsafe {
        GetProcAddress(
            GetModuleHandleW(w!("ntdll.dll")),
            c"wine_get_version".as_ptr().cast(),
        )
        .is_some()
    };
    if is_wine {
        // The harness does not hold this back, as it does with `eprintln!`.
        let line = format!("LEFT OUT: wine cannot: {what}\n");
        io::stderr().write_all(line.as_bytes()).unwrap();
    }
    is_wine
}

/// Handles have no limit that a process could raise.
pub(crate) fn raise_descriptor_limit() {}

/// How many threads of this process have names that begin so.
#[allow(unsafe_code)]
pub(crate) fn threads(prefix: &str) -> usize {
    let mut entry = THREADENTRY32 {
        dwSize: size_of::<THREADENTRY32>() as u32,
        ..THREADENTRY32::default()
    };
    // SAFETY: the handle is owned from here on.
    let list = unsafe {
        let list = CreateToolhelp32Snapshot(TH32CS_SNAPTHREAD, 0);
        assert_ne!(list, INVALID_HANDLE_VALUE, "{}", io::Error::last_os_error());
        OwnedHandle::from_raw_handle(list)
    };
    let mut count = 0;
    // SAFETY: the list is open, and the entry is alive and says its size.
    let mut is_there = unsafe { Thread32First(list.as_raw_handle(), &mut entry) };
    while is_there != 0 {
        let is_own = entry.th32OwnerProcessID == std::process::id();
        if is_own && name_of(entry.th32ThreadID).is_some_and(|name| name.starts_with(prefix)) {
            count += 1;
        }
        // SAFETY: as above.
        is_there = unsafe { Thread32Next(list.as_raw_handle(), &mut entry) };
    }
    count
}

/// `None` if the thread has ended.
#[allow(unsafe_code)]
fn name_of(thread: u32) -> Option<String> {
    // SAFETY: the handle is owned from here on. The text that the call allocates is terminated, and is freed once.
    unsafe {
        let thread = OpenThread(THREAD_QUERY_LIMITED_INFORMATION, 0, thread);
        if thread.is_null() {
            return None;
        }
        let thread = OwnedHandle::from_raw_handle(thread);
        let mut text = ptr::null_mut();
        if GetThreadDescription(thread.as_raw_handle(), &mut text) < 0 || text.is_null() {
            return Some(String::new());
        }
        let length = (0..).take_while(|&index| *text.add(index) != 0).count();
        let name = String::from_utf16_lossy(std::slice::from_raw_parts(text, length));
        LocalFree(text.cast());
        Some(name)
    }
}

/// How many handles this process has open.
#[allow(unsafe_code)]
pub(crate) fn descriptors() -> usize {
    let mut count = 0;
    // SAFETY: the handle of the process needs no close, and the number is alive.
    let result = unsafe { GetProcessHandleCount(GetCurrentProcess(), &mut count) };
    assert_ne!(result, 0, "{}", io::Error::last_os_error());
    count as usize
}

/// The CPU time that this process has used.
#[allow(unsafe_code)]
pub(crate) fn cpu_time() -> Duration {
    let mut times = [FILETIME::default(); 4];
    let [created, ended, kernel, user] = &mut times;
    // SAFETY: the handle of the process needs no close, and the times are alive.
    let result = unsafe { GetProcessTimes(GetCurrentProcess(), created, ended, kernel, user) };
    assert_ne!(result, 0, "{}", io::Error::last_os_error());
    let [.., kernel, user] =
        times.map(|time| u64::from(time.dwHighDateTime) << 32 | u64::from(time.dwLowDateTime));
    Duration::from_nanos((kernel + user) * 100)
}

/// The server's side of a client's TCP connection, which is a socket of this process.
pub(crate) struct ServerSide {
    server: SocketAddr,
    client: SocketAddr,
}

impl ServerSide {
    pub(crate) fn of(client: &TcpStream) -> Self {
        Self {
            server: client.peer_addr().unwrap(),
            client: client.local_addr().unwrap(),
        }
    }

    /// How many bytes have arrived that the server has not read. The end of the stream counts as one byte. `None` if
    /// the connection is not there: the server has not accepted it yet, or it was reset.
    #[allow(unsafe_code)]
    pub(super) fn unread(&self) -> Option<usize> {
        let is_side = |&socket: &SOCKET| {
            address(socket, getpeername) == Some(self.client)
                && address(socket, getsockname) == Some(self.server)
        };
        let socket = handles().find(is_side)?;
        let mut fd = WSAPOLLFD {
            fd: socket,
            events: POLLRDNORM,
            revents: 0,
        };
        let (mut count, mut byte) = (0, 0);
        // SAFETY: what the calls fill is alive. That the socket is closed meanwhile is an error, or the next call finds
        // another one.
        unsafe {
            WSAPoll(&mut fd, 1, 0);
            let has_ended = fd.revents & (POLLERR | POLLHUP) != 0;
            if has_ended && recv(socket, &mut byte, 1, MSG_PEEK) < 0 {
                let error = io::Error::last_os_error().raw_os_error();
                return (error == Some(WSAEWOULDBLOCK)).then_some(0);
            }
            ioctlsocket(socket, FIONREAD, &mut count);
            Some(count as usize + usize::from(has_ended))
        }
    }
}

/// The sockets of this process that have an address.
pub(crate) fn sockets() -> Vec<SOCKET> {
    let has_address = |&handle: &SOCKET| address(handle, getsockname).is_some();
    handles().filter(has_address).collect()
}

/// What may be a handle. Handles are multiples of 4, and the lowest that is free is taken.
fn handles() -> impl Iterator<Item = SOCKET> {
    (1..8192).map(|number| number * 4)
}

type AddressCall = unsafe extern "system" fn(
    SOCKET,
    *mut windows_sys::Win32::Networking::WinSock::SOCKADDR,
    *mut i32,
) -> i32;

/// `None` if this is no socket, or one without such an address.
#[allow(unsafe_code)]
fn address(socket: SOCKET, call: AddressCall) -> Option<SocketAddr> {
    let mut storage = SockAddrStorage::zeroed();
    let mut size = storage.size_of();
    // SAFETY: the call fills at most `size` bytes of live storage, with an address and its size.
    unsafe {
        let place = (&raw mut storage).cast();
        if call(socket, place, &mut size) != 0 {
            return None;
        }
        socket2::SockAddr::new(storage, size).as_socket()
    }
}
