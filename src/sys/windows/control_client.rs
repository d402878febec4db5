//! Windows: the client's end of a supervisor's control pipe.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::pipe::{PipeClient, PipeKind, full_name};

/// A connection to a supervisor, for the command `handover`.
#[derive(Debug)]
pub struct ControlClient {
    pipe: PipeClient,
    limit: Option<Duration>,
}

impl ControlClient {
    /// Connects to the control pipe of this name. The limit is for this call and for each
    /// [`send`](Self::send); `None` is no limit.
    pub fn connect(path: &Path, limit: Option<Duration>) -> io::Result<Self> {
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        let pipe = PipeClient::open_by(&full_name(path), PipeKind::Bytes, deadline)?;
        Ok(Self { pipe, limit })
    }

    /// Sends all of these bytes.
    pub fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let sent = self.pipe.write(bytes, self.limit)?;
            bytes = &bytes[sent.min(bytes.len())..];
        }
        Ok(())
    }

    /// Receives what has come, or waits for at most the limit. 0 is the end.
    ///
    /// # Errors
    ///
    /// `WouldBlock` or `TimedOut` if nothing has come.
    pub fn receive(&mut self, into: &mut [u8], limit: Option<Duration>) -> io::Result<usize> {
        self.pipe.read(into, limit)
    }
}
