//! tiny_http: it reads each connection on a thread of its own pool; our threads take the requests.

use std::io;
use std::sync::Arc;
use std::thread;

use tiny_http::{Header, Request, Response, Server};
use versus::{Arguments, Page};

fn main() {
    let arguments = Arguments::read(&["--listen", "--workers"]);
    let server = Arc::new(Server::http(arguments.listen()).expect("bind"));
    let workers: Vec<_> = (0..arguments.workers().unwrap_or_else(versus::cpus))
        .map(|_| {
            let server = server.clone();
            thread::spawn(move || {
                // A client that has gone away is no reason to stop.
                for request in server.incoming_requests() {
                    let _ = answer(request);
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().expect("a worker panicked");
    }
}

fn answer(request: Request) -> io::Result<()> {
    match Page::from_target(request.url()).blocking_body() {
        Some(body) => {
            let plain = Header::from_bytes("Content-Type", "text/plain").expect("a valid header");
            // By default it would send bodies above 32 KiB in chunks, although it knows their length.
            let response = Response::from_data(body.into_owned())
                .with_header(plain)
                .with_chunked_threshold(usize::MAX);
            request.respond(response)
        }
        None => request.respond(Response::empty(404)),
    }
}
