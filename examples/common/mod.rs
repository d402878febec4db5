//! The command line of the examples, and the lines that they print when they are ready.

// Each example uses only a part of this module.
#![allow(dead_code)]

use std::fmt::Display;
use std::io::{self, Write};
use std::time::Duration;

use handover::{Addr, Builder, Restart, Server, Supervisor};

/// The options that every example takes.
pub(crate) struct Options {
    pub(crate) listen: Vec<String>,
    pub(crate) workers: Option<usize>,
    pub(crate) drain: Option<Duration>,
    /// For the first byte, idle connections, reading and writing.
    pub(crate) timeout: Option<Duration>,
    /// The time in which a successor process has to be ready.
    pub(crate) ready_timeout: Option<Duration>,
    /// Set by `--supervised` and by the options of a supervisor.
    pub(crate) supervisor: Option<Supervisor>,
    /// The arguments that are not options.
    pub(crate) rest: Vec<String>,
}

impl Options {
    /// Parses the command line. `default` is the address without `--listen`.
    pub(crate) fn parse(default: &str) -> Result<Self, lexopt::Error> {
        Self::parse_with(default, |_, _| Ok(false))
    }

    /// As `parse`, for an example with options of its own. `own` is called with the name of an
    /// option, takes the value from the parser, and returns whether it knows the option.
    pub(crate) fn parse_with(
        default: &str,
        mut own: impl FnMut(&str, &mut lexopt::Parser) -> Result<bool, lexopt::Error>,
    ) -> Result<Self, lexopt::Error> {
        use lexopt::prelude::*;
        let mut options = Self {
            listen: Vec::new(),
            workers: None,
            drain: None,
            timeout: None,
            ready_timeout: None,
            supervisor: None,
            rest: Vec::new(),
        };
        let mut parser = lexopt::Parser::from_env();
        while let Some(arg) = parser.next()? {
            match arg {
                Long("listen") => options.listen.push(parser.value()?.string()?),
                Long("workers") => options.workers = Some(parser.value()?.parse()?),
                Long("drain") => options.drain = Some(parser.value()?.parse_with(seconds)?),
                Long("timeout") => options.timeout = Some(parser.value()?.parse_with(seconds)?),
                Long("ready-timeout") => {
                    options.ready_timeout = Some(parser.value()?.parse_with(seconds)?);
                }
                Long("supervised") => {
                    options.supervisor.get_or_insert_default();
                }
                // The options of a supervisor, each of which implies `--supervised`.
                Long("processes") => {
                    let count = parser.value()?.parse()?;
                    options.set(|supervisor| supervisor.processes(count));
                }
                Long("control") => {
                    let path = parser.value()?;
                    options.set(|supervisor| supervisor.control_socket(path));
                }
                Long("watchdog") => {
                    let limit = parser.value()?.parse_with(seconds)?;
                    options.set(|supervisor| supervisor.watchdog(limit));
                }
                Long("user") => {
                    let user = parser.value()?.string()?;
                    options.set(|supervisor| supervisor.user(user));
                }
                Value(value) => options.rest.push(value.string()?),
                Long(name) => {
                    let name = name.to_owned();
                    if !own(&name, &mut parser)? {
                        return Err(format!("invalid option '--{name}'").into());
                    }
                }
                other => return Err(other.unexpected()),
            }
        }
        if options.listen.is_empty() {
            options.listen.push(default.to_owned());
        }
        Ok(options)
    }

    /// The settings of the server.
    pub(crate) fn builder(&self) -> Builder {
        let mut builder = Server::builder();
        for addr in &self.listen {
            builder = builder.listen(addr);
        }
        if let Some(workers) = self.workers {
            builder = builder.workers(workers);
        }
        if let Some(drain) = self.drain {
            builder = builder.drain_timeout(drain);
        }
        if let Some(timeout) = self.timeout {
            builder = builder
                .first_byte_timeout(timeout)
                .idle_timeout(timeout)
                .read_timeout(timeout)
                .write_timeout(timeout);
        }
        builder
    }

    fn set(&mut self, change: impl FnOnce(Supervisor) -> Supervisor) {
        let supervisor = self.supervisor.take().unwrap_or_default();
        self.supervisor = Some(change(supervisor));
    }

    /// The settings for restarts. With a supervisor, this returns only in the serving processes.
    pub(crate) fn restart(&mut self) -> io::Result<Restart> {
        let mut restart = match self.supervisor.take() {
            Some(supervisor) => supervisor.supervise()?,
            None => Restart::inherit()?,
        };
        if let Some(timeout) = self.ready_timeout {
            restart = restart.ready_timeout(timeout);
        }
        Ok(restart)
    }
}

/// Parses a number of seconds, such as `2.5`.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds")?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// Prints a line for each address when the server is ready. Scripts wait for these lines.
pub(crate) fn announce(addrs: &[Addr]) {
    for addr in addrs {
        say(format_args!("listening on {addr}"));
    }
}

/// As [`announce`], with URLs for TCP addresses.
pub(crate) fn announce_http(addrs: &[Addr]) {
    for addr in addrs {
        match addr {
            Addr::Ip(ip) => say(format_args!("listening on http://{ip}")),
            Addr::Unix(_) => say(format_args!("listening on {addr}")),
        }
    }
}

/// Prints a line. Errors are ignored: the reader of standard output may have exited before a later
/// generation prints.
pub(crate) fn say(line: impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}
