//! hyper 1 on tokio's multi-threaded runtime, wired by hand.

use std::convert::Infallible;
use std::thread;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::runtime;
use versus::{Arguments, Page};

fn main() {
    let arguments = Arguments::read(&["--listen", "--workers"]);
    runtime::Builder::new_multi_thread()
        .worker_threads(arguments.workers().unwrap_or_else(versus::cpus))
        .enable_all()
        .build()
        .expect("start the runtime")
        .block_on(serve(arguments))
}

async fn serve(arguments: Arguments) {
    let listener = TcpListener::bind(arguments.listen()).await.expect("bind");
    loop {
        // A client that gives up before it is accepted, and a lack of descriptors, must not stop the server.
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let _ = stream.set_nodelay(true);
        tokio::spawn(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .pipeline_flush(true)
                .serve_connection(TokioIo::new(stream), service_fn(answer)),
        );
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let target = request
        .uri()
        .path_and_query()
        .map_or("/", |target| target.as_str());
    let body = match Page::from_target(target) {
        Page::Hello => Bytes::from_static(versus::HELLO.as_bytes()),
        Page::Sleep(time) => {
            let sleep = tokio::task::spawn_blocking(move || thread::sleep(time));
            sleep.await.expect("the sleeper panicked");
            Bytes::from(versus::slept(time))
        }
        Page::Burn(time) => {
            let burn = tokio::task::spawn_blocking(move || versus::burnt(time));
            Bytes::from(burn.await.expect("the handler panicked"))
        }
        Page::Big(bytes) => Bytes::from(versus::big_body(bytes)),
        Page::Missing => {
            let mut response = Response::default();
            *response.status_mut() = StatusCode::NOT_FOUND;
            return Ok(response);
        }
    };
    let mut response = Response::new(Full::new(body));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(response)
}
