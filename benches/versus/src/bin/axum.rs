//! axum, as its documentation has it: a router served by `axum::serve`.

use std::thread;
use std::time::Duration;

use axum::Router;
use axum::extract::Query;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::ListenerExt;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::runtime;
use versus::Arguments;

#[derive(Deserialize)]
struct Sleep {
    ms: u32,
}

#[derive(Deserialize)]
struct Big {
    n: usize,
}

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
    let listener = TcpListener::bind(arguments.listen())
        .await
        .expect("bind")
        .tap_io(|stream| {
            let _ = stream.set_nodelay(true);
        });
    let pages = Router::new()
        .route("/", get(hello))
        .route("/sleep", get(sleep))
        .route("/big", get(big));
    axum::serve(listener, pages).await.expect("serve");
}

async fn hello() -> Response {
    plain(versus::HELLO)
}

async fn sleep(Query(Sleep { ms }): Query<Sleep>) -> Response {
    let time = Duration::from_millis(ms.into());
    let sleep = tokio::task::spawn_blocking(move || thread::sleep(time));
    sleep.await.expect("the sleeper panicked");
    plain(versus::slept(time))
}

async fn big(Query(Big { n }): Query<Big>) -> Response {
    plain(versus::big_body(n))
}

fn plain(body: impl IntoResponse) -> Response {
    ([(CONTENT_TYPE, "text/plain")], body).into_response()
}
