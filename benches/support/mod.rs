//! The parts of `echo_limit`, one process role or tool each.

mod client;
mod compare;
mod options;
mod process;
mod servers;

use std::error::Error;

use self::options::{Options, Role};

/// Every failure ends the benchmark with its message; nothing here is recovered from.
type Result<T> = std::result::Result<T, Box<dyn Error>>;

const SERVER_CPU: usize = 0;
const CLIENT_CPU: usize = 1;

/// Plays the role that the arguments name: without one, that of the benchmark which starts the others.
pub(crate) fn main() -> Result<()> {
    let options = Options::from_args()?;
    match options.role {
        None if options.filtered_out => Ok(()),
        None => compare::run(&options),
        Some(Role::Epoll) => {
            process::settle(Some(SERVER_CPU))?;
            servers::epoll()
        }
        Some(Role::Handover) => {
            process::settle(Some(SERVER_CPU))?;
            servers::handover(options.workers)
        }
        Some(Role::Client(address)) => {
            process::settle(Some(CLIENT_CPU))?;
            client::run(address, options.connections[0], options.duration)
        }
    }
}
