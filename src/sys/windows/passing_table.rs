//! Windows: the passing table, by which a process gets what it is started with.
//!
//! On Windows a program cannot be told the numbers of descriptors before it exists: a handle gets
//! its number when it is made for a process, and a socket is passed by a record that Winsock makes
//! for one process (WSADuplicateSocketW). So the starter of a program does this:
//!
//! 1. It makes a [`Section`]: memory without a name, whose handle the program inherits. The
//!    variable [`VARIABLE`] says which handle.
//! 2. It creates the process, which does not run yet.
//! 3. It makes the handles and the records for the process, and writes them into the section, with
//!    the variables that are for this process only.
//! 4. It lets the process run.
//!
//! The process reads the table when it first asks for a part of it, and closes the section. Its own
//! children inherit the variable, but find no table with their process id there.
//!
//! # The format
//!
//! Numbers are in the order of this processor. A text is its length in UTF-16 units, and the units.
//!
//! | field | length in bytes |
//! |---|---|
//! | [`MAGIC`] | 8 |
//! | the process that the table is for | 4 |
//! | the start guard: see [`StartLimit`] | 3 × 8 |
//! | the number of variables | 4 |
//! | each variable: `NAME=value` | a text |
//! | the number of descriptors | 4 |
//! | each descriptor: 0 and a handle, or 1 and a WSAPROTOCOL_INFOW | 4 + 8, or 4 + 628 |
//!
//! A later release may add fields at the end.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::windows::ffi::{OsStrExt, OsStringExt};
use std::os::windows::io::{
    AsHandle, AsRawHandle, AsRawSocket, BorrowedHandle, FromRawHandle, FromRawSocket, OwnedHandle,
    OwnedSocket,
};
use std::process;
use std::ptr;
use std::slice;
use std::sync::OnceLock;

use parking_lot::Mutex;
use socket2::Socket;
use windows_sys::Win32::Foundation::{HANDLE, INVALID_HANDLE_VALUE};
use windows_sys::Win32::Networking::WinSock::{
    FROM_PROTOCOL_INFO, INVALID_SOCKET, WSA_FLAG_NO_HANDLE_INHERIT, WSA_FLAG_OVERLAPPED,
    WSADuplicateSocketW, WSAPROTOCOL_INFOW, WSASocketW,
};
use windows_sys::Win32::Security::SECURITY_ATTRIBUTES;
use windows_sys::Win32::System::Memory::{
    CreateFileMappingW, FILE_MAP_READ, FILE_MAP_WRITE, MEMORY_BASIC_INFORMATION,
    MEMORY_MAPPED_VIEW_ADDRESS, MapViewOfFile, PAGE_READWRITE, UnmapViewOfFile, VirtualQuery,
};

use super::handle::{self, Kind, duplicate_into};
use crate::log;
use crate::sys::{FIRST_PASSED, PidVariable};

/// The variable with the number of the section's handle.
pub(super) const VARIABLE: &str = "HANDOVER_TABLE";

/// The number at the end is the version: a later one is not understood.
const MAGIC: [u8; 8] = *b"handove\x01";

/// What a table holds.
#[derive(Debug, Default)]
struct Table {
    limit: Option<StartLimit>,
    variables: Vec<OsString>,
    /// `None` where it was taken.
    descriptors: Vec<Option<Passed>>,
}

/// What bounds the start of a process whose parent dies meanwhile: see
/// [`start_guard`](super::start_guard).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StartLimit {
    /// How long the start may take, in milliseconds. 0 if there is no limit.
    pub(super) millis: u64,
    /// The process's handle of its parent.
    pub(super) parent: u64,
    /// The parent's handle of the job.
    pub(super) job: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Passed {
    Handle(u64),
    Socket(Box<[u8; INFO_SIZE]>),
}

pub(super) const INFO_SIZE: usize = size_of::<WSAPROTOCOL_INFOW>();

// ---- the starter's side ----

/// The memory that a new process gets its table in.
pub(super) struct Section {
    handle: OwnedHandle,
    capacity: usize,
}

impl Section {
    /// Makes a section with room for these variables and this number of descriptors.
    #[allow(unsafe_code)]
    pub(super) fn new(variables: &[PidVariable], descriptors: usize) -> io::Result<Self> {
        let units = |text: &OsStr| text.encode_wide().count();
        let texts = variables.iter().map(|variable| {
            let text = units(&variable.prefix) + units(&variable.suffix) + PID_DIGITS;
            4 + 2 * text
        });
        let capacity = 64 + texts.sum::<usize>() + descriptors * (8 + INFO_SIZE);
        let security = SECURITY_ATTRIBUTES {
            nLength: size_of::<SECURITY_ATTRIBUTES>() as u32,
            lpSecurityDescriptor: ptr::null_mut(),
            bInheritHandle: 1,
        };
        let size = u32::try_from(capacity).map_err(io::Error::other)?;
        // SAFETY: `security` is alive; if the call succeeds, nothing else owns the handle.
        let handle = unsafe {
            let access = PAGE_READWRITE;
            handle::own(CreateFileMappingW(
                INVALID_HANDLE_VALUE,
                &security,
                access,
                0,
                size,
                ptr::null(),
            ))?
        };
        Ok(Self { handle, capacity })
    }

    pub(super) fn handle(&self) -> BorrowedHandle<'_> {
        self.handle.as_handle()
    }

    /// The entry of the environment that leads to the section.
    pub(super) fn variable(&self) -> OsString {
        format!("{VARIABLE}={}", self.handle.as_raw_handle() as usize).into()
    }

    /// Writes the table for a process that does not run yet.
    pub(super) fn fill(
        &self,
        pid: u32,
        process: BorrowedHandle<'_>,
        limit: Option<StartLimit>,
        variables: &[PidVariable],
        descriptors: &[&Kind],
    ) -> io::Result<()> {
        let mut table = Table {
            limit,
            ..Table::default()
        };
        for variable in variables {
            let mut text = variable.prefix.clone();
            text.push(pid.to_string());
            text.push(&variable.suffix);
            table.variables.push(text);
        }
        for descriptor in descriptors {
            let passed = match descriptor {
                Kind::Socket(socket) => Passed::Socket(record_for(socket, pid)?),
                Kind::Handle(own) => {
                    Passed::Handle(duplicate_into(process, own.as_handle(), None)?)
                }
            };
            table.descriptors.push(Some(passed));
        }
        self.write(&table.encode(pid))
    }

    #[allow(unsafe_code)]
    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() > self.capacity {
            return Err(io::Error::other("the passing table is too long"));
        }
        let view = View::map(self.handle.as_raw_handle(), FILE_MAP_WRITE)?;
        // SAFETY: the view is as long as the section at least, and the process that shares it does
        // not run yet.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), view.start().cast(), bytes.len()) };
        Ok(())
    }
}

/// The most digits of a process id.
const PID_DIGITS: usize = 10;

/// What makes a socket of another process of this socket.
#[allow(unsafe_code)]
pub(super) fn record_for(socket: &OwnedSocket, pid: u32) -> io::Result<Box<[u8; INFO_SIZE]>> {
    let mut info = WSAPROTOCOL_INFOW::default();
    // SAFETY: the socket is open, and `info` is alive.
    if unsafe { WSADuplicateSocketW(socket.as_raw_socket() as _, pid, &mut info) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the structure has no padding, and any bytes of it are initialised.
    Ok(Box::new(unsafe {
        std::mem::transmute::<WSAPROTOCOL_INFOW, [u8; INFO_SIZE]>(info)
    }))
}

impl Table {
    fn encode(&self, pid: u32) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        let word = |word: u32, bytes: &mut Vec<u8>| bytes.extend(word.to_ne_bytes());
        word(pid, &mut bytes);
        let limit = self
            .limit
            .map(|limit| [limit.millis, limit.parent, limit.job]);
        for number in limit.unwrap_or_default() {
            bytes.extend(number.to_ne_bytes());
        }
        word(self.variables.len() as u32, &mut bytes);
        for variable in &self.variables {
            let units: Vec<u16> = variable.encode_wide().collect();
            word(units.len() as u32, &mut bytes);
            bytes.extend(units.into_iter().flat_map(u16::to_ne_bytes));
        }
        word(self.descriptors.len() as u32, &mut bytes);
        for passed in self.descriptors.iter().flatten() {
            match passed {
                Passed::Handle(handle) => {
                    word(0, &mut bytes);
                    bytes.extend(handle.to_ne_bytes());
                }
                Passed::Socket(record) => {
                    word(1, &mut bytes);
                    bytes.extend(&record[..]);
                }
            }
        }
        bytes
    }

    /// `None` if these bytes are no table for this process.
    fn decode(mut bytes: &[u8], pid: u32) -> Option<Self> {
        let from = &mut bytes;
        if take_array::<8>(from)? != MAGIC || take_word(from)? != pid {
            return None;
        }
        let mut number = || Some(u64::from_ne_bytes(take_array(from)?));
        let limit = StartLimit {
            millis: number()?,
            parent: number()?,
            job: number()?,
        };
        let mut table = Self {
            limit: Some(limit).filter(|limit| limit.millis > 0),
            ..Self::default()
        };
        for _ in 0..take_word(from)? {
            let size = usize::try_from(take_word(from)?).ok()?.checked_mul(2)?;
            let (text, rest) = from.split_at_checked(size)?;
            *from = rest;
            let units = text
                .chunks_exact(2)
                .map(|two| u16::from_ne_bytes([two[0], two[1]]));
            table
                .variables
                .push(OsString::from_wide(&units.collect::<Vec<_>>()));
        }
        for _ in 0..take_word(from)? {
            table.descriptors.push(Some(match take_word(from)? {
                0 => Passed::Handle(u64::from_ne_bytes(take_array(from)?)),
                1 => Passed::Socket(Box::new(take_array(from)?)),
                _ => return None,
            }));
        }
        Some(table)
    }
}

fn take_array<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let (array, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(*array)
}

fn take_word(from: &mut &[u8]) -> Option<u32> {
    take_array(from).map(u32::from_ne_bytes)
}

// ---- the side of the process that was started ----

/// The table of this process. Empty if it was started without one.
fn own_table() -> &'static Mutex<Table> {
    static TABLE: OnceLock<Mutex<Table>> = OnceLock::new();
    TABLE.get_or_init(|| Mutex::new(read_own().unwrap_or_default()))
}

/// Reads the table of this process, and closes its section.
#[allow(unsafe_code)]
fn read_own() -> Option<Table> {
    let number: usize = env::var(VARIABLE).ok()?.parse().ok()?;
    let section = number as HANDLE;
    // A child that inherits the variable has no such handle, or has one of something else.
    let view = View::map(section, FILE_MAP_READ).ok()?;
    let table = Table::decode(view.bytes()?, process::id())?;
    // SAFETY: the table is for this process, so that this is the handle that it was started with.
    // This function runs once, so that nothing has closed the handle before.
    drop(unsafe { OwnedHandle::from_raw_handle(section) });
    Some(table)
}

/// The value of an environment variable that is for this process only.
pub(super) fn own_variable(name: &str) -> Option<OsString> {
    let table = own_table().lock();
    table.variables.iter().find_map(|variable| {
        let units: Vec<u16> = variable.encode_wide().collect();
        let prefix: Vec<u16> = name.encode_utf16().chain([u16::from(b'=')]).collect();
        units.strip_prefix(&prefix[..]).map(OsString::from_wide)
    })
}

/// Takes what bounds the start of this process.
pub(super) fn take_start_limit() -> Option<StartLimit> {
    own_table().lock().limit.take()
}

/// Takes a descriptor that was passed to this process.
pub(super) fn take(number: i32) -> io::Result<Kind> {
    let index = usize::try_from(number - FIRST_PASSED).ok();
    let mut table = own_table().lock();
    let passed = index.and_then(|index| table.descriptors.get_mut(index)?.take());
    drop(table);
    let not_passed = || io::Error::new(io::ErrorKind::NotFound, "nothing was passed there");
    match passed.ok_or_else(not_passed)? {
        Passed::Handle(handle) => Ok(Kind::Handle(own_passed(handle))),
        Passed::Socket(record) => socket_of(&record).map(Kind::Socket),
    }
}

/// Takes the ownership of a handle that another process has made for this one. To be called once
/// for a number in the table.
#[allow(unsafe_code)]
pub(super) fn own_passed(handle: u64) -> OwnedHandle {
    // SAFETY: the process that started this one has made the handle for it. The table says this,
    // and gives each number only once.
    unsafe { OwnedHandle::from_raw_handle(handle as usize as HANDLE) }
}

/// The socket that another process has made this record of, for this process. The socket exists in
/// this process from the moment when the record was made, and is closed only if it is taken by this
/// call. To be called once for a record.
///
/// A record holds the number of the socket's handle. So a forged record could make this process close
/// a handle that it uses. Records come from the parent of this process, and from processes that may
/// write to the pipes of this crate (see [`security`](super::security)): those of the same user or of
/// administrators, and only those with a high integrity level if that of this process is above medium.
/// The system lets all of these close handles of this process directly (DuplicateHandle).
#[allow(unsafe_code)]
pub(super) fn socket_of(record: &[u8; INFO_SIZE]) -> io::Result<OwnedSocket> {
    // The first use of the standard library's sockets starts Winsock.
    drop(std::net::UdpSocket::bind("127.0.0.1:0"));
    let flags = WSA_FLAG_OVERLAPPED | WSA_FLAG_NO_HANDLE_INHERIT;
    let any = FROM_PROTOCOL_INFO;
    // SAFETY: any bytes are valid for this structure, which holds numbers only. It is alive during
    // the call. If the call succeeds, it has made a socket, which nothing else owns: each record is
    // taken once, and comes from a process that may do to this one what it likes.
    let socket = unsafe {
        let info: WSAPROTOCOL_INFOW = std::mem::transmute_copy(record);
        match WSASocketW(any, any, any, &info, 0, flags) {
            INVALID_SOCKET => return Err(io::Error::last_os_error()),
            socket => Socket::from_raw_socket(socket as _),
        }
    };
    // The flag is for sockets that the call makes; this one was made by the other process. A program
    // that is started before this call inherits the socket if its starter passes all inheritable
    // handles, which this crate does not.
    socket.set_no_inherit(true)?;
    Ok(socket.into())
}

/// A part of the memory of this process that shows a section.
struct View(MEMORY_MAPPED_VIEW_ADDRESS);

impl View {
    #[allow(unsafe_code)]
    fn map(section: HANDLE, access: u32) -> io::Result<Self> {
        // SAFETY: the call takes numbers; it fails if the handle is not one of a section.
        let view = unsafe { MapViewOfFile(section, access, 0, 0, 0) };
        if view.Value.is_null() {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(view))
    }

    fn start(&self) -> *mut core::ffi::c_void {
        self.0.Value
    }

    /// What is in the section.
    #[allow(unsafe_code)]
    fn bytes(&self) -> Option<&[u8]> {
        let mut found = MEMORY_BASIC_INFORMATION::default();
        let size = size_of::<MEMORY_BASIC_INFORMATION>();
        // SAFETY: `found` is alive, and the view is mapped. Its pages all have the same access, so
        // that they are one region. The starter has written before this process began to run.
        unsafe {
            if VirtualQuery(self.start(), &mut found, size) == 0 {
                return None;
            }
            Some(slice::from_raw_parts(self.start().cast(), found.RegionSize))
        }
    }
}

impl Drop for View {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: the view is mapped, and nothing borrows from it any more.
        if unsafe { UnmapViewOfFile(self.0) } == 0 {
            log::error!("cannot unmap a section: {}", io::Error::last_os_error());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        Table {
            limit: Some(StartLimit {
                millis: 1,
                parent: 2,
                job: u64::MAX,
            }),
            variables: vec!["A=ä".into(), OsString::from_wide(&[0x42, 0x3d, 0xd800])],
            descriptors: vec![
                Some(Passed::Handle(8)),
                Some(Passed::Socket(Box::new([7; INFO_SIZE]))),
            ],
        }
    }

    #[test]
    fn a_table_is_for_one_process() {
        let bytes = table().encode(5);
        let read = Table::decode(&bytes, 5).unwrap();
        assert_eq!(format!("{read:?}"), format!("{:?}", table()));
        assert!(Table::decode(&bytes, 6).is_none());
        // A section ends with a page.
        let padded = [&bytes[..], &[0; 4096]].concat();
        assert!(Table::decode(&padded, 5).is_some());
        for length in 0..bytes.len() {
            assert!(Table::decode(&bytes[..length], 5).is_none(), "{length}");
        }
    }

    #[test]
    fn a_section_has_room_for_what_it_was_made_for() {
        let variables = [
            PidVariable::new("LISTEN_PID=", ""),
            PidVariable::new("ä=", "x"),
        ];
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = Kind::Socket(listener.into());
        for descriptors in [vec![], vec![&socket]] {
            let section = Section::new(&variables, descriptors.len()).unwrap();
            // SAFETY: this names the process itself, and needs no close.
            #[allow(unsafe_code)]
            let own = unsafe {
                BorrowedHandle::borrow_raw(
                    windows_sys::Win32::System::Threading::GetCurrentProcess(),
                )
            };
            let pid = process::id();
            section
                .fill(pid, own, None, &variables, &descriptors)
                .unwrap();
            let view = View::map(section.handle.as_raw_handle(), FILE_MAP_READ).unwrap();
            let table = Table::decode(view.bytes().unwrap(), pid).unwrap();
            assert_eq!(
                table.variables[0],
                OsString::from(format!("LISTEN_PID={pid}"))
            );
            assert_eq!(table.variables[1], OsString::from(format!("ä={pid}x")));
            assert_eq!(table.descriptors.len(), descriptors.len());
        }
    }
}
