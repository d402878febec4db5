//! astra: hyper on blocking threads, one per connection up to a limit.

use astra::{Body, ConnectionInfo, Request, Response, ResponseBuilder, Server};
use versus::{Arguments, Page};

fn main() {
    let arguments = Arguments::read(&["--listen", "--workers"]);
    let mut server = Server::bind(arguments.listen())
        .http1_only()
        .http1_pipeline_flush(true);
    if let Some(workers) = arguments.workers() {
        server = server.max_workers(workers);
    }
    server.serve(answer).expect("serve");
}

fn answer(request: Request, _: ConnectionInfo) -> Response {
    let target = request
        .uri()
        .path_and_query()
        .map_or("/", |target| target.as_str());
    let response = ResponseBuilder::new();
    match Page::from_target(target).blocking_body() {
        Some(body) => response
            .header("Content-Type", "text/plain")
            .body(Body::new(body.into_owned())),
        None => response.status(404).body(Body::empty()),
    }
    .expect("a valid response")
}
