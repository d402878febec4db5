//! Windows: sockets in a message to another process (WSADuplicateSocketW).
//!
//! A message is a text, and then, if sockets go with it, a null character and a WSAPROTOCOL_INFOW
//! for each socket, which only the process can use that it was made for.

use std::io;

use super::handle::Kind;
use super::passing_table::{INFO_SIZE, record_for, socket_of};
use crate::sys::Descriptor;

/// The message for this process.
///
/// # Errors
///
/// A descriptor is not one of a socket, or the process cannot be opened.
pub(super) fn join(text: &str, descriptors: &[&Descriptor], pid: u32) -> io::Result<Vec<u8>> {
    // A null character would end the text.
    let mut bytes: Vec<u8> = text.bytes().filter(|byte| *byte != 0).collect();
    if !descriptors.is_empty() {
        bytes.push(0);
    }
    for descriptor in descriptors {
        match &descriptor.0 {
            Kind::Socket(socket) => bytes.extend_from_slice(&record_for(socket, pid)?[..]),
            Kind::Handle(_) => {
                let text = "only sockets go with a message";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
        }
    }
    Ok(bytes)
}

/// The text of a message, and what stands for its sockets.
pub(super) fn split(message: &[u8]) -> (&[u8], &[u8]) {
    match message.iter().position(|byte| *byte == 0) {
        Some(end) => (&message[..end], &message[end + 1..]),
        None => (message, &[]),
    }
}

/// The sockets of a message that was made for this process.
pub(super) fn import_all(sockets: &[u8]) -> io::Result<Vec<Descriptor>> {
    if sockets.len() % INFO_SIZE != 0 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let records = sockets.chunks(INFO_SIZE).filter_map(<[u8]>::first_chunk);
    records
        .map(|record| Ok(socket_of(record)?.into()))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_socket_goes_with_a_text() {
        assert_eq!(split(b"a=b\n"), (&b"a=b\n"[..], &[][..]));
        assert_eq!(split(b"\0x"), (&[][..], &b"x"[..]));
        assert!(import_all(b"x").is_err());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let descriptor = listener.into();
        let message = join("a=b", &[&descriptor, &descriptor], std::process::id()).unwrap();
        let (text, sockets) = split(&message);
        assert_eq!(text, b"a=b");
        let mut copies = import_all(sockets).unwrap();
        assert_eq!(copies.len(), 2);
        let copy = TcpListener::try_from(copies.remove(0)).unwrap();
        assert_eq!(copy.local_addr().unwrap(), addr);
    }
}
