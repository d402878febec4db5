//! Processes: a child in its role, where it runs, what CPU time it has used and which system calls it makes.

use std::ffi::OsStr;
use std::fmt::Display;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::Result;

/// Pins this process to a CPU, if one is given, before it has further threads. Ends it with the benchmark, however that
/// ends.
pub(super) fn settle(cpu: Option<usize>) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let Some(cpu) = cpu else { return Ok(()) };
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    sched_setaffinity(None, &cpus).map_err(|error| format!("cannot run on CPU {cpu}: {error}"))?;
    Ok(())
}

const LISTENING: &str = "listening on ";

/// Tells the parent where a server listens.
pub(super) fn announce(address: impl Display) {
    println!("{LISTENING}{address}");
}

/// This program in another role; killed when dropped.
pub(super) struct Actor {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Actor {
    /// Starts a server; returns it with its address.
    pub(super) fn server(role: &str, workers: Option<usize>) -> Result<(Self, String)> {
        let workers = workers.map(|count| format!("--workers={count}"));
        let args = ["--role", role].into_iter().chain(workers.as_deref());
        Self::server_with(None, &args.collect::<Vec<_>>())
    }

    /// Starts a server by its arguments; returns it with its address. The program is this one by default.
    pub(super) fn server_with(
        program: Option<&Path>,
        args: &[impl AsRef<OsStr>],
    ) -> Result<(Self, String)> {
        let mut server = Self::start(program, args)?;
        let line = server.hear()?;
        match line.strip_prefix(LISTENING) {
            Some(address) => Ok((server, address.to_owned())),
            None => Err(format!("a server said {line:?}").into()),
        }
    }

    /// Starts a client, which is connected and warm when this returns; `duration` is how long each stretch of its load
    /// lasts.
    pub(super) fn client(address: &str, connections: usize, duration: Duration) -> Result<Self> {
        let (connections, seconds) = (connections.to_string(), duration.as_secs_f64().to_string());
        let mut client = Self::start(
            None,
            &[
                "--role",
                "client",
                "--address",
                address,
                "--connections",
                &connections,
                "--seconds",
                &seconds,
            ],
        )?;
        client.hear()?;
        Ok(client)
    }

    /// Starts a program, by default this one.
    pub(super) fn start(program: Option<&Path>, args: &[impl AsRef<OsStr>]) -> Result<Self> {
        let program = program.map_or_else(std::env::current_exe, |path| Ok(path.to_owned()))?;
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        Ok(Self { child, output })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The next line that the child prints.
    pub(super) fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        match self.output.read_line(&mut line)? {
            0 => Err("a child ended before its time".into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }

    /// Gives the child an empty line.
    pub(super) fn prompt(&mut self) -> Result<()> {
        let input = self.child.stdin.as_mut().expect("it is piped");
        Ok(input.write_all(b"\n")?)
    }

    /// Has a client make load for its duration; returns how many round trips that were, in which time.
    pub(super) fn perform(&mut self) -> Result<(u64, Duration)> {
        self.prompt()?;
        let line = self.hear()?;
        let (round_trips, nanoseconds) = line
            .split_once(' ')
            .ok_or("the client said no two numbers")?;
        Ok((
            round_trips.parse()?,
            Duration::from_nanos(nanoseconds.parse()?),
        ))
    }

    /// What all its threads have used until now. It is exact for a thread that sleeps; a running one's is as old as
    /// the scheduler's last tick.
    pub(super) fn usage(&self) -> Result<Usage> {
        let mut usage = Usage::default();
        for task in fs::read_dir(format!("/proc/{}/task", self.id()))? {
            let task = task?.path();
            match usage.add(&task) {
                // A thread may end meanwhile.
                Err(error) if task.exists() => return Err(error),
                _ => {}
            }
        }
        Ok(usage)
    }
}

#[derive(Default)]
pub(super) struct Usage {
    pub(super) on_cpu: Duration,
    /// How long threads that could have run did not, because another one had the CPU.
    pub(super) waited: Duration,
    /// How often a thread left the CPU to wait for something, and how often because another one got it.
    pub(super) voluntary_switches: u64,
    pub(super) involuntary_switches: u64,
    pub(super) threads: usize,
}

impl Usage {
    fn add(&mut self, task: &Path) -> Result<()> {
        // "on the CPU, waiting for it, time slices" are the fields; both times are in nanoseconds.
        let schedstat = fs::read_to_string(task.join("schedstat"))?;
        let mut fields = schedstat
            .split(' ')
            .map(|field| field.parse().map(Duration::from_nanos));
        self.on_cpu += fields.next().ok_or("empty schedstat")??;
        self.waited += fields.next().ok_or("short schedstat")??;

        for line in fs::read_to_string(task.join("status"))?.lines() {
            match line.split_once(':') {
                Some(("voluntary_ctxt_switches", count)) => {
                    self.voluntary_switches += count.trim().parse::<u64>()?;
                }
                Some(("nonvoluntary_ctxt_switches", count)) => {
                    self.involuntary_switches += count.trim().parse::<u64>()?;
                }
                _ => {}
            }
        }
        self.threads += 1;
        Ok(())
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `strace -c`, attached to a server.
pub(super) struct Strace {
    child: Child,
    output: BufReader<ChildStderr>,
}

impl Strace {
    /// Returns once every thread of the server is traced; `None` if strace is not installed.
    pub(super) fn attach(server: &Actor) -> Result<Option<Self>> {
        let spawned = Command::new("strace")
            .args(["-c", "-f", "-p", &server.id().to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match spawned {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            spawned => spawned?,
        };
        let mut output = BufReader::new(child.stderr.take().expect("it is piped"));
        let mut line = String::new();
        output.read_line(&mut line)?;
        let strace = Self { child, output };
        match line.contains(" attached") {
            true => Ok(Some(strace)),
            false => Err(line.trim_end().into()),
        }
    }

    /// Detaches; returns each system call's name and count, the most frequent first.
    pub(super) fn finish(mut self) -> Result<Vec<(String, u64)>> {
        kill_process(Pid::from_child(&self.child), Signal::INT)?;
        let mut summary = String::new();
        self.output.read_to_string(&mut summary)?;

        // "% time, seconds, usecs/call, calls, [errors,] syscall" are the columns.
        let mut counts: Vec<(String, u64)> = Vec::new();
        for line in summary.lines() {
            let columns: Vec<&str> = line.split_whitespace().collect();
            if let [_, _, _, calls, .., name] = columns[..] {
                match calls.parse() {
                    Ok(calls) if name != "total" => counts.push((name.to_owned(), calls)),
                    _ => {}
                }
            }
        }
        counts.sort_by_key(|(_, calls)| std::cmp::Reverse(*calls));
        Ok(counts)
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
