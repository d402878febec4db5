//! Two servers in one process: HTTP for the public, and a line protocol for administrators.
//!
//! ```sh
//! cargo run --release --example two_servers --features http -- --listen 127.0.0.1:8082 --admin 127.0.0.1:7003
//! ```
//!
//! `curl http://127.0.0.1:8082/` counts visits, and `/health` is for a balancer. Then run `nc 127.0.0.1 7003` in another
//! terminal:
//!
//! ```text
//! stats       generation 1: 3 visits, 0 connections, 3 calls, 99 % began within 64µs
//! leave       OK              /health answers 503 from now on, and all else is served as before
//! stay        OK              /health answers 200 again
//! restart     OK              as kill -HUP: one successor takes over both servers, and the visits
//! stop        OK              both servers stop, within --drain seconds; a supervisor starts another process
//! ```
//!
//! The administrators have workers of their own, so they are served while all workers of the public are busy.

mod common;

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use handover::http::{self, Body, Request, Response, StatusCode};
use handover::{Bind, Connection, Handle, Next, Server, Servers};
use lexopt::ValueExt;

/// What both servers know.
struct Site {
    generation: u64,
    visits: AtomicU64,
    /// The health check answers 503, so that the balancer sends no more clients.
    leaves: AtomicBool,
}

impl Site {
    /// `state` is what the predecessor has exported, if there is one.
    fn new(generation: u64, state: Option<Vec<u8>>) -> Self {
        let text = String::from_utf8(state.unwrap_or_default()).unwrap_or_default();
        // A version of the format that is not known counts as no state.
        let visits = text.strip_prefix("1 ").and_then(|text| text.parse().ok());
        Self {
            generation,
            visits: AtomicU64::new(visits.unwrap_or(0)),
            leaves: AtomicBool::new(false),
        }
    }

    /// The version of the format, and the visits. Visits that come while a successor starts are not
    /// in it: a count may miss some.
    fn export(&self) -> Vec<u8> {
        format!("1 {}", self.visits.load(Relaxed)).into_bytes()
    }
}

const ABOUT: common::About = common::About {
    name: "two_servers",
    purpose: "HTTP for the public, and a line protocol for administrators, in one process.",
    listen: "127.0.0.1:8082",
    own_options:
        "  --admin ADDR              where administrators connect; 127.0.0.1:7003 if not given
",
    can_restart: true,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut admin = "127.0.0.1:7003".to_owned();
    let mut options = common::Options::parse_with(&ABOUT, |name, parser| {
        match name {
            "admin" => admin = parser.value()?.string()?,
            _ => return Ok(false),
        }
        Ok(true)
    });
    let drain = options.drain.unwrap_or(Duration::from_secs(30));
    let restart = options.restart()?;
    let site = Site::new(restart.generation(), restart.inherited_state());
    let site = Arc::new(site);
    let exported = Arc::clone(&site);
    let restart = restart.pass_state(move || exported.export());

    let visited = Arc::clone(&site);
    let service = http::service(move |request| visit(&visited, request));
    let public = options.builder().restart(restart.clone()).build(service)?;
    let handle = public.handle();
    // With a name: two listeners on any free port would be matched by their order.
    let admin = Server::builder()
        .listen(Bind::new(admin).name("admin"))
        .workers(2)
        .drain_timeout(drain)
        .restart(restart)
        .build(move |conn: &mut Connection| administrate(conn, &site, &handle, drain))?;

    common::announce_http(&public.local_addrs());
    common::announce(&admin.local_addrs());
    for report in Servers::new().with(public).with(admin).run()? {
        common::say(report);
    }
    Ok(())
}

fn visit(site: &Site, request: &Request<Body<'_>>) -> Response<String> {
    let (status, text) = match request.uri().path() {
        "/" => {
            let visits = site.visits.fetch_add(1, Relaxed) + 1;
            (StatusCode::OK, format!("visit {visits}\n"))
        }
        "/health" if site.leaves.load(Relaxed) => {
            (StatusCode::SERVICE_UNAVAILABLE, "leaving\n".to_owned())
        }
        "/health" => (StatusCode::OK, "serving\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "not found\n".to_owned()),
    };
    let mut response = Response::new(text);
    *response.status_mut() = status;
    response
}

/// Answers one line. `public` is the handle of the other server: a stop or a restart of one is that
/// of both.
fn administrate(
    conn: &mut Connection,
    site: &Site,
    public: &Handle,
    drain: Duration,
) -> io::Result<Next> {
    let Some(line) = conn.take_line(100)? else {
        return Ok(Next::More);
    };
    match line.trim() {
        "stats" => {
            let stats = public.stats();
            let waited = stats.waited.quantile(0.99).unwrap_or_default();
            writeln!(
                conn,
                "generation {}: {} visits, {} connections, {} calls, 99 % began within {waited:?}",
                site.generation,
                site.visits.load(Relaxed),
                stats.live,
                stats.served
            )?;
            return Ok(Next::Park);
        }
        "leave" => site.leaves.store(true, Relaxed),
        "stay" => site.leaves.store(false, Relaxed),
        // Neither waits: a call that waited for the end of its own server would not end.
        "restart" => public.request_restart(),
        "stop" => public.stop(drain),
        _ => {
            writeln!(conn, "ERROR stats, leave, stay, restart or stop")?;
            return Ok(Next::Park);
        }
    }
    writeln!(conn, "OK")?;
    Ok(Next::Park)
}
