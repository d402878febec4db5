//! The child processes: their arguments, as the benchmark writes them and as the child reads them.

use std::ffi::OsString;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use lexopt::Arg::{Long, Value};
use lexopt::ValueExt;

use super::clients::{self, Figures, Load};
use super::process::{Actor, announce, settle};
use super::{Result, pages};

const SERVER_CPU: usize = 0;
const CLIENT_CPU: usize = 1;

/// What all measurements of a run have in common.
pub(crate) struct Conditions {
    pub(crate) pinned: bool,
    /// The length of phase 1, see `clients`.
    pub(crate) duration: Duration,
    /// The same, of the load before the measurement.
    pub(crate) warm_up: Duration,
    /// How often a measurement is made at most.
    pub(crate) attempts: usize,
}

/// A server, and how it is started.
#[derive(Clone, Debug)]
pub(crate) enum Server {
    Handover {
        /// The executable of this benchmark, possibly of another build. `None` is this one.
        program: Option<PathBuf>,
        workers: usize,
        /// `None` is the default of `handover`.
        queue: Option<usize>,
        /// The overload policy is Refuse, and not Wait.
        refuses: bool,
    },
    /// The standard library, with a thread for each connection.
    ThreadPerConnection,
    /// A program that takes `--listen ADDRESS`.
    Program(PathBuf),
}

impl Server {
    /// Starts the server in a new process. Returns the process and its address.
    pub(super) fn start(&self, conditions: &Conditions) -> Result<(Actor, String)> {
        let mut args = vec!["--role".into(), "server".into()];
        if conditions.pinned {
            args.push(format!("--cpu={SERVER_CPU}"));
        }
        let mut executable = None;
        match self {
            Self::Handover {
                program,
                workers,
                queue,
                refuses,
            } => {
                executable = program.as_deref();
                args.push(format!("--workers={workers}"));
                args.extend(queue.map(|queue| format!("--queue={queue}")));
                args.extend(refuses.then(|| "--refuse".to_owned()));
            }
            Self::ThreadPerConnection => args.push("--thread-per-connection".into()),
            Self::Program(path) => {
                let path = path.to_str().ok_or("the path of a server is not UTF-8")?;
                args.push(format!("--program={path}"));
            }
        }
        Actor::server_with(executable, &args)
    }
}

/// Starts the process of the clients. They are connected and warm when this returns.
pub(super) fn start_clients(address: &str, load: &Load, conditions: &Conditions) -> Result<Actor> {
    let mut args = vec!["--role".into(), "clients".into()];
    if conditions.pinned {
        args.push(format!("--cpu={CLIENT_CPU}"));
    }
    args.push(format!("--address={address}"));
    args.push(format!("--load={load}"));
    args.push(format!("--seconds={}", conditions.duration.as_secs_f64()));
    args.push(format!("--warm-up={}", conditions.warm_up.as_secs_f64()));
    let mut clients = Actor::start(None, &args)?;
    clients.hear()?;
    Ok(clients)
}

/// Has the clients apply their load. Returns the figures of its groups, and how long it took.
pub(super) fn run_load(clients: &mut Actor, load: &Load) -> Result<(Vec<Figures>, Duration)> {
    clients.prompt()?;
    let line = clients.hear()?;
    let mut numbers = line.split(' ').map(str::parse);
    let mut next = || -> Result<u64> { Ok(numbers.next().ok_or("the clients sent too little")??) };
    let took = Duration::from_nanos(next()?);
    let groups = load.groups.iter().map(|_| Figures::parse(&mut next));
    Ok((groups.collect::<Result<_>>()?, took))
}

/// What the arguments of a child say.
#[derive(Default)]
struct ChildArgs {
    cpu: Option<usize>,
    workers: usize,
    queue: Option<usize>,
    refuses: bool,
    thread_per_connection: bool,
    program: Option<OsString>,
    address: Option<String>,
    load: Option<Load>,
    duration: Duration,
    warm_up: Duration,
}

/// Plays the role that the arguments name, until this process is killed or its input ends. False
/// if the arguments name no role: then this process is the benchmark.
pub(super) fn play_if_child() -> Result<bool> {
    let mut parser = lexopt::Parser::from_env();
    let Some(Long("role")) = parser.next()? else {
        return Ok(false);
    };
    let role = parser.value()?.string()?;
    let mut args = ChildArgs::default();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("cpu") => args.cpu = Some(parser.value()?.parse()?),
            Long("workers") => args.workers = parser.value()?.parse()?,
            Long("queue") => args.queue = Some(parser.value()?.parse()?),
            Long("refuse") => args.refuses = true,
            Long("thread-per-connection") => args.thread_per_connection = true,
            Long("program") => args.program = Some(parser.value()?),
            Long("address") => args.address = Some(parser.value()?.string()?),
            Long("load") => args.load = Some(parser.value()?.parse()?),
            Long("seconds") => args.duration = seconds(&parser.value()?)?,
            Long("warm-up") => args.warm_up = seconds(&parser.value()?)?,
            other => return Err(other.unexpected().into()),
        }
    }
    settle(args.cpu)?;
    match role.as_str() {
        "server" => serve(args)?,
        "clients" => {
            let address = args.address.ok_or("--address is missing")?.parse()?;
            let load = args.load.ok_or("--load is missing")?;
            clients::run(address, &load, args.duration, args.warm_up)?;
        }
        other => return Err(format!("no such role: {other}").into()),
    }
    Ok(true)
}

fn serve(args: ChildArgs) -> Result<()> {
    match args.program {
        Some(program) => {
            // Another program announces no address. The clients try until it listens.
            let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
            announce(address);
            let address = address.to_string();
            Err(Command::new(program)
                .args(["--listen", &address])
                .exec()
                .into())
        }
        None if args.thread_per_connection => pages::serve_thread_per_connection(),
        None => pages::serve(args.workers, args.queue, args.refuses),
    }
}

/// The options that both benchmarks have.
pub(crate) struct CommonOptions {
    pub(crate) conditions: Conditions,
    pub(crate) rounds: usize,
    pub(crate) check: bool,
    /// `cargo bench` runs this, and not `cargo test --benches`, which wants a short run.
    pub(crate) is_bench: bool,
    /// `cargo bench NAME` passes the name to every benchmark, and this one has another name.
    pub(crate) is_filtered_out: bool,
}

impl CommonOptions {
    /// Reads the command line of a benchmark. `other` gets each option that is not common, and
    /// returns whether it knows the option.
    pub(crate) fn from_args(
        name: &str,
        mut other: impl FnMut(&str, &mut lexopt::Parser) -> Result<bool>,
    ) -> Result<Self> {
        let (mut rounds, mut duration, mut attempts) = (None, None, 1);
        let (mut pinned, mut check, mut is_bench, mut is_filtered_out) =
            (false, false, false, false);
        let mut parser = lexopt::Parser::from_env();
        while let Some(arg) = parser.next()? {
            match arg {
                Long("rounds") => rounds = Some(parser.value()?.parse()?),
                Long("seconds") => duration = Some(seconds(&parser.value()?)?),
                Long("attempts") => attempts = parser.value()?.parse()?,
                Long("pinned") => pinned = true,
                Long("check") => check = true,
                Long("bench") => is_bench = true,
                Long(option) => {
                    let option = option.to_owned();
                    if !other(&option, &mut parser)? {
                        return Err(format!("no such option: --{option}").into());
                    }
                }
                Value(filter) => is_filtered_out = !name.contains(&filter.string()?),
                short => return Err(short.unexpected().into()),
            }
        }
        let (usual_rounds, usual_millis, warm_up_millis) = match is_bench {
            true => (3, 3000, 300),
            false => (1, 100, 20),
        };
        Ok(Self {
            conditions: Conditions {
                pinned,
                duration: duration.unwrap_or(Duration::from_millis(usual_millis)),
                warm_up: Duration::from_millis(warm_up_millis),
                attempts,
            },
            rounds: rounds.unwrap_or(usual_rounds).max(1),
            check,
            is_bench,
            is_filtered_out,
        })
    }
}

fn seconds(text: &OsString) -> Result<Duration> {
    Ok(text.parse_with(|text| text.parse().map(Duration::try_from_secs_f64))??)
}

/// Reads a list of positive numbers, separated by commas.
pub(crate) fn counts(parser: &mut lexopt::Parser) -> Result<Vec<usize>> {
    Ok(parser.value()?.parse_with(|list| {
        let count = |text: &str| match text.parse() {
            Ok(count @ 1..) => Ok(count),
            _ => Err(format!("not a positive number: {text:?}")),
        };
        list.split(',')
            .map(count)
            .collect::<std::result::Result<Vec<_>, _>>()
    })?)
}
