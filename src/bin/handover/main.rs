//! The command `handover`: supervises a program, or sends requests to a supervisor.
//!
//! | file | what it holds |
//! |---|---|
//! | [`run`] | `handover run`: its options, and the supervisor that they make |
//! | [`request`] | a request to a supervisor, and its answer; restart, scale, reopen, stop, upgrade |
//! | [`stages`] | what each process does during a restart, as it goes |
//! | [`status`] | `handover status`: the answer as a table |
//! | [`packaging`] | completions for shells, and manual pages |
//! | [`values`] | the values of options |
//! | [`output`] | text for people |

mod output;
mod packaging;
mod request;
mod run;
mod stages;
mod status;
mod values;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use packaging::{CompletionsArgs, ManArgs};
use request::{RequestArgs, ScaleArgs, Target};
use run::RunArgs;
use status::StatusArgs;

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
    Status(StatusArgs),
    /// Replace the serving processes, one after another, without losing a request
    ///
    /// If a process cannot be replaced, that process and all later ones go on serving; with --wait,
    /// the exit code is then 1. --wait also shows what each process does during the restart.
    Restart(RequestArgs),
    /// Change the number of serving processes, until the supervisor ends
    ///
    /// Surplus processes finish their requests and exit. The open connections of a server of the crate
    /// handover move to a process that stays, on Linux. With --wait, the exit code is 0 as soon as N
    /// processes serve, and 1 if a process fails before it is ready. The supervisor starts another
    /// process after a failure. An upgrade keeps the number.
    Scale(ScaleArgs),
    /// Have the serving processes open their log files again, after these were rotated
    ///
    /// Opens the files of --stderr and --stdout again, and sends SIGUSR1 to each process that handles,
    /// ignores or blocks SIGUSR1. SIGUSR1 would end any other process. Returns when nothing more is
    /// written to the files before; the exit code is 1 if a file could not be opened again.
    Reopen(Target),
    /// Stop the service when all requests in progress are finished
    Stop(RequestArgs),
    /// Replace the supervisor itself, in the same process, by the program that is on disk now
    ///
    /// The serving processes are not affected. With --wait, the exit code is 1 if the supervisor
    /// could not be replaced.
    Upgrade(RequestArgs),
    /// Supervise a program that takes its listeners as systemd passes them (LISTEN_FDS)
    ///
    /// Signals: SIGTERM and SIGINT stop when all requests are finished; SIGQUIT stops at once;
    /// SIGHUP restarts gracefully; SIGUSR1 opens the files of --stderr and --stdout again, and is
    /// sent to the serving processes that handle, ignore or block SIGUSR1; SIGUSR2 replaces the supervisor by the program that is on disk now.
    ///
    /// Exit codes: 0 after a stop; 1 after a stop in which processes had to be killed; 2 if the
    /// options are wrong; 69 (EX_UNAVAILABLE) after --give-up-after; 78 (EX_CONFIG) if the program
    /// exits with 78, see --no-restart-code.
    Run(Box<RunArgs>),
    /// Print the completions for a shell, which a package installs
    Completions(CompletionsArgs),
    /// Print a manual page, which a package installs
    Man(ManArgs),
}

fn main() -> ExitCode {
    let result = match Options::parse().command {
        Subcommand::Status(args) => args.execute(),
        Subcommand::Restart(request) => request.restart(),
        Subcommand::Scale(args) => args.execute(),
        Subcommand::Reopen(supervisor) => supervisor.reopen(),
        Subcommand::Stop(request) => request.stop(),
        Subcommand::Upgrade(request) => request.upgrade(),
        Subcommand::Run(args) => args.execute(),
        Subcommand::Completions(args) => args.execute(Options::command()),
        Subcommand::Man(args) => args.execute(Options::command()),
    };
    result.unwrap_or_else(|error| {
        // A failure to write to standard error can be reported nowhere.
        let _ = writeln!(io::stderr(), "handover: {error}");
        ExitCode::FAILURE
    })
}

/// The exit code, or the error for standard error.
type CommandResult = Result<ExitCode, Box<dyn Error>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_are_well_formed() {
        Options::command().debug_assert();
    }
}
