//! may_minihttp: a minimal HTTP server on may's stackful coroutines.
//!
//! It has no pool for blocking work, so `/sleep` is may's own sleep: the coroutine waits and no thread does.
//! It never closes a connection, whatever the client asks for.

use std::io;

use may_minihttp::{HttpServer, HttpService, Request, Response};
use versus::{Arguments, Page};

#[derive(Clone)]
struct Pages;

impl HttpService for Pages {
    fn call(&mut self, request: Request, response: &mut Response) -> io::Result<()> {
        let page = Page::from_target(request.path());
        response.header("Content-Type: text/plain");
        match page {
            Page::Hello => response.body(versus::HELLO),
            Page::Sleep(time) => {
                may::coroutine::sleep(time);
                response.body_vec(versus::slept(time).into_bytes());
            }
            Page::Burn(time) => response.body_vec(versus::burnt(time).into_bytes()),
            Page::Big(bytes) => response.body_vec(versus::big_body(bytes).into_bytes()),
            Page::Missing => {
                response.status_code(404, "Not Found");
            }
        }
        Ok(())
    }
}

fn main() {
    let arguments = Arguments::read(&["--listen", "--workers"]);
    may::config().set_workers(arguments.workers().unwrap_or_else(versus::cpus));
    let server = HttpServer(Pages).start(arguments.listen()).expect("bind");
    server.join().expect("the accepting coroutine panicked");
}
