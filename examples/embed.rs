//! A server inside a program that has threads and signal handling of its own.
//!
//! The program counts on a thread, and handles its signals itself. The server is the program's
//! console: it is started and stopped by a handle, and handles no signal. Its handler loops over
//! blocking reads until the end of the stream, as a handler for one thread per connection does. It
//! holds a worker until its client disconnects.
//!
//! ```sh
//! cargo run --release --example embed -- --listen 127.0.0.1:7002
//! ```
//!
//! Then run `nc 127.0.0.1 7002` in another terminal, and type `status`, `reset` or `quit`. On
//! SIGUSR1 the program prints its state. On SIGHUP it pauses the console, and on the next SIGHUP it
//! resumes it. Ctrl-C or SIGTERM stop the console within five seconds, then the counting; the last
//! line is the report. A console with an idle client is cut off after five seconds, because a loop
//! that waits in a read does not notice the stop. On Windows, the end of standard input stops the
//! program.

mod common;

use std::io::{self, BufRead, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use handover::{Connection, Handle, Next};

/// The program without the server.
#[derive(Default)]
struct Program {
    counted: AtomicU64,
    stopping: AtomicBool,
}

impl Program {
    fn work(&self) {
        while !self.stopping.load(Relaxed) {
            self.counted.fetch_add(1, Relaxed);
            thread::park_timeout(Duration::from_millis(10));
        }
    }

    /// Serves one client of the console, as on a thread of its own.
    fn console(&self, client: &mut (impl BufRead + Write)) -> io::Result<()> {
        let mut line = String::new();
        loop {
            line.clear();
            if client.read_line(&mut line)? == 0 {
                return Ok(());
            }
            match line.trim() {
                "status" => writeln!(client, "counted to {}", self.counted.load(Relaxed))?,
                "reset" => {
                    self.counted.store(0, Relaxed);
                    writeln!(client, "ok")?;
                }
                "quit" => return writeln!(client, "bye"),
                other => writeln!(client, "{other:?}? There are: status, reset, quit")?,
            }
            client.flush()?;
        }
    }
}

const ABOUT: common::About = common::About {
    name: "embed",
    purpose: "A program with threads of its own, and a console to connect to.",
    listen: "127.0.0.1:7002",
    own_options: "",
    can_restart: false,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = common::Options::parse(&ABOUT);
    // Before the first thread starts, so that no signal takes its default action.
    let mut events = Events::watch()?;
    let program = Arc::new(Program::default());
    let worker = Arc::clone(&program);
    let worker = thread::spawn(move || worker.work());

    let console = Arc::clone(&program);
    let server = options.builder().build(move |conn: &mut Connection| {
        console.console(conn)?;
        Ok(Next::Close)
    })?;
    let handle = server.start()?;
    common::announce(&handle.local_addrs());

    events.handle(&program, &handle);
    handle.stop(Duration::from_secs(5));
    let report = handle.join();

    program.stopping.store(true, Relaxed);
    worker.thread().unpark();
    worker.join().map_err(|_| "the program's thread panicked")?;
    println!("counted to {}; {report}", program.counted.load(Relaxed));
    Ok(())
}

/// The signals that the program handles.
#[cfg(unix)]
struct Events(signal_hook::iterator::Signals);

#[cfg(unix)]
impl Events {
    fn watch() -> io::Result<Self> {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
        signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM, SIGUSR1]).map(Self)
    }

    fn handle(&mut self, program: &Program, handle: &Handle) {
        let mut paused = false;
        for signal in self.0.forever() {
            match signal {
                signal_hook::consts::SIGUSR1 => {
                    let counted = program.counted.load(Relaxed);
                    println!("counted to {counted}; {:?}", handle.stats());
                }
                signal_hook::consts::SIGHUP => {
                    paused = !paused;
                    if paused {
                        handle.pause();
                    } else {
                        handle.resume();
                    }
                    println!("paused: {paused}");
                }
                _ => return,
            }
        }
    }
}

/// The end of standard input, which stops the program.
#[cfg(not(unix))]
struct Events;

#[cfg(not(unix))]
impl Events {
    fn watch() -> io::Result<Self> {
        Ok(Self)
    }

    fn handle(&mut self, _: &Program, _: &Handle) {
        for line in io::stdin().lines() {
            if line.is_err() {
                return;
            }
        }
    }
}
