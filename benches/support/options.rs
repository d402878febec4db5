//! The command line: the user's options, Cargo's own, and those that name a child's role.

use std::net::SocketAddr;
use std::time::Duration;

use lexopt::Arg::{Long, Value};
use lexopt::ValueExt;

use super::Result;

/// What a child process is to be.
#[derive(Clone, Copy)]
pub(super) enum Role {
    Epoll,
    Handover,
    Client(SocketAddr),
}

pub(super) struct Options {
    /// `None` is the benchmark itself.
    pub(super) role: Option<Role>,
    pub(super) rounds: usize,
    pub(super) duration: Duration,
    /// Never empty, and no count in it is 0.
    pub(super) connections: Vec<usize>,
    /// How many workers `handover` has; as many as it chooses, if nobody says.
    pub(super) workers: Option<usize>,
    pub(super) strace: bool,
    /// `cargo bench NAME` hands the name to every benchmark; this one was not meant.
    pub(super) filtered_out: bool,
}

impl Options {
    pub(super) fn from_args() -> Result<Self> {
        let (mut rounds, mut seconds, mut connections) = (None, None, vec![64, 512]);
        let (mut role, mut address, mut workers) = (None, None, None);
        let (mut bench, mut strace, mut filtered_out) = (false, false, false);

        let mut args = lexopt::Parser::from_env();
        while let Some(arg) = args.next()? {
            match arg {
                Long("rounds") => rounds = Some(args.value()?.parse()?),
                Long("seconds") => {
                    seconds = Some(
                        args.value()?
                            .parse_with(|text| text.parse().map(Duration::try_from_secs_f64))??,
                    );
                }
                Long("connections") => connections = args.value()?.parse_with(counts)?,
                Long("workers") => workers = Some(args.value()?.parse()?),
                Long("strace") => strace = true,
                Long("bench") => bench = true,
                Long("role") => role = Some(args.value()?.string()?),
                Long("address") => address = Some(args.value()?.parse()?),
                Value(filter) => filtered_out = !"echo_limit".contains(&filter.string()?),
                other => return Err(other.unexpected().into()),
            }
        }

        let role = match (role.as_deref(), address) {
            (None, _) => None,
            (Some("epoll"), _) => Some(Role::Epoll),
            (Some("handover"), _) => Some(Role::Handover),
            (Some("client"), Some(address)) => Some(Role::Client(address)),
            (Some(other), _) => {
                return Err(format!("no such role, or no address for it: {other}").into());
            }
        };
        // Without `--bench` it is `cargo test --benches` that runs this, which wants to know whether it works.
        let (usual_rounds, usual_duration) = match bench {
            true => (5, Duration::from_secs(2)),
            false => (1, Duration::from_millis(100)),
        };
        Ok(Self {
            role,
            rounds: rounds.unwrap_or(usual_rounds).max(1),
            duration: seconds.unwrap_or(usual_duration),
            connections,
            workers,
            strace,
            filtered_out,
        })
    }
}

fn counts(list: &str) -> std::result::Result<Vec<usize>, String> {
    list.split(',')
        .map(|count| match count.parse() {
            Ok(count @ 1..) => Ok(count),
            _ => Err(format!("not a number of connections: {count:?}")),
        })
        .collect()
}
