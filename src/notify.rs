//! What the service manager is told, in systemd's protocol (sd_notify(3)). Where nobody wants to know, nothing is done.

use std::env;
use std::fmt::Display;
use std::io;
use std::io::Read;
use std::thread;
use std::time::Duration;

use crate::sys::{self, Descriptor};

/// Whether somebody wants to know.
pub(crate) fn is_wanted() -> bool {
    env::var_os("NOTIFY_SOCKET").is_some_and(|manager| !manager.is_empty())
}

/// The process serves.
pub(crate) fn ready(status: impl Display) {
    tell(&format!("READY=1\nSTATUS={status}\n"));
}

/// Another process serves from now on. Returns when the manager knows, so that this one may end.
pub(crate) fn replaced_by(pid: u32, status: impl Display) {
    tell(&format!("READY=1\nMAINPID={pid}\nSTATUS={status}\n"));
    if is_wanted() {
        if let Err(error) = barrier() {
            log::warn!("cannot tell whether the service manager knows of process {pid}: {error}");
        }
    }
}

/// A restart has begun. [`ready`] or [`replaced_by`] follows.
pub(crate) fn reloading(status: impl Display) {
    let micros = sys::monotonic_nanos() / 1000;
    tell(&format!(
        "RELOADING=1\nMONOTONIC_USEC={micros}\nSTATUS={status}\n"
    ));
}

/// The process ends.
pub(crate) fn stopping(status: impl Display) {
    tell(&format!("STOPPING=1\nSTATUS={status}\n"));
}

/// What is under way takes so much longer.
pub(crate) fn extend(by: Duration) {
    tell(&format!("EXTEND_TIMEOUT_USEC={}\n", by.as_micros()));
}

fn tell(text: &str) {
    if let Err(error) = send(text, None) {
        log::warn!("cannot tell the service manager {text:?}: {error}");
    }
}

fn send(text: &str, descriptor: Option<&Descriptor>) -> io::Result<()> {
    match env::var_os("NOTIFY_SOCKET") {
        Some(manager) if !manager.is_empty() => sys::notify(&manager, text, descriptor),
        _ => Ok(()),
    }
}

/// How long the manager may take to read what it was told.
const BARRIER: Duration = Duration::from_secs(5);

/// Waits until the manager has read all that it was told: it then closes its copy of a pipe's end.
fn barrier() -> io::Result<()> {
    let (reader, writer) = sys::pipe()?;
    send("BARRIER=1", Some(&writer))?;
    drop(writer);
    let (done, read) = crossbeam_channel::bounded(1);
    thread::Builder::new()
        .name("handover-notify".to_owned())
        .spawn(move || {
            let end = sys::into_file(reader).read(&mut [0]);
            // Whoever waited may have lost patience.
            let _ = done.send(end);
        })?;
    match read.recv_timeout(BARRIER) {
        Ok(end) => end.map(drop),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}
