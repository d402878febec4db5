//! Windows: a poller that any number of threads wait on, made of a completion port and of the
//! driver of the sockets (AFD).
//!
//! A *poll* asks the driver whether a socket has one of some events (IOCTL_AFD_POLL). It completes
//! when the socket has one, at once if the socket has one already, and its completion goes to the
//! port. Microsoft does not document the call; `select` and `WSAPoll` are made of it, and libuv and
//! mio use it as this file does.
//!
//! - A poll completes once: an event disarms its socket until `rearm` starts another poll.
//! - One poll of a socket counts. A poll is cancelled if the interest changes or the socket is
//!   removed. What becomes of it then is ignored: its address tells it from the one that counts.
//! - From its start until its completion is taken from the port, a poll's memory is the kernel's.
//!   The thread that takes the completion owns it again.
//!
//! A poll for urgent data is never made: it would complete again and again until the data is read.

use std::collections::HashMap;
use std::io;
use std::os::windows::io::{AsRawHandle, AsRawSocket, FromRawHandle, OwnedHandle, RawSocket};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use parking_lot::Mutex;
use socket2::Socket;
use windows_sys::Wdk::Foundation::OBJECT_ATTRIBUTES;
use windows_sys::Wdk::Storage::FileSystem::{FILE_OPEN, NtCreateFile};
use windows_sys::Win32::Foundation::{
    ERROR_IO_PENDING, GetLastError, HANDLE, INVALID_HANDLE_VALUE, NO_ERROR, RtlNtStatusToDosError,
    STATUS_SUCCESS, UNICODE_STRING, WAIT_TIMEOUT,
};
use windows_sys::Win32::Networking::WinSock::{
    SIO_BASE_HANDLE, SIO_BSP_HANDLE_POLL, SOCKET, WSAENOTSOCK, WSAIoctl,
};
use windows_sys::Win32::Storage::FileSystem::{FILE_SHARE_READ, FILE_SHARE_WRITE, SYNCHRONIZE};
use windows_sys::Win32::System::IO::{
    CancelIoEx, CreateIoCompletionPort, DeviceIoControl, GetQueuedCompletionStatusEx,
    IO_STATUS_BLOCK, OVERLAPPED, OVERLAPPED_ENTRY, PostQueuedCompletionStatus,
};
use windows_sys::Win32::System::Threading::INFINITE;
use windows_sys::core::w;

use crate::log;
use crate::sys::{Event, Interest};

const IOCTL_AFD_POLL: u32 = 0x0001_2024;

// The events of a poll.
const RECEIVE: u32 = 0x001;
const SEND: u32 = 0x004;
/// The peer has ended its side.
const DISCONNECT: u32 = 0x008;
/// The connection was reset.
const ABORT: u32 = 0x010;
/// The socket was closed here, against the contract: the poll ends.
const LOCAL_CLOSE: u32 = 0x020;
const ACCEPT: u32 = 0x080;
const CONNECT_FAIL: u32 = 0x100;

const BROKEN: u32 = ABORT | LOCAL_CLOSE | CONNECT_FAIL;

/// The completion key of [`Poller::wake`]. That of the polls is 0.
const WAKE: usize = 1;

/// How many sockets a handle of the driver serves: the kernel searches the polls of one handle
/// one by one for the poll that is to be cancelled.
const SOCKETS_PER_DEVICE: usize = 32;

/// How long a poller that is dropped waits for the polls that it has cancelled. The memory of polls
/// that are then left is leaked.
const LAST_WAIT: Duration = Duration::from_millis(100);

/// See the contract in [`sys`](crate::sys).
#[derive(Debug)]
pub(crate) struct Poller {
    port: OwnedHandle,
    watches: Mutex<HashMap<RawSocket, Arc<Watch>>>,
    /// The devices with room: each device once for each further socket that it may serve.
    places: Mutex<Vec<Arc<OwnedHandle>>>,
    /// The number of polls whose memory is the kernel's.
    polls: AtomicUsize,
}

/// A socket that was added.
#[derive(Debug)]
struct Watch {
    /// The socket's handle in the driver, below the layers that other software may have added.
    base: SOCKET,
    device: Arc<OwnedHandle>,
    state: Mutex<WatchState>,
}

#[derive(Debug, Default)]
struct WatchState {
    token: u64,
    /// The poll that counts, while it is under way, and its events.
    polled: Option<(PollAddress, u32)>,
    /// The memory of an earlier poll.
    spare: Option<Box<Poll>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PollAddress(NonNull<Poll>);

// SAFETY: the address is compared, and given to the kernel; it is not followed.
#[allow(unsafe_code)]
unsafe impl Send for PollAddress {}

#[repr(C)]
struct Poll {
    /// The first field: the port reports its address.
    overlapped: OVERLAPPED,
    info: PollInfo,
    watch: Option<Arc<Watch>>,
}

// SAFETY: its pointers are in `overlapped`, and are null, or of use to the kernel only.
#[allow(unsafe_code)]
unsafe impl Send for Poll {}

/// AFD_POLL_INFO, with one AFD_POLL_HANDLE_INFO: what is asked for, and then what was found.
#[repr(C)]
#[derive(Debug, Default)]
struct PollInfo {
    /// In units of 100 ns.
    timeout: i64,
    sockets: u32,
    is_exclusive: u32,
    socket: SOCKET,
    events: u32,
    status: i32,
}

impl Poller {
    pub(crate) const SHARED: bool = true;
    pub(crate) const REPORTS_ONCE: bool = true;

    #[allow(unsafe_code)]
    pub(crate) fn new() -> io::Result<Self> {
        // The port would hold threads back if more ran than it is to allow. This crate decides that
        // itself, and a waker must not be held back.
        let threads = i32::MAX as u32;
        // SAFETY: the call makes a port for no file, and the handle is owned from here on.
        let port = unsafe {
            let port = CreateIoCompletionPort(INVALID_HANDLE_VALUE, ptr::null_mut(), 0, threads);
            if port.is_null() {
                return Err(io::Error::last_os_error());
            }
            OwnedHandle::from_raw_handle(port)
        };
        Ok(Self {
            port,
            watches: Mutex::default(),
            places: Mutex::default(),
            polls: AtomicUsize::new(0),
        })
    }

    pub(crate) fn add(&self, socket: &Socket, token: u64) -> io::Result<()> {
        let watch = Arc::new(Watch {
            base: base_handle(socket)?,
            device: self.take_place()?,
            state: Mutex::default(),
        });
        let added = Arc::clone(&watch);
        if let Some(old) = self.watches.lock().insert(socket.as_raw_socket(), added) {
            old.cancel(&mut old.state.lock());
            self.places.lock().push(Arc::clone(&old.device));
        }
        let armed = self.arm(&watch, token, Interest::Read);
        if armed.is_err() {
            let _ = self.remove(socket);
        }
        armed
    }

    /// As [`add`](Self::add): a connection is reported to every process that watches.
    pub(crate) fn add_shared(&self, listener: &Socket, token: u64) -> io::Result<()> {
        self.add(listener, token)
    }

    pub(crate) fn rearm(&self, socket: &Socket, token: u64, interest: Interest) -> io::Result<()> {
        let watch = self.watches.lock().get(&socket.as_raw_socket()).cloned();
        let watch = watch.ok_or(io::ErrorKind::NotFound)?;
        self.arm(&watch, token, interest)
    }

    pub(crate) fn remove(&self, socket: &Socket) -> io::Result<()> {
        let watch = self.watches.lock().remove(&socket.as_raw_socket());
        let watch = watch.ok_or(io::ErrorKind::NotFound)?;
        watch.cancel(&mut watch.state.lock());
        self.places.lock().push(Arc::clone(&watch.device));
        Ok(())
    }

    /// Waits for up to `max_events`. Fewer are reported, or none, if some of the completions are
    /// those of cancelled polls.
    #[allow(unsafe_code)]
    pub(crate) fn wait(
        &self,
        events: &mut Events,
        max_events: usize,
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        events.found.clear();
        events.was_woken = false;
        let room = max_events.clamp(1, events.buffer.len());
        let timeout = timeout.map_or(INFINITE, |timeout| {
            // Rounded up, so that no wait ends early.
            let millis = timeout.as_nanos().div_ceil(1_000_000);
            u32::try_from(millis).map_or(INFINITE, |millis| millis.min(INFINITE - 1))
        });
        let mut filled = 0;
        // SAFETY: the port is open, and the buffer is alive and has `room` entries.
        let has_some = unsafe {
            let (port, buffer) = (self.port.as_raw_handle(), events.buffer.as_mut_ptr());
            GetQueuedCompletionStatusEx(port, buffer, room as u32, &mut filled, timeout, 0)
        };
        if has_some == 0 {
            // SAFETY: the call takes nothing and returns a number.
            return match unsafe { GetLastError() } {
                NO_ERROR | WAIT_TIMEOUT => Ok(()),
                error => Err(io::Error::from_raw_os_error(error as i32)),
            };
        }
        for entry in &events.buffer[..filled as usize] {
            if entry.lpCompletionKey == WAKE {
                events.was_woken = true;
            } else if let Some(event) = self.complete(entry.lpOverlapped.cast()) {
                events.found.push(event);
            }
        }
        Ok(())
    }

    #[allow(unsafe_code)]
    pub(crate) fn wake(&self) {
        // SAFETY: the port is open. The entry leads to no memory.
        let posted =
            unsafe { PostQueuedCompletionStatus(self.port.as_raw_handle(), 0, WAKE, ptr::null()) };
        if posted == 0 {
            let error = io::Error::last_os_error();
            log::error!("cannot wake the poller: {error}");
        }
    }

    /// Starts a poll, unless there is one for the same events.
    #[allow(unsafe_code)]
    fn arm(&self, watch: &Arc<Watch>, token: u64, interest: Interest) -> io::Result<()> {
        let events = match interest {
            Interest::Read => BROKEN | DISCONNECT | RECEIVE | ACCEPT,
            Interest::Write => BROKEN | SEND,
            Interest::Both => BROKEN | DISCONNECT | RECEIVE | ACCEPT | SEND,
        };
        let mut state = watch.state.lock();
        state.token = token;
        if state.polled.is_some_and(|(_, polled)| polled == events) {
            return Ok(());
        }
        watch.cancel(&mut state);
        let mut poll = state.spare.take().unwrap_or_else(Poll::boxed);
        poll.overlapped = OVERLAPPED::default();
        poll.info = PollInfo {
            timeout: i64::MAX,
            sockets: 1,
            socket: watch.base,
            events,
            ..PollInfo::default()
        };
        poll.watch = Some(Arc::clone(watch));
        let poll = NonNull::from(Box::leak(poll));
        self.polls.fetch_add(1, SeqCst);
        // SAFETY: the memory of the poll is the kernel's until `complete` gets its address.
        let started = unsafe {
            let (device, size) = (watch.device.as_raw_handle(), size_of::<PollInfo>() as u32);
            let info = (&raw mut (*poll.as_ptr()).info).cast();
            let overlapped = &raw mut (*poll.as_ptr()).overlapped;
            let none = ptr::null_mut();
            DeviceIoControl(
                device,
                IOCTL_AFD_POLL,
                info,
                size,
                info,
                size,
                none,
                overlapped,
            ) != 0
                || GetLastError() == ERROR_IO_PENDING
        };
        if started {
            // A thread that takes the completion meanwhile waits for the lock.
            state.polled = Some((PollAddress(poll), events));
            return Ok(());
        }
        let error = io::Error::last_os_error();
        self.polls.fetch_sub(1, SeqCst);
        // SAFETY: the kernel has refused the poll, so that its memory is this thread's.
        drop(unsafe { Box::from_raw(poll.as_ptr()) });
        Err(error)
    }

    /// Takes a completion. `None` if the poll was cancelled.
    #[allow(unsafe_code)]
    fn complete(&self, poll: *mut Poll) -> Option<Event> {
        let address = PollAddress(NonNull::new(poll)?);
        self.polls.fetch_sub(1, SeqCst);
        // SAFETY: `arm` made it of a box, and the kernel is done with it.
        let mut poll = unsafe { Box::from_raw(poll) };
        let watch = poll.watch.take()?;
        let mut state = watch.state.lock();
        state.polled.take_if(|(polled, _)| *polled == address)?;
        // A poll that failed is an event too: the next call on the socket tells what is wrong.
        let has_failed =
            poll.overlapped.Internal as i32 != STATUS_SUCCESS || poll.info.sockets == 0;
        let hangup = has_failed || poll.info.events & (BROKEN | DISCONNECT) != 0;
        state.spare = Some(poll);
        let token = state.token;
        Some(Event { token, hangup })
    }

    fn take_place(&self) -> io::Result<Arc<OwnedHandle>> {
        let mut places = self.places.lock();
        if let Some(device) = places.pop() {
            return Ok(device);
        }
        let device = Arc::new(open_device(&self.port)?);
        places.extend((1..SOCKETS_PER_DEVICE).map(|_| Arc::clone(&device)));
        Ok(device)
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        for watch in self.watches.get_mut().values() {
            watch.cancel(&mut watch.state.lock());
        }
        let mut events = Events::with_capacity(SOCKETS_PER_DEVICE);
        while self.polls.load(SeqCst) > 0 {
            let before = self.polls.load(SeqCst);
            let waited = self.wait(&mut events, SOCKETS_PER_DEVICE, Some(LAST_WAIT));
            if waited.is_err() || !events.was_woken && self.polls.load(SeqCst) == before {
                break;
            }
        }
    }
}

impl Watch {
    /// Cancels the poll that counts. What becomes of it is ignored from here on.
    #[allow(unsafe_code)]
    fn cancel(&self, state: &mut WatchState) {
        if let Some((poll, _)) = state.polled.take() {
            // SAFETY: the device is open. Nobody has taken the completion, which takes the lock
            // that `state` is under, so that the memory is that of this poll. An error says that
            // the poll has completed meanwhile.
            unsafe { CancelIoEx(self.device.as_raw_handle(), poll.0.as_ptr().cast()) };
        }
    }
}

impl Poll {
    fn boxed() -> Box<Self> {
        Box::new(Self {
            overlapped: OVERLAPPED::default(),
            info: PollInfo::default(),
            watch: None,
        })
    }
}

impl std::fmt::Debug for Poll {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Poll").finish_non_exhaustive()
    }
}

/// Opens the driver. The driver ignores what comes after its name.
#[allow(unsafe_code)]
fn open_device(port: &OwnedHandle) -> io::Result<OwnedHandle> {
    const NAME: &str = r"\Device\Afd\Handover";
    let size = (NAME.len() * size_of::<u16>()) as u16;
    let name = UNICODE_STRING {
        Length: size,
        MaximumLength: size,
        Buffer: w!(r"\Device\Afd\Handover").cast_mut(),
    };
    let attributes = OBJECT_ATTRIBUTES {
        Length: size_of::<OBJECT_ATTRIBUTES>() as u32,
        ObjectName: &name,
        ..OBJECT_ATTRIBUTES::default()
    };
    let mut device: HANDLE = ptr::null_mut();
    let mut status = IO_STATUS_BLOCK::default();
    let share = FILE_SHARE_READ | FILE_SHARE_WRITE;
    // SAFETY: all that the call reads or fills is alive, and the handle is owned from here on.
    let device = unsafe {
        let (none, options) = (ptr::null(), 0);
        let result = NtCreateFile(
            &mut device,
            SYNCHRONIZE,
            &attributes,
            &mut status,
            none,
            0,
            share,
            FILE_OPEN,
            options,
            ptr::null(),
            0,
        );
        if result != STATUS_SUCCESS {
            let error = RtlNtStatusToDosError(result);
            return Err(io::Error::from_raw_os_error(error as i32));
        }
        OwnedHandle::from_raw_handle(device)
    };
    // SAFETY: both handles are open.
    let joined =
        unsafe { CreateIoCompletionPort(device.as_raw_handle(), port.as_raw_handle(), 0, 0) };
    if joined.is_null() {
        return Err(io::Error::last_os_error());
    }
    Ok(device)
}

/// The most layers of other software that are looked through.
const MOST_LAYERS: usize = 16;

/// The socket's handle in the driver.
fn base_handle(socket: &Socket) -> io::Result<SOCKET> {
    find_base(socket.as_raw_socket() as SOCKET, ask_for_handle)
}

/// A layer that other software has put above the driver (a layered service provider) must not answer
/// SIO_BASE_HANDLE, but some do, by an error. SIO_BSP_HANDLE_POLL leads to the next layer then.
fn find_base(
    socket: SOCKET,
    ask: impl Fn(SOCKET, u32) -> io::Result<SOCKET>,
) -> io::Result<SOCKET> {
    let mut layer = socket;
    for _ in 0..MOST_LAYERS {
        let error = match ask(layer, SIO_BASE_HANDLE) {
            Err(error) if error.raw_os_error() != Some(WSAENOTSOCK) => error,
            found => return found,
        };
        match ask(layer, SIO_BSP_HANDLE_POLL) {
            Ok(next) if next != layer => layer = next,
            _ => return Err(error),
        }
    }
    Err(io::Error::other("a socket has too many layers"))
}

#[allow(unsafe_code)]
fn ask_for_handle(socket: SOCKET, request: u32) -> io::Result<SOCKET> {
    let mut handle: SOCKET = 0;
    let mut size = 0;
    // SAFETY: the call fills at most the size of `handle`. It fails if there is no such socket.
    let result = unsafe {
        WSAIoctl(
            socket,
            request,
            ptr::null(),
            0,
            (&raw mut handle).cast(),
            size_of::<SOCKET>() as u32,
            &mut size,
            ptr::null_mut(),
            None,
        )
    };
    match result {
        0 => Ok(handle),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The buffer of one waiting thread.
pub(crate) struct Events {
    buffer: Vec<OVERLAPPED_ENTRY>,
    found: Vec<Event>,
    was_woken: bool,
}

impl Events {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self {
            buffer: vec![OVERLAPPED_ENTRY::default(); capacity.max(1)],
            found: Vec::with_capacity(capacity),
            was_woken: false,
        }
    }

    /// Whether a call of [`Poller::wake`] was among the events.
    pub(crate) fn was_woken(&self) -> bool {
        self.was_woken
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Event> + '_ {
        self.found.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use windows_sys::Win32::Networking::WinSock::WSAEOPNOTSUPP;

    use super::*;

    /// Layers that refuse SIO_BASE_HANDLE: each number leads to the next lower one, and 1 is the
    /// driver.
    fn ask_layers(socket: SOCKET, request: u32) -> io::Result<SOCKET> {
        match (socket, request) {
            (0, _) => Err(io::Error::from_raw_os_error(WSAENOTSOCK)),
            (1, _) => Ok(1),
            (_, SIO_BSP_HANDLE_POLL) => Ok(socket - 1),
            _ => Err(io::Error::from_raw_os_error(WSAEOPNOTSUPP)),
        }
    }

    #[test]
    fn the_base_handle_is_found_below_layers_that_refuse_to_tell_it() {
        for socket in [1, 2, 5] {
            assert_eq!(find_base(socket, ask_layers).unwrap(), 1);
        }
        let not_a_socket = find_base(0, ask_layers).unwrap_err();
        assert_eq!(not_a_socket.raw_os_error(), Some(WSAENOTSOCK));
        assert!(find_base(1 + MOST_LAYERS, ask_layers).is_err());
        // A layer that leads to itself.
        let refuses = |socket, request| match request {
            SIO_BSP_HANDLE_POLL => Ok(socket),
            _ => Err(io::Error::from_raw_os_error(WSAEOPNOTSUPP)),
        };
        let refused = find_base(7, refuses).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(WSAEOPNOTSUPP));
        let socket = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        assert_ne!(base_handle(&socket).unwrap(), 0);
    }
}
