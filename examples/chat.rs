//! A chat room with a line protocol: what one client says, all read. Silent clients occupy no
//! worker.
//!
//! ```sh
//! cargo run --release --example chat -- --listen 127.0.0.1:7002 --workers 2
//! ```
//!
//! Then run `nc 127.0.0.1 7002` in two other terminals, and type. Ctrl-C says goodbye to all.

mod common;

use std::io::{self, Write};

use bytes::Bytes;
use handover::{Bind, Connection, Next, Outbox, Service, WhenFull};
use parking_lot::Mutex;

/// The room: where messages for each client go.
#[derive(Default)]
pub(crate) struct Chat(Mutex<Vec<Outbox>>);

impl Service for Chat {
    /// Whether the client is in the room.
    type Session = bool;
    type Worker = ();

    fn worker(&self, _index: usize) -> io::Result<()> {
        Ok(())
    }

    fn session(&self, _conn: &mut Connection) -> io::Result<bool> {
        Ok(false)
    }

    fn serve(&self, conn: &mut Connection, is_in: &mut bool, (): &mut ()) -> io::Result<Next> {
        let name = conn.peer().to_string();
        if !std::mem::replace(is_in, true) {
            writeln!(conn, "you are {name}")?;
            conn.set_goodbye("goodbye\n");
            let outbox = conn.outbox(64 * 1024);
            outbox.set_when_full(WhenFull::CloseConnection);
            let mut room = self.0.lock();
            // An outbox is closed when its client has left.
            room.retain(|member| !member.is_closed());
            room.push(outbox);
        }
        let Some(line) = conn.take_line(1024)? else {
            return Ok(Next::incomplete(conn));
        };
        let line = Bytes::from(format!("{name}: {line}\n"));
        // Sending is I/O: not under the lock.
        let members = self.0.lock().clone();
        for member in members {
            // A client that has left, or does not read, is closed without this loop.
            let _ = member.send(line.clone());
        }
        Ok(Next::Park)
    }
}

const ABOUT: common::About = common::About {
    name: "chat",
    purpose: "A chat room with a line protocol.",
    listen: "127.0.0.1:7002",
    own_options: "",
    can_restart: false,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut options = common::Options::parse(&ABOUT);
    let listen = std::mem::take(&mut options.listen);
    let builder = listen.into_iter().fold(options.builder(), |builder, at| {
        builder.listen(Bind::new(at).speaks_first(true))
    });
    let server = builder.build(Chat::default())?;
    common::announce(&server.local_addrs());
    let report = server.run()?;
    common::say(report);
    Ok(())
}
