//! A service of Windows: the requests of the service control manager, and the reports to it.
//!
//! The manager's request to stop goes to the servers of this process, or to its supervisor, as a
//! signal does. The servers and the supervisor report their progress, and one thread tells the
//! manager:
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
/// `main` gives the rest of the program to [`run`](Self::run), as a function. If the service
/// control manager has started the process, the manager's request to stop drains the servers that
/// handle signals ([`Builder::signals`](crate::Builder::signals)), as a stop event does, and the
/// manager is told of each step. If a terminal, a supervisor or a predecessor has started the
/// process, or the system is not Windows, [`run`](Self::run) only calls the function. So the same
/// program also runs without the manager.
///
/// | what happens | the state of the service |
/// |---|---|
/// | the process starts | `START_PENDING`, for up to 60 s |
/// | the servers accept connections | `RUNNING` |
/// | a request to stop; a stop by something else | `STOP_PENDING`, with a new checkpoint every 2 s |
/// | the function has returned | `STOPPED`, with its exit code |
///
/// An exit code other than 0 is reported as a service-specific exit code (`sc.exe query` shows it).
/// A service that ends with such a code counts as failed after `sc.exe failureflag NAME 1`, and a
/// service that crashes always counts as failed. A failed service is
/// restarted after `sc.exe failure NAME reset= 86400 actions= restart/1000`.
///
/// Before a shutdown of the system, Windows waits 10 s for the service
/// (`SERVICE_CONTROL_PRESHUTDOWN`), so the drain takes at most 9 s. After a request to stop, as by
/// `sc.exe stop`, only [`drain_timeout`](crate::Builder::drain_timeout) limits the drain.
///
/// The manager watches only the process that it has started. So the server of a service cannot be
/// replaced by a [`Restart`](crate::Restart) of its own: the start of such a server is an error.
/// Under a [`Supervisor`](crate::Supervisor) a server can be replaced, as the supervisor is the
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
    /// Makes a service with this name, which is the name in `sc.exe create`.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// Calls the function, and returns its exit code, which is also the exit code of the service.
    /// The function may return what `main` may return. As from `main`, an error goes to standard
    /// error. A service has no standard error, so log the errors.
    ///
    /// Call this first in `main`, on the main thread: the manager waits 30 s for the process to
    /// report that it is the service. If the process cannot report this, the function is not
    /// called, an error is logged, and the exit code is 1.
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

/// The number of an exit code, which can only be compared.
fn number_of(code: ExitCode) -> u32 {
    let all = 0..=u8::MAX;
    let found = all
        .into_iter()
        .find(|number| ExitCode::from(*number) == code);
    found.map_or(1, u32::from)
}

/// The queue of the thread that tells the manager. `None` if this process is not a service.
static EVENTS: Mutex<Option<Sender<Report>>> = Mutex::new(None);

/// An event, and a sender that is dropped when the manager knows of the event.
type Report = (Event, Sender<()>);

/// The longest wait of this process until the manager knows of an event.
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
            // Not in `request_stop`: the manager first gets the answer to its request.
            Event::Unhandled => {
                manager.disconnect();
                std::process::exit(0);
            }
            Event::Ready | Event::Stopping | Event::Tick => {}
        }
    }
}

/// Reports an event to the manager. The receiver is disconnected when the manager knows of it.
/// `None` if this process is not a service.
fn report(event: Event) -> Option<Receiver<()>> {
    let (told, until_told) = crossbeam_channel::bounded(0);
    let events = EVENTS.lock().clone()?;
    // An error: the service has ended.
    events.send((event, told)).ok().map(|()| until_told)
}

/// Handles the manager's request to stop. `deliver` returns false if nothing handles the request.
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

/// Reports that the servers of this process, or of its supervisor, accept connections.
pub(crate) fn report_ready() {
    report(Event::Ready);
}

/// Reports that a stop has begun.
pub(crate) fn report_stopping() {
    report(Event::Stopping);
}

/// Reports that this process is about to end. Returns when the manager knows, or after 5 s.
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

    /// The only test of its process that calls `run`: Windows allows one call per process.
    #[test]
    fn a_program_that_is_no_service_only_calls_the_function() {
        let code = WindowsService::new("test").run(|| -> Result<ExitCode, io::Error> {
            assert!(!is_service());
            Ok(ExitCode::from(3))
        });
        assert_eq!(number_of(code), 3);
    }
}
