//! Servers of one count that goes along exactly, for the tests of restarts.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use handover::{Connection, Next, Restart, Server, Waker};
use parking_lot::Mutex;
use rustix::process::Signal;

use super::process::signal;

/// A line protocol: `incr` is answered with the new count and the process id, `slow N` with `begun`, and
/// then the same after so many milliseconds, `wake` leaves the connection with a waker, which does not move. A message
/// may begin with lines `part`, which are answered with `more`.
#[derive(Clone)]
pub(crate) struct Increments {
    shared: Arc<Shared>,
    addrs: Vec<String>,
}

struct Shared {
    count: AtomicU64,
    /// How long a handler takes.
    takes: Duration,
    pause_limit: Duration,
    /// 0: as by default.
    groups: usize,
    /// So many bytes go along with the count.
    ballast: usize,
    wakers: Mutex<Vec<Waker>>,
}

impl Increments {
    /// `setting`: how long a handler takes in microseconds, the limit of the pause in milliseconds, and the addresses of
    /// the servers. Also `groups=N`, the worker groups of each server, and `ballast=N`, bytes beside the count.
    pub(crate) fn new(setting: &str) -> Self {
        let (named, words): (Vec<&str>, Vec<&str>) = setting
            .split_whitespace()
            .partition(|word| word.contains('='));
        let named = |name: &str| {
            let mut settings = named.iter().filter_map(|word| word.split_once('='));
            let value = settings.find_map(|(own, value)| (own == name).then_some(value));
            value.map_or(0, |value| value.parse().unwrap())
        };
        let [takes, limit, addrs @ ..] = &words[..] else {
            panic!("{setting:?}");
        };
        Self {
            shared: Arc::new(Shared {
                count: AtomicU64::new(0),
                takes: Duration::from_micros(takes.parse().unwrap()),
                pause_limit: Duration::from_millis(limit.parse().unwrap()),
                groups: named("groups"),
                ballast: named("ballast"),
                wakers: Mutex::default(),
            }),
            addrs: addrs.iter().map(|addr| (*addr).to_owned()).collect(),
        }
    }

    /// Has the count go along. `mode` says how the import fails.
    pub(crate) fn go_along(&self, restart: Restart, mode: &str) -> Restart {
        let (exported, imported) = (Arc::clone(&self.shared), Arc::clone(&self.shared));
        let mode = mode.to_owned();
        let export = move || {
            let count = exported.count.load(SeqCst);
            let mut state = format!("{count},{},", std::process::id()).into_bytes();
            state.resize(state.len() + exported.ballast, b'x');
            state
        };
        let import = move |state: Vec<u8>| match mode.as_str() {
            "import error" => Err("of another version"),
            "import panic" => panic!("of another version"),
            "import kill" => {
                signal(std::process::id() as i32, Signal::KILL);
                loop {
                    thread::park();
                }
            }
            "import hang" => loop {
                thread::park();
            },
            mode => {
                let text = String::from_utf8(state).unwrap();
                let mut parts = text.splitn(3, ',');
                let mut part = || parts.next().unwrap_or_default();
                let (count, pid, ballast) = (part(), part(), part());
                assert!(ballast == "x".repeat(imported.ballast));
                imported.count.store(count.parse().unwrap(), SeqCst);
                if mode == "import and kill the predecessor" {
                    signal(pid.parse().unwrap(), Signal::KILL);
                }
                Ok(())
            }
        };
        restart
            .exact_state(export, import)
            .pause_limit(self.shared.pause_limit)
    }

    pub(crate) fn servers(&self, restart: &Restart) -> Vec<Server<impl handover::Service + use<>>> {
        let build = |addr: &String| {
            let shared = Arc::clone(&self.shared);
            let builder = Server::builder().workers(4).listen(&**addr);
            let builder = builder.drain_timeout(Duration::from_secs(20));
            let builder = match shared.groups {
                0 => builder,
                groups => builder.worker_groups(groups),
            };
            let serve = move |conn: &mut Connection| shared.serve(conn);
            builder.restart(restart.clone()).build(serve).unwrap()
        };
        self.addrs.iter().map(build).collect()
    }

    /// The command `incr` as a request of HTTP.
    pub(crate) fn increment(&self) -> u64 {
        self.shared.increment()
    }

    pub(crate) fn count(&self) -> u64 {
        self.shared.count.load(SeqCst)
    }
}

impl Shared {
    fn serve(&self, conn: &mut Connection) -> io::Result<Next> {
        if conn.cause().draining {
            writeln!(conn, "bye")?;
            return Ok(Next::Close);
        }
        let Some(line) = conn.take_line(4096)? else {
            return Ok(Next::incomplete(conn));
        };
        let pid = std::process::id();
        let count = match line.split_once(' ') {
            Some(("slow", millis)) => {
                writeln!(conn, "begun")?;
                conn.flush()?;
                thread::sleep(Duration::from_millis(millis.parse().unwrap()));
                self.count.fetch_add(1, SeqCst) + 1
            }
            _ if line == "part" => {
                writeln!(conn, "more")?;
                return Ok(Next::More);
            }
            _ if line == "wake" => {
                self.wakers.lock().push(conn.waker());
                conn.set_goodbye("goodbye\n");
                self.count.load(SeqCst)
            }
            _ if line == "get" => self.count.load(SeqCst),
            _ => self.increment(),
        };
        writeln!(conn, "{count} {pid}")?;
        Ok(Next::Park)
    }

    fn increment(&self) -> u64 {
        thread::sleep(self.takes);
        self.count.fetch_add(1, SeqCst) + 1
    }
}
