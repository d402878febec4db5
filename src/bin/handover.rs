//! The command `handover`: it supervises a program, and speaks to a supervisor by its control socket.

use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};

use handover::{Addr, Bind, Supervisor};

/// Keeps a program running with its listeners open, and speaks to the supervisor that does so.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show how a supervised service is
    ///
    /// The exit code is 0 if all processes serve, or are being restarted; 3 if not; 1 if the supervisor cannot be
    /// reached.
    Status {
        #[command(flatten)]
        supervisor: Target,
        /// Print the supervisor's own answer, one line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Replace the processes that serve, one after another, without losing a request
    ///
    /// One that cannot be replaced serves on, and so do those after it. With --wait, the exit code is 1 then.
    Restart(Wish),
    /// End the service, when what has been asked for is answered
    Stop(Wish),
    /// Have the supervisor replace itself in place, by the program that is on disk by now
    ///
    /// The processes that serve are left alone. With --wait, the exit code is 1 if the supervisor stays what it was.
    Upgrade(Wish),
    /// Supervise a program that takes its listeners as systemd passes them (LISTEN_FDS)
    ///
    /// The exit code is 0 after a stop, 1 if something had to be killed for that, or 78 (EX_CONFIG) if the program ends
    /// with that, by which it says that it is of no use to start it again. SIGTERM stops, SIGHUP restarts.
    Run(Run),
}

/// Which supervisor, and how long it may take.
#[derive(Args, Debug)]
struct Target {
    /// The supervisor's control socket
    #[arg(short, long, value_name = "PATH", env = "HANDOVER_SOCKET")]
    socket: PathBuf,
    /// How long to wait for the supervisor. Defaults to 5, or to 300 with --wait
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
}

#[derive(Args, Debug)]
struct Wish {
    #[command(flatten)]
    supervisor: Target,
    /// Wait for the outcome
    #[arg(long)]
    wait: bool,
}

#[derive(Args, Debug)]
struct Run {
    /// An address to listen on, such as 127.0.0.1:8080 or web=unix:/run/web.sock. May be given several times
    #[arg(long, value_name = "[NAME=]ADDR", value_parser = listener)]
    listen: Vec<Bind>,
    /// How many processes serve
    #[arg(long, value_name = "N", default_value = "1")]
    processes: NonZeroUsize,
    /// The control socket to be made, for the other commands
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// A file to be made, with the supervisor's process id
    #[arg(long, value_name = "PATH")]
    pid_file: Option<PathBuf>,
    /// How long a process may be silent that says that it makes progress (WATCHDOG=1). Defaults to for ever
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    watchdog: Option<Duration>,
    /// A process is ready only when it says so (READY=1, see sd_notify(3))
    #[arg(long, conflicts_with = "ready_after")]
    notify: bool,
    /// A process is ready when it has lived for so long, if it has not said so before
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "1")]
    ready_after: Duration,
    /// With --notify: how long a process may take to say that it is ready. Defaults to 60
    #[arg(long, value_name = "SECONDS", value_parser = seconds, requires = "notify")]
    ready_timeout: Option<Duration>,
    /// How long all processes together may take to stop, until they are killed. Defaults to 60
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    stop_timeout: Option<Duration>,
    /// The program, a path or a name on the search path, and its arguments
    #[arg(last = true, required = true)]
    program: Vec<OsString>,
}

/// How long the supervisor may take to answer at once, and to do what takes a while.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
const OUTCOME_TIMEOUT: Duration = Duration::from_secs(300);

/// How often it is looked whether the supervisor has ended.
const STOP_INTERVAL: Duration = Duration::from_millis(50);

/// The exit code for a service that does not serve.
const NOT_SERVING: u8 = 3;

fn main() -> ExitCode {
    let outcome = match Options::parse().command {
        Command::Status { supervisor, json } => status(&supervisor, json),
        Command::Restart(wish) => restart(&wish),
        Command::Stop(wish) => stop(&wish),
        Command::Upgrade(wish) => upgrade(&wish),
        Command::Run(run) => run.run(),
    };
    outcome.unwrap_or_else(|error| {
        // Nobody can be told that standard error is gone.
        let _ = writeln!(io::stderr(), "handover: {error}");
        ExitCode::FAILURE
    })
}

type Outcome = Result<ExitCode, Box<dyn Error>>;

// ---- the commands ----

fn status(supervisor: &Target, json: bool) -> Outcome {
    let line = supervisor.ask("status", supervisor.deadline(ANSWER_TIMEOUT))?;
    let status = understood(&line)?;
    match json {
        true => print(&line)?,
        false => print(&table(&status))?,
    }
    match status["state"].as_str() {
        Some("serving" | "restarting") => Ok(ExitCode::SUCCESS),
        _ => Ok(NOT_SERVING.into()),
    }
}

fn restart(wish: &Wish) -> Outcome {
    let answer = wish.make("restart", "the restart failed")?;
    if let Some(seconds) = answer["took_seconds"].as_f64() {
        print(&format!("restarted within {seconds:.3} s\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn upgrade(wish: &Wish) -> Outcome {
    wish.make("upgrade", "the upgrade failed")?;
    if wish.wait {
        print("the supervisor has been replaced\n")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn stop(wish: &Wish) -> Outcome {
    let supervisor = &wish.supervisor;
    if !wish.wait {
        understood(&supervisor.ask("stop", supervisor.deadline(ANSWER_TIMEOUT))?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let deadline = supervisor.deadline(OUTCOME_TIMEOUT);
    let pid = || -> Result<Value, Box<dyn Error>> {
        Ok(understood(&supervisor.ask("status", deadline)?)?["pid"].take())
    };
    let own = pid()?;
    understood(&supervisor.ask("stop", deadline)?)?;
    while is_there(supervisor.try_ask("status", deadline), &own)
        .map_err(|error| supervisor.unreachable(error))?
    {
        thread::sleep(STOP_INTERVAL);
    }
    print("stopped\n")?;
    Ok(ExitCode::SUCCESS)
}

/// Whether a supervisor with this process id answers still; not if it is already another one.
fn is_there(answer: io::Result<String>, pid: &Value) -> io::Result<bool> {
    match answer {
        Ok(line) => Ok(understood(&line).is_ok_and(|status| status["pid"] == *pid)),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Ok(false),
            // It has ended without having accepted, and the next attempt will say so.
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Ok(true),
            _ => Err(error),
        },
    }
}

impl Run {
    fn run(self) -> Outcome {
        let mut supervisor = Supervisor::new()
            .processes(self.processes.get())
            .watchdog(self.watchdog)
            .ready_after((!self.notify).then_some(self.ready_after));
        for listener in self.listen {
            supervisor = supervisor.listen(listener);
        }
        if let Some(path) = self.control {
            supervisor = supervisor.control_socket(path);
        }
        if let Some(path) = self.pid_file {
            supervisor = supervisor.pid_file(path);
        }
        if let Some(timeout) = self.ready_timeout {
            supervisor = supervisor.ready_timeout(timeout);
        }
        if let Some(timeout) = self.stop_timeout {
            supervisor = supervisor.stop_timeout(timeout);
        }
        let code = supervisor.run(self.program)?;
        process::exit(code);
    }
}

// ---- the values of options ----

fn seconds(text: &str) -> Result<Duration, Box<dyn Error + Send + Sync>> {
    Ok(Duration::try_from_secs_f64(text.parse()?)?)
}

fn listener(text: &str) -> Result<Bind, Box<dyn Error + Send + Sync>> {
    // The path of a Unix socket may have a = in it.
    match (text.parse::<Addr>(), text.split_once('=')) {
        (Ok(addr), _) => Ok(addr.into()),
        (Err(_), Some((name, addr))) if !name.is_empty() => {
            Ok(Bind::from(addr.parse::<Addr>()?).name(name))
        }
        (Err(error), _) => Err(error.into()),
    }
}

// ---- the conversation with a supervisor ----

/// No answer is longer.
const MOST: u64 = 1 << 20;

impl Wish {
    /// Asks for something, and returns the answer if it is a good one.
    fn make(&self, request: &str, failure: &str) -> Result<Value, Box<dyn Error>> {
        let (request, timeout) = match self.wait {
            true => (format!("{request} wait"), OUTCOME_TIMEOUT),
            false => (request.to_owned(), ANSWER_TIMEOUT),
        };
        let deadline = self.supervisor.deadline(timeout);
        let answer = self.supervisor.ask(&request, deadline)?;
        understood(&answer).map_err(|error| format!("{failure}: {error}").into())
    }
}

impl Target {
    /// `None` is never: so long a time cannot be told.
    fn deadline(&self, default: Duration) -> Option<Instant> {
        Instant::now().checked_add(self.timeout.unwrap_or(default))
    }

    fn ask(&self, request: &str, deadline: Option<Instant>) -> Result<String, String> {
        let answer = self.try_ask(request, deadline);
        answer.map_err(|error| self.unreachable(error))
    }

    fn unreachable(&self, error: io::Error) -> String {
        let path = self.socket.display();
        match is_timeout(&error) {
            true => format!("the supervisor at {path} has not answered in time"),
            false => format!("cannot reach a supervisor at {path}: {error}"),
        }
    }

    /// Sends a request, and returns the answer: a line.
    fn try_ask(&self, request: &str, deadline: Option<Instant>) -> io::Result<String> {
        let mut socket = connect(&self.socket, deadline)?;
        socket.write_all(format!("{request}\n").as_bytes())?;
        let mut answer = Vec::new();
        loop {
            socket.set_read_timeout(left(deadline)?)?;
            let room = MOST - answer.len() as u64;
            // One read at a time, as the time-out is for each.
            let mut piece = [0; 4096];
            match socket.read(&mut piece) {
                Ok(0) => break,
                Ok(count) if count as u64 > room => return Err(io::ErrorKind::InvalidData.into()),
                Ok(count) => answer.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        match answer.ends_with(b"\n") {
            true => String::from_utf8(answer).map_err(io::Error::other),
            // It has ended meanwhile.
            false => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }
}

fn connect(path: &Path, deadline: Option<Instant>) -> io::Result<Socket> {
    let addr = SockAddr::unix(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Also for the connect, which waits while others do whom the supervisor has not accepted.
    socket.set_write_timeout(left(deadline)?)?;
    socket.connect(&addr)?;
    Ok(socket)
}

/// How long it is until then. That it is too late is an error.
fn left(deadline: Option<Instant>) -> io::Result<Option<Duration>> {
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    match left {
        Some(Duration::ZERO) => Err(io::ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock
    )
}

/// An answer, unless it says that something went wrong.
fn understood(line: &str) -> Result<Value, String> {
    let answer: Value = serde_json::from_str(line)
        .map_err(|error| format!("the supervisor's answer makes no sense: {error}"))?;
    match (&answer["ok"], &answer["error"]) {
        (Value::Bool(true), _) => Ok(answer),
        (_, Value::String(error)) => Err(plain(error)),
        _ => Err(format!("the supervisor answers {}", plain(line.trim_end()))),
    }
}

// ---- what is printed ----

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// How everything is, for people: a line for each thing, then a table of the processes.
fn table(status: &Value) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| text += &format!("{name:<14}{value}\n");
    line("state", word(&status["state"]));
    line("pid", word(&status["pid"]));
    line("version", word(&status["version"]));
    line("program", word(&status["program"]));
    line("uptime", age(&status["uptime_seconds"]));
    for one in list(&status["listeners"]) {
        let (name, address) = (word(&one["name"]), word(&one["address"]));
        line("listener", format!("{address} ({name})"));
    }
    let draining: Vec<String> = list(&status["draining"]).map(word).collect();
    if !draining.is_empty() {
        line("draining", draining.join(", "));
    }
    let last = &status["last_restart"];
    if let Some(took) = last["took_seconds"].as_f64() {
        let outcome = match last["error"].as_str() {
            None => format!("succeeded within {took:.3} s"),
            Some(why) => format!("failed after {took:.3} s: {}", plain(why)),
        };
        line("last restart", outcome);
    }
    let head = ["PID", "GENERATION", "STATE", "UPTIME", "RESTARTS", ""];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(list(&status["processes"]).map(row));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..head.len()).filter_map(width).collect();
    text += "\n";
    for row in &rows {
        let cells = row.iter().zip(&widths);
        let cells: Vec<String> = cells
            .map(|(cell, &width)| format!("{cell:<width$}"))
            .collect();
        text += cells.join("  ").trim_end();
        text += "\n";
    }
    text
}

fn row(process: &Value) -> [String; 6] {
    let mut notes = Vec::new();
    if let Some(seconds) = process["starts_in_seconds"].as_f64() {
        notes.push(format!("starts in {seconds:.1} s"));
    }
    match process["status"].as_str() {
        None | Some("") => {}
        Some(status) => notes.push(plain(status)),
    }
    if let Some(end) = process["last_end"].as_str() {
        notes.push(format!("last end: {}", plain(end)));
    }
    [
        word(&process["pid"]),
        word(&process["generation"]),
        word(&process["state"]),
        age(&process["uptime_seconds"]),
        word(&process["restarts"]),
        notes.join("; "),
    ]
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn word(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => plain(text),
        other => other.to_string(),
    }
}

/// What comes from the supervised processes has no business to control a terminal.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for char in text.chars() {
        match char.is_control() {
            true => plain.extend(char.escape_default()),
            false => plain.push(char),
        }
    }
    plain
}

/// A time in its two largest units.
fn age(seconds: &Value) -> String {
    let Some(seconds) = seconds.as_f64() else {
        return "-".to_owned();
    };
    let whole = seconds as u64;
    let (minutes, hours, days) = (whole / 60, whole / 3600, whole / 86400);
    match () {
        () if days > 0 => format!("{days} d {} h", hours % 24),
        () if hours > 0 => format!("{hours} h {} min", minutes % 60),
        () if minutes > 0 => format!("{minutes} min {} s", whole % 60),
        () => format!("{seconds:.1} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_are_well_formed() {
        <Options as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn a_listener_may_have_a_name_and_a_path_a_sign_of_equality() {
        for good in ["127.0.0.1:0", "web=[::1]:80", "unix:/a=b", "a=unix:/b=c"] {
            assert!(listener(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "=127.0.0.1:0",
            "web=",
            "web",
            "localhost:80",
            "a=b=unix:/c",
        ] {
            assert!(listener(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn seconds_are_finite_and_not_negative() {
        assert_eq!(seconds("0.25").unwrap(), Duration::from_millis(250));
        for bad in ["", "-1", "inf", "nan", "1s", "1e300"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_status_is_shown_line_by_line() {
        let status = understood(
            r#"{"ok":true,"pid":7,"version":"0.1.0","program":"/srv/app","state":"degraded",
            "uptime_seconds":3725.5,
            "processes":[{"state":"serving","restarts":0,"pid":8,"generation":12,"uptime_seconds":62.0,
            "status":"fine\u001b[2J"},{"state":"waiting","restarts":3,"starts_in_seconds":0.25,
            "last_end":"process 9 ended"}],
            "draining":[4,5],"listeners":[{"name":"web","address":"127.0.0.1:80"}],
            "last_restart":{"ok":false,"error":"it is ill","took_seconds":1.5}}"#,
        );
        let expected = r"
state         degraded
pid           7
version       0.1.0
program       /srv/app
uptime        1 h 2 min
listener      127.0.0.1:80 (web)
draining      4, 5
last restart  failed after 1.500 s: it is ill

PID  GENERATION  STATE    UPTIME     RESTARTS
8    12          serving  1 min 2 s  0         fine\u{1b}[2J
-    -           waiting  -          3         starts in 0.2 s; last end: process 9 ended
";
        assert_eq!(table(&status.unwrap()), expected.trim_start());
    }

    #[test]
    fn what_is_missing_is_shown_as_such() {
        assert!(table(&Value::Null).starts_with("state         -\n"));
        assert!(understood("{}").is_err());
        assert!(understood("").is_err());
    }
}
