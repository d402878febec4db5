//! actix-web, as its documentation has it: one single-threaded runtime per worker.

use std::io;
use std::thread;
use std::time::Duration;

use actix_web::http::header::ContentType;
use actix_web::web::{self, Query};
use actix_web::{App, HttpResponse, HttpServer, rt};
use serde::Deserialize;
use versus::Arguments;

#[derive(Deserialize)]
struct Sleep {
    ms: u32,
}

#[derive(Deserialize)]
struct Big {
    n: usize,
}

fn main() -> io::Result<()> {
    let arguments = Arguments::read(&["--listen", "--workers"]);
    let server = HttpServer::new(|| {
        App::new()
            .route("/", web::get().to(hello))
            .route("/sleep", web::get().to(sleep))
            .route("/big", web::get().to(big))
    });
    // The default of 5 s would close the idle connections that the others are measured with.
    let server = server
        .workers(arguments.workers().unwrap_or_else(versus::cpus))
        .keep_alive(Duration::from_secs(75))
        .bind(arguments.listen())?;
    rt::System::new().block_on(server.run())
}

async fn hello() -> HttpResponse {
    plain(versus::HELLO.into())
}

async fn sleep(Query(Sleep { ms }): Query<Sleep>) -> HttpResponse {
    let time = Duration::from_millis(ms.into());
    web::block(move || thread::sleep(time))
        .await
        .expect("the sleeper panicked");
    plain(versus::slept(time).into())
}

async fn big(Query(Big { n }): Query<Big>) -> HttpResponse {
    plain(versus::big_body(n).into())
}

fn plain(body: web::Bytes) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header(ContentType::plaintext())
        .body(body)
}
