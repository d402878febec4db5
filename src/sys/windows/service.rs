//! Windows: the service control manager.
//!
//! The system calls the service's main function on a thread of its own. This function only keeps
//! the connection; the program goes on on its main thread, where a supervisor has to be.

use std::io;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;
use windows_service::service::{
    ServiceControl, ServiceControlAccept, ServiceExitCode, ServiceState as State,
    ServiceStatus as Status, ServiceType,
};
use windows_service::service_control_handler::ServiceStatusHandle;
use windows_service::service_control_handler::{self, ServiceControlHandlerResult};
use windows_service::{define_windows_service, service_dispatcher};
use windows_sys::Win32::Foundation::ERROR_FAILED_SERVICE_CONTROLLER_CONNECT;

use super::{console, signal};
use crate::sys::{ServiceState, ServiceStatus, Signal};

/// The system gives a service 10 s before a shutdown of the other services begins
/// (SERVICE_PRESHUTDOWN_INFO). The last second is for what follows the drain.
const BEFORE_SHUTDOWN: Duration = Duration::from_secs(9);

/// How long the end of the connection may take.
const DISCONNECT_LIMIT: Duration = Duration::from_secs(5);

/// A connection to the service control manager, which has started this process.
#[derive(Debug)]
pub(crate) struct ServiceManager {
    status: ServiceStatusHandle,
    /// Dropped when the service has ended.
    end: Sender<()>,
    ended: Receiver<windows_service::Result<()>>,
}

/// The arguments of the service's main function: the system passes it nothing of this crate.
static STARTING: Mutex<Option<Starting>> = Mutex::new(None);

#[derive(Clone)]
struct Starting {
    name: String,
    on_stop: fn(&dyn Fn() -> bool),
    started: Sender<windows_service::Result<ServiceStatusHandle>>,
    end: Receiver<()>,
}

/// Connects this process with the service control manager. `None` if another program has started
/// it. `on_stop` is called for each request to stop, with a function that delivers the request as a
/// signal, and returns false if nothing handles it.
pub(crate) fn connect(
    name: &str,
    on_stop: fn(&dyn Fn() -> bool),
) -> io::Result<Option<ServiceManager>> {
    let (started, start) = crossbeam_channel::bounded(1);
    let (end, until_end) = crossbeam_channel::bounded(0);
    *STARTING.lock() = Some(Starting {
        name: name.to_owned(),
        on_stop,
        started,
        end: until_end,
    });
    let (done, ended) = crossbeam_channel::bounded(1);
    let name = name.to_owned();
    thread::Builder::new()
        .name("handover-service".to_owned())
        .spawn(move || {
            let result = service_dispatcher::start(name, service_main);
            *STARTING.lock() = None;
            let _ = done.send(result);
        })?;
    // The dispatcher returns at once if it cannot connect.
    match start.recv() {
        Ok(status) => Ok(Some(ServiceManager {
            status: status.map_err(to_io)?,
            end,
            ended,
        })),
        Err(_) => match ended.recv() {
            Ok(Err(windows_service::Error::Winapi(error)))
                if error.raw_os_error() == Some(ERROR_FAILED_SERVICE_CONTROLLER_CONNECT as i32) =>
            {
                Ok(None)
            }
            Ok(Err(error)) => Err(to_io(error)),
            _ => Err(io::Error::other(
                "the service control manager has not started the service",
            )),
        },
    }
}

impl ServiceManager {
    pub(crate) fn set_status(&self, status: ServiceStatus) -> io::Result<()> {
        self.status
            .set_service_status(to_windows(status))
            .map_err(to_io)
    }

    /// To be called when the service has stopped.
    pub(crate) fn disconnect(self) {
        drop(self.end);
        // The process ends in any case.
        let _ = self.ended.recv_timeout(DISCONNECT_LIMIT);
    }
}

define_windows_service!(service_main, keep_connection);

/// The service's main function: returns when the service has ended.
fn keep_connection(_args: Vec<std::ffi::OsString>) {
    let Some(starting) = STARTING.lock().clone() else {
        return;
    };
    // The handler captures nothing. `register` frees what a handler has captured after the first
    // request to stop, though the system may call the handler again.
    let registered = service_control_handler::register(&starting.name, handle_control);
    let is_registered = registered.is_ok();
    if starting.started.send(registered).is_ok() && is_registered {
        // An error: the sender was dropped.
        let _ = starting.end.recv();
    }
}

fn handle_control(control: ServiceControl) -> ServiceControlHandlerResult {
    let signal = match control {
        ServiceControl::Stop => Signal::ServiceStop,
        ServiceControl::Preshutdown => Signal::Shutdown(BEFORE_SHUTDOWN),
        ServiceControl::Shutdown => Signal::Shutdown(console::TIME_LEFT),
        ServiceControl::Interrogate => return ServiceControlHandlerResult::NoError,
        _ => return ServiceControlHandlerResult::NotImplemented,
    };
    let on_stop = STARTING.lock().as_ref().map(|starting| starting.on_stop);
    if let Some(on_stop) = on_stop {
        on_stop(&|| signal::raise(signal));
    }
    ServiceControlHandlerResult::NoError
}

fn to_windows(status: ServiceStatus) -> Status {
    let (current_state, controls_accepted) = match status.state {
        ServiceState::Starting => (State::StartPending, ServiceControlAccept::empty()),
        // A service that accepts `PRESHUTDOWN` is not asked by `SHUTDOWN` later.
        ServiceState::Running => (
            State::Running,
            ServiceControlAccept::STOP | ServiceControlAccept::PRESHUTDOWN,
        ),
        ServiceState::Stopping => (State::StopPending, ServiceControlAccept::empty()),
        ServiceState::Stopped => (State::Stopped, ServiceControlAccept::empty()),
    };
    Status {
        service_type: ServiceType::OWN_PROCESS,
        current_state,
        controls_accepted,
        exit_code: match status.exit_code {
            0 => ServiceExitCode::Win32(0),
            code => ServiceExitCode::ServiceSpecific(code),
        },
        checkpoint: status.checkpoint,
        wait_hint: status.wait_hint,
        process_id: None,
    }
}

fn to_io(error: windows_service::Error) -> io::Error {
    match error {
        windows_service::Error::Winapi(error) => error,
        error => io::Error::other(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_is_told_with_what_the_service_accepts() {
        let accepted = ServiceControlAccept::STOP | ServiceControlAccept::PRESHUTDOWN;
        let none = ServiceControlAccept::empty();
        for (state, exit_code, told, controls, code) in [
            (
                ServiceState::Starting,
                0,
                State::StartPending,
                none,
                ServiceExitCode::Win32(0),
            ),
            (
                ServiceState::Running,
                0,
                State::Running,
                accepted,
                ServiceExitCode::Win32(0),
            ),
            (
                ServiceState::Stopping,
                0,
                State::StopPending,
                none,
                ServiceExitCode::Win32(0),
            ),
            (
                ServiceState::Stopped,
                0,
                State::Stopped,
                none,
                ServiceExitCode::Win32(0),
            ),
            (
                ServiceState::Stopped,
                78,
                State::Stopped,
                none,
                ServiceExitCode::ServiceSpecific(78),
            ),
        ] {
            let status = to_windows(ServiceStatus {
                state,
                checkpoint: 3,
                wait_hint: Duration::from_secs(5),
                exit_code,
            });
            assert_eq!(status.current_state, told);
            assert_eq!(status.controls_accepted, controls, "{told:?}");
            assert_eq!(status.exit_code, code, "{told:?}");
            assert_eq!((status.checkpoint, status.wait_hint.as_secs()), (3, 5));
        }
    }
}
