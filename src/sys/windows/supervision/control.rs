//! Windows: the named pipe of the control clients, which is a stream of bytes in both directions.
//!
//! Each client has an instance of the pipe. A read is always in progress on it, and what has come
//! is kept until [`ControlStream::receive`]: at most [`PIECE`] bytes.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::io;
use std::os::windows::io::{AsHandle, OwnedHandle};
use std::path::Path;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use socket2::Socket;

use super::port::{self, Done, OperationKind, Outcome, Target};
use super::{IsReady, Source};
use crate::sys::unix::pipe::{self, PipeKind, create_instance};
use crate::sys::unix::unsupported_error;
use crate::sys::{Descriptor, Interest, process};

/// The most instances that wait for a client.
const MAX_LISTENING: usize = 4;

/// The most clients that wait to be accepted.
const MAX_QUEUED: usize = 64;

/// How much is read and written at once, in bytes.
const PIECE: usize = 4096;

/// The control channel.
#[derive(Debug)]
pub(crate) struct ControlPipe(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    name: OsString,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next_id: u64,
    listening: BTreeMap<u64, OwnedHandle>,
    connected: VecDeque<OwnedHandle>,
}

/// The target that is told when a client has connected.
struct Instance {
    shared: Weak<Shared>,
    id: u64,
}

impl ControlPipe {
    /// # Errors
    ///
    /// `AlreadyExists` if another process has a pipe of this name.
    pub(crate) fn bind(path: &Path) -> io::Result<Option<Self>> {
        let shared = Arc::new(Shared {
            name: pipe::full_name(path),
            state: Mutex::default(),
        });
        // Wine makes a second pipe of the same name.
        let bound = match pipe::exists(&shared.name) {
            true => Err(io::ErrorKind::PermissionDenied.into()),
            false => shared.listen(&mut shared.state.lock(), true),
        };
        bound.map_err(|error| {
            let name = Path::new(&shared.name).display();
            match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    let text = format!("another process has the control pipe {name}");
                    io::Error::new(io::ErrorKind::AlreadyExists, text)
                }
                kind => io::Error::new(kind, format!("cannot make the pipe {name}: {error}")),
            }
        })?;
        Ok(Some(Self(shared)))
    }

    /// Accepts a client, or fails with `WouldBlock`.
    pub(crate) fn accept(&self) -> io::Result<ControlStream> {
        port::deliver()?;
        let pipe = {
            let mut state = self.0.state.lock();
            let pipe = state.connected.pop_front();
            self.0.listen(&mut state, false)?;
            pipe
        };
        ControlStream::new(pipe.ok_or(io::ErrorKind::WouldBlock)?)
    }

    pub(crate) fn source(&self) -> Source<'_> {
        &*self.0
    }
}

impl Shared {
    fn listen(self: &Arc<Self>, state: &mut State, is_first: bool) -> io::Result<()> {
        let mut is_first = is_first;
        let wanted = MAX_QUEUED.saturating_sub(state.connected.len());
        while state.listening.len() < wanted.min(MAX_LISTENING) {
            let instance = create_instance(&self.name, PipeKind::Bytes, is_first)?;
            is_first = false;
            port::associate(&instance)?;
            let id = state.next_id;
            state.next_id += 1;
            let shared = Arc::downgrade(self);
            port::begin_connect(instance.as_handle(), Arc::new(Instance { shared, id }))?;
            state.listening.insert(id, instance);
        }
        Ok(())
    }
}

impl IsReady for Shared {
    fn is_ready(&self, _interest: Interest) -> bool {
        !self.state.lock().connected.is_empty()
    }
}

impl Target for Instance {
    fn complete(&self, done: Done) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        let mut state = shared.state.lock();
        let pipe = state.listening.remove(&self.id);
        if let (Some(pipe), Outcome::Done(_)) = (pipe, done.outcome) {
            state.connected.push_back(pipe);
        }
        // The next call of `accept` tries again after an error.
        let _ = shared.listen(&mut state, false);
    }
}

/// The connection of a control client. No call waits.
#[derive(Debug)]
pub(crate) struct ControlStream {
    /// Its close leaves what was written to the client.
    pipe: OwnedHandle,
    transfer: Arc<Transfer>,
}

/// The operations on a connection.
#[derive(Debug, Default)]
struct Transfer(Mutex<TransferState>);

#[derive(Debug, Default)]
struct TransferState {
    input: Vec<u8>,
    is_reading: bool,
    /// The client has closed its end.
    has_ended: bool,
    is_writing: bool,
    /// How much was written, for the next call of [`ControlStream::send`].
    written: Option<usize>,
}

impl ControlStream {
    fn new(pipe: OwnedHandle) -> io::Result<Self> {
        let transfer = Arc::default();
        let stream = Self { pipe, transfer };
        stream.begin_read(&mut stream.transfer.0.lock());
        // Most clients have sent their requests already.
        port::deliver()?;
        Ok(stream)
    }

    pub(crate) fn from_socket(_socket: Socket) -> io::Result<Self> {
        Err(unsupported_error(
            "control clients are no sockets on Windows",
        ))
    }

    pub(crate) fn source(&self) -> Source<'_> {
        &*self.transfer
    }

    pub(crate) fn duplicate(&self) -> io::Result<Descriptor> {
        Err(unsupported_error("a control client cannot be passed on"))
    }

    /// The system lets no other user open the pipe, but for administrators.
    pub(crate) fn peer_uid(&self) -> io::Result<u32> {
        Ok(process::effective_uid())
    }

    pub(crate) fn receive(&self, into: &mut [u8]) -> io::Result<(usize, Vec<Descriptor>)> {
        port::deliver()?;
        let mut state = self.transfer.0.lock();
        if state.input.is_empty() {
            return match state.has_ended {
                true => Ok((0, Vec::new())),
                false => Err(io::ErrorKind::WouldBlock.into()),
            };
        }
        let count = state.input.len().min(into.len());
        into[..count].copy_from_slice(&state.input[..count]);
        state.input.drain(..count);
        if state.input.is_empty() {
            self.begin_read(&mut state);
        }
        Ok((count, Vec::new()))
    }

    fn begin_read(&self, state: &mut TransferState) {
        if !state.is_reading && !state.has_ended {
            let target = Arc::clone(&self.transfer) as Arc<dyn Target>;
            state.is_reading = true;
            if port::begin_read(self.pipe.as_handle(), PIECE, target).is_err() {
                state.is_reading = false;
                state.has_ended = true;
            }
        }
    }

    /// Sends a part of `bytes`, and returns its length. After `WouldBlock`, the next call must have
    /// the same bytes.
    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(PIECE)];
        {
            let mut state = self.transfer.0.lock();
            if !state.is_writing && state.written.is_none() {
                let target = Arc::clone(&self.transfer) as Arc<dyn Target>;
                port::begin_write(self.pipe.as_handle(), piece.to_vec(), target)?;
                state.is_writing = true;
            }
        }
        port::deliver()?;
        let mut state = self.transfer.0.lock();
        match state.written.take() {
            Some(0) => Err(io::ErrorKind::BrokenPipe.into()),
            Some(count) => Ok(count),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Ends the connection: the client can still read what was sent.
    pub(crate) fn end(self) -> Option<Descriptor> {
        None
    }
}

impl IsReady for Transfer {
    fn is_ready(&self, interest: Interest) -> bool {
        let state = self.0.lock();
        match interest {
            Interest::Read => !state.input.is_empty() || state.has_ended,
            Interest::Write | Interest::Both => !state.is_writing,
        }
    }
}

impl Target for Transfer {
    fn complete(&self, done: Done) {
        let mut state = self.0.lock();
        match (done.kind, done.outcome) {
            (OperationKind::Read, Outcome::Done(1..)) => {
                state.is_reading = false;
                state.input = done.bytes;
            }
            (OperationKind::Read, _) => {
                state.is_reading = false;
                state.has_ended = true;
            }
            (OperationKind::Write, outcome) => {
                state.is_writing = false;
                state.written = Some(match outcome {
                    Outcome::Done(count) => count,
                    Outcome::TooLong | Outcome::Failed => 0,
                });
            }
            (OperationKind::Connect, _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::sys::ControlClient;

    const LIMIT: Option<Duration> = Some(Duration::from_secs(60));

    fn name() -> String {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        format!("handover-control-{}-{number}", std::process::id())
    }

    /// Waits for the source, and tries again.
    fn until<T>(source: Source<'_>, interest: Interest, attempt: impl Fn() -> io::Result<T>) -> T {
        loop {
            match attempt() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !source.is_ready(interest) {
                        assert!(port::wait(LIMIT).unwrap());
                    }
                }
                result => return result.unwrap(),
            }
        }
    }

    #[test]
    fn a_request_is_read_and_a_long_answer_is_written() {
        let _alone = port::ONE_AT_A_TIME.lock();
        let name = name();
        let pipe = ControlPipe::bind(name.as_ref()).unwrap().unwrap();
        let taken = ControlPipe::bind(name.as_ref()).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
        let client = thread::spawn(move || {
            let mut client = ControlClient::connect(name.as_ref(), LIMIT).unwrap();
            client.send(b"status\n").unwrap();
            let (mut answer, mut piece) = (Vec::new(), [0; 5000]);
            loop {
                match client.receive(&mut piece, LIMIT).unwrap() {
                    0 => return answer,
                    size => answer.extend_from_slice(&piece[..size]),
                }
            }
        });
        let stream = until(pipe.source(), Interest::Read, || pipe.accept());
        let mut request = Vec::new();
        while !request.ends_with(b"\n") {
            let mut piece = [0; 4];
            let size = loop {
                match stream.receive(&mut piece) {
                    Ok((size, _)) => break size,
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
                if !stream.source().is_ready(Interest::Read) {
                    assert!(port::wait(LIMIT).unwrap());
                }
            };
            request.extend_from_slice(&piece[..size]);
        }
        assert_eq!(request, b"status\n");
        let answer: Vec<u8> = (0..900_000_u32).map(|number| number as u8).collect();
        let mut rest = &answer[..];
        while !rest.is_empty() {
            let sent = until(stream.source(), Interest::Write, || stream.send(rest));
            rest = &rest[sent..];
        }
        assert!(stream.end().is_none());
        assert!(client.join().unwrap() == answer);
    }

    #[test]
    fn the_end_of_a_client_is_seen() {
        let _alone = port::ONE_AT_A_TIME.lock();
        let name = name();
        let pipe = ControlPipe::bind(name.as_ref()).unwrap().unwrap();
        let client = ControlClient::connect(name.as_ref(), LIMIT).unwrap();
        let stream = until(pipe.source(), Interest::Read, || pipe.accept());
        let nothing = stream.receive(&mut [0; 8]).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        drop(client);
        let end = until(stream.source(), Interest::Read, || {
            stream.receive(&mut [0; 8])
        });
        assert_eq!(end.0, 0);
        drop((pipe, stream));
        let gone = ControlClient::connect(name.as_ref(), LIMIT).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
    }
}
