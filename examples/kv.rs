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
//! INCR visits                 VALUE 1
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
//!
//! On SIGHUP a new process takes over, with the keys and with the connections. Each `OK` and each
//! number that a client has got is in the keys of the new process ([`handover::Restart::exact_state`], Linux).

mod common;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;

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

    fn packs_sessions(&self) -> bool {
        true
    }

    fn pack(&self, _conn: &Connection, session: &Session) -> Option<Vec<u8>> {
        Some(format!("{} {}", session.requests, session.namespace).into_bytes())
    }

    fn unpack(&self, _conn: &mut Connection, packed: Vec<u8>) -> io::Result<Session> {
        let text = String::from_utf8(packed).map_err(io::Error::other)?;
        let (requests, namespace) = text.split_once(' ').unwrap_or_default();
        Ok(Session {
            namespace: namespace.to_owned(),
            requests: requests.parse().map_err(io::Error::other)?,
        })
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
            ("GET" | "DEL" | "USE" | "INCR", key) if key.is_empty() || !value.is_empty() => {
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
            ("INCR", key) => match self.increment(&session.namespace, key) {
                Some(value) => format!("VALUE {value}"),
                None => "ERROR the value is not a number that can grow".to_owned(),
            },
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
            ("", _) => {
                "ERROR a request is GET, SET, INCR, DEL, KEYS, USE, STATS or QUIT".to_owned()
            }
            _ => format!("ERROR unknown request: {}", command.escape_default()),
        };
        Answer::Line(answer)
    }

    /// All keys, a line for each.
    fn export(&self) -> Vec<u8> {
        let store = self.0.read();
        let keys = store
            .iter()
            .flat_map(|(namespace, keys)| keys.iter().map(move |key| (namespace, key)));
        let lines = keys.map(|(namespace, (key, value))| format!("{namespace} {key} {value}\n"));
        lines.collect::<String>().into_bytes()
    }

    fn import(&self, state: Vec<u8>) -> Result<(), String> {
        let state = String::from_utf8(state).map_err(|error| error.to_string())?;
        for line in state.lines() {
            match line.splitn(3, ' ').collect::<Vec<_>>()[..] {
                [namespace, key, value] => self.set(namespace, key, value),
                _ => return Err(format!("not a key: {line:?}")),
            }
        }
        Ok(())
    }

    fn get(&self, namespace: &str, key: &str) -> Option<String> {
        self.0.read().get(namespace)?.get(key).cloned()
    }

    fn set(&self, namespace: &str, key: &str, value: &str) {
        let mut store = self.0.write();
        let namespace = store.entry(namespace.to_owned()).or_default();
        namespace.insert(key.to_owned(), value.to_owned());
    }

    /// Adds one to a number. The new one; `None` if the value is no number, or the largest one.
    fn increment(&self, namespace: &str, key: &str) -> Option<u64> {
        let mut store = self.0.write();
        let namespace = store.entry(namespace.to_owned()).or_default();
        let value = match namespace.get(key) {
            Some(value) => value.parse::<u64>().ok()?.checked_add(1)?,
            None => 1,
        };
        namespace.insert(key.to_owned(), value.to_string());
        Some(value)
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
    can_restart: true,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut options = common::Options::parse(&ABOUT);
    let restart = options.restart()?;
    let store = Arc::new(Store::default());
    let (exported, imported) = (Arc::clone(&store), Arc::clone(&store));
    let export = move || exported.export();
    let import = move |state| imported.import(state);
    let restart = match cfg!(target_os = "linux") {
        true => restart.exact_state(export, import),
        // A snapshot: what changes while the successor starts is lost.
        false => {
            import(restart.inherited_state().unwrap_or_default())?;
            restart.pass_state(export)
        }
    };
    let server = options.builder().restart(restart).build(store)?;
    common::announce(&server.local_addrs());
    let report = server.run()?;
    println!("{report}");
    Ok(())
}
