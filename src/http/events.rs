//! Server-sent events (WHATWG HTML, section 9.2): a stream of messages that browsers read with
//! `EventSource`.

use std::fmt::Write;
use std::time::{Duration, Instant};

use ::http::{HeaderMap, HeaderName, HeaderValue, Response, header};

use super::body_channel::BodySender;
use super::chunk::Chunk;
use super::closing::CloseReason;
use super::reply::Reply;
use crate::connection::SendError;

/// The field in which a client that connects again names the last event that it has got.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Sends server-sent events to one client, from any thread. From [`Events::channel`].
///
/// Dropping it ends the stream. The client then connects again, and so it does when the stream ends
/// because the server stops or a successor has taken over: it reaches the successor. A client that
/// should not connect again must get status 204 for its next request.
///
/// A client that vanishes without closing is noticed only when writing to it fails: send a
/// [`comment`](Event::comment) every 15 seconds or so if there is no other event. This also keeps
/// proxies from closing the connection.
///
/// # Examples
///
/// ```
/// use std::sync::Mutex;
/// use handover::http::{self, Chunk, Event, Events, Response};
///
/// static SUBSCRIBERS: Mutex<Vec<Events>> = Mutex::new(Vec::new());
///
/// /// Sends one event to all. A subscriber that has left, or that reads too slowly, is dropped.
/// fn publish(id: u64, text: &str) {
///     let event = Chunk::from(Event::new().id(&id.to_string()).data(text));
///     let mut subscribers = SUBSCRIBERS.lock().unwrap();
///     subscribers.retain(|subscriber| subscriber.try_send(event.clone()).is_ok());
/// }
///
/// let service = http::service(|request| {
///     let (events, response) = Events::channel(64 * 1024);
///     if let Some(id) = Events::last_id(request.headers()) {
///         // The client connects again: send what it has missed since `id`.
///         let _ = events.try_send(Event::new().comment(id));
///     }
///     SUBSCRIBERS.lock().unwrap().push(events);
///     response
/// });
/// ```
#[derive(Debug)]
pub struct Events(BodySender);

impl Events {
    /// A stream, and the response for it, with the fields `Content-Type: text/event-stream` and
    /// `Cache-Control: no-cache`. `capacity` bounds the bytes that are sent and not written yet, as
    /// with [`Reply::channel`].
    pub fn channel(capacity: usize) -> (Self, Response<Reply>) {
        let (body, reply) = Reply::channel(capacity);
        body.ends_at_drain(true);
        let mut response = Response::new(reply);
        for (name, value) in [
            (header::CONTENT_TYPE, "text/event-stream"),
            (header::CACHE_CONTROL, "no-cache"),
        ] {
            let value = HeaderValue::from_static(value);
            response.headers_mut().insert(name, value);
        }
        (Self(body), response)
    }

    /// The [id](Event::id) of the last event that the client has got, if it connects again: the
    /// field `Last-Event-ID` of its request. `None` if the field is missing, empty, or not UTF-8.
    pub fn last_id(fields: &HeaderMap) -> Option<&str> {
        let value = fields.get(LAST_EVENT_ID)?;
        let id = std::str::from_utf8(value.as_bytes()).ok()?;
        (!id.is_empty()).then_some(id)
    }

    /// Sends an event. Never blocks. A [`Chunk`] made from an [`Event`] can be sent to any number
    /// of clients without a copy.
    ///
    /// # Errors
    ///
    /// As those of [`BodySender::try_send`].
    pub fn try_send(&self, event: impl Into<Chunk>) -> Result<(), SendError> {
        self.0.try_send(event)
    }

    /// As [`try_send`](Self::try_send), but waits for room until `deadline`.
    ///
    /// # Errors
    ///
    /// As those of [`BodySender::send_by`].
    pub fn send_by(&self, event: impl Into<Chunk>, deadline: Instant) -> Result<(), SendError> {
        self.0.send_by(event, deadline)
    }

    /// Whether nothing more can be sent.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// How many bytes were sent and are not written yet, with the frames of their chunks.
    pub fn unsent(&self) -> usize {
        self.0.unsent()
    }

    /// Has `callback` called once when the client leaves or the server drains, see
    /// [`BodySender::on_close`].
    pub fn on_close(&self, callback: impl FnOnce(CloseReason) + Send + 'static) {
        self.0.on_close(callback);
    }
}

/// An event for [`Events`]. It is sent as a [`Chunk`].
///
/// # Examples
///
/// ```
/// use handover::http::{Chunk, Event};
///
/// let event = Event::new().name("price").id("17").data("one line\nanother line");
/// let text = "event: price\nid: 17\ndata: one line\ndata: another line\n\n";
/// assert_eq!(Chunk::from(event).bytes(), text);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event(String);

impl Event {
    /// An event without fields. The client ignores an event without [`data`](Self::data), apart
    /// from its id and its retry time.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds data, of one or more lines. The client gets each end of a line (LF, CR or CR LF) as LF.
    pub fn data(self, text: &str) -> Self {
        self.lines("data: ", text)
    }

    /// Sets the type of the event, for which the client has added a listener. Defaults to
    /// `message`. CR and LF are left out.
    pub fn name(mut self, name: &str) -> Self {
        let name = name.split(['\r', '\n']);
        self.0.push_str("event: ");
        self.0.extend(name);
        self.0.push('\n');
        self
    }

    /// Sets the id, which the client names as [`last id`](Events::last_id) when it connects again,
    /// until a later event sets a new id. An empty id clears the last id. An id with CR, LF or NUL
    /// is not sent: the client would ignore it, or name another one.
    pub fn id(mut self, id: &str) -> Self {
        if !id.contains(['\r', '\n', '\0']) {
            let _ = writeln!(self.0, "id: {id}");
        }
        self
    }

    /// Sets how long the client waits before it connects again, in whole milliseconds.
    pub fn retry(mut self, delay: Duration) -> Self {
        let _ = writeln!(self.0, "retry: {}", delay.as_millis());
        self
    }

    /// Adds a comment, which the client ignores: a heartbeat.
    pub fn comment(self, text: &str) -> Self {
        self.lines(": ", text)
    }

    /// Adds the lines of a text, each with this prefix.
    fn lines(mut self, prefix: &str, text: &str) -> Self {
        let mut rest = Some(text);
        while let Some(text) = rest {
            let end = text.find(['\r', '\n']);
            let line = &text[..end.unwrap_or(text.len())];
            rest = end.map(|end| {
                let after = &text[end..];
                after.strip_prefix("\r\n").unwrap_or(&after[1..])
            });
            self.0.push_str(prefix);
            self.0.push_str(line);
            self.0.push('\n');
        }
        self
    }
}

impl From<Event> for Chunk {
    fn from(event: Event) -> Self {
        Self::from(event.0 + "\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_encoded_as_the_standard_says() {
        let event = Event::new;
        for (event, text) in [
            (event().data("text"), "data: text\n\n"),
            (event().data(""), "data: \n\n"),
            (event().data(" a: b"), "data:  a: b\n\n"),
            (event().data("a\nb"), "data: a\ndata: b\n\n"),
            (
                event().data("a\r\nb\rc\n"),
                "data: a\ndata: b\ndata: c\ndata: \n\n",
            ),
            (event().data("\n\rä"), "data: \ndata: \ndata: ä\n\n"),
            (event().id("7").data("a"), "id: 7\ndata: a\n\n"),
            (event().id(""), "id: \n\n"),
            (
                event().id("1\n2").id("1\r2").id("1\u{0}2").data("a"),
                "data: a\n\n",
            ),
            (event().name("n\r\ndata: x"), "event: ndata: x\n\n"),
            (
                event().retry(Duration::from_millis(1500)),
                "retry: 1500\n\n",
            ),
            (event().comment(""), ": \n\n"),
            (event().comment("a\ndata: b"), ": a\n: data: b\n\n"),
        ] {
            assert_eq!(Chunk::from(event).bytes(), text);
        }
    }

    #[test]
    fn the_last_id_is_that_of_the_field() {
        let mut fields = HeaderMap::new();
        assert_eq!(Events::last_id(&fields), None);
        for (value, id) in [
            (&b"17"[..], Some("17")),
            ("ä b".as_bytes(), Some("ä b")),
            (b"", None),
            (b"\xff", None),
        ] {
            fields.insert(LAST_EVENT_ID, HeaderValue::from_bytes(value).unwrap());
            assert_eq!(Events::last_id(&fields), id);
        }
    }
}
