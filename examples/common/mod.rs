//! The command line of the examples, and the lines that they print when they are ready.

// Each example uses only a part of this module.
#![allow(dead_code)]

use std::fmt::Display;
use std::io::{self, Write};
use std::time::Duration;

use handover::{Addr, Builder, Restart, Server, StartError, Supervisor};

/// What an example is, for its `--help`.
pub(crate) struct About {
    pub(crate) name: &'static str,
    /// What it is for, in one line.
    pub(crate) purpose: &'static str,
    /// The address without `--listen`.
    pub(crate) listen: &'static str,
    /// The lines of the help about options that only this example has.
    pub(crate) own_options: &'static str,
    /// The example can be replaced and supervised, and has the options for this.
    pub(crate) can_restart: bool,
}

/// The options of every example.
const OPTIONS: &str =
    "  --listen ADDR             an address to listen on; may be given several times
  --workers N               the number of worker threads
  --drain SECONDS           how long a stop waits for requests in progress
  --timeout SECONDS         for the first byte, idle clients, reading and writing
  --help                    print this help
";

/// The options of the examples that can be replaced and supervised.
const RESTART_OPTIONS: &str =
    "  --ready-timeout SECONDS   how long a new process may take to become ready
  --supervised              start a supervisor (Linux); each option below implies this
  --processes N             the number of processes that serve
  --control PATH            the control socket, for the command `handover`
  --watchdog SECONDS        how long a process may hang before it is replaced
  --user NAME               the user of the processes that serve
";

/// The options that were given.
#[derive(Default)]
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
}

impl Options {
    /// Parses the command line. `--help` prints the help and ends the program; so does an error,
    /// with exit status 2.
    pub(crate) fn parse(about: &About) -> Self {
        Self::parse_with(about, |_, _| Ok(false))
    }

    /// As `parse`, for an example with options of its own. `own` is called with the name of an
    /// option, takes the value from the parser, and returns whether it knows the option.
    pub(crate) fn parse_with(
        about: &About,
        mut own: impl FnMut(&str, &mut lexopt::Parser) -> Result<bool, lexopt::Error>,
    ) -> Self {
        let mut options = Self::default();
        let mut parser = lexopt::Parser::from_env();
        if let Err(error) = options.parse_all(about, &mut parser, &mut own) {
            let name = about.name;
            eprintln!("{name}: {error}\n`{name} --help` lists the options");
            std::process::exit(2);
        }
        if options.listen.is_empty() {
            options.listen.push(about.listen.to_owned());
        }
        options
    }

    fn parse_all(
        &mut self,
        about: &About,
        parser: &mut lexopt::Parser,
        own: &mut dyn FnMut(&str, &mut lexopt::Parser) -> Result<bool, lexopt::Error>,
    ) -> Result<(), lexopt::Error> {
        use lexopt::prelude::*;
        while let Some(arg) = parser.next()? {
            let name = match arg {
                Long(name) => name.to_owned(),
                Short('h') => "help".to_owned(),
                other => return Err(other.unexpected()),
            };
            let is_known = match &*name {
                "help" => print_help(about),
                name => {
                    let taken = self.take(about, name, parser);
                    let taken = taken.and_then(|taken| Ok(taken || own(name, parser)?));
                    taken.map_err(|error| naming(name, error))?
                }
            };
            if !is_known {
                return Err(Long(&name).unexpected());
            }
        }
        Ok(())
    }

    /// Takes an option that several examples have. False if it is not one of these.
    fn take(
        &mut self,
        about: &About,
        name: &str,
        parser: &mut lexopt::Parser,
    ) -> Result<bool, lexopt::Error> {
        use lexopt::prelude::*;
        match name {
            "listen" => self.listen.push(parser.value()?.string()?),
            "workers" => self.workers = Some(parser.value()?.parse_with(number)?),
            "drain" => self.drain = Some(parser.value()?.parse_with(seconds)?),
            "timeout" => self.timeout = Some(parser.value()?.parse_with(seconds)?),
            _ if !about.can_restart => return Ok(false),
            "ready-timeout" => self.ready_timeout = Some(parser.value()?.parse_with(seconds)?),
            "supervised" => {
                self.supervisor.get_or_insert_default();
            }
            "processes" => {
                let count = parser.value()?.parse_with(number)?;
                self.set(|supervisor| supervisor.processes(count));
            }
            "control" => {
                let path = parser.value()?;
                self.set(|supervisor| supervisor.control_socket(path));
            }
            "watchdog" => {
                let limit = parser.value()?.parse_with(seconds)?;
                self.set(|supervisor| supervisor.watchdog(limit));
            }
            "user" => {
                let user = parser.value()?.string()?;
                self.set(|supervisor| supervisor.user(user));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The settings of the server.
    pub(crate) fn builder(&self) -> Builder {
        log_to_stderr();
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
    pub(crate) fn restart(&mut self) -> Result<Restart, StartError> {
        let mut restart = match self.supervisor.take() {
            Some(supervisor) => supervisor.supervise()?,
            None => Restart::inherit()?,
        };
        // Not before: a supervisor has a logger of its own, which never blocks.
        log_to_stderr();
        if let Some(timeout) = self.ready_timeout {
            restart = restart.ready_timeout(timeout);
        }
        Ok(restart)
    }
}

/// Adds the name of the option to the error of its value.
fn naming(option: &str, error: lexopt::Error) -> lexopt::Error {
    match error {
        lexopt::Error::ParsingFailed { value, error } => {
            format!("--{option} {value}: {error}").into()
        }
        other => other,
    }
}

fn print_help(about: &About) -> ! {
    let restart_options = if about.can_restart {
        RESTART_OPTIONS
    } else {
        ""
    };
    let (name, purpose, own) = (about.name, about.purpose, about.own_options);
    say(format_args!(
        "{purpose}\n\nUsage: {name} [OPTIONS]\n\nOptions:\n{own}{OPTIONS}{restart_options}\n\
         Without --listen, it listens on {}.",
        about.listen
    ));
    std::process::exit(0);
}

/// Parses a whole number.
pub(crate) fn number(text: &str) -> Result<usize, &'static str> {
    text.parse().map_err(|_| "not a number")
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

/// Writes what the server logs to standard error, from level "info" on.
fn log_to_stderr() {
    static LOGGER: StderrLogger = StderrLogger;
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
}

struct StderrLogger;

impl log::Log for StderrLogger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    /// With the process id: at a restart, two processes write to one terminal.
    fn log(&self, record: &log::Record<'_>) {
        let (pid, level) = (std::process::id(), record.level().as_str());
        // One write for a line, so that the lines of the two do not mix. A failure to log can be
        // reported nowhere.
        let line = format!(
            "[{pid}] {}: {}\n",
            level.to_ascii_lowercase(),
            record.args()
        );
        let _ = io::stderr().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}
