//! rouille: a framework on top of tiny_http that runs its handlers on a pool.

use rouille::{Request, Response, Server};
use versus::{Arguments, Page};

fn main() {
    let arguments = Arguments::read(&["--listen", "--workers"]);
    let mut server = Server::new(arguments.listen(), answer).expect("bind");
    if let Some(workers) = arguments.workers() {
        server = server.pool_size(workers);
    }
    server.run();
}

fn answer(request: &Request) -> Response {
    match Page::from_target(request.raw_url()).blocking_body() {
        Some(body) => Response::from_data("text/plain", body.into_owned()),
        None => Response::empty_404(),
    }
}
