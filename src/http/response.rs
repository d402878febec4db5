//! Writing a response: its head, and its body in whatever form it comes.

use std::io::{self, IoSlice, Read, Write};

use ::http::response::Parts;
use ::http::{HeaderMap, HeaderName, StatusCode, Version, header};

use super::date::Date;
use super::head::Refusal;
use super::reply::{Kind, Protocol, Reply};
use crate::connection::Connection;

/// A body up to this size is copied behind its head; a larger one is written from where it is.
const COPIED: usize = 8 * 1024;

/// How much of a body that comes from a reader is read at a time.
const PIECE: usize = 64 * 1024;

/// Room before a chunk's data for its size, which has up to 16 digits and a line end.
const SIZE_ROOM: usize = 18;

/// Where a worker puts its answers together. Responses stay here until there is nothing more to answer, so that those
/// to pipelined requests leave in one write.
#[derive(Debug, Default)]
pub(super) struct Writer {
    out: Vec<u8>,
    pub(super) date: Date,
    /// What bodies that come from readers are read into.
    piece: Vec<u8>,
}

/// What of a request decides about the form of its response.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) is_head: bool,
    pub(super) is_connect: bool,
    pub(super) version: Version,
    /// The connection is to be used further, as far as the client and the server are concerned.
    pub(super) persists: bool,
    /// All of its body is read, so that what comes next is something else.
    pub(super) is_whole: bool,
}

/// What was answered.
pub(super) struct Answered {
    pub(super) status: StatusCode,
    /// How many bytes of body there were.
    pub(super) length: u64,
    pub(super) then: Then,
}

/// What becomes of the connection after a response.
pub(super) enum Then {
    Continue,
    Close,
    Upgrade(Protocol),
}

/// How the end of a response is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framed {
    /// There is no body, and no field says how long it is.
    Bare,
    Length(u64),
    Chunks,
    /// The close is the end.
    Close,
}

impl Writer {
    /// Forgets what could not be written to a client that has gone.
    pub(super) fn clear(&mut self) {
        self.out.clear();
    }

    /// How much waits to be written.
    pub(super) fn pending(&self) -> usize {
        self.out.len()
    }

    /// Writes what was put together.
    pub(super) fn flush(&mut self, conn: &mut Connection) -> io::Result<()> {
        if !self.out.is_empty() {
            let written = conn.write_all(&self.out);
            // Also when only a part of it was written: nobody may go on with the beginning.
            self.out.clear();
            return written;
        }
        Ok(())
    }

    /// Answers a request that the service itself turns down; the connection is closed after it. To HEAD it only says how
    /// long the text would be.
    pub(super) fn refuse(&mut self, refusal: Refusal, is_head: bool) {
        let text = refusal.status.canonical_reason().unwrap_or_default();
        self.status_line(refusal.status);
        self.out
            .extend_from_slice(b"Connection: close\r\nContent-Type: text/plain; charset=utf-8\r\n");
        self.length_line((text.len() + refusal.why.len() + 3) as u64);
        self.out.extend_from_slice(b"\r\n");
        if !is_head {
            for part in [text, ": ", refusal.why, "\n"] {
                self.out.extend_from_slice(part.as_bytes());
            }
        }
    }

    /// Writes a response, or most of it: [`flush`](Self::flush) writes the rest. After an error the connection is of
    /// no use any more.
    pub(super) fn respond(
        &mut self,
        conn: &mut Connection,
        asked: &Asked,
        head: &Parts,
        mut reply: Reply,
    ) -> io::Result<Answered> {
        let (status, fields) = (head.status, &head.headers);
        let tunnels = asked.is_connect && status.is_success();
        let upgrades = matches!(reply.kind, Kind::Upgrade(_));
        let switches = status == StatusCode::SWITCHING_PROTOCOLS;
        let may_upgrade =
            asked.is_whole && (tunnels || (switches && asked.version == Version::HTTP_11));
        if upgrades && !may_upgrade || status.is_informational() && !upgrades {
            return Ok(self.fault(conn, asked, &format!("status {status} of such a response")));
        }
        let length = match reply.kind.length() {
            Ok(length) => length,
            Err(error) => return Ok(self.fault(conn, asked, &error.to_string())),
        };
        let framed = match (status, length) {
            (StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED, _) => Framed::Bare,
            _ if upgrades || tunnels => Framed::Bare,
            (StatusCode::RESET_CONTENT, _) => Framed::Length(0),
            (_, Some(0)) if asked.is_head => promised(fields),
            (_, Some(length)) => Framed::Length(length),
            (_, None) if asked.version == Version::HTTP_11 => Framed::Chunks,
            (_, None) => Framed::Close,
        };
        let closes = !asked.persists || framed == Framed::Close || tunnels || asks_to_close(fields);
        self.status_line(status);
        self.fields(fields, reply.is_text && framed != Framed::Bare);
        // An Upgrade field is always named there, also by a response that only says what could be upgraded to (RFC
        // 9110, section 7.8).
        let offers = upgrades || fields.contains_key(header::UPGRADE);
        let closes_after = closes && !upgrades;
        let connection: &[u8] = match (offers, closes_after, asked.version) {
            _ if upgrades && tunnels => b"",
            (true, true, _) => b"Connection: Upgrade, close\r\n",
            (true, false, Version::HTTP_10) => b"Connection: Upgrade, keep-alive\r\n",
            (true, false, _) => b"Connection: Upgrade\r\n",
            (false, true, _) => b"Connection: close\r\n",
            (false, false, Version::HTTP_10) => b"Connection: keep-alive\r\n",
            (false, false, _) => b"",
        };
        self.out.extend_from_slice(connection);
        match framed {
            Framed::Length(length) => self.length_line(length),
            Framed::Chunks => self
                .out
                .extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
            Framed::Bare | Framed::Close => {}
        }
        self.out.extend_from_slice(b"\r\n");
        let bodiless =
            asked.is_head || framed == Framed::Bare || status == StatusCode::RESET_CONTENT;
        let length = match reply.kind {
            Kind::Upgrade(protocol) => {
                return Ok(Answered {
                    status,
                    length: 0,
                    then: Then::Upgrade(protocol),
                });
            }
            _ if bodiless => 0,
            kind => self.body(conn, kind, framed)?,
        };
        Ok(Answered {
            status,
            length,
            then: if closes { Then::Close } else { Then::Continue },
        })
    }

    /// The handler returned what cannot be sent: it is answered for with a 500.
    fn fault(&mut self, conn: &Connection, asked: &Asked, what: &str) -> Answered {
        log::error!(
            "{}: the answer to a request is impossible: {what}",
            conn.peer_addr()
        );
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        let why = "the answer was impossible";
        self.refuse(Refusal { status, why }, asked.is_head);
        Answered {
            status,
            length: 0,
            then: Then::Close,
        }
    }

    fn status_line(&mut self, status: StatusCode) {
        if status == StatusCode::OK {
            self.out.extend_from_slice(self.date.after_ok());
        } else {
            let reason = status.canonical_reason().unwrap_or_default();
            for part in ["HTTP/1.1 ", status.as_str(), " ", reason, "\r\n"] {
                self.out.extend_from_slice(part.as_bytes());
            }
            self.out.extend_from_slice(self.date.line());
        }
    }

    fn length_line(&mut self, length: u64) {
        self.out.extend_from_slice(b"Content-Length: ");
        let mut digits = itoa::Buffer::new();
        self.out.extend_from_slice(digits.format(length).as_bytes());
        self.out.extend_from_slice(b"\r\n");
    }

    /// The handler's fields, without those that are the service's.
    fn fields(&mut self, fields: &HeaderMap, is_text: bool) {
        if is_text && !fields.contains_key(header::CONTENT_TYPE) {
            self.out
                .extend_from_slice(b"Content-Type: text/plain; charset=utf-8\r\n");
        }
        for (name, value) in fields {
            if !is_ours(name) {
                push_name(&mut self.out, name);
                self.out.extend_from_slice(b": ");
                self.out.extend_from_slice(value.as_bytes());
                self.out.extend_from_slice(b"\r\n");
            }
        }
    }

    fn body(&mut self, conn: &mut Connection, kind: Kind, framed: Framed) -> io::Result<u64> {
        match (kind, framed) {
            (Kind::Static(bytes), _) => self.bytes(conn, bytes),
            (Kind::Bytes(bytes), _) => self.bytes(conn, &bytes),
            (Kind::Sized(reader, length), _) => self.sized(conn, reader, length),
            (Kind::Stream(reader), framed) => self.stream(conn, reader, framed == Framed::Chunks),
            (Kind::File(file), Framed::Length(length)) => {
                self.flush(conn)?;
                let sent = conn.send_file(&file, length)?;
                // What the system did not do by itself is copied, from where the file stands now. So is what fits into
                // the buffer of a client that does not read: no worker waits for that.
                Ok(sent + self.sized(conn, Box::new(file), length - sent)?)
            }
            (Kind::File(_) | Kind::Upgrade(_), _) => Ok(0),
        }
    }

    fn bytes(&mut self, conn: &mut Connection, bytes: &[u8]) -> io::Result<u64> {
        if bytes.len() <= COPIED {
            self.out.extend_from_slice(bytes);
        } else {
            let written = write_both(conn, &self.out, bytes);
            self.out.clear();
            written?;
        }
        Ok(bytes.len() as u64)
    }

    fn sized(
        &mut self,
        conn: &mut Connection,
        mut reader: Box<dyn Read>,
        length: u64,
    ) -> io::Result<u64> {
        let mut piece = self.take_piece();
        let mut left = length;
        while left > 0 {
            let most = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
            let count = read(conn, &mut reader, &mut piece[..most])?;
            if count == 0 {
                log::error!("{}: a response body ended {left} bytes early", conn.info());
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.bytes(conn, &piece[..count])?;
            if self.out.len() > COPIED {
                self.flush(conn)?;
            }
            left -= count as u64;
        }
        self.piece = piece;
        Ok(length)
    }

    fn stream(
        &mut self,
        conn: &mut Connection,
        mut reader: Box<dyn Read>,
        chunked: bool,
    ) -> io::Result<u64> {
        // The reader may take its time for the first chunk, and the client wants to know that there will be one.
        self.flush(conn)?;
        let mut piece = self.take_piece();
        let mut length = 0;
        loop {
            let end = piece.len() - 2;
            let count = read(conn, &mut reader, &mut piece[SIZE_ROOM..end])?;
            if count == 0 {
                break;
            }
            length += count as u64;
            let end = SIZE_ROOM + count;
            if chunked {
                let size = format!("{count:x}\r\n");
                let start = SIZE_ROOM - size.len();
                piece[start..SIZE_ROOM].copy_from_slice(size.as_bytes());
                piece[end..end + 2].copy_from_slice(b"\r\n");
                conn.write_all(&piece[start..end + 2])?;
            } else {
                conn.write_all(&piece[SIZE_ROOM..end])?;
            }
        }
        if chunked {
            self.out.extend_from_slice(b"0\r\n\r\n");
        }
        self.piece = piece;
        Ok(length)
    }

    fn take_piece(&mut self) -> Vec<u8> {
        let mut piece = std::mem::take(&mut self.piece);
        piece.resize(PIECE, 0);
        piece
    }
}

/// Writes the one and then the other, in as few calls as there can be.
fn write_both(conn: &mut Connection, one: &[u8], two: &[u8]) -> io::Result<()> {
    let mut parts = [IoSlice::new(one), IoSlice::new(two)];
    let mut left = &mut parts[..];
    while !left.is_empty() {
        let count = conn.write_vectored(left)?;
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut left, count);
    }
    Ok(())
}

/// One read of a handler's reader.
fn read(conn: &Connection, reader: &mut dyn Read, into: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(into) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                log::error!("{}: a response body failed: {error}", conn.info());
                return Err(error);
            }
            read => return read,
        }
    }
}

/// The fields that say where a message ends and what becomes of the connection.
fn is_ours(name: &HeaderName) -> bool {
    matches!(
        *name,
        header::CONNECTION | header::CONTENT_LENGTH | header::TRANSFER_ENCODING | header::DATE
    )
}

fn asks_to_close(fields: &HeaderMap) -> bool {
    let values = fields.get_all(header::CONNECTION);
    values.iter().any(|value| {
        let mut options = value.as_bytes().split(|&byte| byte == b',');
        options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"))
    })
}

/// A response to HEAD may say how long the body would be without having it.
fn promised(fields: &HeaderMap) -> Framed {
    let length = fields.get(header::CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
    Framed::Length(length.unwrap_or(0))
}

/// Field names in the case that they are usually written in: old clients do compare it.
fn push_name(out: &mut Vec<u8>, name: &HeaderName) {
    let start = out.len();
    out.extend_from_slice(name.as_str().as_bytes());
    let mut first = true;
    for byte in &mut out[start..] {
        if first {
            byte.make_ascii_uppercase();
        }
        first = *byte == b'-';
    }
}
