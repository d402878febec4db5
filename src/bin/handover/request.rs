//! Requests to a supervisor, on its control socket, and the answers.

use std::error::Error;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, value_parser};
use handover::ControlClient;
use serde_json::Value;

use super::CommandResult;
use super::output::{escape_controls, print};
use super::stages::Stages;
use super::values::seconds;

/// The supervisor that is to answer, and how long it may take.
#[derive(Args, Debug)]
pub(super) struct Target {
    /// The path of the supervisor's control socket; on Windows, the name of its pipe
    #[arg(short, long, value_name = "PATH", env = "HANDOVER_SOCKET")]
    socket: PathBuf,
    /// How long to wait for the supervisor's answer. Defaults to 5, or to 300 with --wait
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
}

#[derive(Args, Debug)]
pub(super) struct RequestArgs {
    #[command(flatten)]
    supervisor: Target,
    /// Wait until the request is done, and print its result
    #[arg(long)]
    wait: bool,
}

#[derive(Args, Debug)]
pub(super) struct ScaleArgs {
    /// From 1 to 1024
    #[arg(value_name = "N", value_parser = value_parser!(u16).range(1..=1024))]
    processes: u16,
    #[command(flatten)]
    request: RequestArgs,
}

impl ScaleArgs {
    pub(super) fn execute(&self) -> CommandResult {
        self.request.send(&format!("scale {}", self.processes))?;
        if self.request.wait {
            print(&format!("{} processes serve\n", self.processes))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// How long the supervisor may take to answer without --wait.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the supervisor may take to answer with --wait.
const RESULT_TIMEOUT: Duration = Duration::from_secs(300);

/// The time between two checks whether the supervisor has exited.
const STOP_INTERVAL: Duration = Duration::from_millis(50);

/// The time between two looks at what the processes do during a restart.
const STAGES_INTERVAL: Duration = Duration::from_millis(200);

/// The longest answer, in bytes.
const MAX_ANSWER: usize = 1 << 20;

impl RequestArgs {
    pub(super) fn restart(&self) -> CommandResult {
        let answer = match self.wait {
            true => self.restart_and_show_stages()?,
            false => self.send("restart")?,
        };
        if let Some(seconds) = answer["took_seconds"].as_f64() {
            print(&format!("restarted in {seconds:.3} s\n"))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Requests a restart, and shows what the processes do until its result is there.
    fn restart_and_show_stages(&self) -> Result<Value, Box<dyn Error>> {
        let supervisor = &self.supervisor;
        let deadline = supervisor.deadline(true);
        let mut stages = Stages::new(io::stdout().is_terminal());
        // The status is for show only: its errors are not those of the restart.
        let mut show_stages = || {
            let until = supervisor.deadline(false).into_iter().chain(deadline).min();
            match supervisor
                .try_send("status", until)
                .as_deref()
                .map(parse_answer)
            {
                Ok(Ok(status)) => stages.show(&status),
                _ => Ok(()),
            }
        };
        show_stages()?;
        let describe = |error| supervisor.describe_error(error);
        let mut exchange = supervisor
            .begin("restart wait", deadline)
            .map_err(describe)?;
        let answer = loop {
            let next = Instant::now() + STAGES_INTERVAL;
            let until = deadline.map_or(next, |deadline| deadline.min(next));
            match exchange.read_answer(Some(until)).map_err(describe)? {
                Some(answer) => break answer,
                None if deadline.is_some_and(|deadline| deadline <= until) => {
                    return Err(describe(io::ErrorKind::TimedOut.into()).into());
                }
                None => show_stages()?,
            }
        };
        show_stages()?;
        parse_answer(&answer).map_err(|error| format!("the restart failed: {error}").into())
    }

    pub(super) fn upgrade(&self) -> CommandResult {
        self.send("upgrade")?;
        if self.wait {
            print("the supervisor has been replaced\n")?;
        }
        Ok(ExitCode::SUCCESS)
    }

    pub(super) fn stop(&self) -> CommandResult {
        let supervisor = &self.supervisor;
        let deadline = supervisor.deadline(self.wait);
        let pid = match self.wait {
            true => parse_answer(&supervisor.send("status", deadline)?)?["pid"].take(),
            false => Value::Null,
        };
        parse_answer(&supervisor.send("stop", deadline)?)?;
        if self.wait {
            while is_running(supervisor.try_send("status", deadline), &pid)
                .map_err(|error| supervisor.describe_error(error))?
            {
                thread::sleep(STOP_INTERVAL);
            }
            print("stopped\n")?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Sends a request, and returns the answer if the supervisor reports success.
    fn send(&self, name: &str) -> Result<Value, Box<dyn Error>> {
        let wait = if self.wait { " wait" } else { "" };
        let request = format!("{name}{wait}");
        let deadline = self.supervisor.deadline(self.wait);
        let answer = self.supervisor.send(&request, deadline)?;
        parse_answer(&answer).map_err(|error| format!("the {name} failed: {error}").into())
    }
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

impl Target {
    pub(super) fn reopen(&self) -> CommandResult {
        parse_answer(&self.send("reopen", self.deadline(false))?)?;
        Ok(ExitCode::SUCCESS)
    }

    /// When an answer is late, to a request with or without --wait. `None` is never: the time-out
    /// is past the end of the clock.
    pub(super) fn deadline(&self, wait: bool) -> Option<Instant> {
        let default = if wait { RESULT_TIMEOUT } else { ANSWER_TIMEOUT };
        Instant::now().checked_add(self.timeout.unwrap_or(default))
    }

    /// Sends a request, and returns the answer.
    pub(super) fn send(&self, request: &str, deadline: Option<Instant>) -> Result<String, String> {
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
        let answer = self.begin(request, deadline)?.read_answer(deadline)?;
        answer.ok_or_else(|| io::ErrorKind::TimedOut.into())
    }

    /// Sends a request.
    fn begin(&self, request: &str, deadline: Option<Instant>) -> io::Result<Exchange> {
        let mut client = ControlClient::connect(&self.socket, time_left(deadline)?)?;
        client.send(format!("{request}\n").as_bytes())?;
        let answer = Vec::new();
        Ok(Exchange { client, answer })
    }
}

/// A request that was sent, and what has come of its answer.
#[derive(Debug)]
struct Exchange {
    client: ControlClient,
    answer: Vec<u8>,
}

impl Exchange {
    /// Waits for the answer. `None`: it has not come until then, and may come later.
    fn read_answer(&mut self, until: Option<Instant>) -> io::Result<Option<String>> {
        loop {
            let Ok(left) = time_left(until) else {
                return Ok(None);
            };
            let room = MAX_ANSWER - self.answer.len();
            let mut buffer = [0; 4096];
            match self.client.receive(&mut buffer, left) {
                Ok(0) => break,
                Ok(size) if size > room => return Err(io::ErrorKind::InvalidData.into()),
                Ok(size) => self.answer.extend_from_slice(&buffer[..size]),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => return Ok(None),
                    _ => return Err(error),
                },
            }
        }
        let answer = std::mem::take(&mut self.answer);
        match answer.ends_with(b"\n") {
            true => String::from_utf8(answer)
                .map(Some)
                .map_err(io::Error::other),
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
pub(super) fn parse_answer(line: &str) -> Result<Value, String> {
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
