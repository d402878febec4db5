//! Windows: the named pipe that receives the notifications of processes.
//!
//! A process opens the pipe for each notification, and writes the notification as one message: a text
//! and the records of sockets, see [`socket_message`]. The instance stays open until the supervisor
//! has handled the notification. So the sender can wait for that, and the supervisor can answer, with
//! a message of the same form.
//!
//! The pipe is open to the user of the supervisor and to administrators only, see
//! [`pipe`](crate::sys::unix::pipe).

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::windows::io::{AsHandle, OwnedHandle};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use socket2::Socket;

use super::port::{self, Done, OperationKind, Outcome, Target};
use super::{IsReady, Source};
use crate::sys::unix::pipe::{self, PipeKind, create_instance};
use crate::sys::unix::socket_message::{self, MAX_MESSAGE};
use crate::sys::unix::supervised_events::{self, PIPE_PREFIX};
use crate::sys::unix::unsupported_error;
use crate::sys::{Datagram, Descriptor, process};

/// The most instances that wait for a client.
const MAX_LISTENING: usize = 16;

/// The most clients that have connected and have not sent their notification. Beyond that, the
/// oldest of them is given up.
const MAX_READING: usize = 64;

/// The most notifications that wait for the supervisor. Senders of more try again later.
const MAX_QUEUED: usize = 256;

/// The pipe of a supervisor, for the notifications of its processes.
#[derive(Debug)]
pub(crate) struct NotifySocket(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    name: OsString,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next_id: u64,
    listening: BTreeMap<u64, OwnedHandle>,
    /// The oldest first.
    reading: BTreeMap<u64, OwnedHandle>,
    queue: VecDeque<Message>,
}

/// A notification that has come. Its drop closes its sockets, if they were not taken.
#[derive(Debug)]
struct Message {
    bytes: Vec<u8>,
    /// The process at the other end, and the pipe to it. `None` when the sockets were taken.
    sender: Option<(u32, OwnedHandle)>,
}

/// The target that is told of the operations on an instance.
struct Instance {
    shared: Weak<Shared>,
    id: u64,
}

impl NotifySocket {
    pub(crate) fn bind() -> io::Result<Self> {
        let number = RandomState::new().build_hasher().finish();
        let name = format!("{PIPE_PREFIX}{}-{number:016x}", std::process::id());
        let shared = Arc::new(Shared {
            name: pipe::full_name(name.as_ref()),
            state: Mutex::default(),
        });
        shared.listen(&mut shared.state.lock(), true)?;
        supervised_events::record_supervisor(&shared.name);
        Ok(Self(shared))
    }

    pub(crate) fn from_bound(_socket: Socket) -> io::Result<Self> {
        Err(unsupported_error("a notification pipe cannot be passed on"))
    }

    /// The value of NOTIFY_SOCKET.
    pub(crate) fn name(&self) -> &OsStr {
        &self.0.name
    }

    pub(crate) fn source(&self) -> Source<'_> {
        &*self.0
    }

    pub(crate) fn duplicate(&self) -> io::Result<Descriptor> {
        Err(unsupported_error("a notification pipe cannot be passed on"))
    }

    /// The next notification, which stays in the queue, with its descriptors. `None` if there is
    /// none.
    pub(crate) fn peek(&self) -> io::Result<Option<Datagram>> {
        port::deliver()?;
        let mut state = self.0.state.lock();
        // After an error, too few may listen.
        self.0.listen(&mut state, false)?;
        let datagram = state.queue.front().map(|message| {
            let (text, sockets) = socket_message::split_message(&message.bytes);
            Datagram {
                pid: message.sender.as_ref().map_or(0, |(pid, _)| *pid),
                // The system lets no other user open the pipe, but for administrators.
                uid: process::effective_uid(),
                text: String::from_utf8_lossy(text).into_owned(),
                has_descriptors: !sockets.is_empty(),
            }
        });
        Ok(datagram)
    }

    /// Takes the next notification from the queue, with its descriptors.
    ///
    /// # Errors
    ///
    /// Not all descriptors could be received. The notification is lost then.
    pub(crate) fn take(&self) -> io::Result<TakenNotification> {
        match self.0.pop() {
            Some(message) => message.receive(),
            None => Ok(TakenNotification::default()),
        }
    }

    /// Takes the next notification from the queue. Its sockets are closed, which does not wait for
    /// their peers.
    pub(crate) fn discard(&self) -> io::Result<()> {
        discard(self.0.pop())
    }

    /// A function that does the same, for another thread.
    pub(crate) fn discarder(&self) -> io::Result<impl FnOnce() -> io::Result<()> + Send + 'static> {
        let shared = Arc::clone(&self.0);
        Ok(move || discard(shared.pop()))
    }
}

fn discard(message: Option<Message>) -> io::Result<()> {
    if let Some(message) = message {
        let taken = message.receive()?;
        taken
            .descriptors
            .into_iter()
            .for_each(crate::sys::descriptor::discard);
    }
    Ok(())
}

impl Shared {
    fn pop(&self) -> Option<Message> {
        self.state.lock().queue.pop_front()
    }

    /// Has as many instances wait for clients as there is room for.
    fn listen(self: &Arc<Self>, state: &mut State, is_first: bool) -> io::Result<()> {
        let in_use = state.reading.len() + state.queue.len();
        let wanted = MAX_QUEUED.saturating_sub(in_use).min(MAX_LISTENING);
        let mut is_first = is_first;
        while state.listening.len() < wanted {
            let instance = create_instance(&self.name, PipeKind::Messages, is_first)?;
            is_first = false;
            port::associate(&instance)?;
            let id = state.next_id;
            state.next_id += 1;
            port::begin_connect(instance.as_handle(), self.target(id))?;
            state.listening.insert(id, instance);
        }
        Ok(())
    }

    fn target(self: &Arc<Self>, id: u64) -> Arc<dyn Target> {
        let shared = Arc::downgrade(self);
        Arc::new(Instance { shared, id })
    }

    fn handle_connect(self: &Arc<Self>, state: &mut State, id: u64) {
        let Some(pipe) = state.listening.remove(&id) else {
            return;
        };
        if port::begin_read(pipe.as_handle(), MAX_MESSAGE, self.target(id)).is_ok() {
            state.reading.insert(id, pipe);
        }
        if state.reading.len() > MAX_READING {
            state.reading.pop_first();
        }
    }

    fn handle_message(&self, state: &mut State, id: u64, bytes: Vec<u8>) {
        // `None`: the client was given up.
        let pipe = state.reading.remove(&id);
        let sender = pipe.and_then(|pipe| Some((pipe::client_pid(&pipe).ok()?, pipe)));
        match sender {
            Some(_) => state.queue.push_back(Message { bytes, sender }),
            None => socket_message::discard(&bytes),
        }
    }
}

impl IsReady for Shared {
    fn is_ready(&self, _interest: crate::sys::Interest) -> bool {
        !self.state.lock().queue.is_empty()
    }
}

impl Target for Instance {
    fn complete(&self, done: Done) {
        let Some(shared) = self.shared.upgrade() else {
            let has_bytes = matches!(done.outcome, Outcome::Done(_) | Outcome::TooLong);
            if done.kind == OperationKind::Read && has_bytes {
                socket_message::discard(&done.bytes);
            }
            return;
        };
        let mut state = shared.state.lock();
        match (done.kind, done.outcome) {
            (OperationKind::Connect, Outcome::Done(_)) => {
                shared.handle_connect(&mut state, self.id);
                // The next peek tries again after an error.
                let _ = shared.listen(&mut state, false);
            }
            (OperationKind::Connect, _) => drop(state.listening.remove(&self.id)),
            (OperationKind::Read, Outcome::Done(1..)) => {
                shared.handle_message(&mut state, self.id, done.bytes);
            }
            // The text of a message that is too long is empty. Its sockets are closed, as far as
            // their records have come.
            (OperationKind::Read, Outcome::TooLong) => {
                socket_message::discard(&done.bytes);
                shared.handle_message(&mut state, self.id, Vec::new());
            }
            (OperationKind::Read, _) => drop(state.reading.remove(&self.id)),
            (OperationKind::Write, _) => {}
        }
    }
}

impl Message {
    fn receive(mut self) -> io::Result<TakenNotification> {
        let sender = self.sender.take();
        let (_, sockets) = socket_message::split_message(&self.bytes);
        Ok(TakenNotification {
            descriptors: socket_message::import_sockets(sockets)?,
            sender,
        })
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        if self.sender.is_some() {
            socket_message::discard(&self.bytes);
        }
    }
}

/// A notification that was taken from the queue. Its sender may wait until this is dropped.
#[derive(Debug, Default)]
pub(crate) struct TakenNotification {
    pub(crate) descriptors: Vec<Descriptor>,
    sender: Option<(u32, OwnedHandle)>,
}

/// Nobody needs to know that an answer was written.
struct Ignored;

impl Target for Ignored {
    fn complete(&self, _: Done) {}
}

impl TakenNotification {
    pub(crate) fn wants_answer(&self) -> bool {
        self.sender.is_some()
    }

    /// The pipe has room for the answer, so that it is written at once.
    pub(crate) fn answer(&self, text: &str, descriptors: &[&Descriptor]) -> io::Result<()> {
        let (pid, pipe) = self.sender.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let bytes = socket_message::make_message(text, descriptors, *pid)?;
        port::begin_write(pipe.as_handle(), bytes, Arc::new(Ignored))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::sys::Interest;
    use crate::sys::message::{AnswerChannel, ManagerConnection};
    use crate::sys::unix::pipe::PipeClient;

    const LIMIT: Duration = Duration::from_secs(60);

    fn send(to: &NotifySocket, text: &str) -> io::Result<ManagerConnection> {
        let connection = ManagerConnection::open(to.name())?;
        connection.send(text, &[])?;
        Ok(connection)
    }

    fn is_busy<T>(result: &io::Result<T>) -> bool {
        let error = result.as_ref().err();
        error.is_some_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    #[test]
    fn notifications_come_in_order_and_nothing_waits() {
        let _alone = port::ONE_AT_A_TIME.lock();
        let socket = NotifySocket::bind().unwrap();
        assert!(socket.peek().unwrap().is_none());
        let mut sent = 0;
        loop {
            let mut result = send(&socket, &sent.to_string());
            if is_busy(&result) {
                // The supervisor has the next ones listen. When its queue is full, it does not.
                socket.peek().unwrap();
                result = send(&socket, &sent.to_string());
            }
            if is_busy(&result) {
                break;
            }
            result.unwrap();
            sent += 1;
        }
        assert!((MAX_LISTENING..=MAX_QUEUED).contains(&sent), "{sent}");
        for expected in 0..sent {
            assert!(socket.source().is_ready(Interest::Read));
            let datagram = socket.peek().unwrap().unwrap();
            assert_eq!(datagram.text, expected.to_string());
            assert_eq!(datagram.pid, std::process::id());
            assert!(!datagram.has_descriptors);
            match expected % 2 {
                0 => socket.discard().unwrap(),
                _ => drop(socket.take().unwrap()),
            }
        }
        assert!(socket.peek().unwrap().is_none());
        send(&socket, "again").unwrap();
        assert_eq!(socket.peek().unwrap().unwrap().text, "again");
    }

    #[test]
    fn clients_that_send_nothing_keep_nobody_away() {
        let _alone = port::ONE_AT_A_TIME.lock();
        let socket = NotifySocket::bind().unwrap();
        let mut silent = Vec::new();
        while silent.len() < 2 * MAX_READING {
            let client = ManagerConnection::open(socket.name());
            match is_busy(&client) {
                true => drop(socket.peek().unwrap()),
                false => silent.push(client.unwrap()),
            }
        }
        socket.peek().unwrap();
        send(&socket, "READY=1").unwrap();
        assert_eq!(socket.peek().unwrap().unwrap().text, "READY=1");
        assert!(socket.0.state.lock().reading.len() <= MAX_READING);
    }

    #[test]
    fn the_sockets_of_a_notification_are_closed_unless_they_are_taken() {
        let _alone = port::ONE_AT_A_TIME.lock();
        let ways: [fn(NotifySocket); 4] = [
            |socket| socket.discard().unwrap(),
            |socket| drop(socket.take().unwrap()),
            |socket| socket.discarder().unwrap()().unwrap(),
            drop,
        ];
        for way in ways {
            let socket = NotifySocket::bind().unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let addr = listener.local_addr().unwrap();
            let listener = crate::sys::descriptor::from_socket(listener.into()).unwrap();
            let connection = ManagerConnection::open(socket.name()).unwrap();
            connection.send("FDSTORE=1", &[&listener]).unwrap();
            drop(listener);
            assert!(socket.peek().unwrap().unwrap().has_descriptors);
            assert!(TcpListener::bind(addr).is_err());
            way(socket);
            TcpListener::bind(addr).unwrap();
        }
    }

    #[test]
    fn the_sockets_of_a_notification_that_comes_too_late_are_closed() {
        let _alone = port::ONE_AT_A_TIME.lock();
        let give_up_clients: [fn(NotifySocket) -> Option<NotifySocket>; 2] = [
            |socket| {
                socket.0.state.lock().reading.clear();
                Some(socket)
            },
            |socket| {
                drop(socket);
                None
            },
        ];
        for give_up in give_up_clients {
            let socket = NotifySocket::bind().unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let addr = listener.local_addr().unwrap();
            let listener = crate::sys::descriptor::from_socket(listener.into()).unwrap();
            let connection = ManagerConnection::open(socket.name()).unwrap();
            // The supervisor reads.
            socket.peek().unwrap();
            connection.send("FDSTORE=1", &[&listener]).unwrap();
            drop(listener);
            let socket = give_up(socket);
            assert!(port::wait(Some(LIMIT)).unwrap());
            TcpListener::bind(addr).unwrap();
            drop(socket);
        }
    }

    #[test]
    fn the_sockets_of_a_notification_that_is_too_long_are_closed() {
        let _alone = port::ONE_AT_A_TIME.lock();
        for is_received in [true, false] {
            let socket = NotifySocket::bind().unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let addr = listener.local_addr().unwrap();
            let listener = crate::sys::descriptor::from_socket(listener.into()).unwrap();
            let client = PipeClient::open(socket.name(), PipeKind::Messages).unwrap();
            // The supervisor reads.
            socket.peek().unwrap();
            let mut message =
                socket_message::make_message("text", &[&listener], std::process::id()).unwrap();
            drop(listener);
            message.resize(MAX_MESSAGE + 1, 0);
            client.write(&message, Some(LIMIT)).unwrap();
            let received = is_received.then(|| {
                assert!(port::wait(Some(LIMIT)).unwrap());
                let datagram = socket.peek().unwrap().unwrap();
                (datagram.text, datagram.has_descriptors)
            });
            drop(socket);
            if received.is_none() {
                assert!(port::wait(Some(LIMIT)).unwrap());
            }
            assert!(received.is_none_or(|received| received == (String::new(), false)));
            TcpListener::bind(addr).unwrap();
        }
    }

    #[test]
    fn an_answer_brings_a_listener() {
        let _alone = port::ONE_AT_A_TIME.lock();
        let socket = NotifySocket::bind().unwrap();
        let ask = |text: &str| {
            let sent_on = send(&socket, text).unwrap();
            thread::spawn(move || {
                let channel = AnswerChannel::create().unwrap();
                let mut buffer = [0; 100];
                let (size, listener) = channel.receive(sent_on, Some(LIMIT), &mut buffer)?;
                io::Result::Ok((buffer[..size].to_vec(), listener))
            })
        };
        let asking = ask("bind");
        assert_eq!(socket.peek().unwrap().unwrap().text, "bind");
        let taken = socket.take().unwrap();
        assert!(taken.wants_answer());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let listener = crate::sys::descriptor::from_socket(listener.into()).unwrap();
        taken.answer("given", &[&listener]).unwrap();
        drop((taken, listener));
        let (text, listener) = asking.join().unwrap().unwrap();
        assert_eq!(text, b"given");
        let listener = crate::sys::descriptor::into_socket(listener.unwrap()).unwrap();
        let client = TcpStream::connect(addr).unwrap();
        assert_eq!(
            listener.accept().unwrap().1.as_socket(),
            client.local_addr().ok()
        );
        // Without an answer, the end of the connection says that the notification was handled.
        let asking = ask("BARRIER=1");
        assert!(socket.peek().unwrap().is_some());
        assert!(!asking.is_finished());
        socket.discard().unwrap();
        assert_eq!(asking.join().unwrap().unwrap().0, b"");
    }
}
