//! Windows: what stands for the signals of a supervisor: event objects and console events.

use std::collections::VecDeque;
use std::io;
use std::sync::OnceLock;

use parking_lot::Mutex;

use super::port;
use crate::sys::unix::console;
use crate::sys::{EventPrefix, Signal, signal};

/// Those that have come. Repeated ones count as one, as with signals of Unix, so that the queue is
/// bounded.
static RECEIVED: Mutex<VecDeque<Signal>> = Mutex::new(VecDeque::new());

/// How the names of the event objects begin. Set once: the objects exist until the process ends.
static EVENT_NAMES: OnceLock<String> = OnceLock::new();

/// Reads the signals that have come, and knows the names of the event objects.
#[derive(Debug)]
pub(crate) struct SignalFd {
    event_names: &'static str,
}

impl SignalFd {
    /// The event objects are made once: after that, the prefix has no effect.
    ///
    /// # Errors
    ///
    /// Another program has taken the name of an event object.
    pub(crate) fn open(event_prefix: Option<&EventPrefix>) -> io::Result<Self> {
        if EVENT_NAMES.get().is_none() {
            let names = signal::watch_for_supervisor(event_prefix, receive)?;
            let _ = EVENT_NAMES.set(names);
        }
        console::forget_delivered();
        let event_names = EVENT_NAMES.get().map_or("", String::as_str);
        Ok(Self { event_names })
    }

    /// How the names of the event objects of this process begin.
    pub(crate) fn event_names(&self) -> Option<String> {
        Some(self.event_names.to_owned())
    }

    /// A signal that has come. `None` if there is none.
    pub(crate) fn read(&self) -> io::Result<Option<Signal>> {
        Ok(RECEIVED.lock().pop_front())
    }

    pub(super) fn is_ready(&self) -> bool {
        !RECEIVED.lock().is_empty()
    }
}

fn receive(signal: Signal) -> bool {
    let mut received = RECEIVED.lock();
    if !received.contains(&signal) {
        received.push_back(signal);
    }
    drop(received);
    port::wake();
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_supervisor_of_a_process_has_the_event_objects_of_the_first() {
        let prefix = EventPrefix::parse("signal-fd-test").unwrap();
        let names = || SignalFd::open(Some(&prefix)).unwrap().event_names();
        let first = names();
        assert!(first.as_ref().unwrap().contains("signal-fd-test"));
        assert_eq!(names(), first);
    }
}
