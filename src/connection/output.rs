//! Output: what the service has written and the socket has not taken yet.
//!
//! | part | what it holds | its bound | when it is sent |
//! |---|---|---|---|
//! | queue | pieces in order: copied bytes, owned bytes, messages, ranges of files | the output limit, for copied bytes | as the client reads |
//! | gathered | the last writes, behind the queue | [`GATHER_SIZE`] | together, when the call ends, waits or flushes |
//!
//! The queue exists only while the socket has refused to take more, or has taken [`TURN_SIZE`] in
//! one turn. What was gathered then becomes its last piece, so that a parked connection has
//! gathered nothing.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::error::Error;
use std::fmt;
use std::fs::File;
use std::io::{self, IoSlice};
use std::sync::Arc;

use socket2::Socket;

use super::outbox::Message;
use crate::sys;

/// How many bytes are gathered before they are sent.
pub(super) const GATHER_SIZE: usize = 16 * 1024;

/// How many bytes of one connection are sent before other connections have their turn.
pub(super) const TURN_SIZE: usize = 512 * 1024;

/// How many bytes are read at a time from a file that the system cannot send by itself.
const FILE_BUFFER_SIZE: usize = 64 * 1024;

/// The most parts of a write that leave in one system call.
const MAX_PARTS: usize = 16;

/// How an attempt to send has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flushed {
    /// No output is left.
    All,
    /// The socket takes no more now.
    Blocked,
    /// The socket may take more, but other connections come first.
    TurnOver,
}

#[derive(Debug, Default)]
pub(crate) struct Output {
    /// A buffer that the worker lends.
    gathered: Vec<u8>,
    /// Nearly always absent. Its pieces come before what is gathered.
    queue: Option<Box<SendQueue>>,
    /// How many bytes of messages a queue had sent that is empty now.
    message_bytes: usize,
    /// No output follows this one: the connection is closed next.
    is_last: bool,
    /// The last bytes may wait in the kernel until the sending side is shut down.
    needs_end: bool,
}

#[derive(Debug, Default)]
struct SendQueue {
    pieces: VecDeque<Piece>,
    /// How many bytes of the pieces were copied from the service.
    copied: usize,
    /// How many bytes of messages were sent since the last look.
    message_bytes: usize,
}

#[derive(Debug)]
enum Piece {
    Copied(Part<Vec<u8>>),
    Owned(Part<Cow<'static, [u8]>>),
    Message(Part<Message>),
    File(FileRange),
}

/// Bytes of which the first `sent` are sent.
#[derive(Debug)]
struct Part<B> {
    bytes: B,
    sent: usize,
}

/// A part of a file: `left` bytes from `position` on.
#[derive(Debug)]
pub(super) struct FileRange {
    pub(super) file: Arc<File>,
    pub(super) position: u64,
    pub(super) left: u64,
}

impl Output {
    /// How many bytes are buffered, without owned bytes and files.
    pub(crate) fn len(&self) -> usize {
        self.gathered.len() + self.copied()
    }

    fn copied(&self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.copied)
    }

    /// How many of the bytes that were sent since the last look were messages of the outbox.
    #[inline]
    pub(super) fn take_message_bytes(&mut self) -> usize {
        let in_queue = self.queue.as_mut().map(|queue| &mut queue.message_bytes);
        std::mem::take(&mut self.message_bytes) + in_queue.map_or(0, std::mem::take)
    }

    /// Whether the queue has anything.
    #[inline]
    pub(crate) fn is_queued(&self) -> bool {
        self.queue.is_some()
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_none() && self.gathered.is_empty()
    }

    /// The last writes, not sent yet. A caller that adds bytes must send the gathered bytes before
    /// they are much longer than [`GATHER_SIZE`].
    #[inline]
    pub(crate) fn gathered(&mut self) -> &mut Vec<u8> {
        &mut self.gathered
    }

    /// How many more bytes may be gathered under the output limit.
    pub(super) fn gather_room(&self, limit: usize) -> usize {
        let limit = GATHER_SIZE.min(limit.saturating_sub(self.copied()));
        limit.saturating_sub(self.gathered.len())
    }

    /// Swaps the worker's spare buffer in.
    #[inline]
    pub(crate) fn lend_buffer(&mut self, spare: &mut Vec<u8>) {
        debug_assert!(self.gathered.is_empty());
        std::mem::swap(&mut self.gathered, spare);
    }

    /// Gives the buffer back. What it still has becomes a piece of the queue.
    #[inline]
    pub(crate) fn return_buffer(&mut self, spare: &mut Vec<u8>) {
        self.queue_gathered();
        // A buffer that has grown for long responses is freed.
        if self.gathered.capacity() <= 4 * GATHER_SIZE {
            std::mem::swap(&mut self.gathered, spare);
        }
        self.gathered = Vec::new();
    }

    #[inline]
    fn queue_gathered(&mut self) {
        if !self.gathered.is_empty() {
            let queue = self.queue.get_or_insert_default();
            queue.copy(&self.gathered);
            self.gathered.clear();
        }
    }

    /// Queues the `parts` without their first `skipped` bytes, as far as the limit allows. Returns
    /// how many bytes.
    pub(super) fn queue_parts(
        &mut self,
        parts: &[IoSlice<'_>],
        mut skipped: usize,
        limit: usize,
    ) -> usize {
        self.queue_gathered();
        let mut room = limit.saturating_sub(self.copied());
        let mut count = 0;
        for part in parts {
            let rest = &part[skipped.min(part.len())..];
            skipped -= part.len() - rest.len();
            let kept = &rest[..rest.len().min(room)];
            if !kept.is_empty() {
                self.queue.get_or_insert_default().copy(kept);
                room -= kept.len();
                count += kept.len();
            }
        }
        count
    }

    /// Queues bytes of which the first `sent` are sent.
    pub(super) fn queue_owned(&mut self, bytes: Cow<'static, [u8]>, sent: usize) {
        self.queue_gathered();
        let queue = self.queue.get_or_insert_default();
        queue.pieces.push_back(Piece::Owned(Part { bytes, sent }));
    }

    /// Queues a message of the outbox.
    pub(super) fn queue_message(&mut self, bytes: Message) {
        self.queue_gathered();
        let queue = self.queue.get_or_insert_default();
        queue
            .pieces
            .push_back(Piece::Message(Part { bytes, sent: 0 }));
    }

    pub(super) fn queue_file(&mut self, range: FileRange) {
        self.queue_gathered();
        let queue = self.queue.get_or_insert_default();
        queue.pieces.push_back(Piece::File(range));
    }

    /// Sends what the socket takes of the queue, up to [`TURN_SIZE`]. Returns how many bytes were
    /// sent. `All`: the queue is empty.
    pub(super) fn send_queue(&mut self, socket: &Socket) -> io::Result<(usize, Flushed)> {
        let mut sent = 0;
        while let Some(queue) = &mut self.queue {
            if queue.pieces.is_empty() {
                self.message_bytes = queue.message_bytes;
                self.queue = None;
                break;
            }
            if sent >= TURN_SIZE {
                return Ok((sent, Flushed::TurnOver));
            }
            match queue.send_first(socket, TURN_SIZE - sent) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok((sent, Flushed::Blocked));
                }
                Err(error) => return Err(error),
            }
        }
        Ok((sent, Flushed::All))
    }

    /// Sends what is gathered and the `parts` in one system call. The queue must be empty. Returns
    /// how many bytes were sent, and how many of them were of the parts. What is left of the
    /// gathered bytes stays.
    pub(super) fn send_gathered(
        &mut self,
        socket: &Socket,
        parts: &[IoSlice<'_>],
    ) -> io::Result<(usize, usize)> {
        debug_assert!(self.queue.is_none());
        let gathered = self.gathered.len();
        let result = match (gathered, parts) {
            (_, []) => sys::socket::send(socket, &self.gathered),
            (0, [part]) => sys::socket::send(socket, part),
            _ => {
                let mut all = [IoSlice::new(&[]); MAX_PARTS];
                let count = parts.len().min(MAX_PARTS - 1);
                all[0] = IoSlice::new(&self.gathered);
                all[1..=count].copy_from_slice(&parts[..count]);
                sys::socket::send_vectored(socket, &all[..=count])
            }
        };
        let sent = match result {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            result => result?,
        };
        if sent >= gathered {
            self.gathered.clear();
        } else {
            self.gathered.drain(..sent);
        }
        Ok((sent, sent.saturating_sub(gathered)))
    }

    /// Sends the gathered bytes so that they leave together with the end of the stream, which the
    /// caller has to send. Otherwise a client that has read the last answer might send another
    /// request before it sees the end.
    fn send_last(&mut self, socket: &Socket) -> io::Result<usize> {
        let sent = match sys::socket::send_last(socket, &self.gathered) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            result => result?,
        };
        self.gathered.drain(..sent);
        self.needs_end = true;
        Ok(sent)
    }

    /// Records that no output follows this one: the connection is closed next.
    pub(crate) fn note_last(&mut self) {
        self.is_last = true;
    }

    /// Whether the last bytes may wait in the kernel until the sending side is shut down.
    pub(crate) fn needs_end(&self) -> bool {
        self.needs_end
    }

    /// Sends what the socket takes, the gathered bytes in one system call. Returns how many bytes.
    #[inline]
    pub(super) fn flush(&mut self, socket: &Socket) -> io::Result<(usize, Flushed)> {
        let mut sent = 0;
        if self.queue.is_none() {
            if self.gathered.is_empty() {
                return Ok((0, Flushed::All));
            }
            sent = match self.is_last && sys::socket::HOLDS_LAST {
                true => self.send_last(socket)?,
                false => self.send_gathered(socket, &[])?.0,
            };
            if self.gathered.is_empty() {
                return Ok((sent, Flushed::All));
            }
        }
        self.queue_gathered();
        let (count, flushed) = self.send_queue(socket)?;
        Ok((sent + count, flushed))
    }
}

impl SendQueue {
    fn copy(&mut self, bytes: &[u8]) {
        self.copied += bytes.len();
        if let Some(Piece::Copied(part)) = self.pieces.back_mut() {
            part.bytes.drain(..part.sent);
            part.sent = 0;
            part.bytes.extend_from_slice(bytes);
            return;
        }
        let bytes = bytes.to_vec();
        self.pieces
            .push_back(Piece::Copied(Part { bytes, sent: 0 }));
    }

    /// Sends up to `most` bytes of the first pieces, and removes the pieces that are sent. Returns
    /// how many bytes.
    fn send_first(&mut self, socket: &Socket, most: usize) -> io::Result<usize> {
        let (count, is_done) = match self.pieces.front_mut() {
            None => return Ok(0),
            Some(Piece::Copied(_) | Piece::Owned(_) | Piece::Message(_)) => {
                return self.send_bytes(socket, most);
            }
            Some(Piece::File(range)) => match range.send(socket, most)? {
                Some(count) => (count, range.left == 0),
                None => {
                    let bytes = range.read()?;
                    let is_done = range.left == 0;
                    if is_done {
                        self.pieces.pop_front();
                    }
                    let part = Part {
                        bytes: bytes.into(),
                        sent: 0,
                    };
                    self.pieces.push_front(Piece::Owned(part));
                    return Ok(0);
                }
            },
        };
        if is_done {
            self.pieces.pop_front();
        }
        Ok(count)
    }
}

impl SendQueue {
    /// Sends up to `most` bytes of the first pieces, up to the first file, in one system call.
    fn send_bytes(&mut self, socket: &Socket, most: usize) -> io::Result<usize> {
        let mut parts = [IoSlice::new(&[]); MAX_PARTS];
        let (mut count, mut left) = (0, most);
        for rest in self.pieces.iter().map_while(Piece::rest).take(MAX_PARTS) {
            let rest = &rest[..rest.len().min(left)];
            parts[count] = IoSlice::new(rest);
            left -= rest.len();
            count += 1;
            if left == 0 {
                break;
            }
        }
        let sent = match count {
            1 => sys::socket::send(socket, &parts[0])?,
            _ => sys::socket::send_vectored(socket, &parts[..count])?,
        };
        self.note_sent(sent);
        Ok(sent)
    }

    /// Removes the first `count` bytes, and the pieces that have none left.
    fn note_sent(&mut self, mut count: usize) {
        while let Some(piece) = self.pieces.front_mut() {
            let Some(rest) = piece.rest().map(<[u8]>::len) else {
                return;
            };
            let sent = rest.min(count);
            count -= sent;
            match piece {
                Piece::Copied(part) => {
                    part.sent += sent;
                    self.copied -= sent;
                }
                Piece::Owned(part) => part.sent += sent,
                Piece::Message(part) => {
                    part.sent += sent;
                    self.message_bytes += sent;
                }
                Piece::File(_) => {}
            }
            if sent < rest {
                return;
            }
            self.pieces.pop_front();
        }
    }
}

impl Piece {
    /// The bytes that are left. `None` for a file.
    fn rest(&self) -> Option<&[u8]> {
        match self {
            Self::Copied(part) => Some(part.rest()),
            Self::Owned(part) => Some(part.rest()),
            Self::Message(part) => Some(part.rest()),
            Self::File(_) => None,
        }
    }
}

impl<B: AsRef<[u8]>> Part<B> {
    fn rest(&self) -> &[u8] {
        &self.bytes.as_ref()[self.sent..]
    }
}

impl FileRange {
    /// Sends up to `most` bytes without copying them. `None` if the system cannot.
    fn send(&mut self, socket: &Socket, most: usize) -> io::Result<Option<usize>> {
        if self.left == 0 {
            return Ok(Some(0));
        }
        let most = usize::try_from(self.left).map_or(most, |left| left.min(most));
        let Some(count) = sys::socket::send_file(socket, &self.file, self.position, most)? else {
            return Ok(None);
        };
        self.advance(count)?;
        Ok(Some(count))
    }

    fn read(&mut self) -> io::Result<Vec<u8>> {
        let size =
            usize::try_from(self.left).map_or(FILE_BUFFER_SIZE, |left| left.min(FILE_BUFFER_SIZE));
        let mut bytes = vec![0; size];
        let read = sys::file::read_at(&self.file, &mut bytes, self.position);
        let count = read.map_err(|error| FileError(format!("cannot read a file: {error}")))?;
        bytes.truncate(count);
        self.advance(count)?;
        Ok(bytes)
    }

    fn advance(&mut self, count: usize) -> io::Result<()> {
        if count == 0 {
            return Err(FileError(format!("a file ended {} bytes early", self.left)).into());
        }
        self.position += count as u64;
        self.left -= count as u64;
        Ok(())
    }
}

/// Why a file cannot be sent: not because of the client.
#[derive(Debug)]
pub(super) struct FileError(String);

impl FileError {
    pub(super) fn is_in(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|error| error.is::<Self>())
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for FileError {}

impl From<FileError> for io::Error {
    fn from(error: FileError) -> Self {
        Self::other(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_copied_than_the_limit() {
        let mut output = Output::default();
        assert_eq!(output.gather_room(3), 3);
        output.gathered().extend_from_slice(b"he");
        assert_eq!(output.gather_room(3), 1);
        let parts = [IoSlice::new(b"-l"), IoSlice::new(b"lo")];
        assert_eq!(output.queue_parts(&parts, 1, 3), 1);
        assert_eq!(output.queue_parts(&parts, 2, 3), 0);
        // Owned bytes do not count.
        output.queue_owned(vec![0; 1 << 20].into(), 0);
        assert_eq!((output.len(), output.gather_room(4)), (3, 1));
        let queue = output.queue.as_mut().unwrap();
        assert!(matches!(&queue.pieces[0], Piece::Copied(part) if part.bytes == b"hel"));
        let Some(Piece::Copied(part)) = queue.pieces.front_mut() else {
            unreachable!()
        };
        part.sent = 2;
        queue.copied -= 2;
        queue.pieces.truncate(1);
        assert_eq!(output.queue_parts(&parts, 2, 3), 2);
        let queue = output.queue.unwrap();
        assert!(matches!(&queue.pieces[0], Piece::Copied(part) if part.bytes == b"llo"));
    }

    #[test]
    fn a_lent_buffer_goes_back_and_leaves_the_rest_in_the_queue() {
        let mut spare = Vec::with_capacity(100);
        let mut output = Output::default();
        output.lend_buffer(&mut spare);
        output.gathered().extend_from_slice(b"rest");
        output.return_buffer(&mut spare);
        assert_eq!((spare.len(), spare.capacity()), (0, 100));
        assert!(output.is_queued() && output.gathered.capacity() == 0);
    }
}
