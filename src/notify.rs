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
    tell(&format!("READY=1\nSTATUS={}\n", one_line(status)));
}

/// The most of a status, in bytes. A message of more than 4096 bytes is thrown away, with all that is in it.
const STATUS: usize = 1024;

/// What a process has said may be anything.
fn one_line(status: impl Display) -> String {
    let text = status.to_string();
    let mut line = String::new();
    for char in text.chars() {
        if line.len() + char.len_utf8() > STATUS {
            break;
        }
        line.push(if char.is_control() { ' ' } else { char });
    }
    line
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_one_line_of_bounded_length() {
        assert_eq!(one_line("a\nb\r\0c"), "a b  c");
        let long = one_line("ä".repeat(5000));
        assert_eq!((long.len(), long.chars().count()), (STATUS, STATUS / 2));
    }
}
