//! The settings: their defaults, and what the builder refuses.

mod support;

use std::io;

use handover::{Connection, Next, Server};

fn close(_: &mut Connection) -> io::Result<Next> {
    Ok(Next::Close)
}

/// A balancer that keeps idle connections for 60 s, as most do by default, has to close them first.
#[test]
fn the_default_idle_timeout_outlasts_what_balancers_keep() {
    let server = Server::builder().listen("127.0.0.1:0").build(close);
    let text = format!("{:?}", server.unwrap());
    assert!(text.contains("idle_timeout: 75s"), "{text}");
}
