//! axum, as its documentation has it: a router served by `axum::serve`.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::runtime;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;
use tokio_stream::{Stream, StreamExt};
use versus::Arguments;

/// The messages that a subscriber may be behind. One that is further behind is dropped.
const BACKLOG: usize = 128;

type Messages = broadcast::Sender<Arc<str>>;

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
        .route("/big", get(big))
        .route("/subscribe", get(subscribe))
        .route("/publish", post(publish))
        .route("/later", get(later))
        .with_state(Messages::new(BACKLOG));
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

async fn subscribe(
    State(messages): State<Messages>,
) -> Sse<impl Stream<Item = Result<Event, BroadcastStreamRecvError>>> {
    let events = BroadcastStream::new(messages.subscribe())
        .map(|message| message.map(|text| Event::default().data(text)));
    Sse::new(events).keep_alive(KeepAlive::default())
}

async fn publish(State(messages): State<Messages>, body: String) -> StatusCode {
    // The error says that nobody listens.
    let _ = messages.send(body.into());
    StatusCode::NO_CONTENT
}

async fn later(Query(Sleep { ms }): Query<Sleep>) -> Response {
    let time = Duration::from_millis(ms.into());
    tokio::time::sleep(time).await;
    plain(versus::slept(time))
}

fn plain(body: impl IntoResponse) -> Response {
    ([(CONTENT_TYPE, "text/plain")], body).into_response()
}
