//! Windows: the event objects by which other processes control this one. Each stands for a signal.

use std::io;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::process;

use windows_sys::Win32::Foundation::{
    ERROR_ACCESS_DENIED, ERROR_ALREADY_EXISTS, ERROR_INVALID_HANDLE, GetLastError, WAIT_OBJECT_0,
};
use windows_sys::Win32::System::Threading::{
    CreateEventW, EVENT_ALL_ACCESS, INFINITE, WaitForMultipleObjects,
};

use super::security::OwnersOnly;
use crate::sys::Signal;

/// The end of the name of each event object, and its signal. Of several that are set, the first one
/// here is reported first.
const EVENTS: [(&str, Signal); 4] = [
    ("stop-now", Signal::Quit),
    ("stop", Signal::Terminate),
    ("restart", Signal::Hangup),
    ("user1", Signal::User1),
];

/// The end of the name of the event object that stands for the signal.
pub(super) fn suffix_of(signal: Signal) -> Option<&'static str> {
    let event = EVENTS.iter().find(|(_, own)| *own == signal);
    event.map(|(suffix, _)| *suffix)
}

/// The event objects of this process. Several settings before a wait count as one, as with signals.
#[derive(Debug)]
pub(super) struct NamedEvents([OwnedHandle; EVENTS.len()]);

impl NamedEvents {
    /// The names are the prefix, the process id, and the request: `Local\shop.4711.stop`.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` if a name is taken: another program has made an object of this name, and
    /// would keep its own access rules. Any user may make objects of the names of session 0, where
    /// services run. A server that started without its events could not be stopped by them, so this
    /// is an error. A private namespace would hide the names from others, but also from PowerShell.
    pub(super) fn create(prefix: &str) -> io::Result<Self> {
        let owners = OwnersOnly::new(EVENT_ALL_ACCESS)?;
        let create = |(what, _): (&str, Signal)| {
            let name = format!("{prefix}.{}.{what}", process::id());
            create(&name, &owners).map_err(|error| {
                let text = format!("cannot create the event object {name}: {error}");
                io::Error::new(error.kind(), text)
            })
        };
        let [now, stop, restart, user1] = EVENTS;
        Ok(Self([
            create(now)?,
            create(stop)?,
            create(restart)?,
            create(user1)?,
        ]))
    }

    /// Waits until one of them is set, and resets that one.
    #[allow(unsafe_code)]
    pub(super) fn wait(&self) -> io::Result<Signal> {
        let handles = self.0.each_ref().map(|event| event.as_raw_handle());
        // SAFETY: the handles are open, and as many as the call is told.
        let set =
            unsafe { WaitForMultipleObjects(handles.len() as u32, handles.as_ptr(), 0, INFINITE) };
        match EVENTS.get(set.wrapping_sub(WAIT_OBJECT_0) as usize) {
            Some((_, signal)) => Ok(*signal),
            None => Err(io::Error::last_os_error()),
        }
    }
}

/// Creates an event object that resets itself, and is not set.
#[allow(unsafe_code)]
fn create(name: &str, owners: &OwnersOnly) -> io::Result<OwnedHandle> {
    let wide = super::wide(name);
    // SAFETY: the attributes and the name are alive, and the name ends with a null character. A
    // handle that is not null is open and has no other owner.
    let (event, error) = unsafe {
        let event = CreateEventW(&owners.attributes(), 0, 0, wide.as_ptr());
        let error = GetLastError();
        let event = (!event.is_null()).then(|| OwnedHandle::from_raw_handle(event));
        (event, error)
    };
    match (event, error) {
        (Some(event), error) if error != ERROR_ALREADY_EXISTS => Ok(event),
        // The object exists already, or is no event object.
        (Some(_), _) | (None, ERROR_INVALID_HANDLE) => {
            let text = "another program has taken this name";
            Err(io::Error::new(io::ErrorKind::AlreadyExists, text))
        }
        // An object that denies access to this process.
        (None, ERROR_ACCESS_DENIED) => {
            let text = "another program, perhaps of another user, has taken this name and denies \
                        access; set an event prefix that no other user can guess";
            Err(io::Error::new(io::ErrorKind::AlreadyExists, text))
        }
        (None, error) => Err(io::Error::from_raw_os_error(error as i32)),
    }
}
