//! Windows: sockets in a message to another process (WSADuplicateSocketW).
//!
//! A message is a text, and then, if sockets go with it, a null character and a WSAPROTOCOL_INFOW
//! for each socket, which only the process can use that it was made for.
//!
//! A socket is open in the receiving process from the moment when its record is made, and stays open
//! until that process takes it. So nothing is made for a message that is too long to be sent, and a
//! receiver takes all sockets of each message, even if it drops the message.
//!
//! The sender cannot close a socket that it has made for the receiver: no documented field of the
//! record tells its handle there. So in two cases a socket stays open until the receiver ends: the
//! message is never received, because the connection failed after the records were made, or the
//! record of a later socket of the message could not be made.

use std::io;

use super::handle::Kind;
use super::passing_table::{INFO_SIZE, record_for, socket_of};
use crate::sys::Descriptor;

/// The longest message, in bytes.
pub(super) const MAX_MESSAGE: usize = 64 * 1024;

/// Makes the message of a text and sockets for this process.
///
/// # Errors
///
/// `InvalidInput` if the message would be too long, or a descriptor is not one of a socket. The
/// process cannot be opened.
pub(super) fn make_message(
    text: &str,
    descriptors: &[&Descriptor],
    pid: u32,
) -> io::Result<Vec<u8>> {
    // A null character would end the text.
    let mut bytes: Vec<u8> = text.bytes().filter(|byte| *byte != 0).collect();
    if descriptors.is_empty() && bytes.len() <= MAX_MESSAGE {
        return Ok(bytes);
    }
    bytes.push(0);
    let length = bytes.len() + descriptors.len() * INFO_SIZE;
    if length > MAX_MESSAGE {
        let text = format!("a message of {length} bytes, which is too long");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let sockets = descriptors.iter().map(|descriptor| match &descriptor.0 {
        Kind::Socket(socket) => Ok(socket),
        Kind::Handle(_) => {
            let text = "only sockets go with a message";
            Err(io::Error::new(io::ErrorKind::InvalidInput, text))
        }
    });
    for socket in sockets.collect::<io::Result<Vec<_>>>()? {
        bytes.extend_from_slice(&record_for(socket, pid)?[..]);
    }
    Ok(bytes)
}

/// The text of a message, and the records of its sockets.
pub(super) fn split_message(message: &[u8]) -> (&[u8], &[u8]) {
    match message.iter().position(|byte| *byte == 0) {
        Some(end) => (&message[..end], &message[end + 1..]),
        None => (message, &[]),
    }
}

/// Takes the sockets of a message that was made for this process, once for each message: all, or
/// none after an error. The others are closed then.
pub(super) fn import_sockets(sockets: &[u8]) -> io::Result<Vec<Descriptor>> {
    let records = sockets.chunks_exact(INFO_SIZE);
    let is_cut = !records.remainder().is_empty();
    let taken: Vec<_> = records
        .filter_map(<[u8]>::first_chunk)
        .map(socket_of)
        .collect();
    if is_cut {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let taken = taken.into_iter();
    taken.map(|socket| socket.map(Descriptor::from)).collect()
}

/// Closes the sockets of a message that nobody takes.
pub(super) fn discard(message: &[u8]) {
    // What cannot be taken cannot be closed.
    let sockets = import_sockets(split_message(message).1).unwrap_or_default();
    sockets.into_iter().for_each(super::descriptor::discard);
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener};

    use super::*;
    use crate::sys::descriptor::create_pipe;

    #[test]
    fn a_socket_goes_with_a_text() {
        assert_eq!(split_message(b"a=b\n"), (&b"a=b\n"[..], &[][..]));
        assert_eq!(split_message(b"\0x"), (&[][..], &b"x"[..]));
        assert!(import_sockets(b"x").is_err());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let descriptor = listener.into();
        let message = make_message("a=b", &[&descriptor, &descriptor], std::process::id()).unwrap();
        let (text, sockets) = split_message(&message);
        assert_eq!(text, b"a=b");
        let mut copies = import_sockets(sockets).unwrap();
        assert_eq!(copies.len(), 2);
        let copy = TcpListener::try_from(copies.remove(0)).unwrap();
        assert_eq!(copy.local_addr().unwrap(), addr);
    }

    fn is_free(addr: SocketAddr) -> bool {
        TcpListener::bind(addr).is_ok()
    }

    #[test]
    fn a_message_is_taken_whole_or_its_sockets_are_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let descriptor = listener.into();
        let message =
            |count| make_message("", &vec![&descriptor; count], std::process::id()).unwrap();
        let cut = [&message(2)[1..], b"more"].concat();
        let mut unusable = message(3)[1..].to_vec();
        let record = unusable.split_off(2 * INFO_SIZE);
        let unusable = [
            &unusable[..INFO_SIZE],
            &[0xff; INFO_SIZE],
            &unusable[INFO_SIZE..],
            &record[..],
        ];
        assert!(import_sockets(&unusable.concat()).is_err());
        assert!(import_sockets(&cut).is_err());
        drop(descriptor);
        assert!(is_free(addr));
    }

    #[test]
    fn nothing_is_made_for_a_message_that_cannot_be_sent() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let socket: Descriptor = listener.into();
        let (pipe, _writer) = create_pipe().unwrap();
        let pid = std::process::id();
        let longest = "a".repeat(MAX_MESSAGE - INFO_SIZE - 1);
        let too_long = make_message(&format!("{longest}a"), &[&socket], pid).unwrap_err();
        assert_eq!(too_long.kind(), io::ErrorKind::InvalidInput);
        let no_socket = make_message("", &[&socket, &pipe], pid).unwrap_err();
        assert_eq!(no_socket.kind(), io::ErrorKind::InvalidInput);
        let long = make_message(&"a".repeat(MAX_MESSAGE + 1), &[], pid).unwrap_err();
        assert_eq!(long.kind(), io::ErrorKind::InvalidInput);
        let sent = make_message(&longest, &[&socket], pid).unwrap();
        assert_eq!(sent.len(), MAX_MESSAGE);
        drop(import_sockets(split_message(&sent).1).unwrap());
        drop(socket);
        assert!(is_free(addr));
    }
}
