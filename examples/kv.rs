//! A key-value store with a line protocol: one request, one answer.
//!
//! ```sh
//! cargo run --release --example kv -- --listen 127.0.0.1:7001 --workers 2
//! ```
//!
//! Then run `nc 127.0.0.1 7001` in another terminal:
//!
//! ```text
//! SET colour dark green       OK
//! GET colour                  VALUE dark green
//! KEYS                        KEYS 1 colour
//! DEL colour                  OK
//! GET colour                  NONE
//! USE other                   OK          this connection uses the keys of another namespace
//! STATS                       STATS namespace=other requests=7
//! QUIT                        BYE
//! ```
//!
//! An answer to a wrong request begins with `ERROR` and says what is wrong. A client may send a
//! request in pieces, and several requests at once. The namespace and the number of requests are
//! the session of a connection. They survive while the connection is parked and occupies no thread,
//! so two workers can serve two hundred connected clients.

mod common;

use std::collections::BTreeMap;
use std::io::{self, Write};

use handover::{Connection, Next, Service};
use parking_lot::RwLock;

/// The longest request in bytes, with its line ending.
const LINE_LIMIT: usize = 64 * 1024;

type Namespace = BTreeMap<String, String>;

#[derive(Default)]
struct Store(RwLock<BTreeMap<String, Namespace>>);

/// What belongs to one connection.
struct Session {
    namespace: String,
    requests: u64,
}

impl Service for Store {
    type Session = Session;
    type Worker = ();

    fn worker(&self, _index: usize) -> io::Result<()> {
        Ok(())
    }

    fn session(&self, _conn: &mut Connection) -> io::Result<Session> {
        Ok(Session {
            namespace: "default".to_owned(),
            requests: 0,
        })
    }

    /// Serves one request. If the buffer contains more requests, this is called again.
    fn serve(&self, conn: &mut Connection, session: &mut Session, _: &mut ()) -> io::Result<Next> {
        let line = match conn.take_line(LINE_LIMIT) {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(Next::More),
            // The beginning of the next request is not known.
            Err(error) => {
                writeln!(conn, "ERROR {error}")?;
                return Ok(Next::Close);
            }
        };
        session.requests += 1;
        match self.answer(&line, session) {
            Answer::Line(answer) => {
                writeln!(conn, "{answer}")?;
                Ok(Next::Park)
            }
            Answer::Bye => {
                writeln!(conn, "BYE")?;
                Ok(Next::Close)
            }
        }
    }
}

enum Answer {
    Line(String),
    Bye,
}

impl Store {
    fn answer(&self, line: &str, session: &mut Session) -> Answer {
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        let rest = rest.trim_start();
        let (key, value) = rest.split_once(' ').unwrap_or((rest, ""));
        let answer = match (command.to_ascii_uppercase().as_str(), key) {
            ("SET", "") => "ERROR usage: SET key value".to_owned(),
            ("GET" | "DEL" | "USE", key) if key.is_empty() || !value.is_empty() => {
                format!("ERROR usage: {} name", command.to_ascii_uppercase())
            }
            ("GET", key) => match self.get(&session.namespace, key) {
                Some(value) => format!("VALUE {value}"),
                None => "NONE".to_owned(),
            },
            ("SET", key) => {
                self.set(&session.namespace, key, value);
                "OK".to_owned()
            }
            ("DEL", key) if self.delete(&session.namespace, key) => "OK".to_owned(),
            ("DEL", _) => "NONE".to_owned(),
            ("KEYS", prefix) => {
                let keys = self.keys(&session.namespace, prefix);
                format!("KEYS {} {}", keys.len(), keys.join(" "))
                    .trim_end()
                    .to_owned()
            }
            ("USE", name) => {
                name.clone_into(&mut session.namespace);
                "OK".to_owned()
            }
            ("STATS", _) => {
                let (namespace, requests) = (&session.namespace, session.requests);
                format!("STATS namespace={namespace} requests={requests}")
            }
            ("QUIT", _) => return Answer::Bye,
            ("", _) => "ERROR a request is GET, SET, DEL, KEYS, USE, STATS or QUIT".to_owned(),
            _ => format!("ERROR unknown request: {}", command.escape_default()),
        };
        Answer::Line(answer)
    }

    fn get(&self, namespace: &str, key: &str) -> Option<String> {
        self.0.read().get(namespace)?.get(key).cloned()
    }

    fn set(&self, namespace: &str, key: &str, value: &str) {
        let mut store = self.0.write();
        let namespace = store.entry(namespace.to_owned()).or_default();
        namespace.insert(key.to_owned(), value.to_owned());
    }

    fn delete(&self, namespace: &str, key: &str) -> bool {
        let mut store = self.0.write();
        let namespace = store.get_mut(namespace);
        namespace.is_some_and(|keys| keys.remove(key).is_some())
    }

    fn keys(&self, namespace: &str, prefix: &str) -> Vec<String> {
        let store = self.0.read();
        let keys = store.get(namespace).into_iter().flat_map(BTreeMap::keys);
        keys.filter(|key| key.starts_with(prefix))
            .cloned()
            .collect()
    }
}

const ABOUT: common::About = common::About {
    name: "kv",
    purpose: "A key-value store with a line protocol.",
    listen: "127.0.0.1:7001",
    own_options: "",
    can_restart: false,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = common::Options::parse(&ABOUT);
    let server = options.builder().build(Store::default())?;
    common::announce(&server.local_addrs());
    let report = server.run()?;
    println!("{report}");
    Ok(())
}
