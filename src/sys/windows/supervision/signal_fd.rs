//! Windows: what stands for the signals of a supervisor: event objects and console events.

use std::collections::VecDeque;
use std::io;

use parking_lot::Mutex;

use super::port;
use crate::sys::{EventPrefix, Signal, signal};

/// Those that have come. Repeated ones count as one, as with signals of Unix, so that the queue is
/// bounded.
static RECEIVED: Mutex<VecDeque<Signal>> = Mutex::new(VecDeque::new());

/// Reads the signals that have come, and knows the names of the event objects.
#[derive(Debug)]
pub(crate) struct SignalFd {
    event_names: String,
}

impl SignalFd {
    /// A second call is an error: the names are taken.
    ///
    /// # Errors
    ///
    /// Another program has taken the name of an event object.
    pub(crate) fn open(event_prefix: Option<&EventPrefix>) -> io::Result<Self> {
        let event_names = signal::watch_for_supervisor(event_prefix, receive)?;
        Ok(Self { event_names })
    }

    /// How the names of the event objects of this process begin.
    pub(crate) fn event_names(&self) -> Option<String> {
        Some(self.event_names.clone())
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
