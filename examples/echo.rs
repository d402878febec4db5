//! A server that sends back what it receives.
//!
//! ```sh
//! cargo run --release --example echo -- --listen 127.0.0.1:7000
//! ```
//!
//! Then run `nc 127.0.0.1 7000` in another terminal and type: each line comes back. Open several
//! of these: a silent client occupies no thread. Ctrl-C stops the server, which prints a report.

mod common;

use std::io::{self, Read, Write};

use handover::{Connection, Next};

fn echo(conn: &mut Connection) -> io::Result<Next> {
    let mut bytes = [0; 512];
    let count = conn.read(&mut bytes)?;
    conn.write_all(&bytes[..count])?;
    Ok(Next::Park)
}

const ABOUT: common::About = common::About {
    name: "echo",
    purpose: "A server that sends back what it receives.",
    listen: "127.0.0.1:7000",
    own_options: "",
    can_restart: false,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = common::Options::parse(&ABOUT);
    let server = options.builder().build(echo)?;
    common::announce(&server.local_addrs());
    let report = server.run()?;
    println!("{report}");
    Ok(())
}
