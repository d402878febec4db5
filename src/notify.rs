//! What the service manager is told, in systemd's protocol (sd_notify(3)). Where nobody wants to know, nothing is done.
//!
//! A supervisor of ours hears some more, in variables that systemd does not know and ignores.

use std::env;
use std::fmt::{self, Display};
use std::io::{self, Read};
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use crate::sys::{self, Descriptor};

/// Whether somebody wants to know.
pub(crate) fn is_wanted() -> bool {
    env::var_os("NOTIFY_SOCKET").is_some_and(|manager| !manager.is_empty())
}

/// How the variables begin that are ours, behind the `X_` of all that are nobody's else.
pub(crate) const GENERATION: &str = "X_HANDOVER_GENERATION";
pub(crate) const LISTENERS: &str = "X_HANDOVER_LISTENERS";
pub(crate) const BIND: &str = "X_HANDOVER_BIND";
pub(crate) const SUCCESSOR: &str = "X_HANDOVER_SUCCESSOR";
pub(crate) const FAILED: &str = "X_HANDOVER_FAILED";

/// The process serves. A supervisor of its own is told as which generation.
pub(crate) fn ready(generation: Option<u64>, status: impl Display) {
    let (status, generation) = (one_line(status), own(generation));
    tell(&format!("READY=1\nSTATUS={status}\n{generation}"));
}

/// The line by which a process shows to its supervisor that it is one of its own, and not a subprocess of theirs.
fn own(generation: Option<u64>) -> String {
    let line = |generation| format!("{GENERATION}={generation}\n");
    generation.map(line).unwrap_or_default()
}

/// A listener that somebody else is to hold as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// As descriptors are named when they are passed on.
    pub(crate) name: String,
    /// It is known by its name, wherever it listens.
    pub(crate) by_name: bool,
    /// It is a Unix socket whose file is to be removed in the end.
    pub(crate) own_path: bool,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = u8::from(self.by_name) + 2 * u8::from(self.own_path);
        write!(f, "{flags}{}", self.name)
    }
}

impl FromStr for Held {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (flags, name) = text.split_at_checked(1).ok_or(())?;
        let flags: u8 = flags.parse().map_err(drop)?;
        // Whoever says it may be anybody.
        let is_fine = |char: char| char.is_ascii_graphic() && char != ':';
        if name.len() > NAME || !name.chars().all(is_fine) {
            return Err(());
        }
        Ok(Self {
            name: name.to_owned(),
            by_name: flags & 1 != 0,
            own_path: flags & 2 != 0,
        })
    }
}

/// No name of a descriptor is longer (sd_listen_fds(3)).
const NAME: usize = 255;

/// How many listeners go with a message: their names are not to make it too long.
const IN_A_MESSAGE: usize = 60;

/// These are the listeners of this process, which is of this generation.
pub(crate) fn listeners(
    generation: u64,
    about: &[Held],
    descriptors: &[Descriptor],
) -> io::Result<()> {
    let own = own(Some(generation));
    let pieces = about.chunks(IN_A_MESSAGE);
    for (about, descriptors) in pieces.zip(descriptors.chunks(IN_A_MESSAGE)) {
        let about: Vec<String> = about.iter().map(Held::to_string).collect();
        let text = format!("{LISTENERS}={}\n{own}", about.join(":"));
        let descriptors: Vec<&Descriptor> = descriptors.iter().collect();
        send(&text, &descriptors)?;
    }
    Ok(())
}

/// Leaves a descriptor with the manager, which gives it to the next process of the service (FileDescriptorStoreMax= in
/// systemd.service(5)).
pub(crate) fn store(name: impl Display, descriptor: &Descriptor) {
    let text = format!("FDSTORE=1\nFDNAME={name}\n");
    if let Err(error) = send(&text, &[descriptor]) {
        log::warn!("cannot leave the listener {name} with the service manager: {error}");
    }
}

/// Whether the manager keeps what is left with it.
pub(crate) fn has_store() -> bool {
    let most = env::var("FDSTORE").ok().and_then(|most| most.parse().ok());
    is_wanted() && most.is_some_and(|most: u64| most > 0)
}

/// Has the manager forget what was left with it by this name.
pub(crate) fn forget(name: impl Display) {
    tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}\n"));
}

/// What this process does now.
pub(crate) fn status(status: impl Display) {
    tell(&format!("STATUS={}\n", one_line(status)));
}

/// Asks for a listener: the answer comes over the other end of what goes with the question.
pub(crate) fn bind(generation: u64, words: &str, answer: &Descriptor) -> io::Result<()> {
    let own = own(Some(generation));
    send(&format!("{BIND}={words}\n{own}"), &[answer])
}

/// A process has been started that is to take over.
pub(crate) fn successor(pid: u32) {
    tell(&format!("{SUCCESSOR}={pid}\n"));
}

/// The restart came to nothing; the process serves on, or stops.
pub(crate) fn failed(
    generation: Option<u64>,
    serves: bool,
    status: impl Display,
    why: impl Display,
) {
    let (status, why, own) = (one_line(status), one_line(why), own(generation));
    let ready = if serves { "READY=1\n" } else { "" };
    let failed = match generation {
        Some(_) => format!("{FAILED}={why}\n"),
        None => String::new(),
    };
    tell(&format!("{ready}STATUS={status}\n{own}{failed}"));
}

/// The process makes progress.
pub(crate) fn beat() {
    tell("WATCHDOG=1\n");
}

/// The process makes no progress, and is to be ended.
pub(crate) fn wedged() {
    tell("WATCHDOG=trigger\n");
}

/// How long the process may say nothing of its progress, if somebody wants to know (sd_watchdog_enabled(3)).
pub(crate) fn watchdog_limit() -> Option<Duration> {
    let number = |name| env::var(name).ok()?.parse::<u64>().ok();
    let is_ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    let micros = number("WATCHDOG_USEC").filter(|micros| *micros > 0);
    micros
        .filter(|_| is_ours && is_wanted())
        .map(Duration::from_micros)
}

/// The most of a status, in bytes. A message of more than 4096 bytes is thrown away, with all that is in it.
const STATUS: usize = 1024;

/// What a process has said may be anything.
pub(crate) fn one_line(status: impl Display) -> String {
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
pub(crate) fn replaced_by(pid: u32, generation: Option<u64>, status: impl Display) {
    let generation = own(generation);
    tell(&format!(
        "READY=1\nMAINPID={pid}\nSTATUS={status}\n{generation}"
    ));
    if is_wanted() {
        if let Err(error) = barrier() {
            log::warn!("cannot tell whether the service manager knows of process {pid}: {error}");
        }
    }
}

/// A restart has begun. [`ready`] or [`replaced_by`] follows.
pub(crate) fn reloading(status: impl Display) {
    let micros = sys::clock::monotonic_nanos() / 1000;
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
    if let Err(error) = send(text, &[]) {
        log::warn!("cannot tell the service manager {text:?}: {error}");
    }
}

fn send(text: &str, descriptors: &[&Descriptor]) -> io::Result<()> {
    match env::var_os("NOTIFY_SOCKET") {
        Some(manager) if !manager.is_empty() => {
            sys::notification::send(&manager, text, descriptors)
        }
        _ => Ok(()),
    }
}

/// How long the manager may take to read what it was told.
const BARRIER: Duration = Duration::from_secs(5);

/// Waits until the manager has read all that it was told: it then closes its copy of a pipe's end.
fn barrier() -> io::Result<()> {
    let (reader, writer) = sys::descriptor::create_pipe()?;
    send("BARRIER=1", &[&writer])?;
    drop(writer);
    let (done, read) = crossbeam_channel::bounded(1);
    thread::Builder::new()
        .name("handover-notify".to_owned())
        .spawn(move || {
            let end = std::fs::File::from(reader).read(&mut [0]);
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
