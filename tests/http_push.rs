//! Responses and bodies that come from other threads: they hold no worker, and nothing of them is lost or left over.

#![cfg(feature = "http")]

mod support;
#[path = "support/http.rs"]
mod web;

use std::io::Read;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use handover::Handle;
use handover::http::{self, AccessLog, Body, CloseReason, Reply, Request, Responder, Response};

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

    fn on(builder: handover::Builder, within: Duration) -> Self {
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
) -> impl Fn(Request<Body<'_>>) -> Response<Reply> + Send + Sync {
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
    let handle = serve(server(), |_: Request<Body<'_>>| {
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
    let handle = serve(server().workers(1), move |request: Request<Body<'_>>| {
        if request.uri().path() == "/door" {
            door.pass();
        }
        later(request)
    });
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
        (Duration::from_millis(300), "/else", 504),
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
