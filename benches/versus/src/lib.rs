//! What the servers of the comparison share: their arguments, and what they answer.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Display;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::process;
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The body of `GET /`.
pub const HELLO: &str = "Hello, World!";

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// `/`: thirteen bytes at once.
    Hello,
    /// `/sleep?ms=5`, and `/later?ms=5` where no thread but its own waits for it: what [`slept`] says, from a handler
    /// that blocks for so long.
    Sleep(Duration),
    /// `/burn?ms=20`: what [`burnt`] says, from a handler that uses this much CPU time.
    Burn(Duration),
    /// `/big?n=102400`: a body of so many bytes.
    Big(usize),
    /// Anything else.
    Missing,
}

impl Page {
    /// Reads the path and the query of a request line.
    pub fn from_target(target: &str) -> Page {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let number = |name: &str| {
            query
                .split('&')
                .filter_map(|pair| pair.split_once('='))
                .find(|(key, _)| *key == name)
                .and_then(|(_, value)| value.parse::<u32>().ok())
        };
        match path {
            "/" => Page::Hello,
            "/sleep" | "/later" => number("ms").map_or(Page::Missing, |ms| Page::Sleep(millis(ms))),
            "/burn" => number("ms").map_or(Page::Missing, |ms| Page::Burn(millis(ms))),
            "/big" => number("n").map_or(Page::Missing, |n| Page::Big(n as usize)),
            _ => Page::Missing,
        }
    }

    /// The body, made on the calling thread, which is blocked for as long as the page says. `None` is a 404.
    pub fn blocking_body(self) -> Option<Cow<'static, str>> {
        match self {
            Page::Hello => Some(HELLO.into()),
            Page::Sleep(time) => {
                thread::sleep(time);
                Some(slept(time).into())
            }
            Page::Burn(time) => Some(burnt(time).into()),
            Page::Big(bytes) => Some(big_body(bytes).into()),
            Page::Missing => None,
        }
    }
}

/// The body of `GET /sleep`.
pub fn slept(time: Duration) -> String {
    format!("slept {}", time.as_millis())
}

/// Uses this much CPU time of the calling thread, and returns the body of `GET /burn`.
pub fn burnt(time: Duration) -> String {
    let cpu_time = || {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
    };
    let end = cpu_time() + time;
    while cpu_time() < end {
        std::hint::spin_loop();
    }
    format!("burnt {}", time.as_millis())
}

/// The body of `GET /big`, built anew for every request as an application would.
pub fn big_body(bytes: usize) -> String {
    "x".repeat(bytes)
}

fn millis(ms: u32) -> Duration {
    Duration::from_millis(ms.into())
}

/// The arguments `--name value` of one of the programs.
#[derive(Debug)]
pub struct Arguments(HashMap<String, String>);

impl Arguments {
    /// Reads the command line, and ends the program on a name that is not `known`.
    pub fn read(known: &[&str]) -> Arguments {
        let mut values = HashMap::new();
        let mut words = std::env::args().skip(1);
        while let Some(name) = words.next() {
            match words.next() {
                Some(value) if known.contains(&name.as_str()) => values.insert(name, value),
                _ => usage(format!(
                    "{name}: expected a value after one of {}",
                    known.join(", ")
                )),
            };
        }
        Arguments(values)
    }

    /// The value of `name`, where it was given.
    pub fn value<T: FromStr<Err: Display>>(&self, name: &str) -> Option<T> {
        let text = self.0.get(name)?;
        Some(
            text.parse()
                .unwrap_or_else(|error| usage(format!("{name} {text}: {error}"))),
        )
    }

    /// The value of `name`, without which the program ends.
    pub fn required<T: FromStr<Err: Display>>(&self, name: &str) -> T {
        self.value(name)
            .unwrap_or_else(|| usage(format!("{name} is missing")))
    }

    /// The address to serve on.
    pub fn listen(&self) -> SocketAddr {
        self.required("--listen")
    }

    /// How many threads are to serve, where it was said.
    pub fn workers(&self) -> Option<usize> {
        self.value("--workers")
    }
}

/// The number of CPUs that this process may run on, which a pinned process must not exceed.
pub fn cpus() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Whether the other side has neither closed the connection nor sent anything that was not read.
pub fn is_open_and_silent(connection: &TcpStream) -> bool {
    let pending = connection
        .set_nonblocking(true)
        .and_then(|()| connection.peek(&mut [0]));
    matches!(pending, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

fn usage(complaint: String) -> ! {
    eprintln!("{complaint}");
    process::exit(2)
}
