//! A service of Windows: what its service control manager asks for, and is told.
//!
//! A stop goes to the servers of this process, or to its supervisor, as a signal does. What they do
//! goes to the manager, from one thread:
//!
//! ```text
//! servers, supervisor ──► report() ──► Progress ──► status ──► service control manager
//! ```

mod progress;

use std::io;
use std::process::{ExitCode, Termination};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use parking_lot::Mutex;

use crate::log;
use crate::sys::service::{self, ServiceManager};
use progress::{Event, Progress, TICK};

/// A program that the service control manager of Windows runs, as a service.
///
/// [`run`](Self::run) stands around the rest of `main`. If the service control manager has started
/// the process, a request to stop from the manager drains the servers that handle signals
/// ([`Builder::signals`](crate::Builder::signals)), as a stop event does, and the manager is told of
/// each step. If a terminal, a supervisor or a predecessor has started the process, or the system is
/// not Windows, [`run`](Self::run) only calls the function. So one program serves as both.
///
/// | what happens | the state of the service |
/// |---|---|
/// | the process starts | `START_PENDING`, for up to 60 s |
/// | the servers accept connections | `RUNNING` |
/// | a request to stop; a stop by something else | `STOP_PENDING`, with a new checkpoint every 2 s |
/// | the function has returned | `STOPPED`, with its exit code |
///
/// An exit code other than 0 is a service-specific one (`sc.exe query` shows it). A service that ends
/// with it counts as failed after `sc.exe failureflag NAME 1`, and one that crashes counts in any
/// case; `sc.exe failure NAME reset= 86400 actions= restart/1000` starts it again.
///
/// Before a shutdown of the system, Windows waits for the service for 10 s (`SERVICE_CONTROL_PRESHUTDOWN`),
/// so the drain then takes at most 9 s. A request to stop, as of `sc.exe stop`, has no limit but the
/// [`drain_timeout`](crate::Builder::drain_timeout).
///
/// The manager watches the process that it has started, and this process only. So a server of a
/// service cannot be replaced by a [`Restart`](crate::Restart) of its own: its start fails with an
/// error that says so. Under a [`Supervisor`](crate::Supervisor) it can, as the supervisor is the
/// process that the manager watches.
///
/// If nothing in the process handles the request to stop, the process ends at once.
///
/// # Examples
///
/// ```no_run
/// use std::error::Error;
/// use std::process::ExitCode;
///
/// use handover::{Connection, Next, Server, WindowsService};
///
/// # fn serve(_: &mut Connection) -> std::io::Result<Next> { Ok(Next::Close) }
/// fn main() -> ExitCode {
///     WindowsService::new("shop").run(run)
/// }
///
/// // As `main` would be without a service.
/// fn run() -> Result<(), Box<dyn Error>> {
///     let server = Server::builder().listen("0.0.0.0:7000").build(serve)?;
///     let report = server.run()?;
///     log::info!("{report}");
///     Ok(())
/// }
/// ```
///
/// An administrator installs it, here with an option of the program:
///
/// ```text
/// sc.exe create shop binPath= "C:\shop\shop.exe --listen 0.0.0.0:7000" start= auto
/// sc.exe start shop
/// sc.exe stop shop
/// ```
#[derive(Clone, Debug)]
#[must_use = "a service does nothing before it is run"]
pub struct WindowsService {
    name: String,
}

impl WindowsService {
    /// A service of this name, the one of `sc.exe create`.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// Calls the function, and returns its exit code, which is that of the service too. The function
    /// may return what `main` may return; an error of it goes to standard error, as from `main`. A
    /// service has none, so log what the service cannot do.
    ///
    /// Call this first in `main`, on the main thread: the manager waits for 30 s until a process says
    /// that it is the service. If the process cannot say so, the function is not called, an error is
    /// logged, and the exit code is 1.
    pub fn run<R: Termination>(self, main: impl FnOnce() -> R) -> ExitCode {
        let manager = service::connect(&self.name, request_stop);
        let manager = manager.and_then(|manager| manager.map(start_thread).transpose());
        match manager {
            Ok(_) => {
                let code = main().report();
                report_end(number_of(code));
                code
            }
            Err(error) => {
                let name = &self.name;
                log::error!("the process cannot be the service {name}: {error}");
                ExitCode::FAILURE
            }
        }
    }
}

/// The number behind an exit code, which tells it by comparison only.
fn number_of(code: ExitCode) -> u32 {
    let all = 0..=u8::MAX;
    let found = all
        .into_iter()
        .find(|number| ExitCode::from(*number) == code);
    found.map_or(1, u32::from)
}

/// Leads to the thread that tells the manager, if this process is a service.
static EVENTS: Mutex<Option<Sender<Report>>> = Mutex::new(None);

/// An event, and what is dropped when the manager knows of it.
type Report = (Event, Sender<()>);

/// How long an event may take to reach the manager when the process waits for this.
const REPORT_LIMIT: Duration = Duration::from_secs(5);

fn start_thread(manager: ServiceManager) -> io::Result<()> {
    let mut progress = Progress::new();
    manager.set_status(progress.status())?;
    let (events, received) = crossbeam_channel::bounded(16);
    *EVENTS.lock() = Some(events);
    thread::Builder::new()
        .name("handover-service-status".to_owned())
        .spawn(move || tell_manager(manager, &mut progress, &received))?;
    Ok(())
}

fn tell_manager(manager: ServiceManager, progress: &mut Progress, events: &Receiver<Report>) {
    loop {
        let limit = if progress.ticks() {
            TICK
        } else {
            Duration::MAX
        };
        let (event, _told) = match events.recv_timeout(limit) {
            Ok((event, told)) => (event, Some(told)),
            Err(RecvTimeoutError::Timeout) => (Event::Tick, None),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let told = progress
            .apply(event)
            .map(|status| manager.set_status(status));
        if let Some(Err(error)) = told {
            log::error!("cannot tell the service control manager the state: {error}");
        }
        match event {
            Event::Ended(_) => return manager.disconnect(),
            // Not before the manager has its answer to the request.
            Event::Unhandled => {
                manager.disconnect();
                std::process::exit(0);
            }
            Event::Ready | Event::Stopping | Event::Tick => {}
        }
    }
}

/// Has the manager told. The receiver is disconnected when this is done.
fn report(event: Event) -> Option<Receiver<()>> {
    let (told, until_told) = crossbeam_channel::bounded(0);
    let events = EVENTS.lock().clone()?;
    // An error: the service has ended.
    events.send((event, told)).ok().map(|()| until_told)
}

/// A request of the manager. `deliver` has it handled, and returns false if nothing does.
fn request_stop(deliver: &dyn Fn() -> bool) {
    report(Event::Stopping);
    if !deliver() {
        log::warn!("nothing handles the stop of the service: the process ends at once");
        report(Event::Unhandled);
    }
}

// ---- for the rest of the crate ----

/// Whether the service control manager has started this process.
pub(crate) fn is_service() -> bool {
    EVENTS.lock().is_some()
}

/// The servers of this process, or of its supervisor, accept connections.
pub(crate) fn report_ready() {
    report(Event::Ready);
}

/// A stop has begun.
pub(crate) fn report_stopping() {
    report(Event::Stopping);
}

/// This process is about to end. Returns when the manager knows.
pub(crate) fn report_end(exit_code: u32) {
    if let Some(told) = report(Event::Ended(exit_code)) {
        let _ = told.recv_timeout(REPORT_LIMIT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_an_exit_code_is_found() {
        for number in [0, 1, 78, 255] {
            assert_eq!(number_of(ExitCode::from(number)), u32::from(number));
        }
        assert_eq!(number_of(ExitCode::SUCCESS), 0);
        assert_eq!(number_of(ExitCode::FAILURE), 1);
    }

    /// The only one of its process that calls `run`: Windows allows one call in the life of a process.
    #[test]
    fn a_program_that_is_no_service_only_calls_the_function() {
        let code = WindowsService::new("test").run(|| -> Result<ExitCode, io::Error> {
            assert!(!is_service());
            Ok(ExitCode::from(3))
        });
        assert_eq!(number_of(code), 3);
    }
}
