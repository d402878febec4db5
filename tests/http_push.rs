//! Responses and bodies that come from other threads: they hold no worker, and nothing of them is lost or left over.

#![cfg(feature = "http")]

mod support;
#[path = "support/http.rs"]
mod web;

use std::io::Read;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use handover::http::{
    self, AccessLog, Body, BodySender, Chunk, CloseReason, Event, Events, Reply, Request,
    Responder, Response,
};
use handover::{Builder, Handle, SendError};

use support::{LIMIT, QUIET, door, keep_log, logged, reset, server, start, stop, tick, until};
use web::{Client, get, post, serve, status};

const LONG: Duration = Duration::from_secs(3600);

/// A server whose responses the test gives, except to `/now`.
struct Later {
    handle: Handle,
    responders: Receiver<(String, Responder)>,
}

impl Later {
    fn within(within: Duration) -> Self {
        Self::on(server().workers(1), within)
    }

    fn on(builder: Builder, within: Duration) -> Self {
        let (sender, responders) = crossbeam_channel::unbounded();
        let handle = serve(builder, later_handler(sender, within));
        Self { handle, responders }
    }

    #[track_caller]
    fn next(&self, target: &str) -> Responder {
        let (found, responder) = self.responders.recv_timeout(LIMIT).unwrap();
        assert_eq!(found, target);
        responder
    }
}

fn later_handler(
    responders: Sender<(String, Responder)>,
    within: Duration,
) -> impl Fn(&mut Request<Body<'_>>) -> Response<Reply> + Send + Sync {
    move |request| {
        let target = request.uri().to_string();
        if target == "/now" {
            return Response::new("now".into());
        }
        let (responder, reply) = Reply::later(within);
        let responder = match target.as_str() {
            "/else" => responder.or_else(status(504, "else")),
            _ => responder,
        };
        responders.send((target, responder)).unwrap();
        Response::new(reply)
    }
}

/// Asserts that the responder hears of this, and only once.
fn closes(responder: &Responder) -> Receiver<CloseReason> {
    let (sender, receiver) = crossbeam_channel::unbounded();
    responder.on_close(move |reason| sender.send(reason).unwrap());
    receiver
}

#[track_caller]
fn reason(closed: &Receiver<CloseReason>) -> CloseReason {
    let reason = closed.recv_timeout(LIMIT).unwrap();
    assert!(closed.recv().is_err(), "called again");
    reason
}

// ---- responses from other threads ----

#[test]
fn a_response_from_another_thread_holds_no_worker() {
    let server = Later::within(LONG);
    let mut clients: Vec<Client> = (0..50).map(|_| Client::to(&server.handle)).collect();
    for client in &mut clients {
        client.send(get("/later"));
    }
    let responders: Vec<_> = clients.iter().map(|_| server.next("/later")).collect();
    // The only worker is free, and nobody is answered.
    Client::to(&server.handle).get("/now").is(200, "now");
    clients[0].is_silent();
    for responder in responders {
        assert!(!responder.is_closed());
        responder.send(status(202, "done")).unwrap();
    }
    for client in &mut clients {
        client.answer().is(202, "done");
        // The connection goes on.
        client.get("/now").is(200, "now");
    }
    stop(&server.handle);
}

#[test]
fn a_response_that_is_given_before_the_handler_returns_is_sent() {
    let handle = serve(server(), |_: &mut Request<Body<'_>>| {
        let (responder, reply) = Reply::later(LONG);
        responder.send(Response::new("early")).unwrap();
        Response::new(reply)
    });
    let mut client = Client::to(&handle);
    client.get("/").is(200, "early");
    client.get("/").is(200, "early");
    stop(&handle);
}

#[test]
fn pipelined_requests_wait_for_the_response_and_are_answered_in_order() {
    let server = Later::within(LONG);
    let mut client = Client::to(&server.handle);
    client.send(get("/now") + &get("/one") + &get("/two") + &get("/now"));
    client.answer().is(200, "now");
    let one = server.next("/one");
    client.is_silent();
    assert!(server.responders.try_recv().is_err(), "acted on early");
    one.send(Response::new("one")).unwrap();
    client.answer().is(200, "one");
    server.next("/two").send(Response::new("two")).unwrap();
    client.answer().is(200, "two");
    client.answer().is(200, "now");
    stop(&server.handle);
}

#[test]
fn head_and_old_clients_get_what_they_can_read() {
    let server = Later::within(LONG);
    let mut client = Client::to(&server.handle);
    client.send("HEAD /h HTTP/1.1\r\nHost: test\r\n\r\n");
    server.next("/h").send(Response::new("body")).unwrap();
    let answer = client.answer_to_head();
    assert_eq!(answer.field("content-length"), Some("4"));
    client.get("/now").is(200, "now");
    client.send("GET /old HTTP/1.0\r\n\r\n");
    server.next("/old").send(Response::new("old")).unwrap();
    client.answer().is(200, "old");
    client.ends();
    stop(&server.handle);
}

#[test]
fn a_body_that_nobody_read_is_discarded_when_the_response_is_written() {
    let server = Later::within(LONG);
    let mut client = Client::to(&server.handle);
    client.send(post("/post", "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"));
    server.next("/post").send(Response::new("posted")).unwrap();
    client.answer().is(200, "posted");
    client.get("/now").is(200, "now");
    stop(&server.handle);
}

#[test]
fn at_the_deadline_the_client_gets_503_or_what_was_chosen_and_the_responder_hears_it() {
    let server = Later::within(Duration::from_millis(50));
    for (target, code, text) in [
        ("/later", 503, "Service Unavailable: no response in time\n"),
        ("/else", 504, "else"),
    ] {
        let mut client = Client::to(&server.handle);
        let start = Instant::now();
        client.send(get(target));
        let responder = server.next(target);
        let closed = closes(&responder);
        let answer = client.answer();
        answer.is(code, text);
        assert!(start.elapsed() >= Duration::from_millis(50));
        assert_eq!(reason(&closed), CloseReason::DeadlinePassed);
        assert!(responder.is_closed());
        let late = responder.send(Response::new("late")).unwrap_err();
        assert_eq!(late.reason(), CloseReason::DeadlinePassed);
        assert_eq!(late.into_response().status(), 200);
        client.get("/now").is(200, "now");
    }
    stop(&server.handle);
}

#[test]
fn an_answer_that_is_first_wins_over_a_deadline_that_no_worker_has_noted() {
    let (keeper, door) = door();
    let (sender, responders) = crossbeam_channel::unbounded();
    let later = later_handler(sender, Duration::from_millis(50));
    let handle = serve(
        server().workers(1),
        move |request: &mut Request<Body<'_>>| {
            if request.uri().path() == "/door" {
                door.pass();
            }
            later(request)
        },
    );
    let mut client = Client::to(&handle);
    client.send(get("/later"));
    let (_, responder) = responders.recv_timeout(LIMIT).unwrap();
    let mut other = Client::to(&handle);
    other.send(get("/door"));
    keeper.wait();
    // The only worker is busy.
    support::pause(Duration::from_millis(60));
    responder.send(Response::new("first")).unwrap();
    drop(keeper);
    client.answer().is(200, "first");
    drop(other);
    drop(responders.recv_timeout(LIMIT));
    stop(&handle);
}

#[test]
fn a_dropped_responder_answers_500_and_is_logged() {
    keep_log();
    let server = Later::within(LONG);
    let mut client = Client::to(&server.handle);
    let name = client.stream.local_addr().unwrap().to_string();
    client.send(get("/drop"));
    drop(server.next("/drop"));
    client
        .answer()
        .is(500, "Internal Server Error: no response\n");
    client.get("/now").is(200, "now");
    let lines = logged("a responder was dropped");
    let is_error = |line: &support::Logged| line.level == log::Level::Error;
    assert!(
        lines
            .iter()
            .any(|line| is_error(line) && line.text.contains(&name))
    );
    stop(&server.handle);
}

#[test]
fn the_clients_leaving_is_noticed_at_once() {
    let server = Later::within(LONG);
    for by_reset in [false, true] {
        let mut client = Client::to(&server.handle);
        client.send(get("/gone"));
        let responder = server.next("/gone");
        responder.on_close(|_| panic!("as it was asked to"));
        let closed = closes(&responder);
        assert!(!responder.is_closed());
        match by_reset {
            true => reset(client.stream),
            false => drop(client),
        }
        assert_eq!(reason(&closed), CloseReason::ClientLeft);
        assert!(responder.is_closed());
        assert_eq!(reason(&closes(&responder)), CloseReason::ClientLeft);
        let late = responder.send(Response::new("late")).unwrap_err();
        assert_eq!(late.reason(), CloseReason::ClientLeft);
    }
    until(&server.handle, "all are closed", |stats| stats.live == 0);
    stop(&server.handle);
}

#[test]
fn a_client_that_ends_its_side_has_left_unless_the_service_says_otherwise() {
    let server = Later::within(LONG);
    let mut client = Client::to(&server.handle);
    client.send(get("/gone") + &get("/pipelined"));
    let responder = server.next("/gone");
    let closed = closes(&responder);
    client.finish();
    assert_eq!(reason(&closed), CloseReason::ClientLeft);
    client.is_over();
    stop(&server.handle);

    let (sender, responders) = crossbeam_channel::unbounded();
    let service = http::service(later_handler(sender, LONG)).abandoned_after(Duration::MAX);
    let handle = start(support::server(), service);
    let mut client = Client::to(&handle);
    client.send(get("/half"));
    client.finish();
    let (_, responder) = responders.recv_timeout(LIMIT).unwrap();
    client.is_silent();
    responder.send(Response::new("still")).unwrap();
    let answer = client.answer();
    answer.is(200, "still");
    assert!(answer.closes());
    client.ends();
    stop(&handle);
}

#[test]
fn the_idle_timeout_does_not_end_a_wait_and_holds_again_after_it() {
    let idle = Duration::from_millis(50);
    let server = Later::on(server().idle_timeout(idle), LONG);
    let mut client = Client::to(&server.handle);
    client.send(get("/later"));
    let responder = server.next("/later");
    client.is_silent();
    assert!(QUIET > 2 * idle && !responder.is_closed());
    responder.send(Response::new("done")).unwrap();
    client.answer().is(200, "done");
    client.ends();
    stop(&server.handle);
}

#[test]
fn a_later_reply_may_have_any_body_even_another_later_one() {
    let server = Later::within(LONG);
    let mut client = Client::to(&server.handle);
    client.send(get("/twice"));
    let (second, reply) = Reply::later(LONG);
    server.next("/twice").send(Response::new(reply)).unwrap();
    client.is_silent();
    let reader = std::io::repeat(b'x').take(100_000);
    second.send(Response::new(Reply::stream(reader))).unwrap();
    let answer = client.answer();
    assert_eq!((answer.status, answer.body.len()), (200, 100_000));
    // A response that is not valid.
    client.send(get("/odd"));
    server.next("/odd").send(status(101, "")).unwrap();
    assert_eq!(client.answer().status, 500);
    stop(&server.handle);
}

#[test]
fn a_reply_that_is_not_sent_says_so() {
    let (responder, reply) = Reply::later(LONG);
    let closed = closes(&responder);
    drop(Response::new(reply));
    assert_eq!(reason(&closed), CloseReason::NotSent);
    assert!(responder.is_closed());
}

#[test]
fn a_stop_waits_for_the_response_and_its_deadline_holds() {
    for (within, target, code) in [
        (LONG, "/later", 200),
        (Duration::from_secs(2), "/else", 504),
    ] {
        let server = Later::within(within);
        let mut client = Client::to(&server.handle);
        client.send(get(target));
        let responder = server.next(target);
        server.handle.stop(LIMIT);
        let mut kept = Some(responder);
        if code == 200 {
            client.is_silent();
            let responder = kept.take().unwrap();
            responder.send(Response::new("in time")).unwrap();
        }
        let answer = client.answer();
        assert_eq!(answer.status, code);
        assert!(answer.closes());
        client.ends();
        let report = server.handle.join();
        assert!(report.is_clean(), "{report}");
    }
}

#[test]
fn a_stop_that_runs_out_of_time_tells_the_responder() {
    let server = Later::within(LONG);
    let mut client = Client::to(&server.handle);
    client.send(get("/later"));
    let responder = server.next("/later");
    let closed = closes(&responder);
    server.handle.stop(Duration::from_millis(50));
    client.is_over();
    assert_eq!(reason(&closed), CloseReason::ClientLeft);
    assert!(!server.handle.join().is_clean());
}

/// The access lines with this target.
fn access_lines(target: &str) -> Vec<String> {
    let lines = logged(target).into_iter();
    let lines = lines.filter(|line| line.target == "handover::access");
    lines.map(|line| line.text).collect()
}

#[test]
fn the_access_line_of_a_later_response_comes_when_it_is_sent() {
    keep_log();
    let (sender, responders) = crossbeam_channel::unbounded();
    let service = http::service(later_handler(sender, LONG)).access_log(AccessLog::Combined);
    let handle = start(server(), service);
    let mut client = Client::to(&handle);
    client.send(get("/logged-later"));
    let (_, responder) = responders.recv_timeout(LIMIT).unwrap();
    tick();
    assert!(access_lines("/logged-later").is_empty());
    responder.send(status(202, "four")).unwrap();
    client.answer().is(202, "four");
    stop(&handle);
    let lines = access_lines("/logged-later");
    assert_eq!(lines.len(), 1);
    assert!(
        lines[0].contains("\"GET /logged-later HTTP/1.1\" 202 4 "),
        "{lines:?}"
    );
    let handled = lines[0].rsplit(' ').nth(1).unwrap();
    assert!(handled.parse::<u64>().unwrap() >= 25, "{lines:?}");
}

// ---- bodies from other threads ----

/// A server whose bodies the test sends, except to `/now`.
struct Channels {
    handle: Handle,
    senders: Receiver<BodySender>,
}

impl Channels {
    fn start() -> Self {
        Self::on(server().workers(1), 64 * 1024)
    }

    fn on(builder: Builder, capacity: usize) -> Self {
        let (sender, senders) = crossbeam_channel::unbounded();
        let handle = serve(builder, channel_handler(sender, capacity));
        Self { handle, senders }
    }

    #[track_caller]
    fn next(&self) -> BodySender {
        self.senders.recv_timeout(LIMIT).unwrap()
    }
}

fn channel_handler(
    senders: Sender<BodySender>,
    capacity: usize,
) -> impl Fn(&mut Request<Body<'_>>) -> Response<Reply> + Send + Sync {
    move |request| {
        if request.uri() == "/now" {
            return Response::new("now".into());
        }
        let (body, reply) = Reply::channel(capacity);
        let code = match request.uri().path() {
            "/204" => 204,
            _ => 200,
        };
        body.ends_at_drain(request.uri() == "/drain");
        senders.send(body).unwrap();
        status(code, reply)
    }
}

fn soon() -> Instant {
    Instant::now() + LIMIT
}

#[track_caller]
fn body_reason(body: &BodySender) -> CloseReason {
    let (sender, receiver) = crossbeam_channel::unbounded();
    body.on_close(move |reason| sender.send(reason).unwrap());
    reason(&receiver)
}

/// The next chunk.
#[track_caller]
fn chunk(client: &mut Client) -> String {
    let size = usize::from_str_radix(&client.line(), 16).unwrap();
    let bytes = client.bytes(size + 2);
    String::from_utf8(bytes)
        .unwrap()
        .trim_end_matches("\r\n")
        .to_owned()
}

#[test]
fn pieces_of_a_body_need_no_worker() {
    let (keeper, door) = door();
    let (sender, senders) = crossbeam_channel::unbounded();
    let channel = channel_handler(sender, 64 * 1024);
    let handle = serve(
        server().workers(1),
        move |request: &mut Request<Body<'_>>| {
            if request.uri().path() == "/door" {
                door.pass();
                return Response::new("door".into());
            }
            channel(request)
        },
    );
    let mut client = Client::to(&handle);
    client.send(get("/"));
    let body: BodySender = senders.recv_timeout(LIMIT).unwrap();
    // The head comes before the first piece.
    assert_eq!(client.head().field("transfer-encoding"), Some("chunked"));
    let mut other = Client::to(&handle);
    other.send(get("/door"));
    keeper.wait();
    for piece in ["one", "two", "three"] {
        body.try_send(piece).unwrap();
        assert_eq!(chunk(&mut client), piece);
    }
    // An empty piece would end the body.
    body.try_send("").unwrap();
    client.is_silent();
    drop(body);
    drop(keeper);
    other.answer().is(200, "door");
    assert_eq!(client.line(), "0");
    assert_eq!(client.line(), "");
    stop(&handle);
}

#[test]
fn the_sender_ends_the_body_and_the_connection_goes_on() {
    let server = Channels::start();
    let mut client = Client::to(&server.handle);
    client.send(get("/") + &get("/now"));
    let body = server.next();
    body.try_send("a body").unwrap();
    body.try_send(b" in pieces".to_vec()).unwrap();
    assert!(!body.is_closed());
    drop(body);
    let answer = client.answer();
    answer.is(200, "a body in pieces");
    assert_eq!(answer.chunks, Some(vec![6, 10]));
    // The pipelined request has waited.
    client.answer().is(200, "now");
    // A body that ends before the handler returns, and one that is empty.
    let handle = serve(support::server(), |request: &mut Request<Body<'_>>| {
        let (body, reply) = Reply::channel(100);
        if request.uri() == "/some" {
            body.try_send("some").unwrap();
        }
        Response::new(reply)
    });
    let mut client = Client::to(&handle);
    client.get("/some").is(200, "some");
    client.get("/none").is(200, "");
    stop(&handle);
    stop(&server.handle);
}

#[test]
fn old_clients_get_the_body_without_chunks() {
    let server = Channels::start();
    let mut client = Client::to(&server.handle);
    client.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    let body = server.next();
    body.try_send("old ").unwrap();
    body.try_send("client").unwrap();
    drop(body);
    let answer = client.answer();
    answer.is(200, "old client");
    assert!(answer.closes() && answer.chunks.is_none());
    stop(&server.handle);
}

#[test]
fn a_response_without_a_body_closes_the_channel() {
    let server = Channels::start();
    let mut client = Client::to(&server.handle);
    for request in [
        "HEAD / HTTP/1.1\r\nHost: test\r\n\r\n".to_owned(),
        get("/204"),
    ] {
        client.send(&request);
        let body = server.next();
        assert_eq!(body_reason(&body), CloseReason::NotSent);
        assert!(body.is_closed());
        let closed = SendError::Closed("text".into());
        assert_eq!(body.try_send("text"), Err(closed.clone()));
        assert_eq!(body.send_by("text", soon()), Err(closed));
        let is_head = request.starts_with("HEAD");
        let answer = client.answer_if_any(is_head).unwrap();
        assert_eq!(answer.status, if is_head { 200 } else { 204 });
        client.get("/now").is(200, "now");
    }
    stop(&server.handle);
}

#[test]
fn an_aborted_body_is_cut_off_and_so_is_that_of_a_thread_that_panics() {
    let server = Channels::start();
    for panics in [false, true] {
        let mut client = Client::to(&server.handle);
        client.send(get("/"));
        let body = server.next();
        client.head();
        body.try_send("part").unwrap();
        match panics {
            false => body.abort(),
            true => {
                let thread = thread::spawn(move || {
                    let _body = body;
                    panic!("as it was asked to");
                });
                thread.join().unwrap_err();
            }
        }
        assert_eq!(client.rest(), b"4\r\npart\r\n");
    }
    stop(&server.handle);
}

#[test]
fn a_full_channel_says_so_and_a_blocking_send_waits_for_room() {
    // 14 bytes with its frame.
    let piece = "12345678 ";
    let (sender, senders) = crossbeam_channel::unbounded();
    let handle = serve(server(), move |_: &mut Request<Body<'_>>| {
        let (body, reply) = Reply::channel(30);
        body.try_send(piece).unwrap();
        body.try_send(piece).unwrap();
        assert_eq!(body.try_send(piece), Err(SendError::Full(piece.into())));
        assert_eq!(body.unsent(), 28);
        let now = Instant::now();
        assert_eq!(body.send_by(piece, now), Err(SendError::Full(piece.into())));
        // Longer than the capacity: no wait helps.
        let long = "x".repeat(40);
        assert!(matches!(
            body.send_by(long, soon()),
            Err(SendError::Full(_))
        ));
        let waiting = thread::spawn(move || {
            body.send_by(piece, soon()).unwrap();
            body
        });
        sender.send(waiting).unwrap();
        Response::new(reply)
    });
    let mut client = Client::to(&handle);
    client.send(get("/"));
    let waiting: thread::JoinHandle<BodySender> = senders.recv_timeout(LIMIT).unwrap();
    drop(waiting.join().unwrap());
    client.answer().is(200, &piece.repeat(3));
    stop(&handle);
}

#[test]
fn a_client_that_does_not_read_fills_the_channel_until_it_reads() {
    let server = Channels::start();
    let mut client = Client::on(support::connect_narrow(support::addr(&server.handle)));
    client.send(get("/"));
    let body = server.next();
    let mut sent = 0;
    loop {
        match body.try_send(support::bytes_at(sent, 10_000)) {
            Ok(()) => sent += 10_000,
            Err(SendError::Full(bytes)) => break assert_eq!(bytes.len(), 10_000),
            Err(error) => panic!("{error}"),
        }
    }
    assert!(body.unsent() <= 64 * 1024);
    // The socket may not have taken yet what it has room for.
    loop {
        let deadline = Instant::now() + Duration::from_millis(20);
        match body.send_by(support::bytes_at(sent, 10_000), deadline) {
            Ok(()) => sent += 10_000,
            Err(SendError::Full(_)) => break,
            Err(error) => panic!("{error}"),
        }
    }
    let sending = thread::spawn(move || {
        let bytes = support::bytes_at(sent, 10_000);
        body.send_by(bytes, soon()).unwrap();
    });
    let answer = client.answer();
    assert!(answer.body == support::bytes_at(0, sent + 10_000));
    sending.join().unwrap();
    client.get("/now").is(200, "now");
    stop(&server.handle);
}

#[test]
fn a_client_that_never_reads_is_closed_and_the_others_see_no_delay() {
    let builder = server()
        .workers(1)
        .write_timeout(Duration::from_millis(200));
    let server = Channels::on(builder, 64 * 1024);
    let mut slow = Client::on(support::connect_narrow(support::addr(&server.handle)));
    slow.send(get("/"));
    let slow_body = server.next();
    let mut quick = Client::to(&server.handle);
    quick.send(get("/"));
    let quick_body = server.next();
    quick.head();
    let piece = Chunk::from("x".repeat(10_000));
    loop {
        match slow_body.try_send(piece.clone()) {
            Ok(()) => {}
            // The kernel may enlarge its buffer, and take all of this later.
            Err(SendError::Full(_)) => thread::yield_now(),
            Err(_) => break,
        }
        quick_body.try_send(piece.clone()).unwrap();
        assert_eq!(chunk(&mut quick).len(), 10_000);
    }
    assert_eq!(body_reason(&slow_body), CloseReason::ClientLeft);
    assert!(slow_body.is_closed());
    assert!(matches!(
        slow_body.try_send("more"),
        Err(SendError::Closed(_))
    ));
    // The write time-out is not for a client that has read everything.
    quick_body.try_send("still").unwrap();
    assert_eq!(chunk(&mut quick), "still");
    assert_eq!(server.handle.stats().expired.write, 1);
    drop(quick_body);
    assert_eq!(chunk(&mut quick), "");
    stop(&server.handle);
}

#[test]
fn pieces_stay_in_order_while_the_response_begins() {
    let server = Channels::on(support::server(), 1000);
    let mut client = Client::to(&server.handle);
    for round in 0..2000 {
        client.send(get("/"));
        let body = server.next();
        // Some pieces are sent before the head is written, and some after it. In some rounds they do not all fit.
        let pieces = if round % 20 == 0 { 200 } else { 8 };
        for n in 0..pieces {
            body.send_by(format!("{n} "), soon()).unwrap();
        }
        drop(body);
        let expected: String = (0..pieces).map(|n| format!("{n} ")).collect();
        client.answer().is(200, &expected);
    }
    stop(&server.handle);
}

#[test]
fn one_chunk_goes_to_many_clients() {
    let server = Channels::start();
    let mut clients: Vec<Client> = (0..20).map(|_| Client::to(&server.handle)).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        client.send(format!("GET / HTTP/1.{}\r\nHost: test\r\n\r\n", n % 2));
    }
    let bodies: Vec<_> = clients.iter().map(|_| server.next()).collect();
    let piece = Chunk::from("to all");
    for body in bodies {
        body.try_send(piece.clone()).unwrap();
    }
    for client in &mut clients {
        client.answer().is(200, "to all");
    }
    stop(&server.handle);
}

#[test]
fn the_leaving_of_a_listener_is_noticed_at_once() {
    let server = Channels::start();
    for by_reset in [false, true] {
        let mut client = Client::to(&server.handle);
        client.send(get("/"));
        let body = Arc::new(server.next());
        client.head();
        body.on_close(|_| panic!("as it was asked to"));
        let (tell, told) = crossbeam_channel::unbounded();
        let sender = Arc::downgrade(&body);
        body.on_close(move |_| {
            let sent = sender
                .upgrade()
                .map(|body| body.try_send("from the callback"));
            tell.send(sent).unwrap();
        });
        match by_reset {
            true => reset(client.stream),
            false => drop(client),
        }
        let closed = |bytes: &'static str| Err(SendError::Closed(bytes.into()));
        assert_eq!(
            told.recv_timeout(LIMIT).unwrap(),
            Some(closed("from the callback"))
        );
        assert_eq!(body_reason(&body), CloseReason::ClientLeft);
        assert!(body.is_closed());
        assert_eq!(body.try_send("late"), closed("late"));
    }
    until(&server.handle, "all are closed", |stats| stats.live == 0);
    stop(&server.handle);
}

#[test]
fn a_body_without_messages_does_not_expire() {
    let idle = Duration::from_millis(50);
    let server = Channels::on(support::server().idle_timeout(idle), 1000);
    let mut client = Client::to(&server.handle);
    client.send(get("/"));
    let body = server.next();
    client.head();
    client.is_silent();
    assert!(QUIET > 2 * idle && !body.is_closed());
    body.try_send("still").unwrap();
    assert_eq!(chunk(&mut client), "still");
    drop(body);
    assert_eq!(chunk(&mut client), "");
    // Between two messages, the time-out holds again.
    client.ends();
    stop(&server.handle);
}

#[test]
fn a_drain_ends_the_bodies_that_ask_for_it_and_lets_the_others_go_on() {
    let server = Channels::on(support::server(), 1000);
    let mut plain = Client::to(&server.handle);
    plain.send(get("/"));
    let plain_body = server.next();
    let mut stream = Client::to(&server.handle);
    stream.send(get("/drain"));
    let stream_body = server.next();
    stream.head();
    stream_body.try_send("event").unwrap();
    plain.head();
    server.handle.stop(LIMIT);
    assert_eq!(stream.rest(), b"5\r\nevent\r\n0\r\n\r\n");
    assert_eq!(body_reason(&stream_body), CloseReason::Draining);
    assert!(matches!(
        stream_body.try_send("late"),
        Err(SendError::Closed(_))
    ));
    plain_body.try_send("goes on").unwrap();
    assert_eq!(chunk(&mut plain), "goes on");
    drop(plain_body);
    assert_eq!(chunk(&mut plain), "");
    plain.ends();
    let report = server.handle.join();
    assert!(report.is_clean(), "{report}");
}

#[test]
fn the_access_line_of_a_body_comes_when_it_ends_however_it_ends() {
    keep_log();
    let (sender, senders) = crossbeam_channel::unbounded();
    let service = channel_handler(sender, 1000);
    let service = http::service(service).access_log(AccessLog::Combined);
    let handle = start(server(), service);
    for (target, leaves) in [("/logged-end", false), ("/logged-left", true)] {
        let mut client = Client::to(&handle);
        client.send(get(target));
        let body: BodySender = senders.recv_timeout(LIMIT).unwrap();
        client.head();
        body.try_send("1234567").unwrap();
        assert_eq!(chunk(&mut client), "1234567");
        tick();
        assert!(access_lines(target).is_empty());
        match leaves {
            true => reset(client.stream),
            false => drop(body),
        }
        support::wait_logged(&format!("\"GET {target} HTTP/1.1\" 200 7 "));
        assert_eq!(access_lines(target).len(), 1);
    }
    stop(&handle);
}

// ---- server-sent events ----

#[test]
fn an_event_stream_is_what_browsers_expect_and_ends_at_a_drain() {
    let (sender, streams) = crossbeam_channel::unbounded();
    let handle = serve(server(), move |request: &mut Request<Body<'_>>| {
        let (events, response) = Events::channel(1000);
        let last = Events::last_id(request.headers()).unwrap_or("none");
        let event = Event::new().id("7").data(last).data("two\nthree");
        events.try_send(event).unwrap();
        sender.send(events).unwrap();
        response
    });
    let mut client = Client::to(&handle);
    client.send("GET / HTTP/1.1\r\nHost: test\r\nLast-Event-ID: 6\r\n\r\n");
    let head = client.head();
    assert_eq!(head.field("content-type"), Some("text/event-stream"));
    assert_eq!(head.field("cache-control"), Some("no-cache"));
    assert_eq!(head.field("content-length"), None);
    let text = "id: 7\ndata: 6\ndata: two\ndata: three\n\n";
    assert_eq!(chunk(&mut client), text);
    let events: Events = streams.recv_timeout(LIMIT).unwrap();
    events.try_send(Event::new().comment("")).unwrap();
    assert_eq!(chunk(&mut client), ": \n\n");
    let (sender, closed) = crossbeam_channel::unbounded();
    events.on_close(move |reason| sender.send(reason).unwrap());
    handle.stop(LIMIT);
    assert_eq!(client.rest(), b"0\r\n\r\n");
    assert_eq!(reason(&closed), CloseReason::Draining);
    assert!(events.is_closed());
    let report = handle.join();
    assert!(report.is_clean(), "{report}");
}

#[test]
fn an_event_stream_that_begins_in_a_drain_ends_at_once() {
    let (keeper, door) = door();
    let handle = serve(
        server().workers(1),
        move |request: &mut Request<Body<'_>>| {
            door.pass();
            let (events, response) = Events::channel(1000);
            let id = Events::last_id(request.headers());
            events
                .try_send(Event::new().data(id.unwrap_or("none")))
                .unwrap();
            support::forever(events);
            response
        },
    );
    let mut client = Client::to(&handle);
    client.send(get("/"));
    keeper.wait();
    handle.stop(LIMIT);
    drop(keeper);
    let answer = client.answer();
    answer.is(200, "data: none\n\n");
    client.ends();
    let report = handle.join();
    assert!(report.is_clean(), "{report}");
}
