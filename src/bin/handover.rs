//! The command `handover`: supervises a program, or sends requests to a supervisor.

use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::{self, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, Parser};
use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};

use handover::{Addr, Bind, Supervisor};

/// Supervises a program and holds its listeners, and sends requests to a supervisor
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Options {
    #[command(subcommand)]
    command: Subcommand,
}

#[derive(Debug, clap::Subcommand)]
enum Subcommand {
    /// Show the state of a supervised service
    ///
    /// The exit code is 0 if all processes serve or a restart is in progress, 3 if not, and 1 if
    /// the supervisor cannot be reached.
    Status {
        #[command(flatten)]
        supervisor: Target,
        /// Print the supervisor's answer itself, a line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Replace the serving processes, one after another, without losing a request
    ///
    /// If a process cannot be replaced, that process and all later ones go on serving. With
    /// --wait, the exit code is then 1.
    Restart(RequestArgs),
    /// Stop the service when all requests in progress are finished
    Stop(RequestArgs),
    /// Replace the supervisor itself, in the same process, by the program that is on disk now
    ///
    /// The serving processes are not affected. With --wait, the exit code is 1 if the supervisor
    /// could not be replaced.
    Upgrade(RequestArgs),
    /// Supervise a program that takes its listeners as systemd passes them (LISTEN_FDS)
    ///
    /// SIGTERM stops, SIGHUP restarts gracefully. The exit code is 0 after a stop, 1 if processes
    /// had to be killed for it, and 78 (EX_CONFIG) if the program exits with 78: it is then not
    /// restarted.
    Run(RunArgs),
}

/// The supervisor that is to answer, and how long it may take.
#[derive(Args, Debug)]
struct Target {
    /// The path of the supervisor's control socket
    #[arg(short, long, value_name = "PATH", env = "HANDOVER_SOCKET")]
    socket: PathBuf,
    /// How long to wait for the supervisor's answer. Defaults to 5, or to 300 with --wait
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
}

#[derive(Args, Debug)]
struct RequestArgs {
    #[command(flatten)]
    supervisor: Target,
    /// Wait until the request is done, and print its result
    #[arg(long)]
    wait: bool,
}

#[derive(Args, Debug)]
struct RunArgs {
    /// An address to listen on, such as 127.0.0.1:8080 or web=unix:/run/web.sock. May be given
    /// several times
    #[arg(long, value_name = "[NAME=]ADDR", value_parser = listener)]
    listen: Vec<Bind>,
    /// Number of serving processes
    #[arg(long, value_name = "N", default_value = "1")]
    processes: NonZeroUsize,
    /// The path of the supervisor's control socket, which is created
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// The path of a file to create with the supervisor's process id
    #[arg(long, value_name = "PATH")]
    pid_file: Option<PathBuf>,
    /// The working directory of the program. Defaults to the present one, by the name in PWD: if
    /// that leads through a symbolic link, the link is followed at each start
    #[arg(long, value_name = "PATH")]
    working_directory: Option<PathBuf>,
    /// A file with environment variables for the program, as systemd's EnvironmentFile=. It is read
    /// at each start
    #[arg(long, value_name = "PATH")]
    environment_file: Option<PathBuf>,
    /// How many replaced processes may finish their requests at once; a restart beyond that waits
    #[arg(long, value_name = "N", default_value = "4")]
    max_draining: NonZeroUsize,
    /// Abort a process that sends no WATCHDOG=1 for this long. Applies after the first WATCHDOG=1.
    /// Defaults to no limit
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    watchdog: Option<Duration>,
    /// A process is ready only when it sends READY=1, see sd_notify(3)
    #[arg(long, conflicts_with = "ready_after")]
    notify: bool,
    /// A process is ready when it has run for this long, or sends READY=1 before
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "1")]
    ready_after: Duration,
    /// With --notify: how long a process may take to send READY=1
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "60")]
    #[arg(requires = "notify")]
    ready_timeout: Duration,
    /// How long the processes may take to exit in a stop before they are killed
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "60")]
    stop_timeout: Duration,
    /// Leave the program in the process group of the supervisor, and leave alone what it leaves
    /// behind. By default, each process is the leader of a process group of its own, whose other
    /// processes are ended when it has exited
    #[arg(long)]
    no_process_groups: bool,
    /// The program, a path or a name on the search path, and its arguments
    #[arg(last = true, required = true)]
    program: Vec<OsString>,
}

/// How long the supervisor may take to answer without --wait.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the supervisor may take to answer with --wait.
const RESULT_TIMEOUT: Duration = Duration::from_secs(300);

/// The time between two checks whether the supervisor has exited.
const STOP_INTERVAL: Duration = Duration::from_millis(50);

/// The exit code of `handover status` if not all processes serve.
const NOT_SERVING: u8 = 3;

fn main() -> ExitCode {
    let result = match Options::parse().command {
        Subcommand::Status { supervisor, json } => status(&supervisor, json),
        Subcommand::Restart(request) => restart(&request),
        Subcommand::Stop(request) => stop(&request),
        Subcommand::Upgrade(request) => upgrade(&request),
        Subcommand::Run(args) => args.execute(),
    };
    result.unwrap_or_else(|error| {
        // A failure to write to standard error can be reported nowhere.
        let _ = writeln!(io::stderr(), "handover: {error}");
        ExitCode::FAILURE
    })
}

type CommandResult = Result<ExitCode, Box<dyn Error>>;

// ---- the commands ----

fn status(supervisor: &Target, json: bool) -> CommandResult {
    let line = supervisor.send("status", supervisor.deadline(false))?;
    let status = parse_answer(&line)?;
    match json {
        true => print(&line)?,
        false => print(&format_status(&status))?,
    }
    match status["state"].as_str() {
        Some("serving" | "restarting") => Ok(ExitCode::SUCCESS),
        _ => Ok(NOT_SERVING.into()),
    }
}

fn restart(request: &RequestArgs) -> CommandResult {
    let answer = request.send("restart")?;
    if let Some(seconds) = answer["took_seconds"].as_f64() {
        print(&format!("restarted in {seconds:.3} s\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn upgrade(request: &RequestArgs) -> CommandResult {
    request.send("upgrade")?;
    if request.wait {
        print("the supervisor has been replaced\n")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn stop(request: &RequestArgs) -> CommandResult {
    let supervisor = &request.supervisor;
    let deadline = supervisor.deadline(request.wait);
    let pid = match request.wait {
        true => parse_answer(&supervisor.send("status", deadline)?)?["pid"].take(),
        false => Value::Null,
    };
    parse_answer(&supervisor.send("stop", deadline)?)?;
    if request.wait {
        while is_running(supervisor.try_send("status", deadline), &pid)
            .map_err(|error| supervisor.describe_error(error))?
        {
            thread::sleep(STOP_INTERVAL);
        }
        print("stopped\n")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether this answer comes from the supervisor with this process id. Another one may have taken
/// the control socket meanwhile.
fn is_running(answer: io::Result<String>, pid: &Value) -> io::Result<bool> {
    match answer {
        Ok(line) => Ok(parse_answer(&line).is_ok_and(|status| status["pid"] == *pid)),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Ok(false),
            // The supervisor exited before it accepted. The next attempt finds no socket.
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Ok(true),
            _ => Err(error),
        },
    }
}

impl RunArgs {
    fn execute(self) -> CommandResult {
        let mut supervisor = Supervisor::new()
            .processes(self.processes.get())
            .watchdog(self.watchdog)
            .ready_after((!self.notify).then_some(self.ready_after))
            .ready_timeout(self.ready_timeout)
            .stop_timeout(self.stop_timeout)
            .process_groups(!self.no_process_groups)
            .max_draining(self.max_draining.get());
        for listener in self.listen {
            supervisor = supervisor.listen(listener);
        }
        if let Some(path) = self.control {
            supervisor = supervisor.control_socket(path);
        }
        if let Some(path) = self.pid_file {
            supervisor = supervisor.pid_file(path);
        }
        if let Some(path) = self.working_directory {
            supervisor = supervisor.working_directory(path);
        }
        if let Some(path) = self.environment_file {
            supervisor = supervisor.environment_file(path);
        }
        process::exit(supervisor.run(self.program)?);
    }
}

// ---- the values of options ----

fn seconds(text: &str) -> Result<Duration, Box<dyn Error + Send + Sync>> {
    Ok(Duration::try_from_secs_f64(text.parse()?)?)
}

fn listener(text: &str) -> Result<Bind, Box<dyn Error + Send + Sync>> {
    // The whole text is tried as an address first: the path of a Unix socket may contain "=".
    match (text.parse::<Addr>(), text.split_once('=')) {
        (Ok(addr), _) => Ok(addr.into()),
        (Err(_), Some((name, addr))) if !name.is_empty() => {
            Ok(Bind::from(addr.parse::<Addr>()?).name(name))
        }
        (Err(error), _) => Err(error.into()),
    }
}

// ---- requests to a supervisor ----

/// The longest answer, in bytes.
const MAX_ANSWER: usize = 1 << 20;

impl RequestArgs {
    /// Sends a request, and returns the answer if the supervisor reports success.
    fn send(&self, name: &str) -> Result<Value, Box<dyn Error>> {
        let wait = if self.wait { " wait" } else { "" };
        let request = format!("{name}{wait}");
        let deadline = self.supervisor.deadline(self.wait);
        let answer = self.supervisor.send(&request, deadline)?;
        parse_answer(&answer).map_err(|error| format!("the {name} failed: {error}").into())
    }
}

impl Target {
    /// When an answer is late, to a request with or without --wait. `None` is never: the time-out
    /// is past the end of the clock.
    fn deadline(&self, wait: bool) -> Option<Instant> {
        let default = if wait { RESULT_TIMEOUT } else { ANSWER_TIMEOUT };
        Instant::now().checked_add(self.timeout.unwrap_or(default))
    }

    /// Sends a request, and returns the answer.
    fn send(&self, request: &str, deadline: Option<Instant>) -> Result<String, String> {
        let answer = self.try_send(request, deadline);
        answer.map_err(|error| self.describe_error(error))
    }

    fn describe_error(&self, error: io::Error) -> String {
        let path = self.socket.display();
        match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
                format!("the supervisor at {path} has not answered in time")
            }
            _ => format!("cannot reach a supervisor at {path}: {error}"),
        }
    }

    fn try_send(&self, request: &str, deadline: Option<Instant>) -> io::Result<String> {
        let addr = SockAddr::unix(&self.socket)?;
        let mut socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // This bounds the connect as well, which waits while the queue of the listener is full.
        socket.set_write_timeout(time_left(deadline)?)?;
        socket.connect(&addr)?;
        socket.write_all(format!("{request}\n").as_bytes())?;
        let mut answer = Vec::new();
        loop {
            socket.set_read_timeout(time_left(deadline)?)?;
            let room = MAX_ANSWER - answer.len();
            // The time-out of the socket is for one read, so that it is set before each.
            let mut buffer = [0; 4096];
            match socket.read(&mut buffer) {
                Ok(0) => break,
                Ok(size) if size > room => return Err(io::ErrorKind::InvalidData.into()),
                Ok(size) => answer.extend_from_slice(&buffer[..size]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        match answer.ends_with(b"\n") {
            true => String::from_utf8(answer).map_err(io::Error::other),
            // The supervisor exited before it had answered.
            false => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }
}

/// The time until the deadline, `None` if there is none. It is an error if the deadline has passed.
fn time_left(deadline: Option<Instant>) -> io::Result<Option<Duration>> {
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    match left {
        Some(Duration::ZERO) => Err(io::ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}

/// Parses an answer. The error is that of the supervisor, if it reports one.
fn parse_answer(line: &str) -> Result<Value, String> {
    let answer: Value = serde_json::from_str(line)
        .map_err(|error| format!("cannot parse the supervisor's answer: {error}"))?;
    match (&answer["ok"], &answer["error"]) {
        (Value::Bool(true), _) => Ok(answer),
        (_, Value::String(error)) => Err(escape_controls(error)),
        _ => {
            let line = escape_controls(line.trim_end());
            Err(format!("unexpected answer of the supervisor: {line}"))
        }
    }
}

// ---- output ----

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// The status for people: a line for each property of the service, then a table of the processes.
fn format_status(status: &Value) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| text += &format!("{name:<14}{value}\n");
    for name in ["state", "pid", "version", "program"] {
        line(name, format_value(&status[name]));
    }
    line("uptime", format_duration(&status["uptime_seconds"]));
    for listener in list(&status["listeners"]) {
        let [name, address] = ["name", "address"].map(|field| format_value(&listener[field]));
        line("listener", format!("{address} ({name})"));
    }
    let draining: Vec<String> = list(&status["draining"]).map(format_value).collect();
    if !draining.is_empty() {
        line("draining", draining.join(", "));
    }
    let last = &status["last_restart"];
    if let Some(took) = last["took_seconds"].as_f64() {
        let result = match last["error"].as_str() {
            None => format!("succeeded in {took:.3} s"),
            Some(why) => format!("failed after {took:.3} s: {}", escape_controls(why)),
        };
        line("last restart", result);
    }
    let head = ["PID", "GENERATION", "STATE", "UPTIME", "RESTARTS", ""];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(list(&status["processes"]).map(process_row));
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

fn process_row(process: &Value) -> [String; 6] {
    let mut notes = Vec::new();
    if let Some(seconds) = process["starts_in_seconds"].as_f64() {
        notes.push(format!("starts in {seconds:.1} s"));
    }
    if let Some(status) = process["status"].as_str().filter(|text| !text.is_empty()) {
        notes.push(escape_controls(status));
    }
    if let Some(end) = process["last_end"].as_str() {
        notes.push(format!("last end: {}", escape_controls(end)));
    }
    [
        format_value(&process["pid"]),
        format_value(&process["generation"]),
        format_value(&process["state"]),
        format_duration(&process["uptime_seconds"]),
        format_value(&process["restarts"]),
        notes.join("; "),
    ]
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A value for people; "-" if it is missing.
fn format_value(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => escape_controls(text),
        other => other.to_string(),
    }
}

/// Escapes control characters, so that text of a supervised process cannot control the terminal.
fn escape_controls(text: &str) -> String {
    let escape = |char: char| match char.is_control() {
        true => char.escape_default().to_string(),
        false => char.to_string(),
    };
    text.chars().map(escape).collect()
}

/// A duration in its two largest units; "-" if it is missing.
fn format_duration(seconds: &Value) -> String {
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
    fn a_listener_may_have_a_name_and_its_path_an_equals_sign() {
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
    fn a_status_is_formatted_line_by_line() {
        let status = parse_answer(
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
        assert_eq!(format_status(&status.unwrap()), expected.trim_start());
    }

    #[test]
    fn a_missing_value_is_a_dash_and_a_bad_answer_an_error() {
        assert!(format_status(&Value::Null).starts_with("state         -\n"));
        assert!(parse_answer("{}").is_err());
        assert!(parse_answer("").is_err());
    }
}
